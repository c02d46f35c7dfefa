# The CUDA side of the build, included by the Makefile: the compiler, the kernels as one relocatable object that
# `go build -tags cuda` hashes and links, the stand-in libcuda, and the gate over the machine code.
#
#   make toolchain       pinned compiler wheels into .toolchain/ (nothing to do when a CUDA toolkit >= 12.8 is found)
#   make kernels         cuda/kernels_linux_amd64.syso for ARCHS
#   make kernels-test    programs for a machine with a card: build/cuda/test/*_test
#   make kernels-check   registers of every kernel, and the gate (scripts/kernelgate), first proved able to fail
#
# ARCHS: sm_80 and sm_90a by default, sm_90a alone in an edit loop, CUDA_ARCHS_ALL in a release.

CUDA_ARCHS_ALL := sm_80 sm_86 sm_89 sm_90a sm_120a
ARCHS ?= sm_80 sm_90a

CUDA_BUILD  := build/cuda
CUDA_WHEELS := $(CURDIR)/.toolchain
CUDA_ROOT   := $(shell sh scripts/cuda-home.sh $(CUDA_WHEELS))
NVCC        := $(CUDA_ROOT)/bin/nvcc
CUOBJDUMP   := $(CUDA_ROOT)/bin/cuobjdump
# Looked up when a recipe runs: the wheels may not be there while this file is read.
CUDART       = $(firstword $(wildcard $(CUDA_ROOT)/lib64/libcudart_static.a $(CUDA_ROOT)/lib/libcudart_static.a \
                 $(CUDA_ROOT)/targets/x86_64-linux/lib/libcudart_static.a))

# sm_80 also carries its PTX, which the driver of a card not named here compiles at start.
gencode = -gencode arch=compute_$(1:sm_%=%),code=$(if $(filter sm_80,$(1)),[sm_80$(comma)compute_80],$(1))
comma  := ,
NVFLAGS := -O3 -std=c++17 -lineinfo -Wno-deprecated-gpu-targets -Xfatbin --compress-mode=size \
           -Xcompiler -fPIC,-fno-exceptions,-fno-rtti,-fvisibility=hidden,-Wall \
           -Xptxas --warn-on-spills,--warn-on-local-memory-usage

NVDEFINES := -DQK_ARCHITECTURES='"$(ARCHS)"' -DQK_HAS_SM90=$(if $(filter sm_90a,$(ARCHS)),1,0)

KERNEL_SOURCES := $(wildcard kernels/*.cu)
KERNEL_OBJECTS := $(KERNEL_SOURCES:kernels/%.cu=$(CUDA_BUILD)/%.o)
KERNEL_SYSO    := cuda/kernels_linux_amd64.syso

# Every go command of the cuda build takes these, always the same: a change recompiles runtime/cgo and gorgonia.org/cu.
CUDA_CGO_ENV = CGO_CFLAGS="-O2 -g -Wno-deprecated-declarations -I$(CURDIR)/cuda/compat -I$(CUDA_ROOT)/include" \
               CGO_LDFLAGS="-O2 -g -L$(CURDIR)/$(CUDA_BUILD)"

.PHONY: toolchain kernels kernels-check kernels-test kernels-clean
toolchain: $(NVCC)
kernels: $(KERNEL_SYSO) $(CUDA_BUILD)/libcuda.a

# All wheels in one call: a second call with the same target would skip, or delete, the folder they share.
$(CUDA_WHEELS)/nvidia/cu13/bin/nvcc: cuda/toolchain.txt
	python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary :all: \
		--require-hashes --upgrade --target $(CUDA_WHEELS) -r $<
	touch $@

# The archs are part of an object's name to make, not of its file: changing ARCHS rebuilds.
$(CUDA_BUILD)/archs: FORCE
	@mkdir -p $(CUDA_BUILD)
	@echo '$(ARCHS) $(NVFLAGS) $(CUDA_ROOT)' | cmp -s - $@ || echo '$(ARCHS) $(NVFLAGS) $(CUDA_ROOT)' > $@
.PHONY: FORCE
FORCE:

# ptxas says in C75xx that it serialised wgmma or ignored setmaxnreg, which costs more than an error would: make it one.
$(CUDA_BUILD)/%.o: kernels/%.cu $(CUDA_BUILD)/archs | $(NVCC)
	$(NVCC) $(NVFLAGS) $(NVDEFINES) $(foreach a,$(ARCHS),$(call gencode,$(a))) -MMD -MT $@ -MF $(@:.o=.d) -c $< -o $@.tmp 2> $(@:.o=.log) \
		|| { cat $(@:.o=.log) >&2; exit 1; }
	@cat $(@:.o=.log) >&2
	@! grep -E 'C75[0-9][0-9]' $(@:.o=.log) > /dev/null || { echo "$<: ptxas serialised wgmma or ignored setmaxnreg (above)" >&2; exit 1; }
	@mv $@.tmp $@
-include $(KERNEL_OBJECTS:.o=.d)

$(CUDA_BUILD)/guard.o: cuda/shim/guard.c
	@mkdir -p $(CUDA_BUILD)
	gcc -D_GNU_SOURCE -O2 -Wall -fPIC -c $< -o $@

# One relocatable object with the static runtime inside: go build hashes a .syso like a source file, an archive it does not.
$(KERNEL_SYSO): $(KERNEL_OBJECTS) $(CUDA_BUILD)/guard.o
	ld -r -o $@.tmp $^ $(CUDART)
	@mv $@.tmp $@

$(CUDA_BUILD)/trampolines.S: cuda/shim/gen.sh cuda/shim/symbols.txt
	@mkdir -p $(CUDA_BUILD)
	sh cuda/shim/gen.sh cuda/shim/symbols.txt > $@
$(CUDA_BUILD)/libcuda.a: cuda/shim/shim.c $(CUDA_BUILD)/trampolines.S
	gcc -O2 -Wall -fPIC -c cuda/shim/shim.c -o $(CUDA_BUILD)/shim.o
	gcc -c $(CUDA_BUILD)/trampolines.S -o $(CUDA_BUILD)/trampolines.o
	rm -f $@ && ar rcsD $@ $(CUDA_BUILD)/shim.o $(CUDA_BUILD)/trampolines.o

$(CUDA_BUILD)/test/canary.o: kernels/test/canary.cu $(CUDA_BUILD)/archs | $(NVCC)
	@mkdir -p $(@D)
	$(NVCC) -O3 -std=c++17 $(foreach a,$(ARCHS),$(call gencode,$(a))) -c $< -o $@
kernels-check: $(CUDA_BUILD)/test/canary.o $(KERNEL_OBJECTS)
	go run ./scripts/kernelgate -cuobjdump $(CUOBJDUMP) -canaries $<
	go run ./scripts/kernelgate -cuobjdump $(CUOBJDUMP) $(KERNEL_OBJECTS)

# Programs that check and time the kernels on a card; they carry everything but the driver.
KERNEL_TESTS := $(patsubst kernels/test/%.cu,$(CUDA_BUILD)/test/%,$(wildcard kernels/test/*_test.cu))
kernels-test: $(KERNEL_TESTS)
$(CUDA_BUILD)/test/%_test: kernels/test/%_test.cu kernels/test/harness.h $(KERNEL_OBJECTS)
	@mkdir -p $(@D)
	$(NVCC) -O3 -std=c++17 $(foreach a,$(ARCHS),$(call gencode,$(a))) -o $@ $< $(KERNEL_OBJECTS) -L$(dir $(CUDART)) -ldl

kernels-clean:
	rm -rf $(CUDA_BUILD) $(KERNEL_SYSO)

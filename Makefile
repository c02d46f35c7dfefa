# qlora: LoRA fine-tuning of Qwen2.5 on one card, in one binary.
#
#   make build     bin/qlora
#   make demo      train and question a small model, on this machine (about 2 minutes on 2 cores)
#   make mixed-demo   a new identity, alone and mixed with everyday data: what it costs (about 10 minutes on 2 cores)
#   make test      every test that needs no card
#   make lint      gofmt, go vet, staticcheck
#   make test-cuda compile every kernel and test what of the CUDA build needs no card
#   make release   bin/qlora for every card, from sm_80 to sm_120
#   make gpu-check on a machine with a card, after make gpu-build
#   make bench-card   every result of this machine's card; bench-check compares with results/, bench-peers with other trainers
#   make mutants   prove that the tests of the backward passes can fail
#   make fits      README's table of what fits, from results/
#   make crash     kill training runs at random moments (KILLS=200), fail every write in turn
#   make fuzz      feed every parser hostile input, FUZZTIME=60 seconds each, until all together had EXECS

GO       ?= go
PYTHON   ?= python3
VERSION  := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
GO_FILES  = $(shell git ls-files --cached --others --exclude-standard '*.go')

# A CUDA build where a card or nvcc is found, or ARCHS is given (make build ARCHS="sm_86 sm_90a"); CUDA=1 and CUDA=0 decide.
CARD_ARCHS := $(shell sh scripts/card-archs.sh)
ifneq ($(CARD_ARCHS)$(ARCHS)$(shell command -v nvcc),)
  CUDA ?= 1
endif
CUDA ?= 0
ifneq ($(CARD_ARCHS),)
  ARCHS ?= sm_80 $(filter-out sm_80,$(CARD_ARCHS))
endif
LDFLAGS = -s -w -X main.version=$(VERSION)

.PHONY: build build-cpu build-cuda release gpu-build gpu-check bench-card bench-check bench-peers bench-slowed test test-cuda lint mutants fits crash fuzz demo mixed-demo clean abi
build: $(if $(filter 1,$(CUDA)),build-cuda,build-cpu)

build-cpu:
	@echo "building for the processor: no card, no nvcc (CUDA=1 builds for cards all the same)"
	$(GO) build -trimpath -ldflags "$(LDFLAGS)" -o bin/qlora ./cmd/qlora

# The ABI of the kernels is plain C; a compiler says so.
abi:
	@mkdir -p build
	$(CC) -std=c99 -Wall -Wextra -Wpedantic -Werror -Ikernels -fsyntax-only -x c kernels/api.h

test: abi
	$(GO) run ./internal/testreport ./...

lint:
	@test -z "$$(gofmt -l $(GO_FILES))" || { gofmt -l $(GO_FILES); echo "run gofmt on the files above" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

mutants:
	$(GO) run ./internal/mutants

fits:
	$(GO) run ./scripts/fits

# RESULTS=results/crash, or results/fuzz, keeps a file of what was done.
KILLS ?= 200
crash:
	$(GO) test -count=1 -v -timeout 3h -run 'TestKilledAnywhere|TestEveryWriteFails|Signal' ./cmd/qlora -kills $(KILLS) -kill_seed $$$$ -every_resume \
		$(if $(RESULTS),-results $(abspath $(RESULTS)))

FUZZTIME ?= 60
fuzz:
	$(GO) run ./internal/fuzzrun -seconds $(FUZZTIME) $(if $(RESULTS),-out $(RESULTS)) $(if $(EXECS),-execs $(EXECS))

demo: build
	$(GO) build -o bin/sidebyside ./scripts/demo
	PYTHON="$(PYTHON)" MODEL="$(MODEL)" DATASET="$(DATASET)" OUT="$(OUT)" scripts/demo.sh

mixed-demo: build
	PYTHON="$(PYTHON)" MODEL="$(MODEL)" OUT="$(OUT)" RESULTS="$(RESULTS)" scripts/mixed-demo.sh

clean:
	rm -rf bin build

include cuda/kernels.mk

build-cuda: kernels
	@echo "building for cards: $(ARCHS)"
	$(CUDA_CGO_ENV) $(GO) build -tags cuda -trimpath -ldflags "$(LDFLAGS)" -o bin/qlora ./cmd/qlora
	@! nm -D --undefined-only bin/qlora | grep -E ' (qk_|cu[A-Z]|cuda)' || { echo "bin/qlora lacks the kernels above" >&2; exit 1; }

# bin/qlora for every card that is known, and PTX for those that are not: every kernel compiles, and passes the gate, on each.
release:
	$(MAKE) CUDA=1 ARCHS="$(CUDA_ARCHS_ALL)" build-cuda kernels-check

# All that scripts/gpu-check.sh needs on a machine with a card, in build/gpu.
gpu-build: build-cuda kernels-test
	@mkdir -p build/gpu
	cp bin/qlora build/gpu/
	$(CUDA_CGO_ENV) $(GO) test -c -tags cuda -trimpath -ldflags "-s -w" -o build/gpu/cuda.test ./cuda
	cp $(KERNEL_TESTS) build/gpu/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o build/gpu/bigmodel ./scripts/bigmodel

# STAGES names some of: doctor kernels conformance sanitizer determinism huge model train use timings memory long load.
gpu-check:
	scripts/gpu-check.sh $(STAGES)

# STAGES names some of those in scripts/bench-card.sh.
bench-card:
	scripts/bench-card.sh $(STAGES)

# Nothing got slower than what results/ has of this machine's card, or processor. FAIL_IF is the rule.
FAIL_IF ?= median>3%
bench-check: build
	bin/qlora bench check --fail_if '$(FAIL_IF)'

# PYTHON has torch, transformers and peft, and may have bitsandbytes, unsloth and liger-kernel.
bench-peers: build
	bin/qlora bench peers --python "$(PYTHON)" --tokenizer testdata/tokenizer/qwen2.5 $(PEERS)

# A program whose RMSNorm is a few per cent slower, for the stage gate of bench-card. It is made of a copy: what is slow must
# never be left behind in cuda/.
SLOW_NS ?= 1000
SLOWED   = build/slowed
bench-slowed: build-cuda
	@rm -rf $(SLOWED) && mkdir -p $(SLOWED) build/gpu
	git ls-files --cached --others --exclude-standard -- go.mod go.sum cmd bench cuda internal kernels model | tar -cT - | tar -xC $(SLOWED)
	$(NVCC) $(NVFLAGS) $(NVDEFINES) $(foreach a,$(ARCHS),$(call gencode,$(a))) -DQK_SLOW_NS=$(SLOW_NS) -include kernels/test/slow.h -c kernels/rmsnorm.cu -o $(SLOWED)/rmsnorm.o
	ld -r -o $(SLOWED)/$(KERNEL_SYSO) $(SLOWED)/rmsnorm.o $(filter-out %/rmsnorm.o,$(KERNEL_OBJECTS)) $(CUDA_BUILD)/guard.o $(CUDART)
	cd $(SLOWED) && $(CUDA_CGO_ENV) $(GO) build -tags cuda -trimpath -ldflags "$(LDFLAGS)" -o $(CURDIR)/build/gpu/qlora-slowed ./cmd/qlora
	@rm -rf $(SLOWED)

# What of the CUDA build can be checked without a card.
test-cuda: kernels kernels-check
	$(CUDA_CGO_ENV) $(GO) vet -tags cuda ./...
	$(CUDA_CGO_ENV) $(GO) tool staticcheck -tags cuda ./cuda/... ./cmd/qlora
	$(CUDA_CGO_ENV) $(GO) run ./internal/testreport -tags cuda -skip '^TestCard' ./cuda/...

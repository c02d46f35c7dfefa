# qlora: LoRA fine-tuning of Qwen2.5 on one card, in one binary.
#
#   make build     bin/qlora
#   make demo      train and question a small model, on this machine (about 2 minutes on 2 cores)
#   make test      every test that needs no card
#   make lint      gofmt, go vet, staticcheck
#   make mutants   prove that the tests of the backward passes can fail

GO       ?= go
PYTHON   ?= python3
VERSION  := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
GO_FILES  = $(shell git ls-files --cached --others --exclude-standard '*.go')

.PHONY: build test lint mutants demo clean abi
build:
	$(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/qlora ./cmd/qlora

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

demo: build
	$(GO) build -o bin/sidebyside ./scripts/demo
	PYTHON="$(PYTHON)" MODEL="$(MODEL)" DATASET="$(DATASET)" OUT="$(OUT)" scripts/demo.sh

clean:
	rm -rf bin build

include cuda/kernels.mk

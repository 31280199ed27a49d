# The targets a person types. Each does its own set-up, so a fresh Debian
# machine with Go needs nothing else: `make demo`, `make test`.

GO       ?= go
GOBUILD   = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w'
HELPER    = internal/sandbox/linux/helper/bawn-sandbox
WORKER    = internal/interior/workers/bawn-wasm
FUZZTIME ?= 5s

.PHONY: help setup build parts examples demo test vet lint generate fuzz-short bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the Debian packages that are missing, check the Go toolchain
	@sh scripts/setup.sh

build: parts ## make bin/bawn: static, no cgo
	$(GOBUILD) -o bin/bawn ./cmd/bawn

# The two small programs that bawn carries inside itself. They come first,
# because the packages that embed them take what lies there.
parts:
	@mkdir -p $(dir $(HELPER)) $(dir $(WORKER))
	$(GOBUILD) -o $(HELPER) ./cmd/bawn-sandbox
	$(GOBUILD) -o $(WORKER) ./cmd/bawn-wasm

examples: ## build the examples that are written in Go
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -tags lambda.norpc -o examples/text/build/bootstrap ./examples/text
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -tags lambda.norpc -o examples/orders/build/bootstrap ./examples/orders
	GOOS=wasip1 GOARCH=wasm $(GO) build -trimpath -ldflags '-s -w' -o examples/redact/build/redact.wasm ./examples/redact

demo: setup build examples ## start Bawn, deploy the examples, call each, watch the wall hold, stop
	@bash scripts/demo.sh

test: setup build examples ## run every test
	@bash scripts/test.sh

vet: parts ## go vet and gofmt
	@bash scripts/vet.sh

lint: vet ## vet, and staticcheck at the version pinned in tools/go.mod
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

generate: parts ## write the files that are made from code
	$(GO) generate ./...
	$(GO) test -count=1 ./internal/api -run OpenAPI -update

fuzz-short: parts ## run every fuzz target for FUZZTIME (5s)
	@FUZZTIME=$(FUZZTIME) bash scripts/fuzz.sh

bench: setup build ## print the performance ratios, side by side
	$(GO) run ./bench $(BENCHFLAGS)

clean: ## remove what build makes
	rm -rf bin $(HELPER) $(WORKER) examples/*/build

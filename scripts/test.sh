#!/usr/bin/env bash
# Every test of the repository, with what was skipped and why. The packages run
# two at a time: the end-to-end ones start whole nodes.
set -eu
cd "$(dirname "$0")/.."
bash scripts/vet.sh
go build -o bin/testsum ./scripts/testsum
set +e
set -o pipefail
# As it is built: a server with cgo in it cannot give its rights away on every thread.
export CGO_ENABLED=0
go test -json -count=1 -p 2 -timeout 20m "$@" ./... </dev/null | bin/testsum
status=$?
# Other people's suites are a module of their own; what Bawn requires today is added
# to a copy of its go.mod.
cp conformance/go.mod bin/conformance.mod && cp conformance/go.sum bin/conformance.sum
(cd conformance && go vet -mod=mod -modfile=../bin/conformance.mod ./... && go test -count=1 -timeout 10m -mod=mod -modfile=../bin/conformance.mod ./...) </dev/null || status=1
exit $status

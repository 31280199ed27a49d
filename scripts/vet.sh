#!/usr/bin/env bash
# go vet, gofmt, and the rule that the module files are as `go mod` wants them.
set -eu
cd "$(dirname "$0")/.."
unformatted=$(git ls-files -z '*.go' | xargs -0 gofmt -l)
if [ -n "$unformatted" ]; then
	printf 'not gofmt-ed:\n%s\n' "$unformatted" >&2
	exit 1
fi
go vet ./...
go mod verify >/dev/null
echo "vet: ok"

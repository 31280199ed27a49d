#!/usr/bin/env bash
# Runs each fuzz target for FUZZTIME, one after the other.
set -eu
export CGO_ENABLED=0 # as it is built
cd "$(dirname "$0")/.."
n=0
while IFS=: read -r file name; do
	n=$((n + 1))
	echo "fuzz: $name in $(dirname "$file")"
	go test "./$(dirname "$file")" -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-5s}" -parallel 2 </dev/null
done < <(git grep -oE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed 's/func //')
echo "fuzz: $n targets held"

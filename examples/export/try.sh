#!/bin/sh
. "$(dirname "$0")/../call.sh"
want "first row of many" "$(call '/export?rows=3' | sed -n 2p)" '1,1,"row 1, ""quoted"""'
want "100000 rows, streamed" "$(call '/export?rows=100000' | wc -l | tr -d ' ') lines" '100001 lines'
want "too many" "$(call '/export?rows=2000000' --write-out ' %{http_code}')" '*400'

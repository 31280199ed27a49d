#!/bin/sh
# Wants one variable more: BAWN_PAYMENTS, the folder that api.py has made.
. "$(dirname "$0")/../call.sh"
: "${BAWN_PAYMENTS:?set it to the folder of: python3 api.py make DIR}"
python3 "$(dirname "$0")/api.py" serve "$BAWN_PAYMENTS" >"$BAWN_PAYMENTS/log" 2>&1 &
api=$!
trap 'kill "$api"' EXIT
for _ in $(seq 100); do
	grep -q listening "$BAWN_PAYMENTS/log" && break
	sleep 0.1
done
pay() { # PATH BODY
	call "$1" --header 'content-type: application/json' --data-binary "$2" --write-out ' %{http_code}'
}
# The API takes it, so the key has come; what it says of it comes without.
paid=$(pay /payments '{"amount":350}')
want "a payment" "$paid" '*ch_350* 201'
want "the key that the API got, as the function sees it" "$paid" '*"Authorization": "Bearer \[secret\]"*'
case $paid in *"$(cat "$BAWN_PAYMENTS/key")"*) echo "the key came in" >&2; exit 1 ;; esac
want "what no rule allows" "$(pay '/payments?refund=yes' '{"amount":350}')" '*"status": 403* 502'
want "no payment" "$(pay /payments '{"amount":0}')" '*amount must be* 400'

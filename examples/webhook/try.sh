#!/bin/sh
. "$(dirname "$0")/../call.sh"
body='{"type":"invoice.paid","id":"inv_1007","amount":4200}'
sign() { # SECONDS BODY
	printf %s "$1.$2" | openssl dgst -sha256 -hmac demo-secret-not-for-production -r | cut -d ' ' -f 1
}
post() { # SECONDS HEX BODY
	anonymous /webhook --header 'content-type: application/json' \
		--header "x-webhook-signature: t=$1,v1=$2" --data-binary "$3" --write-out ' %{http_code}'
}
now=$(date +%s)
old=$((now - 3600))
want "signed" "$(post "$now" "$(sign "$now" "$body")" "$body")" '*invoice.paid* 202'
want "changed on the way" "$(post "$now" "$(sign "$now" "$body")" '{"type":"invoice.void"}')" '*bad signature* 401'
want "replayed an hour later" "$(post "$old" "$(sign "$old" "$body")" "$body")" '*bad signature* 401'

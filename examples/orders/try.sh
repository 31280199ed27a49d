#!/bin/sh
# Beside what ../call.sh wants: BAWN_ORDERS, the folder that postgres.sh make has
# filled, of which the node was told; see README.md.
here=$(dirname "$0")
. "$here/../call.sh"
: "${BAWN_ORDERS:?set it to the folder that postgres.sh make has filled; see README.md}"
sh "$here/postgres.sh" start "$BAWN_ORDERS"
trap 'sh "$here/postgres.sh" stop "$BAWN_ORDERS"' EXIT
json='content-type: application/json'
got=$(call /orders --header "$json" --data-binary '{"item":"tea, first flush","quantity":2}' --write-out ' %{http_code}')
want "an order" "$got" '{"id":*,"item":"tea, first flush","quantity":2} 201'
id=$(printf %s "$got" | sed 's/.*"id":\([0-9]*\).*/\1/')
want "the same again" "$(call "/orders/$id")" '{"id":*,"item":"tea, first flush","quantity":2}'
want "text stays text" "$(call /orders --header "$json" --data-binary "{\"item\":\"'; drop table orders; --\",\"quantity\":1}" --write-out ' %{http_code}')" '*drop table*201'
want "no such order" "$(call /orders/999999 --write-out ' %{http_code}')" '*404'
want "strangers" "$(status "/orders/$id")" '401'

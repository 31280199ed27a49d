#!/bin/sh
. "$(dirname "$0")/../call.sh"
json='content-type: application/json'
order='{"id":"o-17","items":[{"name":"tea","cents":350,"count":2},{"name":"cup","cents":899,"count":1}]}'
want "an order" "$(call /checkout --header "$json" --data-binary "$order" --write-out ' %{http_code}')" '*"receipt": "o-17"*"total": "15.99"* 201'
want "by a function it does not name" "$(call /checkout --header "$json" --data-binary '{"print-as":"intruder"}' --write-out ' %{http_code}')" '*ResourceNotFoundException 403'

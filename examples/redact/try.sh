#!/bin/sh
. "$(dirname "$0")/../call.sh"
want "redacted" "$(call /redact --header 'content-type: text/plain' --data-binary 'ann@example.org paid with 4111 1111 1111 1111')" '*[[]email] paid with [[]card]*'
want "not a card number" "$(call /redact --header 'content-type: text/plain' --data-binary '4111 1111 1111 1112')" '*4111 1111 1111 1112*'

#!/bin/sh
. "$(dirname "$0")/../call.sh"
want "slug" "$(call /text/slug --header 'content-type: text/plain' --data-binary 'Crème Brûlée, twice!')" '{"slug":"creme-brulee-twice"}'
want "count" "$(call /text/count --header 'content-type: text/plain' --data-binary 'the cat and the dog')" '*"words":5*'
want "wrap" "$(call '/text/wrap?width=10' --header 'content-type: text/plain' --data-binary 'one two three four')" '*["one two","three four"]*'

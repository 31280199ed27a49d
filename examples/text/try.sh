#!/bin/sh
. "$(dirname "$0")/../call.sh"
want "slug" "$(call /text/slug --data-binary 'Crème Brûlée, twice!')" '{"slug":"creme-brulee-twice"}'
want "count" "$(call /text/count --data-binary 'the cat and the dog')" '*"words":5*'
want "wrap" "$(call '/text/wrap?width=10' --data-binary 'one two three four')" '*["one two","three four"]*'

#!/bin/sh
. "$(dirname "$0")/../call.sh"
want "anybody may call" "$(anonymous '/hello?name=Ada')" '*Hello, Ada!*'
want "a path that is no route" "$(status /hell)" 404

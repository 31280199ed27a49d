#!/bin/sh
here=$(dirname "$0")
. "$here/../call.sh"
out=$(mktemp)
trap 'rm -f "$out"' EXIT
want "320x200 made smaller" "$(call '/thumbnail?size=64' --header 'content-type: image/png' --data-binary "@$here/sample.png" \
	--output "$out" --write-out '%{http_code} %{content_type} %header{x-image-size}')" '200 image/png*'
want "what came back" "$(head -c 4 "$out" | tail -c 3), width $(od -An -tu1 -j19 -N1 "$out" | tr -d ' ')" 'PNG, width 64'
want "something that is no image" "$(call /thumbnail --data-binary 'not a png')" '*no PNG*'
want "without a key" "$(status /thumbnail --data-binary x)" 401

#!/bin/sh
# Prints each thing the intruder tried and what came of it; fails if one
# got through.
. "$(dirname "$0")/../call.sh"
call /intruder | python3 -c '
import json, sys
answer = json.load(sys.stdin)
for a in answer["attempts"]:
    print("  %-4s %-46s %s" % (a["control"], a["attempt"][:46], ("stopped: " if a["stopped"] else "GOT THROUGH: ") + a["result"][:60]))
print("  %d tried, %d stopped, %d got through" % (answer["tried"], answer["stopped"], answer["through"]))
sys.exit(answer["through"] != 0 or answer["tried"] < 40)'

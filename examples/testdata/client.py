"""Makes the requests that stand on standard input, one a line, as a client in Python
does: every second one with requests, if it is installed, the others with urllib. Says
of each on standard output what came back, one a line."""

import base64
import json
import os
import ssl
import sys
import urllib.error
import urllib.request

try:
    import requests
except ImportError:
    requests = None

PUBLIC, CA = os.environ["BAWN_PUBLIC"], os.environ["BAWN_CA"]
context = ssl.create_default_context(cafile=CA)


def by_urllib(r, body):
    request = urllib.request.Request(PUBLIC + r["path"], body, r["header"], method=r["method"])
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def by_requests(session, r, body):
    answer = session.request(r["method"], PUBLIC + r["path"], data=body, headers=r["header"], timeout=60, verify=CA)
    return answer.status_code, answer.content


session = requests and requests.Session()
for number, line in enumerate(sys.stdin):
    r = json.loads(line)
    body = base64.b64decode(r["body"]) if r["body"] else None
    status, answer = by_requests(session, r, body) if session and number % 2 else by_urllib(r, body)
    print(json.dumps({"id": r["id"], "status": status, "body": answer[:300].decode(errors="replace")}), flush=True)

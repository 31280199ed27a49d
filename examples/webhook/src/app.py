"""Receives webhooks that are signed as GitHub, Stripe and others sign them.

The header X-Webhook-Signature is "t=SECONDS,v1=HEX": an HMAC-SHA256 over
"SECONDS.BODY". A signature older than five minutes is refused, so that a
captured request is of no use later.
"""

import base64
import hashlib
import hmac
import json
import logging
import os
import time

SECRET = os.environ["WEBHOOK_SECRET"].encode()
MAX_AGE = 300  # seconds

log = logging.getLogger()
log.setLevel(logging.INFO)


def handler(event, context):
    body = (event.get("body") or "").encode()
    if event.get("isBase64Encoded"):
        body = base64.b64decode(body)
    why = refuse(event["headers"].get("x-webhook-signature", ""), body, time.time())
    if why:
        log.warning("refused: %s", why)
        return answer(401, {"error": "bad signature"})
    try:
        hook = json.loads(body)
    except ValueError:
        return answer(400, {"error": "the body is not JSON"})
    kind = hook.get("type") if isinstance(hook, dict) else None
    if not isinstance(kind, str):
        return answer(422, {"error": "the body has no type"})
    log.info("accepted %s", kind[:100])
    return answer(202, {"accepted": kind, "bytes": len(body)})


def refuse(header, body, now):
    """Says what is wrong with the signature, or returns None."""
    fields = dict(part.split("=", 1) for part in header.split(",") if "=" in part)
    stamp, given = fields.get("t", ""), fields.get("v1", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 20 and given.isascii()):
        return "no usable signature header"
    if abs(now - int(stamp)) > MAX_AGE:
        return "signed too long ago"
    want = hmac.new(SECRET, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return None if hmac.compare_digest(want, given) else "signature does not match"


def answer(status, value):
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json"},
        "body": json.dumps(value),
    }

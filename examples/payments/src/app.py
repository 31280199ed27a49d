"""Charges a card through a third party's API.

There is no key here, and none in the environment: the request goes out without,
and Bawn adds it outside of the sandbox.
"""

import json
import os
import urllib.error
import urllib.request


def reply(status, body):
    return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": json.dumps(body)}


def ask(path, body):
    request = urllib.request.Request(
        os.environ["PAYMENTS_URL"] + path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, {}


def handler(event, context):
    try:
        amount = json.loads(event["body"])["amount"]
    except (KeyError, TypeError, ValueError):
        return reply(400, {"error": "the body is no payment"})
    if type(amount) is not int or not 0 < amount <= 1_000_000:
        return reply(400, {"error": "amount must be 1 to 1000000 cents"})
    path = "/v1/refunds" if event.get("queryStringParameters", {}).get("refund") else "/v1/charges"
    status, answer = ask(path, {"amount": amount, "currency": "eur"})
    if status != 201:
        return reply(502, {"error": "the payment was not made", "status": status})
    return reply(201, {"id": answer["id"], "sent": answer["sent"]})

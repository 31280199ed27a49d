"""Prints receipts. Nobody but checkout may call it."""


def handler(event, context):
    total = sum(item["cents"] * item["count"] for item in event["items"])
    lines = [f"{i['count']} x {i['name']}" for i in event["items"]]
    return {"receipt": event["order"], "lines": lines, "total": f"{total // 100}.{total % 100:02d}"}

# The dummy handler that the Python runtime exercises itself with.
import json
import logging


def handler(event, context):
    if event.get("fail"):
        raise ValueError("expected")
    logging.getLogger().error("%s %s", context.aws_request_id, context.get_remaining_time_in_millis())
    return {"statusCode": 200, "body": json.dumps(event), "headers": {"content-type": "application/json"}}

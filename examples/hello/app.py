def handler(event, context):
    query = event.get("queryStringParameters") or {}
    return {"message": f"Hello, {query.get('name', 'world')}!", "invocation": context.aws_request_id}

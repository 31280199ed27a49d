// The dummy handlers that the Node.js runtime exercises itself with.
'use strict';

exports.handler = async (event, context) => {
  if (event.fail) throw new Error('expected');
  console.log('%s', context.awsRequestId, context.getRemainingTimeInMillis());
  return { statusCode: 200, body: JSON.stringify(event), headers: { 'content-type': 'application/json' } };
};

exports.stream = awslambda.streamifyResponse(async (event, stream) => {
  awslambda.HttpResponseStream.from(stream, { statusCode: 200 });
  stream.write('a');
  stream.end();
});

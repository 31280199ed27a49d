// Streams a table as CSV. The first rows are with the caller while the last are
// still being made, and the whole is never in memory: ask for ?rows=1000000.
const { once } = require("node:events");

exports.handler = awslambda.streamifyResponse(async (event, stream) => {
  const rows = Number(event.queryStringParameters?.rows ?? 1000);
  if (!Number.isInteger(rows) || rows < 1 || rows > 1e6) {
    const out = awslambda.HttpResponseStream.from(stream, {
      statusCode: 400,
      headers: { "content-type": "application/json" },
    });
    out.end(JSON.stringify({ error: "rows must be 1 to 1000000" }));
    return;
  }
  const out = awslambda.HttpResponseStream.from(stream, {
    statusCode: 200,
    headers: { "content-type": "text/csv; charset=utf-8", "content-disposition": 'attachment; filename="export.csv"' },
  });
  out.write("number,square,name\n");
  let chunk = "";
  for (let i = 1; i <= rows; i++) {
    chunk += [i, i * i, cell(`row ${i}, "quoted"`)].join(",") + "\n";
    if (chunk.length > 16384) {
      if (!out.write(chunk)) await once(out, "drain"); // the caller reads slower than we write
      chunk = "";
    }
  }
  out.end(chunk);
});

// cell quotes a value as RFC 4180 asks, and defuses what a spreadsheet would
// take for a formula.
function cell(value) {
  const text = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

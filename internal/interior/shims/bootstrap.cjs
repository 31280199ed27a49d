// Bawn's Node.js runtime: speaks frames with the node on descriptor 3 and gives
// handlers what AWS Lambda's runtime would.
//
// It is started without environment or user code, exercises itself, says ready
// and waits. The node may then attach code and send load.
'use strict';

const fs = require('fs');
const net = require('net');
const path = require('path');
const util = require('util');
const Module = require('module');
const { pathToFileURL } = require('url');

const MAX_RESPONSE = 6291556;
const MAX_ERROR = 131072;
const PRELUDE_TYPE = 'application/vnd.awslambda.http-integration-response';
const CA_FILE = '/run/bawn/ca.pem'; // as in internal/sandbox
const CA_MARK = '\n# Bawn:'; // as in internal/egress
const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming');

const taskRoot = process.argv[2] || '/var/task';
process.argv.length = 2;

// The handler may replace what is global; the runtime keeps its own.
const { parse, stringify } = JSON;
const exit = process.exit.bind(process);
const now = Date.now;
const { concat, from, allocUnsafe } = Buffer;
const { writeSync } = fs;

// A Fault is a failure that Lambda's runtime has its own name for.
class Fault extends Error {
  constructor(kind, message) {
    super(message);
    Object.defineProperty(this, 'name', { value: kind });
    this.stack = this.stack.replace(/^Error/, kind);
  }
}

// wrap gives e one of Lambda's names and keeps where it came from.
function wrap(kind, e) {
  let text;
  try {
    text = String(e);
  } catch {
    text = typeof e;
  }
  const fault = new Fault(kind, text);
  if (e && typeof e.stack === 'string') fault.stack = `${kind}: ${e.stack}`;
  return fault;
}

// --- the log ----------------------------------------------------------------

let requestId; // undefined while loading, as in Lambda
let silent = false; // while exercising

function writeLog(text) {
  let data = from(text);
  if (silent) return;
  try {
    while (data.length > 0) data = data.subarray(writeSync(1, data));
  } catch (e) {
    // Another user of the pipe may have made it non-blocking, and it is full.
    if (e.code === 'EAGAIN') process.stdout.write(data);
  }
}

function patchConsole() {
  const log = (level) => (...args) => {
    const message = util.format(...args);
    writeLog(`${new Date().toISOString()}\t${requestId}\t${level}\t${message}`.replace(/\n/g, '\r') + '\n');
  };
  console.log = log('INFO');
  console.info = console.log;
  console.debug = log('DEBUG');
  console.warn = log('WARN');
  console.error = log('ERROR');
  console.trace = log('TRACE');
}

// --- errors -----------------------------------------------------------------

function isError(e) {
  return util.types.isNativeError(e) || (e && e.name !== undefined && e.message !== undefined && e.stack !== undefined);
}

// lines returns e's stack without this file's own frames.
function lines(e) {
  return String(e.stack).split('\n').filter((line) => !line.includes(__filename));
}

// describe returns the error document for whatever was thrown.
function describe(e) {
  try {
    if (isError(e)) {
      return { errorType: String(e.name), errorMessage: String(e.message), trace: lines(e) };
    }
    return { errorType: typeof e, errorMessage: e.toString(), trace: [] };
  } catch {
    return {
      errorType: 'handled',
      errorMessage: 'callback called with Error argument, but there was a problem while retrieving one or more of its message, name, and stack',
      trace: [],
    };
  }
}

// encodeError returns e's document as JSON that fits a frame.
function encodeError(e) {
  const d = describe(e);
  let text = stringify(d);
  if (text.length > MAX_ERROR / 4) {
    d.errorMessage = d.errorMessage.slice(0, 8192);
    d.trace = d.trace.slice(0, 16).map((line) => line.slice(0, 1024));
    text = stringify(d);
  }
  return text;
}

// logError writes e as Lambda does: all that it carries, in one line.
function logError(label, e) {
  let text;
  try {
    if (isError(e)) {
      const d = { errorType: e.name, errorMessage: e.message, ...(e.code && { code: e.code }) };
      for (const key of Object.keys(e)) if (!(key in d) && key !== 'name') d[key] = e[key];
      d.stack = lines(e);
      text = stringify(d);
    } else {
      text = stringify({ errorType: typeof e, errorMessage: String(e) });
    }
  } catch {
    text = stringify(describe(e));
  }
  writeLog(`${new Date().toISOString()}\t${requestId}\tERROR\t${label} \t${text}`.replace(/\n/g, '\r') + '\n');
}

// --- frames -----------------------------------------------------------------

// A Channel is a stream of frames over a descriptor.
class Channel {
  constructor(socket, onframe, onclose) {
    this.socket = socket;
    this.onframe = onframe;
    this.parts = [];
    this.have = 0;
    this.need = 8;
    socket.on('data', (chunk) => this.take(chunk));
    socket.on('error', onclose);
    socket.on('close', onclose);
  }

  take(chunk) {
    this.parts.push(chunk);
    this.have += chunk.length;
    while (this.have >= this.need) {
      const data = this.parts.length === 1 ? this.parts[0] : concat(this.parts, this.have);
      const head = data.readUInt32BE(0);
      const end = 8 + head + data.readUInt32BE(4);
      if (data.length < end) {
        this.parts = [data];
        this.need = end;
        return;
      }
      this.parts = data.length > end ? [data.subarray(end)] : [];
      this.have = data.length - end;
      this.need = 8;
      this.onframe(parse(data.utf8Slice(8, 8 + head)), data.subarray(8 + head, end));
    }
  }

  // send writes one frame; done is called when it has left.
  send(head, body, done) {
    const headLength = head.length; // heads are ASCII
    const bodyLength = typeof body === 'string' ? Buffer.byteLength(body) : body.length;
    if (bodyLength > 65536 && typeof body !== 'string') {
      const b = allocUnsafe(8 + headLength);
      b.writeUInt32BE(headLength, 0);
      b.writeUInt32BE(bodyLength, 4);
      b.latin1Write(head, 8);
      this.socket.cork();
      this.socket.write(b);
      this.socket.write(body, done);
      this.socket.uncork();
      return;
    }
    const b = allocUnsafe(8 + headLength + bodyLength);
    b.writeUInt32BE(headLength, 0);
    b.writeUInt32BE(bodyLength, 4);
    b.latin1Write(head, 8);
    if (typeof body === 'string') b.utf8Write(body, 8 + headLength);
    else b.set(body, 8 + headLength);
    this.socket.write(b, done);
  }
}

// --- streaming --------------------------------------------------------------

let streams; // made when a function first asks for it

function streaming() {
  if (streams) return streams;
  const { Writable } = require('stream');

  // A ResponseStream sends what is written to it as it is written.
  class ResponseStream extends Writable {
    constructor(invocation) {
      super({ highWaterMark: 64 << 10 });
      this.invocation = invocation;
      this.channel = invocation.runtime.channel;
      this.type = 'application/octet-stream';
      this.prelude = undefined;
      this.begun = false;
    }

    setContentType(type) {
      if (this.begun) throw new Fault('Runtime.InvalidStreamingOperation', 'Cannot set content-type, too late.');
      this.type = String(type);
    }

    begin() {
      if (this.begun) return;
      this.begun = true;
      const head = stringify({ type: 'stream', id: this.invocation.id, contentType: this.type.slice(0, 1024).replace(/[^\x20-\x7e]/g, '') });
      this.channel.send(head, '');
      if (this.prelude !== undefined) {
        const text = this.prelude;
        this.prelude = undefined;
        this.channel.send('{"type":"chunk"}', concat([from(text), Buffer.alloc(8)]));
      }
    }

    _write(chunk, encoding, callback) {
      if (this.invocation.over()) return callback(); // answered already, with an error
      this.begin();
      if (chunk.length === 0) return callback(); // it only begins the answer: empty chunks are refused
      this.channel.send('{"type":"chunk"}', chunk, callback);
    }

    _final(callback) {
      if (!this.invocation.over()) this.begin();
      callback();
    }
  }

  // A handler wrapped by streamifyResponse gets (event, stream, context).
  const awslambda = globalThis.awslambda;
  awslambda.HttpResponseStream.from = (stream, prelude) => {
    stream.setContentType(PRELUDE_TYPE);
    stream.prelude = stringify(prelude);
    return stream;
  };
  return (streams = ResponseStream);
}

function installStreaming() {
  globalThis.awslambda = {
    streamifyResponse(handler, options) {
      streaming();
      handler[STREAMING] = 'response';
      return handler;
    },
    HttpResponseStream: {
      from(stream, prelude) {
        streaming();
        return globalThis.awslambda.HttpResponseStream.from(stream, prelude);
      },
    },
  };
}

// --- loading ----------------------------------------------------------------

// isModule says whether a .js file is an ES module by the nearest package.json.
function isModule(file, root) {
  for (let dir = path.dirname(file); ; dir = path.dirname(dir)) {
    const name = path.join(dir, 'package.json');
    if (fs.existsSync(name)) { // a failed read would cost more than all else here
      try {
        return parse(fs.readFileSync(name, 'utf8')).type === 'module';
      } catch {
        return false; // require says what is wrong with it
      }
    }
    if (dir === root || dir === '/') return false;
  }
}

async function importFile(root, folder, name) {
  const base = path.resolve(root, folder, name);
  if (fs.existsSync(base) && fs.statSync(base).isFile()) return require(base);
  if (fs.existsSync(base + '.js')) {
    return isModule(base + '.js', root) ? import(pathToFileURL(base + '.js')) : require(base + '.js');
  }
  if (fs.existsSync(base + '.mjs')) return import(pathToFileURL(base + '.mjs'));
  if (fs.existsSync(base + '.cjs')) return require(base + '.cjs');
  return require(require.resolve(name, { paths: [root, path.resolve(root, folder)] }));
}

async function loadHandler(root, handler) {
  if (handler.includes('..')) {
    throw new Fault('Runtime.MalformedHandlerName', `'${handler}' is not a valid handler name. Use absolute paths when specifying root directories in handler names.`);
  }
  const slash = handler.lastIndexOf('/') + 1;
  const match = /^([^.]*)\.(.*)$/.exec(handler.slice(slash));
  if (!match || !match[1] || !match[2]) throw new Fault('Runtime.MalformedHandlerName', 'Bad handler');
  let module;
  try {
    module = await importFile(root, handler.slice(0, slash), match[1]);
  } catch (e) {
    if (e instanceof SyntaxError) throw wrap('Runtime.UserCodeSyntaxError', e);
    if (e && (e.code === 'MODULE_NOT_FOUND' || e.code === 'ERR_MODULE_NOT_FOUND')) {
      throw wrap('Runtime.ImportModuleError', e);
    }
    throw e;
  }
  let owner;
  let value = module;
  for (const name of match[2].split('.')) {
    owner = value;
    value = value === undefined || value === null ? undefined : value[name];
    // CommonJS seen through import has its exports below default.
    if (value === undefined && owner === module && module && module.default) value = module.default[name];
  }
  if (value === undefined || value === null) throw new Fault('Runtime.HandlerNotFound', `${handler} is undefined or not exported`);
  if (typeof value !== 'function') throw new Fault('Runtime.HandlerNotFound', `${handler} is not a function`);
  return value;
}

// --- calls ------------------------------------------------------------------

// A Runtime is one function's life: load, then any number of calls.
class Runtime {
  constructor() {
    this.channel = undefined;
    this.identity = undefined;
    this.handler = undefined;
    this.current = undefined; // the call that is not answered yet
    this.trace = undefined;
  }

  async load(root, identity) {
    this.identity = identity;
    try {
      this.handler = await loadHandler(root, identity.handler);
    } catch (e) {
      logError('Uncaught Exception', e);
      this.failed(e, 1);
      return;
    }
    if (this.ended) return;
    this.channel.send('{"type":"loaded"}', '');
  }

  // failed reports that there will be no handler, and ends the process.
  failed(e, status) {
    if (this.ended) return;
    this.ended = true;
    this.channel.send('{"type":"failed"}', encodeError(e), () => exit(status));
  }

  invoke(head, body) {
    requestId = head.id;
    if (head.trace !== this.trace) {
      this.trace = head.trace;
      if (head.trace) process.env[TRACE] = head.trace;
      else delete process.env[TRACE];
    }
    const call = new Invocation(this, head);
    this.current = call;
    this.channel.socket.unref(); // so that an empty event loop shows
    let event;
    let context;
    try {
      context = call.context();
      event = parse(body.utf8Slice(0, body.length));
    } catch (e) {
      call.fail(e);
      return;
    }
    if (this.handler[STREAMING]) call.runStreaming(this.handler, event, context);
    else call.run(this.handler, event, context);
  }

  // crash answers the present call, or the load, and ends the process.
  crash(label, e, status) {
    logError(label, e);
    if (this.ended) return;
    if (!this.handler) return this.failed(e, status);
    const call = this.current;
    if (!call) exit(status);
    this.ended = true;
    call.finish('error', encodeError(e), `,"exit":true`, () => exit(status));
  }
}

// An Invocation is one call, until it is answered.
class Invocation {
  constructor(runtime, head) {
    this.runtime = runtime;
    this.id = head.id;
    this.head = head;
    this.wait = true; // callbackWaitsForEmptyEventLoop
    this.answer = undefined; // called when nothing is left to do
  }

  context() {
    const { head, runtime: { identity } } = this;
    const invocation = this;
    const context = {
      get callbackWaitsForEmptyEventLoop() {
        return invocation.wait;
      },
      set callbackWaitsForEmptyEventLoop(value) {
        invocation.wait = value;
      },
      succeed: (value) => this.succeed(value),
      fail: (e) => this.fail(e),
      done: (e, value) => (e !== undefined && e !== null ? this.fail(e) : this.succeed(value)),
      functionVersion: identity.version,
      functionName: identity.function,
      memoryLimitInMB: identity.memory,
      logGroupName: identity.logGroup,
      logStreamName: identity.logStream,
      clientContext: head.client ? parse(head.client) : undefined,
      identity: undefined,
      invokedFunctionArn: head.arn,
      awsRequestId: head.id,
      tenantId: undefined,
      getRemainingTimeInMillis: () => Math.max(0, head.deadline - now()),
    };
    return context;
  }

  run(handler, event, context) {
    const callback = (e, value) => {
      if (!this.wait) {
        if (e !== undefined && e !== null) this.fail(e);
        else this.succeed(value);
        return;
      }
      this.answer = () => (e !== undefined && e !== null ? this.fail(e) : this.succeed(value));
    };
    // When nothing is left that could call back, the answer is null.
    this.answer = () => this.succeed(null);
    let result;
    try {
      result = handler(event, context, callback);
    } catch (e) {
      this.fail(e);
      return;
    }
    if (result && typeof result.then === 'function') {
      result.then((value) => this.succeed(value), (e) => this.fail(e));
    }
  }

  over() {
    return this.runtime.current !== this;
  }

  succeed(value) {
    if (this.over()) return;
    let text;
    try {
      text = stringify(value);
      if (text === undefined) text = 'null';
    } catch {
      this.fail(new Error('Unable to stringify response body'));
      return;
    }
    if (text.length > MAX_RESPONSE || (text.length > MAX_RESPONSE / 3 && Buffer.byteLength(text) > MAX_RESPONSE)) {
      this.fail(new Fault('Function.ResponseSizeTooLarge', `Response payload size exceeded maximum allowed payload size (${MAX_RESPONSE} bytes).`));
      return;
    }
    this.finish('response', text, '');
  }

  fail(e) {
    if (this.over()) return;
    logError('Invoke Error', e);
    this.finish('error', encodeError(e), '');
  }

  leave() {
    this.runtime.current = undefined;
    this.runtime.channel.socket.ref();
  }

  finish(type, body, more, done) {
    this.leave();
    this.runtime.channel.send(`{"type":"${type}","id":"${this.id}"${more}}`, body, done);
  }

  runStreaming(handler, event, context) {
    const ResponseStream = streaming();
    const { channel } = this.runtime;
    const stream = new ResponseStream(this);
    let handled = false;
    const settle = () => {
      if (this.over() || !handled || !stream.writableFinished) return;
      this.leave();
      channel.send('{"type":"end"}', '');
    };
    stream.on('finish', settle);
    stream.on('error', (e) => this.fail(e));
    context.done = context.succeed = context.fail = undefined;
    this.answer = () => this.fail(new Fault('Runtime.NodeJsExit',
      'The handler has nothing left to do and did not end its response stream.'));
    let result;
    try {
      result = handler(event, stream, context);
    } catch (e) {
      this.fail(e);
      return;
    }
    if (!result || typeof result.then !== 'function') {
      this.fail(new Fault('Runtime.InvalidStreamingHandler', 'Streaming does not support non-async handlers.'));
      return;
    }
    result.then(() => {
      handled = true;
      settle();
    }, (e) => this.fail(e));
  }
}

// --- the process ------------------------------------------------------------

// trust has TLS clients trust what is in Bawn's file of authorities beyond the
// system's own: Node.js reads NODE_EXTRA_CA_CERTS when it starts, which was before.
// What brings its own list, by the option ca, is left alone. The authority of the
// sandbox is held to the names whose requests Bawn reads by its own constraints.
function trust(file) {
  const tls = require('tls'); // what fetch, https and http2 connect by
  const { createSecureContext } = tls;
  let added;
  tls.createSecureContext = function (options) {
    const secure = createSecureContext.apply(this, arguments);
    if (!(options && options.ca)) {
      if (added === undefined) {
        const text = fs.readFileSync(file, 'latin1');
        added = text.slice(text.lastIndexOf(CA_MARK) + 1);
      }
      secure.context.addCACert(added);
    }
    return secure;
  };
}

function adopt(identity) {
  for (const name of Object.keys(process.env)) delete process.env[name];
  Object.assign(process.env, identity.env);
  if (identity.env.NODE_EXTRA_CA_CERTS === CA_FILE) trust(CA_FILE);
  Module._initPaths(); // NODE_PATH is read once otherwise
  process.chdir(taskRoot);
}

// exercise runs dummy handlers through everything a call goes through.
async function exercise() {
  const sent = [];
  const runtime = new Runtime();
  const sink = { write: (b, done) => { sent.push(b); if (done) done(); }, on() {}, cork() {}, uncork() {}, ref() {}, unref() {} };
  const frames = [];
  runtime.channel = new Channel(sink, (head, body) => frames.push([head, body]), () => {});
  const identity = { handler: 'warmup.handler', version: '', function: '', memory: '', logGroup: '', logStream: '', env: {} };
  silent = true;
  try {
    for (const handler of ['warmup.handler', 'warmup.stream']) {
      await runtime.load(__dirname, { ...identity, handler });
      for (const event of ['{"a":[1,2.5,null,true],"b":{"c":"d"}}', '{"fail":true}', '{}', '{}']) {
        const head = from('{"type":"invoke","id":"0","deadline":0,"arn":"a","trace":"t"}');
        const header = allocUnsafe(8);
        header.writeUInt32BE(head.length, 0);
        header.writeUInt32BE(event.length, 4);
        runtime.channel.take(concat([header, head, from(event)]));
        runtime.invoke(...frames.pop());
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
    await import(pathToFileURL(path.join(__dirname, 'warmup_module.mjs')));
    isModule(path.join(__dirname, 'x'), '/');
    process.env.A = 'B';
    Module._initPaths();
  } finally {
    silent = false;
    requestId = undefined;
    delete process.env[TRACE];
    delete process.env.A;
    delete require.cache[path.join(__dirname, 'warmup.cjs')];
  }
}

const TRACE = '_X_AMZN_TRACE_ID';

// patchEnv keeps the trace, which is another one at each call, out of the C
// library's environment: that never frees a value it has had, and takes longer.
// JavaScript, and the programs that it starts, see it where it belongs.
function patchEnv() {
  let trace;
  const shown = () => ({ value: trace, writable: true, enumerable: true, configurable: true });
  const set = (v) => { trace = `${v}`; return true; };
  process.env = new Proxy(process.env, {
    get: (env, k) => (k === TRACE ? trace : env[k]),
    has: (env, k) => (k === TRACE ? trace !== undefined : k in env),
    set: (env, k, v) => (k === TRACE ? set(v) : Reflect.set(env, k, v)),
    deleteProperty(env, k) {
      if (k !== TRACE) return Reflect.deleteProperty(env, k);
      trace = undefined;
      return true;
    },
    defineProperty: (env, k, d) => (k === TRACE ? set(d.value) : Reflect.defineProperty(env, k, d)),
    ownKeys: (env) => (trace === undefined ? Reflect.ownKeys(env) : [...Reflect.ownKeys(env), TRACE]),
    getOwnPropertyDescriptor: (env, k) => {
      if (k !== TRACE) return Reflect.getOwnPropertyDescriptor(env, k);
      return trace === undefined ? undefined : shown();
    },
  });
}

async function main() {
  patchConsole();
  patchEnv();
  installStreaming();
  const socket = new net.Socket({ fd: 3, readable: true, writable: true });
  const runtime = new Runtime();
  const early = [];
  let ready = false;
  let loaded = false;
  const receive = (head, body) => {
    if (!ready) {
      early.push([head, body]);
    } else if (head.type === 'invoke') {
      runtime.invoke(head, body);
    } else if (head.type === 'load' && !loaded) {
      loaded = true;
      adopt(head);
      runtime.load(taskRoot, head);
    }
  };
  runtime.channel = new Channel(socket, receive, () => exit(0));
  process.on('beforeExit', () => {
    const call = runtime.current;
    if (call && call.answer) {
      const { answer } = call;
      call.answer = undefined;
      setImmediate(answer);
    }
  });
  process.on('uncaughtException', (e) => runtime.crash('Uncaught Exception', e, 129));
  process.on('unhandledRejection', (reason) => {
    const e = wrap('Runtime.UnhandledPromiseRejection', reason);
    e.reason = isError(reason) ? { errorType: reason.name, errorMessage: reason.message, stack: lines(reason) } : reason;
    e.promise = {};
    runtime.crash('Unhandled Promise Rejection', e, 128);
  });

  // A load that already waits is answered at once, without exercises.
  await new Promise((resolve) => setImmediate(resolve));
  if (early.length === 0) await exercise();
  ready = true;
  runtime.channel.send('{"type":"ready"}', '');
  for (const [head, body] of early.splice(0)) receive(head, body);
}

main();

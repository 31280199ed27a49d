# Bawn's Python runtime: speaks frames with the node on descriptor 3 and gives
# handlers what AWS Lambda's runtime would.
#
# It is started without site, environment or user code, exercises itself, says
# ready and waits. The node may then attach code and send load.

import os
import sys
import time

sys.dont_write_bytecode = True  # the code's folder is read-only

import gc

gc.disable()  # until everything that lives for ever is there

import builtins

import _json  # the part of json that is C; the rest would bring in re, enum and more
import _sitebuiltins  # exit() and quit(), which site would give

MAX_RESPONSE = 6291556
MAX_ERROR = 131072

_TASK_ROOT = sys.argv[1] if len(sys.argv) > 1 else "/var/task"
_OPT = "/opt/python"

# The handler may replace what is in these modules; the runtime keeps its own.
_read, _write, _time = os.read, os.write, time.time
_from_bytes = int.from_bytes


class Fault(Exception):
    """A failure that Lambda's runtime has its own name for."""

    def __init__(self, kind, message, trace=None):
        super().__init__(message)
        self.kind, self.message, self.trace = kind, message, trace


# --- frames -----------------------------------------------------------------


class Channel:
    """Frames over a pair of descriptors, which for the node's are the same."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.rest = b""  # what was read beyond the last frame

    def receive(self):
        """Returns the head and body of the next frame as bytes, or None."""
        data = self.rest or _read(self.reader, 65536)
        while len(data) < 8:
            more = _read(self.reader, 65536)
            if not more:
                return None
            data += more
        body = 8 + _from_bytes(data[0:4], "big")
        end = body + _from_bytes(data[4:8], "big")
        have = len(data)
        if have < end:
            whole = bytearray(end)
            whole[:have] = data
            view = memoryview(whole)
            while have < end:
                n = os.readv(self.reader, [view[have:]])
                if n == 0:
                    return None
                have += n
            view.release()
            data = bytes(whole)
        self.rest = data[end:] if have > end else b""
        return data[8:body], data[body:end]

    def send(self, head, body=b""):
        frame = b"".join((len(head).to_bytes(4, "big"), len(body).to_bytes(4, "big"), head, body))
        n = _write(self.writer, frame)
        if n < len(frame):  # a signal came in between
            view = memoryview(frame)
            while n < len(frame):
                n += _write(self.writer, view[n:])


# --- JSON -------------------------------------------------------------------

_MARK = os.urandom(16).hex()


class _Scanning:
    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__


_scan = _json.make_scanner(_Scanning)


def _decode(text):
    try:
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except StopIteration:
        pass
    # White space around the value, or no JSON: json knows and says it well.
    import json

    return json.JSONDecoder().decode(text)


def _default(value):
    kind = type(value)
    if kind.__name__ == "Decimal" and kind.__module__ == "decimal":
        return _MARK + str(value)  # becomes a number in _encode
    raise TypeError(f"Object of type {kind.__name__} is not JSON serializable")


def _dumps(value, escape):
    return "".join(_json.make_encoder({}, _default, escape, None, ": ", ", ", False, False, True)(value, 0))


# From 3.12 on Lambda leaves characters beyond ASCII as they are.
_escape = _json.encode_basestring_ascii if sys.version_info < (3, 12) else _json.encode_basestring


def _encode(value):
    """Returns what Lambda's runtime would post for value."""
    if isinstance(value, bytes):
        return bytes(value)
    try:
        text = _dumps(value, _escape)
        if _MARK in text:
            import re

            text = re.sub('"' + _MARK + '([^"]*)"', r"\1", text)
        return text.encode("utf-8")
    except Exception as e:
        raise Fault("Runtime.MarshalError", f"Unable to marshal response: {e}") from None


# --- the log ----------------------------------------------------------------


_request_id = ""


def _install_logging(logging):
    """Gives the root logger a handler that writes Lambda's format."""

    class LogHandler(logging.Handler):
        def emit(self, record):
            try:
                record.aws_request_id = _request_id
                text = self.format(record)
                sys.stdout.write(text if text.endswith("\n") else text + "\n")
            except Exception:
                self.handleError(record)

    formatter = logging.Formatter(
        "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = LogHandler()
    handler.setFormatter(formatter)
    logging.getLogger().addHandler(handler)


class _LoggingFinder:
    """Installs the log handler when the function first imports logging."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "logging":
            return None
        sys.meta_path.remove(cls)
        spec = sys.modules["_frozen_importlib_external"].PathFinder.find_spec(name, path)
        if spec is not None and spec.origin and not spec.origin.startswith(_TASK_ROOT):
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                _install_logging(module)

            spec.loader.exec_module = exec_module
        return spec


def _flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # closed or replaced by the handler


def _log_error(error):
    lines = ["[ERROR]"]
    if error["errorType"]:
        lines[0] += " " + error["errorType"] + (":" if error["errorMessage"] else "")
    if error["errorMessage"]:
        lines[0] += " " + error["errorMessage"]
    if error["stackTrace"]:
        lines.append("Traceback (most recent call last):")
        for entry in error["stackTrace"]:
            lines.extend(entry.splitlines() or [""])
    try:
        sys.stdout.write("\n".join(lines) + "\n")
    except Exception:
        pass


# --- errors -----------------------------------------------------------------


def _error(message, kind, trace, request_id):
    return {"errorMessage": message, "errorType": kind, "requestId": request_id, "stackTrace": trace or []}


def _describe(e, request_id):
    """Returns the error document for e, without this file's own frames."""
    if isinstance(e, Fault):
        return _error(e.message, e.kind, e.trace, request_id)
    import traceback

    frames = [(f.filename, f.lineno, f.name, f.line) for f in traceback.extract_tb(e.__traceback__)]
    for i, frame in enumerate(frames):
        if frame[0] != _encode.__code__.co_filename:
            frames = frames[i:]
            break
    else:
        frames = []
    try:
        message = str(e)
    except Exception:
        message = ""
    return _error(message, type(e).__name__, traceback.format_list(frames), request_id)


def _encode_error(error):
    """Returns error as JSON that fits a frame: the innermost entries stay."""
    body = _dumps(error, _json.encode_basestring_ascii).encode()
    if len(body) > MAX_ERROR:
        error["errorMessage"] = error["errorMessage"][:8192]
        error["stackTrace"] = [entry[:2048] for entry in error["stackTrace"][-16:]]
        body = _dumps(error, _json.encode_basestring_ascii).encode()
    return body


# --- the context ------------------------------------------------------------


class CognitoIdentity:
    __slots__ = ("cognito_identity_id", "cognito_identity_pool_id")

    def __init__(self):
        self.cognito_identity_id = self.cognito_identity_pool_id = None

    def __repr__(self):
        return (
            f"{type(self).__name__}([cognito_identity_id={self.cognito_identity_id},"
            f"cognito_identity_pool_id={self.cognito_identity_pool_id}])"
        )


class Client:
    __slots__ = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")

    def __init__(self, values):
        for name in self.__slots__:
            setattr(self, name, values.get(name))


class ClientContext:
    __slots__ = ("custom", "env", "client")

    def __init__(self, values):
        self.custom, self.env = values.get("custom"), values.get("env")
        client = values.get("client")
        self.client = Client(client) if isinstance(client, dict) else None


class LambdaContext:
    """What a handler gets as its second argument."""

    def __init__(self, identity, head):
        self.aws_request_id = head["id"]
        self.log_group_name = identity["logGroup"]
        self.log_stream_name = identity["logStream"]
        self.function_name = identity["function"]
        self.memory_limit_in_mb = identity["memory"]
        self.function_version = identity["version"]
        self.invoked_function_arn = head["arn"]
        self.tenant_id = None
        client = head.get("client")
        self.client_context = None
        if client:
            try:
                self.client_context = ClientContext(_decode(client))
            except Exception as e:
                raise Fault("Runtime.LambdaContextUnmarshalError", f"Unable to parse Client Context: {e}") from None
        self.identity = CognitoIdentity()
        self._epoch_deadline_time_in_ms = head["deadline"]

    def get_remaining_time_in_millis(self):
        return max(0, self._epoch_deadline_time_in_ms - int(_time() * 1000))

    def log(self, message):
        text = str(message)
        sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def __repr__(self):
        return (
            f"LambdaContext([aws_request_id={self.aws_request_id},log_group_name={self.log_group_name},"
            f"log_stream_name={self.log_stream_name},function_name={self.function_name},"
            f"memory_limit_in_mb={self.memory_limit_in_mb},function_version={self.function_version},"
            f"invoked_function_arn={self.invoked_function_arn},client_context={self.client_context},"
            f"identity={self.identity},tenant_id={self.tenant_id}])"
        )


# --- load and invoke --------------------------------------------------------


def _import_handler(name):
    module, dot, attribute = name.rpartition(".")
    if not dot:
        raise Fault(
            "Runtime.MalformedHandlerName",
            f"Bad handler '{name}': not enough values to unpack (expected 2, got 1)",
        )
    if module.split(".")[0] in sys.builtin_module_names:
        raise Fault(
            "Runtime.BuiltInModuleConflict", f"Cannot use built-in module {module} as a handler module"
        )
    try:
        path = module.replace("/", ".")
        __import__(path)
        m = sys.modules[path]
    except ImportError as e:
        raise Fault("Runtime.ImportModuleError", f"Unable to import module '{module}': {e}") from None
    except SyntaxError as e:
        trace = [f'  File "{e.filename}" Line {e.lineno}\n    {e.text}']
        raise Fault("Runtime.UserCodeSyntaxError", f"Syntax error in module '{module}': {e}", trace) from None
    try:
        return getattr(m, attribute)
    except AttributeError:
        raise Fault("Runtime.HandlerNotFound", f"Handler '{attribute}' missing on module '{module}'") from None


class Runtime:
    """One function's life: load, then any number of calls."""

    def __init__(self, channel):
        self.channel = channel
        self.identity = self.handler = self.trace = None

    def load(self, identity):
        """Takes on an identity and imports the handler. Reports whether it could."""
        self.identity = identity
        try:
            self.handler = _import_handler(identity["handler"])
        except Exception as e:
            error = _describe(e, "")
            _log_error(error)
            _flush()
            self.channel.send(b'{"type":"failed"}', _encode_error(error))
            return False
        _flush()
        self.channel.send(b'{"type":"loaded"}')
        return True

    def invoke(self, head, body):
        global _request_id
        request_id = _request_id = head["id"]
        trace = head.get("trace")
        if trace != self.trace:
            self.trace = trace
            # Past putenv: the C library never frees a value that its environment has
            # had, and each call has another one.
            if trace:
                os.environ._data[b"_X_AMZN_TRACE_ID"] = trace.encode()
            else:
                os.environ._data.pop(b"_X_AMZN_TRACE_ID", None)
        try:
            context = LambdaContext(self.identity, head)
            try:
                event = _decode(body.decode("utf-8"))
            except Exception as e:
                raise Fault("Runtime.UnmarshalError", f"Unable to unmarshal input: {e}") from None
            result = _encode(self.handler(event, context))
            if len(result) > MAX_RESPONSE:
                raise Fault(
                    "Function.ResponseSizeTooLarge",
                    f"Response payload size exceeded maximum allowed payload size ({MAX_RESPONSE} bytes).",
                )
            kind = b"response"
        except Exception as e:
            error = _describe(e, request_id)
            _log_error(error)
            result = _encode_error(error)
            kind = b"error"
        _flush()
        self.channel.send(b'{"type":"%b","id":"%b"}' % (kind, request_id.encode()), result)

    def serve(self):
        while True:
            frame = self.channel.receive()
            if frame is None:
                return  # the node is gone or has closed the channel
            self.invoke(_decode(frame[0].decode()), frame[1])


def _adopt(identity):
    """Makes the process the function's: environment, paths, folder."""
    os.environ.clear()
    os.environ.update(identity["env"])
    time.tzset()
    packages = f"{_OPT}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    sys.path[:0] = [_TASK_ROOT, packages, _OPT]
    os.chdir(_TASK_ROOT)


# What most handlers import: in a sandbox that waits, it costs no call anything.
_EXTRAS = ("base64", "datetime")


def _preload():
    """Imports what calls will want, unless the call is already there."""
    import importlib
    import json
    import logging
    import traceback

    for name in _EXTRAS:
        __import__(name)


def _forget_shadowing():
    """What was imported ahead must not hide a module that the function brings."""
    for name in os.listdir(_TASK_ROOT):
        name = name.partition(".")[0]
        if name in _EXTRAS:
            sys.modules.pop(name, None)


def _exercise():
    """Runs a dummy handler through everything a call goes through."""
    global _request_id
    here = os.path.dirname(os.path.abspath(__file__))
    requests, replies = os.pipe(), os.pipe()
    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
    sys.path.insert(0, here)
    try:
        node, shim = Channel(replies[0], requests[1]), Channel(requests[0], replies[1])
        runtime = Runtime(shim)
        identity = dict.fromkeys(("logGroup", "logStream", "function", "memory", "version"), "")
        identity["handler"] = "warmup.handler"
        runtime.load(identity)
        node.receive()
        for event in (b'{"a":[1,2.5,null,true],"b":{"c":"d"}}', b'{"fail":true}', b"{}", b"{}"):
            node.send(b'{"type":"invoke","id":"0","deadline":0,"arn":"a","trace":"t"}', event)
            head, body = shim.receive()
            runtime.invoke(_decode(head.decode()), body)
            node.receive()
        os.environ.update({"A": "B"})
        os.environ.clear()
        time.tzset()
        os.listdir("/")
    finally:
        sys.path.remove(here)
        sys.path_importer_cache.pop(here, None)
        sys.modules.pop("warmup", None)
        sys.stdout.close()
        sys.stdout = stdout
        for fd in requests + replies:
            os.close(fd)
        _request_id = ""


def _waiting():
    """Reports whether the node has already sent something."""
    os.set_blocking(3, False)
    try:
        _channel.rest = _read(3, 65536)
        return True
    except BlockingIOError:
        return False
    finally:
        os.set_blocking(3, True)


def _forked():
    # A forked child that comes back from the handler must not answer.
    _channel.reader = _channel.writer = -1
    os.close(3)


def main():
    sys.argv[1:] = []
    # Whole lines reach the log at once, however the process ends.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.stderr.reconfigure(line_buffering=True)
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    os.set_inheritable(3, False)
    os.register_at_fork(after_in_child=_forked)
    sys.meta_path.insert(0, _LoggingFinder)
    ahead = not _waiting()
    if ahead:
        _preload()
        _exercise()
        gc.freeze()
    gc.enable()
    _channel.send(b'{"type":"ready"}')
    frame = _channel.receive()
    if frame is None:
        return
    identity = _decode(frame[0].decode())
    _adopt(identity)
    if ahead:
        _forget_shadowing()
    runtime = Runtime(_channel)
    if runtime.load(identity):
        runtime.serve()
    else:
        sys.exit(1)


_channel = Channel(3, 3)
main()

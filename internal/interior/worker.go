package interior

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
)

// Identity is everything an instance is told about itself.
type Identity struct {
	Version   *bawn.Version
	Instance  string            // the sandbox's id
	LogGroup  string            // /aws/lambda/NAME
	LogStream string            // YYYY/MM/DD/[VERSION]INSTANCE
	Region    string            // shown to the function only; nothing is there
	Account   string            // twelve digits, shown to the function only
	Endpoint  bool              // whether there is one in its sandbox, at endpointURL
	Env       map[string]string // of its [Reach]; may be nil
}

// Region and account that functions see unless the node says otherwise.
const (
	DefaultRegion  = "us-east-1"
	DefaultAccount = "123456789012"
)

// NewIdentity fills an [Identity] for an instance that begins now.
func NewIdentity(v *bawn.Version, instance string, now time.Time) Identity {
	return Identity{
		Version: v, Instance: instance,
		LogGroup:  "/aws/lambda/" + v.Function,
		LogStream: now.UTC().Format("2006/01/02/") + "[" + strconv.Itoa(v.Number) + "]" + instance,
		Region:    DefaultRegion, Account: DefaultAccount,
	}
}

// ARN returns the function's Amazon-style name, with the qualifier if it is not
// empty.
func (id *Identity) ARN(qualifier string) string {
	arn := "arn:aws:lambda:" + id.Region + ":" + id.Account + ":function:" + id.Version.Function
	if qualifier != "" {
		arn += ":" + qualifier
	}
	return arn
}

// A worker speaks to the program inside one sandbox: the interior's two
// channels, frames and the Runtime API, are the two implementations. Calls are
// one at a time; only close and ended may come from another goroutine at any
// time.
//
// What comes back is untrusted. Every read is bounded, and a worker that has
// returned an error, or whose alive reports false, must not be used again: its
// sandbox is to be killed.
type worker interface {
	// ready waits until the program has booted and exercised itself, before any
	// user code is there. It returns at once where nothing runs before Exec.
	ready(ctx context.Context) error

	// load tells the program who it is and waits until the handler is
	// imported, or the bootstrap has asked for its first event. Where no warm
	// sandbox was there it is quicker not to call ready before. The function's
	// own failure is an *initError. The other errors are as for invoke.
	load(ctx context.Context, id Identity) error

	// invoke runs one call. What the function did wrong is a Result with
	// FunctionError; errors are for what the instance did wrong:
	// errGone if the program ended without an answer (see exitPayload),
	// context.DeadlineExceeded if the deadline passed, ctx.Err() if ctx
	// ended, and a *bawn.Error with CodeFunctionError if it broke the protocol.
	//
	// A Result with a Stream keeps the worker busy until the Stream has
	// returned an error, io.EOF included. Closing it sooner ends the worker.
	// The deadline holds for the stream too.
	invoke(ctx context.Context, c *bawn.Call, deadline time.Time) (*bawn.Result, error)

	// alive reports whether the worker may be given another call.
	alive() bool

	// close ends the channel and whatever waits on it. It does not end the
	// program.
	close()

	// ended says, once, that the program is gone. What it wrote before is still
	// read by who waits for it; then there is no more, and the channel closes.
	ended()
}

// errGone says that the program's end of the channel is closed.
var errGone = errors.New("the runtime exited")

// An initError is what a runtime reported when it could not load the handler.
type initError struct {
	Payload []byte // the error document, JSON
}

// Error returns a text without the function's detail.
func (e *initError) Error() string { return "the function could not be loaded" }

// exitPayload returns the error document for an invocation whose program ended
// before it answered.
func exitPayload(requestID string, x sandbox.Exit) []byte {
	switch {
	case x.OOM:
		return errorPayload("Runtime.OutOfMemory", "RequestId: "+requestID+" Error: Runtime exited: out of memory")
	case x.Signal != "":
		return errorPayload("Runtime.ExitError", "RequestId: "+requestID+" Error: Runtime exited with error: signal: "+x.Signal)
	case x.Code > 0:
		return errorPayload("Runtime.ExitError", "RequestId: "+requestID+" Error: Runtime exited with error: exit status "+strconv.Itoa(x.Code))
	}
	return errorPayload("Runtime.ExitError", "RequestId: "+requestID+" Error: Runtime exited without providing a reason")
}

// timeoutPayload returns the error document for an invocation that was ended
// at its deadline.
func timeoutPayload(requestID string, timeout time.Duration) []byte {
	return errorPayload("Sandbox.Timedout", fmt.Sprintf("RequestId: %s Error: Task timed out after %.2f seconds", requestID, timeout.Seconds()))
}

// environment returns the variables that a function's process sees, sorted.
// The function's own come from its manifest; those that describe the instance
// cannot be overridden.
func environment(id *Identity) []string {
	env := environmentMap(id)
	list := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		list = append(list, k+"="+env[k])
	}
	return list
}

// environmentMap is [environment] by name.
//
// The AWS credentials in it are no secret and open nothing: with them a client
// signs and goes on, and the endpoint that it asks looks at no signature.
func environmentMap(id *Identity) map[string]string {
	v := id.Version
	env := map[string]string{
		"TZ":              ":UTC",
		"LANG":            "en_US.UTF-8",
		"PATH":            "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
		"LD_LIBRARY_PATH": "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
		// Nothing listens there; the X-Ray clients send datagrams and go on.
		"AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
		"AWS_XRAY_DAEMON_ADDRESS":  "127.0.0.1:2000",
		"_AWS_XRAY_DAEMON_ADDRESS": "127.0.0.1",
		"_AWS_XRAY_DAEMON_PORT":    "2000",
	}
	switch v.Runtime.Family() {
	case "python":
		env["PYTHONPATH"] = "/var/runtime"
	case "nodejs":
		major := string(v.Runtime)[len("nodejs"):]
		env["NODE_PATH"] = "/opt/nodejs/node" + major + "/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules:/var/runtime:/var/task"
	}
	maps.Copy(env, id.Env)
	maps.Copy(env, v.Environment)
	maps.Copy(env, map[string]string{
		"_HANDLER":                        v.Handler,
		"AWS_REGION":                      id.Region,
		"AWS_DEFAULT_REGION":              id.Region,
		"AWS_LAMBDA_FUNCTION_NAME":        v.Function,
		"AWS_LAMBDA_FUNCTION_VERSION":     strconv.Itoa(v.Number),
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.FormatInt(v.Perimeter.Interior.Memory>>20, 10),
		"AWS_LAMBDA_INITIALIZATION_TYPE":  "on-demand",
		"AWS_LAMBDA_LOG_GROUP_NAME":       id.LogGroup,
		"AWS_LAMBDA_LOG_STREAM_NAME":      id.LogStream,
		"LAMBDA_TASK_ROOT":                "/var/task",
		"LAMBDA_RUNTIME_DIR":              "/var/runtime",
	})
	switch v.Runtime.Family() {
	case "python":
		env["AWS_EXECUTION_ENV"] = "AWS_Lambda_" + string(v.Runtime)
	case "nodejs":
		env["AWS_EXECUTION_ENV"] = "AWS_Lambda_" + string(v.Runtime) + ".x"
	case "provided":
		env["AWS_LAMBDA_RUNTIME_API"] = runtimeAPIAddr
	}
	if id.Endpoint {
		maps.Copy(env, map[string]string{
			"AWS_ENDPOINT_URL_LAMBDA": endpointURL,
			"BAWN_ENDPOINT":           endpointURL,
			"AWS_ACCESS_KEY_ID":       "BAWNNOTASECRET",
			"AWS_SECRET_ACCESS_KEY":   "not-a-secret",
		})
	}
	return env
}

package bawn

import (
	"errors"
	"fmt"
	"time"
)

// Code classifies an [Error]. Codes are part of the API: they are added to,
// never renamed, and never change their meaning.
type Code string

// The codes, with the HTTP status each is rendered as at the edge.
const (
	CodeInvalid         Code = "invalid"          // 400: the request is malformed
	CodeUnauthenticated Code = "unauthenticated"  // 401: no credential, or a bad one
	CodeDenied          Code = "denied"           // 403: known, and not allowed
	CodeNotFound        Code = "not_found"        // 404: no such thing, or not yours
	CodeConflict        Code = "conflict"         // 409: somebody else changed it first
	CodeTooLarge        Code = "too_large"        // 413: over a byte or count limit
	CodeUnprocessable   Code = "unprocessable"    // 422: well formed, and refused (a package, a manifest)
	CodeThrottled       Code = "throttled"        // 429: over a rate or concurrency limit
	CodeInternal        Code = "internal"         // 500: a defect of Bawn
	CodeFunctionError   Code = "function_error"   // 502: the function failed or answered nonsense
	CodeFunctionTimeout Code = "function_timeout" // 504: the function did not answer in time
	CodeUnavailable     Code = "unavailable"      // 503: the node cannot do it now (draining, a host capability is missing)
)

// Status returns the HTTP status code that c is rendered as.
func (c Code) Status() int {
	switch c {
	case CodeInvalid:
		return 400
	case CodeUnauthenticated:
		return 401
	case CodeDenied:
		return 403
	case CodeNotFound:
		return 404
	case CodeConflict:
		return 409
	case CodeTooLarge:
		return 413
	case CodeUnprocessable:
		return 422
	case CodeThrottled:
		return 429
	case CodeFunctionError:
		return 502
	case CodeFunctionTimeout:
		return 504
	case CodeUnavailable:
		return 503
	}
	return 500
}

// Error is the one error type that crosses package borders. Inside a package
// errors are wrapped with %w; at the edge an Error is rendered with its code,
// its message and its fix, never with Err.
type Error struct {
	Code    Code   // what kind of failure
	Op      string // what was being done, for the log: "deploy.unpack"
	Message string // what went wrong, for the caller; holds no internals
	Fix     string // the way out, for the caller; may be empty
	Err     error  // the cause, for the log only

	RetryAfter time.Duration // with CodeThrottled and CodeUnavailable: when it is worth to try again; 0 if not known
}

// Error returns the full text, cause included, for logs.
func (e *Error) Error() string {
	s := e.Message
	if e.Op != "" {
		s = e.Op + ": " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// WithFix returns e after setting the way out.
func (e *Error) WithFix(format string, args ...any) *Error {
	e.Fix = fmt.Sprintf(format, args...)
	return e
}

// Errorf makes an [Error] whose message is for the caller. A %w verb sets the
// cause and is not supported: use [Wrap].
func Errorf(code Code, op, format string, args ...any) *Error {
	return &Error{Code: code, Op: op, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an [Error] with a cause that stays in the log.
func Wrap(err error, code Code, op, format string, args ...any) *Error {
	return &Error{Code: code, Op: op, Message: fmt.Sprintf(format, args...), Err: err}
}

// ErrorCode returns the code of the first [Error] in err's chain,
// [CodeInternal] when there is none, and "" for nil.
func ErrorCode(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

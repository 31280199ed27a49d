package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"bawn.dev/bawn"
)

// LogQuery selects log lines.
type LogQuery struct {
	Invocation string
	Since      time.Time
	Limit      int  // the newest so many; 0 for the node's default
	Follow     bool // go on with new lines until the context ends
}

// Logs calls fn for each line that a function wrote, oldest first. It ends
// with fn's error, when the lines end, or, if following, when ctx does.
func (c *Client) Logs(ctx context.Context, name string, q LogQuery, fn func(bawn.LogLine) error) error {
	v := streamQuery(q.Since, q.Limit, q.Follow)
	if q.Invocation != "" {
		v.Set("invocation", q.Invocation)
	}
	return stream(ctx, c, functionPath(name, "logs"), v, fn)
}

// EventQuery selects records of the evidence.
type EventQuery struct {
	Function   string
	Invocation string
	Kinds      []bawn.RecordKind
	Since      time.Time
	Limit      int
	Follow     bool
}

// Events calls fn for each record, oldest first. It ends as [Client.Logs] does.
func (c *Client) Events(ctx context.Context, q EventQuery, fn func(bawn.Record) error) error {
	v := streamQuery(q.Since, q.Limit, q.Follow)
	if q.Function != "" {
		v.Set("function", q.Function)
	}
	if q.Invocation != "" {
		v.Set("invocation", q.Invocation)
	}
	for _, k := range q.Kinds {
		v.Add("kind", string(k))
	}
	return stream(ctx, c, "/v1/events", v, fn)
}

func streamQuery(since time.Time, limit int, follow bool) url.Values {
	v := url.Values{}
	if !since.IsZero() {
		v.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	if limit > 0 {
		v.Set("limit", strconv.Itoa(limit))
	}
	if follow {
		v.Set("follow", "true")
	}
	return v
}

// stream reads newline-delimited JSON. Empty lines keep the connection alive;
// a line {"error": {...}} ends the stream.
func stream[T any](ctx context.Context, c *Client, path string, q url.Values, fn func(T) error) error {
	res, err := c.send(ctx, request{method: http.MethodGet, path: path, query: q})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	err = readLines(res.Body, fn)
	var be *bawn.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &be):
		return err
	case errors.As(err, new(*callbackError)):
		return errors.Unwrap(err)
	}
	return c.unreachable(ctx, err)
}

// callbackError marks what the caller's own function returned.
type callbackError struct{ err error }

func (e *callbackError) Error() string { return e.err.Error() }
func (e *callbackError) Unwrap() error { return e.err }

func readLines[T any](r io.Reader, fn func(T) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 16<<10), maxLineBytes)
	for sc.Scan() {
		line := sc.Bytes()
		if len(line) == 0 {
			continue
		}
		var failed struct {
			Error *problem `json:"error"`
		}
		if json.Unmarshal(line, &failed) == nil && failed.Error != nil && failed.Error.Code != "" {
			return failed.Error.err()
		}
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			return bawn.Wrap(err, bawn.CodeInternal, "client", "the node sent a line that this client does not understand").
				WithFix("use a `bawn` of the same version as the node")
		}
		if err := fn(v); err != nil {
			return &callbackError{err}
		}
	}
	return sc.Err()
}

// Command bootstrap is a function as users write it with aws-lambda-go. Its
// handler is chosen by _HANDLER.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

// failing is a stream that ends with an error.
type failing struct{ r io.Reader }

func (f failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err == io.EOF {
		err = errors.New("failed late")
	}
	return n, err
}

func main() {
	switch os.Getenv("_HANDLER") {
	case "echo":
		lambda.Start(func(ctx context.Context, e json.RawMessage) (json.RawMessage, error) { return e, nil })
	case "context":
		lambda.Start(func(ctx context.Context) (map[string]any, error) {
			lc, _ := lambdacontext.FromContext(ctx)
			deadline, ok := ctx.Deadline()
			return map[string]any{
				"id": lc.AwsRequestID, "arn": lc.InvokedFunctionArn, "custom": lc.ClientContext.Custom,
				"deadline": ok && time.Until(deadline) > 0, "trace": os.Getenv("_X_AMZN_TRACE_ID"),
				"name": lambdacontext.FunctionName, "memory": lambdacontext.MemoryLimitInMB,
			}, nil
		})
	case "error":
		lambda.Start(func() error { return errors.New("handled") })
	case "panic":
		lambda.Start(func() error { panic("sudden") })
	case "large":
		lambda.Start(func(n int) (string, error) { return strings.Repeat("x", n), nil })
	case "stream":
		lambda.Start(func() (io.Reader, error) { return strings.NewReader(strings.Repeat("hello ", 100000)), nil })
	case "streamfail":
		lambda.Start(func() (io.Reader, error) { return failing{strings.NewReader("begun")}, nil })
	case "http":
		lambda.Start(func() (*events.LambdaFunctionURLStreamingResponse, error) {
			return &events.LambdaFunctionURLStreamingResponse{
				StatusCode: 201, Headers: map[string]string{"x-a": "b"}, Cookies: []string{"c=d"}, Body: strings.NewReader("body"),
			}, nil
		})
	case "httpfail":
		lambda.Start(func() (*events.LambdaFunctionURLStreamingResponse, error) {
			return &events.LambdaFunctionURLStreamingResponse{Body: failing{strings.NewReader("begun")}}, nil
		})
	case "sleep":
		lambda.Start(func() error { time.Sleep(time.Minute); return nil })
	case "exit":
		lambda.Start(func(code int) error { os.Exit(code); return nil })
	default:
		fmt.Println("no such handler")
		os.Exit(7)
	}
}

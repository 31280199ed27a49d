// Program reach is a function as one writes it for AWS Lambda: it gets the URL that
// its event names with the standard library's client, which nobody has told of
// Bawn, and says how the answer came.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/aws/aws-lambda-go/lambda"
)

type event struct {
	URL string `json:"url"`
}

func main() {
	lambda.Start(func(ctx context.Context, e event) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL, nil)
		if err != nil {
			return "", err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err.Error(), nil
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return "", err
		}
		return fmt.Sprintf("%d %s proxy=%v", res.StatusCode, res.Proto, os.Getenv("HTTPS_PROXY") != ""), nil
	})
}

// Program sdk is a function as one writes it for AWS Lambda: it calls the
// function that its event names with AWS's own client, which nobody has told of
// Bawn, and answers with what came of it.
package main

import (
	"context"
	"errors"

	run "github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

type event struct {
	Function string `json:"function"`
}

type answer struct {
	Payload string `json:"payload"`
	Version string `json:"version"`
	Failed  string `json:"failed"`
	Denied  bool   `json:"denied"`
	Missing bool   `json:"missing"`
	Error   string `json:"error"`
}

func main() {
	run.Start(func(ctx context.Context, e event) (a answer, err error) {
		cfg, err := config.LoadDefaultConfig(ctx)
		if err != nil {
			return a, err
		}
		out, err := lambda.NewFromConfig(cfg).Invoke(ctx, &lambda.InvokeInput{FunctionName: &e.Function, Payload: []byte(`{"say":"well"}`)})
		var missing *types.ResourceNotFoundException
		var api interface{ ErrorCode() string }
		switch {
		case errors.As(err, &missing):
			return answer{Missing: true, Error: err.Error()}, nil
		case errors.As(err, &api):
			return answer{Denied: api.ErrorCode() == "AccessDeniedException", Error: err.Error()}, nil
		case err != nil:
			return a, err
		}
		return answer{Payload: string(out.Payload), Version: aws.ToString(out.ExecutedVersion), Failed: aws.ToString(out.FunctionError)}, nil
	})
}

package bawntest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"

	"bawn.dev/bawn"
)

// TestSDKOutside has AWS's own client, told nothing but the node's address, its
// authority and a key, invoke by signed requests on the public listener.
func TestSDKOutside(t *testing.T) {
	n := newTown(t)
	n.deploy("hello", nil, nil)
	n.deploy("other", nil, nil)
	n.deploy("broken", nil, nil, func(spec map[string]any) { spec["handler"] = "app.nothing" })
	key, _ := n.signingKey("sdk", "hello", "broken")
	sdk := func(c aws.Credentials) *lambda.Client {
		cfg, err := config.LoadDefaultConfig(t.Context(), config.WithRegion("eu-west-1"),
			config.WithCustomCABundle(strings.NewReader(n.Context.CA)),
			config.WithCredentialsProvider(aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return c, nil })))
		if err != nil {
			t.Fatal(err)
		}
		return lambda.NewFromConfig(cfg, func(o *lambda.Options) { o.BaseEndpoint = aws.String(n.Public()) })
	}
	for _, name := range []string{"hello", "hello:1", "arn:aws:lambda:eu-west-1:123456789012:function:hello"} {
		out, err := sdk(key).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: &name, Payload: []byte(`{"say":"well"}`)})
		if err != nil || string(out.Payload) != `"well"` || out.StatusCode != 200 || aws.ToString(out.ExecutedVersion) != "1" || out.FunctionError != nil {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
	}
	if out, err := sdk(key).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("hello"), InvocationType: types.InvocationTypeDryRun}); err != nil || out.StatusCode != 204 {
		t.Errorf("a dry run: %+v, %v", out, err)
	}
	if out, err := sdk(key).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("broken")}); err != nil || aws.ToString(out.FunctionError) != "Unhandled" || !strings.Contains(string(out.Payload), "HandlerNotFound") {
		t.Errorf("a function that fails: %+v, %v", out, err)
	}
	code := func(c aws.Credentials, in lambda.InvokeInput) string {
		_, err := sdk(c).Invoke(t.Context(), &in)
		var e smithy.APIError
		if !errors.As(err, &e) || e.ErrorMessage() == "" {
			t.Errorf("%s: no clear error: %v", aws.ToString(in.FunctionName), err)
			return ""
		}
		return e.ErrorCode()
	}
	var missing *types.ResourceNotFoundException
	if _, err := sdk(key).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("nothing")}); !errors.As(err, &missing) || !strings.Contains(aws.ToString(missing.Message), "nothing") {
		t.Errorf("what is not there: %v", err)
	}
	if got := code(key, lambda.InvokeInput{FunctionName: aws.String("other")}); got != "ResourceNotFoundException" {
		t.Errorf("what the key is not held to: %s", got)
	}
	if got := code(aws.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "x"}, lambda.InvokeInput{FunctionName: aws.String("hello")}); got != "UnrecognizedClientException" {
		t.Errorf("an unknown key: %s", got)
	}
	if got := code(aws.Credentials{AccessKeyID: key.AccessKeyID, SecretAccessKey: "x"}, lambda.InvokeInput{FunctionName: aws.String("hello")}); got != "InvalidSignatureException" {
		t.Errorf("another secret: %s", got)
	}
	if got := code(key, lambda.InvokeInput{FunctionName: aws.String("hello"), Payload: []byte("{")}); got != "InvalidRequestContentException" {
		t.Errorf("no JSON: %s", got)
	}
}

// wantSDK has a function with a client of AWS in it call one that it may call, one
// that it may not, and one that there is not.
func (n *town) wantSDK(t *testing.T, name string) {
	t.Helper()
	for _, c := range []struct{ function, want string }{
		{"receipts", `"payload":"\"well\"","version":"1"`}, {"closed", `"denied":true`}, {"nothing", `"missing":true`},
	} {
		got := strings.ReplaceAll(invoke(t, n.Client, name, map[string]any{"function": c.function}), `": `, `":`)
		if got = strings.ReplaceAll(got, ", ", ","); !strings.Contains(got, c.want) {
			t.Errorf("%s of %s: %s", name, c.function, got)
		}
	}
	if r := n.records(func(r *bawn.Record) bool {
		return r.Function == "receipts" && r.Kind == bawn.KindOutcome && strings.HasPrefix(r.Principal, "function:"+name+"@")
	}); len(r) != 1 {
		t.Errorf("records of the call: %+v", r)
	}
}

func (n *town) callees(callers ...string) {
	n.deploy("receipts", callers, nil)
	n.deploy("closed", nil, nil)
}

// TestSDKInside has AWS's own client in a function, without any network, find the
// endpoint by AWS_ENDPOINT_URL_LAMBDA alone.
func TestSDKInside(t *testing.T) {
	n := newTown(t)
	bootstrap := filepath.Join(t.TempDir(), "bootstrap")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", "lambda.norpc", "-o", bootstrap, "./testdata/sdk")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	n.callees("shop")
	n.MustDeploy("shop", map[string]any{"runtime": "provided", "egress": map[string]any{"functions": []string{"receipts", "closed"}},
		"interior": map[string]any{"timeout": "30s"}}, map[string]string{"bootstrap": string(MustRead(t, bootstrap))})
	n.wantSDK(t, "shop")
}

const boto = `
import boto3
from botocore.exceptions import ClientError

def handler(event, context):
    client = boto3.client("lambda")
    try:
        r = client.invoke(FunctionName=event["function"], Payload=b'{"say": "well"}')
    except client.exceptions.ResourceNotFoundException as e:
        return {"missing": True, "error": str(e)}
    except ClientError as e:
        return {"denied": e.response["Error"]["Code"] == "AccessDeniedException", "error": str(e)}
    return {"payload": r["Payload"].read().decode(), "version": r["ExecutedVersion"]}
`

// TestBotoInside is the same for boto3, if this host has one that knows the
// variable. Of the descriptions of services only Lambda's goes along.
func TestBotoInside(t *testing.T) {
	out, err := exec.Command("python3", "-c", `
import boto3, botocore, jmespath, dateutil, s3transfer, urllib3, six, os
assert tuple(map(int, boto3.__version__.split(".")[:2])) >= (1, 28), "boto3 " + boto3.__version__
for m in boto3, botocore, jmespath, dateutil, s3transfer, urllib3: print(os.path.dirname(m.__file__))
print(six.__file__)`).CombinedOutput()
	if err != nil {
		t.Skipf("SKIP: this host has no boto3 of 1.28 or later: %s", bytes.TrimSpace(out))
	}
	files := map[string]string{"app.py": boto}
	for _, root := range strings.Fields(string(out)) {
		if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(filepath.Dir(root), path)
			if d.IsDir() {
				if base := filepath.Dir(rel); d.Name() == "__pycache__" || strings.HasSuffix(base, "/data") && base == "botocore/data" && d.Name() != "lambda" {
					return fs.SkipDir
				}
				return nil
			}
			b, err := os.ReadFile(path)
			files[rel] = string(b)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	n := newTown(t)
	n.callees("shop")
	n.MustDeploy("shop", map[string]any{"runtime": string(n.rt), "handler": "app.handler", "egress": map[string]any{"functions": []string{"receipts", "closed"}},
		"interior": map[string]any{"timeout": "60s", "memory": "512MiB"}}, files)
	n.wantSDK(t, "shop")
}

// TestGuardrailsOfOrder holds that guardrails can speak of what an invocation has
// called before, of how often it calls, and of the way that a call has come.
func TestGuardrailsOfOrder(t *testing.T) {
	n := newTown(t)
	n.deploy("shop", []string{"front"}, []string{"check", "pay"})
	n.deploy("front", nil, []string{"shop"})
	n.deploy("check", []string{"shop", "front"}, nil)
	n.deploy("pay", []string{"shop", "front"}, nil)
	check, pay := map[string]any{"function": "check", "payload": map[string]any{"say": "checked"}}, map[string]any{"function": "pay", "payload": map[string]any{"say": "paid"}}
	statuses := func(calls ...map[string]any) string {
		t.Helper()
		var all []string
		for _, g := range ask(t, n.Client, "shop", calls...) {
			all = append(all, strings.Trim(g.Body, `"`)+g.Type)
		}
		return strings.Join(all, " ")
	}
	set := func(name, text string) {
		t.Helper()
		if _, err := n.SetGuardrail(t.Context(), name, text, false); err != nil {
			t.Fatal(err)
		}
	}
	const denied = `{"Type":"User","Message":"denied"}AccessDeniedException`
	if got := statuses(pay); got != "paid" {
		t.Fatalf("without a guardrail: %s", got)
	}
	set("check-first", `forbid (principal, action == Bawn::Action::"call", resource == Bawn::Function::"main/pay")
unless { context.called.contains(Bawn::Function::"main/check") };`)
	for _, c := range []struct {
		calls []map[string]any
		want  string
	}{
		{[]map[string]any{pay}, denied},
		{[]map[string]any{check, pay}, "checked paid"},
		{[]map[string]any{pay, check, pay}, denied + " checked paid"},
		{[]map[string]any{pay}, denied}, // what an earlier invocation has called does not count
	} {
		if got := statuses(c.calls...); got != c.want {
			t.Errorf("check first: %s, want %s", got, c.want)
		}
	}
	set("twice", `forbid (principal, action == Bawn::Action::"call", resource) when { context.order >= 2 };`)
	if got := statuses(check, pay, pay); got != "checked paid "+denied {
		t.Errorf("a third call: %s", got)
	}
	set("not-from-front", `forbid (principal, action == Bawn::Action::"invoke", resource == Bawn::Function::"main/pay")
when { context.chain.contains(Bawn::Function::"main/front") };`)
	out := ask(t, n.Client, "front", map[string]any{"function": "shop", "payload": map[string]any{"calls": []any{check, pay}}})
	var inner []got
	if len(out) != 1 || json.Unmarshal([]byte(out[0].Body), &inner) != nil || len(inner) != 2 || inner[0].Status != 200 || inner[1].Status != 403 {
		t.Errorf("through front: %+v", out)
	}
	if got := statuses(check, pay); got != "checked paid" {
		t.Errorf("not through front: %s", got)
	}
	if r := n.records(func(r *bawn.Record) bool {
		return r.Function == "pay" && r.Outcome == "deny" && strings.Contains(r.Detail["policies"], "check-first")
	}); len(r) != 3 {
		t.Errorf("records that name the guardrail: %+v", r)
	}
}

// TestJ1FunctionsOfAnotherTenant has two tenants with functions of the same names
// call each other in vain, by every form of a name.
func TestJ1FunctionsOfAnotherTenant(t *testing.T) {
	n := newTown(t)
	made, err := n.CreateTenant(t.Context(), "acme", bawn.Quota{})
	if err != nil {
		t.Fatal(err)
	}
	acme := &town{Node: &Node{Client: n.As(made.Secret), Context: n.Context, HTTP: n.HTTP, t: t}, rt: n.rt}
	n.deploy("front", nil, []string{"vault", "shared"})
	n.deploy("shared", []string{"front"}, nil)
	acme.deploy("vault", []string{"front", "anyone"}, nil)
	acme.deploy("shared", []string{"front", "anyone"}, nil)
	say := map[string]any{"say": secret}
	arn := "arn:aws:lambda:us-east-1:123456789012:function:vault"
	for _, name := range []string{"vault", "vault:1", "vault:live", "vault:$LATEST", "function:vault", "123456789012:function:vault", arn, arn + ":1", arn + ":live",
		strings.Replace(arn, "123456789012", "000000000001", 1), "acme_vault", "acme-vault"} {
		foreign := ask(t, n.Client, "front", map[string]any{"function": name, "payload": say})
		absent := ask(t, n.Client, "front", map[string]any{"function": strings.Replace(name, "vault", "vauld", 1), "payload": say})
		if len(foreign) != 1 || foreign[0].Status != 404 || foreign[0].Type != "ResourceNotFoundException" {
			t.Errorf("%s: %+v", name, foreign)
		}
		if len(absent) != 1 || strings.Replace(absent[0].Body, "vauld", "vault", 1) != foreign[0].Body || absent[0].Status != foreign[0].Status {
			t.Errorf("%s tells a foreign function from none: %+v and %+v", name, foreign, absent)
		}
	}
	if out := ask(t, n.Client, "front", map[string]any{"function": "vault", "qualifier": "1", "payload": say}); out[0].Status != 404 {
		t.Errorf("by a qualifier: %+v", out)
	}
	// Of two with one name each gets its own, and nothing is recorded of the other.
	if out := ask(t, n.Client, "front", map[string]any{"function": "shared", "payload": say}); out[0].Status != 200 {
		t.Errorf("its own: %+v", out)
	}
	if r := acme.records(func(r *bawn.Record) bool { return r.Action == "invoke" || r.Action == "call" }); len(r) > 0 {
		t.Errorf("the other tenant's records: %+v", r)
	}
}

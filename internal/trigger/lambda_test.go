package trigger

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"bawn.dev/bawn"
)

func invokeRequest(path string, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.RequestURI = path
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

// TestLambdaNames goes through the forms in which AWS Lambda takes a function.
func TestLambdaNames(t *testing.T) {
	l := NewLambda(LambdaConfig{})
	const prefix = LambdaPrefix + "functions/"
	for _, c := range []struct{ path, name, qualifier, kind string }{
		{"f/invocations", "f", "", ""},
		{"f/invocations/", "f", "", ""},
		{"f:3/invocations", "f", "3", ""},
		{"f:canary/invocations?Qualifier=canary", "f", "canary", ""},
		{"f/invocations?Qualifier=$LATEST", "f", "", ""},
		{"function:f/invocations", "f", "", ""},
		{"123456789012:function:f/invocations", "f", "", ""},
		{"arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Afunction%3Af%3Alive/invocations", "f", "live", ""},
		{"arn:aws:lambda:us-east-1:123456789012:function:f/invocations", "f", "", ""},
		{"arn:aws:lambda:eu-west-1:123456789012:function:f/invocations", "", "", "ResourceNotFoundException"},
		{"f:3/invocations?Qualifier=4", "", "", "InvalidParameterValueException"},
		{"f/invocations?Qualifier=4&Qualifier=5", "", "", "InvalidParameterValueException"},
		{"f/invocations?Qualifier=a%2Fb", "", "", "ValidationException"},
		{"main%2Ff/invocations", "", "", "ValidationException"},
		{"%ff/invocations", "", "", "ValidationException"},
		{"arn:aws:lambda:us-east-1:function:f/invocations", "", "", "ValidationException"},
		{strings.Repeat("f", 200) + "/invocations", "", "", "ValidationException"},
		{"/invocations", "", "", "ValidationException"},
		{"f/../g/invocations", "", "", "UnknownOperationException"},
		{"f", "", "", "UnknownOperationException"},
	} {
		in, err := l.parse(invokeRequest(prefix+c.path), defaultRegion)
		if c.kind != "" {
			if e, ok := err.(*lambdaError); !ok || e.kind != c.kind {
				t.Errorf("%s: %v, want %s", c.path, err, c.kind)
			}
			continue
		}
		if err != nil || in.name != c.name || in.qualifier != c.qualifier {
			t.Errorf("%s: %+v, %v", c.path, in, err)
		}
	}
}

// TestLambdaRegion holds that a client's functions are in the region that it
// signs for.
func TestLambdaRegion(t *testing.T) {
	scope := func(region string) string {
		return "AWS4-HMAC-SHA256 Credential=0123456789abcdef/20261121/" + region + "/lambda/aws4_request, SignedHeaders=host, Signature=00"
	}
	for _, c := range []struct{ header, want string }{
		{"", "us-east-1"}, {"Bearer x", "us-east-1"}, {scope("eu-west-1"), "eu-west-1"}, {scope("us-gov-east-1"), "us-gov-east-1"},
		{scope("'\"<>"), "us-east-1"}, {scope(""), "us-east-1"}, {"Basic Credential=a/b/eu-west-1/d/e", "us-east-1"},
	} {
		if got := signedRegion(c.header, defaultRegion); got != c.want {
			t.Errorf("%s: %s", c.header, got)
		}
	}
	l := NewLambda(LambdaConfig{})
	const path = LambdaPrefix + "functions/arn:aws:lambda:eu-west-1:123456789012:function:f/invocations"
	if in, err := l.parse(invokeRequest(path), "eu-west-1"); err != nil || in.shown != "arn:aws:lambda:eu-west-1:123456789012:function:f:$LATEST" {
		t.Errorf("%+v %v", in, err)
	}
}

func TestLambdaHeaders(t *testing.T) {
	l := NewLambda(LambdaConfig{})
	path := LambdaPrefix + "functions/f/invocations"
	in, err := l.parse(invokeRequest(path, "X-Amz-Invocation-Type", "DryRun", "X-Amz-Log-Type", "Tail", "X-Amz-Client-Context", "eyJjdXN0b20iOnt9fQ=="), defaultRegion)
	if err != nil || !in.dry || !in.tail || in.client != `{"custom":{}}` {
		t.Errorf("%+v, %v", in, err)
	}
	for _, c := range [][]string{
		{"X-Amz-Invocation-Type", "Event"}, {"X-Amz-Invocation-Type", "whatever"}, {"X-Amz-Log-Type", "All"},
		{"X-Amz-Client-Context", "no base64"}, {"X-Amz-Client-Context", "W10="}, {"X-Amz-Client-Context", strings.Repeat("A", maxClientContext+1)},
		{"X-Amz-Invocation-Type", "DryRun", "X-Amz-Invocation-Type", "RequestResponse"},
	} {
		if _, err := l.parse(invokeRequest(path, c...), defaultRegion); err == nil {
			t.Errorf("%q is taken", c)
		}
	}
}

func FuzzLambdaPath(f *testing.F) {
	l := NewLambda(LambdaConfig{})
	f.Add("f/invocations?Qualifier=1")
	f.Add("arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Afunction%3Af%3Alive/invocations")
	f.Fuzz(func(t *testing.T, path string) {
		in, err := l.parse(invokeRequest(LambdaPrefix+"functions/"+path), defaultRegion)
		if err != nil {
			return
		}
		if in.name == "" || strings.ContainsAny(in.name+in.qualifier, "/@. \x00") {
			t.Fatalf("%q gives %q %q", path, in.name, in.qualifier)
		}
		// What Bawn does not have as a name is caught before anything is looked up.
		_ = bawn.Ref{Tenant: "main", Function: in.name, Qualifier: in.qualifier}.Check()
	})
}

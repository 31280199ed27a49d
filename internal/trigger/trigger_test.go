package trigger

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
	"github.com/google/go-cmp/cmp"

	"bawn.dev/bawn"
)

// event returns the event of a request as AWS's own type reads it, strictly.
func event(t testing.TB, r *http.Request, change func(*request)) events.APIGatewayV2HTTPRequest {
	t.Helper()
	path, query, _ := strings.Cut(r.RequestURI, "?")
	q := request{
		http: r, id: "4d2f0b1c-0000-4000-8000-000000000001", trace: "Root=1-2-3", source: "192.0.2.7", rawPath: path, query: query,
		route: &bawn.Route{Method: "ANY", Path: "/users/{id}"}, account: defaultAccount, api: "hello",
		at: time.Date(2027, 3, 12, 19, 3, 58, 390e6, time.FixedZone("", 3600)),
	}
	if change != nil {
		change(&q)
	}
	b := appendEvent(nil, &q)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var e events.APIGatewayV2HTTPRequest
	if err := d.Decode(&e); err != nil {
		t.Fatalf("the event is not API Gateway's: %v\n%s", err, b)
	}
	return e
}

func TestEvent(t *testing.T) {
	r := httptest.NewRequest("POST", "/users/a%20b?x=1&y=a%20b+c&x=2&flag&bad=%zz&=empty", nil)
	r.Host = "fn.example.com:8443"
	r.Header = http.Header{
		"Content-Type": {"application/json"}, "Accept": {"text/html", "text/plain"}, "X-Quote": {"say \"hi\"\t\\ \u00e9"},
		"Cookie": {"a=1; b=2", "c=3"}, "User-Agent": {"test/1"}, "Authorization": {"Bearer of-the-function"},
		"Connection": {"close"}, "Te": {"trailers"}, "Upgrade": {"h2c"},
		"X-Bawn-Invocation": {"forged"}, "X-Amzn-Trace-Id": {"forged"}, "X-Forwarded-For": {"forged"}, "X-Forwarded-Host": {"forged"},
		"Forwarded": {"for=forged"}, "X-Real-Ip": {"forged"},
	}
	got := event(t, r, func(q *request) {
		q.body = []byte("{\"a\":\"\u2028<\xf0\x9f\x98\x80>\x01\"}")
		q.params = map[string]string{"id": "a b", "other": "\"x\""}
	})
	want := events.APIGatewayV2HTTPRequest{
		Version: "2.0", RouteKey: "ANY /users/{id}", RawPath: "/users/a%20b", RawQueryString: "x=1&y=a%20b+c&x=2&flag&bad=%zz&=empty",
		Cookies: []string{"a=1", "b=2", "c=3"},
		Headers: map[string]string{
			"host": "fn.example.com:8443", "content-type": "application/json", "accept": "text/html,text/plain", "x-quote": "say \"hi\"\t\\ \u00e9",
			"user-agent": "test/1", "authorization": "Bearer of-the-function", "x-forwarded-for": "192.0.2.7", "x-forwarded-proto": "https",
			"x-forwarded-port": "8443", "x-amzn-trace-id": "Root=1-2-3",
		},
		QueryStringParameters: map[string]string{"x": "1,2", "y": "a b c", "flag": "", "bad": "%zz", "": "empty"},
		PathParameters:        map[string]string{"id": "a b", "other": "\"x\""},
		RequestContext: events.APIGatewayV2HTTPRequestContext{
			RouteKey: "ANY /users/{id}", AccountID: "123456789012", Stage: "$default", RequestID: "4d2f0b1c-0000-4000-8000-000000000001",
			APIID: "hello", DomainName: "fn.example.com", DomainPrefix: "fn", Time: "12/Mar/2027:18:03:58 +0000", TimeEpoch: 1804874638390,
			HTTP: events.APIGatewayV2HTTPRequestContextHTTPDescription{
				Method: "POST", Path: "/users/a%20b", Protocol: "HTTP/1.1", SourceIP: "192.0.2.7", UserAgent: "test/1",
			},
		},
		Body: "{\"a\":\"\u2028<\U0001F600>\x01\"}",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	// Bawn's own credential stays with Bawn.
	if e := event(t, r, func(q *request) { q.hideKey = true }); e.Headers["authorization"] != "" {
		t.Errorf("the key is in the event: %q", e.Headers["authorization"])
	}
}

func TestEventBody(t *testing.T) {
	for _, test := range []struct {
		contentType, encoding, body string
		base64                      bool
	}{
		{"application/json", "", "{}", false},
		{"application/json; charset=utf-8", "", "{}", false},
		{"application/problem+json", "", "{}", false},
		{"image/svg+xml", "", "<svg/>", false},
		{"text/plain", "", "h\u00e9", false},
		{"text/plain", "", "h\xe9", true},
		{"", "", "plain", false},
		{"", "", "\x00\xff", true},
		{"application/x-www-form-urlencoded", "", "a=1", true},
		{"application/octet-stream", "", "abc", true},
		{"multipart/form-data; boundary=x", "", "--x--", true},
		{"application/json", "gzip", "\x1f\x8b", true},
		{"application/json", "gzip", "ascii", true},
		{"application/json", "identity", "{}", false},
		{"nonsense;;", "", "abc", true},
	} {
		r := httptest.NewRequest("POST", "/", nil)
		if test.contentType != "" {
			r.Header.Set("Content-Type", test.contentType)
		}
		if test.encoding != "" {
			r.Header.Set("Content-Encoding", test.encoding)
		}
		e := event(t, r, func(q *request) { q.body = []byte(test.body) })
		want := test.body
		if test.base64 {
			want = base64.StdEncoding.EncodeToString([]byte(test.body))
		}
		if e.IsBase64Encoded != test.base64 || e.Body != want {
			t.Errorf("%q %q %q: base64 %v, body %q", test.contentType, test.encoding, test.body, e.IsBase64Encoded, e.Body)
		}
	}
}

// Many parameters take no more than their time.
func TestEventManyParameters(t *testing.T) {
	var query []string
	for i := range 40 {
		query = append(query, fmt.Sprintf("k%d=%d", i%20, i))
	}
	e := event(t, httptest.NewRequest("GET", "/?"+strings.Join(query, "&"), nil), nil)
	if len(e.QueryStringParameters) != 20 || e.QueryStringParameters["k0"] != "0,20" || e.QueryStringParameters["k19"] != "19,39" {
		t.Errorf("got %v", e.QueryStringParameters)
	}
}

// FuzzText compares with encoding/json.
func FuzzText(f *testing.F) {
	for _, s := range []string{"", "a", "\"\\\n\r\t\x00\x1f", "\xff\xfe", "\u2028\U0001F600\xed\xa0\x80", "a\xc3"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		std, err := json.Marshal(string(b))
		if err != nil {
			t.Fatal(err)
		}
		own := appendString(nil, b)
		var want, got string
		if err := json.Unmarshal(std, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(own, &got); err != nil {
			t.Fatalf("%q becomes %q: %v", b, own, err)
		}
		if got != want || !utf8.Valid(own) {
			t.Fatalf("%q becomes %q, encoding/json says %q", b, own, std)
		}
	})
}

// FuzzEvent looks for a request whose event AWS's type does not read.
func FuzzEvent(f *testing.F) {
	f.Add("/a", "x=1&x=2", "X-A", "v", "a=1", "text/plain", []byte("body"))
	f.Add("/%41", "%zz&=&", "Cookie", "a;b", ";;", "", []byte{0xff})
	f.Fuzz(func(t *testing.T, path, query, name, value, cookie, contentType string, body []byte) {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header = http.Header{"Cookie": {cookie}, "Content-Type": {contentType}}
		if isToken(name) {
			r.Header.Add(name, value)
		}
		r.RequestURI = path + "?" + query
		e := event(t, r, func(q *request) { q.body, q.rawPath, q.query = body, path, query })
		if e.IsBase64Encoded {
			b, err := base64.StdEncoding.DecodeString(e.Body)
			if err != nil || !bytes.Equal(b, body) {
				t.Fatalf("body %q came out as %q", body, b)
			}
		} else if e.Body != string(body) {
			t.Fatalf("body %q came out as %q", body, e.Body)
		}
	})
}

func TestReply(t *testing.T) {
	for _, test := range []struct {
		name, payload string
		status        int
		header        http.Header
		body          string
		bad           string // a part of the error
	}{
		{"bare object", `{"a":1}`, 200, http.Header{"Content-Type": {"application/json"}}, `{"a":1}`, ""},
		{"bare string", `"hello"`, 200, http.Header{"Content-Type": {"application/json"}}, `"hello"`, ""},
		{"null", `null`, 200, http.Header{"Content-Type": {"application/json"}}, `null`, ""},
		{"deep", `{"a":{"statusCode":"what"}}`, 200, http.Header{"Content-Type": {"application/json"}}, `{"a":{"statusCode":"what"}}`, ""},
		{"deep, with other names", `{"a":"\"statusCode\"","headers":7}`, 200, http.Header{"Content-Type": {"application/json"}}, `{"a":"\"statusCode\"","headers":7}`, ""},
		{"status", `{"statusCode":204}`, 204, http.Header{}, "", ""},
		{"status as text", `{"statusCode":"404","body":"no"}`, 404, http.Header{"Content-Type": {"text/plain; charset=utf-8"}}, "no", ""},
		{"all", `{"statusCode":201,"headers":{"content-type":"text/html","x-n":3,"x-b":true},"cookies":["a=1","b=2"],"body":"aGk=","isBase64Encoded":true}`,
			201, http.Header{"Content-Type": {"text/html"}, "X-N": {"3"}, "X-B": {"true"}, "Set-Cookie": {"a=1", "b=2"}}, "hi", ""},
		{"multi", `{"statusCode":200,"headers":{"x-a":"0"},"multiValueHeaders":{"X-A":["1","2"]}}`, 200, http.Header{"X-A": {"1", "2"}}, "", ""},
		{"not the function's", `{"statusCode":200,"headers":{"connection":"close","transfer-encoding":"chunked","content-length":"9","x-request-id":"x","X-Bawn-Y":"z","keep-alive":"1"},"body":"b"}`,
			200, http.Header{"Content-Type": {"text/plain; charset=utf-8"}}, "b", ""},
		{"null parts", `{"statusCode":200,"headers":null,"cookies":null,"body":null}`, 200, http.Header{}, "", ""},
		{"not JSON", `hello`, 0, nil, "", "not JSON"},
		{"nothing", ``, 0, nil, "", "not JSON"},
		{"two values", `{"statusCode":200} {}`, 0, nil, "", "not a response"},
		{"status 100", `{"statusCode":100}`, 0, nil, "", "statusCode"},
		{"status 600", `{"statusCode":600}`, 0, nil, "", "statusCode"},
		{"status 2e2", `{"statusCode":2e2}`, 0, nil, "", "statusCode"},
		{"status object", `{"statusCode":{}}`, 0, nil, "", "statusCode"},
		{"body object", `{"statusCode":200,"body":{}}`, 0, nil, "", "body"},
		{"bad base64", `{"statusCode":200,"body":"%%","isBase64Encoded":true}`, 0, nil, "", "base64"},
		{"line break", `{"statusCode":200,"headers":{"x":"a\r\nset-cookie: b"}}`, 0, nil, "", "line break"},
		{"line break in a cookie", `{"statusCode":200,"cookies":["a\nb"]}`, 0, nil, "", "line break"},
		{"line break in a list", `{"statusCode":200,"multiValueHeaders":{"x":["a\nb"]}}`, 0, nil, "", "line break"},
		{"zero byte", `{"statusCode":200,"headers":{"x":"a\u0000"}}`, 0, nil, "", "line break"},
		{"bad name", `{"statusCode":200,"headers":{"x y":"a"}}`, 0, nil, "", "name"},
		{"empty name", `{"statusCode":200,"headers":{"":"a"}}`, 0, nil, "", "name"},
		{"header object", `{"statusCode":200,"headers":{"x":{}}}`, 0, nil, "", "string"},
		{"header null", `{"statusCode":200,"headers":{"x":null}}`, 0, nil, "", "string"},
		{"too many", `{"statusCode":200,"cookies":["` + strings.Repeat(`a","`, 200) + `"]}`, 0, nil, "", "at most"},
		{"too large", `{"statusCode":200,"headers":{"x":"` + strings.Repeat("a", maxReplyHeaderBytes) + `"}}`, 0, nil, "", "bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := readReply([]byte(test.payload))
			if test.bad != "" {
				if err == nil || !strings.Contains(err.Error(), test.bad) {
					t.Fatalf("got %+v, %v", p, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.header, p.header); diff != "" || p.status != test.status || string(p.body) != test.body {
				t.Errorf("got %d %q\n%s", p.status, p.body, diff)
			}
		})
	}
}

// FuzzReply looks for an answer that gets past the checks and breaks the
// response.
func FuzzReply(f *testing.F) {
	for _, s := range []string{`{"statusCode":200,"headers":{"x":"y"},"cookies":["a"],"body":"b"}`, `"x"`, `{"statusCode":"200","multiValueHeaders":{"a":["b"]}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := readReply(b)
		if err != nil {
			return
		}
		if p.status < 200 || p.status > 599 {
			t.Fatalf("status %d", p.status)
		}
		for name, values := range p.header {
			if !isToken(name) || reserved(name) {
				t.Fatalf("header %q", name)
			}
			for _, v := range values {
				if strings.ContainsAny(v, "\r\n\x00") {
					t.Fatalf("header %s: %q", name, v)
				}
			}
		}
	})
}

// oneByte reads a byte at a time.
type oneByte struct{ r *strings.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

func TestPrelude(t *testing.T) {
	const end = "\x00\x00\x00\x00\x00\x00\x00\x00"
	in := `{"statusCode":418,"headers":{"x-a":"b"},"cookies":["c=d"]}` + end + "body\x00\x00"
	for _, one := range []bool{false, true} {
		s := strings.NewReader(in)
		var p *reply
		var rest []byte
		var err error
		if one {
			p, rest, err = readPrelude(oneByte{s})
		} else {
			p, rest, err = readPrelude(s)
		}
		if err != nil {
			t.Fatal(err)
		}
		left := make([]byte, s.Len())
		s.Read(left)
		if got := string(rest) + string(left); p.status != 418 || p.header.Get("X-A") != "b" || p.header.Get("Set-Cookie") != "c=d" || got != "body\x00\x00" {
			t.Errorf("got %+v, %q", p, got)
		}
	}
	for _, bad := range []string{"", "{}", "{}" + end[1:], "nonsense" + end, `{"statusCode":99}` + end, strings.Repeat(" ", maxPrelude+1) + end} {
		if p, _, err := readPrelude(strings.NewReader(bad)); err == nil {
			t.Errorf("%.20q was read as %+v", bad, p)
		}
	}
	if p, _, err := readPrelude(strings.NewReader("{}" + end)); err != nil || p.status != 200 {
		t.Errorf("a prelude without a status: %+v, %v", p, err)
	}
}

func BenchmarkEvent(b *testing.B) {
	r := httptest.NewRequest("GET", "/users/7?x=1", nil)
	r.Header = http.Header{"User-Agent": {"bench/1.0"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"}}
	q := request{http: r, id: bawn.NewID(), source: "192.0.2.7", rawPath: "/users/7", query: "x=1", route: &bawn.Route{Method: "GET", Path: "/users/{id}"}, at: time.Now()}
	b.ReportAllocs()
	for b.Loop() {
		appendEvent(make([]byte, 0, 1024), &q)
	}
}

func BenchmarkReply(b *testing.B) {
	payload := []byte(`{"statusCode":200,"headers":{"content-type":"application/json"},"body":"{\"hello\":\"world\"}"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readReply(payload); err != nil {
			b.Fatal(err)
		}
	}
}

// A parameter that is repeated costs what it is long, not its square.
func TestEventRepeatedParameter(t *testing.T) {
	const n = 30000
	r := httptest.NewRequest("GET", "/?"+strings.Repeat("a&", n), nil)
	q := request{http: r, route: &bawn.Route{}, query: r.URL.RawQuery}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b := appendEvent(nil, &q)
	runtime.ReadMemStats(&after)
	if !bytes.Contains(b, []byte(`"a":"`+strings.Repeat(",", n-1)+`"`)) {
		t.Error("parameters are lost")
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
		t.Errorf("took %d bytes of memory for %d of query", took, len(q.query))
	}
	e := event(t, httptest.NewRequest("GET", `/?q=%22a&q=b%0a&q&z=1`, nil), nil)
	if e.QueryStringParameters["q"] != "\"a,b\n," || e.QueryStringParameters["z"] != "1" {
		t.Errorf("got %q", e.QueryStringParameters)
	}
}

// No spelling of a header lets a caller speak for the platform: adapters take an
// underscore for a hyphen.
func TestHeadersOfThePlatformAreNotForged(t *testing.T) {
	r := httptest.NewRequest("GET", "/", nil)
	for _, name := range []string{
		"X_Bawn_Principal", "X-Bawn_Principal", "x_bawn-principal", "X_AMZN_TRACE_ID", "X_Forwarded_For", "X-Forwarded_Proto",
		"X_Real_Ip", "X-Request-Id", "X_Request_Id", "Transfer_Encoding",
	} {
		r.Header.Set(name, "forged")
	}
	r.Header.Set("X_Own", "of-the-caller")
	e := event(t, r, nil)
	for name, value := range e.Headers {
		if value == "forged" {
			t.Errorf("%s reaches the function", name)
		}
	}
	if e.Headers["x_own"] != "of-the-caller" {
		t.Errorf("got %v", e.Headers)
	}
}

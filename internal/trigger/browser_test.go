package trigger

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// Every answer of a route has the security headers: the function's own go before
// Bawn's, and the manifest's before both.
func TestD7SecurityHeaders(t *testing.T) {
	f := newFront(t, func(w io.Writer, id string, event []byte) {
		respond(w, id, `{"statusCode":200,"headers":{"referrer-policy":"no-referrer","x-frame-options":"SAMEORIGIN","cache-control":"public"},"body":"x"}`)
	}, func(v *bawn.Version) {
		v.Perimeter.Ingress.HTTP[0].Headers = map[string]string{"X-Frame-Options": "DENY", "Strict-Transport-Security": "", "Cache-Control": "no-store"}
	})
	for _, test := range []struct {
		path, key string
		status    int
		want      map[string]string
	}{
		{"/open", f.key, 200, map[string]string{
			"X-Content-Type-Options": "nosniff", "Strict-Transport-Security": "max-age=31536000", "Content-Security-Policy": "frame-ancestors 'none'",
			"Referrer-Policy": "no-referrer", "X-Frame-Options": "SAMEORIGIN", "Cache-Control": "public",
		}},
		{"/hello", f.key, 200, map[string]string{
			"X-Content-Type-Options": "nosniff", "Strict-Transport-Security": "", "Content-Security-Policy": "frame-ancestors 'none'",
			"Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
		}},
		{"/hello", "wrong", 401, map[string]string{
			"X-Content-Type-Options": "nosniff", "Strict-Transport-Security": "", "Referrer-Policy": "strict-origin-when-cross-origin", "X-Frame-Options": "DENY",
		}},
	} {
		resp, body := f.do(t, "GET", test.path, "", "Authorization", "Bearer "+test.key)
		if resp.StatusCode != test.status {
			t.Errorf("%s: %d %s", test.path, resp.StatusCode, body)
		}
		for name, want := range test.want {
			if got := strings.Join(resp.Header.Values(name), "|"); got != want {
				t.Errorf("%s as %.5s: %s is %q, want %q", test.path, test.key, name, got, want)
			}
		}
	}
}

func TestCORS(t *testing.T) {
	var ran atomic.Int32
	f := newFront(t, func(w io.Writer, id string, event []byte) {
		ran.Add(1)
		respond(w, id, `{"statusCode":200,"headers":{"access-control-allow-origin":"*","vary":"Accept"},"body":"x"}`)
	}, func(v *bawn.Version) {
		http := v.Perimeter.Ingress.HTTP
		http[0].CORS = &bawn.CORS{Origins: []string{"https://a.example", "https://b.example"}, Headers: []string{"Authorization", "X-Trace"}, Expose: []string{"X-Total"}, Credentials: true, MaxAge: time.Hour}
		http[2].CORS = &bawn.CORS{Origins: []string{"*"}}
		v.Perimeter.Ingress.HTTP = append(http, bawn.Route{Method: "ANY", Path: "/self", Access: http[2].Access})
	})
	type head map[string]string
	for _, test := range []struct {
		name, method, path string
		header             []string
		status             int
		runs               int32
		want               head
	}{
		{"preflight", "OPTIONS", "/hello", []string{"Origin", "https://a.example", "Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "authorization,x-trace", "Authorization", ""}, 204, 0,
			head{"Access-Control-Allow-Origin": "https://a.example", "Access-Control-Allow-Methods": "PUT", "Access-Control-Allow-Headers": "Authorization, X-Trace",
				"Access-Control-Allow-Credentials": "true", "Access-Control-Max-Age": "3600", "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers", "Access-Control-Expose-Headers": ""}},
		{"of another origin", "OPTIONS", "/hello", []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "PUT", "Authorization", ""}, 204, 0,
			head{"Access-Control-Allow-Origin": "", "Access-Control-Allow-Methods": "", "Access-Control-Allow-Credentials": "", "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"}},
		{"with a header too many", "OPTIONS", "/hello", []string{"Origin", "https://a.example", "Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "x-other", "Authorization", ""}, 204, 0,
			head{"Access-Control-Allow-Origin": "", "Access-Control-Allow-Methods": ""}},
		{"of an origin that ends alike", "OPTIONS", "/hello", []string{"Origin", "https://xa.example", "Access-Control-Request-Method", "PUT"}, 204, 0, head{"Access-Control-Allow-Origin": ""}},
		{"of the origin null", "OPTIONS", "/hello", []string{"Origin", "null", "Access-Control-Request-Method", "PUT"}, 204, 0, head{"Access-Control-Allow-Origin": ""}},
		{"without CORS: the function's own", "OPTIONS", "/self", []string{"Origin", "https://a.example", "Access-Control-Request-Method", "PUT", "Authorization", ""}, 200, 1, head{"Access-Control-Allow-Origin": "*", "Vary": "Accept"}},
		{"no preflight", "OPTIONS", "/open", []string{"Origin", "https://a.example", "Authorization", ""}, 200, 1, head{"Access-Control-Allow-Origin": "*"}},
		{"of no route", "OPTIONS", "/users/7", []string{"Origin", "https://a.example", "Access-Control-Request-Method", "DELETE"}, 404, 0, head{"Access-Control-Allow-Origin": ""}},
		{"a request", "GET", "/hello", []string{"Origin", "https://b.example"}, 200, 1,
			head{"Access-Control-Allow-Origin": "https://b.example", "Access-Control-Allow-Credentials": "true", "Access-Control-Expose-Headers": "X-Total", "Vary": "Origin|Accept"}},
		{"a request of another origin", "GET", "/hello", []string{"Origin", "https://evil.example"}, 200, 1, head{"Access-Control-Allow-Origin": "", "Access-Control-Allow-Credentials": "", "Vary": "Origin|Accept"}},
		{"a refusal", "GET", "/hello", []string{"Origin", "https://a.example", "Authorization", ""}, 401, 0, head{"Access-Control-Allow-Origin": "https://a.example", "Vary": "Origin"}},
		{"every origin", "GET", "/open", []string{"Origin", "https://whoever.example"}, 200, 1, head{"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": "", "Vary": "Accept"}},
		{"every origin, preflight", "OPTIONS", "/open", []string{"Origin", "https://whoever.example", "Access-Control-Request-Method", "POST"}, 204, 0, head{"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "POST", "Access-Control-Max-Age": ""}},
	} {
		before := ran.Load()
		resp, body := f.do(t, test.method, test.path, "", test.header...)
		if resp.StatusCode != test.status || ran.Load()-before != test.runs {
			t.Errorf("%s: %d, ran %d: %s", test.name, resp.StatusCode, ran.Load()-before, body)
		}
		for name, want := range test.want {
			if got := strings.Join(resp.Header.Values(name), "|"); got != want {
				t.Errorf("%s: %s is %q, want %q", test.name, name, got, want)
			}
		}
	}
}

// Only who is trusted is believed on where a request comes from; control D9.
func TestD9TrustedProxies(t *testing.T) {
	p, err := ParseProxies([]string{"10.0.0.0/8", "2001:db8::/32", "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, remote string
		header       []string
		source, want string
	}{
		{"nobody's word", "203.0.113.9:5", []string{"X-Forwarded-For", "1.2.3.4", "X-Forwarded-Proto", "http", "Forwarded", "for=1.2.3.4;proto=http"}, "203.0.113.9", "https"},
		{"a proxy's", "10.1.1.1:5", []string{"X-Forwarded-For", "1.2.3.4", "X-Forwarded-Proto", "http"}, "1.2.3.4", "http"},
		{"the right-most that is no proxy", "10.1.1.1:5", []string{"X-Forwarded-For", "6.6.6.6, 1.2.3.4, 10.2.2.2"}, "1.2.3.4", "https"},
		{"of several lines", "192.0.2.1:5", []string{"X-Forwarded-For", "6.6.6.6", "X-Forwarded-For", "1.2.3.4", "X-Forwarded-For", "10.0.0.7,10.0.0.8"}, "1.2.3.4", "https"},
		{"all proxies", "10.1.1.1:5", []string{"X-Forwarded-For", "10.9.9.9, 10.2.2.2"}, "10.9.9.9", "https"},
		{"no address", "10.1.1.1:5", []string{"X-Forwarded-For", "1.2.3.4, unknown"}, "10.1.1.1", "https"},
		{"no address beyond a caller", "10.1.1.1:5", []string{"X-Forwarded-For", "<script>, 1.2.3.4"}, "1.2.3.4", "https"},
		{"empty", "10.1.1.1:5", []string{"X-Forwarded-For", ""}, "10.1.1.1", "https"},
		{"with a port", "10.1.1.1:5", []string{"X-Forwarded-For", "1.2.3.4:77"}, "1.2.3.4", "https"},
		{"six", "[2001:db8::1]:5", []string{"X-Forwarded-For", "[2001:4::7]:99"}, "2001:4::7", "https"},
		{"mapped", "[::ffff:10.0.0.1]:5", []string{"X-Forwarded-For", "::ffff:1.2.3.4"}, "1.2.3.4", "https"},
		{"RFC 7239", "10.1.1.1:5", []string{"Forwarded", `for=6.6.6.6, For="[2001:4::7]:88";proto=http;by=10.0.0.1`}, "2001:4::7", "http"},
		{"both alike", "10.1.1.1:5", []string{"Forwarded", "for=1.2.3.4;proto=https", "X-Forwarded-For", "1.2.3.4"}, "1.2.3.4", "https"},
		{"both, and different", "10.1.1.1:5", []string{"Forwarded", "for=6.6.6.6", "X-Forwarded-For", "1.2.3.4"}, "10.1.1.1", "error"},
		{"too many", "10.1.1.1:5", []string{"X-Forwarded-For", "1.2.3.4," + strings.Repeat("10.0.0.1,", 1000) + "10.0.0.2"}, "10.0.0.1", "https"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = test.remote
		for i := 0; i < len(test.header); i += 2 {
			r.Header.Add(test.header[i], test.header[i+1])
		}
		got, err := p.client(r)
		if err != nil {
			got.scheme = "error"
		}
		if got.source != test.source || got.scheme != test.want {
			t.Errorf("%s: %+v %v, want %s %s", test.name, got, err, test.source, test.want)
		}
	}
	for _, bad := range []string{"", "proxy.example", "10.0.0.0/99", "0.0.0.0/0", "::/0", "fe80::1%eth0"} {
		if p, err := ParseProxies([]string{bad}); err == nil {
			t.Errorf("%q: %v", bad, p)
		}
	}
}

func FuzzForwarded(f *testing.F) {
	f.Add("1.2.3.4, 10.0.0.1", `for="[::1]:4";proto=http`)
	p, err := ParseProxies([]string{"10.0.0.0/8"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, plain, newer string) {
		r := &http.Request{RemoteAddr: "10.0.0.1:5", Header: http.Header{"X-Forwarded-For": {plain}, "Forwarded": {newer}}}
		got, _ := p.client(r)
		if _, ok := address(got.source); !ok || got.scheme != "http" && got.scheme != "https" {
			t.Errorf("%+v", got)
		}
	})
}

// BenchmarkDress is what a warm call pays for its headers.
func BenchmarkDress(b *testing.B) {
	t := &httpTrigger{shared: newShared()}
	route := &bawn.Route{CORS: &bawn.CORS{Origins: []string{"https://a.example"}}}
	r := &http.Request{Header: http.Header{"Origin": {"https://a.example"}}}
	for b.Loop() {
		t.dress(http.Header{}, route, r, "https")
	}
}

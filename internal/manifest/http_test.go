package manifest

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

func TestRouteForBrowsers(t *testing.T) {
	f, err := Parse("bawn.yaml", []byte(`
functions:
  shop:
    runtime: python3.11
    handler: app.handler
    owner: me
    ingress:
      http:
        - method: GET
          path: /
          hosts: [www.example.com, shop.example.com]
          cors: {origins: ["https://b.example.com", "http://localhost:3000"], headers: [x-trace, authorization], expose: [x-total], credentials: true, maxAge: 10m}
          headers: {strict-transport-security: "", content-security-policy: "default-src 'self'"}
        - {method: GET, path: /, cors: {origins: ["*"]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	v, err := Compile("shop", f.Functions["shop"])
	if err != nil {
		t.Fatal(err)
	}
	want := []bawn.Route{
		{
			Method: "GET", Path: "/", Hosts: []string{"shop.example.com", "www.example.com"},
			CORS: &bawn.CORS{
				Origins: []string{"http://localhost:3000", "https://b.example.com"}, Headers: []string{"Authorization", "X-Trace"}, Expose: []string{"X-Total"},
				Credentials: true, MaxAge: 10 * time.Minute,
			},
			Headers: map[string]string{"Strict-Transport-Security": "", "Content-Security-Policy": "default-src 'self'"},
		},
		{Method: "GET", Path: "/", CORS: &bawn.CORS{Origins: []string{"*"}}},
	}
	if got := v.Perimeter.Ingress.HTTP; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestRouteForBrowsersRefused(t *testing.T) {
	for _, test := range []struct{ route, want string }{
		{`hosts: [Shop.example.com]`, "did you mean shop.example.com?"},
		{`hosts: ["https://shop.example.com/"]`, "did you mean shop.example.com?"},
		{`hosts: [10.0.0.1]`, "is an address"},
		{`hosts: ["*.example.com"]`, "is not a domain"},
		{`hosts: [localhost]`, "has no dot"},
		{`hosts: [a.example, a.example]`, "a second time"},
		{`hosts: a.example`, "must be a list"},
		{`cors: {}`, `needs the field "origins"`},
		{`cors: {origins: []}`, "names none"},
		{`cors: {origins: [shop.example.com]}`, "is not an origin"},
		{`cors: {origins: ["https://*.example.com"]}`, "is not an origin"},
		{`cors: {origins: ["https://shop.example.com/"]}`, "did you mean https://shop.example.com?"},
		{`cors: {origins: ["https://shop.example.com:443"]}`, "did you mean https://shop.example.com?"},
		{`cors: {origins: ["null"]}`, "is not an origin"},
		{`cors: {origins: ["*", "https://a.example"]}`, "no other stands beside it"},
		{`cors: {origins: ["*"], credentials: true}`, "do not go with the origin *"},
		{`cors: {origins: ["https://a.example"], headers: ["a b"]}`, "is not the name of a header"},
		{`cors: {origins: ["https://a.example"], headers: ["*"]}`, "is not the name of a header"},
		{`cors: {origins: ["https://a.example"], headers: [x-a, X-A]}`, "a second time"},
		{`cors: {origins: ["https://a.example"], maxAge: 2d}`, "too much"},
		{`headers: {"a b": c}`, "is not the name of a header"},
		{`headers: {set-cookie: a}`, "cannot be set here"},
		{`headers: {access-control-allow-origin: "*"}`, "cors says it"},
		{`headers: {x-bawn-x: "*"}`, "Bawn's own"},
		{`headers: {x-a: "a\r\nset-cookie: b"}`, "printable ASCII"},
		{`headers: {x-a: "` + strings.Repeat("a", 2049) + `"}`, "at most 2048 bytes"},
		{`headers: {x-a: a, X-A: b}`, "a second time"},
	} {
		_, err := Parse("bawn.yaml", []byte("functions:\n  shop:\n    runtime: python3.11\n    handler: app.handler\n    owner: me\n    ingress:\n      http:\n        - {method: GET, path: /, "+test.route+"}\n"))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.route, err, test.want)
		}
	}
	// Two routes may be alike on different hosts, and on no common one.
	_, err := Parse("bawn.yaml", []byte(`
functions:
  shop: {runtime: python3.11, handler: app.handler, owner: me, ingress: {http: [{method: GET, path: /a, hosts: [a.example, b.example]}, {method: GET, path: /a, hosts: [b.example]}]}}
`))
	if err == nil || !strings.Contains(err.Error(), "two routes are GET /a") {
		t.Errorf("two routes on one host: %v", err)
	}
}

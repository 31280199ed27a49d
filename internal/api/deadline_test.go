package api

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// deadlines keeps the read deadlines that were set.
type deadlines struct {
	*httptest.ResponseRecorder
	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return nil
}

// A deadline bounds the arrival of a body and must be gone while the call runs:
// net/http would take it for the caller's hanging up.
func TestReadDeadlineEndsWithTheBody(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	a := &api{Config: Config{Now: func() time.Time { return now }}}
	for _, c := range []struct {
		method, path, body string
		want               []time.Time
	}{
		{"POST", "/v1/functions/f/invocations", "{}", []time.Time{now.Add(bodyTimeout), {}}},
		{"PUT", "/v1/artifacts/x", "zip", []time.Time{now.Add(packTimeout), {}}},
		{"GET", "/v1/functions", "", nil},
	} {
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(_ http.ResponseWriter, r *http.Request) {
			if b, err := io.ReadAll(r.Body); err != nil || string(b) != c.body {
				t.Errorf("read %q, %v", b, err)
			}
		})
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		var body io.Reader
		if c.body != "" {
			body = strings.NewReader(c.body)
		}
		a.routed(mux).ServeHTTP(w, httptest.NewRequest(c.method, c.path, body))
		if len(w.set) != len(c.want) {
			t.Errorf("%s: deadlines %v, want %v", c.path, w.set, c.want)
			continue
		}
		for i := range c.want {
			if !w.set[i].Equal(c.want[i]) {
				t.Errorf("%s: deadlines %v, want %v", c.path, w.set, c.want)
			}
		}
	}
}

package trigger

import (
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bawn.dev/bawn"
)

func TestRateFields(t *testing.T) {
	h := http.Header{}
	setRate(h, &bawn.RateStatus{})
	if len(h) != 0 {
		t.Errorf("without a limit there is %v", h)
	}
	setRate(h, &bawn.RateStatus{Name: "caller", Limit: 50, Window: time.Minute, Remaining: 7, Reset: 1500 * time.Millisecond})
	want := http.Header{"Ratelimit": {`"caller";r=7;t=2`}, "Ratelimit-Policy": {`"caller";q=50;w=60`}}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Error(diff)
	}
	// A function's own fields of these names would be a second limit.
	w := &recorder{h: h}
	(&reply{status: 200, header: http.Header{"Ratelimit": {`"mine";r=1;t=1`}, "X": {"y"}}}).writeHead(w, &bawn.Route{})
	if got := w.h.Get("Ratelimit"); got != `"caller";r=7;t=2` || w.h.Get("X") != "y" {
		t.Errorf("%v", w.h)
	}
}

type recorder struct {
	http.ResponseWriter
	h http.Header
}

func (r *recorder) Header() http.Header { return r.h }
func (r *recorder) WriteHeader(int)     {}

// Who was refused with others is not told to come back with them.
func TestRetryAfterIsSpread(t *testing.T) {
	for _, test := range []struct {
		wait        time.Duration
		least, most int
	}{{0, 1, 2}, {time.Millisecond, 1, 2}, {time.Minute, 60, 76}, {40 * 24 * time.Hour, 86400, 86400 + 21602}} {
		seen := map[int]bool{}
		for range 200 {
			n, err := strconv.Atoi(retryAfter(&bawn.Error{RetryAfter: test.wait}))
			if err != nil || n < test.least || n > test.most {
				t.Fatalf("%s: %d, %v", test.wait, n, err)
			}
			seen[n] = true
		}
		if len(seen) < 2 {
			t.Errorf("%s: all are told %v", test.wait, seen)
		}
	}
	if n, _ := strconv.Atoi(retryAfter(errors.New("x"))); n < 1 || n > 2 {
		t.Errorf("%d", n)
	}
}

package trigger

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"bawn.dev/bawn"
)

// maxRetryAfter bounds what a caller is told to wait.
const maxRetryAfter = 24 * time.Hour

// source returns the address that a request comes from, without the port.
func source(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// setRate tells the caller of the limit that is nearest to its end, in the fields
// RateLimit and RateLimit-Policy as the IETF's httpapi working group has them.
// They take the place of what a function says under these names.
func setRate(h http.Header, s *bawn.RateStatus) {
	if s.Name == "" {
		return
	}
	b := make([]byte, 0, 64)
	b = append(b, '"')
	b = append(b, s.Name...)
	b = append(b, `";r=`...)
	b = strconv.AppendInt(b, int64(s.Remaining), 10)
	b = append(b, `;t=`...)
	b = strconv.AppendInt(b, seconds(s.Reset), 10)
	h["Ratelimit"] = []string{string(b)}
	b = append(b[:0], '"')
	b = append(b, s.Name...)
	b = append(b, `";q=`...)
	b = strconv.AppendInt(b, int64(s.Limit), 10)
	b = append(b, `;w=`...)
	b = strconv.AppendInt(b, seconds(s.Window), 10)
	h["Ratelimit-Policy"] = []string{string(b)}
}

// seconds rounds up: what comes back too soon comes for nothing.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

const (
	// lingerFor is how long a caller waits for the answer that there is no room.
	lingerFor = 100 * time.Millisecond
	// maxIdlers is how many do at one time.
	maxIdlers = 512
)

// linger keeps a caller that there is no room for from asking again at once: in an
// overload it is the refusals that would take what the calls need. Only where a
// connection has one request at a time does that slow its owner down.
func (t *httpTrigger) linger(r *http.Request) {
	if r.ProtoMajor != 1 {
		return
	}
	defer t.idlers.Add(-1)
	if t.idlers.Add(1) > maxIdlers {
		return
	}
	timer := time.NewTimer(lingerFor/2 + rand.N(lingerFor))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
}

// retryAfter says when it is worth to try again. Callers that were refused at one
// time are told different times, up to a quarter and a second later, so that they
// do not all come back at one.
func retryAfter(err error) string {
	wait := int64(1)
	var e *bawn.Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		wait = seconds(min(e.RetryAfter, maxRetryAfter))
	}
	return strconv.FormatInt(wait+rand.N(wait/4+2), 10)
}

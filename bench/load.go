package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// A target is where a load goes: one URL over TLS with HTTP/1.1, the same for
// candidate and baseline.
type target struct {
	addr   string
	tls    *tls.Config
	bytes  []byte   // the whole request
	status int      // wanted
	from   net.Addr // the caller's address; nil: any
}

func newTarget(base, path, caPEM, key string, status int) (*target, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(caPEM)) {
		return nil, errors.New("no certificate of an authority")
	}
	req := "GET " + path + " HTTP/1.1\r\nHost: " + u.Host + "\r\n"
	if key != "" {
		req += "Authorization: Bearer " + key + "\r\n"
	}
	return &target{
		addr: u.Host, bytes: []byte(req + "\r\n"), status: status,
		tls: &tls.Config{RootCAs: pool, ServerName: u.Hostname(), MinVersion: tls.VersionTLS13},
	}, nil
}

// post has the target send a JSON body.
func (t *target) post(body []byte) {
	head := strings.Replace(strings.TrimSuffix(string(t.bytes), "\r\n"), "GET ", "POST ", 1)
	t.bytes = fmt.Appendf(nil, "%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", head, len(body), body)
}

// A conn is one connection that is kept alive.
type conn struct {
	t *target
	c net.Conn
	r *bufio.Reader
}

func (t *target) dial() (*conn, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second, LocalAddr: t.from}, "tcp", t.addr, t.tls)
	if err != nil {
		return nil, err
	}
	return &conn{t: t, c: c, r: bufio.NewReader(c)}, nil
}

func (c *conn) close() { c.c.Close() }

// call makes one request and returns how long its answer took, to the last byte.
func (c *conn) call() (time.Duration, error) {
	begin := time.Now()
	c.c.SetDeadline(begin.Add(30 * time.Second))
	if _, err := c.c.Write(c.t.bytes); err != nil {
		return 0, err
	}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, err
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	res.Body.Close()
	took := time.Since(begin)
	if err != nil {
		return 0, err
	}
	if res.StatusCode != c.t.status {
		return 0, fmt.Errorf("%s answered %s: %.200s", c.t.addr, res.Status, body)
	}
	return took, nil
}

// loop calls over n connections for d, each call after the one before, and
// returns every call's milliseconds and the calls per second.
func (t *target) loop(n int, d time.Duration) (each []float64, rate float64, err error) {
	conns := make([]*conn, n)
	for i := range conns {
		if conns[i], err = t.dial(); err != nil {
			return nil, 0, err
		}
		defer conns[i].close()
		if _, err := conns[i].call(); err != nil { // the handshake is not part of it
			return nil, 0, err
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begin := time.Now()
	for _, c := range conns {
		wg.Go(func() {
			var mine []float64
			var failed error
			for time.Since(begin) < d {
				took, cerr := c.call()
				if cerr != nil {
					failed = cerr
					break
				}
				mine = append(mine, ms(took))
			}
			mu.Lock()
			defer mu.Unlock()
			each = append(each, mine...)
			err = errors.Join(err, failed)
		})
	}
	wg.Wait()
	return each, float64(len(each)) / time.Since(begin).Seconds(), err
}

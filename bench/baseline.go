package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"time"
)

// hello is the body that every server and function answers with.
const hello = `{"message": "Hello, world!"}`

// announce is what a baseline server writes to its output when it listens.
type announce struct {
	URL string `json:"url"`
	CA  string `json:"ca,omitempty"`
}

// serveBaseline is a server in a process of its own, as Bawn is. It ends when
// its standard input does, and so with the program that started it.
func serveBaseline(kind, addr, to string) error {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, hello)
	})
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	a := announce{URL: "http://" + ln.Addr().String()}
	quiet := log.New(io.Discard, "", 0) // connections that the load just closes are no news
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: quiet}
	switch kind {
	case "bare", "upstream":
	case "outside": // what functions reach
		cert, caPEM, err := selfSigned()
		if err != nil {
			return err
		}
		a = announce{URL: "https://" + ln.Addr().String(), CA: caPEM}
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}})
	case "proxy":
		u, err := url.Parse(to)
		if err != nil {
			return err
		}
		srv.Handler = &httputil.ReverseProxy{
			ErrorLog: quiet,
			Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(u); r.SetXForwarded() },
			// Its default of two idle connections would make it slower than it is.
			Transport: &http.Transport{MaxIdleConns: 256, MaxIdleConnsPerHost: 256, DisableCompression: true},
		}
		cert, caPEM, err := selfSigned()
		if err != nil {
			return err
		}
		a = announce{URL: "https://" + ln.Addr().String(), CA: caPEM}
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	default:
		return fmt.Errorf("no server %q", kind)
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		return err
	}
	return srv.Serve(ln)
}

func selfSigned() (tls.Certificate, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"*.bench.test"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}

// startBaseline runs this program as a baseline server.
func (b *bench) startBaseline(args ...string) (*announce, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.ends = append(b.ends, sync.OnceFunc(func() { in.Close(); cmd.Wait() }))
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		return nil, errors.New("the baseline server did not start")
	}
	var a announce
	return &a, json.Unmarshal(line, &a)
}

// startProxy starts a bare upstream and a reverse proxy with TLS before it.
func (b *bench) startProxy() (*target, error) {
	up, err := b.startBaseline("-serve", "upstream")
	if err != nil {
		return nil, err
	}
	p, err := b.startBaseline("-serve", "proxy", "-to", up.URL)
	if err != nil {
		return nil, err
	}
	return newTarget(p.URL, "/hello", p.CA, "", http.StatusOK)
}

// Package pgtest starts a real PostgreSQL for tests: the system's own, in a
// folder that goes away, on loopback, with TLS and SCRAM.
package pgtest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Name is in the certificate of every [Server], and no other.
const Name = "db.test"

// nobody is whom a server belongs to where the tests belong to root, as whom
// PostgreSQL does not run.
const nobody = 65534

// Server is a running PostgreSQL. Its superuser is postgres.
type Server struct {
	Port     int
	Password string // the superuser's
	CA       []byte // PEM, of the certificate's issuer

	dir    string // what the server has; the socket too
	cmd    *exec.Cmd
	ended  chan struct{}
	output bytes.Buffer
}

// Start starts a server that is ended with the test. It skips the test where
// PostgreSQL is not installed. Settings are the server's own, such as
// "max_connections=5".
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(bins) == 0 {
		t.Skip("PostgreSQL is not installed: make setup does it")
	}
	bin := filepath.Dir(slices.Max(bins))
	base, err := os.MkdirTemp("", "pgtest") // its path is short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	s := &Server{Password: "p-" + rand.Text(), dir: base, ended: make(chan struct{})}
	s.CA = Certify(t, base)
	own(t, base, "password", []byte(s.Password))
	data := filepath.Join(base, "data")
	if out, err := Command(base, filepath.Join(bin, "initdb"), "--no-sync", "--auth=scram-sha-256", "--username=postgres", "--encoding=UTF8", "--locale=C",
		"--pwfile="+filepath.Join(base, "password"), "--pgdata="+data).CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	for try := 0; ; try++ { // between our look and the server's, somebody else may take the port
		if s.start(t, bin, data, settings) {
			return s
		}
		if try == 3 {
			t.Fatalf("PostgreSQL does not start:\n%s", s.output.String())
		}
	}
}

// start reports whether the server answers.
func (s *Server) start(t testing.TB, bin, data string, settings []string) bool {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Port = ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	args := []string{"-D", data}
	for _, set := range append([]string{
		"port=" + strconv.Itoa(s.Port), "listen_addresses=127.0.0.1", "unix_socket_directories=" + s.dir, "fsync=off", "max_connections=40",
		"ssl=on", "ssl_cert_file=" + filepath.Join(s.dir, "cert.pem"), "ssl_key_file=" + filepath.Join(s.dir, "key.pem"), "shared_buffers=16MB",
	}, settings...) {
		args = append(args, "-c", set)
	}
	cmd := Command(s.dir, filepath.Join(bin, "postgres"), args...)
	s.output.Reset()
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	s.cmd, s.ended = cmd, ended
	t.Cleanup(s.Kill)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		c, err := s.connect(ctx, "postgres")
		cancel()
		if err == nil {
			c.Close(context.Background())
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends the server at once, connections and all, and waits for it.
func (s *Server) Kill() {
	select {
	case <-s.ended:
	default:
		s.cmd.Process.Signal(syscall.SIGQUIT) // its processes too, without a word
		<-s.ended
	}
}

func (s *Server) connect(ctx context.Context, database string) (*pgconn.PgConn, error) {
	return pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres password=%s dbname=%s sslmode=disable", s.dir, s.Port, s.Password, database))
}

// Exec runs statements in a database as the superuser, and returns the first
// column of the last one's rows, a line each.
func (s *Server) Exec(t testing.TB, database, sql string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := s.connect(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	results, err := c.Exec(ctx, sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	var rows []string
	if len(results) > 0 {
		for _, row := range results[len(results)-1].Rows {
			rows = append(rows, string(row[0]))
		}
	}
	return strings.Join(rows, "\n")
}

// own writes a file for a server.
func own(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, path} {
		if err := os.Chown(p, user(), user()); err != nil {
			t.Fatal(err)
		}
	}
}

func user() int {
	if uid := os.Getuid(); uid != 0 {
		return uid
	}
	return nobody
}

// Command is a server's program, to be run in dir as who a server belongs to.
func Command(dir, path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Env = dir, []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

// Certify makes a server's certificate for [Name] and its key, cert.pem and
// key.pem in dir, and returns the authority that issued it, as PEM.
func Certify(t testing.TB, dir string) (authority []byte) {
	t.Helper()
	issue := func(tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, priv *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, priv)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey, leafKey := newKey(), newKey()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pgtest"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: Name}, DNSNames: []string{Name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	own(t, dir, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issue(leaf, ca, &leafKey.PublicKey, caKey)}))
	own(t, dir, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issue(ca, ca, &caKey.PublicKey, caKey)})
}

package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest/pgtest"
)

// pgRig is a Postgres binding with a real server behind it, and a local port.
type pgRig struct {
	*pgServer
	addr     string
	password atomic.Pointer[string]
	left     atomic.Int64 // statements; negative means no bound
	slots    chan struct{}

	mu    sync.Mutex
	notes []string
	wire  [][]byte // what went to a client
}

func newPgRig(t *testing.T, real *pgtest.Server, db bawn.Database) *pgRig {
	t.Helper()
	db.Name, db.Kind = "orders", bawn.Postgres
	if db.User == "" {
		db.User, db.Database = "shop", "shop"
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(real.CA)
	r := &pgRig{slots: make(chan struct{}, databaseConns(&db))}
	r.left.Store(-1)
	first := "shop-secret-1"
	r.password.Store(&first)
	r.pgServer = &pgServer{
		db: &db, name: pgtest.Name, roots: roots, label: "bawn test", keys: &pgKeys{},
		dial: func(ctx context.Context, _ bool) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", real.Port))
		},
		password: func(context.Context) (string, error) { return *r.password.Load(), nil },
		enter: func() bool {
			select {
			case r.slots <- struct{}{}:
				return true
			default:
				return false
			}
		},
		leave:     func() { <-r.slots },
		statement: func() bool { return r.left.Load() < 0 || r.left.Add(-1) >= 0 },
		note: func(text string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.notes = append(r.notes, text)
		},
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() { r.serve(ctx, &tap{Conn: conn, r: r}) })
		}
	})
	t.Cleanup(func() { ln.Close(); cancel(); running.Wait() })
	return r
}

// tap keeps what is written to a client.
type tap struct {
	net.Conn
	r *pgRig
}

func (c *tap) Write(p []byte) (int, error) {
	c.r.mu.Lock()
	c.r.wire = append(c.r.wire, bytes.Clone(p))
	c.r.mu.Unlock()
	return c.Conn.Write(p)
}

func (r *pgRig) noted(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Contains(strings.Join(r.notes, "\n"), text)
}

func (r *pgRig) connect(t *testing.T, settings string) (*pgx.Conn, error) {
	t.Helper()
	host, port, _ := net.SplitHostPort(r.addr)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return pgx.Connect(ctx, "host="+host+" port="+port+" user=shop dbname=shop sslmode=prefer "+settings)
}

func (r *pgRig) must(t *testing.T) *pgx.Conn {
	t.Helper()
	c, err := r.connect(t, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// sqlState returns the code of PostgreSQL's that err has, or "".
func sqlState(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// TestE9PostgresOfItsOwn is one connection's way to a real server, which asks for
// SCRAM over TLS, by a client that knows of neither.
func TestE9PostgresOfItsOwn(t *testing.T) {
	real := pgtest.Start(t)
	real.Exec(t, "postgres", "create role shop login password 'shop-secret-1'")
	real.Exec(t, "postgres", "create database shop owner shop")
	ctx := t.Context()

	t.Run("session", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{})
		c := r.must(t)
		var tls bool
		var label string
		if err := c.QueryRow(ctx, "select ssl, application_name from pg_stat_ssl natural join pg_stat_activity where pid = pg_backend_pid()").Scan(&tls, &label); err != nil || !tls || label != "bawn test" {
			t.Fatalf("TLS outside = %v, application name %q, %v", tls, label, err)
		}
		if _, err := c.Exec(ctx, "create table if not exists t (n int, s text)"); err != nil {
			t.Fatal(err)
		}
		tx, err := c.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		tx.Exec(ctx, "insert into t values ($1, $2)", 1, "rolled back")
		tx.Rollback(ctx)
		if n, err := c.CopyFrom(ctx, pgx.Identifier{"t"}, []string{"n", "s"}, pgx.CopyFromRows([][]any{{2, "two"}, {3, "three"}})); n != 2 || err != nil {
			t.Fatalf("copied %d, %v", n, err)
		}
		var sum int
		if err := c.QueryRow(ctx, "select sum(n) from t").Scan(&sum); err != nil || sum != 5 {
			t.Fatalf("sum = %d, %v", sum, err)
		}
		var long string
		if err := c.QueryRow(ctx, "select repeat('x', 20000000)").Scan(&long); err != nil || len(long) != 20000000 {
			t.Fatalf("%d bytes, %v", len(long), err)
		}
		other := r.must(t)
		if _, err := c.Exec(ctx, "listen news"); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Exec(ctx, "notify news, 'hello'"); err != nil {
			t.Fatal(err)
		}
		n, err := c.WaitForNotification(ctx)
		if err != nil || n.Payload != "hello" || n.PID != other.PgConn().PID() {
			t.Fatalf("notification %+v, %v", n, err)
		}
	})

	t.Run("nothing of the password is inside", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{})
		r.must(t)
		wrong := "shop-secret-0"
		r.password.Store(&wrong)
		if _, err := r.connect(t, ""); sqlState(err) != "28P01" {
			t.Errorf("a wrong password: %v, want the server's own 28P01", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		all := string(bytes.Join(r.wire, nil)) + strings.Join(r.notes, "\n")
		for _, secret := range []string{"shop-secret-0", "shop-secret-1"} {
			if strings.Contains(all, secret) {
				t.Errorf("%s came into the sandbox", secret)
			}
		}
	})

	t.Run("rotation", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{})
		old := r.must(t)
		real.Exec(t, "postgres", "alter role shop password 'shop-secret-2'")
		second := "shop-secret-2"
		r.password.Store(&second)
		defer func() { real.Exec(t, "postgres", "alter role shop password 'shop-secret-1'") }()
		for _, c := range []*pgx.Conn{old, r.must(t)} {
			if _, err := c.Exec(ctx, "select 1"); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("only what the manifest says", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{})
		for settings, code := range map[string]string{
			"dbname=postgres": "3D000", "user=postgres": "28000", "replication=database": "0A000", "replication=true": "0A000",
			"options='-c log_statement=none'": "0A000", "session_preload_libraries=x": "0A000", "'datestyle geqo'=1": "",
		} {
			if c, err := r.connect(t, settings); err == nil {
				c.Close(ctx)
				t.Errorf("%s: connected", settings)
			} else if code != "" && sqlState(err) != code {
				t.Errorf("%s: %v, want %s", settings, err, code)
			}
		}
		c, err := r.connect(t, "application_name=mine search_path=public timezone=UTC")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(ctx)
		if !r.noted(`database "postgres"`) {
			t.Errorf("notes = %q", r.notes)
		}
	})

	t.Run("connections", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{Connections: 2})
		a := r.must(t)
		r.must(t)
		if _, err := r.connect(t, ""); sqlState(err) != "53300" {
			t.Errorf("a third: %v, want 53300", err)
		}
		a.Close(ctx)
		for range 100 { // until the server's side has ended too
			var c *pgx.Conn
			var err error
			if c, err = r.connect(t, ""); err == nil {
				c.Close(ctx)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Error("an ended connection is never given back")
	})

	t.Run("statements", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{Statements: 3})
		c := r.must(t)
		r.left.Store(3)
		for range 3 {
			if _, err := c.Exec(ctx, "select 1", pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Exec(ctx, "select 1"); sqlState(err) != "53400" {
			t.Errorf("the fourth: %v, want 53400", err)
		}
		c = r.must(t)
		r.left.Store(2)
		for i := range 3 {
			_, err := c.Exec(ctx, "select $1::int", i)
			if got := sqlState(err); i < 2 && err != nil || i == 2 && got != "53400" {
				t.Errorf("extended statement %d: %v", i, err)
			}
		}
	})

	t.Run("timeout", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{Timeout: 100 * time.Millisecond})
		c := r.must(t)
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec, pgx.QueryExecModeCacheStatement} {
			if _, err := c.Exec(ctx, "select pg_sleep(60)", mode); sqlState(err) != "57014" {
				t.Errorf("mode %v: %v, want 57014", mode, err)
			}
			// The connection is good, and idle is not late.
			time.Sleep(150 * time.Millisecond)
			if _, err := c.Exec(ctx, "select 1", mode); err != nil {
				t.Error(err)
			}
		}
		if _, err := c.Exec(ctx, "set statement_timeout = 0; select pg_sleep(60)"); sqlState(err) != "57014" {
			t.Errorf("without the server's own: %v", err)
		}
		if !r.noted("was cancelled, for it took longer than 100ms") {
			t.Errorf("notes = %q", r.notes)
		}
		// A statement that does not end is cut off.
		_, err := c.Exec(ctx, `do $$ begin loop begin perform pg_sleep(60); exception when query_canceled then null; end; end loop; end $$`, pgx.QueryExecModeSimpleProtocol)
		if sqlState(err) != "57014" || !strings.Contains(err.Error(), "did not end when it was cancelled") {
			t.Errorf("an obstinate one: %v", err)
		}
	})

	t.Run("cancel", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{})
		c, stranger := r.must(t), newPgRig(t, real, bawn.Database{})
		late := make(chan error, 1)
		go func() { _, err := c.Exec(ctx, "select pg_sleep(60)"); late <- err }()
		waitFor(t, func() bool {
			return real.Exec(t, "shop", "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'") == "1"
		})
		// Another instance has no use for the key.
		key := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 16}, pgCancelCode), c.PgConn().PID())
		key = append(key, c.PgConn().SecretKey()...)
		conn, err := net.Dial("tcp", stranger.addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(key)
		io.Copy(io.Discard, conn)
		conn.Close()
		if !stranger.noted("a cancel request") {
			t.Error("the request of another instance is not noted")
		}
		select {
		case err := <-late:
			t.Fatalf("it was cancelled by another instance: %v", err)
		default:
		}
		if err := c.PgConn().CancelRequest(ctx); err != nil {
			t.Fatal(err)
		}
		if err := <-late; sqlState(err) != "57014" {
			t.Errorf("cancelled: %v", err)
		}
	})

	t.Run("name of the server", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{})
		r.name = "other.test"
		if _, err := r.connect(t, ""); sqlState(err) != pgUnreachable {
			t.Errorf("a server of another name: %v", err)
		}
		if !r.noted("not other.test") {
			t.Errorf("notes = %q", r.notes)
		}
		r = newPgRig(t, real, bawn.Database{})
		r.roots = x509.NewCertPool()
		if _, err := r.connect(t, ""); sqlState(err) != pgUnreachable {
			t.Errorf("an unknown authority: %v", err)
		}
	})

	t.Run("no password in clear", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{Plaintext: true})
		c := r.must(t)
		var tls bool
		if err := c.QueryRow(ctx, "select ssl from pg_stat_ssl where pid = pg_backend_pid()").Scan(&tls); err != nil || tls {
			t.Errorf("TLS = %v, %v", tls, err)
		}
		for _, ask := range []pgproto3.BackendMessage{&pgproto3.AuthenticationCleartextPassword{}, &pgproto3.AuthenticationMD5Password{}, &pgproto3.AuthenticationOk{}} {
			heard := make(chan []byte, 1)
			r.dial = func(context.Context, bool) (net.Conn, error) {
				a, b := net.Pipe()
				go func() {
					defer b.Close()
					io.ReadFull(b, make([]byte, 8))
					buf := make([]byte, 4096)
					b.SetDeadline(time.Now().Add(10 * time.Second))
					b.Read(buf)
					m, _ := ask.Encode(nil)
					b.Write(m)
					n, _ := b.Read(buf)
					heard <- buf[:n]
				}()
				return a, nil
			}
			if _, err := r.connect(t, ""); sqlState(err) != pgUnreachable {
				t.Errorf("%T: %v", ask, err)
			}
			if b := <-heard; len(b) > 0 {
				t.Errorf("%T was answered with %q", ask, b)
			}
		}
	})

	t.Run("server killed midway", func(t *testing.T) {
		r := newPgRig(t, real, bawn.Database{})
		c := r.must(t)
		late := make(chan error, 1)
		go func() { _, err := c.Exec(ctx, "select pg_sleep(60)"); late <- err }()
		waitFor(t, func() bool {
			return real.Exec(t, "shop", "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'") == "1"
		})
		real.Kill()
		if err := <-late; err == nil {
			t.Error("the statement of a killed server succeeded")
		}
		if _, err := r.connect(t, ""); sqlState(err) != pgUnreachable {
			t.Errorf("a dead server: %v", err)
		}
	})
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it never happened")
}

// TestPostgresStartup is the table of first messages.
func TestPostgresStartup(t *testing.T) {
	message := func(version uint32, text string) string {
		b := binary.BigEndian.AppendUint32(nil, uint32(8+len(text)))
		return string(binary.BigEndian.AppendUint32(b, version)) + text
	}
	code := func(c uint32) string { return message(c, "") }
	const v3 = 3 << 16
	for name, c := range map[string]struct {
		in   string
		want string // of the error
	}{
		"plain":             {message(v3, "user\x00shop\x00database\x00shop\x00\x00"), ""},
		"nothing":           {message(v3, "\x00"), ""},
		"newer":             {message(v3|2, "user\x00shop\x00_pq_.x\x001\x00\x00"), ""},
		"after TLS":         {code(pgTLSCode), "EOF"},
		"twice TLS":         {code(pgTLSCode) + code(pgTLSCode), "before the answer"},
		"no end":            {message(v3, "user\x00shop\x00"), "in the middle"},
		"no value":          {message(v3, "user\x00"), "in the middle"},
		"after the end":     {message(v3, "user\x00shop\x00\x00x"), "after its end"},
		"twice":             {message(v3, "user\x00shop\x00User\x00postgres\x00\x00"), "twice"},
		"other user":        {message(v3, "user\x00postgres\x00\x00"), "user"},
		"other database":    {message(v3, "user\x00shop\x00database\x00postgres\x00\x00"), "database"},
		"old":               {message(2<<16, "\x00"), "version 2"},
		"long":              {"\x00\x00\x27\x11\x00\x03\x00\x00", "10001 bytes"},
		"TLS at once":       {"\x16\x03\x01\x02\x00\x01\x00\x01", "sslmode=disable"},
		"negative":          {"\xff\xff\xff\xff\x00\x03\x00\x00", "bytes"},
		"two names in one":  {message(v3, "datestyle default_transaction_deferrable\x001\x00\x00"), "by a statement"},
		"too many":          {message(v3, manyParams(pgMaxParams+1)+"\x00"), "more than"},
		"cancel, too short": {"\x00\x00\x00\x0c\x04\xd2\x16\x2e\x00\x00\x00\x01", "cancel request of 12"},
	} {
		first, _, err := pgReadStartup(bufio.NewReader(strings.NewReader(c.in)), io.Discard)
		if err == nil && first != nil {
			err = first.check(&bawn.Database{Name: "orders", User: "shop", Database: "shop"})
		}
		if got := fmt.Sprint(err); c.want == "" && err != nil || c.want != "" && !strings.Contains(got, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func manyParams(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "p%d\x00x\x00", i)
	}
	return b.String()
}

// TestPostgresRunning follows what kinds of message tell of a server's work.
// Lower-case words are the client's, those in upper case the server's.
func TestPostgresRunning(t *testing.T) {
	for name, c := range map[string]struct {
		talk string // of > and kinds from the client, < and kinds from the server
		busy bool
	}{
		"idle":                        {"", false},
		"simple":                      {">Q<TDC", true},
		"simple, done":                {">Q<TDCZ", false},
		"two in one":                  {">Q<CC", true},
		"extended":                    {">PBDES<12TDC", true},
		"extended, done":              {">PBDES<12TDCZ", false},
		"cursor without sync":         {">PBEH<12Ds", false},
		"pipeline":                    {">ESEEQ<CZ", true},
		"pipeline, done":              {">ESESQ<CZCZCZ", false},
		"error":                       {">EES<EZ", false},
		"error without sync":          {">EEH<E", false},
		"copy, simple":                {">Q<G>dddc<CZ", false},
		"copy, simple, in the middle": {">Q<G>ddd", true},
		"copy, extended":              {">PBES<12G>ddc<C>S<Z", false},
		"copy, extended, early end":   {">PBESc<12GC", false},
		"feigned copy":                {">ESSQ<GCZ", true},
		"notifications":               {"<ANS", false},
		"more than owed":              {"<ZZZ>Q", true},
	} {
		var r pgRunning
		client := false
		for _, k := range []byte(c.talk) {
			switch {
			case k == '>' || k == '<':
				client = k == '>'
			case client:
				r.sent(k)
			default:
				r.received(k)
			}
		}
		if r.busy() != c.busy {
			t.Errorf("%s: busy = %v", name, r.busy())
		}
	}
}

func FuzzPostgresStartup(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x17\x00\x03\x00\x00user\x00shop\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x08\x04\xd2\x16\x2f"))
	f.Add([]byte("\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x01\x00\x00\x00\x02"))
	db := &bawn.Database{Name: "orders", User: "shop", Database: "shop"}
	f.Fuzz(func(t *testing.T, data []byte) {
		first, cancel, err := pgReadStartup(bufio.NewReaderSize(bytes.NewReader(data), pgBuffer), io.Discard)
		if err != nil {
			return
		}
		if (first == nil) == (cancel == nil) {
			t.Fatal("neither a connection nor a cancellation")
		}
		if first == nil || first.check(db) != nil {
			return
		}
		if first.user != "" && first.user != "shop" || first.database != "" && first.database != "shop" || len(first.params) > pgMaxParams {
			t.Fatalf("passed: %+v", first)
		}
		for name := range first.params {
			if strings.Contains(name, "\x00") || name == "replication" || name == "options" {
				t.Fatalf("passed: %q", name)
			}
		}
	})
}

// FuzzPostgresMessages lets anything come from both sides.
func FuzzPostgresMessages(f *testing.F) {
	query := "Q\x00\x00\x00\x0dselect 1\x00X\x00\x00\x00\x04"
	answer := "C\x00\x00\x00\x0dSELECT 1\x00Z\x00\x00\x00\x05I"
	f.Add([]byte(query), []byte(answer))
	f.Add([]byte("E\xff\xff\xff\xff"), []byte("R\x00\x00\x00\x08\x00\x00\x00\x00"))
	f.Add([]byte("Q\x00\x00"), []byte("D"))
	f.Fuzz(func(t *testing.T, fromClient, fromServer []byte) {
		client, server := &scripted{r: bytes.NewReader(fromClient)}, &scripted{r: bytes.NewReader(fromServer)}
		p := &pgConn{
			s:      &pgServer{db: &bawn.Database{Name: "orders"}, statement: func() bool { return true }, note: func(string) {}},
			client: client, in: bufio.NewReaderSize(client, pgBuffer), server: server, out: bufio.NewReaderSize(server, pgBuffer),
		}
		p.relay(context.Background())
		if !whole(t, client.w.Bytes()) {
			return // the server's own last message is cut off
		}
	})
}

// whole checks that what a client was sent is a prefix of messages, of kinds that
// may pass.
func whole(t *testing.T, b []byte) bool {
	for len(b) > 0 {
		if strings.IndexByte("CDEGHINASTZVcdnst123", b[0]) < 0 {
			t.Fatalf("a message of kind %q passed", b[0])
		}
		if len(b) < pgHead {
			return false
		}
		n := 1 + int64(binary.BigEndian.Uint32(b[1:]))
		if n > int64(len(b)) {
			return false
		}
		b = b[n:]
	}
	return true
}

// scripted is a connection whose other side says what is known beforehand.
type scripted struct {
	net.Conn
	r *bytes.Reader
	w bytes.Buffer
}

func (c *scripted) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *scripted) Write(p []byte) (int, error)      { return c.w.Write(p) }
func (c *scripted) Close() error                     { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }
func (c *scripted) SetDeadline(time.Time) error      { return nil }

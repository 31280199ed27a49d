package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"bawn.dev/bawn"
)

// Bounds of a connection to Postgres; docs/limits.md lists those that a function
// can meet.
const (
	pgMaxStartup  = 10000            // bytes of the first message, as in PostgreSQL
	pgMaxParams   = 32               // run-time parameters in it
	pgMaxMessage  = 64 << 20         // bytes of one message of the function
	pgMaxGreeting = 64 << 10         // of one message of the server before the connection is ready
	pgMaxReply    = 1<<30 - 1        // of one later message of it, as in PostgreSQL
	pgStartupTime = 10 * time.Second // for the function to say what it wants
	pgConnectTime = 10 * time.Second // to reach the server and be let in
	pgCancelTime  = 2 * time.Second  // for a cancelled statement to end
	pgFarewell    = time.Second      // for the last message to a function
	pgBuffer      = 16 << 10
	pgMaxRounds   = 6 // digits of SCRAM's iterations; PostgreSQL has 4096
)

// What a client may say before it says who it is.
const (
	pgCancelCode = 80877102
	pgTLSCode    = 80877103
	pgGSSCode    = 80877104
)

// pgKnownParams are the run-time parameters that a function may name when it
// connects. All of them it could also set by a statement; others it has to.
const pgKnownParams = "application_name bytea_output client_encoding datestyle default_transaction_deferrable default_transaction_isolation " +
	"default_transaction_read_only extra_float_digits geqo idle_in_transaction_session_timeout idle_session_timeout intervalstyle jit " +
	"lock_timeout search_path standard_conforming_strings statement_timeout timezone transaction_timeout"

// The codes of PostgreSQL's errors that Bawn itself answers with.
const (
	pgProtocol    = "08P01" // protocol_violation
	pgUnreachable = "08001" // sqlclient_unable_to_establish_sqlconnection
	pgRefused     = "28000" // invalid_authorization_specification
	pgNoDatabase  = "3D000" // invalid_catalog_name
	pgUnsupported = "0A000" // feature_not_supported
	pgTooMany     = "53300" // too_many_connections
	pgLimit       = "53400" // configuration_limit_exceeded
	pgCancelled   = "57014" // query_canceled
)

// errTold is why a database cannot be reached, where the owner knows already.
var errTold = errors.New("the database cannot be reached")

// A pgError is what the function's client is told at a connection's end.
type pgError struct{ code, message string }

// Error returns the message.
func (e *pgError) Error() string { return e.message }

func pgErrorf(code, format string, args ...any) error {
	return &pgError{code, fmt.Sprintf(format, args...)}
}

// A pgServer is one Postgres database as one instance reaches it during one
// invocation.
type pgServer struct {
	db    *bawn.Database
	name  string         // of the server, which its certificate must have
	roots *x509.CertPool // nil means the system's
	label string         // the application's name, if the function gives none

	// dial connects to the server if the function may, or again for the sake of a
	// connection that there is; its errors have been told to the owner. password
	// returns the value that is current now; nil if none is needed.
	dial     func(ctx context.Context, again bool) (net.Conn, error)
	password func(ctx context.Context) (string, error)
	// enter takes one of the binding's connections, and reports false if all are
	// taken; leave gives it back. statement counts one, and reports false if the
	// invocation has had all.
	enter     func() bool
	leave     func()
	statement func() bool
	note      func(text string) // to the function's owner
	keys      *pgKeys
}

// serve speaks with a client of the function until one of the two or ctx ends. It
// closes conn.
func (s *pgServer) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(pgStartupTime))
	in := bufio.NewReaderSize(conn, pgBuffer)
	first, cancel, err := pgReadStartup(in, conn)
	switch {
	case err != nil:
		s.refuse(conn, err)
		return
	case cancel != nil:
		s.cancel(ctx, *cancel)
		return
	}
	if err := first.check(s.db); err != nil {
		s.refuse(conn, err)
		return
	}
	if !s.enter() {
		s.refuse(conn, pgErrorf(pgTooMany, "an instance of this function has no more than %d connections to %s at one time; egress.databases.%[2]s.connections sets it", databaseConns(s.db), s.db.Name))
		return
	}
	defer s.leave()
	p, err := s.connect(ctx, first)
	if err != nil {
		s.refuse(conn, err)
		return
	}
	p.client, p.in = conn, in
	key := s.keys.add(p)
	defer s.keys.remove(key)
	conn.SetDeadline(time.Now().Add(pgStartupTime))
	if err := p.welcome(first, key); err != nil {
		p.server.Close()
		return
	}
	conn.SetDeadline(time.Time{})
	p.relay(ctx)
}

// refuse tells a client why it gets no connection. What is not said in words of
// the protocol is not for the function.
func (s *pgServer) refuse(conn net.Conn, err error) {
	conn.SetDeadline(time.Now().Add(pgFarewell))
	var ours *pgError
	var theirs *pgconn.PgError
	switch {
	case errors.As(err, &ours):
		s.note("a connection to the database " + s.db.Name + " was refused: " + ours.message)
		conn.Write(pgFatal(ours))
	case errors.As(err, &theirs):
		b, err := (&pgproto3.ErrorResponse{
			Severity: theirs.Severity, SeverityUnlocalized: theirs.SeverityUnlocalized, Code: theirs.Code, Message: theirs.Message,
			Detail: theirs.Detail, Hint: theirs.Hint, Where: theirs.Where, File: theirs.File, Line: theirs.Line, Routine: theirs.Routine,
		}).Encode(nil)
		if err == nil {
			conn.Write(b)
		}
	case errors.Is(err, errDenied):
		conn.Write(pgFatal(&pgError{pgRefused, "the connection is refused"}))
	case !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed):
		if !errors.Is(err, errTold) {
			s.note("the database " + s.db.Name + " could not be reached: " + err.Error())
		}
		conn.Write(pgFatal(&pgError{pgUnreachable, "the database cannot be reached"}))
	}
}

// pgFatal is the last message of a connection.
func pgFatal(e *pgError) []byte {
	b, err := (&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: e.code, Message: e.message}).Encode(nil)
	if err != nil { // it is longer than a message may be, which no text here is
		return nil
	}
	return b
}

// A pgStartup is what a client wants.
type pgStartup struct {
	minor    uint32 // of the protocol's version
	user     string // empty if it does not say
	database string
	params   map[string]string // what else, names in lower case
	unknown  []string          // options of the protocol itself, which nobody has to know
}

// pgReadStartup reads until a client has said what it wants: a connection, or that
// a statement be cancelled. Encryption it may ask for once of each kind; there is
// none on the way from the sandbox to Bawn.
func pgReadStartup(in *bufio.Reader, out io.Writer) (*pgStartup, *pgKey, error) {
	var tls, gss bool
	for {
		head, err := in.Peek(8)
		if err != nil {
			return nil, nil, err
		}
		size, code := int64(binary.BigEndian.Uint32(head)), binary.BigEndian.Uint32(head[4:])
		switch {
		case size == 8 && code == pgTLSCode && !tls, size == 8 && code == pgGSSCode && !gss:
			tls, gss = tls || code == pgTLSCode, gss || code == pgGSSCode
			in.Discard(8)
			if in.Buffered() > 0 { // it does not wait for the answer
				return nil, nil, pgErrorf(pgProtocol, "data before the answer about encryption")
			}
			if _, err := out.Write([]byte("N")); err != nil {
				return nil, nil, err
			}
			continue
		case head[0] == 0x16 && head[1] == 0x03:
			return nil, nil, pgErrorf(pgProtocol, "there is no TLS on this port: Bawn itself speaks it with the server; connect with sslmode=disable")
		case size < 8 || size > pgMaxStartup:
			return nil, nil, pgErrorf(pgProtocol, "a first message of %d bytes", size)
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(in, body); err != nil {
			return nil, nil, err
		}
		if code == pgCancelCode {
			if size != 16 {
				return nil, nil, pgErrorf(pgProtocol, "a cancel request of %d bytes", size)
			}
			return nil, &pgKey{binary.BigEndian.Uint32(body[8:]), binary.BigEndian.Uint32(body[12:])}, nil
		}
		first, err := pgParseStartup(code, body[8:])
		return first, nil, err
	}
}

// pgParseStartup reads the names and values of a startup message strictly: each
// name once, and nothing after the end.
func pgParseStartup(version uint32, body []byte) (*pgStartup, error) {
	if version>>16 != 3 {
		return nil, pgErrorf(pgUnsupported, "version %d of the protocol: only 3 is spoken", version>>16)
	}
	s := &pgStartup{minor: version & 0xffff, params: map[string]string{}}
	seen := map[string]bool{}
	for {
		name, rest, ok := bytes.Cut(body, []byte{0})
		if !ok {
			return nil, pgErrorf(pgProtocol, "the first message ends in the middle")
		}
		if len(name) == 0 {
			if len(rest) > 0 {
				return nil, pgErrorf(pgProtocol, "the first message goes on after its end")
			}
			return s, nil
		}
		value, rest, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return nil, pgErrorf(pgProtocol, "the first message ends in the middle")
		}
		body = rest
		key := strings.ToLower(string(name))
		if seen[key] {
			return nil, pgErrorf(pgProtocol, "the first message has %q twice", pgClip(key))
		}
		if seen[key] = true; len(seen) > pgMaxParams {
			return nil, pgErrorf(pgProtocol, "the first message has more than %d parameters", pgMaxParams)
		}
		switch {
		case key == "user":
			s.user = string(value)
		case key == "database":
			s.database = string(value)
		case strings.HasPrefix(key, "_pq_."):
			s.unknown = append(s.unknown, string(name))
		default:
			s.params[key] = string(value)
		}
	}
}

// pgClip bounds what a client wrote for a message or a note.
func pgClip(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return strings.ToValidUTF8(s, "")
}

// check reports whether the client asks for nothing but what the manifest of its
// function says.
func (s *pgStartup) check(db *bawn.Database) error {
	if s.user != "" && s.user != db.User {
		return pgErrorf(pgRefused, "user %q: egress.databases.%s of the manifest has %q", pgClip(s.user), db.Name, db.User)
	}
	if s.database != "" && s.database != db.Database {
		return pgErrorf(pgNoDatabase, "database %q: egress.databases.%s of the manifest has %q", pgClip(s.database), db.Name, db.Database)
	}
	for _, name := range slices.Sorted(maps.Keys(s.params)) {
		if name == "replication" {
			return pgErrorf(pgUnsupported, "replication is not for functions")
		}
		if !slices.Contains(strings.Fields(pgKnownParams), name) {
			return pgErrorf(pgUnsupported, "parameter %q in the first message: set it by a statement, SET, once connected", pgClip(name))
		}
	}
	return nil
}

// A pgKey names a connection in a cancel request. The process's id is the
// server's, for clients compare it with what notifications say; the secret is
// not: what the server would take never enters the sandbox.
type pgKey struct{ pid, secret uint32 }

// pgKeys are the connections of one instance to one database. It is safe for
// concurrent use; the zero value is empty.
type pgKeys struct {
	mu  sync.Mutex
	all map[pgKey]*pgConn
}

func (k *pgKeys) add(p *pgConn) pgKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.all == nil {
		k.all = map[pgKey]*pgConn{}
	}
	for {
		var b [4]byte
		rand.Read(b[:]) // never fails
		key := pgKey{p.pid, binary.BigEndian.Uint32(b[:])}
		if k.all[key] == nil {
			k.all[key] = p
			return key
		}
	}
}

func (k *pgKeys) remove(key pgKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.all, key)
}

func (k *pgKeys) get(key pgKey) *pgConn {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.all[key]
}

// cancel passes a cancel request on if it is for a connection of this instance.
// As in PostgreSQL there is no answer.
func (s *pgServer) cancel(ctx context.Context, key pgKey) {
	p := s.keys.get(key)
	if p == nil {
		s.note("a cancel request to the database " + s.db.Name + " was refused: its key is of no connection of this instance")
		return
	}
	ctx, stop := context.WithTimeout(ctx, pgConnectTime)
	defer stop()
	if err := p.control.CancelRequest(ctx); err != nil {
		s.note("a cancel request to the database " + s.db.Name + " failed: " + err.Error())
	}
}

// connect opens a connection to the server and authenticates, with what the
// manifest says and the password that the sandbox never sees. Its errors are
// *pgError, *pgconn.PgError, or not for the function.
func (s *pgServer) connect(ctx context.Context, first *pgStartup) (*pgConn, error) {
	ctx, stop := context.WithTimeout(ctx, pgConnectTime)
	defer stop()
	// Only ParseConfig makes a configuration, and it looks into the environment of
	// the process: everything that it could take from there is said here.
	cfg, err := pgconn.ParseConfig("host=127.0.0.1 port=5432 user=- password=- dbname=- sslmode=disable sslrootcert='' sslnegotiation=postgres sslcertmode=disable " +
		"channel_binding=prefer require_auth=scram-sha-256 target_session_attrs=any min_protocol_version=3.0 max_protocol_version=3.0 connect_timeout=0")
	if err != nil {
		return nil, fmt.Errorf("the node's own environment names a PostgreSQL service: unset PGSERVICE and start it again: %w", err)
	}
	cfg.Host, cfg.User, cfg.Database, cfg.Password = s.name, s.db.User, s.db.Database, ""
	cfg.Fallbacks, cfg.KerberosSrvName, cfg.KerberosSpn = nil, "", ""
	cfg.RuntimeParams = map[string]string{"application_name": s.label}
	maps.Copy(cfg.RuntimeParams, first.params)
	if s.password != nil {
		if cfg.Password, err = s.password(ctx); err != nil {
			return nil, err
		}
	} else {
		cfg.RequireAuth = "none"
	}
	if !s.db.Plaintext {
		// The name is verified, and so is that the other side is the one that TLS is
		// spoken with, where the server can do that: SCRAM-SHA-256-PLUS.
		cfg.TLSConfig = &tls.Config{ServerName: s.name, RootCAs: s.roots, MinVersion: tls.VersionTLS12}
		if s.password != nil {
			cfg.RequireAuth = "scram-sha-256,md5,password"
		}
	}
	// It is dial that resolves the name, once, and looks at the address.
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"0.0.0.0"}, nil }
	var unreached error
	var dialled atomic.Bool
	cfg.DialFunc = func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		if dialled.Swap(true) { // to cancel a statement
			return s.dial(ctx, true)
		}
		conn, unreached = s.dial(ctx, false)
		return conn, unreached
	}
	var in *bufio.Reader
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		in = bufio.NewReaderSize(r, pgBuffer)
		return pgproto3.NewFrontend(&pgGreeting{r: in}, w)
	}
	control, err := pgconn.ConnectConfig(ctx, cfg)
	switch {
	case errors.Is(unreached, errDenied):
		return nil, errDenied
	case unreached != nil:
		return nil, errTold
	case err != nil:
		return nil, err
	}
	h, err := control.Hijack()
	if err != nil {
		control.Close(ctx)
		return nil, err
	}
	p := &pgConn{s: s, control: control, server: h.Conn, out: in, pid: h.PID, statuses: h.ParameterStatuses}
	if timeout := s.db.Timeout; timeout > 0 {
		p.timeout = timeout
	}
	return p, nil
}

// pgGreeting hands out what a server says before a connection is ready, never
// more than the message in which it is: what comes after the last one is read by
// the relay.
type pgGreeting struct {
	r    *bufio.Reader
	left int
}

// Read fails if a message is longer than a greeting needs to be.
func (g *pgGreeting) Read(p []byte) (int, error) {
	if g.left == 0 {
		kind, size, err := pgPeek(g.r, pgMaxGreeting)
		if err != nil {
			return 0, err
		}
		if kind == 'R' {
			if size > pgBuffer-pgHead {
				return 0, fmt.Errorf("the server sent %d bytes about authentication", size)
			}
			// The cost of SCRAM is the server's to choose, and this node's to bear.
			m, err := g.r.Peek(pgHead + size)
			if err != nil {
				return 0, err
			}
			if _, rounds, ok := bytes.Cut(m, []byte(",i=")); ok && len(rounds) > pgMaxRounds {
				return 0, fmt.Errorf("the server asks for SCRAM with 10^%d rounds or more", pgMaxRounds)
			}
		}
		g.left = pgHead + size
	}
	n, err := g.r.Read(p[:min(len(p), g.left)])
	g.left -= n
	return n, err
}

const pgHead = 5 // bytes: a message's kind, and its length without the kind

// pgPeek returns the kind and size of the next message's body, and takes nothing.
func pgPeek(r *bufio.Reader, most int) (kind byte, size int, err error) {
	head, err := r.Peek(pgHead)
	if err != nil {
		if len(head) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, 0, err
	}
	n := int64(binary.BigEndian.Uint32(head[1:])) - 4
	if n < 0 || n > int64(most) {
		return 0, 0, pgErrorf(pgProtocol, "a message of %d bytes; no more than %d pass", n, most)
	}
	return head[0], int(n), nil
}

// A pgConn is one connection of a function that reaches a server.
type pgConn struct {
	s        *pgServer
	client   net.Conn
	in       *bufio.Reader // from it
	server   net.Conn
	out      *bufio.Reader // from it
	control  *pgconn.PgConn
	pid      uint32
	statuses map[string]string
	timeout  time.Duration // of a statement; zero means no bound

	mu    sync.Mutex
	over  error // why the connection ends; nil while it does not
	run   pgRunning
	timer *time.Timer // nil while no statement has run
	due   time.Time   // when the running statement's time is over
	// hold is closed when a cancellation is over that was begun for a statement's
	// time: until then nothing goes to the server that it could hit instead.
	hold      chan struct{}
	cancelled bool // the running statement; the next time it is late its connection is cut
}

// welcome tells the client that it is connected.
func (p *pgConn) welcome(first *pgStartup, key pgKey) error {
	var all []pgproto3.BackendMessage
	if first.minor > 0 || len(first.unknown) > 0 {
		all = append(all, &pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: 0, UnrecognizedOptions: first.unknown})
	}
	all = append(all, &pgproto3.AuthenticationOk{})
	for _, name := range slices.Sorted(maps.Keys(p.statuses)) {
		all = append(all, &pgproto3.ParameterStatus{Name: name, Value: p.statuses[name]})
	}
	all = append(all,
		&pgproto3.BackendKeyData{ProcessID: key.pid, SecretKey: binary.BigEndian.AppendUint32(nil, key.secret)},
		&pgproto3.ReadyForQuery{TxStatus: 'I'})
	var b []byte
	for _, m := range all {
		var err error
		if b, err = m.Encode(b); err != nil {
			return err
		}
	}
	_, err := p.client.Write(b)
	return err
}

// relay passes messages on in both directions until one side or ctx ends.
func (p *pgConn) relay(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { p.end(ctx.Err()) })()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if failed := recover(); failed != nil { // what a function sends must not end the node
				p.end(fmt.Errorf("it failed: %v", failed))
			}
		}()
		p.end(p.fromFunction())
	}()
	whole, err := p.fromServer()
	p.end(err)
	<-done
	p.mu.Lock()
	if p.timer != nil {
		p.timer.Stop()
	}
	over, late := p.over, p.run.busy()
	p.mu.Unlock()
	if late && ctx.Err() != nil {
		// The server would go on with what nobody waits for any more.
		again, stop := context.WithTimeout(context.WithoutCancel(ctx), pgCancelTime)
		p.control.CancelRequest(again)
		stop()
	}
	var e *pgError
	if errors.As(over, &e) && whole {
		p.client.Write(pgFatal(e))
	}
}

// end says once why the connection ends, and makes both directions stop.
func (p *pgConn) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over != nil {
		return
	}
	if err == nil {
		err = io.EOF
	}
	p.over = err
	var e *pgError
	if errors.As(err, &e) {
		p.s.note("a connection to the database " + p.s.db.Name + " was ended: " + e.message)
	}
	p.server.Close()
	p.client.SetReadDeadline(time.Unix(1, 0))
	p.client.SetWriteDeadline(time.Now().Add(pgFarewell))
}

// fromFunction passes on what the client sends.
func (p *pgConn) fromFunction() error {
	w := bufio.NewWriterSize(p.server, pgBuffer)
	for {
		kind, size, err := pgPeek(p.in, pgMaxMessage)
		if err != nil {
			if errors.Is(err, io.EOF) { // as a client that went away without a word
				p.server.SetWriteDeadline(time.Now().Add(pgFarewell))
				w.Write([]byte{'X', 0, 0, 0, 4})
				w.Flush()
			}
			return err
		}
		if err := p.sent(kind); err != nil {
			return err
		}
		if _, err := io.CopyN(w, p.in, int64(pgHead+size)); err != nil {
			return err
		}
		if p.in.Buffered() < pgHead || kind == 'X' {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		if kind == 'X' {
			return io.EOF
		}
	}
}

// fromServer passes on what the server sends. whole reports whether it stopped
// between two messages, so that one of Bawn's own can follow.
func (p *pgConn) fromServer() (whole bool, err error) {
	w := bufio.NewWriterSize(p.client, pgBuffer)
	for {
		kind, size, err := pgPeek(p.out, pgMaxReply)
		if err != nil {
			flushed := w.Flush()
			if errors.Is(err, io.EOF) && flushed == nil {
				err = io.EOF
			}
			return flushed == nil && p.out.Buffered() == 0, err
		}
		if err := p.received(kind); err != nil {
			return w.Flush() == nil, err
		}
		if _, err := io.CopyN(w, p.out, int64(pgHead+size)); err != nil {
			return false, err
		}
		if p.out.Buffered() < pgHead {
			if err := w.Flush(); err != nil {
				return false, err
			}
		}
	}
}

// sent takes notice of a message of the client that is about to be passed on. An
// error means that it must not be.
func (p *pgConn) sent(kind byte) error {
	if strings.IndexByte("QPBEDCSHFdcfX", kind) < 0 {
		return pgErrorf(pgProtocol, "a message of kind %q", kind)
	}
	if statement := kind == 'Q' || kind == 'E' || kind == 'F'; statement && !p.s.statement() {
		return pgErrorf(pgLimit, "an invocation of this function may run no more than %d statements on %s; egress.databases.%[2]s.statements sets it", p.s.db.Statements, p.s.db.Name)
	}
	p.mu.Lock()
	for p.hold != nil && p.over == nil {
		hold := p.hold
		p.mu.Unlock()
		<-hold
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	was := p.run.busy()
	p.run.sent(kind)
	if !was {
		p.arm()
	}
	return nil
}

// received does the same for a message of the server.
func (p *pgConn) received(kind byte) error {
	if strings.IndexByte("CDEGHINASTZVcdnst123", kind) < 0 {
		return fmt.Errorf("the server sent a message of kind %q", kind)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run.received(kind) {
		p.cancelled = false
		p.arm()
	}
	return nil
}

// arm gives the statement that runs now its time. It is called with mu held.
func (p *pgConn) arm() {
	if p.timeout == 0 || !p.run.busy() {
		return
	}
	p.due = time.Now().Add(p.timeout)
	if p.timer == nil {
		p.timer = time.AfterFunc(p.timeout, p.late)
	} else {
		p.timer.Reset(p.timeout)
	}
}

// late cancels the statement that runs if its time is over. From a server that
// does not end it the connection is cut.
func (p *pgConn) late() {
	p.mu.Lock()
	wait := time.Until(p.due)
	switch {
	case p.over != nil || !p.run.busy():
		p.mu.Unlock()
		return
	case wait > 0: // it was armed again meanwhile
		p.timer.Reset(wait)
		p.mu.Unlock()
		return
	case p.cancelled:
		p.mu.Unlock()
		p.end(pgErrorf(pgCancelled, "a statement took longer than %s and did not end when it was cancelled; egress.databases.%s.timeout sets it", p.timeout, p.s.db.Name))
		return
	}
	hold := make(chan struct{})
	p.hold, p.cancelled = hold, true
	p.mu.Unlock()
	p.s.note(fmt.Sprintf("a statement on the database %s was cancelled, for it took longer than %s; egress.databases.%[1]s.timeout sets it", p.s.db.Name, p.timeout))
	ctx, stop := context.WithTimeout(context.Background(), pgCancelTime)
	err := p.control.CancelRequest(ctx)
	stop()
	p.mu.Lock()
	p.hold = nil
	close(hold)
	p.due = time.Now().Add(pgCancelTime)
	if err != nil {
		p.due = time.Now()
	}
	p.timer.Reset(time.Until(p.due))
	p.mu.Unlock()
}

// pgRunning follows which statements a server still works on, as far as the
// messages' kinds tell. Where it cannot know, it takes a statement for running.
type pgRunning struct {
	ready int  // answers of the kind Z that the server owes
	open  int  // statements after the last message that it owes one for
	last  byte // of the client's messages, the last that is owed something
}

func (r *pgRunning) busy() bool { return r.ready > 0 || r.open > 0 }

func (r *pgRunning) sent(kind byte) {
	switch kind {
	case 'Q', 'S', 'F':
		r.ready, r.open, r.last = r.ready+1, 0, kind
	case 'E':
		r.open, r.last = r.open+1, kind
	}
}

// received reports whether a statement, or a part of what is owed, is done.
func (r *pgRunning) received(kind byte) bool {
	switch kind {
	case 'Z':
		r.ready = max(0, r.ready-1)
	case 'C', 'I', 's':
		if r.ready == 0 {
			r.open = max(0, r.open-1)
		}
	case 'E':
		if r.ready == 0 {
			r.open = 0 // the server leaves out all until it is owed something
		}
	case 'G':
		// A server that waits for a copy's data ignores the S that followed the E. It
		// is only believed if nothing else was sent since.
		if r.ready == 1 && r.open == 0 && r.last == 'S' {
			r.ready, r.open = 0, 1
		}
		return false
	default:
		return false
	}
	return true
}

package egress

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/secret"
)

// Bounds of a connection that is forwarded to MySQL.
const (
	mysqlGreeting = 4 << 10 // bytes of the server's first packet
	mysqlSSLBytes = 32      // of a client's request for TLS
	mysqlSSL      = 0x800   // in its capabilities
)

// binding is a database of one instance.
type binding struct {
	db    *bawn.Database
	slots chan struct{} // one for each connection to Postgres
	keys  pgKeys

	mu         sync.Mutex
	invocation string // whose statements are counted
	statements int
}

// statement counts one, and reports false if the invocation has had all.
func (b *binding) statement(invocation string) bool {
	if b.db.Statements == 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.invocation != invocation {
		b.invocation, b.statements = invocation, 0
	}
	if b.statements >= b.db.Statements {
		return false
	}
	b.statements++
	return true
}

// databaseConns is how many connections of one instance there may be.
func databaseConns(db *bawn.Database) int {
	return cmp.Or(db.Connections, bawn.DefaultDatabaseConn)
}

// attachDatabases returns what names the databases to an instance.
func (a *attached) attachDatabases(context.Context) ([]sandbox.AttachedFile, map[string]string, error) {
	list := a.v.Perimeter.Egress.Databases
	a.databases = make(map[string]*binding, len(list))
	for i := range list {
		db := &list[i]
		a.databases[db.Name] = &binding{db: db, slots: make(chan struct{}, databaseConns(db))}
	}
	return nil, databaseEnv(list), nil
}

// databaseEnv returns the environment that says where the databases are:
// BAWN_DB_ORDERS_HOST, _PORT, _NAME, _USER and _URL of one that is called orders.
// The variables of PostgreSQL's own clients say the same of a database if it is
// the only one of its kind.
func databaseEnv(list []bawn.Database) map[string]string {
	env, postgres := map[string]string{}, 0
	for i := range list {
		db := &list[i]
		host, port, url := databaseHost(db), itoa(db.Port), ""
		at := net.JoinHostPort(host, port)
		switch db.Kind {
		case bawn.Postgres:
			postgres++
			url = "postgresql://" + urlPart(db.User) + "@" + at + "/" + urlPart(db.Database) + "?sslmode=disable"
		case bawn.MySQL:
			url = "mysql://" + at
		case bawn.Redis:
			url = "rediss://" + at
			if db.Plaintext {
				url = "redis://" + at
			}
		}
		prefix := "BAWN_DB_" + strings.ToUpper(strings.ReplaceAll(db.Name, "-", "_"))
		for name, value := range map[string]string{"HOST": host, "PORT": port, "NAME": db.Database, "USER": db.User, "URL": url} {
			if value != "" {
				env[prefix+"_"+name] = value
			}
		}
	}
	for i := range list {
		if db := &list[i]; db.Kind == bawn.Postgres && postgres == 1 {
			env["PGHOST"], env["PGPORT"], env["PGDATABASE"], env["PGUSER"], env["PGSSLMODE"] = databaseHost(db), itoa(db.Port), db.Database, db.User, "disable"
		}
	}
	return env
}

// urlPart escapes what stands in a URL's user or path.
func urlPart(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.~", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.WriteString("%" + string("0123456789ABCDEF"[c>>4]) + string("0123456789ABCDEF"[c&15]))
		}
	}
	return b.String()
}

// databaseHost is where a client inside connects to. One that speaks TLS with the
// server itself is told the server's own name, which it verifies.
func databaseHost(db *bawn.Database) string {
	if name := forwardedName(db); name != "" {
		return name
	}
	return "127.0.0.1"
}

// forwardedName is the name of a server that the function speaks TLS with; it is
// in the sandbox's hosts file. Empty if there is none.
func forwardedName(db *bawn.Database) string {
	if db.Kind == bawn.Postgres || db.Plaintext {
		return ""
	}
	name, _, _ := splitAddress(db.Address)
	return name
}

// serveDatabase sees to a connection to a database.
func (a *attached) serveDatabase(ctx context.Context, conn net.Conn, t *target) {
	switch db := t.database; {
	case db.Kind == bawn.Postgres:
		a.postgres(t).serve(ctx, conn)
	case db.Kind == bawn.MySQL && !db.Plaintext:
		a.serveMySQL(ctx, conn, t)
	default:
		// As to a host with a rule of its own, but that it is the database which the
		// policy is asked for.
		as := *t
		as.host = &bawn.Host{Host: t.where(), Ports: []int{t.port}, Plaintext: db.Plaintext}
		a.serveTunnel(ctx, conn, &as)
	}
}

// postgres returns the database of t for the invocation of t.
func (a *attached) postgres(t *target) *pgServer {
	b, call := a.databases[t.database.Name], t.run.call
	s := &pgServer{
		db: t.database, name: t.where(), roots: a.b.cfg.Guard.Roots(), label: "bawn " + a.v.Ref().String(), keys: &b.keys, note: a.note,
		dial: func(ctx context.Context, again bool) (net.Conn, error) {
			if again { // to cancel a statement of a connection that was decided on
				conn, _, err := a.outside(ctx, t)
				return conn, err
			}
			conn, err := a.connect(ctx, t)
			if err != nil {
				return nil, err
			}
			return conn, nil
		},
		enter: func() bool {
			select {
			case b.slots <- struct{}{}:
				return true
			default:
				return false
			}
		},
		leave:     func() { <-b.slots },
		statement: func() bool { return b.statement(call.ID) },
	}
	if t.database.Secret != "" {
		s.password = func(ctx context.Context) (string, error) { return a.login(ctx, t) }
	}
	return s
}

// login returns the password of a database, as it is now.
func (a *attached) login(ctx context.Context, t *target) (string, error) {
	if a.b.cfg.Secrets == nil {
		return "", errors.New("the password: this node has no secrets")
	}
	call := t.run.call
	value, err := a.b.cfg.Secrets.Use(ctx, secret.UseRequest{
		Version: a.v, Instance: a.in.Instance, Invocation: call.ID, Name: t.database.Secret, For: secret.Login,
		Origin: call.From(), Chain: append(call.Chain[:len(call.Chain):len(call.Chain)], a.v.Ref()), Hops: call.Hops,
	})
	var e *bawn.Error
	if errors.As(err, &e) && e.Fix != "" {
		return "", errors.New("the password: " + e.Message + "; " + e.Fix)
	} else if err != nil {
		return "", err
	}
	defer value.Clear()
	// Whoever keeps a password in a file ends the line.
	return strings.TrimRight(string(value.Bytes()), "\r\n"), nil
}

// serveMySQL passes on a connection to MySQL or MariaDB whose client goes over to
// TLS before it says who it is. Bawn reads as far as that.
func (a *attached) serveMySQL(ctx context.Context, conn net.Conn, t *target) {
	out, err := a.connect(ctx, t)
	if err != nil {
		reset(conn)
		return
	}
	defer t.run.leave(out)
	if err := a.mysqlTLS(ctx, conn, out, t); err != nil {
		reset(conn)
		return
	}
	a.b.splice(conn, out)
}

// mysqlTLS passes on what comes before TLS, and the client's first message of it.
func (a *attached) mysqlTLS(ctx context.Context, conn net.Conn, out *counted, t *target) error {
	deadline := earlier(time.Now().Add(helloTimeout), t.run.deadline)
	conn.SetDeadline(deadline)
	out.SetReadDeadline(deadline)
	first, err := mysqlPacket(out, mysqlGreeting)
	if err != nil {
		return err
	}
	if _, err := conn.Write(first); err != nil {
		return err
	}
	if first[4] == 0xff { // an error, such as too many connections
		return io.EOF
	}
	request, err := mysqlPacket(conn, mysqlGreeting)
	if err != nil {
		return err
	}
	if len(request) != 4+mysqlSSLBytes || binary.LittleEndian.Uint32(request[4:])&mysqlSSL == 0 {
		a.mismatch(t, "the client of MySQL does not go over to TLS; plaintext: true of the database is an exception")
		return errDenied
	}
	hello, err := readHello(conn)
	if err != nil {
		return err
	}
	// Many clients of MySQL name no server.
	if name, err := parseName(hello.name); hello.encrypted || hello.name != "" && (err != nil || name != t.name) {
		a.mismatch(t, "the connection asks for the server "+quoted(hello.name))
		return errDenied
	}
	if err := a.verifyMySQL(ctx, t, out); err != nil {
		return err
	}
	conn.SetDeadline(time.Time{})
	out.SetReadDeadline(t.run.deadline)
	_, err = out.Write(append(request, hello.read...))
	return err
}

// verifyMySQL is verify for a server that begins TLS when it is asked to.
func (a *attached) verifyMySQL(ctx context.Context, t *target, out *counted) error {
	err := a.b.verified.check(ctx, verifiedKey{out.to, "mysql " + t.where()}, func(ctx context.Context) error {
		conn, err := a.b.cfg.Guard.connect(ctx, "tcp", t.where(), out.to, false)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(verifyTimeout))
		if _, err := mysqlPacket(conn, mysqlGreeting); err != nil {
			return err
		}
		request := make([]byte, 4+mysqlSSLBytes)
		request[0], request[3] = mysqlSSLBytes, 1
		const protocol41, secureConnection = 0x200, 0x8000
		binary.LittleEndian.PutUint32(request[4:], mysqlSSL|protocol41|secureConnection)
		binary.LittleEndian.PutUint32(request[8:], 1<<24)
		request[12] = 33 // UTF-8
		if _, err := conn.Write(request); err != nil {
			return err
		}
		return handshake(ctx, conn, t.where(), a.b.cfg.Guard.Roots())
	})
	if err != nil && ctx.Err() == nil {
		a.mismatch(t, "the server is not "+quoted(t.where())+": "+err.Error())
	}
	return err
}

// mysqlPacket reads one packet, with its head.
func mysqlPacket(r io.Reader, most int) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
	if n == 0 || n > most {
		return nil, errors.New("a first packet of " + itoa(n) + " bytes")
	}
	p := append(head, make([]byte, n)...)
	_, err := io.ReadFull(r, p[4:])
	return p, err
}

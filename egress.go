package bawn

import (
	"net/netip"
	"strings"
	"time"
)

// Host is one rule of what a function may reach outside: a name, a pattern or a
// range of addresses, on some ports, within bounds. A rule that says something of
// methods, paths or a credential is about HTTP requests, which Bawn then reads;
// any other is about connections, and the function's TLS stays between it and the
// host.
type Host struct {
	Host      string   `json:"host" doc:"a name, *.NAME for one label in front of it, an address, or a CIDR range; the last two need the operator's leave"`
	Ports     []int    `json:"ports" doc:"sorted, each once; 443 unless the manifest says more, or 80 with plaintext"`
	Plaintext bool     `json:"plaintext,omitempty" doc:"whether what goes outside may be without TLS; control C6"`
	Methods   []string `json:"methods,omitempty" doc:"HTTP methods; none means all"`
	Paths     []string `json:"paths,omitempty" doc:"of HTTP requests: exact, or with * at the end for everything below; none means all"`
	Inject    *Inject  `json:"inject,omitempty" doc:"a credential that Bawn adds outside of the sandbox"`
	Labels    []string `json:"labels,omitempty" doc:"of the data that may go there; sorted, each once"`

	// Bounds of one invocation for this rule. Zero means the default.
	Bytes       int64         `json:"bytes,omitempty" doc:"sent and received, each"`
	Connections int           `json:"connections,omitempty" doc:"at one time"`
	Time        time.Duration `json:"time,omitempty" doc:"nanoseconds that one connection may last"`
}

// AnyHost stands in the place of [Host.Host] where [Egress.Everything] allows what
// no rule does.
const AnyHost = "*"

// Matches reports whether the rule is about host: a name in lower case and ASCII,
// or an address. Of the ports it says nothing.
func (h *Host) Matches(host string) bool {
	if base, wild := strings.CutPrefix(h.Host, "*."); wild {
		label, rest, ok := strings.Cut(host, ".")
		return ok && label != "" && rest == base
	}
	if h.Host == host {
		return true
	}
	r, err := netip.ParsePrefix(h.Host)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(host)
	return err == nil && r.Contains(a)
}

// Clear reports whether Bawn reads the requests that the rule is about.
func (h *Host) Clear() bool { return len(h.Methods) > 0 || len(h.Paths) > 0 || h.Inject != nil }

// Inject is a secret that is put into a header of requests on their way out. The
// function never has it.
type Inject struct {
	Secret string `json:"secret"`
	Header string `json:"header" doc:"in canonical form"`
	Format string `json:"format" doc:"the header's value, with the secret in place of {}"`
}

// SecretUse is one secret that a function reads.
type SecretUse struct {
	Name string `json:"name"`
	File bool   `json:"file,omitempty" doc:"whether it is also a file in memory, /run/secrets/NAME"`
}

// DatabaseKind is what protocol a database speaks.
type DatabaseKind string

// The kinds of database. Of Postgres Bawn completes the authentication itself;
// the others are forwarded.
const (
	Postgres DatabaseKind = "postgres"
	MySQL    DatabaseKind = "mysql"
	Redis    DatabaseKind = "redis"
)

// Database is a database that a function reaches at a local port.
type Database struct {
	Name      string       `json:"name" doc:"in the manifest; names the environment variables too"`
	Kind      DatabaseKind `json:"kind"`
	Address   string       `json:"address" doc:"HOST:PORT"`
	Database  string       `json:"database,omitempty" doc:"of Postgres"`
	User      string       `json:"user,omitempty" doc:"of Postgres"`
	Secret    string       `json:"secret,omitempty" doc:"the password's secret, of Postgres; it never enters the sandbox"`
	Plaintext bool         `json:"plaintext,omitempty" doc:"whether the connection may be without TLS"`
	Port      int          `json:"port" doc:"in the sandbox, on 127.0.0.1"`
	Labels    []string     `json:"labels,omitempty" doc:"of the data in it; sorted, each once"`

	Connections int           `json:"connections,omitempty" doc:"of one instance at one time; zero means the default"`
	Statements  int           `json:"statements,omitempty" doc:"of one invocation, of Postgres; zero means no bound"`
	Timeout     time.Duration `json:"timeout,omitempty" doc:"nanoseconds for one statement, of Postgres; zero means no bound but the invocation's"`
}

// Response says what a function's answer must look like to leave; control D2.
type Response struct {
	Schema  string   `json:"schema,omitempty" doc:"a JSON Schema, as text: of the payload, or of an HTTP answer's body"`
	Bytes   int64    `json:"bytes,omitempty" doc:"of the payload; zero means the platform's bound"`
	Headers []string `json:"headers,omitempty" doc:"that an HTTP answer may carry, in canonical form; others are left out. None means all"`
	Cards   string   `json:"cards,omitempty" doc:"what happens to numbers of payment cards: redact or refuse; empty means nothing"`
}

// Secret is a value that functions use, with its history; the values themselves
// are nowhere in it.
type Secret struct {
	Tenant    string          `json:"tenant"`
	Name      string          `json:"name"`
	Labels    []string        `json:"labels,omitempty"`
	Versions  []SecretVersion `json:"versions" doc:"that still have a value, oldest first; the last is current"`
	Grants    []SecretGrant   `json:"grants" doc:"sorted by function"`
	CreatedAt time.Time       `json:"createdAt"`
	UpdatedAt time.Time       `json:"updatedAt"`
}

// SecretVersion is one value of a [Secret].
type SecretVersion struct {
	Number    int        `json:"number" doc:"never reused"`
	CreatedAt time.Time  `json:"createdAt"`
	CreatedBy string     `json:"createdBy"`
	Ends      *time.Time `json:"ends,omitempty" doc:"when the value dies; absent for the current one"`
}

// SecretGrant lets a function of the same tenant use a [Secret]; control E2.
type SecretGrant struct {
	Function  string    `json:"function"`
	GrantedAt time.Time `json:"grantedAt"`
	GrantedBy string    `json:"grantedBy"`
}

// EverythingPorts returns the ports of [Egress.Everything].
func EverythingPorts() []int { return []int{80, 443} }

// Defaults and bounds of the egress; docs/limits.md lists them with their
// manifest keys.
const (
	MaxHosts            = 64
	MaxHostPorts        = 16
	MaxEgressPorts      = 64 // different ones of one function, databases included
	MaxHostPaths        = 64
	MaxSecretUses       = 32
	MaxDatabases        = 16
	MaxLabels           = 16
	MaxSecretBytes      = 64 << 10
	MaxSecretVersions   = 16
	MaxSchemaBytes      = 64 << 10
	DefaultEgressBytes  = 100 << 20 // of one invocation to one rule, each way
	MaxEgressBytes      = 1 << 40
	DefaultEgressConns  = 32
	MaxEgressConns      = 1000
	DefaultDatabaseConn = 8
)

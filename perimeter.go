package bawn

import (
	"cmp"
	"slices"
	"time"
)

// Perimeter is the compiled, immutable set of rules of one function version.
// What is not written in it is refused. Its four parts are called the same in
// the manifest, in the folders of this repository and in the documentation.
type Perimeter struct {
	Ingress  Ingress  `json:"ingress"`
	Interior Interior `json:"interior"`
	Egress   Egress   `json:"egress"`
	Evidence Evidence `json:"evidence"`
}

// Interior says what the sandbox gives the function.
type Interior struct {
	Memory      int64         `json:"memory" doc:"bytes; the cgroup's hard limit, /tmp included"`
	CPU         float64       `json:"cpu" doc:"cores; the cgroup's quota"`
	Timeout     time.Duration `json:"timeout" doc:"nanoseconds for one invocation; the whole process tree is killed at its end"`
	Tmp         int64         `json:"tmp" doc:"bytes of /tmp"`
	PIDs        int           `json:"pids" doc:"processes and threads"`
	Concurrency int           `json:"concurrency" doc:"instances, and so calls, at one time"`
	Exec        bool          `json:"exec" doc:"whether the function may start other executables"`
	Reuse       Reuse         `json:"reuse"`
}

// Reuse says for how long an instance may serve; control B6. The zero value
// means never: one invocation, one instance.
type Reuse struct {
	Invocations int           `json:"invocations,omitempty" doc:"an instance is destroyed after so many; 0 with a maxAge means no limit"`
	MaxAge      time.Duration `json:"maxAge,omitempty" doc:"nanoseconds; an instance older than this takes no new call"`
}

// Never reports whether every invocation gets a new instance.
func (r Reuse) Never() bool { return r.MaxAge == 0 && r.Invocations <= 1 }

// Egress says what the function may reach, and what may leave it. What is not
// in it may not be reached.
type Egress struct {
	Functions  []string      `json:"functions,omitempty" doc:"functions of the same tenant that it may call; sorted, each once"`
	Hosts      []Host        `json:"hosts,omitempty" doc:"as they stand in the manifest; the first rule that fits counts"`
	Everything *PublicAccess `json:"everything,omitempty" doc:"opens every public host on the usual ports until a day, with a reason; the address ranges that nobody may reach stay closed"`
	Proxy      bool          `json:"proxy,omitempty" doc:"whether the environment names Bawn's proxy in HTTPS_PROXY and its like"`
	Secrets    []SecretUse   `json:"secrets,omitempty" doc:"sorted by name, each once; each needs a grant too"`
	Databases  []Database    `json:"databases,omitempty" doc:"sorted by name, each once"`
	Response   *Response     `json:"response,omitempty" doc:"what an answer must look like"`
}

// Most returns the most bytes that one call may send and receive together, by the
// bound of each rule and each database.
func (e *Egress) Most() (n int64) {
	for _, h := range e.Hosts {
		n += 2 * cmp.Or(h.Bytes, DefaultEgressBytes)
	}
	n += 2 * DefaultEgressBytes * int64(len(e.Databases))
	if e.Everything != nil {
		n += 2 * 2 * DefaultEgressBytes // with TLS, and without
	}
	return n
}

// HasSecrets reports whether anything of it uses a secret.
func (e *Egress) HasSecrets() bool {
	return len(e.Secrets) > 0 ||
		slices.ContainsFunc(e.Hosts, func(h Host) bool { return h.Inject != nil }) ||
		slices.ContainsFunc(e.Databases, func(d Database) bool { return d.Secret != "" })
}

// Evidence says what is kept about the function.
type Evidence struct {
	LogRetention time.Duration `json:"logRetention" doc:"nanoseconds for which log lines are kept"`
}

// Defaults and bounds of the interior and the evidence; docs/limits.md lists
// them with their manifest keys.
const (
	DefaultMemory       = 256 << 20
	MinMemory           = 32 << 20
	MaxMemory           = 10240 << 20
	DefaultCPU          = 1.0
	MinCPU              = 0.05
	MaxCPU              = 64.0
	DefaultTimeout      = 10 * time.Second
	MaxTimeout          = 15 * time.Minute
	DefaultTmp          = 64 << 20
	MaxTmp              = 10240 << 20
	DefaultPIDs         = 64
	MinPIDs             = 16 // an interpreter's own threads need about a dozen
	MaxPIDs             = 4096
	DefaultConcurrency  = 50
	MaxConcurrency      = 1000
	DefaultLogRetention = 7 * 24 * time.Hour
	MinLogRetention     = time.Minute
	MaxLogRetention     = 400 * 24 * time.Hour
	InitTimeout         = 10 * time.Second // from start to a loaded handler, as in AWS Lambda
	MaxEventBytes       = 6291456          // a synchronous call's event, as in AWS Lambda
	MaxResponseBytes    = 6291556          // a buffered result, as in AWS Lambda
	MaxStreamBytes      = 200 << 20        // a streamed result
	MaxEnvironmentBytes = 4096             // of compact JSON, as in AWS Lambda
)

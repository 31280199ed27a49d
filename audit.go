package bawn

import "time"

// Record is one entry of the evidence. Text in it that came from outside is
// bounded and escaped when it is appended; secrets and bodies never enter it.
type Record struct {
	ID         string            `json:"id"`
	Time       time.Time         `json:"time"`
	Kind       RecordKind        `json:"kind"`
	Tenant     string            `json:"tenant,omitempty"`
	Function   string            `json:"function,omitempty"`
	Version    int               `json:"version,omitempty"`
	Invocation string            `json:"invocation,omitempty"`
	Instance   string            `json:"instance,omitempty"`
	Principal  string            `json:"principal,omitempty"`
	Source     string            `json:"source,omitempty" doc:"the caller's address"`
	Action     string            `json:"action" doc:"what was decided, changed, or tried: invoke, deploy, execve"`
	Outcome    string            `json:"outcome" doc:"allow, deny, ok, error or blocked"`
	Reason     string            `json:"reason,omitempty"`
	Control    string            `json:"control,omitempty" doc:"the control that stopped it, such as B7"`
	Detail     map[string]string `json:"detail,omitempty"`
	Index      int64             `json:"index,omitempty" doc:"of the entry in the audit log; set when it is read"`
}

// RecordKind says what a [Record] is about.
type RecordKind string

// The kinds of record.
const (
	KindDecision RecordKind = "decision" // an admission, allowed or denied
	KindChange   RecordKind = "change"   // an operator changed something
	KindOutcome  RecordKind = "outcome"  // how an invocation ended
	KindBlocked  RecordKind = "blocked"  // the sandbox stopped an attempt
	KindNode     RecordKind = "node"     // start, stop, a capability missing, tampering found
)

// LogLine is one line that a function, or the platform on its behalf, wrote.
type LogLine struct {
	Time       time.Time `json:"time"`
	Tenant     string    `json:"tenant,omitempty"`
	Function   string    `json:"function"`
	Version    int       `json:"version"`
	Invocation string    `json:"invocation,omitempty" doc:"empty for lines written while loading"`
	Instance   string    `json:"instance,omitempty"`
	Platform   bool      `json:"platform,omitempty" doc:"written by Bawn: START, END, REPORT, and the detail of errors"`
	Text       string    `json:"text"`
}

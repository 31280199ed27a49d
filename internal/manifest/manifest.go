// Package manifest reads bawn.yaml: what a function is and what its perimeter
// lets through. Reading is strict. A field nobody knows, a field given twice,
// a value of the wrong kind or out of bounds is refused with its place in the
// file and, where one is near, the right word; every problem is reported in
// one go.
//
// The package also packs a folder into the zip that is uploaded, so that the
// same folder gives the same bytes, and so the same digest, everywhere.
package manifest

import (
	"encoding/json"

	"bawn.dev/bawn"
)

// FileName is the manifest's name in a folder.
const FileName = "bawn.yaml"

// File is one manifest.
type File struct {
	Functions map[string]Function
	Order     []string // the functions' names as they stand in the file
}

// Function is what users write about one function. A zero field was not
// written and takes its default in [Compile]. Its JSON form has the same names
// and the same human values as the YAML form, and both are read as strictly.
type Function struct {
	Runtime     bawn.Runtime      `json:"runtime,omitempty"`
	Handler     string            `json:"handler,omitempty"`
	Code        string            `json:"code,omitempty"` // a folder or a zip, relative to the manifest; means nothing to the server
	Description string            `json:"description,omitempty"`
	Owner       string            `json:"owner,omitempty"`
	Labels      []string          `json:"labels,omitempty"`
	Environment map[string]string `json:"environment,omitempty"`
	Ingress     Ingress           `json:"ingress,omitzero"`
	Interior    Interior          `json:"interior,omitzero"`
	Egress      Egress            `json:"egress,omitzero"`
	Evidence    Evidence          `json:"evidence,omitzero"`
	Tests       []Test            `json:"tests,omitempty"` // they stand in a file of their own; see [ParseTests]
}

// CodePath returns Code, or "." where none was written.
func (f Function) CodePath() string {
	if f.Code == "" {
		return "."
	}
	return f.Code
}

// UnmarshalJSON reads f as [ParseFunctionJSON] does.
func (f *Function) UnmarshalJSON(data []byte) error {
	got, err := ParseFunctionJSON(data)
	if err == nil {
		*f = got
	}
	return err
}

// Ingress says who and what may call the function.
type Ingress struct {
	HTTP    []Route  `json:"http,omitempty"`
	Callers []string `json:"callers,omitempty"` // functions, role:NAME, anyone
	Event   Event    `json:"event,omitzero"`
	Limits  Limits   `json:"limits,omitzero"`
	Budget  Budget   `json:"budget,omitempty"`
}

// Route is one way in over HTTP.
type Route struct {
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	Access Access `json:"access,omitzero"`
	Input  Input  `json:"input,omitzero"`

	Inspect *Inspection `json:"inspect,omitempty"` // nil takes the default, which depends on who may call
	Limits  Limits      `json:"limits,omitzero"`   // its rates; a route has no concurrency
	Web
}

// Interior says what the sandbox gives the function.
type Interior struct {
	Memory      Size     `json:"memory,omitzero"`
	CPU         float64  `json:"cpu,omitzero"`
	Timeout     Duration `json:"timeout,omitzero"`
	Tmp         Size     `json:"tmp,omitzero"`
	PIDs        int      `json:"pids,omitzero"`
	Concurrency int      `json:"concurrency,omitzero"`
	Exec        bool     `json:"exec,omitzero"`
	Reuse       Reuse    `json:"reuse,omitzero"`
}

// Reuse is "never", also when nothing is written, or a bound on how many
// invocations or how long an instance serves; with both, the first that is
// reached ends it.
type Reuse struct {
	Invocations int
	MaxAge      Duration
}

// MarshalJSON writes "never" or the bounds.
func (r Reuse) MarshalJSON() ([]byte, error) {
	if r == (Reuse{}) {
		return []byte(`"never"`), nil
	}
	return json.Marshal(struct {
		Invocations int      `json:"invocations,omitzero"`
		MaxAge      Duration `json:"maxAge,omitzero"`
	}{r.Invocations, r.MaxAge})
}

// Evidence says what is kept about the function.
type Evidence struct {
	LogRetention Duration `json:"logRetention,omitzero"`
}

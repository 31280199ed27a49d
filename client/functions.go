package client

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"bawn.dev/bawn"
)

// Status says how a node is.
type Status struct {
	Ready   bool              `json:"ready"`
	Message string            `json:"message,omitempty"` // why it is not ready; only told to a good key, as all below
	Version string            `json:"version,omitempty"`
	Node    string            `json:"node,omitempty"`
	Public  string            `json:"public,omitempty"`
	Started time.Time         `json:"started,omitzero"`
	Solo    bool              `json:"solo,omitempty"`    // one operator: a deploy that widens a perimeter counts as approved
	Damaged int               `json:"damaged,omitempty"` // how much of the stored state is damaged, and refused
	Labels  map[string]string `json:"labels,omitempty"`  // of the node, such as its region
}

// Status asks how the node is. Without a good key it only hears whether the
// node is ready.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	return &s, c.do(ctx, request{method: http.MethodGet, path: "/v1/status"}, &s)
}

// WaitReady asks until the node is ready or ctx ends, and returns the last
// answer or error.
func (c *Client) WaitReady(ctx context.Context) (*Status, error) {
	var last error
	for {
		s, err := c.Status(ctx)
		if err == nil && s.Ready {
			return s, nil
		}
		switch code := bawn.ErrorCode(err); {
		case err == nil:
			why := ""
			if s.Message != "" {
				why = ": " + s.Message
			}
			last = bawn.Errorf(bawn.CodeUnavailable, "client", "the node is not ready%s", why)
		case ctx.Err() == nil:
			last = err
			if code != bawn.CodeUnavailable {
				return nil, err
			}
		case last == nil:
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, last
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// HasArtifact reports whether the node has the package with this digest.
func (c *Client) HasArtifact(ctx context.Context, digest string) (bool, error) {
	err := c.do(ctx, request{method: http.MethodHead, path: "/v1/artifacts/" + digest}, nil)
	if bawn.ErrorCode(err) == bawn.CodeNotFound {
		return false, nil
	}
	return err == nil, err
}

// PutArtifact uploads a package of size bytes. The node checks the digest, and
// unpacks it to see that it is sound.
func (c *Client) PutArtifact(ctx context.Context, digest string, size int64, r io.Reader) (*bawn.Artifact, error) {
	var a bawn.Artifact
	return &a, c.do(ctx, request{
		method: http.MethodPut, path: "/v1/artifacts/" + digest, body: r, size: size, mime: "application/zip",
	}, &a)
}

// Change is one difference between two versions.
type Change struct {
	Field  string `json:"field"` // as the manifest names it: interior.memory
	Old    string `json:"old,omitempty"`
	New    string `json:"new,omitempty"`
	Widens bool   `json:"widens,omitempty"` // whether it lets more through than before
}

// Deployment is what a deploy did, or would do.
type Deployment struct {
	Version  bawn.Version  `json:"version"`
	Previous *bawn.Version `json:"previous,omitempty"` // live before
	Notices  []string      `json:"notices,omitempty"`  // what is missing for the version to work, and what everybody should know of it
	Created  bool          `json:"created"`            // false: a version with this very content was there already; see Moved
	DryRun   bool          `json:"dryRun,omitempty"`
	Changes  []Change      `json:"changes"`
	Approval string        `json:"approval"`          // who approved the widening: a principal, solo, none if it widens nothing, needed
	Pending  *Approval     `json:"pending,omitempty"` // set if nothing has changed yet: it waits for approval
}

// Moved reports whether live moves to a version that was there already.
func (d *Deployment) Moved() bool {
	return !d.Created && d.Previous != nil && d.Previous.Number != d.Version.Number
}

// Deploy creates a version of the function name and makes it live, unless it
// widens the perimeter and somebody else has to approve that first: then the
// answer's Pending is set, and nothing has changed. spec is
// what the manifest says of the function, in the manifest's own JSON form;
// artifact is the digest of a package the node has.
func (c *Client) Deploy(ctx context.Context, name string, spec any, artifact string, dryRun bool) (*Deployment, error) {
	q := url.Values{}
	if dryRun {
		q.Set("dryRun", "true")
	}
	var d Deployment
	return &d, c.do(ctx, request{
		method: http.MethodPost, path: functionPath(name, "versions"), query: q,
		json: map[string]any{"spec": spec, "artifact": artifact},
	}, &d)
}

// Summary is a function with its live version.
type Summary struct {
	Function bawn.Function `json:"function"`
	Live     bawn.Version  `json:"live"`
}

// Functions lists the functions the key may see, by name.
func (c *Client) Functions(ctx context.Context) ([]Summary, error) {
	var out struct {
		Functions []Summary `json:"functions"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: "/v1/functions"}, &out)
	return out.Functions, err
}

// FunctionDetail is a function and the version that was asked for.
type FunctionDetail struct {
	Function  bawn.Function `json:"function"`
	Version   bawn.Version  `json:"version"`
	SPIFFE    string        `json:"spiffe"`    // derived from where the version is
	Retention Retention     `json:"retention"` // of log lines
}

// Function returns a function and one of its versions: the one that qualifier
// (a number, an alias, or "" for live) means.
func (c *Client) Function(ctx context.Context, name, qualifier string) (*FunctionDetail, error) {
	var out FunctionDetail
	return &out, c.do(ctx, request{method: http.MethodGet, path: functionPath(name), query: qualifierQuery(qualifier)}, &out)
}

// Diff is what one version changes against another.
type Diff struct {
	Function string   `json:"function"`
	Old      int      `json:"old"`
	New      int      `json:"new"`
	Changes  []Change `json:"changes"`
}

// Diff says what the version new (a number, an alias, or "" for live) changes
// against old.
func (c *Client) Diff(ctx context.Context, name, old, new string) (*Diff, error) {
	var out Diff
	return &out, c.do(ctx, request{method: http.MethodGet, path: functionPath(name, "diff"), query: url.Values{"old": {old}, "new": {new}}}, &out)
}

// Versions lists a function's versions, newest first.
func (c *Client) Versions(ctx context.Context, name string) ([]bawn.Version, error) {
	var out struct {
		Versions []bawn.Version `json:"versions"`
	}
	err := c.do(ctx, request{method: http.MethodGet, path: functionPath(name, "versions")}, &out)
	return out.Versions, err
}

// Remove removes a function with all its versions.
func (c *Client) Remove(ctx context.Context, name string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: functionPath(name)}, nil)
}

// SetAlias points an alias at a version.
func (c *Client) SetAlias(ctx context.Context, name, alias string, version int) error {
	return c.do(ctx, request{
		method: http.MethodPut, path: functionPath(name, "aliases", alias), json: map[string]any{"version": version},
	}, nil)
}

// Rollback moves live to version to, or, if to is 0, to the version that was
// live before. It returns where live was and where it is.
func (c *Client) Rollback(ctx context.Context, name string, to int) (from, now int, err error) {
	var out struct {
		From int `json:"from"`
		To   int `json:"to"`
	}
	err = c.do(ctx, request{method: http.MethodPost, path: functionPath(name, "rollback"), json: map[string]any{"to": to}}, &out)
	return out.From, out.To, err
}

// Invocation is the answer to a call.
type Invocation struct {
	ID            string
	Version       int
	ContentType   string
	FunctionError string        // "" unless the function failed; then Body holds the error document
	Body          io.ReadCloser // the caller closes it
}

// Invoke calls a function by name. event is JSON; an empty one stands for {}.
// A function that fails is not an error here: see [Invocation.FunctionError].
func (c *Client) Invoke(ctx context.Context, name, qualifier string, event []byte) (*Invocation, error) {
	res, err := c.send(ctx, request{
		method: http.MethodPost, path: functionPath(name, "invocations"), query: qualifierQuery(qualifier),
		body: bytes.NewReader(event), size: int64(len(event)), mime: "application/json",
	})
	if err != nil {
		return nil, err
	}
	version, _ := strconv.Atoi(res.Header.Get("X-Bawn-Version"))
	return &Invocation{
		ID: res.Header.Get("X-Bawn-Invocation"), Version: version, ContentType: res.Header.Get("Content-Type"),
		FunctionError: res.Header.Get("X-Bawn-Function-Error"), Body: &invocationBody{c: c, ctx: ctx, res: res},
	}, nil
}

// invocationBody reads a result and turns a connection that broke into a
// *bawn.Error, so that half a stream is not taken for the whole.
type invocationBody struct {
	c   *Client
	ctx context.Context
	res *http.Response
}

func (b *invocationBody) Read(p []byte) (int, error) {
	n, err := b.res.Body.Read(p)
	if err == io.EOF {
		if b.res.Trailer.Get("X-Bawn-Function-Error") != "" {
			return n, bawn.Errorf(bawn.CodeFunctionError, "client", "the function failed while streaming").
				WithFix("read its log with `bawn logs`")
		}
		return n, err
	}
	if err != nil {
		return n, b.c.unreachable(b.ctx, err)
	}
	return n, nil
}

func (b *invocationBody) Close() error { return b.res.Body.Close() }

// Perimeter is what the kernel enforces for the live instances of a version.
type Perimeter struct {
	Version   bawn.Version    `json:"version"`
	Instances []bawn.Instance `json:"instances"` // none if none lives and the key may not have one started
	Retention Retention       `json:"retention"` // of log lines
}

// Perimeter returns the compiled perimeter of a version and, for each of its
// instances, what was read from the kernel.
func (c *Client) Perimeter(ctx context.Context, name, qualifier string) (*Perimeter, error) {
	var out Perimeter
	return &out, c.do(ctx, request{method: http.MethodGet, path: functionPath(name, "perimeter"), query: qualifierQuery(qualifier)}, &out)
}

// Runtime is one runtime and whether the node has it.
type Runtime struct {
	Runtime bawn.Runtime `json:"runtime"`
	Found   string       `json:"found,omitempty"`   // the program and its version
	Missing string       `json:"missing,omitempty"` // why not, and how to get it
}

// Doctor is what a node's host can enforce and run.
type Doctor struct {
	Capabilities []bawn.Capability `json:"capabilities"`
	Runtimes     []Runtime         `json:"runtimes"`
	State        StateCheck        `json:"state"`
}

// StateCheck is what a check of the node's stored state found.
type StateCheck struct {
	Tables int      `json:"tables"`
	Rows   int      `json:"rows"`
	Root   string   `json:"root"` // of the Merkle tree over all rows
	Damage []Damage `json:"damage"`
	Fix    string   `json:"fix,omitempty"` // the way out of damage
}

// Damage is something stored that is not as its signed manifest says.
type Damage struct {
	Table   string `json:"table"`
	Key     string `json:"key,omitempty"` // empty if it concerns the table as a whole
	Problem string `json:"problem"`
	Refused bool   `json:"refused"` // if not, the node goes on with what it has in memory
}

// Doctor returns what the node's host can enforce, as measured at its start.
func (c *Client) Doctor(ctx context.Context) (*Doctor, error) {
	var out Doctor
	return &out, c.do(ctx, request{method: http.MethodGet, path: "/v1/doctor"}, &out)
}

func functionPath(name string, more ...string) string {
	p := "/v1/functions/" + url.PathEscape(name)
	for _, m := range more {
		p += "/" + url.PathEscape(m)
	}
	return p
}

func qualifierQuery(q string) url.Values {
	if q == "" {
		return nil
	}
	return url.Values{"qualifier": {q}}
}

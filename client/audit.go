package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"bawn.dev/bawn"
)

// Audit says how it is with a node's audit log.
type Audit struct {
	Origin     string    `json:"origin"`
	Key        string    `json:"key"`        // the log's public key: NAME+HASH+KEY
	Size       int64     `json:"size"`       // entries in the newest checkpoint
	Next       int64     `json:"next"`       // entries, those included that are in none yet
	First      int64     `json:"first"`      // the oldest that was not pruned
	Checkpoint string    `json:"checkpoint"` // the newest, signed
	Truncated  int64     `json:"truncated"`  // records that lost text since the start
	Witnesses  []Witness `json:"witnesses"`
}

// Witness says how it is with one witness.
type Witness struct {
	Name   string    `json:"name"`
	URL    string    `json:"url"`
	OK     bool      `json:"ok"`
	Size   int64     `json:"size"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
}

// Audit asks how it is with the audit log.
func (c *Client) Audit(ctx context.Context) (*Audit, error) {
	var out Audit
	return &out, c.do(ctx, request{method: http.MethodGet, path: "/v1/audit"}, &out)
}

// AuditEntry is a record with the proof that it is in the log.
type AuditEntry struct {
	Record  bawn.Record `json:"record"`
	Index   int64       `json:"index"`
	Receipt string      `json:"receipt"`
}

// AuditEntry returns a record by its index, its id or that of its invocation.
// Whoever made an invocation may have the one of it.
func (c *Client) AuditEntry(ctx context.Context, id string) (*AuditEntry, error) {
	var out AuditEntry
	return &out, c.do(ctx, request{method: http.MethodGet, path: "/v1/audit/entries/" + url.PathEscape(id)}, &out)
}

// maxAuditFile bounds a file of the log: 256 entries of at most 64 KiB.
const maxAuditFile = 17 << 20

// AuditFile returns a file of the log's tiles.
func (c *Client) AuditFile(ctx context.Context, path string) ([]byte, error) {
	res, err := c.send(ctx, request{method: http.MethodGet, path: "/v1/audit/file", query: url.Values{"path": {path}}})
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAuditFile+1))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if len(data) > maxAuditFile {
		return nil, bawn.Errorf(bawn.CodeTooLarge, "client", "the node's answer has more than %d bytes", maxAuditFile)
	}
	return data, nil
}

package client

import (
	"context"
	"io"
	"net/http"

	"bawn.dev/bawn"
)

// NewBackup says how a backup is encrypted: to recipients, or with a passphrase.
type NewBackup struct {
	Recipients []string `json:"recipients,omitempty"` // age1…
	Passphrase string   `json:"passphrase,omitempty"`
}

// CreateBackup has the node write a backup of the installation to w, encrypted, and
// returns how many bytes it has. After an error what was written is of no use.
func (c *Client) CreateBackup(ctx context.Context, b NewBackup, w io.Writer) (int64, error) {
	res, err := c.send(ctx, request{method: http.MethodPost, path: "/v1/backups", json: b})
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	n, err := io.Copy(w, res.Body)
	if err != nil {
		return n, bawn.Wrap(err, bawn.CodeUnavailable, "client", "the backup broke off after %d bytes", n).
			WithFix("try again; the node's log says why if it was the node")
	}
	return n, nil
}

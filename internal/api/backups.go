package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// NewBackup says how a backup is to be encrypted: one of the two.
type NewBackup struct {
	Recipients []string `json:"recipients,omitempty" maxItems:"20" doc:"age recipients, of which each can open the backup: age1…"`
	Passphrase string   `json:"passphrase,omitempty" maxLength:"1024" doc:"at least 12 characters"`
}

type createBackupInput struct{ Body NewBackup }

// createBackup streams a backup. An answer that is cut off is of no use, and cannot
// be taken for a whole one.
func (a *api) createBackup(ctx context.Context, in *createBackupInput) (*huma.StreamResponse, error) {
	b, err := a.Control.NewBackup(ctx, principal(ctx), in.Body.Recipients, in.Body.Passphrase)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", "application/octet-stream")
		if err := b.Write(ctx, flushing{w}); err != nil {
			a.Log.WarnContext(ctx, "a backup was cut off", "error", err)
			panic(http.ErrAbortHandler)
		}
	}}, nil
}

// flushing passes on each piece as it comes, so that a slow backup shows life.
type flushing struct{ http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return n, err
}

package api

import (
	"context"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/control"
)

type auditOutput struct{ Body control.AuditState }

func (a *api) audit(ctx context.Context, _ *none) (*auditOutput, error) {
	s, err := a.Control.AuditState(ctx, principal(ctx))
	s.Witnesses = orEmpty(s.Witnesses)
	return &auditOutput{s}, err
}

type auditEntryInput struct {
	ID string `path:"id" maxLength:"64" doc:"an index, a record's id, or an invocation's id"`
}

// AuditEntry is a record with the proof that it is in the log.
type AuditEntry struct {
	Record  bawn.Record `json:"record"`
	Index   int64       `json:"index"`
	Receipt string      `json:"receipt" doc:"a C2SP tlog-proof with the entry as extra data, for bawn audit verify --receipt"`
}

type auditEntryOutput struct{ Body AuditEntry }

func (a *api) auditEntry(ctx context.Context, in *auditEntryInput) (*auditEntryOutput, error) {
	r, receipt, err := a.Control.AuditEntry(ctx, principal(ctx), in.ID)
	return &auditEntryOutput{AuditEntry{r, r.Index, string(receipt)}}, err
}

type auditFileInput struct {
	Path string `query:"path" maxLength:"256" doc:"checkpoint, checkpoint.cosigned, tile/LEVEL/… or tile/entries/…, as C2SP tlog-tiles has them"`
}

type auditFileOutput struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

func (a *api) auditFile(ctx context.Context, in *auditFileInput) (*auditFileOutput, error) {
	b, err := a.Control.AuditFile(ctx, principal(ctx), in.Path)
	return &auditFileOutput{"application/octet-stream", b}, err
}

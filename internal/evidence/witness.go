package evidence

import (
	"context"
	"errors"
	"sync"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence/tlog"
)

// watchEvery is how often the newest checkpoint is shown to the witnesses.
const watchEvery = time.Second

// WitnessState says how it is with one witness.
type WitnessState struct {
	Name   string    `json:"name"`
	URL    string    `json:"url"`
	OK     bool      `json:"ok" doc:"it has signed the newest checkpoint that it was shown"`
	Size   int64     `json:"size" doc:"entries in the newest checkpoint that it has signed"`
	Since  time.Time `json:"since,omitzero" doc:"since when it is so"`
	Reason string    `json:"reason,omitempty" doc:"why it does not sign"`
}

// witnesses shows checkpoints to witnesses and keeps their signatures.
type witnesses struct {
	mu     sync.Mutex
	states []WitnessState
}

// Witnesses says how it is with each witness, in the order of the config.
func (l *Log) Witnesses() []WitnessState {
	l.watched.mu.Lock()
	defer l.watched.mu.Unlock()
	return append([]WitnessState(nil), l.watched.states...)
}

// watch shows each new checkpoint to every witness. One that does not answer
// stops nothing; that it does not is a record, once, and so is that it does
// again.
func (l *Log) watch(ctx context.Context) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		l.show(ctx)
	}
}

// show shows the newest checkpoint to those who have not signed it.
func (l *Log) show(ctx context.Context) {
	c := l.Checkpoint()
	states := l.Witnesses()
	var mu sync.Mutex
	var lines []byte
	var all sync.WaitGroup
	for i, w := range l.cfg.Witnesses {
		before := states[i]
		if before.OK && before.Size == c.Size {
			continue
		}
		all.Go(func() {
			line, err := l.Submit(ctx, w, c, before.Size)
			if ctx.Err() != nil {
				return
			}
			now := before
			now.OK, now.Reason = err == nil, ""
			if err == nil {
				now.Size = c.Size
				mu.Lock()
				lines = append(lines, line...)
				mu.Unlock()
			} else {
				now.Reason = "it does not answer"
				var no *tlog.Refusal
				if errors.As(err, &no) {
					now.Reason = no.Reason
				}
			}
			changed := now.OK != before.OK || now.Reason != before.Reason
			if changed {
				now.Since = time.Now()
			}
			l.watched.mu.Lock()
			l.watched.states[i] = now
			l.watched.mu.Unlock()
			if changed {
				l.witnessed(ctx, now, err)
			}
		})
	}
	all.Wait()
	if len(lines) > 0 {
		if err := l.Cosigned(c, lines); err != nil {
			l.cfg.Log.Warn("a cosigned checkpoint cannot be kept", "error", err)
		}
	}
}

// witnessed records that a witness has begun or ceased to sign.
func (l *Log) witnessed(ctx context.Context, s WitnessState, cause error) {
	r := bawn.Record{Kind: bawn.KindNode, Tenant: bawn.DefaultTenant, Action: "audit.witness", Outcome: "ok", Control: "G3",
		Reason: "the witness signs the audit log's checkpoints", Detail: map[string]string{"witness": s.Name, "url": s.URL}}
	if !s.OK {
		r.Outcome, r.Reason = "error", "the witness does not sign the audit log's checkpoints: "+s.Reason
		l.cfg.Log.Warn("a witness does not sign the audit log's checkpoints", "witness", s.Name, "reason", s.Reason, "error", cause)
	}
	if err := l.Append(ctx, r); err != nil {
		l.cfg.Log.Warn("what a witness did is not recorded", "error", err)
	}
}

package control

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/secret"
)

const (
	maxLabelSettings = 100 // of one tenant
	tendLogsEvery    = 10 * time.Minute
)

// Label is what a tenant has settled for data with a label.
type Label struct {
	Name         string        `json:"name"`
	LogRetention time.Duration `json:"logRetention" doc:"nanoseconds for which log lines of functions with the label are kept at most"`
	Functions    []string      `json:"functions" nullable:"false" doc:"whose live version has the label, sorted"`
	UpdatedAt    time.Time     `json:"updatedAt"`
	UpdatedBy    string        `json:"updatedBy"`
}

// labelRow is a Label as it is stored, under tenant.name.
type labelRow struct {
	Tenant       string        `json:"tenant"`
	Name         string        `json:"name"`
	LogRetention time.Duration `json:"logRetention"`
	UpdatedAt    time.Time     `json:"updatedAt"`
	UpdatedBy    string        `json:"updatedBy"`
}

// label is what a row says to p.
func (c *Control) label(p bawn.Principal, row labelRow) Label {
	l := Label{Name: row.Name, LogRetention: row.LogRetention, Functions: []string{}, UpdatedAt: row.UpdatedAt, UpdatedBy: row.UpdatedBy}
	for _, v := range c.liveVersions(row.Tenant, nil) {
		if concerns(p, v.Function) && slices.Contains(v.Labels, row.Name) {
			l.Functions = append(l.Functions, v.Function)
		}
	}
	slices.Sort(l.Functions)
	return l
}

// Labels lists what the principal's tenant has settled for labels, by name.
func (c *Control) Labels(ctx context.Context, p bawn.Principal) ([]Label, error) {
	if err := c.onGuardrails(ctx, p, false, false); err != nil {
		return nil, err
	}
	var all []Label
	for _, row := range c.labels.All(p.Tenant + ".") {
		all = append(all, c.label(p, row))
	}
	return all, nil
}

func noLabel(name string) *bawn.Error {
	return bawn.Errorf(bawn.CodeNotFound, "control.label", "nothing is settled for a label %.80q", name).WithFix("bawn label ls lists those for which something is")
}

// SetLabel settles for how long log lines of functions with a label are kept at
// most: those written from now on, and those that are there. It is a change of
// policy, and for who may set guardrails: it can end lines that somebody might look
// for.
func (c *Control) SetLabel(ctx context.Context, p bawn.Principal, name string, retention time.Duration) (l Label, err error) {
	if err := c.onGuardrails(ctx, p, false, true); err != nil {
		return l, err
	}
	if err := bawn.CheckName("label", name); err != nil {
		return l, err
	}
	if retention < bawn.MinLogRetention || retention > bawn.MaxLogRetention {
		return l, bawn.Errorf(bawn.CodeInvalid, "control.label", "a retention of %s is not between %s and %s", retention, bawn.MinLogRetention, bawn.MaxLogRetention).
			WithFix("name one such as 24h or 30d")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old, rev, had, err := c.labels.Find(functionKey(p.Tenant, name))
	if err != nil {
		return l, err
	}
	if !had {
		if n := c.settings(p.Tenant); n >= maxLabelSettings {
			return l, bawn.Errorf(bawn.CodeTooLarge, "control.label", "the tenant has settled something for %d labels, no more are allowed", n).
				WithFix("bawn label rm takes one away")
		}
	}
	row := labelRow{Tenant: p.Tenant, Name: name, LogRetention: retention, UpdatedAt: c.cfg.Now().UTC(), UpdatedBy: p.String()}
	err = c.change(ctx, p, bawn.Record{Action: "label.set", Detail: resettled(name, old.LogRetention, retention)}, func(ctx context.Context) error {
		var err error
		if had {
			_, err = c.labels.Update(ctx, functionKey(p.Tenant, name), row, rev)
		} else {
			_, err = c.labels.Create(ctx, functionKey(p.Tenant, name), row)
		}
		return err
	})
	return c.label(p, row), err
}

// RemoveLabel takes back what is settled for a label: what manifests say counts
// again, for lines written from then on.
func (c *Control) RemoveLabel(ctx context.Context, p bawn.Principal, name string) error {
	if err := c.onGuardrails(ctx, p, false, true); err != nil {
		return err
	}
	if err := bawn.CheckName("label", name); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old, _, ok, err := c.labels.Find(functionKey(p.Tenant, name))
	if err != nil {
		return err
	}
	if !ok {
		return noLabel(name)
	}
	return c.change(ctx, p, bawn.Record{Action: "label.rm", Detail: resettled(name, old.LogRetention, 0)}, func(ctx context.Context) error {
		return remove(ctx, c.labels, functionKey(p.Tenant, name))
	})
}

// resettled is what the evidence keeps of a change of what is settled for a label.
func resettled(name string, old, now time.Duration) map[string]string {
	m := map[string]string{"label": name}
	if old > 0 {
		m["before"] = old.String()
	}
	if now > 0 {
		m["after"] = now.String()
	}
	return m
}

// Retention is for how long log lines of a version are kept.
type Retention struct {
	Logs  time.Duration `json:"logs" doc:"nanoseconds"`
	Label string        `json:"label,omitempty" doc:"the label of the function that says so; empty: its manifest does"`
}

// Retention returns for how long log lines of v are kept: for as long as the
// manifest says, or for as long as is settled for one of its labels if that is
// shorter. It reads memory only.
func (c *Control) Retention(v *bawn.Version) Retention {
	r := Retention{Logs: v.Perimeter.Evidence.LogRetention}
	if len(v.Labels) == 0 || c.labels.Len() == 0 {
		return r
	}
	for _, l := range v.Labels {
		if row, _, ok := c.labels.Get(functionKey(v.Tenant, l)); ok && row.LogRetention < r.Logs {
			r.Logs, r.Label = row.LogRetention, l
		}
	}
	return r
}

// LabelsSettled reports whether anything is settled for labels: if not, Retention is
// what manifests say.
func (c *Control) LabelsSettled() bool { return c.labels.Len() > 0 }

// TendLogs drops the lines that labels let nobody keep any longer, and that were
// written when they did: when it begins, when something else is settled, and every
// ten minutes, until ctx ends. Lines written since go by themselves.
func (c *Control) TendLogs(ctx context.Context) {
	wake := make(chan struct{}, 1)
	defer c.labels.Watch(func(string, *labelRow) {
		select {
		case wake <- struct{}{}:
		default:
		}
	})()
	every := time.NewTicker(tendLogsEvery)
	defer every.Stop()
	seen := map[string]uint64{}
	for {
		if err := c.clearLogs(ctx, seen); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("log lines that labels do not let be kept are still there; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
			clear(seen) // what is kept may be kept no longer
		case <-every.C:
		}
	}
}

// clearLogs is one round of TendLogs. seen holds up to where a function's lines need
// no second look.
func (c *Control) clearLogs(ctx context.Context, seen map[string]uint64) error {
	if !c.LabelsSettled() {
		return nil
	}
	keep := map[string]map[int]time.Duration{}
	for _, v := range c.versions.All("") {
		if r := c.Retention(&v); r.Label != "" {
			key := functionKey(v.Tenant, v.Function)
			if keep[key] == nil {
				keep[key] = map[int]time.Duration{}
			}
			keep[key][v.Number] = r.Logs
		}
	}
	for _, key := range slices.Sorted(maps.Keys(keep)) {
		tenant, function, _ := strings.Cut(key, ".")
		upTo, n, err := c.cfg.Logs.Expire(ctx, tenant, function, keep[key], c.cfg.Now(), seen[key])
		if n > 0 {
			c.cfg.Log.Info("dropped log lines that labels do not let be kept", "function", key, "messages", n)
		}
		if err != nil {
			return err
		}
		seen[key] = upTo
	}
	return nil
}

// SetSecretLabels gives a secret other labels, in the place of all that it has. Flow
// guardrails are asked as for a new one; control E9. Who may grant a secret may say
// what it opens.
func (c *Control) SetSecretLabels(ctx context.Context, p bawn.Principal, name string, labels []string) (s bawn.Secret, err error) {
	if err := c.onSecret(ctx, p, name); err != nil {
		return s, err
	}
	if err := secret.CheckLabels(labels); err != nil {
		return s, err
	}
	c.mu.Lock() // what is deployed meanwhile must know of the labels
	defer c.mu.Unlock()
	old, err := c.cfg.Vault.Get(p.Tenant, name)
	if err != nil {
		return s, err
	}
	labels = slices.Compact(slices.Sorted(slices.Values(labels)))
	what := bawn.Record{Action: "secret.label", Detail: map[string]string{"secret": name, "before": strings.Join(old.Labels, ","), "after": strings.Join(labels, ",")}}
	if refusal := c.checkSecretFlow(p.Tenant, name, labels); refusal != nil {
		return s, c.refused(ctx, p, bawn.Record{Action: what.Action, Control: "E9", Detail: what.Detail}, refusal)
	}
	err = c.change(ctx, p, what, func(ctx context.Context) error {
		s, err = c.cfg.Vault.SetLabels(ctx, p.Tenant, name, labels)
		return err
	})
	return s, err
}

// settings counts the labels that a tenant has settled something for.
func (c *Control) settings(tenant string) (n int) {
	for range c.labels.All(tenant + ".") {
		n++
	}
	return n
}

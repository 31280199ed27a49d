package node

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/secret"
	"bawn.dev/bawn/internal/store"
)

// A redaction takes the values of secrets out of what is kept of the functions that
// use them: records and lines of Bawn's own, whoever writes them. What functions
// print, and what they answer, the interior and the egress see to, which have it in
// parts. Controls E5 and D7. It is safe for concurrent use.
type redaction struct {
	of       func(*bawn.Version) *secret.Redactor      // nil until there is a vault
	versions atomic.Pointer[store.Table[bawn.Version]] // nil until functions can run
	settled  func() bool                               // whether there is anything for kept to say; nil: never
	kept     func(*bawn.Version) time.Duration         // for how long lines of a version are kept

	mu     sync.RWMutex
	trials map[string]*bawn.Version // being tested, and not in the table; by its keys
}

// find returns what takes the secrets of a version out of text, nil if it has none.
func (r *redaction) find(tenant, function string, number int) *secret.Redactor {
	v := r.look(tenant, function, number)
	if v == nil {
		return nil
	}
	return r.version(v)
}

// look returns a version that is deployed or being tested, nil if there is none.
func (r *redaction) look(tenant, function string, number int) *bawn.Version {
	versions := r.versions.Load()
	if versions == nil || function == "" || number == 0 {
		return nil
	}
	key := make([]byte, 0, 160)
	key = append(append(append(append(key, tenant...), '.'), function...), '.')
	key = strconv.AppendInt(key, int64(number), 10)
	if v := versions.Peek(key); v != nil {
		return v
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.trials[string(key)]
}

// version is the same for a version at hand.
func (r *redaction) version(v *bawn.Version) *secret.Redactor {
	if r.of == nil || !v.Perimeter.Egress.HasSecrets() {
		return nil
	}
	return r.of(v)
}

// record is an evidence.Config.Redact. Beside the function that the record is about,
// it minds those by whose doing it came to be: one can call a name that is a secret.
func (r *redaction) record(rec *bawn.Record) {
	r.find(rec.Tenant, rec.Function, rec.Version).Record(rec)
	if ref, ok := strings.CutPrefix(rec.Principal, bawn.PrincipalFunction+":"); ok {
		r.by(ref, rec)
	}
	for ref := range strings.FieldsSeq(rec.Detail["chain"]) {
		r.by(ref, rec)
	}
}

// by takes out what ref, NAME@VERSION, may have put into a record.
func (r *redaction) by(ref string, rec *bawn.Record) {
	name, version, _ := strings.Cut(ref, "@")
	if number, err := strconv.Atoi(version); err == nil && (name != rec.Function || number != rec.Version) {
		of := r.find(rec.Tenant, name, number)
		of.Record(rec)
		rec.Function = of.String(rec.Function)
	}
}

// lines returns write with the lines of Bawn's own redacted, and with each line kept
// for no longer than the labels of its function let it be.
func (r *redaction) lines(write func(bawn.LogLine, time.Duration)) func(bawn.LogLine, time.Duration) {
	return func(l bawn.LogLine, retention time.Duration) {
		if l.Platform {
			l.Text = r.find(l.Tenant, l.Function, l.Version).String(l.Text)
		}
		if r.settled != nil && r.settled() {
			if v := r.look(l.Tenant, l.Function, l.Version); v != nil {
				retention = min(retention, r.kept(v))
			}
		}
		write(l, retention)
	}
}

// trial makes v known until the function that it returns is called.
func (r *redaction) trial(v *bawn.Version) (end func()) {
	key := v.Tenant + "." + v.Function + "." + strconv.Itoa(v.Number)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trials == nil {
		r.trials = map[string]*bawn.Version{}
	}
	r.trials[key] = v
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.trials[key] == v {
			delete(r.trials, key)
		}
	}
}

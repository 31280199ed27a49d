package identity

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"bawn.dev/bawn"
)

const (
	maxRevocations   = 10000 // of a tenant
	maxRevokedName   = 512
	maxRevokedReason = 200
)

// revocationOf is under what a revocation is looked up.
func revocationOf(tenant, principal string) string { return tenant + "/" + principal }

// ended reports whether what p showed was revoked. skew is by how much the clock
// of who issued it may be ahead: what might have been issued before counts as if
// it was.
func (i *issuers) ended(p *bawn.Principal, issuer string, skew time.Duration) bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	for _, who := range [...]string{p.Kind + ":" + p.ID, "issuer:" + issuer} {
		if r, ok := i.ends[revocationOf(p.Tenant, who)]; ok && (r.Barred || !p.Issued.After(r.Before.Add(skew))) {
			return true
		}
	}
	return false
}

// Revocations lists what was revoked in a tenant, the newest first.
func (a *Authenticator) Revocations(tenant string) []bawn.Revocation {
	all := []bawn.Revocation{}
	for _, r := range a.issuers.revoked.All(tenant + ".") {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b bawn.Revocation) int { return b.Before.Compare(a.Before) })
	return all
}

// Revoke ends everything that was issued to want.Principal of want.Tenant until
// now, and with want.Barred what will be. From its return on it is refused, and
// not current any more. Other fields but Reason and CreatedBy are not looked at. A
// principal needs not have been seen before.
func (a *Authenticator) Revoke(ctx context.Context, want bawn.Revocation) (bawn.Revocation, error) {
	const op = "identity.revoke"
	if err := a.CheckRevocation(want); err != nil {
		return bawn.Revocation{}, err
	}
	i := a.issuers
	i.making.Lock()
	defer i.making.Unlock()
	sum := sha256.Sum256([]byte(want.Principal))
	want.ID, want.Before = hex.EncodeToString(sum[:8]), i.now().UTC()
	key := want.Tenant + "." + want.ID
	if old, rev, ok := i.revoked.Get(key); ok {
		if old.Principal != want.Principal {
			return bawn.Revocation{}, bawn.Errorf(bawn.CodeConflict, op, "another revocation has the same id").WithFix("lift revocation %s first", old.ID)
		}
		_, err := i.revoked.Update(ctx, key, want, rev)
		return want, err
	}
	n := 0
	for key, r := range i.revoked.All(want.Tenant + ".") {
		n++
		// Nothing that a user was issued by then can still be good.
		if n >= maxRevocations/2 && !r.Barred && strings.HasPrefix(r.Principal, "user:") && i.now().Sub(r.Before) > maxTokenLife+2*maxClockSkew {
			if _, rev, ok := i.revoked.Get(key); ok && i.revoked.Delete(ctx, key, rev) == nil {
				n--
			}
		}
	}
	if n >= maxRevocations {
		return bawn.Revocation{}, bawn.Errorf(bawn.CodeTooLarge, op, "the tenant has %d revocations, no more are allowed", n).
			WithFix("lift old ones, or revoke the whole issuer")
	}
	_, err := i.revoked.Create(ctx, key, want)
	return want, err
}

// CheckRevocation reports what is wrong with want.
func (*Authenticator) CheckRevocation(want bawn.Revocation) error {
	const op = "identity.revoke"
	if err := bawn.CheckName("tenant", want.Tenant); err != nil {
		return err
	}
	kind, id, _ := strings.Cut(want.Principal, ":")
	name, subject, more := strings.Cut(id, ":")
	ok := len(want.Principal) <= maxRevokedName && !strings.ContainsFunc(want.Principal, notPrintable)
	switch kind {
	case bawn.PrincipalUser:
		ok = ok && bawn.CheckName("issuer", name) == nil && more && subject != ""
	case bawn.PrincipalCert:
		ok = ok && id != ""
	case "issuer":
		ok = ok && bawn.CheckName("issuer", id) == nil
	default:
		ok = false
	}
	if !ok {
		return bawn.Errorf(bawn.CodeInvalid, op, "%.80q is nobody whose credentials can be revoked", want.Principal).
			WithFix("write user:ISSUER:SUBJECT, cert:ID or issuer:NAME as the events show it; a key is ended by bawn key revoke")
	}
	if len(want.Reason) > maxRevokedReason {
		return bawn.Errorf(bawn.CodeInvalid, op, "the reason has %d bytes, at most %d are allowed", len(want.Reason), maxRevokedReason).WithFix("say it shorter")
	}
	return nil
}

// Lift takes a revocation back: what it ended and has not expired is good again.
func (a *Authenticator) Lift(ctx context.Context, tenant, id string) error {
	none := bawn.Errorf(bawn.CodeNotFound, "identity.revoke", "there is no revocation %.40q", id).WithFix("bawn revoke --list shows what was revoked")
	if bawn.CheckName("tenant", tenant) != nil || len(id) != 16 || strings.Trim(id, "0123456789abcdef") != "" {
		return none
	}
	_, rev, ok := a.issuers.revoked.Get(tenant + "." + id)
	if !ok {
		return none
	}
	return a.issuers.revoked.Delete(ctx, tenant+"."+id, rev)
}

package control

import (
	"context"
	"testing"

	"bawn.dev/bawn"
)

func corp(roles ...bawn.Role) bawn.Issuer {
	return bawn.Issuer{Name: "corp", Kind: bawn.IssuerOIDC, URL: "https://login.example.org", ClientID: "bawn", Roles: map[string][]bawn.Role{"*": roles}}
}

// Who is known in a tenant is for its own administrator to say, and its own log shows
// who did: an operator names no other tenant; control J1.
func TestJ1IdentitiesAreTheTenantsOwn(t *testing.T) {
	p, ctx := open(t), context.Background()
	want := corp(bawn.RoleAdmin)
	want.Tenant = "acme"
	if _, err := p.PutIssuer(ctx, operator, want, false); err != nil {
		t.Fatal(err)
	}
	boss := who("acme", bawn.RoleAdmin)
	if list, err := p.Issuers(ctx, boss); err != nil || len(list) != 0 {
		t.Errorf("an operator made an issuer of another tenant: %+v %v", list, err)
	}
	made, err := p.Revoke(ctx, operator, bawn.Revocation{Tenant: "acme", Principal: "cert:spiffe://example.org/x"})
	if err != nil || made.Tenant != "main" {
		t.Errorf("%+v %v", made, err)
	}
	if list, err := p.Revocations(ctx, boss); err != nil || len(list) != 0 {
		t.Errorf("an operator revoked in another tenant: %+v %v", list, err)
	}
	code1(t, "removing another's", p.RemoveIssuer(ctx, boss, "corp"), bawn.CodeNotFound, "")
	code1(t, "lifting another's", p.Lift(ctx, boss, made.ID), bawn.CodeNotFound, "")
	if r := p.last("issuer.create", "ok"); r.Tenant != "main" || r.Principal != operator.String() {
		t.Errorf("recorded %+v", r)
	}
}

// TestA8Issuers lets nobody have others vouched for as what they are not, and records
// who tried.
func TestA8Issuers(t *testing.T) {
	p, ctx := open(t), context.Background()
	private, ca := corp(bawn.RoleViewer), corp(bawn.RoleViewer)
	private.Private, ca.Kind = true, bawn.IssuerCA
	for _, who := range []bawn.Principal{admin, who("acme", bawn.RoleAdmin)} {
		for i, want := range []bawn.Issuer{private, ca, corp(bawn.RoleOperator)} {
			_, err := p.PutIssuer(ctx, who, want, false)
			code1(t, who.String(), err, bawn.CodeDenied, "for an operator")
			if r := p.lastOf(who.Tenant, "issuer.create", "deny"); r.Principal != who.String() || r.Control != "A8" || r.Detail["after"] != describe(want) {
				t.Errorf("%d: recorded %+v", i, r)
			}
		}
	}
	if _, err := p.PutIssuer(ctx, admin, corp(bawn.RoleAdmin), false); err != nil {
		t.Error(err)
	}
}

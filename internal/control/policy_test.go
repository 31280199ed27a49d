package control

import (
	"strings"
	"testing"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/policy"
)

// A change of a guardrail is recorded before and after it is made, with what was
// and what is; control G13.
func TestG13Guardrail(t *testing.T) {
	p := open(t)
	one, two := "forbid (principal is Bawn::Anonymous, action, resource);", "forbid (principal is Bawn::Cert, action, resource);"
	for _, text := range []string{one, two} {
		if _, err := p.SetGuardrail(t.Context(), admin, "g", text, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.RemoveGuardrail(t.Context(), admin, "g", false); err != nil {
		t.Fatal(err)
	}
	var got []bawn.Record
	if err := p.log.Read(t.Context(), evidence.Query{Kinds: []bawn.RecordKind{bawn.KindChange}}, func(r bawn.Record) error {
		if strings.HasPrefix(r.Action, "policy.") {
			got = append(got, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := [][3]string{{"policy.set", "", policy.Hash(one)}, {"policy.set", policy.Hash(one), policy.Hash(two)}, {"policy.rm", policy.Hash(two), ""}}
	if len(got) != 2*len(want) {
		t.Fatalf("%d records: %+v", len(got), got)
	}
	for i, r := range got {
		w := want[i/2]
		if r.Action != w[0] || r.Detail["before"] != w[1] || r.Detail["after"] != w[2] || r.Outcome != []string{"allow", "ok"}[i%2] || r.Detail["diff"] == "" {
			t.Errorf("%d: %+v", i, r)
		}
	}
}

// Guardrails are for who holds the right, each tenant's for itself, the
// installation's for operators; control A10.
func TestA10Guardrails(t *testing.T) {
	p := open(t)
	text := "forbid (principal is Bawn::Cert, action, resource);"
	as := func(tenant string, r bawn.Role) bawn.Principal {
		return bawn.Principal{Kind: "key", ID: "k", Tenant: tenant, Roles: []bawn.Role{r}}
	}
	for _, r := range append(bawn.Roles(), "ops") {
		for _, installation := range []bool{false, true} {
			_, err := p.SetGuardrail(t.Context(), as("main", r), "g", text, installation)
			may := r == bawn.RoleOperator || !installation && (r == bawn.RoleAdmin || r == bawn.RolePolicyAdmin)
			if may != (err == nil) || err != nil && bawn.ErrorCode(err) != bawn.CodeDenied {
				t.Errorf("%s, installation %v: %v", r, installation, err)
			}
		}
	}
	if _, _, _, err := p.CreateTenant(t.Context(), as("main", bawn.RoleOperator), "other", bawn.Quota{}); err != nil {
		t.Fatal(err)
	}
	other := as("other", bawn.RoleAdmin)
	if list, err := p.Guardrails(t.Context(), other, false); err != nil || len(list) != 0 {
		t.Errorf("another tenant sees %v, %v", list, err)
	}
	if _, err := p.Guardrail(t.Context(), other, "g", false); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Error(err)
	}
	if _, err := p.Guardrail(t.Context(), as("other", bawn.RoleOperator), "g", true); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("an operator of another tenant: %v", err)
	}
	// What is asked ahead is asked in one's own tenant.
	if _, err := p.Can(t.Context(), other, Question{Principal: "key:nobody", Action: "read", Resource: "-"}); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Error(err)
	}
	if _, err := p.Explain(t.Context(), other, firstRecord(t, p)); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Errorf("another tenant's decision: %v", err)
	}
}

// firstRecord returns the id of a decision in the tenant main.
func firstRecord(t *testing.T, p *plane) (id string) {
	t.Helper()
	if err := p.log.Read(t.Context(), evidence.Query{Tenant: "main", Kinds: []bawn.RecordKind{bawn.KindDecision}}, func(r bawn.Record) error {
		id = r.ID
		return nil
	}); err != nil || id == "" {
		t.Fatal(id, err)
	}
	return id
}

func TestLeads(t *testing.T) {
	for _, c := range []struct {
		route, path string
		want        bool
	}{
		{"/a", "/a", true}, {"/a", "/b", false}, {"/a/{id}", "/a/7", true}, {"/a/{id}", "/a/7/8", false}, {"/a/{id}", "/a", false},
		{"/{p+}", "/a/b", true}, {"/a/{p+}", "/b/c", false}, {"/a/{id}", "/a/{id}", true},
	} {
		if leads(c.route, c.path) != c.want {
			t.Errorf("%s to %s", c.path, c.route)
		}
	}
}

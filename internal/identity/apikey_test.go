package identity

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
	"github.com/google/go-cmp/cmp"
)

func openKeys(t testing.TB, dir string) (*Keys, *store.Store) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	k, err := OpenKeys(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return k, s
}

func wantCode(t testing.TB, err error, code bawn.Code) {
	t.Helper()
	if got := bawn.ErrorCode(err); got != code {
		t.Fatalf("got code %q (%v), want %q", got, err, code)
	}
}

func TestKeys(t *testing.T) {
	dir := t.TempDir()
	k, s := openKeys(t, dir)
	ctx := t.Context()
	secret, key, err := k.Create(ctx, bawn.Key{ID: "mine", Name: "ci", Tenant: "main", Role: bawn.RoleInvoker, Functions: []string{"hello"}, CreatedBy: "key:root"})
	if err != nil {
		t.Fatal(err)
	}
	if key.ID == "mine" || !strings.HasPrefix(secret, "bawn_"+key.ID+"_") {
		t.Fatalf("id %q of secret %q", key.ID, secret)
	}
	want := bawn.Principal{Kind: "key", ID: key.ID, Name: "ci", Tenant: "main", Roles: []bawn.Role{bawn.RoleInvoker}, Functions: []string{"hello"}, Issued: key.CreatedAt}
	who, err := k.Authenticate(secret)
	if d := cmp.Diff(want, who); err != nil || d != "" {
		t.Fatal(err, d)
	}
	_, _, err = k.Create(ctx, bawn.Key{Name: "ci", Tenant: "main", Role: bawn.RoleAdmin})
	wantCode(t, err, bawn.CodeConflict)
	secret2, _, err := k.Create(ctx, bawn.Key{Name: "ci", Tenant: "other", Role: bawn.RoleAdmin})
	if err != nil {
		t.Fatal(err)
	}
	if l := k.List("main"); len(l) != 1 || l[0].Name != "ci" || l[0].CreatedBy != "key:root" {
		t.Fatalf("List: %v", l)
	}
	// The other tenant can neither see nor revoke it.
	wantCode(t, k.Revoke(ctx, "other", key.ID), bawn.CodeNotFound)
	wantCode(t, k.Revoke(ctx, "main", "nope"), bawn.CodeNotFound)
	wantCode(t, k.Revoke(ctx, "", "main."+key.ID), bawn.CodeNotFound)
	s.Close()

	k, s = openKeys(t, dir)
	if _, err := k.Authenticate(secret); err != nil {
		t.Fatal("after a restart:", err)
	}
	if err := k.Revoke(ctx, "main", key.ID); err != nil {
		t.Fatal(err)
	}
	_, err = k.Authenticate(secret)
	wantCode(t, err, bawn.CodeUnauthenticated)
	if _, err := k.Authenticate(secret2); err != nil {
		t.Fatal(err)
	}
	s.Close()
	// Neither secret is anywhere on the disk.
	filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			t.Error(err)
		}
		for _, x := range []string{secret, secret2} {
			if strings.Contains(string(b), x[len(x)-43:]) {
				t.Errorf("a secret is in %s", filepath.Base(p))
			}
		}
		return nil
	})
}

func TestAuthenticateRefuses(t *testing.T) {
	k, _ := openKeys(t, t.TempDir())
	now := time.Now()
	k.now = func() time.Time { return now }
	secret, _, err := k.Create(t.Context(), bawn.Key{Name: "short", Tenant: "main", Role: bawn.RoleViewer, ExpiresAt: now.Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Authenticate(secret); err != nil {
		t.Fatal(err)
	}
	last := secret[len(secret)-1]
	flip := func(i int) string {
		b := []byte(secret)
		if b[i]++; b[i] == '{' || b[i] == ':' || b[i] == '[' || b[i] == '.' || b[i] == '`' {
			b[i] = 'c'
		}
		return string(b)
	}
	texts := map[string]bool{}
	for name, s := range map[string]string{
		"empty": "", "prefix": "bawn_", "other id": flip(7), "other secret": flip(len(secret) - 20), "cut": secret[:len(secret)-1], "longer": secret + "A",
		"space": " " + secret, "line end": secret[:len(secret)-1] + "\n", "upper case id": "bawn_" + strings.ToUpper(secret[5:21]) + secret[21:],
		"unused bits": secret[:len(secret)-1] + string(nextInGroup(last)), "large": strings.Repeat("a", 1<<20), "scheme": "Bearer " + secret,
	} {
		if s == secret {
			continue // an id without letters has no upper case
		}
		who, err := k.Authenticate(s)
		if bawn.ErrorCode(err) != bawn.CodeUnauthenticated || who.Kind != "" {
			t.Errorf("%s: %v %v", name, who, err)
			continue
		}
		texts[err.Error()] = true
	}
	now = now.Add(time.Minute)
	_, err = k.Authenticate(secret)
	wantCode(t, err, bawn.CodeUnauthenticated)
	if texts[err.Error()] = true; len(texts) != 1 {
		t.Fatalf("refusals differ: %v", texts)
	}
	var e *bawn.Error
	if !errors.As(err, &e) || e.Fix == "" {
		t.Fatal("no way out is named")
	}
	// An ended key gives its name free.
	if _, _, err := k.Create(t.Context(), bawn.Key{Name: "short", Tenant: "main", Role: bawn.RoleViewer}); err != nil {
		t.Fatal(err)
	}
}

// nextInGroup returns another character that decodes to the same bytes when
// the unused two bits of the last character are not looked at.
func nextInGroup(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)+1]
}

func TestCreateRefuses(t *testing.T) {
	k, _ := openKeys(t, t.TempDir())
	good := bawn.Key{Name: "a", Tenant: "main", Role: bawn.RoleInvoker}
	for name, change := range map[string]func(*bawn.Key){
		"no name":        func(x *bawn.Key) { x.Name = "" },
		"bad name":       func(x *bawn.Key) { x.Name = "a.b" },
		"no tenant":      func(x *bawn.Key) { x.Tenant = "" },
		"bad tenant":     func(x *bawn.Key) { x.Tenant = "a.>" },
		"no role":        func(x *bawn.Key) { x.Role = "" },
		"bad role":       func(x *bawn.Key) { x.Role = "the root" },
		"bad function":   func(x *bawn.Key) { x.Functions = []string{"*"} },
		"held operator":  func(x *bawn.Key) { x.Role, x.Functions = bawn.RoleOperator, []string{"f"} },
		"their operator": func(x *bawn.Key) { x.Role, x.Tenant = bawn.RoleOperator, "acme" },
		"past":           func(x *bawn.Key) { x.ExpiresAt = time.Now().Add(-time.Second) },
		"long maker":     func(x *bawn.Key) { x.CreatedBy = strings.Repeat("x", 257) },
	} {
		x := good
		change(&x)
		if _, _, err := k.Create(t.Context(), x); bawn.ErrorCode(err) != bawn.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	many := good
	many.Functions = make([]string, 101)
	_, _, err := k.Create(t.Context(), many)
	wantCode(t, err, bawn.CodeTooLarge)
	if n := len(k.List("main")); n != 0 {
		t.Fatalf("%d keys were made", n)
	}
}

// The first administrator's key of a node from before there were operators is
// its operator's; other administrators stay what they are.
func TestFirstKeyIsTheOperators(t *testing.T) {
	k, _ := openKeys(t, t.TempDir())
	for _, test := range []struct {
		key  bawn.Key
		want bawn.Role
	}{
		{bawn.Key{Name: "admin", Tenant: "main", Role: bawn.RoleAdmin, CreatedBy: "node:15597fc76d96"}, bawn.RoleOperator},
		{bawn.Key{Name: "made", Tenant: "main", Role: bawn.RoleAdmin, CreatedBy: "key:0123456789abcdef"}, bawn.RoleAdmin},
		{bawn.Key{Name: "theirs", Tenant: "acme", Role: bawn.RoleAdmin, CreatedBy: "node:15597fc76d96"}, bawn.RoleAdmin},
		{bawn.Key{Name: "looks", Tenant: "main", Role: bawn.RoleViewer, CreatedBy: "node:15597fc76d96"}, bawn.RoleViewer},
	} {
		secret, key, err := k.Create(t.Context(), test.key)
		if err != nil {
			t.Fatal(err)
		}
		p, err := k.Authenticate(secret)
		if err != nil || !slices.Equal(p.Roles, []bawn.Role{test.want}) {
			t.Errorf("%s: %v %v", test.key.Name, p.Roles, err)
		}
		for _, l := range k.List(key.Tenant) {
			if l.ID == key.ID && l.Role != test.want {
				t.Errorf("%s is listed as %s", l.Name, l.Role)
			}
		}
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add("bawn_0123456789abcdef_" + strings.Repeat("A", 43))
	f.Add("bawn_0123456789abcdef_" + strings.Repeat("_", 43))
	f.Add("bawn__")
	f.Fuzz(func(t *testing.T, s string) {
		id, ok := parseSecret(s)
		if !ok {
			return
		}
		b, err := base64.RawURLEncoding.DecodeString(s[len(s)-43:])
		if err != nil || s != "bawn_"+id+"_"+base64.RawURLEncoding.EncodeToString(b) || len(id) != 16 || strings.ContainsAny(id, ".*> ") {
			t.Fatalf("%q is taken, id %q", s, id)
		}
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	k, _ := openKeys(b, b.TempDir())
	secret, _, err := k.Create(b.Context(), bawn.Key{Name: "a", Tenant: "main", Role: bawn.RoleInvoker})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := k.Authenticate(secret); err != nil {
			b.Fatal(err)
		}
	}
}

// Of those who ask for one name at the same time, one gets it.
func TestCreateAtOnce(t *testing.T) {
	k, _ := openKeys(t, t.TempDir())
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, _, err := k.Create(t.Context(), bawn.Key{Name: "ci", Tenant: "main", Role: bawn.RoleAdmin, CreatedBy: "test"})
			switch bawn.ErrorCode(err) {
			case "":
				made.Add(1)
			case bawn.CodeConflict:
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(k.List("main")); n != 1 || made.Load() != 1 {
		t.Errorf("%d keys made, %d are there", made.Load(), n)
	}
}

package secret

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/evidence"
	"bawn.dev/bawn/internal/policy"
	"bawn.dev/bawn/internal/store"
)

const planted = "sk-live-4eC39HqLyjWDarjtT1zdp7dc"

// safe is a vault and what is below it.
type safe struct {
	*Vault
	dir   string
	store *store.Store
	log   *evidence.Log
	keys  *TenantKeys
	now   atomic.Int64
	stop  func()
}

func openSafe(t testing.TB, dir string) *safe {
	t.Helper()
	s := &safe{dir: dir}
	s.now.Store(time.Now().UnixNano())
	ctx := context.Background()
	s.keys = open(t, filepath.Join(dir, "tenants"), 1)
	must(t, s.keys.Make("acme"))
	must(t, s.keys.Make("rival"))
	var err error
	s.store, err = store.Open(ctx, store.Config{Dir: filepath.Join(dir, "store"), State: filepath.Join(dir, "state"), Sealer: s.keys})
	must(t, err)
	s.log, err = evidence.Open(ctx, evidence.Config{Dir: filepath.Join(dir, "audit"), Key: make([]byte, 32)})
	must(t, err)
	now := func() time.Time { return time.Unix(0, s.now.Load()) }
	s.Vault, err = OpenVault(ctx, VaultConfig{
		Store: s.store, Keys: s.keys, Dir: filepath.Join(dir, "tenants", "secrets"), Wrap: bytes.Repeat([]byte{2}, 32),
		Policy: policy.New(s.log, now), Record: s.log.Append, Now: now,
	})
	must(t, err)
	s.stop = sync.OnceFunc(func() { s.Vault.Close(); s.log.Close(); s.store.Close() })
	t.Cleanup(s.stop)
	return s
}

// later moves the clock and has what died by then wiped.
func (s *safe) later(t testing.TB, d time.Duration) {
	t.Helper()
	s.now.Add(int64(d))
	_, err := s.bury(t.Context())
	must(t, err)
}

func asker(tenant, name string, uses ...bawn.SecretUse) *bawn.Version {
	return &bawn.Version{Tenant: tenant, Function: name, Number: 1, Perimeter: bawn.Perimeter{Egress: bawn.Egress{Secrets: uses}}}
}

func (s *safe) create(t testing.TB, tenant, name, value string, to ...string) {
	t.Helper()
	_, err := s.Create(t.Context(), tenant, name, []byte(value), nil, "key:1")
	must(t, err)
	for _, f := range to {
		_, err := s.Grant(t.Context(), tenant, name, f, "key:1")
		must(t, err)
	}
}

func (s *safe) read(v *bawn.Version, name string, number int) (string, error) {
	value, err := s.Use(context.Background(), UseRequest{Version: v, Invocation: bawn.NewID(), Instance: "i-1", Name: name, Number: number, For: Read})
	defer value.Clear()
	return string(value.Bytes()), err
}

// holding returns the files below dir that hold one of the texts.
func holding(t testing.TB, dir string, texts ...string) (files []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, text := range texts {
			if bytes.Contains(data, []byte(text)) {
				files = append(files, path)
			}
		}
		return err
	}))
	return files
}

// TestE1NothingInClear looks for a value in every byte that was written: as it is, in
// base64, and with its parts.
func TestE1NothingInClear(t *testing.T) {
	s := openSafe(t, t.TempDir())
	s.create(t, "acme", "pay", planted, "shop")
	_, err := s.Rotate(t.Context(), "acme", "pay", []byte(planted+"-2"), time.Minute, "key:1")
	must(t, err)
	if got, err := s.read(asker("acme", "shop", bawn.SecretUse{Name: "pay"}), "pay", 0); err != nil || got != planted+"-2" {
		t.Fatalf("%q %v", got, err)
	}
	s.later(t, time.Hour)
	copied, err := s.store.Copy() // what a backup holds
	must(t, err)
	var rows bytes.Buffer
	for _, table := range copied {
		for key, value := range table.Rows {
			fmt.Fprintf(&rows, "%s %s %s\n", table.Name, key, value)
		}
	}
	s.stop()
	forms := []string{planted, "c2stbGl2ZS00ZUMzOUhxTHlqV0Rhcmp0VDF6ZHA3ZG", "tbGl2ZS00ZUMzOUhxTHlqV0Rhcmp0VDF6ZHA3ZG", "LWxpdmUtNGVDMzlIcUx5aldEYXJqdFQxemRwN2R", "736b2d6c6976652d346543333948714c"}
	if files := holding(t, s.dir, forms...); len(files) > 0 {
		t.Errorf("the value is in clear in %v", files)
	}
	for _, form := range forms {
		if strings.Contains(rows.String(), form) {
			t.Error("a backup would have the value in clear")
		}
	}
	if len(holding(t, filepath.Join(s.dir, "store"), "secret-values")) == 0 || !strings.Contains(rows.String(), "secret-values acme.pay.2") {
		t.Error("what is there is not found: the search does not work")
	}
}

// TestE1BoundToItsPlace moves rows and wraps to every other place: nothing opens.
func TestE1BoundToItsPlace(t *testing.T) {
	s := openSafe(t, t.TempDir())
	ctx := t.Context()
	s.create(t, "acme", "pay", planted, "shop", "mail")
	s.create(t, "acme", "other", "another value", "shop")
	s.create(t, "rival", "pay", "of the rival", "shop")
	_, err := s.Rotate(ctx, "acme", "pay", []byte("second"), time.Hour, "key:1")
	must(t, err)
	shop, mail := asker("acme", "shop"), asker("acme", "mail")
	from := spot{"acme", "pay", 1}
	moved, _, _ := s.values.Get(from.key())
	open := func(at spot, v *bawn.Version, e envelope) (string, error) {
		k, err := s.functionKey(v.Tenant, v.Function)
		must(t, err)
		data, err := s.unseal(at, &e, v.Function, k)
		if tenants, terr := s.unsealTenant(at, &e); (terr == nil) != (err == nil) && !bytes.Equal(tenants, []byte(planted)) {
			t.Errorf("%v: tenant and function differ: %v %v", at, terr, err)
		}
		return string(data), err
	}
	if got, err := open(from, shop, moved); err != nil || got != planted {
		t.Fatal(got, err)
	}
	for _, to := range []spot{{"acme", "pay", 2}, {"acme", "other", 1}, {"rival", "pay", 1}} {
		v := shop
		if to.tenant == "rival" {
			v = asker("rival", "shop")
		}
		if got, err := open(to, v, moved); err == nil {
			t.Errorf("moved to %v it opens: %q", to, got)
		}
		// Nor with the row's own keys around it.
		there, _, _ := s.values.Get(to.key())
		there.Sealed = moved.Sealed
		if got, err := open(to, v, there); err == nil {
			t.Errorf("its text moved to %v opens: %q", to, got)
		}
	}
	// The wrap of one function is of no use to another, nor one of another key id.
	swapped := moved
	swapped.Functions = map[string]functionKey{"mail": moved.Functions["shop"]}
	if got, err := open(from, mail, swapped); err == nil {
		t.Errorf("another function's wrap opens: %q", got)
	}
	w := moved.Functions["shop"]
	w.Key = moved.Functions["mail"].Key
	swapped.Functions = map[string]functionKey{"shop": w, "mail": w}
	for _, v := range []*bawn.Version{shop, mail} {
		if got, err := open(from, v, swapped); err == nil {
			t.Errorf("another key id opens: %q", got)
		}
	}
	other := moved
	other.Key = newKeyID()
	if got, err := open(from, shop, other); err == nil {
		t.Errorf("another data key's id opens: %q", got)
	}
	// Every bit counts.
	for i := range moved.Sealed {
		bad := moved
		bad.Sealed = bytes.Clone(moved.Sealed)
		bad.Sealed[i] ^= 4
		if _, err := open(from, shop, bad); err == nil {
			t.Fatalf("byte %d changed: it opens", i)
		}
	}
	// A key of a function under another name.
	row, _, _ := s.functions.Get("acme.shop")
	_, rev, _ := s.functions.Get("acme.mail")
	_, err = s.functions.Update(ctx, "acme.mail", row, rev)
	must(t, err)
	clear(s.Vault.keys)
	if _, err := s.functionKey("acme", "mail"); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Error("the key of another function is taken:", err)
	}
}

// TestE2Granted asks for a secret in every way but the right one.
func TestE2Granted(t *testing.T) {
	s := openSafe(t, t.TempDir())
	s.create(t, "acme", "pay", planted, "shop", "proxy")
	s.create(t, "rival", "pay", "of the rival", "shop")
	asking := bawn.SecretUse{Name: "pay"}
	proxy := asker("acme", "proxy")
	proxy.Perimeter.Egress.Hosts = []bawn.Host{{Host: "api.example.com", Ports: []int{443}, Inject: &bawn.Inject{Secret: "pay", Header: "Authorization", Format: "{}"}}}
	if got, err := s.read(asker("acme", "shop", asking), "pay", 0); err != nil || got != planted {
		t.Fatalf("%q %v", got, err)
	}
	for _, c := range []struct {
		what string
		v    *bawn.Version
		name string
	}{
		{"not granted", asker("acme", "mail", asking), "pay"},
		{"not asked for", asker("acme", "shop"), "pay"},
		{"asked for another", asker("acme", "shop", bawn.SecretUse{Name: "other"}), "pay"},
		{"there is none", asker("acme", "shop", bawn.SecretUse{Name: "none"}), "none"},
		{"for injection, and read", proxy, "pay"},
	} {
		if got, err := s.read(c.v, c.name, 0); bawn.ErrorCode(err) != bawn.CodeDenied || got != "" {
			t.Errorf("%s: %q %v", c.what, got, err)
		}
	}
	value, err := s.Use(t.Context(), UseRequest{Version: proxy, Name: "pay", For: Inject})
	if err != nil || string(value.Bytes()) != planted {
		t.Error("to inject:", err)
	}
	if got, err := s.read(asker("rival", "shop", asking), "pay", 0); err != nil || got != "of the rival" {
		t.Errorf("of another tenant: %q %v", got, err)
	}
	denied := 0
	must(t, s.log.Read(t.Context(), evidence.Query{Tenant: "acme"}, func(r bawn.Record) error {
		if r.Action == "secret" && r.Outcome == "deny" && r.Control == "E2" && r.Detail["object"] != "" {
			denied++
		}
		if strings.Contains(fmt.Sprint(r), planted) {
			t.Error("a record has the value")
		}
		return nil
	}))
	if denied != 5 {
		t.Errorf("%d denials are recorded, want 5", denied)
	}
	// Taken back, it counts at once.
	_, err = s.Revoke(t.Context(), "acme", "pay", "shop")
	must(t, err)
	if got, err := s.read(asker("acme", "shop", asking), "pay", 0); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("revoked: %q %v", got, err)
	}
	if e, _, _ := s.values.Get("acme.pay.1"); e.Functions["shop"].Key != "" {
		t.Error("the wrap of a revoked function is kept")
	}
}

// A function that takes the name of one that is gone inherits nothing, even if its
// grant came back by itself.
func TestE2NothingIsInherited(t *testing.T) {
	s := openSafe(t, t.TempDir())
	ctx := t.Context()
	s.create(t, "acme", "pay", planted, "shop")
	before, _, _ := s.functions.Get("acme.shop")
	old, _, _ := s.values.Get("acme.pay.1")
	must(t, s.RemoveFunction(ctx, "acme", "shop"))
	shop := asker("acme", "shop", bawn.SecretUse{Name: "pay"})
	if got, err := s.read(shop, "pay", 0); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("%q %v", got, err)
	}
	s.create(t, "acme", "other", "another", "shop") // it has a key again
	after, _, _ := s.functions.Get("acme.shop")
	if after.ID == before.ID || bytes.Equal(after.Wrapped, before.Wrapped) {
		t.Error("the key is the old one")
	}
	_, rev, _ := s.values.Get("acme.pay.1")
	_, err := s.values.Update(ctx, "acme.pay.1", old, rev)
	must(t, err)
	_, err = s.update(ctx, "acme", "pay", func(r *secretRow) error {
		r.Grants = []bawn.SecretGrant{{Function: "shop"}}
		return nil
	})
	must(t, err)
	if got, err := s.read(shop, "pay", 0); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Errorf("with the old grant and the old wrap: %q %v", got, err)
	}
}

// TestE3Unprintable has every printer that there is try.
func TestE3Unprintable(t *testing.T) {
	v := newValue([]byte(planted), 3)
	holder := struct {
		V Value
		v Value
		P *Value
	}{v, v, &v}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%T", "%U", "% x"} {
		fmt.Fprintf(&out, verb+verb+verb+"\n", v, &v, holder)
	}
	fmt.Fprintln(&out, v, holder, []Value{v}, map[string]Value{"a": v}, errors.New(v.String()))
	for _, x := range []any{v, holder, []Value{v}} {
		data, err := json.Marshal(x)
		must(t, err)
		out.Write(data)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("text", "v", v, "holder", holder)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "v", v, "holder", holder)
	if err := gob.NewEncoder(&out).Encode(v); err == nil {
		t.Error("gob takes it")
	}
	hex := fmt.Sprintf("%x", planted)
	for _, bad := range []string{planted, hex, strings.ToUpper(hex), fmt.Sprint([]byte(planted))[1:20]} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("%q is printed:\n%s", bad, out.String())
		}
	}
	kept := v.Bytes()
	v.Clear()
	if v.Bytes() != nil || strings.Trim(string(kept), "\x00") != "" {
		t.Error("it is not cleared")
	}
	Value{}.Clear()
}

// TestE4OldValueDies rotates, and looks at the old value before and after its end.
func TestE4OldValueDies(t *testing.T) {
	dir := t.TempDir()
	s := openSafe(t, dir)
	ctx := t.Context()
	shop := asker("acme", "shop", bawn.SecretUse{Name: "pay"})
	s.create(t, "acme", "pay", planted, "shop")
	if _, err := s.read(shop, "pay", 0); err != nil {
		t.Fatal(err)
	}
	got, err := s.Rotate(ctx, "acme", "pay", []byte("second"), 10*time.Minute, "key:2")
	must(t, err)
	if len(got.Versions) != 2 || got.Versions[0].Ends == nil || got.Versions[1].Ends != nil || got.Versions[1].CreatedBy != "key:2" {
		t.Errorf("%+v", got)
	}
	for number, want := range map[int]string{0: "second", 1: planted, 2: "second"} {
		if text, err := s.read(shop, "pay", number); err != nil || text != want {
			t.Errorf("version %d in the window: %q %v", number, text, err)
		}
	}
	if !s.Holds(shop, "pay", 1) || s.Previous(shop, "pay") != 1 {
		t.Error("in the window it may not be held")
	}
	kept, _, _ := s.values.Get("acme.pay.1")
	key, err := os.ReadFile(s.ends.path("acme.pay.1"))
	must(t, err)

	s.now.Add(int64(10 * time.Minute)) // before anything was wiped
	if text, err := s.read(shop, "pay", 1); bawn.ErrorCode(err) != bawn.CodeNotFound {
		t.Errorf("after the window: %q %v", text, err)
	}
	if s.Holds(shop, "pay", 1) {
		t.Error("after the window it may be held")
	}
	s.later(t, 0)
	if _, _, ok := s.values.Get("acme.pay.1"); ok {
		t.Error("its row is there")
	}
	// What a backup or an unwritten block of the store has of it opens nowhere.
	k, err := s.functionKey("acme", "shop")
	must(t, err)
	at := spot{"acme", "pay", 1}
	if _, err := s.unseal(at, &kept, "shop", k); err == nil {
		t.Error("the old row opens")
	}
	if _, err := s.unsealTenant(at, &kept); err == nil {
		t.Error("the old row opens for the tenant")
	}
	if files := holding(t, dir, string(key)); len(files) > 0 {
		t.Errorf("its key is still in %v", files)
	}
	told := false
	must(t, s.log.Read(ctx, evidence.Query{Tenant: "acme", Action: "secret.end"}, func(r bawn.Record) error {
		told = r.Detail["secret"] == "pay" && r.Detail["version"] == "1"
		return nil
	}))
	if !told {
		t.Error("its end is not recorded")
	}

	// At once, and all of them.
	_, err = s.Rotate(ctx, "acme", "pay", []byte("third"), time.Hour, "key:1")
	must(t, err)
	got, err = s.Rotate(ctx, "acme", "pay", []byte("fourth"), 0, "key:1")
	must(t, err)
	if len(got.Versions) != 1 || got.Versions[0].Number != 4 {
		t.Errorf("%+v", got)
	}
	for n := 1; n < 4; n++ {
		if _, err := os.Stat(s.ends.path(spot{"acme", "pay", n}.key())); !os.IsNotExist(err) {
			t.Errorf("the key of version %d is there", n)
		}
	}
	// Who has a name again never has a number again.
	must(t, s.Remove(ctx, "acme", "pay"))
	if len(s.List("acme")) != 0 {
		t.Error("it is listed")
	}
	got, err = s.Create(ctx, "acme", "pay", []byte("fifth"), nil, "key:1")
	must(t, err)
	if got.Versions[0].Number != 5 || len(got.Grants) > 0 {
		t.Errorf("%+v", got)
	}
	if text, err := s.read(shop, "pay", 0); bawn.ErrorCode(err) != bawn.CodeDenied {
		t.Errorf("a secret that took the name: %q %v", text, err)
	}
}

// TestE4RotationUnderLoad reads without end while the value is changed 50 times.
func TestE4RotationUnderLoad(t *testing.T) {
	s := openSafe(t, t.TempDir())
	shop := asker("acme", "shop", bawn.SecretUse{Name: "pay"})
	s.create(t, "acme", "pay", "value-0", "shop")
	var stop atomic.Bool
	var wg sync.WaitGroup
	var reads, newest atomic.Int64
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				before := newest.Load()
				text, err := s.read(shop, "pay", 0)
				if err != nil {
					t.Error(err)
					return
				}
				if n, err := strconv.Atoi(strings.TrimPrefix(text, "value-")); err != nil || int64(n) < before {
					t.Errorf("read %q after %d", text, before)
				}
				reads.Add(1)
			}
		})
	}
	for i := 1; i <= 50; i++ {
		window := time.Duration(0)
		if i%5 != 0 {
			window = time.Minute
		}
		if _, err := s.Rotate(t.Context(), "acme", "pay", []byte("value-"+strconv.Itoa(i)), window, "key:1"); err != nil {
			t.Fatal(err)
		}
		newest.Store(int64(i))
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d reads", reads.Load())
	if reads.Load() < 50 {
		t.Error("hardly anything was read")
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s := openSafe(t, dir)
	s.create(t, "acme", "pay", planted, "shop")
	_, err := s.Rotate(t.Context(), "acme", "pay", []byte("second"), time.Minute, "key:1")
	must(t, err)
	s.stop()
	// What a crash left: a key without a value, and half a key.
	stray := filepath.Join(dir, "tenants", "secrets", "acme.pay.3.key")
	must(t, os.WriteFile(stray, []byte("x"), 0o600))
	must(t, os.WriteFile(stray+".new", []byte("x"), 0o600))
	s = openSafe(t, dir)
	shop := asker("acme", "shop", bawn.SecretUse{Name: "pay"})
	if text, err := s.read(shop, "pay", 0); err != nil || text != "second" {
		t.Errorf("%q %v", text, err)
	}
	for _, f := range []string{stray, stray + ".new"} {
		if _, err := os.Stat(f); !os.IsNotExist(err) {
			t.Error("what a crash left is there still:", f)
		}
	}
	// Without the keys nothing opens, and nothing that is said has more than that.
	s.stop()
	must(t, os.Remove(filepath.Join(dir, "tenants", "secrets", "acme.pay.2.key")))
	s = openSafe(t, dir)
	if text, err := s.read(shop, "pay", 0); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Errorf("%q %v", text, err)
	}
	_, err = s.Rotate(t.Context(), "acme", "pay", []byte("third"), 0, "key:1")
	must(t, err)
	if text, err := s.read(shop, "pay", 0); err != nil || text != "third" {
		t.Errorf("%q %v", text, err)
	}
}

// With the tenant everything goes, and what was copied before is noise.
func TestE1TenantGoes(t *testing.T) {
	s := openSafe(t, t.TempDir())
	s.create(t, "acme", "pay", planted, "shop")
	s.create(t, "rival", "pay", "of the rival", "shop")
	kept, _, _ := s.values.Get("acme.pay.1")
	must(t, s.RemoveTenant(t.Context(), "acme"))
	must(t, s.keys.Destroy("acme"))
	if _, err := s.unsealTenant(spot{"acme", "pay", 1}, &kept); err == nil {
		t.Error("a copy opens")
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "tenants", "secrets", "acme.*"))
	must(t, err)
	if len(left) > 0 || s.secrets.Len() != 1 || s.values.Len() != 1 || s.functions.Len() != 1 {
		t.Error("left:", left, s.secrets.Len(), s.values.Len(), s.functions.Len())
	}
	if text, err := s.read(asker("rival", "shop", bawn.SecretUse{Name: "pay"}), "pay", 0); err != nil || text != "of the rival" {
		t.Errorf("the other tenant: %q %v", text, err)
	}
}

func TestReaders(t *testing.T) {
	var x readers
	at := time.Unix(1, 0)
	add := func(f, instance string, secret int) {
		at = at.Add(time.Second)
		x.add("acme.pay", Reader{Function: f, Version: 1, Instance: instance, Secret: secret, For: Read, First: at})
	}
	add("shop", "i-1", 1)
	add("shop", "i-1", 1)
	add("shop", "i-2", 2)
	add("mail", "i-3", 1)
	x.gone("i-1")
	v := Vault{readers: readers{secrets: x.secrets, instances: x.instances}}
	got := v.Readers("acme", "pay")
	if len(got) != 3 || got[0].Function != "mail" || got[2].Instance != "" || got[2].Count != 2 || got[2].Last.Sub(got[2].First) != time.Second {
		t.Errorf("%+v", got)
	}
	for i := range maxReaders + 50 {
		add("shop", "many-"+strconv.Itoa(i), 2)
	}
	if n := len(v.Readers("acme", "pay")); n != maxReaders {
		t.Error(n)
	}
	for i := range maxReaders + 50 {
		v.Gone("many-" + strconv.Itoa(i))
	}
	v.Gone("i-2")
	v.Gone("i-3")
	if len(v.readers.instances) != 0 {
		t.Error("instances that are gone are kept:", len(v.readers.instances))
	}
}

func TestRedactorOfSecrets(t *testing.T) {
	s := openSafe(t, t.TempDir())
	s.create(t, "acme", "pay", planted, "shop")
	s.create(t, "acme", "not-asked", "not-asked-for", "shop")
	s.create(t, "acme", "not-granted", "not-granted-at-all")
	shop := asker("acme", "shop", bawn.SecretUse{Name: "pay"}, bawn.SecretUse{Name: "not-granted"})
	text := []byte(planted + " not-asked-for not-granted-at-all second-value")
	if got := string(s.Redactor(shop).Bytes(slices.Clone(text))); strings.Contains(got, planted) || !strings.Contains(got, "not-asked-for not-granted-at-all second-value") {
		t.Error(got)
	}
	if s.Redactor(shop) != s.Redactor(shop) {
		t.Error("it is made anew each time")
	}
	_, err := s.Rotate(t.Context(), "acme", "pay", []byte("second-value"), time.Minute, "key:1")
	must(t, err)
	if got := string(s.Redactor(shop).Bytes(slices.Clone(text))); strings.Contains(got, planted) || strings.Contains(got, "second-value") {
		t.Error("after a rotation:", got)
	}
	if s.Redactor(asker("acme", "shop")) != nil {
		t.Error("what asks for nothing has one")
	}
}

func FuzzStoredSecret(f *testing.F) {
	s := openSafe(f, f.TempDir())
	s.create(f, "acme", "pay", planted, "shop")
	e, _, _ := s.values.Get("acme.pay.1")
	whole, err := json.Marshal(e)
	must(f, err)
	f.Add(whole)
	f.Add([]byte(`{"key":"","sealed":"AQ==","tenant":"AQ==","functions":{"shop":{"key":"","wrapped":"AQ=="}}}`))
	k, err := s.functionKey("acme", "shop")
	must(f, err)
	at := spot{"acme", "pay", 1}
	f.Fuzz(func(t *testing.T, data []byte) {
		var e envelope
		if json.Unmarshal(data, &e) != nil {
			return
		}
		for _, open := range []func() ([]byte, error){
			func() ([]byte, error) { return s.unseal(at, &e, "shop", k) },
			func() ([]byte, error) { return s.unsealTenant(at, &e) },
		} {
			if got, err := open(); err == nil && string(got) != planted {
				t.Errorf("something else opens: %q", got)
			}
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	s := openSafe(b, b.TempDir())
	s.create(b, "acme", "pay", planted, "shop")
	shop := asker("acme", "shop", bawn.SecretUse{Name: "pay"})
	for b.Loop() {
		v, err := s.openFor(shop, spot{"acme", "pay", 1})
		must(b, err)
		v.Clear()
	}
}

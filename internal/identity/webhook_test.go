package identity

import (
	"testing"
	"time"

	"bawn.dev/bawn"
)

// What was refused for another reason may come again, and what was taken not.
func TestA11ClaimIsTakenOnce(t *testing.T) {
	w := newWorld(t)
	id := nonceOf("a delivery")
	first, err := w.hooks.reserve("k", w.now(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.hooks.reserve("k", w.now(), id); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Fatalf("while it is held: %v", err)
	}
	first.Drop()
	second, err := w.hooks.reserve("k", w.now(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.Drop() // it is over
	for i := range 2 {
		if _, err := w.hooks.reserve("k", w.now(), nonceOf("another"), id); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
			t.Fatalf("taken: %v", err)
		}
		if i == 0 {
			w.pass(23 * time.Hour)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	if _, err := w.hooks.reserve("k", w.now(), id); bawn.ErrorCode(err) != bawn.CodeUnauthenticated {
		t.Fatalf("after a restart: %v", err)
	}
}

// FuzzWebhook reads whatever stands in the headers of a webhook.
func FuzzWebhook(f *testing.F) {
	f.Add("t=1,v1=00", "sha256=00", "1", "id")
	f.Fuzz(func(t *testing.T, stripe, signature, stamp, id string) {
		header := map[string][]string{"S": {stripe}, "H": {signature}, "T": {stamp}, "I": {id}}
		now := time.Unix(1, 0)
		for _, want := range []bawn.WebhookAccess{
			{Kind: "stripe", Header: "S", Window: time.Minute},
			{Kind: "hmac", Header: "H", Prefix: "sha256=", Encoding: "hex", Timestamp: "T", ID: "I", Window: time.Minute},
		} {
			h, err := readHook(&want, header, now)
			if err == nil && (len(h.signatures) == 0 || len(h.signatures) > maxHookSignatures || len(h.signatures[0]) != 32 || h.stamp == "" || h.at.Sub(now).Abs() >= time.Minute) {
				t.Fatalf("%+v", h)
			}
		}
	})
}

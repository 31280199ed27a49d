package bawntest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func mac(secret, text string) []byte {
	m := hmac.New(sha256.New, []byte(secret))
	m.Write([]byte(text))
	return m.Sum(nil)
}

// hub is what GitHub sends with a body.
func hub(secret, body, id string) []string {
	return []string{"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(mac(secret, body)), "X-GitHub-Delivery", id}
}

// stripe is what Stripe sends with a body that it signs at a time.
func stripe(secret, body string, at time.Time) []string {
	stamp := strconv.FormatInt(at.Unix(), 10)
	return []string{"Stripe-Signature", "t=" + stamp + ",v1=" + hex.EncodeToString(mac("an older one", body)) + ",v1=" + hex.EncodeToString(mac(secret, stamp+"."+body)) + ",v0=00"}
}

// own is a signature of the general kind.
func own(secret, body string, at time.Time, id string) []string {
	stamp := strconv.FormatInt(at.Unix(), 10)
	return []string{"X-Sign", "v1 " + base64.StdEncoding.EncodeToString(mac(secret, stamp+"."+body)), "X-Time", stamp, "X-Id", id}
}

// accessOfWebhooks asks routes that want signed webhooks; attack 9.
func accessOfWebhooks(t *testing.T) {
	n := newTown(t)
	hook := func(kind string, more ...string) any {
		w := map[string]any{"kind": kind, "secret": "hook"}
		for i := 0; i+1 < len(more); i += 2 {
			w[more[i]] = more[i+1]
		}
		return map[string]any{"webhook": w}
	}
	n.door("hub", hook("github"), "role:partner")
	n.door("second", hook("github"))
	n.door("stripe", hook("stripe"))
	n.door("own", hook("hmac", "header", "x-sign", "prefix", "v1 ", "encoding", "base64", "timestamp", "X-Time", "id", "X-Id"))
	if _, err := n.CreateSecret(t.Context(), "hook", []byte("the first value")); err != nil {
		t.Fatal(err)
	}
	const s = "the first value"
	n.knock(t, []knock{{"without a grant", n.post("/hub", "{}", hub(s, "{}", "g0")...), 503, nil}})
	for _, f := range []string{"hub", "second", "stripe", "own"} {
		if _, err := n.GrantSecret(t.Context(), "hook", f); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	mixed := hub(s, `{"n":2}`, "g9")
	n.knock(t, []knock{
		{"github: good", n.post("/hub", `{"n":1}`, hub(s, `{"n":1}`, "g1")...), 200, nil},
		{"github: once more", n.post("/hub", `{"n":1}`, hub(s, `{"n":1}`, "g1")...), 401, nil},
		{"github: once more with another id", n.post("/hub", `{"n":1}`, hub(s, `{"n":1}`, "g2")...), 401, nil},
		{"github: an id that was used", n.post("/hub", `{"n":3}`, hub(s, `{"n":3}`, "g1")...), 401, nil},
		{"github: at another route", n.post("/second", `{"n":1}`, hub(s, `{"n":1}`, "g1")...), 401, nil},
		{"github: another body", n.post("/hub", `{"n":4}`, mixed...), 401, nil},
		{"github: the body that it is of", n.post("/hub", `{"n":2}`, mixed...), 200, nil},
		{"github: another secret", n.post("/hub", "{}", hub("another", "{}", "g3")...), 401, nil},
		{"github: no id", n.post("/hub", "{}", hub(s, "{}", "g4")[:2]...), 401, nil},
		{"github: two signatures", n.post("/hub", "{}", append(hub(s, "{}", "g5"), hub(s, "{}", "g5")[:2]...)...), 401, nil},
		{"github: cut short", n.post("/hub", "{}", "X-Hub-Signature-256", "sha256=00", "X-GitHub-Delivery", "g6"), 401, nil},
		{"github: SHA-1", n.post("/hub", "{}", "X-Hub-Signature", "sha1="+hex.EncodeToString(mac(s, "{}"))[:40], "X-GitHub-Delivery", "g7"), 401, nil},
		{"github: nothing", n.post("/hub", "{}"), 401, nil},
		{"github: an administrator's key", n.post("/hub", "{}", bearer(n.Context.Key)...), 403, nil},
		{"github: a role of callers", n.post("/hub", "{}", bearer(n.roleKey("partner"))...), 200, nil},
		{"stripe: good", n.post("/stripe", "{}", stripe(s, "{}", now)...), 200, nil},
		{"stripe: once more", n.post("/stripe", "{}", stripe(s, "{}", now)...), 401, nil},
		{"stripe: sent anew", n.post("/stripe", "{}", stripe(s, "{}", now.Add(-time.Second))...), 200, nil},
		{"stripe: a clock 4 minutes behind", n.post("/stripe", "{}", stripe(s, "{}", now.Add(-4*time.Minute))...), 200, nil},
		{"stripe: a clock 6 minutes behind", n.post("/stripe", "{}", stripe(s, "{}", now.Add(-6*time.Minute))...), 401, nil},
		{"stripe: a clock 6 minutes ahead", n.post("/stripe", "{}", stripe(s, "{}", now.Add(6*time.Minute))...), 401, nil},
		{"stripe: another secret", n.post("/stripe", "{}", stripe("another", "{}", now)...), 401, nil},
		{"stripe: no time", n.post("/stripe", "{}", "Stripe-Signature", "v1="+hex.EncodeToString(mac(s, "{}"))), 401, nil},
		{"hmac: good", n.post("/own", `{"o":1}`, own(s, `{"o":1}`, now, "a")...), 200, nil},
		{"hmac: the same delivery signed anew", n.post("/own", `{"o":1}`, own(s, `{"o":1}`, now.Add(-time.Second), "a")...), 401, nil},
		{"hmac: another delivery", n.post("/own", `{"o":1}`, own(s, `{"o":1}`, now.Add(-time.Second), "b")...), 200, nil},
		{"hmac: another time than was signed", n.post("/own", `{"o":1}`, append(own(s, `{"o":1}`, now, "c")[:2], "X-Time", strconv.FormatInt(now.Unix()+1, 10), "X-Id", "c")...), 401, nil},
	})

	t.Run("one of many copies runs", func(t *testing.T) {
		make := n.post("/stripe", `{"many":1}`, stripe(s, `{"many":1}`, now)...)
		var ran, refused, other atomic.Int64
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for range 500 {
					res, err := n.HTTP.Do(make())
					if err != nil {
						other.Add(1)
						continue
					}
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
					switch res.StatusCode {
					case http.StatusOK:
						ran.Add(1)
					case http.StatusUnauthorized:
						refused.Add(1)
					default: // held to a rate, or to how many at once
						other.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if ran.Load() != 1 || refused.Load() == 0 {
			t.Errorf("%d ran, %d were refused as copies, %d otherwise", ran.Load(), refused.Load(), other.Load())
		}
	})
	t.Run("while the secret is rotated both values are good", func(t *testing.T) {
		if _, err := n.RotateSecret(t.Context(), "hook", []byte("the second value"), 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		n.knock(t, []knock{
			{"the new one", n.post("/hub", `{"r":1}`, hub("the second value", `{"r":1}`, "r1")...), 200, nil},
			{"the old one", n.post("/hub", `{"r":2}`, hub(s, `{"r":2}`, "r2")...), 200, nil},
		})
	})
	t.Run("it is known after a restart", func(t *testing.T) {
		n.Restart()
		n.knock(t, []knock{
			{"github", n.post("/hub", `{"n":1}`, hub(s, `{"n":1}`, "g8")...), 401, nil},
			{"stripe", n.post("/stripe", "{}", stripe(s, "{}", now)...), 401, nil},
		})
	})
	t.Run("a grant that is taken back ends it", func(t *testing.T) {
		if _, err := n.RevokeSecret(t.Context(), "hook", "hub"); err != nil {
			t.Fatal(err)
		}
		n.knock(t, []knock{{"revoked", n.post("/hub", "{}", hub(s, "{}", "g10")...), 503, nil}})
	})
}

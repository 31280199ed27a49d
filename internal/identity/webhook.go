package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"

	"bawn.dev/bawn"
)

// Bounds of what a webhook says of itself.
const (
	maxHookHeader     = 4096
	maxHookSignatures = 8 // in one header of Stripe's
	maxHookID         = 200
)

// hook is what a webhook says of itself, before anything of it is believed.
type hook struct {
	signatures [][]byte // of which one must be right
	stamp      string   // as it was signed; "" if there is none
	at         time.Time
	id         string // "" if the route wants none
}

// badHook says that a webhook does not open a route. why is for the owner alone.
func badHook(why string) error {
	return bawn.Wrap(errors.New(why), bawn.CodeUnauthenticated, "identity.webhook", "the webhook is not good for this route").
		WithFix("sign the body with the secret that both sides have, each delivery anew, and with a clock that is right")
}

// PlausibleWebhook returns nil if a request with the header could be a webhook that
// is wanted, so that its body is worth reading, and otherwise why it is not.
func (a *Authenticator) PlausibleWebhook(want *bawn.WebhookAccess, header map[string][]string) error {
	_, err := readHook(want, header, a.cfg.Now())
	return err
}

// AuthenticateWebhook says who signed a webhook to a route of tenant: a principal
// without a role. secrets has its function look at each version of the secret until
// it says yes. The webhook is held, and accepted by [Claim.Take]; until then, and
// after, the same is refused. CodeUnavailable and CodeThrottled mean that it cannot
// be accepted now; what an error of CodeUnauthenticated wraps is for the route's
// owner.
func (a *Authenticator) AuthenticateWebhook(tenant string, want *bawn.WebhookAccess, header map[string][]string, body []byte, secrets func(check func(secret []byte) bool) (bool, error)) (bawn.Principal, *Claim, error) {
	now := a.cfg.Now()
	h, err := readHook(want, header, now)
	if err != nil {
		return bawn.Principal{}, nil, err
	}
	var right []byte
	ok, err := secrets(func(secret []byte) bool {
		m := hmac.New(sha256.New, secret)
		if h.stamp != "" {
			m.Write([]byte(h.stamp + "."))
		}
		m.Write(body)
		right = m.Sum(nil)
		good := false
		for _, s := range h.signatures {
			good = hmac.Equal(s, right) || good
		}
		return good && len(secret) > 0
	})
	switch {
	case bawn.ErrorCode(err) == bawn.CodeDenied: // which is in the evidence, and no defect
		return bawn.Principal{}, nil, bawn.Errorf(bawn.CodeUnavailable, "identity.webhook", "webhooks cannot be verified now").
			WithFix("the function's owner reads in bawn events why its secret cannot be used")
	case err != nil:
		return bawn.Principal{}, nil, bawn.Wrap(err, bawn.CodeUnavailable, "identity.webhook", "webhooks cannot be verified now").
			WithFix("the function's owner reads in bawn events why its secret cannot be used")
	case !ok:
		return bawn.Principal{}, nil, badHook("its signature is made with no live version of the secret, or over another body")
	}
	// Wherever it is sent, it is the same: the route is not part of what is signed.
	ids := []nonce{nonceOf("webhook " + string(right))}
	of := "webhook " + tenant + "/" + want.Secret
	if h.id != "" {
		ids = append(ids, nonceOf(of+" "+h.id))
	}
	memory, at := a.hooks, now
	if h.stamp != "" {
		memory, at = a.replay, h.at
	}
	claim, err := memory.reserve(of, at, ids...)
	switch bawn.ErrorCode(err) {
	case "":
	case bawn.CodeUnauthenticated:
		return bawn.Principal{}, nil, badHook("it came before, or it is older than what is remembered")
	default:
		return bawn.Principal{}, nil, err
	}
	return bawn.Principal{Kind: bawn.PrincipalWebhook, ID: want.Kind + "/" + want.Secret, Name: want.Kind, Tenant: tenant, Access: bawn.AccessWebhook}, claim, nil
}

// readHook reads what a webhook says of itself. There is one spelling of each.
func readHook(want *bawn.WebhookAccess, header map[string][]string, now time.Time) (h hook, err error) {
	one := func(name string) (string, error) {
		v := header[name]
		if len(v) != 1 || v[0] == "" || len(v[0]) > maxHookHeader {
			return "", badHook("it needs one header " + name)
		}
		return v[0], nil
	}
	text, err := one(want.Header)
	if err != nil {
		return h, err
	}
	if want.Kind == "stripe" {
		for part := range strings.SplitSeq(text, ",") {
			name, value, _ := strings.Cut(part, "=")
			switch {
			case name == "t" && h.stamp == "":
				h.stamp = value
			case name == "t":
				return h, badHook("it has two timestamps")
			case name == "v1" && len(h.signatures) < maxHookSignatures:
				s, ok := decodeSum(value, "hex")
				if !ok {
					return h, badHook("its signature is malformed")
				}
				h.signatures = append(h.signatures, s)
			case name == "v1":
				return h, badHook("it has too many signatures")
			}
		}
		if h.stamp == "" || len(h.signatures) == 0 {
			return h, badHook("its signature needs t and v1")
		}
	} else {
		value, ok := strings.CutPrefix(text, want.Prefix)
		s, good := decodeSum(value, want.Encoding)
		if !ok || !good {
			return h, badHook("its signature is malformed")
		}
		h.signatures = [][]byte{s}
		if want.Timestamp != "" {
			if h.stamp, err = one(want.Timestamp); err != nil {
				return h, err
			}
		}
	}
	if h.stamp != "" {
		n, err := strconv.ParseInt(h.stamp, 10, 64)
		if err != nil || n < 0 || n >= 1<<40 || strconv.FormatInt(n, 10) != h.stamp {
			return h, badHook("its timestamp is no number of seconds")
		}
		h.at = time.Unix(n, 0)
		if window := min(want.Window, signWindow); now.Sub(h.at) >= window || h.at.Sub(now) >= window {
			return h, badHook("its timestamp is too far from the node's clock")
		}
	}
	if want.ID != "" {
		if h.id, err = one(want.ID); err != nil {
			return h, err
		}
		if len(h.id) > maxHookID || strings.ContainsFunc(h.id, notPrintable) {
			return h, badHook("its id is too long, or has a character that must not be there")
		}
	}
	return h, nil
}

// decodeSum reads a SHA-256.
func decodeSum(s, encoding string) ([]byte, bool) {
	var sum []byte
	var err error
	if encoding == "base64" {
		sum, err = base64.StdEncoding.Strict().DecodeString(s)
		if strings.ContainsAny(s, "\r\n") {
			return nil, false
		}
	} else {
		if s != strings.ToLower(s) {
			return nil, false
		}
		sum, err = hex.DecodeString(s)
	}
	return sum, err == nil && len(sum) == sha256.Size
}

package ingress

import (
	"crypto/x509"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/identity"
)

// clients is which client certificates live routes ask for by authorities of their
// own. An index's mu guards it.
type clients struct {
	at  map[origin]map[string]int // documents of authorities, and how many routes name each
	all *x509.CertPool            // of all of them; made when it is asked for, and not changed then
}

// count takes a route into account, or with -1 out of it.
func (m *clients) count(o origin, r *bawn.Route, by int) {
	if r.Access.MTLS == nil || r.Access.MTLS.CA == "" {
		return
	}
	m.all = nil
	if m.at == nil {
		m.at = map[origin]map[string]int{}
	}
	if m.at[o] == nil {
		m.at[o] = map[string]int{}
	}
	ca := r.Access.MTLS.CA
	if m.at[o][ca] += by; m.at[o][ca] == 0 {
		delete(m.at[o], ca)
	}
	if len(m.at[o]) == 0 {
		delete(m.at, o)
	}
}

// partners returns the authorities of all live routes that name some, or nil.
func (x *index) partners() *x509.CertPool {
	x.mu.RLock()
	all, none := x.mtls.all, len(x.mtls.at) == 0
	x.mu.RUnlock()
	if all != nil || none {
		return all
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.mtls.all == nil && len(x.mtls.at) > 0 {
		x.mtls.all = x509.NewCertPool()
		for _, docs := range x.mtls.at {
			for doc := range docs {
				for _, c := range identity.AuthoritiesOf(doc) {
					x.mtls.all.AddCert(c)
				}
			}
		}
	}
	return x.mtls.all
}

// maxAsked bounds the documents of authorities whose names a handshake tells. Where
// there are more, it tells none, which is to ask for any certificate.
const maxAsked = 16

// asks reports whether routes of an origin name authorities of client certificates,
// and which.
func (x *index) asks(o origin) (bool, []*x509.Certificate) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	docs := x.mtls.at[o]
	if len(docs) > maxAsked {
		return true, nil
	}
	var all []*x509.Certificate
	for doc := range docs {
		all = append(all, identity.AuthoritiesOf(doc)...)
	}
	return len(docs) > 0, all
}

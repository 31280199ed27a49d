package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"bawn.dev/bawn"
)

const (
	loginTimeout  = 30 * time.Second // for one answer of an issuer
	loginPatience = 10 * time.Minute // for a person to log in
	maxDiscovery  = 256 << 10
	// A token is refreshed when this little of its time is left.
	refreshBefore = 30 * time.Second
	stateBytes    = 24
)

// LoginIssuer is where somebody can log in, as the node tells strangers.
type LoginIssuer struct {
	Name     string   `json:"name"`
	URL      string   `json:"url"`
	ClientID string   `json:"clientId"`
	Audience string   `json:"audience"` // what the token must be for
	Scopes   []string `json:"scopes"`
	CA       string   `json:"ca,omitempty"` // PEM; the system's roots if there is none
}

// Login is a session with an issuer: a token, and how to have it renewed. It is
// kept in the context file, which only its owner can read.
type Login struct {
	Issuer  LoginIssuer `json:"issuer"`
	Token   string      `json:"token"`
	Expires time.Time   `json:"expires"`
	Refresh string      `json:"refresh,omitempty"`
}

// String returns who issued the token, never the token.
func (l Login) String() string { return l.Issuer.Name }

// GoString does what String does, so that %#v does not print the token.
func (l Login) GoString() string { return l.Issuer.Name }

// LoginIssuers asks the node where somebody can log in for a tenant; "" is the
// default one. It needs no credential.
func (c *Client) LoginIssuers(ctx context.Context, tenant string) ([]LoginIssuer, error) {
	q := url.Values{}
	if tenant != "" {
		q.Set("tenant", tenant)
	}
	var out struct {
		Issuers []LoginIssuer `json:"issuers"`
	}
	stranger := c.WithBearer(func(context.Context) (string, error) { return "", nil })
	err := stranger.do(ctx, request{method: http.MethodGet, path: "/v1/login", query: q}, &out)
	return out.Issuers, err
}

// provider is an issuer's endpoints.
type provider struct {
	issuer LoginIssuer
	http   *http.Client
	config oauth2.Config
}

func openProvider(ctx context.Context, issuer LoginIssuer) (*provider, error) {
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	if issuer.CA != "" {
		tc.RootCAs = x509.NewCertPool()
		if !tc.RootCAs.AppendCertsFromPEM([]byte(issuer.CA)) {
			return nil, bawn.Errorf(bawn.CodeInvalid, "client.login", "the issuer %s has no usable certificate authority", issuer.Name)
		}
	}
	p := &provider{issuer: issuer, http: &http.Client{
		Timeout:   loginTimeout,
		Transport: &http.Transport{TLSClientConfig: tc, Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true},
		// What is sent is secret, and none of these answers has a reason to send it on.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	fail := func(err error) (*provider, error) {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "client.login", "the issuer %s at %s cannot be asked: %v", issuer.Name, issuer.URL, err).
			WithFix("look whether its server can be reached from here")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(issuer.URL, "/")+"/.well-known/openid-configuration", nil)
	if err != nil {
		return fail(err)
	}
	res, err := p.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return fail(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxDiscovery))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("it answered %d", res.StatusCode)
	}
	var about struct {
		Issuer string `json:"issuer"`
		Auth   string `json:"authorization_endpoint"`
		Token  string `json:"token_endpoint"`
		Device string `json:"device_authorization_endpoint"`
	}
	if err == nil {
		err = json.Unmarshal(data, &about)
	}
	if err == nil && about.Issuer != issuer.URL {
		err = errors.New("it says that it is another issuer")
	}
	for _, u := range []string{about.Auth, about.Token, about.Device} {
		if at, e := url.Parse(u); err == nil && u != "" && (e != nil || at.Scheme != "https") {
			err = errors.New("its endpoints are not https URLs")
		}
	}
	if err != nil {
		return fail(err)
	}
	scopes := []string{"openid"}
	for _, s := range issuer.Scopes {
		if !slices.Contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	p.config = oauth2.Config{ClientID: issuer.ClientID, Scopes: scopes, Endpoint: oauth2.Endpoint{
		AuthURL: about.Auth, TokenURL: about.Token, DeviceAuthURL: about.Device, AuthStyle: oauth2.AuthStyleInParams,
	}}
	return p, nil
}

// forIssuer makes the library use p's way to the issuer.
func (p *provider) forIssuer(ctx context.Context) context.Context {
	return context.WithValue(ctx, oauth2.HTTPClient, p.http)
}

// idToken reports whether the node wants the token that says who logged in,
// rather than one for an API.
func (p *provider) idToken() bool { return p.issuer.Audience == p.issuer.ClientID }

// options ask for an access token for the audience, where that is needed.
func (p *provider) options() []oauth2.AuthCodeOption {
	if p.idToken() {
		return nil
	}
	return []oauth2.AuthCodeOption{oauth2.SetAuthURLParam("resource", p.issuer.Audience), oauth2.SetAuthURLParam("audience", p.issuer.Audience)}
}

// login makes a session of an issuer's answer.
func (p *provider) login(t *oauth2.Token, before *Login) (*Login, error) {
	l := &Login{Issuer: p.issuer, Token: t.AccessToken, Expires: t.Expiry.UTC(), Refresh: t.RefreshToken}
	if p.idToken() {
		l.Token, _ = t.Extra("id_token").(string)
	}
	if l.Token == "" {
		return nil, bawn.Errorf(bawn.CodeUnauthenticated, "client.login", "the issuer %s gave no token that the node takes", p.issuer.Name).
			WithFix("its client must be allowed the scope openid")
	}
	if exp, ok := expiryOf(l.Token); ok {
		l.Expires = exp
	}
	if l.Refresh == "" && before != nil {
		l.Refresh = before.Refresh
	}
	return l, nil
}

// expiryOf reads when a token ends. Whether it is good is for the node to say.
func expiryOf(token string) (time.Time, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, false
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Exp float64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(data, &claims) != nil || claims.Exp <= 0 || claims.Exp > 1<<40 {
		return time.Time{}, false
	}
	return time.Unix(int64(claims.Exp), 0).UTC(), true
}

func refusedLogin(issuer string, err error) error {
	what := err.Error()
	var re *oauth2.RetrieveError
	if errors.As(err, &re) && re.ErrorCode != "" {
		what = re.ErrorCode
		if re.ErrorDescription != "" {
			what += ": " + re.ErrorDescription
		}
	}
	return bawn.Wrap(err, bawn.CodeUnauthenticated, "client.login", "the issuer %s did not log you in: %s", issuer, what).WithFix("try bawn login again")
}

// LoginDevice logs in by a code that is entered on another device. tell is called
// once, with where to go and the code to enter there.
func LoginDevice(ctx context.Context, issuer LoginIssuer, tell func(where, code string)) (*Login, error) {
	ctx, cancel := context.WithTimeout(ctx, loginPatience)
	defer cancel()
	p, err := openProvider(ctx, issuer)
	if err != nil {
		return nil, err
	}
	if p.config.Endpoint.DeviceAuthURL == "" {
		return nil, bawn.Errorf(bawn.CodeInvalid, "client.login", "the issuer %s has no device flow", issuer.Name).WithFix("use bawn login --browser")
	}
	d, err := p.config.DeviceAuth(p.forIssuer(ctx), p.options()...)
	if err != nil {
		return nil, refusedLogin(issuer.Name, err)
	}
	where := d.VerificationURIComplete
	if where == "" {
		where = d.VerificationURI
	}
	tell(where, d.UserCode)
	t, err := p.config.DeviceAccessToken(p.forIssuer(ctx), d)
	if err != nil {
		return nil, refusedLogin(issuer.Name, err)
	}
	return p.login(t, nil)
}

// LoginBrowser logs in by a browser on this machine, which the issuer sends back
// to an address of the loopback interface. open is called once, with where the
// browser has to go.
func LoginBrowser(ctx context.Context, issuer LoginIssuer, open func(where string)) (*Login, error) {
	ctx, cancel := context.WithTimeout(ctx, loginPatience)
	defer cancel()
	p, err := openProvider(ctx, issuer)
	if err != nil {
		return nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, "client.login", "no address of this machine can be taken for the browser to come back to").
			WithFix("use bawn login --device")
	}
	var random [stateBytes]byte
	rand.Read(random[:]) // never fails: crypto/rand aborts the program instead
	state, verifier := base64.RawURLEncoding.EncodeToString(random[:]), oauth2.GenerateVerifier()
	p.config.RedirectURL = "http://" + ln.Addr().String() + "/callback"
	type answer struct{ code, failed string }
	answers := make(chan answer, 1)
	srv := &http.Server{ReadHeaderTimeout: loginTimeout, MaxHeaderBytes: 64 << 10, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		// Another page may send the browser here too, and does not know the state.
		if r.URL.Path != "/callback" || q.Get("state") != state {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		a := answer{q.Get("code"), q.Get("error")}
		if a.failed != "" && q.Get("error_description") != "" {
			a.failed += ": " + q.Get("error_description")
		}
		if a.code == "" && a.failed == "" {
			a.failed = "it sent no code"
		}
		select {
		case answers <- a:
		default:
		}
		io.WriteString(w, "Back to bawn: you can close this window.\n")
	})}
	go srv.Serve(ln)
	defer srv.Close()
	open(p.config.AuthCodeURL(state, append(p.options(), oauth2.S256ChallengeOption(verifier))...))
	select {
	case a := <-answers:
		if a.failed != "" {
			return nil, refusedLogin(issuer.Name, errors.New(a.failed))
		}
		t, err := p.config.Exchange(p.forIssuer(ctx), a.code, append(p.options(), oauth2.VerifierOption(verifier))...)
		if err != nil {
			return nil, refusedLogin(issuer.Name, err)
		}
		// The browser has its answer before the address goes.
		stop, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		srv.Shutdown(stop)
		return p.login(t, nil)
	case <-ctx.Done():
		return nil, bawn.Wrap(ctx.Err(), bawn.CodeUnauthenticated, "client.login", "nobody logged in").WithFix("try bawn login again")
	}
}

// renew has a session's token renewed.
func (l *Login) renew(ctx context.Context) (*Login, error) {
	again := func(err error) error {
		return bawn.Wrap(err, bawn.CodeUnauthenticated, "client.login", "the login with %s has ended", l.Issuer.Name).WithFix("log in again: bawn login")
	}
	if l.Refresh == "" {
		return nil, again(errors.New("there is nothing to renew it with"))
	}
	p, err := openProvider(ctx, l.Issuer)
	if err != nil {
		return nil, err
	}
	t, err := p.config.TokenSource(p.forIssuer(ctx), &oauth2.Token{RefreshToken: l.Refresh}).Token()
	if err != nil {
		return nil, again(err)
	}
	return p.login(t, l)
}

// session gives a client the token of a context file, and keeps it renewed there.
type session struct {
	path string

	mu      sync.Mutex
	context *Context
}

func (s *session) token(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Until(s.context.Login.Expires) > refreshBefore {
		return s.context.Login.Token, nil
	}
	// Another program may have renewed it, and what it was renewed with may be good
	// for one time only.
	if now, err := LoadContext(s.path); err == nil && now.Login != nil && now.Login.Issuer.URL == s.context.Login.Issuer.URL {
		s.context = now
	}
	if time.Until(s.context.Login.Expires) > refreshBefore {
		return s.context.Login.Token, nil
	}
	l, err := s.context.Login.renew(ctx)
	if err != nil {
		return "", err
	}
	with := *s.context
	with.Login = l
	s.context = &with
	return l.Token, SaveContext(s.path, &with)
}

// certificates reads the client certificate of the context, if it has one.
func (c *Context) certificates() ([]tls.Certificate, error) {
	if c.Certificate == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(c.Certificate, c.CertificateKey)
	if err != nil {
		cause := reason(err)
		if errors.Is(err, os.ErrNotExist) {
			cause = os.ErrNotExist
		}
		return nil, bawn.Wrap(err, bawn.CodeInvalid, "client", "the client certificate %s with the key %s cannot be used: %v", c.Certificate, c.CertificateKey, cause).
			WithFix("give files with a certificate and its key as PEM: bawn login --cert FILE --cert-key FILE")
	}
	return []tls.Certificate{cert}, nil
}

// Bearer returns a credential that does not change, for [Client.WithBearer].
func Bearer(credential string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return credential, nil }
}

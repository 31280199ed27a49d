package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/sandbox"
	"bawn.dev/bawn/internal/secret"
)

const (
	// The door of a sandbox, where its interior opens it.
	endpointPort = "9002"
	endpointURL  = "http://127.0.0.1:" + endpointPort

	// secretHeader has to be there, with any value: a function that fetches what
	// somebody else names, and nothing more, must not fetch its own secrets.
	secretHeader = "X-Bawn-Secret"
	// tokenHeader is the same of AWS' Parameters and Secrets extension.
	tokenHeader = "X-Aws-Parameters-Secrets-Token"

	secretsPath   = "/secrets/"
	extensionPath = "/secretsmanager/get"
	getTarget     = "secretsmanager.GetSecretValue"
	maxSecretID   = 2048 // as in AWS
)

// attachSecrets returns the secrets that an instance gets as files, and the variables
// that lead AWS' clients here. A secret that the function may not have is no file, and
// its owner is told.
func (a *attached) attachSecrets(ctx context.Context) ([]sandbox.AttachedFile, map[string]string, error) {
	uses := a.v.Perimeter.Egress.Secrets
	if len(uses) == 0 || a.b.cfg.Secrets == nil {
		return nil, nil, nil
	}
	var files []sandbox.AttachedFile
	for _, u := range uses {
		if !u.File {
			continue
		}
		value, err := a.b.cfg.Secrets.Use(ctx, secret.UseRequest{Version: a.v, Instance: a.in.Instance, Name: u.Name, For: secret.File})
		if bawn.ErrorCode(err) == bawn.CodeDenied || bawn.ErrorCode(err) == bawn.CodeNotFound {
			a.noSecret(u.Name, err)
			a.held = append(a.held, heldSecret{u.Name, 0})
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		files = append(files, sandbox.AttachedFile{Path: sandbox.SecretsDir + "/" + u.Name, Data: bytes.Clone(value.Bytes())})
		a.held = append(a.held, heldSecret{u.Name, value.Number()})
		value.Clear()
	}
	// What AWS' clients look for. The token opens nothing: they want one to send.
	return files, map[string]string{
		"AWS_ENDPOINT_URL_SECRETS_MANAGER":       endpointURL,
		"PARAMETERS_SECRETS_EXTENSION_HTTP_PORT": endpointPort,
		"AWS_SESSION_TOKEN":                      "not-a-secret",
	}, nil
}

// heldSecret is a secret that an instance has: as a file, or since it asked for it.
type heldSecret struct {
	name   string
	number int // 0: it was not given
}

// hold notes that the instance has read a secret, which is in its memory from then on.
func (a *attached) hold(name string, number int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := (heldSecret{name, number}); !slices.Contains(a.held, h) {
		a.held = append(a.held, h)
	}
}

// staleSecrets reports whether the instance has what has ended or was taken back, or
// lacks a file that it would get now. An old value dies with who has it: nobody would
// know any more what to take out of its log.
func (a *attached) staleSecrets() bool {
	a.mu.Lock()
	held := a.held[:len(a.held):len(a.held)]
	a.mu.Unlock()
	for _, h := range held {
		v := a.b.cfg.Secrets
		if h.number > 0 && !v.Holds(a.v, h.name, h.number) || h.number == 0 && v.Holds(a.v, h.name, v.Current(a.v.Tenant, h.name)) {
			return true
		}
	}
	return false
}

// leaveSecrets says that what the instance held is gone with it.
func (a *attached) leaveSecrets() {
	if a.b.cfg.Secrets != nil {
		a.b.cfg.Secrets.Gone(a.in.Instance)
	}
}

// noSecret tells the owner why a secret was not given.
func (a *attached) noSecret(name string, err error) {
	var e *bawn.Error
	if !errors.As(err, &e) {
		return
	}
	text := "no secret " + name + ": " + e.Message
	if e.Fix != "" {
		text += "; " + e.Fix
	}
	a.note(text)
}

// useSecret returns a secret for the running invocation.
func (a *attached) useSecret(ctx context.Context, name string, number int, p secret.Purpose) (secret.Value, error) {
	a.mu.Lock()
	run := a.run
	a.mu.Unlock()
	if run == nil || a.b.cfg.Secrets == nil {
		return secret.Value{}, bawn.Errorf(bawn.CodeDenied, "egress.secret", "no invocation is running")
	}
	c, ref := run.call, a.v.Ref()
	value, err := a.b.cfg.Secrets.Use(ctx, secret.UseRequest{
		Version: a.v, Instance: a.in.Instance, Invocation: c.ID, Name: name, Number: number, For: p,
		Origin: c.From(), Chain: append(c.Chain[:len(c.Chain):len(c.Chain)], ref), Hops: c.Hops,
	})
	if err != nil {
		a.noSecret(name, err)
		return value, err
	}
	a.hold(name, value.Number())
	return value, nil
}

// serveSecrets answers a request of the function's code for a secret: Bawn's own GET
// /secrets/NAME, that of AWS' extension, and GetSecretValue of AWS Secrets Manager. What
// is refused says no more than that.
func (a *attached) serveSecrets(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	name, own := strings.CutPrefix(r.URL.Path, secretsPath)
	switch {
	case r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != "":
		a.turnAway(w, r, "somebody else asks, through a proxy in the function")
	case own && r.Method == http.MethodGet:
		if r.Header.Get(secretHeader) == "" && r.Header.Get(tokenHeader) == "" {
			answer(w, http.StatusUnauthorized, "application/json", map[string]string{"message": "send the header " + secretHeader + ": 1"})
			return
		}
		a.serveOwn(w, r, name)
	case r.URL.Path == extensionPath && r.Method == http.MethodGet:
		if r.Header.Get(tokenHeader) == "" {
			answer(w, http.StatusUnauthorized, "application/json", map[string]string{"message": "send the header " + tokenHeader})
			return
		}
		q := r.URL.Query()
		a.serveAWS(w, r, awsRequest{SecretID: q.Get("secretId"), VersionID: q.Get("versionId"), VersionStage: q.Get("versionStage")})
	case r.Method == http.MethodPost && r.Header.Get("X-Amz-Target") == getTarget:
		var in awsRequest
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			awsFault(w, "InvalidRequestException", "the request cannot be read")
			return
		}
		a.serveAWS(w, r, in)
	case r.Method == http.MethodPost && strings.HasPrefix(r.Header.Get("X-Amz-Target"), "secretsmanager."):
		awsFault(w, "InvalidRequestException", "secrets are read here, with GetSecretValue, and changed with bawn secret")
	default:
		a.turnAway(w, r, "the endpoint in a sandbox has no such operation")
	}
}

// turnAway refuses a request to the endpoint that is for no secret.
func (a *attached) turnAway(w http.ResponseWriter, r *http.Request, reason string) {
	a.block("call", "A6", reason, map[string]string{"request": clip(r.Method + " " + r.URL.EscapedPath())})
	w.WriteHeader(http.StatusForbidden)
}

func answer(w http.ResponseWriter, status int, mime string, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		status, data = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", mime)
	w.WriteHeader(status)
	w.Write(data)
	clear(data)
}

// ownAnswer is the answer to GET /secrets/NAME. Just one of Value and Base64 is set.
type ownAnswer struct {
	Name    string  `json:"name"`
	Version int     `json:"version"`
	Value   *string `json:"value,omitempty"`
	Base64  []byte  `json:"base64,omitempty"`
}

func (a *attached) serveOwn(w http.ResponseWriter, r *http.Request, name string) {
	number := 0
	if text := r.URL.Query().Get("version"); text != "" {
		var err error
		if number, err = strconv.Atoi(text); err != nil || number < 1 {
			answer(w, http.StatusBadRequest, "application/json", map[string]string{"message": "version is a number from 1 on"})
			return
		}
	}
	value, err := a.namedSecret(r.Context(), name, number)
	if err != nil {
		status, message := http.StatusForbidden, "denied"
		switch bawn.ErrorCode(err) {
		case bawn.CodeDenied, bawn.CodeInvalid:
		case bawn.CodeNotFound:
			status, message = http.StatusNotFound, "there is no such version, or not any more"
		default:
			status, message = http.StatusServiceUnavailable, "try again"
		}
		answer(w, status, "application/json", map[string]string{"message": message})
		return
	}
	defer value.Clear()
	out := ownAnswer{Name: name, Version: value.Number()}
	if data := value.Bytes(); utf8.Valid(data) {
		text := string(data)
		out.Value = &text
	} else {
		out.Base64 = data
	}
	answer(w, http.StatusOK, "application/json", out)
}

func (a *attached) namedSecret(ctx context.Context, name string, number int) (secret.Value, error) {
	if err := bawn.CheckName("secret", name); err != nil {
		return secret.Value{}, err // what is no name is none's
	}
	return a.useSecret(ctx, name, number, secret.Read)
}

// awsRequest is a GetSecretValue of AWS Secrets Manager.
type awsRequest struct {
	SecretID     string `json:"SecretId"`
	VersionID    string `json:"VersionId"`
	VersionStage string `json:"VersionStage"`
}

// awsAnswer is its answer.
type awsAnswer struct {
	ARN           string
	CreatedDate   float64
	Name          string
	SecretBinary  []byte  `json:",omitempty"`
	SecretString  *string `json:",omitempty"`
	VersionID     string  `json:"VersionId"`
	VersionStages []string
}

const (
	awsARN      = "arn:aws:secretsmanager:"
	awsVersion  = "00000000-0000-4000-8000-%012d" // AWS' clients want at least 32 characters
	awsCurrent  = "AWSCURRENT"
	awsPrevious = "AWSPREVIOUS"
)

// awsName returns the name of a secret that AWS' clients call by name or ARN, whose
// six random characters at the end are left out.
func (a *attached) awsName(id string) string {
	if len(id) > maxSecretID || !strings.HasPrefix(id, awsARN) {
		return id
	}
	_, name, _ := strings.Cut(id, ":secret:")
	for _, u := range a.v.Perimeter.Egress.Secrets {
		if name == u.Name {
			return name
		}
	}
	if i := len(name) - 7; i > 0 && name[i] == '-' {
		return name[:i]
	}
	return name
}

// awsNumber returns the version that a request is for; 0 is the current one.
func (a *attached) awsNumber(name string, in awsRequest) (int, bool) {
	if in.VersionID != "" {
		n := 0
		if _, err := fmt.Sscanf(in.VersionID, awsVersion, &n); err != nil || n < 1 || fmt.Sprintf(awsVersion, n) != in.VersionID {
			return 0, false
		}
		return n, true
	}
	switch in.VersionStage {
	case "", awsCurrent:
		return 0, true
	case awsPrevious:
		n := a.b.cfg.Secrets.Previous(a.v, name)
		return n, n > 0
	}
	return 0, false
}

func (a *attached) serveAWS(w http.ResponseWriter, r *http.Request, in awsRequest) {
	const noVersion = "Secrets Manager can't find the specified secret value."
	name := a.awsName(in.SecretID)
	if a.b.cfg.Secrets == nil || bawn.CheckName("secret", name) != nil {
		awsFault(w, "AccessDeniedException", "denied")
		return
	}
	number, ok := a.awsNumber(name, in)
	if !ok {
		awsFault(w, "ResourceNotFoundException", noVersion)
		return
	}
	value, err := a.namedSecret(r.Context(), name, number)
	switch bawn.ErrorCode(err) {
	case "":
	case bawn.CodeDenied:
		awsFault(w, "AccessDeniedException", "denied")
		return
	case bawn.CodeNotFound:
		awsFault(w, "ResourceNotFoundException", noVersion)
		return
	default:
		w.Header().Set("X-Amzn-Errortype", "InternalServiceError")
		answer(w, http.StatusInternalServerError, "application/x-amz-json-1.1", map[string]string{"__type": "InternalServiceError", "Message": "try again"})
		return
	}
	defer value.Clear()
	out := awsAnswer{
		ARN: awsARN + "us-east-1:000000000000:secret:" + name, Name: name, VersionID: fmt.Sprintf(awsVersion, value.Number()),
		VersionStages: []string{awsPrevious},
	}
	if s, err := a.b.cfg.Secrets.Get(a.v.Tenant, name); err == nil {
		for _, v := range s.Versions {
			if v.Number == value.Number() {
				out.CreatedDate = float64(v.CreatedAt.UnixMilli()) / 1000
				if v.Ends == nil {
					out.VersionStages = []string{awsCurrent}
				}
			}
		}
	}
	if data := value.Bytes(); utf8.Valid(data) {
		text := string(data)
		out.SecretString = &text
	} else {
		out.SecretBinary = data
	}
	answer(w, http.StatusOK, "application/x-amz-json-1.1", out)
}

// awsFault is an error as AWS' clients know it.
func awsFault(w http.ResponseWriter, kind, message string) {
	w.Header().Set("X-Amzn-Errortype", kind)
	answer(w, http.StatusBadRequest, "application/x-amz-json-1.1", map[string]string{"__type": kind, "Message": message})
}

package egress

import (
	"context"
	"net/http"

	"bawn.dev/bawn/internal/sandbox"
)

// attachSecrets returns the secrets that an instance gets as files.
func (a *attached) attachSecrets(context.Context) ([]sandbox.AttachedFile, map[string]string, error) {
	return nil, nil, nil
}

// staleSecrets reports whether a secret that the instance holds was replaced.
func (a *attached) staleSecrets() bool { return false }

// serveSecrets answers a request of the function's code for a secret.
func (a *attached) serveSecrets(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusForbidden)
}

package trigger

import (
	"errors"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"bawn.dev/bawn"
)

// Who is too slow hears that, and not that the body was wrong.
func TestSlowBodyIsNamed(t *testing.T) {
	r := httptest.NewRequest("POST", "/", iotest.ErrReader(os.ErrDeadlineExceeded))
	_, err := readBody(r, &share{room: new(room), most: maxHeld})
	var e *bawn.Error
	if !errors.As(err, &e) || e.Code != bawn.CodeInvalid || !strings.Contains(e.Message, "slowly") || e.Fix == "" {
		t.Errorf("got %v", err)
	}
}

package node

import (
	"maps"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/internal/store"
)

func TestParseLabels(t *testing.T) {
	got, err := parseLabels([]string{"region=eu", "zone=eu-1.A_b"})
	if err != nil || !maps.Equal(got, map[string]string{"region": "eu", "zone": "eu-1.A_b"}) || labelText(got) != "region=eu zone=eu-1.A_b" {
		t.Error(got, err)
	}
	if got, err := parseLabels(nil); got != nil || err != nil {
		t.Error(got, err)
	}
	many := make([]string, 17)
	for i := range many {
		many[i] = "l" + strings.Repeat("x", i) + "=v"
	}
	for _, bad := range [][]string{{"region"}, {"=eu"}, {"region="}, {"Region=eu"}, {"region=e u"}, {"region=e\x1b[2J"}, {"region=eu=us"}, {"region=eu", "region=us"}, {"region=" + strings.Repeat("x", 64)}, many} {
		if got, err := parseLabels(bad); err == nil {
			t.Errorf("%q is taken: %v", bad, got)
		}
	}
}

// TestRetentionOfLines: what is settled for a label counts for a line whoever writes
// it, of a version that is being tested too, and never lengthens its time.
func TestRetentionOfLines(t *testing.T) {
	r := &redaction{settled: func() bool { return true }}
	r.versions.Store(&store.Table[bawn.Version]{})
	most := time.Hour
	r.kept = func(v *bawn.Version) time.Duration { return most }
	v := &bawn.Version{Tenant: "main", Function: "shop", Number: 3}
	defer r.trial(v)()
	var got time.Duration
	write := r.lines(func(_ bawn.LogLine, d time.Duration) { got = d })
	line := func(function string, platform bool, want time.Duration) {
		t.Helper()
		if write(bawn.LogLine{Tenant: "main", Function: function, Version: 3, Platform: platform}, 24*time.Hour); got != want {
			t.Errorf("%s, platform %v: kept %s, want %s", function, platform, got, want)
		}
	}
	line("shop", false, time.Hour)
	line("shop", true, time.Hour)
	line("other", false, 24*time.Hour)
	most = 48 * time.Hour
	line("shop", false, 24*time.Hour)
	most, r.settled = time.Hour, func() bool { return false }
	line("shop", false, 24*time.Hour)
}

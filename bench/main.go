// Bench prints how fast and how small Bawn is, as ratios against a baseline in
// the same run: a bare interpreter, a reverse proxy of the standard library, a
// bare HTTP server. It drives a real bin/bawn with every wall on. Candidate and
// baseline alternate within each round, the ratio of a round is that of their
// medians, and the figure is the median of the rounds. Absolute times belong to
// the machine; ratios are what can be compared.
//
//	go run ./bench [-rounds 5] [-only REGEXP] [-o json]
//
// It needs root, as Bawn does, and takes about three minutes.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Result is one line of the report.
type Result struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit"`
	Bawn     float64 `json:"bawn"`
	Baseline float64 `json:"baseline,omitempty"`
	Against  string  `json:"against,omitempty"` // what the baseline is
	Ratio    float64 `json:"ratio,omitempty"`   // of Bawn to the baseline, the median of the rounds
	Low      float64 `json:"low,omitempty"`     // the lowest of the rounds
	High     float64 `json:"high,omitempty"`
	Goal     string  `json:"goal"`
	Met      bool    `json:"met"`
	Note     string  `json:"note,omitempty"`
}

// A goal is a bound on a ratio, or on a value where there is no baseline.
type goal struct {
	least bool // the figure must be at least, not at most, the bound
	bound float64
}

func atMost(v float64) goal  { return goal{false, v} }
func atLeast(v float64) goal { return goal{true, v} }

func (g goal) met(v float64) bool {
	if g.least {
		return v >= g.bound
	}
	return v <= g.bound
}

func (g goal) String() string {
	if g.least {
		return "≥ " + number(g.bound)
	}
	return "≤ " + number(g.bound)
}

// A bench is one run.
type bench struct {
	bawn    string // the binary
	rounds  int
	dir     string // everything is written here
	only    *regexp.Regexp
	quiet   bool
	results []Result
	ends    []func() // what is running, to be ended
}

func main() {
	serve := flag.String("serve", "", "be a baseline server: bare, upstream, outside or proxy (used by the program itself)")
	to := flag.String("to", "", "with -serve proxy: the upstream's address")
	addr := flag.String("addr", "127.0.0.1:0", "with -serve: where to listen")
	b := &bench{}
	flag.StringVar(&b.bawn, "bawn", "bin/bawn", "the binary to measure")
	flag.IntVar(&b.rounds, "rounds", 5, "rounds of each measurement")
	only := flag.String("only", ".", "run the measurements whose name matches")
	output := flag.String("o", "text", "text or json")
	flag.Parse()
	if *serve != "" {
		exit(serveBaseline(*serve, *addr, *to))
	}
	var err error
	if b.only, err = regexp.Compile(*only); err != nil {
		exit(err)
	}
	b.quiet = *output == "json"
	exit(b.run(*output))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// measurements lists them in the order in which they run; each stands alone.
func (b *bench) measurements() []struct {
	name string
	run  func() error
} {
	return []struct {
		name string
		run  func() error
	}{
		{"size", b.sizes},
		{"ready", b.ready},
		{"cold", b.cold},
		{"empty", b.empty},
		{"never", b.never},
		{"warm", b.warm},
		{"refused", b.refused},
		{"wall", b.wall},
		{"inspect", b.inspect},
		{"policy", b.policies},
		{"refusals", b.refusals},
		{"overload", b.overload},
		{"slow", b.slow},
		{"egress", b.egress},
		{"rest", b.rest},
	}
}

func (b *bench) run(output string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("sandboxes are made by root: run as root")
	}
	if b.rounds < 1 {
		return errors.New("-rounds must be 1 or more")
	}
	if b.bawn, err = filepath.Abs(b.bawn); err != nil {
		return err
	}
	if _, err := os.Stat(b.bawn); err != nil {
		return fmt.Errorf("%w; make build makes it", err)
	}
	if b.dir, err = os.MkdirTemp("", "bawn-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	defer b.end()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		b.end()
		os.RemoveAll(b.dir)
		os.Exit(130)
	}()
	before := load()
	if !b.quiet {
		fmt.Printf("%s, %d cores, %s; %d rounds\n", runtime.Version(), runtime.NumCPU(), kernel(), b.rounds)
		if before > float64(runtime.NumCPU())/2 {
			fmt.Printf("The load average is %s before this begins: other programs run, and ratios against a\nsingle process look worse than they are.\n", number(before))
		}
		fmt.Println()
		fmt.Printf("%-44s %12s %12s %8s %15s %8s\n", "", "bawn", "baseline", "ratio", "of the rounds", "goal")
	}
	for _, m := range b.measurements() {
		if !b.only.MatchString(m.name) {
			continue
		}
		if err := m.run(); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		b.end()
	}
	if output == "json" {
		return json.NewEncoder(os.Stdout).Encode(map[string]any{
			"go": runtime.Version(), "cores": runtime.NumCPU(), "kernel": kernel(), "load": before, "rounds": b.rounds, "results": b.results,
		})
	}
	missed := 0
	for _, r := range b.results {
		if !r.Met {
			missed++
		}
	}
	fmt.Printf("\n%d figures, %d goals met, %d missed\n", len(b.results), len(b.results)-missed, missed)
	return nil
}

// end stops what a measurement started.
func (b *bench) end() {
	for _, f := range slices.Backward(b.ends) {
		f()
	}
	b.ends = nil
}

// compare adds a result from the rounds' medians of candidate and baseline.
func (b *bench) compare(name, unit, against string, bawn, base []float64, g goal, note string) {
	var ratios []float64
	for i := range bawn {
		ratios = append(ratios, bawn[i]/base[i])
	}
	b.add(Result{
		Name: name, Unit: unit, Against: against, Bawn: median(bawn), Baseline: median(base),
		Ratio: median(ratios), Low: slices.Min(ratios), High: slices.Max(ratios),
		Goal: g.String(), Met: g.met(median(ratios)), Note: note,
	})
}

// value adds a result without a baseline.
func (b *bench) value(name, unit string, v float64, g goal, note string) {
	b.add(Result{Name: name, Unit: unit, Bawn: v, Goal: g.String() + " " + unit, Met: g.met(v), Note: note})
}

func (b *bench) add(r Result) {
	b.results = append(b.results, r)
	if b.quiet {
		return
	}
	base, ratio, spread := "", "", ""
	if r.Against != "" {
		base, ratio = number(r.Baseline)+" "+r.Unit, number(r.Ratio)
		spread = number(r.Low) + " to " + number(r.High)
	}
	verdict := "met"
	if !r.Met {
		verdict = "MISSED"
	}
	fmt.Printf("%-44s %12s %12s %8s %15s %8s  %s\n", r.Name, number(r.Bawn)+" "+r.Unit, base, ratio, spread, r.Goal, verdict)
	for _, s := range []string{r.Against, r.Note} {
		if s != "" {
			fmt.Printf("    %s\n", s)
		}
	}
}

func median(v []float64) float64 { return quantile(v, 0.5) }

// quantile returns the q-quantile of v, NaN if it is empty.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// number writes v with three significant digits.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || v == math.Trunc(v) && a >= 1:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// load returns the host's load average over a minute, 0 where it is not told.
func load() float64 {
	b, _ := os.ReadFile("/proc/loadavg")
	var l float64
	fmt.Sscan(string(b), &l)
	return l
}

func kernel() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown kernel"
	}
	return "Linux " + strings.TrimSpace(string(b))
}

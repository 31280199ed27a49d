package waf

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/corazawaf/coraza-coreruleset/v4/tests"
	"pgregory.net/rapid"
)

// corpus returns every text in the rule set's own tests: values of arguments, whole
// bodies and paths, as they are and decoded.
func corpus(t testing.TB) []string {
	t.Helper()
	seen := map[string]bool{}
	line := regexp.MustCompile(`(?m)^\s+(?:uri|data|[A-Z][\w-]+): ["']?(.+?)["']?\s*$`)
	add := func(s string) {
		if len(s) < 4096 {
			seen[s] = true
		}
	}
	err := fs.WalkDir(tests.FS, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || path.Ext(name) != ".yaml" {
			return err
		}
		raw, err := fs.ReadFile(tests.FS, name)
		for _, m := range line.FindAllStringSubmatch(string(raw), -1) {
			add(m[1])
			_, query, _ := strings.Cut(m[1], "?")
			for _, form := range []string{m[1], query} {
				for pair := range strings.SplitSeq(form, "&") {
					key, value, _ := strings.Cut(pair, "=")
					for _, s := range []string{key, value} {
						add(s)
						if plain, err := url.QueryUnescape(s); err == nil {
							add(plain)
						}
					}
				}
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	all := make([]string, 0, len(seen))
	for s := range seen {
		all = append(all, s)
	}
	slices.Sort(all)
	return all
}

// clearsRightly fails t if the shortcut clears what the engine finds something in.
func clearsRightly(t testing.TB, i *Inspector, level int, text string) bool {
	t.Helper()
	s, err := i.hold()
	if err != nil {
		t.Fatal(err)
	}
	defer i.release(s)
	left, err := s.short.suspicious([]Leaf{{At: 1, Text: text}, {At: 2, Text: text, Name: true}}, level)
	if err != nil {
		t.Fatal(err)
	}
	both := []Leaf{{At: 1, Text: text}, {At: 2, Text: text, Name: true}}
	both = slices.DeleteFunc(both, func(l Leaf) bool { return slices.Contains(left, l) })
	if len(both) == 0 {
		return false
	}
	v, err := s.search(Question{Level: level}, both)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Rules) > 0 {
		t.Errorf("level %d: %q is cleared, and %v find it", level, text, v.Rules)
	}
	return !both[0].Name
}

// The proof of the shortcut, D4: on each text of the rule set's own tests, and at
// each level, it clears nothing in which the engine finds something. So a document
// has the same verdict with it and without.
func TestD4ShortcutOnCorpus(t *testing.T) {
	i := inspector(t)
	all := corpus(t)
	// The rules of a level are among those of the next: what these find nothing in
	// need not be looked at again.
	clear := map[string]bool{}
	for level := MaxLevel; level >= 1; level-- {
		for _, text := range all {
			if !clear[text] {
				clear[text] = clearsRightly(t, i, level, text)
			}
		}
	}
	cleared := 0
	for _, yes := range clear {
		if yes {
			cleared++
		}
	}
	t.Logf("%d of %d texts of attacks and of what looks like one are cleared", cleared, len(all))
	// And together: what one leaf adds to another's score is the same.
	direct := inspector(t)
	direct.direct = true
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 150 {
		q := Question{Level: 1 + n%MaxLevel}
		for at := range 1 + r.IntN(8) {
			q.Leaves = append(q.Leaves, Leaf{At: at, Text: all[r.IntN(len(all))], Name: r.IntN(4) == 0})
		}
		// The engine looks at arguments in no order, and what some rules capture of the
		// last one decides on another: it has more than one answer to a few questions.
		var with, without []string
		for !slices.ContainsFunc(with, func(s string) bool { return slices.Contains(without, s) }) {
			with, without = append(with, fmt.Sprint(ask(t, i, q))), append(without, fmt.Sprint(ask(t, direct, q)))
			if len(with) == 10 {
				t.Fatalf("%+v: %v with the shortcut, %v without", q.Leaves, with, without)
			}
		}
	}
}

// The same of texts made of what the rules look for, in whatever order.
func TestD4ShortcutHolds(t *testing.T) {
	i := inspector(t)
	rules, err := readRules()
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, r := range rules {
		if r.ofArguments() {
			for _, w := range regexp.MustCompile(`[A-Za-z0-9_.@:-]{2,}`).FindAllString(r.argument, -1) {
				words = append(words, w)
			}
		}
	}
	for _, file := range []string{"unix-shell.data", "windows-powershell-commands.data", "php-variables.data", "lfi-os-files.data"} {
		all, err := keywords(file)
		if err != nil {
			t.Fatal(err)
		}
		words = append(words, all...)
	}
	for _, w := range []string{"bmV3IEZ1bmN0aW9uKA", "cmVxdWlyZSgnaHR0cCcp", "XyQkTkRfRlVOQyQkXw", "d2hpbGUoMSk", "or 1", "like", "is not", "1", "--", "  ", ".", "É", "ſ"} {
		words = append(words, w)
	}
	word := rapid.OneOf(rapid.SampledFrom(words), rapid.StringMatching(`[a-zA-Z0-9]{1,9}`), rapid.SampledFrom([]string{" ", ",", ", ", ".", "-", "_", ":", "@", "?", "!", "/", "'", "%"}))
	rapid.Check(t, func(rt *rapid.T) {
		text := strings.Join(rapid.SliceOfN(word, 1, 6).Draw(rt, "words"), rapid.SampledFrom([]string{"", " ", ","}).Draw(rt, "between"))
		clearsRightly(t, i, rapid.IntRange(1, MaxLevel).Draw(rt, "level"), text)
	})
}

// FuzzShortcut looks for a text that the shortcut clears and the engine does not.
func FuzzShortcut(f *testing.F) {
	for n, s := range []string{"Ada Lovelace, 12 Main St.", "order by 1", "2026-11-21T10:00:00Z", "ada@example.com", "sleep 5", "bmV3IEZ1bmN0aW9uKA"} {
		f.Add(s, byte(n))
	}
	i := inspector(f)
	f.Fuzz(func(t *testing.T, text string, level byte) {
		if len(text) < 4096 {
			clearsRightly(t, i, 1+int(level)%MaxLevel, text)
		}
	})
}

// The automaton finds what strings.Contains does.
func TestMatcher(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.StringMatching(`[abc]{1,4}`), 0, 6).Draw(t, "words")
		text := rapid.StringMatching(`[abcd]{0,12}`).Draw(t, "text")
		want := slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
		if got := newMatcher(words).in(text); got != want {
			t.Fatalf("%q in %q: %v", words, text, got)
		}
	})
}

// Ordinary text does not reach the engine at the level that is the default: what
// the shortcut is for.
func TestShortcutIsWorthIt(t *testing.T) {
	i := inspector(t)
	ask(t, i, Question{Level: 1, Leaves: []Leaf{{Text: "'"}}})
	i.mu.Lock()
	short, err := i.set.short.at(1)
	i.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"Ada Lovelace", "12 Main St., Springfield", "ada@example.com", "2026-11-21T10:00:00Z", "Two of them, please!", "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
		"blue", "XL", "EUR", "Please ring twice.", "FR-1234567",
	} {
		if !short.clears(text) {
			t.Errorf("%q goes to the engine", text)
		}
	}
}

// Control D4: what a form that is sent to a route is refused for is refused in an
// event by name as well, and the other way round.
func TestD4EventsAsForms(t *testing.T) {
	i := inspector(t)
	data := regexp.MustCompile(`(?m)^\s+data: ["']?([^=\s"'{<]+=.+?)["']?\s*$`)
	seen, differ := map[string]bool{}, 0
	err := fs.WalkDir(tests.FS, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || path.Ext(name) != ".yaml" {
			return err
		}
		raw, err := fs.ReadFile(tests.FS, name)
		for _, m := range data.FindAllStringSubmatch(string(raw), -1) {
			key, value, _ := strings.Cut(m[1], "=")
			if plain, err := url.QueryUnescape(value); err == nil {
				value = plain
			}
			if seen[key+"="+value] || len(value) > 2000 {
				continue
			}
			seen[key+"="+value] = true
			form := url.QueryEscape(key) + "=" + url.QueryEscape(value)
			r := plainRequest
			r.Body = []byte(form)
			r.Header = map[string][]string{"Accept": {"*/*"}, "User-Agent": {"event"}, "Content-Type": {"application/x-www-form-urlencoded"}, "Content-Length": {fmt.Sprint(len(form))}}
			a := ask(t, i, Question{Request: &r, Body: r.Body, Level: 1})
			b := ask(t, i, Question{Leaves: []Leaf{{At: 1, Text: key, Name: true}, {At: 2, Text: value}}, Level: 1})
			if a.Attack != b.Attack {
				differ++
				t.Logf("%s=%q: %v as a form, %v as an event", key, value, a, b)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Escapes of JSON and names of session cookies are for HTTP alone, as the rules have it.
	t.Logf("%d of %d differ", differ, len(seen))
	if differ*100 > len(seen) {
		t.Errorf("%d of %d have another verdict in an event", differ, len(seen))
	}
}

package waf

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bawn.dev/bawn"
)

func inspector(t testing.TB) *Inspector {
	t.Helper()
	i := New()
	i.Need(true)
	t.Cleanup(i.Close)
	return i
}

func ask(t testing.TB, i *Inspector, q Question) Verdict {
	t.Helper()
	v, err := i.Ask(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Nothing of what an event is held in is found by any rule of any level, and
// neither is the name of the argument that stands for a string.
func TestD4Frame(t *testing.T) {
	i := inspector(t)
	for level := 1; level <= MaxLevel; level++ {
		if v := ask(t, i, Question{Request: &plainRequest, Level: level}); len(v.Rules) > 0 {
			t.Errorf("level %d finds %v in the request of an event", level, v.Rules)
		}
		i.mu.Lock()
		short, err := i.set.short.at(level)
		i.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < 300_000; n += 1 + n/100 {
			if l := (Leaf{At: n}); !short.clears(l.argument()) {
				t.Fatalf("level %d: the name %s is not clear", level, l.argument())
			}
		}
	}
}

// D4: text of attacks is found in each place where a caller can put it.
func TestD4Places(t *testing.T) {
	i := inspector(t)
	const sql, sqlURL = "x' OR 1=1 --", "x'+OR+1=1+--"
	request := func(change func(*bawn.Request)) *bawn.Request {
		r := &bawn.Request{Method: "POST", Host: "shop.example", Path: "/orders", Proto: "HTTP/1.1", Header: map[string][]string{
			"User-Agent": {"curl/8"}, "Accept": {"*/*"},
		}}
		change(r)
		return r
	}
	body := func(kind, text string) Question {
		return Question{Body: []byte(text), Request: request(func(r *bawn.Request) {
			r.Body = []byte(text)
			r.Header["Content-Type"], r.Header["Content-Length"] = []string{kind}, []string{fmt.Sprint(len(text))}
		})}
	}
	part := func(head, text string) Question {
		return body("multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; "+head+"\r\n\r\n"+text+"\r\n--b--\r\n")
	}
	for name, c := range map[string]struct {
		q    Question
		rule int // 0: nothing is found
	}{
		"leaf":          {Question{Leaves: []Leaf{{At: 1, Text: sql}}}, 942100},
		"name":          {Question{Leaves: []Leaf{{At: 1, Text: sql, Name: true}}}, 942100},
		"query":         {Question{Request: request(func(r *bawn.Request) { r.Query = "a=" + sqlURL })}, 942100},
		"name in query": {Question{Request: request(func(r *bawn.Request) { r.Query = sqlURL + "=1" })}, 942100},
		"path":          {Question{Request: request(func(r *bawn.Request) { r.Path = "/orders/..%2f..%2fetc/passwd" })}, 930100},
		"cookie":        {Question{Request: request(func(r *bawn.Request) { r.Header["Cookie"] = []string{"a=<script>alert(1)</script>"} })}, 941110},
		"header":        {Question{Request: request(func(r *bawn.Request) { r.Header["X-Any"] = []string{"${jndi:ldap://x/a}"} })}, 944150},
		"user agent":    {Question{Request: request(func(r *bawn.Request) { r.Header["User-Agent"] = []string{"sqlmap/1"} })}, 913100},
		"form":          {body("application/x-www-form-urlencoded", "a="+sqlURL), 942100},
		"part":          {part(`name="a"`, sql), 942100},
		"file's name":   {part(`name="a"; filename="shell.php"`, "x"), 933110},
		"XML":           {body("application/xml", "<a>"+sql+"</a>"), 942100},
		"broken part":   {body("multipart/form-data; boundary=b", "--b\r\nno"), 200003},
		"nothing":       {Question{Request: request(func(r *bawn.Request) { r.Query = "city=Cork&n=3" })}, 0},
		"good form":     {body("application/x-www-form-urlencoded", "name=Ada+Lovelace&street=12+Main+St."), 0},
		"good part":     {part(`name="a"; filename="me.png"`, "\x89PNG"), 0},
	} {
		c.q.Level = 1
		v := ask(t, i, c.q)
		if v.Attack != (c.rule != 0) || c.rule != 0 && !slices.Contains(v.Rules, c.rule) {
			t.Errorf("%s: %+v, want %d", name, v, c.rule)
		}
		if c.rule == 0 || c.rule < FirstRule {
			continue
		}
		c.q.Exclude = v.Rules
		if v := ask(t, i, c.q); v.Attack {
			t.Errorf("%s: excluded, and still %+v", name, v)
		}
	}
}

// D4: what is more than can be read is refused, and so is who would have to wait
// for long.
func TestD4Bounds(t *testing.T) {
	i := inspector(t)
	long := strings.Repeat("a'", maxText/2+1)
	_, err := i.Ask(t.Context(), Question{Leaves: []Leaf{{Text: long}}, Level: 1})
	if bawn.ErrorCode(err) != bawn.CodeTooLarge {
		t.Errorf("too much text: %v", err)
	}
	if _, err := i.Ask(t.Context(), Question{Leaves: []Leaf{{Text: strings.Repeat("a b ", maxText)}}, Level: 1}); err != nil {
		t.Errorf("much plain text: %v", err)
	}
	if _, err := i.Ask(t.Context(), Question{Level: 5}); err == nil {
		t.Error("there is a fifth level")
	}
	for range cap(i.turns) {
		i.turns <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range maxWaiting {
		all.Go(func() { i.Ask(ctx, Question{Leaves: []Leaf{{Text: "'"}}, Level: 1}) })
	}
	for len(i.waiting) < maxWaiting {
		time.Sleep(time.Millisecond)
	}
	if _, err := i.Ask(t.Context(), Question{Leaves: []Leaf{{Text: "'"}}, Level: 1}); bawn.ErrorCode(err) != bawn.CodeUnavailable {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	all.Wait()
}

// The rules are loaded when first asked, by one of many, and go when nothing needs
// them.
func TestD4Loaded(t *testing.T) {
	i := New()
	defer i.Close()
	i.Need(true)
	if i.Loaded() {
		t.Error("loaded before anybody asked")
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if v, err := i.Ask(context.Background(), Question{Leaves: []Leaf{{Text: "<script>alert(1)</script>"}}, Level: 1}); err != nil || !v.Attack {
				t.Error(v, err)
			}
		})
	}
	all.Wait()
	if !i.Loaded() {
		t.Error("not loaded after use")
	}
	i.Need(false)
	if i.Loaded() {
		t.Error("loaded though nothing needs it")
	}
}

func benchmark(b *testing.B, direct bool, q Question) {
	i := inspector(b)
	i.direct = direct
	q.Level = 1
	for b.Loop() {
		if _, err := i.Ask(b.Context(), q); err != nil {
			b.Fatal(err)
		}
	}
}

var sentence = []Leaf{{Text: "A nice day in the park, with Peter."}}

func BenchmarkHeaders(b *testing.B)    { benchmark(b, false, Question{Request: &plainRequest}) }
func BenchmarkLeaf(b *testing.B)       { benchmark(b, false, Question{Leaves: sentence}) }
func BenchmarkLeafEngine(b *testing.B) { benchmark(b, true, Question{Leaves: sentence}) }

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		s, err := load()
		if err != nil {
			b.Fatal(err)
		}
		s.close()
	}
}

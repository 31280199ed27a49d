package waf

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
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

// A head that was found clear is clear again, whatever the length of its body, and one
// that differs in anything else is looked at.
func TestD4HeadsAreRemembered(t *testing.T) {
	i := inspector(t)
	head := func(change func(*bawn.Request)) *bawn.Request {
		r := plainRequest
		r.Header = maps.Clone(r.Header)
		r.Path, r.Query = "/orders", "city=Cork"
		change(&r)
		return &r
	}
	ask(t, i, Question{Request: head(func(*bawn.Request) {}), Level: 1})
	if n := len(i.set.heads.clear); n != 1 {
		t.Fatalf("%d heads are remembered", n)
	}
	for _, n := range []int{1, 7, 99, 1024, 65536, 6 << 20} {
		for level := 1; level <= MaxLevel; level++ {
			r := head(func(r *bawn.Request) { r.Header["Content-Length"], r.Query = []string{fmt.Sprint(n)}, "" })
			v, err := i.set.search(Question{Request: r, Level: level}, nil)
			if err != nil || len(v.Rules) > 0 {
				t.Errorf("level %d finds %v for the length %d, %v", level, v.Rules, n, err)
			}
		}
	}
	for name, change := range map[string]func(*bawn.Request){
		"query": func(r *bawn.Request) { r.Query = "city=x'+OR+1=1+--" }, "path": func(r *bawn.Request) { r.Path = "/orders/../../etc/passwd" },
		"header": func(r *bawn.Request) { r.Header["X-A"] = []string{"${jndi:ldap://x/a}"} }, "agent": func(r *bawn.Request) { r.Header["User-Agent"] = []string{"sqlmap"} },
		"length": func(r *bawn.Request) { r.Header["Content-Length"] = []string{"x"} }, "cookie": func(r *bawn.Request) { r.Header["Cookie"] = []string{"a=<script>alert(1)</script>"} },
	} {
		for range 2 {
			if v := ask(t, i, Question{Request: head(change), Level: 1}); len(v.Rules) == 0 {
				t.Errorf("%s: nothing is found", name)
			}
		}
	}
	var h heads
	for n := range maxHeads + 100 {
		h.add(sha256.Sum256([]byte(fmt.Sprint(n))))
	}
	if len(h.clear) != maxHeads {
		t.Errorf("%d heads are remembered, which is not bounded", len(h.clear))
	}
}

// D4: nothing of a request is written to a disk for the engine.
func TestD4NothingIsWritten(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	body := "--b\r\nContent-Disposition: form-data; name=\"a\"; filename=\"me.png\"\r\n\r\nsecret\r\n--b--\r\n"
	without, doubtful := withoutFiles(&bawn.Request{Header: map[string][]string{"Content-Type": {"multipart/form-data; boundary=b"}}}, []byte(body))
	if strings.Contains(string(without), "secret") || !strings.Contains(string(without), "me.png") || len(doubtful) > 0 {
		t.Errorf("the engine gets %q and %v", without, doubtful)
	}
	i := inspector(t)
	for _, c := range []struct{ kind, text string }{
		{"multipart/form-data; boundary=b", body}, {"application/x-www-form-urlencoded", "a=" + strings.Repeat("x", maxText-2)},
	} {
		r := plainRequest
		r.Header = maps.Clone(r.Header)
		r.Header["Content-Type"], r.Body = []string{c.kind}, []byte(c.text)
		if v := ask(t, i, Question{Request: &r, Body: r.Body, Level: 1}); v.Attack {
			t.Errorf("%s: %v", c.kind, v.Rules)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// D4: a name that comes more than once hides nothing, in whatever order the engine
// looks at what has it.
func TestD4Repeated(t *testing.T) {
	i := inspector(t)
	i.direct = true // nothing is remembered
	for name, change := range map[string]func(r *bawn.Request){
		"header": func(r *bawn.Request) { r.Header["X-A"] = []string{"a", "${jndi:ldap://x/a}", "b"} },
		"cookie": func(r *bawn.Request) { r.Header["Cookie"] = []string{"a=b; a=<script>alert(1)</script>; a=c"} },
		"query":  func(r *bawn.Request) { r.Query = "b=1&a=1&a=x%27+OR+1%3D1+--&a=2" },
		"form": func(r *bawn.Request) {
			r.Header["Content-Type"], r.Body = []string{"application/x-www-form-urlencoded"}, []byte("b=1&a=1&%61=x%27+OR+1%3D1+--&a=2")
		},
		"parts": func(r *bawn.Request) {
			r.Header["Content-Type"] = []string{"multipart/form-data; boundary=b"}
			for _, text := range []string{"1", "x' OR 1=1 --", "2"} {
				r.Body = append(r.Body, "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n"+text+"\r\n"...)
			}
			r.Body = append(r.Body, "--b--\r\n"...)
		},
	} {
		for n := range 40 {
			r := plainRequest
			r.Header = maps.Clone(r.Header)
			change(&r)
			if v := ask(t, i, Question{Request: &r, Body: r.Body, Level: 1}); !v.Attack {
				t.Errorf("%s: nothing is found the time %d", name, n)
				break
			}
		}
	}
}

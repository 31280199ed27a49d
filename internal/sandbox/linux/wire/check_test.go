package wire

import (
	"math"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

func TestJ3RequestsAreChecked(t *testing.T) {
	exec := &Exec{Args: []string{"/bin/x"}}
	attach := func(change func(*Attach)) *Request {
		a := &Attach{Code: []string{"a"}, Memory: 1 << 20, CPU: 1, PIDs: 1}
		change(a)
		return &Request{Op: OpAttach, ID: "x", Attach: a}
	}
	open := func(ports ...Port) *Request { return &Request{Op: OpOpen, ID: "x", Open: &Open{Ports: ports}} }
	file := func(name string, size int) *Request {
		return attach(func(a *Attach) { a.Files = []File{{name, size}} })
	}
	for _, good := range []struct {
		r     *Request
		files int
	}{
		{&Request{Op: OpProbe}, 0},
		{&Request{Op: OpImage, Image: &Image{Name: "python3.11", Dir: "python3.11-0a", Kind: "python"}}, 0},
		{&Request{Op: OpStart, ID: "x", Start: &Start{Image: "i", Exec: exec}}, 2},
		{attach(func(*Attach) {}), 0},
		{&Request{Op: OpExec, ID: "x", Exec: exec}, 0},
		{attach(func(a *Attach) { a.Files = []File{{"/run/bawn/hosts", 3}, {"/run/secrets/A_key.1", MaxFileSize}} }), 1},
		{open(Port{"tcp", 443, false}, Port{"udp", 443, false}, Port{"tcp", 9001, true}), 0},
		{&Request{Op: OpOpen, ID: "x", Open: &Open{Local: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("2001:db8::/32")}}}, 0},
		{&Request{Op: OpKill, ID: "x"}, 0},
	} {
		if err := good.r.Check(good.files); err != nil {
			t.Errorf("%s: %v", good.r.Op, err)
		}
		if good.r.Check(good.files+1) == nil || good.files > 0 && good.r.Check(good.files-1) == nil {
			t.Errorf("%s was taken with more or fewer descriptors", good.r.Op)
		}
	}
	start := func(e *Exec) *Request { return &Request{Op: OpStart, ID: "x", Start: &Start{Image: "i", Exec: e}} }
	for name, bad := range map[string]*Request{
		"no operation":         {},
		"another operation":    {Op: "mount"},
		"no sandbox":           {Op: OpKill},
		"a sandbox as a path":  {Op: OpKill, ID: "../x"},
		"an image with a name": {Op: OpProbe, ID: "x"},
		"nothing to attach":    {Op: OpAttach, ID: "x"},
		"more than is asked":   {Op: OpKill, ID: "x", Open: &Open{Ports: []Port{{"tcp", 80, false}}}},
		"two things":           {Op: OpExec, ID: "x", Exec: exec, Attach: &Attach{}},
		"a root outside":       {Op: OpImage, Image: &Image{Name: "i", Dir: "../etc", Kind: "python"}},
		"an absolute root":     {Op: OpImage, Image: &Image{Name: "i", Dir: "/etc", Kind: "python"}},
		"the helper's folder":  {Op: OpImage, Image: &Image{Name: "i", Dir: ".mounts", Kind: "python"}},
		"no filter":            {Op: OpImage, Image: &Image{Name: "i", Dir: "i-1", Kind: ""}},
		"a filter of its own":  {Op: OpImage, Image: &Image{Name: "i", Dir: "i-1", Kind: "all"}},
		"no program":           {Op: OpExec, ID: "x", Exec: &Exec{}},
		"a relative program":   {Op: OpExec, ID: "x", Exec: &Exec{Args: []string{"x"}}},
		"a zero byte":          {Op: OpExec, ID: "x", Exec: &Exec{Args: []string{"/x\x00"}}},
		"no ports":             {Op: OpOpen, ID: "x"},
		"nothing to open":      open(),
		"port 0":               open(Port{"tcp", 0, false}),
		"port 65536":           open(Port{"tcp", 65536, false}),
		"a raw socket":         open(Port{"raw", 1, false}),
		"a port twice":         open(Port{"tcp", 80, false}, Port{"tcp", 80, true}),
		"a thousand ports":     open(make([]Port, 1000)...),
		"no range":             {Op: OpOpen, ID: "x", Open: &Open{Local: make([]netip.Prefix, 1)}},
		"a thousand ranges":    {Op: OpOpen, ID: "x", Open: &Open{Local: make([]netip.Prefix, 1000)}},
		"a range with a host":  {Op: OpOpen, ID: "x", Open: &Open{Local: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 8)}}},
		"a file elsewhere":     file("/etc/passwd", 1),
		"a file above":         file("/run/secrets/../../etc/passwd", 1),
		"a file below":         file("/run/secrets/a/b", 1),
		"a folder":             file("/run/secrets/", 1),
		"a hidden file":        file("/run/secrets/.x", 1),
		"less than no file":    file("/run/secrets/a", -1),
		"a large file":         file("/run/secrets/a", MaxFileSize+1),
		"a file twice":         attach(func(a *Attach) { a.Files = []File{{"/run/secrets/a", 1}, {"/run/secrets/a", 1}} }),
		"a thousand files":     attach(func(a *Attach) { a.Files = make([]File, 1000) }),
		"large files": attach(func(a *Attach) {
			for i := range 5 {
				a.Files = append(a.Files, File{"/run/secrets/" + string(rune('a'+i)), MaxFileSize})
			}
		}),
		"code outside":       attach(func(a *Attach) { a.Code = []string{"../etc"} }),
		"code above":         attach(func(a *Attach) { a.Code = []string{".."} }),
		"absolute code":      attach(func(a *Attach) { a.Code = []string{"/etc"} }),
		"all of the code":    attach(func(a *Attach) { a.Code = []string{"."} }),
		"code by a detour":   attach(func(a *Attach) { a.Code = []string{"a/../../etc"} }),
		"no code":            attach(func(a *Attach) { a.Code = nil }),
		"a thousand folders": attach(func(a *Attach) { a.Code = strings.Split(strings.Repeat("a,", 999)+"a", ",") }),
		"no memory":          attach(func(a *Attach) { a.Memory = 0 }),
		"negative memory":    attach(func(a *Attach) { a.Memory = -1 }),
		"all memory":         attach(func(a *Attach) { a.Memory = math.MaxInt64 }),
		"no processor":       attach(func(a *Attach) { a.CPU = 0 }),
		"no number":          attach(func(a *Attach) { a.CPU = math.NaN() }),
		"endless processor":  attach(func(a *Attach) { a.CPU = math.Inf(1) }),
		"no processes":       attach(func(a *Attach) { a.PIDs = 0 }),
		"a fork bomb":        attach(func(a *Attach) { a.PIDs = math.MaxInt32 }),
		"less than no tmp":   attach(func(a *Attach) { a.Tmp = -1 }),
	} {
		for files := range 3 {
			if bad.Check(files) == nil {
				t.Errorf("%s was taken", name)
			}
		}
	}
	for name, e := range map[string]*Exec{
		"too many arguments":  {Args: strings.Split(strings.Repeat("/x ", 99), " ")},
		"too much to start":   {Args: []string{"/" + strings.Repeat("x", 200<<10)}},
		"too many variables":  {Args: []string{"/x"}, Env: make([]string, 5000)},
		"a start of no thing": {},
	} {
		if start(e).Check(2) == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// FuzzRequest holds that what the spawner acts on is within bounds, whatever
// bytes the server sends.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"seq":1,"op":"start","id":"x","start":{"image":"i","exec":{"args":["/a"],"env":null}}}`), 2)
	f.Add([]byte(`{"seq":1,"op":"attach","id":"x","attach":{"code":["x"],"memory":1048576,"cpu":0.5,"pids":1,"tmp":0,"exec":false}}`), 0)
	f.Add([]byte(`{"seq":1,"op":"image","image":{"name":"i","dir":"i-1","kind":"wasm"}}`), 0)
	f.Add([]byte(`{"op":"open","id":"x","open":{"ports":[{"network":"tcp","port":80}],"local":["10.0.0.0/8"]}}`), 0)
	f.Add([]byte(`{"op":"probe","uid":0}`), 0)
	f.Fuzz(func(t *testing.T, b []byte, files int) {
		var r Request
		if Decode(b, &r) != nil || r.Check(files) != nil {
			return
		}
		if files < 0 || files > MaxFiles {
			t.Fatalf("%d descriptors were taken", files)
		}
		if r.ID != "" && (filepath.Base(r.ID) != r.ID || len(r.ID) > maxID) {
			t.Fatalf("identifier %q", r.ID)
		}
		if i := r.Image; i != nil && (filepath.Base(i.Dir) != i.Dir || i.Dir[0] == '.' || filepath.Base(i.Name) != i.Name) {
			t.Fatalf("image %+v", i)
		}
		if a := r.Attach; a != nil {
			for _, dir := range a.Code {
				if !filepath.IsLocal(dir) || dir == "." || strings.Contains(dir, "\x00") {
					t.Fatalf("code %q", dir)
				}
			}
			if !(a.CPU > 0 && a.CPU <= maxCPU) || a.Memory < minMemory || a.PIDs < 1 || a.PIDs > maxPIDs || a.Tmp < 0 || len(a.Code) > MaxCode {
				t.Fatalf("limits %+v", a)
			}
		}
	})
}

package interior

import (
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"bawn.dev/bawn"
)

// TestImages makes a root of each runtime's image, starts its program in there
// and has it run a handler: nothing is missing, and nothing else is needed.
func TestImages(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("changing the root folder needs root: images are not tested")
	}
	home, _ := os.UserHomeDir()
	list := FindRuntimes(t.Context(), slog.New(slog.DiscardHandler))
	if len(list) != len(bawn.Runtimes()) {
		t.Fatalf("%d definitions, want one for each runtime", len(list))
	}
	for _, d := range list {
		t.Run(string(d.Runtime), func(t *testing.T) {
			if !d.Ready() {
				t.Skip(d.Missing)
			}
			root := t.TempDir()
			os.Chmod(root, 0o755)
			for _, dir := range []string{"dev", "tmp", "var/task"} {
				os.MkdirAll(filepath.Join(root, dir), 0o755)
			}
			syscall.Mknod(filepath.Join(root, "dev/null"), syscall.S_IFCHR|0o666, 1<<8|3)
			seen := map[string]bool{}
			for _, f := range d.Image.Files {
				if seen[f.Path] || !filepath.IsAbs(f.Path) || f.Path != filepath.Clean(f.Path) {
					t.Errorf("%s is there twice or is not a clean path", f.Path)
				}
				seen[f.Path] = true
				if home != "/" && strings.HasPrefix(f.Path, home) {
					t.Errorf("%s shows whose home folder it is from", f.Path)
				}
				to := filepath.Join(root, f.Path)
				os.MkdirAll(filepath.Dir(to), 0o755)
				switch {
				case f.Host != "":
					if i, err := os.Lstat(f.Host); err != nil || i.Mode()&fs.ModeSymlink != 0 {
						t.Errorf("%s: the host's %s is a link or missing: %v", f.Path, f.Host, err)
					}
					if out, err := exec.Command("cp", "-a", "--reflink=auto", f.Host, to).CombinedOutput(); err != nil {
						t.Fatalf("%v: %s", err, out)
					}
				case f.Link != "":
					os.Symlink(f.Link, to)
				default:
					if err := os.WriteFile(to, f.Data, f.Mode); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, name := range []string{"/etc/passwd", "/etc/hosts", "/etc/resolv.conf"} {
				if !seen[name] {
					t.Errorf("%s is missing", name)
				}
			}
			task := map[string][2]string{
				"python": {"app.py", "import ssl, sqlite3, ctypes, hashlib, zoneinfo, sys, json, decimal, uuid, lzma, bz2, socket, asyncio, multiprocessing\n" +
					"def handler(event, context): return [sys.prefix, sys.executable, ssl.create_default_context().cert_store_stats()['x509'] > 0, str(zoneinfo.ZoneInfo('Europe/Berlin'))]"},
				"nodejs": {"app.js", "exports.handler = async () => [process.execPath, new Date(0).toLocaleString('de-DE', {timeZone: 'Europe/Berlin'}), require('crypto').createHash('sha256').update('').digest('hex').length]"},
			}[d.Runtime.Family()]
			if len(d.Args) == 0 || task[0] == "" {
				return
			}
			os.WriteFile(filepath.Join(root, "var/task", task[0]), []byte(task[1]), 0o644)
			p := startProgramIn(t, root, d.Env, d.Args...)
			mustLoad(t, p, testIdentity(d.Runtime, "app.handler"))
			got := string(call(t, p, "{}").Payload)
			want := map[string]string{
				"python": `", "` + d.Args[0] + `", true, "Europe/Berlin"]`,
				"nodejs": `["/usr/local/bin/node","1.1.1970, 01:00:00",64]`,
			}[d.Runtime.Family()]
			if !strings.HasSuffix(got, want) {
				t.Errorf("answered %s, want %s", got, want)
			}
		})
	}
}

func TestRuntimesAreFoundOrExplained(t *testing.T) {
	t.Setenv("PATH", "relative")
	t.Setenv("HOME", t.TempDir())
	for _, d := range FindRuntimes(t.Context(), slog.New(slog.DiscardHandler)) {
		if d.Image.Name != string(d.Runtime) {
			t.Errorf("the image of %s is called %s", d.Runtime, d.Image.Name)
		}
		if d.Ready() == (d.Found == "") && d.Missing == "" || !d.Ready() && !strings.Contains(d.Missing, "install it") && !strings.Contains(d.Missing, "make build") {
			t.Errorf("%s: found %q, missing %q", d.Runtime, d.Found, d.Missing)
		}
	}
}

func TestEnvironment(t *testing.T) {
	id := testIdentity(bawn.Provided, "x")
	env := environment(&id)
	if !slices.IsSorted(env) {
		t.Errorf("%q is not sorted", env)
	}
	for _, want := range []string{"_HANDLER=x", "GREETING=grüß Gott", "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001", "AWS_REGION=us-east-1",
		"AWS_DEFAULT_REGION=us-east-1", "AWS_LAMBDA_FUNCTION_NAME=hello", "AWS_LAMBDA_FUNCTION_VERSION=3", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=256",
		"AWS_LAMBDA_INITIALIZATION_TYPE=on-demand", "AWS_LAMBDA_LOG_GROUP_NAME=/aws/lambda/hello", "AWS_LAMBDA_LOG_STREAM_NAME=2026/03/04/[3]i-1",
		"LAMBDA_TASK_ROOT=/var/task", "LAMBDA_RUNTIME_DIR=/var/runtime", "TZ=:UTC", "LANG=en_US.UTF-8",
		"PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin"} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is missing in %q", want, env)
		}
	}
	for _, e := range env {
		if strings.HasPrefix(e, "AWS_EXECUTION_ENV=") {
			t.Errorf("provided runtimes have no %s", e)
		}
	}
	id = testIdentity(bawn.Python312, "x")
	if e := environmentMap(&id); e["AWS_EXECUTION_ENV"] != "AWS_Lambda_python3.12" || e["AWS_LAMBDA_RUNTIME_API"] != "" {
		t.Errorf("python sees %q", e)
	}
}

func TestBounded(t *testing.T) {
	var b strings.Builder
	if n, err := io.Copy(&bounded{w: &b, left: 5}, strings.NewReader("hello, world")); n != 12 || err != nil || b.String() != "hello" {
		t.Errorf("took %d bytes, kept %q, %v", n, b.String(), err)
	}
}

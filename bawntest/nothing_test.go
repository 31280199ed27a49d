package bawntest

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// nothing tries forty things that no function may do that asked for nothing.
const nothing = `
import ctypes, http.client, os, platform, socket, urllib.parse

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NUMBERS = {
    "ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "bpf": (321, 280), "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "perf_event_open": (298, 241), "init_module": (175, 105), "kexec_load": (246, 104),
    "reboot": (169, 142), "swapon": (167, 224), "open_by_handle_at": (304, 265), "process_vm_readv": (310, 270), "sethostname": (170, 161),
    "clock_settime": (227, 112), "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60), "fanotify_init": (300, 262),
}
tried = []

def attempt(name, run):
    try:
        tried.append([name, False, str(run())])
    except OSError as e:
        tried.append([name, True, str(e)])

def syscall(name):
    if libc.syscall(ctypes.c_long(NUMBERS[name][platform.machine() == "aarch64"]), *[ctypes.c_long(0)] * 6) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def ask(method, path, **headers):
    conn = http.client.HTTPConnection("127.0.0.1", 9002, timeout=20)
    conn.request(method, path, "{}", headers)
    r = conn.getresponse()
    text = r.read().decode()
    conn.close()
    if r.status < 400:
        return text
    raise OSError(r.status, text)

def invoke(name, **headers):
    return ask("POST", "/2015-03-31/functions/" + urllib.parse.quote(name, safe="") + "/invocations", **headers)

def handler(event, context):
    for name in NUMBERS:
        attempt(name, lambda: syscall(name))
    attempt("run a shell", lambda: os.execv("/bin/sh", ["sh"]))
    attempt("program in memory", lambda: os.memfd_create("x"))
    attempt("raw packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    attempt("write its own code", lambda: open("/var/task/app.py", "w"))
    attempt("make a folder", lambda: os.mkdir("/etc/x"))
    attempt("remove a file", lambda: os.unlink("/etc/passwd"))
    attempt("move a file", lambda: os.rename("/etc/passwd", "/etc/x"))
    attempt("call another", lambda: invoke("other"))
    attempt("ask whether it may", lambda: invoke("other", **{"X-Amz-Invocation-Type": "DryRun"}))
    attempt("call itself", lambda: invoke("nothing"))
    attempt("call what is not there", lambda: invoke("missing"))
    attempt("call another account's", lambda: invoke("arn:aws:lambda:us-east-1:210987654321:function:other"))
    attempt("list functions", lambda: ask("GET", "/2015-03-31/functions"))
    attempt("list secrets", lambda: ask("GET", "/v1/secrets"))
    return tried
`

// TestA2NothingIsAllowed deploys a function whose manifest asks for nothing: what
// it tries is denied, and each denial is a record.
func TestA2NothingIsAllowed(t *testing.T) {
	n := newTown(t)
	n.deploy("other", []string{"anyone"}, nil)
	n.MustDeploy("nothing", map[string]any{"runtime": string(n.rt), "handler": "app.handler"}, map[string]string{"app.py": nothing})
	var tried [][3]any
	if err := json.Unmarshal([]byte(invoke(t, n.Client, "nothing", map[string]any{})), &tried); err != nil {
		t.Fatal(err)
	}
	if len(tried) != 40 {
		t.Errorf("%d attempts", len(tried))
	}
	for _, a := range tried {
		if a[1] != true {
			t.Errorf("%v: allowed: %v", a[0], a[2])
		}
	}
	var found []bawn.Record
	// Those that the sandbox stops become records in the background.
	for end := time.Now().Add(10 * time.Second); len(found) < len(tried) && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		found = n.records(func(r *bawn.Record) bool {
			return r.Kind == bawn.KindBlocked && r.Function == "nothing" ||
				r.Kind == bawn.KindDecision && r.Outcome == "deny" && r.Principal == "function:nothing@1"
		})
	}
	var names []string
	for _, r := range found {
		names = append(names, r.Action+" "+r.Reason)
		if r.Detail["dropped"] != "" {
			t.Errorf("a record stands for more than one: %+v", r)
		}
	}
	if len(found) != 40 {
		t.Errorf("%d records:\n%s", len(found), strings.Join(names, "\n"))
	}
}

package wire

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Bounds of what a spawner lets itself be asked for. They are at or above the
// platform's own, so that a message over them is no mistake but an attack.
const (
	MaxCode      = 8   // folders of one sandbox
	MaxPorts     = 72  // sockets of one request
	MaxLocal     = 128 // ranges of one request
	MaxAttached  = 64  // files of one sandbox
	MaxFileSize  = 1 << 20
	MaxFilesSize = 4 << 20 // of all together
	maxSecret    = 128     // bytes of a file's name
	maxID        = 40      // bytes of a sandbox's or an image's name
	maxDir       = 80      // bytes of a root's name
	maxCodePath  = 1024    // bytes
	maxArgs      = 64      // arguments of a program
	maxEnv       = 1024    // variables of a program
	maxExecBytes = 96 << 10
	minMemory    = 1 << 20
	maxMemory    = 1 << 40
	maxCPU       = 1024
	maxPIDs      = 1 << 16
	maxTmp       = 1 << 40
)

// Where the files of a sandbox are: in memory, below RunDir in it. SecretsDir is
// the folder there whose files the program alone may read.
const (
	RunDir     = "/run"
	SecretsDir = "secrets"
)

// Kinds are the programs that a spawner has a system call filter for.
func Kinds() []string { return []string{"python", "nodejs", "provided", "wasm"} }

// Check reports whether a request that came with so many descriptors is one
// that the server may make: of a known kind, with what that needs, with nothing
// else, and within bounds. It looks at nothing but the message.
func (r *Request) Check(files int) error {
	var payload any
	named, wantFiles := true, 0
	switch r.Op {
	case OpProbe:
		named = false
	case OpImage:
		named, payload = false, r.Image
	case OpStart:
		payload, wantFiles = r.Start, 2
	case OpAttach:
		payload = r.Attach
		if r.Attach != nil && len(r.Attach.Files) > 0 {
			wantFiles = 1
		}
	case OpExec:
		payload = r.Exec
	case OpOpen:
		payload = r.Open
	case OpFreeze, OpThaw, OpInspect, OpKill:
	default:
		return fmt.Errorf("unknown request %.20q", string(r.Op))
	}
	switch {
	case files != wantFiles:
		return fmt.Errorf("%s comes with %d descriptors, want %d", r.Op, files, wantFiles)
	case named:
		if err := CheckID(r.ID); err != nil {
			return err
		}
	case r.ID != "":
		return fmt.Errorf("%s names a sandbox", r.Op)
	}
	for _, p := range []struct {
		op  Op
		set bool
	}{{OpImage, r.Image != nil}, {OpStart, r.Start != nil}, {OpAttach, r.Attach != nil}, {OpExec, r.Exec != nil}, {OpOpen, r.Open != nil}} {
		if p.set != (r.Op == p.op) {
			return fmt.Errorf("%s without what it needs, or with more", r.Op)
		}
	}
	switch p := payload.(type) {
	case *Image:
		return p.check()
	case *Start:
		return p.check()
	case *Attach:
		return p.check()
	case *Exec:
		return p.check()
	case *Open:
		return p.check()
	}
	return nil
}

// CheckID keeps the identifiers that become file names harmless.
func CheckID(id string) error { return checkName(id, maxID) }

func checkName(name string, most int) error {
	if name == "" || len(name) > most || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || name[0] == '.' {
		return fmt.Errorf("bad identifier %.60q", name)
	}
	return nil
}

func (i *Image) check() error {
	if err := CheckID(i.Name); err != nil {
		return err
	}
	if err := checkName(i.Dir, maxDir); err != nil {
		return err
	}
	for _, k := range Kinds() {
		if i.Kind == k {
			return nil
		}
	}
	return fmt.Errorf("no filter for %.20q", i.Kind)
}

func (s *Start) check() error {
	if err := CheckID(s.Image); err != nil {
		return err
	}
	if s.Exec == nil {
		return nil
	}
	return s.Exec.check()
}

func (e *Exec) check() error {
	if len(e.Args) == 0 || len(e.Args) > maxArgs || len(e.Env) > maxEnv {
		return errors.New("no program, or too many arguments or variables")
	}
	if !path.IsAbs(e.Args[0]) {
		return errors.New("the program is no absolute path")
	}
	size := 0
	for _, list := range [][]string{e.Args, e.Env} {
		for _, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return errors.New("an argument or a variable holds a zero byte")
			}
			size += len(s) + 1
		}
	}
	if size > maxExecBytes {
		return errors.New("arguments and environment are too large")
	}
	return nil
}

func (a *Attach) check() error {
	switch {
	case len(a.Code) == 0 || len(a.Code) > MaxCode:
		return fmt.Errorf("want 1 to %d folders", MaxCode)
	case a.Memory < minMemory || a.Memory > maxMemory, a.PIDs < 1 || a.PIDs > maxPIDs, a.Tmp < 0 || a.Tmp > maxTmp:
		return errors.New("bad limits")
	case !(a.CPU > 0 && a.CPU <= maxCPU): // so written, it refuses what is no number
		return errors.New("bad limits")
	}
	for _, dir := range a.Code {
		if len(dir) > maxCodePath || strings.IndexByte(dir, 0) >= 0 || dir == "." || dir != path.Clean(dir) || path.IsAbs(dir) || dir == ".." || strings.HasPrefix(dir, "../") {
			return fmt.Errorf("folder %.200q is not below the folder of code", dir)
		}
	}
	if len(a.Files) > MaxAttached {
		return fmt.Errorf("more than %d files", MaxAttached)
	}
	seen, total := make(map[string]bool, len(a.Files)), 0
	for _, f := range a.Files {
		if !attachable(f.Path) || seen[f.Path] {
			return fmt.Errorf("no file is attached at %.200q, or two are", f.Path)
		}
		seen[f.Path] = true
		if total += f.Size; f.Size < 0 || f.Size > MaxFileSize || total > MaxFilesSize {
			return errors.New("the files are too large")
		}
	}
	return nil
}

// attachable reports whether a sandbox may have a file of its own at name.
func attachable(name string) bool {
	switch name {
	case RunDir + "/bawn/hosts", RunDir + "/bawn/resolv.conf", RunDir + "/bawn/ca.pem":
		return true
	}
	dir, base := path.Split(name)
	return dir == RunDir+"/"+SecretsDir+"/" && checkName(strings.ToLower(strings.ReplaceAll(base, "_", "-")), maxSecret) == nil
}

func (o *Open) check() error {
	if len(o.Ports) > MaxPorts || len(o.Local) > MaxLocal || len(o.Ports)+len(o.Local) == 0 {
		return errors.New("nothing to open, or too much")
	}
	for i, p := range o.Ports {
		if p.Network != "tcp" && p.Network != "udp" || p.Port < 1 || p.Port > 65535 {
			return errors.New("bad port")
		}
		for _, q := range o.Ports[:i] {
			if q.Network == p.Network && q.Port == p.Port {
				return errors.New("a port twice")
			}
		}
	}
	for _, r := range o.Local {
		if !r.IsValid() || r != r.Masked() || r.Addr().Is4In6() {
			return errors.New("bad range")
		}
	}
	return nil
}

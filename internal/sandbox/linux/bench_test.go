package linux

import (
	"fmt"
	"net/netip"
	"testing"

	"bawn.dev/bawn/internal/sandbox"
)

// BenchmarkStart measures a hardened sandbox without a program: from nothing,
// and with its end.
func BenchmarkStart(b *testing.B) {
	d := newDriver(b)
	if err := d.Prepare(b.Context(), sandbox.Image{Name: "empty", Syscall: sandbox.SyscallProvided}); err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		n++
		box, err := d.Start(b.Context(), sandbox.Spec{ID: fmt.Sprintf("b-%d", n), Image: "empty"})
		if err != nil {
			b.Fatal(err)
		}
		box.Kill()
		<-box.Done()
		box.Conn().Close()
		box.Output().Close()
	}
}

// BenchmarkAttach measures what a cold call waits for of this driver: of code
// alone, with the files of a function that reaches some names, and with a bundle
// of authorities.
func BenchmarkAttach(b *testing.B) {
	hosts := sandbox.AttachedFile{Path: sandbox.HostsFile, Data: make([]byte, 300)}
	for name, files := range map[string][]sandbox.AttachedFile{
		"code":        nil,
		"hosts":       {hosts},
		"authorities": {hosts, {Path: sandbox.CAFile, Data: make([]byte, 230<<10)}, {Path: sandbox.SecretsDir + "/key", Data: make([]byte, 100)}},
	} {
		b.Run(name, func(b *testing.B) {
			code := b.TempDir()
			benchBox(b, func(box sandbox.Sandbox) error {
				return box.Attach(b.Context(), sandbox.Attachment{Code: []string{code}, Memory: 256 << 20, CPU: 1, PIDs: 64, Tmp: 64 << 20, Files: files})
			})
		})
	}
}

// BenchmarkOpen measures what it waits for besides if it reaches anything.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{1, 16} {
		for _, ranges := range []int{0, 2} {
			b.Run(fmt.Sprintf("%d ports, %d ranges", n, ranges), func(b *testing.B) {
				var ports []sandbox.Port
				for i := range n {
					ports = append(ports, sandbox.Port{Network: "tcp", Port: 443 + i})
				}
				local := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("198.51.100.0/24")}[:ranges]
				benchBox(b, func(box sandbox.Sandbox) error {
					files, err := box.Open(b.Context(), ports, local)
					for _, f := range files {
						f.Close()
					}
					return err
				})
			})
		}
	}
}

// benchBox measures f on fresh sandboxes.
func benchBox(b *testing.B, f func(sandbox.Sandbox) error) {
	d := newDriver(b)
	if err := d.Prepare(b.Context(), sandbox.Image{Name: "empty", Syscall: sandbox.SyscallProvided}); err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		box, err := d.Start(b.Context(), sandbox.Spec{ID: fmt.Sprintf("b-%d", n), Image: "empty"})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		err = f(box)
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		box.Kill()
		<-box.Done()
		box.Conn().Close()
		box.Output().Close()
		b.StartTimer()
	}
}

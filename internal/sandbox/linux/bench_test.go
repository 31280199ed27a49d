package linux

import (
	"fmt"
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

// BenchmarkAttach measures what a cold call waits for of this driver.
func BenchmarkAttach(b *testing.B) {
	d := newDriver(b)
	if err := d.Prepare(b.Context(), sandbox.Image{Name: "empty", Syscall: sandbox.SyscallProvided}); err != nil {
		b.Fatal(err)
	}
	code := b.TempDir()
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		box, err := d.Start(b.Context(), sandbox.Spec{ID: fmt.Sprintf("b-%d", n), Image: "empty"})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := box.Attach(b.Context(), sandbox.Attachment{Code: []string{code}, Memory: 256 << 20, CPU: 1, PIDs: 64, Tmp: 64 << 20}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		box.Kill()
		<-box.Done()
		box.Conn().Close()
		box.Output().Close()
		b.StartTimer()
	}
}

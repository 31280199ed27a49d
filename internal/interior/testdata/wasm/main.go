// Command wasm is a WASI command as users write it. Its first argument of the
// event's "do" says what it does.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

var calls int

func main() {
	var e struct {
		Do string
		N  int
	}
	b, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	calls++
	switch e.Do {
	case "echo":
		os.Stdout.Write(b)
	case "env":
		json.NewEncoder(os.Stdout).Encode(os.Environ())
	case "large":
		fmt.Print(strings.Repeat("x", e.N))
	case "exit":
		os.Exit(e.N)
	case "panic":
		panic("sudden")
	case "log":
		fmt.Fprintln(os.Stderr, "to the log")
	case "calls":
		fmt.Print(calls)
	case "escape":
		_, read := os.ReadFile("/etc/passwd")
		_, list := os.ReadDir("/")
		write := os.WriteFile("/tmp/x", nil, 0o600)
		_, dial := net.Dial("tcp", "127.0.0.1:80")
		fmt.Print(read != nil, list != nil, write != nil, dial != nil)
	case "memory":
		fmt.Print(len(make([]byte, e.N)))
	}
}

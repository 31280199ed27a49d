// Command bawn is Bawn: the node and the command line that speaks to it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"bawn.dev/bawn/internal/cli"
)

func main() {
	// A second signal kills at once: the first has been handled by then.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Main(ctx, os.Args[1:], cli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Now: time.Now}))
}

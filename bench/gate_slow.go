package main

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"time"
)

// slowModes are the attacks of slowhttptest.
func slowModes() [][]string {
	return [][]string{
		{"headers", "-H", "-i", "2", "-x", "24"},
		{"bodies", "-B", "-i", "2", "-s", "8192", "-x", "24"},
		{"ranges", "-R", "-a", "10", "-b", "3000"},
		{"readers", "-X", "-w", "512", "-y", "1024", "-n", "2", "-z", "32", "-k", "3"},
	}
}

// slow is what a good client feels while another address attacks by slow clients,
// against what it feels without.
func (b *bench) slow() error {
	program, err := exec.LookPath("slowhttptest")
	if err != nil {
		return nil // make setup installs it
	}
	n, err := b.startNode(filepath.Join(b.dir, "slow"))
	if err != nil {
		return err
	}
	python, _, err := n.interpreters()
	if err != nil {
		return err
	}
	if err := n.deploy(function{name: "slow", runtime: python.runtime, reuse: map[string]any{"maxAge": "1h"}}); err != nil {
		return err
	}
	settle()
	t, err := n.target("slow")
	if err != nil {
		return err
	}
	t.from = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)} // one address attacks, another calls
	if _, _, err := t.loop(2, time.Second); err != nil {
		return err
	}
	for _, mode := range slowModes() {
		var under, normal []float64
		for range b.rounds {
			each, _, err := t.loop(2, 3*time.Second)
			if err != nil {
				return err
			}
			normal = append(normal, quantile(each, 0.99))
			// What the program itself computes would not be done on the server's host: it
			// has what the others leave.
			cmd := exec.Command("nice", append(append([]string{"-n", "19", program}, mode[1:]...), "-c", "1100", "-r", "500", "-l", "8", "-p", "2", "-u", n.ctx.Public+"/slow")...)
			if err := cmd.Start(); err != nil {
				return err
			}
			time.Sleep(2500 * time.Millisecond) // for it to connect: its handshakes are a load of their own
			each, _, lerr := t.loop(2, 3*time.Second)
			cmd.Wait() // it ends by itself; how it judges the server is not looked at
			if lerr != nil {
				return fmt.Errorf("a good call under slow %s: %w", mode[0], lerr)
			}
			under = append(under, quantile(each, 0.99))
		}
		b.compare("p99 of a good client under slow "+mode[0], "ms", "the same client without the attack", under, normal, atMost(2),
			"slowhttptest with 1,100 connections of another address")
	}
	return nil
}

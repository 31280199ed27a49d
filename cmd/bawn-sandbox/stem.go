package main

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// A stem is a sandbox in the making: an init in its namespaces and its control
// groups, with no root and no locks yet. Moving a process into a control group
// waits for the kernel to let every fork on the host pass, some ten milliseconds
// on an idle machine, and no call should wait for that.
type stems struct {
	ready  chan *box
	orders chan struct{} // for those to be made
	quit   chan struct{}
	done   chan struct{}
	last   atomic.Int64 // when one was taken, UnixNano
}

// maxStems is how many are kept; each is a process of some two megabytes.
const maxStems = 4

// stemDelay keeps the making of stems out of the way of the call that took one.
const stemDelay = 25 * time.Millisecond

func newStems() stems {
	return stems{ready: make(chan *box, maxStems), orders: make(chan struct{}, maxStems), quit: make(chan struct{}), done: make(chan struct{})}
}

// take returns a stem, or nil if there is none.
func (p *stems) take() *box {
	p.last.Store(time.Now().UnixNano())
	select {
	case b := <-p.ready:
		p.orders <- struct{}{} // as many as are ready, on order or in the making: never more than there is room for
		return b
	default:
		return nil
	}
}

// end stops the making and takes back what was made.
func (p *stems) end() {
	close(p.quit)
	<-p.done
	for len(p.ready) > 0 {
		(<-p.ready).abandon()
	}
}

// growStems makes what is ordered while nobody takes any.
func (s *spawner) growStems() {
	p := &s.stems
	defer close(p.done)
	for range maxStems {
		p.orders <- struct{}{}
	}
	for {
		select {
		case <-p.orders:
		case <-p.quit:
			return
		}
		for {
			rest := stemDelay - time.Since(time.Unix(0, p.last.Load()))
			if rest <= 0 {
				break
			}
			select {
			case <-time.After(rest):
			case <-p.quit:
				return
			}
		}
		b, err := s.newStem()
		if err != nil {
			os.Stderr.WriteString("bawn-sandbox: " + err.Error() + "\n")
			continue // whoever starts a sandbox will be told
		}
		p.ready <- b // there are no more orders than places
	}
}

// newStem makes an init in new namespaces and control groups.
func (s *spawner) newStem() (*box, error) {
	var uid uint32
	if !s.rootless { // else there is one user for all
		var err error
		if uid, err = s.users.take(); err != nil {
			return nil, fmt.Errorf("users for a sandbox: %w", err)
		}
	}
	name := fmt.Sprintf("b%d", s.serial.Add(1))
	b := &box{s: s, name: name, share: "s/" + name, gone: make(chan struct{}), answered: make(chan struct{}), notify: -1}
	if err := b.grow(uid); err != nil {
		b.abandon()
		return nil, err
	}
	return b, nil
}

func (b *box) grow(uid uint32) error {
	if err := b.makeShare(); err != nil {
		return err
	}
	if err := b.makeFiles(uid); err != nil {
		return err
	}
	ctl, theirs, err := wire.Pair()
	if err != nil {
		return err
	}
	b.ctl = ctl
	err = b.s.fork(func() error { return b.clone(uid, theirs) })
	theirs.Close()
	if err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	b.group, err = b.s.cgroups.Create(b.name, b.pid, warmLimits)
	return err
}

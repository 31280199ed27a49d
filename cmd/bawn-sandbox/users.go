package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Users of sandboxes. Each sandbox has two that no other had before: the pair
// is counted up, blocks of it are reserved on disk, and the count starts over
// only after 600 million sandboxes.
const (
	firstUID = 0x3000_0000
	endUID   = 0x7fff_0000
	uidBlock = 1 << 16
	nextUID  = "next-uid" // the file that holds the count
)

// users counts in a folder that nobody else writes to. The server has no say in
// who a sandbox runs as.
type users struct {
	dir int // descriptor of the folder

	mu         sync.Mutex
	next, last uint32 // what is left of the block that is reserved on disk
}

// take returns the first of two fresh users.
func (u *users) take() (uint32, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.next == u.last {
		next := uint64(firstUID)
		text, err := u.read()
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return 0, err
		default:
			next, err = strconv.ParseUint(strings.TrimSpace(text), 10, 32)
			if err != nil || next < firstUID {
				return 0, fmt.Errorf("%s is damaged; remove it if no sandbox of this node runs", nextUID)
			}
		}
		if next+uidBlock > endUID {
			next = firstUID
		}
		if err := u.write(strconv.FormatUint(next+uidBlock, 10) + "\n"); err != nil {
			return 0, err
		}
		u.next, u.last = uint32(next), uint32(next+uidBlock)
	}
	uid := u.next
	u.next += 2
	return uid, nil
}

func (u *users) read() (string, error) {
	fd, err := unix.Openat(u.dir, nextUID, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var b [32]byte
	n, err := unix.Read(fd, b[:])
	return string(b[:max(n, 0)]), err
}

// write replaces the count for good, in one step.
func (u *users) write(text string) error {
	const staging = ".next-uid"
	if err := unix.Unlinkat(u.dir, staging, 0); err != nil && err != unix.ENOENT {
		return err
	}
	fd, err := unix.Openat(u.dir, staging, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), staging)
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := unix.Renameat(u.dir, staging, u.dir, nextUID); err != nil {
		return err
	}
	return unix.Fsync(u.dir)
}

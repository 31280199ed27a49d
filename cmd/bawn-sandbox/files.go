package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// Folders of the working file system for what sandboxes have in /run: the one is
// written here, the other is the same and read-only, and sandboxes have a part of
// that.
const (
	filesDir  = "f"
	filesView = "v"
)

// filesBytes bounds what the files of all sandboxes take together.
const filesBytes = 1 << 30

// Files that every sandbox has, unless it is given others: a name for loopback,
// and where to ask for all else.
var defaultFiles = map[string]string{
	"hosts":       "127.0.0.1 localhost\n::1 localhost\n",
	"resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
}

// mountFiles makes a file system in memory, of which no page is ever written to
// a disk where the kernel lets this process say so, as it does the host's root
// since Linux 6.4. It reports whether it could.
func mountFiles(rootless bool) (noswap bool, err error) {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	data := "mode=0711,size=" + strconv.Itoa(filesBytes)
	noswap = !rootless && unix.Mount("bawn", filesDir, "tmpfs", flags, data+",noswap") == nil
	if !noswap {
		err = unix.Mount("bawn", filesDir, "tmpfs", flags, data)
	}
	if err != nil {
		return false, fmt.Errorf("mount the folder of files: %w", err)
	}
	for name, text := range defaultFiles {
		if err := os.WriteFile(filesDir+"/."+name, []byte(text), 0o444); err != nil {
			return false, err
		}
	}
	if err := unix.Mount(filesDir, filesView, "", unix.MS_BIND, ""); err != nil {
		return false, err
	}
	return noswap, unix.Mount("", filesView, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|flags, "")
}

// makeFiles makes what a sandbox has in /run before it is a function's.
func (b *box) makeFiles(uid uint32) error {
	if b.uid = int(uid) + 1; b.s.rootless {
		b.uid = 0
	}
	dir := filesDir + "/" + b.name
	for _, d := range []string{dir, dir + "/bawn", dir + "/" + wire.SecretsDir} {
		if err := unix.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	for name := range defaultFiles {
		if err := unix.Link(filesDir+"/."+name, dir+"/bawn/"+name); err != nil {
			return err
		}
	}
	return nil
}

func (b *box) removeFiles() { os.RemoveAll(filesDir + "/" + b.name) }

// writeFiles puts files, which are one after the other in fd, where a sandbox
// sees them. What is secret only its program may read. The names were checked.
func (b *box) writeFiles(files []wire.File, fd int) error {
	// Reading a sealed file in memory never waits for anybody.
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	if got, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || got&seals != seals {
		return errors.New("want a sealed file in memory")
	}
	b.life.Lock() // or what is written here may be there after the end
	defer b.life.Unlock()
	if b.cleared {
		return errEnded
	}
	var at int64
	for _, f := range files {
		inside := strings.TrimPrefix(f.Path, wire.RunDir+"/")
		mode, owner := uint32(0o444), -1
		if path.Dir(inside) == wire.SecretsDir {
			mode, owner = 0o400, b.uid
		}
		name := filesDir + "/" + b.name + "/" + inside
		if err := unix.Unlink(name); err != nil && err != unix.ENOENT { // one of the default ones, which others have too
			return err
		}
		if err := copyNew(name, mode, owner, fd, &at, f.Size); err != nil {
			return err
		}
	}
	return nil
}

// copyNew makes a file of the next size bytes of another, which this process has
// no copy of.
func copyNew(name string, mode uint32, owner, from int, at *int64, size int) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if owner > 0 {
		if err := unix.Fchown(fd, owner, owner); err != nil {
			return err
		}
	}
	for size > 0 {
		n, err := unix.Sendfile(fd, from, at, size)
		if err == nil && n == 0 {
			err = errors.New("less is there than was said")
		}
		if err != nil && err != unix.EINTR {
			return err
		}
		size -= max(n, 0)
	}
	return nil
}

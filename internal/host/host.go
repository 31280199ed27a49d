// Package host is how a server that was started as root stops being it: it
// finds the user that it becomes, hands that user the data directory, and lets
// go of every privilege on every thread, for good.
package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn"
)

// DefaultName is the system user that the server becomes, if the host has it.
const DefaultName = "bawn"

// DefaultUID is the user and group that the server becomes where there is no
// user [DefaultName]. It is above those of people, services and containers, and
// above those of sandboxes.
const DefaultUID = 0x7fff_8443

// The users of sandboxes, which the helper counts; the server is none of them.
const (
	firstSandboxUID = 0x3000_0000
	endSandboxUID   = 0x7fff_0000
)

// User is whom the server runs as.
type User struct {
	Name     string // "" for one that is a number alone
	UID, GID int
}

// String returns what people call the user: the name and the number.
func (u User) String() string {
	if u.Name == "" {
		return "uid " + strconv.Itoa(u.UID)
	}
	return u.Name + " (uid " + strconv.Itoa(u.UID) + ")"
}

// Root reports whether the user is root.
func (u User) Root() bool { return u.UID == 0 }

// FindUser returns the user with a name or a number; "" means the one that a
// server becomes unless it is told otherwise.
func FindUser(name string) (User, error) {
	const op = "host.user"
	if name == "" {
		if u, err := FindUser(DefaultName); err == nil && !u.Root() {
			return u, nil
		}
		return User{UID: DefaultUID, GID: DefaultUID}, nil
	}
	found, err := user.Lookup(name)
	if err != nil {
		found, err = user.LookupId(name)
	}
	u := User{}
	if err == nil {
		u.Name = found.Username
		var err2 error
		u.UID, err = strconv.Atoi(found.Uid)
		u.GID, err2 = strconv.Atoi(found.Gid)
		err = errors.Join(err, err2)
	} else {
		u.UID, err = strconv.Atoi(name)
		u.GID = u.UID
	}
	switch {
	case err != nil:
		return User{}, bawn.Errorf(bawn.CodeInvalid, op, "there is no user %.60q", name).
			WithFix("make it (useradd --system %s), name another with --user, or give a number", DefaultName)
	case u.UID < 0 || int64(u.UID) > 1<<32-2, u.UID != 0 && u.GID == 0:
		return User{}, bawn.Errorf(bawn.CodeInvalid, op, "the server cannot run as user %.60q", name).WithFix("name one that is neither out of range nor in the group root")
	case u.UID >= firstSandboxUID && u.UID < endSandboxUID:
		return User{}, bawn.Errorf(bawn.CodeInvalid, op, "user %d is one that sandboxes run as", u.UID).WithFix("name another with --user, or leave that out")
	}
	return u, nil
}

// Become makes the whole process the user, with no capability in any set of any
// thread and no way to gain one. It cannot be undone. After an error the process
// has an unknown part of its privileges left and must end.
func Become(u User) error {
	if err := become(u); err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, "host.drop", "the server cannot become %s: %v", u, err).
			WithFix("name another user with --user; in a container give it the capabilities SETUID, SETGID and SETPCAP")
	}
	return nil
}

func become(u User) error {
	if u.Root() {
		return errors.New("that is no other user")
	}
	if unix.Geteuid() != 0 {
		return errors.New("the process is not root")
	}
	// The bounding set first: to drop it takes a capability.
	for c := uintptr(0); c < 64; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err == unix.EINVAL {
			break // past the kernel's last capability
		}
		if err == nil && has == 1 {
			err = onAllThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c)
		}
		if err != nil {
			return fmt.Errorf("bounding set: %w", err)
		}
	}
	var none [2]unix.CapUserData
	version := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"ambient set", func() error {
			return onAllThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
		}},
		{"keepcaps", func() error { return onAllThreads(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0) }},
		{"groups", func() error { return syscall.Setgroups([]int{}) }},
		{"group", func() error { return syscall.Setresgid(u.GID, u.GID, u.GID) }},
		{"user", func() error { return syscall.Setresuid(u.UID, u.UID, u.UID) }},
		{"capabilities", func() error {
			return onAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&version)), uintptr(unsafe.Pointer(&none[0])))
		}},
		{"no_new_privs", func() error { return onAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1) }},
		// Nobody with the same user may read the server's memory or its descriptors.
		{"dumpable", func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	s, err := Look()
	if err == nil {
		err = s.Holds(u)
	}
	return err
}

// onAllThreads makes a system call on every thread of the process.
func onAllThreads(nr, a, b uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(nr, a, b, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// Privileges is what the kernel says of the threads of this process.
type Privileges struct {
	Threads int
	UIDs    []string // every value of the line Uid that a thread has, each once
	GIDs    []string
	Groups  []string
	Caps    []string // sets that are not empty: "CapEff 0000000000000001"
	NoNew   bool     // no_new_privs is on for all
}

// Look reads the privileges of every thread.
func Look() (p Privileges, err error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return p, err
	}
	p.NoNew = true
	add := func(list *[]string, value string) {
		for _, v := range *list {
			if v == value {
				return
			}
		}
		*list = append(*list, value)
	}
	for _, t := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + t.Name() + "/status")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended meanwhile
		}
		if err != nil {
			return p, err
		}
		p.Threads++
		seen := 0
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			value = strings.Join(strings.Fields(value), " ")
			seen++
			switch key {
			case "Uid":
				add(&p.UIDs, value)
			case "Gid":
				add(&p.GIDs, value)
			case "Groups":
				if value != "" {
					add(&p.Groups, value)
				}
			case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
				if strings.Trim(value, "0") != "" {
					add(&p.Caps, key+" "+value)
				}
			case "NoNewPrivs":
				p.NoNew = p.NoNew && value == "1"
			default:
				seen--
			}
		}
		if seen != 9 {
			return p, fmt.Errorf("the kernel does not say which privileges thread %s has", t.Name())
		}
	}
	if p.Threads == 0 {
		return p, errors.New("the kernel lists no threads")
	}
	return p, nil
}

// Holds reports whether every thread is the user's and has no privilege at all.
func (p Privileges) Holds(u User) error {
	all := func(id int) string { return strings.TrimSpace(strings.Repeat(strconv.Itoa(id)+" ", 4)) }
	switch {
	case len(p.UIDs) != 1 || p.UIDs[0] != all(u.UID):
		return fmt.Errorf("threads have the users %s", strings.Join(p.UIDs, ", "))
	case len(p.GIDs) != 1 || p.GIDs[0] != all(u.GID):
		return fmt.Errorf("threads have the groups %s", strings.Join(p.GIDs, ", "))
	case len(p.Groups) > 0:
		return fmt.Errorf("threads have the further groups %s", strings.Join(p.Groups, ", "))
	case len(p.Caps) > 0:
		return fmt.Errorf("threads have capabilities: %s", strings.Join(p.Caps, ", "))
	case !p.NoNew:
		return errors.New("no_new_privs is not on")
	}
	return nil
}

// Give opens the data directory dir for a server that is to become u, and makes
// it and all below that user's if they are root's still; keep is the folder in it
// that stays root's. No link is followed. The caller is root and holds the lock
// of the directory.
func Give(dir string, u User, keep string) (*os.File, error) {
	const op = "host.data"
	f, err := os.OpenFile(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, bawn.Wrap(err, bawn.CodeUnavailable, op, "the data directory cannot be opened")
	}
	owner, err := ownerOf(f)
	switch {
	case err != nil:
	case owner == u.UID:
		// All below is the server's own making: nothing there is root's to touch.
		return f, nil
	case owner != 0:
		err = bawn.Errorf(bawn.CodeDenied, op, "the data directory %s belongs to user %d, and the server is to run as %s", dir, owner, u).
			WithFix("start with --user %d, or give it away: chown -R %d:%d %s", owner, u.UID, u.GID, dir)
	default:
		if err = giveBelow(f, u, keep, 0); err == nil {
			err = f.Chown(u.UID, u.GID) // last: what was broken off is done again
		}
		if err != nil {
			err = bawn.Wrap(err, bawn.CodeUnavailable, op, "the data directory %s cannot be given to %s: %v", dir, u, err).
				WithFix("mend what is named there, or keep root with --user root")
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Own reports whether the data directory dir is this process's own. Root can use
// another user's, and must not: what lies there may lead it elsewhere.
func Own(dir string) error {
	const op = "host.data"
	f, err := os.OpenFile(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, op, "the data directory cannot be opened")
	}
	defer f.Close()
	switch owner, err := ownerOf(f); {
	case err != nil:
		return bawn.Wrap(err, bawn.CodeUnavailable, op, "the data directory cannot be opened")
	case owner != os.Geteuid():
		return bawn.Errorf(bawn.CodeDenied, op, "the data directory %s belongs to user %d, and the server is to run as user %d", dir, owner, os.Geteuid()).
			WithFix("start as root with --user %d, or choose another with --data DIR", owner)
	}
	return nil
}

// Enter makes a process of root the owner of the data directory dir, if that is
// another user, for good and on every thread: what the owner has put there may
// lead root elsewhere, and leads nobody further than the owner goes anyway. It
// returns the directory as it can be reached from then on. A directory that is
// missing is left for the caller to miss.
func Enter(dir string) (string, error) {
	if os.Geteuid() != 0 {
		return dir, nil
	}
	// A name from here on: the present folder may be within reach when those above
	// it are not.
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", bawn.Wrap(err, bawn.CodeInvalid, "host.data", "the data directory cannot be found")
	}
	// A bare descriptor: it stays open until the process ends if it is needed.
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return dir, nil
	}
	var st, named unix.Stat_t
	if err == nil {
		if err = unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return "", bawn.Wrap(err, bawn.CodeUnavailable, "host.data", "the data directory %s cannot be opened", dir)
	}
	if st.Uid == 0 {
		unix.Close(fd)
		return dir, nil
	}
	u := User{UID: int(st.Uid), GID: int(st.Gid)}
	if u.GID == 0 {
		u.GID = u.UID
	}
	if err := Become(u); err != nil {
		return "", err
	}
	if unix.Stat(dir, &named) == nil && named.Dev == st.Dev && named.Ino == st.Ino {
		unix.Close(fd)
		return dir, nil
	}
	// A folder above is closed to the user; what is open is not.
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}

// Beside reports whether a process may put something beside a data directory, in
// the folder parent: for root that is one in which nobody else can replace what
// root has just made there.
func Beside(parent string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(parent, &st); err != nil {
		return bawn.Wrap(err, bawn.CodeUnavailable, "host.data", "the folder %s cannot be used", parent)
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
		return bawn.Errorf(bawn.CodeDenied, "host.data", "others than root can change what is in %s", parent).
			WithFix("run this as user %d, or name a folder below one that is root's alone", st.Uid)
	}
	return nil
}

// maxDepth bounds the folders below a data directory; a package has at most 32
// levels.
const maxDepth = 64

// giveBelow gives away what is in a folder that belongs to root, so that nobody
// else changes it meanwhile.
func giveBelow(dir *os.File, u User, keep string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: too many folders in one another", dir.Name())
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == keep {
			continue
		}
		name := filepath.Join(dir.Name(), e.Name())
		fd, err := unix.Openat2(int(dir.Fd()), e.Name(), &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		if err != nil {
			if err == unix.ELOOP {
				continue // a link, which is nobody's to follow
			}
			return fmt.Errorf("%s: %w", name, err)
		}
		err = giveOne(fd, name, u, depth)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func giveOne(fd int, name string, u User, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != 0 {
		return nil // given away before, or never root's
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		sub, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(sub), name)
		defer f.Close()
		if err := giveBelow(f, u, "", depth+1); err != nil {
			return err
		}
	case unix.S_IFREG:
		if st.Nlink != 1 {
			return errors.New("it has another name elsewhere, perhaps of a file of the host")
		}
	default:
		return nil
	}
	return unix.Fchownat(fd, "", u.UID, u.GID, unix.AT_EMPTY_PATH)
}

func ownerOf(f *os.File) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return int(st.Uid), nil
}

// Folder opens the folder name in the data directory data, and makes it if it is
// missing, as the user's. It follows no link and takes none that is another
// user's: who owns the data directory may have put it there.
func Folder(data *os.File, name string, u User) (*os.File, error) {
	const op = "host.data"
	path := filepath.Join(data.Name(), name)
	fail := func(err error) error {
		return bawn.Wrap(err, bawn.CodeUnavailable, op, "the folder %s cannot be used: %v", path, err)
	}
	made := unix.Mkdirat(int(data.Fd()), name, 0o700)
	if made != nil && made != unix.EEXIST {
		return nil, fail(made)
	}
	fd, err := unix.Openat(int(data.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail(err)
	}
	f := os.NewFile(uintptr(fd), path)
	if made == nil {
		err = f.Chown(u.UID, u.GID)
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	switch {
	case err != nil:
		err = fail(err)
	case int(st.Uid) != u.UID || st.Mode&0o022 != 0:
		err = bawn.Errorf(bawn.CodeConflict, op, "the folder %s is user %d's with mode %#o, and should be %s's alone", path, st.Uid, st.Mode&0o777, u).
			WithFix("find out who made it, then remove it: the node makes it again")
	default:
		return f, nil
	}
	f.Close()
	return nil, err
}

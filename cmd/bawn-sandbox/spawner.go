package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox/linux/cgroup"
	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// spawner is the long-lived privileged process. It answers the one server at
// the other end of its socket and ends, with every sandbox, when that is gone.
type spawner struct {
	server               *wire.Conn
	base                 string // the folder that its private mounts hang from
	cgroups              *cgroup.Tree
	missing              []string // cgroup controllers that are not there
	landlock             int      // the kernel's Landlock version that is used
	forks                chan func()
	stems                stems
	imageRoot, codeRoots []folder      // below which alone folders are taken from the host
	serial               atomic.Uint64 // of names

	mu     sync.Mutex
	images map[string]*wire.Image
	boxes  map[string]*box
	begun  map[string]bool // starts going on, by identifier: whether a kill came meanwhile
	code   map[string]int  // detached overlay by its folders
	ending bool
}

// masked are the parts of /proc that tell of the host or reach into it; the
// list is the one that container engines use, and the ones with sizes and
// command lines of the host.
var masked = []string{
	"/proc/acpi", "/proc/asound", "/proc/bus", "/proc/cgroups", "/proc/cmdline", "/proc/consoles", "/proc/config.gz",
	"/proc/diskstats", "/proc/driver", "/proc/fs", "/proc/interrupts", "/proc/iomem", "/proc/ioports", "/proc/irq",
	"/proc/kallsyms", "/proc/kcore", "/proc/key-users", "/proc/keys", "/proc/kmsg", "/proc/kpagecgroup",
	"/proc/kpagecount", "/proc/kpageflags", "/proc/latency_stats", "/proc/locks", "/proc/modules", "/proc/partitions",
	"/proc/pressure", "/proc/sched_debug", "/proc/schedstat", "/proc/scsi", "/proc/slabinfo", "/proc/softirqs",
	"/proc/swaps", "/proc/sysrq-trigger", "/proc/sysvipc", "/proc/timer_list", "/proc/timer_stats", "/proc/tty",
	"/proc/vmallocinfo", "/proc/zoneinfo",
}

// runSpawner serves until the server is gone. Images come from below dir, in
// which base is an empty folder to mount over; code comes from below the folders
// of code; node names the control groups.
func runSpawner(dir, base, node string, code []string) error {
	server, err := wire.New(3)
	if err != nil {
		return err
	}
	unix.CloseOnExec(3)
	unix.Umask(0o022)
	if err := syscall.Setgroups(nil); err != nil { // no sandbox inherits a group of root's
		return fmt.Errorf("drop groups: %w", err)
	}
	s := &spawner{
		server: server, base: filepath.Join(dir, base),
		images: map[string]*wire.Image{}, boxes: map[string]*box{}, begun: map[string]bool{}, code: map[string]int{},
		forks: make(chan func()),
		stems: newStems(),
	}
	for i, root := range append([]string{dir}, code...) {
		fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", root, err)
		}
		f := folder{root, fd}
		if i == 0 {
			s.imageRoot = []folder{f}
		} else {
			s.codeRoots = append(s.codeRoots, f)
		}
	}
	if err := s.mountBase(); err != nil {
		return err
	}
	if s.cgroups, s.missing, err = cgroup.Find(node); err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	s.landlock = landlockVersion()
	// The parent-death signal of an init fires when the thread that made it
	// ends, so one thread makes them all and never ends.
	go func() {
		runtime.LockOSThread()
		for f := range s.forks {
			f()
		}
	}()
	go s.growStems()
	err = s.serve()
	s.end()
	return err
}

// mountBase makes a small file system, seen by this process and its children
// alone, and makes it the working folder: children of other users reach it only
// from there.
func (s *spawner) mountBase() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("bawn", s.base, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0711,size=8m"); err != nil {
		return fmt.Errorf("mount %s: %w", s.base, err)
	}
	if err := unix.Chdir(s.base); err != nil {
		return err
	}
	for _, dir := range []string{"r", "s", "n", "e", "d", "p"} {
		if err := unix.Mkdir(dir, 0o711); err != nil {
			return err
		}
	}
	unix.Chmod("e", 0o555)
	unix.Chmod("d", 0o755)
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := unix.Mknod("d/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return fmt.Errorf("make device %s: %w", name, err)
		}
		unix.Chmod("d/"+name, 0o666)
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := unix.Symlink(target, "d/"+name); err != nil {
			return err
		}
	}
	// Images come later than sandboxes in the making: they propagate to those.
	if err := unix.Mount("r", "r", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Mount("", "r", "", unix.MS_SHARED, ""); err != nil {
		return err
	}
	for _, dir := range []string{"d", "e"} { // binds of their own, so that they can be read-only
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
			return err
		}
	}
	// A new /proc may be mounted in a user namespace only where a whole one is
	// visible already; the host's own may be covered in places.
	return unix.Mount("proc", "p", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

func (s *spawner) serve() error {
	for {
		var req wire.Request
		fds, err := s.server.Receive(&req)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err // a server that talks nonsense is not trusted with the next message
		}
		go s.answer(&req, fds)
	}
}

func (s *spawner) answer(req *wire.Request, fds []int) {
	reply := wire.Reply{Seq: req.Seq}
	out, err := s.do(req, fds, &reply)
	if err != nil {
		reply = wire.Reply{Seq: req.Seq, Error: err.Error()}
	}
	wire.CloseAll(fds)
	if out >= 0 {
		s.server.Send(&reply, out)
		unix.Close(out)
		return
	}
	s.server.Send(&reply)
}

// do carries out one request. It returns a descriptor to pass along, or -1.
func (s *spawner) do(req *wire.Request, fds []int, reply *wire.Reply) (int, error) {
	switch req.Op {
	case wire.OpProbe:
		reply.Probe = s.probe()
		return -1, nil
	case wire.OpImage:
		return -1, s.addImage(req.Image)
	case wire.OpReserve:
		return -1, s.reserve(req.UID)
	case wire.OpStart:
		b, err := s.start(req.ID, req.UID, req.Start, fds)
		if err == nil {
			reply.Group = b.group
		}
		return -1, err
	}
	s.mu.Lock()
	b := s.boxes[req.ID]
	if _, starting := s.begun[req.ID]; starting && req.Op == wire.OpKill {
		s.begun[req.ID] = true
	}
	s.mu.Unlock()
	if b == nil {
		return -1, errEnded
	}
	switch req.Op {
	case wire.OpAttach:
		return -1, s.attach(b, req.Attach)
	case wire.OpExec:
		return -1, b.exec(req.Exec)
	case wire.OpListen:
		return b.listen(req.Port)
	case wire.OpFreeze:
		return -1, b.freeze(true)
	case wire.OpThaw:
		return -1, b.freeze(false)
	case wire.OpInspect:
		reply.Facts = s.inspect(b)
		return -1, nil
	case wire.OpKill:
		b.kill()
		return -1, nil
	}
	return -1, fmt.Errorf("unknown request %q", req.Op)
}

// checkID keeps the identifiers that become file names harmless.
func checkID(id string) error {
	if id == "" || len(id) > 40 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || id[0] == '.' {
		return fmt.Errorf("bad identifier %.60q", id)
	}
	return nil
}

// addImage mounts a prepared folder as a read-only root. An overlay hides the
// host path that a bind mount would show in the sandbox's mount table.
func (s *spawner) addImage(img *wire.Image) error {
	if img == nil {
		return errors.New("no image")
	}
	if err := checkID(img.Name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.images[img.Name]; old != nil {
		if old.Dir != img.Dir {
			return fmt.Errorf("image %s is already another folder", img.Name)
		}
		return nil
	}
	fd, err := s.overlay(s.imageRoot, []string{img.Dir}, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	dir := "r/" + img.Name
	if err := unix.Mkdir(dir, 0o711); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount image %s: %w", img.Name, err)
	}
	s.images[img.Name] = img
	return nil
}

// folder is a folder of the host that the server was started with.
type folder struct {
	path string
	fd   int
}

// openBelow opens a folder that must be below one of the roots, without
// following a link: what the server asks for later is not trusted with more
// than what it was started for.
func openBelow(roots []folder, dir string) (int, error) {
	for _, root := range roots {
		rest, ok := strings.CutPrefix(filepath.Clean(dir), strings.TrimSuffix(root.path, "/")+"/")
		if !ok {
			continue
		}
		fd, err := unix.Openat2(root.fd, rest, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != nil {
			return -1, fmt.Errorf("open %.200q: %w", dir, err)
		}
		return fd, nil
	}
	return -1, fmt.Errorf("folder %.200q is not where this node keeps such", dir)
}

// overlay makes a detached read-only mount of folders below the roots, the
// first on top. Its options name descriptors, so no path of the host shows in
// them.
func (s *spawner) overlay(roots []folder, dirs []string, attrs int) (int, error) {
	if len(dirs) == 0 || len(dirs) > 8 {
		return -1, errors.New("want 1 to 8 folders")
	}
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(fsfd)
	var lower []string
	for _, dir := range dirs {
		fd, err := openBelow(roots, dir)
		if err != nil {
			return -1, err
		}
		defer unix.Close(fd)
		lower = append(lower, fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	// Without an upper layer the kernel asks for two lower ones.
	lower = append(lower, "e")
	if err := unix.FsconfigSetString(fsfd, "source", "bawn"); err != nil {
		return -1, err
	}
	if err := unix.FsconfigSetString(fsfd, "lowerdir", strings.Join(lower, ":")); err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	return fd, nil
}

// attach gives a sandbox its limits, its code and its policy, in this order:
// code must never be there without its limits.
func (s *spawner) attach(b *box, a *wire.Attach) error {
	if a == nil || a.Memory < 1<<20 || a.CPU <= 0 || a.PIDs < 1 || a.Tmp < 0 {
		return errors.New("bad limits")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.attached.Load() {
		return errors.New("the sandbox already has a function")
	}
	if limits := limitsOf(a); limits != warmLimits { // most functions have the default
		if err := b.group.Limit(limits); err != nil {
			return err
		}
	}
	if err := b.resizeTmp(a.Tmp); err != nil {
		return fmt.Errorf("size of /tmp: %w", err)
	}
	code, err := s.codeMount(a.Code)
	if err != nil {
		return err
	}
	defer unix.Close(code)
	if err := unix.MoveMount(code, "", unix.AT_FDCWD, b.share, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount code: %w", err)
	}
	b.execAllowed.Store(a.Exec)
	b.attached.Store(true)
	return nil
}

// warmLimits hold while a sandbox has no function yet. They are the defaults of
// a manifest, so that for most functions nothing is left to set at attach.
var warmLimits = cgroup.Limits{Memory: 256 << 20, CPU: 1, PIDs: 64}

func limitsOf(a *wire.Attach) cgroup.Limits {
	return cgroup.Limits{Memory: a.Memory, CPU: a.CPU, PIDs: a.PIDs}
}

// maxCodeMounts bounds how many overlays are kept for the next sandbox of the
// same version.
const maxCodeMounts = 256

// codeMount returns a detached read-only mount of a version's folders.
func (s *spawner) codeMount(dirs []string) (int, error) {
	// A folder that was replaced under the same path is another folder.
	var key string
	for _, dir := range dirs {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return -1, fmt.Errorf("code folder: %w", err)
		}
		key += fmt.Sprintf("%s:%d:%d\x00", dir, st.Dev, st.Ino)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fd, ok := s.code[key]; ok {
		return unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	}
	fd, err := s.overlay(s.codeRoots, dirs, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, err
	}
	if len(s.code) >= maxCodeMounts {
		for k, old := range s.code {
			unix.Close(old)
			delete(s.code, k)
			break
		}
	}
	s.code[key] = fd
	return unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

// end kills every sandbox, waits for each and removes what it made.
func (s *spawner) end() {
	s.stems.end()
	s.mu.Lock()
	s.ending = true
	boxes := make([]*box, 0, len(s.boxes))
	for _, b := range s.boxes {
		boxes = append(boxes, b)
	}
	s.mu.Unlock()
	for _, b := range boxes {
		b.kill()
	}
	for _, b := range boxes {
		<-b.gone
	}
	if s.cgroups != nil {
		s.cgroups.Close()
	}
	unix.Chdir("/")
	unix.Unmount(s.base, unix.MNT_DETACH)
}

// fork runs f on the one thread that makes processes.
func (s *spawner) fork(f func() error) error {
	done := make(chan error, 1)
	s.forks <- func() { done <- f() }
	return <-done
}

// start makes a sandbox. fds are the program's socket and its output.
func (s *spawner) start(id string, uid uint32, st *wire.Start, fds []int) (*box, error) {
	if st == nil || len(fds) != 2 {
		return nil, errors.New("want a start and two descriptors")
	}
	if err := checkID(id); err != nil {
		return nil, err
	}
	if err := checkUID(uid); err != nil {
		return nil, err
	}
	s.mu.Lock()
	img := s.images[st.Image]
	_, taken := s.boxes[id]
	_, begun := s.begun[id]
	ending := s.ending
	if !taken && !begun {
		s.begun[id] = false
		defer func() {
			s.mu.Lock()
			delete(s.begun, id)
			s.mu.Unlock()
		}()
	}
	s.mu.Unlock()
	switch {
	case img == nil:
		return nil, fmt.Errorf("image %.60q is not prepared", st.Image)
	case taken || begun:
		return nil, errors.New("identifier in use")
	case ending:
		return nil, errors.New("the spawner is stopping")
	}
	b := s.stems.take()
	if b != nil {
		s.stems.order(uid) // the users are for the next one
	} else {
		var err error
		if b, err = s.newStem(uid); err != nil {
			return nil, err
		}
	}
	b.id = id
	if err := s.dress(b, img, fds); err != nil {
		b.abandon()
		return nil, err
	}
	s.mu.Lock()
	killed := s.begun[id]
	if !killed {
		s.boxes[id] = b
	}
	s.mu.Unlock()
	if killed {
		b.abandon()
		return nil, errors.New("killed while it was started")
	}
	go b.answerCalls()
	go b.watch()
	if st.Exec != nil {
		return b, b.exec(st.Exec)
	}
	return b, nil
}

// dress gives a stem its root and its locks.
func (s *spawner) dress(b *box, img *wire.Image, fds []int) error {
	setup := wire.Setup{
		Root: "r/" + img.Name, Share: b.share, Dev: "d", Empty: "e", Null: "d/null",
		Filter: img.Filter, Landlock: s.landlock, Mask: masked,
	}
	if err := b.ctl.Send(&setup, fds...); err != nil {
		return err
	}
	var ready wire.FromInit
	got, err := b.ctl.Receive(&ready)
	if err != nil {
		return fmt.Errorf("init ended: %w", err)
	}
	if !ready.Ready || len(got) != 1 {
		wire.CloseAll(got)
		return fmt.Errorf("init: %s", ready.Error)
	}
	b.notify = got[0]
	return b.openTmp()
}

func checkUID(uid uint32) error {
	if uid < 1<<16 || uid > 1<<31-2 {
		return errors.New("bad user")
	}
	return nil
}

func landlockVersion() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return min(int(v), maxLandlock)
}

// maxLandlock is the newest version whose rights restrictPaths knows.
const maxLandlock = 6

// initProcess is what a new init looks like from here.
var initProcess = syscall.SysProcAttr{
	Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID |
		unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	Credential:                 &syscall.Credential{NoSetGroups: true}, // user 0 of its own namespace, or exec would take its rights
	GidMappingsEnableSetgroups: true,
	Pdeathsig:                  syscall.SIGKILL,
}

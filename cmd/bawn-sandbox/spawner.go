package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bawn.dev/bawn/internal/sandbox/linux/cgroup"
	"bawn.dev/bawn/internal/sandbox/linux/filter"
	"bawn.dev/bawn/internal/sandbox/linux/wire"
)

// spawner is the long-lived privileged process. It answers the one server at
// the other end of its socket and ends, with every sandbox, when that is gone.
type spawner struct {
	server   *wire.Conn
	rootless bool
	cgroups  *cgroup.Tree
	missing  []string // cgroup controllers that are not there
	landlock int      // the kernel's Landlock version that is used
	noswap   bool     // the files of sandboxes reach no disk
	forks    chan func()
	stems    stems
	users    users
	serial   atomic.Uint64 // of names

	mu     sync.Mutex
	images map[string]*image
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

// Descriptors that a spawner is born with: its socket to the server, and the two
// folders of the host that it ever takes anything from. It has them from who
// started the node, before there was a server to say where they are.
const (
	fdServer = 3
	fdRoots  = 4 // roots of runtimes and the count of users; the server cannot write there
	fdCode   = 5 // code of functions; the server's own
)

// baseFolder is in the folder of roots, to mount over.
const baseFolder = ".mounts"

// Bounds of what one server can have a spawner do.
const (
	maxBoxes    = 2048 // sandboxes at one time
	maxImages   = 64
	maxRequests = 256 // being answered at one time; the next message waits
)

// image is a root that sandboxes start from.
type image struct {
	dir, kind string
	filter    []byte
}

// runSpawner serves until the server is gone; node names the control groups.
func runSpawner(node string, rootless bool) error {
	for fd := fdServer; fd <= fdCode; fd++ {
		unix.CloseOnExec(fd)
	}
	if err := wire.CheckID(node); err != nil {
		return err
	}
	server, err := wire.New(fdServer)
	if err != nil {
		return err
	}
	unix.Umask(0o022)
	if !rootless { // else the kernel does not let anybody drop a group
		if err := syscall.Setgroups(nil); err != nil { // no sandbox inherits a group of root's
			return fmt.Errorf("drop groups: %w", err)
		}
	}
	s := &spawner{
		server: server, rootless: rootless,
		images: map[string]*image{}, boxes: map[string]*box{}, begun: map[string]bool{}, code: map[string]int{},
		forks: make(chan func()),
		stems: newStems(),
		users: users{dir: fdRoots},
	}
	if err := s.mountBase(); err != nil {
		return err
	}
	if err := waitForTheLast(); err != nil {
		return err
	}
	if rootless {
		s.cgroups = cgroup.None()
		go s.watchMemory()
	} else if s.cgroups, s.missing, err = cgroup.Find(node); err != nil {
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
// from there. It goes when the last of them has.
func (s *spawner) mountBase() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, fd := range []int{fdRoots, fdCode} {
		if err := bringHome(fd); err != nil {
			return err
		}
	}
	if err := unix.Fchdir(fdRoots); err != nil {
		return err
	}
	if err := unix.Mount("bawn", baseFolder, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0711,size=8m"); err != nil {
		return fmt.Errorf("mount the working folder: %w", err)
	}
	if err := unix.Chdir(baseFolder); err != nil {
		return err
	}
	for _, dir := range []string{"r", "s", "n", "e", "d", "p", filesDir, filesView} {
		if err := unix.Mkdir(dir, 0o711); err != nil {
			return err
		}
	}
	unix.Chmod("e", 0o555)
	unix.Chmod("d", 0o755)
	for name, minor := range devices {
		kind := uint32(unix.S_IFCHR)
		if s.rootless {
			kind = unix.S_IFREG // the host's own will be mounted there
		}
		if err := unix.Mknod("d/"+name, kind|0o666, int(unix.Mkdev(1, minor))); err != nil {
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
	var err error
	if s.noswap, err = mountFiles(s.rootless); err != nil {
		return err
	}
	for _, dir := range []string{"d", "e"} { // binds of their own, so that they can be read-only
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if dir == "d" && s.rootless {
			if err := borrowDevices(dir); err != nil {
				return err
			}
			continue
		}
		if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
			return err
		}
	}
	if s.rootless {
		return nil // only the host's root can mount one of the host's processes; the host's own has to do
	}
	// A new /proc may be mounted in a user namespace only where a whole one is
	// visible already; the host's own may be covered in places.
	return unix.Mount("proc", "p", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// devices are those of a sandbox, with their minor numbers.
var devices = map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}

// borrowDevices mounts the host's devices over the files in dir that are named
// like them, as nobody but the host's root can make a device. The mounts are
// read-only, which is no matter to what is written to a device.
func borrowDevices(dir string) error {
	for name, minor := range devices {
		var st unix.Stat_t
		if err := unix.Stat("/dev/"+name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, minor) {
			return fmt.Errorf("/dev/%s of this host is not that device", name)
		}
		if err := unix.Mount("/dev/"+name, dir+"/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
	}
	return unix.MountSetattr(unix.AT_FDCWD, dir, unix.AT_RECURSIVE, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
	})
}

// lastTime bounds how long a spawner waits for the one before it, which ends when
// its server does and may be clearing up still.
const lastTime = 20 * time.Second

// waitForTheLast waits until no other spawner of this node is left: two would
// remove each other's control groups. The lock ends with the process.
func waitForTheLast() error {
	for end := time.Now().Add(lastTime); ; time.Sleep(2 * time.Millisecond) {
		err := unix.Flock(fdRoots, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(end) {
			return fmt.Errorf("wait for the end of the spawner before: %w", err)
		}
	}
}

// bringHome replaces the descriptor of a folder, which was opened in another
// mount namespace, by that of the same folder in this one: nothing can be mounted
// from the former.
func bringHome(fd int) error {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err
	}
	own, err := unix.Openat2(unix.AT_FDCWD, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer unix.Close(own)
	var is, was unix.Stat_t
	if err := errors.Join(unix.Fstat(own, &is), unix.Fstat(fd, &was)); err != nil {
		return err
	}
	if is.Dev != was.Dev || is.Ino != was.Ino {
		return fmt.Errorf("%s is another folder than the one that this node was started over", name)
	}
	return unix.Dup3(own, fd, unix.O_CLOEXEC)
}

func (s *spawner) serve() error {
	running := make(chan struct{}, maxRequests)
	for {
		var req wire.Request
		fds, err := s.server.Receive(&req)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err // a server that talks nonsense is not trusted with the next message
		}
		running <- struct{}{}
		go func() {
			s.answer(&req, fds)
			<-running
		}()
	}
}

func (s *spawner) answer(req *wire.Request, fds []int) {
	reply := wire.Reply{Seq: req.Seq}
	var out []int
	err := req.Check(len(fds))
	if err == nil {
		out, err = s.do(req, fds, &reply)
	}
	if err != nil {
		reply = wire.Reply{Seq: req.Seq, Error: err.Error()}
	}
	wire.CloseAll(fds)
	s.server.Send(&reply, out...)
	wire.CloseAll(out)
}

// do carries out one request. It returns the descriptors to pass along.
func (s *spawner) do(req *wire.Request, fds []int, reply *wire.Reply) ([]int, error) {
	switch req.Op {
	case wire.OpProbe:
		reply.Probe = s.probe()
		return nil, nil
	case wire.OpImage:
		return nil, s.addImage(req.Image)
	case wire.OpStart:
		b, err := s.start(req.ID, req.Start, fds)
		if err == nil {
			reply.Group = b.group
		}
		return nil, err
	}
	s.mu.Lock()
	b := s.boxes[req.ID]
	if _, starting := s.begun[req.ID]; starting && req.Op == wire.OpKill {
		s.begun[req.ID] = true
	}
	s.mu.Unlock()
	if b == nil {
		return nil, errEnded
	}
	switch req.Op {
	case wire.OpAttach:
		return nil, s.attach(b, req.Attach, fds)
	case wire.OpExec:
		return nil, b.exec(req.Exec)
	case wire.OpOpen:
		return b.open(req.Open)
	case wire.OpFreeze:
		return nil, b.freeze(true)
	case wire.OpThaw:
		return nil, b.freeze(false)
	case wire.OpInspect:
		reply.Facts = s.inspect(b)
		return nil, nil
	case wire.OpKill:
		b.kill()
		return nil, nil
	}
	return nil, fmt.Errorf("unknown request %q", req.Op)
}

// addImage mounts a prepared root read-only. An overlay hides the host path
// that a bind mount would show in the sandbox's mount table.
func (s *spawner) addImage(img *wire.Image) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.images[img.Name]; old != nil {
		if old.dir != img.Dir || old.kind != img.Kind {
			return fmt.Errorf("image %s is already another folder or kind", img.Name)
		}
		return nil
	}
	if len(s.images) >= maxImages {
		return errors.New("too many images")
	}
	code, err := filter.Compile(img.Kind)
	if err != nil {
		return err
	}
	root, err := openBelow(fdRoots, img.Dir)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	// What else may be in the folder of roots, nobody but its owner has made.
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return err
	}
	if int(st.Uid) != unix.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("root %.80q may be written by others", img.Dir)
	}
	fd, err := overlay([]int{root}, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
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
	s.images[img.Name] = &image{img.Dir, img.Kind, code}
	return nil
}

// openBelow opens a folder below another, following no link and leaving no file
// system. Everything after this works with the descriptor: whatever the server
// puts in the folder's place meanwhile is not looked at.
func openBelow(root int, dir string) (int, error) {
	fd, err := unix.Openat2(root, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return -1, fmt.Errorf("open %.200q: %w", dir, err)
	}
	return fd, nil
}

// overlay makes a detached read-only mount of folders, the first on top. Its
// options name descriptors, so no path of the host shows in them.
func overlay(dirs []int, attrs int) (int, error) {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(fsfd)
	var lower []string
	for _, fd := range dirs {
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

// attach gives a sandbox its limits, its files, its code and its policy, in this
// order: code must never be there without its limits. fds is what its files are in.
func (s *spawner) attach(b *box, a *wire.Attach, fds []int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.attached.Load() {
		return errors.New("the sandbox already has a function")
	}
	b.memory.Store(a.Memory)
	if limits := limitsOf(a); s.rootless || limits != warmLimits { // most functions have the default
		if err := b.group.Limit(limits); err != nil {
			return err
		}
	}
	if err := b.resizeTmp(a.Tmp); err != nil {
		return fmt.Errorf("size of /tmp: %w", err)
	}
	if len(a.Files) > 0 {
		if err := b.writeFiles(a.Files, fds[0]); err != nil {
			return fmt.Errorf("files: %w", err)
		}
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
	var folders []int
	for _, dir := range dirs {
		fd, err := openBelow(fdCode, dir)
		if err != nil {
			return -1, err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return -1, fmt.Errorf("code folder: %w", err)
		}
		key += fmt.Sprintf("%s:%d:%d\x00", dir, st.Dev, st.Ino)
		folders = append(folders, fd)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fd, ok := s.code[key]; ok {
		return unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	}
	fd, err := overlay(folders, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
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
}

// fork runs f on the one thread that makes processes.
func (s *spawner) fork(f func() error) error {
	done := make(chan error, 1)
	s.forks <- func() { done <- f() }
	return <-done
}

// start makes a sandbox. fds are the program's socket and its output.
func (s *spawner) start(id string, st *wire.Start, fds []int) (*box, error) {
	for i, kind := range []uint32{unix.S_IFSOCK, unix.S_IFIFO} { // anything else would be a way out of the sandbox
		var stat unix.Stat_t
		if err := unix.Fstat(fds[i], &stat); err != nil || stat.Mode&unix.S_IFMT != kind {
			return nil, errors.New("want a socket and a pipe")
		}
	}
	s.mu.Lock()
	img := s.images[st.Image]
	_, taken := s.boxes[id]
	_, begun := s.begun[id]
	ending, full := s.ending, len(s.boxes)+len(s.begun) >= maxBoxes
	if !taken && !begun && !full {
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
	case full:
		return nil, errors.New("too many sandboxes")
	case ending:
		return nil, errors.New("the spawner is stopping")
	}
	b := s.stems.take()
	if b == nil {
		var err error
		if b, err = s.newStem(); err != nil {
			return nil, err
		}
	}
	b.id = id
	if err := s.dress(b, st.Image, img, fds); err != nil {
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
func (s *spawner) dress(b *box, name string, img *image, fds []int) error {
	setup := wire.Setup{
		Root: "r/" + name, Share: b.share, Run: filesView + "/" + b.name, Dev: "d", Empty: "e", Null: "d/null",
		Filter: img.filter, Landlock: s.landlock, Mask: masked, Rootless: s.rootless,
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

// rootlessInit makes an init where the only user there is, the node's own, has to
// be both init's and the program's. As the program's it is not user 0, so an init
// that is to have rights after its exec must be handed them as ambient ones.
func rootlessInit() syscall.SysProcAttr {
	attr := initProcess
	attr.Credential = &syscall.Credential{Uid: programUID, Gid: programUID, NoSetGroups: true}
	attr.GidMappingsEnableSetgroups = false
	attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETPCAP}
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: programUID, HostID: 0, Size: 1}}
	attr.GidMappings = attr.UidMappings
	return attr
}

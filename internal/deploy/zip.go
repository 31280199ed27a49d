package deploy

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"bawn.dev/bawn"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// This file reads the directory of a zip, and refuses every zip that two
// readers could understand in two ways. archive/zip is made to read as much as
// it can; what is wanted here is the opposite. A zip is accepted only if
//
//   - its entries, its directory and its end record follow each other without
//     a gap and without overlapping, from the first byte to the last;
//   - the header before each entry says the same as the directory;
//   - each name is a plain relative path, and no two names can become one on
//     any file system;
//   - each entry is a file or a folder, and nothing asks for more: no zip64,
//     no encryption, no second name, no link hidden in an extra field.

const (
	sigLocal      = 0x04034b50
	sigDirectory  = 0x02014b50
	sigEnd        = 0x06054b50
	sigDescriptor = 0x08074b50
	sigZip64End   = 0x06064b50
	sigZip64Loc   = 0x07064b50

	endBytes     = 22
	localBytes   = 30
	dirBytes     = 46
	maxDirectory = 16 << 20

	flagEncrypted  = 1 << 0
	flagDescriptor = 1 << 3
	flagUTF8       = 1 << 11
	flagsAllowed   = 1<<1 | 1<<2 | flagDescriptor | flagUTF8 // 1 and 2 say how hard deflate tried

	methodStore   = 0
	methodDeflate = 8

	// Below so many bytes nobody is harmed by a ratio, and honest files of
	// zeros or spaces have a high one.
	ratioFrom = 1 << 20

	maxNameBytes = 255 // of one part of a path, as Linux has it
)

// entry is one file or folder of a zip.
type entry struct {
	name   string // without a trailing slash
	folder bool
	exec   bool
	method uint16
	flags  uint16
	crc    uint32
	packed int64
	size   int64
	start  int64 // where its local header begins
	data   int64 // where its content begins
	raw    []byte
}

// refuse makes the error for a package that is not accepted.
func refuse(fix, format string, args ...any) *bawn.Error {
	e := bawn.Errorf(bawn.CodeUnprocessable, "deploy.unpack", "the package is refused: "+format, args...)
	e.Fix = fix
	if fix == "" {
		e.Fix = "give bawn deploy the folder itself, or make the zip again with an ordinary tool"
	}
	return e
}

// show makes an entry's name fit for a message: quoted, escaped, bounded.
func show(name []byte) string {
	const most = 80
	if len(name) > most {
		return strconv.QuoteToASCII(string(name[:most])) + "…"
	}
	return strconv.QuoteToASCII(string(name))
}

// readZip returns the entries of the zip of size bytes in r, in the order in
// which they lie in the file, after every check that needs no content.
func readZip(r io.ReaderAt, size int64) ([]entry, error) {
	count, dirStart, dirEnd, err := readEnd(r, size)
	if err != nil {
		return nil, err
	}
	dir := make([]byte, dirEnd-dirStart)
	if _, err := r.ReadAt(dir, dirStart); err != nil {
		return nil, fmt.Errorf("reading the directory of the package: %w", err)
	}
	entries := make([]entry, 0, count)
	names := newNames()
	var total int64
	for len(dir) > 0 {
		if len(entries) == count {
			return nil, refuse("", "its directory holds more than the %d entries it says", count)
		}
		e, rest, err := readDirectoryEntry(dir)
		if err != nil {
			return nil, err
		}
		dir = rest
		if err := names.add(e); err != nil {
			return nil, err
		}
		total += e.size
		if total > bawn.MaxUnpackedBytes {
			return nil, tooBig()
		}
		if e.size > ratioFrom && e.size/bawn.MaxPackageRatio > e.packed {
			return nil, refuse("", "entry %s unpacks to more than %d times its size (%d from %d bytes)", show(e.raw), bawn.MaxPackageRatio, e.size, e.packed)
		}
		entries = append(entries, e)
	}
	if len(entries) != count {
		return nil, refuse("", "its directory holds %d entries and says %d", len(entries), count)
	}
	if total > ratioFrom && total/bawn.MaxPackageRatio > size {
		return nil, refuse("", "it unpacks to more than %d times its size (%d from %d bytes)", bawn.MaxPackageRatio, total, size)
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return cmp.Compare(a.start, b.start) })
	at := int64(0)
	for i := range entries {
		e := &entries[i]
		next := dirStart
		if i+1 < len(entries) {
			next = entries[i+1].start
		}
		switch {
		case e.start > at && i == 0:
			return nil, refuse("", "%d bytes lie before its first entry", e.start)
		case e.start < at:
			return nil, refuse("", "entry %s overlaps another entry", show(e.raw))
		case e.start > at:
			return nil, refuse("", "%d bytes lie before entry %s that belong to none", e.start-at, show(e.raw))
		}
		if err := checkLocal(r, e, next); err != nil {
			return nil, err
		}
		at = next
	}
	if len(entries) == 0 {
		if dirStart != 0 {
			return nil, refuse("", "%d bytes lie before its directory that belong to no entry", dirStart)
		}
		return nil, refuse("put the function's code into it", "it is empty")
	}
	return entries, nil
}

func tooBig() *bawn.Error {
	return bawn.Errorf(bawn.CodeTooLarge, "deploy.unpack", "the package is refused: it unpacks to more than %d MiB", bawn.MaxUnpackedBytes>>20).
		WithFix("leave out what the function does not need; .bawnignore names it")
}

// readEnd finds the end record, which must be the file's last bytes, and
// returns what it says: how many entries, and where their directory lies.
func readEnd(r io.ReaderAt, size int64) (count int, start, end int64, err error) {
	tail := make([]byte, min(size, endBytes+1<<16))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil && err != io.EOF {
		return 0, 0, 0, fmt.Errorf("reading the end of the package: %w", err)
	}
	at := bytes.LastIndex(tail, []byte("PK\x05\x06"))
	if at < 0 || len(tail)-at < endBytes {
		return 0, 0, 0, refuse("", "it is not a zip, or its end is missing")
	}
	rec := tail[at:]
	le := binary.LittleEndian
	if int(le.Uint16(rec[20:]))+endBytes != len(rec) {
		return 0, 0, 0, refuse("", "bytes follow its end")
	}
	end = size - int64(len(rec))
	if at >= 20 && le.Uint32(tail[at-20:]) == sigZip64Loc {
		return 0, 0, 0, zip64("it")
	}
	here, all := le.Uint16(rec[8:]), le.Uint16(rec[10:])
	dirSize, dirStart := le.Uint32(rec[12:]), le.Uint32(rec[16:])
	if here == 0xffff || dirSize == 0xffffffff || dirStart == 0xffffffff {
		return 0, 0, 0, zip64("it")
	}
	if le.Uint16(rec[4:]) != 0 || le.Uint16(rec[6:]) != 0 || here != all {
		return 0, 0, 0, refuse("", "it is one part of several")
	}
	if int(all) > bawn.MaxPackageEntries {
		return 0, 0, 0, bawn.Errorf(bawn.CodeTooLarge, "deploy.unpack", "the package is refused: it has %d entries, at most %d are allowed", all, bawn.MaxPackageEntries).
			WithFix("leave out what the function does not need; .bawnignore names it")
	}
	if int64(dirStart)+int64(dirSize) != end {
		return 0, 0, 0, refuse("", "its directory does not lie where its end says (at %d, %d bytes, before %d)", dirStart, dirSize, end)
	}
	if dirSize > maxDirectory {
		return 0, 0, 0, refuse("", "its directory has %d bytes, at most %d are allowed", dirSize, maxDirectory)
	}
	return int(all), int64(dirStart), end, nil
}

func zip64(who string) *bawn.Error {
	return refuse("make the zip again without zip64, which only zips over 4 GiB need, or give bawn deploy the folder itself",
		"%s uses the zip64 format", who)
}

// readDirectoryEntry reads one entry of the directory.
func readDirectoryEntry(dir []byte) (e entry, rest []byte, err error) {
	le := binary.LittleEndian
	if len(dir) < dirBytes || le.Uint32(dir) != sigDirectory {
		return e, nil, refuse("", "its directory is damaged")
	}
	nameLen, extraLen, commentLen := int(le.Uint16(dir[28:])), int(le.Uint16(dir[30:])), int(le.Uint16(dir[32:]))
	if len(dir) < dirBytes+nameLen+extraLen+commentLen {
		return e, nil, refuse("", "its directory is damaged")
	}
	e.raw = dir[dirBytes : dirBytes+nameLen]
	extra := dir[dirBytes+nameLen : dirBytes+nameLen+extraLen]
	rest = dir[dirBytes+nameLen+extraLen+commentLen:]
	e.flags, e.method, e.crc = le.Uint16(dir[8:]), le.Uint16(dir[10:]), le.Uint32(dir[16:])
	packed, size, start := le.Uint32(dir[20:]), le.Uint32(dir[24:]), le.Uint32(dir[42:])
	e.packed, e.size, e.start = int64(packed), int64(size), int64(start)
	attr := le.Uint32(dir[38:])
	who := show(e.raw)

	if err := checkName(e.raw); err != nil {
		return e, nil, err
	}
	switch {
	case e.flags&(flagEncrypted|1<<6|1<<13) != 0:
		return e, nil, refuse("make the zip again without a password", "entry %s is encrypted", who)
	case e.flags&^flagsAllowed != 0:
		return e, nil, refuse("", "entry %s has flags %#04x that are not allowed", who, e.flags&^flagsAllowed)
	case e.method != methodStore && e.method != methodDeflate:
		return e, nil, refuse("make the zip again with the methods store or deflate", "entry %s is packed with the unknown method %d", who, e.method)
	case packed == 0xffffffff || size == 0xffffffff || start == 0xffffffff:
		return e, nil, zip64("entry " + who)
	case le.Uint16(dir[34:]) != 0:
		return e, nil, refuse("", "entry %s lies in another part of several", who)
	case e.method == methodStore && e.packed != e.size:
		return e, nil, refuse("", "entry %s is stored as it is, and says two sizes (%d and %d)", who, e.packed, e.size)
	}
	if err := checkExtra(e.raw, extra); err != nil {
		return e, nil, err
	}
	e.name = string(e.raw)
	e.name, e.folder = strings.CutSuffix(e.name, "/")
	if e.folder && (e.size != 0 || e.packed > 2) { // an empty deflate stream has two bytes
		return e, nil, refuse("", "entry %s is a folder with content", who)
	}
	return e, rest, e.setMode(attr)
}

// setMode reads the Unix mode, whatever system the entry says it was made on:
// some readers heed it always.
func (e *entry) setMode(attr uint32) error {
	who := show(e.raw)
	mode := attr >> 16
	kind := "something that is neither a file nor a folder"
	switch mode & 0o170000 {
	case 0:
		if !e.folder && attr&0x10 != 0 { // DOS: a folder
			return refuse("", "entry %s is a folder by its attributes and a file by its name", who)
		}
		kind = ""
	case 0o100000:
		if e.folder {
			return refuse("", "entry %s is a file by its mode and a folder by its name", who)
		}
		kind = ""
	case 0o040000:
		if !e.folder {
			return refuse("", "entry %s is a folder by its mode and a file by its name", who)
		}
		kind = ""
	case 0o120000:
		kind = "a symbolic link"
	case 0o020000, 0o060000:
		kind = "a device"
	case 0o010000:
		kind = "a pipe"
	case 0o140000:
		kind = "a socket"
	}
	if kind != "" {
		return refuse("put the file itself in its place", "entry %s is %s", who, kind)
	}
	if !e.folder && mode&0o7000 != 0 {
		return refuse("take the bits away with chmod and make the zip again", "entry %s has the setuid, setgid or sticky bit", who)
	}
	e.exec = mode&0o111 != 0
	return nil
}

// checkExtra walks the extra fields, of which some say what only other readers
// would heed: another name, another size, a link's target.
func checkExtra(name, extra []byte) error {
	le := binary.LittleEndian
	who := show(name)
	for len(extra) >= 4 {
		id, n := le.Uint16(extra), int(le.Uint16(extra[2:]))
		if len(extra) < 4+n {
			return refuse("", "entry %s has a damaged extra field", who)
		}
		field := extra[4 : 4+n]
		extra = extra[4+n:]
		switch id {
		case 0x0001:
			return zip64("entry " + who)
		case 0x7075: // a second name
			if n < 5 || !bytes.Equal(field[5:], name) {
				return refuse("", "entry %s has a second name", who)
			}
		case 0x000d: // PKWARE Unix: times and ids, and after them a link's target or a device's number
			if n > 12 {
				return refuse("put the file itself in its place", "entry %s is a link or a device by its extra field", who)
			}
		case 0x756e: // ASi Unix: a second mode, a link's target, a device's number
			return refuse("", "entry %s has a second mode", who)
		case 0x9901, 0x0017:
			return refuse("make the zip again without a password", "entry %s is encrypted", who)
		}
	}
	// Some writers pad with fewer bytes than a field's head.
	if len(bytes.Trim(extra, "\x00")) != 0 {
		return refuse("", "entry %s has a damaged extra field", who)
	}
	return nil
}

// checkLocal compares the header before e's content with the directory, sets
// where the content begins, and makes sure that it ends where next begins.
func checkLocal(r io.ReaderAt, e *entry, next int64) error {
	le := binary.LittleEndian
	who := show(e.raw)
	lies := func(what string) error {
		return refuse("", "entry %s has another %s in its own header than in the directory", who, what)
	}
	var h [localBytes]byte
	if e.start+localBytes > next {
		return refuse("", "entry %s overlaps what follows it", who)
	}
	if _, err := r.ReadAt(h[:], e.start); err != nil {
		return fmt.Errorf("reading the header of %s: %w", who, err)
	}
	if le.Uint32(h[:]) != sigLocal {
		return refuse("", "entry %s has no header of its own", who)
	}
	nameLen, extraLen := int64(le.Uint16(h[26:])), int64(le.Uint16(h[28:]))
	e.data = e.start + localBytes + nameLen + extraLen
	if e.data+e.packed > next {
		return refuse("", "entry %s overlaps what follows it", who)
	}
	tail := make([]byte, nameLen+extraLen)
	if _, err := r.ReadAt(tail, e.start+localBytes); err != nil {
		return fmt.Errorf("reading the header of %s: %w", who, err)
	}
	if err := checkExtra(e.raw, tail[nameLen:]); err != nil {
		return err
	}
	crc, packed, size := le.Uint32(h[14:]), le.Uint32(h[18:]), le.Uint32(h[22:])
	switch {
	case !bytes.Equal(tail[:nameLen], e.raw):
		return lies("name (" + show(tail[:nameLen]) + ")")
	case le.Uint16(h[6:]) != e.flags:
		return lies("set of flags")
	case le.Uint16(h[8:]) != e.method:
		return lies("method")
	}
	same := crc == e.crc && int64(packed) == e.packed && int64(size) == e.size
	gap := next - e.data - e.packed
	if e.flags&flagDescriptor == 0 {
		if !same {
			return lies("checksum or size")
		}
		if gap != 0 {
			return refuse("", "%d bytes follow entry %s that belong to none", gap, who)
		}
		return nil
	}
	// Sizes are written after the content, by a writer that could not go back.
	if !same && (crc != 0 || packed != 0 || size != 0) {
		return lies("checksum or size")
	}
	d := make([]byte, 16)
	switch gap {
	case 16:
		if _, err := r.ReadAt(d, e.data+e.packed); err != nil {
			return fmt.Errorf("reading the descriptor of %s: %w", who, err)
		}
		if le.Uint32(d) != sigDescriptor {
			return refuse("", "4 bytes follow entry %s that belong to none", who)
		}
		d = d[4:]
	case 12:
		d = d[:12]
		if _, err := r.ReadAt(d, e.data+e.packed); err != nil {
			return fmt.Errorf("reading the descriptor of %s: %w", who, err)
		}
	default:
		return refuse("", "%d bytes follow entry %s where its sizes should be", gap, who)
	}
	if le.Uint32(d) != e.crc || int64(le.Uint32(d[4:])) != e.packed || int64(le.Uint32(d[8:])) != e.size {
		return refuse("", "entry %s has another checksum or size after its content than in the directory", who)
	}
	return nil
}

// checkName holds names to plain relative paths.
func checkName(raw []byte) error {
	name := string(raw)
	who := show(raw)
	const rename = "rename the file"
	switch {
	case name == "":
		return refuse(rename, "an entry has no name")
	case len(name) > bawn.MaxPathBytes:
		return refuse(rename, "entry %s has a name of %d bytes, at most %d are allowed", who, len(name), bawn.MaxPathBytes)
	case !utf8.ValidString(name):
		return refuse(rename, "entry %s has a name that is not UTF-8", who)
	case strings.ContainsRune(name, '\\'):
		return refuse(rename+"; make the zip with a tool that writes / between folders", "entry %s has a backslash in its name", who)
	case name[0] == '/':
		return refuse(rename, "entry %s has an absolute path", who)
	case len(name) >= 2 && name[1] == ':' && (name[0]|0x20) >= 'a' && (name[0]|0x20) <= 'z':
		return refuse(rename, "entry %s has a drive letter", who)
	}
	for _, c := range name {
		// Controls, and what turns the direction of text: a name that shows as another.
		if unicode.IsControl(c) || c == utf8.RuneError || c >= 0x202a && c <= 0x202e || c >= 0x2066 && c <= 0x2069 || c == 0x200e || c == 0x200f {
			return refuse(rename, "entry %s has a control character in its name", who)
		}
	}
	parts := strings.Split(strings.TrimSuffix(name, "/"), "/")
	if len(parts) > bawn.MaxPathDepth {
		return refuse(rename, "entry %s is %d folders deep, at most %d are allowed", who, len(parts), bawn.MaxPathDepth)
	}
	for _, p := range parts {
		switch {
		case p == "..":
			return refuse(rename, "entry %s leads out of the package (..)", who)
		case p == "" || p == ".":
			return refuse(rename, "entry %s has the empty part %q in its path", who, p)
		case len(p) > maxNameBytes:
			return refuse(rename, "entry %s has a part of %d bytes in its path, at most %d are allowed", who, len(p), maxNameBytes)
		}
	}
	return nil
}

// names knows every path so far, folders that are only implied included, by
// the form in which file systems may compare them.
type names struct {
	fold cases.Caser
	seen map[string]seenName
	all  int
}

type seenName struct {
	name   string
	folder bool
	given  bool // as an entry of its own, not only as a part of another's path
}

func newNames() *names {
	return &names{fold: cases.Fold(), seen: map[string]seenName{}}
}

// add takes e's path and those of its folders, or says what it collides with.
func (n *names) add(e entry) error {
	for at := 0; at < len(e.name); {
		end := len(e.name)
		if i := strings.IndexByte(e.name[at:], '/'); i >= 0 {
			end = at + i
		}
		path, whole := e.name[:end], end == len(e.name)
		now := seenName{path, !whole || e.folder, whole}
		key := path
		if !ascii(path) {
			key = norm.NFC.String(path)
		}
		key = norm.NFC.String(n.fold.String(key))
		before, there := n.seen[key]
		switch {
		case !there:
			// Folders that are only implied cost inodes like those that are given.
			if n.all++; n.all > 2*bawn.MaxPackageEntries {
				return bawn.Errorf(bawn.CodeTooLarge, "deploy.unpack", "the package is refused: it has more than %d files and folders", 2*bawn.MaxPackageEntries).
					WithFix("leave out what the function does not need; .bawnignore names it")
			}
			n.seen[key] = now
		case before.name != now.name:
			return refuse("rename one of them", "entry %s collides with %s: they differ only in case or in how the same letters are written", show(e.raw), show([]byte(before.name)))
		case before.folder != now.folder:
			return refuse("rename one of them", "%s is both a file and a folder", show([]byte(path)))
		case before.given && now.given:
			return refuse("", "entry %s is there twice", show(e.raw))
		case now.given:
			n.seen[key] = now
		}
		at = end + 1
	}
	return nil
}

func ascii(s string) bool {
	for _, c := range []byte(s) {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

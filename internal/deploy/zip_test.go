package deploy

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
)

// rawEntry is one entry of a zip that may lie in each of its fields. What is
// not set is filled in honestly.
type rawEntry struct {
	name    string
	data    []byte
	mode    uint32 // Unix; 0 means none
	method  int    // -1 for deflate, 0 for store, else as it is
	flags   uint16
	extra   []byte // in the directory
	host    byte   // 3 is Unix
	dosAttr uint32

	localName   string // if not the same
	localExtra  []byte
	localFlags  *uint16
	localMethod *uint16
	localSize   *uint32
	localCRC    *uint32
	crc         *uint32
	size        *uint32 // as the directory says it
	packed      *uint32
	start       *uint32
	content     []byte // the bytes in place of what data packs to
	descriptor  []byte // the bytes after the content
	before      []byte // bytes before the local header
	noLocal     bool   // only the directory has it
	comment     []byte
	disk        uint16
}

// rawZip is a zip as tests want it.
type rawZip struct {
	entries  []rawEntry
	prefix   []byte
	gap      []byte // between entries and directory
	suffix   []byte
	comment  []byte
	count    *uint16
	dirSize  *uint32
	dirStart *uint32
	locator  bool
	reverse  bool // the directory lists the entries from last to first
}

func u16(v uint16) *uint16 { return &v }
func u32(v uint32) *uint32 { return &v }

func pick[T any](p *T, otherwise T) T {
	if p != nil {
		return *p
	}
	return otherwise
}

func deflated(data []byte) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		panic(err)
	}
	if _, err := w.Write(data); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func extraField(id uint16, data string) []byte {
	b := binary.LittleEndian.AppendUint16(nil, id)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// bytes writes the zip.
func (z rawZip) bytes() []byte {
	le := binary.LittleEndian
	out := slices.Clone(z.prefix)
	var dir [][]byte
	for _, e := range z.entries {
		method, content := uint16(max(e.method, 0)), e.data
		if e.method == -1 {
			method = methodDeflate
		}
		if e.content != nil {
			content = e.content
		} else if e.method == -1 {
			content = deflated(e.data)
		}
		crc := pick(e.crc, crc32.ChecksumIEEE(e.data))
		size, packed := pick(e.size, uint32(len(e.data))), pick(e.packed, uint32(len(content)))
		out = append(out, e.before...)
		start := uint32(len(out))
		if !e.noLocal {
			name := e.name
			if e.localName != "" {
				name = e.localName
			}
			h := le.AppendUint32(nil, sigLocal)
			h = le.AppendUint16(h, 20)
			h = le.AppendUint16(h, pick(e.localFlags, e.flags))
			h = le.AppendUint16(h, pick(e.localMethod, method))
			h = le.AppendUint32(h, 0)
			lcrc, lsize, lpacked := pick(e.localCRC, crc), pick(e.localSize, size), packed
			if e.flags&flagDescriptor != 0 && e.localCRC == nil {
				lcrc, lsize, lpacked = 0, 0, 0
			}
			h = le.AppendUint32(h, lcrc)
			h = le.AppendUint32(h, lpacked)
			h = le.AppendUint32(h, lsize)
			h = le.AppendUint16(h, uint16(len(name)))
			h = le.AppendUint16(h, uint16(len(e.localExtra)))
			out = append(append(append(append(append(out, h...), name...), e.localExtra...), content...), e.descriptor...)
		}
		h := le.AppendUint32(nil, sigDirectory)
		h = append(h, 20, e.host)
		h = le.AppendUint16(h, 20)
		h = le.AppendUint16(h, e.flags)
		h = le.AppendUint16(h, method)
		h = le.AppendUint32(h, 0)
		h = le.AppendUint32(h, crc)
		h = le.AppendUint32(h, packed)
		h = le.AppendUint32(h, size)
		h = le.AppendUint16(h, uint16(len(e.name)))
		h = le.AppendUint16(h, uint16(len(e.extra)))
		h = le.AppendUint16(h, uint16(len(e.comment)))
		h = le.AppendUint16(h, e.disk)
		h = le.AppendUint16(h, 0)
		h = le.AppendUint32(h, e.mode<<16|e.dosAttr)
		h = le.AppendUint32(h, pick(e.start, start))
		dir = append(dir, append(append(append(h, e.name...), e.extra...), e.comment...))
	}
	if z.reverse {
		slices.Reverse(dir)
	}
	out = append(out, z.gap...)
	dirStart := uint32(len(out))
	for _, d := range dir {
		out = append(out, d...)
	}
	dirSize := uint32(len(out)) - dirStart
	if z.locator {
		out = le.AppendUint32(out, sigZip64Loc)
		out = append(out, make([]byte, 16)...)
	}
	count := pick(z.count, uint16(len(dir)))
	out = le.AppendUint32(out, sigEnd)
	out = append(out, 0, 0, 0, 0)
	out = le.AppendUint16(out, count)
	out = le.AppendUint16(out, count)
	out = le.AppendUint32(out, pick(z.dirSize, dirSize))
	out = le.AppendUint32(out, pick(z.dirStart, dirStart))
	out = le.AppendUint16(out, uint16(len(z.comment)))
	return append(append(out, z.comment...), z.suffix...)
}

func file(name, data string) rawEntry { return rawEntry{name: name, data: []byte(data)} }

func one(e rawEntry) []byte { return rawZip{entries: []rawEntry{e}}.bytes() }

func named(name string) []byte {
	e := file(name, "x")
	e.flags = flagUTF8
	return one(e)
}

func two(a, b string) []byte {
	x, y := file(a, "x"), file(b, "y")
	x.flags, y.flags = flagUTF8, flagUTF8
	return rawZip{entries: []rawEntry{x, y}}.bytes()
}

// hostileZip is a package that must be refused, and what the error must say.
type hostileZip struct {
	technique string
	data      []byte
	want      string
}

// hostile makes one package for each technique.
func hostile() []hostileZip {
	le := binary.LittleEndian
	descriptor := func(sig bool, crc, packed, size uint32) []byte {
		var b []byte
		if sig {
			b = le.AppendUint32(b, sigDescriptor)
		}
		return le.AppendUint32(le.AppendUint32(le.AppendUint32(b, crc), packed), size)
	}
	x := crc32.ChecksumIEEE([]byte("x"))
	mode := func(m uint32) []byte { return one(rawEntry{name: "e", data: []byte("/etc/passwd"), mode: m, host: 3}) }
	inner := one(file("inner", "i"))
	// The quine of bombs: every entry of the directory shares one content.
	kernel := deflated(make([]byte, 1<<20))
	overlap := rawZip{entries: []rawEntry{{name: "a0", data: make([]byte, 1<<20), method: -1, content: kernel}}}
	for i := range 200 {
		overlap.entries = append(overlap.entries, rawEntry{name: "a" + strings.Repeat("1", i+1), data: make([]byte, 1<<20), method: -1, content: kernel, noLocal: true, start: u32(0)})
	}
	// The other kind quotes the headers of those that follow in its content.
	quoted := one(rawEntry{name: "b", data: []byte("b")})
	quoted = quoted[:bytes.Index(quoted, []byte("PK\x01\x02"))]
	swallow := rawZip{entries: []rawEntry{
		{name: "a", data: quoted},
		{name: "b", data: []byte("b"), noLocal: true, start: u32(localBytes + 1)},
	}}
	var manyEntries rawZip
	for range 20001 {
		manyEntries.entries = append(manyEntries.entries, rawEntry{name: "same"})
	}
	deep := strings.Repeat("d/", 40)
	var manyFolders rawZip
	for i := range 2000 {
		manyFolders.entries = append(manyFolders.entries, rawEntry{name: strings.Repeat(string(rune('a'+i%26)), 1+i/26) + "/" + strings.Repeat("d/", 28) + "f"})
	}
	var total rawZip
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	packedNoise := deflated(noise)
	for i := range 251 {
		total.entries = append(total.entries, rawEntry{name: strings.Repeat("n", i+1), data: noise, method: -1, content: packedNoise})
	}

	return []hostileZip{
		{"traversal", named("../evil"), `entry "../evil" leads out of the package`},
		{"traversal within", named("a/../../evil"), `entry "a/../../evil" leads out of the package`},
		{"traversal at the end", named("a/.."), `leads out of the package`},
		{"dot", named("./a"), `the empty part "."`},
		{"empty part", named("a//b"), `the empty part ""`},
		{"absolute", named("/etc/evil"), `entry "/etc/evil" has an absolute path`},
		{"only a slash", named("/"), `has an absolute path`},
		{"backslash", named(`..\evil`), `entry "..\\evil" has a backslash`},
		{"drive letter", named("C:evil"), `entry "C:evil" has a drive letter`},
		{"UNC path", named(`\\host\share`), `has a backslash`},
		{"no name", named(""), `an entry has no name`},
		{"NUL", named("a\x00.py"), `entry "a\x00.py" has a control character`},
		{"escape sequence", named("a\x1b[31m"), `has a control character`},
		{"newline", named("a\nb"), `has a control character`},
		{"bidi override", named("a\u202egpj.py"), `has a control character`},
		{"not UTF-8", named("caf\xe9"), `entry "caf\xe9" has a name that is not UTF-8`},
		{"overlong slash", named("..\xc0\xafevil"), `not UTF-8`},
		{"long name", named(strings.Repeat("n", 1025)), `has a name of 1025 bytes`},
		{"long part", named(strings.Repeat("n", 256)), `has a part of 256 bytes`},
		{"deep", named(deep + "f"), `is 41 folders deep`},
		{"symlink", mode(0o120777), `entry "e" is a symbolic link`},
		{"symlink from another host", one(rawEntry{name: "e", data: []byte("/"), mode: 0o120777, host: 0}), `entry "e" is a symbolic link`},
		{"symlink to a folder, and a file through it", rawZip{entries: []rawEntry{{name: "d", data: []byte("/tmp"), mode: 0o120777, host: 3}, file("d/f", "x")}}.bytes(), `entry "d" is a symbolic link`},
		{"character device", mode(0o020666), `is a device`},
		{"block device", mode(0o060660), `is a device`},
		{"pipe", mode(0o010644), `is a pipe`},
		{"socket", mode(0o140644), `is a socket`},
		{"unknown kind", mode(0o150644), `is something that is neither`},
		{"setuid", mode(0o104755), `entry "e" has the setuid`},
		{"setgid", mode(0o102755), `has the setuid`},
		{"hard link (PKWARE extra)", one(rawEntry{name: "e", extra: extraField(0x000d, "123412341212/etc/passwd")}), `is a link or a device by its extra field`},
		{"hard link (local extra)", one(rawEntry{name: "e", localExtra: extraField(0x000d, "123412341212/etc/passwd")}), `is a link or a device by its extra field`},
		{"link (ASi extra)", one(rawEntry{name: "e", extra: extraField(0x756e, "0000\xff\xa1\x04\x00\x00\x00\x00\x00\x00\x00/etc")}), `has a second mode`},
		{"second name", one(rawEntry{name: "good", extra: extraField(0x7075, "\x01\x00\x00\x00\x00../evil")}), `entry "good" has a second name`},
		{"damaged extra", one(rawEntry{name: "e", extra: []byte{1, 0, 255, 255}}), `has a damaged extra field`},
		{"folder with content", one(rawEntry{name: "d/", data: []byte("xyz")}), `is a folder with content`},
		{"folder by name only", one(rawEntry{name: "d/", mode: 0o100644, host: 3}), `a file by its mode and a folder by its name`},
		{"folder by mode only", one(rawEntry{name: "d", mode: 0o040755, host: 3}), `a folder by its mode and a file by its name`},
		{"folder by attribute only", one(rawEntry{name: "d", dosAttr: 0x10}), `a folder by its attributes`},
		{"case collision", two("App.py", "app.py"), `entry "app.py" collides with "App.py"`},
		{"case collision of folders", two("Lib/a", "lib/b"), `entry "lib/b" collides with "Lib"`},
		{"Unicode case collision", two("STRASSE", "straße"), `collides with "STRASSE"`},
		{"Unicode normal forms", two("caf\u00e9", "cafe\u0301"), `collides with "caf\u00e9"`},
		{"Kelvin sign", two("\u212a", "k"), `collides with`},
		{"same name", two("a", "a"), `entry "a" is there twice`},
		{"same folder", rawZip{entries: []rawEntry{{name: "a/"}, {name: "a/"}}}.bytes(), `entry "a/" is there twice`},
		{"file, then folder", two("a", "a/b"), `"a" is both a file and a folder`},
		{"folder, then file", two("a/b", "a"), `"a" is both a file and a folder`},
		{"encrypted", one(rawEntry{name: "e", flags: flagEncrypted}), `entry "e" is encrypted`},
		{"strongly encrypted", one(rawEntry{name: "e", flags: 1 << 6}), `is encrypted`},
		{"AES", one(rawEntry{name: "e", extra: extraField(0x9901, "1234567")}), `is encrypted`},
		{"unknown flag", one(rawEntry{name: "e", flags: 1 << 5}), `has flags 0x0020`},
		{"unknown method", one(rawEntry{name: "e", method: 12}), `the unknown method 12`},
		{"AES method", one(rawEntry{name: "e", method: 99}), `the unknown method 99`},
		{"zip64 sizes", one(rawEntry{name: "e", size: u32(0xffffffff), packed: u32(0xffffffff), extra: extraField(1, strings.Repeat("\xff", 16))}), `uses the zip64 format`},
		{"zip64 extra with small sizes", one(rawEntry{name: "e", extra: extraField(1, strings.Repeat("\x01", 16))}), `entry "e" uses the zip64 format`},
		{"zip64 extra in the local header", one(rawEntry{name: "e", localExtra: extraField(1, strings.Repeat("\x01", 16))}), `uses the zip64 format`},
		{"zip64 locator", rawZip{entries: []rawEntry{file("a", "x")}, locator: true}.bytes(), `uses the zip64 format`},
		{"zip64 count", rawZip{entries: []rawEntry{file("a", "x")}, count: u16(0xffff)}.bytes(), `uses the zip64 format`},
		{"another local name", one(rawEntry{name: "good", localName: "evil"}), `entry "good" has another name ("evil")`},
		{"another local name, longer", one(rawEntry{name: "good", data: []byte("x"), localName: "../../evil"}), `has another name`},
		{"another local method", one(rawEntry{name: "e", data: []byte("x"), localMethod: u16(8)}), `has another method`},
		{"other local flags", one(rawEntry{name: "e", data: []byte("x"), localFlags: u16(flagUTF8)}), `has another set of flags`},
		{"another local size", one(rawEntry{name: "e", data: []byte("x"), localSize: u32(2)}), `has another checksum or size`},
		{"another local checksum", one(rawEntry{name: "e", data: []byte("x"), localCRC: u32(2)}), `has another checksum or size`},
		{"stored with two sizes", one(rawEntry{name: "e", data: []byte("xy"), size: u32(1)}), `says two sizes`},
		{"size too small", one(rawEntry{name: "e", data: []byte("xyz"), method: -1, size: u32(2)}), `entry "e" unpacks to more than the 2 bytes it says`},
		{"size too large", one(rawEntry{name: "e", data: []byte("xyz"), method: -1, size: u32(4)}), `entry "e" unpacks to 3 bytes and says 4`},
		{"wrong checksum", one(rawEntry{name: "e", data: []byte("xyz"), crc: u32(7)}), `entry "e" does not match its checksum`},
		{"damaged content", one(rawEntry{name: "e", data: []byte("xyz"), method: -1, content: []byte{7, 255, 255}}), `entry "e" is damaged`},
		{"cut content", one(rawEntry{name: "e", data: []byte("xyzxyz"), method: -1, content: deflated([]byte("xyzxyz"))[:3]}), `entry "e" is damaged`},
		{"bytes within an entry", one(rawEntry{name: "e", data: []byte("xyz"), method: -1, content: append(deflated([]byte("xyz")), "hidden"...)}), `has bytes after the end of its content`},
		{"descriptor lies", one(rawEntry{name: "e", data: []byte("x"), flags: flagDescriptor, descriptor: descriptor(true, x, 1, 2)}), `another checksum or size after its content`},
		{"descriptor missing", one(rawEntry{name: "e", data: []byte("x"), flags: flagDescriptor}), `0 bytes follow entry "e" where its sizes should be`},
		{"descriptor with another signature", one(rawEntry{name: "e", data: []byte("x"), flags: flagDescriptor, descriptor: append([]byte("abcd"), descriptor(false, x, 1, 1)...)}), `4 bytes follow entry "e"`},
		{"zip64 descriptor", one(rawEntry{name: "e", data: []byte("x"), flags: flagDescriptor, descriptor: make([]byte, 24)}), `24 bytes follow entry "e"`},
		{"prepended", rawZip{entries: []rawEntry{file("a", "x")}, prefix: []byte("#!/bin/sh\n")}.bytes(), `10 bytes lie before its first entry`},
		{"prepended, offsets as if not", func() []byte {
			return append([]byte("#!/bin/sh\n"), one(file("a", "x"))...)
		}(), `its directory does not lie where its end says`},
		{"appended", rawZip{entries: []rawEntry{file("a", "x")}, suffix: []byte("hidden")}.bytes(), `bytes follow its end`},
		{"two zips in a row", append(one(file("a", "x")), one(file("b", "y"))...), `its directory does not lie where its end says`},
		{"a zip in the comment", rawZip{entries: []rawEntry{file("a", "x")}, comment: inner}.bytes(), `its directory does not lie where its end says`},
		{"between entries", rawZip{entries: []rawEntry{file("a", "x"), {name: "b", before: []byte("hidden")}}}.bytes(), `6 bytes follow entry "a"`},
		{"before the directory", rawZip{entries: []rawEntry{file("a", "x")}, gap: []byte("hidden")}.bytes(), `6 bytes follow entry "a"`},
		{"directory elsewhere", rawZip{entries: []rawEntry{file("a", "x")}, dirStart: u32(0)}.bytes(), `its directory does not lie where its end says`},
		{"directory cut", rawZip{entries: []rawEntry{file("a", "x")}, dirSize: u32(3), dirStart: u32(32 + 44)}.bytes(), `its directory is damaged`},
		{"too few entries", rawZip{entries: []rawEntry{file("a", "x"), file("b", "y")}, count: u16(1)}.bytes(), `its directory holds more than the 1 entries`},
		{"too many entries said", rawZip{entries: []rawEntry{file("a", "x")}, count: u16(2)}.bytes(), `its directory holds 1 entries and says 2`},
		{"entry beyond the directory", one(rawEntry{name: "e", start: u32(100000)}), `100000 bytes lie before its first entry`},
		{"no header of its own", rawZip{entries: []rawEntry{{name: "e", noLocal: true}}, gap: make([]byte, 31)}.bytes(), `has no header of its own`},
		{"one part of several", one(rawEntry{name: "e", disk: 1}), `another part of several`},
		{"overlap bomb", overlap.bytes(), `unpacks to more than 100 times its size`},
		{"overlap of one content", rawZip{entries: []rawEntry{file("a", "x"), {name: "b", data: []byte("x"), noLocal: true, start: u32(0)}}}.bytes(), `overlaps`},
		{"entry within another's content", swallow.bytes(), `overlaps`},
		{"ratio of one entry", one(rawEntry{name: "zeros", data: make([]byte, 2<<20), method: -1}), `entry "zeros" unpacks to more than 100 times its size`},
		{"ratio under a lie", one(rawEntry{name: "zeros", data: make([]byte, 2<<20), method: -1, size: u32(900000)}), `entry "zeros" unpacks to more than the 900000 bytes it says`},
		{"total", total.bytes(), `it unpacks to more than 250 MiB`},
		{"entries", manyEntries.bytes(), `it has 20001 entries, at most 20000`},
		{"implied folders", manyFolders.bytes(), `more than 40000 files and folders`},
		{"not a zip", []byte("hello"), `it is not a zip`},
		{"nothing", nil, `it is not a zip`},
		{"no entry", rawZip{}.bytes(), `it is empty`},
		{"cut in half", one(file("a", strings.Repeat("x", 100)))[:90], `it is not a zip`},
		{"RAR", append([]byte("Rar!\x1a\x07\x01\x00"), make([]byte, 100)...), `it is not a zip`},
	}
}

// The writer of these tests makes right zips when it is not told to lie: what
// is refused above is refused for the lie.
func TestRawZipIsRight(t *testing.T) {
	crc := crc32.ChecksumIEEE([]byte("later"))
	d := binary.LittleEndian.AppendUint32(nil, sigDescriptor)
	for _, v := range []uint32{crc, 5, 5} {
		d = binary.LittleEndian.AppendUint32(d, v)
	}
	z := rawZip{comment: []byte("hello"), reverse: true, entries: []rawEntry{
		file("a.txt", "plain"),
		{name: "dir/", mode: 0o042775, host: 3},
		{name: "dir/b*", data: []byte(strings.Repeat("deflated ", 1000)), method: -1, mode: 0o100755, host: 3, extra: extraField(0x5455, "\x01abcd"), comment: []byte("c")},
		{name: "later", data: []byte("later"), flags: flagDescriptor, descriptor: d},
		{name: "later2", data: []byte("later"), flags: flagDescriptor, descriptor: d[4:]},
		{name: "na\u00efve", flags: flagUTF8, extra: extraField(0x7075, "\x01\x00\x00\x00\x00na\u00efve")},
	}}.bytes()
	entries, err := readZip(bytes.NewReader(z), int64(len(z)))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.name)
	}
	if want := []string{"a.txt", "dir", "dir/b*", "later", "later2", "na\u00efve"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	// and archive/zip agrees
	r, err := zip.NewReader(bytes.NewReader(z), int64(len(z)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.File {
		rc, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, rc); err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
}

package waf

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"strings"

	"bawn.dev/bawn"
)

// withoutFiles returns a multipart body without what is in its files, which is not
// searched: the engine would write it to a disk. doubtful is what is in those that not
// everybody takes for a file. Any other body is returned as it is, and one that cannot
// be read as something in which a rule finds just that.
func withoutFiles(r *bawn.Request, body []byte) (without []byte, doubtful []Leaf) {
	if r == nil || len(body) == 0 || len(r.Header["Content-Type"]) == 0 {
		return body, nil
	}
	h := r.Header["Content-Type"]
	media, params, err := mime.ParseMediaType(h[0])
	if err != nil || media != "multipart/form-data" {
		return body, nil
	}
	broken := []byte("--" + params["boundary"] + "\r\nbroken")
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if err := w.SetBoundary(params["boundary"]); err != nil {
		return broken, nil
	}
	parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		in, err := parts.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return broken, nil
		}
		out, err := w.CreatePart(in.Header)
		if err != nil {
			return broken, nil
		}
		may, is := isFile(in)
		var text strings.Builder
		to := out
		switch {
		case is:
			to = io.Discard
		case may:
			to = &text
		}
		if _, err := io.Copy(to, in); err != nil {
			return broken, nil
		}
		if text.Len() > 0 {
			doubtful = append(doubtful, Leaf{At: firstDoubtful + len(doubtful), Text: text.String()})
		}
	}
	if err := w.Close(); err != nil {
		return broken, nil
	}
	return b.Bytes(), doubtful
}

// Where leaves stand that are found here: beyond all that come with a question.
const (
	firstDoubtful = 1 << 24
	firstRepeated = 1 << 25
)

// isFile reports whether the engine may take a part for a file, and so write it to a
// disk, and whether everybody does.
func isFile(p *multipart.Part) (may, is bool) {
	how := p.Header.Get("Content-Disposition")
	if !strings.Contains(strings.ToLower(how), "filename") {
		return false, false
	}
	_, params, err := mime.ParseMediaType(how)
	return true, err == nil && params["filename"] != ""
}

// Text is an ordinary AWS Lambda function in Go: it knows nothing of Bawn. It
// answers POST /text/slug, /text/count and /text/wrap with the body as text.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
	"golang.org/x/text/unicode/norm"
)

func main() { lambda.Start(handle) }

func handle(_ context.Context, e events.APIGatewayV2HTTPRequest) (events.APIGatewayV2HTTPResponse, error) {
	text := e.Body
	if e.IsBase64Encoded {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return answer(http.StatusBadRequest, map[string]string{"error": "the body is not base64"})
		}
		text = string(b)
	}
	if !utf8.ValidString(text) {
		return answer(http.StatusUnprocessableEntity, map[string]string{"error": "the body is not UTF-8"})
	}
	switch e.PathParameters["action"] {
	case "slug":
		return answer(http.StatusOK, map[string]string{"slug": slug(text)})
	case "count":
		return answer(http.StatusOK, count(text))
	case "wrap":
		width, err := strconv.Atoi(e.QueryStringParameters["width"])
		if err != nil || width < 10 || width > 500 {
			width = 72
		}
		return answer(http.StatusOK, map[string]any{"width": width, "lines": wrap(text, width)})
	}
	return answer(http.StatusNotFound, map[string]string{"error": "know slug, count and wrap"})
}

// slug returns text as the last part of a URL: "Crème Brûlée!" is "creme-brulee".
func slug(text string) string {
	var b strings.Builder
	gap := false
	for _, r := range norm.NFKD.String(strings.ToLower(text)) {
		switch {
		case unicode.Is(unicode.Mn, r): // an accent, split off by NFKD
		case unicode.IsLetter(r) || unicode.IsDigit(r):
			if gap && b.Len() > 0 {
				b.WriteByte('-')
			}
			gap = false
			b.WriteRune(r)
		default:
			gap = true
		}
	}
	return b.String()
}

type counts struct {
	Characters int            `json:"characters"`
	Words      int            `json:"words"`
	Lines      int            `json:"lines"`
	Minutes    int            `json:"minutesToRead"`
	Top        []string       `json:"top"`
	Seen       map[string]int `json:"-"`
}

// count measures text; at 230 words a minute it says how long it takes to read.
func count(text string) counts {
	c := counts{Characters: utf8.RuneCountInString(text), Seen: map[string]int{}, Top: []string{}}
	c.Lines = strings.Count(text, "\n")
	if text != "" && !strings.HasSuffix(text, "\n") {
		c.Lines++
	}
	for _, w := range strings.FieldsFunc(strings.ToLower(text), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '\''
	}) {
		c.Words++
		if c.Seen[w]++; c.Seen[w] == 1 {
			c.Top = append(c.Top, w)
		}
	}
	c.Minutes = (c.Words + 229) / 230
	slices.SortStableFunc(c.Top, func(a, b string) int { return c.Seen[b] - c.Seen[a] })
	c.Top = c.Top[:min(len(c.Top), 5)]
	return c
}

// wrap breaks text into lines of at most width characters, between words.
func wrap(text string, width int) []string {
	lines := []string{}
	line, n := "", 0
	for _, w := range strings.Fields(text) {
		m := utf8.RuneCountInString(w)
		if n > 0 && n+1+m > width {
			lines, line, n = append(lines, line), "", 0
		}
		if n > 0 {
			line, n = line+" ", n+1
		}
		line, n = line+w, n+m
	}
	if n > 0 {
		lines = append(lines, line)
	}
	return lines
}

func answer(status int, v any) (events.APIGatewayV2HTTPResponse, error) {
	b, err := json.Marshal(v)
	return events.APIGatewayV2HTTPResponse{
		StatusCode: status,
		Headers:    map[string]string{"content-type": "application/json"},
		Body:       string(b),
	}, err
}

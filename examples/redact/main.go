// Redact is a WebAssembly command: it reads one event as JSON from standard
// input, writes its answer as JSON to standard output and ends. It is built
// with GOOS=wasip1 GOARCH=wasm and needs nothing of Bawn.
//
// The answer is the text without e-mail addresses, payment card numbers and
// IBANs, and how many of each there were.
package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// event has the fields used of an HTTP event. Text is for calls that do not
// come over HTTP.
type event struct {
	Body            string `json:"body"`
	IsBase64Encoded bool   `json:"isBase64Encoded"`
	Text            string `json:"text"`
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "redact:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	b, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	var e event
	if err := json.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("the event is not what was expected: %w", err)
	}
	text := e.Text
	if text == "" {
		text = e.Body
		if e.IsBase64Encoded {
			if b, err = base64.StdEncoding.DecodeString(text); err != nil {
				return fmt.Errorf("the body is not base64: %w", err)
			}
			text = string(b)
		}
	}
	clean, found := redact(text)
	return json.NewEncoder(out).Encode(map[string]any{"text": clean, "found": found})
}

// A kind is one thing to take out: what it looks like, and a check of what the
// expression cannot see.
type kind struct {
	name  string
	like  *regexp.Regexp
	check func(string) bool
}

func kinds() []kind {
	return []kind{
		{"email", regexp.MustCompile(`[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+`), func(string) bool { return true }},
		{"iban", regexp.MustCompile(`\b[A-Z]{2}[0-9]{2}( ?[A-Z0-9]{4}){2,7}( ?[A-Z0-9]{1,3})?\b`), iban},
		{"card", regexp.MustCompile(`\b[0-9]([ -]?[0-9]){12,18}\b`), luhn},
	}
}

func redact(text string) (string, map[string]int) {
	found := map[string]int{}
	for _, k := range kinds() {
		text = k.like.ReplaceAllStringFunc(text, func(s string) string {
			if !k.check(s) {
				return s
			}
			found[k.name]++
			return "[" + k.name + "]"
		})
	}
	return text, found
}

// luhn checks the last digit of a payment card number.
func luhn(s string) bool {
	sum, double := 0, false
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] < '0' || s[i] > '9' {
			continue
		}
		d := int(s[i] - '0')
		if double {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum, double = sum+d, !double
	}
	return sum%10 == 0
}

// iban checks the two check digits of an account number: with the first four
// characters moved to the end and letters read as 10 to 35 it is 1 modulo 97.
func iban(s string) bool {
	s = strings.ReplaceAll(s, " ", "")
	rest := 0
	for _, c := range s[4:] + s[:4] {
		if c >= 'A' {
			rest = (rest*100 + int(c-'A') + 10) % 97
		} else {
			rest = (rest*10 + int(c-'0')) % 97
		}
	}
	return rest == 1
}

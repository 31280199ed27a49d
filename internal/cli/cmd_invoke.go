package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
)

func newInvoke(a *app) *cobra.Command {
	var data, file, alias string
	c := &cobra.Command{
		Use:     "invoke FUNCTION",
		GroupID: groupFunction,
		Short:   "Call a function with an event and print what it answers",
		Long: `Calls a function through the control API with a JSON event, which is {} if none
is given, and prints the answer as it came to standard output. If the function
fails its error document goes to standard error and the exit code is 7.`,
		Example: `  bawn invoke hello
  bawn invoke hello -d '{"name": "world"}'
  bawn invoke hello -f event.json --alias live
  echo '{}' | bawn invoke hello -f -`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFunctions,
		RunE: runE(func(cmd *cobra.Command, args []string) error {
			name, qualifier, err := parseFunction(args[0])
			if err != nil {
				return err
			}
			if alias != "" {
				if qualifier != "" {
					return usagef("give the version once: @%s or --alias %s", qualifier, alias)
				}
				if name, qualifier, err = parseFunction(name + "@" + alias); err != nil {
					return err
				}
			}
			event, err := a.readEvent(cmd, data, file)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			inv, err := c.Invoke(cmd.Context(), name, qualifier, event)
			if err != nil {
				return err
			}
			defer inv.Body.Close()
			if a.format == "json" {
				return a.printInvocation(inv.ID, inv.Version, inv.FunctionError, inv.Body)
			}
			if inv.FunctionError != "" {
				doc, err := io.ReadAll(io.LimitReader(inv.Body, bawn.MaxResponseBytes))
				if err != nil {
					return err
				}
				fmt.Fprintf(a.Err, "%s\n", cleanLines(string(doc)))
				a.notef("bawn: the function failed (invocation %s)\n  fix: see `bawn logs %s --invocation %s`\n", clean(inv.ID), name, clean(inv.ID))
				return &silentError{exitFunctionError}
			}
			w, flush := a.payload()
			n, err := io.Copy(w, inv.Body)
			flush()
			if a.outTTY && n > 0 {
				fmt.Fprintln(a.Out)
			}
			var be *bawn.Error
			if err != nil && !errors.As(err, &be) {
				err = wrapOutput(err)
			}
			return err
		}),
	}
	c.Flags().StringVarP(&data, "data", "d", "", "the event, as JSON")
	c.Flags().StringVarP(&file, "file", "f", "", `a file that holds the event; "-" for standard input`)
	c.Flags().StringVar(&alias, "alias", "", "the alias (or version) to call instead of live")
	c.MarkFlagsMutuallyExclusive("data", "file")
	a.addOutput(c)
	return c
}

// readEvent returns the event that was given, after seeing that it is JSON: a
// slip is told here with its place, before anything travels.
func (a *app) readEvent(cmd *cobra.Command, data, file string) ([]byte, error) {
	event := []byte(data)
	switch {
	case cmd.Flags().Changed("data"):
	case file == "":
		return []byte("{}"), nil
	default:
		var r io.Reader = a.In
		if file != "-" {
			f, err := os.Open(file)
			if err != nil {
				return nil, fileError(err, "the event file %s cannot be read", file)
			}
			defer f.Close()
			r = f
		}
		var err error
		if event, err = io.ReadAll(io.LimitReader(r, bawn.MaxEventBytes+1)); err != nil {
			return nil, fileError(err, "the event cannot be read")
		}
	}
	if len(event) > bawn.MaxEventBytes {
		return nil, bawn.Errorf(bawn.CodeTooLarge, "invoke", "the event has more than %d bytes", bawn.MaxEventBytes).
			WithFix("send less, or put the data where the function can fetch it")
	}
	var v json.RawMessage
	if err := json.Unmarshal(event, &v); err != nil {
		e := bawn.Errorf(bawn.CodeInvalid, "invoke", "the event is not JSON: %v", err)
		var se *json.SyntaxError
		if errors.As(err, &se) {
			line, col := position(event, int(se.Offset))
			e = bawn.Errorf(bawn.CodeInvalid, "invoke", "the event is not JSON: line %d, column %d: %v", line, col, err)
		}
		return nil, e.WithFix(`give JSON, such as -d '{"name": "world"}'; a plain text needs quotes: -d '"text"'`)
	}
	return event, nil
}

// position turns an offset of encoding/json (bytes read, so 1 past the fault)
// into line and column, both from 1.
func position(data []byte, offset int) (line, col int) {
	line, col = 1, 1
	for _, b := range data[:max(0, min(offset-1, len(data)))] {
		if b == '\n' {
			line, col = line+1, 1
		} else {
			col++
		}
	}
	return line, col
}

// printInvocation prints an invocation for -o json. A payload that is JSON is
// kept as it is; any other becomes a string.
func (a *app) printInvocation(id string, version int, functionError string, body io.Reader) error {
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	out := struct {
		Invocation    string          `json:"invocation"`
		Version       int             `json:"version"`
		FunctionError string          `json:"functionError,omitempty"`
		Payload       json.RawMessage `json:"payload"`
	}{id, version, functionError, data}
	if !json.Valid(data) {
		if out.Payload, err = json.Marshal(string(data)); err != nil {
			return err
		}
	}
	if err := a.printJSON(out); err != nil {
		return err
	}
	if functionError != "" {
		return &silentError{exitFunctionError}
	}
	return nil
}

// fileError explains a failure of a local file.
func fileError(err error, format string, args ...any) error {
	msg := fmt.Sprintf(format, args...)
	cause := err
	var pe *os.PathError
	if errors.As(err, &pe) {
		cause = pe.Err
	}
	code := bawn.CodeInvalid
	if errors.Is(err, os.ErrNotExist) {
		code = bawn.CodeNotFound
	}
	return bawn.Wrap(err, code, "cli", "%s: %v", msg, cause)
}

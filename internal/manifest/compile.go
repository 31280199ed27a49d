package manifest

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"

	"bawn.dev/bawn"
)

// Compile turns what was written about the function called name into a
// version: defaults are filled in and every bound is checked, also for an f
// that no file was read for. The version has no tenant, number or artifact
// yet. Whether a public route's end lies in the past is for the caller to say,
// who knows what day it is.
func Compile(name string, f Function) (bawn.Version, error) {
	if err := bawn.CheckName("function", name); err != nil {
		return bawn.Version{}, err
	}
	// A function made in code is checked like a written one: it is written
	// down and read.
	raw, err := json.Marshal(f)
	if err != nil {
		return bawn.Version{}, bawn.Wrap(err, bawn.CodeInvalid, "manifest", "function %q cannot be written as JSON", name)
	}
	if f, err = ParseFunctionJSON(raw); err != nil {
		return bawn.Version{}, err
	}
	in := f.Interior
	v := bawn.Version{
		Function:    name,
		Runtime:     f.Runtime,
		Handler:     f.Handler,
		Description: f.Description,
		Owner:       f.Owner,
		Labels:      slices.Sorted(slices.Values(f.Labels)),
		Perimeter: bawn.Perimeter{
			Interior: bawn.Interior{
				Memory:      or(int64(in.Memory), bawn.DefaultMemory),
				CPU:         or(in.CPU, bawn.DefaultCPU),
				Timeout:     or(in.Timeout.std(), bawn.DefaultTimeout),
				PIDs:        or(in.PIDs, bawn.DefaultPIDs),
				Concurrency: or(in.Concurrency, bawn.DefaultConcurrency),
				Exec:        in.Exec,
				Reuse:       bawn.Reuse{Invocations: in.Reuse.Invocations, MaxAge: in.Reuse.MaxAge.std()},
			},
			Evidence: bawn.Evidence{LogRetention: or(f.Evidence.LogRetention.std(), bawn.DefaultLogRetention)},
		},
	}
	if v.Runtime == bawn.Wasm {
		v.Handler = or(v.Handler, "main.wasm")
	}
	if len(f.Environment) > 0 {
		v.Environment = maps.Clone(f.Environment)
	}
	// A full /tmp should be an error that the function sees, not the end of its
	// process for want of memory.
	v.Perimeter.Interior.Tmp = or(int64(in.Tmp), min(bawn.DefaultTmp, v.Perimeter.Interior.Memory/2))
	for i, r := range f.Ingress.HTTP {
		if err := r.Access.written("ingress.http[" + strconv.Itoa(i) + "].access"); err != nil {
			return bawn.Version{}, err
		}
		route := bawn.Route{Method: r.Method, Path: r.Path, Access: r.Access.compile()}
		route.Inspect = r.inspection()
		route.Limits = r.Limits.Rate.compile()
		r.Web.compile(&route)
		if route.Input, err = r.Input.compile("the input of " + r.Method + " " + r.Path); err != nil {
			return bawn.Version{}, err
		}
		v.Perimeter.Ingress.HTTP = append(v.Perimeter.Ingress.HTTP, route)
	}
	event, err := f.Ingress.Event.Input.compile("ingress.event.input")
	if err != nil {
		return bawn.Version{}, err
	}
	if e := (bawn.Event{Input: event, Inspect: f.Ingress.Event.Inspect.compile()}); e != (bawn.Event{}) {
		v.Perimeter.Ingress.Event = &e
	}
	v.Perimeter.Ingress.Limits = f.Ingress.Limits.compile()
	v.Perimeter.Ingress.Callers = slices.Sorted(slices.Values(f.Ingress.Callers))
	if v.Perimeter.Egress, err = f.Egress.compile(); err != nil {
		return bawn.Version{}, err
	}
	if v.Perimeter.Ingress.Budget, err = f.Ingress.Budget.compile(&v); err != nil {
		return bawn.Version{}, err
	}
	for _, t := range f.Tests {
		v.Tests = append(v.Tests, t.compile())
	}
	return v, nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

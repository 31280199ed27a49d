package policy

import (
	"fmt"
	"testing"
	"time"

	"bawn.dev/bawn"
)

// functions returns n versions with a public route, a keyed one, two callers and
// one that they call.
func functions(n int) []*bawn.Version {
	all := make([]*bawn.Version, n)
	for i := range all {
		v := made(fmt.Sprintf("f%d", i), []string{"front", "role:ops"}, []string{"receipts"})
		v.Digest = fmt.Sprint(i)
		v.Perimeter.Ingress.HTTP = []bawn.Route{
			{Method: "GET", Path: fmt.Sprintf("/open/%d", i), Access: bawn.Access{Public: &bawn.PublicAccess{Reason: "x", Until: time.Now().Add(time.Hour)}}},
			{Method: "POST", Path: fmt.Sprintf("/f/%d", i)},
		}
		all[i] = v
	}
	return all
}

// A decision alone, without its record: with 5,000 functions' rules in memory it
// must cost what it costs with 5.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{5, 5000} {
		e := New(nil, nil)
		all := functions(n)
		for name, make := range map[string]func(v *bawn.Version) Request{
			"key": func(v *bawn.Version) Request {
				return Request{Principal: key("main", bawn.RoleInvoker), Action: Invoke, Resource: v.Ref(), Target: v, Source: "192.0.2.1", Trigger: "lambda"}
			},
			"public": func(v *bawn.Version) Request {
				r := &v.Perimeter.Ingress.HTTP[0]
				return Request{Principal: bawn.Anonymous(), Action: Invoke, Resource: v.Ref(), Target: v, Route: r, Public: r.Access.Public, Source: "192.0.2.1", Trigger: "http"}
			},
			"function": func(v *bawn.Version) Request {
				return through(key("main", bawn.RoleInvoker), v, made("front", nil, []string{v.Function}))
			},
		} {
			reqs := []Request{}
			for _, v := range all {
				reqs = append(reqs, make(v))
				reqs[len(reqs)-1].Caller = digested(reqs[len(reqs)-1].Caller)
			}
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				for _, r := range reqs {
					e.Ask(r) // compiled at first use
				}
				b.ReportAllocs()
				b.ResetTimer()
				for i := 0; b.Loop(); i++ {
					if !e.Ask(reqs[i%n]).Allow {
						b.Fatal("denied")
					}
				}
			})
		}
	}
}

// A decision on what a function reaches, alone: with 64 rules it must cost what it
// costs with one, whether the name is exact or a wildcard's.
func BenchmarkReach(b *testing.B) {
	for _, n := range []int{1, 64} {
		v := made("f", nil, nil)
		v.Digest = fmt.Sprint(n)
		for i := range n {
			v.Perimeter.Egress.Hosts = append(v.Perimeter.Egress.Hosts, bawn.Host{Host: fmt.Sprintf("*.h%d.example", i), Ports: []int{443}})
		}
		v.Perimeter.Egress.Hosts[n-1].Host = "api.example.com"
		e := New(nil, nil)
		r := wants(v, Egress, HostObject(v, "api.example.com", 443))
		b.Run(fmt.Sprintf("rules/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !e.Ask(r).Allow {
					b.Fatal("denied")
				}
			}
		})
	}
}

func digested(v *bawn.Version) *bawn.Version {
	if v != nil {
		v.Digest = v.Perimeter.Egress.Functions[0]
	}
	return v
}

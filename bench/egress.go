package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// reachCode is a client that keeps its connections to a host over TLS. It is the
// same program in a function and, run by itself, outside of any sandbox.
const reachCode = `'use strict';
const https = require('https');

// measure makes calls one after the other, then over many connections for a while.
async function measure({ host, servername, port, calls, connections, seconds }) {
  const agent = new https.Agent({ keepAlive: true, maxSockets: connections });
  const once = () => new Promise((resolve, reject) => https.get({ host, servername, port, path: '/hello', agent }, (res) => {
    if (res.statusCode !== 200) reject(new Error('status ' + res.statusCode));
    res.resume();
    res.on('end', resolve);
  }).on('error', reject));
  for (let i = 0; i < calls / 4; i++) await once();
  const each = [];
  for (let i = 0; i < calls; i++) {
    const begin = process.hrtime.bigint();
    await once();
    each.push(Number(process.hrtime.bigint() - begin) / 1e6);
  }
  each.sort((a, b) => a - b);
  let done = 0;
  const begin = process.hrtime.bigint();
  const end = begin + BigInt(seconds * 1e9);
  await Promise.all(Array.from({ length: connections }, async () => {
    while (process.hrtime.bigint() < end) {
      await once();
      done++;
    }
  }));
  const rate = done / (Number(process.hrtime.bigint() - begin) / 1e9);
  agent.destroy();
  return { p50: each[each.length >> 1], rate };
}

exports.handler = measure;
if (require.main === module) measure(JSON.parse(process.argv[2])).then((r) => console.log(JSON.stringify(r)));
`

// reached is what the client measured.
type reached struct {
	P50  float64 `json:"p50"` // milliseconds
	Rate float64 `json:"rate"`
}

// egress is a request of a function to a host over a connection that it keeps, by a
// tunnel and where Bawn reads the requests, against the same client outside.
func (b *bench) egress() error {
	up, err := b.startBaseline("-serve", "outside")
	if err != nil {
		return err
	}
	u, err := url.Parse(up.URL)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return err
	}
	ca, program := filepath.Join(b.dir, "egress-ca.pem"), filepath.Join(b.dir, "reach.js")
	if err := os.WriteFile(ca, []byte(up.CA), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(program, []byte(reachCode), 0o600); err != nil {
		return err
	}
	n, err := b.startNode(filepath.Join(b.dir, "egress"), "--egress-allow", u.Host, "--egress-ca", ca,
		"--egress-resolve", "tunnel.bench.test=127.0.0.1", "--egress-resolve", "clear.bench.test=127.0.0.1")
	if err != nil {
		return err
	}
	_, js, err := n.interpreters()
	if err != nil {
		return err
	}
	rules := []any{
		map[string]any{"host": "tunnel.bench.test", "ports": []int{port}, "bytes": "1GiB"},
		map[string]any{"host": "clear.bench.test", "ports": []int{port}, "bytes": "1GiB", "methods": []string{"GET"}, "paths": []string{"/hello"}},
	}
	f := function{name: "reach", runtime: js.runtime, reuse: map[string]any{"maxAge": "1h"}, files: map[string]string{"index.js": reachCode}, egress: map[string]any{"hosts": rules}}
	if err := n.deploy(f); err != nil {
		return err
	}
	event := func(host, name string) ([]byte, error) {
		return json.Marshal(map[string]any{"host": host, "servername": name, "port": port, "calls": 1000, "connections": 16, "seconds": 1})
	}
	inside := func(name string) (r reached, err error) {
		e, err := event(name, name)
		if err != nil {
			return r, err
		}
		inv, err := n.api.Invoke(context.Background(), f.name, "", e)
		if err != nil {
			return r, err
		}
		defer inv.Body.Close()
		body, err := io.ReadAll(inv.Body)
		if err == nil && inv.FunctionError != "" {
			err = fmt.Errorf("the function failed: %.300s", body)
		}
		if err != nil {
			return r, err
		}
		return r, json.Unmarshal(body, &r)
	}
	direct := func() (r reached, err error) {
		e, err := event("127.0.0.1", "tunnel.bench.test")
		if err != nil {
			return r, err
		}
		cmd := exec.Command(js.path, program, string(e))
		cmd.Env = []string{"NODE_EXTRA_CA_CERTS=" + ca}
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return r, err
		}
		return r, json.Unmarshal(out, &r)
	}
	settle()
	var base, tunnel, read []reached
	for range b.rounds {
		d, err := direct()
		if err != nil {
			return err
		}
		t, err := inside("tunnel.bench.test")
		if err != nil {
			return err
		}
		c, err := inside("clear.bench.test")
		if err != nil {
			return err
		}
		base, tunnel, read = append(base, d), append(tunnel, t), append(read, c)
	}
	p50 := func(all []reached) (v []float64) {
		for _, r := range all {
			v = append(v, r.P50)
		}
		return v
	}
	rate := func(all []reached) (v []float64) {
		for _, r := range all {
			v = append(v, r.Rate)
		}
		return v
	}
	const against = "the same Node.js program outside, straight to the host"
	b.compare("HTTPS request to a host, tunnel", "ms", against, p50(tunnel), p50(base), atMost(1.5), "one kept connection, loopback")
	b.compare("HTTPS request to a host, read by Bawn", "ms", against, p50(read), p50(base), atMost(1.5), "judged each, the first hundred recorded each")
	b.compare("HTTPS requests a second, tunnel", "1/s", against, rate(tunnel), rate(base), atLeast(0.6), "16 kept connections")
	b.compare("HTTPS requests a second, read by Bawn", "1/s", against, rate(read), rate(base), atLeast(0.6), "16 kept connections")
	return nil
}

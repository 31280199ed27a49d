// Package bawn holds the nouns of Bawn, a self-hosted serverless platform in
// which every function has its own perimeter.
//
// It imports the standard library alone and does nothing but name things,
// check them and print them. One noun is one type here, and that type is used
// on the wire, in the store and in the code.
//
// # Glossary
//
//   - Tenant: who owns functions, keys and everything else. Nothing is shared
//     between tenants.
//   - Function: a name under which versions are published.
//   - Version: an immutable, content-addressed pair of artifact and perimeter,
//     with everything else that its manifest says.
//   - Alias: a movable name for a version; calls go to "live" unless they say
//     otherwise.
//   - Artifact: the package (a zip) that a version runs, named by its digest.
//   - Perimeter: the compiled, immutable rules of one version, in four parts:
//     ingress, interior, egress and evidence.
//   - Test: a case that a version must pass before it becomes live: what its
//     perimeter must let through, or must stop.
//   - Instance: one sandboxed process tree that serves one version.
//   - Call: one request to run a function, whatever trigger it came from.
//   - Principal: who makes a call or a change.
//   - Role: what a principal may do, by name.
//   - Record: one entry of the evidence: a decision, a change, an outcome or
//     an attempt that the perimeter stopped.
//
// # Where to read next
//
// internal/invoke/invoke.go tells the story of a call, internal/ingress/admit.go
// lists the checks before it, internal/node/builtin.go lists the parts Bawn is
// made of, and docs/architecture.md draws the whole.
package bawn

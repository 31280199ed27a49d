// Package conformance holds Bawn against other people's test suites. It is a module
// of its own, so that what the suites come in is no dependency of Bawn's.
package conformance

// Package interior runs calls in sandboxes. It finds the runtimes that the host
// has, keeps warm sandboxes that hold no user code, makes them one function
// version's own when a call needs one, speaks to what runs inside, and destroys
// them when their reuse has ended.
package interior

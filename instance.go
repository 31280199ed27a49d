package bawn

import "time"

// Instance describes one sandboxed process tree that serves a version.
type Instance struct {
	ID       string    `json:"id"`
	Tenant   string    `json:"tenant"`
	Function string    `json:"function"`
	Version  int       `json:"version"`
	State    string    `json:"state" doc:"loading, idle, busy, freezing, frozen or ending"`
	Started  time.Time `json:"started"`
	Calls    int       `json:"calls"`
	Memory   int64     `json:"memory" doc:"bytes now"`
	Facts    []Fact    `json:"facts,omitempty" doc:"what the kernel enforces, read from the kernel"`
}

// Fact is one thing the kernel says of a running instance.
type Fact struct {
	Control string `json:"control" doc:"such as B1"`
	Name    string `json:"name" doc:"namespaces, capabilities, …"`
	Value   string `json:"value" doc:"what was read"`
	Source  string `json:"source" doc:"where it was read, such as /proc/PID/status"`
	OK      bool   `json:"ok" doc:"whether it is what the perimeter asks for"`
}

// Capability is one thing a host can or cannot enforce, measured at start.
type Capability struct {
	Name     string `json:"name" doc:"such as seccomp user notification"`
	Control  string `json:"control" doc:"what it carries, such as B2"`
	OK       bool   `json:"ok"`
	Required bool   `json:"required" doc:"without it no function runs"`
	Detail   string `json:"detail,omitempty" doc:"what was found"`
	Fix      string `json:"fix,omitempty" doc:"how to get it"`
}

package interior

// The Runtime API's address inside the sandbox, where the pool asks for a
// listener.
const (
	runtimeAPIPort = 9001
	runtimeAPIAddr = "127.0.0.1:9001"
)

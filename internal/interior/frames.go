package interior

import "encoding/json"

// errorPayload returns the JSON document that a failed invocation answers.
func errorPayload(kind, message string) []byte {
	b, _ := json.Marshal(struct {
		Type    string `json:"errorType"`
		Message string `json:"errorMessage"`
	}{kind, message}) // two strings always marshal
	return b
}

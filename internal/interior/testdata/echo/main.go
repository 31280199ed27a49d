// Program echo is a bootstrap for tests: it answers each event with itself.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	api := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/invocation/"
	for {
		next, err := http.Get(api + "next")
		if err != nil {
			panic(err)
		}
		event, _ := io.ReadAll(next.Body)
		next.Body.Close()
		fmt.Printf("got %s\n", event)
		if bytes.Contains(event, []byte("poll")) {
			// Something else in the sandbox wants events, too.
			other := http.Client{Transport: &http.Transport{}}
			if r, err := other.Get(api + "next"); err == nil {
				r.Body.Close()
				fmt.Println("second poller:", r.Status)
			}
		}
		r, err := http.Post(api+next.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/response", "application/json", bytes.NewReader(event))
		if err != nil {
			panic(err)
		}
		r.Body.Close()
	}
}

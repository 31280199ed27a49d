module bawn.dev/bawn/conformance

go 1.26.3

require (
	bawn.dev/bawn v0.0.0
	cuelang.org/go v0.15.0
	github.com/google/jsonschema-go v0.4.3
	github.com/nst/JSONTestSuite v0.0.0-20241122125541-1ef36fa01286
)

require (
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3 // indirect
	golang.org/x/text v0.43.0 // indirect
)

replace bawn.dev/bawn => ../

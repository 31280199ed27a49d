package api

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"bawn.dev/bawn"
)

// routes lists every route of the API.
func (a *api) routes() []route {
	return []route{
		on(a, http.MethodGet, "/v1/status", "status", "Say whether the node is ready", a.status, public),

		on(a, http.MethodHead, "/v1/artifacts/{digest}", "hasArtifact", "Ask whether the node has a package", a.hasArtifact),
		on(a, http.MethodPut, "/v1/artifacts/{digest}", "putArtifact", "Upload a package", a.putArtifact, rawBody("application/zip", bawn.MaxPackageBytes)),

		on(a, http.MethodGet, "/v1/functions", "listFunctions", "List functions with their live versions", a.listFunctions),
		on(a, http.MethodGet, "/v1/functions/{name}", "getFunction", "Get a function and one version", a.getFunction),
		on(a, http.MethodDelete, "/v1/functions/{name}", "removeFunction", "Remove a function with all its versions", a.removeFunction, status(http.StatusNoContent)),
		on(a, http.MethodGet, "/v1/functions/{name}/versions", "listVersions", "List a function's versions, newest first", a.listVersions),
		on(a, http.MethodPost, "/v1/functions/{name}/versions", "deploy", "Create a version and make it live, or have it wait for approval", a.deploy, alsoAccepted),
		on(a, http.MethodPost, "/v1/functions/{name}/tests", "test", "Run the tests of a version, or of what would become one", a.runTests),
		on(a, http.MethodGet, "/v1/approvals", "listApprovals", "List what waits for a second principal, oldest first", a.listApprovals),
		on(a, http.MethodPost, "/v1/approvals/{id}", "approve", "Approve a version that widens its perimeter, and make it live", a.approve),
		on(a, http.MethodDelete, "/v1/approvals/{id}", "reject", "Drop a version that waits for approval", a.reject, status(http.StatusNoContent)),

		on(a, http.MethodPut, "/v1/functions/{name}/aliases/{alias}", "setAlias", "Point an alias at a version", a.setAlias, status(http.StatusNoContent)),
		on(a, http.MethodPost, "/v1/functions/{name}/rollback", "rollback", "Move live back", a.rollback),
		on(a, http.MethodPost, "/v1/functions/{name}/invocations", "invoke", "Call a function: the body is the event, the answer is the payload", a.invoke, rawBody("application/json", bawn.MaxEventBytes), rawAnswer("*/*")),

		on(a, http.MethodGet, "/v1/functions/{name}/logs", "logs", "Stream log lines", a.logs, lines[bawn.LogLine]),
		on(a, http.MethodGet, "/v1/events", "events", "Stream records of the evidence", a.events, lines[bawn.Record]),
		on(a, http.MethodGet, "/v1/functions/{name}/perimeter", "perimeter", "Show a perimeter and what the kernel enforces of it", a.perimeter),
		on(a, http.MethodGet, "/v1/functions/{name}/suggestion", "suggest", "Propose an egress block by what the function used and tried", a.suggest),
		on(a, http.MethodGet, "/v1/functions/{name}/diff", "diff", "Say what one version changes against another", a.diff),
		on(a, http.MethodPost, "/v1/backups", "createBackup", "Back the installation up: the answer is the archive, encrypted", a.createBackup, rawBytes("The archive: a tar file in an age file")),
		on(a, http.MethodGet, "/v1/doctor", "doctor", "Show what the host can enforce and run", a.doctor),

		on(a, http.MethodGet, "/v1/policies", "listPolicies", "List guardrails", a.listGuardrails),
		on(a, http.MethodPost, "/v1/policies", "testPolicies", "Hold the guardrails, or a change of one, to cases; changes nothing", a.testPolicies),
		on(a, http.MethodGet, "/v1/policies/{name}", "getPolicy", "Get a guardrail", a.getGuardrail),
		on(a, http.MethodPut, "/v1/policies/{name}", "setPolicy", "Make or change a guardrail", a.setGuardrail),
		on(a, http.MethodDelete, "/v1/policies/{name}", "removePolicy", "Take a guardrail away", a.removeGuardrail, status(http.StatusNoContent)),
		on(a, http.MethodGet, "/v1/labels", "listLabels", "List the labels for which something is settled", a.listLabels),
		on(a, http.MethodPut, "/v1/labels/{name}", "setLabel", "Settle for how long log lines of functions with a label are kept at most", a.setLabel),
		on(a, http.MethodDelete, "/v1/labels/{name}", "removeLabel", "Take back what is settled for a label", a.removeLabel, status(http.StatusNoContent)),
		on(a, http.MethodGet, "/v1/domains", "listDomains", "List the tenant's domains; for an operator, those of all", a.listDomains),
		on(a, http.MethodGet, "/v1/domains/{domain}", "getDomain", "Get a domain and what answers on it", a.getDomain),
		on(a, http.MethodPut, "/v1/domains/{domain}", "addDomain", "Give a domain to a tenant; for operators", a.addDomain),
		on(a, http.MethodDelete, "/v1/domains/{domain}", "removeDomain", "Take a domain from its tenant; for operators", a.removeDomain),
		on(a, http.MethodGet, "/v1/budget", "getBudget", "Say how it is with the budgets of a tenant and its functions", a.getBudget),
		on(a, http.MethodPut, "/v1/budget", "setBudget", "Replace the budgets of a tenant", a.setBudget),
		on(a, http.MethodPost, "/v1/budget/lifts", "liftBudget", "Let a budget not hold until its window ends", a.liftBudget, status(http.StatusCreated)),
		on(a, http.MethodGet, "/v1/cost", "cost", "Say what calls used and cost, by function, caller and tenant", a.cost),
		on(a, http.MethodGet, "/v1/prices", "getPrices", "Get the price table", a.getPrices),
		on(a, http.MethodPut, "/v1/prices", "setPrices", "Replace the price table; for operators", a.setPrices),
		on(a, http.MethodPost, "/v1/can", "can", "Ask ahead of time whether somebody may do something", a.can),
		on(a, http.MethodGet, "/v1/data", "data", "Say which functions can touch which databases and secrets, and which did", a.data),
		on(a, http.MethodGet, "/v1/explain/{id}", "explain", "Say why a decision was as it was", a.explain),

		on(a, http.MethodGet, "/v1/audit", "audit", "Say how it is with the audit log", a.audit),
		on(a, http.MethodGet, "/v1/audit/entries/{id}", "auditEntry", "Get a record with its inclusion receipt", a.auditEntry),
		on(a, http.MethodGet, "/v1/audit/file", "auditFile", "Get a file of the audit log's tiles", a.auditFile),

		on(a, http.MethodGet, "/v1/tenants", "listTenants", "List the tenants; for operators, as the rest of them", a.listTenants),
		on(a, http.MethodPost, "/v1/tenants", "createTenant", "Create a tenant; the answer holds its administrator's key, once", a.createTenant, status(http.StatusCreated)),
		on(a, http.MethodGet, "/v1/tenants/{tenant}", "getTenant", "Get a tenant and what it has", a.getTenant),
		on(a, http.MethodPut, "/v1/tenants/{tenant}/quota", "setQuota", "Bound what a tenant may have", a.setQuota),
		on(a, http.MethodPost, "/v1/tenants/{tenant}/suspend", "suspend", "Let nobody of a tenant in, and end what runs of it", a.suspend),
		on(a, http.MethodPost, "/v1/tenants/{tenant}/resume", "resume", "End a suspension", a.resume),
		on(a, http.MethodDelete, "/v1/tenants/{tenant}", "removeTenant", "Remove a tenant with everything that it has, for good", a.removeTenant),

		on(a, http.MethodGet, "/v1/keys", "listKeys", "List keys, without their secrets", a.listKeys),
		on(a, http.MethodPost, "/v1/keys", "createKey", "Create a key; the answer holds its secret, once", a.createKey, status(http.StatusCreated)),
		on(a, http.MethodDelete, "/v1/keys/{id}", "revokeKey", "End a key at once", a.revokeKey, status(http.StatusNoContent)),

		on(a, http.MethodGet, "/v1/secrets", "listSecrets", "List secrets, without their values", a.listSecrets),
		on(a, http.MethodGet, "/v1/secrets/{name}", "getSecret", "Get a secret's versions and grants, without its values", a.getSecret),
		on(a, http.MethodPut, "/v1/secrets/{name}", "createSecret", "Keep a secret: the body is the value", a.createSecret, rawBody("application/octet-stream", bawn.MaxSecretBytes), status(http.StatusCreated)),
		on(a, http.MethodDelete, "/v1/secrets/{name}", "removeSecret", "Wipe a secret with its versions and grants", a.removeSecret, status(http.StatusNoContent)),
		on(a, http.MethodPost, "/v1/secrets/{name}/versions", "rotateSecret", "Give a secret a new value: the body", a.rotateSecret, rawBody("application/octet-stream", bawn.MaxSecretBytes)),
		on(a, http.MethodPut, "/v1/secrets/{name}/labels", "setSecretLabels", "Give a secret other labels", a.setSecretLabels),
		on(a, http.MethodGet, "/v1/secrets/{name}/users", "secretUsers", "Say who may use a secret, and who has", a.secretUsers),
		on(a, http.MethodPut, "/v1/secrets/{name}/grants/{function}", "grantSecret", "Let a function use a secret", a.grantSecret),
		on(a, http.MethodDelete, "/v1/secrets/{name}/grants/{function}", "revokeSecret", "Take a grant back, at once", a.revokeSecret),

		on(a, http.MethodGet, "/v1/login", "login", "Say where to log in", a.login, public),
		on(a, http.MethodGet, "/v1/whoami", "whoami", "Say who the caller is known as", a.whoami),
		on(a, http.MethodGet, "/v1/issuers", "listIssuers", "List who vouches for users and certificates", a.listIssuers),
		on(a, http.MethodPost, "/v1/issuers", "createIssuer", "Let an issuer vouch for principals", a.createIssuer, status(http.StatusCreated)),
		on(a, http.MethodGet, "/v1/issuers/{name}", "getIssuer", "Get an issuer's settings", a.getIssuer),
		on(a, http.MethodPut, "/v1/issuers/{name}", "replaceIssuer", "Give an issuer other settings", a.replaceIssuer),
		on(a, http.MethodDelete, "/v1/issuers/{name}", "removeIssuer", "Forget an issuer; whoever it vouches for is out at once", a.removeIssuer, status(http.StatusNoContent)),
		on(a, http.MethodGet, "/v1/revocations", "listRevocations", "List what was revoked", a.listRevocations),
		on(a, http.MethodPost, "/v1/revocations", "revoke", "End what was issued to somebody until now, at once", a.revoke),
		on(a, http.MethodDelete, "/v1/revocations/{id}", "liftRevocation", "Take a revocation back", a.lift, status(http.StatusNoContent)),
	}
}

// route is one entry of the table.
type route struct {
	op       huma.Operation
	register func(huma.API)
}

// on makes a route of a handler. Whatever error the handler returns is
// rendered as a [Problem].
func on[I, O any](a *api, method, path, id, summary string, h func(context.Context, *I) (*O, error), opts ...func(*huma.Operation)) route {
	op := huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary,
		Security: []map[string][]string{{"key": {}}}, MaxBodyBytes: maxJSONBytes, BodyReadTimeout: bodyTimeout,
		// Given here, huma adds no error shape of its own.
		Responses: map[string]*huma.Response{"default": {
			Description: "Refused, or failed",
			Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: &huma.Schema{Ref: "#/components/schemas/Problem"}}},
		}},
	}
	for _, o := range opts {
		o(&op)
	}
	return route{op, func(api huma.API) {
		api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Problem](), true, "Problem")
		huma.Register(api, op, func(ctx context.Context, in *I) (*O, error) {
			out, err := h(ctx, in)
			if err != nil {
				return nil, a.problem(ctx, err)
			}
			return out, nil
		})
	}}
}

// public marks a route that needs no credential; see open.
func public(op *huma.Operation) { op.Security = []map[string][]string{} }

// alsoAccepted describes the answer of a deploy that waits for approval.
func alsoAccepted(op *huma.Operation) {
	op.Responses["202"] = &huma.Response{
		Description: "Nothing has changed: the version widens the perimeter and waits for a second principal, see pending",
		Content:     map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Ref: "#/components/schemas/Deployment"}}},
	}
}

func status(code int) func(*huma.Operation) {
	return func(op *huma.Operation) { op.DefaultStatus = code }
}

// rawBody describes a body that the handler reads by itself, as a stream. The
// description is kept in Metadata until the operation is registered: huma reads
// and parses every body that it finds described.
func rawBody(mime string, most int64) func(*huma.Operation) {
	return func(op *huma.Operation) {
		op.Metadata = map[string]any{rawBodyKey: &huma.RequestBody{
			Required:    mime != "application/json",
			Description: "At most " + strconv.FormatInt(most, 10) + " bytes",
			Content:     map[string]*huma.MediaType{mime: {Schema: rawSchema(mime)}},
		}}
	}
}

const rawBodyKey = "rawBody"

// describeRawBodies adds the descriptions of rawBody to the document.
func describeRawBodies(doc *huma.OpenAPI) {
	for _, item := range doc.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Put, item.Post, item.Delete, item.Head} {
			if op == nil {
				continue
			}
			if body, ok := op.Metadata[rawBodyKey].(*huma.RequestBody); ok {
				op.RequestBody = body
			}
		}
	}
}

func rawSchema(mime string) *huma.Schema {
	if mime == "application/json" {
		return &huma.Schema{Description: "any JSON value; {} where there is none"}
	}
	return &huma.Schema{Type: "string", Format: "binary"}
}

// rawAnswer describes an answer that the handler writes by itself.
func rawAnswer(mime string) func(*huma.Operation) {
	return func(op *huma.Operation) {
		text := &huma.Schema{Type: "string"}
		op.Responses["200"] = &huma.Response{
			Description: "What the function answered; if X-Bawn-Function-Error is set, its error document",
			Headers: map[string]*huma.Header{
				"X-Bawn-Invocation":     {Schema: text, Description: "the invocation's id"},
				"X-Bawn-Version":        {Schema: text, Description: "the version that ran"},
				"X-Bawn-Function-Error": {Schema: text, Description: "Unhandled if the function failed; of a streamed answer it is a trailer"},
			},
			Content: map[string]*huma.MediaType{mime: {Schema: &huma.Schema{}}},
		}
	}
}

// rawBytes describes an answer of bytes that the handler writes by itself.
func rawBytes(what string) func(*huma.Operation) {
	return func(op *huma.Operation) {
		op.Responses["200"] = &huma.Response{
			Description: what,
			Content:     map[string]*huma.MediaType{"application/octet-stream": {Schema: &huma.Schema{Type: "string", Format: "binary"}}},
		}
	}
}

// lines describes an answer of newline-delimited JSON values of one type.
func lines[T any](op *huma.Operation) {
	op.Responses["200"] = &huma.Response{
		Description: `One JSON value a line, oldest first. An empty line keeps the connection alive. A last line {"error": Problem} says that the stream broke.`,
		Content:     map[string]*huma.MediaType{"application/x-ndjson": {Schema: &huma.Schema{Ref: "#/components/schemas/" + reflect.TypeFor[T]().Name()}}},
	}
}

// document renders the OpenAPI document of what is registered on h.
func document(h huma.API) ([]byte, error) {
	doc := h.OpenAPI()
	describeRawBodies(doc)
	schemas := doc.Components.Schemas
	schemas.Schema(reflect.TypeFor[bawn.LogLine](), true, "LogLine")
	schemas.Schema(reflect.TypeFor[bawn.Record](), true, "Record")
	// huma always registers its own error shapes, which no route answers with.
	delete(schemas.Map(), "ErrorModel")
	delete(schemas.Map(), "ErrorDetail")
	data, err := json.MarshalIndent(doc, "", "  ")
	return append(data, '\n'), err
}

// OpenAPI returns the document that describes the API, as the node serves it.
func OpenAPI() ([]byte, error) {
	return document((&api{}).build(http.NewServeMux()))
}

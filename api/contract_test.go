package api_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch"
	"github.com/mubatch/mubatch/api"
	"github.com/mubatch/mubatch/collector"
)

// contract is the OpenAPI document, made stricter: what an answer may hold besides the members that are described, it may
// not hold here.
type contract struct {
	doc    *openapi3.T
	router routers.Router
}

var theContract = sync.OnceValues(func() (*contract, error) {
	doc, err := openapi3.NewLoader().LoadFromData([]byte(mubatch.OpenAPI()))
	if err != nil {
		return nil, err
	}
	if err := doc.Validate(context.Background()); err != nil {
		return nil, err
	}
	seen := map[*openapi3.Schema]bool{}
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			for _, response := range op.Responses.Map() {
				for _, media := range response.Value.Content {
					seal(media.Schema, seen)
				}
			}
		}
	}
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", openapi3filter.PlainBodyDecoder)
	router, err := gorillamux.NewRouter(doc)
	return &contract{doc, router}, err
})

// seal forbids members that are not described.
func seal(ref *openapi3.SchemaRef, seen map[*openapi3.Schema]bool) {
	if ref == nil || ref.Value == nil || seen[ref.Value] {
		return
	}
	s := ref.Value
	seen[s] = true
	if len(s.Properties) > 0 && s.AdditionalProperties.Has == nil && s.AdditionalProperties.Schema == nil && len(s.AllOf) == 0 {
		no := false
		s.AdditionalProperties.Has = &no
	}
	for _, p := range s.Properties {
		seal(p, seen)
	}
	seal(s.Items, seen)
	seal(s.AdditionalProperties.Schema, seen)
	for _, list := range [][]*openapi3.SchemaRef{s.OneOf, s.AnyOf, s.AllOf} {
		for _, r := range list {
			seal(r, seen)
		}
	}
}

// checked is a transport under which every exchange is held to the contract: a request that the contract refuses must be
// refused, and every answer must be one that the contract has.
type checked struct {
	t    testing.TB
	next http.RoundTripper
}

func (c checked) RoundTrip(r *http.Request) (*http.Response, error) {
	k, err := theContract()
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	var body []byte
	if r.Body != nil {
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	if resp.StatusCode >= 500 && resp.StatusCode != http.StatusServiceUnavailable {
		c.t.Errorf("%s %s: status %d: %s", r.Method, r.URL, resp.StatusCode, answer)
	}

	if r.Method == http.MethodHead { // is GET, without the body
		return resp, nil
	}
	asked := r.Clone(r.Context())
	asked.Body = io.NopCloser(bytes.NewReader(body))
	route, params, err := k.router.FindRoute(asked)
	if err != nil { // not in the contract
		if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusMethodNotAllowed {
			c.t.Errorf("%s %s: status %d, but it is not in the contract: %v", r.Method, r.URL, resp.StatusCode, err)
		}
		return resp, nil
	}
	in := &openapi3filter.RequestValidationInput{
		Request: asked, PathParams: params, Route: route,
		Options: &openapi3filter.Options{
			AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true, MultiError: true,
			ExcludeReadOnlyValidations: true,
		},
	}
	if resp.StatusCode < 400 {
		if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
			c.t.Errorf("%s %s: status %d, but the contract refuses the request: %v\n%s", r.Method, r.URL, resp.StatusCode, err, body)
		}
	}
	err = openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Options: in.Options,
		Body: io.NopCloser(bytes.NewReader(answer)),
	})
	if err != nil {
		c.t.Errorf("%s %s: the contract has no such answer: %v\n%d %s", r.Method, r.URL, err, resp.StatusCode, answer)
	}
	return resp, nil
}

// operations lists what the contract has, as "GET /path", and the scope of each that needs one: all under /api/v1.
func operations(t testing.TB) map[string]api.Scope {
	t.Helper()
	k, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	ops := map[string]api.Scope{}
	for path, item := range k.doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.Security == nil {
				t.Errorf("%s %s says nothing of security", method, path)
				continue
			}
			ops[method+" "+path] = ""
			if !strings.HasPrefix(path, "/api/v1/") {
				continue
			}
			if len(*op.Security) != 1 || len((*op.Security)[0]["secretKey"]) != 1 {
				t.Errorf("%s %s: security is %v, want one scope of secretKey", method, path, *op.Security)
				continue
			}
			scope := api.Scope((*op.Security)[0]["secretKey"][0])
			if !slices.Contains(api.Scopes(), scope) {
				t.Errorf("%s %s needs the scope %q", method, path, scope)
			}
			ops[method+" "+path] = scope
		}
	}
	return ops
}

func TestContractAndRouterAreTheSame(t *testing.T) {
	t.Parallel()
	described := operations(t)
	routed := map[string]bool{}
	router := chi.NewRouter()
	collector.NewHandler(collector.Config{}, nil, nil, prometheus.NewRegistry(), slog.Default()).Routes(router)
	router.Mount("/", api.New(api.Config{Metrics: http.NotFoundHandler(), Registerer: prometheus.NewRegistry()}))
	err := chi.Walk(router, func(method, path string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		routed[method+" "+path] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for op := range routed {
		if _, ok := described[op]; !ok {
			t.Errorf("%s is routed, but openapi.yaml does not have it", op)
		}
	}
	for op := range described {
		if !routed[op] {
			t.Errorf("%s is in openapi.yaml, but not routed", op)
		}
	}
	t.Logf("%d operations", len(described))
}

package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/mapping"
	"github.com/mubatch/mubatch/collector/webhook"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/rule"
)

// timeout is how long a request may take, unless its route has more patience.
const timeout = 20 * time.Second

// call is a request to be handled: by whom it was sent, what is in it, and what to handle it with.
type call struct {
	*http.Request
	stores  // in the transaction of the answer, if that is to be remembered
	id      identity
	body    []byte
	subject string // the id of what was changed, if the answer does not show it: for the audit log
}

func (c *call) workspace() int32 { return c.id.key.Workspace }

// param returns a parameter of the path, decoded. It is empty, which names nothing, if it cannot be or is not UTF-8.
func (c *call) param(name string) string {
	s := chi.URLParam(c.Request, name)
	if c.URL.RawPath != "" { // otherwise chi took it from the decoded path
		var err error
		if s, err = url.PathUnescape(s); err != nil {
			return ""
		}
	}
	if !utf8.ValidString(s) {
		return ""
	}
	return s
}

// handler handles a call. What it returns as an error is answered as a problem: see [toProblem].
type handler func(c *call) (answer, error)

// answer is what a request is answered with: a body or a problem.
type answer struct {
	Status   int              `json:"status"`
	ETag     string           `json:"etag,omitzero"`
	Location string           `json:"location,omitzero"`
	Body     []byte           `json:"body,omitzero"`
	Problem  *problem.Problem `json:"problem,omitzero"`
}

func reply(status int, body any) (answer, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return answer{}, err
	}
	return answer{Status: status, Body: append(b, '\n')}, nil
}

func (a answer) write(w http.ResponseWriter, r *http.Request) {
	if a.Problem != nil {
		problem.Write(w, r, a.Problem)
		return
	}
	h := w.Header()
	if a.ETag != "" {
		h.Set("ETag", a.ETag)
	}
	if a.Location != "" {
		h.Set("Location", a.Location)
	}
	h.Set("Cache-Control", "no-store")
	if len(a.Body) > 0 {
		h.Set("Content-Type", "application/json")
		h.Set("Content-Length", strconv.Itoa(len(a.Body)))
	}
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // the client is gone: nobody is left to tell
}

// serve returns the handler of a route: it admits only keys with the scope that the route needs.
func (a *API) serve(rt route) http.HandlerFunc {
	if rt.stream != nil {
		return a.serveStream(rt)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		patience := cmp.Or(rt.patience, timeout)
		if patience > timeout {
			allow(w, patience)
		}
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		r = r.WithContext(ctx)
		ans, err := a.answer(w, r, rt)
		if err != nil {
			ans = answer{Problem: a.explain(r, err)}
		}
		ans.write(w, r)
	}
}

func (a *API) answer(w http.ResponseWriter, r *http.Request, rt route) (answer, error) {
	c, err := a.admit(w, r, rt)
	if err != nil {
		return answer{}, err
	}
	handle := rt.handle
	if action, ok := actions[rt.method+" "+rt.pattern]; ok {
		handle = recorded(rt, action)
	}
	if keys := r.Header.Values("Idempotency-Key"); len(keys) > 0 && r.Method == http.MethodPost && !rt.changesNothing {
		return a.once(w, c, keys, handle)
	}
	return handle(c)
}

// admit returns the call that a request makes, if its key has the scope.
func (a *API) admit(w http.ResponseWriter, r *http.Request, rt route) (*call, error) {
	id, err := a.guard.identify(r.Context(), r)
	if err != nil {
		var p *problem.Problem
		if errors.As(err, &p) && p.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="mubatch"`)
		}
		return nil, err
	}
	if !id.may(rt.scope) {
		return nil, errMissingScope(rt.scope)
	}
	if rt.maxBody > 0 { // the server's own deadline is for small bodies
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(rt.patience)) // without it the server's holds
	}
	body, err := readBody(w, r, cmp.Or(rt.maxBody, maxBody))
	if err != nil {
		return nil, err
	}
	return &call{Request: r, stores: a.stores, id: id, body: body}, nil
}

// explain returns the problem to answer with, and logs err if a person must look.
func (a *API) explain(r *http.Request, err error) *problem.Problem {
	p := *toProblem(err)
	p.Instance = "urn:mubatch:request:" + middleware.GetReqID(r.Context())
	switch {
	case r.Context().Err() == context.Canceled: // the client is gone
	case p.Status == http.StatusServiceUnavailable:
		a.log.WarnContext(r.Context(), "request could not be served for now", "operation", operation(r),
			"request_id", middleware.GetReqID(r.Context()), "err", err)
	case p.Status >= http.StatusInternalServerError:
		a.log.ErrorContext(r.Context(), "request failed", "operation", operation(r),
			"request_id", middleware.GetReqID(r.Context()), "err", err)
	}
	return &p
}

// toProblem says of an error what a client may know.
func toProblem(err error) *problem.Problem {
	var p *problem.Problem
	var notRule *rule.Error
	var field *activation.FieldError
	var referred *profiles.ReferredError
	var unsupported *activation.UnsupportedError
	var notMapping *mapping.InvalidError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &notRule):
		return aboutRule("rule", notRule.Problems)
	case errors.As(err, &notMapping):
		return aboutMapping(notMapping.Faults)
	case errors.Is(err, profiles.ErrNotFound), errors.Is(err, collector.ErrNotFound), errors.Is(err, activation.ErrNotFound):
		return errNotFound()
	case errors.Is(err, profiles.ErrChanged), errors.Is(err, collector.ErrChanged), errors.Is(err, activation.ErrStale):
		return errChanged()
	case errors.Is(err, profiles.ErrDeleting):
		return problem.New(http.StatusConflict, "deleting", "It is being deleted.")
	case errors.As(err, &referred):
		p = problem.New(http.StatusConflict, "referred", "Other segments refer to it.")
		p.Detail = "Delete or edit these first, and wait until their edits are live: " + strings.Join(referred.By, ", ") + "."
		return p
	case errors.Is(err, collector.ErrInUse):
		p = problem.New(http.StatusConflict, "in_use", "Something refers to it.")
		p.Detail = "Have the sources that name it use another one first."
		return p
	case errors.Is(err, profiles.ErrNeverLive):
		p = problem.New(http.StatusConflict, "never_live", "It has never been live.")
		p.Detail = "There is no rule to go back to. Delete it instead."
		return p
	case errors.Is(err, profiles.ErrNothingToCancel):
		return problem.New(http.StatusConflict, "nothing_to_cancel", "There is no edit that is not live yet.")
	case errors.Is(err, profiles.ErrExists), errors.Is(err, collector.ErrConflict), errors.Is(err, activation.ErrConflict):
		p = problem.New(http.StatusConflict, "already_exists", "There is one with that key already.")
		p.Errors = []problem.FieldError{{Pointer: "#/key", Code: "already_exists", Detail: "is taken"}}
		return p
	case errors.Is(err, activation.ErrUnsupported):
		p = problem.New(http.StatusUnprocessableEntity, "unsupported", "This type of destination cannot do that.")
		if errors.As(err, &unsupported) {
			p.Detail = unsupported.Instead
		}
		return p
	case errors.As(err, &field):
		return invalid(fieldFaults(err)...)
	case errors.As(err, new(*webhook.SettingsError)):
		return aboutWebhook(err)
	case unavailable(err):
		p = problem.New(http.StatusServiceUnavailable, "unavailable", "This cannot be done for now.")
		p.Detail = "Nothing is known to be wrong with the request; send it again later."
		p.RetryAfter = 2 * time.Second
		return p
	default: // a bug: its text stays in the log
		return problem.Status(http.StatusInternalServerError)
	}
}

// unsupportedAt says which member of a body asked for what a type of destination cannot do. Other errors stay as they are.
func unsupportedAt(member string, err error) error {
	if !errors.Is(err, activation.ErrUnsupported) {
		return err
	}
	p := *toProblem(err)
	p.Errors = []problem.FieldError{{Pointer: problem.Pointer(member), Code: p.Code, Detail: "cannot be done at this type of destination"}}
	return &p
}

// unavailable tells whether err will go away by itself: a store is down, full or busy, or took too long.
func unavailable(err error) bool {
	var connect *pgconn.ConnectError
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, collector.ErrUnavailable), errors.Is(err, collector.ErrBusy):
		return true
	case errors.As(err, &connect), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), pgconn.Timeout(err), pgconn.SafeToRetry(err):
		return true
	case errors.As(err, &pg):
		switch pg.Code[:2] {
		case "08", "40", "53", "55", "57": // connection, rollback, resources, locks, operators
			return true
		}
	}
	return false
}

// missing tells whether err says that there is no such thing.
func missing(err error) bool { return err != nil && toProblem(err).Status == http.StatusNotFound }

func errNotFound() *problem.Problem {
	return problem.New(http.StatusNotFound, "not_found", "There is no such thing in this workspace.")
}

// notFound and notAllowed answer what no route matches.
func notFound(w http.ResponseWriter, r *http.Request) {
	p := problem.New(http.StatusNotFound, "no_route", "There is nothing at this path.")
	p.Detail = "GET /openapi.yaml lists the paths there are."
	problem.Write(w, r, p)
}

func notAllowed(w http.ResponseWriter, r *http.Request) {
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.Path
	}
	routes := chi.RouteContext(r.Context()).Routes // of everything that is served, also by others
	var allowed []string
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		if routes.Match(chi.NewRouteContext(), method, path) {
			allowed = append(allowed, method)
		}
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	p := problem.New(http.StatusMethodNotAllowed, "method_not_allowed", "This path does not have that method.")
	p.Detail = "It has " + strings.Join(allowed, ", ") + "."
	problem.Write(w, r, p)
}

// identifyRequests gives each request an id, its own if it brings a decent one, and tells the client.
func identifyRequests(next http.Handler) http.Handler {
	decent := regexp.MustCompile(`^[A-Za-z0-9._-]{8,64}$`)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		if !decent.MatchString(id) {
			id = rand.Text()
		}
		w.Header().Set("X-Request-Id", id)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), middleware.RequestIDKey, id)))
	})
}

// RecoverPanics answers a request whose handling panicked, and logs the panic without saying whose request it was.
func RecoverPanics(log *slog.Logger) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				switch v := recover(); v {
				case nil:
				case http.ErrAbortHandler:
					panic(v)
				default:
					log.ErrorContext(r.Context(), "request panicked", "operation", operation(r), "panic", v, "stack", string(debug.Stack()))
					problem.Write(w, r, problem.Status(http.StatusInternalServerError))
				}
			}()
			next.ServeHTTP(w, r)
		})
	}
}

// operation names what a request asks for without saying of whom.
func operation(r *http.Request) string {
	if rc := chi.RouteContext(r.Context()); rc != nil && rc.RoutePattern() != "" {
		return r.Method + " " + rc.RoutePattern()
	}
	return r.Method
}

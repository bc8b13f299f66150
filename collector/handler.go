package collector

import (
	"cmp"
	"encoding/base64"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector/tag"
)

// Handler takes events in over HTTP, from anybody: what is wrong with a request is answered with a problem that says
// where and how to put it right, and never as an error of the server.
type Handler struct {
	cfg      Config
	keys     *Directory
	in       *Intake
	log      *slog.Logger
	bytes    budget
	requests *prometheus.CounterVec
	visitors *visitors
	webhooks *prometheus.CounterVec
}

// NewHandler returns a handler that knows its clients by keys and answers when their events are in.
func NewHandler(cfg Config, keys *Directory, in *Intake, reg prometheus.Registerer, log *slog.Logger) *Handler {
	h := &Handler{cfg: cfg.withDefaults(), keys: keys, in: in, log: log}
	h.bytes.limit = h.cfg.MaxInFlightBytes
	h.requests = newRequestMetrics(reg, &h.bytes)
	h.visitors = newVisitors(h.cfg, keys, reg, log)
	h.webhooks = newWebhookMetrics(reg)
	return h
}

// Routes mounts the public routes: those of the dialects, and the tag. They set their own CORS headers.
func (h *Handler) Routes(r chi.Router) {
	r.Group(func(r chi.Router) {
		r.Use(cors)
		h.segmentRoutes(r)
		h.rudderstackRoutes(r)
		h.jitsuRoutes(r)
		get(r, "/v1/me", h.answer(DialectSegment, h.me))
		h.posthogRoutes(r)
		h.snowplowRoutes(r)
		h.umamiRoutes(r)
		h.plausibleRoutes(r)
		h.matomoRoutes(r)
		h.goatcounterRoutes(r)
	})
	tag.Routes(r)
	h.webhookRoutes(r)
}

// post mounts a route that browsers may be asked to send to.
func post(r chi.Router, path string, serve http.HandlerFunc) {
	r.Post(path, serve)
	r.Options(path, preflight)
}

// get mounts a route that browsers may be asked to read.
func get(r chi.Router, path string, serve http.HandlerFunc) {
	r.Get(path, serve)
	r.Options(path, preflight)
}

// answer turns an error of serve into a problem, and counts the request.
func (h *Handler) answer(dialect string, serve func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusOK
		if err := serve(w, r); err != nil {
			p := h.toProblem(r, err)
			status = p.Status
			if status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="mubatch"`) // "Basic" would make browsers ask for a password
			}
			problem.Write(w, r, p)
		}
		h.requests.WithLabelValues(dialect, strconv.Itoa(status)).Inc()
	}
}

func (h *Handler) toProblem(r *http.Request, err error) *problem.Problem {
	var p *problem.Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, ErrUnknownKey):
		p := problem.New(http.StatusUnauthorized, "unknown_write_key", "The write key is not valid.")
		p.Detail = "No source takes events under this key. Look the key up among those of your source."
		return p
	case errors.Is(err, ErrOnlyWebhooks):
		p := problem.New(http.StatusForbidden, "only_webhooks", "The write key is for webhooks only.")
		p.Detail = "Its source takes nothing else than webhooks that are verified. Nothing was stored."
		return p
	case errors.Is(err, ErrBusy):
		return busy()
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrNoDirectory):
		return unavailable()
	default:
		h.log.ErrorContext(r.Context(), "a request failed", "route", chi.RouteContext(r.Context()).RoutePattern(), "err", err) // a path may have a secret
		return problem.Status(http.StatusInternalServerError)
	}
}

func busy() *problem.Problem {
	p := problem.New(http.StatusServiceUnavailable, "busy", "Too many events are in flight.")
	p.Detail = "Nothing was stored. Send it again after the time in Retry-After."
	p.RetryAfter = retryAfter()
	return p
}

func unavailable() *problem.Problem {
	p := problem.New(http.StatusServiceUnavailable, "unavailable", "Events cannot be stored at the moment.")
	p.Detail = "Send it again, with the same messageIds, after the time in Retry-After."
	p.RetryAfter = retryAfter()
	return p
}

// retryAfter spreads those who come back over some seconds.
func retryAfter() time.Duration { return time.Duration(1+rand.IntN(5)) * time.Second }

func kilobytes(n int) string { return strconv.Itoa(n>>10) + " KB" }

// authorize returns what the request's write key allows. Headers go before the query, and that before the body. If
// there is none, ok is false.
func (h *Handler) authorize(r *http.Request, fromBody string) (g Grant, ok bool, err error) {
	key := authorization(r)
	if key == "" {
		key, _, _ = strings.Cut(r.Header.Get("X-Write-Key"), ":") // Jitsu's libraries demand a second half
	}
	if key == "" && r.URL.RawQuery != "" {
		query := r.URL.Query()
		key, _, _ = strings.Cut(cmp.Or(query.Get("writeKey"), query.Get("writekey")), ":")
	}
	if key = cmp.Or(key, fromBody); key == "" {
		return Grant{}, false, nil
	}
	g, err = h.keys.Lookup(r.Context(), key)
	return g, true, err
}

// authorization returns the write key of an Authorization header: the user of Basic, whose colon some clients leave out,
// or the token of Bearer.
func authorization(r *http.Request) string {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	rest = strings.TrimSpace(rest)
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return rest
	case strings.EqualFold(scheme, "Basic"):
		plain, err := base64.StdEncoding.DecodeString(rest)
		if err != nil {
			return ""
		}
		key, _, _ := strings.Cut(string(plain), ":")
		return key
	}
	return ""
}

func missingKey() *problem.Problem {
	p := problem.New(http.StatusUnauthorized, "missing_write_key", "The request has no write key.")
	p.Detail = "Send the write key of your source as the user name of Basic authentication, as a Bearer token, in the " +
		"header X-Write-Key, in the query as writeKey, or in the body as writeKey; clients of other products have it where their own key goes."
	return p
}

// shared returns what the events of a request have in common as far as the connection tells.
func (h *Handler) shared(r *http.Request, received time.Time, g Grant) shared {
	s := shared{received: received, sentAt: sentAt(r), maxBytes: h.cfg.MaxEventBytes}
	s.browser(r)
	if g.Settings.CollectIP == nil || *g.Settings.CollectIP {
		if ip := h.clientIP(r); ip.IsValid() {
			s.ip = append(ip.AppendTo(append(make([]byte, 0, 48), '"')), '"')
		}
	}
	if r.Header.Get("Sec-GPC") == "1" {
		s.consent = optedOut
	}
	return s
}

// optedOut is what a browser with Global Privacy Control says of a visitor who was not asked: no data about them is to be sold
// or shared for ads. An event that says what its visitor allows goes before.
var optedOut = []byte(`{"ad_user_data":"denied","ad_personalization":"denied"}`)

// clientIP returns the address of the client: the nearest one that is not a trusted proxy.
func (h *Handler) clientIP(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	ip = ip.Unmap().WithZone("")
	if !h.trusted(ip) {
		return ip
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		next, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			return ip
		}
		if ip = next.Unmap().WithZone(""); !h.trusted(ip) {
			return ip
		}
	}
	return ip
}

func (h *Handler) trusted(ip netip.Addr) bool {
	return slices.ContainsFunc(h.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// rejected returns the problem of a request of which every event was rejected.
func rejected(results []Result) *problem.Problem {
	p := problem.New(http.StatusBadRequest, "rejected", "The event is not valid.")
	p.Detail = "Nothing was stored. Correct what is named and send it again."
	if len(results) > 1 {
		p.Title = "None of the events is valid."
	}
	for _, res := range results {
		p.Errors = append(p.Errors, problem.FieldError{Pointer: res.Pointer, Code: res.Code, Detail: res.Reason})
	}
	return p
}

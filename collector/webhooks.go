package collector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector/mapping"
	"github.com/mubatch/mubatch/collector/webhook"
	"github.com/mubatch/mubatch/profiles"
)

// Webhooks come to POST /v1/webhooks/{write_key}, where each source has an address that nobody can guess, and Amazon Data
// Firehose to POST /v1/firehose. What providers send is verified, mapped to events in our shape, and durable before it is
// answered. They send again what is not answered with 2xx, some for days, and some give up on addresses that keep refusing;
// so what they could not do better is answered with 200, and counted.

const (
	maxWebhookBytes  = 1 << 20  // as much as a mapping reads
	maxFirehoseBytes = 10 << 20 // the 5 MiB that Firehose gathers if it is not told otherwise, in base64
)

// What becomes of deliveries.
const (
	deliveryAccepted   = "accepted"   // events were made of it
	deliveryIgnored    = "ignored"    // the mapping makes nothing of it
	deliveryFailed     = "failed"     // the mapping cannot make an event of it
	requestUnverified  = "unverified" // the signature is missing or wrong
	requestStale       = "stale"      // it is right, but old
	requestMalformed   = "malformed"
	requestHandshake   = "handshake"
	requestUnavailable = "unavailable" // not known to be durable: it will be sent again
)

func newWebhookMetrics(reg prometheus.Registerer) *prometheus.CounterVec {
	deliveries := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "mubatch_collector_webhooks_total",
		Help: "Deliveries of webhooks, by provider and what became of them, and requests that brought none.",
	}, []string{"provider", "outcome"})
	for _, provider := range webhook.Providers() {
		for _, outcome := range []string{
			deliveryAccepted, deliveryIgnored, deliveryFailed, requestUnverified, requestStale, requestMalformed, requestHandshake, requestUnavailable,
		} {
			deliveries.WithLabelValues(provider, outcome)
		}
	}
	return deliveries
}

func (h *Handler) webhookRoutes(r chi.Router) {
	const path = "/v1/webhooks/{write_key}"
	serve := h.answer("webhook", h.webhook)
	r.Post(path, serve)
	r.Get(path, serve)
	r.Options(path, h.answer("webhook", h.allowWebhook))
	r.Post("/v1/firehose", h.firehose)
}

// findHook returns what the key in the path of r allows. What is not known is 404: 401 would say that the signature is wrong,
// and 410 would have some providers never come back.
func (h *Handler) findHook(r *http.Request) (Grant, *hook, error) {
	g, k, err := h.keys.webhook(r.Context(), chi.URLParam(r, "write_key"))
	if errors.Is(err, ErrUnknownKey) {
		p := problem.New(http.StatusNotFound, "unknown_webhook", "There is no such webhook.")
		p.Detail = "No source takes webhooks at this path. Copy the path from the source again."
		return g, k, p
	}
	if err == nil && k.settings.Provider == "firehose" {
		p := problem.New(http.StatusNotFound, "unknown_webhook", "There is no such webhook.")
		p.Detail = "Amazon Data Firehose delivers to /v1/firehose, with the write key as its access key."
		return g, k, p
	}
	return g, k, err
}

// allowWebhook lets senders of CloudEvents send, as they ask before.
func (h *Handler) allowWebhook(w http.ResponseWriter, r *http.Request) error {
	if _, _, err := h.findHook(r); err != nil {
		return err
	}
	if !webhook.Allow(w.Header(), r) {
		w.Header().Set("Allow", "POST, OPTIONS")
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (h *Handler) webhook(w http.ResponseWriter, r *http.Request) error {
	received := now()
	g, k, err := h.findHook(r)
	if err != nil {
		return err
	}
	body, err := readBody(w, r, maxWebhookBytes, &h.bytes)
	if err != nil {
		return err
	}
	defer body.release()
	count := func(outcome string) { h.webhooks.WithLabelValues(k.settings.Provider, outcome).Inc() }
	deliveries, answer, err := k.endpoint.Receive(r, body.Bytes(), received)
	switch {
	case r.Method == http.MethodGet && err != nil:
		w.Header().Set("Allow", "POST, OPTIONS")
		return problem.Status(http.StatusMethodNotAllowed)
	case errors.Is(err, webhook.ErrStale):
		count(requestStale)
		k.counts.unverified.Add(1)
		p := problem.New(http.StatusUnauthorized, "stale_signature", "The time of the signature is too far from now.")
		p.Detail = "Nothing was stored. If it is not an old one that was sent again, the clock of its sender or ours is wrong."
		return p
	case errors.Is(err, webhook.ErrUnverified):
		count(requestUnverified)
		k.counts.unverified.Add(1)
		p := problem.New(http.StatusUnauthorized, "unverified", "The request is not verified.")
		p.Detail = "Nothing was stored. Its signature, password or token is missing or is not made with a secret of the source."
		return p
	case err != nil:
		count(requestMalformed)
		k.counts.failed.Add(1)
		_, reason, _ := strings.Cut(err.Error(), ": ")
		return malformed("malformed_webhook", "#", "%s", reason)
	case answer != nil:
		count(requestHandshake)
		header := w.Header()
		if answer.ContentType != "" {
			header.Set("Content-Type", answer.ContentType)
		}
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Content-Length", strconv.Itoa(len(answer.Body)))
		_, _ = w.Write(answer.Body) // the client is gone: it will ask again
		return nil
	}
	faults, err := h.deliver(r, g, k, deliveries, received)
	switch {
	case err != nil:
		return err
	case len(faults) > 0:
		p := problem.New(http.StatusUnprocessableEntity, "unmapped", "No event can be made of it.")
		p.Detail = "It is too large to be quarantined. Correct the mapping of the source; then have it sent again."
		p.Errors = faults
		return p
	}
	return succeed(w, r, nil)
}

// deliver takes in the events that a mapping makes of deliveries. One of which it cannot make all its events is quarantined as
// it came, with why. What is too large even for that is returned as faults; all else is durable.
func (h *Handler) deliver(r *http.Request, g Grant, k *hook, deliveries []webhook.Delivery, received time.Time) (faults []problem.FieldError, err error) {
	var events []incoming
	var of []int // the delivery of each event
	outcomes := make([]string, len(deliveries))
	why := make([][]profiles.Violation, len(deliveries))
	in := mapping.Input{Headers: headersOf(r, k.settings), Query: queryOf(r), ReceivedAt: received}
	fail := func(i int, code, reason string) {
		outcomes[i] = deliveryFailed
		why[i] = append(why[i], profiles.Violation{Code: code, Detail: reason})
	}
	for i, d := range deliveries {
		outcomes[i] = deliveryIgnored
		in.Body = d.Body
		in.Meta = map[string]string{"provider": k.settings.Provider, "id": d.ID}
		made, err := k.program.Map(in)
		if err != nil {
			var fault *mapping.FaultError
			if !errors.As(err, &fault) {
				return nil, fmt.Errorf("map a webhook: %w", err)
			}
			fail(i, fault.Code, fault.Error())
		}
		for j, raw := range made {
			id := d.ID
			if j > 0 {
				id += ":" + strconv.Itoa(j+1)
			}
			events, of = append(events, incoming{raw: WithMessageID(raw, id)}), append(of, i)
		}
	}
	defer func() {
		for _, outcome := range outcomes {
			if err != nil && outcome == deliveryAccepted {
				outcome = requestUnavailable
			}
			h.webhooks.WithLabelValues(k.settings.Provider, outcome).Inc()
			switch outcome {
			case deliveryAccepted:
				k.counts.accepted.Add(1)
			case deliveryIgnored:
				k.counts.ignored.Add(1)
			case deliveryFailed:
				k.counts.failed.Add(1)
			}
		}
	}()
	results, err := h.takeAll(r.Context(), g, received, events)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{} // messageIds that are taken
	for i, res := range results {
		switch {
		case res.Status == Rejected:
			fail(of[i], res.Code, strings.TrimSpace(strings.TrimPrefix(res.Pointer, "#/")+" "+res.Reason))
			continue
		case outcomes[of[i]] == deliveryIgnored:
			outcomes[of[i]] = deliveryAccepted
		}
		known[res.MessageID] = true
	}
	for i, d := range deliveries {
		if outcomes[i] != deliveryFailed {
			continue
		}
		id := d.ID
		if known[id] {
			id += ":failed"
		}
		switch err = h.in.Quarantine(r.Context(), g, received, id, d.Body, why[i]...); {
		case errors.Is(err, ErrInvalid):
			pointer := "#"
			if len(deliveries) > 1 {
				pointer = "#/" + strconv.Itoa(i)
			}
			for _, v := range why[i] {
				faults = append(faults, problem.FieldError{Pointer: pointer, Code: v.Code, Detail: v.Detail})
			}
		case err != nil:
			return nil, err
		}
	}
	return faults, nil
}

// takeAll takes in events, as many at once as one request may bring. Where they come from, the connection does not tell.
func (h *Handler) takeAll(ctx context.Context, g Grant, received time.Time, events []incoming) (results []Result, err error) {
	for chunk := range slices.Chunk(events, h.cfg.MaxEvents) {
		some, err := h.in.take(ctx, g, shared{received: received, maxBytes: h.cfg.MaxEventBytes}, chunk)
		if err != nil {
			return results, err
		}
		results = append(results, some...)
	}
	return results, nil
}

// headersOf returns the headers that a mapping may see: those that prove who sent the request stay out.
func headersOf(r *http.Request, s *WebhookSettings) map[string]string {
	headers := make(map[string]string, len(r.Header))
	for name, values := range r.Header {
		switch {
		case name == "Authorization" || name == "Cookie" || name == "Proxy-Authorization" || name == "X-Amz-Firehose-Access-Key":
		case s != nil && strings.EqualFold(name, s.Header):
		default:
			headers[strings.ToLower(name)] = strings.Join(values, ", ")
		}
	}
	return headers
}

// queryOf returns the parameters that a mapping may see.
func queryOf(r *http.Request) map[string]string {
	if r.URL.RawQuery == "" {
		return nil
	}
	query := map[string]string{}
	for name, values := range r.URL.Query() {
		if name != "access_token" {
			query[name] = values[0]
		}
	}
	return query
}

// firehose takes in what Amazon Data Firehose delivers, and answers in its own form, errors too: it takes anything else for
// a failure to be tried again. The access key is a write key of a source of the provider firehose: those of others may be
// public, as that of a page's tag is.
func (h *Handler) firehose(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("X-Amz-Firehose-Request-Id")
	status, message := http.StatusOK, ""
	if err := h.takeFirehose(w, r); err != nil {
		p := h.toProblem(r, err)
		status, message = p.Status, p.Title
		if len(p.Errors) > 0 {
			message += " " + p.Errors[0].Code + ": " + p.Errors[0].Detail
		}
		if p.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(p.RetryAfter/time.Second)))
		}
	}
	h.requests.WithLabelValues("firehose", strconv.Itoa(status)).Inc()
	answer, err := json.Marshal(struct {
		RequestID string `json:"requestId"`
		Timestamp int64  `json:"timestamp"`
		Message   string `json:"errorMessage,omitempty"`
	}{id, time.Now().UnixMilli(), message})
	if err != nil { // strings and integers always marshal
		answer = []byte("{}")
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	w.WriteHeader(status)
	_, _ = w.Write(answer) // the client is gone: it will send again
}

func (h *Handler) takeFirehose(w http.ResponseWriter, r *http.Request) error {
	received := now()
	key := r.Header.Get("X-Amz-Firehose-Access-Key")
	if key == "" {
		return missingKey()
	}
	g, err := h.keys.lookup(r.Context(), key)
	if err != nil {
		return err
	}
	if g.Settings.Webhook == nil || g.Settings.Webhook.Provider != "firehose" { // it would be let in unverified
		p := problem.New(http.StatusForbidden, "not_firehose", "The write key is not for Amazon Data Firehose.")
		p.Detail = "Make a source of the type webhook with the provider firehose. Nothing was stored."
		return p
	}
	g, k, err := h.keys.webhook(r.Context(), key)
	if err != nil {
		return err
	}
	body, err := readBody(w, r, maxFirehoseBytes, &h.bytes)
	if err != nil {
		return err
	}
	defer body.release()
	request, err := webhook.ReadFirehose(body.Bytes())
	if errors.Is(err, webhook.ErrTooMany) {
		p := problem.New(http.StatusRequestEntityTooLarge, "too_many_records", "There are too many records.")
		p.Detail = "Nothing was stored. " + strconv.Itoa(webhook.MaxRecords) + " fit into a request: choose a smaller buffer."
		return p
	}
	if err != nil {
		_, reason, _ := strings.Cut(err.Error(), ": ")
		return malformed("malformed_firehose", "#", "%s", reason)
	}
	refused, first := 0, problem.FieldError{} // nobody is told of more
	for some := range slices.Chunk(request.Deliveries, webhook.MaxDeliveries) {
		faults, err := h.deliver(r, g, k, some, received)
		if err != nil {
			return err
		}
		if refused == 0 && len(faults) > 0 {
			first = faults[0]
		}
		refused += len(faults)
	}
	if refused == 0 && request.Unreadable > 0 {
		first = problem.FieldError{Pointer: "#/records", Code: "malformed_record", Detail: strconv.Itoa(request.Unreadable) + " records are not base64 of JSON"}
	}
	if refused += request.Unreadable; refused > 0 { // Firehose puts into its bucket what is refused until it gives up
		p := problem.New(http.StatusUnprocessableEntity, "rejected", strconv.Itoa(refused)+" of the records cannot be taken in.")
		p.Errors = []problem.FieldError{first}
		return p
	}
	return nil
}

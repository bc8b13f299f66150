package collector

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/mubatch/mubatch/api/problem"
)

// Segment: its HTTP API, one event to /v1/track and its like, many to /v1/batch; the same under single letters, as its
// browser library spells them below the host it is given; and what that library asks for when it loads. The answer is 200
// {"success":true}. RudderStack's libraries use the same routes.

// maxMergedBytes bounds what the context and the integrations of a batch make of it when each event gets its own.
const maxMergedBytes = 8 << 20

func (h *Handler) segmentRoutes(r chi.Router) {
	for _, kind := range kinds {
		post(r, "/v1/"+kind, h.answer(DialectSegment, func(w http.ResponseWriter, r *http.Request) error { return h.single(w, r, kind) }))
	}
	for _, path := range []string{"/v1/batch", "/v1/import"} {
		post(r, path, h.answer(DialectSegment, h.batch))
	}
	post(r, "/v1/b", h.answer(DialectSegment, h.tagBatch))
	post(r, "/v1/{letter}", h.answer(DialectSegment, h.letter))
	post(r, "/v1/m", h.answer("telemetry", telemetry))
	get(r, "/v1/pixel/{call}", h.pixel(kinds, DialectSegment, DialectRudderStack))
	get(r, "/v1/projects/{write_key}/settings", h.answer(DialectSegment, h.settings))
}

// letter takes what /v1/t and its like bring.
func (h *Handler) letter(w http.ResponseWriter, r *http.Request) error {
	kind := kindOf(chi.URLParam(r, "letter"))
	if kind == "" {
		return problem.Status(http.StatusNotFound)
	}
	return h.single(w, r, kind)
}

// kindOf returns the kind of event that a call brings, by its name or its first letter, or "".
func kindOf(call string) string {
	for _, kind := range kinds {
		if call == kind || call == kind[:1] {
			return kind
		}
	}
	return ""
}

// telemetry is what Segment's browser library tells of itself. It is counted as a request, and not kept.
func telemetry(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, success)
}

// delivery is a request that brings events, of a source that may bring them. It must be released.
type delivery struct {
	*body
	text  []byte
	env   envelope
	grant Grant
	of    shared
}

// receive reads a request that brings events in one of some dialects.
func (h *Handler) receive(w http.ResponseWriter, r *http.Request, batch bool, dialects ...string) (d delivery, err error) {
	received := now()
	g, known, err := h.authorize(r, "")
	if err != nil {
		return d, err
	}
	if d.body, err = readBody(w, r, h.cfg.MaxBodyBytes, &h.bytes); err != nil {
		return d, err
	}
	defer func() {
		if err != nil {
			d.release()
		}
	}()
	d.text = trimBOM(d.Bytes())
	if d.env, err = parseEnvelope(d.text, batch, h.cfg.MaxEvents); err != nil {
		return d, err
	}
	if !known {
		if g, known, err = h.authorize(r, d.env.writeKey); err != nil {
			return d, err
		} else if !known {
			return d, missingKey()
		}
	}
	d.grant, d.of = g, h.shared(r, received, g)
	d.of.visitor = h.visitors.asked(r, g)
	return d, g.mustSpeak(dialects...)
}

// events returns the events of a batch, after it has taken in what the batch says for all of them.
func (d *delivery) events(cfg *Config) ([]incoming, error) {
	switch {
	case !d.env.hasBatch:
		return nil, malformed("missing_batch", "#/batch", "is required: the list of the events")
	case d.env.count > cfg.MaxEvents:
		return nil, malformed("too_many_events", "#/batch", "has %d events; send at most %d a request", d.env.count, cfg.MaxEvents)
	}
	if err := d.of.add(d.text, d.env); err != nil {
		return nil, err
	}
	events := make([]incoming, len(d.env.events))
	for i, at := range d.env.events {
		events[i].raw = at.of(d.text)
	}
	return events, nil
}

// single takes one event, of the kind that the route says.
func (h *Handler) single(w http.ResponseWriter, r *http.Request, kind string) error {
	d, err := h.receive(w, r, false, DialectSegment, DialectRudderStack)
	if err != nil {
		return err
	}
	defer d.release()
	return h.takeSingle(w, r, &d, incoming{raw: d.text, kind: kind})
}

func (h *Handler) takeSingle(w http.ResponseWriter, r *http.Request, d *delivery, event incoming) error {
	results, err := h.in.take(r.Context(), d.grant, d.of, []incoming{event})
	if err != nil {
		return err
	}
	if results[0].Status == Rejected {
		return rejected(results)
	}
	return succeedFor(w, r, results, d.of.visitor)
}

// batch takes many events. One that is rejected does not concern the others.
func (h *Handler) batch(w http.ResponseWriter, r *http.Request) error {
	d, err := h.receive(w, r, true, DialectSegment, DialectRudderStack)
	if err != nil {
		return err
	}
	defer d.release()
	return h.takeBatch(w, r, &d)
}

func (h *Handler) takeBatch(w http.ResponseWriter, r *http.Request, d *delivery) error {
	events, err := d.events(&h.cfg)
	if err != nil {
		return err
	}
	results, err := h.in.take(r.Context(), d.grant, d.of, events, "batch")
	if err != nil {
		return err
	}
	if len(results) > 0 && !slices.ContainsFunc(results, func(res Result) bool { return res.Status == Accepted }) {
		return rejected(results)
	}
	return succeedFor(w, r, results, d.of.visitor)
}

// add takes in what the batch says for all of its events.
func (s *shared) add(text []byte, env envelope) error {
	var c cleaner
	clean := func(f field, at span) ([]byte, error) {
		raw := at.of(text)
		if len(raw) == 0 || string(raw) == "null" {
			return nil, nil
		}
		pointer := problem.Pointer(fieldNames[f])
		if len(raw) > s.maxBytes {
			return nil, malformed("too_large", pointer, "is larger than %d bytes", s.maxBytes)
		}
		c.reset(raw)
		if flt := c.value(2); flt != nil {
			return nil, malformed(flt.code, flt.pointer(fieldNames[f]), "%s", flt.reason)
		}
		s.sanitized += c.sanitized
		return bytes.Clone(c.out), nil
	}
	var errs [3]error
	s.context, errs[0] = clean(fieldContext, env.context)
	s.integrations, errs[1] = clean(fieldIntegrations, env.integrations)
	sentAt, err := clean(fieldSentAt, env.sentAt)
	if errs[2] = err; sentAt != nil {
		s.sentAt = sentAt
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	for _, object := range []struct {
		field field
		value *[]byte
	}{{fieldContext, &s.context}, {fieldIntegrations, &s.integrations}} {
		switch v := *object.value; {
		case v == nil || v[0] == '{':
		case string(v) == "[]":
			*object.value = nil
		default:
			return malformed("wrong_type", problem.Pointer(fieldNames[object.field]), "must be an object")
		}
	}
	if v := s.sentAt; v != nil && v[0] != '"' && !isNumber(v) {
		return malformed("wrong_type", problem.Pointer(fieldNames[fieldSentAt]), "must be a string")
	}
	if (len(s.context)+len(s.integrations))*len(env.events) > maxMergedBytes {
		return malformed("too_large", "#/context", "is too large to be merged into each of %d events; send smaller batches", len(env.events))
	}
	return nil
}

var success = []byte(`{"success":true}`)

// succeed answers that the events are durable. What became of each is told if one was rejected, or if asked for with
// ?results=all.
func succeed(w http.ResponseWriter, r *http.Request, results []Result) error {
	return succeedFor(w, r, results, nil)
}

// succeedFor is succeed for a request that may have asked for the token of its visitor.
func succeedFor(w http.ResponseWriter, r *http.Request, results []Result, visitor *visitorClaim) error {
	answer := success
	all := r.URL.RawQuery != "" && r.URL.Query().Get("results") == "all"
	for i := 0; i < len(results) && !all; i++ {
		all = results[i].Status == Rejected
	}
	token := visitor.granted()
	if all || token != nil {
		if results == nil {
			results = []Result{}
		}
		if !all {
			results = nil
		}
		b, err := json.Marshal(struct {
			Success bool          `json:"success"`
			Results []Result      `json:"results,omitzero"`
			Visitor *visitorToken `json:"visitor,omitempty"`
		}{true, results, token})
		if err != nil {
			return fmt.Errorf("marshal results: %w", err)
		}
		answer = b
	}
	return writeJSON(w, answer)
}

// writeJSON answers 200. If the client is gone, it will send the events again.
func writeJSON(w http.ResponseWriter, answer []byte) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	_, _ = w.Write(answer)
	return nil
}

// now returns the time of reception.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

package collector

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/mubatch/mubatch/api/problem"
)

// The HTTP API of Segment: one event to /v1/track and its like, many to /v1/batch. The answer is 200 {"success":true}.

// maxMergedBytes bounds what the context and the integrations of a batch make of it when each event gets its own.
const maxMergedBytes = 8 << 20

// single takes one event, of the kind that the route says.
func (h *Handler) single(w http.ResponseWriter, r *http.Request, kind string) error {
	received := now()
	g, known, err := h.authorize(r, "")
	if err != nil {
		return err
	}
	body, err := readBody(w, r, h.cfg.MaxBodyBytes, &h.bytes)
	if err != nil {
		return err
	}
	defer body.release()
	text := trimBOM(body.Bytes())
	env, err := parseEnvelope(text, false, 0)
	if err != nil {
		return err
	}
	if !known {
		if g, known, err = h.authorize(r, env.writeKey); err != nil {
			return err
		} else if !known {
			return missingKey()
		}
	}
	results, err := h.in.take(r.Context(), g, h.shared(r, received, g), []incoming{{raw: text, kind: kind}})
	if err != nil {
		return err
	}
	if results[0].Status == Rejected {
		return rejected(results)
	}
	return succeed(w, r, results)
}

// batch takes many events. One that is rejected does not concern the others.
func (h *Handler) batch(w http.ResponseWriter, r *http.Request) error {
	received := now()
	g, known, err := h.authorize(r, "")
	if err != nil {
		return err
	}
	body, err := readBody(w, r, h.cfg.MaxBodyBytes, &h.bytes)
	if err != nil {
		return err
	}
	defer body.release()
	text := trimBOM(body.Bytes())
	env, err := parseEnvelope(text, true, h.cfg.MaxEvents)
	if err != nil {
		return err
	}
	if !known {
		if g, known, err = h.authorize(r, env.writeKey); err != nil {
			return err
		} else if !known {
			return missingKey()
		}
	}
	switch {
	case !env.hasBatch:
		return malformed("missing_batch", "#/batch", "is required: the list of the events")
	case env.count > h.cfg.MaxEvents:
		return malformed("too_many_events", "#/batch", "has %d events; send at most %d a request", env.count, h.cfg.MaxEvents)
	}
	of := h.shared(r, received, g)
	if err := of.add(text, env); err != nil {
		return err
	}

	events := make([]incoming, len(env.events))
	for i, at := range env.events {
		events[i].raw = at.of(text)
	}
	results, err := h.in.take(r.Context(), g, of, events, "batch")
	if err != nil {
		return err
	}
	if len(results) > 0 && !slices.ContainsFunc(results, func(res Result) bool { return res.Status == Accepted }) {
		return rejected(results)
	}
	return succeed(w, r, results)
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
	s.sentAt, errs[2] = clean(fieldSentAt, env.sentAt)
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
	answer := success
	all := r.URL.RawQuery != "" && r.URL.Query().Get("results") == "all"
	for i := 0; i < len(results) && !all; i++ {
		all = results[i].Status == Rejected
	}
	if all {
		if results == nil {
			results = []Result{}
		}
		b, err := json.Marshal(struct {
			Success bool     `json:"success"`
			Results []Result `json:"results"`
		}{true, results})
		if err != nil {
			return fmt.Errorf("marshal results: %w", err)
		}
		answer = b
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	_, _ = w.Write(answer) // the client is gone: it will send the events again
	return nil
}

// now returns the time of reception.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

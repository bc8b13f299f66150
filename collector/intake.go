package collector

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/profiles"
)

// Intake is the one way in for events, whoever brings them: it cleans them, sends each to its lane, and makes them
// durable.
//
//	a request in any dialect ─► our shape ─┐
//	a file, a topic ─► mapping ─► our shape ├─► clean ─► route ─► commit ─► Result
type Intake struct {
	cfg      Config
	to       *Committer
	metrics  *intakeMetrics
	tallies  *tallies
	plans    *Directory // nil: nobody follows one
	cleaners sync.Pool  // of *eventCleaner
}

// NewIntake returns the way in to the lanes that to writes.
func NewIntake(cfg Config, to *Committer, reg prometheus.Registerer) *Intake {
	in := &Intake{cfg: cfg.withDefaults(), to: to, metrics: newIntakeMetrics(reg), tallies: newTallies()}
	in.cleaners.New = func() any { return new(eventCleaner) }
	return in
}

// Follow has [Intake.Take] hold events to the plans that d knows, as they are at the time. It is to be called before any is
// taken in.
func (in *Intake) Follow(d *Directory) { in.plans = d }

// What becomes of an event.
const (
	Accepted          = "accepted"    // durable
	Rejected          = "rejected"    // whoever sent it must change it
	resultUnavailable = "unavailable" // not known to be durable: whoever sent it must send it again
)

// Result is what became of one event.
type Result struct {
	Index     int    `json:"index"` // among those brought at once
	MessageID string `json:"message_id,omitempty"`
	Generated bool   `json:"message_id_generated,omitempty"` // the server made the messageId
	Status    string `json:"status"`                         // Accepted or Rejected
	Code      string `json:"code,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Pointer   string `json:"pointer,omitempty"`

	kind string
}

// Take makes events of one source durable, each the JSON of an event in our shape, received at a time in UTC, and tells
// of each what became of it. They are held to the plan of their source. One that is rejected does not concern the others. After an error, which is [ErrBusy] or wraps
// [ErrUnavailable], all, some or none may be stored: bring all of them again, with the same messageIds. The bytes of
// events are not kept.
func (in *Intake) Take(ctx context.Context, from Grant, received time.Time, events [][]byte) ([]Result, error) {
	if in.plans != nil {
		var err error
		if from.plan, err = in.plans.planOf(from.SourceID); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	list := make([]incoming, len(events))
	for i, raw := range events {
		list[i].raw = raw
		if !jsontext.Value(raw).IsValid(jsonOptions...) {
			list[i].fault = &fault{code: "malformed_json", reason: "is not JSON"}
		}
	}
	of := shared{received: received.UTC().Truncate(time.Millisecond), maxBytes: in.cfg.MaxEventBytes}
	return in.take(ctx, from, of, list)
}

// Judge tells of events what [Intake.Take] would say of them under the default bounds, and takes in none.
func Judge(received time.Time, events [][]byte) []Result {
	of := shared{received: received.UTC().Truncate(time.Millisecond), maxBytes: Config{}.withDefaults().MaxEventBytes}
	var ec eventCleaner
	results := make([]Result, len(events))
	for i, raw := range events {
		f := &fault{code: "malformed_json", reason: "is not JSON"}
		var e cleaned
		if jsontext.Value(raw).IsValid(jsonOptions...) {
			e, f = ec.clean(raw, "", &of)
		}
		results[i] = Result{Index: i, MessageID: e.messageID, Generated: e.generated, Status: Accepted}
		if f != nil {
			results[i] = Result{Index: i, MessageID: peekMessageID(raw), Status: Rejected, Code: f.code, Reason: f.reason, Pointer: f.pointer()}
		}
	}
	return results
}

// incoming is one event of those that come at once.
type incoming struct {
	raw   []byte // valid JSON in our shape
	kind  string // what the route says it is, or "" if the event has to say
	fault *fault // what whoever translated it found wrong
}

// take is Take for events that are known to be valid JSON. The path leads from the body of the request to the list of
// events; without one the body is the event.
func (in *Intake) take(ctx context.Context, g Grant, of shared, events []incoming, path ...string) ([]Result, error) {
	ec := in.cleaners.Get().(*eventCleaner)
	defer in.cleaners.Put(ec)
	msgs := make([]Routed, 0, len(events))
	results := make([]Result, len(events))
	t := tally{received: of.received}
	for i, ev := range events {
		e, f := cleaned{kind: ev.kind}, ev.fault
		if f == nil {
			e, f = ec.clean(ev.raw, ev.kind, &of)
		}
		if f != nil {
			at := path
			if len(path) > 0 {
				at = append(slices.Clip(path), strconv.Itoa(i))
			}
			results[i] = Result{
				Index: i, MessageID: peekMessageID(ev.raw), Status: Rejected,
				Code: f.code, Reason: f.reason, Pointer: f.pointer(at...), kind: cmp.Or(e.kind, otherKind),
			}
			t.rejected(results[i].kind, f)
			continue
		}
		results[i] = Result{Index: i, MessageID: e.messageID, Generated: e.generated, Status: Accepted, kind: e.kind}
		found := ec.inspect(&e, &g, &of)
		e.note(&found)
		m := in.route(&e, g, of.received)
		if found.action == ActionQuarantine {
			body, err := profiles.AppendQuarantined(nil, profiles.Quarantined{
				MessageID: e.messageID, Type: e.kind, Event: ec.eventName(&e), Violations: found.violations, Body: e.body,
			})
			if err != nil {
				return nil, err
			}
			m.Kind, m.Body = profiles.KindQuarantine, body
		}
		name := ""
		if found.action != "" {
			name = ec.eventName(&e)
		}
		t.accepted(&e, &found, name)
		msgs = append(msgs, m)
	}
	if of.visitor != nil {
		of.visitor.claim(ctx, msgs) // while nobody can have seen these events: from then on the visitor is known
	}
	err := in.commit(ctx, msgs, results)
	in.tallies.add(g, &t, err == nil)
	if err != nil {
		return nil, err
	}
	return results, nil
}

// route notes what is special about e and returns it as a message for its lane.
func (in *Intake) route(e *cleaned, g Grant, received time.Time) Routed {
	for _, f := range e.blocked {
		in.metrics.blocked.WithLabelValues(fieldNames[f]).Inc()
	}
	if e.sanitized > 0 {
		in.metrics.sanitized.Inc()
	}
	key := g.Secret.Key(e.who)
	return Routed{Lane: key.Lane(in.to.stream.Lanes()), Message: profiles.Message{
		Kind: profiles.KindEvent, Workspace: g.WorkspaceID, Source: g.SourceID,
		ID: profiles.MessageKey(e.messageID), Key: key, Received: received, Body: e.body,
	}}
}

// commit makes msgs durable and counts what became of all results, the rejected ones too.
func (in *Intake) commit(ctx context.Context, msgs []Routed, results []Result) error {
	start := time.Now()
	err := in.to.Commit(ctx, msgs)
	if err == nil && len(msgs) > 0 {
		in.metrics.ack.Observe(time.Since(start).Seconds())
	}
	for i := range results {
		status := results[i].Status
		if status == Accepted && err != nil {
			status = resultUnavailable
		}
		in.metrics.events.WithLabelValues(results[i].kind, status).Inc()
	}
	return err
}

// Quarantine makes something durable that could not be made into events, such as what a mapping fails on, together with why:
// it can be looked at, mapped and replayed, and is never applied as it is. It is remembered by its messageId, or if that is
// empty by its bytes, so that bringing it again does nothing. Errors are those of [Intake.Take], and [ErrInvalid] if it is
// larger than a request may be.
func (in *Intake) Quarantine(ctx context.Context, from Grant, received time.Time, messageID string, payload []byte, why ...profiles.Violation) error {
	if len(payload) > in.cfg.MaxBodyBytes {
		return fmt.Errorf("%w: larger than %d bytes", ErrInvalid, in.cfg.MaxBodyBytes)
	}
	if messageID == "" {
		sum := sha256.Sum256(payload)
		messageID = "sha256:" + hex.EncodeToString(sum[:])
	}
	received = received.UTC().Truncate(time.Millisecond)
	body, err := profiles.AppendQuarantined(nil, profiles.Quarantined{MessageID: messageID, Violations: why, Body: payload})
	if err != nil {
		return err
	}
	key := profiles.MessageKey(messageID) // nobody is known yet whom it is about
	m := Routed{Lane: key.Lane(in.to.stream.Lanes()), Message: profiles.Message{
		Kind: profiles.KindQuarantine, Workspace: from.WorkspaceID, Source: from.SourceID, ID: key, Key: key, Received: received, Body: body,
	}}
	results := []Result{{MessageID: messageID, Status: Accepted, kind: otherKind}}
	t := tally{received: received}
	t.accepted(&cleaned{kind: otherKind}, &finding{action: ActionQuarantine, violations: why}, "")
	err = in.commit(ctx, []Routed{m}, results)
	in.tallies.add(from, &t, err == nil)
	return err
}

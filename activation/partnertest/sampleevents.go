package partnertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// sampleEvents is a message about events.
type sampleEvents struct {
	Events []sampleEvent `json:"events"`
}

type sampleEvent struct {
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	At       int64           `json:"at"` // Unix seconds
	Visitor  string          `json:"visitor"`
	Email    string          `json:"email"`
	Value    json.RawMessage `json:"value"`
	Currency json.RawMessage `json:"currency"`
}

var _ activation.EventPartner = (*Sample)(nil)

// MapEvent implements [activation.EventPartner].
func (*Sample) MapEvent(_ activation.Target, name string) (activation.Mapping, bool) {
	if name != "Order Completed" {
		return activation.Mapping{}, false
	}
	return activation.Mapping{Name: "Purchase", Fields: map[string]activation.Field{
		"value": activation.At("properties.total"), "currency": activation.At("properties.currency"),
	}}, true
}

// CheckMapping implements [activation.EventPartner].
func (*Sample) CheckMapping(_ activation.Target, m activation.Mapping) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(m.Fields)) {
		if name != "value" && name != "currency" {
			errs = append(errs, &activation.FieldError{Pointer: "/fields/" + name, Detail: "must be value or currency"})
		}
	}
	return errors.Join(errs...)
}

// RefuseEvent implements [activation.EventPartner].
func (*Sample) RefuseEvent(_ activation.Target, e activation.Event) string {
	if e.Fields["value"].Kind() != '0' {
		return "value is not a number"
	}
	if e.Person.Text("email") == "" {
		return "no e-mail address is known"
	}
	return ""
}

// EncodeEvents implements [activation.EventPartner].
func (*Sample) EncodeEvents(_ activation.Target, b activation.EventBatch) (body []byte, took int, err error) {
	var m sampleEvents
	for _, e := range b.Events {
		m.Events = append(m.Events, sampleEvent{
			ID: e.MessageID, Name: e.As, At: e.Timestamp.Unix(), Visitor: e.AnonymousID,
			Email: sampleHash(strings.ToLower(e.Person.Text("email"))),
			Value: json.RawMessage(e.Fields["value"]), Currency: json.RawMessage(e.Fields["currency"]),
		})
	}
	body, err = json.Marshal(m)
	return body, len(m.Events), err
}

// SampleEventsFake is a [SampleFake] for events.
type SampleEventsFake struct{ *SampleFake }

// Expect implements [EventFake].
func (f SampleEventsFake) Expect(events ...activation.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		f.expected[e.MessageID] = e
	}
}

// Received implements [EventFake].
func (f SampleEventsFake) Received() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.work()
	return slices.Sorted(maps.Keys(f.received))
}

// RefuseEvent implements [EventFake].
func (f SampleEventsFake) RefuseEvent(messageID string, refuse bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuseEvent[messageID] = refuse
}

// events takes a message about events in.
func (f *SampleFake) events(w http.ResponseWriter, r *http.Request, body []byte) {
	var m sampleEvents
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		f.Violate("the body cannot be read: %v", err)
		f.refuseWith(w, http.StatusBadRequest, "invalid")
		return
	}
	if bytes.ContainsRune(body, '@') {
		f.Violate("there is an e-mail address in the body")
	}
	if len(m.Events) == 0 || len(m.Events) > sampleMost {
		f.Violate("the message is about %d events, want 1 to %d", len(m.Events), sampleMost)
	}
	for _, e := range m.Events {
		f.checkEvent(e, m.Events[0].Visitor)
	}
	switch {
	case r.URL.RawQuery == "validate=1":
		fmt.Fprint(w, `{}`)
	case f.options.Strict && slices.ContainsFunc(m.Events, func(e sampleEvent) bool { return f.refuseEvent[e.ID] }):
		f.refuseWith(w, http.StatusBadRequest, "bad_event")
	case f.options.Later:
		f.serial++
		id := fmt.Sprintf("receipt-%d", f.serial)
		f.receipts[id] = &sampleReceipt{at: f.Steady(), events: m.Events}
		f.pending = append(f.pending, id)
		fmt.Fprintf(w, `{"receipt":%q}`, id)
	default:
		f.answer(w, f.applyEvents(m.Events), "")
	}
}

// sampleMost is how many events the sample takes in a message.
const sampleMost = 7

func (f *SampleFake) applyEvents(events []sampleEvent) (refused []int) {
	for i, e := range events {
		if f.refuseEvent[e.ID] {
			refused = append(refused, i)
		} else {
			f.received[e.ID] = true
		}
	}
	return refused
}

// checkEvent holds what a message says of an event against what is true.
func (f *SampleFake) checkEvent(e sampleEvent, visitor string) {
	want, ok := f.expected[e.ID]
	if !ok {
		f.Violate("event %q was never heard of", e.ID)
		return
	}
	var properties struct{ Total, Currency jsontext.Value }
	if err := json.Unmarshal(want.Properties, &struct {
		Total    *jsontext.Value `json:"total"`
		Currency *jsontext.Value `json:"currency"`
	}{&properties.Total, &properties.Currency}); err != nil {
		f.Violate("event %q cannot be read: %v", e.ID, err)
	}
	if e.Name != "Purchase" || e.At != want.Timestamp.Unix() || !bytes.Equal(e.Value, properties.Total) || !bytes.Equal(e.Currency, properties.Currency) {
		f.Violate("event %q is not as it happened", e.ID)
	}
	if !f.right[e.Email][want.Person.ID] {
		f.Violate("event %q is said to be somebody else's", e.ID)
	}
	if f.options.OnePerson && e.Visitor != visitor {
		f.Violate("events of two visitors are in one message")
	}
	if age := time.Duration(f.options.MaxAgeMinutes) * time.Minute; age > 0 && f.Steady().Sub(want.Timestamp) > age+time.Minute {
		f.Violate("event %q is older than the partner takes", e.ID)
	}
}

package partnertest

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/mubatch/mubatch/activation"
)

// occurrence is a message about an event as it is documented.
type occurrence struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      struct {
		Name   string                     `json:"name"`
		Fields map[string]json.RawMessage `json:"fields"`
		Event  struct {
			MessageID   string          `json:"message_id"`
			Type        string          `json:"type"`
			Name        string          `json:"name"`
			Timestamp   time.Time       `json:"timestamp"`
			ReceivedAt  time.Time       `json:"received_at"`
			UserID      string          `json:"user_id"`
			AnonymousID string          `json:"anonymous_id"`
			Properties  json.RawMessage `json:"properties"`
			Context     json.RawMessage `json:"context"`
		} `json:"event"`
		Profile struct {
			ProfileID   string                     `json:"profile_id"`
			Identifiers []activation.Identifier    `json:"identifiers"`
			Traits      map[string]json.RawMessage `json:"traits"`
			Consent     map[string]bool            `json:"consent"`
		} `json:"profile"`
	} `json:"data"`
}

// Expect implements [EventFake]. A context that is not given, and a person without an id, are not looked at.
func (r *Receiver) Expect(events ...activation.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		r.expected[e.MessageID] = e
	}
}

// Received implements [EventFake].
func (r *Receiver) Received() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.events))
}

// RefuseEvent implements [EventFake].
func (r *Receiver) RefuseEvent(messageID string, refuse bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse[messageID] = refuse
}

// event takes a message about an event in.
func (r *Receiver) event(body []byte) (status int, problem string) {
	var m occurrence
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		r.Violate("the body cannot be read: %v", err)
		return http.StatusBadRequest, "bad body"
	}
	e, p := m.Data.Event, m.Data.Profile
	id := e.MessageID
	if r.refuse[id] {
		return http.StatusUnprocessableEntity, "will not have it"
	}
	r.events[id] = true
	want, ok := r.expected[id]
	if !ok {
		r.Violate("event %q was never heard of", id)
		return 0, ""
	}
	if m.Timestamp.IsZero() || e.Type != want.Type || e.Name != want.Name || m.Data.Name != want.Name ||
		!e.Timestamp.Equal(want.Timestamp) || e.UserID != want.UserID || e.AnonymousID != want.AnonymousID {
		r.Violate("event %q is not as it happened", id)
	}
	if !bytes.Equal(e.Properties, want.Properties) || want.Context.Raw != nil && !bytes.Equal(e.Context, want.Context.Raw) {
		r.Violate("event %q has other properties or another context", id)
	}
	if want.Person.ID == (activation.ProfileID{}) {
		return 0, ""
	}
	if p.ProfileID != profileText(want.Person.ID) || !reflect.DeepEqual(p.Identifiers, want.Person.Identifiers) {
		r.Violate("event %q is said to be somebody else's", id)
	}
	return 0, ""
}

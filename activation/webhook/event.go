package webhook

import (
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

type occurrence struct {
	Name    string                    `json:"name"`
	Fields  map[string]jsontext.Value `json:"fields,omitzero"`
	Event   event                     `json:"event"`
	Profile profile                   `json:"profile"`
}

type event struct {
	MessageID   string         `json:"message_id"`
	Type        string         `json:"type"`
	Name        string         `json:"name,omitzero"`
	Timestamp   time.Time      `json:"timestamp"`
	ReceivedAt  time.Time      `json:"received_at"`
	UserID      string         `json:"user_id,omitzero"`
	AnonymousID string         `json:"anonymous_id,omitzero"`
	Properties  jsontext.Value `json:"properties,omitzero"`
	Context     jsontext.Value `json:"context,omitzero"`
}

type profile struct {
	ProfileID   string                    `json:"profile_id"`
	Identifiers []activation.Identifier   `json:"identifiers"`
	Traits      map[string]jsontext.Value `json:"traits"`
	Consent     map[string]bool           `json:"consent"`
}

// MapEvent implements [activation.EventPartner]. Events go under their own names, with no fields beside their properties.
func (*Partner) MapEvent(_ activation.Target, name string) (activation.Mapping, bool) {
	return activation.Mapping{Name: name}, true
}

// CheckMapping implements [activation.EventPartner]. A receiver may be told anything.
func (*Partner) CheckMapping(activation.Target, activation.Mapping) error { return nil }

// RefuseEvent implements [activation.EventPartner].
func (*Partner) RefuseEvent(activation.Target, activation.Event) string { return "" }

// EncodeEvents implements [activation.EventPartner]. A message is about one event.
func (*Partner) EncodeEvents(_ activation.Target, b activation.EventBatch) (body []byte, took int, err error) {
	e := b.Events[0]
	data := occurrence{
		Name: e.As,
		Event: event{
			e.MessageID, e.Type, e.Name, e.Timestamp.UTC(), e.ReceivedAt.UTC(), e.UserID, e.AnonymousID, e.Properties,
			e.Context.Raw,
		},
		Profile: profile{profileID(e.Person.ID), e.Person.Identifiers, e.Person.Traits, e.Person.Consent},
	}
	if len(e.Fields) > 0 {
		data.Fields = e.Fields
	}
	body, err = json.Marshal(payload{Type: "event", Timestamp: b.At.UTC(), Data: data}, json.Deterministic(true))
	return body, 1, err
}

package profiles

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Event is what the µbatch reads of a cleaned event. The whole of it stays in the archive.
type Event struct {
	Type        string         `json:"type"`
	Event       string         `json:"event"`
	MessageID   string         `json:"messageId"`
	UserID      string         `json:"userId"`
	AnonymousID string         `json:"anonymousId"`
	PreviousID  string         `json:"previousId"`
	GroupID     string         `json:"groupId"`
	Timestamp   time.Time      `json:"timestamp"` // corrected
	Context     jsontext.Value `json:"context"`
	Properties  jsontext.Value `json:"properties"`
	Traits      jsontext.Value `json:"traits"`
	MergeOn     []string       `json:"_mergeOn"` // kinds of identifiers by which the source merges people
}

// Names of behaviours for the calls that have no event name of their own.
const (
	PageViewed   = "Page Viewed"
	ScreenViewed = "Screen Viewed"
)

// DecodeEvent reads a cleaned event, as the collector makes them.
func DecodeEvent(body []byte) (*Event, error) {
	e, err := parseEvent(body)
	if err != nil {
		return nil, fmt.Errorf("decode event: %w", err)
	}
	if e.UserID == "" && e.AnonymousID == "" {
		return nil, fmt.Errorf("decode event: neither userId nor anonymousId")
	}
	return e, nil
}

func parseEvent(body []byte) (*Event, error) {
	var e Event
	if err := json.Unmarshal(body, &e); err != nil {
		return nil, err
	}
	return &e, nil
}

// Name is the name by which rules refer to the event; empty if they cannot.
func (e *Event) Name() string {
	switch e.Type {
	case "track":
		return e.Event
	case "page":
		return PageViewed
	case "screen":
		return ScreenViewed
	}
	return ""
}

// Identifier is whose fragment the event goes to: the user's if there is one, else the visitor's.
func (e *Event) Identifier() Identifier {
	if e.UserID != "" {
		return Identifier{Kind: UserID, Value: e.UserID}
	}
	return Identifier{Kind: AnonymousID, Value: e.AnonymousID}
}

// fragment returns what the event adds to the fragment of key.
func (e *Event) fragment(key Key, stamp Stamp, behaviours []*Behaviour) Fragment {
	f := Fragment{Key: key, Identifier: e.Identifier(), FirstSeen: stamp.At, LastSeen: stamp.At}
	if e.Type == "identify" {
		eachMember(e.Traits, func(name string, value jsontext.Value) {
			f.setTrait(Trait{Name: name, Value: value.Clone(), Stamp: stamp})
		})
	}
	if e.Type == "group" && e.GroupID != "" {
		f.addIdentifier(Known{Identifier{Kind: GroupID, Value: e.GroupID}, stamp})
	}
	for _, id := range e.externalIDs() {
		f.addIdentifier(Known{id, stamp})
	}
	eachMember(member(e.Context, "consent"), func(name string, value jsontext.Value) {
		if name == "categoryPreferences" { // Segment's form
			eachMember(value, func(name string, value jsontext.Value) { f.decide(name, value, stamp) })
			return
		}
		f.decide(name, value, stamp)
	})
	e.eachConsentID(func(purpose string, granted jsontext.Value) { f.decide(purpose, granted, stamp) })
	for _, b := range behaviours {
		t := Behaved{b.ID, b.Empty()}
		if b.Fold(&t.Timeline, stamp.At, e.Properties) {
			f.addTimeline(t)
		}
	}
	return f
}

// eachConsentID calls fn for each purpose that RudderStack's libraries list in the context. Of one that is in both lists,
// the refusal counts, in whichever order they come.
func (e *Event) eachConsentID(fn func(purpose string, granted jsontext.Value)) {
	if !bytes.Contains(e.Context, []byte(`"consentManagement"`)) {
		return
	}
	decided := member(e.Context, "consentManagement")
	for list, granted := range map[string]string{"allowedConsentIds": "true", "deniedConsentIds": "false"} {
		var ids []string
		if raw := member(decided, list); raw.Kind() != '[' || json.Unmarshal(raw, &ids) != nil {
			continue // nobody was asked, or in a form that is not theirs
		}
		for _, id := range ids {
			fn(id, jsontext.Value(granted))
		}
	}
}

// decide notes a consent decision, written as true, false, "granted" or "denied". Anything else decides nothing.
func (f *Fragment) decide(purpose string, value jsontext.Value, stamp Stamp) {
	if len(purpose) > maxPurpose {
		return
	}
	switch strings.ToLower(string(value)) {
	case "true", `"granted"`:
		f.setConsent(Consent{Purpose: purpose, Granted: true, Stamp: stamp})
	case "false", `"denied"`:
		f.setConsent(Consent{Purpose: purpose, Granted: false, Stamp: stamp})
	}
}

const maxPurpose = 100

// GroupID is the kind of identifier that a group call adds. It never merges people.
const GroupID = "group_id"

// externalIDs returns the ids of context.externalIds that may stand for a person.
func (e *Event) externalIDs() []Identifier {
	raw := member(e.Context, "externalIds")
	if raw.Kind() != '[' {
		return nil
	}
	var list []struct {
		ID         jsontext.Value `json:"id"`
		Type       string         `json:"type"`
		Collection string         `json:"collection"`
	}
	if json.Unmarshal(raw, &list) != nil {
		return nil // not in Segment's form: it stays in the archive as it came
	}
	var ids []Identifier
	for _, x := range list {
		id := Identifier{Kind: x.Type, Value: text(x.ID)}.normal()
		switch {
		case x.Collection != "" && x.Collection != "users", id.Kind == "", len(id.Kind) > 64, id.Value == "", len(id.Value) > 255:
		case id.Kind == UserID, id.Kind == AnonymousID: // those identify by their own fields
		default:
			ids = append(ids, id)
		}
	}
	return ids
}

// contacts returns the e-mail addresses, phone numbers and custom ids in the event.
func (e *Event) contacts() []Identifier {
	ids := e.externalIDs()
	for _, kind := range []string{Email, Phone} {
		for _, traits := range []jsontext.Value{e.Traits, member(e.Context, "traits")} {
			if id := (Identifier{Kind: kind, Value: text(member(traits, kind))}).normal(); id.Value != "" {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// mergers returns the identifiers by which the event's source merges people.
func (e *Event) mergers() []Identifier {
	if len(e.MergeOn) == 0 {
		return nil
	}
	var merge []Identifier
	for _, id := range e.contacts() {
		for _, kind := range e.MergeOn {
			if id.Kind == kind {
				merge = append(merge, id)
			}
		}
	}
	return merge
}

// eachMember calls fn for every member of a JSON object, and not at all for anything else. value is only valid during
// the call.
func eachMember(object jsontext.Value, fn func(name string, value jsontext.Value)) {
	if object.Kind() != '{' {
		return
	}
	dec := jsontext.NewDecoder(reader(object))
	if _, err := dec.ReadToken(); err != nil {
		return
	}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return
		}
		n := name.String()
		value, err := dec.ReadValue()
		if err != nil {
			return
		}
		fn(n, value)
	}
}

// member returns the value of a member of a JSON object, or nil.
func member(object jsontext.Value, name string) (found jsontext.Value) {
	eachMember(object, func(n string, value jsontext.Value) {
		if n == name {
			found = value.Clone()
		}
	})
	return found
}

// text returns a JSON string's text or a number as it is written; empty for anything else.
func text(v jsontext.Value) string {
	switch v.Kind() {
	case '"':
		if s, err := jsontext.AppendUnquote(nil, v); err == nil {
			return string(s)
		}
	case '0':
		return string(v)
	}
	return ""
}

func reader(v jsontext.Value) *bytes.Buffer { return bytes.NewBuffer(v) }

package activation

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// EventPartner is a [Partner] that is told of events: conversions.
//
// An event goes to a partner in three steps, all of them pure. A [Mapping], the partner's own or that of the subscription,
// says what the partner calls the event and its fields. RefuseEvent tells whether the partner can do anything with it.
// EncodeEvents makes a body of those that it can. Every event goes to a partner at least once, and may go again, in another
// message and after others: where the partner knows events by an id, give it [Event.MessageID].
type EventPartner interface {
	Partner

	// MapEvent returns how an event goes to the partner unless a subscription says otherwise, by the name that rules have
	// for it: "Order Completed", "Page Viewed". False says that the partner has no event for it: without a name from the
	// subscription such events are refused.
	MapEvent(to Target, name string) (Mapping, bool)

	// CheckMapping tells what is wrong with what a subscription says, as *[FieldError]s under /name and /fields, joined. An
	// empty name, and fields that are not there, leave what MapEvent says.
	CheckMapping(to Target, m Mapping) error

	// RefuseEvent returns why the partner cannot take an event, in words for a marketer and without anything of the person,
	// or "". A refused event is kept as failed.
	RefuseEvent(to Target, e Event) (reason string)

	// EncodeEvents makes the body of a message about the first of the events, at least one and as many as fit into it, and
	// returns how many. None of them is one that RefuseEvent refuses. All attempts get the same bytes. An error says that
	// the settings are no good, and pauses the destination.
	EncodeEvents(to Target, b EventBatch) (body []byte, took int, err error)
}

// EventBatch is what one message is about.
type EventBatch struct {
	ID     int64 // grows from batch to batch
	Events []Event
	At     time.Time
}

// Event is something that somebody did, as a partner is told of it.
type Event struct {
	MessageID   string // the event's own id, given by whoever sent it to us: what partners know duplicates by
	Type        string // track, page, screen, identify, group or alias
	Name        string // by which rules refer to it: "Order Completed", "Page Viewed"; empty if they cannot
	Timestamp   time.Time
	ReceivedAt  time.Time
	UserID      string
	AnonymousID string
	Properties  jsontext.Value // an object, or nil
	Context     EventContext

	// Person is who did it, as known when the message is made, under the profile that the person has by then. Its consent is
	// what the destination's gate asks for.
	Person Person

	As     string                    // what the partner calls the event
	Fields map[string]jsontext.Value // by the partner's names, numbers as they were written; what is absent or null is left out
}

// EventRef names one event of a message.
type EventRef struct {
	MessageID string
	Name      string
	Profile   ProfileID // of the person when the message was claimed
}

// EventContext is where and how an event happened, as far as its source said so.
type EventContext struct {
	IP        string            `json:"ip,omitzero"`
	UserAgent string            `json:"userAgent,omitzero"`
	Locale    string            `json:"locale,omitzero"`
	Timezone  string            `json:"timezone,omitzero"`
	Page      EventPage         `json:"page,omitzero"`
	Campaign  map[string]string `json:"campaign,omitzero"` // source, medium, name, term, content
	Device    EventDevice       `json:"device,omitzero"`
	App       EventApp          `json:"app,omitzero"`
	OS        EventOS           `json:"os,omitzero"`

	// ClickIDs are what partners gave the visitor, by the names of their parameters and cookies: gclid, fbclid, fbc, fbp, ….
	// They come from the context, from its clickIds, or else from the page's URL.
	ClickIDs map[string]string `json:"-"`

	Raw jsontext.Value `json:"-"` // all of it, as it came
}

// EventPage is the page on which something happened.
type EventPage struct {
	URL      string `json:"url,omitzero"`
	Path     string `json:"path,omitzero"`
	Referrer string `json:"referrer,omitzero"`
	Title    string `json:"title,omitzero"`
	Search   string `json:"search,omitzero"`
}

// EventDevice is the device on which something happened.
type EventDevice struct {
	ID            string `json:"id,omitzero"`
	AdvertisingID string `json:"advertisingId,omitzero"`
	AdTracking    *bool  `json:"adTrackingEnabled,omitzero"` // nil: nobody said
	Type          string `json:"type,omitzero"`
	Manufacturer  string `json:"manufacturer,omitzero"`
	Model         string `json:"model,omitzero"`
}

// EventApp is the app in which something happened.
type EventApp struct {
	Name      string `json:"name,omitzero"`
	Version   string `json:"version,omitzero"`
	Namespace string `json:"namespace,omitzero"`
}

// EventOS is the operating system on which something happened.
type EventOS struct {
	Name    string `json:"name,omitzero"`
	Version string `json:"version,omitzero"`
}

// clickIDs are the names of what partners give visitors: parameters of landing pages, and Meta's and Google's cookies.
var clickIDs = []string{
	"gclid", "gbraid", "wbraid", "dclid", "gac", "client_id", "session_id", "fbclid", "fbc", "fbp", "ttclid", "ttp", "msclkid",
	"li_fat_id", "twclid", "ScCid", "epik", "rdt_cid",
}

// eventDocument is an event as it came in.
type eventDocument struct {
	Type        string         `json:"type"`
	Event       string         `json:"event"`
	MessageID   string         `json:"messageId"`
	UserID      string         `json:"userId"`
	AnonymousID string         `json:"anonymousId"`
	Timestamp   time.Time      `json:"timestamp"`
	Context     jsontext.Value `json:"context"`
	Properties  jsontext.Value `json:"properties"`
}

// decodeEvent reads a cleaned event, as the collector makes them. Members of the context that are not as they should be are
// left out: they never keep an event from being sent.
func decodeEvent(name string, received time.Time, body []byte) (Event, error) {
	var doc eventDocument
	if err := json.Unmarshal(body, &doc); err != nil {
		return Event{}, fmt.Errorf("decode event: %w", err)
	}
	return Event{
		MessageID: doc.MessageID, Type: doc.Type, Name: name, Timestamp: doc.Timestamp, ReceivedAt: received,
		UserID: doc.UserID, AnonymousID: doc.AnonymousID, Properties: object(doc.Properties),
		Context: readContext(object(doc.Context)),
	}, nil
}

// object returns v if it is a JSON object, else nil.
func object(v jsontext.Value) jsontext.Value {
	if v.Kind() == '{' {
		return v
	}
	return nil
}

func readContext(raw jsontext.Value) EventContext {
	c := EventContext{Raw: raw}
	members := membersOf(raw)
	if members == nil {
		return c
	}
	for name, into := range map[string]any{
		"ip": &c.IP, "userAgent": &c.UserAgent, "locale": &c.Locale, "timezone": &c.Timezone, "page": &c.Page,
		"device": &c.Device, "app": &c.App, "os": &c.OS,
	} {
		if v := members[name]; v != nil {
			_ = json.Unmarshal(v, into) // what is of another type stays empty
		}
	}
	c.Campaign = texts(members["campaign"])
	var query url.Values
	if u, err := url.Parse(c.Page.URL); err == nil {
		query = u.Query()
	}
	given := texts(members["clickIds"])
	for _, name := range clickIDs {
		for _, id := range []string{unquoted(members[name]), given[name], query.Get(name)} {
			if id = strings.TrimSpace(id); id != "" && len(id) <= 512 {
				if c.ClickIDs == nil {
					c.ClickIDs = map[string]string{}
				}
				c.ClickIDs[name] = id
				break
			}
		}
	}
	return c
}

// texts returns the members of an object that are texts.
func texts(v jsontext.Value) map[string]string {
	var found map[string]string
	for name, v := range membersOf(v) {
		if v.Kind() == '"' {
			if found == nil {
				found = map[string]string{}
			}
			found[name] = unquoted(v)
		}
	}
	return found
}

// membersOf returns the members of an object, or nil for anything else.
func membersOf(v jsontext.Value) (members map[string]jsontext.Value) {
	if v.Kind() != '{' || json.Unmarshal(v, &members) != nil {
		return nil
	}
	return members
}

// unquoted returns what a JSON string says, or "" for anything else.
func unquoted(v jsontext.Value) (s string) {
	if v.Kind() != '"' || json.Unmarshal(v, &s) != nil {
		return ""
	}
	return s
}

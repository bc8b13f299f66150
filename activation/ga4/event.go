package ga4

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// event is one of a request.
type event struct {
	Name      string                    `json:"name"`
	Timestamp int64                     `json:"timestamp_micros"`
	Params    map[string]jsontext.Value `json:"params,omitzero"`
}

const (
	beforeEvents = `,"events":[`
	afterEvents  = `]}`
)

// CheckMapping implements [activation.EventPartner]. Beside parameters a mapping may give client_id or app_instance_id.
func (*Partner) CheckMapping(to activation.Target, m activation.Mapping) error {
	cfg, _, err := read(to.Settings)
	errs := []error{err}
	fault := func(pointer, detail string) {
		errs = append(errs, &activation.FieldError{Pointer: pointer, Detail: detail})
	}
	if m.Name != "" {
		if wrong := cfg.eventFault(m.Name); wrong != "" {
			fault("/name", wrong)
		}
	}
	sent := 0
	for _, name := range slices.Sorted(maps.Keys(m.Fields)) {
		if wrong := parameterFault(name); wrong != "" {
			fault("/fields/"+escape.Replace(name), wrong)
		}
		if leadsToPersonal(m.Fields[name].Path) {
			fault("/fields/"+escape.Replace(name)+"/path", "must not lead to personal data, which Google Analytics forbids")
		}
		if namesPersonal(string(m.Fields[name].Cell)) {
			fault("/fields/"+escape.Replace(name)+"/cell", "must not name personal data, which Google Analytics forbids")
		}
		switch kind := m.Fields[name].Value.Kind(); {
		case m.Fields[name].Path != "" || kind == 'n' || kind == 0:
		case name == "currency" && kind != '"':
			fault("/fields/"+escape.Replace(name)+"/value", "must be a string, such as EUR")
		case name == "value" && kind != '0':
			fault("/fields/"+escape.Replace(name)+"/value", "must be a number")
		}
		if f := m.Fields[name]; f.Path != "" || f.Value.Kind() != 'n' {
			sent++
		}
	}
	if sent > maxParameters {
		fault("/fields", "must be at most "+itoa(maxParameters))
	}
	return errors.Join(errs...)
}

// RefuseEvent implements [activation.EventPartner].
func (*Partner) RefuseEvent(to activation.Target, e activation.Event) (reason string) {
	cfg, _, err := read(to.Settings)
	if err != nil {
		return "" // and reported when a message is made
	}
	if wrong := cfg.eventFault(e.As); wrong != "" {
		return "the event's name at Google Analytics " + wrong
	}
	head, made, reason := cfg.encode(e, e.Timestamp)
	if reason == "" && len(head)+len(made)+len(beforeEvents)+len(afterEvents) >= maxBody {
		reason = "it is larger than the 130 kB that Google Analytics takes"
	}
	return reason
}

// EncodeEvents implements [activation.EventPartner]. A message is about the first events that are of the same visitor: same
// device, user, consent and user properties.
func (*Partner) EncodeEvents(to activation.Target, b activation.EventBatch) (body []byte, took int, err error) {
	cfg, _, err := read(to.Settings)
	if err != nil {
		return nil, 0, fmt.Errorf("read the settings: %w", err)
	}
	for _, e := range b.Events[:min(len(b.Events), maxEvents)] {
		at := e.Timestamp
		if !b.At.IsZero() && at.After(b.At) { // of a device whose clock is ahead
			at = b.At
		}
		head, made, refusal := cfg.encode(e, at)
		switch {
		case refusal != "" && took == 0:
			return nil, 0, errors.New("the event cannot be sent: " + refusal)
		case refusal != "":
			return append(body, afterEvents...), took, nil
		case took == 0:
			body = append(slices.Concat(head, []byte(beforeEvents)), made...)
		case !bytes.HasPrefix(body, append(head, beforeEvents...)) || len(body)+1+len(made)+len(afterEvents) >= maxBody:
			return append(body, afterEvents...), took, nil
		default:
			body = append(append(body, ','), made...)
		}
		took++
	}
	return append(body, afterEvents...), took, nil
}

// encode returns what a request says of an event's visitor, without its last brace, and the event, or why it cannot be sent.
func (cfg Config) encode(e activation.Event, at time.Time) (head, made []byte, refusal string) {
	own := personalOf(e.Person)
	v, refusal := cfg.visitor(e, own)
	if refusal != "" {
		return nil, nil, refusal
	}
	params, refusal := cfg.parameters(e, own)
	if refusal != "" {
		return nil, nil, refusal
	}
	head, headErr := json.Marshal(v, json.Deterministic(true))
	made, madeErr := json.Marshal(event{e.As, at.UnixMicro(), params}, json.Deterministic(true))
	if errors.Join(headErr, madeErr) != nil {
		return nil, nil, "it cannot be written as JSON"
	}
	return head[:len(head)-1], made, ""
}

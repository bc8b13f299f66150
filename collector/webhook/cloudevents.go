package webhook

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// CloudEvents 1.0, HTTP Protocol Binding: an event is the body (structured mode), an element of it (batch mode), or the
// body with its attributes in headers (binary mode). Azure Event Grid's own schema is taken too, and becomes the same.

var (
	errNotCloudEvent = errors.New("the request is not a CloudEvent: it has neither that content type nor ce-specversion, ce-id, ce-source and ce-type")
	errAttributes    = errors.New("a CloudEvent needs specversion, id, source and type")
)

// cloudEvents returns the events of a request, each in the JSON Event Format.
func cloudEvents(r *http.Request, body []byte) ([]Delivery, error) {
	switch t := mediaType(r); {
	case t == "application/cloudevents-batch+json":
		return structured(body, true)
	case t == "application/cloudevents+json":
		return structured(body, false)
	case r.Header.Get("Ce-Specversion") != "":
		event, err := binary(r.Header, t, body)
		if err != nil {
			return nil, err
		}
		return structured(event, false)
	case r.Header.Get("Aeg-Event-Type") != "":
		return eventGrid(body)
	default:
		return nil, errNotCloudEvent
	}
}

func structured(body []byte, batch bool) ([]Delivery, error) {
	list, err := elements(body)
	if err != nil {
		return nil, err
	}
	if !batch && len(list) != 1 {
		return nil, errNotCloudEvent
	}
	deliveries := make([]Delivery, len(list))
	for i, raw := range list {
		id, source := member(raw, "id"), member(raw, "source")
		if id == "" || source == "" || member(raw, "type") == "" || member(raw, "specversion") == "" {
			return nil, errAttributes
		}
		deliveries[i] = Delivery{ID: source + "#" + id, Body: raw} // only both together tell events apart
	}
	return deliveries, nil
}

// binary returns the event of a request in binary mode.
func binary(h http.Header, contentType string, body []byte) ([]byte, error) {
	event := map[string]any{}
	for name, values := range h {
		attribute, ok := strings.CutPrefix(strings.ToLower(name), "ce-")
		if !ok || len(values) != 1 || attribute == "data" || attribute == "data_base64" {
			continue
		}
		value, err := url.PathUnescape(values[0])
		if err != nil {
			value = values[0]
		}
		event[attribute] = strings.ToValidUTF8(value, "\uFFFD")
	}
	if contentType != "" {
		event["datacontenttype"] = contentType
	}
	switch {
	case len(body) == 0:
	case contentType == "" || contentType == "application/json" || strings.HasSuffix(contentType, "+json"):
		if !jsontext.Value(body).IsValid(jsonOptions...) {
			return nil, errNotJSON
		}
		event["data"] = json.RawMessage(body)
	case strings.HasPrefix(contentType, "text/"):
		event["data"] = strings.ToValidUTF8(string(body), "\uFFFD")
	default:
		event["data_base64"] = base64.StdEncoding.EncodeToString(body)
	}
	// In the order of the names, and the data as it came: what is sent again is the same. json.Marshal would change numbers
	// no more than this, but not take duplicate names as they are.
	out := []byte{'{'}
	for i, name := range slices.Sorted(maps.Keys(event)) {
		if i > 0 {
			out = append(out, ',')
		}
		out, _ = jsontext.AppendQuote(out, name) // a header's name
		out = append(out, ':')
		if raw, ok := event[name].(json.RawMessage); ok {
			out = append(out, raw...)
			continue
		}
		out, _ = jsontext.AppendQuote(out, event[name].(string)) // it is UTF-8
	}
	return append(out, '}'), nil
}

// eventGridNames are the members of Event Grid's schema that CloudEvents calls otherwise.
var eventGridNames = map[string]string{"topic": "source", "eventType": "type", "eventTime": "time"}

// eventGrid returns the events of a request in Azure Event Grid's own schema.
func eventGrid(body []byte) ([]Delivery, error) {
	list, err := elements(body)
	if err != nil {
		return nil, err
	}
	var deliveries []Delivery
	for _, raw := range list {
		var event map[string]json.RawMessage
		if err := json.Unmarshal(raw, &event); err != nil {
			return nil, errNotCloudEvent
		}
		for theirs, ours := range eventGridNames {
			if v, ok := event[theirs]; ok {
				event[ours] = v
				delete(event, theirs)
			}
		}
		event["specversion"] = json.RawMessage(`"1.0"`)
		text, err := json.Marshal(event)
		if err != nil {
			return nil, errNotCloudEvent
		}
		d, err := structured(text, false)
		if err != nil {
			return nil, err
		}
		deliveries = append(deliveries, d...)
	}
	return deliveries, nil
}

// Allow adds to h what CloudEvents' "HTTP 1.1 Web Hooks for Event Delivery", section 4, asks of whoever allows the sender of
// r to send. It is false if r does not ask.
func Allow(h http.Header, r *http.Request) bool {
	origin := r.Header.Get("WebHook-Request-Origin")
	if origin == "" {
		return false
	}
	h.Set("WebHook-Allowed-Origin", origin)
	h.Set("WebHook-Allowed-Rate", "*")
	h.Set("Allow", "POST, OPTIONS")
	return true
}

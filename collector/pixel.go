package collector

import (
	"bytes"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json/jsontext"
)

// The pixel: GET /v1/pixel/track?data=<base64 of the JSON>, or ?userId=ada&event=Opened&properties.subject=…. It is
// always 200 and a picture, since what loads it can do nothing about an error; X-Event-Status tells whoever looks. It
// waits until the event is durable all the same.

var gif = []byte("GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;")

// pixel returns a handler that takes one of some calls from sources that take one of some dialects.
func (h *Handler) pixel(calls []string, dialects ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Event-Status", h.pixelStatus(r, calls, dialects))
		h.requests.WithLabelValues("pixel", strconv.Itoa(http.StatusOK)).Inc()
		writeGIF(w, http.StatusOK)
	}
}

// pixelStatus takes the event and returns "accepted", or what became of it and why.
func (h *Handler) pixelStatus(r *http.Request, calls, dialects []string) string {
	received := now()
	call := chi.URLParam(r, "call")
	if !slices.Contains(calls, call) {
		return "rejected; unknown_type"
	}
	text, err := pixelEvent(r.URL.RawQuery)
	if err != nil {
		return "rejected; " + err.Error()
	}
	if r.URL.Query().Get("visitor") == "new" {
		text = ofNewVisitor(text, r)
	}
	env, err := parseEnvelope(text, false, 0)
	if err != nil {
		return "rejected; malformed_json"
	}
	g, known, err := h.authorize(r, env.writeKey)
	switch {
	case errors.Is(err, ErrNoDirectory):
		return resultUnavailable
	case err != nil || !known:
		return "unauthorized"
	case g.mustSpeak(dialects...) != nil:
		return "rejected; dialect_off"
	}
	results, err := h.in.take(r.Context(), g, h.shared(r, received, g), []incoming{{raw: text, kind: kindOf(call)}})
	if err != nil {
		return resultUnavailable
	}
	if results[0].Status == Rejected {
		return "rejected; " + results[0].Code
	}
	return Accepted
}

var (
	errPixelQuery    = errors.New("malformed_query")
	errPixelData     = errors.New("malformed_data")
	errPixelConflict = errors.New("conflicting_members")
)

// pixelEvent returns the JSON of the event in a query.
func pixelEvent(rawQuery string) ([]byte, error) {
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, errPixelQuery
	}
	if data := query.Get("data"); data != "" {
		text, err := decodeBase64(data)
		if err != nil {
			return nil, errPixelData
		}
		return trimBOM(text), nil
	}
	root := &pixelObject{}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		if name == "data" || name == "writekey" || name == "visitor" {
			continue
		}
		if !root.set(strings.Split(name, "."), query.Get(name)) {
			return nil, errPixelConflict
		}
	}
	return root.appendTo(nil), nil
}

// ofNewVisitor returns the event of a browser without scripts, which knows neither who its visitor is nor how to tell what
// it shows. What the event says itself goes before.
func ofNewVisitor(text []byte, r *http.Request) []byte {
	rest, ok := bytes.CutPrefix(text, []byte("{"))
	if !ok {
		return text
	}
	page := &pixelObject{}
	page.set([]string{"anonymousId"}, newMessageID())
	page.set([]string{"context", "page", "url"}, r.Referer())
	page.set([]string{"context", "userAgent"}, r.UserAgent())
	b := page.appendTo(nil)
	if len(bytes.TrimSpace(rest)) > 1 {
		b[len(b)-1] = ','
		return append(b, rest...)
	}
	return b
}

// pixelObject is an object whose members are strings or objects.
type pixelObject struct {
	names   []string
	strings map[string]string
	objects map[string]*pixelObject
}

// set puts a string at a path. It is false if there is an object already, or a string where an object has to be.
func (o *pixelObject) set(path []string, value string) bool {
	for i, name := range path {
		_, isString := o.strings[name]
		child, isObject := o.objects[name]
		last := i == len(path)-1
		if isString || isObject && last || i > maxDepth {
			return false
		}
		if o.strings == nil {
			o.strings, o.objects = make(map[string]string), make(map[string]*pixelObject)
		}
		if !isObject {
			o.names = append(o.names, name)
		}
		if last {
			o.strings[name] = value
			return true
		}
		if !isObject {
			child = &pixelObject{}
			o.objects[name] = child
		}
		o = child
	}
	return true
}

func (o *pixelObject) appendTo(b []byte) []byte {
	b = append(b, '{')
	for i, name := range o.names {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, name) // what is not UTF-8 becomes U+FFFD
		b = append(b, ':')
		if child := o.objects[name]; child != nil {
			b = child.appendTo(b)
		} else {
			b, _ = jsontext.AppendQuote(b, o.strings[name])
		}
	}
	return append(b, '}')
}

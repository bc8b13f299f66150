package collector

import (
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Umami's collection API: one event to /api/send, many to /api/batch. The website's id is the write key. Umami knows no
// visitors but by a hash of address and browser; so do we, see [visitor], unless the page names the person by an id. Its
// trackers never send an event again.

func (h *Handler) umamiRoutes(r chi.Router) {
	post(r, "/api/send", h.answer(DialectUmami, h.umamiSend))
	post(r, "/api/batch", h.answer(DialectUmami, h.umamiBatch))
}

// umamiSend takes one event. The tracker shows sessionId and visitId to the page, and sends cache again in a header, of which
// nothing depends here.
func (h *Handler) umamiSend(w http.ResponseWriter, r *http.Request) error {
	received := now()
	body, err := readBody(w, r, h.cfg.MaxBodyBytes, &h.bytes)
	if err != nil {
		return err
	}
	defer body.release()
	value, err := parseBody(trimBOM(body.Bytes()))
	if err != nil {
		return err
	}
	t := umamiTranslator{received: received, from: h.client(r)}
	in := parcel{dialect: DialectUmami, received: received, address: addressIfAsked, calls: []call{t.call(value, 0)}}
	results, err := h.bring(r, in)
	if err != nil {
		return err
	}
	if noneAccepted(results) {
		return rejected(results)
	}
	text, err := json.Marshal(struct {
		Cache     string `json:"cache"`
		SessionID string `json:"sessionId"`
		VisitID   string `json:"visitId"`
	}{t.session + "." + t.visit, t.session, t.visit})
	if err != nil {
		return err
	}
	return writeJSON(w, text)
}

// umamiBatch takes many events, and tells what is wrong with each that was rejected.
func (h *Handler) umamiBatch(w http.ResponseWriter, r *http.Request) error {
	received := now()
	body, err := readBody(w, r, h.cfg.MaxBodyBytes, &h.bytes)
	if err != nil {
		return err
	}
	defer body.release()
	value, err := parseBody(trimBOM(body.Bytes()))
	if err != nil {
		return err
	}
	list, ok := elements(value)
	if !ok {
		return malformed("wrong_type", "#", "must be an array")
	}
	t := umamiTranslator{received: received, from: h.client(r)}
	in := parcel{dialect: DialectUmami, received: received, address: addressIfAsked, path: []string{}}
	for i, raw := range list {
		in.calls = append(in.calls, t.call(raw, i))
	}
	results, err := h.bring(r, in)
	if err != nil {
		return err
	}
	type failure struct {
		Index    int               `json:"index"`
		Response map[string]string `json:"response"`
	}
	answer := struct {
		Size      int       `json:"size"`
		Processed int       `json:"processed"`
		Errors    int       `json:"errors"`
		Details   []failure `json:"details"`
		Cache     string    `json:"cache"`
	}{Size: len(results), Details: []failure{}}
	for i, res := range results {
		if res.Status == Accepted {
			answer.Processed++
			continue
		}
		answer.Errors++
		answer.Details = append(answer.Details, failure{i, map[string]string{"code": res.Code, "message": res.Reason}})
	}
	if answer.Processed > 0 {
		answer.Cache = t.session + "." + t.visit
	}
	text, err := json.Marshal(answer, json.Deterministic(true))
	if err != nil {
		return err
	}
	return writeJSON(w, text)
}

// umamiTranslator turns calls of one request into events, and notes whom the last one was about.
type umamiTranslator struct {
	received       time.Time
	from           *client
	session, visit string
}

func (t *umamiTranslator) call(raw jsontext.Value, index int) call {
	e, f := parseObject(raw)
	var payload object
	if f == nil {
		if payload, f = parseObject(e["payload"]); f != nil {
			f = f.in("payload")
		}
	}
	if f != nil {
		return call{translate: func(Grant) ([]*draft, *fault) { return nil, f }}
	}
	key := payload.takeText("website", "link", "pixel")
	return call{key: key, translate: func(g Grant) ([]*draft, *fault) {
		if !wellFormed(key) {
			payload.setText("website", key) // the write key is elsewhere
		}
		return t.event(g, e.text("type"), payload, raw, index)
	}}
}

var umamiPlaces = []place{
	{from: "title", in: "page", to: "title"},
	{from: "referrer", in: "page", to: "referrer"},
	{from: "language", to: "locale"},
	{from: "userAgent", to: "userAgent"},
	{from: "browser", in: "browser", to: "name"},
	{from: "os", in: "os", to: "name"},
	{from: "device", in: "device", to: "type"},
}

func (t *umamiTranslator) event(g Grant, kind string, payload object, raw jsontext.Value, index int) ([]*draft, *fault) {
	d := newDraft("track")
	data := payload.child("data")
	if data != nil {
		delete(payload, "data")
	}
	switch kind {
	case "event":
		if d.event = payload.takeText("name"); d.event == "" {
			d.kind = "page"
		}
		d.properties.fill(data)
	case "identify":
		d.kind = "identify"
		d.traits.fill(data)
	case "performance":
		d.event = "performance"
		d.move(payload, []place{
			{from: "lcp", in: inProperties, to: "lcp"},
			{from: "inp", in: inProperties, to: "inp"},
			{from: "cls", in: inProperties, to: "cls"},
			{from: "fcp", in: inProperties, to: "fcp"},
			{from: "ttfb", in: inProperties, to: "ttfb"},
			{from: "duration", in: inProperties, to: "duration"},
		})
	default:
		return nil, (&fault{code: "unknown_type", reason: "must be event, identify or performance"}).in("type")
	}
	ip, agent := t.from.ip, t.from.userAgent
	if own := payload.text("ip"); own != "" { // a server speaks for the visitor
		ip = own
	}
	if own := payload.text("userAgent"); own != "" {
		agent = own
	}
	when := t.received
	if own, ok := parseTime(payload["timestamp"]); ok {
		when = own
	}
	t.session = visitor(g, when, "", ip, agent)
	delete(payload, "ip") // told by the hash
	if d.userID = payload.takeText("id"); d.userID == "" || kind == "identify" && t.from.page {
		// Address and browser are shared by a household or, of a server, by everybody: only a browser in which somebody says
		// who they are is taken to be theirs.
		d.anonymousID = t.session
	}
	t.visit = visitor(g, when, "visit "+strconv.Itoa(when.UTC().Hour()), ip, agent) // Umami's visits begin anew each hour
	at := payload.text("timestamp")
	d.timestamp = payload.take("timestamp") // seconds
	if at == "" {
		at = second(t.received)
	}
	d.messageID = derivedID(DialectUmami, at, t.session, strconv.Itoa(index), string(raw))

	host := payload.text("hostname")
	if address := payload.takeText("url"); address != "" {
		d.in("page").setText("url", absolute(address, host))
	}
	d.screen(payload.takeText("screen"))
	d.move(payload, umamiPlaces)
	t.from.describe(d, true)
	d.in("umami").fill(payload)
	return []*draft{d}, nil
}

// absolute returns an address that may be only a path on a host.
func absolute(address, host string) string {
	if host == "" || len(address) == 0 || address[0] != '/' {
		return address
	}
	return "https://" + host + address
}

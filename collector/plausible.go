package collector

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json/jsontext"
)

// Plausible's events API: one event to /api/event, as JSON of type text/plain. The domain is the write key, or the endpoint
// that the tracker is given has it as writeKey. Plausible knows no visitors but by a hash of address and browser; so do we, see
// [visitor]. Its tracker never sends an event again, and takes no notice of the answer.

func (h *Handler) plausibleRoutes(r chi.Router) {
	post(r, "/api/event", h.answer(DialectPlausible, h.plausible))
}

func (h *Handler) plausible(w http.ResponseWriter, r *http.Request) error {
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
	in := parcel{dialect: DialectPlausible, received: received, address: addressIfAsked}
	e, f := parseObject(value)
	c := call{translate: func(Grant) ([]*draft, *fault) { return nil, f }}
	if f == nil {
		c.key, _, _ = strings.Cut(cmp.Or(e.text("d"), e.text("domain")), ",") // several sites: the first counts
		from := h.client(r)
		c.translate = func(g Grant) ([]*draft, *fault) { return plausibleEvent(g, e, value, from, received) }
	}
	in.calls = []call{c}
	results, err := h.bring(r, in)
	if err != nil {
		return err
	}
	if noneAccepted(results) {
		w.Header().Set("X-Plausible-Dropped", "1")
		return rejected(results)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusAccepted)
	_, _ = w.Write([]byte("ok")) // the client is gone: it would not have looked
	return nil
}

func plausibleEvent(g Grant, e object, raw jsontext.Value, from *client, received time.Time) ([]*draft, *fault) {
	sites := slices.DeleteFunc(strings.Split(e.takeText("d", "domain"), ","), wellFormed) // write keys are not for storage
	domain := strings.Join(sites, ",")
	d := newDraft("track")
	switch name := e.takeText("n", "name"); name {
	case "":
		return nil, &fault{code: "missing_event", reason: "needs the name of an event, n"}
	case "pageview":
		d.kind = "page"
	default:
		d.event = name
	}
	d.anonymousID = visitor(g, received, domain, from.ip, from.userAgent)
	d.messageID = derivedID(DialectPlausible, second(received), d.anonymousID, string(raw))

	props := e.take("p", "props", "m", "meta")
	if props.Kind() == '"' { // older trackers send the JSON of it
		props = jsontext.Value(scalar(props))
	}
	if len(props) > 0 {
		own, f := parseObject(props)
		if f != nil {
			return nil, f.in("props")
		}
		d.properties.fill(own)
	}
	revenue := e.take("$", "revenue")
	if revenue.Kind() == '"' {
		revenue = jsontext.Value(scalar(revenue))
	}
	if revenue.Kind() == '{' {
		if own, f := parseObject(revenue); f == nil {
			d.move(own, []place{
				{from: "amount", in: inProperties, to: "revenue", number: true}, {from: "currency", in: inProperties, to: "currency"},
			})
		}
	}
	d.move(e, []place{
		{from: "u", in: "page", to: "url"},
		{from: "url", in: "page", to: "url"},
		{from: "r", in: "page", to: "referrer"},
		{from: "referrer", in: "page", to: "referrer"},
		{from: "w", in: "screen", to: "width"},
		{from: "screen_width", in: "screen", to: "width"},
	})
	if d.event == "engagement" {
		d.move(e, []place{{from: "e", in: inProperties, to: "engagement_time"}, {from: "sd", in: inProperties, to: "scroll_depth"}})
	}
	if u, err := url.Parse(d.in("page").text("url")); err == nil {
		d.referral(u.Query())
	}
	from.describe(d, true)
	d.in("plausible").setText("domain", domain)
	d.in("plausible").fill(e)
	return []*draft{d}, nil
}

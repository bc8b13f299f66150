package collector

import (
	"cmp"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
)

// GoatCounter's counting: GET or POST /count with one hit in the query, and POST /api/v0/count with many. Its script adds a
// query to the endpoint that it is given, which can therefore have none itself: the write key is the last part of the path,
// /count/{key}. GoatCounter knows no visitors but by a hash of address and browser; so do we, see [visitor].

func (h *Handler) goatcounterRoutes(r chi.Router) {
	for _, path := range []string{"/count", "/count/{key}"} {
		post(r, path, h.answer(DialectGoatCounter, h.goatcounter))
		r.Get(path, h.answer(DialectGoatCounter, h.goatcounter))
	}
	post(r, "/api/v0/count", h.answer(DialectGoatCounter, h.goatcounterAPI))
}

// goatcounter takes the hit in the query. X-Goatcounter tells why one was rejected.
func (h *Handler) goatcounter(w http.ResponseWriter, r *http.Request) error {
	received := now()
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return malformed("malformed_query", "#", "is not a query")
	}
	delete(query, "writeKey")
	hit := queryObject(query)
	t := goatcounterTranslator{received: received, from: h.client(r)}
	in := parcel{dialect: DialectGoatCounter, received: received, address: addressIfAsked, key: chi.URLParam(r, "key")}
	in.calls = []call{{translate: func(g Grant) ([]*draft, *fault) { return t.event(g, hit, 0) }}}
	results, err := h.bring(r, in)
	if err != nil {
		return err
	}
	w.Header().Set("X-Event-Status", eventStatus(results))
	if noneAccepted(results) {
		w.Header().Set("X-Goatcounter", "not valid: "+results[0].Code)
		writeGIF(w, http.StatusBadRequest)
		return nil
	}
	writeGIF(w, http.StatusOK)
	return nil
}

// goatcounterAPI takes many hits. Of its answer, errors has those that were rejected by their place in the list.
func (h *Handler) goatcounterAPI(w http.ResponseWriter, r *http.Request) error {
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
	envelope, err := envelopeOf(value)
	if err != nil {
		return err
	}
	list, ok := elements(envelope["hits"])
	if !ok {
		return malformed("missing_batch", "#/hits", "is required: the list of the hits")
	}
	t := goatcounterTranslator{received: received, from: h.client(r), server: true}
	in := parcel{dialect: DialectGoatCounter, received: received, address: addressNever, path: []string{"hits"}}
	for i, raw := range list {
		hit, f := parseObject(raw)
		in.calls = append(in.calls, call{translate: func(g Grant) ([]*draft, *fault) {
			if f != nil {
				return nil, f
			}
			return t.event(g, hit, i)
		}})
	}
	results, err := h.bring(r, in)
	if err != nil {
		return err
	}
	if noneAccepted(results) {
		return rejected(results)
	}
	failures := object{}
	for i, res := range results {
		if res.Status == Rejected {
			failures[strconv.Itoa(i)] = quoted(res.Reason)
		}
	}
	answer := object{}
	if len(failures) > 0 {
		answer["errors"] = failures.raw()
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_, _ = w.Write(answer.raw()) // the client is gone: it will send the hits again
	return nil
}

type goatcounterTranslator struct {
	received time.Time
	from     *client
	server   bool // who sends is not who visits
}

// goatcounterPlaces are the members of a hit, by the script's names and by the API's.
var goatcounterPlaces = []place{
	{from: "t", in: "page", to: "title"},
	{from: "title", in: "page", to: "title"},
	{from: "r", in: "page", to: "referrer"},
	{from: "ref", in: "page", to: "referrer"},
	{from: "language", to: "locale"},
	{from: "user_agent", to: "userAgent"},
	{from: "location", in: "location", to: "country"},
}

func (t *goatcounterTranslator) event(g Grant, hit object, index int) ([]*draft, *fault) {
	d := newDraft("page")
	nonce := cmp.Or(hit.text("rnd"), hit.text("created_at"))
	if nonce == "" {
		nonce = second(t.received)
	}
	said := string(hit.raw())
	path := hit.takeText("p", "path")
	if strings.TrimSpace(path) == "" {
		return nil, &fault{code: "missing_path", reason: "needs a path, p"}
	}
	if len(path) > 2048 {
		return nil, &fault{code: "too_large", reason: "has a path longer than 2048 bytes"}
	}
	ip, agent := t.from.ip, t.from.userAgent
	if t.server {
		ip, agent = hit.text("ip"), hit.text("user_agent")
	}
	at := t.received
	if d.timestamp = hit.take("created_at"); d.timestamp != nil {
		if own, ok := parseTime(d.timestamp); ok {
			at = own
		}
	}
	switch session := hit.takeText("session"); {
	case session != "":
		d.anonymousID = visitor(g, at, "session "+session, "", "")
	case ip != "" || agent != "":
		d.anonymousID = visitor(g, at, "", ip, agent)
	}
	delete(hit, "ip") // told by the hash
	// The script sends by sendBeacon or, if that is refused, the same once more as a picture: with the same random number.
	d.messageID = derivedID(DialectGoatCounter, nonce, d.anonymousID, strconv.Itoa(index), said)

	if truth(hit.take("e", "event")) {
		d.kind, d.event = "track", path
	} else {
		page := d.in("page")
		page.setText("path", path)
		if site, err := url.Parse(t.from.referrer); err == nil && site.Host != "" && !t.server && strings.HasPrefix(path, "/") {
			page.setText("url", site.Scheme+"://"+site.Host+path)
		}
	}
	if search := strings.TrimPrefix(hit.takeText("q", "query"), "?"); search != "" {
		d.in("page").setText("search", "?"+search)
		if query, err := url.ParseQuery(search); err == nil {
			d.in("campaign").fill(campaign(query))
			d.referral(query)
		}
	}
	if size := hit.take("s", "size"); size.Kind() == '[' {
		numbers, _ := elements(size)
		for i, name := range []string{"width", "height", "density"} {
			if i < len(numbers) {
				d.in("screen")[name] = numeric(numbers[i])
			}
		}
	} else {
		d.screen(scalar(size))
	}
	d.move(hit, goatcounterPlaces)
	if d.kind == "track" {
		if title := d.in("page").take("title"); title != nil {
			d.properties["title"] = title
		}
	}
	t.from.describe(d, !t.server)
	delete(hit, "rnd")
	d.in("goatcounter").fill(hit)
	return []*draft{d}, nil
}

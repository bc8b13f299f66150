package collector

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Matomo's tracking HTTP API: one action as a query or a form, or {"requests": [queries]}. The site's id, idsite, is the write
// key. The names of the parameters are those of Matomo's "Tracking HTTP API" reference.

func (h *Handler) matomoRoutes(r chi.Router) {
	for _, path := range []string{"/matomo.php", "/piwik.php"} {
		post(r, path, h.answer(DialectMatomo, h.matomo))
		r.Get(path, h.answer(DialectMatomo, h.matomo))
	}
}

// matomo takes one action and answers with a picture, or with nothing if asked so; or many, and answers how many were taken.
func (h *Handler) matomo(w http.ResponseWriter, r *http.Request) error {
	received := now()
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return malformed("malformed_query", "#", "is not a query")
	}
	if r.Method == http.MethodPost {
		body, err := readBody(w, r, h.cfg.MaxBodyBytes, &h.bytes)
		if err != nil {
			return err
		}
		defer body.release()
		text := strings.TrimSpace(string(trimBOM(body.Bytes())))
		if strings.HasPrefix(text, "{") {
			return h.matomoBulk(w, r, received, []byte(text))
		}
		form, err := url.ParseQuery(strings.TrimPrefix(text, "?"))
		if err != nil {
			return malformed("malformed_query", "#", "is neither a form nor JSON")
		}
		for name, values := range form {
			query[name] = values
		}
	}
	t := matomoTranslator{received: received, from: h.client(r)}
	results, err := h.bring(r, parcel{dialect: DialectMatomo, received: received, calls: []call{t.call(query, 0)}})
	if err != nil {
		return err
	}
	w.Header().Set("X-Event-Status", eventStatus(results))
	switch {
	case noneAccepted(results):
		return rejected(results)
	case query.Get("send_image") == "0":
		w.WriteHeader(http.StatusNoContent)
	default:
		writeGIF(w, http.StatusOK)
	}
	return nil
}

func (h *Handler) matomoBulk(w http.ResponseWriter, r *http.Request, received time.Time, text []byte) error {
	value, err := parseBody(text)
	if err != nil {
		return err
	}
	envelope, err := envelopeOf(value)
	if err != nil {
		return err
	}
	list, ok := elements(envelope["requests"])
	if !ok {
		return malformed("missing_batch", "#/requests", "is required: the list of the queries")
	}
	t := matomoTranslator{received: received, from: h.client(r)}
	in := parcel{dialect: DialectMatomo, received: received, path: []string{"requests"}}
	for i, raw := range list {
		query, err := matomoRequest(raw)
		if err != nil {
			f := &fault{code: "malformed_query", reason: "is not a query"}
			in.calls = append(in.calls, call{translate: func(Grant) ([]*draft, *fault) { return nil, f }})
			continue
		}
		in.calls = append(in.calls, t.call(query, i))
	}
	results, err := h.bring(r, in)
	if err != nil {
		return err
	}
	answer := struct {
		Status  string `json:"status"`
		Tracked int    `json:"tracked"`
		Invalid int    `json:"invalid"`
		Indices []int  `json:"invalid_indices"`
	}{Status: "success", Indices: []int{}}
	for i, res := range results {
		if res.Status == Accepted {
			answer.Tracked++
			continue
		}
		answer.Invalid++
		answer.Indices = append(answer.Indices, i)
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	w.Header().Set("X-Event-Status", eventStatus(results))
	return writeJSON(w, body)
}

var errMatomoQuery = errors.New("not a query")

// matomoRequest reads one request of many: a query, or an object of the same parameters.
func matomoRequest(raw jsontext.Value) (url.Values, error) {
	if raw.Kind() != '{' {
		text := scalar(raw)
		if _, query, ok := strings.Cut(text, "?"); ok {
			text = query
		}
		return url.ParseQuery(text)
	}
	o, f := parseObject(raw)
	if f != nil {
		return nil, errMatomoQuery
	}
	query := url.Values{}
	for name, value := range o {
		text := scalar(value)
		if text == "" {
			text = string(value)
		}
		query.Set(name, text)
	}
	return query, nil
}

type matomoTranslator struct {
	received time.Time
	from     *client
}

func (t *matomoTranslator) call(query url.Values, index int) call {
	key := query.Get("idsite")
	return call{key: key, translate: func(g Grant) ([]*draft, *fault) { return t.action(g, query, index) }}
}

var matomoPlaces = []place{
	{from: "url", in: "page", to: "url"},
	{from: "urlref", in: "page", to: "referrer"},
	{from: "action_name", in: "page", to: "title"},
	{from: "ua", to: "userAgent"},
	{from: "lang", to: "locale"},
	{from: "cip", to: "ip"},
	{from: "_rcn", in: "campaign", to: "name"},
	{from: "_rck", in: "campaign", to: "term"},
	{from: "country", in: "location", to: "country"},
	{from: "region", in: "location", to: "region"},
	{from: "city", in: "location", to: "city"},
	{from: "lat", in: "location", to: "latitude", number: true},
	{from: "long", in: "location", to: "longitude", number: true},
}

var matomoEvent = []place{
	{from: "e_c", in: inProperties, to: "category"},
	{from: "e_n", in: inProperties, to: "label"},
	{from: "e_v", in: inProperties, to: "value", number: true},
}

var matomoSearch = []place{
	{from: "search", in: inProperties, to: "query"},
	{from: "search_cat", in: inProperties, to: "category"},
	{from: "search_count", in: inProperties, to: "results", number: true},
}

var matomoOrder = []place{
	{from: "ec_id", in: inProperties, to: "order_id"},
	{from: "revenue", in: inProperties, to: "revenue", number: true},
	{from: "ec_st", in: inProperties, to: "subtotal", number: true},
	{from: "ec_tx", in: inProperties, to: "tax", number: true},
	{from: "ec_sh", in: inProperties, to: "shipping", number: true},
	{from: "ec_dt", in: inProperties, to: "discount", number: true},
	{from: "ec_currency", in: inProperties, to: "currency"},
}

var matomoProduct = []place{
	{from: "_pks", in: inProperties, to: "product_id"},
	{from: "_pkn", in: inProperties, to: "name"},
	{from: "_pkc", in: inProperties, to: "category"},
	{from: "_pkp", in: inProperties, to: "price", number: true},
}

// action returns what the request at an index of Matomo's says: one event, and if a page shows a product also that.
func (t *matomoTranslator) action(g Grant, query url.Values, index int) ([]*draft, *fault) {
	if !truth(quoted(query.Get("rec"))) {
		return nil, &fault{code: "not_recorded", reason: "needs rec=1"}
	}
	e := queryObject(query)
	if key := e.text("idsite"); wellFormed(key) {
		delete(e, "idsite") // not for storage, like the others
	}
	for _, name := range []string{"rec", "token_auth", "writeKey", "send_image", "apiv"} {
		delete(e, name)
	}
	d := newDraft("track")
	at := t.date(d, e)
	d.userID = e.takeText("uid")
	device := e.takeText("_id")
	if d.anonymousID = cmp.Or(e.takeText("cid"), device); d.anonymousID == "" && d.userID == "" { // Matomo takes a fingerprint then
		d.anonymousID = visitor(g, at, "", cmp.Or(e.text("cip"), t.from.ip), cmp.Or(e.text("ua"), t.from.userAgent))
	}
	d.messageID = matomoMessageID(d, query, at, index)
	d.screen(e.takeText("res"))
	hints := e.takeText("uadata")
	if hints != "" && jsontext.Value(hints).IsValid() {
		d.in("")["userAgentData"] = jsontext.Value(hints)
	}
	if truth(e.take("consent")) { // sent where a page asks for consent to tracking, and has it
		d.consent["analytics_storage"] = jsontext.Value("true")
	}
	d.move(e, matomoPlaces)
	for name := range e {
		if strings.HasPrefix(name, "dimension") {
			d.properties.set(name, e.take(name))
		}
	}
	for name, to := range map[string]string{"cvar": "custom_variables", "_cvar": "visit_custom_variables", "e_cvar": "event_custom_variables"} {
		if text := jsontext.Value(e.text(name)); len(text) > 0 && text.IsValid() {
			d.properties[to] = text
			delete(e, name)
		}
	}
	t.from.describe(d, true)
	drafts := []*draft{d}
	goal, isGoal := e["idgoal"]
	switch {
	case e.text("e_a") != "":
		d.event = e.takeText("e_a")
		d.move(e, matomoEvent)
	case e.text("search") != "":
		d.event = "Site Search"
		d.move(e, matomoSearch)
	case isGoal && scalar(goal) == "0":
		delete(e, "idgoal")
		d.event = "Cart Updated"
		if e.text("ec_id") != "" {
			d.event = "Order Completed"
		}
		d.properties.set("products", matomoItems(e))
		d.move(e, matomoOrder)
		d.properties.set("total", d.properties["revenue"])
		if d.event == "Cart Updated" {
			d.properties.set("value", d.properties.take("revenue"))
			delete(d.properties, "total")
		}
	case isGoal:
		d.event = "Goal Converted"
		d.move(e, []place{{from: "idgoal", in: inProperties, to: "goal_id"}, {from: "revenue", in: inProperties, to: "revenue", number: true}})
	case e.text("link") != "":
		d.event = "Outlink"
		d.properties.set("url", e.take("link"))
	case e.text("download") != "":
		d.event = "Download"
		d.properties.set("url", e.take("download"))
	case e.text("c_n") != "":
		d.event = "Content Impression"
		if e.text("c_i") != "" {
			d.event = "Content Interaction"
		}
		d.move(e, []place{
			{from: "c_n", in: inProperties, to: "content_name"},
			{from: "c_p", in: inProperties, to: "content_piece"},
			{from: "c_t", in: inProperties, to: "content_target"},
			{from: "c_i", in: inProperties, to: "interaction"},
		})
	case e.text("ping") == "1":
		d.event = "Heartbeat"
	case e.text("ma_id") != "":
		d.event = "Media"
	default:
		d.kind = "page"
		if e.text("_pks") != "" || e.text("_pkn") != "" || e.text("_pkc") != "" {
			product := d.also("track", "-product")
			product.event = "Product Viewed"
			if e.text("_pks") == "" && e.text("_pkn") == "" {
				product.event = "Product List Viewed"
			}
			product.move(e, matomoProduct)
			if list := jsontext.Value(product.properties.text("category")); list.Kind() == '[' && list.IsValid() { // of several
				product.properties["category"] = list
			}
			drafts = append(drafts, product)
		}
	}
	d.in("matomo").fill(e)
	return drafts, nil
}

// date sets the time of the action and returns it: cdt is one in UTC, or seconds since 1970; cdo is how many seconds ago it
// was, which the tracker tells of what it kept while there was no network. Without either it is the time of reception.
func (t *matomoTranslator) date(d *draft, e object) time.Time {
	d.timestamp = e.take("cdt")
	ago, err := strconv.ParseInt(e.takeText("cdo"), 10, 64)
	if err == nil && d.timestamp == nil && ago >= 0 && ago < int64(10*365*24*time.Hour/time.Second) {
		at := t.received.Add(-time.Duration(ago) * time.Second)
		d.timestamp = appendTime(nil, at)
		return at
	}
	if at, ok := parseTime(d.timestamp); ok {
		return at
	}
	return t.received
}

// matomoMessageID returns one that is the same when the tracker sends the same again, if the request has anything that tells it
// from its twins: Matomo's script adds a random number, and others may give the time or how long ago it was. Without a random
// number the action's second, its visitor and its place in the request tell it from the others.
func matomoMessageID(d *draft, query url.Values, at time.Time, index int) string {
	said := url.Values{}
	for name, values := range query {
		switch name {
		case "cdo", "send_image", "token_auth", "writeKey": // a retry may have others
		default:
			said[name] = values
		}
	}
	if nonce := cmp.Or(query.Get("r"), query.Get("rand")); nonce != "" {
		return derivedID(DialectMatomo, nonce, said.Encode())
	}
	return derivedID(DialectMatomo, second(at), d.userID, d.anonymousID, strconv.Itoa(index), said.Encode())
}

// matomoItems takes the items of an order: [[sku, name, category or list of them, price, quantity], …], of which what is behind
// the sku may be missing. What is not of that form stays.
func matomoItems(e object) jsontext.Value {
	var items [][]jsontext.Value
	if json.Unmarshal([]byte(e.text("ec_items")), &items, jsonOptions...) != nil {
		return nil
	}
	delete(e, "ec_items")
	var products []jsontext.Value
	for _, item := range items {
		product := object{}
		for i, value := range item {
			if value.Kind() == 'n' || scalar(value) == "" && value.Kind() == '"' {
				continue
			}
			switch i {
			case 0:
				product.setText("product_id", scalar(value))
			case 1:
				product["name"] = value
			case 2:
				product["category"] = value
			case 3:
				product["price"] = numeric(value)
			case 4:
				product["quantity"] = numeric(value)
			}
		}
		products = append(products, product.raw())
	}
	return array(products)
}

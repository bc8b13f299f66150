package collector

import (
	"cmp"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json/jsontext"
)

// Snowplow's tracker protocol: POST …/tp2 with a list of events whose members are all strings, or GET with one of them as the
// query. The app id, aid, is the write key, unless a header or the query has one. Self-describing events and entities come
// as JSON or as base64 of it.

func (h *Handler) snowplowRoutes(r chi.Router) {
	const path = "/com.snowplowanalytics.snowplow/tp2"
	serve := h.answer(DialectSnowplow, h.snowplowGet)
	post(r, path, h.answer(DialectSnowplow, h.snowplowPost))
	r.Get(path, serve)
	r.Head(path, serve)
	get(r, "/i", serve)
	r.Head("/i", serve)
}

// snowplowPost takes many events. Its answer is 200 also if some, or all, of them are rejected: trackers keep what was
// answered otherwise and send it again, some of them for ever, and nothing about the events would be different then.
func (h *Handler) snowplowPost(w http.ResponseWriter, r *http.Request) error {
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
	payload, err := envelopeOf(value)
	if err != nil {
		return err
	}
	list, ok := elements(payload["data"])
	if !ok {
		return malformed("missing_batch", "#/data", "is required: the list of the events")
	}
	results, err := h.bring(r, h.snowplowParcel(r, received, list))
	if err != nil {
		return err
	}
	w.Header().Set("X-Event-Status", eventStatus(results))
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok")) // the client is gone: it will send the events again
	return nil
}

// snowplowGet takes the event in the query.
func (h *Handler) snowplowGet(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return malformed("malformed_query", "#", "is not a query")
	}
	delete(query, "writeKey")
	in := h.snowplowParcel(r, now(), []jsontext.Value{queryObject(query).raw()})
	in.path = nil
	results, err := h.bring(r, in)
	if err != nil {
		return err
	}
	w.Header().Set("X-Event-Status", eventStatus(results))
	writeGIF(w, http.StatusOK)
	return nil
}

func (h *Handler) snowplowParcel(r *http.Request, received time.Time, list []jsontext.Value) parcel {
	in := parcel{dialect: DialectSnowplow, received: received, path: []string{"data"}}
	t := snowplowTranslator{received: received, from: h.client(r), products: map[string][]jsontext.Value{}}
	if r.Header.Get("SP-Anonymous") != "" {
		in.address, t.anonymous = addressNever, true
	}
	for _, raw := range list {
		in.calls = append(in.calls, t.call(raw))
	}
	return in
}

// snowplowTranslator turns events of one request into ours.
type snowplowTranslator struct {
	received  time.Time
	from      *client
	anonymous bool                        // the tracker asks not to know who it is
	products  map[string][]jsontext.Value // of orders in the request, by the order's id
}

func (t *snowplowTranslator) call(raw jsontext.Value) call {
	e, f := parseObject(raw)
	if f != nil {
		return call{translate: func(Grant) ([]*draft, *fault) { return nil, f }}
	}
	if order := e.text("ti_id"); e.text("e") == "ti" && order != "" {
		item := newDraft("")
		copied := object{}
		copied.fill(e)
		item.move(copied, snowplowItem)
		t.products[order] = append(t.products[order], item.properties.raw())
	}
	key := e.text("aid")
	if wellFormed(key) {
		delete(e, "aid") // not for storage
	}
	return call{key: key, translate: func(g Grant) ([]*draft, *fault) {
		d, f := t.event(g, e, raw)
		return []*draft{d}, f
	}}
}

// snowplowPlaces are where the parameters go that all events have, as Snowplow Tracker Protocol names them.
var snowplowPlaces = []place{
	{from: "url", in: "page", to: "url"},
	{from: "page", in: "page", to: "title"},
	{from: "refr", in: "page", to: "referrer"},
	{from: "lang", to: "locale"},
	{from: "tz", to: "timezone"},
	{from: "ua", to: "userAgent"},
	{from: "ip", to: "ip"},
	{from: "sid", to: "sessionId"},
}

var snowplowStructured = []place{
	{from: "se_ca", in: inProperties, to: "category"},
	{from: "se_la", in: inProperties, to: "label"},
	{from: "se_pr", in: inProperties, to: "property"},
	{from: "se_va", in: inProperties, to: "value", number: true},
}

var snowplowOrder = []place{
	{from: "tr_id", in: inProperties, to: "order_id"},
	{from: "tr_af", in: inProperties, to: "affiliation"},
	{from: "tr_tt", in: inProperties, to: "revenue", number: true},
	{from: "tr_tx", in: inProperties, to: "tax", number: true},
	{from: "tr_sh", in: inProperties, to: "shipping", number: true},
	{from: "tr_cu", in: inProperties, to: "currency"},
	{from: "tr_ci", in: inProperties, to: "city"},
	{from: "tr_st", in: inProperties, to: "state"},
	{from: "tr_co", in: inProperties, to: "country"},
}

var snowplowItem = []place{
	{from: "ti_sk", in: inProperties, to: "product_id"},
	{from: "ti_nm", in: inProperties, to: "name"},
	{from: "ti_ca", in: inProperties, to: "category"},
	{from: "ti_pr", in: inProperties, to: "price", number: true},
	{from: "ti_qu", in: inProperties, to: "quantity", number: true},
	{from: "ti_cu", in: inProperties, to: "currency"},
}

// event returns what an event of Snowplow's says.
func (t *snowplowTranslator) event(g Grant, e object, raw jsontext.Value) (*draft, *fault) {
	d := newDraft("track")
	d.sentAt = e.take("stm")
	d.timestamp = e.take("ttm") // the true time, for which the tracker answers
	if d.timestamp != nil {
		d.sentAt = nil
		e.take("dtm")
	} else {
		d.timestamp = e.take("dtm")
	}
	d.messageID = e.takeText("eid")
	d.userID = e.takeText("uid")
	d.anonymousID = e.takeText("duid")
	network := e.takeText("tnuid", "nuid")
	if t.anonymous {
		network = ""
	}
	d.screen(e.takeText("res"))
	if tracker := e.takeText("tv"); tracker != "" {
		d.in("library").setText("name", "snowplow")
		d.in("library").setText("version", tracker)
	}
	d.move(e, snowplowPlaces)
	platform := e.text("p")

	kind := e.takeText("e")
	entities := t.entities(d, e)
	switch kind {
	case "":
		return nil, &fault{code: "missing_event", reason: "needs the kind of the event, e"}
	case "pv":
		d.kind = "page"
	case "pp":
		d.event = "page_ping"
	case "se":
		if d.event = e.takeText("se_ac"); d.event == "" {
			return nil, &fault{code: "missing_event", reason: "needs an action, se_ac"}
		}
		d.move(e, snowplowStructured)
	case "ue":
		if f := snowplowSelfDescribing(d, e, entities); f != nil {
			return nil, f
		}
	case "tr":
		d.event = "Order Completed"
		d.move(e, snowplowOrder)
		d.properties.set("total", d.properties["revenue"])
		order := d.properties.text("order_id")
		if products := t.products[order]; products != nil {
			d.properties["products"] = array(products)
			delete(t.products, order) // they are told once, however often a request names the order
		}
	case "ti":
		d.event = "transaction_item"
		d.properties.setText("order_id", e.takeText("ti_id"))
		d.move(e, snowplowItem)
	default:
		d.event = kind
	}
	if d.anonymousID == "" {
		d.anonymousID = snowplowDevice(entities)
	}
	if d.anonymousID == "" {
		d.anonymousID = network
	}
	if t.anonymous && d.anonymousID == "" { // what anonymous tracking by session leaves
		d.anonymousID = d.in("").text("sessionId")
	}
	if !t.anonymous && platform == "web" && d.userID == "" && d.anonymousID == "" { // a browser without scripts, or without storage
		d.anonymousID = t.visitor(g, d)
	}
	if d.messageID == "" {
		d.messageID = t.messageID(d, raw)
	}
	t.from.describe(d, platform == "" || platform == "web")
	d.in("snowplow").fill(e)
	d.in("snowplow").setText("networkUserId", network)
	return d, nil
}

// visitor returns the hash of the day for who sends an event.
func (t *snowplowTranslator) visitor(g Grant, d *draft) string {
	at, ok := parseTime(d.timestamp)
	if !ok {
		at = t.received
	}
	own := d.in("")
	return visitor(g, at, "", cmp.Or(own.text("ip"), t.from.ip), cmp.Or(own.text("userAgent"), t.from.userAgent))
}

// messageID returns one for an event that the tracker does not number: the pixel of pages without scripts is such a one.
func (t *snowplowTranslator) messageID(d *draft, raw jsontext.Value) string {
	at := scalar(d.timestamp)
	if at == "" {
		at = second(t.received)
	}
	untimed, _ := parseObject(raw) // it was parsed before
	delete(untimed, "stm")         // a retry has another
	return derivedID(DialectSnowplow, at, d.userID, d.anonymousID, string(untimed.raw()))
}

func array(values []jsontext.Value) jsontext.Value {
	b := []byte{'['}
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, v...)
	}
	return append(b, ']')
}

// entity is self-describing JSON.
type entity struct {
	name string // of the schema: "product" of iglu:com.snowplowanalytics.snowplow.ecommerce/product/jsonschema/1-0-0
	data object
}

// entityOf reads {"schema": …, "data": …}.
func entityOf(raw jsontext.Value) (e entity, schema string, ok bool) {
	o, f := parseObject(raw)
	if f != nil {
		return entity{}, "", false
	}
	schema = o.text("schema")
	parts := strings.Split(strings.TrimPrefix(schema, "iglu:"), "/")
	if len(parts) != 4 {
		return entity{}, "", false
	}
	e = entity{name: parts[1], data: o.child("data")}
	return e, schema, e.data != nil
}

// embedded takes what is in one member as JSON or in another as base64 of it.
func embedded(e object, plain, encoded string) (value jsontext.Value, ok bool) {
	text := []byte(e.text(plain))
	name := plain
	if len(text) == 0 {
		name = encoded
		text, _ = decodeBase64(e.text(encoded))
	}
	if value = text; len(text) == 0 || !value.IsValid(jsonOptions...) {
		return nil, false
	}
	delete(e, name)
	return value, true
}

// entities takes the entities that are attached to an event, and keeps them whole in the context. What is none stays.
func (t *snowplowTranslator) entities(d *draft, e object) (list []entity) {
	value, ok := embedded(e, "co", "cx")
	if !ok {
		return nil
	}
	o, f := parseObject(value)
	if f != nil {
		return nil
	}
	raws, _ := elements(o["data"])
	for _, raw := range raws {
		if entity, _, ok := entityOf(raw); ok {
			list = append(list, entity)
		}
	}
	d.in("snowplow").set("contexts", o["data"])
	for _, entity := range list {
		switch entity.name {
		case "mobile_context":
			d.move(entity.data, []place{
				{from: "osType", in: "os", to: "name"},
				{from: "osVersion", in: "os", to: "version"},
				{from: "deviceManufacturer", in: "device", to: "manufacturer"},
				{from: "deviceModel", in: "device", to: "model"},
				{from: "carrier", in: "network", to: "carrier"},
				{from: "appleIdfv", in: "device", to: "id"},
				{from: "androidIdfa", in: "device", to: "advertisingId"},
				{from: "appleIdfa", in: "device", to: "advertisingId"},
			})
		case "application":
			d.move(entity.data, []place{{from: "version", in: "app", to: "version"}, {from: "build", in: "app", to: "build"}})
		case "geolocation_context":
			d.move(entity.data, []place{{from: "latitude", in: "location", to: "latitude"}, {from: "longitude", in: "location", to: "longitude"}})
		}
	}
	return list
}

// snowplowDevice returns the device's id that mobile trackers put into the session's entity.
func snowplowDevice(entities []entity) string {
	for _, e := range entities {
		if e.name == "client_session" {
			return e.data.text("userId")
		}
	}
	return ""
}

// snowplowSelfDescribing reads the event that describes itself: its name is that of its schema, or Segment's name for what
// it says of a shop.
func snowplowSelfDescribing(d *draft, e object, entities []entity) *fault {
	value, ok := embedded(e, "ue_pr", "ue_px")
	if !ok {
		return &fault{code: "malformed_data", reason: "has no JSON in ue_pr, and no base64 of it in ue_px"}
	}
	outer, f := parseObject(value)
	if f != nil {
		return f
	}
	event, schema, ok := entityOf(outer["data"])
	if !ok {
		return &fault{code: "malformed_data", reason: "is not self-describing: it needs a schema and data"}
	}
	d.in("snowplow").setText("schema", schema)
	d.event = event.name
	switch event.name {
	case "screen_view":
		d.kind, d.event = "screen", ""
		d.name = event.data.takeText("name")
	case "snowplow_ecommerce_action":
		snowplowShop(d, event.data, entities)
	case "add_to_cart", "remove_from_cart":
		d.event = "Product Added"
		if event.name == "remove_from_cart" {
			d.event = "Product Removed"
		}
		d.move(event.data, []place{{from: "sku", in: inProperties, to: "product_id"}, {from: "unitPrice", in: inProperties, to: "price"}})
	case "consent_preferences":
		snowplowConsent(d, event.data)
	}
	d.properties.fill(event.data)
	return nil
}

// snowplowConsent reads the event of the enhanced consent plugin: purposes are its scopes.
func snowplowConsent(d *draft, data object) {
	var decision string
	switch data.text("eventType") {
	case "allow_all", "allow_selected", "implicit_consent":
		decision = "true"
	case "deny_all", "withdrawn", "expired":
		decision = "false"
	default: // pending
		return
	}
	scopes, _ := elements(data["consentScopes"])
	for _, scope := range scopes {
		if purpose := scalar(scope); purpose != "" {
			d.consent[purpose] = jsontext.Value(decision)
		}
	}
}

// snowplowActions are Segment's names for the types of Snowplow's e-commerce actions.
var snowplowActions = map[string]string{
	"add_to_cart": "Product Added", "remove_from_cart": "Product Removed", "product_view": "Product Viewed",
	"list_view": "Product List Viewed", "list_click": "Product Clicked", "checkout_step": "Checkout Step Viewed",
	"transaction": "Order Completed", "refund": "Order Refunded", "promo_view": "Promotion Viewed", "promo_click": "Promotion Clicked",
}

// snowplowShop reads an e-commerce action and the entities with it.
func snowplowShop(d *draft, action object, entities []entity) {
	if name := snowplowActions[action.text("type")]; name != "" {
		d.event = name
		delete(action, "type")
	}
	d.move(action, []place{{from: "name", in: inProperties, to: "list_id"}})
	var products []jsontext.Value
	var only object
	for _, e := range entities {
		switch e.name {
		case "product":
			e.data.set("product_id", e.data.take("id"))
			products, only = append(products, e.data.raw()), e.data
		case "cart":
			d.move(e.data, []place{
				{from: "cart_id", in: inProperties, to: "cart_id"},
				{from: "total_value", in: inProperties, to: "value"},
				{from: "currency", in: inProperties, to: "currency"},
			})
		case "transaction", "refund":
			d.move(e.data, []place{
				{from: "transaction_id", in: inProperties, to: "order_id"},
				{from: "refund_amount", in: inProperties, to: "total"},
				{from: "discount_amount", in: inProperties, to: "discount"},
				{from: "discount_code", in: inProperties, to: "coupon"},
			})
			d.properties.fill(e.data) // revenue, currency, tax, shipping, …
		case "checkout_step":
			d.properties.fill(e.data)
		case "promotion":
			d.move(e.data, []place{{from: "id", in: inProperties, to: "promotion_id"}, {from: "creative_id", in: inProperties, to: "creative"}})
			d.properties.fill(e.data)
		}
	}
	switch {
	case len(products) == 0:
	case len(products) == 1 && strings.HasPrefix(d.event, "Product ") && d.event != "Product List Viewed":
		d.properties.fill(only)
	default:
		d.properties["products"] = array(products)
	}
}

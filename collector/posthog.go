package collector

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// PostHog's capture API, with api_key or token being the write key: one event, a list or a batch, as JSON, as gzip without
// saying so, as a form or a query with data=<base64>. Beside it as much of the endpoints for remote configuration and feature
// flags as its libraries need to start: nothing is switched on there.

func (h *Handler) posthogRoutes(r chi.Router) {
	capture := h.answer(DialectPostHog, h.posthogCapture)
	flags := h.answer(DialectPostHog, h.posthogFlags)
	for _, path := range []string{"/e", "/i/v0/e", "/capture", "/track", "/engage", "/batch"} {
		for _, path := range []string{path, path + "/"} {
			post(r, path, capture)
			r.Get(path, capture)
		}
	}
	for _, path := range []string{"/flags", "/flags/", "/decide", "/decide/"} {
		post(r, path, flags)
		r.Get(path, flags)
	}
	post(r, "/i/v1/analytics/events", h.answer(DialectPostHog, h.posthogEvents))
	for _, path := range []string{"/array/{key}/config", "/array/{key}/config.js"} {
		get(r, path, h.answer(DialectPostHog, h.posthogConfig))
	}
}

// posthog-js takes any answer but 200 for a failure, and sends again after those that are not 4xx.
var posthogOK = []byte(`{"status":1}`)

// posthogCapture takes events in.
func (h *Handler) posthogCapture(w http.ResponseWriter, r *http.Request) error {
	in, release, err := h.posthogParcel(w, r)
	if err != nil {
		return err
	}
	defer release()
	results, err := h.bring(r, in.parcel)
	if err != nil {
		return err
	}
	w.Header().Set("X-Event-Status", eventStatus(results))
	if r.Method == http.MethodGet && r.URL.Query().Get("img") == "1" {
		writeGIF(w, http.StatusOK)
		return nil
	}
	if noneAccepted(results) {
		return rejected(results)
	}
	return writeJSON(w, posthogOK)
}

// posthogEvents takes a batch in and tells of each event, by its uuid, what became of it. Libraries that use it send an event
// again whose result is "retry"; we never say that, because what is not durable makes the whole request fail.
func (h *Handler) posthogEvents(w http.ResponseWriter, r *http.Request) error {
	in, release, err := h.posthogParcel(w, r)
	if err != nil {
		return err
	}
	defer release()
	results, err := h.bring(r, in.parcel)
	if err != nil {
		return err
	}
	type result struct {
		Result  string `json:"result"` // "ok" or "drop"
		Details string `json:"details,omitempty"`
	}
	answer := struct {
		Results map[string]result `json:"results"`
	}{map[string]result{}}
	for i, res := range results {
		uuid := in.ids[i]
		switch {
		case uuid == "":
		case res.Status == Accepted:
			answer.Results[uuid] = result{Result: "ok"}
		default:
			answer.Results[uuid] = result{Result: "drop", Details: res.Reason}
		}
	}
	text, err := json.Marshal(answer, json.Deterministic(true))
	if err != nil {
		return err
	}
	return writeJSON(w, text)
}

// posthogFlags answers that there are no feature flags.
func (h *Handler) posthogFlags(w http.ResponseWriter, r *http.Request) error {
	text, release, err := h.posthogBody(w, r)
	if err != nil {
		return err
	}
	defer release()
	key := ""
	if value, err := parseBody(text); err == nil {
		if body, err := envelopeOf(value); err == nil {
			key = body.takeText("api_key", "token")
		}
	}
	if key == "" {
		key = r.URL.Query().Get("token")
	}
	if _, err := h.mayAsk(r, DialectPostHog, key); err != nil {
		return err
	}
	return writeJSON(w, []byte(`{"featureFlags":{},"featureFlagPayloads":{},"flags":{},"errorsWhileComputingFlags":false,`+posthogSettings[1:]))
}

// posthogSettings switch off whatever a library would load or record besides events.
const posthogSettings = `{"supportedCompression":["gzip","gzip-js","base64"],"hasFeatureFlags":false,"sessionRecording":false,` +
	`"surveys":false,"heatmaps":false,"capturePerformance":false,"autocaptureExceptions":false,"captureDeadClicks":false,` +
	`"defaultIdentifiedOnly":true,"isAuthenticated":false,"toolbarParams":{},"siteApps":[]}`

// posthogConfig answers with the remote configuration, as JSON or as a script.
func (h *Handler) posthogConfig(w http.ResponseWriter, r *http.Request) error {
	g, err := h.mayAsk(r, DialectPostHog, chi.URLParam(r, "key"))
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "public, max-age=300")
	if !strings.HasSuffix(r.URL.Path, ".js") {
		return writeJSON(w, []byte(posthogSettings))
	}
	script := "(function(){var c=window._POSTHOG_REMOTE_CONFIG=window._POSTHOG_REMOTE_CONFIG||{};c[" +
		strconv.Quote(g.Key) + "]={config:" + posthogSettings + ",siteApps:[]}})();\n" // a known key is letters, digits and underscores
	w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(script)))
	_, _ = w.Write([]byte(script)) // the client is gone
	return nil
}

// mayAsk returns what key, or the one in the headers or the query, allows, and an error if it is not one of a source that takes
// a dialect.
func (h *Handler) mayAsk(r *http.Request, dialect, key string) (Grant, error) {
	g, known, err := h.authorize(r, key)
	switch {
	case err != nil:
		return Grant{}, err
	case !known:
		return Grant{}, missingKey()
	}
	return g, g.mustSpeak(dialect)
}

// posthogBody returns the JSON of a request, which release lets go of.
func (h *Handler) posthogBody(w http.ResponseWriter, r *http.Request) (text []byte, release func(), err error) {
	var form string
	release = func() {}
	if r.Method == http.MethodGet {
		form = r.URL.RawQuery
	} else {
		b, err := readBody(w, r, h.cfg.MaxBodyBytes, &h.bytes)
		if err != nil {
			return nil, nil, err
		}
		text, release = trimBOM(b.Bytes()), b.release
		if strings.HasPrefix(string(text[:min(len(text), 5)]), "data=") {
			form = string(text)
		}
	}
	if form == "" {
		return text, release, nil
	}
	values, err := url.ParseQuery(form)
	if err == nil {
		data := values.Get("data")
		if strings.HasPrefix(data, "{") || strings.HasPrefix(data, "[") {
			return []byte(data), release, nil
		}
		text, err = decodeBase64(data)
	}
	if err != nil {
		release()
		return nil, nil, malformed("malformed_data", "#", "has no base64 in data")
	}
	return text, release, nil
}

// posthogRequest is what a request of PostHog's brings.
type posthogRequest struct {
	parcel
	ids []string // the uuids of the calls
}

func (h *Handler) posthogParcel(w http.ResponseWriter, r *http.Request) (in posthogRequest, release func(), err error) {
	received := now()
	text, release, err := h.posthogBody(w, r)
	if err != nil {
		return in, nil, err
	}
	in, err = posthogParse(text, received, h.client(r), r.URL.Query())
	if err != nil {
		release()
		return in, nil, err
	}
	return in, release, nil
}

// posthogParse finds the events in a body. An error is a *problem.Problem.
func posthogParse(text []byte, received time.Time, from *client, query url.Values) (in posthogRequest, err error) {
	in.parcel = parcel{dialect: DialectPostHog, received: received}
	value, err := parseBody(text)
	if err != nil {
		return in, err
	}
	t := posthogTranslator{received: received, from: from}
	if ms := query.Get("_"); ms != "" {
		t.sentAt = quoted(ms)
	}
	list, isList := elements(value)
	if !isList {
		body, err := envelopeOf(value)
		if err != nil {
			return in, err
		}
		in.key = body.takeText("api_key", "token", "$token")
		if sentAt := body.take("sent_at", "created_at"); sentAt != nil {
			t.sentAt = sentAt
		}
		batch, isBatch := body["batch"]
		switch {
		case !isBatch:
			list = []jsontext.Value{value}
		default:
			if list, isList = elements(batch); !isList {
				return in, malformed("wrong_type", "#/batch", "must be an array")
			}
			in.path = []string{"batch"}
		}
	} else {
		in.path = []string{}
	}
	for _, raw := range list {
		e, f := parseObject(raw)
		c := call{translate: func(Grant) ([]*draft, *fault) { return nil, f }}
		id := ""
		if f == nil {
			id = e.text("uuid")
			c.key = posthogKey(e)
			c.translate = func(g Grant) ([]*draft, *fault) { return t.event(g, e, raw) }
		}
		in.calls, in.ids = append(in.calls, c), append(in.ids, id)
	}
	if in.key == "" && len(in.calls) > 0 && !slices.ContainsFunc(in.calls, func(c call) bool { return c.key != "" }) {
		in.key = query.Get("api_key")
		if in.key == "" {
			in.key = query.Get("token")
		}
	}
	return in, nil
}

// posthogKey returns the key that an event names.
func posthogKey(e object) string {
	if key := e.takeText("api_key", "token", "$token"); key != "" {
		return key
	}
	properties := e.child("properties")
	return properties.takeText("token", "api_key")
}

// posthogTranslator turns events of one request into ours.
type posthogTranslator struct {
	received time.Time
	sentAt   jsontext.Value
	from     *client
}

// posthogPlaces are where properties go that PostHog's libraries set.
var posthogPlaces = []place{
	{from: "$lib", in: "library", to: "name"},
	{from: "$lib_version", in: "library", to: "version"},
	{from: "$os", in: "os", to: "name"},
	{from: "$os_name", in: "os", to: "name"},
	{from: "$os_version", in: "os", to: "version"},
	{from: "$device_id", in: "device", to: "id"},
	{from: "$device_type", in: "device", to: "type"},
	{from: "$device_manufacturer", in: "device", to: "manufacturer"},
	{from: "$device_model", in: "device", to: "model"},
	{from: "$device_name", in: "device", to: "name"},
	{from: "$app_name", in: "app", to: "name"},
	{from: "$app_version", in: "app", to: "version"},
	{from: "$app_build", in: "app", to: "build"},
	{from: "$app_namespace", in: "app", to: "namespace"},
	{from: "$screen_width", in: "screen", to: "width"},
	{from: "$screen_height", in: "screen", to: "height"},
	{from: "$network_wifi", in: "network", to: "wifi"},
	{from: "$network_cellular", in: "network", to: "cellular"},
	{from: "$network_carrier", in: "network", to: "carrier"},
	{from: "$current_url", in: "page", to: "url"},
	{from: "$pathname", in: "page", to: "path"},
	{from: "$title", in: "page", to: "title"},
	{from: "utm_source", in: "campaign", to: "source"},
	{from: "utm_medium", in: "campaign", to: "medium"},
	{from: "utm_campaign", in: "campaign", to: "name"},
	{from: "utm_term", in: "campaign", to: "term"},
	{from: "utm_content", in: "campaign", to: "content"},
	{from: "gclid", in: "clickIds", to: "gclid"},
	{from: "gbraid", in: "clickIds", to: "gbraid"},
	{from: "wbraid", in: "clickIds", to: "wbraid"},
	{from: "dclid", in: "clickIds", to: "dclid"},
	{from: "fbclid", in: "clickIds", to: "fbclid"},
	{from: "msclkid", in: "clickIds", to: "msclkid"},
	{from: "ttclid", in: "clickIds", to: "ttclid"},
	{from: "twclid", in: "clickIds", to: "twclid"},
	{from: "li_fat_id", in: "clickIds", to: "li_fat_id"},
	{from: "epik", in: "clickIds", to: "epik"},
	{from: "rdt_cid", in: "clickIds", to: "rdt_cid"},
	{from: "$ip", to: "ip"},
	{from: "$raw_user_agent", to: "userAgent"},
	{from: "$user_agent", to: "userAgent"},
	{from: "$browser_language", to: "locale"},
	{from: "$locale", to: "locale"},
	{from: "$timezone", to: "timezone"},
	{from: "$session_id", to: "sessionId"},
}

// event returns what a call of PostHog's says: one event, and if it also sets properties of the person an identify.
func (t *posthogTranslator) event(g Grant, e object, raw jsontext.Value) ([]*draft, *fault) {
	properties := object{}
	if v := e.take("properties"); v != nil {
		var f *fault
		if properties, f = parseObject(v); f != nil {
			return nil, f.in("properties")
		}
	}
	properties.take("token", "api_key")
	e.take("api_key", "token", "$token", "sent_at", "batch")
	properties.fill(posthogOptions(e))

	name := e.takeText("event")
	d := newDraft("track")
	d.timestamp, d.sentAt = e.take("timestamp"), t.sentAt
	if offset, err := strconv.ParseInt(e.takeText("offset"), 10, 64); err == nil && d.timestamp == nil { // milliseconds before sending
		d.timestamp, d.sentAt = appendTime(nil, t.received.Add(-time.Duration(min(max(offset, 0), maxClockSkew.Milliseconds()))*time.Millisecond)), nil
	}
	d.messageID = e.takeText("uuid")
	if id := properties.takeText("$insert_id"); d.messageID == "" {
		d.messageID = id
	}
	if d.messageID == "" {
		// Older libraries number events only if asked to, but date them when they happen.
		at := scalar(d.timestamp)
		if at == "" {
			at = second(t.received)
		}
		d.messageID = derivedID(DialectPostHog, at, string(raw))
	}

	distinctID := e.takeText("distinct_id", "$distinct_id")
	if own := properties.takeText("distinct_id", "$distinct_id"); distinctID == "" {
		distinctID = own
	}
	anonymous := properties.text("$is_identified") == "false" || properties.text("$process_person_profile") == "false"
	switch {
	case properties.text("$is_identified") == "true":
		anonymous = false
	case truth(properties["$cookieless_mode"]) && strings.HasPrefix(distinctID, "$posthog_cookieless"): // it stands for everybody
		distinctID, anonymous = visitor(g, t.received, "", t.from.ip, t.from.userAgent), true
	}
	if anonymous {
		d.anonymousID = distinctID
	} else {
		d.userID = distinctID
	}

	traits, once := posthogPerson(e, properties)
	if name == "$identify" {
		traits.fill(once)
	} else if len(once) > 0 {
		d.properties["$set_once"] = once.raw()
	}
	d.move(properties, posthogPlaces)
	if referrer := properties.takeText("$referrer"); referrer != "$direct" {
		d.in("page").setText("referrer", referrer)
	}
	if groups := properties.child("$groups"); len(groups) == 1 {
		for _, id := range groups {
			d.in("").setText("groupId", scalar(id))
		}
	}
	t.from.describe(d, false)
	d.properties.fill(properties)
	if len(e) > 0 {
		delete(e, "type") // what older libraries call the event
		delete(e, "library")
		delete(e, "library_version")
		delete(e, "options")
		for name, v := range e {
			if v.Kind() != 'n' {
				d.in("posthog")[name] = v
			}
		}
	}

	drafts := []*draft{d}
	switch name {
	case "":
		if len(traits) == 0 && len(once) == 0 { // /engage has no name
			return nil, &fault{code: "missing_event", reason: "needs the name of an event"}
		}
		d.kind, d.traits = "identify", traits
	case "$set":
		d.kind, d.traits = "identify", traits
	case "$identify":
		d.kind, d.traits = "identify", traits
		d.userID, d.anonymousID = distinctID, ""
		if previous := d.properties.takeText("$anon_distinct_id"); previous != "" && previous != distinctID && !Blocked(distinctID) && !Blocked(previous) {
			d.anonymousID = previous
			// A server may have used the visitor's id before as if it were a user's.
			alias := d.also("alias", "-alias")
			alias.anonymousID, alias.previousID = "", previous
			drafts = append(drafts, alias)
		}
	case "$create_alias", "$merge_dangerously":
		d.kind = "alias"
		d.previousID = d.properties.takeText("alias")
		d.userID, d.anonymousID = distinctID, ""
		if anonymous { // posthog-js names the visitor's new id
			d.userID, d.previousID = d.previousID, d.userID
		}
	case "$groupidentify":
		d.kind = "group"
		d.groupID = d.properties.takeText("$group_key")
		d.traits = d.properties.child("$group_set")
		if d.traits == nil {
			d.traits = object{}
		}
		delete(d.properties, "$group_set")
		d.in("").setText("groupType", d.properties.takeText("$group_type"))
		if strings.HasPrefix(distinctID, "$") { // no person, but "$company_acme", which servers put there
			d.userID, d.anonymousID = "", distinctID
		}
	case "$pageview":
		d.kind = "page"
		d.in("page").fill(titleOf(d.properties))
	case "$screen":
		d.kind, d.name = "screen", d.properties.takeText("$screen_name")
	default:
		d.event = name
	}
	if len(traits) > 0 && d.kind != "identify" {
		person := d.also("identify", "-person")
		person.traits = traits
		if d.kind == "alias" || d.kind == "group" {
			person.userID, person.anonymousID = d.userID, d.anonymousID
		}
		drafts = append(drafts, person)
	}
	return drafts, nil
}

// titleOf takes the title that a page view has.
func titleOf(properties object) object {
	title := object{}
	title.setText("title", properties.takeText("title"))
	return title
}

// posthogOptions returns as properties what newer libraries send beside them.
func posthogOptions(e object) object {
	found := object{}
	options := e.child("options")
	for option, name := range map[string]string{"process_person_profile": "$process_person_profile", "cookieless_mode": "$cookieless_mode"} {
		found.set(name, options[option])
	}
	found.set("$session_id", e.take("session_id"))
	found.set("$window_id", e.take("window_id"))
	return found
}

// posthogPerson takes what an event says of the person: traits to set, or to remove, which are null, and traits to set if the
// person does not have them yet. Nobody here knows whether they do, and of a trait the latest value stands: libraries repeat
// $set_once with every event, so it may set something only where somebody says who they are.
func posthogPerson(e, properties object) (traits, once object) {
	traits, once = object{}, object{}
	unset := object{}
	for _, from := range []object{e, properties} {
		for name, into := range map[string]object{"$set": traits, "$set_once": once} {
			into.fill(from.child(name))
			delete(from, name)
		}
		remove := from["$unset"]
		delete(from, "$unset")
		if list, ok := elements(remove); ok {
			for _, name := range list {
				if name := scalar(name); name != "" {
					unset[name] = jsontext.Value("null")
				}
			}
		} else if remove.Kind() == '{' {
			var names object
			if json.Unmarshal(remove, &names, jsonOptions...) == nil {
				for name := range names {
					unset[name] = jsontext.Value("null")
				}
			}
		}
	}
	traits.fill(unset)
	return traits, once
}

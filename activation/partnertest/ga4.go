package partnertest

import (
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// GA4Options are what a data stream, and the destination for it, may have.
type GA4Options struct {
	Firebase           bool // the stream is of an app
	UserProperties     map[string]string
	NoUserID           bool
	UserAgent          bool
	DefaultCurrency    string
	MessageIDParameter string
}

// GA4 is Google Analytics 4 as the Measurement Protocol has it. It answers 204 to whatever it is given, and 200 with what is
// wrong at its validation server. What it would silently forget it notes; purchases it counts once by their transaction_id,
// of one user, and anything else as often as it comes.
type GA4 struct {
	Faults
	options GA4Options
	url     string

	mu       sync.Mutex
	expected map[string]activation.Event
	consents map[activation.ProfileID]map[string]bool // what each person has decided at any time
	people   map[activation.ProfileID]activation.Person
	clients  map[string]string // anonymous id by client id
	ids      map[string]string // and the other way around
	sales    map[string]bool
	counted  map[string]int
	refused  map[string]bool
	revoked  bool
}

var _ EventFake = (*GA4)(nil)

const (
	ga4Secret = "s3cr3t-of-the-stream-Zz9"
	ga4Stream = "G-1A2BCD345E"
	ga4App    = "1:1234567890:android:321abc456def7890"
)

// NewGA4 starts a Google Analytics that lives as long as the test.
func NewGA4(t testing.TB, o GA4Options) *GA4 {
	t.Helper()
	g := &GA4{
		options: o, expected: map[string]activation.Event{}, consents: map[activation.ProfileID]map[string]bool{},
		people: map[activation.ProfileID]activation.Person{}, clients: map[string]string{}, ids: map[string]string{},
		sales: map[string]bool{}, counted: map[string]int{}, refused: map[string]bool{},
	}
	g.Changes(func(r *http.Request) bool { return r.URL.Path == "/mp/collect" })
	g.url = g.Listen(t, http.HandlerFunc(g.serve))
	return g
}

// URL is where it listens.
func (g *GA4) URL() string { return g.url }

// Query is what its requests are to carry.
func (g *GA4) Query() string {
	if g.options.Firebase {
		return url.Values{"api_secret": {ga4Secret}, "firebase_app_id": {ga4App}}.Encode()
	}
	return url.Values{"api_secret": {ga4Secret}, "measurement_id": {ga4Stream}}.Encode()
}

// Settings implements [EventFake].
func (g *GA4) Settings() activation.Settings {
	config := map[string]any{"api_url": g.url, "concurrency": 4}
	if g.options.Firebase {
		config["firebase_app_id"] = ga4App
	} else {
		config["measurement_id"] = ga4Stream
	}
	for name, v := range map[string]bool{"no_user_id": g.options.NoUserID, "user_agent": g.options.UserAgent} {
		if v {
			config[name] = v
		}
	}
	for name, v := range map[string]string{
		"message_id_parameter": g.options.MessageIDParameter, "default_currency": g.options.DefaultCurrency,
	} {
		if v != "" {
			config[name] = v
		}
	}
	if g.options.UserProperties != nil {
		config["user_properties"] = g.options.UserProperties
	}
	c, err := json.Marshal(config)
	if err != nil {
		panic(err)
	}
	return activation.Settings{Config: c, Secrets: jsontext.Value(`{"api_secret":"` + ga4Secret + `"}`)}
}

// Seed implements [EventFake].
func (g *GA4) Seed(people ...activation.Person) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range people {
		g.seed(p)
	}
}

func (g *GA4) seed(p activation.Person) {
	g.people[p.ID] = p
	if g.consents[p.ID] == nil {
		g.consents[p.ID] = map[string]bool{}
	}
	g.consents[p.ID][ga4Consent(p.Consent)] = true
}

// ga4Consent is what a request is to say of what somebody has decided.
func ga4Consent(decided map[string]bool) string {
	said := []string{"", ""}
	for i, purpose := range []string{"ad_user_data", "ad_personalization"} {
		if granted, ok := decided[purpose]; ok && granted {
			said[i] = "GRANTED"
		} else if ok {
			said[i] = "DENIED"
		}
		if decided["gpc"] {
			said[i] = "DENIED"
		}
	}
	return strings.Join(said, "/")
}

// Expect implements [EventFake].
func (g *GA4) Expect(events ...activation.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range events {
		g.expected[e.MessageID] = e
		g.seed(e.Person)
	}
}

// Received implements [EventFake]. What is counted twice is there twice.
func (g *GA4) Received() (ids []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(g.counted)) {
		for range g.counted[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// RefuseEvent implements [EventFake]: the event is forgotten, without a word.
func (g *GA4) RefuseEvent(messageID string, refuse bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused[messageID] = refuse
}

// Revoke implements [EventFake]: everything is forgotten, without a word.
func (g *GA4) Revoke() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.revoked = true
}

// Heal implements [EventFake].
func (g *GA4) Heal() {
	g.Faults.Heal()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.revoked = false
}

// Words implements [EventFake]. Google Analytics has none.
func (*GA4) Words() Words { return Words{} }

// ga4Finding is what the validation server says.
type ga4Finding struct {
	Path        string `json:"fieldPath"`
	Description string `json:"description"`
	Code        string `json:"validationCode"`
}

type ga4Request struct {
	ClientID      *string `json:"client_id"`
	AppInstanceID *string `json:"app_instance_id"`
	UserID        string  `json:"user_id"`
	UserAgent     string  `json:"user_agent"`
	Properties    map[string]struct {
		Value jsontext.Value `json:"value"`
	} `json:"user_properties"`
	Consent *struct {
		AdUserData        string `json:"ad_user_data"`
		AdPersonalization string `json:"ad_personalization"`
	} `json:"consent"`
	Behaviour string     `json:"validation_behavior"`
	Events    []ga4Event `json:"events"`
}

type ga4Event struct {
	Name      string                    `json:"name"`
	Timestamp *int64                    `json:"timestamp_micros"`
	Params    map[string]jsontext.Value `json:"params"`
}

func (g *GA4) serve(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	debug := r.URL.Path == "/debug/mp/collect"
	if r.URL.Path != "/mp/collect" && !debug {
		g.Violate("%s %s is nothing that there is", r.Method, r.URL.Path)
		w.WriteHeader(http.StatusNotFound)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	g.Inspect(r, body)
	known := r.URL.Query().Encode() == g.Query()
	if !known {
		g.Violate("the query is not the stream's and its secret alone")
	}
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		g.Violate("%s of %s: only POST of application/json is taken", r.Method, r.Header.Get("Content-Type"))
		known = false
	}
	var req ga4Request
	findings := []ga4Finding{}
	if err := json.Unmarshal(body, &req, json.RejectUnknownMembers(true)); err != nil {
		findings = append(findings, ga4Finding{"", "the body cannot be read: " + err.Error(), "VALUE_INVALID"})
	} else {
		findings = append(findings, g.check(req, debug)...)
	}
	if len(body) >= 130_000 {
		findings = append(findings, ga4Finding{"", "the body is not smaller than 130 kB", "EXCEEDED_MAX_ENTITIES"})
	}
	g.personal(req)
	if debug {
		if req.Behaviour != "ENFORCE_RECOMMENDATIONS" {
			g.Violate("the validation server is asked for less than it can do")
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.MarshalWrite(w, map[string]any{"validationMessages": findings}); err != nil {
			g.Violate("the answer cannot be written: %v", err)
		}
		return
	}
	if req.Behaviour != "" {
		g.Violate("validation_behavior has Google Analytics refuse what it would take")
	}
	for _, f := range findings {
		g.Violate("%s: %s (%s)", f.Path, f.Description, f.Code)
	}
	if known && len(findings) == 0 && !g.revoked {
		g.take(req)
	}
	w.WriteHeader(http.StatusNoContent)
}

var (
	ga4Name     = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]*$`)
	ga4Client   = regexp.MustCompile(`^[1-9]\d*\.[1-9]\d*$`)
	ga4Instance = regexp.MustCompile(`^[0-9a-f]{32}$`)
	ga4Prefix   = regexp.MustCompile(`^(_|firebase_|ga_|google_|gtag\.)`)
	ga4Phone    = regexp.MustCompile(`(\+|%2B)\d[\d ()./-]{7,}|\(\d{3,5}\) ?\d{3}`)
	ga4Currency = regexp.MustCompile(`^[A-Z]{3}$`)
	ga4Reserved = regexp.MustCompile(`^(ad_(activeview|click|exposure|query|reward)|adunit_exposure|error|os_update|session_start|` +
		`app_(clear_data|exception|install|remove|store_refund|update|upgrade)|dynamic_link_(app_open|app_update|first_open)|` +
		`firebase_\w+|first_(open|visit)|notification_(dismiss|foreground|open|receive|send)|user_engagement)$`)
	ga4Properties = regexp.MustCompile(`^(first_(open|visit)_time|last_deep_link_referrer|user_id|first_open_after_install)$`)
)

// check tells what is wrong with a request, as the Measurement Protocol's reference says what is right.
func (g *GA4) check(req ga4Request, debug bool) (list []ga4Finding) {
	find := func(path, code, format string, args ...any) {
		list = append(list, ga4Finding{path, fmt.Sprintf(format, args...), code})
	}
	switch {
	case g.options.Firebase && (req.AppInstanceID == nil || !ga4Instance.MatchString(*req.AppInstanceID)):
		find("app_instance_id", "VALUE_REQUIRED", "must be 32 hexadecimal digits")
	case !g.options.Firebase && (req.ClientID == nil || !ga4Client.MatchString(*req.ClientID)):
		find("client_id", "VALUE_REQUIRED", "must be two positive numbers")
	case req.ClientID != nil && req.AppInstanceID != nil:
		find("client_id", "VALUE_INVALID", "must not be there for apps")
	}
	if len([]rune(req.UserID)) > 256 {
		find("user_id", "VALUE_INVALID", "is longer than 256 characters")
	}
	if c := req.Consent; c != nil {
		for name, v := range map[string]string{"ad_user_data": c.AdUserData, "ad_personalization": c.AdPersonalization} {
			if v != "" && v != "GRANTED" && v != "DENIED" {
				find("consent."+name, "VALUE_INVALID", "must be GRANTED or DENIED")
			}
		}
	}
	if len(req.Properties) > 25 {
		find("user_properties", "EXCEEDED_MAX_ENTITIES", "must be at most 25")
	}
	for name, p := range req.Properties {
		at := "user_properties." + name
		if ga4Properties.MatchString(name) || ga4Prefix.MatchString(name) {
			find(at, "NAME_RESERVED", "is reserved")
		}
		if len(name) > 24 || !ga4Name.MatchString(name) {
			find(at, "NAME_INVALID", "is no name of a user property")
		}
		if text, ok := ga4Text(p.Value); !ok || text == "" || len([]rune(text)) > 36 {
			find(at, "VALUE_INVALID", "must have 1 to 36 characters")
		}
	}
	if len(req.Events) == 0 || len(req.Events) > 25 {
		find("events", "EXCEEDED_MAX_ENTITIES", "must be 1 to 25")
	}
	for i, e := range req.Events {
		at := fmt.Sprintf("events[%d]", i)
		if ga4Reserved.MatchString(e.Name) || ga4Prefix.MatchString(e.Name) {
			find(at, "NAME_RESERVED", "is called %q, which is reserved", e.Name)
		} else if len(e.Name) > 40 || !ga4Name.MatchString(e.Name) {
			find(at, "NAME_INVALID", "is called %q", e.Name)
		}
		if slices.Contains([]string{"ad_impression", "in_app_purchase", "screen_view"}, e.Name) && !g.options.Firebase {
			find(at, "NAME_RESERVED", "is called %q, which is for apps", e.Name)
		}
		if now := g.Now(); !g.Skewed() && e.Timestamp != nil {
			if age := now.Sub(time.UnixMicro(*e.Timestamp)); age > 72*time.Hour || age < -time.Minute {
				find(at+".timestamp_micros", "VALUE_OUT_OF_BOUNDS", "is %v ago", age)
			}
		}
		if e.Timestamp == nil && !debug {
			find(at+".timestamp_micros", "VALUE_REQUIRED", "is missing, so the event happens when it arrives")
		}
		list = append(list, ga4Params(at+".params", e.Name, e.Params)...)
	}
	return list
}

// ga4Text is what a text or number looks like; anything else is no value of a parameter.
func ga4Text(v jsontext.Value) (text string, ok bool) {
	switch v.Kind() {
	case '"':
		ok = json.Unmarshal(v, &text) == nil
	case '0':
		text, ok = string(v), true
	}
	return text, ok
}

// ga4Params tells what is wrong with parameters, of an event, or of an item if event is "".
func ga4Params(at, event string, params map[string]jsontext.Value) (list []ga4Finding) {
	find := func(name, code, format string, args ...any) {
		list = append(list, ga4Finding{strings.TrimSuffix(at+"."+name, "."), fmt.Sprintf(format, args...), code})
	}
	if len(params) > 25 {
		find("", "EXCEEDED_MAX_ENTITIES", "must be at most 25")
	}
	longest := map[string]int{"page_location": 1000, "page_referrer": 420, "page_title": 300}
	for name, v := range params {
		if ga4Prefix.MatchString(name) || name == "firebase_conversion" {
			find(name, "NAME_RESERVED", "is reserved")
		} else if len(name) > 40 || !ga4Name.MatchString(name) {
			find(name, "NAME_INVALID", "is no name of a parameter")
		}
		if name == "items" && event != "" {
			var items []map[string]jsontext.Value
			if json.Unmarshal(v, &items) != nil || len(items) == 0 || len(items) > 200 {
				find(name, "VALUE_INVALID", "must be 1 to 200 items")
			}
			for i, it := range items {
				if it["item_id"] == nil && it["item_name"] == nil {
					find(fmt.Sprintf("items[%d]", i), "VALUE_REQUIRED", "has neither item_id nor item_name")
				}
				list = append(list, ga4Params(fmt.Sprintf("%s.items[%d]", at, i), "", it)...)
			}
			continue
		}
		text, ok := ga4Text(v)
		most := longest[name]
		if most == 0 {
			most = 100
		}
		if !ok || text == "" || len([]rune(text)) > most {
			find(name, "VALUE_INVALID", "must be a text of 1 to %d characters, or a number", most)
			continue
		}
		switch name {
		case "value", "tax", "shipping", "price", "discount", "engagement_time_msec":
			if v.Kind() != '0' {
				find(name, "VALUE_INVALID", "must be a number")
			}
		case "quantity", "index":
			var n float64
			if v.Kind() != '0' || json.Unmarshal(v, &n) != nil || n != math.Trunc(n) {
				find(name, "VALUE_INVALID", "must be a whole number")
			}
		case "transaction_id", "item_id", "item_name", "coupon", "currency", "affiliation", "promotion_id", "method", "search_term":
			if v.Kind() != '"' {
				find(name, "VALUE_INVALID", "must be a text")
			}
		}
		if name == "currency" && !ga4Currency.MatchString(text) {
			find(name, "VALUE_INVALID", "must be of ISO 4217")
		}
	}
	if event == "" {
		return list
	}
	if params["value"] != nil && params["currency"] == nil {
		find("currency", "VALUE_REQUIRED", "is missing beside value")
	}
	if (event == "purchase" || event == "refund") && params["transaction_id"] == nil {
		find("transaction_id", "VALUE_REQUIRED", "is missing")
	}
	return list
}

// personal notes what looks like a phone number, or is one of somebody's. E-mail addresses are noted anywhere.
func (g *GA4) personal(req ga4Request) {
	said := map[string]string{"user_id": req.UserID}
	for name, p := range req.Properties {
		said["user_properties."+name] = string(p.Value)
	}
	for _, e := range req.Events {
		for name, v := range e.Params {
			said[e.Name+"."+name] = string(v)
		}
	}
	for at, text := range said {
		if ga4Phone.MatchString(text) {
			g.Violate("%s: there is a phone number in it", at)
		}
		for _, p := range g.people {
			for _, number := range p.Identified("phone") {
				if len(number) > 10 && strings.Contains(text, number[len(number)-10:]) {
					g.Violate("%s: there is somebody's phone number in it", at)
				}
			}
		}
	}
}

// take counts the events of a request, and holds them to what is true.
func (g *GA4) take(req ga4Request) {
	for _, e := range req.Events {
		want, ok := g.find(req, e)
		if !ok {
			g.Violate("%s was never heard of", e.Name)
			continue
		}
		g.compare(req, e, want)
		if g.refused[want.MessageID] {
			continue
		}
		if e.Name == "purchase" {
			sale := req.UserID + "\x00" + string(e.Params["transaction_id"])
			if g.sales[sale] {
				continue
			}
			g.sales[sale] = true
		}
		g.counted[want.MessageID]++
	}
}

// find returns which event one is: by its transaction, by our id, or by who did it when.
func (g *GA4) find(req ga4Request, e ga4Event) (activation.Event, bool) {
	for _, id := range slices.Sorted(maps.Keys(g.expected)) {
		want := g.expected[id]
		var props struct {
			Order string `json:"order_id"`
		}
		_ = json.Unmarshal(want.Properties, &props) // what has another form is no order
		transaction, _ := ga4Text(e.Params["transaction_id"])
		switch given, _ := ga4Text(e.Params[g.options.MessageIDParameter]); {
		case g.options.MessageIDParameter != "":
			if given == id {
				return want, true
			}
		case transaction != "":
			if props.Order == transaction {
				return want, true
			}
		case e.Timestamp != nil && want.Timestamp.UnixMicro() == *e.Timestamp && (req.UserID == "" || req.UserID == want.UserID):
			return want, true
		}
	}
	return activation.Event{}, false
}

func (g *GA4) compare(req ga4Request, e ga4Event, want activation.Event) {
	id := want.MessageID
	if *e.Timestamp != want.Timestamp.UnixMicro() {
		g.Violate("event %q is said to have happened at another time", id)
	}
	user := want.UserID
	if g.options.NoUserID || strings.Contains(user, "@") {
		user = ""
	}
	if req.UserID != user {
		g.Violate("event %q is said to be the user %q's", id, req.UserID)
	}
	said := "/"
	if c := req.Consent; c != nil {
		said = c.AdUserData + "/" + c.AdPersonalization
	}
	if !g.consents[want.Person.ID][said] {
		g.Violate("event %q: its person never decided %s", id, said)
	}
	for name, p := range req.Properties {
		given, _ := ga4Text(p.Value)
		if trait := g.options.UserProperties[name]; trait == "" || want.Person.Text(trait) != given {
			g.Violate("event %q: the person's %s is not that", id, name)
		}
	}
	if len(req.Properties) < len(g.options.UserProperties) {
		g.Violate("event %q: some of the person's properties are missing", id)
	}
	if g.options.UserAgent != (req.UserAgent != "") {
		g.Violate("event %q: the user agent is %q", id, req.UserAgent)
	}
	if req.ClientID != nil {
		g.compareClient(id, *req.ClientID, want)
	}
	var props struct {
		Total    jsontext.Value `json:"total"`
		Currency string         `json:"currency"`
	}
	if e.Name == "purchase" && json.Unmarshal(want.Properties, &props) == nil {
		if currency, _ := ga4Text(e.Params["currency"]); string(e.Params["value"]) != string(props.Total) || currency != props.Currency {
			g.Violate("event %q is of another value", id)
		}
	}
}

// compareClient holds a client id to the visitor's cookie, or else to being the same for all of the visitor's events and for
// nobody else's.
func (g *GA4) compareClient(id, client string, want activation.Event) {
	var context struct {
		Cookie string `json:"_ga"`
	}
	if want.Context.Raw != nil && json.Unmarshal(want.Context.Raw, &context) == nil && context.Cookie != "" {
		if !strings.HasSuffix(context.Cookie, "."+client) {
			g.Violate("event %q is not of the client in its cookie", id)
		}
		return
	}
	visitor := want.AnonymousID
	if of, ok := g.clients[client]; ok && of != visitor {
		g.Violate("event %q has the client id of another visitor", id)
	}
	if before, ok := g.ids[visitor]; ok && before != client {
		g.Violate("event %q: its visitor had another client id before", id)
	}
	g.clients[client], g.ids[visitor] = visitor, client
}

package partnertest

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// MetaConversions is a fake of Meta's Conversions API, with one dataset. It expects events of shops as Meta's standard events
// and knows duplicates by their name and id.
type MetaConversions struct {
	metaGraph
	URL string

	options  MetaConversionsOptions
	crowd    *Crowd
	people   map[activation.ProfileID]Recognised
	expected map[string]activation.Event
	refuse   map[string]bool
	received map[metaEventKey]bool
	missing  bool
	partly   bool
}

// MetaConversionsOptions are what MetaConversions may be asked for in more than one way, or does in more than one.
type MetaConversionsOptions struct {
	TokenIn        string // "query" by default, or "header"
	Proof          string // of the app secret: none by default, "plain" or "timed"
	LimitedDataUse string // for whom it has to be asked: nobody by default, "us_states" or "all"
	KeysOnly       bool
	Version        string // that is served: v25.0 by default
	Batch          int    // events in a message: 7 by default
	ActionSource   string // website by default
	TestEventCode  string
}

// metaEventKey is what Meta knows an event by.
type metaEventKey struct{ name, id string }

const metaDataset = "555000111222"

// NewMetaConversions starts a fake that lives as long as the test.
func NewMetaConversions(t testing.TB, o MetaConversionsOptions) *MetaConversions {
	t.Helper()
	o.TokenIn, o.Version, o.Batch = cmp.Or(o.TokenIn, "query"), cmp.Or(o.Version, "v25.0"), cmp.Or(o.Batch, 7)
	o.ActionSource = cmp.Or(o.ActionSource, "website")
	f := &MetaConversions{
		metaGraph: metaGraph{tokenIn: o.TokenIn, proof: o.Proof, version: o.Version, used: 7}, options: o,
		people: map[activation.ProfileID]Recognised{}, expected: map[string]activation.Event{}, refuse: map[string]bool{},
		received: map[metaEventKey]bool{},
	}
	f.crowd = NewCrowd(f.Violate, o.derive)
	f.Changes(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/events") })
	f.URL = f.Listen(t, http.HandlerFunc(f.handle))
	return f
}

// Settings implements [EventFake].
func (f *MetaConversions) Settings() activation.Settings {
	config, err := json.Marshal(map[string]any{
		"dataset_id": metaDataset, "api_url": f.URL, "api_version": f.options.Version, "batch": f.options.Batch,
		"token_in": f.options.TokenIn, "proof_time": f.options.Proof == "timed", "keys_only": f.options.KeysOnly,
		"limited_data_use": cmp.Or(f.options.LimitedDataUse, "off"), "action_source": f.options.ActionSource,
		"test_event_code": f.options.TestEventCode,
	})
	if err != nil {
		panic(err)
	}
	return activation.Settings{Config: config, Secrets: f.secrets()}
}

// Seed implements [EventFake].
func (f *MetaConversions) Seed(people ...activation.Person) {
	f.mu.Lock()
	for _, p := range people {
		f.people[p.ID] = f.options.derive(p)
	}
	f.mu.Unlock()
	f.crowd.Seed(people...)
}

// The members of user_data that are lists of hashes, by the columns that Custom Audiences have for the same.
var metaHashed = map[string]string{
	"EMAIL": "em", "PHONE": "ph", "FN": "fn", "LN": "ln", "CT": "ct", "ST": "st", "ZIP": "zp", "COUNTRY": "country",
}

// derive says by what Meta knows who did something.
func (o MetaConversionsOptions) derive(p activation.Person) Recognised {
	as := MetaOptions{KeysOnly: o.KeysOnly}.derive(p)
	is := Recognised{Mistakes: map[Key]string{}}
	for _, k := range slices.Concat(as.Keys, as.Details) {
		if kind := metaHashed[k.Kind]; kind != "" {
			is.Keys = append(is.Keys, Key{kind, k.Value})
		}
	}
	for k, mistake := range as.Mistakes {
		is.Mistakes[Key{metaHashed[k.Kind], k.Value}] = mistake
	}
	for _, id := range p.Identified("user_id") {
		is.Keys = append(is.Keys, Key{"external_id", Hex(id)})
		maps.Copy(is.Mistakes, HexMistakes("external_id", id, nil))
	}
	if day := strings.ReplaceAll(p.Text("birthday"), "-", ""); day != "" && !o.KeysOnly {
		is.Keys = append(is.Keys, Key{"db", Hex(day)})
		maps.Copy(is.Mistakes, HexMistakes("db", day, map[string]string{p.Text("birthday"): "is the hash of a birthday with hyphens"}))
	}
	return is
}

// Expect implements [EventFake].
func (f *MetaConversions) Expect(events ...activation.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		f.expected[e.MessageID] = e
	}
}

// Received implements [EventFake].
func (f *MetaConversions) Received() (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.received {
		ids = append(ids, k.id)
	}
	slices.Sort(ids)
	return ids
}

// RefuseEvent implements [EventFake]. One event that is refused has all of its message refused.
func (f *MetaConversions) RefuseEvent(messageID string, refuse bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse[messageID] = refuse
}

// Lose has the dataset not be there, or be there again.
func (f *MetaConversions) Lose(lost bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.missing = lost
}

// Partly has the fake say that it has received one event less than it was sent.
func (f *MetaConversions) Partly(partly bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.partly = partly
}

// metaEvents is what comes to /events.
type metaEvents struct {
	Data          []metaEvent `json:"data"`
	TestEventCode string      `json:"test_event_code"`
}

type metaEvent struct {
	Name         string                    `json:"event_name"`
	Time         jsontext.Value            `json:"event_time"`
	ID           string                    `json:"event_id"`
	ActionSource string                    `json:"action_source"`
	SourceURL    string                    `json:"event_source_url"`
	OptOut       bool                      `json:"opt_out"`
	User         map[string]jsontext.Value `json:"user_data"`
	Custom       map[string]jsontext.Value `json:"custom_data"`
	App          *metaApp                  `json:"app_data"`
	Options      []string                  `json:"data_processing_options"`
	Country      *int                      `json:"data_processing_options_country"`
	State        *int                      `json:"data_processing_options_state"`
}

type metaApp struct {
	Advertiser  *int     `json:"advertiser_tracking_enabled"`
	Application *int     `json:"application_tracking_enabled"`
	ExtInfo     []string `json:"extinfo"`
}

func (f *MetaConversions) handle(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	path := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Inspect(r, data)
	if !f.admit(w, r, path) {
		return
	}
	f.tell(w)
	w.Header().Set("Content-Type", "application/json")
	switch route := r.Method + " " + strings.Join(path[2:], "/"); {
	case f.missing:
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, metaError(100, 33, "GraphMethodException", "Unsupported request."))
	case path[1] != metaDataset:
		f.violateAnd(w, metaError(100, 33, "GraphMethodException", "Unsupported request."), "the dataset %s is not there", path[1])
	case route == "GET ":
		f.fields(w, r, map[string]any{"id": metaDataset, "name": "Shop"})
	case route == "POST events" && r.Header.Get("Content-Type") == "application/json":
		f.events(w, data)
	case route == "POST events":
		f.violateAnd(w, metaError(100, 0, "OAuthException", "Invalid parameter"), "the content type is %q", r.Header.Get("Content-Type"))
	default:
		f.violateAnd(w, metaError(2500, 0, "OAuthException", "Unknown path components"), "%s %s is not known", r.Method, r.URL.Path)
	}
}

// events takes a message in: all of it, or nothing.
func (f *MetaConversions) events(w http.ResponseWriter, data []byte) {
	var m metaEvents
	if err := json.Unmarshal(data, &m, json.RejectUnknownMembers(true)); err != nil {
		f.violateAnd(w, metaError(100, 0, "OAuthException", "Invalid parameter"), "the body cannot be read: %v", err)
		return
	}
	if n := len(m.Data); n == 0 || n > 1000 {
		f.violateAnd(w, metaError(100, 2804008, "OAuthException", "Invalid parameter"), "there are %d events, want 1 to 1000", n)
		return
	}
	if m.TestEventCode != f.options.TestEventCode {
		f.Violate("the code for test events is %q", m.TestEventCode)
	}
	for _, e := range m.Data {
		subcode, wrong := f.invalid(e)
		if wrong != "" {
			f.violateAnd(w, metaError(100, subcode, "OAuthException", "Invalid parameter"), "event %q %s", e.ID, wrong)
			return
		}
	}
	for _, e := range m.Data {
		if f.refuse[e.ID] {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, metaError(100, 2804000, "OAuthException", "Invalid parameter"))
			return
		}
	}
	received := len(m.Data)
	if f.partly {
		received--
	}
	for _, e := range m.Data {
		if f.check(e); e.Name != "ConnectionTest" {
			f.received[metaEventKey{e.Name, e.ID}] = true
		}
	}
	fmt.Fprintf(w, `{"events_received":%d,"messages":[],"fbtrace_id":"AbCdEf"}`, received)
}

var metaSources = []string{
	"website", "app", "phone_call", "chat", "email", "physical_store", "system_generated", "business_messaging", "other",
}

var (
	metaLists  = []string{"em", "ph", "fn", "ln", "db", "ge", "ct", "st", "zp", "country", "external_id"}
	metaTexts  = []string{"client_ip_address", "client_user_agent", "fbc", "fbp", "madid"}
	metaHash   = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)
	metaCookie = regexp.MustCompile(`^fb\.[0-2]\.[0-9]{13}\.[A-Za-z0-9._-]+$`)
)

// invalid says what Meta itself would refuse an event for.
func (f *MetaConversions) invalid(e metaEvent) (subcode int, wrong string) {
	at, err := strconv.ParseInt(string(e.Time), 10, 64)
	if err != nil {
		return 0, "has an event_time that is no integer: " + string(e.Time)
	}
	most := 7 * 24 * time.Hour
	if e.ActionSource == "physical_store" {
		most = 62 * 24 * time.Hour
	}
	age := f.Steady().Sub(time.Unix(at, 0))
	lists, texts, unreadable := e.user()
	switch {
	case e.Name == "":
		return 0, "has no name"
	case age > most+time.Minute:
		return 2804003, "is too old"
	case age < -time.Minute && !f.Skewed():
		return 2804004, "is from the future, or its time is in milliseconds"
	case !slices.Contains(metaSources, e.ActionSource):
		return 0, "has an unknown action_source: " + e.ActionSource
	case unreadable != "":
		return 0, unreadable
	case e.ActionSource == "website" && (texts["client_user_agent"] == "" || !strings.HasPrefix(e.SourceURL, "http")):
		return 2804019, "is of a website, and has no user agent or no URL"
	case e.ActionSource == "app" && (e.App == nil || e.App.Advertiser == nil || e.App.Application == nil || len(e.App.ExtInfo) != 16 ||
		e.App.ExtInfo[0] != "a2" && e.App.ExtInfo[0] != "i2" || e.App.ExtInfo[4] == ""):
		return 0, "is of an app, and has no app_data as it should be"
	case len(lists["em"])+len(lists["ph"])+len(lists["external_id"])+len(lists["fn"])+len(lists["zp"]) == 0 &&
		texts["fbc"]+texts["fbp"]+texts["madid"]+texts["client_ip_address"] == "":
		return 2804050, "says too little of who it was"
	case e.Name == "Purchase" && (e.Custom["value"].Kind() != '0' || e.Custom["currency"].Kind() != '"'):
		return 2804009, "is a purchase, and has no value that is a number, or no currency"
	case len(e.Options) > 1 || len(e.Options) == 1 && e.Options[0] != "LDU":
		return 0, "has data processing options that are not known"
	case len(e.Options) == 1 && (e.Country == nil || e.State == nil || *e.Country != 0 && *e.Country != 1 || *e.State != 0 && *e.State != 1000):
		return 0, "has no country and state for its data processing options"
	}
	for kind, values := range lists {
		for _, v := range values {
			if !metaHash.MatchString(v) && kind != "external_id" {
				return 0, kind + " is not hashed"
			}
		}
	}
	return 0, ""
}

// user reads user_data, and says what of it cannot be read.
func (e metaEvent) user() (lists map[string][]string, texts map[string]string, wrong string) {
	lists, texts = map[string][]string{}, map[string]string{}
	for name, v := range e.User {
		var (
			list []string
			text string
		)
		switch {
		case slices.Contains(metaLists, name) && json.Unmarshal(v, &list) == nil && len(list) > 0:
			lists[name] = list
		case slices.Contains(metaTexts, name) && v.Kind() == '"' && json.Unmarshal(v, &text) == nil && text != "":
			texts[name] = text
		default:
			return nil, nil, "has something in user_data that is not known, or empty: " + name
		}
	}
	return lists, texts, ""
}

// check holds what a message says of an event against what is true, as Meta cannot.
func (f *MetaConversions) check(e metaEvent) {
	violate := func(format string, args ...any) {
		f.Violate("event %q "+format, append([]any{e.ID}, args...)...)
	}
	lists, texts, _ := e.user()
	f.shape(e, texts, violate)
	if e.Name == "ConnectionTest" {
		if f.options.TestEventCode == "" {
			violate("is a test without a code for test events")
		}
		return
	}
	want, ok := f.expected[e.ID]
	if !ok {
		violate("was never heard of")
		return
	}
	var keys []Key
	for kind, values := range lists {
		for _, v := range values {
			keys = append(keys, Key{kind, v})
		}
	}
	f.crowd.Check(fmt.Sprintf("event %q", e.ID), keys...)
	for _, k := range f.people[want.Person.ID].Keys {
		if !slices.Contains(keys, k) {
			violate("does not say %s of the person", k)
		}
	}
	limited := metaLimits(want.Person, f.options.LimitedDataUse) || want.Person.Consent[activation.GPC]
	if limited != (len(e.Options) == 1) {
		violate("has limited data use %t, want %t", len(e.Options) == 1, limited)
	}
	if in := metaCountry(want.Person) == "us" && metaState(want.Person) == "ca"; limited && e.State != nil && in != (*e.State == 1000) {
		violate("is said to be of state %d", *e.State)
	}
	if string(e.Time) != strconv.FormatInt(want.Timestamp.Unix(), 10) || e.ActionSource != f.options.ActionSource {
		violate("is not when or where it happened")
	}
	f.context(e, texts, want, violate)
	f.custom(e, want, violate)
}

// shape notes what Meta takes and cannot make use of.
func (f *MetaConversions) shape(e metaEvent, texts map[string]string, violate func(string, ...any)) {
	if e.ID == "" {
		violate("has no id")
	}
	for _, name := range []string{"fbc", "fbp"} {
		if v := texts[name]; v != "" && !metaCookie.MatchString(v) {
			violate("has an %s that is none: %s", name, v)
		}
	}
	if v := texts["client_ip_address"]; v != "" {
		if ip, err := netip.ParseAddr(v); err != nil || ip.IsPrivate() || ip.IsLoopback() {
			violate("has no address that says anything: %s", v)
		}
	}
	if v := texts["madid"]; v != strings.ToLower(v) || v != "" && len(v) != 36 || v != "" && e.ActionSource != "app" {
		violate("has a madid that is in capitals, hashed, or not of an app")
	}
	if len(e.Options) == 0 && (e.Country != nil || e.State != nil) {
		violate("has a country and a state for no data processing options")
	}
}

// context holds what a message says of the browser against what is true.
func (f *MetaConversions) context(e metaEvent, texts map[string]string, want activation.Event, violate func(string, ...any)) {
	var c struct {
		IP        string `json:"ip"`
		UserAgent string `json:"userAgent"`
		Browser   string `json:"fbp"`
		Page      struct {
			URL string `json:"url"`
		} `json:"page"`
	}
	if want.Context.Raw != nil {
		if err := json.Unmarshal(want.Context.Raw, &c); err != nil {
			panic(err)
		}
	}
	_, click, _ := strings.Cut(c.Page.URL, "fbclid=")
	if click != "" {
		click = fmt.Sprintf("fb.1.%d.%s", want.Timestamp.UnixMilli(), click)
	}
	for name, is := range map[string]string{
		"client_ip_address": c.IP, "client_user_agent": c.UserAgent, "fbp": c.Browser, "fbc": click,
	} {
		if texts[name] != is {
			violate("has %s %q, want %q", name, texts[name], is)
		}
	}
	if e.SourceURL != c.Page.URL {
		violate("has the URL %q, want %q", e.SourceURL, c.Page.URL)
	}
}

// custom holds what a message says of an order against what is true.
func (f *MetaConversions) custom(e metaEvent, want activation.Event, violate func(string, ...any)) {
	var order struct {
		ID       jsontext.Value `json:"order_id"`
		Total    jsontext.Value `json:"total"`
		Currency jsontext.Value `json:"currency"`
		Products []struct {
			ID       string         `json:"product_id"`
			Name     string         `json:"name"`
			Price    jsontext.Value `json:"price"`
			Quantity int            `json:"quantity"`
		} `json:"products"`
	}
	if err := json.Unmarshal(want.Properties, &order); err != nil {
		panic(err)
	}
	var ids, contents []string
	items := 0
	for _, p := range order.Products {
		ids = append(ids, strconv.Quote(p.ID))
		contents = append(contents, fmt.Sprintf(`{"id":%q,"quantity":%d,"item_price":%s}`, p.ID, p.Quantity, p.Price))
		items += p.Quantity
	}
	is := map[string]string{
		"value": string(order.Total), "currency": string(order.Currency), "order_id": string(order.ID), "content_type": `"product"`,
		"content_ids": "[" + strings.Join(ids, ",") + "]", "contents": "[" + strings.Join(contents, ",") + "]",
		"num_items": strconv.Itoa(items),
	}
	if want.Name != "Order Completed" || e.Name != "Purchase" {
		violate("is named %s", e.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Custom)) {
		if is[name] == "" {
			violate("has %s, which nobody asked for", name)
		}
	}
	for name, v := range is {
		if string(e.Custom[name]) != v {
			violate("has %s %s, want %s", name, e.Custom[name], v)
		}
	}
}

package meta

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// Where events happen: Conversions API, Server Event Parameters. business_messaging is not among them: it needs ids of pages
// and chats that nobody has but Meta's own webhooks.
const (
	website = "website"
	app     = "app"
	store   = "physical_store"
)

var actionSources = []string{website, app, "phone_call", "chat", "email", store, "system_generated", "other"}

// actionSource is the one field of a subscription that goes beside custom_data.
const actionSource = "action_source"

// elsewhere are members of an event that are not of custom_data, and not for subscriptions to set.
var elsewhere = []string{
	"event_name", "event_time", "event_id", "event_source_url", "opt_out", "user_data", "custom_data", "app_data",
	"data_processing_options", "data_processing_options_country", "data_processing_options_state", "test_event_code",
}

type eventsBody struct {
	Data          []serverEvent `json:"data"`
	TestEventCode string        `json:"test_event_code,omitzero"`
}

// serverEvent is an event as the Conversions API has it.
type serverEvent struct {
	Name         string                    `json:"event_name"`
	Time         int64                     `json:"event_time"` // Unix seconds
	ID           string                    `json:"event_id"`
	ActionSource string                    `json:"action_source"`
	SourceURL    string                    `json:"event_source_url,omitzero"`
	OptOut       bool                      `json:"opt_out,omitzero"` // from being shown ads because of this
	User         userData                  `json:"user_data"`
	Custom       map[string]jsontext.Value `json:"custom_data,omitempty"`
	App          *appData                  `json:"app_data,omitzero"`

	// Limited Data Use, with the country and state of the person, or 0 for Meta to find out.
	Options []string `json:"data_processing_options,omitzero"`
	Country *int     `json:"data_processing_options_country,omitzero"`
	State   *int     `json:"data_processing_options_state,omitzero"`
}

// appData is what is required of events of apps: Conversions API, App Data Parameters.
type appData struct {
	AdvertiserTracking  int      `json:"advertiser_tracking_enabled"`
	ApplicationTracking int      `json:"application_tracking_enabled"`
	ExtInfo             []string `json:"extinfo"`
}

// standard are Meta's standard events, by the events of Segment's specification that they are: Conversions API, Standard
// Parameters. What is said of products is taken out of them: see [customData].
var standard = func() map[string]activation.Mapping {
	of := func(name string, paths map[string]string) activation.Mapping {
		m := activation.Mapping{Name: name, Fields: map[string]activation.Field{}}
		for field, path := range paths {
			m.Fields[field] = activation.At(path)
		}
		return m
	}
	product := map[string]string{
		"value": "properties.price", "currency": "properties.currency", "content_ids": "properties", "contents": "properties",
		"content_name": "properties.name", "content_category": "properties.category",
	}
	order := func(value string) map[string]string {
		return map[string]string{
			"value": value, "currency": "properties.currency", "order_id": "properties.order_id",
			"content_ids": "properties.products", "contents": "properties.products", "num_items": "properties.products",
		}
	}
	return map[string]activation.Mapping{
		"Page Viewed":      of("PageView", nil),
		"Signed Up":        of("CompleteRegistration", nil),
		"Product Viewed":   of("ViewContent", product),
		"Product Added":    of("AddToCart", product),
		"Checkout Started": of("InitiateCheckout", order("properties.value")),
		"Order Completed":  of(purchase, order("properties.total")),

		"Product Added to Wishlist": of("AddToWishlist", product),
		"Payment Info Entered":      of("AddPaymentInfo", map[string]string{"order_id": "properties.order_id"}),
		"Products Searched":         of("Search", map[string]string{"search_string": "properties.query"}),
		"Product List Viewed": of("ViewContent", map[string]string{
			"content_category": "properties.category", "content_ids": "properties.products", "contents": "properties.products",
		}),
	}
}()

const purchase = "Purchase"

// MapEvent implements [activation.EventPartner].
func (*Conversions) MapEvent(_ activation.Target, name string) (activation.Mapping, bool) {
	m, ok := standard[name]
	return m, ok
}

var escape = strings.NewReplacer("~", "~0", "/", "~1") // of JSON Pointer

var property = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)

// CheckMapping implements [activation.EventPartner]. Fields are those of custom_data, of which everybody may make up more,
// and action_source.
func (*Conversions) CheckMapping(t activation.Target, m activation.Mapping) error {
	cfg, _, err := readConversions(t.Settings)
	if err != nil {
		return fmt.Errorf("read a destination's settings: %w", err)
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(m.Fields)) {
		fault := func(detail string) {
			errs = append(errs, &activation.FieldError{Pointer: "/fields/" + escape.Replace(name), Detail: detail})
		}
		switch f := m.Fields[name]; {
		case slices.Contains(elsewhere, name):
			fault("is set by itself")
		case !property.MatchString(name):
			fault("must be letters, digits and underscores")
		case name == actionSource && f.Value != nil && f.Value.Kind() != 'n':
			if wrong := wrongSource(cfg, text(f.Value)); wrong != "" {
				fault(wrong)
			}
		}
	}
	return errors.Join(errs...)
}

// wrongSource says what is wrong with where an event is said to have happened.
func wrongSource(cfg ConversionsConfig, source string) string {
	switch {
	case !slices.Contains(actionSources, source):
		return "must be one of " + strings.Join(actionSources, ", ")
	case cfg.ActionSource == store && source != store: // its events may be older
		return "must be " + store + ", as that of the destination is"
	}
	return ""
}

// sourceOf returns where an event happened.
func sourceOf(cfg ConversionsConfig, e activation.Event) string {
	if v := e.Fields[actionSource]; v != nil {
		return text(v)
	}
	return cfg.ActionSource
}

// RefuseEvent implements [activation.EventPartner].
func (*Conversions) RefuseEvent(t activation.Target, e activation.Event) string {
	cfg, _, err := readConversions(t.Settings)
	if err != nil {
		return "" // as EncodeEvents reports
	}
	source := sourceOf(cfg, e)
	if wrong := wrongSource(cfg, source); wrong != "" {
		return "where it happened, action_source, " + wrong
	}
	user := userDataOf(cfg, e, source)
	switch custom := customData(e.Fields); {
	case source == website && user.UserAgent == "":
		return "an event of a website needs the browser's user agent, and its context has none"
	case source == website && sourceURL(e.Context.Page.URL) == "":
		return "an event of a website needs the URL of the page, and its context has none"
	case source == app && extInfo(e)[0] == "":
		return "an event of an app needs to say whether the device is one of Android or iOS"
	case source == app && e.Context.OS.Version == "":
		return "an event of an app needs the version of the operating system, and its context has none"
	case !user.usable():
		return unmatched(e.Person, cfg)
	case e.As == purchase && custom["value"] == nil:
		return "a purchase needs a value, which is a number, and a currency (ISO 4217)"
	}
	return ""
}

// EncodeEvents implements [activation.EventPartner].
func (*Conversions) EncodeEvents(
	t activation.Target, b activation.EventBatch,
) (encoded []byte, took int, err error) {
	cfg, _, err := readConversions(t.Settings)
	if err != nil {
		return nil, 0, fmt.Errorf("read a destination's settings: %w", err)
	}
	took = min(len(b.Events), max(cfg.Batch, 1), maxEvents)
	body := eventsBody{TestEventCode: cfg.TestEventCode}
	for _, e := range b.Events[:took] {
		at := e.Timestamp
		if at.After(b.At) { // which Meta refuses
			at = b.At
		}
		source := sourceOf(cfg, e)
		s := serverEvent{
			Name: e.As, Time: at.Unix(), ID: e.MessageID, ActionSource: source, SourceURL: sourceURL(e.Context.Page.URL),
			OptOut: optedOut(e.Person), User: userDataOf(cfg, e, source), Custom: customData(e.Fields),
		}
		if source == app {
			s.App = appDataOf(e)
		}
		s.process(cfg, e.Person)
		body.Data = append(body.Data, s)
	}
	encoded, err = json.Marshal(body, json.Deterministic(true))
	if err != nil {
		return nil, 0, fmt.Errorf("encode events: %w", err)
	}
	return encoded, took, nil
}

// optedOut tells whether somebody has refused personalised advertising. Of such people nothing is sent unless the owner of
// the destination has asked for less consent than [activation.AdGate] does.
func optedOut(p activation.Person) bool {
	granted, decided := p.Consent[activation.AdPersonalization]
	return decided && !granted || p.Consent[activation.GPC]
}

// process has Meta limit the use of an event's data, if that is asked for, or if the person has opted out of sale and sharing.
// Of California, which has a number, Meta is told; of other states it finds out by itself.
func (s *serverEvent) process(cfg ConversionsConfig, p activation.Person) {
	_, _, lives := countryOf(p)
	if !limit(cfg.LimitedDataUse, p, cmp.Or(lives, cfg.DefaultCountry)) && !p.Consent[activation.GPC] {
		return
	}
	country, state := 0, 0
	if t, ok := State(p.Region(), lives); ok && lives == "US" && t.String() == "ca" {
		country, state = 1, 1000
	}
	s.Options, s.Country, s.State = []string{limited}, &country, &state
}

func appDataOf(e activation.Event) *appData {
	a := &appData{ExtInfo: extInfo(e)}
	if t := e.Context.Device.AdTracking; t != nil && *t {
		a.AdvertiserTracking = 1
	}
	if !optedOut(e.Person) {
		a.ApplicationTracking = 1
	}
	return a
}

// extInfo says on what device an app runs, of sixteen things those that we know: first the version of the list, which is "",
// if the system is neither Android nor iOS.
func extInfo(e activation.Event) []string {
	c := e.Context
	info := make([]string, 16)
	switch strings.ToLower(cmp.Or(c.OS.Name, c.Device.Type)) {
	case "android":
		info[0] = "a2"
	case "ios", "ipados", "iphone os":
		info[0] = "i2"
	}
	info[1], info[2], info[3] = c.App.Namespace, c.App.Version, c.App.Version
	info[4], info[5], info[6], info[15] = c.OS.Version, c.Device.Model, strings.ReplaceAll(c.Locale, "-", "_"), c.Timezone
	return info
}

// sourceURL returns the URL of a page without its fragment, and without what holds an e-mail address: Meta wants no personal
// data in it. It is "" for what is no page of the web.
func sourceURL(raw string) string {
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return ""
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	if query, err := url.QueryUnescape(u.RawQuery); err != nil || strings.Contains(query, "@") {
		u.RawQuery = ""
	}
	if strings.Contains(u.Path, "@") {
		u.Path, u.RawPath = "/", ""
	}
	return u.String()
}

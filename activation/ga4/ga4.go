// Package ga4 tells Google Analytics 4 what people did, by the Measurement Protocol.
//
//	Event ──► visitor     client_id or app_instance_id, user_id, consent, user_properties
//	     └──► parameters  items, value, currency, transaction_id, session_id, …
//	                 │
//	                 ▼
//	{"client_id": "123.456", "consent": {…}, "events": [{"name", "timestamp_micros", "params"}, …]}
//	                 │
//	                 ├──► POST /mp/collect        counts; answers 2xx whatever it was given
//	                 └──► POST /debug/mp/collect  counts nothing; tells what is wrong with the form
//
// A request is of one visitor: one device, one user, one state of consent. A message is therefore about the first events of a
// batch that are of the same visitor, 25 at most.
//
// Google Analytics never refuses anything, it forgets: names that it reserves, parameters beyond its limits, events of which
// it knows no visitor, and everything that comes under a wrong secret. So each event is held to the documented limits before.
// An event that cannot be sent is refused with the reason; a parameter that cannot be is left out.
//
// Delivery is at least once, and Google Analytics counts what comes twice twice, but for purchases: of those of one user with
// one transaction_id it keeps one. So a purchase without it is refused. Our own id of an event goes along only where a
// parameter is named for it.
//
// Google's terms forbid personal data. Parameters that hold an e-mail address or a phone number are left out, of the
// addresses of pages the parts that do, and so are user ids and properties.
package ga4

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

const (
	timeout = 20 * time.Second

	collect  = "/mp/collect"
	validate = "/debug/mp/collect"
)

// What the Measurement Protocol allows: "Limitations" and "Payload" in its guide and reference.
const (
	maxEvents        = 25
	maxParameters    = 25
	maxProperties    = 25
	maxItems         = 200
	maxName          = 40
	maxPropertyName  = 24
	maxPropertyValue = 36
	maxUserID        = 256
	maxBody          = 130_000                      // bytes; a body must be smaller
	maxAge           = 72*time.Hour - 5*time.Minute // a message needs a while to arrive
)

// Partner sends to Google Analytics. Make one with [New].
type Partner struct {
	client   *http.Client
	outbound activation.Outbound
}

var (
	_ activation.EventPartner = (*Partner)(nil)
	_ activation.Validator    = (*Partner)(nil)
)

// New returns a partner that sends with client, which must be one of [activation.NewClient] for the same cfg.
func New(client *http.Client, cfg activation.Outbound) *Partner {
	return &Partner{client: client, outbound: cfg}
}

// Config is what a destination's config holds. It has either a measurement id, of a web stream, or the id of a Firebase app.
type Config struct {
	MeasurementID string `json:"measurement_id,omitzero"`
	FirebaseAppID string `json:"firebase_app_id,omitzero"`

	Region string `json:"region,omitzero" validate:"omitempty,oneof=global eu"` // where data is collected
	APIURL string `json:"api_url,omitzero"`                                     // instead of Google's host of the region

	UserProperties     map[string]string `json:"user_properties,omitzero"` // trait by property
	NoUserID           bool              `json:"no_user_id,omitzero"`
	UserAgent          bool              `json:"user_agent,omitzero"`           // of who did it
	DefaultCurrency    string            `json:"default_currency,omitzero"`     // of values without one
	MessageIDParameter string            `json:"message_id_parameter,omitzero"` // has our id of the event
	Analytics360       bool              `json:"analytics_360,omitzero"`        // of the paid edition, whose texts may be longer
	Concurrency        int               `json:"concurrency,omitzero" validate:"omitempty,min=1,max=16"`
}

// secrets is what is sealed.
type secrets struct {
	APISecret string `json:"api_secret" validate:"required"`
}

// Type returns "ga4".
func (*Partner) Type() string { return "ga4" }

var (
	measurementID = regexp.MustCompile(`^G-[A-Z0-9]{4,20}$`)
	firebaseAppID = regexp.MustCompile(`^[0-9]+:[0-9]+:(android|ios|web):[0-9a-f]+$`)
)

// Prepare implements [activation.Partner].
func (p *Partner) Prepare(s activation.Settings) (activation.Settings, error) {
	cfg := Config{Region: "global", Concurrency: 8}
	var sec secrets
	errs := []error{wire.Check(s, &cfg, &sec)}
	fault := func(pointer, detail string) {
		errs = append(errs, &activation.FieldError{Pointer: pointer, Detail: detail})
	}
	cfg.MeasurementID, cfg.FirebaseAppID = strings.TrimSpace(cfg.MeasurementID), strings.TrimSpace(cfg.FirebaseAppID)
	switch {
	case cfg.MeasurementID == "" && cfg.FirebaseAppID == "":
		errs = append(errs, &activation.FieldError{
			Pointer: "/config/measurement_id", Detail: "is required, unless there is a firebase_app_id", Code: activation.CodeRequired,
		})
	case cfg.MeasurementID != "" && cfg.FirebaseAppID != "":
		fault("/config/firebase_app_id", "must not be given beside measurement_id: a destination is one data stream")
	case cfg.MeasurementID != "" && !measurementID.MatchString(cfg.MeasurementID):
		fault("/config/measurement_id", "must be a measurement id such as G-1A2BCD345E, which is not the stream id")
	case cfg.FirebaseAppID != "" && !firebaseAppID.MatchString(cfg.FirebaseAppID):
		fault("/config/firebase_app_id", "must be a Firebase app id such as 1:1234567890:android:321abc456def7890")
	}
	if cfg.APIURL = strings.TrimRight(cfg.APIURL, "/"); cfg.APIURL != "" {
		if wrong := p.outbound.CheckURL(cfg.APIURL); wrong != "" {
			fault("/config/api_url", wrong)
		} else if strings.Contains(cfg.APIURL, "?") {
			fault("/config/api_url", "must not have a query")
		}
	}
	if cfg.DefaultCurrency != "" && !currency.MatchString(cfg.DefaultCurrency) {
		fault("/config/default_currency", "must be the three upper-case letters of a currency (ISO 4217)")
	}
	if name := cfg.MessageIDParameter; name != "" {
		if wrong := parameterFault(name); wrong != "" {
			fault("/config/message_id_parameter", wrong)
		} else if isMapped(name) {
			fault("/config/message_id_parameter", "must not be a parameter that events have already")
		}
	}
	if len(cfg.UserProperties) > maxProperties {
		fault("/config/user_properties", fmt.Sprintf("must be at most %d", maxProperties))
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.UserProperties)) {
		if wrong := propertyFault(name, cfg.UserProperties[name]); wrong != "" {
			fault("/config/user_properties/"+escape.Replace(name), wrong)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return activation.Settings{}, err
	}
	return wire.Settings(cfg, sec)
}

// Mask implements [activation.Partner].
func (*Partner) Mask(v jsontext.Value) map[string]string {
	_, sec, err := read(activation.Settings{Secrets: v})
	if err != nil || sec.APISecret == "" {
		return nil
	}
	return map[string]string{"api_secret": wire.Mask(sec.APISecret)}
}

func read(s activation.Settings) (cfg Config, sec secrets, err error) {
	err = wire.Read(s, &cfg, &sec)
	return cfg, sec, err
}

// Gate implements [activation.Partner].
func (*Partner) Gate() activation.Gate { return activation.AdGate() }

// Limits implements [activation.Partner].
func (*Partner) Limits(t activation.Target) activation.Limits {
	cfg, _, _ := read(t.Settings) // what cannot be read is reported when a message is made
	return activation.Limits{
		Events: maxEvents, OnePerson: true, MaxAge: maxAge,
		Concurrency: cfg.Concurrency, Timeout: timeout, Linger: activation.DefaultLinger,
	}
}

// Send implements [activation.Partner]. An OK says no more than that the request was received.
func (p *Partner) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	a, o := p.post(ctx, to, collect, m.Body)
	if o.Class == activation.OK && strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") {
		return a.Unreadable() // a page of somebody in between
	}
	return o
}

func (p *Partner) post(ctx context.Context, to activation.Target, path string, body []byte) (wire.Answer, activation.Outcome) {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return wire.Answer{}, wire.BadSettings()
	}
	query := url.Values{"api_secret": {sec.APISecret}}
	if cfg.FirebaseAppID != "" {
		query.Set("firebase_app_id", cfg.FirebaseAppID)
	} else {
		query.Set("measurement_id", cfg.MeasurementID)
	}
	a, o := wire.Do(ctx, p.client, wire.Request{Method: http.MethodPost, URL: cfg.host() + path + "?" + query.Encode(), Body: body})
	switch a.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		o.Reason = "not Google Analytics but somebody in between refused the request: look at api_url"
	case http.StatusNotFound, http.StatusGone:
		o.Reason = "there is no Measurement Protocol: look at api_url"
	}
	return a, o
}

// host returns the URL of the Measurement Protocol's host: "Transport" in its reference.
func (cfg Config) host() string {
	switch {
	case cfg.APIURL != "":
		return cfg.APIURL
	case cfg.Region == "eu":
		return "https://region1.google-analytics.com"
	default:
		return "https://www.google-analytics.com"
	}
}

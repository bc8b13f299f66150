// Package meta speaks to two APIs of Meta's in the one Graph API: [Partner] keeps Custom Audiences of the Marketing API equal
// to segments, and [Conversions] tells datasets of events over the Conversions API.
//
//	Person ──► Identify ──► Identifiers ──► Encode ──► rows ──► POST /{audience}/users     to add
//	           normalise,   one ID for                          DELETE /{audience}/users   to remove, with the same rows
//	           matchkey     each row
//
// Meta has one column for each kind of key, and matches a row with one of its own people. So there is a row for every e-mail
// address, phone number and device, with the person's name and place beside it: of two keys in one row nobody could say by
// which Meta had matched, and so neither could go while the other stays.
//
// Meta answers with how many rows it could not read, not with which, and has taken the others: a message is halved until
// whom it could not read stands alone. What it could not read of a message that removes is not there.
//
// Audiences are made where none is given; one that was made before is found by its description. There is nothing to refresh:
// the token of a system user does not end, and where one does, somebody has to make another.
//
//	Event ──► MapEvent ──► As, Fields ──► customData ─┐
//	Person, context ──────────────────► userDataOf ───┴──► POST /{dataset}/events
//
// Of events Meta refuses a whole message for one that is bad, which is halved until that one stands alone. One that comes
// again it knows by its name and id.
package meta

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

const (
	timeout = 30 * time.Second
	maxRows = 10_000 // in one request: Marketing API, Custom Audience Users
)

// Partner sends to Custom Audiences. Make one with [New].
type Partner struct {
	client   *http.Client
	outbound activation.Outbound
}

var (
	_ activation.AudiencePartner = (*Partner)(nil)
	_ activation.Creator         = (*Partner)(nil)
	_ activation.Sizer           = (*Partner)(nil)
)

// New returns a partner that sends with client, which must be one of [activation.NewClient] for the same cfg.
func New(client *http.Client, cfg activation.Outbound) *Partner {
	return &Partner{client: client, outbound: cfg}
}

// Config is what a destination's config holds.
type Config struct {
	AdAccountID string `json:"ad_account_id" validate:"required"`
	Connection

	Batch           int `json:"batch,omitzero" validate:"omitempty,min=1,max=10000"` // rows in one request, at most
	Concurrency     int `json:"concurrency,omitzero" validate:"omitempty,min=1,max=16"`
	RequestsPerHour int `json:"requests_per_hour,omitzero" validate:"omitempty,min=1,max=700000"` // of the ad account

	CustomerFileSource string `json:"customer_file_source,omitzero" validate:"omitempty,oneof=USER_PROVIDED_ONLY PARTNER_PROVIDED_ONLY BOTH_USER_AND_PARTNER_PROVIDED"`

	DefaultCountry string `json:"default_country,omitzero" validate:"omitempty,iso3166_1_alpha2"` // of phone numbers
	KeysOnly       bool   `json:"keys_only,omitzero"`                                             // no names and places
	ExternID       bool   `json:"extern_id,omitzero"`                                             // the customer's own ids, which are not hashed

	CustomerConsent bool   `json:"customer_consent,omitzero"`
	LimitedDataUse  string `json:"limited_data_use,omitzero" validate:"omitempty,oneof=off us_states all"`
}

// Type returns "meta".
func (*Partner) Type() string { return "meta" }

// Prepare implements [activation.Partner]. An ad account may be named with or without "act_".
func (p *Partner) Prepare(s activation.Settings) (activation.Settings, error) {
	cfg := Config{
		Connection: usual, Batch: 5000, Concurrency: 4, RequestsPerHour: 5000, CustomerFileSource: "USER_PROVIDED_ONLY",
		LimitedDataUse: "off",
	}
	var sec secrets
	errs := []error{wire.Check(s, &cfg, &sec)}
	fault := func(pointer, detail string) {
		errs = append(errs, &activation.FieldError{Pointer: pointer, Detail: detail})
	}
	if given := cfg.AdAccountID; given != "" {
		cfg.AdAccountID = strings.TrimPrefix(strings.TrimSpace(given), "act_")
		if cfg.AdAccountID == "" || !digits(cfg.AdAccountID) {
			fault("/config/ad_account_id", "must be the digits of an ad account's id")
		}
	}
	cfg.tidy(&sec, p.outbound, fault)
	if err := errors.Join(errs...); err != nil {
		return activation.Settings{}, err
	}
	return wire.Settings(cfg, sec)
}

// Mask implements [activation.Partner].
func (*Partner) Mask(v jsontext.Value) map[string]string {
	_, sec, err := read(activation.Settings{Secrets: v})
	if err != nil {
		return nil
	}
	return sec.mask()
}

func read(s activation.Settings) (cfg Config, sec secrets, err error) {
	err = wire.Read(s, &cfg, &sec)
	return cfg, sec, err
}

// ask makes a request for a destination and decodes the answer.
func (p *Partner) ask(ctx context.Context, to activation.Target, r request, into any) activation.Outcome {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return wire.BadSettings()
	}
	r.needs = "ads_management is needed, and a role in the ad account"
	return cfg.ask(ctx, p.client, sec, r, into)
}

// Gate implements [activation.Partner].
func (*Partner) Gate() activation.Gate { return activation.AdGate() }

// Limits implements [activation.Partner]. Meta counts requests about Custom Audiences by ad account and hour: 5,000 for an
// app with limited access, 190,000 with full access, and more for every audience.
func (*Partner) Limits(t activation.Target) activation.Limits {
	cfg, _, _ := read(t.Settings) // what cannot be read is reported when a message is made
	return activation.Limits{
		Members: cfg.Batch, Concurrency: cfg.Concurrency, Timeout: timeout, Linger: activation.DefaultLinger,
		NeedsAudience: true,
		Account:       "meta:" + cfg.AdAccountID,
		Rates:         []activation.Rate{{Requests: max(cfg.RequestsPerHour, 1), Per: time.Hour}},
	}
}

// Send implements [activation.Partner].
func (p *Partner) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	r := request{method: http.MethodDelete, path: m.Audience + "/users", body: m.Body, what: "the audience"}
	entered := len(m.Members) > 0 && m.Members[0].Entered
	if entered {
		r.method = http.MethodPost
	}
	var answer struct {
		Received *int64 `json:"num_received"`
		Invalid  int64  `json:"num_invalid_entries"`
	}
	o := p.ask(ctx, to, r, &answer)
	switch {
	case o.Class != activation.OK:
		return o
	case answer.Received == nil:
		return unreadable(o)
	case answer.Invalid <= 0 || !entered:
		return o
	}
	rows := rowsOf(m.Body)
	switch {
	case answer.Invalid >= rows:
		o.Class, o.Reason = activation.Drop, "Meta could not read any of the person's keys"
	case len(m.Members) > 1: // who was readable is there by now
		o.Class, o.Unknown, o.Reason = activation.Split, true, "Meta could not read some rows"
	default: // the person is there by the other keys
		o.Reason = "Meta could not read some of the person's keys"
	}
	return o
}

package meta

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
	"github.com/mubatch/mubatch/activation/wire"
)

// maxEvents is how many events a request may have: Conversions API, Using the API.
const maxEvents = 1000

// How old events may be: Conversions API, Server Event Parameters. What is under way gets older by the timeout at most.
const (
	maxAge      = 7*24*time.Hour - timeout
	maxStoreAge = 62*24*time.Hour - timeout
)

// Conversions sends events to datasets. Make one with [NewConversions].
type Conversions struct {
	client   *http.Client
	outbound activation.Outbound
}

var _ activation.EventPartner = (*Conversions)(nil)

// NewConversions returns a partner that sends with client, which must be one of [activation.NewClient] for the same cfg.
func NewConversions(client *http.Client, cfg activation.Outbound) *Conversions {
	return &Conversions{client: client, outbound: cfg}
}

// ConversionsConfig is what a destination's config holds.
type ConversionsConfig struct {
	DatasetID string `json:"dataset_id" validate:"required"` // or a pixel's
	Connection

	// Where events happen, unless a subscription says otherwise.
	ActionSource string `json:"action_source,omitzero" validate:"omitempty,oneof=website app phone_call chat email physical_store system_generated other"`

	// TestEventCode has events show up among the test events of the Events Manager. They count all the same.
	TestEventCode string `json:"test_event_code,omitzero" validate:"omitempty,max=100"`

	Batch       int `json:"batch,omitzero" validate:"omitempty,min=1,max=1000"` // events in one request, at most
	Concurrency int `json:"concurrency,omitzero" validate:"omitempty,min=1,max=16"`

	DefaultCountry string `json:"default_country,omitzero" validate:"omitempty,iso3166_1_alpha2"` // of phone numbers
	KeysOnly       bool   `json:"keys_only,omitzero"`                                             // no names and places
	LimitedDataUse string `json:"limited_data_use,omitzero" validate:"omitempty,oneof=off us_states all"`
}

// Type returns "meta_conversions".
func (*Conversions) Type() string { return "meta_conversions" }

// Prepare implements [activation.Partner].
func (p *Conversions) Prepare(s activation.Settings) (activation.Settings, error) {
	cfg := ConversionsConfig{Connection: usual, ActionSource: website, Batch: 200, Concurrency: 4, LimitedDataUse: "off"}
	var sec secrets
	errs := []error{wire.Check(s, &cfg, &sec)}
	fault := func(pointer, detail string) {
		errs = append(errs, &activation.FieldError{Pointer: pointer, Detail: detail})
	}
	if given := cfg.DatasetID; given != "" {
		if cfg.DatasetID = strings.TrimSpace(given); cfg.DatasetID == "" || !digits(cfg.DatasetID) {
			fault("/config/dataset_id", "must be the digits of a dataset's or pixel's id")
		}
	}
	cfg.TestEventCode = strings.TrimSpace(cfg.TestEventCode)
	cfg.tidy(&sec, p.outbound, fault)
	if err := errors.Join(errs...); err != nil {
		return activation.Settings{}, err
	}
	return wire.Settings(cfg, sec)
}

// Mask implements [activation.Partner].
func (*Conversions) Mask(v jsontext.Value) map[string]string {
	_, sec, err := readConversions(activation.Settings{Secrets: v})
	if err != nil {
		return nil
	}
	return sec.mask()
}

func readConversions(s activation.Settings) (cfg ConversionsConfig, sec secrets, err error) {
	err = wire.Read(s, &cfg, &sec)
	return cfg, sec, err
}

// Gate implements [activation.Partner].
func (*Conversions) Gate() activation.Gate { return activation.AdGate() }

// Limits implements [activation.Partner]. Meta publishes no rate for events: if there are too many, it says so.
func (*Conversions) Limits(t activation.Target) activation.Limits {
	cfg, _, _ := readConversions(t.Settings) // what cannot be read is reported when a message is made
	l := activation.Limits{
		Events: cfg.Batch, Concurrency: cfg.Concurrency, Timeout: timeout, Linger: activation.DefaultLinger,
		Account: "meta_conversions:" + cfg.DatasetID, MaxAge: maxAge,
	}
	if cfg.ActionSource == store {
		l.MaxAge = maxStoreAge
	}
	return l
}

// Send implements [activation.Partner]. Meta refuses all events of a message for a single bad one, and does not always say
// which. One that it has already it counts once, by its name and id.
func (p *Conversions) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	cfg, sec, err := readConversions(to.Settings)
	if err != nil {
		return wire.BadSettings()
	}
	return p.post(ctx, cfg, sec, m.Body, len(m.Events))
}

// post sends a body about some events.
func (p *Conversions) post(
	ctx context.Context, cfg ConversionsConfig, sec secrets, body []byte, events int,
) activation.Outcome {
	var answer struct {
		Received *int `json:"events_received"`
	}
	o := p.ask(ctx, cfg, sec, request{method: http.MethodPost, path: cfg.DatasetID + "/events", body: body}, &answer)
	switch {
	case o.Class != activation.OK:
	case answer.Received == nil:
		return unreadable(o)
	case *answer.Received < events: // those that it took it knows when they come again
		o.Class, o.Unknown, o.Reason = activation.Split, events > 1, "Meta did not take all of the events"
	}
	return o
}

func (p *Conversions) ask(
	ctx context.Context, cfg ConversionsConfig, sec secrets, r request, into any,
) activation.Outcome {
	r.what, r.needs = "the dataset", "it has to be given access to the dataset"
	return cfg.ask(ctx, p.client, sec, r, into)
}

// Test looks at the dataset. With a code for test events it sends one, which shows up in the Events Manager: it is about
// nobody, and under a name that nothing is optimised for.
func (p *Conversions) Test(ctx context.Context, to activation.Target) activation.Outcome {
	cfg, sec, err := readConversions(to.Settings)
	if err != nil {
		return wire.BadSettings()
	}
	if cfg.TestEventCode == "" {
		var answer struct {
			ID string `json:"id"`
		}
		o := p.ask(ctx, cfg, sec, request{method: http.MethodGet, path: cfg.DatasetID, query: url.Values{"fields": {"id,name"}}}, &answer)
		if o.Class == activation.OK && answer.ID != cfg.DatasetID {
			return unreadable(o)
		}
		return o
	}
	now := time.Now()
	event := serverEvent{
		Name: "ConnectionTest", Time: now.Unix(), ID: fmt.Sprintf("mubatch-test-%d", now.UnixNano()),
		ActionSource: "system_generated", OptOut: true,
		User: userData{ExternalIDs: []string{matchkey.Hex("mubatch connection test")}},
	}
	body := encode(eventsBody{Data: []serverEvent{event}, TestEventCode: cfg.TestEventCode})
	return p.post(ctx, cfg, sec, body, 1)
}

package google

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// Conversions tells one conversion action of Google Ads, one Floodlight activity or one data stream of Google Analytics of
// events, through the Data Manager API.
//
//	EncodeEvents ──► events:ingest ──► a request id
//	                                      │ half an hour
//	       requestStatus:retrieve ◄───────┘          how many were refused, and why
//
// Of events with one transaction id a conversion action counts the first: the others are refused as duplicates, and are
// there. So an event may be sent again whenever nobody knows what became of it.
//
// What Google asks for is said in the guides "Send events" of each product, "Diagnostics" and "Understand API errors", and in
// the definitions of google.ads.datamanager.v1. Make one with [NewConversions].
type Conversions struct {
	client   *http.Client
	outbound activation.Outbound
}

var (
	_ activation.EventPartner = (*Conversions)(nil)
	_ activation.Refresher    = (*Conversions)(nil)
	_ activation.Poller       = (*Conversions)(nil)
	_ activation.Validator    = (*Conversions)(nil)
	_ activation.Drafter      = (*Conversions)(nil)
)

// NewConversions returns a partner that sends with client, which must be one of [activation.NewClient] for the same cfg.
func NewConversions(client *http.Client, cfg activation.Outbound) *Conversions {
	return &Conversions{client: client, outbound: cfg}
}

// Type returns "google_conversions".
func (*Conversions) Type() string { return "google_conversions" }

// Gate is [activation.AdGate]: of people in the European Economic Area Google wants both consents.
func (*Conversions) Gate() activation.Gate { return activation.AdGate() }

// Limits are those of Google's "Limits and quotas". Requests count against the same quota as those about audience members.
func (*Conversions) Limits(t activation.Target) activation.Limits {
	cfg, sec, _ := readConversions(t.Settings) // what cannot be read is said when something is sent
	return activation.Limits{
		Events: cfg.batch(), Concurrency: concurrency, Timeout: timeout, Linger: activation.DefaultLinger,
		Account:   sec.project(),
		Rates:     rates,
		MaxAge:    cfg.maxAge(),
		PollEvery: pollEvery,
		PollFor:   pollFor,
	}
}

// Send implements [activation.Partner]. Google refuses a request as a whole for the sake of one event, and says which: that
// one is dropped, and the others are sent again.
func (p *Conversions) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	var answer accepted
	return answer.receipt(p.deliver(ctx, to, m, &answer))
}

// Validate implements [activation.Validator].
func (p *Conversions) Validate(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	m.Body = validateOnly(m.Body)
	return p.deliver(ctx, to, m, nil)
}

// Draft implements [activation.Drafter]: a destination that has no access token yet sends nothing that could be caught.
func (*Conversions) Draft(to activation.Target, m activation.Message) ([]activation.Draft, error) {
	cfg, sec, err := readConversions(to.Settings)
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	return eventDelivery(m.Body).draft(cfg.apiURL(), sec), nil
}

// Test implements [activation.Partner]: it has Google check an example of an event, which is of nobody and does not count.
func (p *Conversions) Test(ctx context.Context, to activation.Target) activation.Outcome {
	cfg, _, err := readConversions(to.Settings)
	if err != nil {
		return wire.BadSettings()
	}
	body, _, err := encodeEvents(cfg, []conversion{cfg.example(time.Now())})
	if err != nil {
		return wire.BadSettings()
	}
	_, o := p.do(ctx, to, eventDelivery(validateOnly(body)), nil)
	if o.Class == activation.Split { // halving does not help
		o.Class = activation.Config
	}
	return o
}

// Refresh implements [activation.Refresher].
func (p *Conversions) Refresh(
	ctx context.Context, to activation.Target,
) (fresh activation.Settings, expires time.Time, o activation.Outcome) {
	cfg, sec, err := readConversions(to.Settings)
	if err != nil {
		return fresh, expires, wire.BadSettings()
	}
	if expires, o = sec.refresh(ctx, p.client, cfg.tokenURL()); o.Class != activation.OK {
		return fresh, expires, o
	}
	return refreshed(cfg, sec, expires, o)
}

// Poll implements [activation.Poller]. Google tells how many events it refused, and why, but not which.
func (p *Conversions) Poll(ctx context.Context, to activation.Target, receipt string) activation.Polled {
	return poll(receipt, func(c call, into any) (wire.Answer, activation.Outcome) { return p.do(ctx, to, c, into) }, status.ofEvents)
}

// Mask shows the client id, or the id of a service account's key, and the ends of what is secret.
func (*Conversions) Mask(v jsontext.Value) map[string]string { return mask(v) }

// deliver sends a message. A row of it is an event.
func (p *Conversions) deliver(ctx context.Context, to activation.Target, m activation.Message, into any) activation.Outcome {
	a, o := p.do(ctx, to, eventDelivery(m.Body), into)
	if o.Class != activation.Split || a.Status == 0 {
		return o
	}
	rows := readRefusal(a).rows()
	if len(rows) == 0 {
		return o
	}
	outcomes := make([]activation.RowOutcome, len(m.Events))
	for i := range outcomes {
		outcomes[i] = activation.RowOutcome{Class: activation.Retry, Reason: "another event in the request was refused"}
	}
	for i, reason := range rows {
		if i >= len(outcomes) {
			return o
		}
		outcomes[i] = activation.RowOutcome{Class: activation.Drop, Reason: ofConversions.row(reason)}
	}
	o.Class, o.Rows = activation.Partial, outcomes
	return o
}

func eventDelivery(body []byte) call {
	return call{method: http.MethodPost, path: "/v1/events:ingest", body: body}
}

func (p *Conversions) do(
	ctx context.Context, to activation.Target, c call, into any,
) (wire.Answer, activation.Outcome) {
	cfg, sec, err := readConversions(to.Settings)
	if err != nil {
		return wire.Answer{}, wire.BadSettings()
	}
	return c.do(ctx, p.client, cfg.apiURL(), sec, ofConversions, into)
}

package partnertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// Sample is a partner that does not exist, and has all that partners have: hashed identifiers, tokens that end, audiences to
// be made, messages that are worked on later, memberships that end, events. The machinery is tested with it.
type Sample struct{ client *http.Client }

var (
	_ activation.AudiencePartner = (*Sample)(nil)
	_ activation.Refresher       = (*Sample)(nil)
	_ activation.Creator         = (*Sample)(nil)
	_ activation.Poller          = (*Sample)(nil)
	_ activation.Sizer           = (*Sample)(nil)
	_ activation.Validator       = (*Sample)(nil)
)

// NewSample returns a sample partner that sends with client.
func NewSample(client *http.Client) *Sample { return &Sample{client: client} }

// SampleConfig is what a destination's config holds.
type SampleConfig struct {
	URL         string `json:"url"`
	Batch       int    `json:"batch,omitzero"`
	Concurrency int    `json:"concurrency,omitzero"`
	Mixed       bool   `json:"mixed,omitzero"`
	Account     string `json:"account,omitzero"`
	PerSecond   int    `json:"per_second,omitzero"`
	LingerMS    int    `json:"linger_ms,omitzero"`
	TTLMinutes  int    `json:"ttl_minutes,omitzero"`
	TimeoutMS   int    `json:"timeout_ms,omitzero"`

	Strict        bool `json:"strict,omitzero"` // one bad event has all of a message refused
	OnePerson     bool `json:"one_person,omitzero"`
	MaxAgeMinutes int  `json:"max_age_minutes,omitzero"`
}

type sampleSecrets struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
}

func sampleConfig(s activation.Settings) (cfg SampleConfig, sec sampleSecrets, err error) {
	if len(s.Config) > 0 {
		err = json.Unmarshal(s.Config, &cfg, json.RejectUnknownMembers(true))
	}
	if len(s.Secrets) > 0 {
		err = errors.Join(err, json.Unmarshal(s.Secrets, &sec))
	}
	return cfg, sec, err
}

// Type implements [activation.Partner].
func (*Sample) Type() string { return "sample" }

// Prepare implements [activation.Partner].
func (*Sample) Prepare(s activation.Settings) (activation.Settings, error) {
	if _, _, err := sampleConfig(s); err != nil {
		return s, &activation.FieldError{Pointer: "/config", Detail: err.Error()}
	}
	return s, nil
}

// Mask implements [activation.Partner].
func (*Sample) Mask(jsontext.Value) map[string]string {
	return map[string]string{"access_token": "…"}
}

// Gate implements [activation.Partner].
func (*Sample) Gate() activation.Gate { return activation.AdGate() }

// Limits implements [activation.Partner].
func (*Sample) Limits(t activation.Target) activation.Limits {
	cfg, _, _ := sampleConfig(t.Settings)
	l := activation.Limits{
		Members: max(cfg.Batch, 1), Concurrency: max(cfg.Concurrency, 1), Timeout: 2 * time.Second, Mixed: cfg.Mixed,
		NeedsAudience: true, Account: cfg.Account, Linger: time.Duration(cfg.LingerMS) * time.Millisecond,
		TTL: time.Duration(cfg.TTLMinutes) * time.Minute, PollEvery: time.Minute,
		Events: sampleMost, OnePerson: cfg.OnePerson, MaxAge: time.Duration(cfg.MaxAgeMinutes) * time.Minute,
	}
	if cfg.PerSecond > 0 {
		l.Rates = []activation.Rate{{Requests: cfg.PerSecond, Per: time.Second}}
	}
	if cfg.TimeoutMS > 0 {
		l.Timeout = time.Duration(cfg.TimeoutMS) * time.Millisecond
	}
	return l
}

// Identify implements [activation.Partner].
func (*Sample) Identify(_ activation.Target, p activation.Person) (activation.Identifiers, error) {
	var ids activation.Identifiers
	hashed := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return hex.EncodeToString(sum[:])
	}
	if email := strings.ToLower(strings.TrimSpace(p.Text("email"))); strings.Contains(email, "@") {
		ids.IDs = append(ids.IDs, activation.Identifier{Kind: "email", Value: hashed(email)})
	}
	if phone := strings.TrimPrefix(p.Text("phone"), "+"); phone != "" {
		ids.IDs = append(ids.IDs, activation.Identifier{Kind: "phone", Value: hashed(phone)})
	}
	if name := strings.ToLower(p.Text("first_name")); name != "" {
		ids.Details = append(ids.Details, activation.Identifier{Kind: "first_name", Value: hashed(name)})
	}
	if len(ids.IDs) == 0 {
		ids.Reason = "neither an e-mail address nor a phone number is known"
	}
	return ids, nil
}

type sampleMessage struct {
	Audience string         `json:"audience"`
	People   []samplePerson `json:"people"`
}

type samplePerson struct {
	Action    string `json:"action"`
	Email     string `json:"email,omitzero"`
	Phone     string `json:"phone,omitzero"`
	FirstName string `json:"first_name,omitzero"`
}

// Encode implements [activation.Partner].
func (*Sample) Encode(_ activation.Target, b activation.Batch) (body []byte, took int, err error) {
	m := sampleMessage{Audience: b.Audience}
	for _, member := range b.Members {
		action := "remove"
		if member.Entered {
			action = "add"
		}
		m.People = append(m.People, samplePerson{
			action, member.Identifiers.Get("email"), member.Identifiers.Get("phone"), member.Identifiers.Get("first_name"),
		})
	}
	body, err = json.Marshal(m)
	return body, len(b.Members), err
}

// Send implements [activation.Partner].
func (p *Sample) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	var answer struct {
		Refused []int  `json:"refused"`
		Receipt string `json:"receipt"`
	}
	path := "/members"
	if m.Events != nil {
		path = "/events"
	}
	o := p.call(ctx, to, http.MethodPost, path, m.Body, &answer)
	if o.Class != activation.OK {
		return o
	}
	o.Receipt = answer.Receipt
	return sampleRows(o, answer.Refused, max(len(m.Members), len(m.Events)))
}

func sampleRows(o activation.Outcome, refused []int, n int) activation.Outcome {
	if len(refused) == 0 {
		return o
	}
	o.Class, o.Receipt, o.Reason = activation.Partial, "", "some people were refused"
	o.Rows = make([]activation.RowOutcome, max(n, refused[len(refused)-1]+1))
	for i := range o.Rows {
		o.Rows[i].Class = activation.OK
	}
	for _, i := range refused {
		o.Rows[i] = activation.RowOutcome{Class: activation.Drop, Reason: "refused by the partner"}
	}
	return o
}

// Validate implements [activation.Validator].
func (p *Sample) Validate(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	path := "/members?validate=1"
	if m.Events != nil {
		path = "/events?validate=1"
	}
	return p.call(ctx, to, http.MethodPost, path, m.Body, nil)
}

// Test implements [activation.Partner].
func (p *Sample) Test(ctx context.Context, to activation.Target) activation.Outcome {
	return p.call(ctx, to, http.MethodGet, "/me", nil, nil)
}

// Create implements [activation.Creator].
func (p *Sample) Create(
	ctx context.Context, to activation.Target, s activation.Segment,
) (audience string, o activation.Outcome) {
	body, err := json.Marshal(map[string]string{"name": s.Name, "ref": fmt.Sprintf("seg_%d", s.ID)})
	if err != nil {
		return "", activation.Outcome{Class: activation.Config, Reason: "the segment cannot be named"}
	}
	var answer struct {
		ID string `json:"id"`
	}
	o = p.call(ctx, to, http.MethodPost, "/audiences", body, &answer)
	return answer.ID, o
}

// Size implements [activation.Sizer].
func (p *Sample) Size(ctx context.Context, to activation.Target, audience string) (activation.Size, activation.Outcome) {
	var answer struct {
		Matched int64  `json:"matched"`
		State   string `json:"state"`
	}
	o := p.call(ctx, to, http.MethodGet, "/audiences/"+audience, nil, &answer)
	return activation.Size{Matched: answer.Matched, State: answer.State}, o
}

// Poll implements [activation.Poller].
func (p *Sample) Poll(ctx context.Context, to activation.Target, receipt string) activation.Polled {
	var answer struct {
		State   string `json:"state"`
		Refused []int  `json:"refused"`
		Matched string `json:"matched"`
	}
	o := p.call(ctx, to, http.MethodGet, "/receipts/"+receipt, nil, &answer)
	if o.Class != activation.OK || answer.State == "working" {
		return activation.Polled{Outcome: o}
	}
	if answer.State == "failed" {
		return activation.Polled{Done: true, Outcome: activation.Outcome{
			Class: activation.Retry, Unknown: true, Status: o.Status, Reason: "the partner could not work on it",
		}}
	}
	n := 0
	if len(answer.Refused) > 0 {
		n = answer.Refused[len(answer.Refused)-1] + 1
	}
	o = sampleRows(o, answer.Refused, n)
	for len(o.Rows) > 0 && len(o.Rows) < 1000 { // whoever is not mentioned was taken
		o.Rows = append(o.Rows, activation.RowOutcome{Class: activation.OK})
	}
	return activation.Polled{Done: true, Outcome: o, Match: answer.Matched}
}

// Refresh implements [activation.Refresher].
func (p *Sample) Refresh(
	ctx context.Context, to activation.Target,
) (fresh activation.Settings, expires time.Time, o activation.Outcome) {
	_, sec, err := sampleConfig(to.Settings)
	body, encodeErr := json.Marshal(map[string]string{"refresh_token": sec.Refresh})
	if err := errors.Join(err, encodeErr); err != nil {
		return fresh, expires, activation.Outcome{Class: activation.Config, Reason: "the settings cannot be read"}
	}
	var answer struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
		Seconds int    `json:"expires_in"`
	}
	start := time.Now()
	if o = p.call(ctx, to, http.MethodPost, "/token", body, &answer); o.Class != activation.OK {
		return fresh, expires, o
	}
	fresh = to.Settings
	if fresh.Secrets, err = json.Marshal(sampleSecrets{answer.Access, answer.Refresh}); err != nil {
		return fresh, expires, activation.Outcome{Class: activation.Retry, Reason: "the secrets cannot be kept"}
	}
	return fresh, start.Add(time.Duration(answer.Seconds) * time.Second), o
}

func (p *Sample) call(
	ctx context.Context, to activation.Target, method, path string, body []byte, into any,
) (o activation.Outcome) {
	cfg, sec, err := sampleConfig(to.Settings)
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the settings cannot be read"}
	}
	req, err := http.NewRequestWithContext(ctx, method, cfg.URL+path, bytes.NewReader(body))
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the URL cannot be read"}
	}
	req.Header.Set("Authorization", "Bearer "+sec.Access)
	req.Header.Set("Content-Type", "application/json")
	res, err := p.client.Do(req)
	if err != nil {
		reason, unknown := activation.Failure(err)
		return activation.Outcome{Class: activation.Retry, Unknown: unknown, Reason: reason}
	}
	defer res.Body.Close()
	const most = 1 << 20
	answer, err := io.ReadAll(io.LimitReader(res.Body, most))
	o = activation.Outcome{
		Class: activation.Retry, Status: res.StatusCode, Excerpt: activation.Redact(answer), Unknown: true,
		Reason: fmt.Sprintf("the partner answered %d", res.StatusCode),
	}
	fmt.Sscan(res.Header.Get("X-Usage"), &o.Usage)
	if err != nil || len(answer) == most {
		o.Reason = "the answer could not be read"
		return o
	}
	if res.StatusCode == http.StatusOK {
		if into != nil && json.Unmarshal(answer, into) != nil {
			o.Reason = "the answer is not what it should be"
			return o
		}
		o.Class, o.Unknown, o.Reason = activation.OK, false, ""
		return o
	}
	var wrong struct {
		Code    string `json:"code"`
		Seconds int    `json:"seconds"`
	}
	_ = json.Unmarshal(answer, &wrong) // if it is not the partner's, the status has to do
	o.Unknown = res.StatusCode >= 500
	switch wrong.Code {
	case "token_expired":
		o.Class, o.Reason = activation.Refresh, "the access token has ended"
	case "token_revoked":
		o.Class, o.Reason = activation.Reauth, "the credential was revoked"
	case "slow_down":
		o.Class, o.Wait = activation.RetryAfter, time.Duration(wrong.Seconds)*time.Second
		if wrong.Seconds == 0 {
			o.Wait = 5 * time.Minute
		}
	case "too_large", "bad_event":
		o.Class = activation.Split
	case "no_audience":
		o.Class, o.Reason = activation.Config, "the audience is not there"
	case "forbidden":
		o.Class, o.Reason = activation.Config, "a permission is missing"
	default:
		if res.StatusCode == http.StatusRequestEntityTooLarge {
			o.Class = activation.Split
		}
		var seconds int
		if n, _ := fmt.Sscan(res.Header.Get("Retry-After"), &seconds); n == 1 {
			o.Class, o.Wait = activation.RetryAfter, time.Duration(seconds)*time.Second
		} else if at, err := http.ParseTime(res.Header.Get("Retry-After")); err == nil {
			o.Class, o.Wait = activation.RetryAfter, time.Until(at)
		}
	}
	return o
}

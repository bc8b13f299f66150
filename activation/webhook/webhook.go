// Package webhook tells a customer's own endpoint who entered and left a segment, and what people did, signed as Standard
// Webhooks 1.0.0 says.
//
//	POST /hooks/audience
//	webhook-id: msg_…          the same for all attempts: a receiver's idempotency key
//	webhook-timestamp: …       of this attempt
//	webhook-signature: v1,…    one for each secret that holds
//
//	{"type": "segment.membership_changed", "timestamp": "…",
//	 "data": {"segment": {"id", "key", "name"}, "sequence": 8812, "entered": [{"profile_id", …}], "left": []}}
//
//	{"type": "event", "timestamp": "…",
//	 "data": {"name", "fields": {…}, "event": {"message_id", "type", "name", "properties", "context", …},
//	          "profile": {"profile_id", "identifiers", "traits", "consent"}}}
//
// Order of arrival is not promised. Of two messages about one person in one segment the one with the greater sequence is
// the later. An event may come again under another webhook-id: its message_id is what tells.
package webhook

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

const (
	timeout     = 20 * time.Second
	overlap     = 24 * time.Hour // for which a rotated secret still holds
	tolerance   = 5 * time.Minute
	maxResponse = 64 << 10
)

// Partner sends webhooks. Make one with [New].
type Partner struct {
	client   *http.Client
	outbound activation.Outbound
}

var (
	_ activation.AudiencePartner = (*Partner)(nil)
	_ activation.EventPartner    = (*Partner)(nil)
	_ activation.Rotator         = (*Partner)(nil)
)

// New returns a partner that sends with client, which must be one of [activation.NewClient] for the same cfg.
func New(client *http.Client, cfg activation.Outbound) *Partner {
	return &Partner{client: client, outbound: cfg}
}

// Config is what a webhook destination's config holds.
type Config struct {
	URL         string `json:"url" validate:"required"`
	Batch       int    `json:"batch,omitzero" validate:"min=0,max=1000"`     // people in one message, at most: 100
	Concurrency int    `json:"concurrency,omitzero" validate:"min=0,max=16"` // messages at once: 4
}

// secrets is what is sealed: the present secret, and the one before it until it ends.
type secrets struct {
	Secret   string    `json:"secret"`
	Previous string    `json:"previous,omitzero"`
	Until    time.Time `json:"until,omitzero"`
}

// Type returns "webhook".
func (*Partner) Type() string { return "webhook" }

// Prepare implements [activation.Partner]. A destination without a secret gets one.
func (p *Partner) Prepare(s activation.Settings) (activation.Settings, error) {
	cfg := Config{Batch: 100, Concurrency: 4}
	var sec secrets
	errs := []error{wire.Check(s, &cfg, &sec)}
	if wrong := p.outbound.CheckURL(cfg.URL); cfg.URL != "" && wrong != "" {
		errs = append(errs, &activation.FieldError{Pointer: "/config/url", Detail: wrong})
	}
	if sec.Secret == "" {
		sec.Secret = NewSecret()
	} else if _, err := parseSecret(sec.Secret); err != nil {
		errs = append(errs, &activation.FieldError{Pointer: "/secrets/secret", Detail: err.Error()})
	}
	if err := errors.Join(errs...); err != nil {
		return activation.Settings{}, err
	}
	cfg.Batch, cfg.Concurrency = cmp.Or(cfg.Batch, 100), cmp.Or(cfg.Concurrency, 4)
	return wire.Settings(cfg, sec)
}

func read(s activation.Settings) (cfg Config, sec secrets, err error) {
	err = wire.Read(s, &cfg, &sec)
	return cfg, sec, err
}

// Mask shows the last four characters of each secret.
func (*Partner) Mask(v jsontext.Value) map[string]string {
	_, sec, err := read(activation.Settings{Secrets: v})
	if err != nil || sec.Secret == "" {
		return nil
	}
	shown := map[string]string{"secret": mask(sec.Secret)}
	if time.Now().Before(sec.Until) {
		shown["previous"] = mask(sec.Previous)
	}
	return shown
}

func mask(secret string) string { return secretPrefix + "…" + secret[max(0, len(secret)-4):] }

// Rotate makes a new secret. For a day messages are signed with both.
func (*Partner) Rotate(v jsontext.Value, now time.Time) (jsontext.Value, map[string]string, error) {
	_, sec, err := read(activation.Settings{Secrets: v})
	if err != nil {
		return nil, nil, fmt.Errorf("read a webhook's secrets: %w", err)
	}
	sec = secrets{Secret: NewSecret(), Previous: sec.Secret, Until: now.Add(overlap).UTC()}
	kept, err := json.Marshal(sec)
	return kept, map[string]string{"secret": sec.Secret}, err
}

// Replace implements [activation.Rotator]: without a secret the present one stays, and another one is given a day beside it.
func (*Partner) Replace(present, given jsontext.Value, now time.Time) jsontext.Value {
	_, old, err := read(activation.Settings{Secrets: present})
	if err != nil || old.Secret == "" {
		return given
	}
	_, fresh, err := read(activation.Settings{Secrets: given})
	if err != nil {
		return given // Prepare says what is wrong with it
	}
	switch strings.TrimSpace(fresh.Secret) {
	case "", old.Secret:
		return present
	}
	kept, err := json.Marshal(secrets{Secret: fresh.Secret, Previous: old.Secret, Until: now.Add(overlap).UTC()})
	if err != nil {
		return given
	}
	return kept
}

// Limits implements [activation.Partner].
func (*Partner) Limits(t activation.Target) activation.Limits {
	cfg, _, _ := read(t.Settings) // what does not decode is reported when a message is made
	return activation.Limits{
		Members: cfg.Batch, Events: 1, Mixed: true, Concurrency: cfg.Concurrency, Timeout: timeout, ByProfile: true,
	}
}

// Gate lets everybody through: what a receiver of the customer's own may hear is the customer's to say.
func (*Partner) Gate() activation.Gate { return activation.Gate{} }

// Identify implements [activation.AudiencePartner]. A receiver knows people by our ids for them.
func (*Partner) Identify(_ activation.Target, p activation.Person) (activation.Identifiers, error) {
	return activation.Identifiers{IDs: []activation.Identifier{{Kind: "profile_id", Value: profileID(p.ID)}}}, nil
}

func profileID(id activation.ProfileID) string { return "p_" + hex.EncodeToString(id[:]) }

// Encode implements [activation.AudiencePartner].
func (*Partner) Encode(_ activation.Target, b activation.Batch) (body []byte, took int, err error) {
	return encode(b)
}

// Send implements [activation.Partner].
func (p *Partner) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	return p.post(ctx, to, m.Key, m.Body)
}

// Test sends a message of type mubatch.test.
func (p *Partner) Test(ctx context.Context, to activation.Target) activation.Outcome {
	body, err := json.Marshal(payload{
		Type: "mubatch.test", Timestamp: time.Now().UTC(), Data: map[string]string{"destination": to.Key},
	})
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the message could not be made"}
	}
	o := p.post(ctx, to, "msg_test_"+strconv.FormatInt(time.Now().UnixNano(), 36), body)
	if hint := hints[o.Status]; hint != "" && (o.Class != activation.Retry || o.Status == http.StatusNotFound) {
		o.Reason += ": " + hint
		if o.Class == activation.Split { // there is nobody in the message who could spoil it
			o.Class = activation.Config
		}
	}
	return o
}

// hints say what to look at when a receiver refuses a test.
var hints = map[int]string{
	http.StatusBadRequest:   "look whether it knows the destination's signing secret, and takes messages of the type mubatch.test",
	http.StatusUnauthorized: "look whether it knows the destination's signing secret",
	http.StatusForbidden:    "look whether it knows the destination's signing secret, and lets us in",
	http.StatusNotFound:     "look at the URL",
}

func (p *Partner) post(ctx context.Context, to activation.Target, id string, body []byte) activation.Outcome {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return wire.BadSettings()
	}
	now := time.Now()
	keys, err := sec.keys(now)
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the signing secret cannot be read"}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, cfg.URL, bytes.NewReader(body))
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the URL cannot be read"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "mubatch-webhook/1")
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("webhook-signature", sign(keys, id, now, body))
	res, err := p.client.Do(req)
	if err != nil {
		reason, unknown := activation.Failure(err)
		class := activation.Retry
		if activation.Misconfigured(err) {
			class = activation.Config
		}
		return activation.Outcome{Class: class, Unknown: unknown, Reason: reason}
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxResponse))
	o := classify(res, now)
	o.Excerpt = activation.Redact(answer)
	if err != nil && o.Class != activation.OK {
		o.Unknown = true
	}
	return o
}

func (s secrets) keys(now time.Time) ([][]byte, error) {
	key, err := parseSecret(s.Secret)
	if err != nil {
		return nil, err
	}
	keys := [][]byte{key}
	if s.Previous != "" && now.Before(s.Until) {
		if key, err = parseSecret(s.Previous); err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// classify tells what an answer means. The status line is the receiver's word: once it says 2xx, nothing that happens to
// the rest of the answer takes it back.
func classify(res *http.Response, sent time.Time) activation.Outcome {
	o := activation.Outcome{Status: res.StatusCode, Reason: fmt.Sprintf("the receiver answered %d", res.StatusCode)}
	wait, asked := retryAfter(res.Header.Get("Retry-After"), time.Now())
	switch code := res.StatusCode; {
	case code >= 200 && code < 300:
		o.Class, o.Reason = activation.OK, ""
	case code == http.StatusGone:
		o.Class = activation.Gone
	case asked && (code == http.StatusTooManyRequests || code >= 500):
		o.Class, o.Wait, o.Unknown = activation.RetryAfter, wait, code >= 500
	case (code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusBadRequest) &&
		skewed(res.Header.Get("Date"), sent):
		o.Class = activation.Retry
		o.Reason += ", and its clock differs from ours by more than five minutes"
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		o.Class = activation.Reauth
	case code == http.StatusBadRequest, code == http.StatusRequestEntityTooLarge, code == http.StatusUnprocessableEntity:
		o.Class = activation.Split
	case code >= 300 && code < 400:
		o.Class = activation.Retry
		o.Reason += ", and redirects are not followed"
	default:
		o.Class, o.Unknown = activation.Retry, code >= 500 || code == http.StatusRequestTimeout
	}
	return o
}

// retryAfter reads both forms of Retry-After.
func retryAfter(value string, now time.Time) (wait time.Duration, ok bool) {
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil && seconds >= 0 {
		return time.Duration(seconds) * time.Second, true
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0), true
	}
	return 0, false
}

func skewed(date string, now time.Time) bool {
	at, err := http.ParseTime(date)
	return err == nil && at.Sub(now).Abs() > tolerance
}

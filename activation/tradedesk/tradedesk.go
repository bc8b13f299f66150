// Package tradedesk keeps audiences at The Trade Desk, by its first-party data API.
//
//	e-mail, phone ──► hashes ──► UID2 or EUID operator ──► raw UID2s ─┐
//	device ids, TDID ─────────────────────────────────────────────────┴─► POST /data/advertiser
//
//	{"AdvertiserId": "…", "Items": [{"UID2": "…", "Data": [{"Name": "big-spenders", "TtlInMinutes": 43200}]}, …]}
//
// A membership has a time to live, after which The Trade Desk forgets it: to add is to give it one, to remove is to set it to
// 0. Who stays is sent again in time. Each identifier of a person is an item of its own. A raw UID2 is replaced now and then,
// and the operator says until when it holds: then it is asked for again, and if it is another one, the old one is removed.
// Whoever has opted out of UID2 is not there at all.
//
// Who is to be forgotten is removed, and then The Trade Desk is told to delete what it knows of them for the advertiser, by
// POST /data/deletion-optout/advertiser. If somebody else in another segment is known by the same identifier, that membership
// goes, too, until it is sent again.
package tradedesk

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
	"github.com/mubatch/mubatch/activation/tradedesk/uid2"
	"github.com/mubatch/mubatch/activation/wire"
)

const (
	dataPath     = "/data/advertiser"
	deletionPath = "/data/deletion-optout/advertiser"

	timeout   = 20 * time.Second
	tokenLife = 24 * time.Hour // the longest that a login may ask for

	soonest = time.Hour           // that the operator is asked for the same again, whatever it says
	latest  = 90 * 24 * time.Hour // and must be: then it tells who has opted out since
	again   = 24 * time.Hour      // for whoever has no UID2
)

// Kinds of hashes, as the operator calls them. They are mapped, and never sent to The Trade Desk.
const (
	emailHash = "email_hash"
	phoneHash = "phone_hash"
)

// Partner speaks The Trade Desk's first-party data API. Make one with [New].
type Partner struct {
	client   *http.Client
	outbound activation.Outbound
}

var (
	_ activation.AudiencePartner = (*Partner)(nil)
	_ activation.Mapper          = (*Partner)(nil)
	_ activation.Refresher       = (*Partner)(nil)
	_ activation.Drafter         = (*Partner)(nil)
)

// New returns a partner that sends with client, which must be one of [activation.NewClient] for the same cfg.
func New(client *http.Client, cfg activation.Outbound) *Partner {
	return &Partner{client: client, outbound: cfg}
}

// Type returns "tradedesk".
func (*Partner) Type() string { return "tradedesk" }

// Gate implements [activation.Partner].
func (*Partner) Gate() activation.Gate { return activation.AdGate() }

// Limits implements [activation.Partner].
func (*Partner) Limits(to activation.Target) activation.Limits {
	cfg, _, _ := read(to.Settings) // what does not decode is reported when a message is made
	return activation.Limits{
		Members: cfg.Batch, Mixed: true, Concurrency: cfg.Concurrency, Timeout: timeout, Linger: activation.DefaultLinger,
		Account: cfg.APIURL + " " + cfg.AdvertiserID, TTL: cfg.ttl(),
	}
}

// Identify implements [activation.AudiencePartner]. Hashes are what [Partner.Map] has mapped.
func (*Partner) Identify(to activation.Target, p activation.Person) (ids activation.Identifiers, err error) {
	cfg, _, err := read(to.Settings)
	if err != nil {
		return ids, err
	}
	add := func(kind, value string) {
		ids.IDs = append(ids.IDs, activation.Identifier{Kind: kind, Value: value})
	}
	emails, phones := p.Emails(), p.Phones()
	for _, raw := range emails {
		if t, ok := matchkey.UID2.Email(raw); ok {
			add(emailHash, t.Base64())
		}
	}
	for _, raw := range phones {
		if t, ok := matchkey.UID2.Phone(raw, cmp.Or(p.Country(), cfg.DefaultCountry)); ok {
			add(phoneHash, t.Base64())
		}
	}
	apple, others := p.Devices()
	for _, raw := range append(apple, others...) {
		if t, ok := matchkey.Device(raw); ok {
			add("DAID", t.String())
		}
	}
	for _, raw := range append(p.Identified("tdid"), p.Text("tdid")) {
		if t, ok := matchkey.Device(raw); ok { // it has the form of one
			add("TDID", t.String())
		}
	}
	switch {
	case len(ids.IDs) > 0:
	case len(emails) == 0 && len(phones) == 0:
		ids.Reason = "neither an e-mail address, a phone number nor an advertising id is known"
	case len(emails) == 0 && cmp.Or(p.Country(), cfg.DefaultCountry) == "":
		ids.Reason = "of the phone number the country is not known"
	default:
		ids.Reason = "what is known is no valid e-mail address or phone number"
	}
	return ids, nil
}

// Map implements [activation.Mapper]. Whoever has opted out of UID2 with any of their addresses or numbers is not sent by
// anything else either.
func (p *Partner) Map(
	ctx context.Context, to activation.Target, ids []activation.Identifiers,
) ([]activation.Mapped, activation.Outcome) {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return nil, wire.BadSettings()
	}
	operator, ok := operatorOf(cfg, sec)
	if !ok {
		return nil, wire.BadSettings()
	}
	var ask []uid2.Hash
	found := map[uid2.Hash]uid2.ID{}
	for _, one := range ids {
		for _, id := range one.IDs {
			h, ok := hashOf(id)
			if _, asked := found[h]; ok && !asked {
				found[h] = uid2.ID{}
				ask = append(ask, h)
			}
		}
	}
	got, o := operator.Map(ctx, p.client, ask)
	if o.Class != activation.OK {
		return nil, o
	}
	for i, h := range ask {
		found[h] = got[i]
	}
	now := time.Now()
	mapped := make([]activation.Mapped, len(ids))
	for i, one := range ids {
		mapped[i] = cfg.mapped(one, found, now)
	}
	return mapped, o
}

func operatorOf(cfg Config, sec Secrets) (uid2.Operator, bool) {
	secret, err := uid2.ParseSecret(sec.UID2Secret)
	return uid2.Operator{URL: cfg.OperatorURL, Key: sec.UID2Key, Secret: secret}, err == nil
}

func hashOf(id activation.Identifier) (uid2.Hash, bool) {
	return uid2.Hash{Phone: id.Kind == phoneHash, Value: id.Value}, id.Kind == emailHash || id.Kind == phoneHash
}

// mapped puts in place of one person's hashes what the operator found.
func (c Config) mapped(ids activation.Identifiers, found map[uid2.Hash]uid2.ID, now time.Time) activation.Mapped {
	m := activation.Mapped{Until: now.Add(latest)}
	for _, id := range ids.IDs {
		h, ok := hashOf(id)
		if !ok {
			m.IDs = append(m.IDs, id)
			continue
		}
		switch is := found[h]; {
		case is.OptedOut:
			return activation.Mapped{
				Identifiers: activation.Identifiers{Reason: "the person has opted out of " + c.kind()}, Until: now.Add(again),
			}
		case is.Raw != "":
			m.IDs = append(m.IDs, activation.Identifier{Kind: c.kind(), Value: is.Raw})
			if is.Until.Before(m.Until) {
				m.Until = is.Until
			}
		}
	}
	if len(m.IDs) == 0 {
		m.Reason, m.Until = c.kind()+" has no identifier for the person", now.Add(again)
	} else if first := now.Add(soonest); m.Until.Before(first) {
		m.Until = first
	}
	return m
}

// Send implements [activation.Partner]. All of it may be sent again: nothing in it depends on what is there.
func (p *Partner) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return wire.BadSettings()
	}
	var msg message
	if err := json.Unmarshal(m.Body, &msg); err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the message cannot be read"}
	}
	said, o := p.post(ctx, sec, cfg.APIURL+dataPath, msg.Data)
	if o.Class == activation.OK {
		o = msg.result(o, said.FailedLines, cfg.ItemsFromZero, m.Members)
	}
	if len(msg.Deletion) == 0 || o.Class != activation.OK && o.Class != activation.Partial {
		return o
	}
	said, deleted := p.post(ctx, sec, cfg.DeletionURL+deletionPath, msg.Deletion)
	if deleted.Class == activation.OK {
		deleted = msg.result(deleted, said.FailedLines, cfg.ItemsFromZero, m.Members)
	}
	switch deleted.Class {
	case activation.OK:
		return o
	case activation.Config, activation.Gone, activation.Drop: // which keeps nobody else from being sent
		deleted.Class = activation.Drop
		deleted.Reason = "removed from the segment, but not deleted at The Trade Desk: " + deleted.Reason
	}
	return deleted
}

// Draft implements [activation.Drafter]: there is something to show before there is a token.
func (*Partner) Draft(to activation.Target, m activation.Message) ([]activation.Draft, error) {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return nil, err
	}
	var msg message
	if err := json.Unmarshal(m.Body, &msg); err != nil {
		return nil, fmt.Errorf("read a message: %w", err)
	}
	header, _ := sec.sign(msg.Data)
	header.Set("Content-Type", "application/json")
	return []activation.Draft{{
		Method: http.MethodPost, URL: cfg.APIURL + dataPath, Header: header, Body: msg.Data,
	}}, nil
}

// answer is what the data API says: of a request that was refused the code, of one that was not the items that were.
type answer struct {
	ErrorCode   string
	FailedLines []failedLine
}

// post makes one request to the data API.
func (p *Partner) post(ctx context.Context, sec Secrets, url string, body []byte) (said answer, o activation.Outcome) {
	header, ok := sec.sign(body)
	if !ok {
		return said, activation.Outcome{Class: activation.Refresh, Reason: "there is no access token yet"}
	}
	a, o := wire.Do(ctx, p.client, wire.Request{Method: http.MethodPost, URL: url, Header: header, Body: body})
	err := a.Decode(&said)
	if o.Class != activation.OK { // if it is not The Trade Desk's word, the status has to do
		return said, sec.refused(a.Status, said.ErrorCode, o)
	}
	if err != nil || jsontext.Value(a.Body).Kind() != '{' {
		return answer{}, a.Unreadable()
	}
	return said, o
}

// sign returns the headers by which a request is let in: a token, or a signature of its body for each secret. ok is false if
// a token must be had first.
func (s Secrets) sign(body []byte) (header http.Header, ok bool) {
	header = http.Header{}
	if s.AdvertiserSecret == "" {
		token := cmp.Or(s.Token, s.AccessToken)
		header.Set("TTD-Auth", token)
		return header, token != ""
	}
	header.Set("TtdSignature", signature(s.AdvertiserSecret, body))
	if s.DataProviderSecret != "" {
		header.Set("TtdSignature-dp", signature(s.DataProviderSecret, body))
	}
	return header, true
}

func signature(secret string, body []byte) string {
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write(body)
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

var reasons = map[string]string{
	"UnknownRequest":            "The Trade Desk does not know the request",
	"IncorrectContent":          "The Trade Desk does not take the content",
	"MissingData":               "The Trade Desk misses something in the message",
	"SerializationFailed":       "The Trade Desk could not read the message",
	"IncorrectPermissions":      "the credential may not send data of this advertiser",
	"AdvertiserMisconfigured":   "the advertiser is not set up for first-party data",
	"TargetingDataLimitReached": "the advertiser may send no more data",
	"EndpointNotConfigured":     "this region or advertiser has no first-party data API",
}

// refused says what it means that a request was not accepted ("First-Party Data API, Error codes").
func (s Secrets) refused(status int, code string, o activation.Outcome) activation.Outcome {
	if reason, ok := reasons[code]; ok {
		o.Reason = reason
		if status == http.StatusBadRequest { // a message that is wrong as a whole is so in halves
			o.Class = activation.Drop
		}
	}
	if o.Class == activation.Reauth {
		switch {
		case s.Login != "":
			o.Class, o.Reason = activation.Refresh, "the access token has ended"
		case s.AdvertiserSecret != "":
			o.Reason = "the signature was refused: the advertiser id or its secret is wrong"
		default:
			o.Reason = "the token was refused: it has ended or was revoked"
		}
	}
	return o
}

// Refresh implements [activation.Refresher]. It makes a token for a login and a password ("Platform API, Authentication").
// Other settings stay as they are.
func (p *Partner) Refresh(
	ctx context.Context, to activation.Target,
) (fresh activation.Settings, expires time.Time, o activation.Outcome) {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return fresh, expires, wire.BadSettings()
	}
	if sec.Login == "" {
		return to.Settings, expires, activation.Outcome{Class: activation.OK}
	}
	body, err := json.Marshal(map[string]any{
		"Login": sec.Login, "Password": sec.Password, "TokenExpirationInMinutes": int(tokenLife.Minutes()),
	}, json.Deterministic(true))
	if err != nil {
		return fresh, expires, wire.BadSettings()
	}
	asked := time.Now()
	a, o := wire.Do(ctx, p.client, wire.Request{
		Method: http.MethodPost, URL: cfg.PlatformURL + "/v3/authentication", Body: body,
	})
	o.Excerpt = "" // it may hold the token
	switch {
	case o.Class == activation.OK:
	case a.Status == http.StatusBadRequest, a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden:
		o.Class, o.Reason = activation.Reauth, "the login or the password was refused"
		return fresh, expires, o
	default:
		return fresh, expires, o
	}
	var answer struct{ Token string }
	if a.Decode(&answer) != nil || answer.Token == "" {
		o = a.Unreadable()
		o.Excerpt = ""
		return fresh, expires, o
	}
	sec.AccessToken = answer.Token
	secrets, err := json.Marshal(sec)
	if err != nil {
		return fresh, expires, wire.BadSettings()
	}
	return activation.Settings{Config: to.Config, Secrets: secrets}, asked.Add(tokenLife), o
}

// Test implements [activation.Partner]. It sends no item to The Trade Desk, which then says that it misses some, and asks the
// operator for the address of an example.
func (p *Partner) Test(ctx context.Context, to activation.Target) activation.Outcome {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return wire.BadSettings()
	}
	operator, ok := operatorOf(cfg, sec)
	if !ok {
		return wire.BadSettings()
	}
	body, err := json.Marshal(data{
		AdvertiserID: cfg.AdvertiserID, DataProviderID: cfg.DataProviderID, Items: []jsontext.Value{},
	})
	if err != nil {
		return wire.BadSettings()
	}
	said, o := p.post(ctx, sec, cfg.APIURL+dataPath, body)
	if o.Class != activation.OK && said.ErrorCode != "MissingData" && said.ErrorCode != "IncorrectContent" {
		return o
	}
	_, o = operator.Map(ctx, p.client, []uid2.Hash{uid2.Example})
	return o
}

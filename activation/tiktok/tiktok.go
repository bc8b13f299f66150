// Package tiktok keeps custom audiences at TikTok in step with segments, by segment mapping: the streaming route of TikTok
// API for Business v1.3.
//
//	Create ──► GET  dmp/custom_audience/list/   is it there already, by its name?
//	           POST segment/audience/           if not, make it
//	Send   ──► POST segment/mapping/            add or delete people, by hashes in columns
//	Size   ──► GET  dmp/custom_audience/get/    how many TikTok recognised
//
// TikTok answers nearly everything with HTTP 200: what counts is the code in the body. Adding somebody who is there and
// deleting somebody who is not are no errors, so that whatever may have been lost is sent again.
package tiktok

import (
	"cmp"
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
	api         = "https://business-api.tiktok.com/open_api/v1.3"
	timeout     = 20 * time.Second
	concurrency = 4
	defaultRows = 1000
	defaultRate = 5 // requests a second: TikTok's figures depend on the app's level, and are not published
)

// Partner keeps audiences at TikTok. Make one with [New].
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

// Config is what a TikTok destination's config holds.
type Config struct {
	// AdvertiserIDs are those that may use the audiences: all in one Business Center. The first owns what we make.
	AdvertiserIDs []string `json:"advertiser_ids" validate:"required,min=1,max=50,unique,dive,number,max=32"`

	// AppID is that of the app at TikTok which the token is for. TikTok counts requests by app: destinations that name the
	// same one share a rate. Without it the first advertiser counts.
	AppID string `json:"app_id,omitzero" validate:"omitempty,number,max=32"`

	PhoneFormat    string `json:"phone_format,omitzero" validate:"omitempty,oneof=e164_plus digits both"` // e164_plus
	EmailFormat    string `json:"email_format,omitzero" validate:"omitempty,oneof=plain without_tags without_tags_and_dots all"`
	DeviceHash     string `json:"device_hash,omitzero" validate:"omitempty,oneof=sha256 md5"`       // sha256
	DefaultCountry string `json:"default_country,omitzero" validate:"omitempty,iso3166_1_alpha2"`   // of phone numbers
	Rows           int    `json:"rows,omitzero" validate:"omitempty,min=100,max=10000"`             // in one request: 1000
	PerSecond      int    `json:"requests_per_second,omitzero" validate:"omitempty,min=1,max=1000"` // 5
	URL            string `json:"api_url,omitzero"`                                                 // [api]
}

// secrets is what is sealed.
type secrets struct {
	AccessToken string `json:"access_token" validate:"required,max=1000"`
}

// settings reads those of a destination, with what is left out filled in.
func settings(s activation.Settings) (cfg Config, sec secrets, err error) {
	err = wire.Read(s, &cfg, &sec)
	cfg.PhoneFormat = cmp.Or(cfg.PhoneFormat, "e164_plus")
	cfg.EmailFormat = cmp.Or(cfg.EmailFormat, "plain")
	cfg.DeviceHash = cmp.Or(cfg.DeviceHash, "sha256")
	cfg.Rows = cmp.Or(cfg.Rows, defaultRows)
	cfg.PerSecond = cmp.Or(cfg.PerSecond, defaultRate)
	cfg.URL = strings.TrimRight(cmp.Or(cfg.URL, api), "/")
	if err == nil && len(cfg.AdvertiserIDs) == 0 {
		err = errors.New("advertiser_ids is empty")
	}
	return cfg, sec, err
}

// Type returns "tiktok".
func (*Partner) Type() string { return "tiktok" }

// Prepare implements [activation.Partner].
func (p *Partner) Prepare(s activation.Settings) (activation.Settings, error) {
	var (
		cfg Config
		sec secrets
	)
	err := wire.Check(s, &cfg, &sec)
	if cfg.URL != "" {
		if wrong := p.outbound.CheckURL(cfg.URL); wrong != "" {
			err = errors.Join(err, &activation.FieldError{Pointer: "/config/api_url", Detail: wrong})
		}
	}
	if err != nil {
		return activation.Settings{}, err
	}
	return wire.Settings(cfg, sec)
}

// Mask shows the last four characters of the access token.
func (*Partner) Mask(v jsontext.Value) map[string]string {
	var sec secrets
	if wire.Read(activation.Settings{Secrets: v}, nil, &sec) != nil || sec.AccessToken == "" {
		return nil
	}
	return map[string]string{"access_token": wire.Mask(sec.AccessToken)}
}

// Gate implements [activation.Partner].
func (*Partner) Gate() activation.Gate { return activation.AdGate() }

// Limits implements [activation.Partner].
func (*Partner) Limits(t activation.Target) activation.Limits {
	cfg, _, _ := settings(t.Settings) // what cannot be read is reported when people are identified
	l := activation.Limits{
		Members: cfg.Rows, Concurrency: concurrency, Timeout: timeout, Linger: activation.DefaultLinger, NeedsAudience: true,
		Rates: []activation.Rate{{Requests: cfg.PerSecond, Per: time.Second}},
	}
	switch {
	case cfg.AppID != "":
		l.Account = "app_" + cfg.AppID
	case len(cfg.AdvertiserIDs) > 0:
		l.Account = "advertiser_" + cfg.AdvertiserIDs[0]
	}
	return l
}

// Send implements [activation.Partner].
func (p *Partner) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	_, o := p.call(ctx, to, request{method: http.MethodPost, path: "/segment/mapping/", body: m.Body, attempt: m.Attempt})
	return o
}

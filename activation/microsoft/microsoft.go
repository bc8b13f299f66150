// Package microsoft keeps customer lists at Microsoft Advertising in step with segments, by the Campaign Management API 13 as
// REST.
//
//	Refresh ──► POST …/oauth2/v2.0/token           each time another refresh token, good for once
//	Create  ──► POST Audiences/QueryByIds          is it there already, by its name?
//	            POST Audiences                     if not, make it
//	Send    ──► POST CustomerListUserData/Apply    add or remove items of one kind
//	Size    ──► POST Audiences/QueryByIds
//
// A call has items of one kind only: e-mail addresses, phone numbers, or the customer's own ids. So a destination knows
// people by one of them, and who wants two of them makes two destinations. Adding what is there and removing what is not are
// no errors. What is refused of a call is told by the index of the item, and the rest of it holds.
package microsoft

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

const (
	api          = "https://campaign.api.bingads.microsoft.com/CampaignManagement/v13"
	tokens       = "https://login.microsoftonline.com/common/oauth2/v2.0/token"
	scope        = "https://ads.microsoft.com/msads.manage offline_access"
	timeout      = 20 * time.Second
	concurrency  = 4
	defaultItems = 1000 // in a call: the limit is not published
)

// Partner keeps customer lists at Microsoft Advertising. Make one with [New].
type Partner struct {
	client   *http.Client
	outbound activation.Outbound
}

var (
	_ activation.AudiencePartner = (*Partner)(nil)
	_ activation.Refresher       = (*Partner)(nil)
	_ activation.Creator         = (*Partner)(nil)
	_ activation.Sizer           = (*Partner)(nil)
	_ activation.Drafter         = (*Partner)(nil)
)

// New returns a partner that sends with client, which must be one of [activation.NewClient] for the same cfg.
func New(client *http.Client, cfg activation.Outbound) *Partner {
	return &Partner{client: client, outbound: cfg}
}

// Config is what a Microsoft destination's config holds.
type Config struct {
	CustomerID string `json:"customer_id" validate:"required,number,max=32"` // of the manager account
	AccountID  string `json:"account_id" validate:"required,number,max=32"`  // of the ad account
	ClientID   string `json:"client_id" validate:"required,max=200"`         // of the app at Microsoft Entra

	Identifier     string `json:"identifier,omitzero" validate:"omitempty,oneof=email crm phone"`    // email
	PhoneFormat    string `json:"phone_format,omitzero" validate:"omitempty,oneof=e164_plus digits"` // e164_plus
	DefaultCountry string `json:"default_country,omitzero" validate:"omitempty,iso3166_1_alpha2"`    // of phone numbers
	AcceptTerms    bool   `json:"accept_terms,omitzero"`                                             // of customer match, with every call
	Items          int    `json:"items,omitzero" validate:"omitempty,min=100,max=10000"`             // in one call: 1000
	URL            string `json:"api_url,omitzero"`                                                  // [api]
	TokenURL       string `json:"token_url,omitzero"`                                                // [tokens]
}

// secrets is what is sealed.
type secrets struct {
	DeveloperToken string `json:"developer_token" validate:"required,max=200"`
	ClientSecret   string `json:"client_secret,omitzero" validate:"max=1000"` // of web apps
	RefreshToken   string `json:"refresh_token" validate:"required,max=10000"`
	AccessToken    string `json:"access_token,omitzero" validate:"max=10000"`
}

// settings reads those of a destination, with what is left out filled in.
func settings(s activation.Settings) (cfg Config, sec secrets, err error) {
	err = wire.Read(s, &cfg, &sec)
	cfg.Identifier = cmp.Or(cfg.Identifier, "email")
	cfg.PhoneFormat = cmp.Or(cfg.PhoneFormat, "e164_plus")
	cfg.Items = cmp.Or(cfg.Items, defaultItems)
	cfg.URL = strings.TrimRight(cmp.Or(cfg.URL, api), "/")
	cfg.TokenURL = cmp.Or(cfg.TokenURL, tokens)
	if err == nil && cfg.AccountID == "" {
		err = errors.New("account_id is empty")
	}
	return cfg, sec, err
}

// Type returns "microsoft".
func (*Partner) Type() string { return "microsoft" }

// Prepare implements [activation.Partner].
func (p *Partner) Prepare(s activation.Settings) (activation.Settings, error) {
	var (
		cfg Config
		sec secrets
	)
	err := wire.Check(s, &cfg, &sec)
	for _, at := range []struct{ pointer, url string }{{"/config/api_url", cfg.URL}, {"/config/token_url", cfg.TokenURL}} {
		if at.url == "" {
			continue
		}
		if wrong := p.outbound.CheckURL(at.url); wrong != "" {
			err = errors.Join(err, &activation.FieldError{Pointer: at.pointer, Detail: wrong})
		}
	}
	if err != nil {
		return activation.Settings{}, err
	}
	return wire.Settings(cfg, sec)
}

// Mask shows the last four characters of each secret.
func (*Partner) Mask(v jsontext.Value) map[string]string {
	var sec secrets
	if wire.Read(activation.Settings{Secrets: v}, nil, &sec) != nil {
		return nil
	}
	shown := map[string]string{}
	for name, secret := range map[string]string{
		"developer_token": sec.DeveloperToken, "client_secret": sec.ClientSecret, "refresh_token": sec.RefreshToken,
		"access_token": sec.AccessToken,
	} {
		if secret != "" {
			shown[name] = wire.Mask(secret)
		}
	}
	return shown
}

// Gate implements [activation.Partner].
func (*Partner) Gate() activation.Gate { return activation.AdGate() }

// Limits implements [activation.Partner].
func (*Partner) Limits(t activation.Target) activation.Limits {
	cfg, _, _ := settings(t.Settings) // what cannot be read is reported when people are identified
	l := activation.Limits{
		Members: cfg.Items, Concurrency: concurrency, Timeout: timeout, Linger: activation.DefaultLinger, NeedsAudience: true,
	}
	if cfg.CustomerID != "" { // by which calls are counted
		l.Account = "customer_" + cfg.CustomerID
	}
	return l
}

// Refresh implements [activation.Refresher]. The refresh token that was used is worthless afterwards.
func (p *Partner) Refresh(
	ctx context.Context, to activation.Target,
) (fresh activation.Settings, expires time.Time, o activation.Outcome) {
	cfg, sec, err := settings(to.Settings)
	if err != nil {
		return fresh, expires, wire.BadSettings()
	}
	form := url.Values{
		"client_id": {cfg.ClientID}, "grant_type": {"refresh_token"}, "refresh_token": {sec.RefreshToken}, "scope": {scope},
	}
	if sec.ClientSecret != "" {
		form.Set("client_secret", sec.ClientSecret)
	}
	token, o := wire.Refresh(ctx, p.client, cfg.TokenURL, form)
	if o.Class != activation.OK {
		return fresh, expires, o
	}
	sec.AccessToken, sec.RefreshToken = token.Access, cmp.Or(token.Refresh, sec.RefreshToken)
	fresh, err = wire.Settings(nil, sec)
	if err != nil {
		return fresh, expires, activation.Outcome{Class: activation.Retry, Reason: "the new tokens cannot be kept"}
	}
	fresh.Config = to.Config
	return fresh, token.Expires, o
}

package tradedesk

import (
	"cmp"
	"errors"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/tradedesk/uid2"
	"github.com/mubatch/mubatch/activation/wire"
)

// Config is what a destination's config holds. Fields that are zero mean the defaults.
type Config struct {
	AdvertiserID   string `json:"advertiser_id" validate:"required,max=64"`
	DataProviderID string `json:"data_provider_id,omitzero" validate:"max=64"`
	Region         string `json:"region,omitzero" validate:"omitempty,oneof=use usw euw sin tok cn2"` // use
	Scheme         string `json:"scheme,omitzero" validate:"omitempty,oneof=uid2 euid"`               // uid2
	NamePrefix     string `json:"name_prefix,omitzero" validate:"max=64"`                             // before a segment's key
	TTLMinutes     int    `json:"ttl_minutes,omitzero" validate:"omitempty,min=60,max=259200"`        // 30 days
	DefaultCountry string `json:"default_country,omitzero" validate:"omitempty,iso3166_1_alpha2"`     // of phone numbers
	Batch          int    `json:"batch,omitzero" validate:"omitempty,min=1,max=5000"`                 // people in one message: 1000
	Concurrency    int    `json:"concurrency,omitzero" validate:"omitempty,min=1,max=4"`              // messages at once: 4
	MaxBodyBytes   int    `json:"max_body_bytes,omitzero" validate:"omitempty,min=1000,max=10000000"` // 1,000,000
	ItemsFromZero  bool   `json:"items_from_zero,omitzero"`                                           // failed lines count items from 0
	APIURL         string `json:"api_url,omitzero"`                                                   // that of the region
	DeletionURL    string `json:"deletion_url,omitzero"`
	PlatformURL    string `json:"platform_url,omitzero"` // where tokens are made
	OperatorURL    string `json:"operator_url,omitzero"` // of UID2 or EUID
}

// Secrets are what is sealed: those of the operator, and one way to be let in by The Trade Desk.
type Secrets struct {
	Token              string `json:"token,omitzero"` // made by somebody
	Login              string `json:"login,omitzero"` // or had for a login and a password
	Password           string `json:"password,omitzero" secret:"text"`
	AdvertiserSecret   string `json:"advertiser_secret,omitzero"` // or messages are signed, as they once had to be
	DataProviderSecret string `json:"data_provider_secret,omitzero"`
	UID2Key            string `json:"uid2_api_key" validate:"required"`
	UID2Secret         string `json:"uid2_client_secret" validate:"required"`

	AccessToken string `json:"access_token,omitzero"` // ours: what was had for the login
}

// The hosts are those of "First-Party Data API, Endpoints", of "UID2 Environments" and of "EUID Environments".
const (
	deletionURL = "https://usw-data.adsrvr.org"
	platformURL = "https://api.thetradedesk.com"
	chinaURL    = "https://data-cn2.adsrvr.cn"
)

var operatorURLs = map[string]string{"uid2": "https://prod.uidapi.com", "euid": "https://prod.euid.eu"}

func (c Config) withDefaults() Config {
	c.Region = cmp.Or(c.Region, "use")
	c.Scheme = cmp.Or(c.Scheme, "uid2")
	c.TTLMinutes = cmp.Or(c.TTLMinutes, 30*24*60)
	c.Batch = cmp.Or(c.Batch, 1000)
	c.Concurrency = cmp.Or(c.Concurrency, 4)
	c.MaxBodyBytes = cmp.Or(c.MaxBodyBytes, 1_000_000)
	region := "https://" + c.Region + "-data.adsrvr.org"
	if c.Region == "cn2" {
		region = chinaURL
	}
	c.DeletionURL = cmp.Or(c.DeletionURL, c.APIURL, deletionURL)
	c.APIURL = cmp.Or(c.APIURL, region)
	c.PlatformURL = cmp.Or(c.PlatformURL, platformURL)
	c.OperatorURL = cmp.Or(c.OperatorURL, operatorURLs[c.Scheme])
	for _, url := range []*string{&c.APIURL, &c.DeletionURL, &c.PlatformURL, &c.OperatorURL} {
		*url = strings.TrimSuffix(*url, "/")
	}
	return c
}

func (c Config) ttl() time.Duration { return time.Duration(c.TTLMinutes) * time.Minute }

// kind is what The Trade Desk calls the identifiers of the scheme.
func (c Config) kind() string { return strings.ToUpper(c.Scheme) }

// read returns what a destination is set to, with the defaults.
func read(s activation.Settings) (Config, Secrets, error) {
	var (
		cfg Config
		sec Secrets
	)
	err := wire.Read(s, &cfg, &sec)
	return cfg.withDefaults(), sec, err
}

// Prepare implements [activation.Partner].
func (p *Partner) Prepare(s activation.Settings) (activation.Settings, error) {
	var (
		cfg  Config
		sec  Secrets
		errs = []error{wire.Check(s, &cfg, &sec)}
	)
	wrong := func(pointer, detail string) {
		errs = append(errs, &activation.FieldError{Pointer: pointer, Detail: detail})
	}
	missing := func(name, with string) {
		errs = append(errs, &activation.FieldError{
			Pointer: "/secrets/" + name, Detail: "is required with " + with, Code: activation.CodeRequired,
		})
	}
	for _, url := range []struct{ name, given string }{
		{"api_url", cfg.APIURL},
		{"deletion_url", cfg.DeletionURL},
		{"platform_url", cfg.PlatformURL},
		{"operator_url", cfg.OperatorURL},
	} {
		if detail := p.outbound.CheckURL(url.given); url.given != "" && detail != "" {
			wrong("/config/"+url.name, detail)
		}
	}
	ways := 0
	for _, given := range []bool{sec.Token != "", sec.Login != "" || sec.Password != "", sec.AdvertiserSecret != ""} {
		if given {
			ways++
		}
	}
	switch {
	case ways != 1:
		wrong("/secrets", "must hold one of token, login and password, and advertiser_secret")
	case sec.Login != "" && sec.Password == "":
		missing("password", "login")
	case sec.Login == "" && sec.Password != "":
		missing("login", "password")
	}
	if sec.DataProviderSecret != "" && sec.AdvertiserSecret == "" {
		wrong("/secrets/data_provider_secret", "goes with advertiser_secret only")
	}
	if _, err := uid2.ParseSecret(sec.UID2Secret); sec.UID2Secret != "" && err != nil {
		wrong("/secrets/uid2_client_secret", err.Error())
	}
	if err := errors.Join(errs...); err != nil {
		return activation.Settings{}, err
	}
	if sec.Login == "" {
		sec.AccessToken = ""
	}
	return wire.Settings(cfg, sec)
}

// Mask shows the last characters of each secret.
func (*Partner) Mask(v jsontext.Value) map[string]string {
	var sec Secrets
	if wire.Read(activation.Settings{Secrets: v}, &Config{}, &sec) != nil {
		return nil
	}
	shown := map[string]string{}
	for name, secret := range map[string]string{
		"token": sec.Token, "login": sec.Login, "password": sec.Password, "advertiser_secret": sec.AdvertiserSecret,
		"data_provider_secret": sec.DataProviderSecret, "uid2_api_key": sec.UID2Key, "uid2_client_secret": sec.UID2Secret,
	} {
		if secret != "" {
			shown[name] = wire.Mask(secret)
		}
	}
	return shown
}

package google

import (
	"cmp"
	"errors"
	"strings"
	"time"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
	"github.com/mubatch/mubatch/activation/wire"
)

// Types of accounts that take events.
const (
	adsAccount        = "GOOGLE_ADS"
	floodlightAccount = "FLOODLIGHT_CONFIG"
	analyticsAccount  = "GOOGLE_ANALYTICS_PROPERTY"
)

// ConversionsConfig is what a destination's config holds.
type ConversionsConfig struct {
	// The account that the events are for, of Google Ads unless it says otherwise.
	AccountType string `json:"account_type,omitzero" validate:"omitempty,oneof=GOOGLE_ADS FLOODLIGHT_CONFIG GOOGLE_ANALYTICS_PROPERTY"`
	AccountID   string `json:"account_id" validate:"required,number"`

	// The account that the credential belongs to, such as a manager account, if it is another one.
	LoginAccountType string `json:"login_account_type,omitzero" validate:"omitempty,oneof=GOOGLE_ADS FLOODLIGHT_CONFIG GOOGLE_ANALYTICS_PROPERTY DATA_PARTNER DISPLAY_VIDEO_ADVERTISER DISPLAY_VIDEO_PARTNER"`
	LoginAccountID   string `json:"login_account_id,omitzero" validate:"omitempty,number"`

	// What of the account takes the events: the id of a conversion action or of a Floodlight activity, a Measurement ID
	// (G-…), or a Firebase App ID.
	DestinationID string `json:"product_destination_id" validate:"required,max=200"`

	// What Google knows duplicates by. An order that a tag of Google's counts, too, has its own id there.
	TransactionID string `json:"transaction_id,omitzero" validate:"omitempty,oneof=message_id order_id"` // message_id
	EventSource   string `json:"event_source,omitzero" validate:"omitempty,oneof=WEB APP IN_STORE PHONE MESSAGE OTHER"`

	ClickIDsOnly   bool   `json:"click_ids_only,omitzero"` // contact data is not sent
	SendIP         bool   `json:"send_ip,omitzero"`        // of people who are known to live where Google takes it
	DefaultCountry string `json:"default_country,omitzero" validate:"omitempty,iso3166_1_alpha2"`
	GmailTags      string `json:"gmail_tags,omitzero" validate:"omitempty,oneof=cut both"` // cut

	// What identifies the products of an order, and where in Merchant Center they are.
	ItemID           string `json:"item_id,omitzero" validate:"omitempty,oneof=product_id sku"` // product_id
	MerchantID       string `json:"merchant_id,omitzero" validate:"omitempty,number"`
	MerchantLabel    string `json:"merchant_feed_label,omitzero" validate:"omitempty,max=20"`
	MerchantLanguage string `json:"merchant_feed_language_code,omitzero" validate:"omitempty,len=2,alpha"`

	MaxAgeDays int `json:"max_age_days,omitzero" validate:"omitempty,min=1,max=90"` // 63, or 3 of Google Analytics
	Batch      int `json:"batch,omitzero" validate:"omitempty,min=1,max=2000"`      // events in one request, at most: 500

	APIURL   string `json:"api_url,omitzero"`   // https://datamanager.googleapis.com
	TokenURL string `json:"token_url,omitzero"` // https://oauth2.googleapis.com/token
}

func (c ConversionsConfig) accountType() string { return cmp.Or(c.AccountType, adsAccount) }
func (c ConversionsConfig) batch() int          { return cmp.Or(c.Batch, 500) }
func (c ConversionsConfig) apiURL() string      { return cmp.Or(c.APIURL, apiURL) }
func (c ConversionsConfig) tokenURL() string    { return cmp.Or(c.TokenURL, tokenURL) }

// maxAge is how old an event may be. Google Ads refuses as EVENT_TOO_OLD what happened longer ago than its windows go back,
// which for conversions by contact data is 63 days; Google Analytics takes the last 72 hours.
func (c ConversionsConfig) maxAge() time.Duration {
	days := 63
	if c.accountType() == analyticsAccount {
		days = 3
	}
	return time.Duration(cmp.Or(c.MaxAgeDays, days)) * 24 * time.Hour
}

// web tells whether the destination is a data stream of a web site.
func (c ConversionsConfig) web() bool { return strings.HasPrefix(c.DestinationID, "G-") }

// destination is where the events go.
func (c ConversionsConfig) destination() destination {
	d := destination{
		Reference: "events", Operating: productAccount{c.accountType(), c.AccountID}, List: c.DestinationID,
	}
	if c.LoginAccountID != "" {
		d.Login = productAccount{cmp.Or(c.LoginAccountType, adsAccount), c.LoginAccountID}
	}
	return d
}

// example is an event of nobody, of the kind that the destination takes.
func (c ConversionsConfig) example(at time.Time) conversion {
	e := conversion{TransactionID: "connection-test", Timestamp: at.UTC(), Source: cmp.Or(c.EventSource, "WEB")}
	switch {
	case c.accountType() == analyticsAccount && c.web():
		e.Name, e.ClientID = "purchase", "1234567890.1234567890"
	case c.accountType() == analyticsAccount:
		e.Name, e.AppInstanceID, e.Source = "purchase", "00000000000000000000000000000000", cmp.Or(c.EventSource, "APP")
	case c.accountType() == floodlightAccount || c.ClickIDsOnly:
		e.Ad.GCLID = "connection-test"
	default:
		e.UserData = &userRow{Identifiers: []userIdentifier{{Email: matchkey.Hex("connection-test@example.com")}}}
	}
	return e
}

func readConversions(s activation.Settings) (cfg ConversionsConfig, sec secrets, err error) {
	err = wire.Read(s, &cfg, &sec)
	return cfg, sec, err
}

// Prepare implements [activation.Partner]. Of a service account's key file it keeps what is needed.
func (p *Conversions) Prepare(s activation.Settings) (activation.Settings, error) {
	var (
		cfg ConversionsConfig
		sec secrets
	)
	errs := []error{wire.Check(s, &cfg, &sec)}
	if id := cfg.DestinationID; cfg.accountType() != analyticsAccount && strings.Trim(id, "0123456789") != "" {
		errs = append(errs, &activation.FieldError{
			Pointer: "/config/product_destination_id",
			Detail:  "must be digits only: the id of a conversion action or of a Floodlight activity",
		})
	}
	errs = append(errs, checkURL(p.outbound, "/config/api_url", cfg.apiURL()),
		checkURL(p.outbound, "/config/token_url", cfg.tokenURL()), sec.prepare())
	if err := errors.Join(errs...); err != nil {
		return activation.Settings{}, err
	}
	return wire.Settings(cfg, sec)
}

package google

import (
	"cmp"
	"errors"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// Data types. A list takes one of them, and so does a request.
const (
	userData  = "user_data"  // e-mail addresses, phone numbers, postal addresses
	mobileIDs = "mobile_ids" // advertising ids of one app's devices
	userIDs   = "user_ids"   // the customer's own ids
)

// Where Google is, unless a destination says otherwise.
const (
	apiURL   = "https://datamanager.googleapis.com"
	tokenURL = "https://oauth2.googleapis.com/token"
)

// Config is what a destination's config holds.
type Config struct {
	// The account whose lists they are, of Google Ads unless it says otherwise.
	AccountType string `json:"account_type,omitzero" validate:"omitempty,oneof=GOOGLE_ADS DISPLAY_VIDEO_ADVERTISER DISPLAY_VIDEO_PARTNER DATA_PARTNER GOOGLE_AD_MANAGER_AUDIENCE_LINK"`
	AccountID   string `json:"account_id" validate:"required,number"`

	// The account that the credential belongs to, such as a manager account, if it is another one.
	LoginAccountType string `json:"login_account_type,omitzero" validate:"omitempty,oneof=GOOGLE_ADS DISPLAY_VIDEO_ADVERTISER DISPLAY_VIDEO_PARTNER DATA_PARTNER"`
	LoginAccountID   string `json:"login_account_id,omitzero" validate:"omitempty,number"`

	// What people are known by: user_data unless it says otherwise. Advertising ids are those of one app on one platform.
	Data           string `json:"data,omitzero" validate:"omitempty,oneof=user_data mobile_ids user_ids"`
	MobilePlatform string `json:"mobile_platform,omitzero" validate:"required_if=Data mobile_ids,omitempty,oneof=ios android"`
	MobileAppID    string `json:"mobile_app_id,omitzero" validate:"required_if=Data mobile_ids,max=200"`

	TermsAccepted  bool   `json:"terms_accepted,omitzero"`                                        // those of Customer Match
	DefaultCountry string `json:"default_country,omitzero" validate:"omitempty,iso3166_1_alpha2"` // of people of whom none is known
	GmailTags      string `json:"gmail_tags,omitzero" validate:"omitempty,oneof=cut both"`        // cut
	MembershipDays int    `json:"membership_days,omitzero" validate:"omitempty,min=1,max=540"`    // for which Google keeps people: 540
	Batch          int    `json:"batch,omitzero" validate:"omitempty,min=1,max=10000"`            // people in one request, at most: 5000

	APIURL   string `json:"api_url,omitzero"`   // https://datamanager.googleapis.com
	TokenURL string `json:"token_url,omitzero"` // https://oauth2.googleapis.com/token
}

func (c Config) accountType() string      { return cmp.Or(c.AccountType, "GOOGLE_ADS") }
func (c Config) loginAccountType() string { return cmp.Or(c.LoginAccountType, "GOOGLE_ADS") }
func (c Config) data() string             { return cmp.Or(c.Data, userData) }
func (c Config) batch() int               { return cmp.Or(c.Batch, 5000) }
func (c Config) apiURL() string           { return cmp.Or(c.APIURL, apiURL) }
func (c Config) tokenURL() string         { return cmp.Or(c.TokenURL, tokenURL) }

func (c Config) membership() time.Duration {
	return time.Duration(cmp.Or(c.MembershipDays, 540)) * 24 * time.Hour
}

// parent is the resource name of the account whose lists they are.
func (c Config) parent() string {
	return "accountTypes/" + c.accountType() + "/accounts/" + c.AccountID
}

// login is the resource name of the account that the credential belongs to, or "".
func (c Config) login() string {
	if c.LoginAccountID == "" {
		return ""
	}
	return "accountTypes/" + c.loginAccountType() + "/accounts/" + c.LoginAccountID
}

// secrets is what is sealed: the credential, which is a person's or a service account's, and the access token that was had
// for it.
type secrets struct {
	ClientID     string `json:"client_id,omitzero" validate:"required_without=ServiceAccount"`
	ClientSecret string `json:"client_secret,omitzero" validate:"required_without=ServiceAccount"`
	RefreshToken string `json:"refresh_token,omitzero" validate:"required_without=ServiceAccount"`

	ServiceAccount jsontext.Value `json:"service_account,omitzero"` // its key, as Google's JSON file has it

	AccessToken string `json:"access_token,omitzero"`
}

// serviceAccount is what is needed of a service account's key file.
type serviceAccount struct {
	Email string `json:"client_email"`
	Key   string `json:"private_key"`
	KeyID string `json:"private_key_id"`
}

func (s secrets) account() (key serviceAccount, ok bool) {
	if len(s.ServiceAccount) == 0 || json.Unmarshal(s.ServiceAccount, &key) != nil {
		return serviceAccount{}, false
	}
	return key, true
}

func read(s activation.Settings) (cfg Config, sec secrets, err error) {
	err = wire.Read(s, &cfg, &sec)
	return cfg, sec, err
}

// Prepare implements [activation.Partner]. Of a service account's key file it keeps what is needed.
func (p *Partner) Prepare(s activation.Settings) (activation.Settings, error) {
	var (
		cfg Config
		sec secrets
	)
	errs := []error{wire.Check(s, &cfg, &sec)}
	if cfg.data() != userIDs && !cfg.TermsAccepted {
		errs = append(errs, &activation.FieldError{
			Pointer: "/config/terms_accepted",
			Detail:  "must be true: Google takes people in only for those who accept its Customer Match policy",
		})
	}
	errs = append(errs, checkURL(p.outbound, "/config/api_url", cfg.apiURL()),
		checkURL(p.outbound, "/config/token_url", cfg.tokenURL()), sec.prepare())
	if err := errors.Join(errs...); err != nil {
		return activation.Settings{}, err
	}
	return wire.Settings(cfg, sec)
}

func checkURL(outbound activation.Outbound, pointer, url string) error {
	if wrong := outbound.CheckURL(url); wrong != "" {
		return &activation.FieldError{Pointer: pointer, Detail: wrong}
	}
	return nil
}

// prepare checks a service account's key file, if there is one, and keeps of it what is needed.
func (sec *secrets) prepare() error {
	var errs []error
	fault := func(detail string) {
		errs = append(errs, &activation.FieldError{Pointer: "/secrets/service_account", Detail: detail})
	}
	if len(sec.ServiceAccount) > 0 {
		key, ok := sec.account()
		_, err := jwt.ParseRSAPrivateKeyFromPEM([]byte(key.Key))
		if !ok || err != nil || key.Email == "" {
			fault("must be the key file of a service account, with client_email and private_key")
		}
		if sec.ClientID != "" || sec.ClientSecret != "" || sec.RefreshToken != "" {
			fault("cannot be used together with client_id, client_secret and refresh_token")
		}
		if sec.ServiceAccount, err = json.Marshal(key); err != nil {
			fault("cannot be read")
		}
	}
	return errors.Join(errs...)
}

// Mask shows the client id, or the id of a service account's key, and the ends of what is secret.
func (*Partner) Mask(v jsontext.Value) map[string]string { return mask(v) }

func mask(v jsontext.Value) map[string]string {
	_, sec, err := read(activation.Settings{Secrets: v})
	if err != nil {
		return nil
	}
	shown := map[string]string{}
	if key, ok := sec.account(); ok {
		shown["service_account"] = wire.Mask(key.KeyID)
	} else {
		shown["client_id"] = wire.Mask(sec.ClientID)
		shown["client_secret"] = wire.Mask(sec.ClientSecret)
		shown["refresh_token"] = wire.Mask(sec.RefreshToken)
	}
	if sec.AccessToken != "" {
		shown["access_token"] = wire.Mask(sec.AccessToken)
	}
	return shown
}

// Package linkedin keeps DMP segments at LinkedIn equal to ours, as LinkedIn's Matched Audiences documentation says.
//
//	Create    GET  /dmpSegments?q=account&sourceSegmentId=…   one that was made already
//	          POST /dmpSegments                               else a new one
//	Send      POST /dmpSegments/{id}/users                    people to add and to remove, told of one by one
//	Size      GET  /dmpSegments/{id}
//
// LinkedIn knows people by the hash of an e-mail address and by the advertising id of an Android device, not by phone number.
// It also takes names, companies and job titles, which help it to find people, but only in plain text. They are not sent
// unless the destination says so: whoever has agreed to be found by a hash has not agreed to be told of by name.
//
// People without an e-mail address or a device could be told of by name alone. They never are: many have the same name, and
// who leaves would take all of them along.
package linkedin

import (
	"cmp"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

const (
	apiURL   = "https://api.linkedin.com/rest"
	tokenURL = "https://www.linkedin.com/oauth/v2/accessToken"

	// version is that of the API which is spoken unless the destination says otherwise. LinkedIn ends each about a year
	// after its month.
	version = "202608"

	batch       = 1000
	concurrency = 4
	timeout     = 20 * time.Second

	// perMinute is below both figures that LinkedIn has published of what a member may ask with an app, 600 and 500.
	perMinute = 500
)

// Partner sends to LinkedIn. Make one with [New].
type Partner struct {
	client   *http.Client
	outbound activation.Outbound
}

var (
	_ activation.AudiencePartner = (*Partner)(nil)
	_ activation.Refresher       = (*Partner)(nil)
	_ activation.Creator         = (*Partner)(nil)
	_ activation.Sizer           = (*Partner)(nil)
)

// New returns a partner that sends with client, which must be one of [activation.NewClient] for the same cfg.
func New(client *http.Client, cfg activation.Outbound) *Partner {
	return &Partner{client: client, outbound: cfg}
}

// Config is what a destination's config holds. What is left out is not stored, so that better defaults reach everybody.
type Config struct {
	AccountID      string `json:"account_id" validate:"required,number"`                  // of the ad account: 512345
	SourcePlatform string `json:"source_platform" validate:"required,printascii,max=100"` // LinkedIn's name of the app
	ClientID       string `json:"client_id,omitzero" validate:"omitempty,printascii"`     // of the app
	Version        string `json:"version,omitzero"`                                       // of the API: year and month
	EmailHash      string `json:"email_hash,omitzero" validate:"omitempty,oneof=sha256 sha512"`
	SendNames      bool   `json:"send_names,omitzero"`                      // names, company, job title and country, in plain text
	Batch          int    `json:"batch,omitzero" validate:"min=0,max=5000"` // LinkedIn is known to take 5000
	Concurrency    int    `json:"concurrency,omitzero" validate:"min=0,max=16"`
	PerMinute      int    `json:"requests_per_minute,omitzero" validate:"min=0,max=10000"`
	APIURL         string `json:"api_url,omitzero"`
	TokenURL       string `json:"token_url,omitzero"`
}

// secrets is what is sealed: the tokens of a member who may manage the account, and the secret of the app.
type secrets struct {
	AccessToken  string    `json:"access_token" validate:"required,printascii"`
	RefreshedAt  time.Time `json:"refreshed_at,omitzero"` // when we were given the access token; zero if somebody gave it to us
	RefreshToken string    `json:"refresh_token,omitzero" validate:"omitempty,printascii"`
	ClientSecret string    `json:"client_secret,omitzero" validate:"omitempty,printascii"`
}

// Type returns "linkedin".
func (*Partner) Type() string { return "linkedin" }

// Prepare implements [activation.Partner].
func (p *Partner) Prepare(s activation.Settings) (activation.Settings, error) {
	var (
		cfg  Config
		sec  secrets
		errs []error
	)
	wrong := func(pointer, detail string) {
		errs = append(errs, &activation.FieldError{Pointer: pointer, Detail: detail})
	}
	missing := func(pointer string) {
		errs = append(errs, &activation.FieldError{
			Pointer: pointer, Detail: "is required with a refresh token", Code: activation.CodeRequired,
		})
	}
	if err := wire.Check(s, &cfg, &sec); err != nil {
		errs = append(errs, err)
	}
	if _, err := time.Parse("200601", cfg.Version); cfg.Version != "" && err != nil {
		wrong("/config/version", "must be a year and a month, such as "+version)
	}
	for pointer, at := range map[string]string{"/config/api_url": cfg.APIURL, "/config/token_url": cfg.TokenURL} {
		if at == "" {
			continue
		}
		if detail := p.outbound.CheckURL(at); detail != "" {
			wrong(pointer, detail)
		}
	}
	if sec.RefreshToken != "" {
		if cfg.ClientID == "" {
			missing("/config/client_id")
		}
		if sec.ClientSecret == "" {
			missing("/secrets/client_secret")
		}
	}
	if err := errors.Join(errs...); err != nil {
		return activation.Settings{}, err
	}
	return wire.Settings(cfg, sec)
}

// Mask shows the last characters of each secret.
func (*Partner) Mask(v jsontext.Value) map[string]string {
	var sec secrets
	if wire.Read(activation.Settings{Secrets: v}, &Config{}, &sec) != nil {
		return nil
	}
	shown := map[string]string{}
	for name, secret := range map[string]string{
		"access_token": sec.AccessToken, "refresh_token": sec.RefreshToken, "client_secret": sec.ClientSecret,
	} {
		if secret != "" {
			shown[name] = wire.Mask(secret)
		}
	}
	return shown
}

// Gate implements [activation.Partner].
func (*Partner) Gate() activation.Gate { return activation.AdGate() }

// Limits implements [activation.Partner]. LinkedIn counts what a member asks with an app. Who the member is nobody tells us;
// a workspace's destinations at one ad account, by one app, are taken for one member's.
func (*Partner) Limits(t activation.Target) activation.Limits {
	cfg, _, err := read(t)
	l := activation.Limits{
		Members:       cmp.Or(cfg.Batch, batch),
		Mixed:         true,
		Concurrency:   cmp.Or(cfg.Concurrency, concurrency),
		Timeout:       timeout,
		Linger:        activation.DefaultLinger,
		NeedsAudience: true,
		Rates:         []activation.Rate{{Requests: cmp.Or(cfg.PerMinute, perMinute), Per: time.Minute}},
	}
	if err == nil {
		l.Account = strconv.Itoa(int(t.Workspace)) + "/" + cfg.AccountID + "/" + cfg.ClientID
	}
	return l
}

func read(t activation.Target) (cfg Config, sec secrets, err error) {
	err = wire.Read(t.Settings, &cfg, &sec)
	return cfg, sec, err
}

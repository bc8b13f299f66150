package meta

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// Connection is what the config of a destination says of how the Graph API is reached.
type Connection struct {
	APIURL     string `json:"api_url,omitzero"`
	APIVersion string `json:"api_version,omitzero"`

	// Where the access token goes. Meta documents the query.
	TokenIn string `json:"token_in,omitzero" validate:"omitempty,oneof=query header"`

	// The proof that we know the app secret is over the time, too, which goes along as appsecret_time.
	ProofTime bool `json:"proof_time,omitzero"`
}

// usual is how the Graph API is reached unless a config says otherwise.
var usual = Connection{APIURL: "https://graph.facebook.com", APIVersion: "v25.0", TokenIn: "query"}

// secrets is what is sealed.
type secrets struct {
	AccessToken string `json:"access_token" validate:"required"`
	AppSecret   string `json:"app_secret,omitzero"`
}

var version = regexp.MustCompile(`^v[1-9][0-9]?\.[0-9]$`)

// tidy brings what was given of a connection into order, and tells what is wrong with it.
func (c *Connection) tidy(sec *secrets, outbound activation.Outbound, fault func(pointer, detail string)) {
	c.APIURL = strings.TrimRight(c.APIURL, "/")
	if wrong := outbound.CheckURL(c.APIURL); wrong != "" {
		fault("/config/api_url", wrong)
	}
	if !version.MatchString(c.APIVersion) {
		fault("/config/api_version", "must be a version of the Graph API such as v25.0")
	}
	if c.ProofTime && sec.AppSecret == "" {
		fault("/secrets/app_secret", "is required if proof_time is set")
	}
}

// mask returns secrets in a form that may be shown.
func (s secrets) mask() map[string]string {
	if s.AccessToken == "" {
		return nil
	}
	shown := map[string]string{"access_token": wire.Mask(s.AccessToken)}
	if s.AppSecret != "" {
		shown["app_secret"] = wire.Mask(s.AppSecret)
	}
	return shown
}

// request is one to the Graph API.
type request struct {
	method string
	path   string // behind the version
	query  url.Values
	body   []byte
	what   string // the path is about: "the audience"
	needs  string // of whom the access token is for
}

// ask makes a request and decodes the answer.
func (c Connection) ask(ctx context.Context, client *http.Client, sec secrets, r request, into any) activation.Outcome {
	query := url.Values{}
	for name, values := range r.query {
		query[name] = values
	}
	header := http.Header{"Accept": {"application/json"}}
	if c.TokenIn == "header" {
		header.Set("Authorization", "Bearer "+sec.AccessToken)
	} else {
		query.Set("access_token", sec.AccessToken)
	}
	sec.prove(query, c.ProofTime, time.Now())
	segments := strings.Split(r.path, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	at := c.APIURL + "/" + c.APIVersion + "/" + strings.Join(segments, "/")
	if len(query) > 0 {
		at += "?" + query.Encode()
	}
	a, o := wire.Do(ctx, client, wire.Request{Method: r.method, URL: at, Header: header, Body: r.body})
	if a.Status == 0 {
		return o
	}
	used, wait := usage(a.Header)
	if o.Class != activation.OK {
		return refusal(a, o, wait, r)
	}
	if a.Decode(into) != nil {
		return unreadable(o)
	}
	if o.Usage = used; used >= full {
		o.Wait = wait
	}
	return o
}

// prove adds the proof that a request comes from somebody who knows the app's secret: Graph API, Securing Graph API calls.
func (s secrets) prove(query url.Values, timed bool, now time.Time) {
	if s.AppSecret == "" {
		return
	}
	text := s.AccessToken
	if timed {
		at := strconv.FormatInt(now.Unix(), 10)
		query.Set("appsecret_time", at)
		text += "|" + at
	}
	mac := hmac.New(sha256.New, []byte(s.AppSecret))
	mac.Write([]byte(text))
	query.Set("appsecret_proof", hex.EncodeToString(mac.Sum(nil)))
}

func unreadable(o activation.Outcome) activation.Outcome {
	o.Class, o.Unknown, o.Reason = activation.Retry, true, "the answer is not what Meta promises"
	return o
}

// unsaid is how long Meta is left alone if it does not say for how long.
const unsaid = 5 * time.Minute

// refusal tells what an error of the Graph API means. Its status tells little: a request too many may be answered with 400.
func refusal(a wire.Answer, o activation.Outcome, wait time.Duration, r request) activation.Outcome {
	var answer struct {
		Error struct {
			Message   string `json:"message"`
			Code      int    `json:"code"`
			Subcode   int    `json:"error_subcode"`
			Transient bool   `json:"is_transient"`
		} `json:"error"`
	}
	if a.Decode(&answer) != nil || answer.Error.Code == 0 {
		return o // of somebody in between
	}
	e := answer.Error
	set := func(class activation.Class, reason string) activation.Outcome {
		o.Class, o.Wait, o.Reason = class, 0, reason
		return o
	}
	either := func(codes ...int) bool { return slices.Contains(codes, e.Code) || slices.Contains(codes, e.Subcode) }
	switch {
	case either(4, 17, 32, 613) || e.Code >= 80000 && e.Code <= 80014:
		wait = cmp.Or(wait, o.Wait, unsaid)
		set(activation.RetryAfter, "Meta had too many requests of this ad account or app")
		o.Wait = wait
		return o
	case e.Code == 190 && e.Subcode == 460:
		return set(activation.Reauth, "the access token has ended because its user changed the password: make another, of a system user")
	case e.Code == 190 && e.Subcode == 463:
		return set(activation.Reauth, "the access token has ended: make another; that of a system user does not end")
	case e.Code == 190, e.Code == 102, e.Code == 104:
		return set(activation.Reauth, "the access token was refused: make a new one for a system user that may use the ad account")
	case strings.Contains(e.Message, "appsecret_proof"):
		return set(activation.Config, "the app secret is missing, or not that of the app the access token is for")
	case e.Code == 10, e.Code >= 200 && e.Code < 300:
		return set(activation.Config, "the access token's user may not do this: "+r.needs)
	case either(2655):
		return set(activation.Config, "somebody has to accept the terms for Custom Audiences in the ad account")
	case either(1487301):
		return set(activation.Config, "the audience is not shared with this ad account any more")
	case either(1487366):
		return set(activation.Config, "the audience was deleted")
	case either(1713228, 1713230, 1713231):
		return set(activation.Config, "Meta has flagged the audience and takes no changes: see the Audience Manager")
	case e.Code == 100 && e.Subcode == 33:
		return set(activation.Config, r.what+" is not there, or not to be seen with this access token")
	case e.Code == 368:
		return set(activation.Config, "Meta has blocked this for breach of its policies")
	case e.Code == 2635:
		return set(activation.Config, "Meta does not serve this version of its API any more: set a newer one")
	case e.Code == 2650:
		return set(activation.Config, "Meta could not change the audience")
	case e.Transient, either(1, 2, 341, 5000, 21009):
		o.Unknown = true // whatever the status
		return set(activation.Retry, "Meta has a problem that will pass")
	case either(2804003):
		return set(activation.Split, "an event is older than Meta takes")
	case e.Code == 105:
		return set(activation.Split, "Meta found the message too long")
	case e.Code == 100: // one row may spoil the others
		return set(activation.Split, "Meta found something in the message that it does not accept")
	}
	return o
}

// full is the part from which on an account gets no more.
const full = 0.95

// usage tells how much of what may be asked is used up, from 0 to 1, and when there will be more: Graph API, Rate limits.
func usage(h http.Header) (used float64, wait time.Duration) {
	type percentages struct {
		Type    string  `json:"type"`
		Calls   float64 `json:"call_count"`
		CPU     float64 `json:"total_cputime"`
		Time    float64 `json:"total_time"`
		Minutes float64 `json:"estimated_time_to_regain_access"`
	}
	var (
		business map[string][]percentages
		app      percentages
		account  struct {
			Percent float64 `json:"acc_id_util_pct"`
			Seconds float64 `json:"reset_time_duration"`
		}
	)
	take := func(percent, seconds float64) {
		used = max(used, min(percent/100, 1))
		if percent >= 100*full {
			wait = max(wait, time.Duration(seconds*float64(time.Second)))
		}
	}
	// A header that is not there, or not as we know it, tells nothing.
	if json.Unmarshal([]byte(h.Get("X-Business-Use-Case-Usage")), &business) == nil {
		for _, cases := range business {
			for _, c := range cases {
				if c.Type == "" || c.Type == "custom_audience" || c.Type == "ads_management" {
					take(max(c.Calls, c.CPU, c.Time), 0)
					wait = max(wait, time.Duration(c.Minutes*float64(time.Minute)))
				}
			}
		}
	}
	if json.Unmarshal([]byte(h.Get("X-App-Usage")), &app) == nil {
		take(max(app.Calls, app.CPU, app.Time), 0)
	}
	if json.Unmarshal([]byte(h.Get("X-Ad-Account-Usage")), &account) == nil {
		take(account.Percent, account.Seconds)
	}
	return used, wait
}

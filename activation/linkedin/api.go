package linkedin

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// tokenLag is for how long LinkedIn may refuse an access token that it has just given, as revoked: some seconds, as many have
// found.
const tokenLag = time.Minute

// call is one request to the API.
type call struct {
	method string
	path   string // below the API's URL, escaped
	query  url.Values
	restli string // the method of Rest.li, where HTTP's does not tell
	body   []byte
}

// call makes a request and tells what its answer means, as LinkedIn's page on error handling says.
func (p *Partner) call(ctx context.Context, to activation.Target, c call) (wire.Answer, activation.Outcome) {
	cfg, sec, err := read(to)
	if err != nil {
		return wire.Answer{}, wire.BadSettings()
	}
	at := strings.TrimRight(cmp.Or(cfg.APIURL, apiURL), "/") + c.path
	if len(c.query) > 0 {
		at += "?" + c.query.Encode()
	}
	header := http.Header{}
	header.Set("Authorization", "Bearer "+sec.AccessToken)
	header.Set("LinkedIn-Version", cmp.Or(cfg.Version, version))
	header.Set("X-Restli-Protocol-Version", "2.0.0")
	if c.restli != "" {
		header.Set("X-RestLi-Method", c.restli)
	}
	a, o := wire.Do(ctx, p.client, wire.Request{Method: c.method, URL: at, Header: header, Body: c.body})
	return a, means(a, o, cfg, sec, time.Now())
}

// revoked is the service error code of an access token that was revoked; that of one which has ended is 65602.
const revoked = 65601

// refusal is the body of an answer that is not 2xx.
type refusal struct {
	Service int    `json:"serviceErrorCode"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// means tells what an answer means beyond its status.
func means(a wire.Answer, o activation.Outcome, cfg Config, sec secrets, now time.Time) activation.Outcome {
	var why refusal
	_ = a.Decode(&why) // if it is not LinkedIn's own, the status has to do
	switch a.Status {
	case http.StatusUnauthorized:
		switch {
		case why.Service == revoked && now.Sub(sec.RefreshedAt) < tokenLag:
			o.Class, o.Reason = activation.Retry, "LinkedIn does not accept the new access token yet"
		case sec.RefreshToken == "":
			o.Class, o.Reason = activation.Reauth, "the access token has ended or was revoked: connect the account again"
		default: // which of the two, the token endpoint says more surely
			o.Class, o.Reason = activation.Refresh, "the access token has ended or was revoked"
		}
	case http.StatusForbidden:
		o.Reason = "LinkedIn does not allow it: the token needs the scope rw_dmp_segments, " +
			"and its member a role above viewer in the ad account"
	case http.StatusUpgradeRequired:
		o.Class, o.Reason = activation.Config, ended(cfg)
	case http.StatusBadRequest:
		if strings.Contains(why.Code, "VERSION") { // or everybody would be refused, one by one
			o.Class, o.Reason = activation.Config, ended(cfg)
		}
	case http.StatusTooManyRequests:
		if o.Class == activation.Retry { // LinkedIn does not say for how long
			o.Class, o.Wait = activation.RetryAfter, time.Minute
			if strings.Contains(why.Message, "DAY limit") { // which begins anew at midnight UTC
				o.Wait = now.UTC().Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now)
			}
		}
	}
	return o
}

func ended(cfg Config) string {
	return "LinkedIn does not speak version " + cmp.Or(cfg.Version, version) + " of its API any more: set a later version"
}

// Refresh implements [activation.Refresher]. LinkedIn gives the refresh token that is there once more, and does not make it
// last longer: a year after the account was connected it has to be connected again. Not every app gets one; then the access token
// stays what it is, for as long as LinkedIn accepts it.
func (p *Partner) Refresh(
	ctx context.Context, to activation.Target,
) (fresh activation.Settings, expires time.Time, o activation.Outcome) {
	cfg, sec, err := read(to)
	if err != nil {
		return fresh, expires, wire.BadSettings()
	}
	if sec.RefreshToken == "" {
		return to.Settings, expires, activation.Outcome{Class: activation.OK}
	}
	asked := time.Now().UTC()
	token, o := wire.Refresh(ctx, p.client, cmp.Or(cfg.TokenURL, tokenURL), url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {sec.RefreshToken},
		"client_id": {cfg.ClientID}, "client_secret": {sec.ClientSecret},
	})
	if o.Class != activation.OK {
		return fresh, expires, o
	}
	sec.AccessToken, sec.RefreshToken, sec.RefreshedAt = token.Access, cmp.Or(token.Refresh, sec.RefreshToken), asked
	if fresh, err = wire.Settings(cfg, sec); err != nil {
		return activation.Settings{}, expires, wire.BadSettings()
	}
	return fresh, token.Expires, o
}

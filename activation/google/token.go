package google

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

const scope = "https://www.googleapis.com/auth/datamanager"

// Refresh implements [activation.Refresher], with a person's refresh token, or with an assertion that a service account's
// key signs (RFC 7523, "Using OAuth 2.0 for Server to Server Applications").
func (p *Partner) Refresh(
	ctx context.Context, to activation.Target,
) (fresh activation.Settings, expires time.Time, o activation.Outcome) {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return fresh, expires, wire.BadSettings()
	}
	if expires, o = sec.refresh(ctx, p.client, cfg.tokenURL()); o.Class != activation.OK {
		return fresh, expires, o
	}
	return refreshed(cfg, sec, expires, o)
}

// refreshed returns settings with what refresh has changed in the secrets.
func refreshed(
	cfg any, sec secrets, expires time.Time, o activation.Outcome,
) (activation.Settings, time.Time, activation.Outcome) {
	fresh, err := wire.Settings(cfg, sec)
	if err != nil {
		return fresh, expires, activation.Outcome{Class: activation.Retry, Reason: "the access token cannot be kept"}
	}
	return fresh, expires, o
}

// refresh puts a new access token into the secrets.
func (sec *secrets) refresh(
	ctx context.Context, client *http.Client, tokenURL string,
) (expires time.Time, o activation.Outcome) {
	form := url.Values{
		"grant_type": {"refresh_token"}, "client_id": {sec.ClientID}, "client_secret": {sec.ClientSecret},
		"refresh_token": {sec.RefreshToken},
	}
	key, isService := sec.account()
	if isService {
		assertion, err := key.assert(tokenURL, time.Now())
		if err != nil {
			return expires, wire.BadSettings()
		}
		form = url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion}}
	}
	t, o := wire.Refresh(ctx, client, tokenURL, form)
	if o.Class != activation.OK {
		if isService && o.Class == activation.Reauth {
			o.Reason = "the service account's key was refused: it was deleted or disabled, or this machine's clock is off"
		}
		return expires, o
	}
	sec.AccessToken = t.Access
	if t.Refresh != "" {
		sec.RefreshToken = t.Refresh
	}
	return t.Expires, o
}

// assert returns what a service account asks for an access token with.
func (s serviceAccount) assert(audience string, now time.Time) (string, error) {
	key, err := jwt.ParseRSAPrivateKeyFromPEM([]byte(s.Key))
	if err != nil {
		return "", err
	}
	t := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": s.Email, "scope": scope, "aud": audience, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	if s.KeyID != "" {
		t.Header["kid"] = s.KeyID
	}
	return t.SignedString(key)
}

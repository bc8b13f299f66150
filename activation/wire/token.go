package wire

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/mubatch/mubatch/activation"
)

// Token is what a token endpoint gives.
type Token struct {
	Access  string
	Refresh string    // the one that replaces the old; "" if that still holds
	Expires time.Time // of Access; zero if the endpoint does not say
}

// Refresh asks a token endpoint of OAuth 2 (RFC 6749, sections 5 and 6) with a form. A grant or client that it does not
// accept any more is Reauth, anything else that is wrong with the form Config; an endpoint that is not well is Retry, and
// nothing is said about the credential.
func Refresh(ctx context.Context, client *http.Client, endpoint string, form url.Values) (Token, activation.Outcome) {
	asked := time.Now()
	a, o := Do(ctx, client, Request{
		Method: http.MethodPost, URL: endpoint, Body: []byte(form.Encode()),
		Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Accept": {"application/json"}},
	})
	o.Excerpt = "" // it may hold a token
	switch o.Class {
	case activation.OK:
		var answer struct {
			Access  string `json:"access_token"`
			Refresh string `json:"refresh_token"`
			Seconds int64  `json:"expires_in"`
		}
		if a.Decode(&answer) != nil || answer.Access == "" {
			o = a.Unreadable()
			o.Excerpt = ""
			return Token{}, o
		}
		t := Token{Access: answer.Access, Refresh: answer.Refresh}
		if answer.Seconds > 0 {
			t.Expires = asked.Add(time.Duration(answer.Seconds) * time.Second)
		}
		return t, o
	case activation.Retry, activation.RetryAfter:
		return Token{}, o
	}
	var refusal struct {
		Code string `json:"error"`
	}
	switch err := a.Decode(&refusal); {
	case a.Status == 0:
		return Token{}, o
	case err != nil || refusal.Code == "": // not the token endpoint's own word
		o.Class = activation.Retry
		if a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden {
			o.Reason = fmt.Sprintf("the token endpoint, or somebody in between, answered %d without saying why: look at the client id, "+
				"its secret, and the URL for tokens", a.Status)
		}
	case refusal.Code == "invalid_grant":
		o.Class, o.Reason = activation.Reauth, "the refresh token was revoked or has ended: connect the account again"
	case refusal.Code == "invalid_client", refusal.Code == "unauthorized_client":
		o.Class, o.Reason = activation.Reauth, "the client id or secret was refused"
	case refusal.Code == "temporarily_unavailable":
		o.Class = activation.Retry
	default:
		o.Class, o.Reason = activation.Config, "the token endpoint refused the request: "+activation.Redact([]byte(refusal.Code))
	}
	return Token{}, o
}

package tiktok

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// request is one to TikTok's API.
type request struct {
	method  string
	path    string
	query   url.Values
	body    []byte
	attempt int // from 1 on
}

// call makes one request, and returns what it was answered under data.
func (p *Partner) call(ctx context.Context, to activation.Target, r request) (jsontext.Value, activation.Outcome) {
	cfg, sec, err := settings(to.Settings)
	if err != nil {
		return nil, wire.BadSettings()
	}
	address := cfg.URL + r.path
	if len(r.query) > 0 {
		address += "?" + r.query.Encode()
	}
	a, o := wire.Do(ctx, p.client, wire.Request{
		Method: r.method, URL: address, Body: r.body, Header: http.Header{"Access-Token": {sec.AccessToken}},
	})
	return meaning(a, o, r.attempt)
}

// meaning tells what an answer means: by its code (API for Business, Appendix, Return codes), and where there is none, by
// its status. o is what the status means.
func meaning(a wire.Answer, o activation.Outcome, attempt int) (jsontext.Value, activation.Outcome) {
	if o.Class == activation.Retry || o.Class == activation.RetryAfter {
		return nil, o // there was no answer, or whoever is in between is not well
	}
	var said struct {
		Code    *int64         `json:"code"`
		Message string         `json:"message"`
		Data    jsontext.Value `json:"data"`
	}
	if a.Decode(&said) != nil || said.Code == nil {
		return nil, a.Foreign(o)
	}
	o.Class, o.Unknown = activation.Retry, false
	o.Reason = fmt.Sprintf("TikTok answered with code %d", *said.Code)
	switch code := *said.Code; {
	case code == 0:
		o.Class, o.Reason = activation.OK, ""
		return said.Data, o
	case code == 20001:
		// Of whom it does not say. All are sent again, in halves, until who is refused stands alone. Of that person some
		// identifiers may have been taken.
		o.Class, o.Unknown, o.Reason = activation.Split, true, "TikTok took only a part of what it was told"
	case code == 40001:
		o.Class = activation.Config
		o.Reason = "the token may not manage audiences of this advertiser, or the audience is another's: " +
			"look at advertiser_ids, and at the permission Audience Management of the app"
	case code == 40007, code == 40002 && aboutAudience(said.Message):
		o.Class, o.Reason = activation.Config, "the audience or the advertiser is not there (any more)"
	case code == 40002:
		o.Class, o.Reason = activation.Split, "TikTok refused the values"
	case code == 40100:
		o.Class, o.Wait, o.Reason = activation.RetryAfter, backoff(attempt), "too many requests"
	case code == 40102, code == 40104, code == 40105:
		o.Class, o.Reason = activation.Reauth, "the access token is wrong or was revoked: connect the account again"
	case code >= 50000:
		o.Unknown = true
		o.Reason += ": an error of its own"
	}
	return nil, o
}

// aboutAudience tells whether what is wrong with a request's parameters concerns all of its rows alike. What TikTok writes
// there is not documented. A destination that is paused wrongly is better than everybody's being refused.
func aboutAudience(message string) bool {
	message = strings.ToLower(message)
	return strings.Contains(message, "audience") || strings.Contains(message, "advertiser")
}

// backoff is how long to wait after so many refusals, which TikTok does not say: 2 s, 4 s, … 5 min.
func backoff(attempt int) time.Duration {
	return min(time.Second<<min(max(attempt, 1), 10), 5*time.Minute)
}

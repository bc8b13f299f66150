// Package wire has what the HTTP APIs of partners have in common.
//
//	Settings ──► Read, Check          what a destination is given, and what is wrong with it
//	Request  ──► Do ──► Answer        one attempt, and what it means by its status alone
//	             Refresh ──► Token    OAuth 2
//
// What a status means is where a partner begins: where it says more in the body of an answer, that counts.
package wire

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
)

const (
	maxAnswer = 4 << 20
	longest   = 24 * time.Hour // that anybody may ask us to wait
)

// Request is what is sent.
type Request struct {
	Method string
	URL    string
	Header http.Header // more than User-Agent, and Content-Type of a body: application/json
	Body   []byte
}

// Answer is what came back. Its Status is 0 if nothing did.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Decode reads the body as JSON into a value, members that it does not know aside.
func (a Answer) Decode(into any) error { return json.Unmarshal(a.Body, into) }

// Do makes one attempt, and tells what came of it as far as the status goes:
//
//	2xx           OK
//	400, 422      Split: one bad member, whom nobody knows, may spoil the rest
//	401           Reauth; Refresh at partners whose tokens end
//	403, 404, 410 Config
//	413           Split
//	429, 5xx      RetryAfter if it says for how long, else Retry
//	others        Retry
//
// An answer of more than 4 MB, or one that breaks off, is none: Retry, and unknown, since what was asked for may have been
// done.
func Do(ctx context.Context, client *http.Client, r Request) (Answer, activation.Outcome) {
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, bytes.NewReader(r.Body))
	if err != nil {
		return Answer{}, activation.Outcome{Class: activation.Config, Reason: "the URL cannot be read"}
	}
	for name, values := range r.Header {
		req.Header[name] = values
	}
	if len(r.Body) > 0 && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "mubatch/1")
	res, err := client.Do(req)
	if err != nil {
		reason, unknown := activation.Failure(err)
		class := activation.Retry
		if activation.Misconfigured(err) {
			class = activation.Config
		}
		return Answer{}, activation.Outcome{Class: class, Unknown: unknown, Reason: reason}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	a := Answer{Status: res.StatusCode, Header: res.Header, Body: body}
	o := a.outcome()
	if err != nil || len(body) > maxAnswer {
		a.Body = nil
		if o.Class == activation.OK {
			o.Class, o.Reason = activation.Retry, "the answer could not be read to its end"
		}
		o.Unknown = true
	}
	return a, o
}

// outcome is what a status means by itself.
func (a Answer) outcome() activation.Outcome {
	o := activation.Outcome{
		Status: a.Status, Reason: fmt.Sprintf("the partner answered %d", a.Status), Excerpt: activation.Redact(a.Body),
	}
	wait, asked := a.RetryAfter()
	switch code := a.Status; {
	case code >= 200 && code < 300:
		o.Class, o.Reason = activation.OK, ""
	case asked && (code == http.StatusTooManyRequests || code >= 500):
		o.Class, o.Wait, o.Unknown = activation.RetryAfter, wait, code >= 500
	case code == http.StatusUnauthorized:
		o.Class, o.Reason = activation.Reauth, "the credential was refused"
	case code == http.StatusForbidden:
		o.Class, o.Reason = activation.Config, "a permission is missing"
	case code == http.StatusNotFound, code == http.StatusGone:
		o.Class, o.Reason = activation.Config, "what the destination names is not there"
	case code == http.StatusBadRequest, code == http.StatusUnprocessableEntity, code == http.StatusRequestEntityTooLarge:
		o.Class = activation.Split
	case code >= 300 && code < 400:
		o.Class = activation.Retry
		o.Reason += ", and redirects are not followed"
	default:
		o.Class, o.Unknown = activation.Retry, code >= 500 || code == http.StatusRequestTimeout
	}
	return o
}

// RetryAfter reads the header of that name, in either form, at most a day.
func (a Answer) RetryAfter() (wait time.Duration, ok bool) {
	value := a.Header.Get("Retry-After")
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil && seconds >= 0 {
		return min(time.Duration(seconds)*time.Second, longest), true
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(time.Until(at), 0), longest), true
	}
	return 0, false
}

// Unreadable is the outcome of an answer that says it is well and is not what it should be: a page of somebody in between,
// for instance.
func (a Answer) Unreadable() activation.Outcome {
	return activation.Outcome{
		Class: activation.Retry, Unknown: true, Status: a.Status, Excerpt: activation.Redact(a.Body),
		Reason: "the answer is not what the partner promises",
	}
}

package google

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// Send implements [activation.Partner]. Google refuses a request as a whole for the sake of one row, and says which: that
// one is dropped, and the others are sent again.
func (p *Partner) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	var answer accepted
	return answer.receipt(p.deliver(ctx, to, m, &answer))
}

// accepted is what Google answers when it has taken a request in.
type accepted struct {
	RequestID string `json:"requestId"`
}

// receipt puts what to ask for into an outcome that is well.
func (answer *accepted) receipt(o activation.Outcome) activation.Outcome {
	if o.Class != activation.OK {
		return o
	}
	if answer.RequestID == "" {
		o.Class, o.Unknown, o.Reason = activation.Retry, true, "the answer names no request"
		return o
	}
	o.Receipt = newReceipt(answer.RequestID)
	return o
}

// Validate implements [activation.Validator].
func (p *Partner) Validate(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	m.Body = validateOnly(m.Body)
	return p.deliver(ctx, to, m, nil)
}

// validateOnly has a request checked, and not carried out. Its body is an object, which gets one member more.
func validateOnly(body []byte) []byte { return append([]byte(`{"validateOnly":true,`), body[1:]...) }

// Draft implements [activation.Drafter]: a destination that has no access token yet sends nothing that could be caught.
func (*Partner) Draft(to activation.Target, m activation.Message) ([]activation.Draft, error) {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	return delivery(m).draft(cfg.apiURL(), sec), nil
}

func (c call) draft(api string, sec secrets) []activation.Draft {
	r := c.request(api, sec)
	return []activation.Draft{{Method: r.Method, URL: r.URL, Header: r.Header, Body: r.Body}}
}

// Test implements [activation.Partner]: it looks for a list, for which everything has to be right that a list to be made
// needs.
func (p *Partner) Test(ctx context.Context, to activation.Target) activation.Outcome {
	return p.ask(ctx, to, func(c Config) call {
		return call{method: http.MethodGet, path: "/v1/" + c.parent() + "/userLists?pageSize=1", login: c.login()}
	}, nil)
}

// deliver sends a message.
func (p *Partner) deliver(ctx context.Context, to activation.Target, m activation.Message, into any) activation.Outcome {
	a, o := p.do(ctx, to, func(Config) call { return delivery(m) }, into)
	if o.Class != activation.Split || a.Status == 0 {
		return o
	}
	r := readRefusal(a)
	rows := r.rows()
	if len(rows) == 0 {
		return o
	}
	members, ok := owners(m)
	if !ok {
		return o
	}
	o.Class, o.Rows = activation.Partial, make([]activation.RowOutcome, len(m.Members))
	for i := range o.Rows {
		o.Rows[i] = activation.RowOutcome{Class: activation.Retry, Reason: "another person in the request was refused"}
	}
	for i, reason := range rows {
		if i >= len(members) {
			o.Class, o.Rows = activation.Split, nil
			return o
		}
		o.Rows[members[i]] = activation.RowOutcome{Class: activation.Drop, Reason: people.row(reason)}
	}
	return o
}

// owners returns, for each row of a message, which of its members the row is about.
func owners(m activation.Message) (members []int, ok bool) {
	var body struct {
		Rows []struct {
			References []string `json:"destinationReferences"`
		} `json:"audienceMembers"`
	}
	if json.Unmarshal(m.Body, &body) != nil {
		return nil, false
	}
	last := -1
	for _, r := range body.Rows {
		if len(r.References) == 0 {
			last++
		}
		members = append(members, last)
	}
	return members, last == len(m.Members)-1
}

// call is a request, without what the destination's settings add to it.
type call struct {
	method, path string
	body         []byte
	login        string // the account that the credential belongs to, where the body does not name it
}

func delivery(m activation.Message) call {
	if m.Members[0].Entered {
		return call{method: http.MethodPost, path: "/v1/audienceMembers:ingest", body: m.Body}
	}
	return call{method: http.MethodPost, path: "/v1/audienceMembers:remove", body: m.Body}
}

func (c call) request(api string, sec secrets) wire.Request {
	header := http.Header{"Authorization": {"Bearer " + sec.AccessToken}}
	if len(c.body) > 0 {
		header.Set("Content-Type", "application/json")
	}
	if c.login != "" {
		header.Set("login-account", c.login)
	}
	return wire.Request{Method: c.method, URL: strings.TrimSuffix(api, "/") + c.path, Header: header, Body: c.body}
}

// do makes a call of a destination for Customer Match.
func (p *Partner) do(
	ctx context.Context, to activation.Target, what func(Config) call, into any,
) (wire.Answer, activation.Outcome) {
	cfg, sec, err := read(to.Settings)
	if err != nil {
		return wire.Answer{}, wire.BadSettings()
	}
	return what(cfg).do(ctx, p.client, cfg.apiURL(), sec, people, into)
}

// do makes one call and reads the answer. A refusal is classified by what Google says, and put in words.
func (c call) do(
	ctx context.Context, client *http.Client, api string, sec secrets, says vocabulary, into any,
) (wire.Answer, activation.Outcome) {
	if sec.AccessToken == "" {
		return wire.Answer{}, activation.Outcome{Class: activation.Refresh, Reason: "there is no access token yet"}
	}
	a, o := wire.Do(ctx, client, c.request(api, sec))
	switch {
	case a.Status == 0:
	case o.Class != activation.OK:
		o = readRefusal(a).outcome(o, says)
	case into != nil && a.Decode(into) != nil:
		o = a.Unreadable()
	}
	return a, o
}

// ask is do for requests that are about no people: halving them does not help.
func (p *Partner) ask(ctx context.Context, to activation.Target, what func(Config) call, into any) activation.Outcome {
	_, o := p.do(ctx, to, what, into)
	if o.Class == activation.Split {
		o.Class = activation.Config
	}
	return o
}

package linkedin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// maxBody is how long a message may get, in bytes. LinkedIn names no limit.
const maxBody = 1 << 20

// unknownFor is for how long LinkedIn may not know a segment that it has made: 1 to 2 minutes as a rule.
const unknownFor = 10 * time.Minute

// element is one person.
type element struct {
	Action    string   `json:"action"`
	UserIDs   []userID `json:"userIds"`
	FirstName string   `json:"firstName,omitzero"`
	LastName  string   `json:"lastName,omitzero"`
	Title     string   `json:"title,omitzero"`
	Company   string   `json:"company,omitzero"`
	Country   string   `json:"country,omitzero"`
}

type userID struct {
	Type  string `json:"idType"`
	Value string `json:"idValue"`
}

// Encode implements [activation.AudiencePartner]. A person is one element with all identifiers, since LinkedIn finds a member by any of
// them and answers for each element. Names are nobody's key, so that a removal goes without them.
func (*Partner) Encode(_ activation.Target, b activation.Batch) (body []byte, took int, err error) {
	const head, tail = `{"elements":[`, `]}`
	body = append(body, head...)
	for _, m := range b.Members {
		one, err := json.Marshal(toElement(m))
		if err != nil {
			return nil, 0, fmt.Errorf("encode a person for LinkedIn: %w", err)
		}
		if took > 0 {
			if len(body)+len(",")+len(one)+len(tail) > maxBody {
				break
			}
			body = append(body, ',')
		}
		body = append(body, one...)
		took++
	}
	return append(body, tail...), took, nil
}

func toElement(m activation.Member) element {
	e := element{Action: "REMOVE", UserIDs: make([]userID, len(m.Identifiers.IDs))}
	for i, id := range m.Identifiers.IDs {
		e.UserIDs[i] = userID{id.Kind, id.Value}
	}
	if m.Entered {
		e.Action = "ADD"
		get := m.Identifiers.Get
		e.FirstName, e.LastName, e.Title, e.Company, e.Country = get(firstName), get(lastName), get(title), get(company), get(country)
	}
	return e
}

// Send implements [activation.Partner].
func (p *Partner) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	a, o := p.call(ctx, to, call{
		method: http.MethodPost, path: "/dmpSegments/" + url.PathEscape(m.Audience) + "/users", restli: "BATCH_CREATE", body: m.Body,
	})
	switch {
	case a.Status == http.StatusNotFound && time.Since(m.Since) < unknownFor:
		o.Class, o.Reason = activation.Retry, "LinkedIn does not know the segment yet, as is usual for some minutes"
	case a.Status == http.StatusNotFound:
		o.Reason = "the segment is not there: it was deleted at LinkedIn, or its id is not right"
	case o.Class == activation.OK:
		return rows(a, o, len(m.Members))
	}
	return o
}

// rows reads what became of each of n people, in the order in which they were told of.
func rows(a wire.Answer, o activation.Outcome, n int) activation.Outcome {
	var answer struct {
		Elements []struct {
			Status  int    `json:"status"`
			Message string `json:"message"`
		} `json:"elements"`
	}
	if a.Decode(&answer) != nil || len(answer.Elements) != n {
		return a.Unreadable()
	}
	var (
		bad      int
		messages string
	)
	list := make([]activation.RowOutcome, n)
	for i, e := range answer.Elements {
		reason := fmt.Sprintf("LinkedIn answered %d of the person", e.Status)
		switch {
		case e.Status >= 200 && e.Status < 300:
			list[i].Class = activation.OK
			continue
		case e.Status == http.StatusBadRequest, e.Status == http.StatusUnprocessableEntity:
			list[i] = activation.RowOutcome{Class: activation.Drop, Reason: reason}
		default:
			list[i] = activation.RowOutcome{Class: activation.Retry, Reason: reason}
		}
		if bad++; len(messages) < activation.MaxExcerpt {
			messages += fmt.Sprintf("%d %s; ", e.Status, e.Message)
		}
	}
	if bad == 0 {
		return o
	}
	o.Class, o.Rows = activation.Partial, list
	o.Reason = fmt.Sprintf("LinkedIn did not take %d of %d people", bad, n)
	o.Excerpt = activation.Redact([]byte(messages))
	return o
}

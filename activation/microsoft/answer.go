package microsoft

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// throttled is how long to wait when there were too many calls. They are counted by the minute.
const throttled = time.Minute

// fault is what is wrong with a call, or with one of its items.
type fault struct {
	Index *int   `json:"Index"`
	Code  int64  `json:"Code"`
	Name  string `json:"ErrorCode"`
}

// names are those of the codes that are dealt with, for answers that give the code alone.
var names = map[int64]string{
	0:    "InternalError",
	105:  "InvalidCredentials",
	106:  "UserIsNotAuthorized",
	109:  "AuthenticationTokenExpired",
	117:  "CallRateExceeded",
	207:  "ConcurrentRequestOverLimit",
	8003: "CustomerListTermsAndConditionsNotAccepted",
}

func (f fault) name() string { return cmp.Or(f.Name, names[f.Code], "no name") }

// outcome is what a fault means (Microsoft Advertising API, Operation error codes).
func (f fault) outcome() (o activation.Outcome) {
	switch name := f.name(); {
	case name == "AuthenticationTokenExpired":
		o.Class, o.Reason = activation.Refresh, "the access token has ended"
	case name == "InvalidCredentials":
		o.Class, o.Reason = activation.Reauth, "the credentials or the developer token were refused: connect the account again"
	case strings.Contains(name, "DeveloperToken"):
		o.Class, o.Reason = activation.Config, "the developer token was refused"
	case name == "UserIsNotAuthorized":
		o.Class = activation.Config
		o.Reason = "the user who connected the account may not manage it: look at customer_id and account_id"
	case name == "CallRateExceeded":
		o.Class, o.Wait, o.Reason = activation.RetryAfter, throttled, "too many calls"
	case name == "ConcurrentRequestOverLimit":
		o.Class, o.Reason = activation.Retry, "too many calls at once"
	case name == "CustomerListTermsAndConditionsNotAccepted":
		o.Class = activation.Config
		o.Reason = "the terms of customer match are not accepted: accept them in Microsoft Advertising, or set accept_terms"
	case strings.Contains(name, "AudienceId"):
		o.Class, o.Reason = activation.Config, "the customer list is not there (any more)"
	case strings.Contains(name, "AccountId"), strings.Contains(name, "CustomerId"):
		o.Class, o.Reason = activation.Config, "customer_id or account_id is wrong"
	case name == "InternalError":
		o.Class, o.Unknown, o.Reason = activation.Retry, true, "an error of Microsoft's own"
	default:
		o.Class, o.Reason = activation.Split, "Microsoft refused it: "+activation.Redact([]byte(name))
	}
	return o
}

// call makes one call, and reads its answer.
func (p *Partner) call(ctx context.Context, to activation.Target, path string, body []byte, into any) activation.Outcome {
	cfg, sec, err := settings(to.Settings)
	if err != nil {
		return wire.BadSettings()
	}
	if sec.AccessToken == "" {
		return activation.Outcome{Class: activation.Refresh, Reason: "there is no access token yet"}
	}
	a, o := wire.Do(ctx, p.client, request(cfg, sec, path, body))
	return meaning(a, o, into)
}

func request(cfg Config, sec secrets, path string, body []byte) wire.Request {
	header := http.Header{"Accept": {"application/json"}, "Authorization": {"Bearer " + sec.AccessToken}}
	for name, value := range map[string]string{
		"DeveloperToken": sec.DeveloperToken, "CustomerId": cfg.CustomerID, "CustomerAccountId": cfg.AccountID,
	} {
		header.Set(name, value)
	}
	return wire.Request{Method: http.MethodPost, URL: cfg.URL + path, Body: body, Header: header}
}

// meaning tells what an answer means: by the first fault in it, and where there is none, by its status. o is what the status
// means.
func meaning(a wire.Answer, o activation.Outcome, into any) activation.Outcome {
	if o.Class == activation.Retry || o.Class == activation.RetryAfter {
		return o // there was no answer, or whoever answered is not well
	}
	var said struct {
		Errors          []fault `json:"Errors"`
		BatchErrors     []fault `json:"BatchErrors"`
		OperationErrors []fault `json:"OperationErrors"`
	}
	err := a.Decode(&said)
	faults := slices.Concat(said.Errors, said.OperationErrors, said.BatchErrors)
	switch {
	case err == nil && len(faults) > 0:
		found := faults[0].outcome()
		found.Status, found.Excerpt = o.Status, o.Excerpt
		return found
	case o.Class == activation.OK && err == nil && a.Decode(into) == nil:
		return o
	case a.Status == http.StatusUnauthorized:
		o.Class, o.Reason = activation.Refresh, "the access token was refused"
		return o
	}
	return a.Foreign(o)
}

// Send implements [activation.Partner].
func (p *Partner) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	var kept message
	if err := json.Unmarshal(m.Body, &kept); err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the message cannot be read"}
	}
	var answer struct {
		Partial []*fault `json:"PartialErrors"`
	}
	o := p.call(ctx, to, applyPath, kept.Body, &answer)
	if o.Class != activation.OK {
		return o
	}
	return tell(o, kept.Counts, answer.Partial, m.Members)
}

const applyPath = "/CustomerListUserData/Apply"

// Draft implements [activation.Drafter]: a destination that has no access token yet sends nothing that could be caught.
func (*Partner) Draft(to activation.Target, m activation.Message) ([]activation.Draft, error) {
	cfg, sec, err := settings(to.Settings)
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	var kept message
	if err := json.Unmarshal(m.Body, &kept); err != nil {
		return nil, fmt.Errorf("read a message: %w", err)
	}
	r := request(cfg, sec, applyPath, kept.Body)
	r.Header.Set("Content-Type", "application/json")
	return []activation.Draft{{Method: r.Method, URL: r.URL, Header: r.Header, Body: r.Body}}, nil
}

// tell says of people what was said of items. Who was to be added is there if any item was taken; who was to be removed may
// be there until none is refused. A fault that is none of an item's is the whole message's.
func tell(o activation.Outcome, counts []int, partial []*fault, members []activation.MemberRef) activation.Outcome {
	items := 0
	for _, n := range counts {
		items += n
	}
	wrong := map[int]activation.Outcome{} // with which item
	for _, f := range partial {
		if f == nil {
			continue
		}
		w := f.outcome()
		isItem := f.Index != nil && *f.Index >= 0 && *f.Index < items
		if !isItem || w.Class != activation.Split && w.Class != activation.Retry {
			w.Unknown, w.Status, w.Excerpt = true, o.Status, o.Excerpt
			return w
		}
		wrong[*f.Index] = w
	}
	if len(wrong) == 0 {
		return o
	}
	o.Class, o.Reason = activation.Partial, "Microsoft refused some of the people"
	item := 0
	for i, n := range counts {
		row, refused := activation.RowOutcome{Class: activation.OK}, 0
		for range n {
			w, is := wrong[item]
			item++
			switch {
			case !is:
			case w.Class == activation.Retry:
				row, o.Unknown = activation.RowOutcome{Class: activation.Retry, Reason: w.Reason}, true
			case row.Class != activation.Retry:
				row = activation.RowOutcome{Class: activation.Drop, Reason: w.Reason}
				refused++
			}
		}
		if entered := i < len(members) && members[i].Entered; entered && row.Class == activation.Drop && refused < n {
			row = activation.RowOutcome{Class: activation.OK}
		}
		o.Rows = append(o.Rows, row)
	}
	return o
}

package meta

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
)

const (
	perPage  = "200" // audiences
	maxPages = 50
	maxName  = 200 // characters
)

// Create makes an audience for customer files. Meta has no key of ours for it: what was made before is found by its
// description, which names the destination and the segment.
func (p *Partner) Create(
	ctx context.Context, to activation.Target, s activation.Segment,
) (audience string, o activation.Outcome) {
	cfg, _, err := read(to.Settings)
	if err != nil {
		return "", activation.Outcome{Class: activation.Config, Reason: "the destination's settings cannot be read"}
	}
	description := description(to, s)
	if audience, o = p.find(ctx, to, cfg, description); o.Class != activation.OK || audience != "" {
		return audience, o
	}
	body, err := json.Marshal(map[string]string{
		"name": audienceName(s), "subtype": "CUSTOM", "description": description, "customer_file_source": cfg.CustomerFileSource,
	}, json.Deterministic(true))
	if err != nil {
		return "", activation.Outcome{Class: activation.Config, Reason: "the segment's name cannot be sent"}
	}
	var answer struct {
		ID string `json:"id"`
	}
	o = p.ask(ctx, to, request{method: http.MethodPost, path: account(cfg) + "/customaudiences", body: body, what: "the ad account"}, &answer)
	if o.Class == activation.OK && answer.ID == "" {
		o = unreadable(o)
	}
	return answer.ID, o
}

func account(cfg Config) string { return "act_" + cfg.AdAccountID }

func audienceName(s activation.Segment) string {
	name := []rune(strings.ToValidUTF8(s.Name, ""))
	if len(name) == 0 {
		name = []rune(s.Key)
	}
	return string(name[:min(len(name), maxName)])
}

// description is by what an audience is found again.
func description(to activation.Target, s activation.Segment) string {
	return fmt.Sprintf("Kept by mubatch: segment %s, destination %s (%d/%d/%d)", s.Key, to.Key, to.Workspace, to.ID, s.ID)
}

// find returns the audience with a description, or "".
func (p *Partner) find(
	ctx context.Context, to activation.Target, cfg Config, description string,
) (audience string, o activation.Outcome) {
	query := url.Values{"fields": {"id,description"}, "limit": {perPage}}
	for range maxPages {
		var answer struct {
			Data []struct {
				ID          string `json:"id"`
				Description string `json:"description"`
			} `json:"data"`
			Paging struct {
				Cursors struct {
					After string `json:"after"`
				} `json:"cursors"`
				Next string `json:"next"`
			} `json:"paging"`
		}
		o = p.ask(ctx, to, request{
			method: http.MethodGet, path: account(cfg) + "/customaudiences", query: query, what: "the ad account",
		}, &answer)
		if o.Class != activation.OK {
			return "", o
		}
		for _, a := range answer.Data {
			if a.Description == description {
				return a.ID, o
			}
		}
		if answer.Paging.Next == "" || answer.Paging.Cursors.After == "" {
			break
		}
		query.Set("after", answer.Paging.Cursors.After) // not Next, which leads where it likes
	}
	return "", o
}

// Size implements [activation.Sizer].
func (p *Partner) Size(ctx context.Context, to activation.Target, audience string) (activation.Size, activation.Outcome) {
	var answer struct {
		Matched *int64 `json:"approximate_count_lower_bound"` // -1 if there are too few to tell
		State   struct {
			Code        int    `json:"code"`
			Description string `json:"description"`
		} `json:"operation_status"`
	}
	o := p.ask(ctx, to, request{
		method: http.MethodGet, path: audience, what: "the audience",
		query: url.Values{"fields": {"id,approximate_count_lower_bound,operation_status"}},
	}, &answer)
	size := activation.Size{Matched: -1, State: answer.State.Description}
	if answer.Matched != nil {
		size.Matched = max(*answer.Matched, -1)
	}
	if size.State == "" && answer.State.Code != 0 {
		size.State = fmt.Sprintf("status %d", answer.State.Code)
	}
	return size, o
}

// Test looks at the ad account, and at whether the terms for Custom Audiences were accepted there.
func (p *Partner) Test(ctx context.Context, to activation.Target) activation.Outcome {
	cfg, _, err := read(to.Settings)
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the destination's settings cannot be read"}
	}
	var answer struct {
		ID    string         `json:"id"`
		Terms map[string]any `json:"tos_accepted"`
	}
	o := p.ask(ctx, to, request{
		method: http.MethodGet, path: account(cfg), what: "the ad account", query: url.Values{"fields": {"id,tos_accepted"}},
	}, &answer)
	if o.Class != activation.OK {
		return o
	}
	if answer.ID != account(cfg) {
		return unreadable(o)
	}
	if answer.Terms["custom_audience_tos"] == 0.0 { // where it is left out nobody knows
		o.Class, o.Reason = activation.Config, "somebody has to accept the terms for Custom Audiences in the ad account"
	}
	return o
}

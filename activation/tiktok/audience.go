package tiktok

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

const (
	maxName  = 70 // characters; TikTok cuts longer names
	pageSize = 100
	maxPages = 50 // an advertiser has at most 400 audiences of its own, and others that were shared with it
)

// audience is what TikTok says of one.
type audience struct {
	ID      wire.ID `json:"audience_id"`
	Name    string  `json:"name"`
	Matched wire.ID `json:"cover_num"`
	Valid   *bool   `json:"is_valid"`
	Message string  `json:"msg"`
}

// Create implements [activation.Creator]. The audience's name says which destination and segment it is of, by which it is
// found again, even if the segment was renamed since.
func (p *Partner) Create(
	ctx context.Context, to activation.Target, s activation.Segment,
) (made string, o activation.Outcome) {
	cfg, _, _ := settings(to.Settings) // what cannot be read is reported by call
	name, mark := wire.AudienceName(to, s, maxName)
	if made, o = p.find(ctx, to, cfg, mark); made != "" || o.Class != activation.OK {
		return made, o
	}
	body, err := json.Marshal(map[string]string{
		"custom_audience_name": name, "advertiser_id": owner(cfg), "action": "create",
	}, json.Deterministic(true))
	if err != nil {
		return "", activation.Outcome{Class: activation.Config, Reason: "the segment's name cannot be sent"}
	}
	data, o := p.call(ctx, to, request{method: http.MethodPost, path: "/segment/audience/", body: body})
	if o.Class != activation.OK {
		return "", o
	}
	var answer audience
	if json.Unmarshal(data, &answer) != nil || answer.ID == "" {
		return "", unreadable(o)
	}
	return string(answer.ID), o
}

func owner(cfg Config) string {
	if len(cfg.AdvertiserIDs) == 0 {
		return ""
	}
	return cfg.AdvertiserIDs[0]
}

// find looks for an audience of the first advertiser whose name ends so. OK without an id says that there is none.
func (p *Partner) find(ctx context.Context, to activation.Target, cfg Config, mark string) (string, activation.Outcome) {
	for page := 1; ; page++ {
		list, pages, o := p.list(ctx, to, owner(cfg), page, pageSize)
		if o.Class != activation.OK {
			return "", o
		}
		for _, a := range list {
			if strings.HasSuffix(a.Name, mark) {
				return string(a.ID), o
			}
		}
		if page >= min(pages, maxPages) {
			return "", o
		}
	}
}

// list reads one page of an advertiser's audiences, and how many pages there are.
func (p *Partner) list(
	ctx context.Context, to activation.Target, advertiser string, page, size int,
) (list []audience, pages int, o activation.Outcome) {
	data, o := p.call(ctx, to, request{method: http.MethodGet, path: "/dmp/custom_audience/list/", query: url.Values{
		"advertiser_id": {advertiser}, "page": {strconv.Itoa(page)}, "page_size": {strconv.Itoa(size)},
	}})
	if o.Class != activation.OK {
		return nil, 0, o
	}
	var answer struct {
		List []audience `json:"list"`
		Page struct {
			Pages int `json:"total_page"`
		} `json:"page_info"`
	}
	if json.Unmarshal(data, &answer) != nil {
		return nil, 0, unreadable(o)
	}
	return answer.List, answer.Page.Pages, o
}

// Size implements [activation.Sizer].
func (p *Partner) Size(
	ctx context.Context, to activation.Target, made string,
) (size activation.Size, o activation.Outcome) {
	cfg, _, _ := settings(to.Settings) // what cannot be read is reported by call
	size.Matched = -1
	wanted, err := json.Marshal([]string{made})
	if err != nil {
		return size, activation.Outcome{Class: activation.Config, Reason: "the audience's id cannot be sent"}
	}
	data, o := p.call(ctx, to, request{method: http.MethodGet, path: "/dmp/custom_audience/get/", query: url.Values{
		"advertiser_id": {owner(cfg)}, "custom_audience_ids": {string(wanted)},
	}})
	if o.Class != activation.OK {
		return size, o
	}
	var answer struct {
		List []struct {
			Details audience `json:"audience_details"`
		} `json:"list"`
	}
	if json.Unmarshal(data, &answer) != nil {
		return size, unreadable(o)
	}
	for _, one := range answer.List {
		size = activation.Size{Matched: one.Details.Matched.Count(), State: one.Details.state()}
	}
	return size, o
}

// state is what TikTok says of an audience: in its words, where there are any.
func (a audience) state() string {
	switch {
	case a.Message != "":
		return a.Message
	case a.Valid == nil:
		return ""
	case *a.Valid:
		return "valid"
	default:
		return "not valid yet, or not any more"
	}
}

// Test reads one audience of each advertiser, which needs the token and the permission that all else needs.
func (p *Partner) Test(ctx context.Context, to activation.Target) (o activation.Outcome) {
	cfg, _, err := settings(to.Settings)
	if err != nil {
		return wire.BadSettings()
	}
	for _, advertiser := range cfg.AdvertiserIDs {
		if _, _, o = p.list(ctx, to, advertiser, 1, 1); o.Class != activation.OK {
			o.Reason = fmt.Sprintf("advertiser %s: %s", advertiser, o.Reason)
			break
		}
	}
	return o
}

// unreadable is the outcome of an answer that is well by its code, and does not hold what it should.
func unreadable(o activation.Outcome) activation.Outcome {
	o.Class, o.Unknown, o.Reason = activation.Retry, true, "the answer is not what TikTok promises"
	return o
}

package linkedin

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// settle is for how long a new segment is left alone. LinkedIn asks for 5 s.
const settle = 10 * time.Second

// segment is a DMP segment, as far as it matters.
type segment struct {
	ID              jsontext.Value `json:"id,omitzero"`
	Name            string         `json:"name"`
	SourcePlatform  string         `json:"sourcePlatform"`
	SourceSegmentID string         `json:"sourceSegmentId"`
	Account         string         `json:"account"`
	AccessPolicy    string         `json:"accessPolicy"`
	Type            string         `json:"type"`
	Destinations    []destination  `json:"destinations"`
}

// destination is where the people of a segment can be reached.
type destination struct {
	Destination  string `json:"destination"`
	Status       string `json:"status,omitzero"`
	AudienceSize *int64 `json:"audienceSize,omitzero"`
}

func account(cfg Config) string { return "urn:li:sponsoredAccount:" + cfg.AccountID }

// ref is what a segment is called at LinkedIn by us. Two destinations may be at one ad account and ask for different consent,
// so that each has segments of its own.
func ref(to activation.Target, s activation.Segment) string {
	return fmt.Sprintf("mubatch_dst_%d_seg_%d", to.ID, s.ID)
}

// Create implements [activation.Creator].
func (p *Partner) Create(
	ctx context.Context, to activation.Target, s activation.Segment,
) (audience string, o activation.Outcome) {
	cfg, _, err := read(to)
	if err != nil {
		return "", wire.BadSettings()
	}
	found, o := p.find(ctx, to, cfg, url.Values{"sourceSegmentId": {ref(to, s)}})
	if o.Class != activation.OK {
		return "", o
	}
	for _, one := range found {
		if one.SourceSegmentID == ref(to, s) && one.Type == "USER" {
			o.Wait = settle
			return strings.Trim(string(one.ID), `"`), o
		}
	}
	body, err := json.Marshal(segment{
		Name: cmp.Or(s.Name, s.Key), SourcePlatform: cfg.SourcePlatform, SourceSegmentID: ref(to, s), Account: account(cfg),
		AccessPolicy: "PRIVATE", Type: "USER", Destinations: []destination{{Destination: "LINKEDIN"}},
	})
	if err != nil {
		return "", activation.Outcome{Class: activation.Config, Reason: "the segment cannot be named"}
	}
	a, o := p.call(ctx, to, call{method: http.MethodPost, path: "/dmpSegments", body: body})
	switch o.Class {
	case activation.OK:
		o.Wait = settle
		return cmp.Or(a.Header.Get("X-Linkedin-Id"), a.Header.Get("X-Restli-Id")), o // the body is empty
	case activation.Split:
		o.Class = activation.Config
		o.Reason = "LinkedIn refused to make a segment: the account id or the source platform may not be right"
	}
	return "", o
}

// find lists segments of the account that were made by the app.
func (p *Partner) find(
	ctx context.Context, to activation.Target, cfg Config, which url.Values,
) (found []segment, o activation.Outcome) {
	which.Set("q", "account")
	which.Set("account", account(cfg))
	which.Set("sourcePlatform", cfg.SourcePlatform)
	a, o := p.call(ctx, to, call{method: http.MethodGet, path: "/dmpSegments", query: which})
	var answer struct {
		Elements []segment `json:"elements"`
	}
	switch {
	case o.Class == activation.OK && (a.Decode(&answer) != nil || answer.Elements == nil):
		return nil, a.Unreadable()
	case a.Status == http.StatusBadRequest && o.Class == activation.Split, a.Status == http.StatusNotFound:
		o.Class, o.Reason = activation.Config, "LinkedIn does not know the ad account, or not the source platform"
	}
	return answer.Elements, o
}

// Size implements [activation.Sizer]: how many can be reached, and not how many were recognised, which LinkedIn counts for
// the last seven days only.
func (p *Partner) Size(
	ctx context.Context, to activation.Target, audience string,
) (size activation.Size, o activation.Outcome) {
	a, o := p.call(ctx, to, call{method: http.MethodGet, path: "/dmpSegments/" + url.PathEscape(audience)})
	if o.Class != activation.OK {
		return size, o
	}
	var answer segment
	if a.Decode(&answer) != nil {
		return size, a.Unreadable()
	}
	size.Matched = -1
	for _, d := range answer.Destinations {
		if d.Destination != "LINKEDIN" {
			continue
		}
		if size.State = d.Status; d.AudienceSize != nil {
			size.Matched = *d.AudienceSize
		}
	}
	return size, o
}

// Test implements [activation.Partner]: it lists a segment of the account, for which the token needs the scope that it needs
// for sending.
func (p *Partner) Test(ctx context.Context, to activation.Target) activation.Outcome {
	cfg, _, err := read(to)
	if err != nil {
		return wire.BadSettings()
	}
	_, o := p.find(ctx, to, cfg, url.Values{"start": {"0"}, "count": {"1"}})
	return o
}

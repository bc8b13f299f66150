package api

import (
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/rule"
)

type explainedJSON struct {
	ProfileID    profiles.Key     `json:"profile_id"`
	SegmentID    string           `json:"segment_id"`
	SegmentKey   string           `json:"segment_key"`
	SegmentName  string           `json:"segment_name"`
	Status       string           `json:"status"`
	Version      *int             `json:"version"`
	Newest       int              `json:"newest_version"`
	Member       bool             `json:"member"`
	Since        *timestamp       `json:"since"`
	Cause        *causeJSON       `json:"cause"`
	NextChangeAt *timestamp       `json:"next_change_at"`
	Description  string           `json:"description"`
	Rule         jsontext.Value   `json:"rule"`
	ExplainedAt  timestamp        `json:"explained_at"`
	Explanation  *explanationJSON `json:"explanation"`
	AsOf         *timestamp       `json:"as_of"`
}

type explanationJSON struct {
	Pointer      string            `json:"pointer"`
	Kind         string            `json:"kind"`
	Text         string            `json:"text"`
	Holds        bool              `json:"holds"`
	NextChangeAt *timestamp        `json:"next_change_at"`
	Observed     jsontext.Value    `json:"observed,omitzero"`
	From         *timestamp        `json:"from,omitzero"`
	Events       []usedEventJSON   `json:"events,omitzero"`
	Nodes        []explanationJSON `json:"nodes,omitzero"`
}

type usedEventJSON struct {
	MessageID  string                    `json:"message_id"`
	SourceID   string                    `json:"source_id"`
	EventAt    timestamp                 `json:"event_at"`
	Event      string                    `json:"event"`
	Properties map[string]jsontext.Value `json:"properties"`
}

func explainMembership(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	ctx := c.Context()
	asOf, err := c.people.AsOf(ctx) // before looking: what it says must be true
	if err != nil {
		return answer{}, err
	}
	ref, err := c.segmentRef()
	if err != nil {
		return answer{}, err
	}
	seg, err := c.segments.Get(ctx, c.workspace(), ref)
	if err != nil {
		return answer{}, err
	}
	p, err := c.find()
	if err != nil {
		return answer{}, err
	}
	x, err := c.people.Explain(ctx, p, seg.ID)
	if err != nil {
		return answer{}, err
	}
	canonical, err := x.Rule.MarshalJSON()
	if err != nil {
		return answer{}, err
	}
	shown := showExplanation(x, x.Explanation)
	out := explainedJSON{
		ProfileID: p.ID, SegmentID: formatID(segmentID, seg.ID), SegmentKey: seg.Key, SegmentName: seg.Name,
		Status: showSegment(seg).Status, Newest: seg.Version, Member: x.Member, Since: unlessZero(x.Since), Cause: showCause(x.Cause),
		NextChangeAt: showable(x.Due), Description: x.Rule.Describe(), Rule: canonical, ExplainedAt: timestamp(x.At),
		Explanation: &shown, AsOf: unlessZero(asOf),
	}
	if x.Version > 0 {
		out.Version = &x.Version
	}
	return reply(http.StatusOK, out)
}

func showExplanation(x *profiles.Explained, n *rule.Explanation) explanationJSON {
	out := explanationJSON{
		Pointer: n.Pointer, Kind: n.Kind, Text: n.Text, Holds: n.Holds, NextChangeAt: showable(n.Until), Observed: n.Observed,
		From: unlessZero(n.From),
	}
	if len(n.Behaviours) > 0 {
		out.Events = []usedEventJSON{}
	}
	for _, e := range x.Events[n] {
		out.Events = append(out.Events, usedEventJSON{e.MessageID, formatID(sourceID, e.Source), timestamp(e.At), e.Event, e.Properties})
	}
	for _, child := range n.Nodes {
		out.Nodes = append(out.Nodes, showExplanation(x, child))
	}
	return out
}

// showable returns t for JSON, null if it is zero or further away than a date can be written.
func showable(t time.Time) *timestamp {
	if t.Year() > 9999 {
		return nil
	}
	return unlessZero(t)
}

package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/profiles"
)

type profileJSON struct {
	ID          profiles.Key              `json:"id"`
	Identifiers []profiles.Identifier     `json:"identifiers"`
	Traits      map[string]jsontext.Value `json:"traits"`
	Computed    map[string]jsontext.Value `json:"computed"`
	Consent     map[string]consentJSON    `json:"consent"`
	Memberships []membershipJSON          `json:"memberships"`
	FirstSeenAt *timestamp                `json:"first_seen_at"`
	LastSeenAt  *timestamp                `json:"last_seen_at"`
	AsOf        *timestamp                `json:"as_of"`
}

type consentJSON struct {
	Granted bool      `json:"granted"`
	At      timestamp `json:"at"`
}

type membershipJSON struct {
	SegmentID   string    `json:"segment_id"`
	SegmentKey  string    `json:"segment_key"`
	SegmentName string    `json:"segment_name"`
	EnteredAt   timestamp `json:"entered_at"`
}

func showProfile(p *profiles.Profile, segments map[int64]activation.Segment, computed profiles.ComputedValues, asOf time.Time) profileJSON {
	merged := p.Merged()
	out := profileJSON{
		ID: p.ID, Identifiers: p.Identifiers(), Traits: map[string]jsontext.Value{}, Computed: computed.Of(p, time.Now()), Consent: map[string]consentJSON{},
		AsOf: unlessZero(asOf),
	}
	if merged.FirstSeen != 0 {
		out.FirstSeenAt, out.LastSeenAt = unlessZero(time.UnixMilli(merged.FirstSeen)), unlessZero(time.UnixMilli(merged.LastSeen))
	}
	for _, t := range merged.Traits {
		out.Traits[t.Name] = t.Value
	}
	for _, c := range merged.Consent {
		out.Consent[c.Purpose] = consentJSON{c.Granted, timestamp(time.UnixMilli(c.Stamp.At))}
	}
	for _, s := range p.Standings {
		if seg, ok := segments[s.Segment]; ok && s.Member {
			out.Memberships = append(out.Memberships, membershipJSON{
				formatID(segmentID, seg.ID), seg.Key, seg.Name, timestamp(time.UnixMilli(s.Since)),
			})
		}
	}
	return out
}

// find returns the profile that the path names.
func (c *call) find() (*profiles.Profile, error) { return c.profileRef(c.param("profile")) }

// profileRef returns the profile of an id or an identifier.
func (c *call) profileRef(ref string) (*profiles.Profile, error) {
	if strings.HasPrefix(ref, "p_") {
		id, err := profiles.ParseKey(ref)
		if err != nil || id.String() != ref {
			return nil, errNotFound()
		}
		return c.people.ByID(c.Context(), c.workspace(), id)
	}
	id, err := profiles.ParseIdentifier(ref)
	if err != nil {
		return nil, errNotFound()
	}
	return c.people.ByIdentifier(c.Context(), c.workspace(), c.id.workspace, id)
}

// segmentsOf returns how the segments are called that the profiles are in.
func (c *call) segmentsOf(ctx context.Context, list ...*profiles.Profile) (map[int64]activation.Segment, error) {
	var ids []int64
	for _, p := range list {
		for _, s := range p.Standings {
			if s.Member {
				ids = append(ids, s.Segment)
			}
		}
	}
	return c.segments.SegmentInfo(ctx, c.workspace(), ids)
}

func getProfile(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	ctx := c.Context()
	asOf, err := c.people.AsOf(ctx) // before the profile: what it says must be true
	if err != nil {
		return answer{}, err
	}
	computed, err := c.people.Computed(ctx, c.workspace())
	if err != nil {
		return answer{}, err
	}
	p, err := c.find()
	if err != nil {
		return answer{}, err
	}
	segments, err := c.segmentsOf(ctx, p)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, showProfile(p, segments, computed, asOf))
}

func listProfiles(c *call) (answer, error) {
	var after profiles.Place
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	ctx := c.Context()
	asOf, err := c.people.AsOf(ctx)
	if err != nil {
		return answer{}, err
	}
	computed, err := c.people.Computed(ctx, c.workspace())
	if err != nil {
		return answer{}, err
	}
	found, err := c.people.List(ctx, c.workspace(), after, limit+1)
	if err != nil {
		return answer{}, err
	}
	segments, err := c.segmentsOf(ctx, found...)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(p *profiles.Profile) any {
		return profiles.Place{Lane: p.ID.Lane(c.lanes), ID: p.ID}
	}, func(p *profiles.Profile) profileJSON { return showProfile(p, segments, computed, asOf) })
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, freshPage[profileJSON]{p, unlessZero(asOf)})
}

type eventJSON struct {
	MessageID  string         `json:"message_id"`
	Type       string         `json:"type"`
	Name       string         `json:"name"`
	SourceID   string         `json:"source_id"`
	EventAt    timestamp      `json:"event_at"`
	ReceivedAt timestamp      `json:"received_at"`
	AppliedAt  timestamp      `json:"applied_at"`
	Payload    jsontext.Value `json:"payload"`
}

func showEvent(e profiles.PastEvent) eventJSON {
	out := eventJSON{
		Type: e.Type, Name: e.Name, SourceID: formatID(sourceID, e.Source), EventAt: timestamp(e.At.At),
		ReceivedAt: timestamp(e.ReceivedAt), AppliedAt: timestamp(e.AppliedAt), Payload: jsontext.Value(e.Payload),
	}
	if event, err := profiles.DecodeEvent(e.Payload); err == nil {
		out.MessageID = event.MessageID
	}
	return out
}

func listProfileEvents(c *call) (answer, error) {
	var before profiles.Moment
	limit, _, err := c.paging(&before)
	if err != nil {
		return answer{}, err
	}
	asOf, err := c.people.AsOf(c.Context())
	if err != nil {
		return answer{}, err
	}
	p, err := c.find()
	if err != nil {
		return answer{}, err
	}
	found, err := c.people.Events(c.Context(), p, before, limit+1)
	if err != nil {
		return answer{}, err
	}
	list, err := pageOf(c, found, limit, func(e profiles.PastEvent) any { return e.At }, showEvent)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, freshPage[eventJSON]{list, unlessZero(asOf)})
}

type transitionJSON struct {
	ProfileID  profiles.Key `json:"profile_id"`
	SegmentID  string       `json:"segment_id"`
	SegmentKey *string      `json:"segment_key"`
	Change     string       `json:"change"`
	At         timestamp    `json:"at"`
	Cause      causeJSON    `json:"cause"`
}

type causeJSON struct {
	Kind      string `json:"kind"`
	MessageID string `json:"message_id,omitzero"`
	SourceID  string `json:"source_id,omitzero"`
}

func showTransition(t profiles.Recorded, segments map[int64]activation.Segment) transitionJSON {
	return transitionJSON{
		ProfileID: t.Profile, SegmentID: formatID(segmentID, t.Segment), SegmentKey: keyOf(segments, t.Segment),
		Change: change(t.Entered), At: timestamp(t.At.At), Cause: *showCause(t.Cause),
	}
}

func (c *call) showTransitions(found []profiles.Recorded) ([]transitionJSON, error) {
	segments, err := c.segments.SegmentInfo(c.Context(), c.workspace(), segmentsIn(found))
	if err != nil {
		return nil, err
	}
	list := make([]transitionJSON, len(found))
	for i, t := range found {
		list[i] = showTransition(t, segments)
	}
	return list, nil
}

// transitionPage answers with a page of the transitions that ask returns, the newest first. next says, of those that are
// shown, where the next page begins.
func (c *call) transitionPage(limit int, ask func(limit int) ([]profiles.Recorded, error), next func([]profiles.Recorded) any) (answer, error) {
	asOf, err := c.people.AsOf(c.Context()) // before asking: what it says must be true
	if err != nil {
		return answer{}, err
	}
	found, err := ask(limit + 1)
	if err != nil {
		return answer{}, err
	}
	var p page[transitionJSON]
	if len(found) > limit {
		found = found[:limit]
		cursor, err := c.sealCursor(next(found))
		if err != nil {
			return answer{}, err
		}
		p.NextCursor, p.HasMore = &cursor, true
	}
	if p.Data, err = c.showTransitions(found); err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, freshPage[transitionJSON]{p, unlessZero(asOf)})
}

func segmentsIn(list []profiles.Recorded) (ids []int64) {
	for _, t := range list {
		ids = append(ids, t.Segment)
	}
	return ids
}

func listProfileTransitions(c *call) (answer, error) {
	var before profiles.Moment
	limit, q, err := c.paging(&before, "segment")
	if err != nil {
		return answer{}, err
	}
	var segment int64
	if q.Has("segment") {
		if segment, err = c.segmentFilter(q.Get("segment")); err != nil {
			return answer{}, err
		}
	}
	p, err := c.find()
	if err != nil {
		return answer{}, err
	}
	return c.transitionPage(limit, func(limit int) ([]profiles.Recorded, error) {
		return c.people.TransitionsOfProfile(c.Context(), p, segment, before, limit)
	}, func(shown []profiles.Recorded) any { return shown[len(shown)-1].At })
}

// segmentFilter reads the key or id of a segment whose transitions are asked for. It may be gone, then only its id is known.
func (c *call) segmentFilter(s string) (int64, error) {
	wrong := badParameter("segment", "must be the key or the id of a segment")
	ref, ok := readSegmentRef(s)
	switch {
	case !ok:
		return 0, wrong
	case ref.Key == "":
		return ref.ID, nil
	}
	seg, err := c.segments.Find(c.Context(), c.workspace(), ref)
	if missing(err) {
		return 0, wrong
	}
	return seg.ID, err
}

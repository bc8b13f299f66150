package profiles

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/profiles/rule"
)

// Explained says how a profile stands to a segment, and why.
type Explained struct {
	Member      bool
	Since       time.Time // of the last entering or leaving; zero if there has been none
	Cause       Cause     // of that
	Due         time.Time // when the membership may change by itself; zero: never
	Version     int       // of the rule that answers where the profile is; 0: none yet
	Rule        *rule.Rule
	At          time.Time // the moment that Explanation is about
	Explanation *rule.Explanation
	Events      map[*rule.Explanation][]UsedEvent // by condition, the newest first
}

// UsedEvent is an event that a condition counts.
type UsedEvent struct {
	MessageID  string
	Source     int32
	At         time.Time
	Event      string
	Properties map[string]jsontext.Value // those that the condition reads, by their top-level name
}

const (
	usedEvents = 10  // shown of a condition
	usedAmong  = 500 // newest events of a name, among which those are looked for
)

// Explain says how a profile stands to a segment, condition by condition of the rule that the profile's lane evaluates. While
// there is none because the segment has never been built, it is the rule that is being built, and what it needs is read
// from the archive.
func (r *Reader) Explain(ctx context.Context, p *Profile, segment int64) (*Explained, error) {
	x := &Explained{}
	if i, found := slices.BinarySearchFunc(p.Standings, segment, compareStanding); found {
		x.Member = p.Standings[i].Member
		if due := p.Standings[i].Due; due != 0 {
			x.Due = time.UnixMilli(due)
		}
	}
	last, err := r.lastChanges(ctx, p, []int64{segment})
	if err != nil {
		return nil, err
	}
	if t, ok := last[segment]; ok {
		x.Since, x.Cause = t.At.At, t.Cause
	}
	version, text, err := r.answering(ctx, segment, p.ID.Lane(r.lanes))
	if err != nil {
		return nil, err
	}
	x.Version = version
	if x.Rule, err = rule.ParseStored(text); err != nil {
		return nil, fmt.Errorf("parse rule of segment %d: %v", segment, err) // not the caller's mistake
	}
	t, err := r.trial(ctx, p.Workspace, x.Rule)
	if err != nil {
		return nil, err
	}
	states, err := t.states(ctx, []*Profile{p})
	if err != nil {
		return nil, err
	}
	x.At, x.Explanation = t.now, x.Rule.Explain(states[0], t.now)
	if len(t.segments) > 0 {
		due, err := r.dueAbove(ctx, p, slices.Collect(maps.Values(t.segments)))
		if err != nil {
			return nil, err
		}
		x.Explanation.Refer(func(key string) time.Time { return due[t.segments[key]] })
		x.Due = earlier(x.Due, x.Explanation.Until)
	}
	x.Events, err = r.usedEvents(ctx, p, x.Rule, x.Explanation)
	return x, err
}

// answering returns the version of a segment's rule that a lane evaluates, and the rule. The version is 0 while there is none;
// then the rule is the newest.
func (r *Reader) answering(ctx context.Context, segment int64, lane int) (version int, text []byte, err error) {
	const query = `
		SELECT coalesce(v.version, 0), coalesce(v.rule, s.rule)
		FROM segments AS s
		LEFT JOIN lane_segments AS l ON l.lane = @lane AND l.segment_id = s.id
		LEFT JOIN segment_versions AS v ON v.segment_id = s.id AND v.version = l.live_version
		WHERE s.id = @segment`
	err = r.db.QueryRow(ctx, query, pgx.StrictNamedArgs{"lane": lane, "segment": segment}).Scan(&version, &text)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil, ErrNotFound
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read the rule of segment %d: %w", segment, err)
	}
	return version, text, nil
}

// usedEvents finds, for every condition that looks at what was done, the newest events that it counts.
func (r *Reader) usedEvents(ctx context.Context, p *Profile, ru *rule.Rule, root *rule.Explanation) (map[*rule.Explanation][]UsedEvent, error) {
	used := map[*rule.Explanation][]UsedEvent{}
	behaviours := ru.Behaviours()
	archived := map[string][]PastEvent{}
	var visit func(x *rule.Explanation) error
	visit = func(x *rule.Explanation) error {
		for _, i := range x.Behaviours {
			b := behaviours[i]
			events, known := archived[b.Event]
			if !known {
				var err error
				if events, err = r.eventsNamed(ctx, p, b.Event, usedAmong); err != nil {
					return err
				}
				archived[b.Event] = events
			}
			found, err := countedBy(b, events, x.From)
			if err != nil {
				return err
			}
			used[x] = append(used[x], found...)
		}
		slices.SortStableFunc(used[x], func(a, b UsedEvent) int { return b.At.Compare(a.At) })
		used[x] = used[x][:min(len(used[x]), usedEvents)]
		for _, n := range x.Nodes {
			if err := visit(n); err != nil {
				return err
			}
		}
		return nil
	}
	return used, visit(root)
}

// countedBy returns those of events that are occurrences of b from some moment on.
func countedBy(b rule.Behaviour, events []PastEvent, from time.Time) ([]UsedEvent, error) {
	var used []UsedEvent
	read := propertiesReadBy(b)
	for _, e := range events {
		if e.At.At.Before(from) || len(used) == usedEvents {
			break
		}
		var payload struct {
			MessageID  string         `json:"messageId"`
			Properties jsontext.Value `json:"properties"`
		}
		if err := json.Unmarshal(e.Payload, &payload); err != nil {
			return nil, fmt.Errorf("decode event: %w", err)
		}
		scratch := b.Empty()
		if !b.Fold(&scratch, e.At.At.UnixMilli(), payload.Properties) {
			continue
		}
		u := UsedEvent{MessageID: payload.MessageID, Source: e.Source, At: e.At.At, Event: e.Name, Properties: map[string]jsontext.Value{}}
		eachMember(payload.Properties, func(name string, value jsontext.Value) {
			if slices.ContainsFunc(read, func(path string) bool { return path == name || len(path) > len(name) && path[:len(name)+1] == name+"." }) {
				u.Properties[name] = value.Clone()
			}
		})
		used = append(used, u)
	}
	return used, nil
}

// propertiesReadBy returns the paths of the properties that b reads: those in its conditions, and what is measured.
func propertiesReadBy(b rule.Behaviour) (paths []string) {
	var d struct {
		Where []struct {
			Property string `json:"property"`
		} `json:"where"`
		Property string `json:"property"`
	}
	if json.Unmarshal(b.Canonical(), &d) != nil {
		return nil
	}
	for _, c := range d.Where {
		paths = append(paths, c.Property)
	}
	if d.Property != "" {
		paths = append(paths, d.Property)
	}
	return paths
}

// eventsNamed returns at most limit archived events of a profile with one name, the newest first.
func (r *Reader) eventsNamed(ctx context.Context, p *Profile, name string, limit int) ([]PastEvent, error) {
	const query = `
		SELECT e.event_at, e.source_id, e.payload
		FROM unnest(@lanes::smallint[], @keys::uuid[]) AS f (lane, key)
		CROSS JOIN LATERAL (
			SELECT event_at, seq, source_id, payload
			FROM events
			WHERE lane = f.lane AND workspace_id = @workspace AND key = f.key AND name = @name
			ORDER BY event_at DESC, seq DESC
			LIMIT @limit) AS e
		ORDER BY e.event_at DESC, f.lane DESC, e.seq DESC
		LIMIT @limit`
	lanes, keys := r.homes(p)
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"workspace": p.Workspace, "lanes": lanes, "keys": keys, "name": name, "limit": limit,
	})
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (a PastEvent, err error) {
		a.Name = name
		err = row.Scan(&a.At.At, &a.Source, &a.Payload)
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("list events of %s: %w", p.ID, err)
	}
	return list, nil
}

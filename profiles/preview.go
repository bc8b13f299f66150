package profiles

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/profiles/rule"
	"github.com/mubatch/mubatch/profiles/timeline"
)

// How many a rule would have, before anybody makes a segment of it.
//
// Profiles are looked at as they are, so traits, consent and memberships are there. What people did is there as far as some
// segment counts the same already; for the rest their archived events are read. Ids are keyed hashes, evenly spread and
// independent of everything else, so those that follow a random point are a fair sample.

// ErrTooSlow says that not everybody could be looked at in time.
var ErrTooSlow = errors.New("too slow")

// PreviewOptions say how a rule is tried. Zero fields mean their defaults.
type PreviewOptions struct {
	Exact    bool          // look at everybody
	Sample   int           // how many members to show
	Most     int           // profiles to look at, unless it is to be exact: 10,000
	Patience time.Duration // how long to look: 700 ms, or a minute if it is to be exact
}

// Preview is what came of trying a rule.
type Preview struct {
	Profiles  int64 // in the workspace
	Looked    int64 // at so many of them
	Estimate  int64 // of how many members there would be
	Low, High int64 // the number is between these, with a confidence of 95 %
	Exact     bool  // everybody was looked at: Estimate is the number
	Sample    []*Profile
}

const (
	previewMost  = 10_000
	previewFirst = 50   // profiles of a chunk, until it is known how long one takes
	previewChunk = 2000 // at most
)

// Preview tells how many of a workspace's profiles a rule holds for now. The error is a [*rule.Error] if the rule refers to
// segments that there are not, and [ErrTooSlow] if it was to be exact and takes too long.
func (r *Reader) Preview(ctx context.Context, workspace int32, ru *rule.Rule, o PreviewOptions) (Preview, error) {
	if o.Patience == 0 {
		o.Patience = 700 * time.Millisecond
		if o.Exact {
			o.Patience = time.Minute
		}
	}
	bounded, cancel := context.WithTimeout(ctx, o.Patience+o.Patience/4) // beyond that, what is under way is given up
	defer cancel()
	p, err := r.preview(bounded, workspace, ru, o)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		return Preview{}, ErrTooSlow
	}
	return p, err
}

func (r *Reader) preview(ctx context.Context, workspace int32, ru *rule.Rule, o PreviewOptions) (Preview, error) {
	began, most := time.Now(), int64(cmp.Or(o.Most, previewMost))
	counts, err := r.countByLane(ctx, workspace)
	if err != nil {
		return Preview{}, err
	}
	t, err := r.trial(ctx, workspace, ru)
	if err == nil {
		err = t.checkReferences()
	}
	if err != nil {
		return Preview{}, err
	}
	p := &Preview{}
	for _, n := range counts {
		p.Profiles += n
	}
	all := o.Exact || p.Profiles <= most
	chunk, complete := int64(previewFirst), true
	var last time.Duration // that a chunk took
	for _, lane := range rand.Perm(r.lanes) {
		share := int64(math.MaxInt64)
		if !all {
			share = (most*counts[lane] + p.Profiles - 1) / p.Profiles
		}
		for circle := newCircle(); share > 0 && !circle.closed && complete; {
			switch left := o.Patience - time.Since(began); {
			case left < last/2:
				complete = false
				continue
			case left < 2*last:
				chunk = max(chunk/2, 1)
			case left > 4*last:
				chunk = min(2*chunk, previewChunk)
			}
			asked := time.Now()
			found, err := r.nextOnCircle(ctx, workspace, lane, &circle, min(chunk, share))
			if err == nil {
				err = t.look(ctx, found, p, o.Sample)
			}
			if err != nil && ctx.Err() != nil && p.Looked > 0 { // what is there will have to do
				complete = false
				continue
			}
			if err != nil {
				return Preview{}, err
			}
			last = time.Since(asked)
			share -= int64(len(found))
		}
	}
	switch {
	case complete && all:
		p.Profiles = p.Looked // the counts may be of another moment
		p.Low, p.High, p.Exact = p.Estimate, p.Estimate, true
	case o.Exact, p.Looked == 0 && p.Profiles > 0:
		return Preview{}, ErrTooSlow
	default:
		p.project()
	}
	return *p, nil
}

func (r *Reader) countByLane(ctx context.Context, workspace int32) ([]int64, error) {
	const query = `
		SELECT coalesce(c.profiles, 0)
		FROM unnest(@lanes::smallint[]) WITH ORDINALITY AS l (lane, i)
		LEFT JOIN profile_counts AS c ON c.lane = l.lane AND c.workspace_id = @workspace
		ORDER BY l.i`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(r.lanes), "workspace": workspace}) // err: below
	counts, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("count profiles: %w", err)
	}
	return counts, nil
}

// project makes of the members among those looked at an estimate of all, and puts bounds to it: Wilson's interval, narrowed
// because nobody is looked at twice.
func (p *Preview) project() {
	const z = 1.959964 // 95 %
	all, n, k := float64(max(p.Profiles, p.Looked)), float64(p.Looked), float64(p.Estimate)
	missing := p.Looked - p.Estimate
	p.Profiles = int64(all)
	if all == n {
		p.Low, p.High = p.Estimate, p.Estimate
		return
	}
	share, as := k/n, n*(all-1)/(all-n) // worth as many as these of an endless crowd
	middle := (share + z*z/(2*as)) / (1 + z*z/as)
	half := z / (1 + z*z/as) * math.Sqrt(share*(1-share)/as+z*z/(4*as*as))
	p.Low = max(p.Estimate, int64(math.Floor(all*(middle-half))))
	p.High = min(p.Profiles-missing, int64(math.Ceil(all*(middle+half))))
	p.Estimate = min(max(int64(math.Round(all*share)), p.Low), p.High)
}

// circle is a way through a lane's ids, from a random one on and around to it.
type circle struct {
	from, at Key
	around   bool // past the largest id
	closed   bool
}

func newCircle() (c circle) {
	for i := range c.from {
		c.from[i] = byte(rand.Uint32())
	}
	c.at = c.from
	return c
}

// nextOnCircle returns the next profiles of a lane, none only if the circle is closed.
func (r *Reader) nextOnCircle(ctx context.Context, workspace int32, lane int, c *circle, limit int64) ([]*Profile, error) {
	const query = `
		SELECT id, state
		FROM profiles
		WHERE lane = @lane AND workspace_id = @workspace AND id > @after AND id <= @up_to
		ORDER BY id
		LIMIT @limit`
	for !c.closed {
		upTo := Key(bytes.Repeat([]byte{0xff}, len(Key{})))
		if c.around {
			upTo = c.from
		}
		rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
			"lane": lane, "workspace": workspace, "after": c.at, "up_to": upTo, "limit": limit,
		})
		found, err := pgx.CollectRows(rows, scanProfile(workspace))
		if err != nil {
			return nil, fmt.Errorf("read profiles of lane %d: %w", lane, err)
		}
		if int64(len(found)) == limit {
			c.at = found[limit-1].ID
			return found, nil
		}
		c.closed = c.around
		c.around, c.at = true, Key{}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, nil
}

// trial tries a rule on profiles.
type trial struct {
	reader    *Reader
	workspace int32
	rule      *rule.Rule
	now       time.Time
	ids       []int32          // of the rule's behaviours; 0: not folded in profiles
	segments  map[string]int64 // by key
	names     []string         // of the events that are to be read from the archive
}

func (r *Reader) trial(ctx context.Context, workspace int32, ru *rule.Rule) (*trial, error) {
	t := &trial{reader: r, workspace: workspace, rule: ru, now: time.Now()}
	var err error
	if t.segments, err = r.referred(ctx, workspace, ru.Segments()); err != nil {
		return nil, err
	}
	if t.ids, err = r.foldedBehaviours(ctx, workspace, ru); err != nil {
		return nil, err
	}
	for i, b := range ru.Behaviours() {
		if t.ids[i] == 0 && !slices.Contains(t.names, b.Event) {
			t.names = append(t.names, b.Event)
		}
	}
	return t, nil
}

// referred returns the ids of the segments with these keys. Those that there are not are missing.
func (r *Reader) referred(ctx context.Context, workspace int32, keys []string) (map[string]int64, error) {
	ids := map[string]int64{}
	if len(keys) == 0 {
		return ids, nil
	}
	const query = `
		SELECT key, id
		FROM segments
		WHERE workspace_id = @workspace AND key = ANY (@keys) AND NOT deleting`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "keys": keys})
	var key string
	var id int64
	_, err := pgx.ForEachRow(rows, []any{&key, &id}, func() error {
		ids[key] = id
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find segments: %w", err)
	}
	return ids, nil
}

// checkReferences returns a [*rule.Error] if the rule refers to segments that there are not.
func (t *trial) checkReferences() error {
	if len(t.segments) == len(t.rule.Segments()) {
		return nil
	}
	canonical, err := t.rule.MarshalJSON()
	if err != nil {
		return err
	}
	var root any
	if err := json.Unmarshal(canonical, &root); err != nil {
		return err
	}
	wrong := &rule.Error{}
	walkReferences("#", root, func(pointer, key string) {
		if _, found := t.segments[key]; !found {
			wrong.Problems = append(wrong.Problems, rule.Problem{Pointer: pointer, Detail: "no segment has this key"})
		}
	})
	return wrong
}

// walkReferences calls fn with every reference to a segment in a decoded rule, and where it is.
func walkReferences(at string, node any, fn func(pointer, key string)) {
	members, _ := node.(map[string]any)
	if key, ok := members["segment"].(string); ok {
		fn(at+"/segment", key)
	}
	for _, group := range []string{"all", "any"} {
		list, _ := members[group].([]any)
		for i, n := range list {
			walkReferences(at+"/"+group+"/"+strconv.Itoa(i), n, fn)
		}
	}
	if n, ok := members["not"]; ok {
		walkReferences(at+"/not", n, fn)
	}
}

// foldedBehaviours returns, for each behaviour of a rule, the id of one that every profile has folded and that keeps
// enough: one that is complete in all lanes. It is 0 if there is none.
func (r *Reader) foldedBehaviours(ctx context.Context, workspace int32, ru *rule.Rule) ([]int32, error) {
	behaviours := ru.Behaviours()
	ids := make([]int32, len(behaviours))
	if len(ids) == 0 {
		return ids, nil
	}
	definitions := make([][]byte, len(behaviours))
	for i, b := range behaviours {
		definitions[i] = b.Canonical()
	}
	const query = `
		SELECT b.id, b.definition, b.keep
		FROM behaviours AS b
		WHERE b.workspace_id = @workspace AND NOT b.retired AND b.definition = ANY (@definitions::bytea[])
			AND cardinality(@lanes::smallint[]) = (
				SELECT count(*)
				FROM lane_behaviours AS l
				WHERE l.lane = ANY (@lanes) AND l.behaviour_id = b.id AND l.phase = 'complete')
		ORDER BY b.keep DESC`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"workspace": workspace, "definitions": definitions, "lanes": laneList(r.lanes),
	})
	var id int32
	var definition []byte
	var keep int
	_, err := pgx.ForEachRow(rows, []any{&id, &definition, &keep}, func() error {
		for i := range behaviours {
			if keep >= behaviours[i].Keep && bytes.Equal(definition, definitions[i]) {
				ids[i] = id
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find behaviours: %w", err)
	}
	return ids, nil
}

// look tries the rule on profiles and counts those for which it holds.
func (t *trial) look(ctx context.Context, list []*Profile, p *Preview, sample int) error {
	states, err := t.states(ctx, list)
	if err != nil {
		return err
	}
	for i, s := range states {
		if holds, _ := t.rule.Eval(s, t.now); holds {
			p.Estimate++
			if len(p.Sample) < sample {
				p.Sample = append(p.Sample, list[i])
			}
		}
	}
	p.Looked += int64(len(list))
	return nil
}

// tried is a profile as a rule sees it that is on trial.
type tried struct {
	*trial
	profile *Profile
	folded  []timeline.Timeline // of the behaviours that the profile does not have
}

func (s *tried) Trait(name string) (jsontext.Value, bool) { return s.profile.Trait(name) }

func (s *tried) Consent(purpose string) (granted, known bool) { return s.profile.consent(purpose) }

func (s *tried) Timeline(i int) timeline.Timeline {
	if s.ids[i] != 0 {
		return s.profile.timeline(s.ids[i])
	}
	return s.folded[i]
}

func (s *tried) Segment(key string) bool {
	id, there := s.segments[key]
	return there && s.profile.member(id)
}

// states returns profiles as the rule sees them, with what they did read from the archive where they do not have it.
func (t *trial) states(ctx context.Context, list []*Profile) ([]*tried, error) {
	states := make([]*tried, len(list))
	for i, p := range list {
		states[i] = &tried{trial: t, profile: p}
	}
	if len(t.names) == 0 {
		return states, nil
	}
	behaviours := t.rule.Behaviours()
	byEvent := map[string][]int{}
	for i, b := range behaviours {
		if t.ids[i] == 0 {
			byEvent[b.Event] = append(byEvent[b.Event], i)
		}
	}
	owner := map[Key]*tried{}
	keys := make([][]Key, t.reader.lanes) // by home lane
	for i, p := range list {
		states[i].folded = make([]timeline.Timeline, len(behaviours))
		for j, b := range behaviours {
			states[i].folded[j] = b.Empty()
		}
		for _, f := range p.Fragments {
			owner[f.Key] = states[i]
			lane := f.Key.Lane(t.reader.lanes)
			keys[lane] = append(keys[lane], f.Key)
		}
	}
	const query = `
		SELECT key, event_at, name, payload
		FROM events
		WHERE lane = @lane AND workspace_id = @workspace AND key = ANY (@keys::uuid[]) AND name = ANY (@names)`
	for lane := range keys {
		if len(keys[lane]) == 0 {
			continue
		}
		rows, _ := t.reader.db.Query(ctx, query, pgx.StrictNamedArgs{
			"lane": lane, "workspace": t.workspace, "keys": keys[lane], "names": t.names,
		})
		var key Key
		var at time.Time
		var name string
		var payload []byte
		_, err := pgx.ForEachRow(rows, []any{&key, &at, &name, &payload}, func() error {
			properties, err := propertiesOf(payload)
			if err != nil {
				return err
			}
			for _, i := range byEvent[name] {
				behaviours[i].Fold(&owner[key].folded[i], at.UnixMilli(), properties)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read archive of lane %d: %w", lane, err)
		}
	}
	return states, nil
}

// propertiesOf returns the properties of an archived event.
func propertiesOf(payload []byte) (jsontext.Value, error) {
	var e struct {
		Properties jsontext.Value `json:"properties"`
	}
	if err := json.Unmarshal(payload, &e); err != nil {
		return nil, fmt.Errorf("decode event: %w", err)
	}
	return e.Properties, nil
}

package profiles_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
	"github.com/mubatch/mubatch/profiles/rule"
)

func spent(revenue int) string {
	return fmt.Sprintf(`{"event":"Order","where":[{"property":"revenue","op":"gte","value":%d}]}`, revenue)
}

// However edits meet builds that are under way, in lanes that are at different phases and whose owners change, the end is
// what the last rule says, and who fits every rule or none never hears of it.
func TestEditsWhileBuildsAreUnderWay(t *testing.T) {
	t.Parallel()
	const lanes, people = 3, 60
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 1))
			c := newCrew(t, lanes)
			c.store.SetChunks(5, 20, 4)
			var users []string
			for i := range people {
				u := fmt.Sprint("u", i)
				users = append(users, u)
				// Visitors are at home in other lanes: what is replayed for them has to travel.
				c.send(profilestest.Event{Type: "track", Event: "Order", Anon: fmt.Sprint("a", i), Revenue: i, At: profilestest.Start},
					profilestest.Event{Type: "page", User: u, Anon: fmt.Sprint("a", i), At: profilestest.Start})
			}
			c.settle()
			rules := []int{20, 40, 10, 30}
			id := c.create("spenders", spent(rules[0]))
			if seed%2 == 0 {
				c.settle()
			}
			c.behind = func() bool { return rng.IntN(4) > 0 }
			for _, revenue := range rules[1:] {
				for range rng.IntN(60) {
					lane := rng.IntN(lanes)
					switch rng.IntN(12) {
					case 0:
						c.open(lane)
					case 1:
						c.send(orderOf(users[rng.IntN(10)], 5)) // fits no rule
					case 2, 3, 4:
						c.apply(lane)
					default:
						_, out := c.build(lane)
						if rng.IntN(8) == 0 {
							c.open(lane) // what was to be published is found in the outbox
							break
						}
						c.publish(out)
					}
				}
				c.edit("spenders", spent(revenue))
			}
			c.behind = nil
			c.settle()

			if diff := cmp.Diff(users[30:], c.members(id, users...)); diff != "" {
				t.Errorf("members (-want +got):\n%s", diff)
			}
			for p, h := range c.history(id) {
				i := slices.IndexFunc(users, func(u string) bool { return userKey(u) == p })
				if i < 10 || i >= 40 && len(h) != 1 {
					t.Errorf("u%d has %v", i, h)
				}
			}
			seg, err := c.segments.Get(t.Context(), 1, profiles.SegmentRef{ID: id})
			if err != nil || !seg.Live() || seg.Version != 4 || seg.Build != nil {
				t.Errorf("%+v, %v", seg, err)
			}
			c.tidy(id, 4, spent(30))
		})
	}
}

// tidy holds what is kept to what is needed: one version of the segment, which counts one thing.
func (c *crew) tidy(segment int64, version int, counts string) {
	c.t.Helper()
	c.versions(segment, fmt.Sprint(version))
	const live = `SELECT string_agg(convert_from(definition, 'UTF8'), ' ' ORDER BY id) FROM behaviours WHERE NOT retired`
	if got := one[string](c.t, c.pool, live); got != counts {
		c.t.Errorf("%s is counted, want %s", got, counts)
	}
	const orphans = `SELECT count(*) FROM lane_behaviours JOIN behaviours ON id = behaviour_id WHERE retired`
	if n := one[int](c.t, c.pool, orphans); n > 0 {
		c.t.Errorf("%d lanes go on with what is retired", n)
	}
	// A profile that is written is rid of what is counted no more.
	c.send(orderOf("u45", 77))
	c.settle()
	p, err := profiles.NewReader(c.pool, len(c.lanes)).ByID(c.t.Context(), 1, userKey("u45"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range p.Fragments {
		for _, b := range f.Timelines {
			if one[bool](c.t, c.pool, `SELECT retired FROM behaviours WHERE id = $1`, b.Behaviour) {
				c.t.Errorf("a profile keeps what nobody counts: %d", b.Behaviour)
			}
		}
	}
}

func TestAReplayGoesOnWhereItEnded(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	c.store.SetChunks(10, 1000, 1000)
	var users []string
	for i := range 40 {
		users = append(users, fmt.Sprint("u", i))
		for range 3 {
			c.send(orderOf(users[i], 50))
		}
	}
	c.settle()
	three := c.create("three", `{"event":"Order","count":{"eq":3}}`)
	progress := func() float64 {
		s, err := c.segments.Get(t.Context(), 1, profiles.SegmentRef{ID: three})
		if err != nil {
			t.Fatal(err)
		}
		return s.Progress
	}
	var last float64
	for range 200 {
		for lane := range c.lanes {
			c.build(lane) // what it has for others is lost,
			c.open(lane)  // but for the outbox, and so is what the owner knew
			c.apply(lane)
		}
		now := progress()
		if now < last {
			t.Fatalf("progress fell from %v to %v", last, now)
		}
		if last = now; now == 1 {
			break
		}
	}
	c.settle()
	if diff := cmp.Diff(users, c.members(three, users...)); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

// A new segment joins a replay that is under way for another, and each sees every event once.
func TestSegmentsAndComputedTraitsShareReplays(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 1)
	c.store.SetChunks(10, 15, 1000)
	for range 100 {
		c.send(orderOf("u", 50))
	}
	c.settle()
	a := c.create("a", `{"event":"Order","count":{"eq":100}}`)
	c.build(0)
	c.send(orderOf("u", 7)) // after the first cut, before the second
	c.apply(0)
	b := c.create("b", `{"event":"Order","where":[{"property":"revenue","op":"lt","value":50}],"count":{"eq":1}}`)
	again := c.create("again", `{"event":"Order","count":{"eq":101}}`)
	computed := profiles.NewComputedTraits(c.pool, 1)
	count := profiles.ComputedDefinition{Key: "orders", Name: "Orders", Value: []byte(`{"event":"Order","count":{}}`)}
	if _, err := computed.Create(t.Context(), 1, count); err != nil {
		t.Fatal(err)
	}
	visits := profiles.ComputedDefinition{Key: "visits", Name: "Visits", Value: []byte(`{"event":"Page Viewed","count":{}}`)}
	if _, err := computed.Create(t.Context(), 1, visits); err != nil {
		t.Fatal(err)
	}
	c.settle()
	for id, want := range map[int64]int{a: 0, b: 1, again: 1} {
		if got := c.members(id, "u"); len(got) != want {
			t.Errorf("segment %d has %v, want %d", id, got, want)
		}
	}
	if n := one[int](t, c.pool, `SELECT count(*) FROM behaviours`); n != 3 {
		t.Errorf("%d things are counted, want 3", n)
	}

	show := func(want string) {
		t.Helper()
		reader := profiles.NewReader(c.pool, 1)
		values, err := reader.Computed(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		p, err := reader.ByID(t.Context(), 1, userKey("u"))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(values.Of(p, time.Now())); got != want {
			t.Errorf("the profile shows %s, want %s", got, want)
		}
	}
	show("map[orders:101 visits:0]")
	// The old value answers until the new one is built; then what it was computed from goes.
	c.store.SetChunks(10, 15, 1000)
	edited, err := computed.Update(t.Context(), 1, profiles.ComputedRef{Key: "visits"}, profiles.ComputedChange{Value: []byte(`{"event":"Order","where":[{"property":"revenue","op":"eq","value":7}],"count":{}}`)})
	if err != nil || edited.Live() || edited.Progress != 0 {
		t.Errorf("edited to %+v, %v", edited, err)
	}
	c.build(0)
	if got, err := computed.Get(t.Context(), 1, profiles.ComputedRef{Key: "visits"}); err != nil || got.Live() || got.Progress <= 0 || got.Progress >= 1 {
		t.Errorf("half built it is %+v, %v", got, err)
	}
	show("map[orders:101 visits:0]")
	c.settle()
	show("map[orders:101 visits:1]")
	for _, key := range []string{"orders", "visits"} {
		if err := computed.Delete(t.Context(), 1, profiles.ComputedRef{Key: key}, 0); err != nil {
			t.Fatal(err)
		}
	}
	show("map[]")
	const counted = `SELECT count(*) FROM behaviours WHERE NOT retired`
	if n := one[int](t, c.pool, counted); n != 2 {
		t.Errorf("%d things are counted, want the 2 of the segments", n)
	}
}

// Whoever is in the one segment is never in the other, not for a moment.
func TestASegmentWaitsForTheOnesItRefersTo(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	c.store.SetChunks(5, 1000, 4)
	var users []string
	for i := range 40 {
		users = append(users, fmt.Sprint("u", i))
		c.send(orderOf(users[i], i))
	}
	c.settle()
	// Made all at once, and the one that refers to others may be done first: it counts nothing.
	rich := c.create("rich", spent(20))
	poor := c.create("poor", `{"not":{"segment":"rich"}}`)
	both := c.create("both", `{"any":[{"segment":"rich"},{"segment":"poor"}]}`)
	waited := false
	for range 400 {
		for lane := range c.lanes {
			_, out := c.build(lane)
			c.publish(out)
			c.apply(lane)
		}
		s, err := c.segments.Get(t.Context(), 1, profiles.SegmentRef{ID: poor})
		if err != nil {
			t.Fatal(err)
		}
		if s.Live() {
			break
		}
		waited = waited || s.Build.Phase == profiles.BuildWaiting
	}
	c.settle()
	if !waited {
		t.Error("it was never seen waiting")
	}
	check := func(edited string, at int) {
		t.Helper()
		for id, want := range map[int64][]string{rich: users[at:], poor: users[:at], both: users} {
			if diff := cmp.Diff(want, c.members(id, users...)); diff != "" {
				t.Errorf("%s: members of %d (-want +got):\n%s", edited, id, diff)
			}
		}
	}
	check("new", 20)
	for _, id := range []int64{rich, poor, both} {
		for p, h := range c.history(id) {
			if len(h) > 1 {
				t.Errorf("new: %s went in and out of %d: %v", p, id, h)
			}
		}
	}

	// A new version waits for a new version.
	c.edit("rich", spent(30))
	c.edit("poor", `{"all":[{"not":{"segment":"rich"}},{"event":"Order"}]}`)
	c.settle()
	for p, h := range c.history(poor) {
		if i := slices.IndexFunc(users, func(u string) bool { return userKey(u) == p }); len(h) > 1 || i >= 30 {
			t.Errorf("edited: u%d went in and out: %v", i, h)
		}
	}

	// Deleted from the top: nobody gets into the one because the other is being emptied.
	for _, key := range []string{"both", "poor", "rich"} {
		if _, err := c.segments.Delete(t.Context(), 1, profiles.SegmentRef{Key: key}, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		for lane := range c.lanes {
			c.build(lane)
		}
		for _, u := range users { // everybody is looked at while it goes on
			c.send(orderOf(u, 0))
		}
		for lane := range c.lanes {
			c.apply(lane)
		}
	}
	c.settle()
	for p, h := range c.history(poor) {
		if len(h) != 2 {
			t.Errorf("deleted: %s has %v", p, h)
		}
	}
	for _, table := range []string{"segments", "segment_versions", "lane_segments", "memberships", "segment_counts"} {
		if n := one[int](t, c.pool, `SELECT count(*) FROM `+table); n != 0 {
			t.Errorf("%d rows are left in %s", n, table)
		}
	}
}

// wanted is a rule, and for whom it holds.
type wanted struct {
	rule  string
	holds func(revenue int) bool
}

// However definitions change while all lanes are at work, in the end everybody is where the rules say, and hardly anything
// is left of what was.
func TestDefinitionsChangeUnderRunningLanes(t *testing.T) {
	t.Parallel()
	const people, changes = 40, 40
	c := newCrew(t, 3)
	c.store.SetChunks(10, 30, 10)
	var users []string
	for i := range people {
		users = append(users, fmt.Sprint("u", i))
		c.send(orderOf(users[i], i))
	}
	stop := make(chan struct{})
	var lanes sync.WaitGroup
	for lane := range c.lanes {
		lanes.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				applied, err := c.tryApply(lane)
				if err != nil {
					t.Error(err)
					return
				}
				worked, out, err := c.tryBuild(lane)
				if err != nil {
					t.Error(err)
					return
				}
				c.publish(out)
				if !applied && !worked {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}

	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	now := map[string]wanted{}    // by key
	live := map[string][]wanted{} // the last ones, of which a cancel may bring any back
	random := func() wanted {
		at := rng.IntN(people)
		w := wanted{spent(at), func(revenue int) bool { return revenue >= at }}
		if key := fmt.Sprint("s", rng.IntN(5)); rng.IntN(2) == 0 && now[key].rule != "" {
			other := func(revenue int) bool { return now[key].holds(revenue) } // as it is then
			return wanted{
				fmt.Sprintf(`{"all":[%s,{"not":{"segment":%q}}]}`, w.rule, key),
				func(revenue int) bool { return w.holds(revenue) && !other(revenue) },
			}
		}
		return w
	}
	var done []string
	refused := func(err error) bool {
		var notRule *rule.Error
		var referred *profiles.ReferredError
		return errors.As(err, &notRule) || errors.As(err, &referred) || errors.Is(err, profiles.ErrDeleting) || errors.Is(err, profiles.ErrExists) ||
			errors.Is(err, profiles.ErrNotFound) || errors.Is(err, profiles.ErrNeverLive) || errors.Is(err, profiles.ErrNothingToCancel)
	}
	for i := range changes {
		key := fmt.Sprint("s", rng.IntN(5))
		ref := profiles.SegmentRef{Key: key}
		w := random()
		var what string
		var err error
		switch kind := rng.IntN(10); {
		case kind < 4:
			what = "create " + key + " " + w.rule
			_, err = c.segments.Create(t.Context(), 1, profiles.SegmentDefinition{Key: key, Name: key, Rule: []byte(w.rule)})
			if err == nil {
				live[key] = nil
			}
		case kind < 8:
			what = "edit " + key + " " + w.rule
			_, err = c.segments.Update(t.Context(), 1, ref, profiles.SegmentChange{Rule: []byte(w.rule)})
		case kind < 9:
			what = "cancel " + key
			var s profiles.StoredSegment
			if s, err = c.segments.Cancel(t.Context(), 1, ref, 0); err == nil {
				i := slices.IndexFunc(live[key], func(w wanted) bool {
					r, err := rule.Parse([]byte(w.rule))
					if err != nil {
						t.Fatal(err)
					}
					canonical, _ := r.MarshalJSON()
					return string(canonical) == string(s.Rule)
				})
				w = live[key][i]
			}
		default:
			what = "delete " + key
			if _, err = c.segments.Delete(t.Context(), 1, ref, 0); err == nil {
				delete(now, key)
			}
		}
		if err != nil && !refused(err) {
			t.Fatal(err)
		}
		done = append(done, fmt.Sprint(what, ": ", err))
		if err == nil && !strings.HasPrefix(what, "delete") {
			now[key], live[key] = w, append(live[key], w)
		}
		if i%4 == 0 {
			c.send(orderOf(users[0], 0))
		}
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
	}
	close(stop)
	lanes.Wait()
	c.settle()

	list, err := c.segments.List(t.Context(), 1, 0, 100)
	if err != nil || len(list) != len(now) {
		t.Errorf("%d segments are left, want %d, %v", len(list), len(now), err)
	}
	for _, s := range list {
		var want []string
		for i, u := range users {
			if now[s.Key].holds(i) {
				want = append(want, u)
			}
		}
		if diff := cmp.Diff(want, c.members(s.ID, users...)); diff != "" || !s.Live() {
			t.Errorf("%s, live %v, %s (-want +got):\n%s", s.Key, s.Live(), s.Rule, diff)
		}
		c.versions(s.ID, fmt.Sprint(s.Version))
	}
	const left = `
		SELECT (SELECT count(*) FROM lane_segments WHERE segment_id NOT IN (SELECT id FROM segments)) +
		       (SELECT count(*) FROM lane_behaviours WHERE behaviour_id NOT IN (SELECT unnest(behaviours) FROM segment_versions))`
	if n := one[int](t, c.pool, left); n > 0 {
		t.Errorf("%d rows of lanes are about nothing", n)
	}
	if t.Failed() {
		t.Logf("seed %d:\n%s", seed, strings.Join(done, "\n"))
	}
}

func TestACancelledEditEmitsOnlyTheWayBack(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	var users []string
	for i := range 60 {
		users = append(users, fmt.Sprint("u", i))
		c.send(orderOf(users[i], i))
	}
	c.settle()
	id := c.create("spenders", spent(20))
	if _, err := c.segments.Cancel(t.Context(), 1, profiles.SegmentRef{ID: id}, 0); err != profiles.ErrNeverLive {
		t.Errorf("cancelled before it was live: %v", err)
	}
	c.settle()
	if _, err := c.segments.Cancel(t.Context(), 1, profiles.SegmentRef{ID: id}, 0); err != profiles.ErrNothingToCancel {
		t.Errorf("cancelled although it was live: %v", err)
	}
	c.edit("spenders", spent(40))
	const switched = `SELECT count(*) FROM lane_segments WHERE live_version = 2 AND phase = 'done'`
	for range 100 { // one lane has switched, another has not
		if one[int](t, c.pool, switched) == 1 {
			break
		}
		for lane := range c.lanes {
			if lane == 0 || one[int](t, c.pool, `SELECT count(*) FROM lane_segments WHERE lane = $1 AND version = 2 AND phase = 'replaying'`, lane) == 1 {
				if lane > 0 && c.lanes[lane].Building() && one[int](t, c.pool, `SELECT count(*) FROM lane_behaviours WHERE lane = $1 AND phase = 'settled'`, lane) == 1 {
					continue
				}
				_, out := c.build(lane)
				c.publish(out)
				c.apply(lane)
			} else {
				c.build(lane)
			}
		}
	}
	if n := one[int](t, c.pool, switched); n != 1 {
		t.Fatalf("%d lanes have switched, want 1", n)
	}
	seg, err := c.segments.Cancel(t.Context(), 1, profiles.SegmentRef{ID: id}, 0)
	if err != nil || seg.Version != 3 || seg.LiveVersion != 1 || !strings.Contains(string(seg.Rule), "20") {
		t.Fatalf("%+v, %v", seg, err)
	}
	c.settle()
	if diff := cmp.Diff(users[20:], c.members(id, users...)); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	back := 0
	for p, h := range c.history(id) {
		switch i := slices.IndexFunc(users, func(u string) bool { return userKey(u) == p }); {
		case i < 20, i >= 40 && len(h) != 1:
			t.Errorf("u%d has %v", i, h)
		case len(h) == 3 && p.Lane(3) == 0:
			back++
		case len(h) != 1:
			t.Errorf("u%d of a lane that has not switched has %v", i, h)
		}
	}
	if back == 0 {
		t.Error("nobody went back")
	}
	c.versions(id, "3")
}

// versions holds the versions of a segment that are kept to those that are needed.
func (c *crew) versions(segment int64, want string) {
	c.t.Helper()
	if got := one[string](c.t, c.pool, `SELECT string_agg(version::text, ' ' ORDER BY version) FROM segment_versions WHERE segment_id = $1`, segment); got != want {
		c.t.Errorf("versions %s are kept, want %s", got, want)
	}
}

// What is replayed for somebody who has moved on meanwhile takes one more step. Until it is there, nothing is evaluated.
func TestABuildWaitsForWhatIsSentOn(t *testing.T) {
	t.Parallel()
	const lanes = 3
	c := newCrew(t, lanes)
	at := func(prefix string, lane int, kind string) string {
		for i := 0; ; i++ {
			v := fmt.Sprint(prefix, i)
			if profilestest.Secret.Key(profiles.Identifier{Kind: kind, Value: v}).Lane(lanes) == lane {
				return v
			}
		}
	}
	// A visitor is at home in lane 0, and belongs to a user of lane 1. Then one of lane 2 turns out to have been first.
	visitor, second, first := at("a", 0, profiles.AnonymousID), at("second", 1, profiles.UserID), at("first", 2, profiles.UserID)
	c.send(profilestest.Event{Type: "track", Event: "Order", Anon: visitor, Revenue: 70, At: profilestest.Start},
		profilestest.Event{Type: "page", User: second, Anon: visitor, At: profilestest.Start.Add(time.Minute)})
	c.settle()
	id := c.create("buyers", `{"event":"Order"}`)
	c.settle()
	c.edit("buyers", spent(50))
	_, replayed := c.build(0) // on its way to lane 1, when the one who was first is heard of
	if len(replayed) != 1 || replayed[0].Target != 1 {
		t.Fatalf("replayed for others: %v", replayed)
	}
	c.send(profilestest.Event{Type: "page", User: first, Anon: visitor, At: profilestest.Start})
	c.apply(2)
	c.apply(0)
	moved := c.streams[1]
	c.publish(replayed)
	late := c.streams[1][len(moved):]
	c.streams[1] = moved
	c.apply(1) // the visitor goes to lane 2, as lane 1 knows it
	c.streams[1] = late
	if len(moved) != 1 || len(late) != 1 {
		t.Fatalf("%d and %d messages came to lane 1, want one each", len(moved), len(late))
	}
	for range 20 { // nobody but lane 1 has anything to wait for, and lane 1 is slow
		for lane := range lanes {
			if lane != 1 {
				c.apply(lane)
			}
			_, out := c.build(lane)
			c.publish(out)
		}
	}
	c.settle()
	if diff := cmp.Diff([]string{first}, c.members(id, first, second)); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	if h := c.history(id)[userKey(first)]; len(h) != 1 {
		t.Errorf("the one who was first has %v, want one entering", h)
	}
}

// The database writes out the zeros of numbers and puts spaces where there were none: what is stored may be longer than
// what may be given.
func TestARuleIsStoredInMoreBytesThanItMayBeGivenIn(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 1)
	var powers []string
	for i := range 600 {
		powers = append(powers, fmt.Sprintf("%d.%de300", 1+i%9, 1+i/9))
	}
	where := fmt.Sprintf(`[{"property":"revenue","op":"not_in","value":[%s]}]`, strings.Join(powers, ","))
	id := c.create("all", fmt.Sprintf(`{"event":"Order","where":%s}`, where))
	computed := profiles.NewComputedTraits(c.pool, 1)
	count := profiles.ComputedDefinition{Key: "orders", Name: "Orders", Value: fmt.Appendf(nil, `{"event":"Order","where":%s,"count":{}}`, where)}
	if _, err := computed.Create(t.Context(), 1, count); err != nil {
		t.Fatal(err)
	}
	c.send(orderOf("u", 50))
	c.settle()
	c.open(0)
	c.send(orderOf("v", 50))
	c.settle()
	if diff := cmp.Diff([]string{"u", "v"}, c.members(id, "u", "v")); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	if _, err := c.segments.Get(t.Context(), 1, profiles.SegmentRef{Key: "all"}); err != nil {
		t.Error(err)
	}
	values, err := profiles.NewReader(c.pool, 1).Computed(t.Context(), 1)
	if err != nil || len(values) != 1 {
		t.Errorf("there are %d computed traits, %v", len(values), err)
	}
}

// One archived event that nobody can read any more keeps no segment from being built.
func TestAnUnreadableArchivedEventIsLeftOutOfAReplay(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 1)
	c.store.SetChunks(2, 1000, 1000)
	for _, u := range []string{"u", "v", "w"} {
		c.send(orderOf(u, 50))
	}
	c.settle()
	if _, err := c.pool.Exec(t.Context(), `UPDATE events SET payload = 'nonsense' WHERE seq = 2`); err != nil {
		t.Fatal(err)
	}
	id := c.create("all", `{"event":"Order"}`)
	c.settle()
	if diff := cmp.Diff([]string{"u", "w"}, c.members(id, "u", "v", "w")); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

// Of a deleted segment nothing stays but its transitions.
func TestWhatIsCountedOfADeletedSegmentGoes(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	c.send(orderOf("u", 50), orderOf("v", 50))
	c.create("all", `{"event":"Order"}`)
	c.settle()
	if _, err := c.segments.Delete(t.Context(), 1, profiles.SegmentRef{Key: "all"}, 0); err != nil {
		t.Fatal(err)
	}
	c.settle()
	const left = `
		SELECT (SELECT count(*) FROM segment_counts) + (SELECT count(*) FROM segment_days) + (SELECT count(*) FROM lane_segments)
		       + (SELECT count(*) FROM segments)`
	if n := one[int](t, c.pool, left); n != 0 {
		t.Errorf("%d rows are left of it", n)
	}
}

// What is known of one person may be damaged. Everybody else's segments are built all the same.
func TestAnUnreadableProfileIsLeftOutOfABuild(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	users := []string{"ada", "bob", "eve", "joe", "kim"}
	for _, u := range users {
		c.send(orderOf(u, 50))
	}
	c.settle()
	damaged := one[[]byte](t, c.pool, `SELECT state FROM profiles WHERE id = $1`, userKey("eve"))
	if _, err := c.pool.Exec(t.Context(), `UPDATE profiles SET state = $2 WHERE id = $1`, userKey("eve"), damaged[:len(damaged)-1]); err != nil {
		t.Fatal(err)
	}
	for lane := range c.lanes {
		c.open(lane) // what was cached of her is forgotten
	}
	id := c.create("everybody", `{"trait":"plan","op":"not_exists"}`)
	c.settle()
	if got, want := fmt.Sprint(c.members(id, users...)), "[ada bob joe kim]"; got != want {
		t.Errorf("members are %v, want %v", got, want)
	}
}

package profiles_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
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
func TestSegmentsShareReplays(t *testing.T) {
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
	c.settle()
	for id, want := range map[int64]int{a: 0, b: 1, again: 1} {
		if got := c.members(id, "u"); len(got) != want {
			t.Errorf("segment %d has %v, want %d", id, got, want)
		}
	}
	if n := one[int](t, c.pool, `SELECT count(*) FROM behaviours`); n != 2 {
		t.Errorf("%d things are counted, want 2", n)
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

// versions holds the versions of a segment that are kept to those that are needed.
func (c *crew) versions(segment int64, want string) {
	c.t.Helper()
	if got := one[string](c.t, c.pool, `SELECT string_agg(version::text, ' ' ORDER BY version) FROM segment_versions WHERE segment_id = $1`, segment); got != want {
		c.t.Errorf("versions %s are kept, want %s", got, want)
	}
}

package profiles_test

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// crew runs all the lanes of an installation, one thing at a time, over streams in memory.
type crew struct {
	t        testing.TB
	store    *profiles.Store
	pool     *pgxpool.Pool
	segments *profiles.Segments
	leases   []profiles.Lease
	lanes    []*profiles.Lane
	behind   func() bool // whether a lane has not heard of newer definitions; nil: it always has

	mu      sync.Mutex
	streams [][]profiles.Message // what is not applied yet
	sent    int
}

func newCrew(t testing.TB, lanes int) *crew {
	t.Helper()
	s, pool := newStore(t, lanes)
	c := &crew{t: t, store: s, pool: pool, segments: profiles.NewSegments(pool, lanes)}
	c.leases = claim(t, s, "crew", time.Hour)
	slices.SortFunc(c.leases, func(a, b profiles.Lease) int { return a.Lane - b.Lane })
	c.lanes, c.streams = make([]*profiles.Lane, lanes), make([][]profiles.Message, lanes)
	for i := range c.lanes {
		c.open(i)
	}
	return c
}

// open takes a lane up, anew if somebody has it: what its owner had only in memory is lost.
func (c *crew) open(lane int) {
	c.t.Helper()
	l, err := c.store.Open(c.t.Context(), c.leases[lane])
	if err != nil {
		c.t.Fatal(err)
	}
	c.lanes[lane] = l
	out, err := l.Unheard(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	c.publish(out)
}

func (c *crew) publish(out []profiles.Outgoing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range out {
		c.streams[o.Target] = append(c.streams[o.Target], o.Message)
	}
}

// send puts events into the streams.
func (c *crew) send(events ...profilestest.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range events {
		if e.ID == "" {
			c.sent++
			e.ID = fmt.Sprint("m", c.sent)
		}
		m := e.Message()
		lane := m.Key.Lane(len(c.lanes))
		c.streams[lane] = append(c.streams[lane], m)
	}
}

// orderOf is an order by a user, worth so much.
func orderOf(user string, revenue int) profilestest.Event {
	return profilestest.Event{Type: "track", Event: "Order", User: user, Revenue: revenue, At: profilestest.Start}
}

// apply applies what is in a lane's stream, and tells whether there was anything.
func (c *crew) apply(lane int) bool {
	c.t.Helper()
	worked, err := c.tryApply(lane)
	if err != nil {
		c.t.Fatal(err)
	}
	return worked
}

func (c *crew) tryApply(lane int) (bool, error) {
	c.mu.Lock()
	list := c.streams[lane]
	c.streams[lane] = nil
	c.mu.Unlock()
	if len(list) == 0 {
		return false, nil
	}
	l := c.lanes[lane]
	until := l.Offset()
	until.Ms++
	res, err := l.Apply(c.t.Context(), profiles.Batch{Until: until, Messages: list})
	if err != nil {
		return false, err
	}
	if res.Failed > 0 {
		return false, fmt.Errorf("%d messages failed", res.Failed)
	}
	c.publish(res.Outbox)
	return true, nil
}

// build does the next chunk of a lane's builds, and returns what it has for others, which is to be published before it
// goes on.
func (c *crew) build(lane int) (worked bool, out []profiles.Outgoing) {
	c.t.Helper()
	worked, out, err := c.tryBuild(lane)
	if err != nil {
		c.t.Fatal(err)
	}
	return worked, out
}

func (c *crew) tryBuild(lane int) (worked bool, out []profiles.Outgoing, err error) {
	l := c.lanes[lane]
	var upTo time.Time
	c.mu.Lock()
	if len(c.streams[lane]) == 0 {
		upTo = time.Now()
	}
	c.mu.Unlock()
	if c.behind == nil || !c.behind() {
		if fingerprint, err := c.store.Fingerprint(c.t.Context()); err != nil {
			return false, nil, err
		} else if fingerprint != l.Fingerprint() {
			if err := l.Refresh(c.t.Context()); err != nil {
				return false, nil, err
			}
		}
	}
	if !l.Building() {
		return false, nil, nil
	}
	worked, res, err := l.Build(c.t.Context(), upTo)
	return worked, res.Outbox, err
}

// settle lets all lanes work until there is nothing left to do.
func (c *crew) settle() {
	c.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for busy := true; busy; {
		busy = false
		for lane, l := range c.lanes {
			applied := c.apply(lane)
			_, out := c.build(lane)
			c.publish(out)
			busy = busy || applied || l.Building()
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the lanes do not come to rest: %s", c.dump())
		}
	}
}

func (c *crew) dump() string {
	return one[string](c.t, c.pool, `SELECT concat(
		(SELECT json_agg(k) FROM lane_segments AS k), (SELECT json_agg(b) FROM lane_behaviours AS b WHERE phase <> 'complete'))`)
}

func (c *crew) create(key, rule string) int64 {
	c.t.Helper()
	s, err := c.segments.Create(c.t.Context(), 1, profiles.SegmentDefinition{Key: key, Name: key, Rule: []byte(rule)})
	if err != nil {
		c.t.Fatal(err)
	}
	return s.ID
}

func (c *crew) edit(key, rule string) {
	c.t.Helper()
	_, err := c.segments.Update(c.t.Context(), 1, profiles.SegmentRef{Key: key}, profiles.SegmentChange{Rule: []byte(rule)})
	if err != nil {
		c.t.Fatal(err)
	}
}

// history returns, of each profile that ever was in a segment, whether it entered at each of its transitions. They must
// take turns, and end in what the memberships say.
func (c *crew) history(segment int64) map[profiles.Key][]bool {
	c.t.Helper()
	type row struct {
		Profile profiles.Key
		Entered bool
	}
	rows, _ := c.pool.Query(c.t.Context(), `SELECT profile_id, entered FROM transitions WHERE segment_id = $1 ORDER BY profile_id, lane, seq`, segment)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		c.t.Fatal(err)
	}
	history := map[profiles.Key][]bool{}
	for _, r := range list {
		before := history[r.Profile]
		if r.Entered == (len(before)%2 == 1) {
			c.t.Errorf("segment %d: %s enters or leaves twice in a row", segment, r.Profile)
		}
		history[r.Profile] = append(before, r.Entered)
	}
	rows, _ = c.pool.Query(c.t.Context(), `SELECT profile_id FROM memberships WHERE segment_id = $1`, segment)
	members, err := pgx.CollectRows(rows, pgx.RowTo[profiles.Key])
	if err != nil {
		c.t.Fatal(err)
	}
	in := map[profiles.Key]bool{}
	for _, m := range members {
		in[m] = true
		if len(history[m])%2 == 0 {
			c.t.Errorf("segment %d: %s is a member, its transitions say otherwise", segment, m)
		}
	}
	for p, h := range history {
		if len(h)%2 == 1 && !in[p] {
			c.t.Errorf("segment %d: %s is no member, its transitions say otherwise", segment, p)
		}
	}
	return history
}

// members returns who is in a segment, of the users given.
func (c *crew) members(segment int64, users ...string) []string {
	c.t.Helper()
	history := c.history(segment)
	var in []string
	for _, u := range users {
		if len(history[userKey(u)])%2 == 1 {
			in = append(in, u)
		}
		delete(history, userKey(u))
	}
	for _, p := range slices.SortedFunc(maps.Keys(history), func(a, b profiles.Key) int { return slices.Compare(a[:], b[:]) }) {
		if len(history[p])%2 == 1 {
			in = append(in, p.String())
		}
	}
	return in
}

func userKey(user string) profiles.Key {
	return profilestest.Secret.Key(profiles.Identifier{Kind: profiles.UserID, Value: user})
}

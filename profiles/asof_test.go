package profiles_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// What has not arrived yet at the lane that it concerns is not included in what is said about people, so the moment up to
// which everything is must not be later than the event it follows from, over however many lanes it goes.
func TestAsOfWaitsForWhatLanesTellEachOther(t *testing.T) {
	t.Parallel()
	const lanes = 4
	s, pool := newStore(t, lanes)
	open := map[int]*profiles.Lane{}
	for _, lease := range claim(t, s, "one", time.Hour) {
		l, err := s.Open(t.Context(), lease)
		if err != nil {
			t.Fatal(err)
		}
		open[lease.Lane] = l
	}
	reader := profiles.NewReader(pool, lanes)
	now := time.Now().UTC().Truncate(time.Millisecond)
	streams := map[int][]profiles.Message{}
	seq := map[int]uint64{}
	// apply has a lane apply its stream, and puts what follows for others into theirs.
	apply := func(lane int, asOf time.Time) {
		t.Helper()
		seq[lane]++
		res, err := open[lane].Apply(t.Context(), profiles.Batch{
			Until: profiles.Offset{Ms: seq[lane]}, AsOf: asOf, Messages: streams[lane],
		})
		if err != nil {
			t.Fatal(err)
		}
		streams[lane] = nil
		for _, o := range res.Outbox {
			streams[o.Target] = append(streams[o.Target], o.Message)
		}
	}
	asOf := func() time.Time {
		t.Helper()
		at, err := reader.AsOf(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return at
	}

	// A visitor and a user of different lanes, the user's e-mail address in a third: by then everything makes hops.
	key := func(kind, value string) int {
		return profilestest.Secret.Key(profiles.Identifier{Kind: kind, Value: value}).Lane(lanes)
	}
	var visitor, user string
	for i := 0; visitor == ""; i++ {
		if v := fmt.Sprint("v", i); key("anonymous_id", v) == 1 {
			visitor = v
		}
	}
	for i := 0; user == ""; i++ {
		if u := fmt.Sprint("u", i); key("user_id", u) == 2 {
			user = u
		}
	}
	accepted := now.Add(-10 * time.Second)
	view := profilestest.Event{ID: "view", Type: "track", Event: "Order", Anon: visitor, At: accepted.Add(-time.Second)}
	login := profilestest.Event{
		ID: "login", Type: "identify", User: user, Anon: visitor, Traits: map[string]any{"email": "ada@example.com"}, MergeOn: true, At: accepted,
	}
	streams[1] = []profiles.Message{view.Message()}
	streams[2] = []profiles.Message{login.Message()}
	for lane := range lanes {
		apply(lane, now)
	}
	rounds := 0
	for {
		pending := 0
		for lane := range lanes {
			pending += len(streams[lane])
		}
		at := asOf()
		if pending == 0 {
			if !at.Equal(now) {
				t.Errorf("with nothing under way it is %v, want %v", at, now)
			}
			break
		}
		if want := accepted.Add(-time.Millisecond); !at.Equal(want) {
			t.Errorf("with %d messages under way it is %v, want just before the event, %v", pending, at, want)
		}
		if rounds++; rounds > 20 {
			t.Fatal("the lanes tell each other things for ever")
		}
		for lane := range lanes {
			apply(lane, now)
		}
	}
	if rounds < 2 {
		t.Errorf("everything arrived after %d rounds: the test is to have more than one hop", rounds)
	}
	for _, l := range open {
		if err := l.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := one[int](t, pool, `SELECT count(*) FROM outbox`); n != 0 {
		t.Errorf("%d messages are still in the outbox after everybody has heard them", n)
	}
}

// A lane that is busy with chores has its row locked whenever somebody wants to note how far it is: its own transactions do.
func TestChoresNoteHowFarTheLaneIsApplied(t *testing.T) {
	t.Parallel()
	w := newTown(t, 1)
	w.apply(orderOf("u", 50).Message())
	at := time.Now().UTC().Truncate(time.Millisecond)
	w.lanes[0].CaughtUp(at)
	w.segment("all", `{"event":"Order"}`)
	if got, err := w.reader.AsOf(t.Context()); err != nil || !got.Equal(at) {
		t.Errorf("as of %v, %v; want %v", got, err, at)
	}
}

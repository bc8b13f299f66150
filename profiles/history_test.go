package profiles_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// However people come, merge and go, what is counted on the way is what a count would say.
func TestCountsKeepUpWithWhatTheyCount(t *testing.T) {
	t.Parallel()
	const seeds = 4
	for seed := range uint64(seeds) {
		w := newTown(t, 3)
		for _, s := range profilestest.Segments {
			w.define(fmt.Sprint("s", s.ID), s.Rule)
		}
		w.build()
		rng := rand.New(rand.NewPCG(seed, 7))
		events := profilestest.RandomEvents(rng)
		for i, e := range events {
			e.At = time.Now().Add(-time.Duration(len(events)-i) * time.Second)
			w.apply(e.Message())
		}
		const profilesOff = `
			SELECT count(*)
			FROM (SELECT lane, workspace_id, count(*) AS n FROM profiles GROUP BY 1, 2) AS p
			FULL JOIN profile_counts AS c USING (lane, workspace_id)
			WHERE coalesce(p.n, 0) <> coalesce(c.profiles, 0)`
		const daysOff = `
			SELECT count(*)
			FROM (
				SELECT lane, segment_id, (at AT TIME ZONE 'UTC')::date AS day, count(*) FILTER (WHERE entered) AS entered, count(*) FILTER (WHERE NOT entered) AS gone
				FROM transitions
				GROUP BY 1, 2, 3) AS t
			FULL JOIN segment_days AS d USING (lane, segment_id, day)
			WHERE (t.entered, t.gone) IS DISTINCT FROM (d.entered, d."left")`
		if n := one[int](t, w.pool, profilesOff); n > 0 {
			t.Errorf("seed %d: %d numbers of profiles are wrong", seed, n)
		}
		if n := one[int](t, w.pool, daysOff); n > 0 {
			t.Errorf("seed %d: %d days are wrong", seed, n)
		}
		count, err := w.reader.Count(t.Context(), 1)
		if err != nil || count != one[int64](t, w.pool, `SELECT count(*) FROM profiles`) {
			t.Errorf("seed %d: %d profiles, %v", seed, count, err)
		}
	}
}

func TestHistoryCountsBackFromNow(t *testing.T) {
	t.Parallel()
	w := newTown(t, 2)
	segment := w.segment("buyers", `{"event": "Order"}`)
	for i := range 5 {
		w.apply(profilestest.Event{ID: fmt.Sprint("m", i), Type: "track", Event: "Order", Anon: fmt.Sprint("a", i), At: time.Now()}.Message())
	}
	today := time.Now().UTC().Truncate(24 * time.Hour)
	// Two of them came three days ago, when somebody left who had been there before, and one is of tomorrow's clock.
	for _, sql := range []string{
		`UPDATE segment_days SET day = day - 3, "left" = 1 WHERE lane = 0`,
		`INSERT INTO segment_days SELECT lane, segment_id, day + 1, 1, 0 FROM segment_days WHERE lane = 1`,
		`UPDATE segment_counts SET members = members - 1 WHERE lane = 0`,
		`UPDATE segment_counts SET members = members + 1 WHERE lane = 1`,
	} {
		if _, err := w.pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	early := one[int64](t, w.pool, `SELECT entered FROM segment_days WHERE lane = 0`)
	late := 5 - early
	if early == 0 || late == 0 {
		t.Fatalf("all are in one lane: %d, %d", early, late)
	}
	want := []profiles.SegmentDay{
		{Day: today.AddDate(0, 0, -4), Members: 0},
		{Day: today.AddDate(0, 0, -3), Entered: early, Left: 1, Members: early - 1},
		{Day: today.AddDate(0, 0, -2), Members: early - 1},
		{Day: today.AddDate(0, 0, -1), Members: early - 1},
		{Day: today, Entered: late, Members: early - 1 + late},
	}
	got, err := w.reader.History(t.Context(), segment, today.AddDate(0, 0, -4), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
	got, err = w.reader.History(t.Context(), segment, today.AddDate(0, 0, -3), today.AddDate(0, 0, -2))
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(want[1:3], got); diff != "" {
		t.Errorf("a part of it (-want +got):\n%s", diff)
	}
	got, err = w.reader.History(t.Context(), segment+1, today, today)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff([]profiles.SegmentDay{{Day: today}}, got); diff != "" {
		t.Errorf("of a segment that never had anybody (-want +got):\n%s", diff)
	}
}

func TestMembershipsTellWhyAndForHowLong(t *testing.T) {
	t.Parallel()
	w := newTown(t, 2)
	ever := w.segment("ever", `{"event": "Order"}`)
	lately := w.segment("lately", `{"event": "Order", "within": "1d"}`)
	w.segment("never", `{"event": "Refund"}`)
	at := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	w.apply(profilestest.Event{ID: "m1", Type: "track", Event: "Order", User: "u", Anon: "a", At: at}.Message())
	p, err := w.reader.ByIdentifier(t.Context(), 1, profilestest.Secret, profiles.Identifier{Kind: profiles.AnonymousID, Value: "a"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.reader.Memberships(t.Context(), p, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if time.Since(got[i].Since) > time.Minute {
			t.Errorf("in %d since %v", got[i].Segment, got[i].Since)
		}
		got[i].Since = time.Time{}
	}
	cause := profiles.Cause{Kind: profiles.CauseEvent, Source: 1, MessageID: "m1"}
	want := []profiles.Membership{{Segment: ever, Cause: cause}, {Segment: lately, Cause: cause, Due: at.Add(24 * time.Hour)}}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, err = w.reader.Memberships(t.Context(), p, ever, 1); err != nil || len(got) != 1 || got[0].Segment != lately {
		t.Errorf("behind the first: %v, %v", got, err)
	}
}

package profiles_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// Whatever is committed while a feed is read, and in whatever pages, it holds everything once and each lane in order.
func TestAFeedIsCompleteAndInOrder(t *testing.T) {
	t.Parallel()
	const lanes, people = 3, 15
	w := newTown(t, lanes)
	segment := w.segment("even", `{"trait": "n", "op": "in", "value": [0, 2, 4, 6, 8]}`)
	other := w.segment("odd", `{"trait": "n", "op": "in", "value": [1, 3, 5, 7, 9]}`)
	rng := rand.New(rand.NewPCG(1, 2))
	sent := 0
	stir := func() {
		for range 20 {
			w.apply(profilestest.Event{
				ID: fmt.Sprint("m", sent), Type: "identify", Anon: fmt.Sprint("a", rng.IntN(people)),
				Traits: map[string]any{"n": rng.IntN(10)}, At: profilestest.Start.Add(time.Duration(sent) * time.Second),
			}.Message())
			sent++
		}
	}
	stir()

	const set = `UPDATE transitions SET at = at - '1 hour'::interval WHERE lane = 1 AND seq % 3 = 0` // a clock that was set back
	var read []profiles.Recorded
	at := w.reader.Start()
	for round := 0; ; round++ {
		limit := 1 + rng.IntN(7)
		page, err := w.reader.After(t.Context(), 1, segment, at, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) > limit {
			t.Fatalf("%d on a page of %d", len(page), limit)
		}
		at = at.Through(page)
		read = append(read, page...)
		if round < 8 {
			stir()
			if _, err := w.pool.Exec(t.Context(), set); err != nil {
				t.Fatal(err)
			}
		} else if len(page) == 0 {
			break
		}
	}
	if want := one[int](t, w.pool, `SELECT count(*) FROM transitions WHERE segment_id = $1`, segment); len(read) != want || want < 30 {
		t.Fatalf("%d were read, there are %d", len(read), want)
	}
	last, member := make([]int64, lanes), map[profiles.Key]bool{}
	for _, tr := range read {
		if tr.At.Seq <= last[tr.At.Lane] {
			t.Errorf("lane %d: %d comes after %d", tr.At.Lane, tr.At.Seq, last[tr.At.Lane])
		}
		last[tr.At.Lane] = tr.At.Seq
		if tr.Segment != segment || tr.Entered == member[tr.Profile] {
			t.Errorf("out of turn: %+v", tr)
		}
		member[tr.Profile] = tr.Entered
	}

	// Backwards from any place there is the same.
	present, err := w.reader.Present(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var back []profiles.Recorded
	for upTo := present; ; {
		page, err := w.reader.Before(t.Context(), 1, segment, upTo, 1+rng.IntN(7))
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		back, upTo = append(back, page...), upTo.Back(page)
	}
	byNumber := func(a, b profiles.Recorded) int {
		return slices.Compare([]int64{int64(a.At.Lane), a.At.Seq}, []int64{int64(b.At.Lane), b.At.Seq})
	}
	for lane, seq := range last {
		for _, tr := range back {
			if tr.At.Lane == lane {
				if tr.At.Seq > seq {
					t.Errorf("backwards, lane %d: %d comes after %d", lane, tr.At.Seq, seq)
				}
				seq = tr.At.Seq
			}
		}
	}
	slices.SortFunc(read, byNumber)
	slices.SortFunc(back, byNumber)
	if diff := gocmp.Diff(len(read), len(back)); diff != "" || !slices.EqualFunc(read, back, func(a, b profiles.Recorded) bool { return byNumber(a, b) == 0 }) {
		t.Errorf("forwards %d, backwards %d", len(read), len(back))
	}

	// Who has moved is told without reading what.
	moved, err := w.reader.Moved(t.Context(), []int64{segment, other, other + 1}, w.reader.Start())
	slices.Sort(moved)
	if err != nil || !slices.Equal(moved, []int64{segment, other}) {
		t.Errorf("since the start %v have moved, %v", moved, err)
	}
	if moved, err = w.reader.Moved(t.Context(), []int64{segment, other}, present); err != nil || len(moved) > 0 {
		t.Errorf("since now %v have moved, %v", moved, err)
	}
	if page, err := w.reader.After(t.Context(), 2, segment, w.reader.Start(), 10); err != nil || len(page) > 0 {
		t.Errorf("another workspace reads %v, %v", page, err)
	}
}

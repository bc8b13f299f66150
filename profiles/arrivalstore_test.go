package profiles_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// numbered returns an event as the tag sends them.
func numbered(id, visitor, stream string, n int, at time.Time) profiles.Message {
	m := profilestest.Event{ID: id, Type: "track", Event: "Order", Anon: visitor, At: at}.Message()
	m.Body = fmt.Appendf(bytes.TrimSuffix(m.Body, []byte("}")), `,"context":{"mub":{"s":%q,"n":%d}}}`, stream, n)
	return m
}

func streamOf(at time.Time, name string) string {
	return strconv.FormatInt(at.Unix()/(24*3600), 36) + name
}

// Two tabs of a visitor who signs in on the way, so that their events go to two lanes, in any order and some of them twice.
func TestLossIsWhatNeverArrived(t *testing.T) {
	t.Parallel()
	const lanes = 2
	s, pool := newStore(t, lanes)
	at := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -2).Add(10 * time.Hour)
	var messages [lanes][]profiles.Message
	received := 0
	rng := rand.New(rand.NewPCG(1, 2))
	for _, tab := range []string{"tab1", "tab2"} {
		for n := 1; n <= 40; n++ {
			visitor := fmt.Sprint("a", n%5) // of one lane or the other
			m := numbered(fmt.Sprint(tab, n), visitor, streamOf(at, tab), n, at.Add(time.Duration(n)*time.Second))
			lane := m.Key.Lane(lanes)
			if n%10 == 3 && n != 40 {
				continue // lost
			}
			received++
			messages[lane] = append(messages[lane], m)
			if n%7 == 0 {
				messages[lane] = append(messages[lane], m) // sent twice
			}
		}
	}
	young := time.Now()
	for _, n := range []int{1, 2, 5} { // of today: 3 and 4 may still come
		m := numbered(fmt.Sprint("young", n), "a1", streamOf(young, "young"), n, young)
		messages[m.Key.Lane(lanes)] = append(messages[m.Key.Lane(lanes)], m)
	}
	for _, lease := range claim(t, s, "one", time.Minute) {
		l, err := s.Open(t.Context(), lease)
		if err != nil {
			t.Fatal(err)
		}
		list := messages[lease.Lane]
		rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for i := 0; len(list) > 0; i++ {
			n := min(len(list), 1+rng.IntN(9))
			if _, err := l.Apply(t.Context(), profiles.Batch{Messages: list[:n], Until: profiles.Offset{Ms: uint64(i + 1)}}); err != nil {
				t.Fatal(err)
			}
			list = list[n:]
		}
	}
	r := profiles.NewReader(pool, lanes)
	want := []profiles.Arrivals{
		{Day: at.Truncate(24 * time.Hour), Streams: 2, Sent: 80, Received: int64(received), Missing: 80 - int64(received), Duplicates: 2 * 5},
		{Day: young.UTC().Truncate(24 * time.Hour), Streams: 1, Sent: 5, Received: 3, InFlight: 2},
	}
	check := func(now time.Time) {
		t.Helper()
		got, err := r.Arrivals(t.Context(), 1, 1, at, young.UTC(), now)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	}
	check(time.Now())
	before := one[int](t, pool, `SELECT count(*) FROM arrivals`)
	if err := s.FoldArrivals(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	check(time.Now())
	if n := one[int](t, pool, `SELECT count(*) FROM arrivals`); n > before || n > 2*lanes {
		t.Errorf("%d rows are left of %d", n, before)
	}
	want[1].Missing, want[1].InFlight = 2, 0
	check(time.Now().Add(2 * time.Hour))
	if err := s.FoldArrivals(t.Context(), time.Now().AddDate(0, 0, profiles.ArrivalsKept)); err != nil {
		t.Fatal(err)
	}
	want = want[1:] // the other day is older than is kept
	check(time.Now().Add(2 * time.Hour))
}

// A lane that takes many events a second writes one row for a µbatch, and new parts only when the old are full.
func TestNumbersTakeARowOfASourceAndDay(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t, 1)
	l, err := s.Open(t.Context(), claim(t, s, "one", time.Minute)[0])
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	for i := range 60 {
		var batch profiles.Batch
		for n := range 10 {
			batch.Messages = append(batch.Messages, numbered(fmt.Sprint(i, "/", n), "a", streamOf(at, fmt.Sprint("tab", i)), n+1, at))
		}
		batch.Until = profiles.Offset{Ms: uint64(i + 1)}
		if _, err := l.Apply(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	if n := one[int](t, pool, `SELECT count(*) FROM arrivals`); n != 1 {
		t.Errorf("%d rows of 60 µbatches", n)
	}
	if n := one[int](t, pool, `SELECT sum(length(numbers)) FROM arrivals`); n > 60*14 {
		t.Errorf("%d bytes of 60 streams", n)
	}
}

// BenchmarkArrivals tells what numbers cost a µbatch.
func BenchmarkArrivals(b *testing.B) {
	const people = 10_000
	l := newBenchLane(b, nil)
	l.populate(people, ordered)
	l.settle()
	for _, size := range []int{100, 1000} {
		for _, with := range []bool{false, true} {
			b.Run(fmt.Sprintf("batch=%d/numbers=%v", size, with), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					batch := l.batch(size, func() int { return l.rng.IntN(people) }, ordered)
					if with {
						for i := range batch.Messages {
							m := &batch.Messages[i]
							*m = numbered(fmt.Sprint("n", l.sent, "/", i), fmt.Sprint("a", i), streamOf(m.Received, fmt.Sprint("tab", l.rng.IntN(people))), 1+l.rng.IntN(20), m.Received)
						}
					}
					b.StartTimer()
					if _, err := l.Apply(context.Background(), batch); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
			})
		}
	}
}

package profiles_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// BenchmarkApply applies µbatches to a lane of 100,000 people in a workspace of 20 segments.
func BenchmarkApply(b *testing.B) {
	const people = 100_000
	s, pool := newStore(b, 1)
	segments := profiles.NewSegments(pool, 1)
	for i := range 20 {
		rule := fmt.Sprintf(`{"all": [{"event": "Order", "where": [{"property": "revenue", "op": "eq", "value": %d}], "count": {"gte": 2}, "within": "%dd"},
			{"not": {"trait": "plan", "op": "exists"}}]}`, 5*i, 1+i)
		if _, err := segments.Create(b.Context(), 1, profiles.SegmentDefinition{Key: fmt.Sprint("s", i), Rule: []byte(rule)}); err != nil {
			b.Fatal(err)
		}
	}
	lane, err := s.Open(b.Context(), claim(b, s, "one", time.Hour)[0])
	if err != nil {
		b.Fatal(err)
	}
	for lane.Building() {
		if _, _, err := lane.Build(b.Context(), time.Now().Add(time.Hour)); err != nil {
			b.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	sent := 0
	batch := func(size int, who func() int) profiles.Batch {
		batch := profiles.Batch{Until: profiles.Offset{Ms: uint64(sent + 1)}}
		for range size {
			e := profilestest.Event{ID: fmt.Sprint("m", sent), Type: "track", Event: "Order", Anon: fmt.Sprint("a", who()), Revenue: rng.IntN(100), At: time.Now()}
			m := e.Message()
			m.Received = time.Now()
			batch.Messages = append(batch.Messages, m)
			sent++
		}
		return batch
	}
	for i := 0; i < people; {
		if _, err := lane.Apply(b.Context(), batch(5000, func() int { i++; return i - 1 })); err != nil {
			b.Fatal(err)
		}
	}
	for _, size := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			transitions := 0
			for b.Loop() {
				b.StopTimer()
				batch := batch(size, func() int { return rng.IntN(people) })
				b.StartTimer()
				res, err := lane.Apply(b.Context(), batch)
				if err != nil {
					b.Fatal(err)
				}
				transitions += res.Transitions
			}
			b.ReportMetric(float64(transitions)/float64(b.N*size), "transitions/event")
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

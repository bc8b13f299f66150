package profiles_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// benchLane is a lane, of one, with what it needs to be applied to.
type benchLane struct {
	*profiles.Lane
	b    *testing.B
	pool *pgxpool.Pool
	rng  *rand.Rand
	sent int
}

// newBenchLane returns a lane in which the segments of these rules are live.
func newBenchLane(b *testing.B, rules []string) *benchLane {
	b.Helper()
	s, pool := newStore(b, 1)
	segments := profiles.NewSegments(pool, 1)
	for i, rule := range rules {
		if _, err := segments.Create(b.Context(), 1, profiles.SegmentDefinition{Key: fmt.Sprint("s", i), Rule: []byte(rule)}); err != nil {
			b.Fatal(err)
		}
	}
	lease := claim(b, s, "one", time.Hour)[0]
	lane, err := s.Open(b.Context(), lease)
	if err != nil {
		b.Fatal(err)
	}
	for _, live := range []string{ // at once: there is nothing to build them from
		`UPDATE segments SET live_version = version`,
		`UPDATE lane_segments SET live_version = version, phase = 'done'`,
		`UPDATE lane_behaviours SET phase = 'complete'`,
	} {
		if _, err := pool.Exec(b.Context(), live); err != nil {
			b.Fatal(err)
		}
	}
	if err := lane.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	if lane.Building() {
		b.Fatal("not every segment is live")
	}
	return &benchLane{Lane: lane, b: b, pool: pool, rng: rand.New(rand.NewPCG(1, 1))}
}

// batch makes a µbatch of that many events, all of now, of whoever who says and as what has made them.
func (l *benchLane) batch(size int, who func() int, what func(*profilestest.Event)) profiles.Batch {
	var batch profiles.Batch
	for range size {
		l.sent++
		e := profilestest.Event{
			ID: fmt.Sprint("m", l.sent), Type: "track", Anon: fmt.Sprint("a", who()), Revenue: l.rng.IntN(100), At: time.Now(),
		}
		what(&e)
		m := e.Message()
		m.Received = e.At
		batch.Messages = append(batch.Messages, m)
	}
	batch.Until = profiles.Offset{Ms: uint64(l.sent)}
	return batch
}

// populate gives each of that many people an event.
func (l *benchLane) populate(people int, what func(*profilestest.Event)) {
	l.b.Helper()
	for i := 0; i < people; {
		size := min(5000, people-i)
		if _, err := l.Apply(l.b.Context(), l.batch(size, func() int { i++; return i - 1 }, what)); err != nil {
			l.b.Fatal(err)
		}
	}
}

// settle lets Postgres do what it would have done in the meantime.
func (l *benchLane) settle() {
	l.b.Helper()
	if _, err := l.pool.Exec(l.b.Context(), `VACUUM ANALYZE`); err != nil {
		l.b.Fatal(err)
	}
}

// apply measures µbatches of a size.
func (l *benchLane) apply(b *testing.B, size int, who func() int, what func(*profilestest.Event)) {
	transitions := 0
	for b.Loop() {
		b.StopTimer()
		batch := l.batch(size, who, what)
		b.StartTimer()
		res, err := l.Apply(context.Background(), batch)
		if err != nil {
			b.Fatal(err)
		}
		transitions += res.Transitions
	}
	b.ReportMetric(float64(transitions)/float64(b.N*size), "transitions/event")
	b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
}

func ordered(e *profilestest.Event) { e.Event = "Order" }

// BenchmarkApply applies µbatches to a lane of 100,000 people in a workspace of 20 segments.
func BenchmarkApply(b *testing.B) {
	const people = 100_000
	var rules []string
	for i := range 20 {
		rules = append(rules, fmt.Sprintf(`{"all": [{"event": "Order", "where": [{"property": "revenue", "op": "eq", "value": %d}], "count": {"gte": 2}, "within": "%dd"},
			{"not": {"trait": "plan", "op": "exists"}}]}`, 5*i, 1+i))
	}
	l := newBenchLane(b, rules)
	l.populate(people, ordered)
	l.settle()
	for _, size := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			l.apply(b, size, func() int { return l.rng.IntN(people) }, ordered)
		})
	}
}

// BenchmarkApplySegments applies µbatches of 1,000 events in a workspace of many segments, of which each event can
// change five: of people who have been there for a while, and of people who have not been seen before.
func BenchmarkApplySegments(b *testing.B) {
	const people = 10_000
	for _, segments := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("segments=%d", segments), func(b *testing.B) {
			var rules []string
			for i := range segments / 5 {
				for _, rule := range []string{
					`{"event": "E%d", "within": "7d"}`,
					`{"event": "E%d", "count": {"gte": 3}, "within": "30d"}`,
					`{"all": [{"event": "E%d", "count": {"gte": 2}}, {"not": {"trait": "plan", "op": "eq", "value": "pro"}}]}`,
					`{"event": "E%d", "where": [{"property": "revenue", "op": "gte", "value": 50}], "within": "90d"}`,
					`{"all": [{"event": "E%[1]d"}, {"not": {"event": "E%[1]d", "within": "1d"}}]}`,
				} {
					rules = append(rules, fmt.Sprintf(rule, i))
				}
			}
			l := newBenchLane(b, rules)
			some := func(e *profilestest.Event) { e.Event = fmt.Sprint("E", l.rng.IntN(segments/5)) }
			l.populate(people, some)
			l.settle()
			b.Run("known", func(b *testing.B) {
				l.apply(b, 1000, func() int { return l.rng.IntN(people) }, some)
			})
			b.Run("new", func(b *testing.B) {
				next := people
				l.apply(b, 1000, func() int { next++; return next }, some)
			})
		})
	}
}

// BenchmarkRing has the windows of 20,000 people end in one lane, in transactions that may take so long.
func BenchmarkRing(b *testing.B) {
	const people = 20_000
	for _, allowed := range []time.Duration{5 * time.Millisecond, 50 * time.Millisecond} {
		b.Run(fmt.Sprintf("chunk=%v", allowed), func(b *testing.B) {
			var rung, chunks int
			for b.Loop() {
				b.StopTimer()
				l := newBenchLane(b, []string{`{"event": "Order", "within": "1h"}`})
				l.populate(people, ordered)
				l.settle()
				l.Allow(allowed)
				b.StartTimer()
				for left := people; left > 0; chunks++ {
					n, _, err := l.Ring(b.Context(), time.Now().Add(2*time.Hour))
					if err != nil || n == 0 {
						b.Fatalf("%d timers rang with %d left, %v", n, left, err)
					}
					left -= n
				}
				rung += people
			}
			b.ReportMetric(float64(rung)/b.Elapsed().Seconds(), "expiries/s")
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(chunks), "ms/chunk")
			b.ReportMetric(float64(rung)/float64(chunks), "expiries/chunk")
		})
	}
}

// BenchmarkState tells how much room a shop's customers take up: each with an e-mail address and five traits, and with
// twenty events of five kinds, in a workspace of twenty segments.
func BenchmarkState(b *testing.B) {
	const people, each = 2000, 20
	for b.Loop() {
		var rules []string
		for i := range 4 {
			for _, rule := range []string{
				`{"event": "E%d", "within": "7d"}`,
				`{"event": "E%d", "count": {"gte": 3}, "within": "30d"}`,
				`{"event": "E%d", "count": {"gte": 10}}`,
				`{"event": "E%d", "where": [{"property": "revenue", "op": "gte", "value": 50}], "within": "90d"}`,
				`{"all": [{"trait": "plan", "op": "eq", "value": "pro"}, {"not": {"event": "E%d", "within": "1d"}}]}`,
			} {
				rules = append(rules, fmt.Sprintf(rule, i))
			}
		}
		l := newBenchLane(b, rules)
		l.populate(people, func(e *profilestest.Event) {
			e.Type = "identify"
			e.Traits = map[string]any{
				"email": e.Anon + "@example.com", "name": "Ada of " + e.Anon, "country": "DE", "plan": "pro", "visits": 17, "newsletter": true,
			}
		})
		for range each {
			l.populate(people, func(e *profilestest.Event) { e.Event = fmt.Sprint("E", l.rng.IntN(5)) })
		}
		if _, err := l.pool.Exec(b.Context(), `VACUUM FULL profiles`); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(one[float64](b, l.pool, `SELECT avg(length(state))::float8 FROM profiles`), "state-B/profile")
		b.ReportMetric(float64(one[int](b, l.pool, `SELECT pg_total_relation_size('profiles')`))/people, "stored-B/profile")
	}
}

package profiles_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// BenchmarkBuild builds segments over an archive of 100,000 events of 20,000 people in 4 lanes, all at work at once. A rule
// over an event has the archive replayed, one over a trait only the profiles evaluated, an edit of a threshold as well.
func BenchmarkBuild(b *testing.B) {
	const lanes, people, each = 4, 20_000, 5
	c := newCrew(b, lanes)
	for i := range people {
		for n := range each {
			e := profilestest.Event{Type: "track", Event: "Order", User: fmt.Sprint("u", i), Revenue: (i + n) % 100, At: time.Now()}
			c.send(e)
		}
		if i%500 == 499 {
			for lane := range c.lanes {
				c.apply(lane)
			}
		}
	}
	c.settle()
	run := func(b *testing.B) {
		var wg sync.WaitGroup
		for lane := range c.lanes {
			wg.Go(func() {
				for {
					if _, err := c.tryApply(lane); err != nil {
						b.Error(err)
						return
					}
					worked, out, err := c.tryBuild(lane)
					if err != nil {
						b.Error(err)
						return
					}
					c.publish(out)
					if !worked && !c.lanes[lane].Building() {
						return
					}
				}
			})
		}
		wg.Wait()
	}
	n := 0
	for _, bench := range []struct{ name, first, edited string }{
		{name: "event", first: `{"event":"Order","where":[{"property":"revenue","op":"gte","value":%d}],"count":{"gte":2},"within":"30d"}`},
		{name: "trait", first: `{"trait":"plan","op":"neq","value":"p%d"}`},
		{name: "edit", first: `{"event":"Order","count":{"gte":%d},"within":"30d"}`, edited: `{"event":"Order","count":{"gte":6},"within":"30d"}`},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				b.StopTimer()
				n++
				key := fmt.Sprint("s", n)
				rule := fmt.Sprintf(bench.first, 1+n%5)
				if bench.edited != "" {
					rule = fmt.Sprintf(bench.first, 5)
					c.create("keep"+key, bench.edited) // what the edit counts is counted already
				}
				c.create(key, rule)
				if bench.edited != "" {
					run(b)
					c.edit(key, bench.edited)
				}
				began := time.Now()
				b.StartTimer()
				run(b)
				b.StopTimer()
				took += time.Since(began)
				for _, k := range []string{key, "keep" + key} {
					if _, err := c.segments.Delete(b.Context(), 1, profiles.SegmentRef{Key: k}, 0); err != nil && k == key {
						b.Fatal(err)
					}
				}
				run(b)
				b.StartTimer()
			}
			b.ReportMetric(float64(b.N*people)/took.Seconds(), "profiles/s")
			b.ReportMetric(float64(b.N*people*each)/took.Seconds(), "events/s")
		})
	}
}

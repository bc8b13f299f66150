package partnertest

import (
	"testing"
	"time"

	"github.com/mubatch/mubatch/activation"
)

// BenchmarkPartner measures how many people a second are added at a partner and removed again, from the ledger to what the
// partner says of them, and reports it as ops/s. Where there is nothing to do but wait, for the partner to work on what it
// has or for its rates, it has time pass: what is measured is our work and the fake's. In the end the fake must hold nobody.
func BenchmarkPartner(b *testing.B, s Subject, people int) {
	stage := newStage(b, s)
	var enter, leave []activation.Change
	for n := range people {
		p := Somebody(n)
		stage.fake.Seed(p)
		stage.bench.World.Add(p)
		change := activation.Change{Segment: segment, Profile: p.ID, Entered: true, MessageID: "m-1"}
		enter = append(enter, change)
		change.Entered = false
		leave = append(leave, change)
	}
	stage.bench.Dispatch(b, activation.DispatchConfig{})
	stage.rest(b)
	ops := 0
	began := time.Now()
	for b.Loop() {
		for _, changes := range [][]activation.Change{enter, leave} {
			stage.bench.Apply(b, changes...)
			stage.rest(b)
			ops += people
		}
	}
	b.ReportMetric(float64(ops)/time.Since(began).Seconds(), "ops/s")
	if n := len(stage.fake.Members(stage.audience(b))); n > 0 {
		b.Errorf("the partner holds %d people, want none", n)
	}
	stage.check(b)
}

package collector_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// decide has decisions made by decision for each of chosen, and waits until they are done.
func (p *pipeline) decide(chosen map[profiles.Key]profiles.Key, sent int, decision func(root, key profiles.Key) (profiles.Decision, error)) {
	p.t.Helper()
	var routed []collector.Routed
	for key, root := range chosen {
		d, err := decision(root, key)
		if err != nil {
			p.t.Fatalf("%s of %s: %v", key, root, err)
		}
		lane, m := d.Message(1, profilestest.Secret, p.lanes)
		routed = append(routed, collector.Routed{Lane: lane, Message: m})
	}
	p.commit(routed...)
	p.settle(sent)
}

// However people claim each other, an un-merge takes them apart, and a re-merge leaves everything as it was.
func TestARemergeRestoresWhatAnUnmergeTookApart(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 3)
	p.flush(collector.FlushConfig{Node: "one"})
	rng := rand.New(rand.NewPCG(4, 7))
	events, _ := crowds(rng, 40)
	list, sent := p.deliveries(rng, events, nil)
	for _, s := range []int{0, 3} {
		s := profilestest.Segments[s]
		p.segment(fmt.Sprint("s", s.ID), s.Rule)
	}
	p.commit(list...)
	p.settle(sent)
	before := p.people()

	reader := profiles.NewReader(p.pool, p.lanes)
	chosen := map[profiles.Key]profiles.Key{} // one of each crowd
	crowds := map[string]bool{}
	for root := range before {
		person, err := reader.ByID(t.Context(), 1, root)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range person.Fragments {
			_, crowd, _ := strings.Cut(f.Identifier.Value, ".")
			if f.Key != root && !crowds[crowd] {
				crowds[crowd], chosen[f.Key] = true, root
			}
		}
	}
	if len(chosen) < 20 {
		t.Fatalf("only %d identities can be taken out", len(chosen))
	}
	p.decide(chosen, sent, func(root, key profiles.Key) (profiles.Decision, error) {
		return reader.Unmerge(t.Context(), 1, profilestest.Secret, root, key)
	})
	for key, root := range chosen {
		now, err := reader.Root(t.Context(), 1, key)
		if err != nil {
			t.Fatal(err)
		}
		if of, err := reader.Root(t.Context(), 1, root); err != nil || now == of {
			t.Errorf("%s is still one with %s, %v", key, root, err)
		}
		if person, err := reader.ByID(t.Context(), 1, key); err != nil || person.ID != now {
			t.Errorf("%s belongs to %s, but is not there: %v", key, now, err)
		}
	}
	p.decide(chosen, sent, func(root, key profiles.Key) (profiles.Decision, error) {
		return reader.Remerge(t.Context(), 1, profilestest.Secret, root, key)
	})
	if diff := cmp.Diff(before, p.people()); diff != "" {
		t.Errorf("people (-want +got):\n%s", diff)
	}
	if n := one[int](p, `SELECT count(*) FROM transitions WHERE cause = 'unmerge'`); n == 0 {
		t.Error("no membership changed by an un-merge")
	}
}

package profiles_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

func TestManyMessagesThatCannotBeReadCostNoMoreThanTheyAre(t *testing.T) {
	t.Parallel()
	s := newSim(nil, simDefinitions(t), 1)
	// apply returns how long it takes to apply that many messages, of which every second one may be cut off.
	apply := func(n int, cut bool) time.Duration {
		var list []profiles.Message
		for i := range n {
			m := profilestest.Event{ID: fmt.Sprint(i), Type: "track", Event: "Order", Anon: fmt.Sprint("a", i%50), At: profilestest.Start}.Message()
			if cut && i%2 == 1 {
				m.Body = m.Body[:len(m.Body)-1]
			}
			list = append(list, m)
		}
		view := profiles.NewState()
		in := profiles.Input{Lanes: 1, Now: profilestest.Start, Definitions: s.defs, State: view, Messages: list}
		began := time.Now()
		for {
			out, missing := profiles.Step(in)
			if missing == nil {
				if failed := n / 2; cut && (len(out.Failed) != failed || len(out.Archive) != n-failed || len(out.Profiles) != 25) {
					t.Errorf("%d failed, %d archived, %d profiles; want %d, %d and 25", len(out.Failed), len(out.Archive), len(out.Profiles), failed, n-failed)
				}
				return time.Since(began)
			}
			for ref := range missing.Profiles {
				view.Profiles[ref.Key] = nil
			}
			for ref := range missing.Routes {
				view.Routes[ref.Key] = nil
			}
		}
	}
	whole := apply(6000, false)
	if took := apply(6000, true); took > time.Second+10*whole { // if each of them had everything done again, 3,000 times as long
		t.Errorf("it took %v, and %v if all could be read", took, whole)
	}
}

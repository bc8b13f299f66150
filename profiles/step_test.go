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
	var list []profiles.Message
	for i := range 6000 {
		m := profilestest.Event{ID: fmt.Sprint(i), Type: "track", Event: "Order", Anon: fmt.Sprint("a", i%50), At: profilestest.Start}.Message()
		if i%2 == 1 {
			m.Body = m.Body[:len(m.Body)-1]
		}
		list = append(list, m)
	}
	began := time.Now()
	view := profiles.NewState()
	in := profiles.Input{Lanes: 1, Now: profilestest.Start, Definitions: s.defs, State: view, Messages: list}
	for {
		out, missing := profiles.Step(in)
		if missing == nil {
			if len(out.Failed) != 3000 || len(out.Archive) != 3000 || len(out.Profiles) != 25 {
				t.Errorf("%d failed, %d archived, %d profiles; want 3000, 3000 and 25", len(out.Failed), len(out.Archive), len(out.Profiles))
			}
			break
		}
		for ref := range missing.Profiles {
			view.Profiles[ref.Key] = nil
		}
		for ref := range missing.Routes {
			view.Routes[ref.Key] = nil
		}
	}
	if took := time.Since(began); took > 5*time.Second { // 50 ms where it was written
		t.Errorf("it took %v", took)
	}
}

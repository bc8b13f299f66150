package profiles_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// More users claim one identifier than are remembered. Whose it is in the end must still follow from the sets of claims and
// of decisions, in whatever order they come.
func TestWhoseAnIdentifierIsDoesNotDependOnTheOrderWhenClaimsAreForgotten(t *testing.T) {
	t.Parallel()
	defs := simDefinitions(t)
	at := func(i int) time.Time { return profilestest.Start.Add(time.Duration(i) * time.Millisecond) }
	user := func(i int) profiles.Identifier {
		return profiles.Identifier{Kind: profiles.UserID, Value: fmt.Sprint("u", i)}
	}
	for _, shared := range []profiles.Identifier{{Kind: profiles.AnonymousID, Value: "kiosk"}, {Kind: profiles.UserID, Value: "kiosk"}} {
		for voids := range 23 { // of the earliest claims; 20 are remembered
			var h history
			for i := range 30 {
				e := profilestest.Event{ID: fmt.Sprint("m", i), Type: "alias", User: user(i).Value, Previous: shared.Value, At: at(i)}
				if shared.Kind == profiles.AnonymousID {
					e.Type, e.Previous, e.Anon = "identify", "", shared.Value
				}
				h.events = append(h.events, e)
			}
			own := profilestest.Event{ID: "own", Type: "page", User: shared.Value, At: at(99)}
			if shared.Kind == profiles.AnonymousID {
				own.User, own.Anon = "", shared.Value
			}
			h.events = append(h.events, own)
			for i := range voids {
				h.decisions = append(h.decisions, profilestest.Decision{
					ID: fmt.Sprint("d", i), At: at(i), Void: true, Pairs: []profilestest.Claim{{Parent: user(i), Child: shared}},
				})
			}
			want := profilestest.Secret.Key(shared)
			if voids < 20 {
				want = profilestest.Secret.Key(user(voids))
			}
			for seed := range uint64(5) {
				s := newSim(rand.New(rand.NewPCG(seed, uint64(voids))), defs, 3)
				s.run(h)
				if s.broken != "" {
					t.Fatal(s.broken)
				}
				found := profiles.Key{}
				for _, l := range s.lanes {
					for key, p := range l.state.Profiles {
						if p == nil {
							continue
						}
						if _, ok := p.Fragment(profilestest.Secret.Key(shared)); ok {
							found = key
						}
					}
				}
				if found != want {
					t.Errorf("%s with %d of its claims void, seed %d: it is in %s, want %s", shared.Kind, voids, seed, found, want)
				}
			}
		}
	}
}

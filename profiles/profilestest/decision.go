package profilestest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/mubatch/mubatch/profiles"
)

// Decision is one distinct decision on claims, as the naive fold sees it. Its pairs are either all of users or all of one
// visitor.
type Decision struct {
	ID    string
	At    time.Time
	Void  bool
	Pairs []Claim
}

// Claim is who claims whom.
type Claim struct{ Parent, Child profiles.Identifier }

// Message is the decision as the API passes it on, and the lane it goes to.
func (d Decision) Message(lanes int) (lane int, m profiles.Message) {
	out := profiles.Decision{MessageID: d.ID, At: d.At, Void: d.Void, Users: d.Pairs[0].Child.Kind == profiles.UserID}
	for _, c := range d.Pairs {
		out.Key = Secret.Key(c.Child)
		out.Pairs = append(out.Pairs, profiles.Pair{Parent: Secret.Key(c.Parent), Child: out.Key})
	}
	return out.Message(1, Secret, lanes)
}

// voided says which pairs the decisions leave void: the latest on each counts.
func voided(decisions []Decision) map[profiles.Pair]bool {
	sorted := slices.Clone(decisions)
	slices.SortFunc(sorted, func(a, b Decision) int { return before(Event{ID: a.ID, At: a.At}, Event{ID: b.ID, At: b.At}) })
	void := map[profiles.Pair]bool{}
	for _, d := range sorted {
		for _, c := range d.Pairs {
			void[profiles.Pair{Parent: Secret.Key(c.Parent), Child: Secret.Key(c.Child)}] = d.Void
		}
	}
	return void
}

// RandomDecisions makes decisions on a crowd's claims, most of them such as somebody would make, some on claims that
// nobody ever makes.
func RandomDecisions(rng *rand.Rand, events []Event) []Decision {
	var onVisitors, onUsers []Claim
	add := func(parent, child profiles.Identifier) {
		if child.Kind == profiles.UserID {
			onUsers = append(onUsers, Claim{parent, child})
		} else {
			onVisitors = append(onVisitors, Claim{parent, child})
		}
	}
	user := func(v string) profiles.Identifier { return profiles.Identifier{Kind: profiles.UserID, Value: v} }
	anon := func(v string) profiles.Identifier { return profiles.Identifier{Kind: profiles.AnonymousID, Value: v} }
	for _, e := range events {
		if e.User != "" && e.Anon != "" {
			add(user(e.User), anon(e.Anon))
		}
		if e.Type == "alias" {
			add(user(e.User), user(e.Previous))
			add(user(e.User), anon(e.Previous))
		}
		if email, ok := e.Traits["email"].(string); ok && e.MergeOn {
			child := user(e.User)
			if e.User == "" {
				child = anon(e.Anon)
			}
			add(profiles.Identifier{Kind: profiles.Email, Value: email}, child)
		}
	}
	for range 2 {
		add(user("u"+strconv.Itoa(rng.IntN(5))), user("u"+strconv.Itoa(rng.IntN(5))))
		add(user("u"+strconv.Itoa(rng.IntN(5))), anon("a"+strconv.Itoa(rng.IntN(5))))
	}
	var decisions []Decision
	for i := range rng.IntN(9) {
		d := Decision{
			ID: fmt.Sprintf("d%d-%d", i, rng.IntN(1000)), At: Start.Add(time.Duration(rng.IntN(20)) * time.Second), Void: rng.IntN(3) > 0,
		}
		if rng.IntN(2) == 0 {
			for range 1 + rng.IntN(3) {
				d.Pairs = append(d.Pairs, onUsers[rng.IntN(len(onUsers))])
			}
		} else {
			d.Pairs = append(d.Pairs, onVisitors[rng.IntN(len(onVisitors))])
			for range rng.IntN(3) {
				if c := onVisitors[rng.IntN(len(onVisitors))]; c.Child == d.Pairs[0].Child {
					d.Pairs = append(d.Pairs, c)
				}
			}
		}
		decisions = append(decisions, d)
	}
	return decisions
}

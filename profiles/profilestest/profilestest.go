// Package profilestest has what tests of profiles compare with: small crowds that do everything at once, and a naive fold
// over the set of their events that shares no code with the real one.
package profilestest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/mubatch/mubatch/profiles"
)

// Secret is the workspace's.
var Secret = profiles.Secret("a secret of thirty-two bytes ....")

// Start is when the simulated clock starts; event times lie around it.
var Start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Event is one distinct event, as the naive fold sees it.
type Event struct {
	ID         string
	Type       string
	Event      string
	User, Anon string
	Previous   string
	Traits     map[string]any
	Revenue    int
	At         time.Time
	MergeOn    bool
}

// Message is the event as the collector passes it on.
func (e Event) Message() profiles.Message {
	body := map[string]any{"type": e.Type, "messageId": e.ID, "timestamp": e.At.Format("2006-01-02T15:04:05.000Z")}
	set := func(name, value string) {
		if value != "" {
			body[name] = value
		}
	}
	set("event", e.Event)
	set("userId", e.User)
	set("anonymousId", e.Anon)
	set("previousId", e.Previous)
	if e.Traits != nil {
		body["traits"] = e.Traits
	}
	if e.Type == "track" {
		body["properties"] = map[string]any{"revenue": e.Revenue}
	}
	if e.MergeOn {
		body["_mergeOn"] = []string{"email"}
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return profiles.Message{
		Kind: profiles.KindEvent, Workspace: 1, Source: 1, ID: profiles.MessageKey(e.ID), Key: e.primary(), Received: e.At, Body: b,
	}
}

func (e Event) primary() profiles.Key {
	if e.User != "" {
		return userKey(e.User)
	}
	return anonKey(e.Anon)
}

func userKey(v string) profiles.Key {
	return Secret.Key(profiles.Identifier{Kind: "user_id", Value: v})
}

func anonKey(v string) profiles.Key {
	return Secret.Key(profiles.Identifier{Kind: "anonymous_id", Value: v})
}

func emailKey(v string) profiles.Key {
	return Secret.Key(profiles.Identifier{Kind: "email", Value: v})
}

// Segments are the rules and, beside each, what it means in plain Go.
var Segments = []struct {
	ID    int64
	Rule  string
	holds func(p *profile, now time.Time) bool
}{
	{1, `{"trait": "country", "op": "eq", "value": "DE"}`, func(p *profile, _ time.Time) bool {
		return p.traits["country"] == `"DE"`
	}},
	{2, `{"event": "Order", "count": {"gte": 2}, "within": "20s"}`, func(p *profile, now time.Time) bool {
		return p.orders(now.Add(-20*time.Second), 0) >= 2
	}},
	{3, `{"not": {"event": "Order", "within": "15s"}}`, func(p *profile, now time.Time) bool {
		return p.orders(now.Add(-15*time.Second), 0) == 0
	}},
	{4, `{"all": [{"event": "Order", "where": [{"property": "revenue", "op": "gte", "value": 50}], "count": {"gte": 2}},
	              {"not": {"trait": "plan", "op": "exists"}}]}`, func(p *profile, _ time.Time) bool {
		_, plan := p.traits["plan"]
		return p.orders(time.Time{}, 50) >= 2 && !plan
	}},
	{
		5, `{"any": [{"event": "Order", "count": {"eq": 1}, "within": "10s"}, {"trait": "plan", "op": "eq", "value": "pro"}]}`,
		func(p *profile, now time.Time) bool {
			return p.orders(now.Add(-10*time.Second), 0) == 1 || p.traits["plan"] == `"pro"`
		},
	},
}

// Person is what is compared: a profile as anybody outside sees it.
type Person struct {
	Fragments []string
	Traits    map[string]string
	Segments  []int64
}

// profile is a profile folded from the events that belong to it.
type profile struct {
	events []Event
	traits map[string]string
	keys   map[profiles.Key]bool
}

func (p *profile) orders(after time.Time, revenue int) int {
	n := 0
	for _, e := range p.events {
		if e.Type == "track" && e.Event == "Order" && e.Revenue >= revenue && e.At.After(after) {
			n++
		}
	}
	return n
}

// before is the order of claims and writes: by event time, then by the leading bytes of the message's key.
func before(a, b Event) int {
	x, y := profiles.MessageKey(a.ID), profiles.MessageKey(b.ID)
	return cmp.Or(a.At.Compare(b.At), slices.Compare(x[:8], y[:8]))
}

// Fold says who everybody is, from the set of events, the set of decisions on their claims, and the moment.
func Fold(events []Event, now time.Time, decisions ...Decision) map[profiles.Key]Person {
	events = slices.Clone(events)
	slices.SortFunc(events, before)
	void := voided(decisions)

	// One pass in the order of time: the first claim on an identifier stands, unless it would close a circle. Void claims
	// are as if they had never been made.
	type claim struct {
		parent, child profiles.Key
		at            Event
	}
	var claims []claim
	for _, e := range events {
		if e.User != "" && e.Anon != "" {
			claims = append(claims, claim{userKey(e.User), anonKey(e.Anon), e})
		}
		if e.Type == "alias" {
			claims = append(claims, claim{userKey(e.User), anonKey(e.Previous), e}, claim{userKey(e.User), userKey(e.Previous), e})
		}
		if email, ok := e.Traits["email"].(string); ok && e.MergeOn {
			claims = append(claims, claim{emailKey(email), e.primary(), e})
		}
	}
	claims = slices.DeleteFunc(claims, func(c claim) bool { return void[profiles.Pair{Parent: c.parent, Child: c.child}] })
	slices.SortStableFunc(claims, func(a, b claim) int {
		return cmp.Or(before(a.at, b.at), slices.Compare(a.parent[:], b.parent[:]), slices.Compare(a.child[:], b.child[:]))
	})
	parent := map[profiles.Key]profiles.Key{}
	root := func(k profiles.Key) profiles.Key {
		for {
			p, ok := parent[k]
			if !ok {
				return k
			}
			k = p
		}
	}
	for _, c := range claims {
		if _, taken := parent[c.child]; !taken && root(c.parent) != c.child {
			parent[c.child] = c.parent
		}
	}

	people := map[profiles.Key]*profile{}
	person := func(k profiles.Key) *profile {
		p := people[root(k)]
		if p == nil {
			p = &profile{traits: map[string]string{}, keys: map[profiles.Key]bool{}}
			people[root(k)] = p
		}
		return p
	}
	var visitors []profiles.Key
	for _, e := range events {
		p := person(e.primary())
		p.events = append(p.events, e)
		p.keys[e.primary()] = true
		if e.User != "" && e.Anon != "" { // the visitor is somebody, with or without events of its own
			visitors = append(visitors, anonKey(e.Anon))
		}
		if e.Type == "identify" {
			for name, value := range e.Traits {
				if value == nil {
					delete(p.traits, name)
					continue
				}
				b, _ := json.Marshal(value)
				p.traits[name] = string(b)
			}
		}
	}
	for _, visitor := range visitors {
		person(visitor).keys[visitor] = true
	}
	out := map[profiles.Key]Person{}
	for key, p := range people {
		x := Person{Traits: p.traits}
		for k := range p.keys {
			x.Fragments = append(x.Fragments, k.String())
		}
		slices.Sort(x.Fragments)
		for _, s := range Segments {
			if s.holds(p, now) {
				x.Segments = append(x.Segments, s.ID)
			}
		}
		out[key] = x
	}
	return out
}

// RandomEvents makes a small crowd that shares devices, changes names and shops.
func RandomEvents(rng *rand.Rand) []Event {
	n := 1 + rng.IntN(24)
	users, anons := 1+rng.IntN(5), 1+rng.IntN(5)
	mergeOn := rng.IntN(3) == 0
	pick := func(prefix string, n int) string { return prefix + strconv.Itoa(rng.IntN(n)) }
	events := make([]Event, 0, n)
	for i := range n {
		e := Event{ID: fmt.Sprintf("m%d-%d", i, rng.IntN(1000)), At: Start.Add(time.Duration(rng.IntN(40)) * time.Second)}
		switch rng.IntN(3) {
		case 0:
			e.Anon = pick("a", anons)
		case 1:
			e.User = pick("u", users)
		default:
			e.User, e.Anon = pick("u", users), pick("a", anons)
		}
		switch rng.IntN(8) {
		case 0, 1:
			e.Type = "identify"
			e.Traits = map[string]any{}
			for _, name := range []string{"country", "plan"} {
				switch rng.IntN(4) {
				case 0:
					e.Traits[name] = nil
				case 1:
					e.Traits[name] = []string{"DE", "FR", "pro"}[rng.IntN(3)]
				}
			}
			if rng.IntN(2) == 0 {
				e.Traits["email"] = pick("e", 3) + "@example.com"
			}
			e.MergeOn = mergeOn
		case 2, 3:
			e.Type, e.Anon = "alias", ""
			e.User = pick("u", users)
			e.Previous = pick("u", users)
			if rng.IntN(3) == 0 {
				e.Previous = pick("a", anons)
			}
		case 4:
			e.Type = "page"
		default:
			e.Type, e.Event, e.Revenue = "track", "Order", rng.IntN(100)
		}
		events = append(events, e)
	}
	return events
}

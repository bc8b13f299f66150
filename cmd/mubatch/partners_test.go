package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

var (
	partnerSteps = flag.Int("partners.steps", 60, "how much happens in TestPartnersHoldWhomTheyShould")
	partnerSeed  = flag.Uint64("partners.seed", 0, "the seed of TestPartnersHoldWhomTheyShould; by the clock if 0")
)

// TestPartnersHoldWhomTheyShould has memberships, consent and e-mail addresses change at random, visitors become users and
// people be erased, over HTTP, while the server, Redis and Postgres are killed and every partner fails in turn. In the end
// each fake's audiences hold exactly whom they should, known by what they should be known by, and no request was ever wrong:
// none mixed two people's identifiers.
func TestPartnersHoldWhomTheyShould(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	t.Parallel()
	needPrograms(t)
	seed := *partnerSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	v := newVictims(t)
	c := &crowdsourced{rng: rand.New(rand.NewPCG(seed, 0)), fleet: &fleet{at: v.at, fakes: outlets(t), logs: v.logs.text}}
	c.forgetful = func(fn func()) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.server.Process.Kill()
		fn()
	}
	c.prepare(t)

	killing, stop := context.WithCancel(t.Context())
	killed := make(chan map[string]int)
	go func() { killed <- v.kill(killing, 1000) }()
	what := map[string]int{}
	for range *partnerSteps {
		what[c.step(t)]++
		time.Sleep(time.Duration(c.rng.IntN(150)) * time.Millisecond)
	}
	stop()
	count := <-killed
	for _, f := range c.fakes {
		f.Heal()
	}
	t.Logf("%v happened; killed: %v", what, count)
	c.settle(t)
	c.compare(t, c.wanted, c.name)
	if t.Failed() {
		t.Logf("the end of what the server says:\n%s", tail(v.logs.text(), 30))
	}
}

const people = 40

// crowdsourced are people, what is true of them, and the partners that should know.
type crowdsourced struct {
	*fleet
	rng    *rand.Rand
	people [people]*soul
	last   time.Time
}

// soul is one person.
type soul struct {
	n        int
	as       int // by whose address and number the person is known
	id       activation.ProfileID
	known    activation.Person       // by what
	visitors []activation.Identifier // who the person once was
	pro      bool
	orders   int
	consent  map[string]bool
	gone     bool // erased, and not come back
}

var rules = map[string]string{
	"pro":    `{"trait": "plan", "op": "eq", "value": "pro"}`,
	"buyers": `{"event": "Order Completed", "count": {"gte": 2}}`,
}

func (s *soul) in(segment string) bool {
	switch {
	case s.gone:
		return false
	case segment == "pro":
		return s.pro
	default:
		return s.orders >= 2
	}
}

// prepare makes segments and destinations, and makes everybody known.
func (c *crowdsourced) prepare(t *testing.T) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), c.at.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	c.pool = pool
	for key, rule := range rules {
		c.ask(t, http.MethodPost, "segments", map[string]any{"key": key, "name": key, "rule": json.RawMessage(rule)}, new(any))
	}
	for n := range c.people {
		c.people[n] = &soul{n: n, consent: map[string]bool{}}
		c.identify(t, c.people[n], n)
	}
	for n, s := range c.people {
		s.id = c.profile(t, customer(n))
		c.seed(s)
	}
	c.attach(t, slices.Sorted(maps.Keys(rules))...)
}

// wanted is who should be in a segment at a destination: those who should be sent, and whoever an advertising partner cannot
// tell from them, being known by the same address and number.
func (c *crowdsourced) wanted(kind, segment string) (want []activation.ProfileID) {
	sent := func(s *soul) bool { return s.in(segment) && gate(kind).Allows(s.consent) }
	known := map[int]bool{}
	for _, s := range c.people {
		if sent(s) {
			known[s.as] = true
		}
	}
	for _, s := range c.people {
		if sent(s) || kind != "webhook" && !s.gone && known[s.as] {
			want = append(want, s.id)
		}
	}
	return want
}

func (c *crowdsourced) name(id activation.ProfileID) string {
	for _, s := range c.people {
		if s.id == id {
			return customer(s.n)
		}
	}
	return hex.EncodeToString(id[:])
}

func customer(n int) string { return fmt.Sprintf("cust-%d", n) }

func (c *crowdsourced) seed(s *soul) {
	p := s.known
	p.Identifiers = slices.Concat(p.Identifiers, s.visitors)
	p.ID, p.Consent = s.id, s.consent
	for _, fake := range c.fakes {
		fake.Seed(p)
	}
}

// step has something happen to somebody, or to a partner, and returns what.
func (c *crowdsourced) step(t *testing.T) string {
	t.Helper()
	s := c.people[c.rng.IntN(people)]
	switch k := c.rng.IntN(21); {
	case k == 20:
		if s.gone {
			return "nothing"
		}
		c.erase(t, s)
		return "erasures"
	case k < 5:
		s.pro = !s.gone && c.rng.IntN(3) > 0
		if s.gone {
			return "nothing"
		}
		plan := map[bool]string{true: "pro", false: "free"}[s.pro]
		c.send(t, map[string]any{"type": "identify", "userId": customer(s.n), "traits": map[string]any{"plan": plan}})
		return "changes of plan"
	case k < 9:
		if s.gone {
			return "nothing"
		}
		s.orders++
		c.send(t, map[string]any{"type": "track", "event": "Order Completed", "userId": customer(s.n), "properties": map[string]any{"revenue": 9.99}})
		return "orders"
	case k < 12: // often by what somebody else is known by, too
		c.identify(t, s, c.rng.IntN(people+20))
		return "new e-mail addresses"
	case k < 15:
		if s.gone {
			return "nothing"
		}
		s.consent = map[string]bool{
			activation.AdUserData: c.rng.IntN(4) > 0, activation.AdPersonalization: c.rng.IntN(4) > 0, activation.GPC: c.rng.IntN(8) == 0,
		}
		c.send(t, map[string]any{"type": "identify", "userId": customer(s.n), "context": map[string]any{"consent": s.consent}})
		c.seed(s)
		return "decisions"
	case k < 17:
		if s.gone {
			return "nothing"
		}
		// A visitor buys twice, and then turns out to be somebody who is known.
		c.serial++
		visitor := fmt.Sprintf("visitor-%d", c.serial)
		s.visitors = append(s.visitors, activation.Identifier{Kind: "anonymous_id", Value: visitor})
		c.seed(s)
		for range 2 {
			s.orders++
			c.send(t, map[string]any{"type": "track", "event": "Order Completed", "anonymousId": visitor})
		}
		c.send(t, map[string]any{"type": "identify", "userId": customer(s.n), "anonymousId": visitor})
		return "visitors who became users"
	default:
		for _, kind := range slices.Sorted(maps.Keys(c.fakes)) {
			if faults := partnertest.Broken(c.fakes[kind].Words()); c.rng.IntN(3) == 0 {
				c.fakes[kind].Script(faults[c.rng.IntN(len(faults))])
			}
		}
		return "faults"
	}
}

// identify has somebody be known by what the as-th person is otherwise known by, and grant everything anew if nothing was
// known of them.
func (c *crowdsourced) identify(t *testing.T, s *soul, as int) {
	t.Helper()
	p := partnertest.Known(s.n, as)
	traits := map[string]jsontext.Value{}
	maps.Copy(traits, p.Traits)
	traits["plan"] = jsontext.Value(`"free"`)
	if s.pro {
		traits["plan"] = jsontext.Value(`"pro"`)
	}
	if s.gone || len(s.consent) == 0 {
		s.consent = map[string]bool{activation.AdUserData: true, activation.AdPersonalization: true}
	}
	s.gone, s.as = false, as
	p.Identifiers[2].Value = customer(s.n)
	s.known = p
	var empty activation.ProfileID
	if s.id != empty {
		c.seed(s) // before anybody is told
	}
	c.send(t, map[string]any{
		"type": "identify", "userId": customer(s.n), "traits": traits, "context": map[string]any{"consent": s.consent},
	})
}

// erase has somebody forgotten. Whatever others have been known by with the person has to be applied before, or it is taken for
// the person's.
func (c *crowdsourced) erase(t *testing.T, s *soul) {
	t.Helper()
	c.applied(t)
	// While it goes on, a message may tell of the person as of before or as of after: the fakes know both.
	forgotten := *s
	forgotten.visitors, forgotten.known = nil, activation.Person{}
	c.seed(&forgotten)
	c.seed(s)
	var e struct{ ID, Status string }
	c.ask(t, http.MethodPost, "privacy/erasures", map[string]any{
		"identifier": map[string]any{"kind": "user_id", "value": customer(s.n)},
	}, &e)
	for deadline := time.Now().Add(10 * time.Minute); e.Status == "erasing"; time.Sleep(50 * time.Millisecond) {
		if c.ask(t, http.MethodGet, "privacy/erasures/"+e.ID, nil, &e); time.Now().After(deadline) {
			t.Fatalf("after ten minutes %s is not erased", customer(s.n))
		}
	}
	s.gone, s.pro, s.orders, s.visitors, s.consent, s.known = true, false, 0, nil, map[string]bool{}, activation.Person{}
	c.seed(s)
}

// send sends an event, which happens later than all before, until it is acknowledged.
func (c *crowdsourced) send(t *testing.T, event map[string]any) {
	t.Helper()
	now := time.Now().Truncate(time.Millisecond)
	if !now.After(c.last) {
		now = c.last.Add(time.Millisecond)
	}
	c.last = now
	c.serial++
	event["timestamp"], event["messageId"] = now, fmt.Sprintf("m-%d", c.serial)
	c.fleet.send(t, event)
}

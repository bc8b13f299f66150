package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

var (
	partnerSteps = flag.Int("partners.steps", 120, "how much happens in TestPartnersHoldWhomTheyShould")
	partnerSeed  = flag.Uint64("partners.seed", 0, "the seed of TestPartnersHoldWhomTheyShould; by the clock if 0")
)

// outlets are a fake of each partner that mubatch has, by the type of destination.
func outlets(t testing.TB) map[string]partnertest.Fake {
	return map[string]partnertest.Fake{
		"webhook": partnertest.NewReceiver(t),
	}
}

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
	c := &crowdsourced{rng: rand.New(rand.NewPCG(seed, 0)), v: newVictims(t), fakes: outlets(t)}
	c.prepare(t)

	killing, stop := context.WithCancel(t.Context())
	killed := make(chan map[string]int)
	go func() { killed <- c.v.kill(killing, 1000) }()
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
	c.compare(t)
	if t.Failed() {
		t.Logf("the server says:\n%s", c.v.logs.text())
	}
}

const people = 40

// crowdsourced are people, what is true of them, and the partners that should know.
type crowdsourced struct {
	rng      *rand.Rand
	v        *victims
	fakes    map[string]partnertest.Fake
	pool     *pgxpool.Pool
	segments map[string]int64
	people   [people]*soul
	last     time.Time
	serial   int
}

// soul is one person.
type soul struct {
	n        int
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
	pool, err := pgxpool.New(t.Context(), c.v.at.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	c.pool, c.segments = pool, map[string]int64{}
	for key, rule := range rules {
		var made struct{ ID string }
		c.ask(t, http.MethodPost, "segments", map[string]any{"key": key, "name": key, "rule": json.RawMessage(rule)}, &made)
		if c.segments[key], err = strconv.ParseInt(strings.TrimPrefix(made.ID, "seg_"), 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	for n := range c.people {
		c.people[n] = &soul{n: n, consent: map[string]bool{}}
		c.identify(t, c.people[n], n)
	}
	for n, s := range c.people {
		var p struct{ ID string }
		eventually(t, "everybody is known", func() bool {
			return c.v.at.do(t, http.MethodGet, "/api/v1/profiles/user_id:"+customer(n), nil, &p)
		})
		id, err := hex.DecodeString(strings.TrimPrefix(p.ID, "p_"))
		if err != nil || len(id) != len(s.id) {
			t.Fatalf("profile id %q: %v", p.ID, err)
		}
		s.id = activation.ProfileID(id)
		c.seed(s)
	}
	for kind, fake := range c.fakes {
		set := fake.Settings()
		body := map[string]any{
			"key": kind, "name": kind, "type": kind, "config": json.RawMessage(set.Config), "segments": slices.Sorted(maps.Keys(rules)),
		}
		if len(set.Secrets) > 0 {
			body["secrets"] = json.RawMessage(set.Secrets)
		}
		c.ask(t, http.MethodPost, "destinations", body, new(any))
	}
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
	switch k := c.rng.IntN(20); {
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
	s.gone = false
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
	c.persist(t, "/v1/"+event["type"].(string), func(r *http.Request) { r.SetBasicAuth(c.v.at.WriteKey, "") }, http.MethodPost, event, new(any))
}

// ask makes a request of the management API until it is answered.
func (c *crowdsourced) ask(t *testing.T, method, path string, in, out any) {
	t.Helper()
	c.serial++
	key := fmt.Sprintf("once-%d", c.serial)
	c.persist(t, "/api/v1/"+path, func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+c.v.at.SecretKey)
		if method != http.MethodGet {
			r.Header.Set("Idempotency-Key", key)
		}
	}, method, in, out)
}

func (c *crowdsourced) persist(t *testing.T, path string, authorize func(*http.Request), method string, in, out any) {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	once := func() (again bool, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, c.v.at.URL+path, bytes.NewReader(body))
		if err != nil {
			return false, err
		}
		req.Header.Set("Content-Type", "application/json")
		authorize(req)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return true, err
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		switch {
		case err != nil || res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusConflict:
			return true, errors.Join(err, fmt.Errorf("%d %s", res.StatusCode, answer))
		case res.StatusCode >= 300:
			return false, fmt.Errorf("%d %s", res.StatusCode, answer)
		}
		return false, json.Unmarshal(answer, out)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		again, err := once()
		if err == nil {
			return
		}
		if !again || time.Now().After(deadline) {
			t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

// destinationState is what the API says of a destination.
type destinationState struct {
	Status       string
	StatusReason string `json:"status_reason"`
	Segments     []struct {
		SegmentKey string `json:"segment_key"`
		Audience   string
		Filled     bool
		Ready      bool
		WaitingFor string `json:"waiting_for"`
	}
}

// settle waits until everything is applied and nothing waits to be sent. Where there is nothing to do but wait it has time
// pass, for the database and the partners at once, and starts another server, which remembers nothing.
func (c *crowdsourced) settle(t *testing.T) {
	t.Helper()
	applied := time.Now()
	var stats struct {
		AsOf time.Time `json:"as_of"`
	}
	for deadline := time.Now().Add(time.Minute); stats.AsOf.Before(applied); time.Sleep(100 * time.Millisecond) {
		if c.ask(t, http.MethodGet, "stats", nil, &stats); time.Now().After(deadline) {
			t.Fatalf("after a minute what was accepted up to %v is not applied, but up to %v", applied, stats.AsOf)
		}
	}
	sentAgain := map[string]bool{}
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		var waiting []string
		for kind := range c.fakes {
			var d destinationState
			var sum struct{ Pending, Accepted int }
			c.ask(t, http.MethodGet, "destinations/"+kind, nil, &d)
			c.ask(t, http.MethodGet, "destinations/"+kind+"/summary", nil, &sum)
			if d.Status != "active" {
				c.ask(t, http.MethodPost, "destinations/"+kind+"/resume", nil, new(any))
				waiting = append(waiting, fmt.Sprintf("%s was %s: %s", kind, d.Status, d.StatusReason))
				continue
			}
			for _, s := range d.Segments {
				if !s.Filled || !s.Ready {
					waiting = append(waiting, fmt.Sprintf("%s: %s waits for %s", kind, s.SegmentKey, s.WaitingFor))
				}
			}
			if sum.Pending+sum.Accepted > 0 {
				waiting = append(waiting, fmt.Sprintf("%s: %+v", kind, sum))
				continue
			}
			// Whom a partner refused alone, as too large, has failed, or, if it was to be removed, waits for a day.
			if !sentAgain[kind] {
				sentAgain[kind] = true
				c.ask(t, http.MethodPost, "destinations/"+kind+"/replay", map[string]any{}, new(any))
				waiting = append(waiting, kind+": failed ones are sent again")
			}
		}
		if len(waiting) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after three minutes:\n%s\n%s", strings.Join(waiting, "\n"), c.v.logs.text())
		}
		idle, err := partnertest.Idle(t.Context(), c.pool)
		if err != nil {
			t.Fatal(err)
		}
		if idle > 2*time.Second {
			c.v.mu.Lock()
			c.v.server.Process.Kill()
			for _, f := range c.fakes {
				f.Advance(idle)
			}
			err := partnertest.Warp(t.Context(), c.pool, idle)
			c.v.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// compare holds whom the partners hold to what is true.
func (c *crowdsourced) compare(t *testing.T) {
	t.Helper()
	for kind, fake := range c.fakes {
		var d destinationState
		c.ask(t, http.MethodGet, "destinations/"+kind, nil, &d)
		gate := activation.AdGate()
		if kind == "webhook" {
			gate = activation.Gate{}
		}
		for _, s := range d.Segments {
			var want []activation.ProfileID
			for _, p := range c.people {
				if p.in(s.SegmentKey) && gate.Allows(p.consent) {
					want = append(want, p.id)
				}
			}
			slices.SortFunc(want, func(a, b activation.ProfileID) int { return bytes.Compare(a[:], b[:]) })
			audience := partnertest.Audience{Segment: c.segments[s.SegmentKey], ID: s.Audience}
			if diff := cmp.Diff(c.names(want), c.names(fake.Members(audience))); diff != "" {
				t.Errorf("%s holds others than are in %s (-want +got):\n%s", kind, s.SegmentKey, diff)
			}
			if left := fake.Leftovers(audience); len(left) > 0 {
				t.Errorf("%s holds in %s what is right for nobody: %v", kind, s.SegmentKey, left)
			}
		}
		for _, v := range fake.Violations() {
			t.Errorf("%s: violation: %s", kind, v)
		}
		t.Logf("%-20s %d requests", kind, fake.Requests())
	}
}

func (c *crowdsourced) names(ids []activation.ProfileID) []string {
	list := make([]string, 0, len(ids))
	for _, id := range ids {
		name := hex.EncodeToString(id[:])
		for _, s := range c.people {
			if s.id == id {
				name = customer(s.n)
			}
		}
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

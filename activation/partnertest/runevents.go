package partnertest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
)

// orders is how many orders a test is about, and shoppers how many people place them.
const (
	orders   = 40
	shoppers = 8
)

// Order returns the n-th order as it happened at a moment, and what a µbatch says of it. It is for n € and of the person
// n % 8; its message id is "order-n".
func Order(n int, at time.Time) (activation.Event, activation.Happened) {
	at = at.UTC().Truncate(time.Millisecond)
	p := Somebody(n % shoppers)
	e := activation.Event{
		MessageID: fmt.Sprintf("order-%d", n), Type: "track", Name: "Order Completed", Timestamp: at, ReceivedAt: at,
		UserID: fmt.Sprintf("cust-%d", n%shoppers), AnonymousID: fmt.Sprintf("visitor-%d", n%shoppers), Person: p,
		Properties: jsontext.Value(fmt.Sprintf(`{"order_id":"o-%d","total":%d.10,"currency":"EUR",`+
			`"products":[{"product_id":"sku-1","name":"Engine","price":%d.10,"quantity":1}]}`, n, n, n)),
		Context: activation.EventContext{
			Raw: jsontext.Value(fmt.Sprintf(`{"ip":"203.0.113.7","userAgent":"Mozilla/5.0 (X11; Linux x86_64)","locale":"en-US",`+
				`"page":{"url":"https://shop.example/thanks?gclid=g-%d&fbclid=f-%d","title":"Thanks"},`+
				`"fbp":"fb.1.1558571054389.%d","campaign":{"source":"mail"}}`, n%shoppers, n%shoppers, n%shoppers)),
		},
	}
	body := fmt.Sprintf(`{"type":"track","event":%q,"messageId":%q,"userId":%q,"anonymousId":%q,"timestamp":%q,"properties":%s,"context":%s}`,
		e.Name, e.MessageID, e.UserID, e.AnonymousID, at.Format(time.RFC3339Nano), e.Properties, e.Context.Raw)
	return e, activation.Happened{
		Source: 1, Person: p.ID, MessageID: e.MessageID, Type: e.Type, Name: e.Name, At: at, Received: at,
		Properties: e.Properties, Body: []byte(body),
	}
}

// eventStage is a partner that takes events, its fake, and a destination that subscribes to orders of 5 € and more.
type eventStage struct {
	bench   *Bench
	partner activation.EventPartner
	fake    EventFake
	must    map[string]bool // events that must come
	may     map[string]bool // or may, or not
}

const cheapest = 5

func newEventStage(t testing.TB, s EventSubject) *eventStage {
	t.Helper()
	partner, fake := s.New(t)
	st := &eventStage{
		bench: NewBench(t, partner), partner: partner, fake: fake, must: map[string]bool{}, may: map[string]bool{},
	}
	st.bench.Destination(t, "fake", partner.Type(), fake.Settings())
	st.gate(t, activation.AdGate())
	for n := range shoppers {
		st.bench.World.Add(Somebody(n))
		fake.Seed(Somebody(n))
	}
	_, created, err := st.bench.Store.Subscribe(t.Context(), st.bench.Workspace, "fake", "orders", activation.NewSubscription{
		EventFilter: activation.EventFilter{
			Types: []string{"track"}, Names: []string{"Order Completed"},
			Where: jsontext.Value(fmt.Sprintf(`[{"property":"total","op":"gte","value":%d}]`, cheapest)),
		},
	})
	if err != nil || !created {
		t.Fatalf("Subscribe = %v, %v", created, err)
	}
	return st
}

func (s *eventStage) gate(t testing.TB, g activation.Gate) {
	t.Helper()
	if _, err := s.bench.Store.Update(t.Context(), s.bench.Workspace, "fake", activation.Update{Consent: &g}); err != nil {
		t.Fatal(err)
	}
}

// order has orders placed, of which the lanes know what their people have decided, unless they do not.
func (s *eventStage) order(t testing.TB, from, to int, known bool) {
	t.Helper()
	s.orderAt(t, from, to, known, time.Now())
}

func (s *eventStage) orderAt(t testing.TB, from, to int, known bool, at time.Time) {
	t.Helper()
	var all []activation.Happened
	for n := from; n < to; n++ {
		e, h := Order(n, at)
		p, there := s.bench.World.Whose(h.Person)
		if there {
			e.Person = p
		}
		if h.Known = known; known {
			h.Consent = p.Consent
		}
		s.fake.Expect(e)
		all = append(all, h)
		allowed := there && activation.AdGate().Allows(p.Consent)
		switch {
		case n < cheapest:
		case allowed:
			s.must[e.MessageID] = true
		case !known:
			s.may[e.MessageID] = true
		}
	}
	s.bench.Happen(t, all...)
}

func (s *eventStage) sleep(t testing.TB, d time.Duration) {
	t.Helper()
	s.bench.Warp(t, d, s.fake)
}

func (s *eventStage) await(t testing.TB, what string, is func() bool) {
	t.Helper()
	s.bench.await(t, what, func(d time.Duration) { s.sleep(t, d) }, is)
}

func (s *eventStage) summary(t testing.TB) activation.EventSummary {
	t.Helper()
	sum, _, err := s.bench.Store.EventSummaries(t.Context(), s.bench.Workspace, "fake")
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// rest waits until nothing is under way.
func (s *eventStage) rest(t testing.TB) (sum activation.EventSummary) {
	t.Helper()
	s.await(t, "no event is under way", func() bool {
		sum = s.summary(t)
		return sum.Waiting == 0 && sum.Accepted == 0
	})
	return sum
}

// settle waits for rest and holds what the fake has to what it should.
func (s *eventStage) settle(t testing.TB) activation.EventSummary {
	t.Helper()
	sum := s.rest(t)
	if sum.Failed != 0 || sum.Parked != 0 || sum.Expired != 0 {
		t.Errorf("at rest the ledger says %+v", sum)
	}
	s.compare(t)
	return sum
}

func (s *eventStage) compare(t testing.TB) {
	t.Helper()
	got := slices.DeleteFunc(s.fake.Received(), func(id string) bool { return s.may[id] && !s.must[id] })
	if diff := cmp.Diff(slices.Sorted(maps.Keys(s.must)), got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the events that came (-want +got):\n%s", diff)
	}
	for _, v := range s.fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

func (s *eventStage) replay(t testing.TB) int64 {
	t.Helper()
	n, err := s.bench.Store.Replay(t.Context(), s.bench.Workspace, "fake", activation.Replay{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (s *eventStage) resume(t testing.TB) {
	t.Helper()
	if _, err := s.bench.Store.Resume(t.Context(), s.bench.Workspace, "fake"); err != nil {
		t.Fatal(err)
	}
}

func (s *eventStage) awaitPaused(t testing.TB) {
	t.Helper()
	s.await(t, "the destination is paused", func() bool {
		d, err := s.bench.Store.Get(t.Context(), s.bench.Workspace, "fake")
		if err != nil {
			t.Fatal(err)
		}
		return d.Status == activation.Paused && d.StatusReason != ""
	})
}

// decide has a person decide on advertising.
func (s *eventStage) decide(n int, granted bool) {
	p := Somebody(n)
	p.Consent = map[string]bool{activation.AdUserData: granted, activation.AdPersonalization: granted}
	s.bench.World.Add(p)
	s.fake.Seed(p)
}

// RunEvents has a partner that takes events live through everything that can go wrong. At rest every event that should be
// there is there, once by the partner's own count, and none that should not.
func RunEvents(t *testing.T, s EventSubject) {
	partner, fake := s.New(t)
	words, limits := fake.Words(), partner.Limits(activation.Target{Settings: fake.Settings()})
	if limits.Events == 1 || limits.Events == 0 && limits.Members <= 1 || limits.OnePerson { // what cannot be split is refused for good
		words.TooLarge = Fault{Status: 503}
	}
	for name, script := range faults(words) {
		if s.Brief {
			break
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stage := newEventStage(t, s)
			stage.fake.Script(script...)
			stage.order(t, 0, orders/2, true)
			stage.bench.Dispatch(t, activation.DispatchConfig{})
			time.Sleep(50 * time.Millisecond)
			stage.order(t, orders/2, orders, true)
			if stage.rest(t).Failed > 0 { // one that was alone in a message that was too large
				if _, err := stage.bench.Store.Replay(t.Context(), stage.bench.Workspace, "fake", activation.Replay{}); err != nil {
					t.Fatal(err)
				}
			}
			stage.settle(t)
			for n := 1; stage.fake.Scripted() > 0 && n < 6; n++ {
				stage.order(t, n*orders, n*orders+10, true)
				stage.settle(t)
			}
			if n := stage.fake.Scripted(); n > 0 {
				t.Errorf("%d faults did not happen", n)
			}
		})
	}
	if f := words.Forbidden; f.Status != 0 || f.Body != "" {
		t.Run("a missing permission pauses the destination until somebody mends it", func(t *testing.T) {
			t.Parallel()
			stage := newEventStage(t, s)
			stage.fake.Script(f.times(1000))
			stage.order(t, 0, orders, true)
			stage.bench.Dispatch(t, activation.DispatchConfig{})
			stage.awaitPaused(t)
			stage.fake.Heal()
			stage.resume(t)
			stage.settle(t)
		})
	}
	if !s.Silent {
		t.Run("a revoked credential pauses the destination until somebody resumes it", func(t *testing.T) {
			t.Parallel()
			stage := newEventStage(t, s)
			stage.fake.Revoke()
			stage.order(t, 0, orders, true)
			stage.bench.Dispatch(t, activation.DispatchConfig{})
			stage.awaitPaused(t)
			asked := stage.fake.Requests()
			stage.order(t, orders, 2*orders, true)
			time.Sleep(300 * time.Millisecond)
			if n := stage.fake.Requests() - asked; n > 8 { // what was under way
				t.Errorf("%d requests came after the credential was refused", n)
			}
			stage.fake.Heal()
			stage.resume(t)
			stage.settle(t)
		})
	}
	if _, ok := fake.(Expirer); ok {
		t.Run("an access token that ends is refreshed once, and nothing is lost", func(t *testing.T) {
			t.Parallel()
			stage := newEventStage(t, s)
			stage.order(t, 0, orders/2, true)
			stage.bench.Dispatch(t, activation.DispatchConfig{})
			stage.settle(t)
			token := stage.fake.(Expirer)
			before := token.Refreshes()
			token.Expire()
			stage.order(t, orders/2, orders, true)
			stage.settle(t)
			if n := token.Refreshes() - before; n != 1 {
				t.Errorf("the token was refreshed %d times, want once", n)
			}
		})
	}
	if !s.Silent {
		t.Run("one event that is refused keeps no other out", func(t *testing.T) {
			t.Parallel()
			stage := newEventStage(t, s)
			const bad = "order-17"
			stage.fake.RefuseEvent(bad, true)
			stage.order(t, 0, orders, true)
			delete(stage.must, bad)
			stage.bench.Dispatch(t, activation.DispatchConfig{})
			if sum := stage.rest(t); sum.Failed != 1 || sum.Sent != orders-cheapest-1 {
				t.Errorf("at rest the ledger says %+v, want 1 failed and all others sent", sum)
			}
			stage.compare(t)
			stage.fake.RefuseEvent(bad, false)
			stage.must[bad] = true
			if n := stage.replay(t); n != 1 {
				t.Errorf("Replay of what failed = %d, want 1", n)
			}
			stage.settle(t)
		})
	}
	t.Run("two dispatchers share the work", func(t *testing.T) {
		t.Parallel()
		stage := newEventStage(t, s)
		stage.fake.Script(Fault{Times: 3, Status: 500, Apply: true}, Fault{Reset: true, Apply: true})
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		for n := range 5 {
			stage.order(t, n*orders, (n+1)*orders, true)
		}
		sum := stage.settle(t)
		if want := int64(5*orders - cheapest); sum.Sent != want {
			t.Errorf("%d events count as sent, want %d: each once", sum.Sent, want)
		}
	})
	t.Run("a dispatcher that is stopped and started again loses nothing", func(t *testing.T) {
		t.Parallel()
		stage := newEventStage(t, s)
		for n := range 4 {
			stage.fake.Script(Fault{Times: 2, Delay: 400 * time.Millisecond, Apply: true})
			stop := stage.bench.Dispatch(t, activation.DispatchConfig{})
			stage.order(t, n*orders, n*orders+10, true)
			time.Sleep(50 * time.Millisecond)
			stop()
		}
		stage.fake.Heal()
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
	})
	t.Run("an event that comes again is sent once", func(t *testing.T) {
		t.Parallel()
		stage := newEventStage(t, s)
		at := time.Now()
		stage.orderAt(t, 0, orders, true, at)
		stage.orderAt(t, 0, orders, true, at)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
		stage.orderAt(t, 0, orders, true, at)
		if sum := stage.settle(t); sum.Sent != orders-cheapest {
			t.Errorf("%d events count as sent, want %d", sum.Sent, orders-cheapest)
		}
	})
	t.Run("nothing is sent of who has not consented", func(t *testing.T) {
		t.Parallel()
		stage := newEventStage(t, s)
		stage.decide(1, false)
		stage.decide(2, false)
		stage.order(t, 0, orders/2, true) // denied at once
		early := stage.summary(t)
		stage.order(t, orders/2, orders, false) // found out before it is sent
		for n := cheapest; n < orders; n++ {    // withdrawn before it is sent
			if n%shoppers == 3 {
				delete(stage.must, fmt.Sprintf("order-%d", n))
			}
		}
		stage.decide(3, false)
		clear(stage.may)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		sum := stage.settle(t)
		if sum.Sent+sum.Denied != orders-cheapest || sum.Sent != int64(len(stage.must)) {
			t.Errorf("at rest the ledger says %+v, want %d sent and the rest denied", sum, len(stage.must))
		}
		var want int64
		for n := cheapest; n < orders/2; n++ {
			if n%shoppers == 1 || n%shoppers == 2 {
				want++
			}
		}
		if early.Denied != want {
			t.Errorf("%d events were denied at once, want %d", early.Denied, want)
		}
	})
	t.Run("consent that is withdrawn between two attempts counts", func(t *testing.T) {
		t.Parallel()
		stage := newEventStage(t, s)
		stage.fake.Script(Fault{Times: 1000, Status: 503})
		stage.order(t, 0, orders, true)
		stop := stage.bench.Dispatch(t, activation.DispatchConfig{})
		asked := stage.fake.Requests()
		stage.await(t, "something was tried", func() bool { return stage.fake.Requests() > asked })
		stop()
		stage.decide(4, false)
		for n := cheapest; n < orders; n++ {
			if n%shoppers == 4 {
				delete(stage.must, fmt.Sprintf("order-%d", n))
			}
		}
		stage.fake.Heal()
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
	})
	t.Run("nothing is sent of who was forgotten", func(t *testing.T) {
		t.Parallel()
		stage := newEventStage(t, s)
		stage.fake.Script(Fault{Times: 1000, Status: 503})
		stage.order(t, 0, orders, true)
		stop := stage.bench.Dispatch(t, activation.DispatchConfig{})
		asked := stage.fake.Requests()
		stage.await(t, "something was tried", func() bool { return stage.fake.Requests() > asked })
		stop()
		stage.forget(t, 5)
		for n := cheapest; n < orders; n++ {
			if n%shoppers == 5 {
				delete(stage.must, fmt.Sprintf("order-%d", n))
			}
		}
		stage.fake.Heal()
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
	})
	t.Run("events of who was merged are sent as the surviving profile's", func(t *testing.T) {
		t.Parallel()
		stage := newEventStage(t, s)
		visitor := Profile(100)
		stage.bench.World.Become(visitor, Profile(6))
		var all []activation.Happened
		for n := range orders {
			e, h := Order(n, time.Now())
			h.Person, e.Person = visitor, Somebody(6)
			stage.fake.Expect(e)
			if all = append(all, h); n >= cheapest {
				stage.must[e.MessageID] = true
			}
		}
		stage.bench.Happen(t, all...)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		stage.settle(t)
	})
	t.Run("an event waits for a person whose profile is still on its way", func(t *testing.T) {
		t.Parallel()
		stage := newEventStage(t, s)
		stage.bench.World.Remove(Profile(7))
		stage.order(t, 0, orders, false)
		stage.bench.Dispatch(t, activation.DispatchConfig{})
		Eventually(t, "the others were sent", func() bool { // without having time pass
			sum := stage.summary(t)
			return sum.Sent+sum.Accepted == int64(len(stage.must))
		})
		stage.bench.World.Add(Somebody(7))
		for n := cheapest; n < orders; n++ {
			stage.must[fmt.Sprintf("order-%d", n)] = true
		}
		stage.settle(t)
	})
	if limits.MaxAge > 0 {
		t.Run("an event that is older than the partner takes is given up", func(t *testing.T) {
			t.Parallel()
			stage := newEventStage(t, s)
			stage.orderAt(t, orders, orders+10, true, time.Now().Add(-limits.MaxAge-time.Hour))
			clear(stage.must)
			stage.order(t, 0, orders, true)
			stage.bench.Dispatch(t, activation.DispatchConfig{})
			if sum := stage.rest(t); sum.Expired != 10 || sum.Sent != orders-cheapest {
				t.Errorf("at rest the ledger says %+v, want 10 expired", sum)
			}
			stage.compare(t)
		})
	}
	t.Run("whatever happens in whatever order, it ends as it should", func(t *testing.T) {
		t.Parallel()
		RandomEvents(t, s, rand.Uint64())
	})
}

// forget has a person forgotten.
func (s *eventStage) forget(t testing.TB, n int) {
	t.Helper()
	s.bench.World.Remove(Profile(n))
	err := pgx.BeginFunc(t.Context(), s.bench.Pool, func(tx pgx.Tx) error {
		return s.bench.Ledger.ForgetEvents(t.Context(), tx, Lane(Profile(n)), s.bench.Workspace, []activation.ProfileID{Profile(n)})
	})
	if err != nil {
		t.Fatal(err)
	}
	var left int
	const query = `SELECT count(*) FROM conversions WHERE person = $1 AND status NOT IN ('claimed', 'accepted')`
	if err := s.bench.Pool.QueryRow(t.Context(), query, Profile(n)).Scan(&left); err != nil || left > 0 {
		t.Errorf("%d rows are left of who was forgotten (%v)", left, err)
	}
}

// RandomEvents has orders placed, again and by people who decide otherwise, the partner fail and dispatchers die, at random,
// and compares in the end. The seed is logged.
func RandomEvents(t testing.TB, s EventSubject, seed uint64) {
	t.Helper()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	stage := newEventStage(t, s)
	b := stage.bench
	broken := []Fault{
		{Status: 500},
		{Status: 503, Apply: true},
		{Reset: true},
		{Reset: true, Apply: true},
		{Close: true},
		{Delay: 200 * time.Millisecond, Apply: true},
	}
	granted := [shoppers]bool{}
	for n := range granted {
		granted[n] = true
	}
	next := cheapest
	die := b.Mortal(t)
	stop := b.Dispatch(t, activation.DispatchConfig{})
	steps := s.Steps
	if steps == 0 {
		steps = 60
	}
	for range steps {
		switch k := rng.IntN(20); {
		case k < 8:
			from := next
			if rng.IntN(4) == 0 && next > cheapest+10 { // some again, some of which may have been denied
				from -= rng.IntN(10)
			}
			first := next
			next += 1 + rng.IntN(8)
			stage.again(t, from, first)
			stage.order(t, first, next, rng.IntN(2) == 0)
		case k < 11: // somebody decides: what has not been sent may be, or not
			n := rng.IntN(shoppers)
			granted[n] = !granted[n]
			for id := range stage.must {
				var of int
				if _, err := fmt.Sscanf(id, "order-%d", &of); err == nil && of%shoppers == n {
					delete(stage.must, id)
					stage.may[id] = true
				}
			}
			stage.decide(n, granted[n])
		case k < 15:
			stage.fake.Script(broken[rng.IntN(len(broken))])
		case k < 16:
			stop()
			stop = b.Dispatch(t, activation.DispatchConfig{})
		case k < 17:
			die()
			die = b.Mortal(t)
		default:
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
		}
	}
	stop()
	die()
	stage.fake.Heal()
	b.Dispatch(t, activation.DispatchConfig{})
	sum := stage.settle(t)
	// Who withdraws consent while nobody knows whether an event arrived is denied, though it may have.
	if n := len(stage.must); sum.Sent < int64(n) {
		t.Errorf("%d events had to come and %d count as sent", n, sum.Sent)
	}
}

// again has orders come once more that were placed before.
func (s *eventStage) again(t testing.TB, from, to int) {
	t.Helper()
	var all []activation.Happened
	for n := from; n < to; n++ {
		_, h := Order(n, time.Now())
		if id := h.MessageID; !s.must[id] {
			continue // it may have been denied, and would be heard of for the first time
		}
		all = append(all, h)
	}
	if n := s.bench.Happen(t, all...); n > 0 {
		t.Errorf("%d events were enqueued for the second time", n)
	}
}

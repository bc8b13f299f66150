package profiles_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/webhook"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// subscribe has a destination told of orders of 50 and more, behind a gate.
func subscribe(t testing.TB, pool *pgxpool.Pool, lanes int, gate activation.Gate) *activation.Store {
	t.Helper()
	ring, _, err := activation.NewKeyRing()
	if err != nil {
		t.Fatal(err)
	}
	outbound := activation.Outbound{AllowPrivate: true}
	store := activation.NewStore(pool, ring, lanes, webhook.New(activation.NewClient(outbound), outbound))
	_, _, err = store.Create(t.Context(), 1, activation.NewDestination{
		Key: "crm", Type: "webhook", Consent: &gate, Settings: activation.Settings{Config: jsontext.Value(`{"url":"http://localhost/"}`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = store.Subscribe(t.Context(), 1, "crm", "orders", activation.NewSubscription{
		EventFilter: activation.EventFilter{
			Names: []string{"Order"}, Where: jsontext.Value(`[{"property":"revenue","op":"gte","value":50}]`),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// However events are cut into batches, sent again, and spread over lanes, and whoever people become by them, activation is
// handed each event that a subscription selects once, and knows whose it is in the end.
func TestEventsAreHandedOverOnce(t *testing.T) {
	t.Parallel()
	for range 3 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 0))
			c := newCrew(t, 4)
			subscribe(t, c.pool, 4, activation.Gate{})
			var want []string
			var sent []profilestest.Event
			for n := range 80 {
				e := profilestest.Event{
					ID: fmt.Sprint("e", n), Type: "track", Event: "Order", Revenue: rng.IntN(100), Anon: fmt.Sprint("a", rng.IntN(6)),
					At: profilestest.Start.Add(time.Duration(n) * time.Second),
				}
				switch rng.IntN(5) {
				case 0:
					e.Event = "Viewed"
				case 1: // the visitor becomes a user
					e.User = fmt.Sprint("u", rng.IntN(3))
				}
				if e.Event == "Order" && e.Revenue >= 50 {
					want = append(want, e.ID)
				}
				sent = append(sent, e)
				c.send(e)
				if rng.IntN(3) == 0 {
					c.send(sent[rng.IntN(len(sent))])
				}
				if rng.IntN(3) == 0 {
					c.apply(rng.IntN(4))
				}
			}
			c.settle()
			const query = `SELECT message_id, person FROM conversions WHERE status = 'pending'`
			whose := map[string][16]byte{}
			var id string
			var person [16]byte
			rows, _ := c.pool.Query(t.Context(), query)
			_, err := pgx.ForEachRow(rows, []any{&id, &person}, func() error {
				whose[id] = person
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			var keys [][16]byte
			for id, person := range whose {
				got, keys = append(got, id), append(keys, person)
			}
			slices.Sort(got)
			slices.Sort(want)
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("the events handed over (-want +got):\n%s", diff)
			}
			people, err := c.store.PeopleOf(t.Context(), 1, keys)
			if err != nil {
				t.Fatal(err)
			}
			reader := profiles.NewReader(c.pool, 4)
			for id, key := range whose {
				p, err := reader.ByID(t.Context(), 1, profiles.Key(key))
				if err != nil {
					t.Fatal(err)
				}
				if people[key].ID != activation.ProfileID(p.ID) {
					t.Errorf("%s is said to be of %x, want %x", id, people[key].ID, p.ID)
				}
			}
		})
	}
}

// What the event itself says of consent is known wherever it is applied; what the person has decided, in the person's lane.
func TestEventsOfWhoHasNotConsentedAreNotKept(t *testing.T) {
	t.Parallel()
	_, pool := newStore(t, 1)
	store := subscribe(t, pool, 1, activation.AdGate())
	lane, s := openOne(t, pool)
	const granted, denied = `{"ad_user_data":true,"ad_personalization":true}`, `{"ad_user_data":false}`
	for n, step := range []struct {
		user, consent string
		sent, denied  int64
	}{
		{"ada", "", 0, 1},             // nobody has asked
		{"ada", granted, 1, 1},        // with the event itself
		{"ada", "", 2, 1},             // which holds from then on
		{"ada", denied, 2, 2},         // until it is withdrawn
		{"eve", `{"gpc":true}`, 2, 3}, // a signal says no
	} {
		e := profilestest.Event{
			ID: fmt.Sprint("m", n), Type: "track", Event: "Order", Revenue: 50, User: step.user,
			At: profilestest.Start.Add(time.Duration(n) * time.Second),
		}
		m := e.Message()
		if step.consent != "" {
			m.Body = append([]byte(`{"context":{"consent":`+step.consent+`},`), m.Body[1:]...)
		}
		_, err := lane.Apply(t.Context(), profiles.Batch{Until: profiles.Offset{Ms: uint64(n + 1)}, Messages: []profiles.Message{m}})
		if err != nil {
			t.Fatal(err)
		}
		sum, _, err := store.EventSummaries(t.Context(), 1, "crm")
		if err != nil {
			t.Fatal(err)
		}
		if sum.Waiting != step.sent || sum.Denied != step.denied {
			t.Errorf("after event %d the summary is %+v, want %d waiting and %d denied", n, sum, step.sent, step.denied)
		}
	}
	var latest []string
	err := s.LatestEvents(t.Context(), 1, func(h activation.Happened) bool {
		latest = append(latest, h.MessageID)
		return len(latest) < 3
	})
	if diff := gocmp.Diff([]string{"m4", "m3", "m2"}, latest); err != nil || diff != "" {
		t.Errorf("LatestEvents: %v (-want +got):\n%s", err, diff)
	}
	// From the moment that a subscription is gone nothing is kept.
	if err := store.Unsubscribe(t.Context(), 1, "crm", "orders", 0); err != nil {
		t.Fatal(err)
	}
	m := profilestest.Event{ID: "late", Type: "track", Event: "Order", Revenue: 50, User: "bob", At: profilestest.Start}.Message()
	if _, err := lane.Apply(t.Context(), profiles.Batch{Until: profiles.Offset{Ms: 99}, Messages: []profiles.Message{m}}); err != nil {
		t.Fatal(err)
	}
	sum, _, err := store.EventSummaries(t.Context(), 1, "crm")
	if want := (activation.EventSummary{Denied: 3, Forgotten: 2}); err != nil || sum != want {
		t.Errorf("in the end the summary is %+v (%v), want %+v", sum, err, want)
	}
}

// openOne opens the only lane of a store.
func openOne(t testing.TB, pool *pgxpool.Pool) (*profiles.Lane, *profiles.Store) {
	t.Helper()
	s := profiles.NewStore(pool, profiles.Config{Lanes: 1}, activation.NewLedger(prometheus.NewRegistry()), func() {}, slog.New(slog.DiscardHandler))
	lane, err := s.Open(t.Context(), claim(t, s, "one", time.Hour)[0])
	if err != nil {
		t.Fatal(err)
	}
	return lane, s
}

// BenchmarkApplyEvents applies µbatches of 1,000 events to a lane of 10,000 people: with no subscription, and with one that
// selects a tenth of the events.
func BenchmarkApplyEvents(b *testing.B) {
	const people, size = 10_000, 1000
	for _, subscribed := range []bool{false, true} {
		b.Run(fmt.Sprintf("subscribed=%v", subscribed), func(b *testing.B) {
			l := newBenchLane(b, nil)
			l.populate(people, ordered)
			if subscribed {
				subscribe(b, l.pool, 1, activation.Gate{})
			}
			l.settle()
			l.apply(b, size, func() int { return l.rng.IntN(people) }, func(e *profilestest.Event) {
				ordered(e)
				e.Revenue /= 2
				if l.sent%10 == 0 {
					e.Revenue += 50
				}
			})
		})
	}
}

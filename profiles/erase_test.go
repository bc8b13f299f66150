package profiles_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// village is some people, each with two user ids, three devices and an address, who have nothing to do with each other.
type village struct {
	rng     *rand.Rand
	mergeOn bool
	n       int
	events  map[string]profilestest.Event
}

// event makes one more event of a person.
func (w *village) event(person int, at time.Time) profilestest.Event {
	pick := func(names ...string) string { return fmt.Sprint(person, names[w.rng.IntN(len(names))]) }
	w.n++
	e := profilestest.Event{ID: fmt.Sprint("m", w.n), At: at}
	switch w.rng.IntN(7) {
	case 0:
		e.Type, e.User, e.Previous = "alias", pick("u"), pick("w", "a", "c")
	case 1, 2:
		e.Type, e.User, e.MergeOn = "identify", pick("u", "w"), w.mergeOn
		e.Traits = map[string]any{"email": fmt.Sprint("e", person, "@example.com"), "plan": pick("x", "y")}
	case 3:
		e.Type, e.Anon = "page", pick("a", "b", "c")
	default:
		e.Type, e.Event = "track", "Order"
		if e.User = pick("u", "w"); w.rng.IntN(2) == 0 {
			e.User = ""
		}
	}
	if e.Type != "alias" && (e.User == "" || w.rng.IntN(3) == 0) {
		if e.Anon = pick("c"); strings.HasSuffix(e.User, "u") || e.User == "" {
			e.Anon = pick("a", "b")
		}
	}
	w.events[e.ID] = e
	return e
}

func (w *village) identifier(person int) profiles.Identifier {
	return []profiles.Identifier{
		{Kind: profiles.UserID, Value: fmt.Sprint(person, "u")},
		{Kind: profiles.UserID, Value: fmt.Sprint(person, "w")},
		{Kind: profiles.AnonymousID, Value: fmt.Sprint(person, "a")},
		{Kind: profiles.Email, Value: fmt.Sprint("e", person, "@example.com")},
	}[w.rng.IntN(4)]
}

func (c *crew) erase(id profiles.Identifier) profiles.Erasure {
	c.t.Helper()
	e, _, err := profiles.NewErasures(c.pool, len(c.lanes), keys).Ask(c.t.Context(), 1, profilestest.Secret, profiles.NewErasure{
		Kind: id.Kind, Key: profilestest.Secret.Key(id),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return e
}

// finish lets the lanes and whoever sees erasures through work until one is complete, and returns whose it was.
func (c *crew) finish(id int64) (profiles.Erasure, map[profiles.Key]bool) {
	c.t.Helper()
	own := map[profiles.Key]bool{}
	for deadline := time.Now().Add(time.Minute); ; {
		c.settle()
		for _, l := range c.lanes {
			if err := l.Tidy(c.t.Context()); err != nil {
				c.t.Fatal(err)
			}
		}
		rows, _ := c.pool.Query(c.t.Context(), `SELECT key FROM erasure_keys WHERE erasure_id = $1 AND role IN (1, 2)`, id)
		found, err := pgx.CollectRows(rows, pgx.RowTo[profiles.Key])
		for _, key := range found {
			own[key] = true
		}
		if err == nil {
			err = c.store.SettleErasures(c.t.Context())
		}
		if err != nil {
			c.t.Fatal(err)
		}
		e, err := profiles.NewErasures(c.pool, len(c.lanes), keys).Get(c.t.Context(), 1, id)
		if err != nil {
			c.t.Fatal(err)
		}
		if e.CompletedAt != nil {
			return e, own
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the erasure does not end: %+v", e)
		}
	}
}

// archived returns the events that are left.
func (c *crew) archived(known map[string]profilestest.Event) (left []profilestest.Event) {
	c.t.Helper()
	rows, _ := c.pool.Query(c.t.Context(), `SELECT payload FROM events`)
	payloads, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range payloads {
		e, err := profiles.DecodeEvent(p)
		if err != nil {
			c.t.Fatal(err)
		}
		left = append(left, known[e.MessageID])
	}
	return left
}

// everybody returns all profiles as the naive fold has them, but for segments.
func (c *crew) everybody() map[profiles.Key]profilestest.Person {
	c.t.Helper()
	rows, _ := c.pool.Query(c.t.Context(), `SELECT id, state FROM profiles`)
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*profiles.Profile, error) {
		var id profiles.Key
		var state []byte
		if err := row.Scan(&id, &state); err != nil {
			return nil, err
		}
		return profiles.DecodeProfile(id, 1, state)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	all := map[profiles.Key]profilestest.Person{}
	for _, p := range list {
		x := profilestest.Person{Traits: map[string]string{}}
		for _, f := range p.Fragments {
			x.Fragments = append(x.Fragments, f.Key.String())
		}
		slices.Sort(x.Fragments)
		for _, t := range p.Merged().Traits {
			x.Traits[t.Name] = string(t.Value)
		}
		all[p.ID] = x
	}
	return all
}

// However an erasure falls between events, builds, crashes and what comes late or twice, it leaves what the naive fold
// makes of the events that are left, and nothing old of who was forgotten is among them.
func TestAnErasureLeavesWhatNeverWasTheirs(t *testing.T) {
	t.Parallel()
	var suppressed int64
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 12))
			const people, lanes = 3, 5
			c := newCrew(t, lanes)
			w := &village{rng: rng, mergeOn: rng.IntN(2) == 0, events: map[string]profilestest.Event{}}
			at := func() time.Time { return profilestest.Start.Add(time.Duration(rng.IntN(1000)) * time.Second) }
			busy := func() {
				for range rng.IntN(12) {
					lane := rng.IntN(lanes)
					switch rng.IntN(12) {
					case 0:
						c.open(lane) // as after a crash: what it had told others is told again
					case 1, 2, 3, 4:
						_, out := c.build(lane)
						c.publish(out)
					case 5:
						if err := c.store.SettleErasures(t.Context()); err != nil {
							t.Fatal(err)
						}
					default:
						c.apply(lane)
					}
				}
			}
			c.create("buyers", `{"event":"Order"}`)
			var old []profilestest.Event
			for range 40 + rng.IntN(40) {
				old = append(old, w.event(rng.IntN(people), at()))
			}
			asked, edited := rng.IntN(len(old)), rng.IntN(len(old))
			id := w.identifier(0)
			var erasure profiles.Erasure
			for i, e := range old {
				if i == asked {
					erasure = c.erase(id)
					if again := c.erase(id); again.ID != erasure.ID {
						t.Errorf("asked again, it is %d, not %d", again.ID, erasure.ID)
					}
				}
				if i == edited {
					c.create("regulars", `{"event":"Order","count":{"gte":2}}`)
				}
				c.send(e)
				if rng.IntN(4) == 0 {
					busy()
				}
			}
			proof, own := c.finish(erasure.ID)

			// What comes late or twice changes nothing.
			before := c.everybody()
			for range 10 {
				c.send(old[rng.IntN(len(old))])
				if rng.IntN(3) == 0 {
					busy()
				}
			}
			c.settle()
			if diff := cmp.Diff(before, c.everybody()); diff != "" {
				t.Errorf("copies changed something (-before +after):\n%s", diff)
			}
			key := profilestest.Secret.Key(id)
			for root, p := range before {
				if root == key || slices.Contains(p.Fragments, key.String()) {
					t.Errorf("%s is still there, as of %s", id, root)
				}
			}
			for _, e := range c.archived(w.events) {
				if id.Kind == profiles.UserID && (e.User == id.Value || e.Previous == id.Value) || id.Kind == profiles.AnonymousID && e.User == "" && e.Anon == id.Value {
					t.Errorf("event %s is still there: %+v", e.ID, e)
				}
			}

			// Who comes back begins anew.
			for i := range 20 {
				c.send(w.event(rng.IntN(people), time.Now().Add(time.Hour+time.Duration(i)*time.Second)))
				busy()
			}
			c.settle()
			// What others have said of who was forgotten stays in their own events, and means nothing any more.
			left := c.archived(w.events)
			for i, e := range left {
				if e.At.After(time.Now()) {
					continue
				}
				if e.User != "" && own[keyOf(profiles.AnonymousID, e.Anon)] {
					left[i].Anon = ""
				}
				if own[keyOf(profiles.AnonymousID, e.Previous)] || own[keyOf(profiles.UserID, e.Previous)] {
					left[i].Type, left[i].Previous = "page", ""
				}
			}
			want := profilestest.Fold(left, time.Now())
			for key, p := range want {
				p.Segments = nil
				want[key] = p
			}
			if diff := cmp.Diff(want, c.everybody()); diff != "" {
				t.Errorf("after forgetting %s (-fold +lanes):\n%s", id, diff)
			}
			for _, query := range []string{
				`SELECT count(*) FROM erasure_keys`,
				`SELECT count(*) FROM counters WHERE accepted <> applied + duplicate + failed + suppressed + quarantined`,
				`SELECT count(*) FROM memberships AS m WHERE NOT EXISTS (
					SELECT FROM profiles AS p WHERE p.lane = m.lane AND p.id = m.profile_id)`,
				`SELECT coalesce(sum(members), 0)::bigint - (SELECT count(*) FROM memberships) FROM segment_counts`,
				`SELECT coalesce(sum(profiles), 0)::bigint - (SELECT count(*) FROM profiles) FROM profile_counts`,
				`SELECT count(*) FROM lookups AS k WHERE NOT EXISTS (
					SELECT FROM profiles AS p WHERE p.lane = k.lane AND p.id = k.profile_id)`,
			} {
				if n := one[int64](t, c.pool, query); n != 0 {
					t.Errorf("%d, want 0: %s", n, query)
				}
			}
			if proof.Tombstones == 0 || proof.ErasedAt == nil {
				t.Errorf("the proof is %+v", proof)
			}
			suppressed += one[int64](t, c.pool, `SELECT coalesce(sum(suppressed), 0)::bigint FROM counters`)
		})
	}
	if suppressed == 0 {
		t.Error("nothing was ever suppressed")
	}
}

// An address is nobody's own: that somebody who was known by it is being forgotten does not stand for all who are.
func TestAnErasureOfASharedAddressIsOneOfItsOwn(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3)
	for _, user := range []string{"ada", "bob"} {
		c.send(profilestest.Event{
			Type: "identify", User: user, At: profilestest.Start, Traits: map[string]any{"email": "home@example.com"},
		})
	}
	c.settle()
	home := profiles.Identifier{Kind: profiles.Email, Value: "home@example.com"}
	ada := c.erase(profiles.Identifier{Kind: profiles.UserID, Value: "ada"})
	both := c.erase(home)
	if both.ID == ada.ID {
		t.Fatal("whoever else has the address is not forgotten")
	}
	if again := c.erase(home); again.ID != both.ID {
		t.Errorf("asked again, it is %d, not %d", again.ID, both.ID)
	}
	c.finish(ada.ID)
	c.finish(both.ID)
	if left := c.everybody(); len(left) > 0 {
		t.Errorf("still there: %v", left)
	}
}

func keyOf(kind, value string) profiles.Key {
	return profilestest.Secret.Key(profiles.Identifier{Kind: kind, Value: value})
}

func ringOf(t *testing.T, text ...string) *activation.KeyRing {
	t.Helper()
	for i := range text {
		text[i] += ":" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte(text[i])[:1], 32))
	}
	ring, err := activation.ParseKeyRing(strings.Join(text, ","))
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func TestTombstonesOutliveTheInstallationsKeys(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if _, err := pool.Exec(t.Context(), `INSERT INTO workspaces (key, name, secret) VALUES ('test', 'Test', $1)`, []byte(profilestest.Secret)); err != nil {
		t.Fatal(err)
	}
	store := func(keys *activation.KeyRing) *profiles.Store {
		return profiles.NewStore(pool, profiles.Config{Lanes: 2, Keys: keys}, activation.NewLedger(prometheus.NewRegistry()), func() {}, slog.New(slog.DiscardHandler))
	}
	// apply has an event come late, in the hands of a process with some keys.
	n := 0
	apply := func(keys *activation.KeyRing) (profiles.Result, error) {
		n++
		s := store(keys)
		m := profilestest.Event{ID: fmt.Sprint("late ", n), Type: "page", User: "ada", At: profilestest.Start}.Message()
		node := fmt.Sprint("node ", n)
		defer func() {
			if err := s.Leave(t.Context(), node); err != nil {
				t.Fatal(err)
			}
		}()
		for _, lease := range claim(t, s, node, time.Hour) {
			defer func() {
				if err := s.Release(t.Context(), node, lease); err != nil {
					t.Fatal(err)
				}
			}()
			if lease.Lane != m.Key.Lane(2) {
				continue
			}
			l, err := s.Open(t.Context(), lease)
			if err != nil {
				return profiles.Result{}, err
			}
			return l.Apply(t.Context(), profiles.Batch{Until: profiles.Offset{Ms: uint64(n)}, Messages: []profiles.Message{m}})
		}
		return profiles.Result{}, errors.New("somebody else has the lane")
	}
	first, both, second := ringOf(t, "a"), ringOf(t, "b", "a"), ringOf(t, "b")
	if err := store(first).Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := apply(nil); err != nil {
		t.Fatalf("without keys, before anybody was forgotten: %v", err)
	}
	_, _, err := profiles.NewErasures(pool, 2, first).Ask(t.Context(), 1, profilestest.Secret, profiles.NewErasure{
		Kind: profiles.UserID, Key: keyOf(profiles.UserID, "ada"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string]*activation.KeyRing{"no keys": nil, "another key": second} {
		if res, err := apply(keys); err == nil {
			t.Errorf("with %s the lane goes on: %+v", name, res)
		}
	}
	if res, err := apply(first); err != nil || res.Suppressed != 1 {
		t.Errorf("with the key it was sealed with: %+v, %v", res, err)
	}
	if err := store(both).RenewTombstoneKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if res, err := apply(second); err != nil || res.Suppressed != 1 {
		t.Errorf("after the keys were changed: %+v, %v", res, err)
	}
}

package partnertest

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
)

// Random has memberships, identities and consent change at random, people merge, the partner fail and dispatchers die, and
// compares in the end. The seed is logged.
func Random(t testing.TB, s Subject, seed uint64) {
	t.Helper()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	stage := newStage(t, s)
	b, words := stage.bench, stage.fake.Words()
	byProfile := stage.partner.Limits(activation.Target{Settings: stage.fake.Settings()}).ByProfile
	gate := activation.AdGate()
	if _, err := b.Store.Update(t.Context(), b.Workspace, "fake", activation.Update{Consent: &gate}); err != nil {
		t.Fatal(err)
	}
	const people, names = 30, 20
	somebody := func(n int) activation.Person {
		if byProfile {
			return Somebody(n)
		}
		return Known(n, rng.IntN(names)) // often the same as somebody else
	}
	present := make([]activation.Person, people)
	add := func(n int, p activation.Person) {
		present[n] = p
		stage.fake.Seed(p)
	}
	for n := range people {
		add(n, somebody(n))
		b.World.Add(present[n])
	}
	broken := Broken(words)
	die := b.Mortal(t)
	stop := b.Dispatch(t, activation.DispatchConfig{})
	steps := s.Steps
	if steps == 0 {
		steps = 60
	}
	for range steps {
		switch k := rng.IntN(24); {
		case k < 9:
			var changes []activation.Change
			for range 1 + rng.IntN(8) {
				n := rng.IntN(people)
				b.World.Add(present[n])
				changes = append(changes, activation.Change{Segment: segment, Profile: Profile(n), Entered: rng.IntN(3) > 0})
			}
			b.Apply(t, changes...)
		case k < 13: // somebody is known by something else
			n := rng.IntN(people)
			p := somebody(n)
			p.Consent = present[n].Consent
			add(n, p)
			b.Person(t, p, "m-identity")
		case k < 16: // somebody decides
			n := rng.IntN(people)
			p := present[n]
			p.Consent = map[string]bool{activation.AdUserData: rng.IntN(3) > 0, activation.AdPersonalization: true}
			add(n, p)
			b.Person(t, p, "m-consent")
		case k < 18 && !byProfile: // somebody becomes a part of somebody else
			from, into := rng.IntN(people), rng.IntN(people)
			if from == into {
				continue
			}
			p := renumbered(present[from], into)
			arrives, leaves := rng.IntN(2) == 0, activation.Change{Segment: segment, Profile: Profile(from), Cause: "merge"}
			if arrives {
				add(into, p)
				b.Person(t, p, "m-merge")
				b.Apply(t, activation.Change{Segment: segment, Profile: p.ID, Entered: true, Cause: "merge"})
			}
			add(from, somebody(from))
			b.World.Remove(Profile(from))
			b.Apply(t, leaves)
			if !arrives {
				add(into, p)
				b.World.Add(p)
				b.Apply(t, activation.Change{Segment: segment, Profile: p.ID, Entered: true, Cause: "merge"})
			}
			b.World.Add(present[from])
		case k < 20:
			stage.fake.Script(broken[rng.IntN(len(broken))])
		case k < 21:
			stop()
			stop = b.Dispatch(t, activation.DispatchConfig{})
		case k < 22:
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
	stage.rest(t)
	// Whom the partner refused alone, as too large, has failed, or, if it was to be removed, waits for a day.
	if _, err := b.Store.Replay(t.Context(), b.Workspace, "fake", activation.Replay{}); err != nil {
		t.Fatal(err)
	}
	sum := stage.rest(t)
	if sum.Failed != 0 || sum.Parked != 0 || sum.Drift != 0 || sum.Unknown != 0 {
		t.Errorf("at rest the ledger says %+v", sum)
	}
	stage.compare(t)
	b.checkOrder(t, "fake")
}

// Broken are faults that a partner recovers from by itself and that ask nobody to wait: who dies before writing that down has
// nobody else wait.
func Broken(w Words) []Fault {
	return []Fault{
		{Status: 500},
		{Status: 503, Apply: true},
		{Reset: true},
		{Reset: true, Apply: true},
		{Close: true},
		{Delay: 200 * time.Millisecond, Apply: true},
		w.TooLarge.or(Fault{Status: 413}),
	}
}

// checkOrder holds the ledger to its promise that of one person in one segment the later version comes later.
func (b *Bench) checkOrder(t testing.TB, ref string) {
	t.Helper()
	const query = `
		SELECT count(*)
		FROM (
			SELECT version, lag(version) OVER (PARTITION BY segment_id, profile_id ORDER BY id) AS before
			FROM deliveries
			WHERE destination_id = $1
		) d
		WHERE version < before`
	var wrong int
	if err := b.Pool.QueryRow(t.Context(), query, b.id(t, ref)).Scan(&wrong); err != nil {
		t.Fatal(err)
	}
	if wrong > 0 {
		t.Errorf("%d lines of the ledger come after a later version's", wrong)
	}
}

var errDead = errors.New("this process is dead")

// Mortal runs a dispatcher that can be killed: the returned function cuts it off from the database, whatever it is doing,
// and then waits until what it had sent has arrived and its leases are over.
func (b *Bench) Mortal(t testing.TB) (die func()) {
	t.Helper()
	var dead atomic.Bool
	cfg := b.Pool.Config().Copy()
	cfg.MaxConns = 4
	name := "mortal-" + time.Now().Format("150405.000000000")
	cfg.ConnConfig.RuntimeParams["application_name"] = name
	cfg.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		if dead.Load() {
			return errDead
		}
		return nil
	}
	cfg.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) {
		if dead.Load() {
			return false, errDead
		}
		return true, nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	store := activation.NewStore(pool, b.Ring, Lanes, b.partners...)
	d, err := activation.NewDispatcher(activation.DispatchConfig{
		Lanes: Lanes, Poll: 50 * time.Millisecond, Every: 50 * time.Millisecond, Lease: activation.MinLease,
		Schedule: slices.Repeat([]time.Duration{100 * time.Millisecond}, 50), Grace: time.Millisecond,
	}, store, b.World, b.World, b.World, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = d.Run(ctx)
		pool.Close()
	}()
	r := &running{wake: d.Wake}
	b.mu.Lock()
	b.mortals = append(b.mortals, r)
	b.mu.Unlock()
	die = sync.OnceFunc(func() {
		dead.Store(true)
		const cut = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1`
		if _, err := b.Pool.Exec(context.WithoutCancel(t.Context()), cut, name); err != nil {
			t.Errorf("cut the connections: %v", err)
		}
		cancel()
		time.Sleep(300 * time.Millisecond) // what was sent arrives
		const expire = `
			UPDATE activation_batches
			SET lease_until = now() - interval '1 second'
			WHERE claim_token IS NOT NULL`
		b.mu.Lock()
		others := len(b.running)
		b.mortals = slices.DeleteFunc(b.mortals, func(other *running) bool { return other == r })
		b.mu.Unlock()
		if others == 0 { // else they have claims of their own, and the lease has to run out
			if _, err := b.Pool.Exec(context.WithoutCancel(t.Context()), expire); err != nil {
				t.Errorf("end the leases: %v", err)
			}
		}
	})
	t.Cleanup(func() {
		die()
		<-done
	})
	return die
}

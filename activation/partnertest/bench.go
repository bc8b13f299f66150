package partnertest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

// Lanes is how many lanes a [Bench] has.
const Lanes = 4

// Bench is an activation of its own: a database, a ledger, a store and dispatchers, and the world they need to know.
type Bench struct {
	Pool       *pgxpool.Pool
	Ring       *activation.KeyRing
	Ledger     *activation.Ledger
	Store      *activation.Store
	World      *World
	Workspace  int32
	Registry   *prometheus.Registry
	dispatcher *activation.Dispatcher
}

// NewBench returns a bench whose destinations may be at the given partners.
func NewBench(t testing.TB, partners ...activation.Partner) *Bench {
	t.Helper()
	ring, _, err := activation.NewKeyRing()
	if err != nil {
		t.Fatal(err)
	}
	b := &Bench{Pool: pgtest.New(t), Ring: ring, Registry: prometheus.NewRegistry()}
	b.Ledger = activation.NewLedger(b.Registry)
	b.Store = activation.NewStore(b.Pool, ring, Lanes, partners...)
	const insert = `
		INSERT INTO workspaces (key, name, secret)
		VALUES ('bench', 'Bench', '\x00')
		RETURNING id`
	if err := b.Pool.QueryRow(t.Context(), insert).Scan(&b.Workspace); err != nil {
		t.Fatalf("make a workspace: %v", err)
	}
	b.World = &World{people: map[activation.ProfileID]activation.Person{}, in: map[int64]map[activation.ProfileID]bool{}}
	return b
}

// Destination makes a destination that hears of the given segments.
func (b *Bench) Destination(t testing.TB, key, kind string, s activation.Settings, segments ...int64) activation.Destination {
	t.Helper()
	d, _, err := b.Store.Create(t.Context(), b.Workspace, activation.NewDestination{Key: key, Type: kind, Settings: s})
	if err != nil {
		t.Fatalf("create destination %q: %v", key, err)
	}
	for _, segment := range segments {
		if err := b.Store.Attach(t.Context(), b.Workspace, key, segment); err != nil {
			t.Fatalf("attach segment %d: %v", segment, err)
		}
	}
	return d
}

// Dispatch runs a dispatcher until the returned function is called, or the test ends. Fields of cfg that are zero are set
// for a test's patience.
func (b *Bench) Dispatch(t testing.TB, cfg activation.DispatchConfig) (stop func()) {
	t.Helper()
	cfg.Lanes = Lanes
	if cfg.Poll == 0 {
		cfg.Poll = 50 * time.Millisecond
	}
	if cfg.Lease == 0 {
		cfg.Lease = 10 * time.Second
	}
	if cfg.Schedule == nil {
		cfg.Schedule = slices.Repeat([]time.Duration{100 * time.Millisecond}, 50)
	}
	if cfg.Grace == 0 {
		cfg.Grace = 100 * time.Millisecond
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	d, err := activation.NewDispatcher(cfg, b.Store, b.World, b.World, b.World, prometheus.NewRegistry(), log)
	if err != nil {
		t.Fatal(err)
	}
	b.dispatcher = d
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Dispatcher.Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Apply makes changes true in the world and on the ledger, in one transaction for each lane, and wakes the dispatcher.
func (b *Bench) Apply(t testing.TB, changes ...activation.Change) {
	t.Helper()
	byLane := map[int][]activation.Change{}
	for _, c := range changes {
		c.Workspace = b.Workspace
		if c.At.IsZero() {
			c.At = time.Now()
		}
		if c.Cause == "" {
			c.Cause = "event"
		}
		lane := Lane(c.Profile)
		byLane[lane] = append(byLane[lane], c)
	}
	for lane, changes := range byLane {
		err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
			_, err := b.Ledger.Enqueue(t.Context(), tx, lane, changes)
			return err
		})
		if err != nil {
			t.Fatalf("enqueue: %v", err)
		}
		b.World.apply(changes)
	}
	if b.dispatcher != nil {
		b.dispatcher.Wake()
	}
}

// Rest waits until nothing of a destination is pending and returns its counts.
func (b *Bench) Rest(t testing.TB, ref string) activation.Summary {
	t.Helper()
	var sum activation.Summary
	Eventually(t, 40*time.Second, "the ledger is at rest", func() bool {
		var err error
		if sum, err = b.Store.Summary(t.Context(), b.Workspace, ref, 0); err != nil {
			t.Fatal(err)
		}
		d, err := b.Store.Get(t.Context(), b.Workspace, ref)
		if err != nil {
			t.Fatal(err)
		}
		filled := !slices.ContainsFunc(d.Segments, func(a activation.Attachment) bool { return !a.Filled })
		return filled && sum.Pending == 0
	})
	return sum
}

// Eventually fails the test unless a condition comes true in time.
func Eventually(t testing.TB, within time.Duration, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("after %v it is still not true that %s", within, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// World is who there is and who is in which segment. It stands for profiles, which tells the real activation of both.
type World struct {
	mu     sync.Mutex
	people map[activation.ProfileID]activation.Person
	in     map[int64]map[activation.ProfileID]bool
}

// Add makes people known.
func (w *World) Add(people ...activation.Person) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range people {
		w.people[p.ID] = p
	}
}

// Remove makes somebody unknown.
func (w *World) Remove(id activation.ProfileID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.people, id)
}

func (w *World) apply(changes []activation.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range changes {
		if w.in[c.Segment] == nil {
			w.in[c.Segment] = map[activation.ProfileID]bool{}
		}
		if c.Entered {
			w.in[c.Segment][c.Profile] = true
		} else {
			delete(w.in[c.Segment], c.Profile)
		}
	}
}

// Members returns who is in a segment, sorted.
func (w *World) Members(segment int64) []activation.ProfileID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return sorted(w.in[segment])
}

// People is what a dispatcher asks for.
func (w *World) People(
	_ context.Context, lane int, _ int32, ids [][16]byte,
) (map[[16]byte]activation.Person, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := map[[16]byte]activation.Person{}
	for _, id := range ids {
		if Lane(id) != lane {
			return nil, errors.New("asked for a profile of another lane")
		}
		if p, ok := w.people[id]; ok {
			found[id] = p
		}
	}
	return found, nil
}

// SegmentInfo is what a dispatcher asks for.
func (w *World) SegmentInfo(_ context.Context, _ int32, ids []int64) (map[int64]activation.Segment, error) {
	found := map[int64]activation.Segment{}
	for _, id := range ids {
		found[id] = activation.Segment{ID: id, Key: "big-spenders", Name: "Big spenders"}
	}
	return found, nil
}

// EachMember is what a dispatcher asks for.
func (w *World) EachMember(_ context.Context, _ int32, segment int64, fn func(lane int, ids [][16]byte) error) error {
	byLane := map[int][][16]byte{}
	for _, id := range w.Members(segment) {
		byLane[Lane(id)] = append(byLane[Lane(id)], id)
	}
	for lane, ids := range byLane {
		if err := fn(lane, ids); err != nil {
			return err
		}
	}
	return nil
}

// Lane returns the lane of a profile.
func Lane(id activation.ProfileID) int { return int(binary.BigEndian.Uint64(id[:8]) % Lanes) }

// Profile returns the id of the n-th profile.
func Profile(n int) activation.ProfileID {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n)))
	return activation.ProfileID(sum[:16])
}

func sorted(set map[activation.ProfileID]bool) []activation.ProfileID {
	ids := make([]activation.ProfileID, 0, len(set))
	for id := range set {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b activation.ProfileID) int { return slices.Compare(a[:], b[:]) })
	return ids
}

package partnertest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"strings"
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
	Pool      *pgxpool.Pool
	Ring      *activation.KeyRing
	Ledger    *activation.Ledger
	Store     *activation.Store
	World     *World
	Workspace int32
	Registry  *prometheus.Registry

	partners []activation.Partner

	mu      sync.Mutex
	running []*running
	mortals []*running
}

// running is a dispatcher that runs, or one that follows it.
type running struct {
	cfg  activation.DispatchConfig
	wake func()
	stop func()
}

// NewBench returns a bench whose destinations may be at the given partners.
func NewBench(t testing.TB, partners ...activation.Partner) *Bench {
	t.Helper()
	ring, _, err := activation.NewKeyRing()
	if err != nil {
		t.Fatal(err)
	}
	b := &Bench{Pool: pgtest.New(t), Ring: ring, Registry: prometheus.NewRegistry(), partners: partners}
	b.Ledger = activation.NewLedger(b.Registry)
	b.Store = activation.NewStore(b.Pool, ring, Lanes, partners...)
	const insert = `
		INSERT INTO workspaces (key, name, secret)
		VALUES ('bench', 'Bench', '\x00')
		RETURNING id`
	if err := b.Pool.QueryRow(t.Context(), insert).Scan(&b.Workspace); err != nil {
		t.Fatalf("make a workspace: %v", err)
	}
	b.World = &World{
		people: map[activation.ProfileID]activation.Person{}, in: map[int64]map[activation.ProfileID]bool{},
		whose: map[activation.ProfileID]activation.ProfileID{},
	}
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
	if cfg.Every == 0 {
		cfg.Every = 50 * time.Millisecond
	}
	if cfg.Schedule == nil {
		cfg.Schedule = slices.Repeat([]time.Duration{100 * time.Millisecond}, 50)
	}
	if cfg.Grace == 0 {
		cfg.Grace = 100 * time.Millisecond
	}
	r := &running{cfg: cfg}
	b.start(t, r)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running = append(b.running, r)
	stop = sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.running = slices.DeleteFunc(b.running, func(other *running) bool { return other == r })
		r.stop()
	})
	t.Cleanup(stop)
	return stop
}

func (b *Bench) start(t testing.TB, r *running) {
	t.Helper()
	level := slog.LevelError // of warnings there are so many that they hide why a test fails
	if testing.Verbose() {
		level = slog.LevelWarn
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
	d, err := activation.NewDispatcher(r.cfg, b.Store, b.World, b.World, b.World, prometheus.NewRegistry(), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	r.wake, r.stop = d.Wake, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Dispatcher.Run: %v", err)
		}
	}
}

// Person makes somebody known as p from now on, on the ledger and to the world, as a µbatch does when traits or consent
// change.
func (b *Bench) Person(t testing.TB, p activation.Person, messageID string) {
	t.Helper()
	b.World.Add(p)
	var changes []activation.Change
	for _, segment := range b.World.SegmentsOf(p.ID) {
		changes = append(changes, activation.Change{Segment: segment, Profile: p.ID, Entered: true, MessageID: messageID})
	}
	b.Apply(t, changes...)
}

// Apply makes changes true in the world and on the ledger, in one transaction for each lane, and wakes the dispatcher. Who
// enters does so with the consent that the world knows of.
func (b *Bench) Apply(t testing.TB, changes ...activation.Change) {
	t.Helper()
	byLane := map[int][]activation.Change{}
	for _, c := range changes {
		if c.Entered && c.Consent == nil {
			c.Consent = b.World.consent(c.Profile)
		}
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
	b.wake()
}

// wake tells all dispatchers that there may be something to do.
func (b *Bench) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range slices.Concat(b.running, b.mortals) {
		r.wake()
	}
}

// Happen tells the ledger of events, as the µbatches of their lanes do, and wakes the dispatcher. It returns how many were
// enqueued.
func (b *Bench) Happen(t testing.TB, events ...activation.Happened) (n int) {
	t.Helper()
	byLane := map[int][]activation.Happened{}
	for _, h := range events {
		h.Workspace = b.Workspace
		byLane[Lane(h.Person)] = append(byLane[Lane(h.Person)], h)
	}
	for lane, events := range byLane {
		err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
			const lock = `SELECT pg_advisory_xact_lock_shared($1)`
			if _, err := tx.Exec(t.Context(), lock, activation.ConfigLock); err != nil {
				return err
			}
			var batch pgx.Batch
			var version int64
			b.Ledger.AskForSubscriptions(&batch, &version)
			if err := tx.SendBatch(t.Context(), &batch).Close(); err != nil {
				return err
			}
			subs, err := b.Ledger.Subscriptions(t.Context(), tx, version)
			if err != nil {
				return err
			}
			enqueued, err := b.Ledger.EnqueueEvents(t.Context(), tx, lane, subs, events)
			n += enqueued
			return err
		})
		if err != nil {
			t.Fatalf("enqueue events: %v", err)
		}
	}
	b.wake()
	return n
}

// await waits until a condition comes true, and has time pass, by pass, while there is nothing to do but wait.
func (b *Bench) await(t testing.TB, what string, pass func(time.Duration), is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("after %v it is still not true that %s:\n%s", patience, what, b.waiting(t))
		}
		d, err := Idle(t.Context(), b.Pool)
		if err != nil {
			t.Fatal(err)
		}
		if d > 3*time.Second {
			pass(d)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Warp has time pass for everything that waits, as if it had all been written down so much earlier, and for fakes. The
// dispatchers that run are replaced by others, which remember nothing: none is at work while time passes, so that nothing is
// written down that is older for one side than for the other.
func (b *Bench) Warp(t testing.TB, d time.Duration, fakes ...interface{ Advance(time.Duration) }) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.running {
		r.stop()
	}
	for _, f := range fakes {
		f.Advance(d)
	}
	if err := Warp(t.Context(), b.Pool, d); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.running {
		b.start(t, r)
	}
}

func (b *Bench) id(t testing.TB, ref string) int64 {
	t.Helper()
	d, err := b.Store.Get(t.Context(), b.Workspace, ref)
	if err != nil {
		t.Fatal(err)
	}
	return d.ID
}

// Rest waits until nothing of a destination is pending and returns its counts.
func (b *Bench) Rest(t testing.TB, ref string) (sum activation.Summary) {
	t.Helper()
	Eventually(t, "the ledger is at rest", func() bool {
		done := false
		sum, done = b.resting(t, ref)
		return done
	})
	return sum
}

// resting tells whether nothing of a destination is under way.
func (b *Bench) resting(t testing.TB, ref string) (sum activation.Summary, done bool) {
	t.Helper()
	sum, err := b.Store.Summary(t.Context(), b.Workspace, ref, 0)
	if err != nil {
		t.Fatal(err)
	}
	d, err := b.Store.Get(t.Context(), b.Workspace, ref)
	if err != nil {
		t.Fatal(err)
	}
	busy := slices.ContainsFunc(d.Segments, func(a activation.Attachment) bool { return !a.Filled || !a.Ready })
	return sum, !busy && sum.Pending == 0 && sum.Accepted == 0
}

// renewed tells whether nobody is left who has to be sent again for the partner not to forget them.
func (b *Bench) renewed(t testing.TB, ref string) (done bool) {
	t.Helper()
	const query = `SELECT NOT EXISTS (SELECT FROM activations WHERE destination_id = $1 AND renew_at <= now())`
	if err := b.Pool.QueryRow(t.Context(), query, b.id(t, ref)).Scan(&done); err != nil {
		t.Fatal(err)
	}
	return done
}

// waiting describes what is under way, for whoever wonders why it does not end.
func (b *Bench) waiting(t testing.TB) (text string) {
	t.Helper()
	const query = `
		SELECT concat_ws(' ', 'row', status, wanted, sent, reason, next_at - now(), count(*))
		FROM activations
		WHERE status NOT IN ('settled', 'unreachable')
		GROUP BY status, wanted, sent, reason, next_at
		UNION ALL
		SELECT concat_ws(' ', 'event', status, reason, next_at - now(), doubted_at - now(), count(*))
		FROM conversions
		WHERE status <> 'sent'
		GROUP BY status, reason, next_at, doubted_at
		UNION ALL
		SELECT concat_ws(' ', 'batch', id, claim_token IS NOT NULL, lease_until - now(), tries, removing)
		FROM activation_batches
		UNION ALL
		SELECT concat_ws(' ', 'receipt', id, poll_at - now(), polls, claim_token IS NOT NULL)
		FROM activation_receipts
		WHERE poll_at IS NOT NULL
		UNION ALL
		SELECT concat_ws(' ', 'destination', status, status_reason, blocked_until, token_expires_at - now(), refresh_at - now(), refresh_until)
		FROM destinations
		UNION ALL
		SELECT concat_ws(' ', 'attachment', attached, filled, ready_at, audience_at, audience_reason)
		FROM destination_segments`
	rows, _ := b.Pool.Query(t.Context(), query)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Error(err)
	}
	return strings.Join(lines, "\n")
}

// checkHoldings holds what is counted of identifiers at partners to what the rows of the ledger say. It is for when nothing
// is under way. What marks an identifier may be a message that nobody needs any more, and that is swept up in a while.
func (b *Bench) checkHoldings(t testing.TB) {
	t.Helper()
	const query = `
		SELECT count(*)
		FROM (
			SELECT a.destination_id, a.segment_id,
				encode(substring(sha256(convert_to(i.value ->> 'kind', 'UTF8') || '\x00'::bytea || convert_to(i.value ->> 'value', 'UTF8')) FROM 1 FOR 16), 'hex')::uuid AS identifier,
				count(*) AS holders
			FROM activations a
			CROSS JOIN LATERAL jsonb_array_elements(a.sent_identifiers -> 'ids') AS i (value)
			GROUP BY 1, 2, 3
		) c
		FULL JOIN holdings h USING (destination_id, segment_id, identifier)
		WHERE c.holders IS DISTINCT FROM h.holders
			OR h.removing IS NOT NULL AND NOT EXISTS (SELECT FROM activation_batches WHERE id = h.removing)`
	var wrong int
	if err := b.Pool.QueryRow(t.Context(), query).Scan(&wrong); err != nil {
		t.Fatalf("check holdings: %v", err)
	}
	if wrong > 0 {
		t.Errorf("%d holdings are not as the ledger has them", wrong)
	}
}

// dryRun asks what would be sent about a segment.
func (b *Bench) dryRun(t testing.TB, ref string, segment int64) (activation.DryRun, error) {
	t.Helper()
	return b.Store.DryRun(t.Context(), b.Workspace, ref, segment, b.World, b.World)
}

// patience is how long a test waits for what should come true much sooner: a machine may be busy with other things.
const patience = 5 * time.Minute

// Eventually fails the test unless a condition comes true in time.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("after %v it is still not true that %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// World is who there is and who is in which segment. It stands for profiles, which tells the real activation of both.
type World struct {
	mu     sync.Mutex
	people map[activation.ProfileID]activation.Person
	in     map[int64]map[activation.ProfileID]bool
	whose  map[activation.ProfileID]activation.ProfileID // keys of identifiers that belong to another profile by now
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

// SegmentsOf returns the segments that somebody is in.
func (w *World) SegmentsOf(id activation.ProfileID) (segments []int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for segment, in := range w.in {
		if in[id] {
			segments = append(segments, segment)
		}
	}
	slices.Sort(segments)
	return segments
}

func (w *World) everybody() (all []activation.Person) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.people {
		all = append(all, p)
	}
	return all
}

func (w *World) consent(id activation.ProfileID) map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.people[id].Consent
}

// Wanted returns those members of a segment who have given the consent that a destination asks for, sorted.
func (w *World) Wanted(segment int64, gate activation.Gate) (wanted []activation.Person) {
	for _, id := range w.Members(segment) {
		w.mu.Lock()
		p, known := w.people[id]
		w.mu.Unlock()
		if known && gate.Allows(p.Consent) {
			wanted = append(wanted, p)
		}
	}
	return wanted
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

// Become makes an identifier, by its key, belong to another profile: that it was merged into, for instance.
func (w *World) Become(key, profile activation.ProfileID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.whose[key] = profile
}

// Whose returns whom an identifier belongs to, by its key.
func (w *World) Whose(key activation.ProfileID) (p activation.Person, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if into, ok := w.whose[key]; ok {
		key = into
	}
	p, known = w.people[key]
	return p, known
}

// PeopleOf is what a dispatcher asks for. A key that belongs to nobody else is that of the profile itself.
func (w *World) PeopleOf(_ context.Context, _ int32, keys [][16]byte) (map[[16]byte]activation.Person, error) {
	found := map[[16]byte]activation.Person{}
	for _, key := range keys {
		if p, known := w.Whose(key); known {
			found[key] = p
		}
	}
	return found, nil
}

// SegmentInfo is what a dispatcher asks for.
func (w *World) SegmentInfo(_ context.Context, _ int32, ids []int64) (map[int64]activation.Segment, error) {
	found := map[int64]activation.Segment{}
	for _, id := range ids {
		found[id] = Segment(id)
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

// Segment returns how a segment is called.
func Segment(id int64) activation.Segment {
	return activation.Segment{ID: id, Key: "big-spenders", Name: "Big spenders"}
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

package profiles_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// newStore returns a store of a workspace with that many lanes.
func newStore(t testing.TB, lanes int) (*profiles.Store, *pgxpool.Pool) {
	t.Helper()
	pool := pgtest.New(t)
	const workspace = `INSERT INTO workspaces (key, name, secret) VALUES ('test', 'Test', $1)`
	if _, err := pool.Exec(t.Context(), workspace, []byte(profilestest.Secret)); err != nil {
		t.Fatal(err)
	}
	s := storeOn(pool, lanes)
	if err := s.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, pool
}

// keys seal what tests seal.
var keys = func() *activation.KeyRing {
	ring, _, err := activation.NewKeyRing()
	if err != nil {
		panic(err)
	}
	return ring
}()

func storeOn(pool *pgxpool.Pool, lanes int) *profiles.Store {
	ledger := activation.NewLedger(prometheus.NewRegistry())
	return profiles.NewStore(pool, profiles.Config{Lanes: lanes, Keys: keys}, ledger, func() {}, slog.New(slog.DiscardHandler))
}

func one[T any](t testing.TB, pool *pgxpool.Pool, query string, args ...any) T {
	t.Helper()
	rows, _ := pool.Query(t.Context(), query, args...)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func lanesOf(leases []profiles.Lease) []int {
	var lanes []int
	for _, l := range leases {
		lanes = append(lanes, l.Lane)
	}
	slices.Sort(lanes)
	return lanes
}

func claim(t testing.TB, s *profiles.Store, node string, ttl time.Duration) []profiles.Lease {
	t.Helper()
	leases, err := s.Claim(t.Context(), node, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return leases
}

func order(id string) profiles.Message {
	return profilestest.Event{ID: id, Type: "track", Event: "Order", Anon: "a", At: profilestest.Start}.Message()
}

func TestNodesShareTheLanesFairly(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, 5)
	if got := lanesOf(claim(t, s, "one", time.Minute)); len(got) != 5 {
		t.Fatalf("one node has lanes %v, want all five", got)
	}
	if got := claim(t, s, "two", time.Minute); len(got) != 0 {
		t.Fatalf("a second node has taken lanes %v from the first", lanesOf(got))
	}
	kept := claim(t, s, "one", time.Minute)
	if len(kept) != 3 {
		t.Fatalf("the first node keeps lanes %v, want three", lanesOf(kept))
	}
	for lane := range 5 {
		if !slices.Contains(lanesOf(kept), lane) {
			if err := s.Release(t.Context(), "one", profiles.Lease{Lane: lane, Epoch: 1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	taken := claim(t, s, "two", time.Minute)
	if len(taken) != 2 {
		t.Errorf("the second node has lanes %v, want two", lanesOf(taken))
	}
	for _, l := range taken {
		if l.Unclean {
			t.Errorf("lane %d was let go of in order, and is taken for one that was not", l.Lane)
		}
		if l.Epoch != 2 {
			t.Errorf("lane %d has changed hands and is at epoch %d, want 2", l.Lane, l.Epoch)
		}
	}
}

func TestTheLanesOfADeadNodeAreTakenUp(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, 4)
	claim(t, s, "dead", 200*time.Millisecond)
	deadline := time.Now().Add(10 * time.Second)
	unclean := map[int]bool{}
	for {
		leases := claim(t, s, "alive", 200*time.Millisecond)
		for _, l := range leases {
			unclean[l.Lane] = unclean[l.Lane] || l.Unclean
		}
		if len(leases) == 4 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("its lanes were not taken up")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if want := map[int]bool{0: true, 1: true, 2: true, 3: true}; !maps.Equal(want, unclean) {
		t.Errorf("lanes taken for ones that were not let go of are %v, want all", unclean)
	}
}

func TestALeaseIsRenewedByWhatTheLaneCommits(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t, 2)
	leases := claim(t, s, "one", time.Hour)
	l, err := s.Open(t.Context(), leases[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE lanes SET lease_until = now() + '1 minute'`); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Apply(t.Context(), profiles.Batch{Until: profiles.Offset{Ms: 1}}); err != nil {
		t.Fatal(err)
	}
	const renewed = `SELECT lane::int FROM lanes WHERE lease_until > now() + '50 minutes'`
	if lane := one[int](t, pool, renewed); lane != leases[0].Lane {
		t.Errorf("lane %d was renewed, want %d", lane, leases[0].Lane)
	}
	if left := time.Until(l.Until()); left < 50*time.Minute {
		t.Errorf("the owner takes the lease for lasting %v, want an hour", left)
	}
}

func TestClaimingWaitsForNoLane(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t, 3)
	claim(t, s, "one", time.Minute)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `SELECT FROM lanes WHERE lane = 1 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	leases, err := s.Claim(ctx, "one", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		if renewed := !l.Until.IsZero(); renewed != (l.Lane != 1) {
			t.Errorf("lane %d: renewed is %v", l.Lane, renewed)
		}
	}
	if err := s.CaughtUp(ctx, map[int]time.Time{0: profilestest.Start, 1: profilestest.Start}); err != nil || len(leases) != 3 {
		t.Errorf("%d leases, %v", len(leases), err)
	}
}

func TestALaneInTwoHandsIsFenced(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t, 1)
	lease := claim(t, s, "one", time.Minute)[0]
	batch := profiles.Batch{Until: profiles.Offset{Ms: 1}, Messages: []profiles.Message{order("m1")}}

	// The same epoch twice, as when a process does not know how a commit ended.
	zombie, err := s.Open(t.Context(), lease)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := s.Open(t.Context(), lease)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Apply(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if _, err := zombie.Apply(t.Context(), batch); !errors.Is(err, profiles.ErrFenced) {
		t.Errorf("the second to apply gets %v, want ErrFenced", err)
	}

	// Another epoch: the lease ran out while the owner was paused.
	if _, err := pool.Exec(t.Context(), `UPDATE lanes SET lease_until = '-infinity'`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), claim(t, s, "two", time.Minute)[0]); err != nil {
		t.Fatal(err)
	}
	batch.Until = profiles.Offset{Ms: 2}
	for what, do := range map[string]func() error{
		"apply":   func() error { _, err := owner.Apply(t.Context(), batch); return err },
		"refresh": func() error { return owner.Refresh(t.Context()) },
		"attempt": func() error { return owner.Attempt(t.Context(), nil, 0) },
		"survive": func() error { return owner.Survived(t.Context()) },
		"trust":   func() error { return owner.Trust(t.Context()) },
		"note":    func() error { return owner.SetRunID(t.Context(), "x") },
		"open":    func() error { _, err := s.Open(t.Context(), lease); return err },
	} {
		if err := do(); !errors.Is(err, profiles.ErrFenced) {
			t.Errorf("%s returns %v, want ErrFenced", what, err)
		}
	}
	if n := one[int](t, pool, `SELECT count(*) FROM events`); n != 1 {
		t.Errorf("%d events were applied, want 1", n)
	}
}

func TestAMessageIsAppliedOnceWhileDedupeRotates(t *testing.T) {
	t.Parallel()
	const lanes, each = 3, 400
	s, pool := newStore(t, lanes)
	leases := claim(t, s, "one", time.Minute)
	var sent [lanes][]profiles.Message
	for i := 0; slices.ContainsFunc(sent[:], func(l []profiles.Message) bool { return len(l) < each }); i++ {
		m := profilestest.Event{ID: fmt.Sprint("m", i), Type: "track", Event: "Order", Anon: fmt.Sprint("a", i%40), At: profilestest.Start}.Message()
		if lane := m.Key.Lane(lanes); len(sent[lane]) < each {
			sent[lane] = append(sent[lane], m)
		}
	}
	var wg sync.WaitGroup
	applied := make([]int, lanes)
	var begun sync.WaitGroup
	begun.Add(lanes)
	for _, lease := range leases {
		wg.Go(func() {
			l, err := s.Open(t.Context(), lease)
			if err != nil {
				begun.Done()
				t.Error(err)
				return
			}
			rng := rand.New(rand.NewPCG(uint64(lease.Lane), 1))
			for n := range 100 {
				if n == 20 {
					begun.Done()
				}
				batch := profiles.Batch{Until: profiles.Offset{Ms: uint64(n + 1)}}
				for range 30 {
					batch.Messages = append(batch.Messages, sent[lease.Lane][rng.IntN(each)])
				}
				res, err := l.Apply(t.Context(), batch)
				if err != nil {
					t.Error(err)
					return
				}
				applied[lease.Lane] += res.Applied
			}
		})
	}
	begun.Wait()
	if rotated, err := s.RotateDedupe(t.Context(), 0); err != nil || !rotated {
		t.Errorf("rotated %v, %v", rotated, err)
	}
	wg.Wait()
	const twice = `
		SELECT count(*)
		FROM (SELECT FROM events GROUP BY lane, message_key HAVING count(*) > 1) AS t`
	const both = `SELECT count(*) FROM dedupe_0 JOIN dedupe_1 USING (lane, workspace_id, source_id, message_key)`
	total := 0
	for _, n := range applied {
		total += n
	}
	if n := one[int](t, pool, `SELECT count(*) FROM events`); n != total {
		t.Errorf("%d events are in the archive, %d were applied", n, total)
	}
	if n := one[int](t, pool, both); n > 0 {
		t.Errorf("%d messages are in both generations", n)
	}
	if n := one[int](t, pool, twice); n > 0 {
		t.Errorf("%d messages were applied twice", n)
	}
}

func TestRotatingDedupeWaitsForNobodyLong(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t, 1)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	var n int
	if err := tx.QueryRow(t.Context(), `SELECT count(*) FROM dedupe_1`).Scan(&n); err != nil { // as a dump does
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	if rotated, err := s.RotateDedupe(ctx, 0); err == nil || rotated || ctx.Err() != nil {
		t.Errorf("rotated %v, %v while the table was read; want an error soon", rotated, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rotated, err := s.RotateDedupe(ctx, 0); err != nil || !rotated {
		t.Errorf("rotated %v, %v afterwards", rotated, err)
	}
	if rotated, err := s.RotateDedupe(ctx, time.Hour); err != nil || rotated {
		t.Errorf("rotated %v, %v although it was not due", rotated, err)
	}
}

func TestPartitionsTakeOverWhatCameBeforeThem(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t, 1)
	lane, err := s.Open(t.Context(), claim(t, s, "one", time.Minute)[0])
	if err != nil {
		t.Fatal(err)
	}
	today := "events_" + time.Now().UTC().Format("20060102")
	tomorrow := "events_" + time.Now().UTC().AddDate(0, 0, 1).Format("20060102")
	for _, name := range []string{today, tomorrow} {
		if _, err := pool.Exec(t.Context(), `DROP TABLE `+name); err != nil {
			t.Fatal(err)
		}
	}
	m := order("m1")
	m.Received = time.Now()
	if _, err := lane.Apply(t.Context(), profiles.Batch{Until: profiles.Offset{Ms: 1}, Messages: []profiles.Message{m}}); err != nil {
		t.Fatal(err)
	}
	if n := one[int](t, pool, `SELECT count(*) FROM events_default`); n != 1 {
		t.Fatalf("%d events are in the default partition, want 1", n)
	}
	if err := s.Partition(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{today, tomorrow} {
		if !one[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass($1))`, name) {
			t.Errorf("there is no partition %s", name)
		}
	}
	if n := one[int](t, pool, `SELECT count(*) FROM `+today); n != 1 {
		t.Errorf("%d events were moved, want 1", n)
	}
	const like = `
		SELECT string_agg(pg_get_indexdef(indexrelid), ' ' ORDER BY pg_get_indexdef(indexrelid)) FROM pg_index WHERE indrelid = $1::regclass`
	indexes := func(name string) string {
		return strings.ReplaceAll(one[string](t, pool, like, name), name, "events_x")
	}
	if diff := gocmp.Diff(indexes("events_default"), indexes(today)); diff != "" {
		t.Errorf("indexes (-default +made):\n%s", diff)
	}
}

func TestOldEventsAreDroppedByDay(t *testing.T) {
	t.Parallel()
	s, pool := newStore(t, 1)
	lane, err := s.Open(t.Context(), claim(t, s, "one", time.Minute)[0])
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	var list []profiles.Message
	for i, age := range []time.Duration{0, 24 * time.Hour, 100 * 24 * time.Hour} { // the last one is in the default partition
		m := order(fmt.Sprint("m", i))
		m.Received = now.Add(-age)
		list = append(list, m)
	}
	if _, err := lane.Apply(t.Context(), profiles.Batch{Until: profiles.Offset{Ms: 1}, Messages: list}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		before time.Time
		want   int
	}{
		{now.AddDate(0, 0, -101), 3},
		{now.AddDate(0, 0, -50), 2},
		{now.Truncate(24 * time.Hour).Add(-time.Second), 2}, // yesterday is not over by then
		{now.Truncate(24 * time.Hour), 1},
	} {
		if err := s.DropEventsBefore(t.Context(), step.before); err != nil {
			t.Fatal(err)
		}
		if n := one[int](t, pool, `SELECT count(*) FROM events`); n != step.want {
			t.Errorf("%d events are left of those before %v, want %d", n, step.before, step.want)
		}
	}
}

// inspector looks at the transaction of a µbatch.
type inspector struct {
	*activation.Ledger
	look func(context.Context, pgx.Tx) error
}

func (i inspector) Enqueue(ctx context.Context, tx pgx.Tx, lane int, changes []activation.Change) (int, error) {
	if err := i.look(ctx, tx); err != nil {
		return 0, err
	}
	return i.Ledger.Enqueue(ctx, tx, lane, changes)
}

func TestAMicroBatchIsDurableAndBoundedWhateverTheServerSays(t *testing.T) {
	t.Parallel()
	_, pool := newStore(t, 1)
	const off = `ALTER DATABASE %s SET synchronous_commit = off`
	name := one[string](t, pool, `SELECT current_database()`)
	if _, err := pool.Exec(t.Context(), fmt.Sprintf(off, pgx.Identifier{name}.Sanitize())); err != nil {
		t.Fatal(err)
	}
	pool.Reset()
	settings := map[string]string{}
	out := inspector{activation.NewLedger(prometheus.NewRegistry()), func(ctx context.Context, tx pgx.Tx) error {
		for _, name := range []string{"synchronous_commit", "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"} {
			var v string
			if err := tx.QueryRow(ctx, `SELECT current_setting($1)`, name).Scan(&v); err != nil {
				return err
			}
			settings[name] = v
		}
		return nil
	}}
	s := profiles.NewStore(pool, profiles.Config{Lanes: 1}, out, func() {}, slog.New(slog.DiscardHandler))
	rule := profiles.SegmentDefinition{Key: "buyers", Rule: []byte(`{"event": "Order"}`)}
	if _, err := profiles.NewSegments(pool, 1).Create(t.Context(), 1, rule); err != nil {
		t.Fatal(err)
	}
	lane, err := s.Open(t.Context(), claim(t, s, "one", time.Minute)[0])
	if err != nil {
		t.Fatal(err)
	}
	for lane.Building() {
		if _, _, err := lane.Build(t.Context(), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := lane.Apply(t.Context(), profiles.Batch{Until: profiles.Offset{Ms: 1}, Messages: []profiles.Message{order("m1")}}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"synchronous_commit": "on", "lock_timeout": "5s", "statement_timeout": "30s", "idle_in_transaction_session_timeout": "30s",
	}
	if diff := gocmp.Diff(want, settings); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

// Timers ring in transactions that are cut to fit. Whoever was due when they were looked for, but is not any more, stays.
func TestTimersRingInChunksThatFit(t *testing.T) {
	t.Parallel()
	const people = 900
	s, pool := newStore(t, 1)
	rule := profiles.SegmentDefinition{Key: "recent", Rule: []byte(`{"event": "Order", "within": "1h"}`)}
	if _, err := profiles.NewSegments(pool, 1).Create(t.Context(), 1, rule); err != nil {
		t.Fatal(err)
	}
	lane, err := s.Open(t.Context(), claim(t, s, "one", time.Hour)[0])
	if err != nil {
		t.Fatal(err)
	}
	for lane.Building() {
		if _, _, err := lane.Build(t.Context(), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	ordered := func(at time.Time, names ...string) {
		t.Helper()
		var batch profiles.Batch
		for _, name := range names {
			id := fmt.Sprint(name, at.UnixMilli())
			batch.Messages = append(batch.Messages, profilestest.Event{ID: id, Type: "track", Event: "Order", Anon: name, At: at}.Message())
		}
		batch.Until = profiles.Offset{Ms: uint64(at.UnixMilli())}
		if _, err := lane.Apply(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	var names []string
	for i := range people {
		names = append(names, fmt.Sprint("a", i))
	}
	ordered(now, names...)
	ring := func(allowed time.Duration, at time.Time) int {
		t.Helper()
		lane.Allow(allowed)
		n, _, err := lane.Ring(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := ring(time.Nanosecond, now.Add(59*time.Minute)); n != 0 {
		t.Errorf("%d timers rang before their time", n)
	}
	late := now.Add(time.Hour)
	first, second := ring(time.Nanosecond, late), ring(time.Nanosecond, late)
	if first != second || first == 0 || first+second >= people {
		t.Fatalf("%d and %d timers rang in no time at all, want two small chunks", first, second)
	}
	const members = `SELECT coalesce(array_agg(profile_id), '{}') FROM memberships`
	stays := one[[]profiles.Key](t, pool, members)[0]
	for _, name := range names {
		if profilestest.Secret.Key(profiles.Identifier{Kind: profiles.AnonymousID, Value: name}) == stays {
			ordered(now.Add(time.Minute), name)
		}
	}
	if n := ring(time.Hour, late); n != people-first-second {
		t.Errorf("%d timers rang in an hour, want all %d", n, people-first-second)
	}
	if n := ring(time.Hour, late); n != 0 {
		t.Errorf("%d timers rang twice", n)
	}
	if diff := gocmp.Diff([]profiles.Key{stays}, one[[]profiles.Key](t, pool, members)); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	const exits = `SELECT count(DISTINCT profile_id) = $1 AND count(*) = $1 FROM transitions WHERE NOT entered AND cause = 'timer'`
	if !one[bool](t, pool, exits, people-1) {
		t.Error("not everybody else has left once by a timer")
	}
	if due := lane.NextDue(); due.Sub(late).Round(time.Second) != time.Minute {
		t.Errorf("the next timer rings %v after the others, want a minute", due.Sub(late))
	}
}

// A lane whose neighbour hears nothing does not look through all that it has for it with every µbatch; once it is heard, it
// goes.
func TestAFullOutboxIsNotLookedThroughEveryTime(t *testing.T) {
	t.Parallel()
	const lanes, rows = 2, 2000
	c := newCrew(t, lanes)
	const fill = `INSERT INTO outbox (lane, seq, target, message) SELECT 0, i, 1, $2 FROM generate_series(1, $1::integer) AS i`
	if _, err := c.pool.Exec(t.Context(), fill, rows, profiles.AppendMessage(nil, orderOf("u", 1).Message())); err != nil {
		t.Fatal(err)
	}
	l := c.lanes[0]
	if out, err := l.Unheard(t.Context()); err != nil || len(out) != rows {
		t.Fatal(len(out), err)
	}
	began := time.Now()
	if err := l.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.pool.Exec(t.Context(), `UPDATE lanes SET heard = ARRAY[$1, 0] WHERE lane = 1`, rows); err != nil {
		t.Fatal(err)
	}
	const count = `SELECT count(*) FROM outbox`
	if err := l.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := one[int](t, c.pool, count); n != rows && time.Since(began) < time.Second {
		t.Errorf("%d rows are left, want all %d", n, rows)
	}
	for one[int](t, c.pool, count) > 0 {
		if time.Since(began) > 30*time.Second {
			t.Fatal("what was heard does not go")
		}
		time.Sleep(20 * time.Millisecond)
		if err := l.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

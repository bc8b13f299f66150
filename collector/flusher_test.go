package collector_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// pipeline is everything between a message and a profile, on real servers.
type pipeline struct {
	t         testing.TB
	pool      *pgxpool.Pool
	rdb       *redis.Client
	prefix    string
	lanes     int
	stream    *collector.Stream
	committer *collector.Committer
}

func newPipeline(t testing.TB, lanes int) *pipeline {
	t.Helper()
	p := &pipeline{t: t, pool: pgtest.New(t), lanes: lanes}
	p.rdb, p.prefix = redistest.New(t)
	cfg := collector.Config{Prefix: p.prefix, Lanes: lanes, AllowDegraded: true}
	p.stream = collector.NewStream(cfg.Stream(), p.rdb)
	p.committer = collector.NewCommitter(cfg, p.stream, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	run(t, p.committer.Run)

	const workspace = `INSERT INTO workspaces (key, name, secret) VALUES ('test', 'Test', $1)`
	if _, err := p.pool.Exec(t.Context(), workspace, []byte(profilestest.Secret)); err != nil {
		t.Fatal(err)
	}
	if err := p.store().Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// run runs something until the test ends or the function it returns is called, and waits for its end.
func run(t testing.TB, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func (p *pipeline) store() *profiles.Store {
	cfg := profiles.Config{Lanes: p.lanes, Cached: 50}
	return profiles.NewStore(p.pool, cfg, activation.NewLedger(prometheus.NewRegistry()), func() {}, slog.New(slog.DiscardHandler))
}

func (p *pipeline) flush(cfg collector.FlushConfig) (stop func()) {
	p.t.Helper()
	log := slog.New(slog.NewTextHandler(p.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	return run(p.t, collector.NewFlusher(cfg, p.stream, p.committer, p.store(), prometheus.NewRegistry(), log).Run)
}

func (p *pipeline) send(messages ...profiles.Message) {
	p.t.Helper()
	var routed []collector.Routed
	for _, m := range messages {
		routed = append(routed, collector.Routed{Lane: m.Key.Lane(p.lanes), Message: m})
	}
	p.commit(routed...)
}

func (p *pipeline) commit(routed ...collector.Routed) {
	p.t.Helper()
	if err := p.committer.Commit(p.t.Context(), routed); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pipeline) segment(key, rule string) {
	p.t.Helper()
	_, err := profiles.NewSegments(p.pool, p.lanes).Create(p.t.Context(), 1, profiles.SegmentDefinition{Key: key, Name: key, Rule: []byte(rule)})
	if err != nil {
		p.t.Fatal(err)
	}
}

// counts are accepted, applied, duplicate and failed.
func (p *pipeline) counts() (c [4]int64) {
	p.t.Helper()
	const query = `
		SELECT coalesce(sum(accepted), 0)::bigint, coalesce(sum(applied), 0)::bigint, coalesce(sum(duplicate), 0)::bigint,
		       coalesce(sum(failed), 0)::bigint
		FROM counters`
	if err := p.pool.QueryRow(p.t.Context(), query).Scan(&c[0], &c[1], &c[2], &c[3]); err != nil {
		p.t.Fatal(err)
	}
	return c
}

// settle waits until everything sent is applied, everywhere, and every segment is live.
func (p *pipeline) settle(accepted int) {
	p.t.Helper()
	const busy = `
		SELECT (SELECT count(*) FROM outbox) > 0 OR EXISTS (SELECT FROM segments WHERE live_version <> version)`
	deadline := time.Now().Add(30 * time.Second)
	for {
		var waiting bool
		if err := p.pool.QueryRow(p.t.Context(), busy).Scan(&waiting); err != nil {
			p.t.Fatal(err)
		}
		if c := p.counts(); !waiting && int(c[0]) >= accepted && p.drained() {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("not settled after 30 s: %v of %d accepted, drained %v, %s", p.counts(), accepted, p.drained(), p.dump())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// dump is what somebody who looks for the reason wants to see.
func (p *pipeline) dump() string {
	const query = `
		SELECT concat('outbox ', (SELECT json_agg(json_build_array(lane, seq, target)) FROM outbox),
		              ' segments ', (SELECT json_agg(json_build_array(id, version, live_version)) FROM segments),
		              ' lanes ', (SELECT json_agg(lane_segments) FROM lane_segments WHERE phase <> 'done'),
		              ' leases ', (SELECT json_agg(lanes) FROM lanes))`
	var s string
	if err := p.pool.QueryRow(context.Background(), query).Scan(&s); err != nil {
		return err.Error()
	}
	return s
}

// drained tells whether every lane's offset is at the end of its stream.
func (p *pipeline) drained() bool {
	p.t.Helper()
	const offsets = `SELECT lane, offset_ms, offset_seq FROM lanes`
	rows, _ := p.pool.Query(p.t.Context(), offsets)
	type row struct{ Lane, Ms, Seq int64 }
	lanes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		p.t.Fatal(err)
	}
	for _, l := range lanes {
		state, err := p.stream.State(p.t.Context(), int(l.Lane))
		if err != nil {
			p.t.Fatal(err)
		}
		if state.Exists && state.Last.Compare(collector.Offset{Ms: uint64(l.Ms), Seq: uint64(l.Seq)}) > 0 {
			return false
		}
	}
	return true
}

// people shows the stored profiles as the naive fold shows its own.
func (p *pipeline) people() map[profiles.Key]profilestest.Person {
	p.t.Helper()
	members := map[profiles.Key][]int64{}
	rows, _ := p.pool.Query(p.t.Context(), `SELECT profile_id, segment_id FROM memberships ORDER BY segment_id`)
	var id profiles.Key
	var segment int64
	if _, err := pgx.ForEachRow(rows, []any{&id, &segment}, func() error {
		members[id] = append(members[id], segment)
		return nil
	}); err != nil {
		p.t.Fatal(err)
	}
	out := map[profiles.Key]profilestest.Person{}
	rows, _ = p.pool.Query(p.t.Context(), `SELECT id, state FROM profiles`)
	var packed []byte
	if _, err := pgx.ForEachRow(rows, []any{&id, &packed}, func() error {
		stored, err := profiles.DecodeProfile(id, 1, slices.Clone(packed))
		if err != nil {
			return err
		}
		x := profilestest.Person{Traits: map[string]string{}, Segments: members[id]}
		for _, f := range stored.Fragments {
			x.Fragments = append(x.Fragments, f.Key.String())
		}
		slices.Sort(x.Fragments)
		for _, t := range stored.Merged().Traits {
			x.Traits[t.Name] = string(t.Value)
		}
		out[id] = x
		return nil
	}); err != nil {
		p.t.Fatal(err)
	}
	return out
}

// crowds are many small crowds that have nothing to do with each other, and decisions on their claims.
func crowds(rng *rand.Rand, n int) (all []profilestest.Event, decisions []profilestest.Decision) {
	for i := range n {
		rename := func(s string) string {
			if s == "" {
				return ""
			}
			return fmt.Sprintf("%s.%d", s, i)
		}
		var crowd []profilestest.Event
		for _, e := range profilestest.RandomEvents(rng) {
			e.ID, e.User, e.Anon, e.Previous = rename(e.ID), rename(e.User), rename(e.Anon), rename(e.Previous)
			if email, ok := e.Traits["email"].(string); ok {
				e.Traits["email"] = rename(email)
			}
			crowd = append(crowd, e)
		}
		for _, d := range profilestest.RandomDecisions(rng, crowd) {
			d.ID = rename(d.ID)
			decisions = append(decisions, d)
		}
		all = append(all, crowd...)
	}
	return all, decisions
}

// deliveries are the messages of events and decisions in a random order, a third of them twice. sent is how many are of
// events.
func (p *pipeline) deliveries(rng *rand.Rand, events []profilestest.Event, decisions []profilestest.Decision) (list []collector.Routed, sent int) {
	for _, e := range events {
		for range 1 + rng.IntN(3)/2 {
			m := e.Message()
			list = append(list, collector.Routed{Lane: m.Key.Lane(p.lanes), Message: m})
		}
	}
	sent = len(list)
	for _, d := range decisions {
		for range 1 + rng.IntN(3)/2 {
			lane, m := d.Message(p.lanes)
			list = append(list, collector.Routed{Lane: lane, Message: m})
		}
	}
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list, sent
}

func TestTheServerAgreesWithTheNaiveFold(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		lanes, batch int
		seed         uint64
	}{
		{"one lane, everything at once", 1, 2000, 1},
		{"two lanes, three entries at a time", 2, 3, 2},
		{"sixteen lanes, an entry at a time", 16, 1, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPipeline(t, c.lanes)
			rng := rand.New(rand.NewPCG(c.seed, 7))
			events, decisions := crowds(rng, 25)
			list, sent := p.deliveries(rng, events, decisions)
			for _, s := range profilestest.Segments[:3] { // these see the events come
				p.segment(fmt.Sprintf("s%d", s.ID), s.Rule)
			}
			cfg := collector.FlushConfig{Node: "one", MaxEntries: c.batch, Lease: 2 * time.Second}
			stop := p.flush(cfg)
			for chunk := range slices.Chunk(list, 37) {
				p.commit(chunk...)
				if rng.IntN(6) == 0 { // the flusher is stopped in the middle, and another one goes on
					stop()
					cfg.Node += "+"
					stop = p.flush(cfg)
				}
				if rng.IntN(6) == 0 { // somebody looks for lanes as well
					other := cfg
					other.Node = fmt.Sprintf("other%d", rng.Int())
					defer p.flush(other)()
				}
			}
			p.settle(sent)
			for _, s := range profilestest.Segments[3:] { // these are built from the archive
				p.segment(fmt.Sprintf("s%d", s.ID), s.Rule)
			}
			p.settle(sent)
			want := profilestest.Fold(events, time.Now(), decisions...)
			if diff := cmp.Diff(want, p.people()); diff != "" {
				t.Errorf("people (-want +got):\n%s", diff)
			}
			if c, want := p.counts(), [4]int64{int64(sent), int64(len(events)), int64(sent - len(events)), 0}; c != want {
				t.Errorf("accepted, applied, duplicate, failed are %v, want %v", c, want)
			}
			if n := one[int](p, `SELECT count(*) FROM decisions`); n != len(decisions) {
				t.Errorf("%d decisions are noted, want %d", n, len(decisions))
			}
			const twice = `
				SELECT count(*)
				FROM (SELECT entered = lag(entered, 1, false) OVER (PARTITION BY segment_id, profile_id ORDER BY lane, seq) AS again
				      FROM transitions) AS t
				WHERE again`
			var n int
			if err := p.pool.QueryRow(t.Context(), twice).Scan(&n); err != nil || n > 0 {
				t.Errorf("%d transitions do not alternate, err %v", n, err)
			}
		})
	}
}

func tracked(id, anon, name string) profilestest.Event {
	return profilestest.Event{ID: id, Type: "track", Event: name, Anon: anon, At: profilestest.Start}
}

func TestAMessageThatTheDatabaseRefusesIsKeptAndItsNeighboursAreApplied(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 1)
	var list []profiles.Message
	for i := range 40 {
		name := "Order"
		if i == 17 {
			name = "Or\x00der" // the collector would have replaced it; text columns refuse it
		}
		list = append(list, tracked(fmt.Sprintf("m%d", i), fmt.Sprintf("a%d", i%7), name).Message())
	}
	list[30].Body = []byte(`{"type":"track"`)
	p.send(list...)
	p.flush(collector.FlushConfig{Node: "one"})
	p.settle(len(list))
	if got, want := p.counts(), [4]int64{40, 38, 0, 2}; got != want {
		t.Errorf("accepted, applied, duplicate, failed are %v, want %v", got, want)
	}
	rows, _ := p.pool.Query(t.Context(), `SELECT stage || ' ' || sqlstate FROM failed_events ORDER BY id`)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	slices.Sort(got)
	if diff := cmp.Diff([]string{"decode ", "store 22021"}, got); diff != "" || err != nil {
		t.Errorf("failed events (-want +got):\n%s%v", diff, err)
	}

	// A replay of what cannot be applied fails again, and neither is lost nor a duplicate.
	ids := []profiles.FailedID{{Lane: 0, ID: 1}, {Lane: 0, ID: 2}}
	n, err := collector.NewReplayer(p.store(), p.committer).Replay(t.Context(), 1, ids)
	if n != 2 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	p.settle(len(list) + 2)
	if got, want := p.counts(), [4]int64{42, 38, 0, 4}; got != want {
		t.Errorf("after the replay accepted, applied, duplicate, failed are %v, want %v", got, want)
	}

	// What a newer version can apply is applied, once, however often it is replayed.
	const mend = `UPDATE failed_events SET message = $1 WHERE id = 3`
	if _, err := p.pool.Exec(t.Context(), mend, profiles.AppendMessage(nil, tracked("m17", "a3", "Order").Message())); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := collector.NewReplayer(p.store(), p.committer).Replay(t.Context(), 1, []profiles.FailedID{{Lane: 0, ID: 3}}); err != nil {
			t.Fatal(err)
		}
	}
	p.settle(len(list) + 3)
	waitFor(t, "the lane to come to rest", p.drained)
	if got, want := p.counts(), [4]int64{43, 39, 0, 4}; got != want {
		t.Errorf("after the second replay accepted, applied, duplicate, failed are %v, want %v", got, want)
	}
}

func TestAStreamThatIsLostIsNoticedAndGoesOn(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	p := newPipeline(t, 1)
	stop := p.flush(collector.FlushConfig{Node: "one"})
	p.send(tracked("m1", "a", "Order").Message())
	p.settle(1)

	// The stream comes back with ids that lie before the committed offset, as after a failover to a replica that lags.
	keys, err := p.rdb.Keys(t.Context(), p.prefix+"*").Result()
	if err != nil || len(keys) == 0 {
		t.Fatal(keys, err)
	}
	if err := p.rdb.Del(t.Context(), keys...).Err(); err != nil {
		t.Fatal(err)
	}
	frame := collector.AppendFrame(nil, []profiles.Message{tracked("m2", "a", "Order").Message()})
	if err := p.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: keys[0], ID: "5-1", Values: []any{"f", frame}}).Err(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the early entry to be read", func() bool { return p.counts()[1] == 2 })
	p.send(tracked("m3", "a", "Order").Message())
	p.settle(3)

	// As after a restart of Redis: everything is read again, and nothing is counted twice.
	if _, err := p.pool.Exec(t.Context(), `UPDATE lanes SET redis_run_id = 'another'`); err != nil {
		t.Fatal(err)
	}
	stop()
	p.flush(collector.FlushConfig{Node: "two"})
	p.send(tracked("m3", "a", "Order").Message())
	waitFor(t, "the duplicate to be counted", func() bool { return p.counts()[2] > 0 })
	if got, want := p.counts(), [4]int64{4, 3, 1, 0}; got != want {
		t.Errorf("accepted, applied, duplicate, failed are %v, want %v", got, want)
	}
}

// What a lane has told another is told again when Redis has lost it before the other has heard it.
func TestWhatLanesTellEachOtherOutlivesALostStream(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	const lanes = 2
	p := newPipeline(t, lanes)
	p.exec(`UPDATE lanes SET owner = 'somebody else', lease_until = 'infinity' WHERE lane = 1`)
	p.flush(collector.FlushConfig{Node: "one"})
	user, visitor := "", inLane(1, lanes, 1)[0]
	for i := 0; user == ""; i++ {
		id := fmt.Sprint("u", i)
		if profilestest.Secret.Key(profiles.Identifier{Kind: profiles.UserID, Value: id}).Lane(lanes) == 0 {
			user = id
		}
	}
	p.send(profilestest.Event{ID: "m1", Type: "track", Event: "Order", User: user, Anon: visitor, At: profilestest.Start}.Message())
	waitFor(t, "the lane to have told the other", func() bool {
		n, err := p.rdb.XLen(t.Context(), p.prefix+"{1}").Result()
		return err == nil && n > 0 && one[int](p, `SELECT count(*) FROM outbox`) > 0
	})
	keys, err := p.rdb.Keys(t.Context(), p.prefix+"*").Result()
	if err != nil || len(keys) != lanes {
		t.Fatal(keys, err)
	}
	if err := p.rdb.Del(t.Context(), keys...).Err(); err != nil {
		t.Fatal(err)
	}
	p.exec(`UPDATE lanes SET lease_until = '-infinity' WHERE lane = 1`)
	waitFor(t, "the other to hear it", func() bool {
		return one[int](p, `SELECT count(*) FROM outbox`) == 0 && one[int](p, `SELECT count(*) FROM routes WHERE lane = 1`) > 0
	})
}

func TestAMessageThatKillsTheProcessIsSetAside(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 1)
	stop := p.flush(collector.FlushConfig{Node: "one"})
	p.send(tracked("m1", "a", "Order").Message())
	p.settle(1)
	stop()
	killer := tracked("m2", "a", "Order").Message()
	p.send(killer, tracked("m3", "a", "Order").Message())
	// What is left when the process has died of it, three times in batches and twice of the message by itself.
	const died = `UPDATE lanes SET unclean = true, attempts = 5, suspect = $1`
	if _, err := p.pool.Exec(t.Context(), died, killer.ID); err != nil {
		t.Fatal(err)
	}
	p.flush(collector.FlushConfig{Node: "one"})
	p.settle(3)
	if got, want := p.counts(), [4]int64{3, 2, 0, 1}; got != want {
		t.Errorf("accepted, applied, duplicate, failed are %v, want %v", got, want)
	}
	waitFor(t, "the count of attempts to be forgotten", func() bool {
		var attempts int
		return p.pool.QueryRow(t.Context(), `SELECT attempts FROM lanes`).Scan(&attempts) == nil && attempts == 0
	})
}

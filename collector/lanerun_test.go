package collector_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// exec runs a statement that must work.
func (p *pipeline) exec(sql string, args ...any) {
	p.t.Helper()
	if _, err := p.pool.Exec(p.t.Context(), sql, args...); err != nil {
		p.t.Fatal(err)
	}
}

// hold runs statements in a transaction that stays open until the function it returns is called.
func (p *pipeline) hold(statements ...string) (release func()) {
	p.t.Helper()
	tx, err := p.pool.Begin(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	for _, sql := range statements {
		if _, err := tx.Exec(p.t.Context(), sql); err != nil {
			p.t.Fatal(err)
		}
	}
	release = func() { _ = tx.Rollback(context.Background()) }
	p.t.Cleanup(release)
	return release
}

// waitForAttempts waits until at least n statements have been held up by locks, one after the other or at once.
func (p *pipeline) waitForAttempts(n int) {
	p.t.Helper()
	const waiting = `SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
	seen := map[time.Time]bool{}
	waitFor(p.t, "attempts that a lock holds up", func() bool {
		rows, _ := p.pool.Query(p.t.Context(), waiting)
		began, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
		if err != nil {
			p.t.Fatal(err)
		}
		for _, at := range began {
			seen[at] = true
		}
		return len(seen) >= n
	})
}

// one returns the only value that a query has.
func one[T any](p *pipeline, query string, args ...any) T {
	p.t.Helper()
	rows, _ := p.pool.Query(p.t.Context(), query, args...)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// inLane returns visitors who are at home in a lane.
func inLane(lane, lanes, n int) []string {
	var found []string
	for i := 0; len(found) < n; i++ {
		id := fmt.Sprintf("v%d", i)
		if profilestest.Secret.Key(profiles.Identifier{Kind: profiles.AnonymousID, Value: id}).Lane(lanes) == lane {
			found = append(found, id)
		}
	}
	return found
}

func TestALaneThatHangsHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 4)
	p.flush(collector.FlushConfig{Node: "one", Lease: time.Minute}) // the lane is not taken away meanwhile
	p.send(tracked("first", "a", "Order").Message())
	p.settle(1)
	waitFor(t, "every lane to be at work", func() bool { return one[bool](p, `SELECT min(as_of) > '-infinity' FROM lanes`) })
	release := p.hold(`SELECT FROM lanes WHERE lane = 2 FOR UPDATE`)
	p.send(tracked("held", inLane(2, 4, 1)[0], "Order").Message())
	applied := int64(1)
	for round := range 20 {
		for _, lane := range []int{0, 1, 3} {
			p.send(tracked(fmt.Sprintf("m%d-%d", round, lane), inLane(lane, 4, 1)[0], "Order").Message())
			applied++
		}
		waitFor(t, "the other lanes", func() bool { return p.counts()[1] == applied })
	}
	release()
	waitFor(t, "the lane that hung", func() bool { return p.counts()[1] == applied+1 })
}

func TestANodeThatComesInIsGivenItsLanesAtOnce(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 4)
	const owned = `SELECT count(*) FROM lanes WHERE owner = $1 AND lease_until > now()`
	p.flush(collector.FlushConfig{Node: "one", Lease: time.Minute})
	waitFor(t, "the first node to have all lanes", func() bool { return one[int](p, owned, "one") == 4 })
	p.flush(collector.FlushConfig{Node: "two", Lease: time.Minute})
	waitFor(t, "the second node to have half of them", func() bool { return one[int](p, owned, "two") == 2 })
}

func TestFreshnessIsToldDuringSteadyTraffic(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 1)
	p.flush(collector.FlushConfig{Node: "one"})
	p.send(tracked("first", "a", "Order").Message())
	p.settle(1)
	// One event follows the other, more often than anybody waits for, until as_of is an instant well within the traffic.
	const age = `SELECT extract(epoch FROM clock_timestamp() - min(as_of))::float8 FROM lanes`
	began, sent := time.Now(), 1
	for tick := time.Tick(20 * time.Millisecond); sent < 100 || one[float64](p, age) > time.Since(began).Seconds()-1; sent++ {
		if sent == 3000 {
			t.Fatalf("as_of is %.1f s old", one[float64](p, age))
		}
		p.send(tracked(fmt.Sprintf("m%d", sent), "a", "Order").Message())
		<-tick
	}
}

func TestAFaultThatTheProcessSurvivesSetsNothingAside(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 1)
	// The last owner died, and died of the batch before: from here on every attempt counts.
	p.exec(`UPDATE lanes SET unclean = true, attempts = 3`)
	p.send(tracked("m1", "a", "Order").Message(), tracked("m2", "a", "Order").Message())
	release := p.hold(`LOCK TABLE dedupe_0, dedupe_1 IN ACCESS EXCLUSIVE MODE`)
	p.flush(collector.FlushConfig{Node: "one", Timeout: 150 * time.Millisecond})
	p.waitForAttempts(6)
	release()
	p.settle(2)
	if got, want := p.counts(), [4]int64{2, 2, 0, 0}; got != want {
		t.Errorf("accepted, applied, duplicate, failed are %v, want %v", got, want)
	}
}

func TestDoubtAboutAStreamOutlivesAFault(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	p := newPipeline(t, 1)
	stop := p.flush(collector.FlushConfig{Node: "one"})
	p.send(tracked("m1", "a", "Order").Message())
	p.settle(1)
	stop()

	// Another Redis, whose entries lie before the offset; and the first attempt to read it from its beginning fails.
	keys, err := p.rdb.Keys(t.Context(), p.prefix+"*").Result()
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	if err := p.rdb.Del(t.Context(), keys...).Err(); err != nil {
		t.Fatal(err)
	}
	frame := collector.AppendFrame(nil, []profiles.Message{tracked("m2", "a", "Order").Message()})
	if err := p.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: keys[0], ID: "5-1", Values: []any{"f", frame}}).Err(); err != nil {
		t.Fatal(err)
	}
	release := p.hold(`LOCK TABLE dedupe_0, dedupe_1 IN ACCESS EXCLUSIVE MODE`)
	stop = p.flush(collector.FlushConfig{Node: "two", Timeout: 300 * time.Millisecond})
	p.waitForAttempts(2) // the first has failed then
	stop()
	release()
	p.flush(collector.FlushConfig{Node: "three"})
	waitFor(t, "the early entry to be read", func() bool { return p.counts()[1] == 2 })
}

func TestAProfileThatCannotBeReadHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 1)
	p.segment("lapsing", `{"event": "Order", "within": "1h"}`)
	stop := p.flush(collector.FlushConfig{Node: "one"})
	broken := tracked("m1", "broken", "Order")
	broken.At = time.Now()
	p.send(broken.Message(), tracked("m2", "a", "Order").Message())
	p.settle(2)
	stop()
	p.exec(`UPDATE profiles SET state = '\x01ffff', due_at = now() WHERE id = $1`, broken.Message().Key)
	p.flush(collector.FlushConfig{Node: "two"})

	p.send(tracked("m3", "a", "Order").Message())
	waitFor(t, "somebody else's event to be applied", func() bool { return p.counts()[1] == 3 })
	p.segment("buyers", `{"event": "Order"}`) // it cannot be built
	time.Sleep(1500 * time.Millisecond)
	p.send(tracked("m4", "a", "Order").Message())
	waitFor(t, "somebody else's event to be applied during the build", func() bool { return p.counts()[1] == 4 })
	p.send(tracked("m5", "broken", "Order").Message(), tracked("m6", "a", "Order").Message())
	waitFor(t, "the event to be set aside", func() bool { return p.counts() == [4]int64{6, 5, 0, 1} })
	if stage := one[string](p, `SELECT stage FROM failed_events`); stage != "fold" {
		t.Errorf("it failed at %q, want fold", stage)
	}
	if late := one[bool](p, `SELECT due_at > now() FROM profiles WHERE id = $1`, broken.Message().Key); !late {
		t.Error("the profile was not put off")
	}
}

func TestAnInstantBeyondAllCalendarsIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 1)
	p.segment("renewing", `{"trait": "renews_at", "op": "within_next", "value": "30d"}`)
	p.flush(collector.FlushConfig{Node: "one"})
	for i, at := range []int64{9_000_000_000_000_000_000, 20_000_000_000_000_000, 9_300_000_000_000_000, 253_402_300_799_000} {
		e := profilestest.Event{ID: fmt.Sprint("m", i), Type: "identify", Anon: fmt.Sprint("a", i), At: profilestest.Start}
		e.Traits = map[string]any{"renews_at": at}
		p.send(e.Message())
	}
	p.settle(4)
	if got, want := p.counts(), [4]int64{4, 4, 0, 0}; got != want {
		t.Errorf("accepted, applied, duplicate, failed are %v, want %v", got, want)
	}
	if n := one[int](p, `SELECT count(*) FROM profiles WHERE due_at < now() + '1 year'`); n > 0 {
		t.Errorf("%d profiles are due", n)
	}
}

func TestAWindowsEndIsAnExitWithinASecondWithoutTraffic(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 2)
	p.segment("recent", `{"event": "Order", "within": "2s"}`)
	p.flush(collector.FlushConfig{Node: "one"})
	p.send(tracked("first", "x", "Other").Message())
	p.settle(1)
	var list []profiles.Message
	for i := range 20 {
		e := tracked(fmt.Sprintf("m%d", i), fmt.Sprintf("a%d", i), "Order")
		e.At = time.Now()
		list = append(list, e.Message())
	}
	p.send(list...)
	waitFor(t, "everybody to leave", func() bool { return one[int](p, `SELECT count(*) FROM transitions WHERE NOT entered`) == 20 })
	const late = `
		SELECT max(extract(epoch FROM t.at - e.event_at))::float8, min(extract(epoch FROM t.at - e.event_at))::float8,
		       count(*) FILTER (WHERE t.cause <> 'timer')
		FROM transitions AS t
		JOIN events AS e ON e.key = t.profile_id
		WHERE NOT t.entered`
	var most, least float64
	var others int
	if err := p.pool.QueryRow(t.Context(), late).Scan(&most, &least, &others); err != nil {
		t.Fatal(err)
	}
	if most > 3 || least < 2 || others > 0 {
		t.Errorf("exits came from %.3f to %.3f s after the event, %d of them not by timer; want 2 to 3 s, and none", least, most, others)
	}
	if n := one[int](p, `SELECT count(*) FROM memberships`); n > 0 {
		t.Errorf("%d are still members", n)
	}
}

func TestTimersRingDuringTraffic(t *testing.T) {
	t.Parallel()
	const people = 1000
	p := newPipeline(t, 4)
	p.segment("recent", `{"event": "Order", "within": "5s"}`)
	p.flush(collector.FlushConfig{Node: "one"})
	p.settle(0)
	var list []profiles.Message
	for i := range people {
		e := tracked(fmt.Sprintf("order%d", i), fmt.Sprintf("a%d", i), "Order")
		e.At = time.Now()
		list = append(list, e.Message())
	}
	p.send(list...)
	// Nothing but events, one after the other, until all timers have rung.
	sent := people
	const left = `SELECT count(DISTINCT profile_id) FROM transitions WHERE NOT entered`
	waitFor(t, "everybody to leave", func() bool {
		for lane := range 4 {
			p.send(tracked(fmt.Sprintf("visit%d", sent), inLane(lane, 4, 1)[0], "Visit").Message())
			sent++
		}
		return one[int](p, left) == people
	})
	p.settle(sent)
	want := []string{"entered by event: 1000", "left by timer: 1000"}
	if diff := cmp.Diff(want, p.transitions(1)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// transitions are "entered" or "left", cause and how many.
func (p *pipeline) transitions(segment int) []string {
	p.t.Helper()
	const query = `
		SELECT concat(CASE WHEN entered THEN 'entered' ELSE 'left' END, ' by ', cause, ': ', count(*))
		FROM transitions
		WHERE segment_id = $1
		GROUP BY entered, cause
		ORDER BY 1`
	rows, _ := p.pool.Query(p.t.Context(), query, segment)
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		p.t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func TestEditingAndDeletingASegmentYieldExactlyTheDifference(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 4)
	p.flush(collector.FlushConfig{Node: "one"})
	var list []profiles.Message
	for person := range 60 { // one to three orders each
		for order := range 1 + person%3 {
			list = append(list, tracked(fmt.Sprintf("m%d-%d", person, order), fmt.Sprintf("a%d", person), "Order").Message())
		}
	}
	p.send(list...)
	p.settle(len(list))
	p.segment("buyers", `{"event": "Order", "count": {"lte": 2, "gte": 1}}`) // 40 of them
	p.settle(len(list))
	want := []string{"entered by build: 40"}
	if diff := cmp.Diff(want, p.transitions(1)); diff != "" {
		t.Fatalf("built (-want +got):\n%s", diff)
	}

	segments := profiles.NewSegments(p.pool, p.lanes)
	edit := profiles.SegmentChange{Rule: []byte(`{"event": "Order", "count": {"gte": 2}}`)}
	if _, err := segments.Update(t.Context(), 1, profiles.SegmentRef{ID: 1}, edit); err != nil {
		t.Fatal(err)
	}
	p.settle(len(list))
	want = []string{"entered by build: 40", "entered by edit: 20", "left by edit: 20"}
	if diff := cmp.Diff(want, p.transitions(1)); diff != "" {
		t.Errorf("edited (-want +got):\n%s", diff)
	}

	if _, err := segments.Delete(t.Context(), 1, profiles.SegmentRef{ID: 1}, 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the segment to be gone", func() bool { return one[int](p, `SELECT count(*) FROM segments`) == 0 })
	want = append(want[:2], "left by delete: 40", "left by edit: 20")
	if diff := cmp.Diff(want, p.transitions(1)); diff != "" {
		t.Errorf("deleted (-want +got):\n%s", diff)
	}
	if n := one[int](p, `SELECT (SELECT count(*) FROM memberships) + (SELECT count(*) FROM segment_counts)`); n > 0 {
		t.Errorf("%d rows are left of it", n)
	}
}

func TestABuildWaitsForWhatOtherLanesReplay(t *testing.T) {
	t.Parallel()
	const lanes, people = 8, 40
	p := newPipeline(t, lanes)
	stop := p.flush(collector.FlushConfig{Node: "one"})
	var list []profiles.Message
	for i := range people { // each ordered as a visitor and is known as a user since, mostly in another lane
		anon, user := fmt.Sprintf("a%d", i), fmt.Sprintf("u%d", i)
		list = append(
			list, tracked(fmt.Sprintf("order%d", i), anon, "Order").Message(),
			profilestest.Event{ID: fmt.Sprintf("login%d", i), Type: "identify", User: user, Anon: anon, At: profilestest.Start.Add(time.Second)}.Message(),
		)
	}
	p.send(list...)
	p.settle(len(list))
	stop()

	p.segment("never", `{"not": {"event": "Order"}}`)
	for i := range 1500 { // a backlog that each lane has to work off before it sees what the others replayed
		list = append(list, tracked(fmt.Sprintf("noise%d", i), fmt.Sprintf("a%d", i%people), "Noise").Message())
		p.send(list[len(list)-1])
	}
	p.flush(collector.FlushConfig{Node: "two", MaxEntries: 1})
	p.settle(len(list))
	if got := p.transitions(1); len(got) > 0 {
		t.Errorf("nobody was to enter or leave, but: %s", strings.Join(got, ", "))
	}
}

func TestASegmentMadeDuringTrafficIsExact(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 4)
	p.flush(collector.FlushConfig{Node: "one"})
	const people, seconds, rate = 97, 4, 1000
	count := map[string]int{}
	var claims []profiles.Message
	for i := range people { // half of them have two names
		if i%2 == 0 {
			e := profilestest.Event{ID: fmt.Sprintf("login%d", i), Type: "identify", User: fmt.Sprintf("u%d", i), Anon: fmt.Sprintf("a%d", i), At: profilestest.Start}
			claims = append(claims, e.Message())
		}
	}
	p.send(claims...)
	sent := len(claims)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 0; i < seconds*rate; {
		if i == rate {
			p.segment("regulars", fmt.Sprintf(`{"event": "Order", "count": {"gte": %d}}`, seconds*rate/people+1))
			p.segment("strangers", `{"not": {"event": "Order", "where": [{"property": "revenue", "op": "gte", "value": 90}]}}`)
		}
		<-tick.C
		var list []profiles.Message
		for range rate / 50 {
			e := tracked(fmt.Sprintf("m%d", i), fmt.Sprintf("a%d", i*i%people), "Order")
			e.Revenue = i % 91
			count[e.Anon]++
			if e.Revenue >= 90 {
				count["rich "+e.Anon]++
			}
			list = append(list, e.Message())
			i++
		}
		p.send(list...)
		sent += len(list)
	}
	p.settle(sent)
	want := map[profiles.Key][]int64{}
	for i := range people {
		anon := fmt.Sprintf("a%d", i)
		id := profiles.Identifier{Kind: profiles.AnonymousID, Value: anon}
		if i%2 == 0 {
			id = profiles.Identifier{Kind: profiles.UserID, Value: fmt.Sprintf("u%d", i)}
		}
		var in []int64
		if count[anon] >= seconds*rate/people+1 {
			in = append(in, 1)
		}
		if count["rich "+anon] == 0 && (i%2 == 0 || count[anon] > 0) {
			in = append(in, 2)
		}
		if len(in) > 0 {
			want[profilestest.Secret.Key(id)] = in
		}
	}
	got := map[profiles.Key][]int64{}
	for id, person := range p.people() {
		if len(person.Segments) > 0 {
			got[id] = person.Segments
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	if len(want) == 0 {
		t.Error("nobody was to be a member: the test shows nothing")
	}
}

func TestTimersRingWhileRedisIsDown(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 1)
	server := startRedis(t)
	cfg := collector.Config{Lanes: 1, AllowDegraded: true}
	p.rdb = server.client()
	p.stream = collector.NewStream(cfg.Stream(), p.rdb)
	p.committer = collector.NewCommitter(cfg, p.stream, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	run(t, p.committer.Run)
	p.segment("recent", `{"event": "Order", "within": "4s"}`)
	p.flush(collector.FlushConfig{Node: "one"})
	e := tracked("m1", "a", "Order")
	e.At = time.Now()
	p.send(e.Message())
	p.settle(1)
	if n := one[int](p, `SELECT count(*) FROM memberships`); n != 1 {
		t.Fatalf("%d members, want 1", n)
	}
	server.kill()
	waitFor(t, "the exit", func() bool { return one[int](p, `SELECT count(*) FROM memberships`) == 0 })
}

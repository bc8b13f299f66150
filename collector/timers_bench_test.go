package collector_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

var timers = flag.Int("timers", 10_000, "how many memberships end at the same moment in BenchmarkTimers")

// BenchmarkTimers has the windows of many people end in the same second, in 16 lanes, and tells how fast they leave.
// With traffic it also tells what that means to the events that come meanwhile: how long one takes from its acceptance
// to the commit of its µbatch, before and while the timers ring.
func BenchmarkTimers(b *testing.B) {
	for _, rate := range []int{0, 1000} {
		b.Run(fmt.Sprintf("events=%d", rate), func(b *testing.B) {
			for b.Loop() {
				benchmarkTimers(b, *timers, rate)
			}
		})
	}
}

func benchmarkTimers(b *testing.B, people, rate int) {
	const within = time.Hour
	const idle = 4 * time.Second
	w := newWatched(b, 16)
	w.segment("recent", fmt.Sprintf(`{"event": "Order", "within": "%ds"}`, int(within.Seconds())))
	w.segment("regulars", `{"event": "Visit", "count": {"gte": 20}, "within": "1h"}`)
	stop := w.flush(collector.FlushConfig{Node: "seed"})
	due := time.Now().Add(4*time.Second + time.Duration(people)*time.Second/5000 + idle).Truncate(time.Second)
	template := tracked("template", "template", "Order")
	template.At = due.Add(-within)
	w.send(template.Message())
	w.settle(1)
	stop()
	w.crowd(template.Message().Key, people-1)

	w.flush(collector.FlushConfig{Node: "one"})
	stopTraffic := w.traffic(rate)
	if left := time.Until(due); left < idle/2 {
		b.Fatalf("seeding has left %v until the timers ring", left)
	} else {
		time.Sleep(left)
	}
	var done time.Time
	for members := -1; members != 0; time.Sleep(20 * time.Millisecond) {
		done = time.Now()
		members = one[int](w.pipeline, `SELECT sum(members)::integer FROM segment_counts WHERE segment_id = 1`)
	}
	stopTraffic()
	const exits = `SELECT count(DISTINCT profile_id) = $1 AND count(*) = $1 FROM transitions WHERE NOT entered AND cause = 'timer'`
	if !one[bool](w.pipeline, exits, people) {
		b.Errorf("not everybody has left once by a timer")
	}
	b.ReportMetric(0, "ns/op") // most of it is waiting
	b.ReportMetric(float64(people)/done.Sub(due).Seconds(), "expiries/s")
	if rate == 0 {
		return
	}
	before, during := w.latencies(due.Add(-idle/2), due), w.latencies(due, done)
	for _, q := range []struct {
		name string
		of   float64
	}{{"p50", 0.5}, {"p99", 0.99}} {
		x, y := quantile(before, q.of), quantile(during, q.of)
		b.ReportMetric(x, "idle-"+q.name+"-ms")
		b.ReportMetric(y, "draining-"+q.name+"-ms")
		b.ReportMetric(y/x, "ratio-"+q.name)
	}
}

// crowd makes that many people who are as the one with the id, but for their names.
func (w *watched) crowd(id profiles.Key, people int) {
	w.t.Helper()
	ctx := w.t.Context()
	var packed []byte
	var due time.Time
	const like = `SELECT state, due_at FROM profiles WHERE id = $1`
	if err := w.pool.QueryRow(ctx, like, id).Scan(&packed, &due); err != nil {
		w.t.Fatal(err)
	}
	p, err := profiles.DecodeProfile(id, 1, packed)
	if err != nil {
		w.t.Fatal(err)
	}
	i := 0
	row := func() ([]any, error) {
		if i == people {
			return nil, nil
		}
		i++
		p.Fragments[0].Identifier.Value = fmt.Sprintf("crowd%d", i)
		p.ID = profilestest.Secret.Key(p.Fragments[0].Identifier)
		p.Fragments[0].Key = p.ID
		return []any{int16(p.ID.Lane(w.lanes)), int32(1), p.ID, profiles.AppendProfile(nil, p), due, due, due}, nil
	}
	columns := []string{"lane", "workspace_id", "id", "state", "due_at", "last_seen_at", "updated_at"}
	if _, err := w.pool.CopyFrom(ctx, pgx.Identifier{"profiles"}, columns, pgx.CopyFromFunc(row)); err != nil {
		w.t.Fatal(err)
	}
	w.exec(`
		INSERT INTO memberships (lane, workspace_id, segment_id, profile_id, entered_at)
		SELECT lane, workspace_id, 1, id, now() FROM profiles ORDER BY lane, id ON CONFLICT DO NOTHING`)
	w.exec(`DELETE FROM segment_counts WHERE segment_id = 1`)
	w.exec(`INSERT INTO segment_counts (lane, segment_id, members) SELECT lane, 1, count(*) FROM memberships GROUP BY lane`)
	w.exec(`VACUUM ANALYZE`)
}

// traffic sends so many events a second, each by itself, until the function it returns is called.
func (w *watched) traffic(rate int) (stop func()) {
	return run(w.t, func(ctx context.Context) error {
		var wg sync.WaitGroup
		defer wg.Wait()
		began := time.Now()
		for i := 0; rate > 0; i++ {
			select {
			case <-time.After(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate)))):
			case <-ctx.Done():
				return nil
			}
			e := tracked(fmt.Sprintf("visit%d", i), fmt.Sprintf("visitor%d", rand.IntN(10_000)), "Visit")
			e.At = time.Now()
			m := e.Message()
			wg.Go(func() {
				if err := w.committer.Commit(ctx, []collector.Routed{{Lane: m.Key.Lane(w.lanes), Message: m}}); err != nil && ctx.Err() == nil {
					w.t.Error(err)
				}
			})
		}
		<-ctx.Done()
		return nil
	})
}

func quantile(list []time.Duration, q float64) float64 {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return float64(list[int(q*float64(len(list)-1))].Microseconds()) / 1000
}

// watched is a pipeline that sees which events its lanes commit, and when.
type watched struct {
	*pipeline

	mu      sync.Mutex
	pending map[*pgx.Conn][]time.Time // of events archived in a transaction, when they were received
	applied []applied
}

// statement is the key of a traced statement's text in its context.
type statement struct{}

type applied struct {
	received time.Time
	took     time.Duration
}

func newWatched(t testing.TB, lanes int) *watched {
	t.Helper()
	return &watched{pipeline: newPipeline(t, lanes), pending: map[*pgx.Conn][]time.Time{}}
}

func (w *watched) flush(cfg collector.FlushConfig) (stop func()) {
	w.t.Helper()
	pc := w.pool.Config()
	pc.MaxConns = int32(2*w.lanes + 8) // as the server has
	pc.ConnConfig.Tracer = w
	pool, err := pgxpool.NewWithConfig(w.t.Context(), pc)
	if err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	store := profiles.NewStore(pool, profiles.Config{Lanes: w.lanes}, activation.NewLedger(prometheus.NewRegistry()), func() {}, log)
	stopFlusher := run(w.t, collector.NewFlusher(cfg, w.stream, w.committer, store, prometheus.NewRegistry(), log).Run)
	stop = sync.OnceFunc(func() {
		stopFlusher()
		pool.Close()
	})
	w.t.Cleanup(stop)
	return stop
}

// latencies are those of the events received from one moment to the other.
func (w *watched) latencies(from, to time.Time) []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []time.Duration
	for _, a := range w.applied {
		if !a.received.Before(from) && a.received.Before(to) {
			list = append(list, a.took)
		}
	}
	return list
}

// The tracer of the flusher's connections.

func (w *watched) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (w *watched) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (w *watched) TraceBatchQuery(_ context.Context, conn *pgx.Conn, data pgx.TraceBatchQueryData) {
	if !strings.Contains(data.SQL, "INSERT INTO events (") {
		return
	}
	for _, arg := range data.Args {
		if received, ok := arg.([]time.Time); ok { // the first such column
			w.mu.Lock()
			defer w.mu.Unlock()
			w.pending[conn] = received
			return
		}
	}
}

func (w *watched) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, statement{}, data.SQL)
}

func (w *watched) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryEndData) {
	sql, _ := ctx.Value(statement{}).(string)
	if !strings.EqualFold(sql, "commit") && !strings.EqualFold(sql, "rollback") {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if data.Err == nil && strings.EqualFold(sql, "commit") {
		now := time.Now()
		for _, received := range w.pending[conn] {
			w.applied = append(w.applied, applied{received, now.Sub(received)})
		}
	}
	delete(w.pending, conn)
}

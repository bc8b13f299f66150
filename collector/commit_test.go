package collector_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/profiles"
)

// runCommitter runs a committer until the test ends, or the returned function is called, which waits for it.
func runCommitter(t testing.TB, cfg collector.Config, rdb redis.UniversalClient) (*collector.Committer, *collector.Stream, func()) {
	t.Helper()
	s := collector.NewStream(cfg.Stream(), rdb)
	c := collector.NewCommitter(cfg, s, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return c, s, stop
}

// ids returns how often each message id is in the lanes.
func ids(t testing.TB, s *collector.Stream) map[profiles.Key]int {
	t.Helper()
	seen := make(map[profiles.Key]int)
	for lane := range s.Lanes() {
		var after collector.Offset
		for {
			entries, err := s.Read(context.Background(), lane, after, 1000, 8<<20, time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				after = e.Offset
				for _, m := range e.Messages {
					seen[m.ID]++
				}
			}
		}
	}
	return seen
}

func routed(id string, lane int) collector.Routed {
	return collector.Routed{Lane: lane, Message: message(id, []byte("{}"))}
}

func TestWhatIsCommittedIsInItsLane(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	rdb, prefix := redistest.New(t)
	c, s, _ := runCommitter(t, collector.Config{Prefix: prefix, Lanes: 4}, rdb)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 25 {
				id := fmt.Sprintf("%d-%d", w, i)
				if err := c.Commit(t.Context(), []collector.Routed{routed(id, i%4), routed(id+"b", (i+1)%4)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	seen := ids(t, s)
	if len(seen) != 2*16*25 {
		t.Errorf("%d messages in the lanes, want %d", len(seen), 2*16*25)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%v is there %d times", id, n)
		}
	}
	if h := c.Health(); !h.Ready || !h.Durable {
		t.Errorf("health %+v", h)
	}
}

func TestARedisThatForgetsIsRefusedUnlessAllowed(t *testing.T) {
	t.Parallel()
	r := startRedis(t, "--appendfsync", "everysec")

	c, s, _ := runCommitter(t, collector.Config{Lanes: 2}, r.client())
	err := c.Commit(t.Context(), []collector.Routed{routed("a", 0)})
	if !errors.Is(err, collector.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	if h := c.Health(); h.Ready || h.Durable || !strings.Contains(h.Reason, "appendfsync") {
		t.Errorf("health %+v", h)
	}
	if n := len(ids(t, s)); n != 0 {
		t.Errorf("%d messages were written", n)
	}

	c, _, _ = runCommitter(t, collector.Config{Lanes: 2, AllowDegraded: true}, r.client())
	if err := c.Commit(t.Context(), []collector.Routed{routed("a", 0)}); err != nil {
		t.Error(err)
	}
	if h := c.Health(); !h.Ready || h.Durable || h.Reason == "" {
		t.Errorf("health %+v", h)
	}
}

func TestSettingsAreCheckedAgainAfterARestart(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	cfg := collector.Config{Lanes: 2, RecheckEvery: time.Hour, AppendTimeout: time.Second}
	c, s, _ := runCommitter(t, cfg, r.client())
	commit := func(id string) error { return c.Commit(t.Context(), []collector.Routed{routed(id, 1)}) }
	if err := commit("before"); err != nil {
		t.Fatal(err)
	}

	r.kill()
	if err := commit("down"); !errors.Is(err, collector.ErrUnavailable) {
		t.Errorf("redis is down: %v, want ErrUnavailable", err)
	}
	if h := c.Health(); h.Ready {
		t.Errorf("redis is down: %+v", h)
	}

	r.start("--appendfsync", "no")
	if err := commit("forgetful"); !errors.Is(err, collector.ErrUnavailable) {
		t.Errorf("redis came back forgetful: %v, want ErrUnavailable", err)
	}

	r.kill()
	r.start()
	waitFor(t, "recovery", func() bool { return commit("after") == nil })
	if h := c.Health(); !h.Ready || !h.Durable {
		t.Errorf("redis came back: %+v", h)
	}
	seen := ids(t, s)
	for _, id := range []string{"before", "after"} {
		if seen[profiles.MessageKey(id)] == 0 {
			t.Errorf("%q was acknowledged and is gone", id)
		}
	}
	if seen[profiles.MessageKey("forgetful")] != 0 {
		t.Error("a message went to a redis known to forget")
	}
}

func TestAHungRedisIsUnknownNotWaitedFor(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	c, s, _ := runCommitter(t, collector.Config{Lanes: 2, AppendTimeout: 200 * time.Millisecond}, r.client())
	commit := func(id string) error { return c.Commit(t.Context(), []collector.Routed{routed(id, 1)}) }
	if err := commit("before"); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := commit("hung"); !errors.Is(err, collector.ErrUnavailable) || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v, want ErrUnavailable", err, time.Since(start))
	}
	if err := r.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "recovery", func() bool { return commit("after") == nil })
	if seen := ids(t, s); seen[profiles.MessageKey("before")] != 1 || seen[profiles.MessageKey("after")] == 0 {
		t.Errorf("in the lane: %v", seen)
	}
}

func TestARequestOnlyFailsWithItsOwnLanes(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	rdb, prefix := redistest.New(t)
	if err := rdb.Set(t.Context(), prefix+"{1}", "not a stream", 0).Err(); err != nil {
		t.Fatal(err)
	}
	c, _, _ := runCommitter(t, collector.Config{Prefix: prefix, Lanes: 2}, rdb)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := c.Commit(t.Context(), []collector.Routed{routed(fmt.Sprint(i), i%2)})
			if i%2 == 0 && err != nil || i%2 == 1 && !errors.Is(err, collector.ErrUnavailable) {
				t.Errorf("lane %d: %v", i%2, err)
			}
		})
	}
	wg.Wait()
}

func TestShutdownCommitsWhatIsWaiting(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	rdb, prefix := redistest.New(t)
	cfg := collector.Config{Prefix: prefix, Lanes: 2}
	s := collector.NewStream(cfg.Stream(), rdb)
	reg := prometheus.NewRegistry()
	c := collector.NewCommitter(cfg, s, reg, slog.New(slog.DiscardHandler))

	results := make(chan error, 50)
	for i := range cap(results) {
		go func() { results <- c.Commit(t.Context(), []collector.Routed{routed(fmt.Sprint(i), 0)}) }()
	}
	waitFor(t, "something to wait", func() bool { return gauge(t, reg, "mubatch_collector_waiting_bytes") > 1000 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	committed := 0
	for range cap(results) {
		if err := <-results; err == nil {
			committed++
		} else if !errors.Is(err, collector.ErrUnavailable) {
			t.Error(err)
		}
	}
	if seen := ids(t, s); len(seen) != committed || committed == 0 {
		t.Errorf("%d acknowledged, %d in the lane", committed, len(seen))
	}
	if err := c.Commit(t.Context(), []collector.Routed{routed("late", 0)}); !errors.Is(err, collector.ErrUnavailable) {
		t.Errorf("after shutdown: %v, want ErrUnavailable", err)
	}
}

func gauge(t testing.TB, reg prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestTooMuchInFlightIsBusy(t *testing.T) {
	t.Parallel()
	rdb, prefix := redistest.New(t)
	cfg := collector.Config{Prefix: prefix, Lanes: 2, MaxInFlightBytes: 1000}
	s := collector.NewStream(cfg.Stream(), rdb)
	c := collector.NewCommitter(cfg, s, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	// Nobody runs the committer, so what is taken in stays.
	large := collector.Routed{Message: message("a", bytes.Repeat([]byte("x"), 2000))}
	if err := c.Commit(ctx, []collector.Routed{large}); !errors.Is(err, collector.ErrUnavailable) {
		t.Errorf("one alone is never too large: %v, want to wait in vain", err)
	}
	if err := c.Commit(t.Context(), []collector.Routed{routed("b", 0)}); !errors.Is(err, collector.ErrBusy) {
		t.Errorf("%v, want ErrBusy", err)
	}
	claim, quarantined := routed("claim", 0), routed("quarantined", 0)
	claim.Kind, quarantined.Kind = profiles.KindClaim, profiles.KindQuarantine
	if err := c.Commit(ctx, []collector.Routed{quarantined, routed("d", 1)}); !errors.Is(err, collector.ErrBusy) {
		t.Errorf("quarantined: %v, want ErrBusy", err)
	}
	if err := c.Commit(ctx, []collector.Routed{claim}); !errors.Is(err, collector.ErrUnavailable) {
		t.Errorf("from lane to lane: %v, want to wait in vain", err)
	}
	if err := c.Commit(t.Context(), []collector.Routed{routed("c", 2)}); err == nil {
		t.Error("a lane that is none was taken")
	}
}

func BenchmarkCommit(b *testing.B) {
	redistest.RequireReal(b)
	for _, tt := range []struct{ clients, messages int }{{1, 1}, {64, 1}, {64, 100}} {
		b.Run(fmt.Sprintf("%d clients, %d messages", tt.clients, tt.messages), func(b *testing.B) {
			rdb, prefix := redistest.New(b)
			c, _, _ := runCommitter(b, collector.Config{Prefix: prefix}, rdb)
			msgs := make([]collector.Routed, tt.messages)
			for i := range msgs {
				msgs[i] = collector.Routed{Lane: i % 16, Message: message(fmt.Sprint(i), bytes.Repeat([]byte("x"), 700))}
			}
			b.SetParallelism(tt.clients / 2)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := c.Commit(context.Background(), msgs); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N*tt.messages)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

package collector_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

func TestTheLagIsMeasured(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, 1)
	reg := prometheus.NewRegistry()
	f := collector.NewFlusher(collector.FlushConfig{Node: "one", Lease: 10 * time.Minute, Measure: 20 * time.Millisecond},
		p.stream, p.committer, p.store(), reg, slog.New(slog.DiscardHandler))
	stop := run(t, f.Run)
	is := func(name string, holds func(float64) bool) {
		t.Helper()
		var v float64
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, family := range families {
				if family.GetName() == "mubatch_collector_"+name {
					v, found = family.Metric[0].GetGauge().GetValue(), true
				}
			}
			if found && holds(v) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is %v", name, v)
			}
		}
	}
	zero := func(v float64) bool { return v == 0 }
	sent := 0
	send := func(n int) { // two messages an entry
		t.Helper()
		for range n {
			var two []profiles.Message
			for range 2 {
				sent++
				two = append(two, profilestest.Event{ID: fmt.Sprint("m", sent), Type: "track", Event: "Order", Anon: fmt.Sprint("a", sent%7), At: time.Now()}.Message())
			}
			p.send(two...)
		}
	}
	send(10)
	p.settle(sent)
	is("unapplied_messages", zero)
	is("oldest_unapplied_seconds", zero)

	tx, err := p.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `SELECT FROM lanes FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	send(12)
	is("unapplied_messages", func(v float64) bool { return v == 24 })
	is("oldest_unapplied_seconds", func(v float64) bool { return v > 0.3 })

	if _, err := p.pool.Exec(t.Context(), `UPDATE profiles SET due_at = now() - '90 s'::interval WHERE id IN (SELECT id FROM profiles ORDER BY id LIMIT 3)`); err != nil {
		t.Fatal(err)
	}
	is("due_profiles", func(v float64) bool { return v == 3 })
	is("oldest_due_seconds", func(v float64) bool { return v >= 90 && v < 1000 })
	if late, err := profiles.NewReader(p.pool, 1).TimersLate(t.Context()); err != nil || late < 90*time.Second {
		t.Errorf("timers are late by %v, %v", late, err)
	}
	if _, err := p.pool.Exec(t.Context(), `UPDATE profiles SET due_at = NULL`); err != nil {
		t.Fatal(err)
	}
	is("due_profiles", zero)
	is("oldest_due_seconds", zero)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.settle(sent)
	is("unapplied_messages", zero)
	is("oldest_unapplied_seconds", zero)
	stop()
}

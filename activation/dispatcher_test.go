package activation_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// warp makes what waits for its next attempt due now.
func warp(t testing.TB, b *partnertest.Bench) {
	t.Helper()
	const query = `UPDATE activations SET next_at = now() WHERE status = 'pending'`
	if _, err := b.Pool.Exec(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

func deliveries(t testing.TB, b *partnertest.Bench, f activation.DeliveryFilter) []activation.Delivery {
	t.Helper()
	if f.Limit == 0 {
		f.Limit = 1000
	}
	list, err := b.Store.Deliveries(t.Context(), b.Workspace, "hook", f)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestRetriesFollowTheSchedule(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		entered bool
		end     string        // the status after the schedule's end
		next    time.Duration // and what is waited for then
	}{
		"an add is parked at the end":           {true, "parked", 0},
		"a remove is tried once a day for ever": {false, "pending", 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, r := newBench(t)
			b.World.Add(partnertest.Somebody(1))
			b.Apply(t, change(1, true))
			if !tc.entered {
				stop := b.Dispatch(t, activation.DispatchConfig{})
				b.Rest(t, "hook")
				stop()
				b.Apply(t, change(1, false))
			}
			r.Script(partnertest.Fault{Times: 100, Status: 500})
			before := len(deliveries(t, b, activation.DeliveryFilter{}))
			want := slices.Clone(activation.DefaultSchedule)
			if want = append(want, tc.next); tc.next > 0 {
				want = append(want, tc.next, tc.next)
			}
			for i, next := range want {
				stop := b.Dispatch(t, activation.DispatchConfig{Schedule: activation.DefaultSchedule})
				partnertest.Eventually(t, fmt.Sprintf("attempt %d is recorded", i+1), func() bool {
					return len(deliveries(t, b, activation.DeliveryFilter{})) == before+i+1
				})
				stop()
				s := state(t, b, 1)
				wait := s.NextAt.Sub(deliveries(t, b, activation.DeliveryFilter{})[0].At)
				low, high := time.Duration(float64(next)*0.79), time.Duration(float64(next)*1.21)+time.Second
				if wait < low || wait > high {
					t.Errorf("after attempt %d it waits %v, want %v give or take a fifth", i+1, wait, next)
				}
				if i < len(activation.DefaultSchedule) && s.Status != "pending" {
					t.Errorf("after attempt %d it is %s, want pending", i+1, s.Status)
				}
				if i >= len(activation.DefaultSchedule) && s.Status != tc.end {
					t.Errorf("after attempt %d it is %s, want %s", i+1, s.Status, tc.end)
				}
				warp(t, b)
			}
			keys := map[string]bool{}
			for _, d := range deliveries(t, b, activation.DeliveryFilter{Outcome: activation.Retry}) {
				keys[d.MessageKey] = true
			}
			if len(keys) != 1 {
				t.Errorf("the attempts had %d different ids, want 1", len(keys))
			}
			for _, v := range r.Violations() {
				t.Errorf("violation: %s", v)
			}

			r.Heal()
			if tc.entered {
				n, err := b.Store.Replay(t.Context(), b.Workspace, "hook", activation.Replay{})
				if err != nil || n != 1 {
					t.Errorf("Replay = %d, %v, want 1", n, err)
				}
			}
			b.Dispatch(t, activation.DispatchConfig{})
			b.Rest(t, "hook")
			if diff := cmp.Diff(b.World.Members(vip), r.Members(theVIPs)); diff != "" {
				t.Errorf("whom the receiver holds (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGoneDisables(t *testing.T) {
	t.Parallel()
	b, r := newBench(t)
	b.World.Add(partnertest.Somebody(1), partnertest.Somebody(2))
	r.Retire(true)
	b.Apply(t, change(1, true))
	b.Dispatch(t, activation.DispatchConfig{})
	status := func() activation.Status {
		d, err := b.Store.Get(t.Context(), b.Workspace, "hook")
		if err != nil {
			t.Fatal(err)
		}
		return d.Status
	}
	partnertest.Eventually(t, "the destination is disabled", func() bool {
		return status() == activation.Disabled
	})
	b.Apply(t, change(2, true))
	time.Sleep(200 * time.Millisecond)
	for _, v := range r.Violations() {
		t.Errorf("violation: %s", v)
	}
	r.Retire(false)
	if _, err := b.Store.Resume(t.Context(), b.Workspace, "hook"); err != nil {
		t.Fatal(err)
	}
	b.Rest(t, "hook")
	if diff := cmp.Diff(b.World.Members(vip), r.Members(theVIPs)); diff != "" {
		t.Errorf("whom the receiver holds (-want +got):\n%s", diff)
	}
}

func TestDeadDestinationDelaysNobody(t *testing.T) {
	t.Parallel()
	b, healthy := newBench(t)
	for i, fault := range []partnertest.Fault{
		{Times: 10000, Status: 503},
		{Times: 10000, Delay: 30 * time.Second},
		{Times: 10000, Reset: true},
	} {
		dead := partnertest.NewReceiver(t)
		dead.Script(fault)
		b.Destination(t, fmt.Sprintf("dead-%d", i), "webhook", dead.Settings(), vip)
	}
	b.Dispatch(t, activation.DispatchConfig{})
	var changes []activation.Change
	for n := range 500 {
		p := partnertest.Somebody(n)
		b.World.Add(p)
		changes = append(changes, change(n, true))
	}
	b.Apply(t, changes[:400]...)
	b.Rest(t, "hook")
	for _, c := range changes[400:] { // now the dead ones are busy failing
		start := time.Now()
		b.Apply(t, c)
		partnertest.Eventually(t, "a change arrives", func() bool {
			return slices.Contains(healthy.Members(theVIPs), c.Profile)
		})
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("a change took %v to the healthy destination", took)
		}
	}
}

func TestRecoveryDoesNotWaitForTheSchedule(t *testing.T) {
	t.Parallel()
	b, r := newBench(t)
	r.Script(partnertest.Fault{Times: 1000, Status: http.StatusServiceUnavailable})
	for n := range 200 {
		b.World.Add(partnertest.Somebody(n))
		b.Apply(t, change(n, true))
	}
	b.Dispatch(t, activation.DispatchConfig{Schedule: []time.Duration{time.Hour, time.Hour}})
	partnertest.Eventually(t, "the breaker has opened", func() bool { return r.Requests() >= 5 })
	time.Sleep(300 * time.Millisecond)
	asked := r.Requests()
	if asked > 40 {
		t.Errorf("%d requests were made to a destination that fails", asked)
	}
	r.Heal()
	b.Rest(t, "hook")
	if got, want := len(r.Members(theVIPs)), 200; got != want {
		t.Errorf("the receiver holds %d people, want %d", got, want)
	}
}

func TestLeaseRunsOut(t *testing.T) {
	t.Parallel()
	b, r := newBench(t)
	b.World.Add(partnertest.Somebody(1))
	b.Apply(t, change(1, true))
	r.Script(partnertest.Fault{Reset: true, Apply: true})
	stop := b.Dispatch(t, activation.DispatchConfig{Schedule: []time.Duration{time.Hour}})
	partnertest.Eventually(t, "the outcome is unknown", func() bool { return state(t, b, 1).Sent == nil })
	stop()
	// As a process leaves it that is killed between sending and recording.
	const crash = `
		WITH batches AS (
			UPDATE activation_batches
			SET claim_token = gen_random_uuid(), lease_until = now() - interval '1 second'
		)
		UPDATE activations
		SET status = 'claimed', sent = false`
	if _, err := b.Pool.Exec(t.Context(), crash); err != nil {
		t.Fatal(err)
	}
	b.Apply(t, change(1, false)) // must not settle: the receiver may hold the person, and does
	b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "hook")
	if n := len(r.Members(theVIPs)); n != 0 {
		t.Errorf("the receiver holds %d people, want 0", n)
	}
	for _, v := range r.Violations() {
		t.Errorf("violation: %s", v)
	}
}

func TestAttachFills(t *testing.T) {
	t.Parallel()
	b, r := newBench(t)
	for n := range 300 {
		b.World.Add(partnertest.Somebody(n))
		b.Apply(t, change(n, true)) // vip is attached to hook, and to late only afterwards
	}
	late := partnertest.NewReceiver(t)
	b.Destination(t, "late", "webhook", late.Settings(), vip)
	b.Apply(t, change(0, false), change(1, false))
	b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "hook")
	b.Rest(t, "late")
	want := b.World.Members(vip)
	for name, r := range map[string]*partnertest.Receiver{"hook": r, "late": late} {
		if diff := cmp.Diff(want, r.Members(theVIPs)); diff != "" {
			t.Errorf("whom %s holds (-want +got):\n%s", name, diff)
		}
		for _, v := range r.Violations() {
			t.Errorf("violation at %s: %s", name, v)
		}
	}
}

func TestDetachDoesNotQueueTheLanesBehindASlowOne(t *testing.T) {
	t.Parallel()
	b, _ := newBench(t)
	slow, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Rollback(context.WithoutCancel(t.Context())) }()
	const shared = `SELECT pg_advisory_xact_lock_shared($1)`
	if _, err := slow.Exec(t.Context(), shared, activation.ConfigLock); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = b.Store.Detach(ctx, b.Workspace, "hook", vip)
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "55P03" {
		t.Errorf("Detach behind a slow lane = %v, want that the lock was not to be had", err)
	}
}

func TestProfileThatIsGone(t *testing.T) {
	t.Parallel()
	b, r := newBench(t)
	b.World.Add(partnertest.Somebody(1))
	b.Apply(t, change(1, true), change(2, true)) // nobody knows 2
	b.Dispatch(t, activation.DispatchConfig{})
	sum := b.Rest(t, "hook")
	if sum.Failed != 1 || len(r.Members(theVIPs)) != 1 {
		t.Errorf("%d failed and the receiver holds %d, want 1 and 1", sum.Failed, len(r.Members(theVIPs)))
	}
	b.World.Remove(partnertest.Profile(1))
	b.Apply(t, change(1, false)) // who was erased can still be removed
	b.Rest(t, "hook")
	if n := len(r.Members(theVIPs)); n != 0 {
		t.Errorf("the receiver holds %d people, want 0", n)
	}
}

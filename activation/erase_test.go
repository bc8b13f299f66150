package activation_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// erase has the destinations of a bench let go of somebody, as a lane does.
func erase(t *testing.T, b *partnertest.Bench, id activation.ProfileID) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		return b.Ledger.Erase(t.Context(), tx, partnertest.Lane(id), b.Workspace, 1, []activation.ProfileID{id})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, b *partnertest.Bench, query string, args ...any) (n int) {
	t.Helper()
	if err := b.Pool.QueryRow(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A message that is to be tried again does not keep somebody who was forgotten.
func TestErasingUnmakesMessages(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{SampleConfig: partnertest.SampleConfig{Batch: 10, Concurrency: 1}})
	var same []int // people of one lane
	for n := 1; len(same) < 2; n++ {
		if partnertest.Lane(partnertest.Profile(n)) == 0 {
			same = append(same, n)
		}
	}
	fake.Script(partnertest.Fault{Status: 503, Times: 1000})
	for _, n := range same {
		fake.Seed(partnertest.Somebody(n))
		b.World.Add(partnertest.Somebody(n))
	}
	b.Apply(t, change(same[0], true), change(same[1], true))
	stop := b.Dispatch(t, activation.DispatchConfig{Schedule: []time.Duration{time.Hour, time.Hour}})
	partnertest.Eventually(t, "a message is to be tried again", func() bool {
		return count(t, b, `SELECT count(*) FROM activation_batches WHERE claim_token IS NULL AND body IS NOT NULL`) == 1
	})
	stop()
	erase(t, b, partnertest.Profile(same[0]))
	if n := count(t, b, `SELECT count(*) FROM activation_batches`); n != 0 {
		t.Errorf("%d messages are left", n)
	}
	if n := count(t, b, `SELECT count(*) FROM activations WHERE batch_id IS NOT NULL`); n != 0 {
		t.Errorf("%d rows wait for a message that is not there", n)
	}
}

// Lines about events are in the lane of the event, whoever's they are.
func TestForgettingIsInEveryLane(t *testing.T) {
	t.Parallel()
	b, _ := newBench(t)
	for lane := range partnertest.Lanes {
		const line = `
			INSERT INTO deliveries
				(lane, destination_id, attempt_id, segment_id, profile_id, version, entered, outcome, reason, at, changed_at,
				 message_id, cause, subscription_id, event)
			VALUES ($1, 1, 1, 0, $2, 1, true, 'ok', '', now(), now(), 'm', 'event', 1, 'Order')`
		if _, err := b.Pool.Exec(t.Context(), line, lane, partnertest.Profile(1)); err != nil {
			t.Fatal(err)
		}
	}
	err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		left, err := b.Ledger.Forget(t.Context(), tx, partnertest.Lanes, b.Workspace, 1,
			[]activation.ProfileID{partnertest.Profile(1)}, time.Now().Add(time.Minute))
		if left {
			t.Error("something is left")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := count(t, b, `SELECT count(*) FROM deliveries WHERE profile_id = $1 OR message_id <> ''`, partnertest.Profile(1)); n != 0 {
		t.Errorf("%d lines still say whose they are", n)
	}
}

// The proof does not say that a partner has acknowledged what it was never told.
func TestTheProofTellsOfSharedIdentifiers(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{SampleConfig: partnertest.SampleConfig{Batch: 1, Concurrency: 1}})
	shared := partnertest.Somebody(1)
	for n := 1; n <= 2; n++ {
		p := shared
		p.ID = partnertest.Profile(n)
		if n == 1 {
			fake.Seed(p)
		}
		b.World.Add(p)
		b.Apply(t, change(n, true))
	}
	b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "sample")
	for i, want := range []string{"shared", "acknowledged"} {
		erase(t, b, partnertest.Profile(i+1))
		partnertest.Eventually(t, "the note to be settled", func() bool {
			if _, err := b.Ledger.Released(t.Context(), b.Pool); err != nil {
				t.Fatal(err)
			}
			return count(t, b, `SELECT count(*) FROM erasure_removes WHERE outcome = 'waiting'`) == 0
		})
		if n := count(t, b, `SELECT count(*) FROM erasure_removes WHERE outcome = $1`, want); n != 1 {
			t.Errorf("%d notes say %s, want 1", n, want)
		}
	}
}

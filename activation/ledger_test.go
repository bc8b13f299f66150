package activation_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/activation/webhook"
)

const vip = 7

var theVIPs = partnertest.Audience{Segment: vip}

// newBench returns a bench with a destination "hook" at a receiver, which hears of the segment vip.
func newBench(t testing.TB) (*partnertest.Bench, *partnertest.Receiver) {
	t.Helper()
	b := partnertest.NewBench(t, newWebhook(t))
	r := partnertest.NewReceiver(t)
	b.Destination(t, "hook", "webhook", r.Settings(), vip)
	return b, r
}

func newWebhook(t testing.TB) *webhook.Partner {
	private := activation.Outbound{AllowPrivate: true}
	client := activation.NewClient(private)
	t.Cleanup(client.CloseIdleConnections)
	return webhook.New(client, private)
}

func change(n int, entered bool) activation.Change {
	return activation.Change{Segment: vip, Profile: partnertest.Profile(n), Entered: entered}
}

// state returns what the ledger knows of a person.
func state(t testing.TB, b *partnertest.Bench, n int) activation.State {
	t.Helper()
	id := partnertest.Profile(n)
	list, _, err := b.Store.States(t.Context(), b.Workspace, "hook", activation.StateFilter{Profile: &id, Limit: 10})
	if err != nil || len(list) != 1 {
		t.Fatalf("%d states of one person, %v", len(list), err)
	}
	return list[0]
}

var no, yes = new(bool), func() *bool { b := true; return &b }()

func TestEnqueue(t *testing.T) {
	t.Parallel()
	// Each letter is a transaction: e enters, l leaves, E and L are both in one, s is sent, u is sent without an answer.
	for name, tc := range map[string]struct {
		steps  string
		wanted bool
		sent   *bool
		status string
	}{
		"an entering is pending":                                        {"e", true, no, "pending"},
		"a leaving without a row has nothing to send":                   {"l", false, no, "settled"},
		"an entering that was taken back is not sent":                   {"el", false, no, "settled"},
		"an entering, taken back and repeated, is sent once":            {"ele", true, no, "pending"},
		"within a transaction the last change counts":                   {"L", false, no, "settled"},
		"within a transaction the last change counts, the other way":    {"E", true, no, "pending"},
		"what was sent is settled":                                      {"es", true, yes, "settled"},
		"a repeated entering changes nothing":                           {"ese", true, yes, "settled"},
		"a leaving of who was sent is pending":                          {"esl", false, yes, "pending"},
		"a leaving of who was sent, taken back, is settled":             {"esle", true, yes, "settled"},
		"a leaving that was sent is settled":                            {"esls", false, no, "settled"},
		"a leaving is pending if nobody knows what the partner holds":   {"eul", false, nil, "pending"},
		"an entering is pending if nobody knows what the partner holds": {"eule", true, nil, "pending"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, r := newBench(t)
			b.World.Add(partnertest.Somebody(1))
			for _, step := range tc.steps {
				switch step {
				case 'e', 'l':
					b.Apply(t, change(1, step == 'e'))
				case 'E', 'L':
					b.Apply(t, change(1, step == 'L'), change(1, step == 'E'))
				case 's':
					stop := b.Dispatch(t, activation.DispatchConfig{})
					b.Rest(t, "hook")
					stop()
				case 'u':
					r.Script(partnertest.Fault{Reset: true})
					stop := b.Dispatch(t, activation.DispatchConfig{Schedule: []time.Duration{time.Hour}})
					partnertest.Eventually(t, "the outcome is unknown", func() bool {
						return state(t, b, 1).Sent == nil
					})
					stop()
				}
			}
			s := state(t, b, 1)
			got := fmt.Sprint(s.Wanted, deref(s.Sent), s.Status)
			if want := fmt.Sprint(tc.wanted, deref(tc.sent), tc.status); got != want {
				t.Errorf("wanted, sent and status are %s, want %s", got, want)
			}
			for _, v := range r.Violations() {
				t.Errorf("violation: %s", v)
			}
		})
	}
}

func deref(b *bool) any {
	if b == nil {
		return nil
	}
	return *b
}

func TestEnqueueCountsRows(t *testing.T) {
	t.Parallel()
	b, r := newBench(t)
	b.Destination(t, "second", "webhook", r.Settings(), vip)
	enqueue := func(changes ...activation.Change) (n int) {
		err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) (err error) {
			n, err = b.Ledger.Enqueue(t.Context(), tx, 1, changes)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	other := change(3, true)
	other.Segment = 8
	if n := enqueue(change(1, true), change(2, true), other); n != 4 {
		t.Errorf("Enqueue = %d, want 4: two people at two destinations, none for a segment that is not attached", n)
	}
	if n := enqueue(change(1, true)); n != 0 {
		t.Errorf("Enqueue of what is wanted already = %d, want 0", n)
	}
	if n := enqueue(); n != 0 {
		t.Errorf("Enqueue of nothing = %d, want 0", n)
	}
}

// However memberships change, segments are attached and detached, answers go wrong and senders die: in the end the receiver
// holds whom it should.
func TestConverges(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	b, r := newBench(t)
	const people = 60
	for n := range people {
		p := partnertest.Somebody(n)
		r.Seed(p)
		b.World.Add(p)
	}
	faults := []partnertest.Fault{
		{Status: 500},
		{Status: 503, Apply: true},
		{Reset: true},
		{Reset: true, Apply: true},
		{Status: 413},
		{Close: true},
		{Delay: 200 * time.Millisecond, Apply: true},
	}
	stop := b.Dispatch(t, activation.DispatchConfig{})
	stopOther := b.Dispatch(t, activation.DispatchConfig{})
	attached := true
	for range 150 {
		switch k := rng.IntN(20); {
		case k < 12:
			var changes []activation.Change
			for range 1 + rng.IntN(15) {
				changes = append(changes, change(rng.IntN(people), rng.IntN(2) == 0))
			}
			b.Apply(t, changes...)
		case k < 15:
			r.Script(faults[rng.IntN(len(faults))])
		case k < 16:
			stop()
			stop = b.Dispatch(t, activation.DispatchConfig{})
		case k < 17:
			do := b.Store.Attach
			if attached {
				do = b.Store.Detach
			}
			attached = !attached
			if err := do(t.Context(), b.Workspace, "hook", vip); err != nil {
				t.Fatal(err)
			}
		default:
			time.Sleep(time.Duration(rng.IntN(40)) * time.Millisecond)
		}
	}
	stop()
	stopOther()
	r.Heal()
	// Whom a 413 refused alone has failed, or, if it was to be removed, waits for a day; others wait as the schedule says.
	if _, err := b.Store.Resume(t.Context(), b.Workspace, "hook"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Store.Replay(t.Context(), b.Workspace, "hook", activation.Replay{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Store.Attach(t.Context(), b.Workspace, "hook", vip); err != nil {
		t.Fatal(err)
	}
	b.Dispatch(t, activation.DispatchConfig{})
	sum := b.Rest(t, "hook")
	want := b.World.Members(vip)
	if diff := cmp.Diff(want, r.Members(theVIPs)); diff != "" {
		t.Errorf("whom the receiver holds (-want +got):\n%s", diff)
	}
	wantSum := activation.Summary{Wanted: int64(len(want)), Sent: int64(len(want))}
	if diff := cmp.Diff(wantSum, sum); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	for _, v := range r.Violations() {
		t.Errorf("violation: %s", v)
	}
	partnertest.Eventually(t, "no batches are left at rest", func() bool {
		const left = `SELECT count(*) FROM activation_batches`
		var batches int
		if err := b.Pool.QueryRow(t.Context(), left).Scan(&batches); err != nil {
			t.Fatal(err)
		}
		return batches == 0
	})
}

package tradedesk_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

const segment = 7

var audience = partnertest.Audience{Segment: segment}

// stage is a bench with a destination "ttd" at a fake, and people in a segment of whom The Trade Desk has heard.
type stage struct {
	*partnertest.Bench
	fake *partnertest.TradeDesk
}

func newStage(t *testing.T, o partnertest.TradeDeskOptions, people int) stage {
	t.Helper()
	fake := partnertest.NewTradeDesk(t, o)
	s := stage{partnertest.NewBench(t, newPartner(t)), fake}
	s.Destination(t, "ttd", "tradedesk", fake.Settings(), segment)
	var changes []activation.Change
	for n := range people {
		fake.Seed(partnertest.Somebody(n))
		s.World.Add(partnertest.Somebody(n))
		changes = append(changes, activation.Change{Segment: segment, Profile: partnertest.Profile(n), Entered: true})
	}
	s.Apply(t, changes...)
	s.Dispatch(t, activation.DispatchConfig{})
	s.Rest(t, "ttd")
	return s
}

// holds waits until The Trade Desk has just so many people of the first n, and nothing that is nobody's.
func (s stage) holds(t *testing.T, want int) {
	t.Helper()
	partnertest.Eventually(t, "The Trade Desk has whom it should", func() bool {
		return len(s.fake.Members(audience)) == want && len(s.fake.Leftovers(audience)) == 0
	})
	s.check(t)
}

func (s stage) check(t *testing.T) {
	t.Helper()
	for _, v := range s.fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

// pass has time pass for us and for The Trade Desk.
func (s stage) pass(t *testing.T, d time.Duration) {
	t.Helper()
	s.fake.Advance(d)
	s.Warp(t, d)
}

func TestWhoIsErasedIsDeleted(t *testing.T) {
	t.Parallel()
	s := newStage(t, partnertest.TradeDeskOptions{}, 4)
	s.fake.Forget(partnertest.Profile(1))
	s.fake.Forget(partnertest.Profile(2))
	if n := len(s.fake.Violations()); n != 4 {
		t.Fatalf("before they are deleted there are %d violations, want one for each of 4 identifiers", n)
	}
	for n := range 4 { // those who only leave come along
		cause := "event"
		if n == 1 || n == 2 {
			s.World.Remove(partnertest.Profile(n))
			cause = activation.CauseErasure
		}
		if n < 3 {
			s.Apply(t, activation.Change{Segment: segment, Profile: partnertest.Profile(n), Cause: cause})
		}
	}
	s.Rest(t, "ttd")
	s.holds(t, 1)
}

func TestWhoOnlyLeavesIsNotDeleted(t *testing.T) {
	t.Parallel()
	s := newStage(t, partnertest.TradeDeskOptions{}, 2)
	s.Apply(t, activation.Change{Segment: segment, Profile: partnertest.Profile(1)})
	s.Rest(t, "ttd")
	s.holds(t, 1)
	s.fake.Forget(partnertest.Profile(1))
	if n := len(s.fake.Violations()); n != 2 {
		t.Errorf("%d violations, want one for each identifier", n)
	}
}

func TestADeletionThatFails(t *testing.T) {
	t.Parallel()
	deletion := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "deletion") }
	for name, test := range map[string]struct {
		fault  partnertest.Fault
		class  activation.Class
		reason string
	}{
		"is tried again": {partnertest.Fault{Status: 500}, activation.Retry, "the partner answered 500"},
		"waits":          {partnertest.Fault{Status: 429, Wait: 3 * time.Second}, activation.RetryAfter, "the partner answered 429"},
		"is halved":      {partnertest.Fault{Status: 413}, activation.Split, "the partner answered 413"},
		"keeps nobody else from being sent": {
			partnertest.Fault{Status: 403, Body: `{"ErrorCode":"IncorrectPermissions"}`},
			activation.Drop,
			"removed from the segment, but not deleted at The Trade Desk: the credential may not send data of this advertiser",
		},
		"is told of by item": {
			partnertest.Fault{Status: 200, Body: `{"FailedLines":[{"ItemNumber":1,"ErrorCode":"MissingUserId"}]}`},
			activation.Partial,
			"some identifiers were refused",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := partnertest.NewTradeDesk(t, partnertest.TradeDeskOptions{Auth: "token"})
			p, to := newPartner(t), activation.Target{Settings: fake.Settings()}
			one := person("", "", "tdid", "7a7b0000-1111-2222-3333-444455556666")
			one.ID = partnertest.Profile(1)
			fake.Seed(one)
			fake.Forget(one.ID)
			test.fault.Match = deletion
			fake.Script(test.fault)
			m := sent(t, p, to, member(1, false, activation.CauseErasure, "TDID", "7a7b0000-1111-2222-3333-444455556666"))
			if o := p.Send(t.Context(), to, m); o.Class != test.class || o.Reason != test.reason {
				t.Errorf("outcome %+v, want %s, %q", o, test.class, test.reason)
			}
			if len(fake.Violations()) == 0 {
				t.Error("the fake does not miss the deletion")
			}
			if test.class == activation.RetryAfter {
				fake.Advance(test.fault.Wait)
			}
			if o := p.Send(t.Context(), to, m); o.Class != activation.OK {
				t.Errorf("the second time the outcome is %+v", o)
			}
			for _, v := range fake.Violations() {
				t.Error(v)
			}
		})
	}
}

func TestAReplacedUID2ReplacesTheOldOne(t *testing.T) {
	t.Parallel()
	const life = 10 * 24 * time.Hour // less than 60 % of the time to live
	s := newStage(t, partnertest.TradeDeskOptions{Rotate: life}, 12)
	s.holds(t, 12)
	if times, different := s.fake.Asked(); times != 24 || different != 24 {
		t.Errorf("the operator was asked for %d hashes %d times, want 24 once", different, times)
	}
	s.Apply(t, activation.Change{Segment: segment, Profile: partnertest.Profile(3)})
	s.Rest(t, "ttd")
	s.Apply(t, activation.Change{Segment: segment, Profile: partnertest.Profile(3), Entered: true})
	s.Rest(t, "ttd")
	if times, _ := s.fake.Asked(); times != 24 {
		t.Errorf("the operator was asked %d times although all was known", times)
	}
	s.pass(t, life+time.Minute)
	s.holds(t, 12)
	if times, _ := s.fake.Asked(); times != 24 { // since they were replaced
		t.Errorf("the operator was asked %d times, want 24", times)
	}
}

func TestWhoOptsOutIsRemoved(t *testing.T) {
	t.Parallel()
	const life = 10 * 24 * time.Hour
	s := newStage(t, partnertest.TradeDeskOptions{Rotate: life}, 6)
	s.fake.OptOut(partnertest.Known(90, 2))
	s.pass(t, life+time.Minute)
	s.holds(t, 5)
	if sum := s.Rest(t, "ttd"); sum.Unreachable != 1 {
		t.Errorf("%d are unreachable, want 1", sum.Unreachable)
	}
	if slices.Contains(s.fake.Members(audience), partnertest.Profile(2)) {
		t.Error("somebody else was removed")
	}
	if _, err := s.Store.Replay(t.Context(), s.Workspace, "ttd", activation.Replay{Everything: true}); err != nil {
		t.Fatal(err)
	}
	s.Rest(t, "ttd")
	s.holds(t, 5)
}

func TestPeopleAreRenewedAt60PerCent(t *testing.T) {
	t.Parallel()
	s := newStage(t, partnertest.TradeDeskOptions{TTL: 10 * 24 * time.Hour, Rotate: 80 * 24 * time.Hour}, 3)
	const query = `SELECT min(renew_at - sent_at), max(renew_at - sent_at) FROM activations WHERE wanted`
	var first, last time.Duration
	if err := s.Pool.QueryRow(t.Context(), query).Scan(&first, &last); err != nil {
		t.Fatal(err)
	}
	if first != 6*24*time.Hour || last != first {
		t.Errorf("people are renewed after %v to %v, want 6 days of 10", first, last)
	}
}

func TestNoMoreThanFourRequestsAtOnce(t *testing.T) {
	t.Parallel()
	s := newStage(t, partnertest.TradeDeskOptions{Auth: "token", Parallel: 5, Batch: 1, Slow: 50 * time.Millisecond}, 0)
	var changes []activation.Change
	for n := range 60 {
		s.fake.Seed(partnertest.Somebody(n))
		s.World.Add(partnertest.Somebody(n))
		changes = append(changes, activation.Change{Segment: segment, Profile: partnertest.Profile(n), Entered: true})
	}
	s.Apply(t, changes...)
	s.Rest(t, "ttd")
	s.holds(t, 60)
}

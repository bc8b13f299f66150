package activation_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func TestGate(t *testing.T) {
	t.Parallel()
	yes, no := map[string]bool{"a": true, "b": true}, map[string]bool{"a": true, "b": false}
	for name, tc := range map[string]struct {
		gate    activation.Gate
		consent map[string]bool
		want    bool
	}{
		"no purpose lets everybody through":        {activation.Gate{}, nil, true},
		"granted needs a decision":                 {activation.Gate{Purposes: []string{"a"}, Mode: activation.Granted}, nil, false},
		"granted is what no mode means":            {activation.Gate{Purposes: []string{"a"}}, nil, false},
		"all must be granted":                      {activation.Gate{Purposes: []string{"a", "b"}}, yes, true},
		"one that is denied is enough":             {activation.Gate{Purposes: []string{"a", "b"}}, no, false},
		"not denied needs no decision":             {activation.Gate{Purposes: []string{"c"}, Mode: activation.NotDenied}, yes, true},
		"not denied stops at a denial":             {activation.Gate{Purposes: []string{"b"}, Mode: activation.NotDenied}, no, false},
		"GPC denies advertising":                   {activation.AdGate(), map[string]bool{"ad_user_data": true, "ad_personalization": true, "gpc": true}, false},
		"GPC that is off denies nothing":           {activation.AdGate(), map[string]bool{"ad_user_data": true, "ad_personalization": true, "gpc": false}, true},
		"GPC denies nothing but advertising":       {activation.Gate{Purposes: []string{"a"}}, map[string]bool{"a": true, "gpc": true}, true},
		"GPC denies where a denial has to be said": {activation.Gate{Purposes: []string{"ad_storage"}, Mode: activation.NotDenied}, map[string]bool{"gpc": true}, false},
	} {
		if got := tc.gate.Allows(tc.consent); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
		// The database decides the same, for all changes of a µbatch at once.
		b := partnertest.NewBench(t, newWebhook(t))
		b.Destination(t, "hook", "webhook", settings("https://example.com/"), vip)
		if _, err := b.Store.Update(t.Context(), b.Workspace, "hook", activation.Update{Consent: &tc.gate}); err != nil {
			t.Fatal(err)
		}
		c := change(1, true)
		c.Consent = tc.consent
		b.Apply(t, c)
		if s := state(t, b, 1); s.Wanted != tc.want || s.Allowed != tc.want || !s.Member {
			t.Errorf("%s: the ledger says wanted %t, allowed %t, member %t", name, s.Wanted, s.Allowed, s.Member)
		}
	}
}

// A change of what a destination asks for reaches those who are in its segments, also while they change themselves.
func TestGateIsChanged(t *testing.T) {
	t.Parallel()
	b, r := newBench(t)
	for n := range 60 {
		p := partnertest.Somebody(n)
		p.Consent = map[string]bool{"news": n%2 == 0}
		b.World.Add(p)
		b.Apply(t, change(n, true))
	}
	b.Dispatch(t, activation.DispatchConfig{})
	if sum := b.Rest(t, "hook"); sum.Sent != 60 {
		t.Errorf("%d are sent, want 60", sum.Sent)
	}
	for i, tc := range []struct {
		gate activation.Gate
		want int
	}{
		{activation.Gate{Purposes: []string{"news"}}, 30},
		{activation.Gate{Purposes: []string{"news"}, Mode: activation.NotDenied}, 30},
		{activation.Gate{Purposes: []string{"other"}, Mode: activation.NotDenied}, 60},
		{activation.Gate{Purposes: []string{"other"}}, 0},
		{activation.Gate{}, 60},
	} {
		if _, err := b.Store.Update(t.Context(), b.Workspace, "hook", activation.Update{Consent: &tc.gate}); err != nil {
			t.Fatal(err)
		}
		p := partnertest.Somebody(0)
		p.Consent = map[string]bool{"news": true}
		b.Person(t, p, "")
		if sum := b.Rest(t, "hook"); int(sum.Sent) != tc.want || len(r.Members(theVIPs)) != tc.want || int(sum.Denied) != 60-tc.want {
			t.Errorf("gate %d: %d are sent, %d held, %d denied, want %d sent", i, sum.Sent, len(r.Members(theVIPs)), sum.Denied, tc.want)
		}
	}
	lines := deliveries(t, b, activation.DeliveryFilter{Profile: new(partnertest.Profile(1))})
	if len(lines) < 2 || lines[len(lines)-2].Cause != activation.CauseConsent || lines[len(lines)-2].Entered {
		t.Errorf("the ledger does not say that consent removed somebody: %+v", lines)
	}
	for _, v := range r.Violations() {
		t.Errorf("violation: %s", v)
	}
}

// Who withdraws consent does not wait behind those who leave, nor for company.
func TestWithdrawalGoesFirst(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{SampleConfig: partnertest.SampleConfig{Batch: 1, Concurrency: 1, LingerMS: 1}})
	const people = 40
	var ids []int
	for n := 0; len(ids) < people; n++ {
		if partnertest.Lane(partnertest.Profile(n)) == 0 {
			ids = append(ids, n)
			fake.Seed(partnertest.Somebody(n))
			b.World.Add(partnertest.Somebody(n))
			b.Apply(t, change(n, true))
		}
	}
	stop := b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "sample")
	stop()
	for _, n := range ids[:people-1] {
		b.Apply(t, change(n, false))
	}
	last := partnertest.Somebody(ids[people-1])
	last.Consent = map[string]bool{"ad_user_data": false}
	b.Person(t, last, "m-withdrawn")
	b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "sample")
	list, err := b.Store.Deliveries(t.Context(), b.Workspace, "sample", activation.DeliveryFilter{Limit: people})
	if err != nil || len(list) != people {
		t.Fatalf("%d lines, %v", len(list), err)
	}
	first := list[len(list)-1]
	if first.Profile != last.ID || first.Cause != activation.CauseConsent || first.MessageID != "m-withdrawn" || first.Entered {
		t.Errorf("the first remove is of %x, cause %q, message %q", first.Profile, first.Cause, first.MessageID)
	}
	for _, v := range fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

// However many destinations and processes share an account, it is asked no more than it allows.
func TestAccountsAreShared(t *testing.T) {
	t.Parallel()
	const perSecond, people = 20, 100
	partner, fake := newSample(t, partnertest.SampleOptions{SampleConfig: partnertest.SampleConfig{
		Batch: 1, Concurrency: 4, Account: "act-1", PerSecond: perSecond,
	}})
	fake.Arrived = make(chan partnertest.SampleArrival, 4*people)
	b := partnertest.NewBench(t, partner)
	for i, key := range []string{"one", "two"} {
		b.Destination(t, key, "sample", fake.Settings(), vip+int64(i))
		if err := b.Store.SetAudience(t.Context(), b.Workspace, key, vip+int64(i), "aud-1"); err != nil {
			t.Fatal(err)
		}
	}
	fake.Audience("aud-1")
	// A token is refreshed at first; with two destinations and one refresh token only one of them could.
	if _, err := b.Pool.Exec(t.Context(), `UPDATE destinations SET refresh_at = NULL`); err != nil {
		t.Fatal(err)
	}
	for n := range people {
		fake.Seed(partnertest.Somebody(n))
		b.World.Add(partnertest.Somebody(n))
		c := change(n, true)
		c.Segment += int64(n % 2)
		b.Apply(t, c)
	}
	b.Dispatch(t, activation.DispatchConfig{})
	b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "one")
	b.Rest(t, "two")
	close(fake.Arrived)
	var at []time.Time
	for a := range fake.Arrived {
		at = append(at, a.At)
	}
	slices.SortFunc(at, time.Time.Compare)
	perPerson := 2 // an address and a phone number
	if len(at) != people*perPerson {
		t.Fatalf("%d arrived, want %d", len(at), people*perPerson)
	}
	// Two that did not know of each other would make twice as many requests. On a busy machine some take long to arrive, and
	// others come close behind.
	const window = 2 * time.Second
	most := perSecond * perPerson * 2 * 3 / 2
	for i := range at {
		if j := i + most; j < len(at) && at[j].Sub(at[i]) < window {
			t.Errorf("%d requests arrived within %v", most/perPerson, at[j].Sub(at[i]))
			break
		}
	}
	if took := at[len(at)-1].Sub(at[0]); took > 3*people*time.Second/perSecond {
		t.Errorf("it took %v, want about %v", took, people*time.Second/perSecond)
	}
	for _, v := range fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

// What a partner says of how much is used up slows the account down, and then stops it.
func TestUsageIsHeeded(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{SampleConfig: partnertest.SampleConfig{
		Batch: 1, Concurrency: 1, Account: "act-2", PerSecond: 1000,
	}})
	for n := range 60 {
		fake.Seed(partnertest.Somebody(n))
		b.World.Add(partnertest.Somebody(n))
		b.Apply(t, change(n, true))
	}
	used := func(part string) partnertest.Fault {
		return partnertest.Fault{Status: 200, Body: `{}`, Apply: true, Header: http.Header{"X-Usage": {part}}}
	}
	fake.Script(used("0.5"), used("0.5"), used("0.96"))
	b.Dispatch(t, activation.DispatchConfig{})
	partnertest.Eventually(t, "the account is stopped", func() bool { return fake.Scripted() == 0 })
	time.Sleep(300 * time.Millisecond)
	asked := fake.Requests()
	time.Sleep(500 * time.Millisecond)
	if n := fake.Requests() - asked; n > 0 {
		t.Errorf("%d requests came after the partner said that 96 %% are used up", n)
	}
	b.Warp(t, 10*time.Minute)
	fake.Script(used("0.5"))
	b.Rest(t, "sample")
	if n := len(fake.Members(partnertest.Audience{Segment: vip, ID: "aud-1"})); n != 60 {
		t.Errorf("the partner holds %d people, want 60", n)
	}
}

// What was asked before somebody resumed a destination does not pause it, whatever the answer.
func TestAnAnswerFromBeforeDoesNotPause(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{SampleConfig: partnertest.SampleConfig{Batch: 1, Concurrency: 1}})
	fake.Seed(partnertest.Somebody(1))
	b.World.Add(partnertest.Somebody(1))
	b.Apply(t, change(1, true))
	fake.Script(partnertest.Fault{Status: 403, Body: `{"code":"forbidden"}`, Delay: time.Second})
	b.Dispatch(t, activation.DispatchConfig{})
	partnertest.Eventually(t, "the partner is asked", func() bool { return fake.Scripted() == 0 })
	if _, err := b.Store.Pause(t.Context(), b.Workspace, "sample", "to mend it"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Store.Resume(t.Context(), b.Workspace, "sample"); err != nil {
		t.Fatal(err)
	}
	b.Rest(t, "sample")
	if d, err := b.Store.Get(t.Context(), b.Workspace, "sample"); err != nil || d.Status != activation.Active {
		t.Errorf("the destination is %s: %s, %v", d.Status, d.StatusReason, err)
	}
}

// mapping is a sample partner whose operator calls people by the same names for an hour, and some by none.
type mapping struct {
	*partnertest.Sample
	mu    sync.Mutex
	asked map[string]int
	out   map[string]bool
	fail  int
	only  string // the kind of identifier that it knows; both if empty
}

func (m *mapping) Map(
	_ context.Context, _ activation.Target, ids []activation.Identifiers,
) (mapped []activation.Mapped, o activation.Outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail > 0 {
		m.fail--
		return nil, activation.Outcome{Class: activation.Retry, Status: 503, Reason: "the operator answered 503"}
	}
	for _, one := range ids {
		email := one.Get("email")
		m.asked[email]++
		a := activation.Mapped{Identifiers: one, Until: time.Now().Add(time.Hour)}
		if m.only != "" {
			a.IDs = slices.DeleteFunc(slices.Clone(a.IDs), func(id activation.Identifier) bool { return id.Kind != m.only })
		}
		if m.out[email] {
			a.Identifiers = activation.Identifiers{Reason: "opted out"}
		}
		mapped = append(mapped, a)
	}
	return mapped, activation.Outcome{Class: activation.OK}
}

func TestIdentifiersAreMapped(t *testing.T) {
	t.Parallel()
	sample, fake := newSample(t, partnertest.SampleOptions{})
	m := &mapping{Sample: sample.(*partnertest.Sample), asked: map[string]int{}, out: map[string]bool{}, fail: 2}
	b := partnertest.NewBench(t, m)
	b.Destination(t, "sample", "sample", fake.Settings(), vip)
	const people = 30
	emailOf := func(n int) string {
		ids, err := m.Identify(activation.Target{}, partnertest.Somebody(n))
		if err != nil {
			t.Fatal(err)
		}
		return ids.Get("email")
	}
	m.out[emailOf(3)] = true
	for n := range people {
		fake.Seed(partnertest.Somebody(n))
		b.World.Add(partnertest.Somebody(n))
		b.Apply(t, change(n, true))
	}
	b.Dispatch(t, activation.DispatchConfig{})
	held := func(what string, want int) {
		t.Helper()
		if sum := b.Rest(t, "sample"); int(sum.Sent) != want || int(sum.Unreachable) != people-want {
			t.Errorf("%s: %+v, want %d sent and the rest unreachable", what, sum, want)
		}
		audience := partnertest.Audience{Segment: vip, ID: "aud-1"}
		if n := len(fake.Members(audience)); n != want {
			t.Errorf("%s: the partner holds %d people, want %d", what, n, want)
		}
		for _, v := range fake.Violations() {
			t.Errorf("%s: violation: %s", what, v)
		}
	}
	held("at first", people-1)
	for n := range people {
		b.Apply(t, change(n, n%2 == 0))
		b.Apply(t, change(n, true))
	}
	held("after leaving and coming back", people-1)
	for email, n := range m.asked {
		if n != 1 {
			t.Errorf("%s was asked for %d times, want once", email[:8], n)
		}
	}
	m.mu.Lock()
	m.only, m.out[emailOf(4)] = "phone", true
	m.mu.Unlock()
	if _, err := b.Pool.Exec(t.Context(), `UPDATE activation_mappings SET until = now()`); err != nil {
		t.Fatal(err)
	}
	b.Warp(t, 2*time.Hour)
	fake.Advance(2 * time.Hour)
	partnertest.Eventually(t, "everybody is asked for again", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		again := 0
		for _, n := range m.asked {
			if n == 2 {
				again++
			}
		}
		return again == people-1 // who has opted out is not asked for again: nothing is sent that might end
	})
	held("after the names have changed", people-2)
	var emails int
	const left = `SELECT count(*) FROM activations WHERE jsonb_path_exists(sent_identifiers, '$.ids[*] ? (@.kind == "email")')`
	if err := b.Pool.QueryRow(t.Context(), left).Scan(&emails); err != nil || emails > 0 {
		t.Errorf("%d are still known by their addresses, %v", emails, err)
	}
}

// What is older than the ledger is kept is forgotten, and nothing else.
func TestLedgerForgets(t *testing.T) {
	t.Parallel()
	b, r := newBench(t)
	r.Batch(5)
	for n := range 20 {
		b.World.Add(partnertest.Somebody(n))
		b.Apply(t, change(n, true))
	}
	stop := b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "hook")
	stop()
	const age = `
		WITH old AS (
			UPDATE deliveries SET at = at - interval '100 days' WHERE id <= (SELECT max(id) - 5 FROM deliveries)
		)
		UPDATE activation_attempts SET started_at = started_at - interval '100 days'
		WHERE id NOT IN (SELECT attempt_id FROM deliveries WHERE id > (SELECT max(id) - 5 FROM deliveries))`
	if _, err := b.Pool.Exec(t.Context(), age); err != nil {
		t.Fatal(err)
	}
	b.Dispatch(t, activation.DispatchConfig{})
	partnertest.Eventually(t, "what is old is forgotten", func() bool {
		return len(deliveries(t, b, activation.DeliveryFilter{})) <= 5
	})
	time.Sleep(100 * time.Millisecond)
	if n := len(deliveries(t, b, activation.DeliveryFilter{})); n != 5 {
		t.Errorf("%d lines are left, want the 5 that are not old", n)
	}
}

func TestAudienceIsGiven(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{})
	for _, id := range []string{"given", "another"} {
		fake.Audience(id)
	}
	for n := range 20 {
		fake.Seed(partnertest.Somebody(n))
		b.World.Add(partnertest.Somebody(n))
		b.Apply(t, change(n, true))
	}
	for _, id := range []string{"given", "another", "given"} {
		if err := b.Store.SetAudience(t.Context(), b.Workspace, "sample", vip, id); err != nil {
			t.Fatal(err)
		}
		stop := b.Dispatch(t, activation.DispatchConfig{})
		b.Rest(t, "sample")
		if diff := cmp.Diff(b.World.Members(vip), fake.Members(partnertest.Audience{Segment: vip, ID: id})); diff != "" {
			t.Errorf("whom audience %s holds (-want +got):\n%s", id, diff)
		}
		b.Apply(t, change(3, id == "another")) // in the second one only
		b.Rest(t, "sample")
		stop()
	}
	if err := b.Store.SetAudience(t.Context(), b.Workspace, "sample", vip+1, "given"); err == nil {
		t.Error("an audience was given to a segment that is not attached")
	}
	for _, v := range fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

// sinces is a partner that notes since when, as it is told, audiences can be sent to.
type sinces struct {
	*partnertest.Sample
	told chan time.Time
}

func (p sinces) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	p.told <- m.Since
	return p.Sample.Send(ctx, to, m)
}

// A partner is told how old an audience is: some do not know for minutes what they have made themselves.
func TestPartnersAreToldSinceWhen(t *testing.T) {
	t.Parallel()
	sample, fake := newSample(t, partnertest.SampleOptions{})
	partner := sinces{sample.(*partnertest.Sample), make(chan time.Time, 100)}
	b := partnertest.NewBench(t, partner)
	b.Destination(t, "sample", "sample", fake.Settings(), vip)
	enter := func(n int) (since time.Time) {
		fake.Seed(partnertest.Somebody(n))
		b.World.Add(partnertest.Somebody(n))
		b.Apply(t, change(n, true))
		b.Rest(t, "sample")
		return <-partner.told
	}
	b.Dispatch(t, activation.DispatchConfig{})
	first := enter(1)
	if age := time.Since(first); age < 0 || age > 10*time.Minute {
		t.Errorf("of an audience that was just made the partner is told that it is %v old", age)
	}
	b.Warp(t, time.Hour, fake)
	if later := enter(2); !later.Equal(first.Add(-time.Hour)) {
		t.Errorf("an hour later the partner is told %v, want %v less an hour", later, first)
	}
}

func TestDryRunIsRedacted(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{})
	nameless, denied := partnertest.Nameless(1), partnertest.Somebody(2)
	denied.Consent = nil
	for _, p := range []activation.Person{partnertest.Somebody(0), nameless, denied} {
		fake.Seed(p)
		b.World.Add(p)
		b.Apply(t, activation.Change{Segment: vip, Profile: p.ID, Entered: true})
	}
	run, err := b.Store.DryRun(t.Context(), b.Workspace, "sample", vip, b.World, b.World)
	if err != nil || run.Members != 1 || run.Unreachable != 1 || run.Denied != 1 || len(run.Requests) != 1 {
		t.Fatalf("DryRun = %+v, %v", run, err)
	}
	shown := fmt.Sprint(run.Requests[0].URL, run.Requests[0].Header, string(run.Requests[0].Body))
	for _, secret := range []string{"access-0", "example.com", "1650555"} {
		if strings.Contains(shown, secret) {
			t.Errorf("the dry run shows %q: %s", secret, shown)
		}
	}
	if !strings.Contains(shown, `"action":"add"`) {
		t.Errorf("the dry run does not show what would be sent: %s", shown)
	}
	if fake.Requests() > 0 {
		t.Errorf("%d requests were made", fake.Requests())
	}
}

// What one leaves behind and another brings along must not be taken away by a remove that was on its way already.
func TestAnAddWaitsForARemoveInFlight(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{SampleConfig: partnertest.SampleConfig{TimeoutMS: 10_000}})
	was, is := partnertest.Known(1, 1), partnertest.Known(2, 1)
	fake.Seed(was, is)
	b.World.Add(was, is)
	b.Apply(t, change(1, true))
	b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "sample")
	fake.Script(partnertest.Fault{Delay: time.Second, Late: true})
	b.Apply(t, change(1, false))
	partnertest.Eventually(t, "the remove is under way", func() bool { return fake.Scripted() == 0 })
	b.Apply(t, change(2, true))
	b.Rest(t, "sample")
	if n := len(fake.Members(partnertest.Audience{Segment: vip, ID: "aud-1"})); n != 2 { // nobody can tell them apart
		t.Errorf("the partner recognises %d people, want 2", n)
	}
	for _, v := range fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

// What was left at a partner because somebody else has it too is removed with the last one, even if the partner never took
// that one in.
func TestWhatWasLeftIsRemovedWithTheLast(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{})
	first, last := partnertest.Known(1, 1), partnertest.Known(2, 1)
	fake.Seed(first, last)
	b.World.Add(first, last)
	b.Apply(t, change(1, true))
	b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "sample")
	fake.Refuse(last.ID, true)
	b.Apply(t, change(2, true))
	if sum := b.Rest(t, "sample"); sum.Failed != 1 {
		t.Errorf("%d were refused, want 1", sum.Failed)
	}
	asked := fake.Requests()
	b.Apply(t, change(1, false))
	b.Rest(t, "sample")
	if n := fake.Requests() - asked; n > 0 {
		t.Errorf("%d requests were made to remove what somebody else has too", n)
	}
	fake.Refuse(last.ID, false)
	b.Apply(t, change(2, false))
	b.Rest(t, "sample")
	if n := len(fake.Members(partnertest.Audience{Segment: vip, ID: "aud-1"})); n != 0 {
		t.Errorf("the partner recognises %d people, want nobody", n)
	}
	var left int
	if err := b.Pool.QueryRow(t.Context(), `SELECT count(*) FROM holdings`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d holdings are left, %v", left, err)
	}
}

// A message may be answered when all it was about have gone their own ways.
func TestAnAnswerThatConcernsNobodyIsTakenIn(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{Later: true})
	p := partnertest.Somebody(0)
	fake.Seed(p)
	b.World.Add(p)
	b.Dispatch(t, activation.DispatchConfig{})
	receipts := func(where string) (n int) {
		if err := b.Pool.QueryRow(t.Context(), `SELECT count(*) FROM activation_receipts WHERE poll_at `+where).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i, entered := range []bool{true, false} {
		b.Apply(t, change(0, entered))
		partnertest.Eventually(t, "the partner has taken the message in", func() bool {
			return receipts(`IS NOT NULL`) == i+1
		})
	}
	fake.Advance(2 * time.Minute)
	b.Warp(t, 2*time.Minute)
	partnertest.Eventually(t, "both answers are taken in", func() bool { return receipts(`IS NULL`) == 2 })
}

// failsOnce is a sample partner that could not work on the first message it took in, and is sure that it did not.
type failsOnce struct {
	*partnertest.Sample
	polls, sends atomic.Int32
}

func (p *failsOnce) Poll(ctx context.Context, to activation.Target, receipt string) activation.Polled {
	if p.polls.Add(1) == 1 {
		return activation.Polled{Done: true, Outcome: activation.Outcome{Class: activation.Retry, Reason: "could not work on it"}}
	}
	return p.Sample.Poll(ctx, to, receipt)
}

func (p *failsOnce) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	p.sends.Add(1)
	return p.Sample.Send(ctx, to, m)
}

// What a partner took in and then could not work on is sent again.
func TestWhatWasTakenInAndFailedIsSentAgain(t *testing.T) {
	t.Parallel()
	sample, fake := newSample(t, partnertest.SampleOptions{Later: true})
	p := &failsOnce{Sample: sample.(*partnertest.Sample)}
	b := partnertest.NewBench(t, p)
	b.Destination(t, "sample", "sample", fake.Settings(), vip)
	fake.Seed(partnertest.Somebody(0))
	b.World.Add(partnertest.Somebody(0))
	b.Apply(t, change(0, true))
	b.Dispatch(t, activation.DispatchConfig{})
	for sent := int32(1); sent <= 2; sent++ {
		partnertest.Eventually(t, "it is taken in", func() bool {
			sum, err := b.Store.Summary(t.Context(), b.Workspace, "sample", 0)
			return err == nil && sum.Accepted == 1 && p.sends.Load() >= sent
		})
		b.Warp(t, 2*time.Minute, fake)
		partnertest.Eventually(t, "it is asked what became of it", func() bool { return p.polls.Load() >= sent })
		b.Warp(t, time.Minute, fake)
	}
	if sum := b.Rest(t, "sample"); sum.Sent != 1 || sum.Drift != 0 {
		t.Errorf("at rest the ledger says %+v", sum)
	}
	if n := len(fake.Members(partnertest.Audience{Segment: vip, ID: "aud-1"})); n != 1 {
		t.Errorf("the partner holds %d people, want 1", n)
	}
}

// Of a segment that is a destination's no more nothing is sent again.
func TestNothingIsSentAgainOfWhatWasDetached(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{})
	for n := range 3 {
		fake.Seed(partnertest.Somebody(n))
		b.World.Add(partnertest.Somebody(n))
		b.Apply(t, change(n, true))
	}
	stop := b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "sample")
	if err := b.Store.Detach(t.Context(), b.Workspace, "sample", vip); err != nil {
		t.Fatal(err)
	}
	partnertest.Eventually(t, "the partner holds nobody", func() bool {
		var n int
		err := b.Pool.QueryRow(t.Context(), `SELECT count(*) FROM activations WHERE sent IS DISTINCT FROM false OR status <> 'settled'`).Scan(&n)
		return err == nil && n == 0
	})
	stop()
	b.Dispatch(t, activation.DispatchConfig{}) // it lets go at its beginning
	partnertest.Eventually(t, "the segment is let go", func() bool {
		var n int
		err := b.Pool.QueryRow(t.Context(), `SELECT count(*) FROM destination_segments`).Scan(&n)
		return err == nil && n == 0
	})
	n, err := b.Store.Replay(t.Context(), b.Workspace, "sample", activation.Replay{Everything: true})
	if err != nil || n != 0 {
		t.Errorf("Replay = %d, %v, want 0", n, err)
	}
}

// A destination that is renamed while its token is refreshed keeps the token that it gets.
func TestARenameDuringARefreshKeepsTheNewToken(t *testing.T) {
	t.Parallel()
	b, fake := newSampleBench(t, partnertest.SampleOptions{})
	fake.Script(partnertest.Fault{
		Delay: time.Second, Late: true, Match: func(r *http.Request) bool { return r.URL.Path == "/token" },
	})
	fake.Seed(partnertest.Somebody(0))
	b.World.Add(partnertest.Somebody(0))
	b.Apply(t, change(0, true))
	b.Dispatch(t, activation.DispatchConfig{})
	partnertest.Eventually(t, "the token is being refreshed", func() bool { return fake.Scripted() == 0 })
	name := "another"
	if _, err := b.Store.Update(t.Context(), b.Workspace, "sample", activation.Update{Name: &name}); err != nil {
		t.Fatal(err)
	}
	b.Rest(t, "sample")
	fake.Expire()
	b.Apply(t, change(0, false))
	b.Rest(t, "sample")
	for _, v := range fake.Violations() {
		t.Errorf("violation: %s", v)
	}
	if d, err := b.Store.Get(t.Context(), b.Workspace, "sample"); err != nil || d.Status != activation.Active {
		t.Errorf("the destination is %s: %s, %v", d.Status, d.StatusReason, err)
	}
}

// nameless is a partner whose operator cannot be reached.
type nameless struct{ activation.AudiencePartner }

func (nameless) Map(context.Context, activation.Target, []activation.Identifiers) ([]activation.Mapped, activation.Outcome) {
	return nil, activation.Outcome{Class: activation.Retry, Reason: "the operator cannot be reached"}
}

func TestDryRunTellsThatPeopleCannotBeIdentified(t *testing.T) {
	t.Parallel()
	partner, fake := newSample(t, partnertest.SampleOptions{})
	b := partnertest.NewBench(t, nameless{partner.(activation.AudiencePartner)})
	b.Destination(t, "sample", "sample", fake.Settings(), vip)
	p := partnertest.Somebody(0)
	b.World.Add(p)
	b.Apply(t, activation.Change{Segment: vip, Profile: p.ID, Entered: true})
	run, err := b.Store.DryRun(t.Context(), b.Workspace, "sample", vip, b.World, b.World)
	if err != nil || run.Validated == nil || run.Validated.OK || !strings.Contains(run.Validated.Reason, "the operator cannot be reached") {
		t.Errorf("DryRun = %+v, %v", run, err)
	}
}

package google_test

import (
	"strings"
	"testing"
	"time"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/google"
	"github.com/mubatch/mubatch/activation/partnertest"
)

var private = activation.Outbound{AllowPrivate: true}

func subject(o partnertest.GoogleOptions) partnertest.Subject {
	return partnertest.Subject{New: func(t testing.TB) (activation.Partner, partnertest.Fake) {
		client := activation.NewClient(private)
		t.Cleanup(client.CloseIdleConnections)
		return google.New(client, private), partnertest.NewGoogle(t, o)
	}}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	partnertest.Run(t, subject(partnertest.GoogleOptions{}))
}

// With the credential of a service account, and both forms of Gmail addresses.
func TestServiceAccountSuite(t *testing.T) {
	t.Parallel()
	s := subject(partnertest.GoogleOptions{ServiceAccount: true, GmailTags: "both"})
	s.Brief = true
	partnertest.Run(t, s)
}

func eventSubject(o partnertest.GoogleEventsOptions) partnertest.EventSubject {
	return partnertest.EventSubject{New: func(t testing.TB) (activation.EventPartner, partnertest.EventFake) {
		client := activation.NewClient(private)
		t.Cleanup(client.CloseIdleConnections)
		return google.NewConversions(client, private), partnertest.NewGoogleEvents(t, o)
	}}
}

func TestEventSuite(t *testing.T) {
	t.Parallel()
	partnertest.RunEvents(t, eventSubject(partnertest.GoogleEventsOptions{}))
}

// At a Floodlight activity, with the credential of a service account, and orders known by their own ids.
func TestFloodlightEventSuite(t *testing.T) {
	t.Parallel()
	s := eventSubject(partnertest.GoogleEventsOptions{ServiceAccount: true, AccountType: "FLOODLIGHT_CONFIG", OrderIDs: true})
	s.Brief = true
	partnertest.RunEvents(t, s)
}

// A request that takes long is asked for until it is done; what Google tells of those it refused is kept.
func TestWhatBecameOfARequestIsKept(t *testing.T) {
	t.Parallel()
	client := activation.NewClient(private)
	t.Cleanup(client.CloseIdleConnections)
	fake := partnertest.NewGoogle(t, partnertest.GoogleOptions{Working: 70 * time.Minute})
	b := partnertest.NewBench(t, google.New(client, private))
	b.Destination(t, "ads", "google_customer_match", fake.Settings(), 7)
	everybody := activation.Gate{}
	if _, err := b.Store.Update(t.Context(), b.Workspace, "ads", activation.Update{Consent: &everybody}); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		p := partnertest.Somebody(n)
		if n == 1 {
			p.Traits["country"] = []byte(`"DE"`)
			p.Consent = map[string]bool{activation.AdUserData: true}
		}
		fake.Seed(p)
		b.World.Add(p)
		b.Apply(t, activation.Change{Segment: 7, Profile: p.ID, Entered: true})
	}
	b.Dispatch(t, activation.DispatchConfig{})
	for asked := range 3 {
		partnertest.Eventually(t, "the status was asked for", func() bool { return polls(t, b) >= asked })
		fake.Advance(45 * time.Minute)
		b.Warp(t, 45*time.Minute)
	}
	if sum := b.Rest(t, "ads"); sum.Sent != 3 || sum.Failed > 0 {
		t.Errorf("%+v", sum)
	}
	var match string
	if err := b.Pool.QueryRow(t.Context(), `SELECT min(match) FROM activation_receipts`).Scan(&match); err != nil || match != "61 to 70 %" {
		t.Errorf("it is kept that %q were recognised, %v", match, err)
	}
	if n := fake.Unasked(); n > 0 {
		t.Errorf("the status of %d requests was not asked for", n)
	}
	failures, err := b.Store.Failures(t.Context(), b.Workspace, "ads", 7, 10)
	if err != nil || len(failures) != 1 || failures[0].Count != 1 || !strings.HasPrefix(failures[0].Reason, "consent was denied") {
		t.Errorf("failures %+v, %v, want one for want of consent", failures, err)
	}
	if v := fake.Violations(); len(v) != 1 || !strings.Contains(v[0], "Europe") {
		t.Errorf("violations %q, want one of somebody in Europe", v)
	}
}

// polls returns how often the status of each request was asked for, at least.
func polls(t testing.TB, b *partnertest.Bench) (n int) {
	t.Helper()
	const query = `SELECT coalesce(min(polls), -1) FROM activation_receipts WHERE claim_token IS NULL`
	if err := b.Pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

package profiles_test

import (
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
)

// quarantined returns a message that has an event kept out of profiles.
func quarantined(t testing.TB, e profilestest.Event) profiles.Message {
	t.Helper()
	m := e.Message()
	body, err := profiles.AppendQuarantined(nil, profiles.Quarantined{
		MessageID: e.ID, Type: e.Type, Event: e.Event, Body: m.Body,
		Violations: []profiles.Violation{{Code: "type", Pointer: "#/properties/revenue", Detail: "must be number"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Kind, m.Body = profiles.KindQuarantine, body
	return m
}

// deliver puts messages into the streams of lanes and has everything applied.
func (c *crew) deliver(messages ...profiles.Message) {
	c.t.Helper()
	c.mu.Lock()
	for _, m := range messages {
		lane := m.Key.Lane(len(c.lanes))
		c.streams[lane] = append(c.streams[lane], m)
	}
	c.mu.Unlock()
	c.settle()
}

// deliverTo is deliver to one lane.
func (c *crew) deliverTo(lane int, m profiles.Message) {
	c.t.Helper()
	c.mu.Lock()
	c.streams[lane] = append(c.streams[lane], m)
	c.mu.Unlock()
	c.settle()
}

// held returns what is in quarantine.
func (c *crew) held() []profiles.QuarantinedEvent {
	c.t.Helper()
	list, err := profiles.NewQuarantine(c.pool, len(c.lanes)).Oldest(c.t.Context(), 1, profiles.QuarantineFilter{}, profiles.Moment{}, 100)
	if err != nil {
		c.t.Fatal(err)
	}
	return list
}

func (c *crew) counts() profiles.Counts {
	c.t.Helper()
	list, err := profiles.NewReader(c.pool, len(c.lanes)).CountsBySource(c.t.Context(), 1)
	if err != nil {
		c.t.Fatal(err)
	}
	var sum profiles.Counts
	for _, n := range list {
		sum = sum.Plus(n.Counts)
	}
	if !sum.AddUp() {
		c.t.Errorf("the counts do not add up: %+v", sum)
	}
	return sum
}

// orders returns how often an order of a user was archived.
func (c *crew) orders(user string) int64 {
	c.t.Helper()
	return one[int64](c.t, c.pool, `SELECT count(*) FROM events WHERE key = $1`, userKey(user))
}

func orderNo(id, user string) profilestest.Event {
	return profilestest.Event{ID: id, Type: "track", Event: "Order", User: user, At: profilestest.Start}
}

func TestAQuarantinedEventIsKeptOutOfProfilesUntilItIsReleasedOnce(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 4)
	ada := orderNo("m1", "ada")
	c.deliver(quarantined(t, ada))
	c.deliver(quarantined(t, ada), ada.Message()) // sent again, and once as if it were in order
	if n := c.orders("ada"); n != 0 {
		t.Fatalf("it was applied %d times", n)
	}
	list := c.held()
	if len(list) != 1 {
		t.Fatalf("%d events are in quarantine, want 1", len(list))
	}
	want := profiles.QuarantinedEvent{
		QuarantineID: profiles.QuarantineID{Lane: userKey("ada").Lane(4), ID: list[0].ID}, Source: ada.Message().Source, MessageID: "m1",
		ReceivedAt: ada.Message().Received, QuarantinedAt: list[0].QuarantinedAt, Type: "track", Event: "Order", Reason: "type",
		Violations: []profiles.Violation{{Code: "type", Pointer: "#/properties/revenue", Detail: "must be number"}}, Body: ada.Message().Body,
	}
	if diff := gocmp.Diff(want, list[0]); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := gocmp.Diff(profiles.Counts{Accepted: 3, Duplicate: 2, Quarantined: 1}, c.counts()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	traced, err := profiles.NewReader(c.pool, 4).Trace(t.Context(), 1, "m1")
	if err != nil || len(traced) != 1 || traced[0].Quarantined == nil {
		t.Errorf("its trace is %+v, %v", traced, err)
	}

	release := profiles.ReleaseMessage(1, list[0].QuarantineID, list[0].ReceivedAt, []profiles.Message{ada.Message()})
	c.deliver(release)
	// Long after dedupe has forgotten the release.
	if _, err := c.pool.Exec(t.Context(), `TRUNCATE dedupe_0, dedupe_1`); err != nil {
		t.Fatal(err)
	}
	c.deliver(release)
	if n := c.orders("ada"); n != 1 {
		t.Errorf("after two releases it was applied %d times, want once", n)
	}
	if list := c.held(); len(list) != 0 {
		t.Errorf("it is still in quarantine: %+v", list)
	}
	if diff := gocmp.Diff(profiles.Counts{Accepted: 4, Applied: 1, Duplicate: 2, Quarantined: 1}, c.counts()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAReleasedEventGoesToTheLaneOfWhomItIsAbout(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 4)
	raw, err := profiles.AppendQuarantined(nil, profiles.Quarantined{
		MessageID: "hook", Violations: []profiles.Violation{{Code: "mapping_failed"}}, Body: []byte(`{"customer":"bob"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	bob := orderNo("hook", "bob")
	held := profiles.Message{
		Kind: profiles.KindQuarantine, Workspace: 1, Source: bob.Message().Source, ID: profiles.MessageKey("hook"),
		Received: profilestest.Start, Body: raw,
	}
	elsewhere := (userKey("bob").Lane(4) + 1) % 4
	c.deliverTo(elsewhere, held)
	id := c.held()[0].QuarantineID

	// Meanwhile the same came in once more, and was understood.
	c.deliver(bob.Message())
	second := orderNo("hook:2", "bob")
	c.deliverTo(elsewhere, profiles.ReleaseMessage(1, id, profilestest.Start, []profiles.Message{bob.Message(), second.Message()}))
	c.deliverTo(elsewhere, profiles.ReleaseMessage(1, id, profilestest.Start, []profiles.Message{second.Message()}))
	if n := c.orders("bob"); n != 2 {
		t.Errorf("%d orders were applied, want each of two once", n)
	}
	if diff := gocmp.Diff(profiles.Counts{Accepted: 4, Applied: 2, Duplicate: 1, Quarantined: 1}, c.counts()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAReleaseThatComesAgainInAReplayIsApplied(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 1)
	ada := orderNo("m1", "ada").Message()
	c.deliver(quarantined(t, orderNo("m1", "ada")))
	e := c.held()[0]
	// Two events under one messageId: only the first is the one that was quarantined.
	release := profiles.ReleaseMessage(1, e.QuarantineID, e.ReceivedAt, []profiles.Message{ada, ada})
	c.deliver(profiles.Message{
		Kind: profiles.KindReplay, Workspace: 1, ID: profiles.MessageKey("replay"), Key: release.Key, Received: release.Received,
		Body: profiles.AppendMessage(nil, release),
	})
	if n := c.orders("ada"); n != 1 || len(c.held()) != 0 {
		t.Errorf("it was applied %d times, want once; in quarantine are %d, want 0", n, len(c.held()))
	}
	c.counts()
}

func TestADiscardedEventIsNotReleasedAnyMore(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	ada := orderNo("m1", "ada")
	c.deliver(quarantined(t, ada), quarantined(t, orderNo("m2", "bob")))
	list := c.held()
	quarantine := profiles.NewQuarantine(c.pool, 2)
	if n, err := quarantine.Discard(t.Context(), 2, profiles.QuarantineFilter{}); err != nil || n != 0 {
		t.Errorf("another workspace has discarded %d, %v", n, err)
	}
	for _, e := range list {
		if e.MessageID != "m1" {
			continue
		}
		n, err := quarantine.Discard(t.Context(), 1, profiles.QuarantineFilter{IDs: []profiles.QuarantineID{e.QuarantineID}})
		if err != nil || n != 1 {
			t.Errorf("%d events discarded, %v, want 1", n, err)
		}
		c.deliver(profiles.ReleaseMessage(1, e.QuarantineID, e.ReceivedAt, []profiles.Message{ada.Message()}))
	}
	if n := c.orders("ada"); n != 0 {
		t.Errorf("it was applied %d times", n)
	}
	if list := c.held(); len(list) != 1 || list[0].MessageID != "m2" {
		t.Errorf("in quarantine are %+v, want m2", list)
	}
}

func TestAReleaseThatTheDatabaseRefusesIsKeptAsFailed(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 1)
	ada := orderNo("m1", "ada")
	c.deliver(quarantined(t, ada), quarantined(t, orderNo("m2", "bob")))
	bad := ada.Message()
	bad.Body = []byte(`{"type":"track"`)
	var releases []profiles.Message
	for _, e := range c.held() {
		event := orderNo("m2", "bob").Message()
		if e.MessageID == "m1" {
			event = bad
		}
		releases = append(releases, profiles.ReleaseMessage(1, e.QuarantineID, e.ReceivedAt, []profiles.Message{event}))
	}
	until := c.lanes[0].Offset()
	until.Ms++
	if res, err := c.lanes[0].Apply(t.Context(), profiles.Batch{Until: until, Messages: releases}); err != nil || res.Failed != 1 {
		t.Fatalf("%+v, %v, want one failed", res, err)
	}
	if n := one[int64](t, c.pool, `SELECT count(*) FROM failed_events`); n != 1 || len(c.held()) != 0 {
		t.Errorf("%d failed events, want 1; in quarantine %d, want 0", n, len(c.held()))
	}
	if n := c.orders("bob"); n != 1 {
		t.Errorf("its neighbour was applied %d times, want once", n)
	}
	c.counts()
}

func TestWhoIsForgottenIsForgottenInQuarantineToo(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 2)
	raw, err := profiles.AppendQuarantined(nil, profiles.Quarantined{
		MessageID: "hook", Violations: []profiles.Violation{{Code: "mapping_failed"}}, Body: []byte(`{"customer":{"id":"ada"}}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	hook := profiles.Message{
		Kind: profiles.KindQuarantine, Workspace: 1, Source: 1, ID: profiles.MessageKey("hook"), Key: profiles.MessageKey("hook"),
		Received: profilestest.Start, Body: raw,
	}
	ada := orderNo("m1", "ada")
	c.deliver(quarantined(t, ada), quarantined(t, orderNo("m2", "bob")), hook)
	list := c.held()
	if len(list) != 3 {
		t.Fatalf("%d events are in quarantine, want 3", len(list))
	}
	proof, _ := c.finish(c.erase(profiles.Identifier{Kind: profiles.UserID, Value: "ada"}).ID)
	if list := c.held(); len(list) != 1 || list[0].MessageID != "m2" {
		t.Errorf("in quarantine are %+v, want only m2", list)
	}
	if n := proof.Deleted["quarantined_events"]; n != 2 {
		t.Errorf("the proof speaks of %d quarantined events, want 2", n)
	}
	c.deliver(quarantined(t, orderNo("m3", "ada"))) // it was under way
	if list := c.held(); len(list) != 1 {
		t.Errorf("in quarantine are %+v, want only m2", list)
	}
}

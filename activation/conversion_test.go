package activation_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// spy is a partner that tells of the events that it is asked about.
type spy struct {
	*partnertest.Sample
	seen chan activation.Event
}

func (s spy) RefuseEvent(to activation.Target, e activation.Event) string {
	s.seen <- e
	return s.Sample.RefuseEvent(to, e)
}

// onlyAudiences and onlyEvents are partners that take no more than that.
type (
	onlyAudiences struct{ activation.AudiencePartner }
	onlyEvents    struct{ activation.EventPartner }
)

func (onlyEvents) Type() string { return "events" }

// newEventBench returns a bench with a destination "sample" that subscribes to orders, and person 0 in it.
func newEventBench(t testing.TB, o partnertest.SampleOptions) (*partnertest.Bench, partnertest.SampleEventsFake) {
	t.Helper()
	partner, fake := newSample(t, o)
	b := partnertest.NewBench(t, partner)
	b.Destination(t, "sample", "sample", fake.Settings())
	b.World.Add(partnertest.Somebody(0))
	fake.Seed(partnertest.Somebody(0))
	subscribe(t, b, activation.Mapping{})
	return b, partnertest.SampleEventsFake{SampleFake: fake}
}

func subscribe(t testing.TB, b *partnertest.Bench, m activation.Mapping) {
	t.Helper()
	_, _, err := b.Store.Subscribe(t.Context(), b.Workspace, "sample", "orders", activation.NewSubscription{
		EventFilter: activation.EventFilter{Names: []string{"Order Completed"}}, Mapping: m,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// placed has the order of person 0 placed that is worth 8 €.
func placed(t testing.TB, b *partnertest.Bench, fake partnertest.SampleEventsFake) {
	t.Helper()
	e, h := partnertest.Order(8, time.Now())
	fake.Expect(e)
	h.Known, h.Consent = true, e.Person.Consent
	if n := b.Happen(t, h); n != 1 {
		t.Fatalf("%d rows were written, want 1", n)
	}
}

func eventsOf(t testing.TB, b *partnertest.Bench) activation.EventSummary {
	t.Helper()
	sum, _, err := b.Store.EventSummaries(t.Context(), b.Workspace, "sample")
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func awaitEvents(t testing.TB, b *partnertest.Bench, want activation.EventSummary) {
	t.Helper()
	partnertest.Eventually(t, "the events are as they should be", func() bool { return eventsOf(t, b) == want })
}

func TestSubscribingIsChecked(t *testing.T) {
	t.Parallel()
	b, _ := newEventBench(t, partnertest.SampleOptions{})
	for name, tc := range map[string]struct {
		n    activation.NewSubscription
		want []string
	}{
		"an event that the partner has no name for": {
			activation.NewSubscription{EventFilter: activation.EventFilter{Names: []string{"Order Completed", "Song Played"}}},
			[]string{"/names/1"},
		},
		"the same with a name": {activation.NewSubscription{
			EventFilter: activation.EventFilter{Names: []string{"Song Played"}}, Mapping: activation.Mapping{Name: "Play"},
		}, nil},
		"a field that the partner does not have": {activation.NewSubscription{
			EventFilter: activation.EventFilter{Names: []string{"Order Completed"}},
			Mapping:     activation.Mapping{Fields: map[string]activation.Field{"colour": activation.At("properties.colour")}},
		}, []string{"/mapping/fields/colour"}},
		"cells": {activation.NewSubscription{
			EventFilter: activation.EventFilter{Names: []string{"Order Completed"}},
			Mapping: activation.Mapping{Fields: map[string]activation.Field{
				"value": {Cell: jsontext.Value(`"= body.properties.total +"`)}, "currency": {Path: "properties.currency", Cell: jsontext.Value(`"$.a"`)},
			}},
		}, []string{"/mapping/fields/currency", "/mapping/fields/value/cell"}},
		"several things": {activation.NewSubscription{
			EventFilter: activation.EventFilter{Types: []string{"track", "fax"}, Where: jsontext.Value(`[{"property":"a"}]`)},
			Mapping:     activation.Mapping{Fields: map[string]activation.Field{"value": {}}},
		}, []string{"/types/1", "/where/0", "/mapping/fields/value"}},
	} {
		_, _, err := b.Store.Subscribe(t.Context(), b.Workspace, "sample", "tried", tc.n)
		if diff := cmp.Diff(tc.want, pointers(err)); diff != "" || (err == nil) != (tc.want == nil) {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

// pointers returns where an error says that something is wrong.
func pointers(err error) (at []string) {
	var field *activation.FieldError
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range several.Unwrap() {
			at = append(at, pointers(e)...)
		}
	} else if errors.As(err, &field) {
		at = append(at, field.Pointer)
	}
	return at
}

func TestPartnersTakeWhatTheyTake(t *testing.T) {
	t.Parallel()
	partner, fake := newSample(t, partnertest.SampleOptions{})
	b := partnertest.NewBench(t, onlyAudiences{partner.(activation.AudiencePartner)}, onlyEvents{partner.(activation.EventPartner)})
	b.Destination(t, "people", "sample", fake.Settings())
	b.Destination(t, "events", "events", fake.Settings())
	if err := b.Store.Attach(t.Context(), b.Workspace, "events", vip); !errors.Is(err, activation.ErrUnsupported) {
		t.Errorf("Attach where only events are taken = %v", err)
	}
	_, _, err := b.Store.Subscribe(t.Context(), b.Workspace, "people", "orders", activation.NewSubscription{
		EventFilter: activation.EventFilter{Names: []string{"Order Completed"}},
	})
	if !errors.Is(err, activation.ErrUnsupported) {
		t.Errorf("Subscribe where only audiences are taken = %v", err)
	}
}

// A partner is told of an event with all that is known of it, and by its own names.
func TestEventsCarryWhatIsKnown(t *testing.T) {
	t.Parallel()
	sample, fake := newSample(t, partnertest.SampleOptions{})
	partner := spy{sample.(*partnertest.Sample), make(chan activation.Event, 10)}
	b := partnertest.NewBench(t, partner)
	b.Destination(t, "sample", "sample", fake.Settings())
	b.World.Add(partnertest.Somebody(0))
	fake.Seed(partnertest.Somebody(0))
	subscribe(t, b, activation.Mapping{Name: "Buy", Fields: map[string]activation.Field{
		"value": {Cell: jsontext.Value(`"$.properties.products[0].price | number"`)}, "currency": {Value: jsontext.Value(`null`)},
	}})
	placed(t, b, partnertest.SampleEventsFake{SampleFake: fake})
	b.Dispatch(t, activation.DispatchConfig{})
	got := <-partner.seen
	want, _ := partnertest.Order(8, got.Timestamp)
	want.ReceivedAt, want.As, want.Fields = got.ReceivedAt, "Buy", map[string]jsontext.Value{"value": jsontext.Value("8.10")}
	want.Context = activation.EventContext{
		IP: "203.0.113.7", UserAgent: "Mozilla/5.0 (X11; Linux x86_64)", Locale: "en-US",
		Page:     activation.EventPage{URL: "https://shop.example/thanks?gclid=g-0&fbclid=f-0", Title: "Thanks"},
		Campaign: map[string]string{"source": "mail"},
		ClickIDs: map[string]string{"gclid": "g-0", "fbclid": "f-0", "fbp": "fb.1.1558571054389.0"},
		Raw:      want.Context.Raw,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the event (-want +got):\n%s", diff)
	}
}

func TestEventsEndSomehow(t *testing.T) {
	t.Parallel()
	down := partnertest.Fault{Times: 1000, Status: 500}
	t.Run("those that a partner refuses to the end of the schedule are parked, and can be replayed", func(t *testing.T) {
		t.Parallel()
		b, fake := newEventBench(t, partnertest.SampleOptions{})
		fake.Script(down)
		placed(t, b, fake)
		b.Dispatch(t, activation.DispatchConfig{Schedule: []time.Duration{time.Millisecond, time.Millisecond}})
		awaitEvents(t, b, activation.EventSummary{Parked: 1})
		failures, err := b.Store.Failures(t.Context(), b.Workspace, "sample", 0, 10)
		if err != nil || len(failures) != 1 || failures[0].Status != "parked" || failures[0].Subscription == nil {
			t.Errorf("Failures = %+v, %v", failures, err)
		}
		fake.Heal()
		if n, err := b.Store.Replay(t.Context(), b.Workspace, "sample", activation.Replay{}); err != nil || n != 1 {
			t.Errorf("Replay = %d, %v", n, err)
		}
		awaitEvents(t, b, activation.EventSummary{Sent: 1})
		lines, err := b.Store.Deliveries(t.Context(), b.Workspace, "sample", activation.DeliveryFilter{Limit: 10})
		slices.Reverse(lines)
		if err != nil || len(lines) != 4 || lines[3].Outcome != "ok" || lines[3].Event != "Order Completed" || lines[3].Profile != partnertest.Profile(0) {
			t.Errorf("the ledger has %+v, %v", lines, err)
		}
	})
	t.Run("those that get too old while the partner is down expire", func(t *testing.T) {
		t.Parallel()
		b, fake := newEventBench(t, partnertest.SampleOptions{SampleConfig: partnertest.SampleConfig{MaxAgeMinutes: 60}})
		fake.Script(down)
		placed(t, b, fake)
		stop := b.Dispatch(t, activation.DispatchConfig{})
		partnertest.Eventually(t, "it was tried", func() bool { return fake.Requests() > 0 })
		stop()
		fake.Heal()
		fake.Advance(2 * time.Hour)
		b.Warp(t, 2*time.Hour)
		b.Dispatch(t, activation.DispatchConfig{})
		awaitEvents(t, b, activation.EventSummary{Expired: 1})
		if got := fake.Received(); len(got) > 0 {
			t.Errorf("the partner has %v", got)
		}
	})
	t.Run("those that nobody could send for a week are forgotten", func(t *testing.T) {
		t.Parallel()
		b, fake := newEventBench(t, partnertest.SampleOptions{})
		if _, err := b.Store.Pause(t.Context(), b.Workspace, "sample", "holiday"); err != nil {
			t.Fatal(err)
		}
		placed(t, b, fake)
		b.Warp(t, 8*24*time.Hour)
		b.Dispatch(t, activation.DispatchConfig{})
		awaitEvents(t, b, activation.EventSummary{Forgotten: 1})
	})
	t.Run("those that a field cannot be computed of fail", func(t *testing.T) {
		t.Parallel()
		b, fake := newEventBench(t, partnertest.SampleOptions{})
		subscribe(t, b, activation.Mapping{Fields: map[string]activation.Field{"value": {Cell: jsontext.Value(`"$.properties.products | number"`)}}})
		placed(t, b, fake)
		b.Dispatch(t, activation.DispatchConfig{})
		awaitEvents(t, b, activation.EventSummary{Failed: 1})
	})
	t.Run("those that wait when their subscription is removed are forgotten", func(t *testing.T) {
		t.Parallel()
		b, fake := newEventBench(t, partnertest.SampleOptions{})
		placed(t, b, fake)
		if err := b.Store.Unsubscribe(t.Context(), b.Workspace, "sample", "orders", 0); err != nil {
			t.Fatal(err)
		}
		awaitEvents(t, b, activation.EventSummary{Forgotten: 1})
		if err := b.Store.Delete(t.Context(), b.Workspace, "sample"); err != nil {
			t.Errorf("Delete = %v", err)
		}
	})
	t.Run("those that the partner can do nothing with fail", func(t *testing.T) {
		t.Parallel()
		b, fake := newEventBench(t, partnertest.SampleOptions{})
		subscribe(t, b, activation.Mapping{Fields: map[string]activation.Field{"value": activation.At("properties.order_id")}})
		placed(t, b, fake)
		b.Dispatch(t, activation.DispatchConfig{})
		awaitEvents(t, b, activation.EventSummary{Failed: 1})
		subscribe(t, b, activation.Mapping{}) // what failed goes by the mapping of now
		if n, err := b.Store.Replay(t.Context(), b.Workspace, "sample", activation.Replay{}); err != nil || n != 1 {
			t.Errorf("Replay = %d, %v", n, err)
		}
		awaitEvents(t, b, activation.EventSummary{Sent: 1})
		for _, v := range fake.Violations() {
			t.Errorf("violation: %s", v)
		}
	})
}

//go:build unix

package main

import (
	"testing"
	"time"

	rudderstack "github.com/rudderlabs/analytics-go/v4"
	segment "github.com/segmentio/analytics-go/v3"
)

// What every library is made to say of one person. From the order on it is said to a server that dies after it has
// answered and before the answer is received, and is back a second later.
func everyCall() map[string]int {
	return map[string]int{
		"track Product Viewed": 1, "identify": 1, "page": 1, "track Order Completed": 1, "screen": 1, "group": 1, "alias": 1,
	}
}

// The official libraries, as they are and pointed at us, bring every kind of call into the right profile exactly once,
// although the server is killed in between. Segment's browser SDK does so with the Authorization that needs a preflight.
func TestOfficialSDKs(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	t.Parallel()
	all, noScreen, onlyJitsu := everyCall(), everyCall(), everyCall()
	delete(noScreen, "screen")
	delete(onlyJitsu, "screen")
	delete(onlyJitsu, "alias")
	ajs := []string{"authorization", "x-retry-count"}
	for _, sdk := range []struct {
		name    string
		run     func(*site)
		calls   map[string]int
		crashes bool     // the library sends again what was not answered
		asks    []string // headers that need a preflight
	}{
		{"segmentio analytics-go", segmentGo, all, true, nil},
		{"rudderlabs analytics-go", rudderstackGo, all, true, nil},
		{"segment analytics-node", func(s *site) { s.node("segment-node.mjs") }, all, true, nil},
		{"rudderstack rudder-sdk-node", func(s *site) { s.node("rudderstack-node.mjs") }, all, true, nil},
		{"jitsu js in Node", func(s *site) { s.node("jitsu-node.mjs") }, onlyJitsu, false, nil},
		{"segment analytics-next", func(s *site) { s.browse("segment-browser.html") }, all, true, ajs},
		{"segment analytics-next in batches", func(s *site) { s.browse("segment-browser.html?batching") }, all, true, ajs},
		{"rudderstack analytics-js", func(s *site) { s.browse("rudderstack-browser.html") }, noScreen, true, []string{"authorization", "anonymousid", "sentat"}},
	} {
		t.Run(sdk.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			sdk.run(s)
			s.settled(sdk.calls, sdk.crashes)

			want := person{Calls: sdk.calls, Traits: map[string]any{"email": "ada@example.org", "plan": "pro"}, Alias: sdk.calls["alias"] > 0}
			s.becomes(want)
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, header := range sdk.asks {
				if !s.asked[header] {
					t.Errorf("no browser asked whether it may send %s, only %v", header, s.asked)
				}
			}
			for _, e := range s.events() {
				if p := e.Payload.Properties; e.Name == "Order Completed" && (p.Revenue.String() != "59.9" || p.OrderID != "1042") {
					t.Errorf("the order is %+v", p)
				}
			}
		})
	}
}

// Three libraries on one site each give a visitor an id of their own, until each is told who it is.
func TestOneVisitorOfThreeSDKsIsOneProfile(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	t.Parallel()
	s := newSite(t)
	s.browse("three.html")
	want := person{
		Calls:   map[string]int{"track Seen by Segment": 1, "track Seen by RudderStack": 1, "track Seen by Jitsu": 1, "identify": 3},
		Traits:  map[string]any{"email": "ada@example.org", "plan": "pro", "city": "London"},
		Consent: map[string]bool{"analytics": true, "ads": false},
	}
	s.settled(want.Calls, false)
	s.becomes(want)
	visitors := map[string]bool{}
	for _, e := range s.events() {
		visitors[e.Payload.AnonymousID] = true
	}
	if len(visitors) != 3 || visitors[""] {
		t.Errorf("the libraries' names for the visitor are %v, want three", visitors)
	}
}

func segmentGo(s *site) {
	client, err := segment.NewWithConfig(s.at.WriteKey, segment.Config{Endpoint: s.collect, Interval: 50 * time.Millisecond, Logger: quiet{}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { client.Close() }) // which drops what was not answered yet
	say := func(m segment.Message) {
		if err := client.Enqueue(m); err != nil {
			s.t.Errorf("%T: %v", m, err)
		}
	}
	say(segment.Track{AnonymousId: "visitor", Event: "Product Viewed", Properties: segment.Properties{"sku": "A1", "price": 9.99}})
	say(segment.Identify{AnonymousId: "visitor", UserId: "ada", Traits: segment.Traits{"email": "ada@example.org", "plan": "pro"}})
	say(segment.Page{UserId: "ada", Name: "Pricing"})
	eventually(s.t, "the first calls are in", func() bool { return s.counts().Applied == 3 })
	s.armed.Store(true)
	say(segment.Track{UserId: "ada", Event: "Order Completed", Properties: segment.Properties{"order_id": "1042", "revenue": 59.9, "currency": "EUR"}})
	say(segment.Screen{UserId: "ada", Name: "Main"})
	say(segment.Group{UserId: "ada", GroupId: "engines", Traits: segment.Traits{"name": "Analytical Engines"}})
	say(segment.Alias{UserId: "ada", PreviousId: "ada-of-old"})
}

func rudderstackGo(s *site) {
	client, err := rudderstack.NewWithConfig(s.at.WriteKey, rudderstack.Config{DataPlaneUrl: s.collect, Interval: 50 * time.Millisecond, Logger: quiet{}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { client.Close() }) // which drops what was not answered yet
	say := func(m rudderstack.Message) {
		if err := client.Enqueue(m); err != nil {
			s.t.Errorf("%T: %v", m, err)
		}
	}
	say(rudderstack.Track{AnonymousId: "visitor", Event: "Product Viewed", Properties: rudderstack.Properties{"sku": "A1", "price": 9.99}})
	say(rudderstack.Identify{AnonymousId: "visitor", UserId: "ada", Traits: rudderstack.Traits{"email": "ada@example.org", "plan": "pro"}})
	say(rudderstack.Page{UserId: "ada", Name: "Pricing"})
	eventually(s.t, "the first calls are in", func() bool { return s.counts().Applied == 3 })
	s.armed.Store(true)
	say(rudderstack.Track{UserId: "ada", Event: "Order Completed", Properties: rudderstack.Properties{"order_id": "1042", "revenue": 59.9, "currency": "EUR"}})
	say(rudderstack.Screen{UserId: "ada", Name: "Main"})
	say(rudderstack.Group{UserId: "ada", GroupId: "engines", Traits: rudderstack.Traits{"name": "Analytical Engines"}})
	say(rudderstack.Alias{UserId: "ada", PreviousId: "ada-of-old"})
}

// quiet is a logger of the libraries in Go, which say in full what they could not send.
type quiet struct{}

func (quiet) Logf(string, ...any)   {}
func (quiet) Errorf(string, ...any) {}

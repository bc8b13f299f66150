package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

// TestConversionsReachAReceiver sends orders over HTTP, some of them twice, through a whole server that fails to reach the
// receiver at first. It hears of each order that it has subscribed to, and the trace says so.
func TestConversionsReachAReceiver(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.NewURL(t)
	_, prefix := redistest.New(t)
	redistest.RequireReal(t)
	at := serveForTest(t, databaseURL, prefix)
	receiver := partnertest.NewReceiver(t)
	receiver.Script(partnertest.Fault{Times: 2, Reset: true, Apply: true})

	settings := receiver.Settings()
	at.do(t, http.MethodPost, "/api/v1/destinations", map[string]any{
		"key": "crm", "type": "webhook", "config": json.RawMessage(settings.Config), "secrets": json.RawMessage(settings.Secrets),
	}, new(any))
	at.do(t, http.MethodPut, "/api/v1/destinations/crm/events/orders", map[string]any{"names": []string{"Order Completed"}}, new(any))

	var events []event
	var want []string
	start := time.Now().UTC().Truncate(time.Millisecond)
	for n := range 30 {
		e := event{
			Type: "track", Event: "Order Completed", UserID: fmt.Sprint("u", n%5), MessageID: fmt.Sprint("o", n),
			Timestamp: start.Add(-time.Duration(n) * time.Second),
		}
		if n%3 == 0 {
			e.Event = "Product Viewed"
		} else {
			want = append(want, e.MessageID)
			receiver.Expect(activation.Event{
				MessageID: e.MessageID, Type: e.Type, Name: e.Event, Timestamp: e.Timestamp, UserID: e.UserID,
				Properties: jsontext.Value(nil),
			})
		}
		events = append(events, e)
	}
	at.track(t, events[:20]...)
	at.track(t, events...)
	slices.Sort(want)
	partnertest.Eventually(t, "every order has arrived", func() bool { return len(receiver.Received()) >= len(want) })
	if diff := cmp.Diff(want, receiver.Received()); diff != "" {
		t.Errorf("the orders that arrived (-want +got):\n%s", diff)
	}
	for _, v := range receiver.Violations() {
		t.Errorf("violation: %s", v)
	}
	var sum struct {
		Events struct{ Sent, Waiting int }
	}
	partnertest.Eventually(t, "every order counts as sent", func() bool {
		at.do(t, http.MethodGet, "/api/v1/destinations/crm/summary", nil, &sum)
		return sum.Events.Sent == len(want) && sum.Events.Waiting == 0
	})
	var trace struct {
		Events []struct {
			Deliveries []struct {
				Change, Outcome string
				SubscriptionID  string `json:"subscription_id"`
			}
		}
	}
	at.do(t, http.MethodGet, "/api/v1/traces/"+want[0], nil, &trace)
	if len(trace.Events) != 1 || len(trace.Events[0].Deliveries) == 0 {
		t.Fatalf("the trace says %+v", trace)
	}
	if d := trace.Events[0].Deliveries; d[len(d)-1].Outcome != "ok" || d[0].Change != "happened" || d[0].SubscriptionID == "" {
		t.Errorf("the trace says %+v", trace)
	}
}

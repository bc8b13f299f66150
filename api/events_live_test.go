package api_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// accept makes events of a tenant durable, as a collector does.
func (w *world) accept(tn tenant, events ...string) {
	w.t.Helper()
	sources := collector.NewSourceStore(w.pool)
	source, err := sources.Get(w.t.Context(), tn.ID, tn.things["source"])
	if err != nil {
		w.t.Fatal(err)
	}
	secret := tn.Secret
	var msgs []collector.Routed
	for i, body := range events {
		e, err := profiles.DecodeEvent([]byte(body))
		if err != nil {
			w.t.Fatal(err)
		}
		w.sent++
		key := secret.Key(e.Identifier())
		msgs = append(msgs, collector.Routed{Lane: key.Lane(lanes), Message: profiles.Message{
			Kind: profiles.KindEvent, Workspace: tn.ID, Source: source.ID, ID: profiles.MessageKey(fmt.Sprint(w.sent, i)), Key: key,
			Received: e.Timestamp, Body: []byte(body),
		}})
	}
	if err := w.committer.Commit(w.t.Context(), msgs); err != nil {
		w.t.Fatal(err)
	}
}

func happened(id, who, name string) string {
	return fmt.Sprintf(`{"type":"track","event":%q,"messageId":%q,%s,"timestamp":"2026-11-01T12:00:00Z","properties":{"Color":"Teal"}}`, name, id, who)
}

// shown returns the message ids of the next n events of a live view.
func (l *listener) shown(n int) (ids []string) {
	l.t.Helper()
	for len(ids) < n {
		if _, name, data := l.event(); name == "event" {
			ids = append(ids, answer{t: l.t, Body: data}.str("message_id"))
		} else if name != "ready" {
			l.t.Fatalf("%q %s", name, data)
		}
	}
	return ids
}

func TestEventsAreShownAsTheyAreAccepted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.as(w.acme, "GET", "/api/v1/events/live", "").want(503, "unavailable")
	run(t, w.tail.Run)
	w.until("the lanes to be followed", func() bool {
		resp := w.raw("/api/v1/events/live")
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	all := w.listen(w.acme, "/api/v1/events/live")
	some := map[string]*listener{}
	for query, want := range map[string]string{
		"source=acme-shop": "a b c end", "type=track&event=Signed+Up": "b end", "user_id=ada": "a end", "anonymous_id=a9": "b end",
		"q=teAL&event=Viewed": "a c end", "profile=user_id:ada": "a end",
	} {
		some[query+" "+want] = w.listen(w.acme, "/api/v1/events/live?"+query)
	}
	for query, l := range some {
		if _, name, _ := l.event(); name != "ready" {
			t.Fatalf("%s begins with %q", query, name)
		}
	}
	all.event()
	w.accept(w.acme, happened("a", `"userId":"ada"`, "Viewed"))
	w.accept(w.globex, happened("not ours", `"userId":"ada"`, "Viewed"))
	w.accept(w.acme, happened("b", `"anonymousId":"a9"`, "Signed Up"))
	w.accept(w.acme, happened("c", `"userId":"bob"`, "Viewed"))
	if got := all.shown(3); strings.Join(got, " ") != "a b c" {
		t.Errorf("shown %v", got)
	}
	// What each filter shows last, so that whatever it should not have shown would have come before.
	ends := map[string]string{
		"source=acme-shop": `"userId":"x"`, "type=track&event=Signed+Up": `"userId":"x"`, "user_id=ada": `"userId":"ada"`,
		"anonymous_id=a9": `"anonymousId":"a9"`, "q=teAL&event=Viewed": `"userId":"x"`, "profile=user_id:ada": `"userId":"ada"`,
	}
	for query, l := range some {
		parts := strings.Split(query, " ")
		name := "Viewed"
		if strings.Contains(query, "Signed") {
			name = "Signed Up"
		}
		w.accept(w.acme, happened("end", ends[parts[0]], name))
		var got []string
		for !slices.Contains(got, "end") {
			got = append(got, l.shown(1)...)
		}
		if strings.Join(got, " ") != strings.Join(parts[1:], " ") {
			t.Errorf("%s: shown %v", query, got)
		}
		l.resp.Body.Close()
	}
	for _, bad := range []string{"source=nothing", "type=click", "q=", "profile=user_id:nobody", "colour=teal", "source=" + w.globex.things["source"]} {
		w.as(w.acme, "GET", "/api/v1/events/live?"+bad, "").want(400, "bad_parameter")
	}
	w.as(w.acme, "GET", "/api/v1/events/live", "", header("Last-Event-ID", "x")).want(400, "bad_parameter")
}

func TestALiveViewThatIsCutOffGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	run(t, w.tail.Run)
	l := w.listen(w.acme, "/api/v1/events/live")
	l.event()
	w.accept(w.acme, happened("a", `"userId":"ada"`, "Viewed"))
	if got := l.shown(1); got[0] != "a" {
		t.Fatal(got)
	}
	var id string
	for id == "" {
		line, _ := l.line()
		id, _ = strings.CutPrefix(line, "id: ")
		if !strings.HasPrefix(line, "id: ") {
			id = ""
		}
	}
	l.resp.Body.Close()
	w.accept(w.acme, happened("b", `"userId":"ada"`, "Viewed"))
	back := w.listen(w.acme, "/api/v1/events/live", header("Last-Event-ID", id))
	w.accept(w.acme, happened("c", `"userId":"ada"`, "Viewed"))
	if got := back.shown(2); strings.Join(got, " ") != "b c" {
		t.Errorf("shown %v", got)
	}
	close(w.stop)
	for name := ""; name != "end"; {
		var data string
		if _, name, data = back.event(); name == "end" && !strings.Contains(data, "stopping") {
			t.Error(data)
		} else if name == "" {
			t.Fatal("the feed ends without saying why")
		}
	}
}

package api_test

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
)

// raw asks as acme, without reading the answer: the contract's transport is for answers that end, and well.
func (w *world) raw(path string, options ...option) *http.Response {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), "GET", w.url+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+w.acme.secret)
	for _, o := range options {
		o(r)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

// listener reads a live feed.
type listener struct {
	t     testing.TB
	resp  *http.Response
	lines chan string
}

// listen opens a live feed of a tenant. The test fails if a line is longer in coming than anybody would wait.
func (w *world) listen(tn tenant, path string, options ...option) *listener {
	w.t.Helper()
	resp := w.raw(path, append([]option{header("Authorization", "Bearer "+tn.secret)}, options...)...)
	w.t.Cleanup(func() { resp.Body.Close() })
	l := &listener{t: w.t, resp: resp, lines: make(chan string)}
	go func() {
		defer close(l.lines)
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			select {
			case l.lines <- s.Text():
			case <-w.t.Context().Done():
				return
			}
		}
	}()
	return l
}

func (l *listener) line() (string, bool) {
	l.t.Helper()
	select {
	case line, ok := <-l.lines:
		return line, ok
	case <-time.After(time.Minute):
		l.t.Fatal("the feed is silent")
		return "", false
	}
}

// event returns the next event, past comments. At the end of the feed its name is empty.
func (l *listener) event() (id, name, data string) {
	l.t.Helper()
	for {
		line, ok := l.line()
		field, value, _ := strings.Cut(line, ": ")
		switch {
		case !ok || line == "" && name != "":
			return id, name, data
		case field == "id":
			id = value
		case field == "event":
			name = value
		case field == "data":
			data = value
		}
	}
}

// who returns the profiles of the next n transitions, and the id of the last.
func (l *listener) who(n int) (ids []string, cursor string) {
	l.t.Helper()
	for range n {
		id, name, data := l.event()
		if name != "transition" {
			l.t.Fatalf("event %q: %s", name, data)
		}
		ids, cursor = append(ids, answer{t: l.t, Body: data}.str("profile_id")), id
	}
	return ids, cursor
}

const livePath = "/api/v1/segments/acme-buyers/transitions/live"

// liveFeeds returns how many live feeds the server takes for open.
func (w *world) liveFeeds() (n float64) {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "mubatch_api_live_feeds" {
			n = f.Metric[0].GetGauge().GetValue()
		}
	}
	return n
}

func (w *world) until(what string, holds func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestALiveFeedGoesOnWhereItWasCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.listen(w.acme, livePath)
	for name, want := range map[string]string{"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", "Cache-Control": "no-store", "Content-Encoding": ""} {
		if got := l.resp.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	start, name, data := l.event()
	if name != "ready" || !strings.Contains(data, w.acme.things["segment"]) {
		t.Fatalf("%s %s", name, data)
	}
	want := w.moves(w.acme, 1, 5)
	w.moves(w.globex, 1, 3)
	got, cursor := l.who(5)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("live (-want +got):\n%s", diff)
	}
	l.resp.Body.Close()
	w.until("the feed to be closed", func() bool { return w.liveFeeds() == 0 })

	more := w.moves(w.acme, 6, 700) // more than are read at once
	l = w.listen(w.acme, livePath+"?after="+start, header("Last-Event-ID", cursor))
	l.event()
	got, cursor = l.who(700)
	if diff := cmp.Diff(more, got); diff != "" {
		t.Errorf("after Last-Event-ID (-want +got):\n%s", diff)
	}
	if p := w.as(w.acme, "GET", "/api/v1/segments/acme-buyers/transitions?after="+cursor, "").want(200); p.len("data") != 0 {
		t.Errorf("the pages have more: %s", p.Body)
	}
	l = w.listen(w.acme, livePath+"?after="+start)
	l.event()
	if got, _ = l.who(705); len(got) != 705 || got[0] != want[0] {
		t.Errorf("after the start: %d", len(got))
	}
	w.as(w.acme, "GET", livePath+"?after=nonsense", "").want(400, "bad_cursor")
	w.as(w.acme, "GET", livePath, "", header("Last-Event-ID", "nonsense")).want(400, "bad_cursor")
	w.as(w.acme, "GET", livePath+"?cursor=x", "").want(400, "bad_parameter")
	if head := w.as(w.acme, "HEAD", livePath, "").want(200); head.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("HEAD: %v", head.Header)
	}
}

// A server that gives each answer ten seconds has a live feed that lasts, and tells that it is there.
func TestALiveFeedOutlastsTheServersDeadlines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewUnstartedServer(w.router)
	server.Config.ReadTimeout, server.Config.WriteTimeout = 10*time.Second, 10*time.Second
	server.Start()
	t.Cleanup(server.Close)
	w.url = server.URL
	l := w.listen(w.acme, livePath)
	l.event()
	heartbeats := 0
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		line, ok := l.line()
		if !ok {
			t.Fatalf("the feed has ended after %v", time.Since(began))
		}
		if line == ":" {
			heartbeats++
		}
	}
	if heartbeats == 0 {
		t.Error("no heartbeat")
	}
	want := w.moves(w.acme, 1, 1)
	if got, _ := l.who(1); got[0] != want[0] {
		t.Errorf("got %v, want %v", got, want)
	}
	l.resp.Body.Close() // or the server waits for it
}

func TestALiveFeedEndsWithAReason(t *testing.T) {
	t.Parallel()
	end := func(t *testing.T, l *listener, reason string) {
		t.Helper()
		for {
			_, name, data := l.event()
			if name == "transition" {
				continue
			}
			if name != "end" || data != fmt.Sprintf(`{"reason":%q}`, reason) {
				t.Errorf("%s %s, want the end because of %s", name, data, reason)
			}
			break
		}
		if line, ok := l.line(); ok {
			t.Errorf("after the end: %q", line)
		}
	}
	t.Run("when the key is revoked", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		made := w.as(w.acme, "POST", "/api/v1/keys", `{"name":"short-lived","scopes":["read"]}`).want(201)
		l := w.listen(tenant{secret: made.str("secret")}, livePath)
		l.event()
		w.as(w.acme, "DELETE", "/api/v1/keys/"+made.str("id"), "").want(200)
		end(t, l, "unauthorized")
	})
	t.Run("when the segment is gone, and not before everybody has left", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		l := w.listen(w.acme, livePath)
		l.event()
		p, err := profiles.ParseKey(w.acme.things["profile"])
		if err != nil {
			t.Fatal(err)
		}
		w.transition(w.acme, p, w.acme.number("segment"), false, 0, "", at(9))
		w.exec(`DELETE FROM segments WHERE id = $1`, w.acme.number("segment"))
		if got, _ := l.who(1); got[0] != p.String() {
			t.Errorf("%v has left, want %v", got, p)
		}
		end(t, l, "deleted")
	})
	t.Run("when the server stops", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		l := w.listen(w.acme, livePath)
		l.event()
		close(w.stop)
		end(t, l, "stopping")
		w.until("the feed to be closed", func() bool { return w.liveFeeds() == 0 })
	})
}

func TestLiveFeedsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var open []*listener
	for range 20 {
		l := w.listen(w.acme, livePath)
		if _, name, data := l.event(); name != "ready" {
			t.Fatalf("%s %s", name, data)
		}
		open = append(open, l)
	}
	if got := w.as(w.acme, "GET", livePath, "").want(429, "too_many_feeds"); got.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	w.listen(w.globex, strings.Replace(livePath, "acme", "globex", 1)).event()
	want := w.moves(w.acme, 1, 2)
	for _, l := range open {
		if got, _ := l.who(2); !cmp.Equal(want, got) {
			t.Errorf("got %v, want %v", got, want)
		}
		l.resp.Body.Close()
	}
	w.until("the feeds to be closed", func() bool { return w.liveFeeds() == 1 })
	w.listen(w.acme, livePath).event()
}

package collector_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/profiles"
)

// said returns an event of a workspace in a lane.
func said(workspace int32, lane int, id string) collector.Routed {
	m := routed(id, lane)
	m.Workspace, m.Kind, m.Received = workspace, profiles.KindEvent, time.Now()
	m.Body = fmt.Appendf(nil, `{"type":"track","event":"e","messageId":%q,"userId":"ada"}`, id)
	return m
}

// heard takes in what a listener gets until it has heard the last id.
type heard struct {
	ids    []string
	missed int
	gap    bool
	at     collector.Position
}

func (h *heard) until(t testing.TB, l *collector.Listener, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !done() {
		b, more, err := l.Next(ctx)
		if err != nil || !more {
			t.Fatalf("heard %v, then nothing more: %v %v", h.ids, more, err)
		}
		h.at, h.missed, h.gap = b.Behind, h.missed+b.Missed, h.gap || b.Gap
		for _, e := range b.Events {
			said, err := e.Event()
			if err != nil {
				t.Fatal(err)
			}
			h.ids = append(h.ids, said.MessageID)
		}
	}
}

func (h *heard) last(id string) func() bool {
	return func() bool { return slices.Contains(h.ids, id) }
}

func listen(t testing.TB, tail *collector.Tail, workspace int32, from collector.Position) *collector.Listener {
	t.Helper()
	var l *collector.Listener
	waitFor(t, "somebody to follow the lanes", func() (ok bool) {
		var err error
		l, err = tail.Listen(t.Context(), workspace, from)
		return err == nil
	})
	t.Cleanup(l.Close)
	return l
}

// tailed is a tail, and a committer of another process.
func tailed(t testing.TB, rdb redis.UniversalClient, prefix string) (*collector.Tail, *collector.Stream, func(...collector.Routed)) {
	t.Helper()
	cfg := collector.Config{Prefix: prefix, Lanes: 3, AllowDegraded: true}
	committer, stream, _ := runCommitter(t, cfg, rdb)
	tail := collector.NewTail(stream, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	run(t, tail.Run)
	return tail, stream, func(msgs ...collector.Routed) {
		t.Helper()
		if err := committer.Commit(context.Background(), msgs); err != nil {
			t.Fatal(err)
		}
	}
}

func TestListenersHearWhatIsAcceptedOfTheirWorkspace(t *testing.T) {
	t.Parallel()
	rdb, prefix := redistest.New(t)
	tail, _, commit := tailed(t, rdb, prefix)
	commit(said(1, 0, "before"))
	ada, bob := listen(t, tail, 1, nil), listen(t, tail, 2, nil)
	commit(said(1, 0, "a"), said(2, 1, "b"), said(1, 2, "c"))
	claim := said(1, 0, "between lanes")
	claim.Kind = profiles.KindClaim
	commit(claim)
	commit(said(1, 1, "d"), said(2, 1, "e"))
	var a, b heard
	a.until(t, ada, a.last("d"))
	b.until(t, bob, b.last("e"))
	slices.Sort(a.ids[:2]) // of one commit
	if fmt.Sprint(a.ids, b.ids) != "[a c d] [b e]" || a.missed+b.missed > 0 || a.gap || b.gap {
		t.Errorf("heard %v and %v", a, b)
	}
}

func TestAListenerThatComesBackGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	rdb, prefix := redistest.New(t)
	tail, stream, commit := tailed(t, rdb, prefix)
	l := listen(t, tail, 1, nil)
	commit(said(1, 0, "a"), said(1, 1, "b"))
	var h heard
	h.until(t, l, func() bool { return len(h.ids) == 2 })
	l.Close()
	commit(said(1, 1, "c"), said(2, 1, "not ours"))
	commit(said(1, 2, "d"))
	from, err := collector.ParsePosition(h.at.String(), 3)
	if err != nil || !slices.Equal(from, h.at) {
		t.Fatalf("%v became %v: %v", h.at, from, err)
	}
	l = listen(t, tail, 1, from)
	commit(said(1, 0, "e"))
	h.until(t, l, h.last("e"))
	if got := strings.Join(h.ids[2:], ""); got != "cde" || h.gap || h.missed > 0 {
		t.Errorf("after coming back: %v", h)
	}
	l.Close()

	commit(said(1, 0, "trimmed"))
	ends, err := stream.Ends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	commit(said(1, 0, "kept"))
	if err := stream.Trim(t.Context(), 0, collector.Offset{Ms: ends[0].Ms, Seq: ends[0].Seq + 1}); err != nil {
		t.Fatal(err)
	}
	at := h.at
	h = heard{}
	h.until(t, listen(t, tail, 1, at), h.last("kept"))
	if !h.gap || slices.Contains(h.ids, "trimmed") {
		t.Errorf("what was trimmed is missing in silence: %v", h)
	}
	for _, bad := range []string{"", "x", "AAAA", h.at.String() + "AA", collector.Position{{Ms: 1}}.String()} {
		if p, err := collector.ParsePosition(bad, 3); err == nil {
			t.Errorf("%q is the position %v", bad, p)
		}
	}
}

func TestASlowListenerMissesEventsAndHoldsUpNobody(t *testing.T) {
	t.Parallel()
	rdb, prefix := redistest.New(t)
	tail, _, commit := tailed(t, rdb, prefix)
	slow, quick := listen(t, tail, 1, nil), listen(t, tail, 1, nil)
	const n = 600 // more than wait for a listener
	var q heard
	for i := range n {
		id := fmt.Sprint("e", i)
		commit(said(1, i%3, id))
		q.until(t, quick, q.last(id))
	}
	if len(q.ids) != n || q.missed > 0 {
		t.Errorf("the quick one heard %d of %d and missed %d", len(q.ids), n, q.missed)
	}
	var s heard
	for i := 0; !s.last("end")(); i++ {
		id := fmt.Sprint("more", i)
		if i == 0 {
			id = "end"
		}
		s.until(t, slow, func() bool { return len(s.ids) > 200 })
		commit(said(1, 0, id))
		s.until(t, slow, s.last(id))
	}
	if s.missed == 0 || len(s.ids)+s.missed != n+1 {
		t.Errorf("the slow one heard %d and was told that it missed %d, of %d", len(s.ids), s.missed, n+1)
	}
}

func TestListeningOutlivesARestartOfRedis(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	rdb := r.client()
	cfg := collector.Config{Lanes: 3, Prefix: "mb:"}
	committer, stream, _ := runCommitter(t, cfg, rdb)
	tail := collector.NewTail(stream, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	run(t, tail.Run)
	l := listen(t, tail, 1, nil)
	commit := func(id string) {
		t.Helper()
		waitFor(t, "the commit of "+id, func() bool { return committer.Commit(t.Context(), []collector.Routed{said(1, 0, id)}) == nil })
	}
	var h heard
	commit("before")
	h.until(t, l, h.last("before"))
	r.kill()
	r.start()
	commit("after")
	h.until(t, l, h.last("after"))
	if !slices.Contains(h.ids, "before") || h.gap {
		t.Errorf("heard %v", h)
	}
}

func TestNobodyListensWhenNobodyFollows(t *testing.T) {
	t.Parallel()
	rdb, prefix := redistest.New(t)
	cfg := collector.Config{Prefix: prefix, Lanes: 3}
	tail := collector.NewTail(collector.NewStream(cfg.Stream(), rdb), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if _, err := tail.Listen(t.Context(), 1, nil); err == nil {
		t.Error("a listener to nothing")
	}
	stop := run(t, tail.Run)
	l := listen(t, tail, 1, nil)
	if _, more, err := l.Next(t.Context()); !more || err != nil { // where it begins
		t.Fatal(more, err)
	}
	stop()
	for more := true; more; {
		var err error
		if _, more, err = l.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

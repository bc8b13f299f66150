package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/profiles"
)

const (
	eventStream = "text/event-stream"

	maxLive          = 20  // live feeds of a workspace, in this process
	maxLiveOfAll     = 200 // of all workspaces
	lookAtMostEvery  = 100 * time.Millisecond
	lookAtLeastEvery = time.Second
	livePage         = 500 // transitions read at once
)

// liveFeeds counts the live feeds, and looks for transitions on behalf of everybody who follows a segment, so that many followers cost the database no
// more than one. It has no goroutine of its own: whoever looks first looks for all.
type liveFeeds struct {
	people    *profiles.Reader
	stopping  <-chan struct{}
	heartbeat time.Duration
	open      prometheus.Gauge

	mu         sync.Mutex
	workspaces map[int32]int // live feeds
	followers  map[int64]int // by segment
	all        int

	looking sync.Mutex // protects what follows
	looked  time.Time
	err     error // of the last time
	upTo    profiles.Position
	moves   map[int64]int // how often a segment was found to have moved
}

func newLiveFeeds(people *profiles.Reader, cfg Config) *liveFeeds {
	return &liveFeeds{
		people: people, stopping: cfg.Stopping, heartbeat: cmp.Or(cfg.Heartbeat, 15*time.Second),
		workspaces: map[int32]int{}, followers: map[int64]int{}, moves: map[int64]int{},
		open: promauto.With(cfg.Registerer).NewGauge(prometheus.GaugeOpts{
			Name: "mubatch_api_live_feeds",
			Help: "Live feeds of segments and events that somebody listens to.",
		}),
	}
}

// join counts a feed in, unless there are too many. leave counts it out again.
func (l *liveFeeds) join(workspace int32) (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var p *problem.Problem
	switch {
	case l.workspaces[workspace] >= maxLive:
		p = problem.New(http.StatusTooManyRequests, "too_many_feeds", "The workspace has too many live feeds.")
		p.Detail = fmt.Sprintf("There may be %d at a time. End one, or read in pages.", maxLive)
	case l.all >= maxLiveOfAll:
		p = problem.New(http.StatusServiceUnavailable, "unavailable", "This cannot be done for now.")
		p.Detail = "There are too many live feeds. Try again later, or read in pages."
	}
	if p != nil {
		p.RetryAfter = 10 * time.Second
		return nil, p
	}
	l.all++
	l.workspaces[workspace]++
	l.open.Inc()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all--
		less(l.workspaces, workspace)
		l.open.Dec()
	}, nil
}

// follow has somebody look for transitions of a segment, until ended.
func (l *liveFeeds) follow(segment int64) (end func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.followers[segment]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		less(l.followers, segment)
	}
}

func less[K comparable](counts map[K]int, k K) {
	if counts[k]--; counts[k] == 0 {
		delete(counts, k)
	}
}

// look returns a number that changes when a segment that somebody follows has moved. It asks the database at most once in
// lookAtMostEvery.
func (l *liveFeeds) look(ctx context.Context, segment int64) (int, error) {
	l.looking.Lock()
	defer l.looking.Unlock()
	if time.Since(l.looked) >= lookAtMostEvery {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second) // others wait for it, too
		defer cancel()
		l.err = l.lookForAll(ctx)
		l.looked = time.Now()
	}
	return l.moves[segment], l.err
}

func (l *liveFeeds) lookForAll(ctx context.Context) error {
	l.mu.Lock()
	followed := make([]int64, 0, len(l.followers))
	for id := range l.followers {
		followed = append(followed, id)
	}
	l.mu.Unlock()
	slices.Sort(followed)
	present, err := l.people.Present(ctx)
	if err != nil {
		return err
	}
	if l.upTo == nil || !present.Beyond(l.upTo) {
		l.upTo = present
		return nil
	}
	moved, err := l.people.Moved(ctx, followed, l.upTo)
	if err != nil {
		return err
	}
	for id := range l.moves {
		if _, found := slices.BinarySearch(followed, id); !found {
			delete(l.moves, id)
		}
	}
	for _, id := range moved {
		l.moves[id]++
	}
	l.upTo = present
	return nil
}

// Why a live feed ends.
const (
	endedDeleted      = "deleted"
	endedUnauthorized = "unauthorized"
	endedStopping     = "stopping"
)

// followSegment sends a segment's transitions as they happen, as server-sent events.
func followSegment(a *API, c *call, w *streamWriter) error {
	q, err := c.query("after")
	if err != nil {
		return err
	}
	ref, err := c.segmentRef()
	if err != nil {
		return err
	}
	seg, err := c.segments.Find(c.Context(), c.workspace(), ref)
	if err != nil {
		return err
	}
	cursor := "now"
	if q.Has("after") {
		cursor = q.Get("after")
	}
	if last := c.Header.Get("Last-Event-ID"); last != "" {
		cursor = last
	}
	at, err := c.openPosition(seg.ID, cursor)
	if err != nil {
		return err
	}
	leave, err := a.live.join(c.workspace())
	if err != nil {
		return err
	}
	defer leave()
	defer a.live.follow(seg.ID)()

	w.head(eventStream)
	w.Header().Set("X-Accel-Buffering", "no")
	if c.Method == http.MethodHead {
		return nil
	}
	f := &liveFeed{call: c, live: a.live, guard: a.guard, w: w, segment: seg.ID, at: at}
	if err := f.event("ready", struct {
		SegmentID  string `json:"segment_id"`
		SegmentKey string `json:"segment_key"`
	}{formatID(segmentID, seg.ID), seg.Key}); err != nil {
		return err
	}
	return f.run()
}

// liveFeed is one follower.
type liveFeed struct {
	*call
	live    *liveFeeds
	guard   *guard
	w       *streamWriter
	segment int64
	at      profiles.Position
	sent    time.Time
}

// run sends until the client is gone or there is a reason to end.
func (f *liveFeed) run() error {
	ctx := f.Context()
	wait, seen := lookAtMostEvery, -1
	var checked time.Time
	for {
		reason := ""
		if time.Since(checked) >= lookAtLeastEvery {
			var err error
			if reason, err = f.mayGoOn(ctx); err != nil {
				reason = "" // nobody knows: ask again
			} else {
				checked = time.Now()
			}
		}
		moves, err := f.live.look(ctx, f.segment)
		wait = min(2*wait, lookAtLeastEvery)
		if err == nil && reason != endedUnauthorized && (moves != seen || reason == endedDeleted) {
			if err = f.catchUp(ctx); err == nil {
				wait, seen = lookAtMostEvery, moves
			}
		}
		switch {
		case err != nil && !unavailable(err):
			return err
		case err == nil && reason != "":
			return f.end(reason)
		case time.Since(f.sent) >= f.live.heartbeat:
			if err := f.send([]byte(":\n\n")); err != nil {
				return err
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			continue
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", errGone, ctx.Err())
		case <-f.live.stopping:
			timer.Stop()
			return f.end(endedStopping)
		}
	}
}

// mayGoOn returns why not, or nothing.
func (f *liveFeed) mayGoOn(ctx context.Context) (reason string, err error) {
	switch may, err := f.guard.stillMay(ctx, f.Request, Read); {
	case err != nil:
		return "", err
	case !may:
		return endedUnauthorized, nil
	}
	_, err = f.segments.Find(ctx, f.workspace(), profiles.SegmentRef{ID: f.segment})
	if missing(err) {
		return endedDeleted, nil
	}
	return "", err
}

// catchUp sends all that has happened since what was sent last.
func (f *liveFeed) catchUp(ctx context.Context) error {
	for {
		found, err := f.people.After(ctx, f.workspace(), f.segment, f.at, livePage)
		if err != nil {
			return err
		}
		shown, err := f.showTransitions(found)
		if err != nil {
			return err
		}
		var b []byte
		for i := range shown {
			f.at = f.at.Through(found[i : i+1])
			if b, err = f.appendEvent(b, "transition", shown[i]); err != nil {
				return err
			}
		}
		if len(b) > 0 {
			if err := f.send(b); err != nil {
				return err
			}
		}
		if len(found) < livePage {
			return nil
		}
	}
}

func (f *liveFeed) event(name string, data any) error {
	b, err := f.appendEvent(nil, name, data)
	if err != nil {
		return err
	}
	return f.send(b)
}

func (f *liveFeed) end(reason string) error {
	return f.event("end", struct {
		Reason string `json:"reason"`
	}{reason})
}

// appendEvent appends an event whose id is the place where the feed is then.
func (f *liveFeed) appendEvent(b []byte, name string, data any) ([]byte, error) {
	text, err := json.Marshal(data) // in one line
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(b, "id: %s\nevent: %s\ndata: %s\n\n", f.sealPosition(f.segment, f.at), name, text), nil
}

func (f *liveFeed) send(b []byte) error {
	f.sent = time.Now()
	return f.w.send(b)
}

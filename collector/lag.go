package collector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/redis/go-redis/v9"

	"github.com/mubatch/mubatch/profiles"
)

// lag measures how much the lanes of this process have still to do: what is in their streams behind what is applied, and
// whose timers should have rung by now.
type lag struct {
	stream *Stream
	store  *profiles.Store

	unapplied, oldest, due, oldestDue prometheus.Gauge

	mu    sync.Mutex
	lanes map[int]*progress
}

// progress is how far a lane is applied, and how many entries and messages that took since it was begun with.
type progress struct {
	at                Offset
	entries, messages int64
	whole             bool  // it was begun with at the beginning of the stream
	before            int64 // entries that Redis had ever added before where it was begun with; -1: not known
}

// dueCounted is how many due profiles of a lane are counted at most.
const dueCounted = 10_000

func newLag(stream *Stream, store *profiles.Store, reg prometheus.Registerer) *lag {
	gauge := func(name, help string) prometheus.Gauge {
		return promauto.With(reg).NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	return &lag{
		stream: stream,
		store:  store,
		lanes:  map[int]*progress{},
		unapplied: gauge("mubatch_collector_unapplied_messages",
			"Messages that are durable in the lanes of this process and not applied yet: events, and what lanes tell each other. "+
				"Counted in stream entries, and estimated from how many messages these have had."),
		oldest: gauge("mubatch_collector_oldest_unapplied_seconds",
			"Age of the oldest message that is durable in a lane of this process and not applied yet; 0 if all are."),
		due: gauge("mubatch_collector_due_profiles",
			"Profiles in the lanes of this process in which a membership may have changed by itself and which have not been "+
				"looked at yet. At most 10,000 a lane are counted."),
		oldestDue: gauge("mubatch_collector_oldest_due_seconds",
			"How long ago the first of these should have been looked at; 0 if there is none."),
	}
}

// begin notes from where a lane is read.
func (l *lag) begin(lane int, at Offset) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lanes[lane] = &progress{at: at, whole: at.IsZero(), before: -1}
}

// applied notes that entries of a lane are applied, up to at. A lane that goes back begins anew.
func (l *lag) applied(lane int, at Offset, entries, messages int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.lanes[lane]
	if p == nil || at.Compare(p.at) < 0 {
		l.lanes[lane] = &progress{at: at, before: -1}
		return
	}
	p.at = at
	p.entries += int64(entries)
	p.messages += int64(messages)
}

// left forgets a lane.
func (l *lag) left(lane int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.lanes, lane)
}

// run measures every now and then until ctx ends. What cannot be measured keeps its last value: others tell that Redis or
// Postgres is down.
func (l *lag) run(ctx context.Context, every time.Duration) {
	for sleep(ctx, every) {
		_ = l.measureStreams(ctx)
		_ = l.measureTimers(ctx)
	}
	for _, g := range []prometheus.Gauge{l.unapplied, l.oldest, l.due, l.oldestDue} {
		g.Set(0) // the lanes are somebody else's
	}
}

func (l *lag) measureStreams(ctx context.Context) error {
	l.mu.Lock()
	lanes := make(map[int]progress, len(l.lanes))
	for lane, p := range l.lanes {
		lanes[lane] = *p
	}
	l.mu.Unlock()
	now := time.Now()
	var messages, oldest float64
	for lane, p := range lanes {
		b, err := l.stream.backlog(ctx, lane, p.at)
		if err != nil {
			return err
		}
		if p.before < 0 && b.added > 0 {
			switch {
			case b.oldest.IsZero(): // it has none left
				p.before = max(b.added-p.entries, 0)
			case p.whole: // those that are not there any more were before
				p.before = max(b.added-b.length, 0)
			}
			l.counted(lane, p)
		}
		if b.oldest.IsZero() {
			continue
		}
		oldest = max(oldest, now.Sub(b.oldest).Seconds())
		entries := b.length // applied ones that are not trimmed yet are among them
		if p.before >= 0 {
			entries = min(max(b.added-p.before-p.entries, 1), b.length)
		}
		each := 1.0
		if p.entries > 0 {
			each = max(float64(p.messages)/float64(p.entries), 1)
		}
		messages += float64(entries) * each
	}
	l.unapplied.Set(math.Round(messages))
	l.oldest.Set(oldest)
	return nil
}

// counted keeps how many entries there had been before a lane was begun with, unless it was begun anew since then.
func (l *lag) counted(lane int, then progress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.lanes[lane]; p != nil && p.before < 0 && p.entries >= then.entries && p.whole == then.whole {
		p.before = then.before
	}
}

func (l *lag) measureTimers(ctx context.Context) error {
	l.mu.Lock()
	lanes := slices.Collect(maps.Keys(l.lanes))
	l.mu.Unlock()
	n, oldest, err := l.store.Due(ctx, lanes, dueCounted)
	if err != nil {
		return err
	}
	l.due.Set(float64(n))
	l.oldestDue.Set(oldest.Seconds())
	return nil
}

// backlog is what a stream holds behind a place.
type backlog struct {
	added  int64     // entries ever; 0 if the server does not tell
	length int64     // entries that are still there, those before the place among them
	oldest time.Time // when the first one behind it was added; zero if there is none
}

// backlog asks what a lane holds behind after.
func (s *Stream) backlog(ctx context.Context, lane int, after Offset) (backlog, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	info, err := s.rdb.XInfoStream(ctx, s.keys[lane]).Result()
	if err != nil && strings.Contains(err.Error(), "no such key") {
		return backlog{}, nil
	}
	if err != nil {
		return backlog{}, fmt.Errorf("measure lane %d: %w", lane, err)
	}
	b := backlog{added: info.EntriesAdded, length: info.Length}
	last, err := ParseOffset(info.LastGeneratedID)
	if err != nil || last.Compare(after) <= 0 {
		return b, err
	}
	next, err := s.rdb.XRangeN(ctx, s.keys[lane], "("+after.String(), "+", 1).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return backlog{}, fmt.Errorf("measure lane %d: %w", lane, err)
	}
	if len(next) > 0 {
		first, err := ParseOffset(next[0].ID)
		if err != nil {
			return backlog{}, err
		}
		b.oldest = time.UnixMilli(int64(first.Ms))
	}
	return b, nil
}

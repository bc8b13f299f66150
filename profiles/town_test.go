package profiles_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/profiles"
)

// town is all lanes of an installation in one hand: what they tell each other arrives at once.
type town struct {
	t        testing.TB
	store    *profiles.Store
	pool     *pgxpool.Pool
	reader   *profiles.Reader
	segments *profiles.Segments
	lanes    []*profiles.Lane
	applied  uint64
}

func newTown(t testing.TB, lanes int) *town {
	t.Helper()
	s, pool := newStore(t, lanes)
	w := &town{
		t: t, store: s, pool: pool, reader: profiles.NewReader(pool, lanes), segments: profiles.NewSegments(pool, lanes),
		lanes: make([]*profiles.Lane, lanes),
	}
	for _, lease := range claim(t, s, "one", time.Hour) {
		l, err := s.Open(t.Context(), lease)
		if err != nil {
			t.Fatal(err)
		}
		w.lanes[lease.Lane] = l
	}
	return w
}

// apply hands events to their lanes in one µbatch each, and goes on until no lane has anything to tell another.
func (w *town) apply(events ...profiles.Message) {
	w.t.Helper()
	waiting := make([][]profiles.Message, len(w.lanes))
	for _, m := range events {
		lane := m.Key.Lane(len(w.lanes))
		waiting[lane] = append(waiting[lane], m)
	}
	w.deliver(waiting)
}

func (w *town) deliver(waiting [][]profiles.Message) {
	w.t.Helper()
	for busy := true; busy; {
		busy = false
		for i, l := range w.lanes {
			if len(waiting[i]) == 0 {
				continue
			}
			busy = true
			w.applied++
			res, err := l.Apply(w.t.Context(), profiles.Batch{Until: profiles.Offset{Ms: w.applied}, Messages: waiting[i]})
			if err != nil {
				w.t.Fatal(err)
			}
			waiting[i] = nil
			for _, o := range res.Outbox {
				waiting[o.Target] = append(waiting[o.Target], o.Message)
			}
		}
	}
}

// segment makes a segment, builds it in all lanes and returns its id.
func (w *town) segment(key, rule string) int64 {
	w.t.Helper()
	id := w.define(key, rule)
	w.build()
	return id
}

// define makes a segment that is to be built.
func (w *town) define(key, rule string) int64 {
	w.t.Helper()
	s, err := w.segments.Create(w.t.Context(), 1, profiles.SegmentDefinition{Key: key, Name: key, Rule: []byte(rule)})
	if err != nil {
		w.t.Fatal(err)
	}
	return s.ID
}

// build takes up what has been defined, and builds it to the end.
func (w *town) build() {
	w.t.Helper()
	for _, l := range w.lanes {
		if err := l.Refresh(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
	}
	for range 1000 {
		building := false
		for _, l := range w.lanes {
			if !l.Building() {
				continue
			}
			building = true
			_, res, err := l.Build(w.t.Context(), time.Now().Add(time.Hour))
			if err != nil {
				w.t.Fatal(err)
			}
			waiting := make([][]profiles.Message, len(w.lanes))
			for _, o := range res.Outbox {
				waiting[o.Target] = append(waiting[o.Target], o.Message)
			}
			w.deliver(waiting)
		}
		if !building {
			return
		}
	}
	w.t.Fatal("the build does not end")
}

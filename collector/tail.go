package collector

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/mubatch/mubatch/profiles"
)

// Tail shows events as they are accepted, by whichever process, to everybody who listens: it follows the lanes' streams once
// for all of them, and does nothing while there is nobody.
//
//	lanes ──► Tail.Run ──► a queue each ──► Listener.Next
//
// A listener that is too slow misses events rather than having the others wait, and is told how many.
type Tail struct {
	stream *Stream
	log    *slog.Logger
	wake   chan struct{}

	mu        sync.Mutex
	running   bool
	at        []Offset
	begun     int // how often at was set anew, because somebody began to listen
	listeners map[*Listener]struct{}
}

const (
	tailEntries  = 8       // of a lane, read at once
	tailQueue    = 256     // batches that wait for a listener
	tailBytes    = 8 << 20 // and what is in them
	tailBehind   = 10 * time.Second
	tailBlock    = 250 * time.Millisecond
	catchUpBytes = 8 << 20 // that a listener who comes back is shown
)

// NewTail returns the tail of a stream. It follows it while [Tail.Run] runs.
func NewTail(stream *Stream, reg prometheus.Registerer, log *slog.Logger) *Tail {
	t := &Tail{stream: stream, log: log, wake: make(chan struct{}, 1), listeners: map[*Listener]struct{}{}}
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mubatch_collector_tail_listeners",
		Help: "Listeners to events as they are accepted.",
	}, func() float64 {
		t.mu.Lock()
		defer t.mu.Unlock()
		return float64(len(t.listeners))
	})
	return t
}

// Position is a place in all lanes.
type Position []Offset

// ParsePosition reads what [Position.String] writes. The error is for clients.
func ParsePosition(s string, lanes int) (Position, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil, errPosition
	}
	next := func() (v uint64) {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err = errPosition
			return 0
		}
		b = b[n:]
		return v
	}
	count, newest := next(), next()
	if err != nil || count != uint64(lanes) {
		return nil, errPosition
	}
	p := make(Position, lanes)
	for lane := range p {
		p[lane] = Offset{Ms: newest - next(), Seq: next()}
	}
	if err != nil || len(b) > 0 {
		return nil, errPosition
	}
	return p, nil
}

var errPosition = errors.New("is not a position of this installation")

// String returns p in a form that is short when the lanes are equally far.
func (p Position) String() string {
	newest := slices.MaxFunc(p, Offset.Compare).Ms
	b := binary.AppendUvarint(nil, uint64(len(p)))
	b = binary.AppendUvarint(b, newest)
	for _, at := range p {
		b = binary.AppendUvarint(b, newest-at.Ms)
		b = binary.AppendUvarint(b, at.Seq)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// TailedEvent is an event that was accepted.
type TailedEvent struct {
	profiles.Message
	at   Offset
	lane int

	once  sync.Once
	event *profiles.Event
	err   error
}

// Event returns what the event says. It is read once for all listeners.
func (e *TailedEvent) Event() (*profiles.Event, error) {
	e.once.Do(func() { e.event, e.err = profiles.DecodeEvent(e.Body) })
	return e.event, e.err
}

// Tailed is some of what was accepted.
type Tailed struct {
	Events []*TailedEvent // of the listener's workspace
	Behind Position       // from where to go on
	Missed int            // events that were not shown, before these
	Gap    bool           // before these there may be events that nobody can count any more
}

// Listener gets the events of one workspace.
type Listener struct {
	tail      *Tail
	workspace int32
	queue     chan Tailed
	queued    atomic.Int64 // bytes
	before    *Tailed      // what the listener missed while it was away
	missed    int          // of the tail alone, as are gap and told
	gap       bool
	told      time.Time
}

// Listen returns a listener to the events of a workspace that are accepted from now on or, if it is not nil, from a position
// on: as far as they are still in the streams, which is about as long as it takes to apply them and a minute. Without
// [Tail.Run] the error wraps [ErrUnavailable].
func (t *Tail) Listen(ctx context.Context, workspace int32, from Position) (*Listener, error) {
	ends, err := t.stream.Ends(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	l := &Listener{tail: t, workspace: workspace, queue: make(chan Tailed, tailQueue)}
	t.mu.Lock()
	if !t.running {
		t.mu.Unlock()
		return nil, fmt.Errorf("%w: nobody follows the lanes", ErrUnavailable)
	}
	if len(t.listeners) == 0 {
		t.at = ends
		t.begun++
	}
	t.listeners[l] = struct{}{}
	now := slices.Clone(t.at)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
	l.before = &Tailed{Behind: now}
	if from != nil {
		if err := t.catchUp(ctx, l, from, now); err != nil {
			l.Close()
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return l, nil
}

// catchUp collects what a listener missed between two positions.
func (t *Tail) catchUp(ctx context.Context, l *Listener, from, to Position) error {
	left := catchUpBytes
	for lane, at := range from {
		if at.Compare(to[lane]) >= 0 {
			continue
		}
		if there, err := t.stream.Holds(ctx, lane, at); err != nil {
			return err
		} else if !there && !at.IsZero() {
			l.before.Gap = true // if it was trimmed, what came behind it may have been, too
		}
		for at.Compare(to[lane]) < 0 {
			entries, err := t.stream.Read(ctx, lane, at, 100, 1<<20, minBlock)
			if err != nil {
				return err
			}
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				if at = e.Offset; at.Compare(to[lane]) > 0 {
					break
				}
				if left -= len(e.Raw); left < 0 {
					l.before.Missed += count(e, l.workspace)
					continue
				}
				l.before.Events = appendTailed(l.before.Events, lane, e, l.workspace)
			}
		}
	}
	sortTailed(l.before.Events)
	return nil
}

// appendTailed appends the events of a workspace in an entry, or of all if it is 0.
func appendTailed(list []*TailedEvent, lane int, e Entry, workspace int32) []*TailedEvent {
	for _, m := range e.Messages {
		if m.Kind == profiles.KindEvent && (workspace == 0 || m.Workspace == workspace) {
			list = append(list, &TailedEvent{Message: m, at: e.Offset, lane: lane})
		}
	}
	return list
}

func count(e Entry, workspace int32) (n int) {
	for i := range e.Messages {
		if e.Messages[i].Kind == profiles.KindEvent && e.Messages[i].Workspace == workspace {
			n++
		}
	}
	return n
}

// sortTailed brings the events of several lanes into the order in which they became durable.
func sortTailed(list []*TailedEvent) {
	slices.SortStableFunc(list, func(a, b *TailedEvent) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.lane, b.lane)) })
}

// Close ends the listening.
func (l *Listener) Close() {
	l.tail.mu.Lock()
	defer l.tail.mu.Unlock()
	delete(l.tail.listeners, l)
}

// Next waits for what was accepted. It returns false when there will be nothing any more, because the process is about to
// end, and an error if ctx ends first. From time to time there is nothing in what it returns but how far it is.
func (l *Listener) Next(ctx context.Context) (Tailed, bool, error) {
	if b := l.before; b != nil {
		l.before = nil
		return *b, true, nil
	}
	select {
	case b, ok := <-l.queue:
		for _, e := range b.Events {
			l.queued.Add(-int64(len(e.Body)))
		}
		return b, ok, nil
	case <-ctx.Done():
		return Tailed{}, true, context.Cause(ctx)
	}
}

// Run follows the lanes while somebody listens, until ctx ends, and returns nil. What Redis cannot answer is asked again.
func (t *Tail) Run(ctx context.Context) error {
	t.mu.Lock()
	t.running = true
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.running = false
		for l := range t.listeners {
			close(l.queue)
		}
		clear(t.listeners)
	}()
	healthy := true
	for {
		t.mu.Lock()
		idle, at, begun := len(t.listeners) == 0, slices.Clone(t.at), t.begun
		t.mu.Unlock()
		if idle {
			select {
			case <-t.wake:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		err := t.follow(ctx, at, begun)
		if ctx.Err() != nil {
			return nil
		}
		if healthy != (err == nil) {
			if healthy = err == nil; healthy {
				t.log.InfoContext(ctx, "events can be shown as they are accepted again")
			} else {
				t.log.WarnContext(ctx, "events cannot be shown as they are accepted, will try again", "err", err)
			}
		}
		if err != nil {
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// follow reads what comes behind at and hands it out. If that is too long ago it goes on at the end.
func (t *Tail) follow(ctx context.Context, at []Offset, begun int) error {
	byLane, err := t.stream.ReadAll(ctx, at, tailEntries, tailBlock)
	if err != nil {
		return err
	}
	var all []*TailedEvent
	newest, full := Offset{}, false
	for lane, entries := range byLane {
		for _, e := range entries {
			all = appendTailed(all, lane, e, 0)
			at[lane] = e.Offset
		}
		newest = slices.MaxFunc([]Offset{newest, at[lane]}, Offset.Compare)
		full = full || len(entries) == tailEntries
	}
	sortTailed(all)
	gap := false
	if full && time.Since(time.UnixMilli(int64(newest.Ms))) > tailBehind { // it cannot keep up
		ends, err := t.stream.Ends(ctx)
		if err != nil {
			return err
		}
		at, gap = ends, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun != begun {
		return nil // what was read is not what the new listeners are to see
	}
	t.at = at
	for l := range t.listeners {
		l.offer(all, gap, slices.Clone(at))
	}
	return nil
}

// offer hands a listener what it may see, unless it has not taken in what it was handed before.
func (l *Listener) offer(all []*TailedEvent, gap bool, behind Position) {
	b := Tailed{Behind: behind, Missed: l.missed, Gap: l.gap}
	l.gap = l.gap || gap
	size := int64(0)
	for _, e := range all {
		if e.Workspace == l.workspace {
			b.Events = append(b.Events, e)
			size += int64(len(e.Body))
		}
	}
	if len(b.Events) == 0 && time.Since(l.told) < time.Second {
		return
	}
	waiting := l.queued.Load()
	if waiting == 0 || waiting+size <= tailBytes {
		l.queued.Add(size) // before it can be taken out
		select {
		case l.queue <- b:
			l.missed, l.gap, l.told = 0, gap, time.Now()
			return
		default:
			l.queued.Add(-size)
		}
	}
	l.missed += len(b.Events)
}

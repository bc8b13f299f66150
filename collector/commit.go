package collector

import (
	"context"
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

var (
	// ErrBusy says that too much is in flight; nothing was stored.
	ErrBusy = errors.New("too many bytes in flight")
	// ErrUnavailable says that the messages are not known to be stored. They may be: a later copy with the same ids
	// does no harm.
	ErrUnavailable = errors.New("not known to be stored")
)

// Routed is a message and the lane it goes to.
type Routed struct {
	Lane int
	profiles.Message
}

// Committer makes messages durable. Requests that come at once share one pipelined write and so one fsync: at most one
// write is outstanding, and what arrives in the meantime is the next one. No timer is waited for.
type Committer struct {
	cfg    Config
	stream *Stream
	log    *slog.Logger

	mu      sync.Mutex
	waiting []*commit
	bytes   int64 // of the messages waiting or being written
	closed  bool
	wake    chan struct{}

	health atomic.Pointer[Health]

	// Of Run alone:
	checkedAt time.Time // zero: not known, check before the next acknowledgement
	checked   uint64    // Stream.Connections when that check began
	runID     string
	frames    map[int][]profiles.Message
	buffer    frameBuffer

	writes   *prometheus.CounterVec
	latency  prometheus.Histogram
	perWrite prometheus.Histogram
}

// commit is one request's messages.
type commit struct {
	msgs  []Routed
	bytes int64
	done  chan error
}

// maxWriteBytes bounds one pipelined write, so that a backlog does not make its first ones wait for its last.
const maxWriteBytes = 8 << 20

// NewCommitter returns a committer into stream. Nothing is committed until [Committer.Run] runs.
func NewCommitter(cfg Config, stream *Stream, reg prometheus.Registerer, log *slog.Logger) *Committer {
	c := &Committer{
		cfg: cfg.withDefaults(), stream: stream, log: log,
		wake:   make(chan struct{}, 1),
		frames: make(map[int][]profiles.Message),
		writes: promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
			Name: "mubatch_collector_writes_total",
			Help: "Pipelined writes to the lanes, by result.",
		}, []string{"result"}),
		latency: promauto.With(reg).NewHistogram(prometheus.HistogramOpts{
			Name:    "mubatch_collector_write_seconds",
			Help:    "Time of one pipelined write with its fsync.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15),
		}),
		perWrite: promauto.With(reg).NewHistogram(prometheus.HistogramOpts{
			Name:    "mubatch_collector_write_messages",
			Help:    "Messages that shared one pipelined write.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 9),
		}),
	}
	c.writes.WithLabelValues("written")
	c.writes.WithLabelValues("unknown")
	c.health.Store(&Health{Reason: "redis has not been asked yet"})
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mubatch_collector_waiting_bytes",
		Help: "Bytes of messages that wait for their fsync.",
	}, func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return float64(c.bytes)
	})
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mubatch_collector_durable",
		Help: "Whether Redis's settings promise to keep what it acknowledges.",
	}, func() float64 {
		if c.Health().Durable {
			return 1
		}
		return 0
	})
	return c
}

// Health is how the last exchange with Redis went.
type Health struct {
	Ready   bool      // messages are being accepted
	Durable bool      // and what is acknowledged survives a power failure
	Reason  string    // why not, for operators
	At      time.Time // of that exchange
}

// Health tells whether messages are accepted, as of the last write or check. It does no I/O; Run checks every
// RecheckEvery also if nothing is written.
func (c *Committer) Health() Health { return *c.health.Load() }

// Commit returns nil when every one of msgs is fsynced in Redis. After ErrBusy, which only events get, quarantined ones too,
// nothing is stored: what lanes have to tell each other is bounded by their batches, and must go on when intake has filled all there is.
// After ErrUnavailable, also if ctx ends first, all, some or none may be stored. The bodies must not change until their
// message has been stored, which after an error may be later than Commit returns.
func (c *Committer) Commit(ctx context.Context, msgs []Routed) error {
	if len(msgs) == 0 {
		return nil
	}
	req := &commit{msgs: msgs, done: make(chan error, 1)}
	for i := range msgs {
		if lane := msgs[i].Lane; lane < 0 || lane >= c.stream.Lanes() {
			return fmt.Errorf("commit: lane %d of %d", lane, c.stream.Lanes())
		}
		req.bytes += int64(frameMaxOverhead + len(msgs[i].Body))
	}
	if err := c.enqueue(req); err != nil {
		return err
	}
	select {
	case err := <-req.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
}

func (c *Committer) enqueue(req *commit) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("%w: shutting down", ErrUnavailable)
	}
	if c.bytes > 0 && c.bytes+req.bytes > c.cfg.MaxInFlightBytes && slices.ContainsFunc(req.msgs, fromOutside) {
		return ErrBusy
	}
	c.bytes += req.bytes
	c.waiting = append(c.waiting, req)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

// fromOutside tells whether a message is what somebody sent, who may send it again.
func fromOutside(m Routed) bool {
	return m.Kind == profiles.KindEvent || m.Kind == profiles.KindQuarantine
}

// Run commits until ctx ends, then commits what is waiting, and returns nil. Stop the HTTP server before: from then on
// Commit refuses.
func (c *Committer) Run(ctx context.Context) error {
	background := context.WithoutCancel(ctx) // shutdown must not abandon what is in memory
	recheck := time.NewTicker(c.cfg.RecheckEvery)
	defer recheck.Stop()
	c.check(background)
	for {
		select {
		case <-c.wake:
			if batch := c.take(); len(batch) > 0 {
				c.write(background, batch)
			}
		case <-recheck.C:
			c.check(background)
		case <-ctx.Done():
			c.mu.Lock()
			c.closed = true
			c.mu.Unlock()
			for batch := c.take(); len(batch) > 0; batch = c.take() {
				c.write(background, batch)
			}
			return nil
		}
	}
}

// take returns the requests of the next write, oldest first, and wakes Run for those it leaves.
func (c *Committer) take() []*commit {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, size := 0, int64(0)
	for n < len(c.waiting) && (n == 0 || size+c.waiting[n].bytes <= maxWriteBytes) {
		size += c.waiting[n].bytes
		n++
	}
	batch := c.waiting[:n:n]
	c.waiting = c.waiting[n:]
	if len(c.waiting) == 0 {
		c.waiting = nil
	} else {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	return batch
}

func (c *Committer) write(ctx context.Context, batch []*commit) {
	lanes, err := c.tryWrite(ctx, batch)
	if err != nil {
		c.writes.WithLabelValues("unknown").Inc()
	} else {
		c.writes.WithLabelValues("written").Inc()
	}
	var freed int64
	for _, req := range batch {
		freed += req.bytes
	}
	c.mu.Lock()
	c.bytes -= freed
	c.mu.Unlock()
	for _, req := range batch {
		req.done <- outcome(req, lanes, err)
	}
}

// outcome is what a request is told of a write: a request is only concerned by its own lanes, if they are known.
func outcome(req *commit, lanes map[int]error, err error) error {
	if err == nil {
		return nil
	}
	if lanes != nil {
		err = nil
		for i := range req.msgs {
			if failed := lanes[req.msgs[i].Lane]; failed != nil {
				err = failed
				break
			}
		}
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// tryWrite writes a batch and makes sure that what Redis answered, it keeps. If only some lanes failed, it names them.
func (c *Committer) tryWrite(ctx context.Context, batch []*commit) (map[int]error, error) {
	if time.Since(c.checkedAt) > c.cfg.RecheckEvery || c.stream.Connections() != c.checked {
		c.check(ctx)
	}
	if h := c.Health(); !h.Ready {
		return nil, errors.New(h.Reason)
	}

	messages := 0
	for _, req := range batch {
		messages += len(req.msgs)
		for i := range req.msgs {
			m := &req.msgs[i]
			c.frames[m.Lane] = append(c.frames[m.Lane], m.Message)
		}
	}
	start := time.Now()
	err := c.stream.append(ctx, c.frames, &c.buffer)
	c.latency.Observe(time.Since(start).Seconds())
	c.perWrite.Observe(float64(messages))
	for lane, msgs := range c.frames {
		clear(msgs) // lets go of the bodies
		c.frames[lane] = msgs[:0]
	}
	if cap(c.buffer.bytes) > 2*maxWriteBytes {
		c.buffer.bytes = nil
	}

	var failed *AppendError
	if errors.As(err, &failed) {
		c.checkedAt = time.Time{} // check before the next write, which then shows whether it has healed
		c.report(ctx, Health{Reason: "the last write failed: " + err.Error(), At: time.Now()})
		return failed.Lanes, err
	}
	if c.stream.Connections() != c.checked {
		// Another connection may lead to another Redis, or to one that came back with other settings.
		was := c.runID
		c.check(ctx)
		if h := c.Health(); !h.Ready {
			return nil, errors.New(h.Reason)
		}
		if c.runID != was {
			return nil, errors.New("redis restarted during the write")
		}
	}
	return nil, err
}

// check looks at Redis's settings and keeps what follows as the health.
func (c *Committer) check(ctx context.Context) {
	connections := c.stream.Connections()
	d, err := c.stream.Check(ctx)
	now := time.Now()
	if err != nil {
		c.checkedAt = time.Time{}
		c.report(ctx, Health{Reason: err.Error(), At: now})
		return
	}
	c.checkedAt, c.checked, c.runID = now, connections, d.RunID
	c.report(ctx, Health{Ready: d.Durable || c.cfg.AllowDegraded, Durable: d.Durable, Reason: d.Reason, At: now})
}

// report keeps h as the health, and logs it if it is news.
func (c *Committer) report(ctx context.Context, h Health) {
	was := c.health.Swap(&h)
	if was.Ready == h.Ready && was.Durable == h.Durable && was.Reason == h.Reason {
		return
	}
	switch {
	case !h.Ready:
		c.log.ErrorContext(ctx, "events are refused", "reason", h.Reason)
	case !h.Durable:
		c.log.WarnContext(ctx, "events are accepted, but may be lost", "reason", h.Reason)
	default:
		c.log.InfoContext(ctx, "events are accepted and durable")
	}
}

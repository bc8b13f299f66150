package collector

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/profiles"
)

// FlushConfig tunes a [Flusher]. A zero field means its default.
type FlushConfig struct {
	Node       string        // names this process among those that share the lanes; required
	Lease      time.Duration // how long a lane stays with a node that is not heard of: 6 s
	MaxEntries int           // of a µbatch, each a frame of one or more messages: 2,000
	MaxBytes   int           // of a µbatch: 4 MiB
	TrimLag    time.Duration // how long applied entries are kept in Redis: 1 min
	Timeout    time.Duration // of one µbatch: 30 s
	Measure    time.Duration // how often the lag is measured for the metrics: 5 s
}

func (c FlushConfig) withDefaults() FlushConfig {
	c.Lease = cmp.Or(c.Lease, 6*time.Second)
	c.MaxEntries = cmp.Or(c.MaxEntries, 2000)
	c.MaxBytes = cmp.Or(c.MaxBytes, 4<<20)
	c.TrimLag = cmp.Or(c.TrimLag, time.Minute)
	c.Timeout = cmp.Or(c.Timeout, 30*time.Second)
	c.Measure = cmp.Or(c.Measure, 5*time.Second)
	return c
}

// Flusher applies lanes: it reads each from its committed offset, in µbatches of whatever has arrived meanwhile, and
// hands them to the profiles. There is no timer to wait for, so batches are small and fast when there is little to do and
// large when there is much.
//
// Any number of flushers may run at once. They share the lanes by lease, and the profiles' fence keeps one that is late
// from doing harm.
type Flusher struct {
	cfg       FlushConfig
	store     *profiles.Store
	stream    *Stream
	committer *Committer // for what lanes tell each other
	log       *slog.Logger
	metrics   flushMetrics
	lag       *lag

	definitions atomic.Pointer[string] // the newest fingerprint
	doubt       sync.Mutex             // held by the one lane in doubt that is at work
	chores      *chores

	mu   sync.Mutex
	asOf map[int]time.Time // of the lanes owned; their taking up, while nothing else is known
	news map[int]time.Time // of those, what is to be noted
}

type flushMetrics struct {
	messages *prometheus.CounterVec
	seconds  prometheus.Histogram
	timers   prometheus.Counter
	lanes    prometheus.Gauge
	oldest   prometheus.Gauge
}

// NewFlusher returns a flusher from stream into store.
func NewFlusher(cfg FlushConfig, stream *Stream, committer *Committer, store *profiles.Store, reg prometheus.Registerer, log *slog.Logger) *Flusher {
	f := &Flusher{
		cfg:       cfg.withDefaults(),
		store:     store,
		stream:    stream,
		committer: committer,
		log:       log,
		lag:       newLag(stream, store, reg),
		chores:    newChores(),
		asOf:      map[int]time.Time{},
		news:      map[int]time.Time{},
		metrics: flushMetrics{
			messages: prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "mubatch_collector_flushed_messages_total",
				Help: "Messages taken out of the lanes, by what became of them.",
			}, []string{"result"}),
			seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
				Name:    "mubatch_collector_flush_duration_seconds",
				Help:    "Time to apply one µbatch.",
				Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
			}),
			timers: prometheus.NewCounter(prometheus.CounterOpts{
				Name: "mubatch_collector_expired_timers_total",
				Help: "Profiles re-evaluated because a membership of theirs may have ended or begun by itself.",
			}),
			lanes: prometheus.NewGauge(prometheus.GaugeOpts{
				Name: "mubatch_collector_owned_lanes",
				Help: "Lanes this process applies.",
			}),
			oldest: prometheus.NewGauge(prometheus.GaugeOpts{
				Name: "mubatch_collector_lag_seconds",
				Help: "Age of the moment up to which the lanes of this process are applied, of the one furthest behind.",
			}),
		},
	}
	for _, result := range []string{"applied", "duplicate", "failed", "suppressed", "quarantined"} {
		f.metrics.messages.WithLabelValues(result)
	}
	reg.MustRegister(f.metrics.messages, f.metrics.seconds, f.metrics.timers, f.metrics.lanes, f.metrics.oldest)
	return f
}

// Run applies lanes until ctx ends. Then it finishes the batches under way, lets go of the lanes and returns nil. The
// committer must outlive it.
func (f *Flusher) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	running := map[int]*owned{}
	wg.Go(func() { f.lag.run(ctx, f.cfg.Measure) })
	tick := time.NewTicker(min(f.cfg.Lease/6, time.Second))
	defer tick.Stop()
	for {
		f.renew(ctx, running, &wg)
		f.report(ctx)
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		for _, o := range running {
			o.stop()
		}
		wg.Wait()
		f.letGo(context.WithoutCancel(ctx), running)
		return nil
	}
}

// owned is a lane that is being applied.
type owned struct {
	epoch int64
	until atomic.Pointer[time.Time]
	stop  context.CancelFunc
	ended atomic.Bool
	// For the lane's run only.
	survived bool // an attempt is noted that failed without killing the process
	trusted  bool // whatever the last owner left behind was read
}

// held tells whether the lease lasts.
func (o *owned) held() bool { return time.Now().Before(*o.until.Load()) }

// extend notes that the lease was renewed, if it is for longer than before.
func (o *owned) extend(until time.Time) {
	for {
		known := o.until.Load()
		if known != nil && !until.After(*known) || o.until.CompareAndSwap(known, &until) {
			return
		}
	}
}

// renew renews the leases and starts and stops the lanes accordingly.
func (f *Flusher) renew(ctx context.Context, running map[int]*owned, wg *sync.WaitGroup) {
	ask, cancel := context.WithTimeout(ctx, f.cfg.Lease/2)
	defer cancel()
	leases, err := f.store.Claim(ask, f.cfg.Node, f.cfg.Lease)
	if err != nil {
		if ctx.Err() == nil {
			f.log.WarnContext(ctx, "leases not renewed, will try again", "err", err)
		}
		return // each lane stops by itself when its lease runs out
	}
	if fingerprint, err := f.store.Fingerprint(ask); err == nil {
		f.definitions.Store(&fingerprint)
	}
	held := map[int]bool{}
	for _, lease := range leases {
		held[lease.Lane] = true
		o := running[lease.Lane]
		if o != nil && !o.ended.Load() {
			if o.epoch == lease.Epoch {
				o.extend(lease.Until)
				continue
			}
			o.stop()
			continue // it starts anew once it has ended
		}
		if lease.Until.IsZero() {
			continue // something of ours is still under way there
		}
		laneCtx, stop := context.WithCancel(ctx)
		o = &owned{epoch: lease.Epoch, stop: stop}
		o.extend(lease.Until)
		running[lease.Lane] = o
		f.takenUp(lease.Lane)
		wg.Go(func() {
			defer o.ended.Store(true)
			defer stop()
			f.apply(laneCtx, lease, o)
			f.left(lease.Lane)
			if laneCtx.Err() != nil {
				f.release(context.WithoutCancel(ctx), lease) // others wait for it
			}
		})
	}
	for lane, o := range running {
		if !held[lane] {
			o.stop()
		}
	}
	f.metrics.lanes.Set(float64(len(leases)))
}

// letGo releases all lanes, so that others take them up at once.
func (f *Flusher) letGo(ctx context.Context, running map[int]*owned) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for lane, o := range running {
		f.release(ctx, profiles.Lease{Lane: lane, Epoch: o.epoch})
	}
	if err := f.store.Leave(ctx, f.cfg.Node); err != nil {
		f.log.WarnContext(ctx, "node not taken off the list", "err", err)
	}
}

func (f *Flusher) release(ctx context.Context, lease profiles.Lease) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := f.store.Release(ctx, f.cfg.Node, lease); err != nil {
		f.log.WarnContext(ctx, "lane not released, its lease will run out", "lane", lease.Lane, "err", err)
	}
}

// report notes how far the lanes of this process are applied.
func (f *Flusher) report(ctx context.Context) {
	f.mu.Lock()
	news := f.news
	f.news = map[int]time.Time{}
	var oldest time.Duration
	for _, t := range f.asOf {
		oldest = max(oldest, time.Since(t))
	}
	f.mu.Unlock()
	f.metrics.oldest.Set(oldest.Seconds())
	ask, cancel := context.WithTimeout(ctx, f.cfg.Lease/6) // the leases are to be renewed in time
	defer cancel()
	if err := f.store.CaughtUp(ask, news); err != nil && ctx.Err() == nil {
		f.log.WarnContext(ctx, "freshness not noted", "err", err)
	}
}

func (f *Flusher) appliedUpTo(lane int, t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asOf[lane], f.news[lane] = t, t
}

func (f *Flusher) takenUp(lane int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.asOf[lane]; !known {
		f.asOf[lane] = time.Now()
	}
}

func (f *Flusher) left(lane int) {
	f.lag.left(lane)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.asOf, lane)
}

// apply applies a lane for as long as its lease lasts. What goes wrong is tried again, from what is committed.
func (f *Flusher) apply(ctx context.Context, lease profiles.Lease, o *owned) {
	log := f.log.With("lane", lease.Lane)
	wait, most := 20*time.Millisecond, f.cfg.MaxEntries
	for ctx.Err() == nil && o.held() {
		r := &laneRun{Flusher: f, owned: o, log: log, most: most}
		err := r.run(ctx, lease)
		switch {
		case err == nil || ctx.Err() != nil:
			return
		case errors.Is(err, profiles.ErrFenced):
			log.InfoContext(ctx, "lane belongs to somebody else now")
			return
		}
		if r.progress {
			wait, most = 20*time.Millisecond, f.cfg.MaxEntries
		} else {
			most = max(most/4, 1) // perhaps it was too much for one transaction
		}
		log.WarnContext(ctx, "lane stopped, will try again", "in", wait, "err", err)
		if !sleep(ctx, wait/2+rand.N(wait)) {
			return
		}
		wait = min(2*wait, time.Second) // timers are to ring in time
	}
}

// sleep returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

package activation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// DispatchConfig tunes a [Dispatcher]. Zero fields mean the defaults.
type DispatchConfig struct {
	Lanes    int             // of the installation; required
	Poll     time.Duration   // look for work at least so often: 1 s
	Lease    time.Duration   // on what is being sent: 45 s, and so the longest wait after a crash; an attempt may take almost half of it
	Grace    time.Duration   // for what is being sent when Run is to end: 5 s
	Schedule []time.Duration // of retries: [DefaultSchedule]
	Ledger   time.Duration   // how long attempts are kept on the ledger: 90 days
	Every    time.Duration   // look for renewals, tokens that end, polls and audiences at least so often: 1 s
}

// MinLease is the shortest lease that a [DispatchConfig] may have.
const MinLease = 10 * time.Second

const (
	margin     = 5 * time.Second // between an attempt's deadline and its lease's end
	busyPause  = 5 * time.Millisecond
	sweepEvery = 10 * time.Second
	tidyEvery  = 10 * time.Minute
	eventsKept = 7 * 24 * time.Hour // after they came in, whatever became of them: as long as duplicates are known
)

// Dispatcher sends what is due. Any number of them may run on one database.
//
// Each destination has workers of its own, so that a slow or dead one delays no other.
type Dispatcher struct {
	cfg       DispatchConfig
	queue     *queue
	filler    *filler
	accounts  *accounts
	refresher *refresher
	people    people
	segments  segments
	partners  map[string]Partner
	log       *slog.Logger
	metrics   *metrics

	wake   chan struct{}
	refill chan struct{}

	mu    sync.Mutex
	lines map[int64]*line
}

// NewDispatcher returns a dispatcher for the destinations of store.
func NewDispatcher(
	cfg DispatchConfig, store *Store, who people, names segments, in members, reg prometheus.Registerer, log *slog.Logger,
) (*Dispatcher, error) {
	if cfg.Lanes <= 0 {
		return nil, fmt.Errorf("dispatcher: %d lanes, want at least 1", cfg.Lanes)
	}
	if cfg.Poll == 0 {
		cfg.Poll = time.Second
	}
	if cfg.Lease == 0 {
		cfg.Lease = 45 * time.Second
	}
	if cfg.Lease < MinLease {
		return nil, fmt.Errorf("dispatcher: the lease is %v, must be at least %v", cfg.Lease, MinLease)
	}
	if cfg.Grace == 0 {
		cfg.Grace = 5 * time.Second
	}
	if len(cfg.Schedule) == 0 {
		cfg.Schedule = DefaultSchedule
	}
	if cfg.Ledger == 0 {
		cfg.Ledger = 90 * 24 * time.Hour
	}
	if cfg.Every == 0 {
		cfg.Every = time.Second
	}
	return &Dispatcher{
		cfg: cfg,
		queue: &queue{
			pool: store.pool, ring: store.ring, lanes: cfg.Lanes, lease: cfg.Lease, schedule: cfg.Schedule,
		},
		filler:    &filler{pool: store.pool, members: in, people: who, lanes: cfg.Lanes},
		accounts:  &accounts{pool: store.pool},
		refresher: &refresher{pool: store.pool, ring: store.ring, partners: store.partners},
		people:    who,
		segments:  names,
		partners:  store.partners,
		log:       log,
		metrics:   newMetrics(reg, store.partners),
		wake:      make(chan struct{}, 1),
		refill:    make(chan struct{}, 1),
		lines:     map[int64]*line{},
	}, nil
}

// Wake hints that there may be something to send or to fill. It never blocks; without it, work is found by polling.
func (d *Dispatcher) Wake() {
	d.look()
	select {
	case d.refill <- struct{}{}:
	default:
	}
}

// look hints that there may be something to send.
func (d *Dispatcher) look() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run sends until ctx ends, then waits for what is being sent, for as long as [DispatchConfig.Grace] allows, and returns
// nil.
func (d *Dispatcher) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { return d.sending(ctx) })
	g.Go(func() error { return d.filling(ctx) })
	g.Go(func() error { return d.sweeping(ctx) })
	g.Go(func() error { return d.repeating(ctx, "refresh a token", d.refreshDue) })
	g.Go(func() error { return d.repeating(ctx, "make an audience", d.create) })
	g.Go(func() error { return d.repeating(ctx, "ask what became of a message", d.poll) })
	g.Go(func() error { return d.repeating(ctx, "ask how large an audience is", d.measure) })
	g.Go(func() error { return d.repeating(ctx, "renew people", d.renew) })
	g.Go(func() error { return d.tidying(ctx) })
	return g.Wait()
}

// sending starts workers for what is due.
func (d *Dispatcher) sending(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	for {
		if err := d.start(ctx, &workers); err != nil && ctx.Err() == nil {
			d.log.WarnContext(ctx, "look for work, will try again", "err", err)
		}
		if !wait(ctx, nil, busyPause) || !wait(ctx, d.wake, d.cfg.Poll) {
			return nil
		}
	}
}

// wait returns when c has something or after some time, and false if ctx has ended.
func wait(ctx context.Context, c <-chan struct{}, most time.Duration) bool {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-c:
	case <-t.C:
	}
	return ctx.Err() == nil
}

// repeating does something for as long as there is some of it, again and again until ctx ends.
func (d *Dispatcher) repeating(ctx context.Context, what string, one func(context.Context) (bool, error)) error {
	for {
		for ctx.Err() == nil {
			found, err := one(ctx)
			if err != nil && ctx.Err() == nil {
				d.log.WarnContext(ctx, what+", will try again", "err", err)
			}
			if err != nil || !found {
				break
			}
		}
		if !wait(ctx, nil, d.cfg.Every) {
			return nil
		}
	}
}

func (d *Dispatcher) refreshDue(ctx context.Context) (bool, error) {
	t, found, o, err := d.refresher.due(ctx)
	if found && err == nil {
		if o.Class != OK {
			d.log.WarnContext(ctx, "an access token could not be refreshed", "partner", t.partner.Type(),
				"destination_id", t.ID, "outcome", string(o.Class), "reason", o.Reason)
		}
		d.Wake()
	}
	return found, err
}

func (d *Dispatcher) renew(ctx context.Context) (bool, error) {
	n, err := d.queue.renew(ctx)
	if n > 0 {
		d.Wake()
	}
	return false, err
}

// tidying forgets what is old.
func (d *Dispatcher) tidying(ctx context.Context) error {
	for {
		const chunks = 20
		more, err := d.queue.forgetOld(ctx, time.Now().Add(-d.cfg.Ledger), chunks)
		if err == nil {
			var still bool
			still, err = d.queue.forgetEvents(ctx, time.Now().Add(-eventsKept), chunks)
			more = more || still
		}
		if err == nil {
			err = d.queue.forgetMappings(ctx)
		}
		if err == nil {
			err = d.queue.letGo(ctx)
		}
		if err != nil && ctx.Err() == nil {
			d.log.WarnContext(ctx, "forget what is old, will try again", "err", err)
		}
		pause := jitter(tidyEvery)
		if more {
			pause = time.Second
		}
		if !wait(ctx, nil, pause) {
			return nil
		}
	}
}

// due is a lane in which something is due at a destination.
type due struct {
	Destination int64
	Version     int64
	Secrets     int64
	Lane        int
}

// start finds the destinations and lanes in which something is due and starts workers, as many as each destination may
// have and has work for.
func (d *Dispatcher) start(ctx context.Context, workers *sync.WaitGroup) error {
	// Each part looks at the first entry of an index, however much is due.
	const (
		people = `
			(
				SELECT 1
				FROM activations
				WHERE lane = l.lane::smallint AND destination_id = d.id AND status = 'pending' AND next_at <= now() AND rank = `
		first = `
				ORDER BY next_at
				LIMIT 1)
			UNION ALL`
	)
	const query = `
		SELECT d.id, d.version, d.secrets_version, l.lane
		FROM destinations d
		CROSS JOIN generate_series(0, @lanes - 1) AS l (lane)
		CROSS JOIN LATERAL (` + people + `0` + first + people + `1` + first + people + `2` + first + `
			(
				SELECT 1
				FROM conversions
				WHERE lane = l.lane::smallint AND destination_id = d.id AND status = 'pending' AND next_at <= now()
				ORDER BY next_at
				LIMIT 1)
			LIMIT 1
		) work
		WHERE d.status = 'active' AND d.blocked_until <= now() AND ` + tokenHolds + `
		ORDER BY d.id, random()`
	rows, _ := d.queue.pool.Query(ctx, query, pgx.StrictNamedArgs{"lanes": d.cfg.Lanes})
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[due])
	if err != nil {
		return fmt.Errorf("find what is due: %w", err)
	}
	for _, w := range found {
		l, err := d.line(ctx, w)
		if err != nil {
			d.log.ErrorContext(ctx, "destination cannot be served, will try again in a minute",
				"destination_id", w.Destination, "err", err)
			continue
		}
		l.add(w.Lane)
		if l.enter() {
			workers.Go(func() { d.work(ctx, l) })
		}
	}
	return nil
}

// line returns what this process knows of a destination, read anew if the destination has changed.
func (d *Dispatcher) line(ctx context.Context, w due) (*line, error) {
	d.mu.Lock()
	l := d.lines[w.Destination]
	d.mu.Unlock()
	if l != nil && l.version == w.Version && l.secrets == w.Secrets && (l.target.partner != nil || l.blockedFor() > 0) {
		return l, nil
	}
	t, err := target(ctx, d.queue.pool, d.queue.ring, d.partners, w.Destination)
	if err != nil {
		if ctx.Err() == nil {
			d.keep(w, &line{version: w.Version, secrets: w.Secrets, blocked: time.Now().Add(time.Minute)})
		}
		return nil, err
	}
	limits := t.partner.Limits(t.Target)
	limits.Members = max(limits.Members, 1)
	limits.Events = cmp.Or(max(limits.Events, 0), limits.Members)
	limits.Concurrency = max(limits.Concurrency, 1)
	limits.Timeout = min(limits.Timeout, d.cfg.Lease/2-margin/2)
	l = &line{
		target: t, limits: limits, account: d.accounts.of(t, limits), version: t.version, secrets: t.secrets,
		turns: map[int]int{},
	}
	d.keep(w, l)
	return l, nil
}

// keep replaces a line. Workers of an older one find nothing to claim any more, and end.
func (d *Dispatcher) keep(w due, l *line) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines[w.Destination] = l
}

// line is one destination in this process.
type line struct {
	target  served
	limits  Limits
	account *account
	version int64
	secrets int64
	breaker breaker

	mu      sync.Mutex
	workers int
	blocked time.Time
	waiting []int       // lanes in which something is due, in the order in which they have their turns
	turns   map[int]int // how many each lane has had
}

// add has a lane wait for its turn, if it does not yet.
func (l *line) add(lane int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.waiting, lane) {
		l.waiting = append(l.waiting, lane)
	}
}

// next gives a worker the lane that has waited longest, and counts the lane's turns. If none waits the worker has left: a
// lane that is added later finds room for another.
func (l *line) next() (lane, turn int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		l.workers--
		return 0, 0, false
	}
	lane, l.waiting = l.waiting[0], l.waiting[1:]
	turn = l.turns[lane]
	l.turns[lane]++
	return lane, turn, true
}

// enter makes the caller a worker, if there is room for one and sense in it.
func (l *line) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.workers >= l.limits.Concurrency || time.Now().Before(l.blocked) || l.breaker.open() {
		return false
	}
	l.workers++
	return true
}

func (l *line) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.workers--
}

// block has nothing sent for a while, and blockedFor tells for how long that is still to be.
func (l *line) block(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until := time.Now().Add(d); until.After(l.blocked) {
		l.blocked = until
	}
}

func (l *line) blockedFor() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.blocked)
}

// filling carries attachments through to the present members.
func (d *Dispatcher) filling(ctx context.Context) error {
	for {
		for {
			found, err := d.filler.next(ctx)
			if err != nil && ctx.Err() == nil {
				d.log.WarnContext(ctx, "fill an attached segment, will try again", "err", err)
			}
			if err != nil || !found {
				break
			}
			d.metrics.filled.Inc()
			d.Wake()
		}
		if !wait(ctx, nil, busyPause) || !wait(ctx, d.refill, d.cfg.Poll) {
			return nil
		}
	}
}

// sweeping gives back what dead processes were sending, and looks at the age of what is due.
func (d *Dispatcher) sweeping(ctx context.Context) error {
	for {
		for {
			found, err := d.queue.sweep(ctx, d.cfg.Lanes)
			if err != nil && ctx.Err() == nil {
				d.log.WarnContext(ctx, "sweep, will try again", "err", err)
			}
			if err != nil || !found {
				break
			}
			d.metrics.swept.Inc()
			d.log.WarnContext(ctx, "a sender died or hung, its message will be sent again")
		}
		if err := d.queue.tidy(ctx); err != nil && ctx.Err() == nil {
			d.log.WarnContext(ctx, "tidy up, will try again", "err", err)
		}
		if err := d.observe(ctx); err != nil && ctx.Err() == nil {
			d.log.WarnContext(ctx, "look at the age of what is due, will try again", "err", err)
		}
		if !wait(ctx, nil, min(sweepEvery, d.cfg.Lease/2)) {
			return nil
		}
	}
}

func (d *Dispatcher) observe(ctx context.Context) error {
	const people = `
		SELECT coalesce(extract(epoch FROM now() - min(a.next_at)), 0)::float8
		FROM destinations d
		CROSS JOIN generate_series(0, @lanes - 1) AS l (lane)
		CROSS JOIN (VALUES (0::smallint), (1::smallint), (2::smallint)) AS r (rank)
		CROSS JOIN LATERAL (
			SELECT next_at
			FROM activations
			WHERE lane = l.lane::smallint AND destination_id = d.id AND activations.rank = r.rank AND status = 'pending'
				AND next_at <= now()
			ORDER BY next_at
			LIMIT 1
		) a
		WHERE d.status = 'active' AND d.blocked_until <= now()`
	const events = `
		SELECT coalesce(extract(epoch FROM now() - min(c.next_at)), 0)::float8
		FROM destinations d
		CROSS JOIN generate_series(0, @lanes - 1) AS l (lane)
		CROSS JOIN LATERAL (
			SELECT next_at
			FROM conversions
			WHERE lane = l.lane::smallint AND destination_id = d.id AND status = 'pending' AND next_at <= now()
			ORDER BY next_at
			LIMIT 1
		) c
		WHERE d.status = 'active' AND d.blocked_until <= now()`
	var age float64
	for _, query := range []string{people, events} {
		var a float64
		if err := d.queue.pool.QueryRow(ctx, query, pgx.StrictNamedArgs{"lanes": d.cfg.Lanes}).Scan(&a); err != nil {
			return err
		}
		age = max(age, a)
	}
	d.metrics.dueAge.Set(age)
	open := 0
	d.mu.Lock()
	for _, l := range d.lines {
		if l.breaker.open() {
			open++
		}
	}
	d.mu.Unlock()
	d.metrics.open.Set(float64(open))
	return nil
}

// work sends what is due for one destination, a message of each waiting lane in turn, until no lane waits or the destination
// is to be left alone. A lane in which more and more becomes due delays no other.
func (d *Dispatcher) work(ctx context.Context, l *line) {
	for {
		lane, turn, ok := l.next()
		if !ok {
			return
		}
		if !d.once(ctx, l, lane, turn) {
			l.leave()
			return
		}
	}
}

// once sends one message of a lane, if something is due there. It tells whether to go on with other lanes.
//
// People and events of a lane take turns, so that neither waits for all of the others.
func (d *Dispatcher) once(ctx context.Context, l *line, lane, turn int) bool {
	for ctx.Err() == nil && l.blockedFor() <= 0 && l.breaker.allow() {
		pause, err := d.accounts.take(ctx, l.account)
		if err != nil || pause > 0 {
			l.breaker.cancel()
			if err != nil && ctx.Err() == nil {
				d.log.WarnContext(ctx, "take a request of an account, will try again", "destination_id", l.target.ID, "err", err)
			}
			if err != nil || pause > time.Second || !wait(ctx, nil, pause) {
				l.block(max(pause, 100*time.Millisecond))
				return false
			}
			continue
		}
		c, again, err := d.queue.claimAny(ctx, lane, l, turn%2 == 1)
		if err != nil || c == nil {
			l.breaker.cancel()
			l.account.giveBack()
			if err != nil && ctx.Err() == nil {
				d.log.WarnContext(ctx, "claim, will try again", "destination_id", l.target.ID, "err", err)
			}
			if again {
				l.add(lane)
			}
			return true
		}
		if most := l.limits.Members; len(c.members) == most || c.ofEvents() && len(c.members) == l.limits.Events {
			l.add(lane)
			d.look() // there may be work for another worker
		}
		defer d.look() // for what has changed or become due meanwhile
		return d.deliver(ctx, l, c)
	}
	return false
}

// deliver makes one attempt at a claim and records it. It tells whether to go on.
func (d *Dispatcher) deliver(stop context.Context, l *line, c *claim) bool {
	// What is claimed is sent and recorded even if ctx ends, within the lease and the grace.
	ctx, cancel := context.WithDeadline(context.WithoutCancel(stop), c.taken.Add(d.cfg.Lease-margin/2))
	defer cancel()
	log := d.log.With("partner", l.target.partner.Type(), "destination_id", c.destination, "batch_id", c.id)
	ready, err := d.prepare(ctx, l, c)
	if err != nil || !ready {
		l.breaker.cancel()
		l.account.giveBack()
	}
	var unmapped *mapError
	switch {
	case errors.Is(err, errEncode):
		a := attempt{started: time.Now(), outcome: Outcome{Class: Config, Reason: errEncode.Error()}}
		log.ErrorContext(ctx, "destination stopped", "reason", a.outcome.Reason, "err", err)
		if err := d.record(ctx, c, a, decide(c, a.outcome, d.cfg.Schedule, time.Now())); err != nil {
			log.ErrorContext(ctx, "record that a message could not be made", "err", err)
		}
		return false
	case errors.As(err, &unmapped): // as if the message itself had been answered so, but for its being unknown
		a := attempt{started: time.Now(), outcome: unmapped.outcome}
		if a.outcome.Class == OK {
			a.outcome = Outcome{Class: Retry, Reason: "identifiers were mapped to too few others"}
		}
		a.outcome.Unknown = false
		return d.conclude(ctx, stop, log, l, c, a)
	case errors.Is(err, errLost):
		d.metrics.lost.Inc()
		return false
	case err != nil:
		d.giveBack(ctx, log, c, time.Second, "the message could not be prepared", err)
		return false
	case !ready:
		return true
	}
	if wait := l.blockedFor(); wait > 0 {
		l.breaker.cancel()
		l.account.giveBack()
		d.giveBack(ctx, log, c, wait, "the partner asked to wait", nil)
		return false
	}
	a := attempt{started: time.Now()}
	a.outcome = d.send(ctx, stop, l, c)
	a.latency = time.Since(a.started)
	return d.conclude(ctx, stop, log, l, c, a)
}

// conclude records an attempt and does what follows from it. It tells whether to go on.
func (d *Dispatcher) conclude(ctx, stop context.Context, log *slog.Logger, l *line, c *claim, a attempt) bool {
	refused := a.outcome.Class == Refresh
	if refused {
		a.outcome = d.refused(ctx, log, l, a.outcome)
		refused = a.outcome.Class == Refresh
	}
	what := decide(c, a.outcome, d.cfg.Schedule, time.Now())
	what.pollEvery, what.pollFor = orElse(l.limits.PollEvery, pollEvery), orElse(l.limits.PollFor, pollFor)
	if refused { // with the same bytes, as soon as there is a new token
		what = decision{}
		what.retry(c.members, len(c.members), c.attempts, 0, a.outcome.Reason)
	}
	if a.outcome.Class == Retry && stop.Err() != nil { // we broke it off
		what = decision{}
		what.retry(c.members, len(c.members), c.attempts, 0, "stopped by us")
	}
	if what.block > 0 {
		l.block(what.block)
	}
	if err := d.accounts.heed(ctx, l.account, a.outcome); err != nil {
		log.WarnContext(ctx, "note what an account may ask", "err", err)
	}
	healed := l.judge(a.outcome.Class)
	if a.outcome.Class == OK || a.outcome.Class == Partial {
		d.refresher.prove(l.target)
	}
	d.count(l, c, a)
	err := d.record(ctx, c, a, what)
	switch {
	case errors.Is(err, errLost):
		d.metrics.lost.Inc()
		log.WarnContext(ctx, "the lease ran out before the outcome was known")
	case err != nil:
		log.ErrorContext(ctx, "record an outcome; the message will be sent again when its lease has run out", "err", err)
		return false
	}
	if what.status != "" {
		log.ErrorContext(ctx, "destination stopped", "status", string(what.status), "reason", what.reason)
	} else if a.outcome.Class != OK {
		log.WarnContext(ctx, "partner did not accept, will follow up", "outcome", string(a.outcome.Class),
			"http_status", a.outcome.Status, "reason", a.outcome.Reason, "attempts", c.tries)
	}
	if refused {
		if o := d.freshen(ctx, l.target); o.Class != OK {
			log.WarnContext(ctx, "the access token could not be refreshed", "outcome", string(o.Class), "reason", o.Reason)
		}
		d.Wake()
		return false // what is known of the destination is out of date
	}
	if healed {
		if err := hasten(ctx, d.queue.pool, d.cfg.Lanes, c.destination); err != nil {
			log.WarnContext(ctx, "hasten what waits for a healed destination", "err", err)
		}
		d.Wake()
	}
	return what.status == "" && what.block == 0
}

// refused tells what it means that a partner says that the access token has ended: [Refresh] if there is or may be a newer
// one, else [Reauth].
func (d *Dispatcher) refused(ctx context.Context, log *slog.Logger, l *line, o Outcome) Outcome {
	if _, ok := l.target.partner.(Refresher); !ok {
		o.Class = Reauth
		return o
	}
	stale, err := d.refresher.stale(ctx, l.target)
	if err != nil {
		log.WarnContext(ctx, "look at the age of a token", "err", err)
	} else if !stale {
		o.Class, o.Reason = Reauth, "a new access token was refused"
	}
	return o
}

// judge tells the breaker what an answer says about the destination's health.
func (l *line) judge(class Class) (healed bool) {
	switch class {
	case Retry:
		l.breaker.fail()
	case OK, Partial, Split, Drop:
		return l.breaker.succeed()
	default:
		l.breaker.cancel()
	}
	return false
}

// send makes the attempt itself.
func (d *Dispatcher) send(ctx, stop context.Context, l *line, c *claim) (o Outcome) {
	defer func() {
		if p := recover(); p != nil {
			d.log.ErrorContext(ctx, "a partner's code panicked", "partner", l.target.partner.Type(), "panic", fmt.Sprint(p))
			o = Outcome{Class: Retry, Unknown: true, Reason: "an error of ours"}
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, l.limits.Timeout)
	defer cancel()
	defer context.AfterFunc(stop, func() {
		t := time.NewTimer(d.cfg.Grace)
		defer t.Stop()
		select {
		case <-t.C:
			cancel()
		case <-ctx.Done():
		}
	})()
	return l.target.clean(l.target.partner.Send(ctx, l.target.Target, c.message()))
}

// record writes an outcome down, if need be again: while the lease lasts nobody else can know better.
func (d *Dispatcher) record(ctx context.Context, c *claim, a attempt, what decision) error {
	pause := 50 * time.Millisecond
	for {
		err := d.queue.record(ctx, c, a, what)
		if err == nil || errors.Is(err, errLost) || ctx.Err() != nil {
			return err
		}
		if !wait(ctx, nil, pause) {
			return err
		}
		pause = min(2*pause, 5*time.Second)
	}
}

func (d *Dispatcher) giveBack(
	ctx context.Context, log *slog.Logger, c *claim, wait time.Duration, reason string, cause error,
) {
	if cause != nil {
		log.WarnContext(ctx, "give a claim back", "reason", reason, "err", cause)
	}
	if err := d.queue.release(ctx, c, wait, reason); err != nil && !errors.Is(err, errLost) {
		log.WarnContext(ctx, "give a claim back; its lease will run out", "err", err)
	}
}

func (d *Dispatcher) count(l *line, c *claim, a attempt) {
	partner := l.target.partner.Type()
	d.metrics.deliveries.WithLabelValues(partner, string(a.outcome.Class)).Inc()
	d.metrics.latency.WithLabelValues(partner).Observe(a.latency.Seconds())
	end := a.started.Add(a.latency)
	for i, m := range c.members {
		class := a.outcome.row(i).Class
		switch class {
		case OK:
			d.metrics.freshness.WithLabelValues(partner).Observe(end.Sub(m.ChangedAt).Seconds())
		case Drop:
		default:
			class = Retry
		}
		d.metrics.members.WithLabelValues(partner, string(class)).Inc()
	}
}

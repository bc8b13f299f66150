package collector

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/mubatch/mubatch/profiles"
)

// laneRun is one run of a lane, from opening it to the first error.
type laneRun struct {
	*Flusher
	owned *owned
	log   *slog.Logger

	lane     *profiles.Lane
	most     int       // entries of a µbatch
	cursor   Offset    // read up to here
	upTo     time.Time // what was in the stream by then is applied
	progress bool      // a batch was committed

	connections uint64    // of the stream, when Redis was last looked at
	looked      time.Time // when that was
	redis       string    // the one the cursor belongs to
	doubt       bool      // the last owner may have died of a message
	buildAt     time.Time // not before: there was nothing to do, or it went wrong
	waiting     time.Time // since when there are timers or builds to be done; zero: there are none
	definitions *string   // the newest fingerprint when the lane last looked
	applied     []mark    // offsets on their way to being trimmed

	reading  bool         // a read is under way
	arrivals chan arrival // brings what it has read
	reset    int          // how often the cursor was set back; what was read before is of no use
}

// arrival is what a read of the stream has brought.
type arrival struct {
	asked   time.Time
	block   time.Duration
	reset   int
	entries []Entry
	err     error
}

// mark is an offset and when it was committed.
type mark struct {
	offset Offset
	at     time.Time
}

const (
	lookEvery  = 5 * time.Second       // at the state of the stream
	markEvery  = 10 * time.Second      // an offset is noted for trimming
	buildAgain = 10 * time.Second      // after an attempt that went wrong
	buildPoll  = 50 * time.Millisecond // when another lane is awaited

	idleRead = 500 * time.Millisecond // how long a read waits for messages, and so how stale an idle lane's as_of may be
)

// inDoubt stands for the Redis of a lane whose stream is being read from its beginning. No server has this id.
const inDoubt = "?"

// run returns nil when ctx has ended or the lease has run out.
func (r *laneRun) run(ctx context.Context, lease profiles.Lease) (err error) {
	work, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	if r.lane, err = r.store.Open(work, lease); err != nil {
		return err
	}
	if r.owned.survived {
		if err := r.lane.Survived(work); err != nil {
			return err
		}
		r.owned.survived = false
	}
	if err := r.ringFirst(ctx); err != nil {
		return err
	}
	r.doubt = lease.Unclean && !r.owned.trusted || r.lane.Doubt().Attempts > 0
	r.cursor, r.redis = Offset(r.lane.Offset()), r.lane.RunID()
	r.lag.begin(lease.Lane, r.cursor)
	unheard, err := r.lane.Unheard(work)
	if err != nil {
		return err
	}
	if err := r.publish(ctx, unheard); err != nil {
		return err
	}
	r.arrivals = make(chan arrival, 1)
	defer func() {
		r.wait(false)
		if r.reading {
			<-r.arrivals
		}
	}()
	for ctx.Err() == nil && r.owned.held() {
		if err := r.turn(ctx); err != nil {
			return err
		}
		r.owned.extend(r.lane.Until())
	}
	return nil
}

// ringFirst re-evaluates some of whom are due before the stream is looked at, and all of them while there is no Redis.
func (r *laneRun) ringFirst(ctx context.Context) error {
	for ctx.Err() == nil && r.owned.held() {
		rung, err := r.ring(ctx)
		if err != nil || !rung || r.committer.Health().Ready {
			return err
		}
		r.owned.extend(r.lane.Until())
	}
	return nil
}

// turn does what the lane has to do next, and waits for it if there is nothing. Messages go first, but chores are not put
// off for ever.
func (r *laneRun) turn(ctx context.Context) error {
	if newest := r.Flusher.definitions.Load(); newest != r.definitions { // it may be older than what the lane has read by itself
		if *newest != r.lane.Fingerprint() {
			if err := r.refresh(ctx); err != nil {
				return err
			}
		}
		r.definitions = newest
	}
	if err := r.look(ctx); err != nil {
		return err
	}
	wait := r.untilChores()
	if r.doubt {
		if wait == 0 {
			if err := r.do(ctx); err != nil {
				return err
			}
		}
		return r.readInDoubt(ctx)
	}
	r.listen(ctx)
	var turn chan struct{}
	if wait == 0 {
		patience := r.chores.patience() - time.Since(r.waiting)
		if patience <= 0 || r.chores.calm() {
			select {
			case a := <-r.arrivals:
				return r.arrived(ctx, a)
			default:
				return r.do(ctx)
			}
		}
		turn, wait = r.chores.turns, patience
	}
	select {
	case a := <-r.arrivals:
		return r.arrived(ctx, a)
	case <-turn:
		began := time.Now()
		defer func() { r.chores.rest(turn, time.Since(began)) }()
		return r.do(ctx)
	case <-time.After(wait):
		return nil
	}
}

// untilChores is in how long there are timers or builds to be done, 0 if there are some now.
func (r *laneRun) untilChores() time.Duration {
	wait := time.Until(r.lane.NextDue())
	if r.lane.Building() {
		wait = min(wait, time.Until(r.buildAt))
	}
	r.wait(wait <= 0)
	return max(wait, 0)
}

// wait notes whether there are chores to be done.
func (r *laneRun) wait(some bool) {
	switch {
	case some && r.waiting.IsZero():
		r.waiting = time.Now()
		r.chores.waiting.Add(1)
	case !some && !r.waiting.IsZero():
		r.waiting = time.Time{}
		r.chores.waiting.Add(-1)
	}
}

// do does some of the chores.
func (r *laneRun) do(ctx context.Context) error {
	began := time.Now()
	if _, err := r.ring(ctx); err != nil {
		return err
	}
	if err := r.build(ctx); err != nil {
		return err
	}
	r.chores.last.Store(int64(time.Since(began)))
	r.wait(false)
	return nil
}

func (r *laneRun) refresh(ctx context.Context) error {
	work, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	return r.lane.Refresh(work)
}

// listen begins to read, unless that is under way. What it brings arrives in r.arrivals.
func (r *laneRun) listen(ctx context.Context) {
	if r.reading {
		return
	}
	r.reading = true
	block := idleRead
	if r.lane.Building() { // and perhaps waits to have applied all that there is
		block = buildPoll
	}
	read := r.prepare(ctx, block)
	go func() { r.arrivals <- read() }()
}

// prepare returns what reads on from the cursor, in another goroutine if need be.
func (r *laneRun) prepare(ctx context.Context, block time.Duration) func() arrival {
	lane, cursor, most, reset := r.lane.Number(), r.cursor, r.most, r.reset
	return func() arrival {
		a := arrival{asked: time.Now(), block: block, reset: reset}
		a.entries, a.err = r.stream.Read(ctx, lane, cursor, most, r.cfg.MaxBytes, block)
		return a
	}
}

// arrived applies what a read has brought.
func (r *laneRun) arrived(ctx context.Context, a arrival) error {
	r.reading = false
	if a.err != nil {
		return a.err
	}
	if a.reset != r.reset {
		return nil
	}
	if len(a.entries) == 0 {
		if ctx.Err() != nil {
			return nil
		}
		r.upTo = a.asked
		// Nothing had arrived when Redis stopped waiting, which was no earlier than this; it counts in milliseconds.
		upTo := a.asked.Add(max(a.block-2*time.Millisecond, 0))
		r.appliedUpTo(r.lane.Number(), upTo)
		r.lane.CaughtUp(upTo)
		if err := r.tidy(ctx); err != nil {
			return err
		}
		if err := r.reread(ctx, true); err != nil {
			return err
		}
		return r.trim(ctx)
	}
	b := r.batch(a.entries)
	if ctx.Err() == nil && r.all(a.entries) {
		b.AsOf = a.asked
	}
	if err := r.flush(ctx, b); err != nil {
		return err
	}
	r.cursor = a.entries[len(a.entries)-1].Offset
	r.lag.applied(r.lane.Number(), r.cursor, len(a.entries), len(b.Messages))
	if !b.AsOf.IsZero() {
		r.upTo = a.asked
		r.appliedUpTo(r.lane.Number(), a.asked)
	}
	if err := r.reread(ctx, false); err != nil {
		return err
	}
	return r.trim(ctx)
}

// all tells whether entries are sure to be all that there was to read: neither bound of a µbatch has cut them off.
func (r *laneRun) all(entries []Entry) bool {
	size := maxFrameBytes + maxFrameBytes/8 // another entry might have been as large
	for _, e := range entries {
		size += len(e.Raw)
	}
	return len(entries) < r.most && size < r.cfg.MaxBytes
}

func (r *laneRun) tidy(ctx context.Context) error {
	work, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	return r.lane.Tidy(work)
}

// batch gathers the messages of entries. An entry that cannot be read is kept as it is.
func (r *laneRun) batch(entries []Entry) profiles.Batch {
	b := profiles.Batch{Until: r.until(entries[len(entries)-1].Offset)}
	for _, e := range entries {
		if e.Err != nil {
			b.Broken = append(b.Broken, profiles.Broken{Stage: "frame", Reason: e.Err.Error(), Raw: e.Raw})
			continue
		}
		b.Messages = append(b.Messages, e.Messages...)
		if slices.ContainsFunc(e.Messages, func(m profiles.Message) bool { return m.Kind == profiles.KindEvent }) {
			r.chores.eventsCame()
		}
		if e.Offset.Compare(Offset(r.lane.Offset())) <= 0 {
			b.Reread = len(b.Messages)
		}
	}
	return b
}

// until is how far the lane is applied after an entry: when a stream is read again from its beginning, the committed
// offset stays where it is until the reading is past it.
func (r *laneRun) until(entry Offset) profiles.Offset {
	if committed := Offset(r.lane.Offset()); entry.Compare(committed) < 0 {
		return profiles.Offset(committed)
	}
	return profiles.Offset(entry)
}

// flush applies a batch and tells the other lanes what follows for them. A batch that is under way is finished even if
// ctx ends.
func (r *laneRun) flush(ctx context.Context, b profiles.Batch) error {
	began := time.Now()
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Timeout)
	defer cancel()
	res, err := r.lane.Apply(work, b)
	if err != nil {
		return err
	}
	r.progress = true
	r.metrics.seconds.Observe(time.Since(began).Seconds())
	return r.settle(ctx, res)
}

// settle counts what a transaction has done, and publishes its outbox.
func (r *laneRun) settle(ctx context.Context, res profiles.Result) error {
	r.metrics.messages.WithLabelValues("applied").Add(float64(res.Applied))
	r.metrics.messages.WithLabelValues("duplicate").Add(float64(res.Duplicates))
	r.metrics.messages.WithLabelValues("failed").Add(float64(res.Failed))
	r.metrics.messages.WithLabelValues("suppressed").Add(float64(res.Suppressed))
	r.metrics.messages.WithLabelValues("quarantined").Add(float64(res.Quarantined))
	return r.publish(ctx, res.Outbox)
}

// publish puts messages into other lanes' streams. Until that is known to be durable, they stay in the outbox.
func (r *laneRun) publish(ctx context.Context, out []profiles.Outgoing) error {
	if len(out) == 0 {
		return nil
	}
	routed := make([]Routed, len(out))
	for i, o := range out {
		routed[i] = Routed{Lane: o.Target, Message: o.Message}
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Timeout)
	defer cancel()
	for {
		err := r.committer.Commit(work, routed)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !sleep(work, 50*time.Millisecond) {
			return err // it is in the outbox: whoever opens the lane next publishes it
		}
	}
}

// ring re-evaluates some of whom are due, if there are any.
func (r *laneRun) ring(ctx context.Context) (bool, error) {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Timeout)
	defer cancel()
	r.lane.Allow(r.chores.allowed())
	n, res, err := r.lane.Ring(work, time.Now())
	if err != nil || n == 0 {
		return false, err
	}
	r.metrics.timers.Add(float64(n))
	return true, r.settle(ctx, res)
}

// build does a chunk of what there is to build.
func (r *laneRun) build(ctx context.Context) error {
	if !r.lane.Building() || time.Now().Before(r.buildAt) {
		return nil
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Timeout)
	defer cancel()
	r.lane.Allow(r.chores.allowed())
	worked, res, err := r.lane.Build(work, r.upTo)
	if profiles.IsBug(err) {
		r.log.ErrorContext(ctx, "segments are not being built, will try again", "in", buildAgain, "err", err)
		r.buildAt = time.Now().Add(buildAgain)
		return nil
	}
	if err != nil {
		return err
	}
	if !worked { // another lane is awaited
		r.buildAt = time.Now().Add(buildPoll)
		return nil
	}
	return r.settle(ctx, res)
}

// look makes sure that the stream is the one the offset belongs to. After any doubt it is read from its beginning, and
// dedupe sorts out what was applied already: a Redis that has lost its newest entries gives new ones ids that may lie
// before our offset, and they would never be read.
func (r *laneRun) look(ctx context.Context) error {
	connections := r.stream.Connections()
	if connections == r.connections && time.Since(r.looked) < lookEvery {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	state, err := r.stream.State(ctx, r.lane.Number())
	if err != nil {
		return err
	}
	committed := Offset(r.lane.Offset())
	lost := !committed.IsZero() && (!state.Exists || state.Last.Compare(committed) < 0)
	if lost {
		r.log.ErrorContext(ctx, "redis has lost part of the lane", "exists", state.Exists, "last", state.Last.String(),
			"committed", committed.String())
	}
	if lost || state.RunID != r.redis {
		// The doubt is noted first and lifted last: whoever goes on from here begins at the beginning as well.
		if err := r.lane.SetRunID(ctx, inDoubt); err != nil {
			return err
		}
		if err := r.stream.EnsureAfter(ctx, r.lane.Number(), committed); err != nil {
			return err
		}
		// What this lane had told others may be lost as well, and goes before what it will tell them.
		unheard, err := r.lane.Unheard(ctx)
		if err != nil {
			return err
		}
		if err := r.publish(ctx, unheard); err != nil {
			return err
		}
		r.cursor, r.applied, r.redis = Offset{}, nil, state.RunID
		r.lag.begin(r.lane.Number(), r.cursor)
		r.reset++
	}
	r.connections, r.looked = connections, time.Now()
	return nil
}

// reread lifts the doubt about the stream once it was read again up to the offset, or to its end.
func (r *laneRun) reread(ctx context.Context, end bool) error {
	if r.lane.RunID() != inDoubt || !end && r.cursor.Compare(Offset(r.lane.Offset())) < 0 {
		return nil
	}
	work, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	return r.lane.SetRunID(work, r.redis)
}

// trim removes entries that were applied a while ago. Until then they are kept, for a Postgres that fails over to a
// standby which lacks the last transactions.
func (r *laneRun) trim(ctx context.Context) error {
	if r.lane.RunID() == inDoubt || r.stream.Connections() != r.connections {
		return nil // there may be entries before the offset that were never read
	}
	now := time.Now()
	committed := Offset(r.lane.Offset())
	if n := len(r.applied); n == 0 || now.Sub(r.applied[n-1].at) >= min(markEvery, r.cfg.TrimLag) {
		r.applied = append(r.applied, mark{committed, now})
	}
	i := -1
	for i+1 < len(r.applied) && now.Sub(r.applied[i+1].at) >= r.cfg.TrimLag {
		i++
	}
	if i < 0 {
		return nil
	}
	if err := r.stream.Trim(ctx, r.lane.Number(), r.applied[i].offset); err != nil {
		return err
	}
	r.applied = r.applied[i+1:]
	return nil
}

// How often a batch, and then a single message of it, may have been the last thing that happened.
const (
	batchAttempts   = 3
	messageAttempts = 2
)

// readInDoubt reads on where the last owner ended without a word. Whoever reads the same batch may die as well, so each
// attempt is noted before it is made, and struck out again if it fails and the process lives on. Only one lane of a process
// does so at a time: another lane's message must not be blamed for it.
func (r *laneRun) readInDoubt(ctx context.Context) (err error) {
	if !r.Flusher.doubt.TryLock() {
		sleep(ctx, 10*time.Millisecond) // the lane's timers are not to wait for it
		return nil
	}
	defer r.Flusher.doubt.Unlock()
	defer func() {
		if err == nil || !r.owned.survived {
			return
		}
		work, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if r.lane.Survived(work) == nil {
			r.owned.survived = false
		}
	}()
	if r.lane.Doubt().Attempts < batchAttempts {
		if err := r.attempt(ctx, nil, 0); err != nil {
			return err
		}
		if err := r.arrived(ctx, r.prepare(ctx, time.Millisecond)()); err != nil {
			return err
		}
	} else {
		for range r.cfg.MaxEntries { // as many as the batch may have had
			more, err := r.readOneByOne(ctx)
			if err != nil {
				return err
			}
			if !more {
				break
			}
		}
	}
	work, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	if err := r.lane.Trust(work); err != nil {
		return err
	}
	r.doubt, r.owned.survived, r.owned.trusted = false, false, true
	return nil
}

// attempt notes that a batch or a message is about to be applied.
func (r *laneRun) attempt(ctx context.Context, message *profiles.Key, first int) error {
	work, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	if err := r.lane.Attempt(work, message, first); err != nil {
		return err
	}
	r.owned.survived = true // if it comes to be read
	return nil
}

// readOneByOne applies one entry message by message, and sets a message aside at which the process has died too often.
// more is false when there was no entry.
func (r *laneRun) readOneByOne(ctx context.Context) (more bool, err error) {
	entries, err := r.stream.Read(ctx, r.lane.Number(), r.cursor, 1, r.cfg.MaxBytes, time.Millisecond)
	if err != nil || len(entries) == 0 {
		return false, err
	}
	whole := r.batch(entries)
	doubt := r.lane.Doubt()
	first := max(0, slices.IndexFunc(whole.Messages, func(m profiles.Message) bool { return m.ID == doubt.Suspect }))
	for i := first; i < len(whole.Messages); i++ { // what lies before a suspect was applied before it was suspected
		m := &whole.Messages[i]
		one := profiles.Batch{Until: r.lane.Offset()}
		if i < whole.Reread {
			one.Reread = 1
		}
		if doubt := r.lane.Doubt(); m.ID == doubt.Suspect && doubt.Attempts >= batchAttempts+messageAttempts {
			r.log.ErrorContext(ctx, "a message is set aside because the process died of it", "message_key", m.ID)
			one.Poison = []profiles.Message{*m}
		} else {
			if err := r.attempt(ctx, &m.ID, batchAttempts+1); err != nil {
				return false, err
			}
			one.Messages = []profiles.Message{*m}
		}
		if err := r.flush(ctx, one); err != nil {
			return false, err
		}
	}
	messages := len(whole.Messages)
	whole.Messages = nil
	if err := r.flush(ctx, whole); err != nil {
		return false, err
	}
	r.cursor = entries[0].Offset
	r.lag.applied(r.lane.Number(), r.cursor, 1, messages)
	return true, nil
}

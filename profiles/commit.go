package profiles

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mubatch/mubatch/activation"
)

// work is what one transaction of a lane does: a batch of its stream, or something the owner does of its own accord.
type work struct {
	messages []Message
	reread   int
	broken   []Broken
	poison   []Message
	until    Offset
	asOf     time.Time // zero: not known
	split    bool      // apply in halves, to find the message that the database refuses

	due    []Ref
	sweep  *Sweep
	replay *Replay
	erase  *Erase
	now    time.Time                                  // zero: the present
	first  func(context.Context, pgx.Tx, *work) error // finds out in the transaction what is to be done in it
	also   func(context.Context, pgx.Tx) error        // further writes that belong to it
}

// passing returns the profiles that w takes up although nothing has arrived for them, and that are not in the cache.
func (w *work) passing(s *State) []Ref {
	refs := w.due
	if w.sweep != nil {
		refs = w.sweep.Profiles
	}
	var passing []Ref
	for _, ref := range refs {
		if _, cached := s.Profiles[ref.Key]; !cached {
			passing = append(passing, ref)
		}
	}
	return passing
}

// tally collects what a transaction has decided, over all the parts that it was applied in.
type tally struct {
	seqs     sequences
	result   Result
	counts   map[countKey]*counts
	outcomes []*Outcome
	arrived  map[arrivalKey]arrived
	parts    map[arrivalKey]part // where what has arrived is written to
	wake     bool
	heard    []int64   // nil: as before
	unheard  int64     // rows left of the outbox as it was before
	clears   bool      // looks for those that were heard
	advanced time.Time // just before the lease was renewed
}

type countKey struct{ workspace, source int32 }

type counts struct{ accepted, applied, duplicate, failed, suppressed, quarantined int64 }

func (t *tally) count(m *Message) *counts {
	k := countKey{m.Workspace, m.Source}
	if t.counts[k] == nil {
		t.counts[k] = &counts{}
	}
	return t.counts[k]
}

// commit does a piece of work in one transaction, behind the lane's fence. Afterwards the lane's numbers and cache are
// those of the committed state; after an error they are as before, and the cache is empty.
func (l *Lane) commit(ctx context.Context, w work) (Result, error) {
	if w.until == (Offset{}) {
		w.until = l.offset
	}
	if w.now.IsZero() {
		w.now = time.Now()
	}
	if w.asOf.IsZero() {
		w.asOf = l.asOf
	}
	passing := w.passing(l.state)
	var t *tally
	err := pgx.BeginFunc(ctx, l.store.pool, func(tx pgx.Tx) error {
		t = &tally{seqs: l.seqs, counts: map[countKey]*counts{}, arrived: map[arrivalKey]arrived{}, heard: l.hear(w), unheard: l.outstanding, clears: l.clears()}
		if err := l.fence(ctx, tx); err != nil {
			return err
		}
		w := w
		if w.first != nil {
			if err := w.first(ctx, tx, &w); err != nil {
				return err
			}
		}
		apply := l.applyAll
		if w.split {
			apply = l.applySplit
		}
		if err := apply(ctx, tx, w, t); err != nil {
			return err
		}
		crash := failure{stage: "crash", reason: "the process died when it applied this message"}
		if err := l.setAside(ctx, tx, w.poison, 0, crash, t); err != nil {
			return err
		}
		if err := l.keepBroken(ctx, tx, w.broken, t); err != nil {
			return err
		}
		if w.also != nil {
			if err := w.also(ctx, tx); err != nil {
				return err
			}
		}
		return l.advance(ctx, tx, w, t)
	})
	if err != nil {
		l.state = NewState()
		return Result{}, err
	}
	l.offset, l.seqs, l.outstanding = w.until, t.seqs, t.unheard+int64(len(t.result.Outbox))
	if t.heard != nil {
		l.heard = t.heard
	}
	l.turn++
	l.keepParts(t)
	if t.clears {
		l.cleared = time.Now()
	}
	if l.lease > 0 {
		l.until = t.advanced.Add(l.lease)
	}
	for _, ref := range passing { // or they would drive out those for whom events come
		delete(l.state.Profiles, ref.Key)
	}
	for _, o := range t.outcomes {
		for _, ref := range passing {
			delete(o.Profiles, ref)
		}
		l.remember(o)
	}
	if t.wake {
		l.store.wake()
	}
	return t.result, nil
}

// clears tells whether a transaction is to look for rows of the outbox that were heard. While another lane hears nothing
// they pile up, and all of them are looked at: then that is not done every time.
func (l *Lane) clears() bool {
	const many = 1000
	return l.outstanding > 0 && (l.outstanding < many || time.Since(l.cleared) > time.Second)
}

// hear returns what is heard of the other lanes' outboxes after a piece of work, or nil if that is nothing new. A lane
// publishes its outbox in order, so whoever has heard a number has heard all before it.
func (l *Lane) hear(w work) []int64 {
	var heard []int64
	for _, list := range [][]Message{w.messages, w.poison} {
		for i := range list {
			if !list[i].Kind.betweenLanes() {
				continue
			}
			lane, seq := readOutboxID(list[i].ID)
			if lane < 0 || lane >= l.store.lanes {
				continue // not from here: it fails by itself
			}
			if heard == nil {
				heard = make([]int64, l.store.lanes)
				copy(heard, l.heard)
			}
			heard[lane] = max(heard[lane], seq)
		}
	}
	return heard
}

// fence stops whoever is not the lane's owner, or does not know its last transaction. It holds the lane's row until the end of the
// transaction, and with it everybody else who takes the lane for theirs. Nothing in the transaction waits for ever, also
// if this process is never heard of again, and what it commits is on disk, whatever the server's settings are.
func (l *Lane) fence(ctx context.Context, tx pgx.Tx) error {
	const settings = `
		SELECT set_config('lock_timeout', '5s', true), set_config('statement_timeout', '30s', true),
		       set_config('idle_in_transaction_session_timeout', '30s', true),
		       set_config('synchronous_commit', CASE current_setting('synchronous_commit')
		           WHEN 'off' THEN 'on'
		           ELSE current_setting('synchronous_commit') END, true)`
	const lane = `
		SELECT true
		FROM lanes
		WHERE lane = $1 AND epoch = $2 AND turn = $3 AND offset_ms = $4 AND offset_seq = $5
		FOR UPDATE`
	// Shared with all other lanes: who changes destinations or rotates the dedupe generations waits for the µbatches
	// that still go by the old ones.
	const lock = `SELECT pg_advisory_xact_lock_shared($1)`
	const generation = `SELECT current, tombstones FROM dedupe_generation`

	batch := &pgx.Batch{}
	batch.Queue(settings)
	var held bool
	batch.Queue(lane, l.number, l.epoch, l.turn, int64(l.offset.Ms), int64(l.offset.Seq)).QueryRow(func(row pgx.Row) error {
		return row.Scan(&held)
	})
	batch.Queue(lock, activation.ConfigLock)
	var tombstones int64
	batch.Queue(generation).QueryRow(func(row pgx.Row) error { return row.Scan(&l.generation, &tombstones) })
	err := tx.SendBatch(ctx, batch).Close()
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrFenced
	}
	if err != nil {
		return fmt.Errorf("fence lane %d: %w", l.number, err)
	}
	if tombstones != l.tombstones {
		return l.readGraves(ctx, tx, tombstones)
	}
	return nil
}

// applySplit applies a batch in savepoints, halving whatever the database refuses, until the messages that it refuses
// stand alone. Those are kept as failed.
func (l *Lane) applySplit(ctx context.Context, tx pgx.Tx, w work, t *tally) error {
	if len(w.messages) == 0 {
		return l.applyAll(ctx, tx, w, t)
	}
	l.state = NewState() // what was read may include what is rolled back
	before := *t
	before.counts = map[countKey]*counts{}
	for k, c := range t.counts {
		copied := *c
		before.counts[k] = &copied
	}
	before.arrived = maps.Clone(t.arrived)
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return l.applyAll(ctx, tx, w, t) })
	if !isPoison(err) {
		return err
	}
	*t = before
	if len(w.messages) == 1 {
		why := failure{stage: "fold", reason: err.Error()}
		if refusal := (*pgconn.PgError)(nil); errors.As(err, &refusal) {
			why = failure{stage: "store", reason: refusal.Message, sqlstate: refusal.Code}
		}
		return l.setAside(ctx, tx, w.messages, w.reread, why, t)
	}
	half := len(w.messages) / 2
	first, second := w, w
	first.messages, second.messages = w.messages[:half], w.messages[half:]
	first.reread, second.reread = min(w.reread, half), max(w.reread-half, 0)
	if err := l.applySplit(ctx, tx, first, t); err != nil {
		return err
	}
	return l.applySplit(ctx, tx, second, t)
}

func (l *Lane) applyAll(ctx context.Context, tx pgx.Tx, w work, t *tally) error {
	fresh, err := l.dedupe(ctx, tx, w.messages, w.reread, t)
	if err != nil {
		return err
	}
	if fresh, err = l.unwrap(ctx, tx, fresh, t); err != nil {
		return err
	}
	fresh, decoded, err := l.suppress(ctx, tx, fresh, true, w.now, t)
	if err != nil {
		return err
	}
	fresh, decoded, held := apart(fresh, decoded)
	if err := l.quarantine(ctx, tx, held, t); err != nil {
		return err
	}
	replay, err := l.replayable(ctx, tx, w.replay)
	if err != nil {
		return err
	}
	in := Input{
		Lane:        l.number,
		Lanes:       l.store.lanes,
		Now:         w.now,
		OutboxSeq:   t.seqs.outbox,
		Definitions: l.definitions,
		State:       l.state,
		Messages:    fresh,
		Due:         w.due,
		Sweep:       w.sweep,
		Replay:      replay,
		Erase:       w.erase,

		events: decoded,
	}
	out, err := l.step(ctx, tx, in)
	if err != nil {
		return err
	}
	if err := l.write(ctx, tx, w, out, t); err != nil {
		return err
	}
	var failures []failure
	for _, f := range out.Failed {
		failures = append(failures, failure{&fresh[f.Index], f.Stage, f.Reason, ""})
	}
	if err := l.keepFailed(ctx, tx, failures, t); err != nil {
		return err
	}
	for i := range fresh {
		t.count(&fresh[i]).applied++
	}
	for _, f := range failures {
		t.count(f.message).applied--
	}
	t.seqs.outbox = out.OutboxSeq
	t.result.Applied += len(fresh) - len(failures)
	t.result.Transitions += len(out.Transitions)
	t.result.Outbox = append(t.result.Outbox, out.Outbox...)
	t.outcomes = append(t.outcomes, out)
	if w.split {
		for _, o := range t.outcomes {
			l.remember(o) // for the parts to come; a rollback empties it
		}
	}
	return nil
}

// step runs the pure step, reading what it misses until nothing is missing.
func (l *Lane) step(ctx context.Context, tx pgx.Tx, in Input) (*Outcome, error) {
	for {
		out, missing, err := stepSafely(in)
		if err != nil {
			return nil, fmt.Errorf("step of lane %d: %w", l.number, err)
		}
		if missing == nil {
			return out, nil
		}
		if err := l.read(ctx, tx, missing); err != nil {
			return nil, err
		}
	}
}

// stepSafely returns a panic as an error: it is to stop what the lane is doing, not the process.
func stepSafely(in Input) (out *Outcome, missing *Missing, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, r, debug.Stack())
		}
	}()
	out, missing = Step(in)
	return out, missing, nil
}

var errPanic = errors.New("panic")

// dedupe remembers the messages and returns those that were not remembered yet. The first ones may have been read before;
// then a duplicate among them is the same acceptance, counted already.
func (l *Lane) dedupe(ctx context.Context, tx pgx.Tx, messages []Message, reread int, t *tally) ([]Message, error) {
	type identity struct {
		workspace, source int32
		id                Key
	}
	again := func(i int) {
		if i >= reread {
			t.count(&messages[i]).accepted++
			t.count(&messages[i]).duplicate++
			t.result.Duplicates++
			t.arrive(&messages[i], true)
		}
	}
	first := make(map[identity]int, len(messages))
	var workspaces, sources []int32
	var ids []Key
	for i := range messages {
		m := &messages[i]
		k := identity{m.Workspace, m.Source, m.ID}
		if _, known := first[k]; known {
			again(i)
			continue
		}
		first[k] = i
		workspaces, sources, ids = append(workspaces, m.Workspace), append(sources, m.Source), append(ids, m.ID)
	}
	if len(ids) == 0 {
		return nil, nil
	}
	rows, _ := tx.Query(ctx, dedupeQueries[l.generation], pgx.StrictNamedArgs{
		"lane": l.number, "workspaces": workspaces, "sources": sources, "ids": ids,
	})
	kept := make(map[identity]bool, len(ids))
	var k identity
	_, err := pgx.ForEachRow(rows, []any{&k.workspace, &k.source, &k.id}, func() error {
		kept[k] = true
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("dedupe at lane %d: %w", l.number, err)
	}
	fresh := make([]Message, 0, len(kept))
	for i := range messages {
		m := &messages[i]
		k := identity{m.Workspace, m.Source, m.ID}
		switch {
		case first[k] != i:
		case !kept[k]:
			again(i)
		default:
			t.count(m).accepted++
			t.arrive(m, false)
			fresh = append(fresh, *m)
		}
	}
	return fresh, nil
}

// dedupeQueries remember in one generation what is in neither, by the current generation.
var dedupeQueries = [2]string{dedupeQuery("dedupe_0", "dedupe_1"), dedupeQuery("dedupe_1", "dedupe_0")}

func dedupeQuery(current, previous string) string {
	return `
		INSERT INTO ` + current + ` (lane, workspace_id, source_id, message_key)
		SELECT @lane, workspace_id, source_id, message_key
		FROM unnest(@workspaces::integer[], @sources::integer[], @ids::uuid[]) AS t (workspace_id, source_id, message_key)
		WHERE NOT EXISTS (
			SELECT
			FROM ` + previous + ` AS p
			WHERE p.lane = @lane AND p.workspace_id = t.workspace_id AND p.source_id = t.source_id
			  AND p.message_key = t.message_key)
		ORDER BY workspace_id, source_id, message_key
		ON CONFLICT DO NOTHING
		RETURNING workspace_id, source_id, message_key`
}

// advance moves the lane to where the work ends, and counts what became of its events.
func (l *Lane) advance(ctx context.Context, tx pgx.Tx, w work, t *tally) error {
	const lane = `
		UPDATE lanes
		SET offset_ms = @ms, offset_seq = @seq, turn = turn + 1,
		    outbox_seq = @outbox, archive_seq = @archive, transition_seq = @transition,
		    heard = coalesce(@heard, heard),
		    as_of = greatest(as_of, @as_of),
		    lease_until = greatest(lease_until, clock_timestamp() + nullif(@lease::interval, '0'))
		WHERE lane = @lane`
	const counters = `
		INSERT INTO counters AS c (lane, workspace_id, source_id, day, accepted, applied, duplicate, failed, suppressed, quarantined)
		SELECT @lane, workspace_id, source_id, (now() AT TIME ZONE 'UTC')::date, accepted, applied, duplicate, failed, suppressed,
		       quarantined
		FROM unnest(@workspaces::integer[], @sources::integer[], @accepted::bigint[], @applied::bigint[],
		            @duplicate::bigint[], @failed::bigint[], @suppressed::bigint[], @quarantined::bigint[])
		     AS t (workspace_id, source_id, accepted, applied, duplicate, failed, suppressed, quarantined)
		ON CONFLICT (lane, workspace_id, source_id, day) DO UPDATE
		SET accepted    = c.accepted + excluded.accepted,
		    applied     = c.applied + excluded.applied,
		    duplicate   = c.duplicate + excluded.duplicate,
		    failed      = c.failed + excluded.failed,
		    suppressed  = c.suppressed + excluded.suppressed,
		    quarantined = c.quarantined + excluded.quarantined`
	batch := &pgx.Batch{}
	var asOf *time.Time
	if !w.asOf.IsZero() {
		asOf = &w.asOf
	}
	t.advanced = time.Now()
	batch.Queue(lane, pgx.StrictNamedArgs{
		"lane": l.number, "ms": int64(w.until.Ms), "seq": int64(w.until.Seq),
		"outbox": t.seqs.outbox, "archive": t.seqs.archive, "transition": t.seqs.transition,
		"heard": t.heard, "as_of": asOf, "lease": l.lease,
	})
	var workspaces, sources []int32
	var accepted, applied, duplicate, failed, suppressed, quarantined []int64
	for _, k := range slices.SortedFunc(maps.Keys(t.counts), func(a, b countKey) int {
		return cmp.Or(cmp.Compare(a.workspace, b.workspace), cmp.Compare(a.source, b.source))
	}) {
		if k.source == 0 {
			continue // between lanes: not an event
		}
		c := t.counts[k]
		workspaces, sources = append(workspaces, k.workspace), append(sources, k.source)
		accepted, applied = append(accepted, c.accepted), append(applied, c.applied)
		duplicate, failed, suppressed = append(duplicate, c.duplicate), append(failed, c.failed), append(suppressed, c.suppressed)
		quarantined = append(quarantined, c.quarantined)
	}
	if len(workspaces) > 0 {
		batch.Queue(counters, pgx.StrictNamedArgs{
			"lane": l.number, "workspaces": workspaces, "sources": sources, "accepted": accepted, "applied": applied,
			"duplicate": duplicate, "failed": failed, "suppressed": suppressed, "quarantined": quarantined,
		})
	}
	l.writeArrivals(batch, t)
	if t.clears { // what this transaction adds nobody has heard yet
		const clear = `
			DELETE FROM outbox AS o
			USING lanes AS t
			WHERE o.lane = @lane AND t.lane = o.target AND o.seq <= t.heard[@lane + 1]`
		batch.Queue(clear, pgx.StrictNamedArgs{"lane": l.number}).Exec(func(tag pgconn.CommandTag) error {
			t.unheard = max(l.outstanding-tag.RowsAffected(), 0)
			return nil
		})
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("advance lane %d: %w", l.number, err)
	}
	return nil
}

// setAside keeps messages as failed that are not to be tried, unless they were dealt with before.
func (l *Lane) setAside(ctx context.Context, tx pgx.Tx, messages []Message, reread int, why failure, t *tally) error {
	fresh, err := l.dedupe(ctx, tx, messages, reread, t)
	if err != nil {
		return err
	}
	if fresh, err = l.unwrap(ctx, tx, fresh, t); err != nil {
		return err
	}
	if fresh, _, err = l.suppress(ctx, tx, fresh, false, time.Now(), t); err != nil {
		return err
	}
	var failures []failure
	for i := range fresh {
		f := why
		f.message = &fresh[i]
		failures = append(failures, f)
	}
	return l.keepFailed(ctx, tx, failures, t)
}

// failure is a message that cannot be applied.
type failure struct {
	message                 *Message
	stage, reason, sqlstate string
}

// keepFailed keeps messages with the reason why they could not be applied, until somebody replays them.
func (l *Lane) keepFailed(ctx context.Context, tx pgx.Tx, failures []failure, t *tally) error {
	const query = `
		INSERT INTO failed_events (lane, workspace_id, source_id, message_key, received_at, stage, reason, sqlstate, software, message)
		VALUES (@lane, @workspace, @source, @id, @received, @stage, @reason, @sqlstate, @software, @message)`
	for _, f := range failures {
		l.log.ErrorContext(ctx, "event failed", "workspace", f.message.Workspace, "source", f.message.Source,
			"message_key", f.message.ID, "stage", f.stage, "sqlstate", f.sqlstate)
		_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
			"lane": l.number, "workspace": f.message.Workspace, "source": f.message.Source, "id": f.message.ID,
			"received": f.message.Received, "stage": f.stage, "reason": clean(f.reason), "sqlstate": f.sqlstate,
			"software": l.store.version, "message": AppendMessage(nil, *f.message),
		})
		if err != nil {
			return fmt.Errorf("keep failed event of lane %d: %w", l.number, err)
		}
		t.count(f.message).failed++
		t.result.Failed++
	}
	return nil
}

// keepBroken keeps entries that could not be read at all. They belong to no workspace.
func (l *Lane) keepBroken(ctx context.Context, tx pgx.Tx, broken []Broken, t *tally) error {
	const query = `
		INSERT INTO failed_events (lane, workspace_id, source_id, message_key, received_at, stage, reason, software, message)
		VALUES (@lane, 0, 0, @id, now(), @stage, @reason, @software, @message)`
	for _, b := range broken {
		l.log.ErrorContext(ctx, "stream entry failed", "stage", b.Stage, "bytes", len(b.Raw))
		_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
			"lane": l.number, "id": MessageKey(string(b.Raw)), "stage": b.Stage, "reason": clean(b.Reason),
			"software": l.store.version, "message": b.Raw,
		})
		if err != nil {
			return fmt.Errorf("keep failed entry of lane %d: %w", l.number, err)
		}
		t.result.Failed++
	}
	return nil
}

// clean makes a reason fit for a text column.
func clean(reason string) string {
	const most = 4000
	b := bytes.ToValidUTF8([]byte(reason), []byte("\uFFFD"))
	b = bytes.ReplaceAll(b, []byte{0}, []byte("\uFFFD"))
	return string(bytes.ToValidUTF8(b[:min(len(b), most)], nil))
}

// isPoison tells whether an error may be some message's fault: the database refuses it, or what is known of its person
// cannot be read or evaluated.
func isPoison(err error) bool {
	return isData(err) || errors.Is(err, errCorrupt) || errors.Is(err, errPanic)
}

// IsBug tells whether an error has another cause than that a server is gone, busy or asked to stop: trying the same again
// is of no use before somebody has looked at it.
func IsBug(err error) bool {
	var refusal *pgconn.PgError
	if !errors.As(err, &refusal) || len(refusal.Code) != 5 {
		return isPoison(err)
	}
	switch refusal.Code[:2] {
	case "08", "25", "40", "53", "55", "57", "58":
		return false
	}
	return true
}

// isData tells whether the database refused the data itself: trying the same again is of no use.
func isData(err error) bool {
	var refusal *pgconn.PgError
	if !errors.As(err, &refusal) || len(refusal.Code) != 5 {
		return false
	}
	switch class := refusal.Code[:2]; class {
	case "22", "23":
		return true
	}
	return refusal.Code == "54000"
}

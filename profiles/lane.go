package profiles

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrFenced says that somebody else advanced the lane, or owns it now: nothing was written. The lane is to be opened
// again, if it is still ours.
var ErrFenced = errors.New("lane was advanced by somebody else")

// Offset is a place in a lane's stream: everything up to and including it is applied.
type Offset struct{ Ms, Seq uint64 }

// Batch is a run of a lane's stream.
type Batch struct {
	Until    Offset    // the last entry's
	AsOf     time.Time // all that was accepted up to then is in it or before it; zero: nobody knows
	Messages []Message
	Reread   int       // so many of the first messages were read before: where they are duplicates they were counted then
	Broken   []Broken  // entries of which not even the messages could be read
	Poison   []Message // messages that kill whoever decodes them: kept as failed, as they are
}

// Broken is something that could not be read: it is kept among the failed events.
type Broken struct {
	Stage  string
	Reason string
	Raw    []byte
}

// Lane is a lane in its owner's hands. It is not safe for concurrent use.
type Lane struct {
	store  *Store
	number int
	log    *slog.Logger

	epoch  int64
	lease  time.Duration // how long a transaction renews the lease for
	until  time.Time     // how long the last one has
	turn   int64
	offset Offset
	seqs   sequences
	runID  string // of the Redis that the offset was read from
	doubt  Doubt

	generation  int16            // of dedupe
	tombstones  int64            // changes when one is left or closed
	graves      map[int32]*grave // of workspaces in which anybody was forgotten
	erasing     []erasure        // that the lane has to do its part in, by id
	eraseAt     time.Time        // not before: one went wrong
	definitions map[int32]*Definitions
	fingerprint string                   // of the definitions
	segments    map[int64]*laneSegment   // how far the lane is with each
	building    []*laneSegment           // those with something left to do, by id
	behaviours  map[int32]*laneBehaviour // what the lane folds
	behind      []int32                  // those that are not complete, by id
	computing   []computing              // computed traits that are not live
	state       *State
	heard       []int64             // the last number applied of each lane's outbox
	outstanding int64               // rows of the outbox
	parts       map[arrivalKey]part // what is still added to of what has arrived
	cleared     time.Time           // when those that were heard were last looked for
	asOf        time.Time           // all that was accepted up to then is applied; zero: not known
	nextDue     time.Time           // no profile but those in due is due before; zero: not known
	due         []Ref               // were due when last asked, and are still to be re-evaluated; by key

	allowed                      time.Duration // for a transaction that nobody waits for
	ringing, replaying, sweeping pace
}

// sequences are the last numbers a lane has given out.
type sequences struct{ outbox, archive, transition int64 }

// Result is what came of a batch.
type Result struct {
	Applied, Duplicates, Failed, Suppressed, Quarantined int
	Transitions                                          int
	Outbox                                               []Outgoing // to be published, in this order
}

// Number is the lane's number.
func (l *Lane) Number() int { return l.number }

// Offset is how far the lane is applied.
func (l *Lane) Offset() Offset { return l.offset }

// RunID is the id of the Redis server the lane was last read from; empty if it was never read.
func (l *Lane) RunID() string { return l.runID }

// Until is how long the lane's transactions have renewed its lease for, by this process's clock; zero if they have not.
func (l *Lane) Until() time.Time { return l.until }

// Open takes a lane up under its lease: see [Store.Claim].
func (s *Store) Open(ctx context.Context, lease Lease) (*Lane, error) {
	const query = `
		SELECT turn, offset_ms, offset_seq, redis_run_id, outbox_seq, archive_seq, transition_seq, heard, attempts,
		       coalesce(suspect, '00000000-0000-0000-0000-000000000000'), (SELECT current FROM dedupe_generation)
		FROM lanes
		WHERE lane = $1 AND epoch = $2`
	l := &Lane{
		store:  s,
		number: lease.Lane,
		epoch:  lease.Epoch,
		lease:  lease.TTL,
		log:    s.log.With("lane", lease.Lane),
		state:  NewState(),

		allowed:   10 * time.Millisecond,
		ringing:   pace{least: 100, most: 5000},
		replaying: pace{least: 500, most: 100_000},
		sweeping:  pace{least: 100, most: 5000},
	}
	err := s.pool.QueryRow(ctx, query, l.number, l.epoch).Scan(&l.turn, &l.offset.Ms, &l.offset.Seq, &l.runID, &l.seqs.outbox, &l.seqs.archive,
		&l.seqs.transition, &l.heard, &l.doubt.Attempts, &l.doubt.Suspect, &l.generation)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrFenced
	}
	if err != nil {
		return nil, fmt.Errorf("open lane %d: %w", l.number, err)
	}
	if err := l.Refresh(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// Doubt is what is known of attempts at the batch behind the offset that nobody is known to have survived. There may have
// been one more if the lane was [Lease.Unclean].
type Doubt struct {
	Attempts int
	Suspect  Key // the message that was attempted last; zero if it was a batch
}

// Doubt tells what the lane's last owner left behind.
func (l *Lane) Doubt() Doubt { return l.doubt }

// Attempt notes, durably, that a batch is about to be read or, if message is given, that one message is about to be
// applied. When a message kills the process, the note is what tells the next owner. A message that was not noted last
// starts counting at first.
func (l *Lane) Attempt(ctx context.Context, message *Key, first int) error {
	const query = `
		UPDATE lanes
		SET attempts = CASE WHEN @message::uuid IS NULL OR suspect = @message THEN attempts + 1 ELSE @first END,
		    suspect  = coalesce(@message, suspect)
		WHERE lane = @lane AND epoch = @epoch
		RETURNING attempts, coalesce(suspect, '00000000-0000-0000-0000-000000000000')`
	err := l.store.pool.QueryRow(ctx, query, pgx.StrictNamedArgs{
		"lane": l.number, "epoch": l.epoch, "message": message, "first": first,
	}).Scan(&l.doubt.Attempts, &l.doubt.Suspect)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrFenced
	}
	if err != nil {
		return fmt.Errorf("note attempt at lane %d: %w", l.number, err)
	}
	return nil
}

// Survived takes the last attempt back: it failed, but not because the process died of it.
func (l *Lane) Survived(ctx context.Context) error {
	const query = `
		UPDATE lanes
		SET attempts = greatest(attempts - 1, 0)
		WHERE lane = $1 AND epoch = $2
		RETURNING attempts`
	err := l.store.pool.QueryRow(ctx, query, l.number, l.epoch).Scan(&l.doubt.Attempts)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrFenced
	}
	if err != nil {
		return fmt.Errorf("take back attempt at lane %d: %w", l.number, err)
	}
	return nil
}

// Trust ends the doubt: what was counted is forgotten.
func (l *Lane) Trust(ctx context.Context) error {
	const query = `UPDATE lanes SET attempts = 0, suspect = NULL WHERE lane = $1 AND epoch = $2`
	tag, err := l.store.pool.Exec(ctx, query, l.number, l.epoch)
	if err != nil {
		return fmt.Errorf("trust lane %d: %w", l.number, err)
	}
	if tag.RowsAffected() == 0 {
		return ErrFenced
	}
	l.doubt = Doubt{}
	return nil
}

// Unheard returns the outbox messages that were committed but perhaps never published, oldest first: all that their
// targets have not applied.
func (l *Lane) Unheard(ctx context.Context) ([]Outgoing, error) {
	const query = `
		SELECT o.seq, o.target, o.message
		FROM outbox AS o
		LEFT JOIN lanes AS t ON t.lane = o.target
		WHERE o.lane = $1 AND o.seq > coalesce(t.heard[$1 + 1], 0)
		ORDER BY o.seq`
	rows, _ := l.store.pool.Query(ctx, query, l.number)
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o Outgoing, err error) {
		var packed []byte
		if err := row.Scan(&o.Seq, &o.Target, &packed); err != nil {
			return o, err
		}
		o.Message, err = DecodeMessage(packed)
		return o, err
	})
	if err != nil {
		return nil, fmt.Errorf("read outbox of lane %d: %w", l.number, err)
	}
	const count = `SELECT count(*) FROM outbox WHERE lane = $1` // those that were heard are to go, too
	if err := l.store.pool.QueryRow(ctx, count, l.number).Scan(&l.outstanding); err != nil {
		return nil, fmt.Errorf("count outbox of lane %d: %w", l.number, err)
	}
	return out, nil
}

// Tidy removes what its targets have heard from the outbox, if there is anything. It is for lanes that have no batch to do.
func (l *Lane) Tidy(ctx context.Context) error {
	if !l.clears() {
		return nil
	}
	_, err := l.commit(ctx, work{})
	return err
}

// Apply applies a batch in one transaction: dedupe, identity, profiles, memberships, archive, activation, counters and
// the offset happen together or not at all. Messages that were applied before are skipped, so a batch may be applied
// again after any doubt. A message that cannot be applied is kept among the failed events, in the same transaction; its
// neighbours are applied. Any error but [ErrFenced] is worth another try with the same batch.
func (l *Lane) Apply(ctx context.Context, b Batch) (Result, error) {
	if err := l.know(ctx, b.Messages); err != nil {
		return Result{}, err
	}
	w := work{messages: b.Messages, reread: b.Reread, broken: b.Broken, poison: b.Poison, until: b.Until, asOf: b.AsOf}
	res, err := l.commit(ctx, w)
	if isPoison(err) {
		l.log.WarnContext(ctx, "a message was refused by the database, looking for it", "messages", len(b.Messages), "err", err)
		w.split = true
		res, err = l.commit(ctx, w)
	}
	return res, err
}

// know makes sure that every message's workspace is among the definitions, since a new one may not be yet.
func (l *Lane) know(ctx context.Context, messages []Message) error {
	for i := range messages {
		if l.definitions[messages[i].Workspace] == nil {
			return l.Refresh(ctx)
		}
	}
	return nil
}

// CaughtUp says that all that was accepted up to t is applied. The lane's next transaction notes it, whatever it does: one
// that is busy with timers and builds is passed over by [Store.CaughtUp].
func (l *Lane) CaughtUp(t time.Time) { l.asOf = t }

// Allow says how long a transaction of [Lane.Ring] or [Lane.Build] may take from now on, since the lane's messages wait
// for it: they do no more in one than fits, by what the last ones took. It is 10 ms unless something else is said.
func (l *Lane) Allow(d time.Duration) { l.allowed = d }

// Ring re-evaluates profiles in which a membership may have changed by itself, as many as [Lane.Allow] lets it, and
// returns how many there were. Calling it with nothing due costs nothing.
func (l *Lane) Ring(ctx context.Context, now time.Time) (int, Result, error) {
	if len(l.due) == 0 {
		if !l.nextDue.IsZero() && now.Before(l.nextDue) {
			return 0, Result{}, nil
		}
		if err := l.findDue(ctx, now); err != nil {
			return 0, Result{}, err
		}
		if len(l.due) == 0 {
			return 0, Result{}, l.findNextDue(ctx)
		}
	}
	due := l.due[:min(len(l.due), l.ringing.next(l.allowed))]
	began := time.Now()
	res, err := l.commit(ctx, work{due: due, now: now})
	if IsBug(err) {
		res, err = l.ringApart(ctx, due, now, err)
	}
	if err != nil {
		return 0, res, err
	}
	l.ringing.took(len(due), time.Since(began))
	l.due = l.due[len(due):]
	return len(due), res, nil
}

// findDue reads which profiles are due, many at once: the index goes on holding those that were re-evaluated a moment ago,
// and passing over them for every chunk would take longer and longer. In the order of their keys a chunk of them touches
// fewer pages.
func (l *Lane) findDue(ctx context.Context, now time.Time) error {
	const query = `
		SELECT workspace_id, id, due_at
		FROM profiles
		WHERE lane = $1 AND due_at >= $2 AND due_at <= $3
		ORDER BY due_at
		LIMIT $4`
	const most = 2000 // a few milliseconds
	last := now
	var ref Ref
	var due []Ref
	rows, _ := l.store.pool.Query(ctx, query, l.number, l.nextDue, now, most)
	_, err := pgx.ForEachRow(rows, []any{&ref.Workspace, &ref.Key, &last}, func() error {
		due = append(due, ref)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read due profiles of lane %d: %w", l.number, err)
	}
	slices.SortFunc(due, compareRefs)
	if l.due = due; len(due) == most {
		l.nextDue = last
	}
	return nil
}

// ringApart re-evaluates due profiles in halves, until those that cannot be stand alone. They are put off, so that they
// hold up neither the others nor the lane's events.
func (l *Lane) ringApart(ctx context.Context, due []Ref, now time.Time, why error) (Result, error) {
	if len(due) == 1 {
		const query = `UPDATE profiles SET due_at = $4 WHERE lane = $1 AND workspace_id = $2 AND id = $3`
		l.log.ErrorContext(ctx, "a profile cannot be re-evaluated, will try again", "profile", due[0].Key, "in", putOff, "err", why)
		return l.commit(ctx, work{also: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, query, l.number, due[0].Workspace, due[0].Key, now.Add(putOff))
			return err
		}})
	}
	var sum Result
	for _, half := range [][]Ref{due[:len(due)/2], due[len(due)/2:]} {
		res, err := l.commit(ctx, work{due: half, now: now})
		if IsBug(err) {
			res, err = l.ringApart(ctx, half, now, err)
		}
		if err != nil {
			return sum, err
		}
		sum.Transitions += res.Transitions
	}
	return sum, nil
}

// putOff is for how long a profile that cannot be re-evaluated is left alone.
const putOff = time.Minute

// NextDue is the earliest moment at which [Lane.Ring] may find something.
func (l *Lane) NextDue() time.Time { return l.nextDue }

func (l *Lane) findNextDue(ctx context.Context) error {
	const query = `SELECT due_at FROM profiles WHERE lane = $1 AND due_at IS NOT NULL ORDER BY due_at LIMIT 1`
	var next time.Time
	err := l.store.pool.QueryRow(ctx, query, l.number).Scan(&next)
	if errors.Is(err, pgx.ErrNoRows) {
		next, err = time.UnixMilli(math.MaxInt64/2), nil
	}
	if err != nil {
		return fmt.Errorf("read next due profile of lane %d: %w", l.number, err)
	}
	l.nextDue = next
	return nil
}

// SetRunID notes which Redis the lane is read from, when that has changed.
func (l *Lane) SetRunID(ctx context.Context, runID string) error {
	const query = `UPDATE lanes SET redis_run_id = $3 WHERE lane = $1 AND epoch = $2`
	tag, err := l.store.pool.Exec(ctx, query, l.number, l.epoch, runID)
	if err != nil {
		return fmt.Errorf("note the Redis of lane %d: %w", l.number, err)
	}
	if tag.RowsAffected() == 0 {
		return ErrFenced
	}
	l.runID = runID
	return nil
}

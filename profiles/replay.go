package profiles

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/profiles/rule"
)

// How a behaviour comes to be counted for what is already there, whoever asked for it: a segment or a computed trait.
//
// Between two µbatches a lane takes up a behaviour that is new to it: it notes where its archive ends, folds the behaviour
// from the next event on, and replays its archive up to that point, in chunks. What belongs to people in other lanes is
// sent there; what has moved on meanwhile is sent on. So nobody knows all before two rounds are over: first every lane
// replays and publishes what came of it, then every lane applies what it got and publishes what came of that.

// The phases of a lane with a behaviour, in their order. Each is noted only once everything before it is published.
const (
	behaviourReplaying = "replaying"
	behaviourReplayed  = "replayed" // its own archive
	behaviourSettled   = "settled"  // what the others had replayed, too
	behaviourComplete  = "complete" // and what came of that: the lane's profiles know all
)

// chunks bound what one transaction of a build does, however fast it seems to go: see [pace].
type chunks struct {
	replay int   // archived events to fold
	span   int64 // archived events to look at
	sweep  int   // profiles to evaluate
}

var defaultChunks = chunks{replay: 5000, span: 100_000, sweep: 5000}

// laneBehaviour is a behaviour that a lane folds.
type laneBehaviour struct {
	Behaviour
	workspace     int32
	phase         string
	replayed, cut int64
	since         time.Time // when every lane was first seen to be as far as this phase; zero: not yet
}

// takeUpBehaviours begins every behaviour that is new to the lane, and forgets those that are retired.
func (l *Lane) takeUpBehaviours(ctx context.Context, tx pgx.Tx) error {
	const begin = `
		INSERT INTO lane_behaviours (lane, behaviour_id, cut_seq, replayed_seq)
		SELECT @lane, b.id, @cut, 0
		FROM behaviours AS b
		WHERE NOT b.retired
		  AND NOT EXISTS (SELECT FROM lane_behaviours AS k WHERE k.lane = @lane AND k.behaviour_id = b.id)`
	const forget = `
		DELETE FROM lane_behaviours AS k
		USING behaviours AS b
		WHERE k.lane = @lane AND b.id = k.behaviour_id AND b.retired`
	batch := &pgx.Batch{}
	batch.Queue(begin, pgx.StrictNamedArgs{"lane": l.number, "cut": l.seqs.archive})
	batch.Queue(forget, pgx.StrictNamedArgs{"lane": l.number})
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("take up behaviours at lane %d: %w", l.number, err)
	}
	return nil
}

// readBehaviours reads what the lane folds, in the order of the ids, and by workspace what is counted no more.
func (l *Lane) readBehaviours(ctx context.Context, tx pgx.Tx) (folded map[int32]*laneBehaviour, ids []int32, retired map[int32]map[int32]bool, err error) {
	const query = `
		SELECT b.id, b.workspace_id, b.definition, b.keep, k.phase, k.replayed_seq, k.cut_seq
		FROM behaviours AS b
		JOIN lane_behaviours AS k ON k.behaviour_id = b.id
		WHERE k.lane = $1 AND NOT b.retired
		ORDER BY b.id`
	const gone = `SELECT id, workspace_id FROM behaviours WHERE retired`
	rows, _ := tx.Query(ctx, query, l.number) // err: below
	folded = map[int32]*laneBehaviour{}
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
		b := &laneBehaviour{}
		var definition []byte
		var keep int
		if err := row.Scan(&b.ID, &b.workspace, &definition, &keep, &b.phase, &b.replayed, &b.cut); err != nil {
			return struct{}{}, err
		}
		if known := l.behaviours[b.ID]; known != nil && known.phase == b.phase {
			b.since = known.since
		}
		var err error
		b.Behaviour.Behaviour, err = rule.ParseBehaviour(definition, keep)
		folded[b.ID], ids = b, append(ids, b.ID)
		return struct{}{}, err
	})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read behaviours: %w", err)
	}
	retired = map[int32]map[int32]bool{}
	var id, workspace int32
	rows, _ = tx.Query(ctx, gone) // err: below
	_, err = pgx.ForEachRow(rows, []any{&id, &workspace}, func() error {
		if retired[workspace] == nil {
			retired[workspace] = map[int32]bool{}
		}
		retired[workspace][id] = true
		return nil
	})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read retired behaviours: %w", err)
	}
	return folded, ids, retired, nil
}

// complete tells whether the lane's profiles know all that there is to know of the behaviours.
func (l *Lane) complete(behaviours []int32) bool {
	for _, id := range behaviours {
		if b := l.behaviours[id]; b == nil || b.phase != behaviourComplete {
			return false
		}
	}
	return true
}

// catchUp brings the lane's behaviours on: those in the archive by a chunk, those that wait for other lanes by a phase.
func (l *Lane) catchUp(ctx context.Context, upTo time.Time) (worked bool, res Result, err error) {
	worked, err = l.passBehaviours(ctx, upTo)
	if worked || err != nil {
		return worked, Result{}, err
	}
	return l.replayChunk(ctx)
}

// passBehaviours moves behaviours to their next phase, as far as they may go there.
func (l *Lane) passBehaviours(ctx context.Context, upTo time.Time) (bool, error) {
	var waiting []int32
	next := map[string][]int32{}
	for _, id := range l.behind {
		switch b := l.behaviours[id]; {
		case b.phase != behaviourReplaying:
			waiting = append(waiting, id)
		case b.replayed >= b.cut:
			next[behaviourReplayed] = append(next[behaviourReplayed], id)
		}
	}
	if len(waiting) > 0 {
		if err := l.await(ctx, waiting); err != nil {
			return false, err
		}
	}
	for _, id := range waiting {
		b := l.behaviours[id]
		if b.since.IsZero() || !upTo.After(b.since) {
			continue // what the others had for this lane is not all applied yet
		}
		phase := behaviourSettled
		if b.phase == behaviourSettled {
			phase = behaviourComplete
		}
		next[phase] = append(next[phase], id)
	}
	if len(next) == 0 {
		return false, nil
	}
	const pass = `UPDATE lane_behaviours SET phase = @phase WHERE lane = @lane AND behaviour_id = ANY (@ids)`
	_, err := l.commit(ctx, work{also: func(ctx context.Context, tx pgx.Tx) error {
		for phase, ids := range next {
			if _, err := tx.Exec(ctx, pass, pgx.StrictNamedArgs{"phase": phase, "lane": l.number, "ids": ids}); err != nil {
				return fmt.Errorf("pass behaviours at lane %d: %w", l.number, err)
			}
		}
		return nil
	}})
	if err != nil {
		return false, err
	}
	for phase, ids := range next {
		for _, id := range ids {
			l.behaviours[id].phase, l.behaviours[id].since = phase, time.Time{}
		}
	}
	l.findBehind()
	return true, nil
}

// await notes which behaviours every lane has brought as far as this one.
func (l *Lane) await(ctx context.Context, ids []int32) error {
	const query = `
		SELECT behaviour_id, count(*) FILTER (WHERE phase <> 'replaying'),
		       count(*) FILTER (WHERE phase IN ('settled', 'complete'))
		FROM lane_behaviours
		WHERE lane = ANY (@lanes) AND behaviour_id = ANY (@ids)
		GROUP BY behaviour_id`
	rows, _ := l.store.pool.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(l.store.lanes), "ids": ids}) // err: below
	now := time.Now()
	var id int32
	var replayed, settled int
	_, err := pgx.ForEachRow(rows, []any{&id, &replayed, &settled}, func() error {
		b := l.behaviours[id]
		reached := b.phase == behaviourReplayed && replayed == l.store.lanes ||
			b.phase == behaviourSettled && settled == l.store.lanes
		if reached && b.since.IsZero() {
			b.since = now
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("ask how far behaviours are: %w", err)
	}
	return nil
}

// replayChunk folds the next part of the archive for behaviours that have not seen all of it. Those that are equally far
// go together; those that are furthest go first, so that new ones do not hold them up. Where a lane ends, another owner
// goes on: how far it is belongs to the transaction that folds.
func (l *Lane) replayChunk(ctx context.Context) (bool, Result, error) {
	var first *laneBehaviour
	for _, id := range l.behind {
		if b := l.behaviours[id]; b.replayed < b.cut && (first == nil || b.replayed > first.replayed) {
			first = b
		}
	}
	if first == nil {
		return false, Result{}, nil
	}
	replay := &Replay{Workspace: first.workspace, Behaviours: map[string][]*Behaviour{}}
	from, to := first.replayed, first.cut
	var ids []int32
	var names []string
	for _, id := range l.behind {
		b := l.behaviours[id]
		if b.workspace != first.workspace || b.replayed != from || b.replayed >= b.cut {
			continue
		}
		to = min(to, b.cut)
		replay.Behaviours[b.Event] = append(replay.Behaviours[b.Event], &b.Behaviour)
		ids, names = append(ids, id), append(names, b.Event)
	}
	began := time.Now()
	span := min(l.store.chunks.span, int64(l.replaying.next(l.allowed)))
	to, err := l.readArchive(ctx, replay, names, from, min(to, from+span))
	if err != nil {
		return false, Result{}, err
	}
	const progress = `UPDATE lane_behaviours SET replayed_seq = @to WHERE lane = @lane AND behaviour_id = ANY (@ids)`
	res, err := l.commit(ctx, work{replay: replay, also: func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, progress, pgx.StrictNamedArgs{"to": to, "lane": l.number, "ids": ids})
		return err
	}})
	if err != nil {
		return false, Result{}, err
	}
	l.replaying.took(int(to-from), time.Since(began))
	for _, id := range ids {
		l.behaviours[id].replayed = to
	}
	return true, res, nil
}

// readArchive adds the next archived events with one of the names to a replay, and returns up to where it has read. One
// that cannot be read holds up neither the build nor the lane.
func (l *Lane) readArchive(ctx context.Context, r *Replay, names []string, from, to int64) (int64, error) {
	const query = `
		SELECT seq, key, event_at, name, payload
		FROM events
		WHERE lane = @lane AND workspace_id = @workspace AND seq > @from AND seq <= @to AND name = ANY (@names)
		ORDER BY seq
		LIMIT @limit`
	rows, _ := l.store.pool.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"lane": l.number, "workspace": r.Workspace, "from": from, "to": to, "names": names, "limit": l.store.chunks.replay,
	})
	var seq int64
	var e Replayed
	var at time.Time
	var payload []byte
	read := 0
	_, err := pgx.ForEachRow(rows, []any{&seq, &e.Key, &at, &e.Name, &payload}, func() error {
		e.At = at.UnixMilli()
		read++
		decoded, err := DecodeEvent(payload)
		if err != nil { // it could be read when it was applied
			l.log.ErrorContext(ctx, "an archived event cannot be read, it is left out of the replay", "seq", seq, "err", err)
			return nil
		}
		e.Properties = decoded.Properties
		r.Events = append(r.Events, e)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read archive of lane %d: %w", l.number, err)
	}
	if read == l.store.chunks.replay {
		return seq, nil
	}
	return to, nil
}

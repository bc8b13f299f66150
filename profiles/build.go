package profiles

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/profiles/rule"
)

// How a segment comes true for what is already there.
//
// Between two µbatches a lane takes up the new version of a rule: it notes where its archive ends, folds the behaviours
// that are new to it from the next event on, and replays its archive for them up to that point, in chunks. When every lane
// has done so, each evaluates its profiles, as soon as it has applied what the others' archives had for it. From then on the new version answers in that lane; the one difference between
// the old answers and the new is what is emitted. A deleted segment goes the same way, with nobody in it.

// The phases of a lane with a segment's version, in their order.
const (
	phaseReplaying  = "replaying"
	phaseReady      = "ready"
	phaseEvaluating = "evaluating"
	phaseDone       = "done"
)

// building is a segment's version that a lane has not finished.
type building struct {
	segment   int64
	workspace int32
	version   int // 0: deleted
	first     bool
	phase     string
	cursor    Key
	allReady  time.Time // when every lane was first seen to be ready; zero: not yet
}

// definition is a row of segments as lanes need it.
type definition struct {
	ID             int64
	Workspace      int32
	Version        int
	Deleting       bool
	Rule           []byte
	Behaviours     []int32
	LiveVersion    int
	LiveRule       []byte
	LiveBehaviours []int32
}

// Fingerprint changes whenever a definition does. It is cheap: ask often, and [Lane.Refresh] when it changed.
func (s *Store) Fingerprint(ctx context.Context) (string, error) {
	const query = `
		SELECT concat_ws(' ', (SELECT count(*) FROM workspaces), count(*), sum(id), sum(revision), sum(version),
		                 sum(live_version), count(*) FILTER (WHERE deleting))
		FROM segments`
	var f string
	if err := s.pool.QueryRow(ctx, query).Scan(&f); err != nil {
		return "", fmt.Errorf("read fingerprint of definitions: %w", err)
	}
	return f, nil
}

// Fingerprint is that of the definitions the lane goes by.
func (l *Lane) Fingerprint() string { return l.fingerprint }

// Refresh reads the definitions anew, and takes up those that are new to the lane. The cut is exact: it happens in a
// transaction of the lane, between two µbatches.
func (l *Lane) Refresh(ctx context.Context) error {
	fingerprint, err := l.store.Fingerprint(ctx)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, l.store.pool, func(tx pgx.Tx) error {
		if err := l.fence(ctx, tx); err != nil {
			return err
		}
		if err := l.load(ctx, tx); err != nil {
			return err
		}
		const turn = `UPDATE lanes SET turn = turn + 1 WHERE lane = $1`
		_, err := tx.Exec(ctx, turn, l.number)
		return err
	})
	if err != nil {
		return err
	}
	l.fingerprint = fingerprint
	l.turn++
	return nil
}

func (l *Lane) load(ctx context.Context, tx pgx.Tx) error {
	segments, err := readDefinitions(ctx, tx)
	if err != nil {
		return err
	}
	if err := l.takeUp(ctx, tx, segments); err != nil {
		return err
	}

	const phases = `SELECT segment_id, version, phase, cursor, live_version FROM lane_segments WHERE lane = $1`
	type laneSegment struct {
		Segment     int64
		Version     int
		Phase       string
		Cursor      Key
		LiveVersion int
	}
	rows, _ := tx.Query(ctx, phases, l.number)
	states, err := pgx.CollectRows(rows, pgx.RowToStructByPos[laneSegment])
	if err != nil {
		return fmt.Errorf("read segments of lane %d: %w", l.number, err)
	}
	bySegment := map[int64]laneSegment{}
	for _, st := range states {
		bySegment[st.Segment] = st
	}

	behaviours, err := l.readBehaviours(ctx, tx)
	if err != nil {
		return err
	}
	const workspaces = `SELECT id, secret FROM workspaces`
	type workspace struct {
		ID     int32
		Secret []byte
	}
	rows, _ = tx.Query(ctx, workspaces)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[workspace])
	if err != nil {
		return fmt.Errorf("read workspaces: %w", err)
	}

	evaluated := map[int32][]*Segment{}
	l.building = map[int64]*building{}
	for _, d := range segments {
		st := bySegment[d.ID]
		text, ids, version := d.Rule, d.Behaviours, d.Version
		if st.Phase == phaseReplaying || st.Phase == phaseReady {
			text, ids, version = d.LiveRule, d.LiveBehaviours, d.LiveVersion
		}
		if st.Phase != phaseDone || d.LiveVersion != d.Version || d.Deleting {
			l.building[d.ID] = &building{
				segment: d.ID, workspace: d.Workspace, version: st.Version, first: st.LiveVersion == 0, phase: st.Phase, cursor: st.Cursor,
			}
		}
		if version == 0 || d.Deleting && (st.Phase == phaseEvaluating || st.Phase == phaseDone) {
			continue
		}
		r, err := rule.Parse(text)
		if err != nil {
			return fmt.Errorf("parse rule of segment %d: %w", d.ID, err)
		}
		evaluated[d.Workspace] = append(evaluated[d.Workspace], &Segment{ID: d.ID, Version: version, Rule: r, Behaviours: ids})
	}
	l.definitions = map[int32]*Definitions{}
	for _, w := range all {
		l.definitions[w.ID] = NewDefinitions(w.ID, w.Secret, behaviours[w.ID], evaluated[w.ID])
	}
	return nil
}

func readDefinitions(ctx context.Context, tx pgx.Tx) ([]definition, error) {
	const query = `
		SELECT id, workspace_id, version, deleting, rule, behaviours, live_version, live_rule, live_behaviours
		FROM segments
		ORDER BY id`
	rows, _ := tx.Query(ctx, query)
	segments, err := pgx.CollectRows(rows, pgx.RowToStructByPos[definition])
	if err != nil {
		return nil, fmt.Errorf("read segments: %w", err)
	}
	return segments, nil
}

// takeUp begins, in this lane, every version that it does not know yet.
func (l *Lane) takeUp(ctx context.Context, tx pgx.Tx, segments []definition) error {
	const behaviours = `
		INSERT INTO lane_behaviours (lane, behaviour_id, cut_seq, replayed_seq)
		SELECT @lane, id, @cut, 0 FROM unnest(@ids::integer[]) AS t (id)
		ON CONFLICT (lane, behaviour_id) DO NOTHING`
	const phase = `
		INSERT INTO lane_segments AS s (lane, segment_id, version, phase)
		VALUES (@lane, @segment, @version, 'replaying')
		ON CONFLICT (lane, segment_id) DO UPDATE
		SET version = excluded.version, phase = excluded.phase, cursor = '00000000-0000-0000-0000-000000000000'
		WHERE s.version <> excluded.version`
	batch := &pgx.Batch{}
	for _, d := range segments {
		version := d.Version
		if d.Deleting {
			version = 0
		} else {
			batch.Queue(behaviours, pgx.StrictNamedArgs{"lane": l.number, "cut": l.seqs.archive, "ids": d.Behaviours})
		}
		batch.Queue(phase, pgx.StrictNamedArgs{"lane": l.number, "segment": d.ID, "version": version})
	}
	if batch.Len() == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("take up segments at lane %d: %w", l.number, err)
	}
	return nil
}

// readBehaviours returns what the lane folds, by workspace.
func (l *Lane) readBehaviours(ctx context.Context, tx pgx.Tx) (map[int32][]*Behaviour, error) {
	const query = `
		SELECT b.id, b.workspace_id, b.definition, b.keep
		FROM behaviours AS b
		JOIN lane_behaviours AS l ON l.behaviour_id = b.id
		WHERE l.lane = $1 AND NOT b.retired
		ORDER BY b.id`
	rows, _ := tx.Query(ctx, query, l.number)
	byWorkspace := map[int32][]*Behaviour{}
	var id, workspace int32
	var definition []byte
	var keep int
	_, err := pgx.ForEachRow(rows, []any{&id, &workspace, &definition, &keep}, func() error {
		b, err := rule.ParseBehaviour(definition, keep)
		byWorkspace[workspace] = append(byWorkspace[workspace], &Behaviour{ID: id, Behaviour: b})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read behaviours: %w", err)
	}
	return byWorkspace, nil
}

// Building tells whether the lane has segments to build.
func (l *Lane) Building() bool { return len(l.building) > 0 }

// Build does the next chunk of what is to be built, given that all that was in the lane's stream at the moment upTo is
// applied. worked is false if there is nothing this lane can do now; it may have to wait for others. An error that
// [IsBug] is not worth trying again at once, and the lane may go on with other things.
func (l *Lane) Build(ctx context.Context, upTo time.Time) (worked bool, res Result, err error) {
	for _, id := range slices.Sorted(maps.Keys(l.building)) {
		b := l.building[id]
		switch b.phase {
		case phaseReplaying:
			worked, res, err = l.replayChunk(ctx, b)
		case phaseReady:
			worked, err = l.begin(ctx, b, upTo)
		case phaseEvaluating:
			worked, res, err = l.sweepChunk(ctx, b)
		case phaseDone:
			worked, err = l.finish(ctx, b)
		}
		if worked || err != nil {
			return worked, res, err
		}
	}
	return false, Result{}, nil
}

// replayChunk folds the next part of the archive for the behaviours of a segment that have not seen all of it.
func (l *Lane) replayChunk(ctx context.Context, b *building) (bool, Result, error) {
	const pending = `
		SELECT b.id, b.definition, b.keep, l.replayed_seq, l.cut_seq
		FROM segments AS s
		JOIN behaviours AS b ON b.id = ANY (s.behaviours)
		JOIN lane_behaviours AS l ON l.lane = @lane AND l.behaviour_id = b.id
		WHERE s.id = @segment AND NOT s.deleting AND l.replayed_seq < l.cut_seq
		ORDER BY l.replayed_seq, l.cut_seq`
	type behind struct {
		ID            int32
		Definition    []byte
		Keep          int
		Replayed, Cut int64
	}
	rows, _ := l.store.pool.Query(ctx, pending, pgx.StrictNamedArgs{"lane": l.number, "segment": b.segment})
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[behind])
	if err != nil {
		return false, Result{}, fmt.Errorf("read what lane %d has to replay: %w", l.number, err)
	}
	if len(list) == 0 {
		return true, Result{}, l.setPhase(ctx, b, phaseReady)
	}

	// Those that are equally far go together.
	from, cut := list[0].Replayed, list[0].Cut
	replay := &Replay{Workspace: b.workspace, Behaviours: map[string][]*Behaviour{}}
	var ids []int32
	var names []string
	for _, x := range list {
		if x.Replayed != from || x.Cut != cut {
			continue
		}
		parsed, err := rule.ParseBehaviour(x.Definition, x.Keep)
		if err != nil {
			return false, Result{}, fmt.Errorf("parse behaviour %d: %w", x.ID, err)
		}
		replay.Behaviours[parsed.Event] = append(replay.Behaviours[parsed.Event], &Behaviour{ID: x.ID, Behaviour: parsed})
		ids, names = append(ids, x.ID), append(names, parsed.Event)
	}
	began := time.Now()
	to, err := l.readArchive(ctx, replay, names, from, cut)
	if err != nil {
		return false, Result{}, err
	}
	const progress = `UPDATE lane_behaviours SET replayed_seq = @to WHERE lane = @lane AND behaviour_id = ANY (@ids)`
	res, err := l.commit(ctx, work{replay: replay, also: func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, progress, pgx.StrictNamedArgs{"to": to, "lane": l.number, "ids": ids})
		return err
	}})
	if err == nil {
		l.replaying.took(int(to-from), time.Since(began))
	}
	return true, res, err
}

// readArchive looks through the next part of the archive, adds the events with one of the names to a replay, and returns
// up to where it has looked.
func (l *Lane) readArchive(ctx context.Context, r *Replay, names []string, from, cut int64) (int64, error) {
	const query = `
		SELECT key, event_at, name, payload
		FROM events
		WHERE lane = @lane AND workspace_id = @workspace AND seq > @from AND seq <= @to AND name = ANY (@names)
		ORDER BY seq`
	to := min(from+int64(l.replaying.next(l.allowed)), cut)
	rows, _ := l.store.pool.Query(ctx, query, pgx.StrictNamedArgs{
		"lane": l.number, "workspace": r.Workspace, "from": from, "to": to, "names": names,
	})
	var e Replayed
	var at time.Time
	var payload []byte
	_, err := pgx.ForEachRow(rows, []any{&e.Key, &at, &e.Name, &payload}, func() error {
		e.At = at.UnixMilli()
		decoded, err := DecodeEvent(payload)
		if err != nil {
			return err
		}
		e.Properties = decoded.Properties
		r.Events = append(r.Events, e)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read archive of lane %d: %w", l.number, err)
	}
	return to, nil
}

func (l *Lane) setPhase(ctx context.Context, b *building, phase string) error {
	const query = `
		UPDATE lane_segments
		SET phase = @phase, live_version = CASE WHEN @phase = 'done' THEN version ELSE live_version END
		WHERE lane = @lane AND segment_id = @segment AND version = @version`
	_, err := l.commit(ctx, work{also: func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
			"phase": phase, "lane": l.number, "segment": b.segment, "version": b.version,
		})
		return err
	}})
	if err != nil {
		return fmt.Errorf("set phase of segment %d at lane %d: %w", b.segment, l.number, err)
	}
	b.phase = phase
	return nil
}

// begin starts the evaluation once every lane is ready for it. A lane is ready after it has published what it replayed, so
// what this one has to know of the others' archives is in its stream by then.
func (l *Lane) begin(ctx context.Context, b *building, upTo time.Time) (bool, error) {
	const query = `
		SELECT count(*) FROM lane_segments
		WHERE segment_id = $1 AND version = $2 AND phase <> 'replaying'`
	var n int
	if err := l.store.pool.QueryRow(ctx, query, b.segment, b.version).Scan(&n); err != nil {
		return false, fmt.Errorf("ask whether segment %d is ready: %w", b.segment, err)
	}
	if n < l.store.lanes {
		return false, nil
	}
	if b.allReady.IsZero() {
		b.allReady = time.Now()
	}
	if !upTo.After(b.allReady) {
		return false, nil
	}
	if err := l.setPhase(ctx, b, phaseEvaluating); err != nil {
		return false, err
	}
	return true, l.Refresh(ctx) // from here on the new version is the one that µbatches evaluate
}

// sweepChunk evaluates the new version for the next profiles of the lane.
func (l *Lane) sweepChunk(ctx context.Context, b *building) (bool, Result, error) {
	const query = `
		SELECT workspace_id, id
		FROM profiles
		WHERE lane = $1 AND workspace_id = $2 AND id > $3
		ORDER BY id
		LIMIT $4`
	began := time.Now()
	rows, _ := l.store.pool.Query(ctx, query, l.number, b.workspace, b.cursor, l.sweeping.next(l.allowed))
	refs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Ref])
	if err != nil {
		return false, Result{}, fmt.Errorf("read profiles of lane %d: %w", l.number, err)
	}
	if len(refs) == 0 {
		return true, Result{}, l.setPhase(ctx, b, phaseDone)
	}
	cause := CauseEdit
	switch {
	case b.version == 0:
		cause = CauseDelete
	case b.first:
		cause = CauseBuild
	}
	last := refs[len(refs)-1].Key
	const progress = `UPDATE lane_segments SET cursor = @cursor WHERE lane = @lane AND segment_id = @segment AND version = @version`
	sweep := &Sweep{Segment: b.segment, Profiles: refs, Cause: cause}
	res, err := l.commit(ctx, work{sweep: sweep, also: func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, progress, pgx.StrictNamedArgs{
			"cursor": last, "lane": l.number, "segment": b.segment, "version": b.version,
		})
		return err
	}})
	if err == nil {
		b.cursor = last
		l.sweeping.took(len(refs), time.Since(began))
	}
	return true, res, err
}

// finish makes a version the live one, or takes a deleted segment away, once every lane is done.
func (l *Lane) finish(ctx context.Context, b *building) (bool, error) {
	const count = `SELECT count(*) FROM lane_segments WHERE segment_id = $1 AND version = $2 AND phase = 'done'`
	const live = `
		UPDATE segments
		SET live_version = version, live_rule = rule, live_behaviours = behaviours
		WHERE id = $1 AND version = $2 AND live_version <> version AND NOT deleting`
	var n int
	if err := l.store.pool.QueryRow(ctx, count, b.segment, b.version).Scan(&n); err != nil {
		return false, fmt.Errorf("ask whether segment %d is done: %w", b.segment, err)
	}
	if n < l.store.lanes {
		return false, nil
	}
	if b.version == 0 {
		if err := l.store.removeSegment(ctx, b.segment); err != nil {
			return false, err
		}
	} else if _, err := l.store.pool.Exec(ctx, live, b.segment, b.version); err != nil {
		return false, fmt.Errorf("make segment %d live: %w", b.segment, err)
	}
	return true, l.Refresh(ctx)
}

// removeSegment takes away what is left of a segment that nobody is in any more. Its transitions stay.
func (s *Store) removeSegment(ctx context.Context, id int64) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := s.activation.SegmentDeleted(ctx, tx, id); err != nil {
			return err
		}
		var deleting bool
		const lock = `SELECT deleting FROM segments WHERE id = $1 FOR UPDATE`
		err := tx.QueryRow(ctx, lock, id).Scan(&deleting)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && !deleting {
			return nil
		}
		if err != nil {
			return err
		}
		for _, query := range []string{
			`DELETE FROM segment_counts WHERE segment_id = $1`,
			`DELETE FROM segment_days WHERE segment_id = $1`,
			`DELETE FROM lane_segments WHERE segment_id = $1`,
			`DELETE FROM segments WHERE id = $1`,
		} {
			if _, err := tx.Exec(ctx, query, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove segment %d: %w", id, err)
	}
	return nil
}

package profiles

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/profiles/rule"
)

// How a segment comes true for what is already there.
//
// A lane evaluates one version of each segment. It takes up a newer one between two µbatches, waits until its profiles know
// all that there is to know of the version's behaviours, and until the segments that the rule refers to follow their
// newest versions. Then it switches: from the next µbatch on the new version is what it evaluates, and it goes through its
// profiles once. What they have been before makes the one difference that is emitted, whichever versions came between.
// When every lane has done so the version is live. A deleted segment goes the same way, with nobody in it.

// The phases of a lane with a segment's version, in their order.
const (
	phaseReplaying  = "replaying" // waits for its behaviours
	phaseReady      = "ready"     // waits for other segments
	phaseEvaluating = "evaluating"
	phaseDone       = "done"
)

// laneSegment is how far a lane is with a segment.
type laneSegment struct {
	id        int64
	key       string
	workspace int32
	newest    int // version; 0: deleted
	live      int // version that every lane has followed to its end; 0: none

	version    int     // on its way to be the one that is followed; 0: deleted
	behaviours []int32 // of version
	refersTo   []int64 // by version
	phase      string
	cursor     Key // profiles up to here are evaluated
	followed   int // version that the lane's memberships follow; 0: none
	following  []int64
}

// settled tells whether the lane has nothing left to do for the newest version.
func (s *laneSegment) settled() bool { return s.phase == phaseDone && s.version == s.newest }

// Fingerprint changes whenever there is something new for lanes to take up. It is cheap: ask often, and [Lane.Refresh] when
// it changed.
func (s *Store) Fingerprint(ctx context.Context) (string, error) {
	const query = `
		SELECT concat_ws(' ', (SELECT count(*) FROM workspaces), s.*, c.*, b.*, e.*)
		FROM (SELECT concat_ws(' ', count(*), sum(id), sum(revision), sum(version), sum(live_version),
		                       count(*) FILTER (WHERE deleting)) FROM segments) AS s,
		     (SELECT concat_ws(' ', count(*), sum(id), sum(revision), sum(version), sum(live_version))
		      FROM computed_traits) AS c,
		     (SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE retired)) FROM behaviours) AS b,
		     (SELECT concat_ws(' ', count(*), sum(id), sum(round)) FROM erasures WHERE completed_at IS NULL AND erased_at IS NULL) AS e`
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

// load takes up what is new and reads what the lane goes by. Whoever changes definitions does not wait for it, so what is
// read last may be newer: segments are taken up before behaviours, so that none is without its own.
func (l *Lane) load(ctx context.Context, tx pgx.Tx) error {
	if err := l.takeUpSegments(ctx, tx); err != nil {
		return err
	}
	if err := l.takeUpBehaviours(ctx, tx); err != nil {
		return err
	}
	segments, evaluated, err := l.readSegments(ctx, tx)
	if err != nil {
		return err
	}
	behaviours, folded, retired, err := l.readBehaviours(ctx, tx)
	if err != nil {
		return err
	}
	computing, err := readComputing(ctx, tx)
	if err != nil {
		return err
	}
	const workspaces = `SELECT id, secret FROM workspaces`
	type workspace struct {
		ID     int32
		Secret []byte
	}
	rows, _ := tx.Query(ctx, workspaces) // err: below
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[workspace])
	if err != nil {
		return fmt.Errorf("read workspaces: %w", err)
	}

	byWorkspace := map[int32][]*Behaviour{}
	for _, id := range folded {
		b := behaviours[id]
		byWorkspace[b.workspace] = append(byWorkspace[b.workspace], &b.Behaviour)
	}
	definitions := map[int32]*Definitions{}
	for _, w := range all {
		definitions[w.ID] = NewDefinitions(w.ID, w.Secret, byWorkspace[w.ID], evaluated[w.ID])
		definitions[w.ID].retired = retired[w.ID]
	}
	l.definitions, l.behaviours, l.computing = definitions, behaviours, computing
	l.segments, l.building = map[int64]*laneSegment{}, nil
	for _, s := range segments {
		l.segments[s.id] = s
		if !s.settled() || s.live != s.newest || s.newest == 0 {
			l.building = append(l.building, s)
		}
	}
	l.findBehind()
	l.erasing, err = l.readErasing(ctx, tx)
	return err
}

// findBehind notes which of the lane's behaviours are not complete, in the order of their ids.
func (l *Lane) findBehind() {
	l.behind = l.behind[:0]
	for id, b := range l.behaviours {
		if b.phase != behaviourComplete {
			l.behind = append(l.behind, id)
		}
	}
	slices.Sort(l.behind)
}

// takeUpSegments begins, in this lane, every version that it does not know yet. What is left of segments that are no more
// goes: a lane that takes one up while the last one is done with its deletion leaves a row behind.
func (l *Lane) takeUpSegments(ctx context.Context, tx pgx.Tx) error {
	const begin = `
		INSERT INTO lane_segments AS k (lane, segment_id, version, phase)
		SELECT @lane, id, CASE WHEN deleting THEN 0 ELSE version END, 'replaying'
		FROM segments
		ORDER BY id
		ON CONFLICT (lane, segment_id) DO UPDATE
		SET version = excluded.version, phase = excluded.phase, cursor = excluded.cursor
		WHERE k.version <> excluded.version`
	const forget = `
		DELETE FROM lane_segments AS k
		WHERE k.lane = @lane AND NOT EXISTS (SELECT FROM segments AS s WHERE s.id = k.segment_id)`
	batch := &pgx.Batch{}
	batch.Queue(begin, pgx.StrictNamedArgs{"lane": l.number})
	batch.Queue(forget, pgx.StrictNamedArgs{"lane": l.number})
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("take up segments at lane %d: %w", l.number, err)
	}
	return nil
}

// readSegments reads how far the lane is with each segment, by id, and by workspace what it evaluates.
func (l *Lane) readSegments(ctx context.Context, tx pgx.Tx) ([]*laneSegment, map[int32][]*Segment, error) {
	const query = `
		SELECT s.id, s.key, s.workspace_id, CASE WHEN s.deleting THEN 0 ELSE s.version END, s.live_version,
		       k.version, next.behaviours, next.refers_to, k.phase, k.cursor,
		       k.live_version, now.refers_to, now.rule, now.behaviours
		FROM lane_segments AS k
		JOIN segments AS s ON s.id = k.segment_id
		LEFT JOIN segment_versions AS next ON next.segment_id = s.id AND next.version = k.version
		LEFT JOIN segment_versions AS now ON now.segment_id = s.id AND now.version = k.live_version
		WHERE k.lane = $1
		ORDER BY s.id`
	evaluated := map[int32][]*Segment{}
	rows, _ := tx.Query(ctx, query, l.number) // err: below
	segments, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*laneSegment, error) {
		s := &laneSegment{}
		var text []byte
		var counted []int32
		err := row.Scan(&s.id, &s.key, &s.workspace, &s.newest, &s.live, &s.version, &s.behaviours, &s.refersTo, &s.phase, &s.cursor,
			&s.followed, &s.following, &text, &counted)
		if err != nil || s.followed == 0 {
			return s, err
		}
		r := l.parsed(s)
		if r == nil {
			if r, err = rule.ParseStored(text); err != nil {
				return nil, fmt.Errorf("parse version %d of segment %d: %w", s.followed, s.id, err)
			}
		}
		evaluated[s.workspace] = append(evaluated[s.workspace], &Segment{
			ID: s.id, Key: s.key, Version: s.followed, Rule: r, Behaviours: counted,
		})
		return s, nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read segments of lane %d: %w", l.number, err)
	}
	return segments, evaluated, nil
}

// parsed returns the rule that the lane follows, if it was read before: a version never changes.
func (l *Lane) parsed(s *laneSegment) *rule.Rule {
	if defs := l.definitions[s.workspace]; defs != nil {
		if known := defs.segments[s.id]; known != nil && known.Version == s.followed {
			return known.Rule
		}
	}
	return nil
}

// Building tells whether the lane has something to build.
func (l *Lane) Building() bool {
	return len(l.building)+len(l.behind)+len(l.computing)+len(l.erasing) > 0
}

// Build does the next chunk of what is to be built, given that all that was in the lane's stream at the moment upTo is
// applied, and that all that the lane had for others is published. worked is false if there is nothing this lane can do
// now; it may have to wait for others. An error that [IsBug] is not worth trying again at once, and the lane may go on
// with other things.
func (l *Lane) Build(ctx context.Context, upTo time.Time) (worked bool, res Result, err error) {
	if len(l.erasing) > 0 && !time.Now().Before(l.eraseAt) { // somebody is waiting for it
		return l.eraseChunk(ctx, l.erasing[0])
	}
	for _, s := range l.building {
		if s.phase == phaseEvaluating {
			return l.sweepChunk(ctx, s)
		}
	}
	for _, step := range []func(context.Context) (bool, error){l.beginSegments, l.finishSegments, l.finishComputed} {
		if worked, err = step(ctx); worked || err != nil {
			return worked, Result{}, err
		}
	}
	return l.catchUp(ctx, upTo)
}

// beginSegments switches the lane to the newest versions of the segments that have all they need, and notes which of them
// have to wait for others.
func (l *Lane) beginSegments(ctx context.Context) (bool, error) {
	var ready, begin []int64
	var versions []int32
	for _, s := range l.building {
		switch {
		case s.phase != phaseReplaying && s.phase != phaseReady || !l.complete(s.behaviours):
		case !l.waits(s):
			begin, versions = append(begin, s.id), append(versions, int32(s.version))
		case s.phase == phaseReplaying:
			ready = append(ready, s.id)
		}
	}
	if len(begin)+len(ready) == 0 {
		return false, nil
	}
	const wait = `UPDATE lane_segments SET phase = 'ready' WHERE lane = @lane AND segment_id = ANY (@ready)`
	// Only the newest version is begun, and whoever makes a newer one has to wait for it: a version that no lane follows
	// goes. Nobody who changes a segment holds up the lane.
	const newest = `
		SELECT s.id
		FROM segments AS s
		JOIN unnest(@segments::bigint[], @versions::integer[]) AS t (id, version)
		     ON t.id = s.id AND t.version = CASE WHEN s.deleting THEN 0 ELSE s.version END
		ORDER BY s.id
		FOR SHARE OF s SKIP LOCKED`
	const follow = `
		UPDATE lane_segments
		SET phase = 'evaluating', live_version = version
		WHERE lane = @lane AND segment_id = ANY (@begun)`
	var begun []int64
	_, err := l.commit(ctx, work{also: func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, wait, pgx.StrictNamedArgs{"lane": l.number, "ready": ready}); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, newest, pgx.StrictNamedArgs{"segments": begin, "versions": versions}) // err: below
		var err error
		if begun, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, follow, pgx.StrictNamedArgs{"lane": l.number, "begun": begun})
		return err
	}})
	if err != nil {
		return false, fmt.Errorf("begin segments at lane %d: %w", l.number, err)
	}
	for _, id := range ready {
		l.segments[id].phase = phaseReady
	}
	if len(begun) == 0 {
		return len(ready) > 0, nil
	}
	return true, l.Refresh(ctx) // from here on the new versions are those that µbatches evaluate
}

// waits tells whether other segments have to be brought up first. A rule is evaluated only once all that it refers to, in
// however many steps, follow their newest versions in this lane: so it never takes somebody for no member who is about to
// become one, and what the lane evaluates never goes in a circle, because the newest versions do not. A segment is emptied
// only once nothing in the lane refers to it any more.
func (l *Lane) waits(s *laneSegment) bool {
	if s.version == 0 {
		for _, other := range l.segments {
			if slices.Contains(other.following, s.id) {
				return true
			}
		}
		return false
	}
	seen := map[int64]bool{}
	var unsettled func(ids []int64) bool
	unsettled = func(ids []int64) bool {
		return slices.ContainsFunc(ids, func(id int64) bool {
			if seen[id] {
				return false
			}
			seen[id] = true
			other := l.segments[id]
			return other == nil || !other.settled() || unsettled(other.refersTo)
		})
	}
	return unsettled(s.refersTo)
}

// sweepChunk evaluates the new version for the next profiles of the lane.
func (l *Lane) sweepChunk(ctx context.Context, s *laneSegment) (bool, Result, error) {
	const query = `
		SELECT workspace_id, id
		FROM profiles
		WHERE lane = $1 AND workspace_id = $2 AND id > $3
		ORDER BY id
		LIMIT $4`
	began := time.Now()
	most := min(l.store.chunks.sweep, l.sweeping.next(l.allowed))
	rows, _ := l.store.pool.Query(ctx, query, l.number, s.workspace, s.cursor, most) // err: below
	refs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Ref])
	if err != nil {
		return false, Result{}, fmt.Errorf("read profiles of lane %d: %w", l.number, err)
	}
	if len(refs) == 0 {
		return true, Result{}, l.endSweep(ctx, s)
	}
	cause := CauseEdit
	switch {
	case s.version == 0:
		cause = CauseDelete
	case s.live == 0:
		cause = CauseBuild
	}
	last := refs[len(refs)-1].Key
	const progress = `
		UPDATE lane_segments
		SET cursor = @cursor
		WHERE lane = @lane AND segment_id = @segment AND version = @version`
	sweep := &Sweep{Segment: s.id, Profiles: refs, Cause: cause}
	w := work{sweep: sweep, also: func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, progress, pgx.StrictNamedArgs{
			"cursor": last, "lane": l.number, "segment": s.id, "version": s.version,
		})
		return err
	}}
	res, err := l.commit(ctx, w)
	if errors.Is(err, errCorrupt) {
		if sweep.Profiles, err = l.readable(ctx, refs); err == nil {
			res, err = l.commit(ctx, w)
		}
	}
	if err == nil {
		s.cursor = last
		l.sweeping.took(len(refs), time.Since(began))
	}
	return true, res, err
}

// readable returns those of the profiles whose state can be read. One that cannot be keeps nobody else's segments from being
// built: it stays as it is until somebody has looked at it.
func (l *Lane) readable(ctx context.Context, refs []Ref) ([]Ref, error) {
	const query = `SELECT id, state FROM profiles WHERE lane = $1 AND workspace_id = $2 AND id = ANY ($3)`
	workspace := refs[0].Workspace
	keys := make([]Key, len(refs))
	for i, ref := range refs {
		keys[i] = ref.Key
	}
	rows, _ := l.store.pool.Query(ctx, query, l.number, workspace, keys) // err: below
	var kept []Ref
	var id Key
	var state []byte
	_, err := pgx.ForEachRow(rows, []any{&id, &state}, func() error {
		if _, err := DecodeProfile(id, workspace, state); err != nil {
			l.log.ErrorContext(ctx, "a profile cannot be read and is left out of a build", "profile", id, "err", err)
			return nil
		}
		kept = append(kept, Ref{workspace, id})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read profiles of lane %d: %w", l.number, err)
	}
	return kept, nil
}

func (l *Lane) endSweep(ctx context.Context, s *laneSegment) error {
	const query = `
		UPDATE lane_segments
		SET phase = 'done'
		WHERE lane = @lane AND segment_id = @segment AND version = @version`
	_, err := l.commit(ctx, work{also: func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"lane": l.number, "segment": s.id, "version": s.version})
		return err
	}})
	if err != nil {
		return fmt.Errorf("end sweep of segment %d at lane %d: %w", s.id, l.number, err)
	}
	s.phase = phaseDone
	return nil
}

// finishSegments makes the versions live, or takes the deleted segments away, that every lane is done with.
func (l *Lane) finishSegments(ctx context.Context) (bool, error) {
	const query = `
		SELECT segment_id, version
		FROM lane_segments
		WHERE lane = ANY (@lanes) AND segment_id = ANY (@segments) AND phase = 'done'
		GROUP BY segment_id, version
		HAVING count(*) = cardinality(@lanes::smallint[])`
	var ids []int64
	for _, s := range l.building {
		if s.settled() {
			ids = append(ids, s.id)
		}
	}
	if len(ids) == 0 {
		return false, nil
	}
	type done struct {
		Segment int64
		Version int
	}
	rows, _ := l.store.pool.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(l.store.lanes), "segments": ids}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[done])
	if err != nil {
		return false, fmt.Errorf("ask which segments are done: %w", err)
	}
	finished := false
	for _, f := range list {
		finish := l.store.makeLive
		if f.Version == 0 {
			finish = l.store.removeSegment
		}
		done, err := l.store.undisturbed(ctx, l.segments[f.Segment].workspace, func(tx pgx.Tx) error {
			return finish(ctx, tx, f.Segment, f.Version)
		})
		if err != nil {
			return false, fmt.Errorf("finish version %d of segment %d: %w", f.Version, f.Segment, err)
		}
		finished = finished || done
	}
	if !finished {
		return false, nil
	}
	return true, l.Refresh(ctx)
}

// undisturbed runs do while nobody changes the workspace's definitions, and retires afterwards what is counted for nobody
// any more. done is false if somebody does; then it is to be tried again.
func (s *Store) undisturbed(ctx context.Context, workspace int32, do func(pgx.Tx) error) (done bool, err error) {
	const lock = `SELECT set_config('lock_timeout', '5s', true), pg_try_advisory_xact_lock($1, $2)`
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var timeout string
		if err := tx.QueryRow(ctx, lock, definitionsLock, workspace).Scan(&timeout, &done); err != nil || !done {
			return err
		}
		if err := do(tx); err != nil {
			return err
		}
		return retireBehaviours(ctx, tx, workspace)
	})
	return done && err == nil, err
}

// makeLive notes that the members of a segment follow its newest version everywhere.
func (s *Store) makeLive(ctx context.Context, tx pgx.Tx, segment int64, version int) error {
	const query = `
		UPDATE segments
		SET live_version = version
		WHERE id = $1 AND version = $2 AND live_version <> version AND NOT deleting`
	if _, err := tx.Exec(ctx, query, segment, version); err != nil {
		return err
	}
	return forgetVersions(ctx, tx, segment, s.lanes)
}

// removeSegment takes away what is left of a segment that nobody is in any more. Its transitions stay.
func (s *Store) removeSegment(ctx context.Context, tx pgx.Tx, id int64, _ int) error {
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
		`DELETE FROM segment_counts WHERE lane = ANY ($1) AND segment_id = $2`,
		`DELETE FROM segment_days WHERE lane = ANY ($1) AND segment_id = $2`,
		`DELETE FROM lane_segments WHERE lane = ANY ($1) AND segment_id = $2`,
	} {
		if _, err := tx.Exec(ctx, query, laneList(s.lanes), id); err != nil {
			return err
		}
	}
	const segment = `DELETE FROM segments WHERE id = $1` // and its versions with it
	_, err = tx.Exec(ctx, segment, id)
	return err
}

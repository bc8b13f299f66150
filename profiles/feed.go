package profiles

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Position is a place among transitions: the number of one in each lane. A lane numbers its transitions without a gap, and
// commits them in that order, one transaction after the other. So what lies behind a position stays there, and nothing is
// ever added before one that was read.
type Position []int64

// Start is before the first transition.
func (r *Reader) Start() Position { return make(Position, r.lanes) }

// Present is behind the last transition that there is now.
func (r *Reader) Present(ctx context.Context) (Position, error) {
	const query = `
		SELECT coalesce(l.transition_seq, 0)
		FROM unnest(@lanes::smallint[]) WITH ORDINALITY AS n (lane, i)
		LEFT JOIN lanes AS l USING (lane)
		ORDER BY n.i`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(r.lanes)}) // err: below
	p, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("read how far the lanes are: %w", err)
	}
	return p, nil
}

// Beyond tells whether p is, in any lane, behind q.
func (p Position) Beyond(q Position) bool {
	for lane := range p {
		if p[lane] > q[lane] {
			return true
		}
	}
	return false
}

// After returns the transitions of a segment that lie behind a position, from the oldest on and at most limit of them. From
// [Position.Through] them on there is neither a gap nor a repetition, whatever is committed in the meantime. One lane's
// transitions, and so one person's, are in the order in which they happened; those of several lanes are merged by time.
func (r *Reader) After(ctx context.Context, workspace int32, segment int64, after Position, limit int) ([]Recorded, error) {
	const query = `
		SELECT t.at, t.lane, t.seq, t.segment_id, t.profile_id, t.entered, t.cause, t.cause_source_id, t.cause_message_id
		FROM (
			SELECT t.*, l.lane, max(t.at) OVER (PARTITION BY l.lane ORDER BY t.seq) AS turn -- clocks may be set back
			FROM unnest(@lanes::smallint[], @after::bigint[]) AS l (lane, after)
			CROSS JOIN LATERAL (
				SELECT at, seq, segment_id, profile_id, entered, cause, cause_source_id, cause_message_id
				FROM transitions
				WHERE lane = l.lane AND segment_id = @segment AND workspace_id = @workspace AND seq > l.after
				ORDER BY seq
				LIMIT @limit) AS t) AS t
		ORDER BY t.turn, t.lane, t.seq
		LIMIT @limit`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"workspace": workspace, "segment": segment, "lanes": laneList(r.lanes), "after": []int64(after), "limit": limit,
	})
	list, err := pgx.CollectRows(rows, scanRecorded)
	if err != nil {
		return nil, fmt.Errorf("follow segment %d: %w", segment, err)
	}
	return list, nil
}

// Through returns the position behind all of list, the first of what [Reader.After] has returned of p.
func (p Position) Through(list []Recorded) Position {
	next := slices.Clone(p)
	for _, t := range list {
		next[t.At.Lane] = max(next[t.At.Lane], t.At.Seq)
	}
	return next
}

// Before returns the transitions of a segment up to a position, that included, from the newest on and at most limit of
// them.
func (r *Reader) Before(ctx context.Context, workspace int32, segment int64, upTo Position, limit int) ([]Recorded, error) {
	const query = `
		SELECT t.at, t.lane, t.seq, t.segment_id, t.profile_id, t.entered, t.cause, t.cause_source_id, t.cause_message_id
		FROM (
			SELECT t.*, l.lane, min(t.at) OVER (PARTITION BY l.lane ORDER BY t.seq DESC) AS turn -- clocks may be set back
			FROM unnest(@lanes::smallint[], @up_to::bigint[]) AS l (lane, up_to)
			CROSS JOIN LATERAL (
				SELECT at, seq, segment_id, profile_id, entered, cause, cause_source_id, cause_message_id
				FROM transitions
				WHERE lane = l.lane AND segment_id = @segment AND workspace_id = @workspace AND seq <= l.up_to
				ORDER BY seq DESC
				LIMIT @limit) AS t) AS t
		ORDER BY t.turn DESC, t.lane DESC, t.seq DESC
		LIMIT @limit`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"workspace": workspace, "segment": segment, "lanes": laneList(r.lanes), "up_to": []int64(upTo), "limit": limit,
	})
	list, err := pgx.CollectRows(rows, scanRecorded)
	if err != nil {
		return nil, fmt.Errorf("list transitions of segment %d: %w", segment, err)
	}
	return list, nil
}

// Back returns the position before all of list, the first of what [Reader.Before] has returned of p.
func (p Position) Back(list []Recorded) Position {
	before := slices.Clone(p)
	for _, t := range list {
		before[t.At.Lane] = min(before[t.At.Lane], t.At.Seq-1)
	}
	return before
}

// Moved returns those of the segments that have transitions behind a position.
func (r *Reader) Moved(ctx context.Context, segments []int64, after Position) ([]int64, error) {
	const query = `
		SELECT s.id
		FROM unnest(@segments::bigint[]) AS s (id)
		WHERE EXISTS (
			SELECT
			FROM unnest(@lanes::smallint[], @after::bigint[]) AS l (lane, after)
			CROSS JOIN LATERAL (
				SELECT FROM transitions WHERE lane = l.lane AND segment_id = s.id AND seq > l.after LIMIT 1) AS t)`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"segments": segments, "lanes": laneList(r.lanes), "after": []int64(after),
	})
	moved, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look for transitions: %w", err)
	}
	return moved, nil
}

// Valid tells whether p may be a position of an installation with that many lanes.
func (p Position) Valid(lanes int) bool {
	return len(p) == lanes && !slices.ContainsFunc(p, func(seq int64) bool { return seq < 0 })
}

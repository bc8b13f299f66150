package profiles

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// SegmentDay is what happened to a segment on a day (UTC).
type SegmentDay struct {
	Day           time.Time
	Entered, Left int64
	Members       int64 // when the day ended; of today, and of days to come, now
}

// History returns how many entered and left a segment on each day from one to another, both included, and how many members
// that left it with. Only the days of from and to count, in UTC.
//
// The numbers of members follow from the present one, so all are of one snapshot, and add up.
func (r *Reader) History(ctx context.Context, segment int64, from, to time.Time) ([]SegmentDay, error) {
	const query = `
		SELECT c.members, d.day, coalesce(d.entered, 0), coalesce(d."left", 0)
		FROM (
			SELECT coalesce(sum(members), 0)::bigint AS members
			FROM segment_counts
			WHERE lane = ANY (@lanes) AND segment_id = @segment) AS c
		LEFT JOIN (
			SELECT day, sum(entered)::bigint AS entered, sum("left")::bigint AS "left"
			FROM segment_days
			WHERE lane = ANY (@lanes) AND segment_id = @segment AND day >= @from
			GROUP BY day) AS d ON true
		ORDER BY d.day DESC`
	from, to = day(from), day(to)
	type row struct {
		members       int64
		day           *time.Time // NULL if nothing has happened since
		entered, left int64
	}
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(r.lanes), "segment": segment, "from": from}) // err: below
	found, err := pgx.CollectRows(rows, func(c pgx.CollectableRow) (f row, err error) {
		err = c.Scan(&f.members, &f.day, &f.entered, &f.left)
		return f, err
	})
	if err != nil {
		return nil, fmt.Errorf("read history of segment %d: %w", segment, err)
	}
	members := found[0].members
	if found[0].day == nil {
		found = nil
	}
	days := make([]SegmentDay, max(0, int(to.Sub(from).Hours()/24)+1))
	for i := len(days) - 1; i >= 0; i-- {
		d := &days[i]
		d.Day = from.AddDate(0, 0, i)
		for len(found) > 0 && found[0].day.After(d.Day) { // after the last one asked for
			members -= found[0].entered - found[0].left
			found = found[1:]
		}
		d.Members = members
		if len(found) > 0 && found[0].day.Equal(d.Day) {
			d.Entered, d.Left = found[0].entered, found[0].left
		}
	}
	return days, nil
}

// day returns the midnight (UTC) that t's day begins with.
func day(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// Membership is somebody's being in a segment.
type Membership struct {
	Segment int64
	Since   time.Time
	Cause   Cause     // of the entering
	Due     time.Time // when it may end by itself; zero: never
}

// Memberships returns at most limit of the segments that a profile is in, in the order of their ids, from behind after.
func (r *Reader) Memberships(ctx context.Context, p *Profile, after int64, limit int) ([]Membership, error) {
	var list []Membership
	var ids []int64
	for _, s := range p.Standings {
		if !s.Member || s.Segment <= after {
			continue
		}
		if len(list) == limit {
			break
		}
		list, ids = append(list, Membership{Segment: s.Segment, Since: time.UnixMilli(s.Since)}), append(ids, s.Segment)
	}
	last, err := r.lastChanges(ctx, p, ids)
	if err != nil {
		return nil, err
	}
	due, err := r.dueAbove(ctx, p, ids)
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].Cause, list[i].Due = last[list[i].Segment].Cause, due[list[i].Segment]
	}
	return list, nil
}

// dueAbove returns when a profile's membership of each segment may change by itself: the first moment at which it or one of
// those that its rule refers to, however indirectly, is due. Those that never change by themselves are missing.
func (r *Reader) dueAbove(ctx context.Context, p *Profile, segments []int64) (map[int64]time.Time, error) {
	const query = `
		WITH RECURSIVE below (root, id) AS (
			SELECT id, id
			FROM unnest(@segments::bigint[]) AS s (id)
			UNION
			SELECT below.root, refers.id
			FROM below
			JOIN lane_segments AS l ON l.lane = @lane AND l.segment_id = below.id
			JOIN segment_versions AS v ON v.segment_id = l.segment_id AND v.version = l.live_version
			CROSS JOIN unnest(v.refers_to) AS refers (id))
		SELECT root, id
		FROM below`
	due := map[int64]time.Time{}
	if len(segments) == 0 {
		return due, nil
	}
	at := map[int64]time.Time{}
	for _, s := range p.Standings {
		if s.Due != 0 {
			at[s.Segment] = time.UnixMilli(s.Due)
		}
	}
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"lane": p.ID.Lane(r.lanes), "segments": segments}) // err: below
	var root, id int64
	_, err := pgx.ForEachRow(rows, []any{&root, &id}, func() error {
		if t := earlier(due[root], at[id]); !t.IsZero() {
			due[root] = t
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("follow references: %w", err)
	}
	return due, nil
}

// earlier returns the first of two moments, of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// lastChanges returns the newest transition of a profile in each segment; those in which it has none are missing.
func (r *Reader) lastChanges(ctx context.Context, p *Profile, segments []int64) (map[int64]Recorded, error) {
	last := map[int64]Recorded{}
	if len(segments) == 0 {
		return last, nil
	}
	const query = `
		SELECT t.at, @lane::smallint, t.seq, t.segment_id, t.profile_id, t.entered, t.cause, t.cause_source_id, t.cause_message_id
		FROM unnest(@segments::bigint[]) AS s (id)
		CROSS JOIN LATERAL (
			SELECT at, seq, segment_id, profile_id, entered, cause, cause_source_id, cause_message_id
			FROM transitions
			WHERE lane = @lane AND workspace_id = @workspace AND profile_id = @profile AND segment_id = s.id
			ORDER BY at DESC, seq DESC
			LIMIT 1) AS t`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"lane": p.ID.Lane(r.lanes), "workspace": p.Workspace, "profile": p.ID, "segments": segments,
	})
	found, err := pgx.CollectRows(rows, scanRecorded)
	if err != nil {
		return nil, fmt.Errorf("read last transitions of %s: %w", p.ID, err)
	}
	for _, t := range found {
		last[t.Segment] = t
	}
	return last, nil
}

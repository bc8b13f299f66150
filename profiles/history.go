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
		m := Membership{Segment: s.Segment, Since: time.UnixMilli(s.Since)}
		if s.Due != 0 {
			m.Due = time.UnixMilli(s.Due)
		}
		list, ids = append(list, m), append(ids, s.Segment)
	}
	last, err := r.lastChanges(ctx, p, ids)
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].Cause = last[list[i].Segment].Cause
	}
	return list, nil
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

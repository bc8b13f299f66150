package profiles

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Counts tell what became of accepted events.
type Counts struct {
	Accepted, Applied, Duplicate, Failed, Suppressed, Quarantined int64
}

// AddUp tells whether every accepted event is accounted for.
func (c Counts) AddUp() bool {
	return c.Accepted == c.Applied+c.Duplicate+c.Failed+c.Suppressed+c.Quarantined
}

// Plus returns the sum.
func (c Counts) Plus(d Counts) Counts {
	return Counts{
		c.Accepted + d.Accepted, c.Applied + d.Applied, c.Duplicate + d.Duplicate, c.Failed + d.Failed,
		c.Suppressed + d.Suppressed, c.Quarantined + d.Quarantined,
	}
}

// SourceCounts are the counts of a source, of all time.
type SourceCounts struct {
	Source int32
	Counts
}

// DayCounts are the counts of a day (UTC).
type DayCounts struct {
	Day time.Time
	Counts
}

// CountsBySource returns the counts of each source that any event came from.
func (r *Reader) CountsBySource(ctx context.Context, workspace int32) ([]SourceCounts, error) {
	const query = `
		SELECT source_id, sum(accepted)::bigint, sum(applied)::bigint, sum(duplicate)::bigint, sum(failed)::bigint,
			sum(suppressed)::bigint, sum(quarantined)::bigint
		FROM counters
		WHERE lane = ANY (@lanes) AND workspace_id = @workspace
		GROUP BY source_id
		ORDER BY source_id`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(r.lanes), "workspace": workspace}) // err: below
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c SourceCounts, err error) {
		err = row.Scan(&c.Source, &c.Accepted, &c.Applied, &c.Duplicate, &c.Failed, &c.Suppressed, &c.Quarantined)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("count events by source: %w", err)
	}
	return list, nil
}

// CountsOfSource returns the counts of a source on each of the last days on which there were events, the newest first.
func (r *Reader) CountsOfSource(ctx context.Context, workspace, source int32, days int) ([]DayCounts, error) {
	return r.countsByDay(ctx, workspace, source, days)
}

// CountsByDay returns the counts of each of the last days on which there were events, the newest first.
func (r *Reader) CountsByDay(ctx context.Context, workspace int32, days int) ([]DayCounts, error) {
	return r.countsByDay(ctx, workspace, 0, days)
}

func (r *Reader) countsByDay(ctx context.Context, workspace, source int32, days int) ([]DayCounts, error) {
	const query = `
		SELECT day, sum(accepted)::bigint, sum(applied)::bigint, sum(duplicate)::bigint, sum(failed)::bigint,
			sum(suppressed)::bigint, sum(quarantined)::bigint
		FROM counters
		WHERE lane = ANY (@lanes) AND workspace_id = @workspace AND (@source = 0 OR source_id = @source)
			AND day > (now() AT TIME ZONE 'UTC')::date - @days::integer
		GROUP BY day
		ORDER BY day DESC`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(r.lanes), "workspace": workspace, "source": source, "days": days}) // err: below
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c DayCounts, err error) {
		err = row.Scan(&c.Day, &c.Accepted, &c.Applied, &c.Duplicate, &c.Failed, &c.Suppressed, &c.Quarantined)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("count events by day: %w", err)
	}
	return list, nil
}

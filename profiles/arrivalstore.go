package profiles

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// part is what of a lane's numbers is still added to.
type part struct {
	id   int64
	size int
}

const (
	partBytes = 1500 // of a part, so that its row stays in its page
	maxParts  = 1000 // that a lane remembers
)

// arrive notes the number of an event that has come, for the first time or again.
func (t *tally) arrive(m *Message, again bool) {
	k, r, ok := numbered(m)
	if !ok {
		return
	}
	a := t.arrived[k]
	if again {
		a.duplicates++
	} else {
		a.runs = append(a.runs, r)
	}
	t.arrived[k] = a
}

// writeArrivals adds the numbers of the events in a transaction to what has arrived: to one row for each source and day.
func (l *Lane) writeArrivals(batch *pgx.Batch, t *tally) {
	if len(t.arrived) == 0 {
		return
	}
	const query = `
		INSERT INTO arrivals AS a (lane, workspace_id, source_id, day, part, numbers, duplicates)
		SELECT @lane, workspace_id, source_id, day, part, numbers, duplicates
		FROM unnest(@workspaces::integer[], @sources::integer[], @days::date[], @parts::bigint[], @numbers::bytea[], @duplicates::bigint[])
		     AS t (workspace_id, source_id, day, part, numbers, duplicates)
		ON CONFLICT (lane, workspace_id, source_id, day, part) DO UPDATE
		SET numbers = a.numbers || excluded.numbers, duplicates = a.duplicates + excluded.duplicates`
	var workspaces, sources []int32
	var days []time.Time
	var parts, duplicates []int64
	var numbers [][]byte
	t.parts = map[arrivalKey]part{}
	for _, k := range slices.SortedFunc(maps.Keys(t.arrived), func(a, b arrivalKey) int {
		return cmp.Or(cmp.Compare(a.workspace, b.workspace), cmp.Compare(a.source, b.source), cmp.Compare(a.day, b.day))
	}) {
		a := t.arrived[k]
		records := appendRuns([]byte{}, union(slices.Clone(a.runs)))
		p, open := l.parts[k]
		if !open || p.size+len(records) > partBytes {
			p = part{id: l.turn + 1} // nobody has had it: every transaction has a turn of its own
		}
		p.size += len(records)
		t.parts[k] = p
		workspaces, sources, days = append(workspaces, k.workspace), append(sources, k.source), append(days, k.date())
		parts, numbers, duplicates = append(parts, p.id), append(numbers, records), append(duplicates, a.duplicates)
	}
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": l.number, "workspaces": workspaces, "sources": sources, "days": days, "parts": parts, "numbers": numbers,
		"duplicates": duplicates,
	})
}

// keepParts remembers where a committed transaction left off.
func (l *Lane) keepParts(t *tally) {
	if len(l.parts)+len(t.parts) > maxParts {
		l.parts = nil
	}
	if l.parts == nil {
		l.parts = map[arrivalKey]part{}
	}
	maps.Copy(l.parts, t.parts)
}

// Arrivals returns what became of the events that the tag of a source made on the days from one to another, both of them
// included, as far as their numbers tell at now. A day without any is left out.
func (r *Reader) Arrivals(ctx context.Context, workspace, source int32, from, to, now time.Time) ([]Arrivals, error) {
	const query = `
		SELECT day, numbers, duplicates
		FROM arrivals
		WHERE lane = ANY (@lanes) AND workspace_id = @workspace AND source_id = @source AND day BETWEEN @from::date AND @to::date
		ORDER BY day`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{
		"lanes": laneList(r.lanes), "workspace": workspace, "source": source, "from": from, "to": to,
	}) // err: below
	var days []Arrivals
	var runs []run
	var at, day time.Time
	var duplicates, more int64
	var numbers []byte
	finish := func() {
		if day.IsZero() {
			return
		}
		a := arrivalKey{day: int32(day.Unix() / (24 * 3600))}.count(union(runs), now)
		a.Duplicates = duplicates
		days, runs, duplicates = append(days, a), runs[:0], 0
	}
	_, err := pgx.ForEachRow(rows, []any{&at, &numbers, &more}, func() (err error) {
		if !at.Equal(day) {
			finish()
			day = at
		}
		duplicates += more
		runs, err = decodeRuns(runs, numbers)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("count arrivals: %w", err)
	}
	finish()
	return days, nil
}

// ArrivalsKept is for how many days numbers are kept.
const ArrivalsKept = 100

// foldArrivals forgets the numbers of old days, and makes few parts of the many in which those of the day before yesterday
// and earlier came, so that they are small and quickly counted. A part that is added to meanwhile stays as it is.
func (s *Store) foldArrivals(ctx context.Context, now time.Time) error {
	const forget = `DELETE FROM arrivals WHERE day < $1`
	const many = `
		SELECT lane, workspace_id, source_id, day
		FROM arrivals
		WHERE day < $1
		GROUP BY lane, workspace_id, source_id, day
		HAVING count(*) > 1`
	const take = `
		DELETE FROM arrivals
		WHERE lane = $1 AND workspace_id = $2 AND source_id = $3 AND day = $4
		RETURNING numbers, duplicates`
	const put = `
		INSERT INTO arrivals (lane, workspace_id, source_id, day, part, numbers, duplicates)
		VALUES ($1, $2, $3, $4, 0, $5, $6)`
	if _, err := s.pool.Exec(ctx, forget, now.AddDate(0, 0, -ArrivalsKept)); err != nil {
		return fmt.Errorf("forget arrivals: %w", err)
	}
	type key struct {
		Lane, Workspace, Source int32
		Day                     time.Time
	}
	rows, _ := s.pool.Query(ctx, many, now.AddDate(0, 0, -1)) // err: below
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[key])
	if err != nil {
		return fmt.Errorf("list arrivals: %w", err)
	}
	for _, k := range keys {
		err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			var runs []run
			var numbers []byte
			var duplicates, sum int64
			rows, _ := tx.Query(ctx, take, k.Lane, k.Workspace, k.Source, k.Day) // err: below
			_, err := pgx.ForEachRow(rows, []any{&numbers, &duplicates}, func() (err error) {
				sum += duplicates
				runs, err = decodeRuns(runs, numbers)
				return err
			})
			if err != nil || len(runs) == 0 && sum == 0 {
				return err // another process has just done it
			}
			_, err = tx.Exec(ctx, put, k.Lane, k.Workspace, k.Source, k.Day, appendRuns([]byte{}, union(runs)), sum)
			return err
		})
		if err != nil {
			return fmt.Errorf("fold arrivals: %w", err)
		}
	}
	return nil
}

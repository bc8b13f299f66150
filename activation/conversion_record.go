package activation

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// applyEventResults writes what an attempt means for the events of a claim, and counts those that come to an end.
func applyEventResults(ctx context.Context, tx pgx.Tx, c *claim, results []result, groups []int64) error {
	const query = `
		WITH locked AS MATERIALIZED (
			SELECT id
			FROM conversions
			WHERE lane = @lane AND destination_id = @destination AND id = ANY(@ids) AND batch_id = @id
				AND status IN ('claimed', 'accepted')
			ORDER BY id
			FOR UPDATE
		), changed AS (
			UPDATE conversions c
			SET status     = r.status,
				reason     = r.reason,
				next_at    = now() + r.wait_us * interval '1 microsecond',
				batch_id   = CASE WHEN r.status = 'accepted' THEN c.batch_id ELSE r.batch_id END,
				doubted_at = CASE WHEN r.doubted THEN coalesce(c.doubted_at, now()) END,
				done_at    = CASE WHEN r.status NOT IN ('pending', 'accepted') THEN now() END,
				body       = CASE WHEN r.status NOT IN ('sent', 'denied', 'expired') THEN c.body END
			FROM unnest(@ids::bigint[], @statuses::text[], @reasons::text[], @waits::bigint[], @batches::bigint[],
				@doubted::boolean[]) AS r (id, status, reason, wait_us, batch_id, doubted)
			JOIN locked USING (id)
			WHERE c.lane = @lane AND c.destination_id = @destination AND c.id = r.id
			RETURNING c.subscription_id, c.status, c.reason
		)
		INSERT INTO conversion_counts AS c (lane, destination_id, subscription_id, outcome, reason, events, last_at)
		SELECT @lane::smallint, @destination::bigint, subscription_id, status, reason, count(*), now()
		FROM changed
		WHERE status IN ('sent', 'denied', 'expired')
		GROUP BY subscription_id, status, reason
		ORDER BY subscription_id, status, reason` + addCounts
	if len(results) == 0 {
		return nil
	}
	var (
		ids, waits        []int64
		statuses, reasons []string
		batches           []*int64
		doubts            []bool
	)
	for _, r := range results {
		status, reason := r.status, r.reason
		switch status {
		case settled:
			status, reason = eventSent, ""
		case doubted:
			status = pending
		}
		var batch *int64
		if r.group > 0 {
			batch = &groups[r.group-1]
		}
		ids, statuses, reasons = append(ids, r.Version), append(statuses, status), append(reasons, reason)
		waits, batches = append(waits, r.wait.Microseconds()), append(batches, batch)
		doubts = append(doubts, r.status == doubted)
	}
	_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
		"lane": c.lane, "destination": c.destination, "id": c.id, "ids": ids, "statuses": statuses, "reasons": reasons,
		"waits": waits, "batches": batches, "doubted": doubts,
	})
	if err != nil {
		return fmt.Errorf("write what becomes of %d events: %w", len(ids), err)
	}
	return nil
}

// polledEvents writes down what became of events that the partner had taken in.
func (q *queue) polledEvents(ctx context.Context, tx pgx.Tx, c *claim, a attempt, what decision) error {
	const query = `
		SELECT ` + conversionColumns + `
		FROM conversions c
		LEFT JOIN event_subscriptions s ON s.id = c.subscription_id
		WHERE c.lane = @lane AND c.destination_id = @destination AND c.id = ANY(@ids) AND c.batch_id = @id
			AND c.status = 'accepted'
		ORDER BY c.id
		FOR UPDATE OF c`
	found, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{
		"lane": c.lane, "destination": c.destination, "id": c.id, "ids": c.arrays().versions,
	})
	rows, err := pgx.CollectRows(found, scanConversion)
	if err != nil {
		return err
	}
	ours := make(map[int64]claimed, len(rows))
	for _, m := range rows {
		ours[m.Version] = m
	}
	about, outcomes := *c, a.outcome.Rows
	about.members, a.outcome.Rows = nil, nil
	for i, m := range c.members {
		row, ok := ours[m.Version]
		if !ok {
			continue
		}
		about.members = append(about.members, row)
		if i < len(outcomes) {
			a.outcome.Rows = append(a.outcome.Rows, outcomes[i])
		}
	}
	if err := applyEventResults(ctx, tx, c, what.rows, nil); err != nil {
		return err
	}
	if err := writeLedger(ctx, tx, &about, a); err != nil {
		return err
	}
	return changeDestination(ctx, tx, c.destination, c.version, what)
}

// forgetEvents forgets events that came in before a moment and are not under way, whatever became of them, some at a time:
// no more than so many chunks.
func (q *queue) forgetEvents(ctx context.Context, before time.Time, chunks int) (more bool, err error) {
	const old = `
		SELECT id
		FROM (
			SELECT id, enqueued_at, status
			FROM conversions
			WHERE lane = @lane AND destination_id = @destination
			ORDER BY id
			LIMIT @chunk
			FOR UPDATE SKIP LOCKED
		) c
		WHERE enqueued_at < @before AND status NOT IN ('claimed', 'accepted')`
	const destinations = `SELECT DISTINCT destination_id FROM conversion_counts UNION SELECT destination_id FROM event_subscriptions`
	rows, _ := q.pool.Query(ctx, destinations)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return false, fmt.Errorf("list destinations of events: %w", err)
	}
	for lane := range q.lanes {
		for _, id := range ids {
			for n := 0; ; n++ {
				if n == chunks {
					more = true
					break
				}
				tag, err := q.pool.Exec(ctx, forgetting(old), pgx.StrictNamedArgs{
					"lane": lane, "destination": id, "before": before, "chunk": chunk, "reason": "it waited for too long",
				})
				if err != nil {
					return false, fmt.Errorf("forget old events of lane %d: %w", lane, err)
				}
				if tag.RowsAffected() < chunk {
					break
				}
			}
		}
	}
	return more, nil
}

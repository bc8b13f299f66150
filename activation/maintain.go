package activation

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// renew has people sent again whom a partner is about to forget.
func (q *queue) renew(ctx context.Context) (total int64, err error) {
	const query = `
		WITH chosen AS (
			SELECT destination_id, segment_id, profile_id
			FROM activations
			WHERE lane = @lane AND destination_id IN (SELECT id FROM destinations WHERE status = 'active')
				AND renew_at <= now() AND status <> 'claimed'
			ORDER BY destination_id, segment_id, profile_id
			LIMIT @chunk
			FOR UPDATE SKIP LOCKED
		)
		UPDATE activations a
		SET renew_at = NULL, resend = a.wanted,
			status   = CASE WHEN a.wanted AND a.status = 'settled' THEN 'pending' ELSE a.status END,
			next_at  = CASE WHEN a.wanted AND a.status = 'settled' THEN now() ELSE a.next_at END,
			batch_id = CASE WHEN a.wanted AND a.status = 'settled' THEN NULL ELSE a.batch_id END
		FROM chosen s
		WHERE a.lane = @lane AND a.destination_id = s.destination_id AND a.segment_id = s.segment_id
			AND a.profile_id = s.profile_id`
	for lane := range q.lanes {
		n, err := inChunks(ctx, q.pool, query, pgx.StrictNamedArgs{"lane": lane})
		if total += n; err != nil {
			return total, fmt.Errorf("renew people of lane %d: %w", lane, err)
		}
	}
	return total, nil
}

// forgetOld deletes what the ledger has of attempts that were made before a moment, some at a time: no more than so many
// chunks, so that it never keeps the database busy for long.
func (q *queue) forgetOld(ctx context.Context, before time.Time, chunks int) (more bool, err error) {
	for _, query := range []string{
		`DELETE FROM deliveries
		WHERE lane = @lane AND destination_id = @destination AND id IN (
			SELECT id
			FROM (
				SELECT id, at
				FROM deliveries
				WHERE lane = @lane AND destination_id = @destination
				ORDER BY id
				LIMIT @chunk
			) d
			WHERE at < @before)`,
		// Attempts are numbered in the order in which they are recorded; no line is older than its attempt.
		`DELETE FROM activation_attempts
		WHERE lane = @lane AND id IN (
			SELECT id
			FROM (
				SELECT id, destination_id, started_at
				FROM activation_attempts
				WHERE lane = @lane
				ORDER BY id
				LIMIT @chunk
			) a
			WHERE started_at < @before::timestamptz - interval '1 hour' AND (@destination = 0 OR destination_id = @destination))`,
		`DELETE FROM activation_receipts
		WHERE lane = @lane AND destination_id = @destination AND done_at < @before AND id IN (
			SELECT id FROM activation_receipts
			WHERE lane = @lane AND destination_id = @destination AND done_at < @before LIMIT @chunk)`,
	} {
		const all = `SELECT id FROM destinations ORDER BY id`
		rows, _ := q.pool.Query(ctx, all)
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return false, fmt.Errorf("list destinations: %w", err)
		}
		for lane := range q.lanes {
			for _, id := range ids {
				for n := 0; ; n++ {
					if n == chunks {
						more = true
						break
					}
					tag, err := q.pool.Exec(ctx, query, pgx.StrictNamedArgs{
						"lane": lane, "destination": id, "before": before, "chunk": chunk,
					})
					if err != nil {
						return false, fmt.Errorf("forget what is old in lane %d: %w", lane, err)
					}
					if tag.RowsAffected() < chunk {
						break
					}
				}
			}
		}
	}
	return more, nil
}

// forgetMappings forgets what operators called people, once it has ended: nobody asks for it any more. So what they called
// somebody who was forgotten here, and to whom nothing was sent under it, is kept no longer than they said that it holds.
func (q *queue) forgetMappings(ctx context.Context) error {
	const query = `
		DELETE FROM activation_mappings
		WHERE lane = @lane AND (destination_id, identifiers) IN (
			SELECT destination_id, identifiers
			FROM activation_mappings
			WHERE lane = @lane AND until < now()
			LIMIT @chunk)`
	for lane := range q.lanes {
		if _, err := inChunks(ctx, q.pool, query, pgx.StrictNamedArgs{"lane": lane}); err != nil {
			return fmt.Errorf("forget mapped identifiers of lane %d: %w", lane, err)
		}
	}
	return nil
}

// letGo forgets detached segments whose partner holds nobody because of them any more.
func (q *queue) letGo(ctx context.Context) error {
	const query = `
		DELETE FROM destination_segments s
		WHERE NOT attached AND filled AND NOT EXISTS (
			SELECT
			FROM activations a
			WHERE a.lane = ANY(@lanes::smallint[]) AND a.destination_id = s.destination_id AND a.segment_id = s.segment_id
				AND (a.sent IS DISTINCT FROM false OR a.sent_identifiers IS NOT NULL OR a.status NOT IN ('settled', 'unreachable')))`
	if _, err := q.pool.Exec(ctx, query, pgx.StrictNamedArgs{"lanes": laneNumbers(q.lanes)}); err != nil {
		return fmt.Errorf("forget detached segments: %w", err)
	}
	return nil
}

// mapped asks a partner's operator what people are called there, unless that is known already. What could not be asked for
// is an error: nothing is sent then, and nobody taken for unreachable.
func (q *queue) mapped(
	ctx context.Context, t served, limits Limits, mapper Mapper, plain map[ProfileID]Identifiers,
) (current map[ProfileID]Identifiers, ends map[ProfileID]time.Time, err error) {
	const read = `
		SELECT identifiers, mapped, reason, until
		FROM activation_mappings
		WHERE lane = ANY(@lanes::smallint[]) AND destination_id = @destination AND identifiers = ANY(@handles::uuid[])
			AND until > now() + interval '1 minute'`
	const keep = `
		INSERT INTO activation_mappings (lane, destination_id, identifiers, mapped, reason, until)
		SELECT lane, @destination, identifiers, mapped, reason, until
		FROM unnest(@lanes::smallint[], @handles::uuid[], @mapped::text[]::jsonb[], @reasons::text[], @until::timestamptz[])
			AS t (lane, identifiers, mapped, reason, until)
		ORDER BY lane, identifiers
		ON CONFLICT (lane, destination_id, identifiers) DO UPDATE
		SET mapped = excluded.mapped, reason = excluded.reason, until = excluded.until`
	type answer struct {
		Mapped
		known bool
	}
	answers := map[handle]answer{}
	byHandle := map[handle]Identifiers{}
	handles := make([]handle, 0, len(plain))
	for _, ids := range plain {
		if h := ids.handle(); !ids.empty() && byHandle[h].empty() {
			byHandle[h] = ids
			handles = append(handles, h)
		}
	}
	rows, _ := q.pool.Query(ctx, read, pgx.StrictNamedArgs{
		"lanes": laneNumbers(q.lanes), "destination": t.ID, "handles": handles,
	})
	var (
		h    handle
		raw  []byte
		a    answer
		miss []handle
	)
	_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&h), &raw, &a.Reason, &a.Until}, func() (err error) {
		reason := a.Reason
		a.Identifiers, err = readIdentifiers(raw)
		a.Reason, a.known = reason, true
		answers[h] = a
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read mapped identifiers: %w", err)
	}
	for _, h := range distinct(handles) {
		if !answers[h].known {
			miss = append(miss, h)
		}
	}
	most := max(limits.Map, 1)
	if limits.Map == 0 {
		most = 1000
	}
	for len(miss) > 0 {
		part := miss[:min(most, len(miss))]
		miss = miss[len(part):]
		ask := make([]Identifiers, len(part))
		for i, h := range part {
			ask[i] = byHandle[h]
		}
		asking, cancel := context.WithTimeout(ctx, limits.Timeout)
		got, o := mapper.Map(asking, t.Target, ask)
		o = t.clean(o)
		cancel()
		if o.Class != OK || len(got) != len(part) {
			return nil, nil, &mapError{o}
		}
		var (
			texts   = make([]string, len(part))
			reasons = make([]string, len(part))
			until   = make([]time.Time, len(part))
		)
		for i, h := range part {
			got[i].Identifiers = got[i].tidy()
			answers[h] = answer{got[i], true}
			texts[i], reasons[i], until[i] = "{}", got[i].Reason, got[i].Until
			if b := got[i].bytes(); b != nil {
				texts[i] = string(b)
			}
		}
		_, err := q.pool.Exec(ctx, keep, pgx.StrictNamedArgs{
			"lanes": q.lanesOf(part), "destination": t.ID, "handles": part, "mapped": texts,
			"reasons": reasons, "until": until,
		})
		if err != nil {
			return nil, nil, fmt.Errorf("keep mapped identifiers: %w", err)
		}
	}
	current, ends = map[ProfileID]Identifiers{}, map[ProfileID]time.Time{}
	for profile, ids := range plain {
		if ids.empty() {
			current[profile] = ids
			continue
		}
		a := answers[ids.handle()]
		current[profile], ends[profile] = a.Identifiers, a.Until
	}
	return current, ends, nil
}

// mapError says that a partner's operator did not tell what people are called.
type mapError struct{ outcome Outcome }

func (e *mapError) Error() string { return "map identifiers: " + e.outcome.Reason }

// handle stands for all of some identifiers together.
func (ids Identifiers) handle() handle {
	return handleOf(Identifier{Kind: "all", Value: string(ids.bytes())})
}

package partnertest

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Warp has time pass for everything that waits at destinations, as if it had all been written down so much earlier. No
// dispatcher may run meanwhile, or it remembers what is not true any more.
func Warp(ctx context.Context, pool *pgxpool.Pool, d time.Duration) error {
	for _, query := range []string{
		`UPDATE activations SET next_at = next_at - @d::interval
		WHERE status = 'pending' AND next_at > now() AND next_at < 'infinity'`,
		`UPDATE activations SET renew_at = renew_at - @d::interval WHERE renew_at IS NOT NULL`,
		`UPDATE conversions
		SET next_at = next_at - @d::interval, event_at = event_at - @d::interval, received_at = received_at - @d::interval,
			enqueued_at = enqueued_at - @d::interval, doubted_at = doubted_at - @d::interval`,
		`UPDATE activation_batches SET created_at = created_at - @d::interval WHERE segment_id = 0`,
		`UPDATE activation_receipts SET poll_at = poll_at - @d::interval, give_up_at = give_up_at - @d::interval
		WHERE poll_at IS NOT NULL`,
		`UPDATE destinations
		SET blocked_until = blocked_until - @d::interval, token_expires_at = token_expires_at - @d::interval,
			refresh_at = refresh_at - @d::interval, refreshed_at = refreshed_at - @d::interval`,
		`UPDATE destination_segments
		SET fill_until = fill_until - @d::interval, ready_at = ready_at - @d::interval, audience_at = audience_at - @d::interval,
			size_at = size_at - @d::interval`,
		`UPDATE activation_mappings SET until = until - @d::interval`,
		`UPDATE activation_accounts
		SET next_at = next_at - @d::interval, blocked_until = blocked_until - @d::interval, slow_until = slow_until - @d::interval`,
	} {
		if _, err := pool.Exec(ctx, query, pgx.StrictNamedArgs{"d": d}); err != nil {
			return fmt.Errorf("have time pass: %w", err)
		}
	}
	return nil
}

// Idle returns for how long there will be nothing to do for any destination but wait; 0 if something is under way or there is
// nothing to wait for.
func Idle(ctx context.Context, pool *pgxpool.Pool) (time.Duration, error) {
	const query = `
		WITH next (destination_id, at) AS (
			SELECT destination_id, min(next_at)
			FROM activations
			WHERE status = 'pending' AND next_at < 'infinity'
			GROUP BY 1
			UNION ALL
			SELECT destination_id, min(CASE WHEN doubted_at IS NULL THEN next_at ELSE doubted_at + interval '61 seconds' END)
			FROM conversions
			WHERE status = 'pending'
			GROUP BY 1
			UNION ALL
			SELECT destination_id, min(poll_at)
			FROM activation_receipts
			WHERE poll_at IS NOT NULL
			GROUP BY 1
			UNION ALL
			SELECT destination_id, min(CASE WHEN ready_at = 'infinity' THEN audience_at ELSE ready_at END)
			FROM destination_segments
			WHERE attached AND ready_at > now()
			GROUP BY 1
		), until (at) AS (
			SELECT greatest(now(), (SELECT min(at) FROM next WHERE destination_id = d.id), d.blocked_until,
				(SELECT max(blocked_until) FROM activation_accounts), CASE WHEN d.token_expires_at <= now() THEN d.refresh_at END)
			FROM destinations d
			WHERE d.status = 'active' AND EXISTS (SELECT FROM next WHERE destination_id = d.id AND at IS NOT NULL)
		)
		SELECT coalesce(extract(epoch FROM min(at) - now()), 0)::float8
		FROM until
		WHERE NOT EXISTS (SELECT FROM activations WHERE status = 'claimed')
			AND NOT EXISTS (SELECT FROM conversions WHERE status = 'claimed')`
	var seconds float64
	if err := pool.QueryRow(ctx, query).Scan(&seconds); err != nil {
		return 0, fmt.Errorf("look for what waits: %w", err)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

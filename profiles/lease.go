package profiles

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Lease is a lane that a node may work on until it runs out. It saves double work; what makes double work harmless is the
// compare-and-set in every transaction of a lane.
type Lease struct {
	Lane    int
	Epoch   int64
	TTL     time.Duration
	Until   time.Time // by this process's monotonic clock, counted from before the request was sent; zero: as it was
	Unclean bool      // taken up just now, and the last owner did not let go of it in order
}

// Claim renews the leases a node has and takes up free lanes, up to its fair share among the nodes seen lately. Lanes it
// has too many of are not among the leases returned: it is to stop working on them, and to release them. A lane that
// changes hands gets a new epoch.
//
// Nobody waits for a lane: one whose transaction is under way is left alone, and the transaction renews the lease when it
// commits. Otherwise the slowest lane of a node would hold up all others.
func (s *Store) Claim(ctx context.Context, node string, ttl time.Duration) ([]Lease, error) {
	const seen = `
		INSERT INTO nodes (id, seen_at)
		VALUES (@node, now())
		ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at`
	const forget = `DELETE FROM nodes WHERE seen_at < now() - 10 * @ttl::interval`
	const share = `
		SELECT ceil((SELECT count(*) FROM lanes)::numeric / greatest(count(*), 1))::integer
		FROM nodes
		WHERE seen_at > now() - @ttl::interval`
	const claim = `
		WITH mine AS (
			SELECT lane, epoch
			FROM lanes
			WHERE owner = @node AND lease_until >= now()
			ORDER BY lane
			LIMIT @share
		), idle AS (
			SELECT lane
			FROM lanes
			WHERE lane IN (SELECT lane FROM mine)
			FOR UPDATE SKIP LOCKED
		), free AS (
			SELECT lane, unclean
			FROM lanes
			WHERE lease_until < now()
			ORDER BY owner = @node DESC, lane
			LIMIT greatest(@share - (SELECT count(*) FROM mine), 0)
			FOR UPDATE SKIP LOCKED
		), claimed AS (
			UPDATE lanes AS l
			SET owner       = @node,
			    epoch       = CASE WHEN l.lease_until < now() THEN l.epoch + 1 ELSE l.epoch END,
			    lease_until = now() + @ttl::interval,
			    unclean     = true
			FROM (SELECT lane, false AS unclean FROM idle UNION ALL SELECT lane, unclean FROM free) AS t
			WHERE l.lane = t.lane AND (l.owner = @node OR l.lease_until < now())
			RETURNING l.lane, l.epoch, t.unclean
		)
		SELECT lane, epoch, true, unclean
		FROM claimed
		UNION ALL
		SELECT lane, epoch, false, false
		FROM mine
		WHERE lane NOT IN (SELECT lane FROM claimed)`
	asked := time.Now()
	args := pgx.StrictNamedArgs{"node": node, "ttl": ttl}
	var leases []Lease
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, seen, pgx.StrictNamedArgs{"node": node}); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, forget, pgx.StrictNamedArgs{"ttl": ttl}); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRow(ctx, share, pgx.StrictNamedArgs{"ttl": ttl}).Scan(&n); err != nil {
			return err
		}
		args["share"] = n
		rows, _ := tx.Query(ctx, claim, args)
		var err error
		leases, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l Lease, err error) {
			var renewed bool
			err = row.Scan(&l.Lane, &l.Epoch, &renewed, &l.Unclean)
			l.TTL = ttl
			if renewed {
				l.Until = asked.Add(ttl)
			}
			return l, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claim lanes: %w", err)
	}
	return leases, nil
}

// Release lets go of a lane in order, so that the next owner neither waits nor doubts.
func (s *Store) Release(ctx context.Context, node string, lease Lease) error {
	const query = `
		UPDATE lanes
		SET lease_until = '-infinity', unclean = false
		WHERE lane = $1 AND epoch = $2 AND owner = $3`
	if _, err := s.pool.Exec(ctx, query, lease.Lane, lease.Epoch, node); err != nil {
		return fmt.Errorf("release lane %d: %w", lease.Lane, err)
	}
	return nil
}

// Leave takes a node out of the count, so that the others take up its lanes at once.
func (s *Store) Leave(ctx context.Context, node string) error {
	const query = `DELETE FROM nodes WHERE id = $1`
	if _, err := s.pool.Exec(ctx, query, node); err != nil {
		return fmt.Errorf("leave the nodes: %w", err)
	}
	return nil
}

// CaughtUp notes, for each lane, the moment up to which all that was accepted is applied. A lane whose transaction is under
// way is left out: it notes the moment by itself, with what it applies.
func (s *Store) CaughtUp(ctx context.Context, asOf map[int]time.Time) error {
	const query = `
		UPDATE lanes AS l
		SET as_of = greatest(l.as_of, t.as_of)
		FROM unnest(@lanes::smallint[], @as_of::timestamptz[]) AS t (lane, as_of)
		WHERE l.lane = t.lane AND l.lane IN (SELECT lane FROM lanes WHERE lane = ANY (@lanes::smallint[]) FOR UPDATE SKIP LOCKED)`
	var lanes []int16
	var at []time.Time
	for lane, t := range asOf {
		lanes, at = append(lanes, int16(lane)), append(at, t)
	}
	if len(lanes) == 0 {
		return nil
	}
	if _, err := s.pool.Exec(ctx, query, pgx.StrictNamedArgs{"lanes": lanes, "as_of": at}); err != nil {
		return fmt.Errorf("note how far the lanes are: %w", err)
	}
	return nil
}

// Due tells how many profiles of some lanes should have been looked at by now because a membership may have changed by
// itself, of which it counts at most so many a lane, and how long the first of them has been waiting.
func (s *Store) Due(ctx context.Context, lanes []int, most int) (n int64, oldest time.Duration, err error) {
	return due(ctx, s.pool, lanes, most)
}

func due(ctx context.Context, db database, lanes []int, most int) (n int64, oldest time.Duration, err error) {
	const query = `
		SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(d.due_at)), 0)::float8
		FROM unnest(@lanes::smallint[]) AS l (lane)
		CROSS JOIN LATERAL (
			SELECT due_at
			FROM profiles
			WHERE lane = l.lane AND due_at <= clock_timestamp()
			ORDER BY due_at
			LIMIT @most) AS d`
	var seconds float64
	if err := db.QueryRow(ctx, query, pgx.StrictNamedArgs{"lanes": lanes, "most": most}).Scan(&n, &seconds); err != nil {
		return 0, 0, fmt.Errorf("look for due profiles: %w", err)
	}
	return n, time.Duration(max(seconds, 0) * float64(time.Second)), nil
}

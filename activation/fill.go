package activation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// filler brings the rows of a segment that was attached or detached to what is wanted now: true for the members, false for
// everybody else. It may be interrupted anywhere and begun again. Rows that a µbatch wrote since then carry the
// attachment's generation already, and are left alone.
type filler struct {
	pool    *pgxpool.Pool
	members members
	lanes   int
}

// filling is an attachment that is not filled.
type filling struct {
	Destination int64
	Segment     int64
	Generation  int64
	Attached    bool
	Workspace   int32
}

// next fills one attachment that nobody else is filling, and tells whether there was one.
func (f *filler) next(ctx context.Context) (bool, error) {
	const claim = `
		UPDATE destination_segments s
		SET fill_until = now() + interval '1 minute'
		FROM (
			SELECT destination_id, segment_id
			FROM destination_segments
			WHERE NOT filled AND fill_until < now()
			ORDER BY fill_until
			LIMIT 1
			FOR UPDATE SKIP LOCKED
		) n, destinations d
		WHERE s.destination_id = n.destination_id AND s.segment_id = n.segment_id AND d.id = s.destination_id
		RETURNING s.destination_id, s.segment_id, s.generation, s.attached, d.workspace_id`
	rows, _ := f.pool.Query(ctx, claim)
	g, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[filling])
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("claim an attachment to fill: %w", err)
	}
	if err := f.fill(ctx, g); err != nil && !errors.Is(err, errOvertaken) {
		f.giveBack(context.WithoutCancel(ctx), g)
		return true, fmt.Errorf("fill segment %d of destination %d: %w", g.Segment, g.Destination, err)
	}
	return true, nil
}

// giveBack lets somebody else fill what the caller could not. If it fails, the lease has to run out.
func (f *filler) giveBack(ctx context.Context, g filling) {
	const query = `
		UPDATE destination_segments
		SET fill_until = now() + interval '1 second'
		WHERE destination_id = @destination AND segment_id = @segment AND generation = @generation`
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, _ = f.pool.Exec(ctx, query, g.args())
}

// errOvertaken says that a segment was attached or detached again: whoever fills that will do all of it.
var errOvertaken = errors.New("overtaken by another generation")

func (f *filler) fill(ctx context.Context, g filling) error {
	if g.Attached {
		err := f.members.EachMember(ctx, g.Workspace, g.Segment, func(lane int, ids [][16]byte) error {
			for part := range slices.Chunk(ids, chunk) {
				if err := f.add(ctx, g, lane, part); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for lane := range f.lanes {
		for {
			n, err := f.removeRest(ctx, g, lane)
			if err != nil {
				return err
			}
			if n < chunk {
				break
			}
		}
	}
	return f.finish(ctx, g)
}

// hold begins a transaction's part in a filling: nobody attaches or detaches until its end, and the lease is renewed.
func (f *filler) hold(ctx context.Context, tx pgx.Tx, g filling) error {
	const lock = `SELECT pg_advisory_xact_lock_shared(@lock)`
	const renew = `
		UPDATE destination_segments
		SET fill_until = now() + interval '1 minute'
		WHERE destination_id = @destination AND segment_id = @segment AND generation = @generation`
	if _, err := tx.Exec(ctx, lock, pgx.StrictNamedArgs{"lock": ConfigLock}); err != nil {
		return err
	}
	tag, err := tx.Exec(ctx, renew, g.args())
	if err == nil && tag.RowsAffected() == 0 {
		return errOvertaken
	}
	return err
}

func (g filling) args() pgx.StrictNamedArgs {
	return pgx.StrictNamedArgs{"destination": g.Destination, "segment": g.Segment, "generation": g.Generation}
}

func (f *filler) add(ctx context.Context, g filling, lane int, ids [][16]byte) error {
	const query = `
		INSERT INTO activations AS a
			(lane, destination_id, segment_id, profile_id, generation, wanted, version, status, next_at, changed_at, cause)
		SELECT @lane, @destination, @segment, id, @generation, true, 1, 'pending', now(), now(), 'backfill'
		FROM unnest(@ids::uuid[]) AS t (id)
		ORDER BY id
		ON CONFLICT (lane, destination_id, segment_id, profile_id) DO UPDATE
		SET generation = excluded.generation,
			wanted     = true,
			version    = CASE WHEN a.wanted THEN a.version ELSE a.version + 1 END,
			changed_at = CASE WHEN a.wanted THEN a.changed_at ELSE excluded.changed_at END,
			message_id = CASE WHEN a.wanted THEN a.message_id ELSE '' END,
			cause      = CASE WHEN a.wanted THEN a.cause ELSE excluded.cause END,
			reason     = CASE WHEN a.wanted THEN a.reason ELSE '' END,
			next_at    = CASE WHEN a.wanted THEN a.next_at ELSE excluded.next_at END,
			batch_id   = CASE WHEN a.wanted OR a.status = 'claimed' THEN a.batch_id END,
			status     = CASE
				WHEN a.wanted OR a.status = 'claimed' THEN a.status
				WHEN a.sent THEN 'settled'
				ELSE 'pending' END
		WHERE a.generation < excluded.generation`
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	args := g.args()
	args["lane"], args["ids"] = lane, slices.Compact(ids)
	return pgx.BeginFunc(ctx, f.pool, func(tx pgx.Tx) error {
		if err := f.hold(ctx, tx, g); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, query, args)
		return err
	})
}

// removeRest makes unwanted a chunk of the rows that neither a µbatch nor add has touched since the attachment's change.
func (f *filler) removeRest(ctx context.Context, g filling, lane int) (n int64, err error) {
	const query = `
		WITH rest AS (
			SELECT profile_id
			FROM activations
			WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment AND generation < @generation
			ORDER BY profile_id
			LIMIT @chunk
			FOR UPDATE
		)
		UPDATE activations a
		SET generation = @generation,
			wanted     = false,
			version    = CASE WHEN a.wanted THEN a.version + 1 ELSE a.version END,
			changed_at = CASE WHEN a.wanted THEN now() ELSE a.changed_at END,
			message_id = CASE WHEN a.wanted THEN '' ELSE a.message_id END,
			cause      = CASE WHEN a.wanted THEN @cause ELSE a.cause END,
			reason     = CASE WHEN a.wanted THEN '' ELSE a.reason END,
			next_at    = CASE WHEN a.wanted THEN now() ELSE a.next_at END,
			batch_id   = CASE WHEN NOT a.wanted OR a.status = 'claimed' THEN a.batch_id END,
			status     = CASE
				WHEN NOT a.wanted OR a.status = 'claimed' THEN a.status
				WHEN NOT a.sent THEN 'settled'
				ELSE 'pending' END
		FROM rest r
		WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment
			AND a.profile_id = r.profile_id`
	args := g.args()
	args["lane"], args["chunk"] = lane, chunk
	if args["cause"] = "detach"; g.Attached {
		args["cause"] = "backfill"
	}
	err = pgx.BeginFunc(ctx, f.pool, func(tx pgx.Tx) error {
		if err := f.hold(ctx, tx, g); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, query, args)
		n = tag.RowsAffected()
		return err
	})
	return n, err
}

func (f *filler) finish(ctx context.Context, g filling) error {
	query := `
		UPDATE destination_segments
		SET filled = true
		WHERE destination_id = @destination AND segment_id = @segment AND generation = @generation`
	if !g.Attached {
		query = `
		DELETE FROM destination_segments
		WHERE destination_id = @destination AND segment_id = @segment AND generation = @generation`
	}
	_, err := f.pool.Exec(ctx, query, g.args())
	return err
}

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
	people  people
	lanes   int
}

// filling is an attachment that is not filled.
type filling struct {
	Destination int64
	Segment     int64
	Generation  int64
	Attached    bool
	Resetting   bool
	Workspace   int32
	Purposes    []string
	Mode        ConsentMode
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
			ORDER BY fill_until, destination_id, segment_id
			LIMIT 1
			FOR UPDATE SKIP LOCKED
		) n, destinations d
		WHERE s.destination_id = n.destination_id AND s.segment_id = n.segment_id AND d.id = s.destination_id
		RETURNING s.destination_id, s.segment_id, s.generation, s.attached, s.resetting, d.workspace_id, d.purposes,
			d.consent_mode`
	rows, _ := f.pool.Query(ctx, claim)
	g, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[filling])
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("claim an attachment to fill: %w", err)
	}
	err = f.fill(ctx, g)
	if errors.Is(err, errBusy) {
		f.giveBack(context.WithoutCancel(ctx), g)
		return true, nil
	}
	if err != nil && !errors.Is(err, errOvertaken) {
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
	if g.Resetting {
		if err := f.reset(ctx, g); err != nil {
			return err
		}
	}
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

// add writes members down. Their consent is read before: if it changes from then on, so does the row, which is left alone
// here because it has the new generation.
func (f *filler) add(ctx context.Context, g filling, lane int, ids [][16]byte) error {
	const query = `
		INSERT INTO activations AS a
			(lane, destination_id, segment_id, profile_id, generation, member, allowed, wanted, version, identity, status,
			 next_at, changed_at, cause)
		SELECT @lane, @destination, @segment, t.id, @generation, true, t.allowed, t.allowed, 1,
			CASE WHEN d.by_profile THEN 0 ELSE 1 END, CASE WHEN t.allowed THEN 'pending' ELSE 'settled' END,
			greatest(now(), s.ready_at), now(), 'backfill'
		FROM unnest(@ids::uuid[], @allowed::boolean[]) AS t (id, allowed)
		CROSS JOIN destinations d
		CROSS JOIN destination_segments s
		WHERE d.id = @destination AND s.destination_id = @destination AND s.segment_id = @segment
		ORDER BY t.id` + upsert + `
			a.generation < excluded.generation`
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	ids = slices.Compact(ids)
	allowed := make([]bool, len(ids))
	gate := Gate{Purposes: g.Purposes, Mode: g.Mode}
	const together = 1000
	for i := 0; i < len(ids); i += together {
		part := ids[i:min(i+together, len(ids))]
		var persons map[ProfileID]Person
		if len(gate.Purposes) > 0 {
			var err error
			if persons, err = f.people.People(ctx, lane, g.Workspace, part); err != nil {
				return err
			}
		}
		for k, id := range part {
			allowed[i+k] = gate.Allows(persons[id].Consent)
		}
	}
	args := g.args()
	args["lane"], args["ids"], args["allowed"] = lane, ids, allowed
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
			member     = false,
			wanted     = false,
			version    = CASE WHEN a.wanted THEN a.version + 1 ELSE a.version END,
			changed_at = CASE WHEN a.wanted THEN now() ELSE a.changed_at END,
			message_id = CASE WHEN a.wanted THEN '' ELSE a.message_id END,
			cause      = CASE WHEN a.wanted THEN @cause ELSE a.cause END,
			reason     = CASE WHEN a.wanted THEN '' ELSE a.reason END,
			next_at    = CASE WHEN a.wanted THEN now() ELSE a.next_at END,
			batch_id   = CASE
				WHEN NOT a.wanted OR a.status = 'claimed' OR a.status = 'accepted' AND a.sent IS NULL THEN a.batch_id END,
			status     = CASE
				WHEN NOT a.wanted OR a.status = 'claimed' OR a.status = 'accepted' AND a.sent IS NULL THEN a.status
				WHEN NOT a.sent AND a.sent_identifiers IS NULL THEN 'settled'
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

// finish ends a filling. A detached segment is kept, for its audience's sake, until the partner holds nobody because of it.
func (f *filler) finish(ctx context.Context, g filling) error {
	const query = `
		UPDATE destination_segments
		SET filled = true, resetting = false
		WHERE destination_id = @destination AND segment_id = @segment AND generation = @generation`
	_, err := f.pool.Exec(ctx, query, g.args())
	return err
}

// errBusy says that messages to the audience of before are under way.
var errBusy = errors.New("messages are under way")

// reset forgets what was sent to an audience that is not the segment's any more. Nothing is claimed meanwhile; what was
// claimed before is waited for.
func (f *filler) reset(ctx context.Context, g filling) error {
	const busy = `
		SELECT EXISTS (
			SELECT
			FROM activation_batches
			WHERE lane = ANY(@lanes::smallint[]) AND destination_id = @destination AND segment_id = @segment
				AND claim_token IS NOT NULL)`
	const rows = `
		WITH chosen AS (
			SELECT profile_id
			FROM activations
			WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment
				AND (sent IS DISTINCT FROM false OR sent_identifiers IS NOT NULL OR batch_id IS NOT NULL)
			ORDER BY profile_id
			LIMIT @chunk
			FOR UPDATE
		)
		UPDATE activations a
		SET sent = false, sent_identifiers = NULL, renew_at = NULL, batch_id = NULL, version = a.version + 1,
			status = CASE WHEN a.wanted THEN 'pending' ELSE 'settled' END, reason = '', next_at = now()
		FROM chosen s
		WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment
			AND a.profile_id = s.profile_id`
	var found bool
	err := f.pool.QueryRow(ctx, busy, pgx.StrictNamedArgs{
		"lanes": laneNumbers(f.lanes), "destination": g.Destination, "segment": g.Segment,
	}).Scan(&found)
	if err != nil {
		return err
	}
	if found {
		return errBusy
	}
	for lane := range f.lanes {
		for _, query := range []string{
			rows,
			`DELETE FROM activation_batches
			WHERE lane = @lane AND id IN (
				SELECT id FROM activation_batches
				WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment LIMIT @chunk)`,
			`DELETE FROM activation_receipts
			WHERE lane = @lane AND id IN (
				SELECT id FROM activation_receipts
				WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment LIMIT @chunk)`,
			`DELETE FROM holdings
			WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment AND identifier IN (
				SELECT identifier FROM holdings
				WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment LIMIT @chunk)`,
		} {
			for more := true; more; {
				err := pgx.BeginFunc(ctx, f.pool, func(tx pgx.Tx) error {
					if err := f.hold(ctx, tx, g); err != nil {
						return err
					}
					tag, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
						"lane": lane, "destination": g.Destination, "segment": g.Segment, "chunk": chunk,
					})
					more = tag.RowsAffected() == chunk
					return err
				})
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func laneNumbers(lanes int) []int16 {
	all := make([]int16, lanes)
	for i := range all {
		all[i] = int16(i)
	}
	return all
}

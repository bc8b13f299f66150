package activation

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Two profiles may be known by the same identifier in the same audience: a couple that shares an address, a visitor and the
// user that the visitor turns out to be. The partner knows one member then, so
//
//   - a remove must not take away what another row still stands for, and
//   - an add must not be overtaken by a remove of the same identifier that is under way.
//
// A row of holdings counts, for one identifier in one audience, the rows of activations that have it among their
// sent_identifiers. Both are written in the transaction that persists a message, before it is sent; so whatever a partner
// may have applied is counted, wherever we crash. Whoever persists a message locks the holdings of all its identifiers, in
// one order, so of two messages about one identifier one is decided first:
//
//	add of x, nobody removes it        counted, sent
//	add of x, its remove is in flight  the member waits until that is answered: a claimed batch, or a receipt not yet
//	                                   polled, is in flight
//	add of x, its remove is to be      counted, sent; the mark (removing) is wiped out, and whoever claims the remove
//	  tried again later                again finds fewer marks than its body takes away, and makes a new body
//	remove of x by its only holder     marked, sent; uncounted when it is acknowledged
//	remove of x, others hold it        uncounted, not sent: moved says that it is there by now because of the others
//	                                   alone, even if their adds fail
//	remove of x that was never sent    uncounted, not sent, unless moved: a message was persisted and refused, or known
//	                                   not to have arrived
//
// Crashes: before the transaction nothing has happened. Between it and the sending, or before the answer is recorded, the
// lease runs out and the same bytes are sent again, under the same marks. Recording the answer is one transaction with the
// uncounting. A sender that is slower than its lease finds its claim lost, and changes nothing; its request has ended before
// that by its deadline.
//
// Interleavings of a merge, in which a, known by x, leaves and b, known by x, enters:
//
//	b added, then a removed            a's remove is not sent
//	a's remove in flight, b added      b waits, then is sent
//	a's remove unanswered, b added     as "to be tried again": b is sent, a's remove is made anew, and not sent
//	both in one message                adds are counted before removes are decided
//
// and with b failing: a's remove is not sent, x stays, moved. b is wanted, so x may be there; when b leaves, x is removed.

// holding is a locked row of holdings.
type holding struct {
	handle   handle
	holders  int32
	moved    bool
	removing *int64
	changed  bool
}

// The statements below look each identifier up by itself: what a planner makes of a join here depends on what it knows of
// the table, and of one that has just begun to fill it knows nothing. They name rows by ctid only once they have locked them.

// weigh locks what is held of some identifiers in a claim's audience.
func (q *queue) weigh(ctx context.Context, tx pgx.Tx, c *claim, handles []handle) (map[handle]*holding, error) {
	const query = `
		SELECT h.identifier, h.holders, h.moved, h.removing
		FROM (
			SELECT DISTINCT lane, identifier
			FROM unnest(@lanes::smallint[], @handles::uuid[]) AS t (lane, identifier)
			ORDER BY lane, identifier
		) AS t
		CROSS JOIN LATERAL (
			SELECT identifier, holders, moved, removing
			FROM holdings
			WHERE lane = t.lane AND destination_id = @destination AND segment_id = @segment AND identifier = t.identifier
			FOR UPDATE
		) AS h`
	held := make(map[handle]*holding, len(handles))
	if len(handles) == 0 {
		return held, nil
	}
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{
		"lanes": q.lanesOf(handles), "handles": handles, "destination": c.destination, "segment": c.segment,
	})
	var h holding
	_, err := pgx.ForEachRow(rows, []any{(*[16]byte)(&h.handle), &h.holders, &h.moved, &h.removing}, func() error {
		one := h
		held[h.handle] = &one
		h.removing = nil
		return nil
	})
	return held, err
}

func (q *queue) lanesOf(handles []handle) []int16 {
	lanes := make([]int16, len(handles))
	for i, h := range handles {
		lanes[i] = int16(h.lane(q.lanes))
	}
	return lanes
}

// hold counts identifiers as held by so many more rows and returns the messages that take some of them away.
func (q *queue) hold(ctx context.Context, tx pgx.Tx, c *claim, more map[handle]int32) (removing map[handle]int64, err error) {
	const query = `
		INSERT INTO holdings AS h (lane, destination_id, segment_id, identifier, holders)
		SELECT lane, @destination, @segment, identifier, holders
		FROM unnest(@lanes::smallint[], @handles::uuid[], @holders::integer[]) AS t (lane, identifier, holders)
		ORDER BY lane, identifier
		ON CONFLICT (lane, destination_id, segment_id, identifier) DO UPDATE
		SET holders = h.holders + excluded.holders
		RETURNING identifier, coalesce(removing, 0)`
	removing = map[handle]int64{}
	if len(more) == 0 {
		return removing, nil
	}
	handles, holders := make([]handle, 0, len(more)), make([]int32, 0, len(more))
	for h, n := range more {
		handles, holders = append(handles, h), append(holders, n)
	}
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{
		"lanes": q.lanesOf(handles), "handles": handles, "holders": holders, "destination": c.destination,
		"segment": c.segment,
	})
	var (
		h  handle
		by int64
	)
	_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&h), &by}, func() error {
		if by != 0 {
			removing[h] = by
		}
		return nil
	})
	return removing, err
}

// inFlight tells which of some messages may be applied by the partner at any time, and when to look again.
func (q *queue) inFlight(ctx context.Context, tx pgx.Tx, batches []int64) (map[int64]time.Duration, error) {
	const query = `
		SELECT id, 0::float8
		FROM activation_batches
		WHERE lane = ANY(@lanes::smallint[]) AND id = ANY(@ids) AND claim_token IS NOT NULL
		UNION ALL
		SELECT id, greatest(extract(epoch FROM poll_at - now()), 0)::float8
		FROM activation_receipts
		WHERE lane = ANY(@lanes::smallint[]) AND id = ANY(@ids) AND poll_at IS NOT NULL`
	flying := map[int64]time.Duration{}
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneNumbers(q.lanes), "ids": batches})
	var (
		id      int64
		seconds float64
	)
	_, err := pgx.ForEachRow(rows, []any{&id, &seconds}, func() error {
		flying[id] = awaitPause + time.Duration(seconds*float64(time.Second))
		return nil
	})
	return flying, err
}

// keep writes holdings that were weighed and changed.
func (q *queue) keep(ctx context.Context, tx pgx.Tx, c *claim, held map[handle]*holding) error {
	const remove = `
		DELETE FROM holdings
		WHERE ctid = ANY (ARRAY (
			SELECT h.ctid
			FROM unnest(@lanes::smallint[], @handles::uuid[]) AS t (lane, identifier)
			CROSS JOIN LATERAL (
				SELECT ctid
				FROM holdings
				WHERE lane = t.lane AND destination_id = @destination AND segment_id = @segment AND identifier = t.identifier
				OFFSET 0
			) AS h))`
	const update = `
		UPDATE holdings h
		SET holders = t.holders, moved = t.moved, removing = t.removing
		FROM (
			SELECT t.*, h.row
			FROM unnest(@lanes::smallint[], @handles::uuid[], @holders::integer[], @moved::boolean[], @removing::bigint[])
				AS t (lane, identifier, holders, moved, removing)
			CROSS JOIN LATERAL (
				SELECT ctid AS row
				FROM holdings
				WHERE lane = t.lane AND destination_id = @destination AND segment_id = @segment AND identifier = t.identifier
				OFFSET 0
			) AS h
		) AS t
		WHERE h.ctid = t.row`
	var (
		gone, changed []handle
		holders       []int32
		moved         []bool
		removing      []*int64
	)
	for _, h := range held {
		switch {
		case !h.changed:
		case h.holders <= 0:
			gone = append(gone, h.handle)
		default:
			changed, holders = append(changed, h.handle), append(holders, h.holders)
			moved, removing = append(moved, h.moved), append(removing, h.removing)
		}
	}
	var batch pgx.Batch
	if len(gone) > 0 {
		batch.Queue(remove, pgx.StrictNamedArgs{
			"lanes": q.lanesOf(gone), "handles": gone, "destination": c.destination, "segment": c.segment,
		})
	}
	if len(changed) > 0 {
		batch.Queue(update, pgx.StrictNamedArgs{
			"lanes": q.lanesOf(changed), "handles": changed, "holders": holders, "moved": moved, "removing": removing,
			"destination": c.destination, "segment": c.segment,
		})
	}
	if batch.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, &batch).Close()
}

// give takes one row's part in held identifiers back, and returns those that the partner has to be told to remove, with the
// details that go with them only if they are all. applied says that the partner may have them because of the row.
func give(held map[handle]*holding, ids Identifiers, applied bool, batch int64) (remove Identifiers) {
	for _, id := range ids.IDs {
		h := held[handleOf(id)]
		switch {
		case h == nil: // cannot be; removing once too often does no harm
			remove.IDs = append(remove.IDs, id)
			continue
		case h.holders > 1:
			h.holders--
			h.moved = h.moved || applied
		case !applied && !h.moved:
			h.holders = 0
		default:
			h.removing = &batch
			remove.IDs = append(remove.IDs, id)
		}
		h.changed = true
	}
	if len(remove.IDs) == len(ids.IDs) {
		remove.Details = ids.Details
	}
	return remove
}

// removed ends the holdings of members whose remove is acknowledged.
func (q *queue) removed(ctx context.Context, tx pgx.Tx, c *claim, members []claimed) error {
	var handles []handle
	for _, m := range members {
		handles = append(handles, m.ids.handles()...)
	}
	if len(handles) == 0 {
		return nil
	}
	held, err := q.weigh(ctx, tx, c, distinct(handles))
	if err != nil {
		return err
	}
	for _, h := range handles {
		if row := held[h]; row != nil {
			row.holders--
			row.removing, row.moved, row.changed = nil, false, true
		}
	}
	return q.keep(ctx, tx, c, held)
}

func distinct(handles []handle) []handle {
	slices.SortFunc(handles, func(a, b handle) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(handles)
}

// stillRemoving locks what a message is to take away and tells of how many identifiers that still holds.
func (q *queue) stillRemoving(ctx context.Context, tx pgx.Tx, batch int64) (n int, err error) {
	const query = `
		SELECT count(*)
		FROM (
			SELECT
			FROM holdings
			WHERE removing = @id
			ORDER BY lane, identifier
			FOR UPDATE
		) h`
	err = tx.QueryRow(ctx, query, pgx.StrictNamedArgs{"id": batch}).Scan(&n)
	return n, err
}

// unmark says that a message which was to take identifiers away will not.
func (q *queue) unmark(ctx context.Context, tx pgx.Tx, batch int64) error {
	if _, err := q.stillRemoving(ctx, tx, batch); err != nil {
		return err
	}
	const query = `UPDATE holdings SET removing = NULL WHERE removing = @id`
	_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"id": batch})
	return err
}

package activation

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// ConfigLock is the advisory lock that keeps the set of attached segments still. Whoever writes activations because a
// segment is attached holds it shared until the end of its transaction; whoever attaches or detaches holds it exclusively.
// So once a segment's attaching is committed, every later change knows of it and every earlier one is committed too.
const ConfigLock int64 = 0x6d756201

// Ledger takes in what partners should be told.
type Ledger struct {
	changes prometheus.Counter
	rows    prometheus.Counter
}

// NewLedger returns a ledger that counts in reg.
func NewLedger(reg prometheus.Registerer) *Ledger {
	return &Ledger{
		changes: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "mubatch_activation_changes_total",
			Help: "Changes of membership handed to activation.",
		}),
		rows: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "mubatch_activation_enqueued_rows_total",
			Help: "Rows of the ledger that those changes wrote, one for each destination.",
		}),
	}
}

// Enqueue makes the changes of one lane the wanted state of every destination that their segments are attached to, in the
// caller's transaction, which must be read committed. It returns how many rows it wrote: if any, wake the dispatcher after
// the commit.
//
// Of several changes of one person in one segment the last in the slice counts. A change to what the partner is known to
// hold settles the row and nothing is sent. A leaving without a row is written down all the same, so that an attaching
// that runs at the same time and still saw the member cannot bring it back.
func (l *Ledger) Enqueue(ctx context.Context, tx pgx.Tx, lane int, changes []Change) (n int, err error) {
	if len(changes) == 0 {
		return 0, nil
	}
	const lock = `SELECT pg_advisory_xact_lock_shared(@lock)`
	// Rows are taken in the order of the primary key, as everybody does who locks several, so that nobody deadlocks.
	const query = `
		INSERT INTO activations AS a
			(lane, destination_id, segment_id, profile_id, generation, wanted, version, status, next_at,
			 changed_at, message_id, cause)
		SELECT @lane, s.destination_id, s.segment_id, c.profile_id, s.generation, c.wanted, 1,
			CASE WHEN c.wanted THEN 'pending' ELSE 'settled' END, now(),
			c.changed_at, c.message_id, c.cause
		FROM unnest(@segments::bigint[], @profiles::uuid[], @wanted::boolean[], @changed::timestamptz[],
			@messages::text[], @causes::text[]) AS c (segment_id, profile_id, wanted, changed_at, message_id, cause)
		JOIN destination_segments s ON s.segment_id = c.segment_id AND s.attached
		ORDER BY s.destination_id, s.segment_id, c.profile_id
		ON CONFLICT (lane, destination_id, segment_id, profile_id) DO UPDATE
		SET generation = excluded.generation,
			wanted     = excluded.wanted,
			version    = CASE WHEN a.wanted = excluded.wanted THEN a.version ELSE a.version + 1 END,
			changed_at = CASE WHEN a.wanted = excluded.wanted THEN a.changed_at ELSE excluded.changed_at END,
			message_id = CASE WHEN a.wanted = excluded.wanted THEN a.message_id ELSE excluded.message_id END,
			cause      = CASE WHEN a.wanted = excluded.wanted THEN a.cause ELSE excluded.cause END,
			reason     = CASE WHEN a.wanted = excluded.wanted THEN a.reason ELSE '' END,
			next_at    = CASE WHEN a.wanted = excluded.wanted THEN a.next_at ELSE excluded.next_at END,
			batch_id   = CASE WHEN a.wanted = excluded.wanted OR a.status = 'claimed' THEN a.batch_id END,
			status     = CASE
				WHEN a.wanted = excluded.wanted OR a.status = 'claimed' THEN a.status
				WHEN a.sent = excluded.wanted THEN 'settled'
				ELSE 'pending' END
		WHERE a.wanted <> excluded.wanted OR a.generation <> excluded.generation`
	folded := fold(changes)
	var (
		segmentIDs = make([]int64, len(folded))
		profileIDs = make([]ProfileID, len(folded))
		wanted     = make([]bool, len(folded))
		changed    = make([]time.Time, len(folded))
		messages   = make([]string, len(folded))
		causes     = make([]string, len(folded))
	)
	for i, c := range folded {
		segmentIDs[i], profileIDs[i], wanted[i] = c.Segment, c.Profile, c.Entered
		changed[i], messages[i], causes[i] = c.At, c.MessageID, c.Cause
	}
	var batch pgx.Batch
	batch.Queue(lock, pgx.StrictNamedArgs{"lock": ConfigLock})
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": lane, "segments": segmentIDs, "profiles": profileIDs, "wanted": wanted, "changed": changed,
		"messages": messages, "causes": causes,
	}).Exec(func(tag pgconn.CommandTag) error {
		n = int(tag.RowsAffected())
		return nil
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return 0, fmt.Errorf("enqueue %d changes of lane %d: %w", len(folded), lane, err)
	}
	l.changes.Add(float64(len(changes)))
	l.rows.Add(float64(n))
	return n, nil
}

// fold keeps the last change of each person in each segment.
func fold(changes []Change) []Change {
	folded := slices.Clone(changes)
	slices.SortStableFunc(folded, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Segment, b.Segment), bytes.Compare(a.Profile[:], b.Profile[:]))
	})
	kept := folded[:0]
	for _, c := range folded {
		if last := len(kept) - 1; last >= 0 && kept[last].Segment == c.Segment && kept[last].Profile == c.Profile {
			kept[last] = c
		} else {
			kept = append(kept, c)
		}
	}
	return kept
}

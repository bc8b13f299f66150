package activation

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
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
	events  *prometheus.CounterVec

	subscriptions subscriptionCache
}

// NewLedger returns a ledger that counts in reg.
func NewLedger(reg prometheus.Registerer) *Ledger {
	events := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "mubatch_activation_events_total",
		Help: "Events that destinations subscribe to, by whether they were enqueued or denied for want of consent.",
	}, []string{"outcome"})
	for _, outcome := range []string{"enqueued", "denied"} {
		events.WithLabelValues(outcome)
	}
	return &Ledger{
		events: events,
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

// upsert is how a row is brought to what is wanted now, given as excluded, wherever that is decided. excluded.identity is 1
// if the person's identifiers are to be compared with those that were sent, which they are after every entering.
//
// A row that is being sent stays claimed: what was sent is settled first, then the row is looked at again. So is a remove
// that the partner has accepted and not yet carried out (accepted, with sent null): an add must not overtake it. An add that
// is accepted may well be overtaken by a remove.
//
// What nobody was ever sent need not be removed. sent_identifiers that are there although nothing was sent are reserved, and
// have to be given back first.
const upsert = `
	ON CONFLICT (lane, destination_id, segment_id, profile_id) DO UPDATE
	SET generation = excluded.generation,
		member     = excluded.member,
		allowed    = CASE WHEN excluded.member THEN excluded.allowed ELSE a.allowed END,
		wanted     = excluded.wanted,
		version    = CASE WHEN a.wanted = excluded.wanted THEN a.version ELSE a.version + 1 END,
		changed_at = CASE WHEN a.wanted = excluded.wanted THEN a.changed_at ELSE excluded.changed_at END,
		message_id = CASE WHEN a.wanted = excluded.wanted THEN a.message_id ELSE excluded.message_id END,
		cause      = CASE
			WHEN a.wanted = excluded.wanted THEN a.cause
			WHEN a.member = excluded.member THEN 'consent'
			ELSE excluded.cause END,
		identity         = a.identity + excluded.identity,
		identity_at      = CASE WHEN excluded.identity > 0 THEN excluded.changed_at ELSE a.identity_at END,
		identity_message = CASE WHEN excluded.identity > 0 THEN excluded.message_id ELSE a.identity_message END,
		reason     = CASE WHEN a.wanted = excluded.wanted AND excluded.identity = 0 THEN a.reason ELSE '' END,
		next_at    = CASE
			WHEN a.wanted = excluded.wanted AND (excluded.identity = 0 OR NOT a.wanted) THEN a.next_at
			WHEN NOT excluded.wanted AND excluded.next_at < 'infinity'
				AND (a.member = excluded.member OR excluded.cause IN ('consent', 'erasure')) THEN now()
			WHEN a.status = 'pending' THEN least(a.next_at, excluded.next_at)
			ELSE excluded.next_at END,
		batch_id   = CASE
			WHEN a.wanted = excluded.wanted AND (excluded.identity = 0 OR NOT a.wanted) THEN a.batch_id
			WHEN a.status = 'claimed' OR a.status = 'accepted' AND a.sent IS NULL THEN a.batch_id END,
		status     = CASE
			WHEN a.wanted = excluded.wanted AND (excluded.identity = 0 OR NOT a.wanted) THEN a.status
			WHEN a.status = 'claimed' OR a.status = 'accepted' AND a.sent IS NULL THEN a.status
			WHEN a.sent = excluded.wanted AND a.sent_identifiers IS NULL AND NOT (a.wanted AND excluded.identity > 0)
				THEN 'settled'
			ELSE 'pending' END
	WHERE `

// Enqueue makes the changes of one lane the wanted state of every destination that their segments are attached to, in the
// caller's transaction, which must be read committed. It returns how many rows it wrote: if any, wake the dispatcher after
// the commit.
//
// Wanted is who is in the segment and has given the consent that the destination asks for. Of several changes of one person
// in one segment the last in the slice counts. A change to what the partner is known to hold settles the row and nothing is
// sent. A leaving without a row is written down all the same, so that an attaching that runs at the same time and still saw
// the member cannot bring it back.
func (l *Ledger) Enqueue(ctx context.Context, tx pgx.Tx, lane int, changes []Change) (n int, err error) {
	if len(changes) == 0 {
		return 0, nil
	}
	const lock = `SELECT pg_advisory_xact_lock_shared(@lock)`
	// Rows are taken in the order of the primary key, as everybody does who locks several, so that nobody deadlocks.
	const query = `
		WITH attached AS MATERIALIZED (
			SELECT s.segment_id, s.destination_id, s.generation, d.purposes, d.consent_mode, d.by_profile,
				greatest(now() + d.linger, s.ready_at) AS next_at
			FROM destination_segments s
			JOIN destinations d ON d.id = s.destination_id
			WHERE s.segment_id = ANY(@segments) AND s.attached
		), gates AS MATERIALIZED (
			SELECT g.purposes, g.consent_mode, t.set,
				NOT EXISTS (
					SELECT
					FROM unnest(g.purposes) AS p (purpose)
					WHERE CASE g.consent_mode
						WHEN 'granted' THEN t.consent -> p.purpose IS DISTINCT FROM 'true'
						ELSE t.consent -> p.purpose = 'false' END) AS allows
			FROM (SELECT DISTINCT purposes, consent_mode FROM attached) g
			CROSS JOIN unnest(@consents::text[]::jsonb[]) WITH ORDINALITY AS t (consent, set)
		)
		INSERT INTO activations AS a
			(lane, destination_id, segment_id, profile_id, generation, member, allowed, wanted, version, identity, status,
			 next_at, changed_at, message_id, cause)
		SELECT @lane, s.destination_id, s.segment_id, c.profile_id, s.generation, c.member, g.allows, c.member AND g.allows, 1,
			CASE WHEN c.member AND NOT s.by_profile THEN 1 ELSE 0 END,
			CASE WHEN c.member AND g.allows THEN 'pending' ELSE 'settled' END, s.next_at,
			c.changed_at, c.message_id, c.cause
		FROM unnest(@segments::bigint[], @profiles::uuid[], @members::boolean[], @sets::integer[], @changed::timestamptz[],
			@messages::text[], @causes::text[]) AS c (segment_id, profile_id, member, set, changed_at, message_id, cause)
		JOIN attached s ON s.segment_id = c.segment_id
		JOIN gates g ON g.purposes = s.purposes AND g.consent_mode = s.consent_mode AND g.set = c.set
		ORDER BY s.destination_id, s.segment_id, c.profile_id` + upsert + `
			a.wanted <> excluded.wanted OR a.generation <> excluded.generation OR a.member <> excluded.member
			OR excluded.identity > 0 OR excluded.member AND a.allowed <> excluded.allowed`
	folded := fold(changes)
	var (
		segmentIDs = make([]int64, len(folded))
		profileIDs = make([]ProfileID, len(folded))
		members    = make([]bool, len(folded))
		sets       = make([]int32, len(folded))
		changed    = make([]time.Time, len(folded))
		messages   = make([]string, len(folded))
		causes     = make([]string, len(folded))
		known      consents
	)
	for i, c := range folded {
		segmentIDs[i], profileIDs[i], members[i], sets[i] = c.Segment, c.Profile, c.Entered, known.number(c.Consent)
		changed[i], messages[i], causes[i] = c.At, c.MessageID, c.Cause
	}
	var batch pgx.Batch
	batch.Queue(lock, pgx.StrictNamedArgs{"lock": ConfigLock})
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": lane, "segments": segmentIDs, "profiles": profileIDs, "members": members, "sets": sets,
		"consents": known.texts, "changed": changed, "messages": messages, "causes": causes,
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

// consents are the different sets of decisions among many people, which are few.
type consents struct {
	texts []string // as JSON
	index map[string]int32
}

// number returns the place of a set, counted from 1.
func (c *consents) number(consent map[string]bool) int32 {
	text := "{}"
	if len(consent) > 0 {
		text = consentText(effective(consent))
	}
	n, ok := c.index[text]
	if !ok {
		if c.index == nil {
			c.index = map[string]int32{}
		}
		c.texts = append(c.texts, text)
		n = int32(len(c.texts))
		c.index[text] = n
	}
	return n
}

// consentText returns decisions as JSON, the same for the same ones.
func consentText(consent map[string]bool) string {
	b := []byte{'{'}
	for i, purpose := range slices.Sorted(maps.Keys(consent)) {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, purpose) // what is no UTF-8 becomes so
		b = append(b, ':')
		b = strconv.AppendBool(b, consent[purpose])
	}
	return string(append(b, '}'))
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

package activation

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
)

// noSegment is what batches, receipts and lines of the ledger have for a segment that are about events.
const noSegment = 0

// ofEvents tells whether a claim is about events. Then a member's Version is the number of its conversion, and its Profile
// the key of the identifier whose event it is.
func (c *claim) ofEvents() bool { return c.segment == noSegment }

// conversion is an event that a destination is told of.
type conversion struct {
	subscription int64
	name         string
	at           time.Time
	body         []byte
	settled      bool     // it was doubted for so long that what is known of the person is all there will be
	mapping      *Mapping // nil if the subscription is gone
	event        Event    // once it is known whose it is
}

const conversionColumns = `c.id, c.subscription_id, c.person, c.message_id, c.name, c.event_at, c.received_at, c.body,
			coalesce(c.doubted_at < now() - interval '1 minute', false), s.mapping`

func scanConversion(row pgx.CollectableRow) (m claimed, err error) {
	var mapping *string
	e := &conversion{}
	err = row.Scan(&m.Version, &e.subscription, &m.Profile, &m.MessageID, &e.name, &e.at, &m.ChangedAt, &e.body, &e.settled,
		&mapping)
	if err == nil && mapping != nil {
		e.mapping = &Mapping{}
		err = json.Unmarshal([]byte(*mapping), e.mapping)
	}
	m.Wanted, m.Entered, m.Cause, m.event = true, true, "event", e
	return m, err
}

// claimEvents takes events that are due in a lane for a destination, as many as fit into one message: those first that were
// received first. It returns nil if none are, or if others have them; again tells that something else may be due. A batch
// that was tried before is taken as it was, unless some of its events are gone: then the others become a batch of their own.
func (q *queue) claimEvents(ctx context.Context, lane int, l *line) (c *claim, again bool, err error) {
	const oldest = `
		SELECT c.batch_id
		FROM destinations d
		CROSS JOIN LATERAL (
			SELECT batch_id
			FROM conversions
			WHERE lane = @lane AND destination_id = d.id AND status = 'pending' AND next_at <= now()
			ORDER BY next_at
			LIMIT 1
		) c
		WHERE ` + reachable
	const rows = `
		SELECT ` + conversionColumns + `
		FROM conversions c
		LEFT JOIN event_subscriptions s ON s.id = c.subscription_id
		WHERE c.lane = @lane AND c.destination_id = @destination AND c.status = 'pending' AND c.next_at <= now() + @linger
			AND c.batch_id IS NULL
		ORDER BY c.next_at, c.id
		LIMIT @limit
		FOR UPDATE OF c SKIP LOCKED`
	taken := time.Now()
	err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		// A claim that a crash undoes was not sent yet: the body is written, durably, in a transaction after this one.
		const async = `SET LOCAL synchronous_commit = off`
		var (
			batch *int64
			first pgx.Batch
		)
		first.Queue(async)
		first.Queue(oldest, pgx.StrictNamedArgs{
			"lane": lane, "destination": l.target.ID, "version": l.target.version, "secrets": l.target.secrets,
		}).QueryRow(func(row pgx.Row) error { return row.Scan(&batch) })
		err := tx.SendBatch(ctx, &first).Close()
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		fresh := claim{
			lane: lane, workspace: l.target.Workspace, destination: l.target.ID, version: l.target.version, segment: noSegment, byProfile: true,
			key: newMessageKey(), taken: taken, created: taken,
		}
		rand.Read(fresh.token[:])
		if batch != nil {
			c, err = q.claimEventBatch(ctx, tx, fresh, *batch)
			again = c == nil
			return err
		}
		found, _ := tx.Query(ctx, rows, pgx.StrictNamedArgs{
			"lane": lane, "destination": l.target.ID, "linger": l.limits.Linger, "limit": l.limits.Events,
		})
		if fresh.members, err = pgx.CollectRows(found, scanConversion); err != nil || len(fresh.members) == 0 {
			return err
		}
		slices.SortStableFunc(fresh.members, func(a, b claimed) int {
			return cmp.Or(a.ChangedAt.Compare(b.ChangedAt), cmp.Compare(a.Version, b.Version))
		})
		c = &fresh
		return q.insert(ctx, tx, c)
	})
	if err != nil {
		return nil, false, fmt.Errorf("claim events of lane %d for destination %d: %w", lane, l.target.ID, err)
	}
	return c, again, nil
}

// claimEventBatch takes a batch of events that was tried before.
func (q *queue) claimEventBatch(ctx context.Context, tx pgx.Tx, c claim, id int64) (*claim, error) {
	const lock = `
		SELECT message_key, versions, body, tries + 1, attempts, created_at
		FROM activation_batches
		WHERE lane = @lane AND id = @id AND claim_token IS NULL
		FOR UPDATE SKIP LOCKED`
	// Rows that wait for a batch which is not there would wait for ever.
	const orphans = `
		UPDATE conversions
		SET batch_id = NULL
		WHERE lane = @lane AND destination_id = @destination AND status = 'pending' AND batch_id = @id
			AND NOT EXISTS (SELECT FROM activation_batches WHERE lane = @lane AND id = @id)`
	const rows = `
		SELECT ` + conversionColumns + `
		FROM conversions c
		LEFT JOIN event_subscriptions s ON s.id = c.subscription_id
		WHERE c.lane = @lane AND c.destination_id = @destination AND c.id = ANY(@ids) AND c.batch_id = @id
			AND c.status = 'pending'
		ORDER BY c.id
		FOR UPDATE OF c`
	const take = `
		WITH batch AS (
			UPDATE activation_batches
			SET tries = tries + 1, claim_token = @token, lease_until = now() + @lease
			WHERE lane = @lane AND id = @id
		)
		UPDATE conversions
		SET status = 'claimed'
		WHERE lane = @lane AND destination_id = @destination AND id = ANY(@ids) AND batch_id = @id`
	args := func(more pgx.StrictNamedArgs) pgx.StrictNamedArgs {
		more["lane"], more["id"] = c.lane, id
		return more
	}
	var (
		key    string
		ids    []int64
		sealed []byte
	)
	err := tx.QueryRow(ctx, lock, args(pgx.StrictNamedArgs{})).
		Scan(&key, &ids, &sealed, &c.tries, &c.attempts, &c.created)
	if errors.Is(err, pgx.ErrNoRows) {
		_, err := tx.Exec(ctx, orphans, args(pgx.StrictNamedArgs{"destination": c.destination}))
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	found, _ := tx.Query(ctx, rows, args(pgx.StrictNamedArgs{"destination": c.destination, "ids": ids}))
	members, err := pgx.CollectRows(found, scanConversion)
	if err != nil {
		return nil, err
	}
	byID := make(map[int64]claimed, len(members))
	for _, m := range members {
		byID[m.Version] = m
	}
	for _, id := range ids { // in the order in which the body has them
		if m, ok := byID[id]; ok {
			c.members = append(c.members, m)
		}
	}
	if len(c.members) < len(ids) {
		if err := q.forget(ctx, tx, c.lane, id, 0); err != nil || len(c.members) == 0 {
			return nil, err
		}
		return &c, q.insert(ctx, tx, &c)
	}
	c.id, c.key = id, key
	if sealed != nil {
		if c.body, err = q.ring.Open(bodyOf(c.workspace, id), sealed); err != nil {
			return nil, err
		}
	}
	_, err = tx.Exec(ctx, take, args(pgx.StrictNamedArgs{
		"destination": c.destination, "ids": ids, "token": c.token, "lease": q.lease,
	}))
	return &c, err
}

// events returns the members of a claim as a partner sees them.
func (c *claim) events() []EventRef {
	refs := make([]EventRef, len(c.members))
	for i, m := range c.members {
		refs[i] = EventRef{MessageID: m.MessageID, Name: m.event.name, Profile: m.whose()}
	}
	return refs
}

// whose returns the profile that the ledger has for a member.
func (m claimed) whose() ProfileID {
	if m.event != nil && m.person.ID != (ProfileID{}) {
		return m.person.ID
	}
	return m.Profile
}

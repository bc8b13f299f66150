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
			lane: lane, workspace: l.target.Workspace, destination: l.target.ID, segment: noSegment, byProfile: true,
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

// doubtEvery is how often an event is looked at again whose person is not there or may not be sent. Lanes tell one another
// of people and consent, and one that is behind may not have heard yet: what is so for a minute is taken to be true.
const doubtEvery = time.Second

// prepareEvents makes the body of a claim of events and keeps it, so that whoever tries again sends the same bytes, and
// looks whether each of them may still be sent. It tells whether the message is to be sent as it is.
func (d *Dispatcher) prepareEvents(ctx context.Context, l *line, c *claim) (ready bool, err error) {
	p, err := d.planEvents(ctx, l, c)
	if err != nil {
		return false, err
	}
	switch {
	case len(p.results) == 0 && c.body != nil:
		c.members = p.send
		return true, nil
	case len(p.send) == 0:
		return false, d.queue.drop(ctx, c, p)
	case c.body != nil: // the message has to be made anew, under another key
		var what decision
		what.retry(p.send, len(c.members), c.attempts, 0, "")
		what.rows = append(what.rows, p.results...)
		err := pgx.BeginFunc(ctx, d.queue.pool, func(tx pgx.Tx) error {
			ids, err := d.queue.lockClaim(ctx, tx, c, len(what.again))
			if err != nil {
				return err
			}
			return d.queue.applyDecision(ctx, tx, c, what, ids, false)
		})
		return false, err
	}
	return d.queue.persist(ctx, c, p, func(members []claimed) ([]byte, int, error) { return l.encodeEvents(c, members) })
}

// planEvents decides which events of a claim are sent.
func (d *Dispatcher) planEvents(ctx context.Context, l *line, c *claim) (p plan, err error) {
	partner, ok := l.target.partner.(EventPartner)
	if !ok {
		return p, fmt.Errorf("%w: %w", errEncode, ErrUnsupported)
	}
	var keys [][16]byte
	for _, m := range c.members {
		keys = append(keys, m.Profile)
	}
	persons, err := d.people.PeopleOf(ctx, l.target.Workspace, keys)
	if err != nil {
		return p, err
	}
	for _, m := range c.members {
		person, known := persons[m.Profile]
		m.person = person
		switch r := judgeEvent(partner, l, &m, known); {
		case r.status != "":
			p.results = append(p.results, r)
		case l.limits.OnePerson && c.body == nil && len(p.send) > 0 && !m.sameVisitor(p.send[0]):
			p.later = append(p.later, m)
		default:
			p.send = append(p.send, m)
		}
	}
	return p, nil
}

// sameVisitor tells whether two events are of the same user on the same device.
func (m claimed) sameVisitor(n claimed) bool {
	a, b := m.event.event, n.event.event
	return a.UserID == b.UserID && a.AnonymousID == b.AnonymousID
}

// judgeEvent makes an event ready to be sent, or returns what becomes of it instead.
func judgeEvent(partner EventPartner, l *line, m *claimed, known bool) result {
	e := m.event
	if l.limits.MaxAge > 0 && time.Since(e.at) > l.limits.MaxAge {
		return result{claimed: *m, status: expired, reason: "older than the partner takes"}
	}
	if e.mapping == nil {
		return result{claimed: *m, status: failed, reason: "the subscription was removed"}
	}
	final, reason := "", ""
	switch {
	case !known:
		final, reason = failed, "the profile is gone"
	case !l.target.gate.Allows(m.person.Consent):
		final, reason = denied, noConsent
	}
	if final != "" && !e.settled {
		return result{claimed: *m, status: doubted, wait: doubtEvery, reason: reason}
	}
	if final != "" {
		return result{claimed: *m, status: final, reason: reason}
	}
	if reason := e.ready(partner, l.target.Target, m); reason != "" {
		return result{claimed: *m, status: failed, reason: reason}
	}
	return result{}
}

// ready completes an event, or says why the partner cannot take it.
func (e *conversion) ready(partner EventPartner, to Target, m *claimed) (reason string) {
	event, err := decodeEvent(e.name, m.ChangedAt, e.body)
	if err != nil {
		return "the event cannot be read"
	}
	if event.Timestamp.IsZero() { // of a sample
		event.Timestamp = e.at
	}
	mapping, ok := partner.MapEvent(to, e.name)
	mapping = mapping.over(*e.mapping)
	if !ok && e.mapping.Name == "" {
		return "the partner has no name for such events"
	}
	event.Person, event.As, event.Fields = m.person, mapping.Name, mapping.apply(e.body)
	e.event = event
	return partner.RefuseEvent(to, event)
}

// encodeEvents makes the body about the first of some events.
func (l *line) encodeEvents(c *claim, members []claimed) (body []byte, took int, err error) {
	partner, ok := l.target.partner.(EventPartner)
	if !ok {
		return nil, 0, fmt.Errorf("%w: %w", errEncode, ErrUnsupported)
	}
	b := EventBatch{ID: c.id, At: time.Now(), Events: make([]Event, len(members))}
	for i, m := range members {
		b.Events[i] = m.event.event
	}
	body, took, err = partner.EncodeEvents(l.target.Target, b)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errEncode, err)
	}
	if took < 1 || took > len(members) {
		return nil, 0, fmt.Errorf("%w: took %d of %d events", errEncode, took, len(members))
	}
	return body, took, nil
}

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
	return changeDestination(ctx, tx, c.destination, what)
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

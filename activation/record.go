package activation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// attempt is one sending of a claim.
type attempt struct {
	started time.Time
	latency time.Duration
	outcome Outcome
}

// record writes down, in one transaction, how an attempt ended: what it means for the rows, the batch and the destination,
// and the ledger. If the claim was lost, only the ledger is written, and record returns errLost.
func (q *queue) record(ctx context.Context, c *claim, a attempt, d decision) error {
	if c.settles(d) {
		err := q.settle(ctx, c, a, d)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errLost) {
			return fmt.Errorf("record attempt at batch %d: %w", c.id, err)
		}
	}
	lost := false
	err := pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		ids, err := q.lockClaim(ctx, tx, c, len(d.again))
		if errors.Is(err, errLost) {
			lost = true
			return writeLedger(ctx, tx, c, a)
		}
		if err != nil {
			return err
		}
		if d.receipt != "" {
			if err := q.keepReceipt(ctx, tx, c, a, d); err != nil {
				return err
			}
		}
		if err := q.applyDecision(ctx, tx, c, d, ids, a.outcome.Unknown); err != nil {
			return err
		}
		if err := writeLedger(ctx, tx, c, a); err != nil {
			return err
		}
		return changeDestination(ctx, tx, c.destination, c.version, d)
	})
	if err != nil {
		return fmt.Errorf("record attempt at batch %d: %w", c.id, err)
	}
	if lost {
		return errLost
	}
	return nil
}

// settles tells whether a decision leaves nothing of a claim of people to be done but its rows and the ledger to be written.
func (c *claim) settles(d decision) bool {
	return !c.ofEvents() && len(d.again) == 0 && d.receipt == "" && d.status == "" && d.block == 0 &&
		(c.byProfile || c.removing == 0)
}

// settle does what [queue.record] does of a decision that [claim.settles], in one round trip between the beginning and the
// end of the transaction. If the claim was lost nothing is written.
func (q *queue) settle(ctx context.Context, c *claim, a attempt, d decision) error {
	const forget = `
		DELETE FROM activation_batches
		WHERE lane = @lane AND id = @id AND claim_token = @token
		RETURNING id`
	return pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		var batch pgx.Batch
		var id int64
		batch.Queue(forget, pgx.StrictNamedArgs{"lane": c.lane, "id": c.id, "token": c.token}).
			QueryRow(func(row pgx.Row) error { return row.Scan(&id) })
		if len(d.rows) > 0 {
			queueResults(&batch, c, d.rows, a.outcome.Unknown, nil)
		}
		queueLedger(&batch, c, a)
		err := tx.SendBatch(ctx, &batch).Close()
		if errors.Is(err, pgx.ErrNoRows) {
			return errLost
		}
		return err
	})
}

// release gives a claim back without an attempt, for a while.
func (q *queue) release(ctx context.Context, c *claim, wait time.Duration, reason string) error {
	var d decision
	d.retry(c.members, len(c.members), c.attempts, wait, reason)
	d.again[0].untried = 1
	err := pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		if _, err := q.lockClaim(ctx, tx, c, 0); err != nil {
			return err
		}
		return q.applyDecision(ctx, tx, c, d, []int64{0}, false)
	})
	if err != nil {
		return fmt.Errorf("release batch %d: %w", c.id, err)
	}
	return nil
}

// lockClaim locks the batch of a claim, or returns errLost. It also draws n numbers for new batches.
func (q *queue) lockClaim(ctx context.Context, tx pgx.Tx, c *claim, n int) (ids []int64, err error) {
	const lock = `
		SELECT id
		FROM activation_batches
		WHERE lane = @lane AND id = @id AND claim_token = @token
		FOR UPDATE`
	const draw = `SELECT nextval('activation_batch') FROM generate_series(1, @n)`
	var (
		batch pgx.Batch
		id    int64
	)
	batch.Queue(lock, pgx.StrictNamedArgs{"lane": c.lane, "id": c.id, "token": c.token}).
		QueryRow(func(row pgx.Row) error { return row.Scan(&id) })
	batch.Queue(draw, pgx.StrictNamedArgs{"n": n}).Query(func(rows pgx.Rows) error {
		ids, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	err = tx.SendBatch(ctx, &batch).Close()
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errLost
	}
	return ids, err
}

// applyDecision writes rows and batches. ids are numbers for the groups of d.again.
func (q *queue) applyDecision(ctx context.Context, tx pgx.Tx, c *claim, d decision, ids []int64, unknown bool) error {
	const keep = `
		UPDATE activation_batches
		SET tries = tries - @untried, attempts = @attempts, claim_token = NULL, lease_until = NULL
		WHERE lane = @lane AND id = @id`
	const insert = `
		INSERT INTO activation_batches
			(lane, id, destination_id, segment_id, message_key, profiles, versions, attempts, created_at)
		VALUES (@lane, @id, @destination, @segment, @key, @profiles, @versions, @attempts, @created)`
	var batch pgx.Batch
	kept := false
	for i, g := range d.again {
		if g.same {
			kept, ids[i] = true, c.id
			batch.Queue(keep, pgx.StrictNamedArgs{
				"lane": c.lane, "id": c.id, "attempts": g.attempts, "untried": g.untried,
			})
			continue
		}
		s := (&claim{members: g.members}).arrays()
		batch.Queue(insert, pgx.StrictNamedArgs{
			"lane": c.lane, "id": ids[i], "destination": c.destination, "segment": c.segment, "key": newMessageKey(),
			"profiles": s.profiles, "versions": s.versions, "attempts": g.attempts, "created": c.created,
		})
	}
	if batch.Len() > 0 {
		if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
			return err
		}
	}
	if !kept {
		const forget = `DELETE FROM activation_batches WHERE lane = @lane AND id = @id`
		if _, err := tx.Exec(ctx, forget, pgx.StrictNamedArgs{"lane": c.lane, "id": c.id}); err != nil {
			return err
		}
	}
	if err := applyResults(ctx, tx, c, d.rows, unknown, ids...); err != nil || c.byProfile || c.removing == 0 {
		return err
	}
	var removed []claimed
	for _, r := range d.rows {
		if r.status == settled && !r.Entered {
			removed = append(removed, r.claimed)
		}
	}
	if err := q.removed(ctx, tx, c, removed); err != nil {
		return err
	}
	if kept || d.receipt != "" || len(removed) == len(c.members) {
		return nil
	}
	return q.unmark(ctx, tx, c.id)
}

// applyResults writes what an attempt means for the rows of a claim. A row that changed in the meantime goes its own way:
// if it is wanted other than what is sent, or the person may be known by something else, it is due now. unknown says that
// what was not settled may have been applied.
func applyResults(ctx context.Context, tx pgx.Tx, c *claim, results []result, unknown bool, groups ...int64) error {
	if len(results) == 0 {
		return nil
	}
	if c.ofEvents() {
		return applyEventResults(ctx, tx, c, results, groups)
	}
	var batch pgx.Batch
	queueResults(&batch, c, results, unknown, groups)
	return tx.SendBatch(ctx, &batch).Close()
}

// queueResults has [applyResults] done by a batch, for people.
func queueResults(batch *pgx.Batch, c *claim, results []result, unknown bool, groups []int64) {
	const known = `(r.identity < 0 OR a.identity = r.identity)` // the person's identity has not changed since the claim
	const fresh = `(a.version = r.version AND ` + known + `)`   // nor has what is wanted
	const demoted = `(r.status = 'demoted' AND ` + fresh + `)`
	// An accepted remove is left alone until it is polled, whatever is wanted by now. Of what was accepted and did not end
	// well in the end nobody knows what the partner has, unless it says.
	const query = `
		UPDATE activations a
		SET sent         = CASE
				WHEN r.status = 'settled' THEN r.entered
				WHEN r.status = 'accepted' THEN nullif(r.entered, false)
				WHEN r.status IN ('void', 'unreachable') THEN false
				WHEN a.status = 'accepted' AND r.status = 'failed' AND r.entered AND NOT @unknown THEN false
				WHEN a.status = 'accepted' AND r.status <> 'same' THEN NULL
				WHEN r.status = 'same' OR NOT @unknown THEN a.sent END,
			sent_version = CASE WHEN r.status IN ('settled', 'accepted') THEN r.version ELSE a.sent_version END,
			sent_at      = CASE WHEN r.status IN ('settled', 'accepted') THEN now() ELSE a.sent_at END,
			sent_identifiers = CASE
				WHEN r.status = 'settled' AND NOT r.entered OR r.status = 'void' THEN NULL
				ELSE a.sent_identifiers END,
			checked      = CASE
				WHEN r.status IN ('settled', 'accepted', 'same', 'unreachable') AND r.identity >= 0 THEN r.identity
				ELSE a.checked END,
			resend       = a.resend AND r.status NOT IN ('settled', 'accepted'),
			renew_at     = CASE
				WHEN r.status IN ('settled', 'accepted') THEN now() + r.renew_us * interval '1 microsecond'
				WHEN r.status IN ('void', 'unreachable') THEN NULL
				ELSE a.renew_at END,
			member       = a.member,
			allowed      = a.allowed AND NOT ` + demoted + `,
			wanted       = a.wanted AND NOT ` + demoted + `,
			version      = CASE WHEN ` + demoted + ` AND a.wanted THEN a.version + 1 ELSE a.version END,
			cause        = CASE WHEN ` + demoted + ` AND a.wanted THEN 'consent' ELSE a.cause END,
			message_id   = CASE WHEN ` + demoted + ` AND a.wanted THEN '' ELSE a.message_id END,
			status       = CASE
				WHEN ` + demoted + ` AND a.sent = false AND a.sent_identifiers IS NULL THEN 'settled'
				WHEN r.status = 'demoted' THEN 'pending'
				WHEN r.status = 'accepted' AND NOT r.entered THEN 'accepted'
				WHEN r.status IN ('settled', 'accepted') AND a.wanted = r.entered
					AND (NOT a.wanted OR ` + known + `) THEN r.status
				WHEN r.status IN ('settled', 'accepted') THEN 'pending'
				WHEN r.status = 'void' AND NOT a.wanted THEN 'settled'
				WHEN r.status = 'void' THEN 'pending'
				WHEN ` + fresh + ` AND r.status = 'same' THEN 'settled'
				WHEN ` + fresh + ` THEN r.status
				WHEN NOT @unknown AND a.sent = a.wanted AND a.sent_identifiers IS NULL THEN 'settled'
				ELSE 'pending' END,
			next_at      = CASE WHEN ` + fresh + ` THEN now() + r.wait_us * interval '1 microsecond' ELSE now() END,
			batch_id     = CASE
				WHEN r.status = 'accepted' AND (NOT r.entered OR a.wanted AND ` + known + `) THEN a.batch_id
				WHEN ` + fresh + ` AND r.status = 'pending' THEN r.batch_id END,
			reason       = CASE WHEN ` + fresh + ` THEN r.reason ELSE '' END
		FROM unnest(@profiles::uuid[], @entered::boolean[], @versions::bigint[], @identities::integer[], @statuses::text[],
			@batches::bigint[], @waits::bigint[], @renews::bigint[], @reasons::text[])
			AS r (profile_id, entered, version, identity, status, batch_id, wait_us, renew_us, reason)
		WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment
			AND a.profile_id = r.profile_id AND a.batch_id = @id AND a.status IN ('claimed', 'accepted')`
	sorted := slices.Clone(results)
	slices.SortFunc(sorted, func(a, b result) int { return bytes.Compare(a.Profile[:], b.Profile[:]) })
	var (
		profiles   = make([]ProfileID, len(sorted))
		entered    = make([]bool, len(sorted))
		versions   = make([]int64, len(sorted))
		identities = make([]int32, len(sorted))
		statuses   = make([]string, len(sorted))
		batches    = make([]*int64, len(sorted))
		waits      = make([]int64, len(sorted))
		renews     = make([]*int64, len(sorted))
		reasons    = make([]string, len(sorted))
	)
	for i, r := range sorted {
		profiles[i], entered[i], versions[i], identities[i] = r.Profile, r.Entered, r.Version, r.Identity
		statuses[i], waits[i], reasons[i] = r.status, r.wait.Microseconds(), r.reason
		renews[i] = c.renewal(r)
		if r.group > 0 {
			batches[i] = &groups[r.group-1]
		}
	}
	lockRows(batch, c, profiles)
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": c.lane, "destination": c.destination, "segment": c.segment, "id": c.id, "unknown": unknown,
		"profiles": profiles, "entered": entered, "versions": versions, "identities": identities, "statuses": statuses,
		"batches": batches, "waits": waits, "renews": renews, "reasons": reasons,
	})
}

// renewal returns in how many microseconds a row has to be sent again, at 60 % of the time after which the partner forgets
// it, or nil.
func (c *claim) renewal(r result) *int64 {
	if !r.Entered || r.status != settled && r.status != accepted {
		return nil
	}
	var in time.Duration
	if c.ttl > 0 {
		in = c.ttl * 6 / 10
	}
	if left := time.Until(r.until); !r.until.IsZero() && (in == 0 || left < in) {
		in = max(left, time.Minute)
	}
	if in == 0 {
		return nil
	}
	return new(in.Microseconds())
}

func writeLedger(ctx context.Context, tx pgx.Tx, c *claim, a attempt) error {
	var batch pgx.Batch
	queueLedger(&batch, c, a)
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	return nil
}

func queueLedger(batch *pgx.Batch, c *claim, a attempt) {
	const query = `
		WITH attempt AS (
			INSERT INTO activation_attempts
				(lane, id, destination_id, batch_id, message_key, number, started_at, latency_us, outcome, status, reason,
				 excerpt, members)
			VALUES (@lane, nextval('activation_attempt'), @destination, @batch, @key, @number, @started, @latency, @outcome,
				@status, @reason, @excerpt, coalesce(cardinality(@profiles::uuid[]), 0))
			RETURNING id
		)
		INSERT INTO deliveries
			(lane, destination_id, attempt_id, segment_id, profile_id, version, entered, outcome, reason, at, changed_at,
			 message_id, cause, subscription_id, event)
		SELECT @lane::smallint, @destination::bigint, attempt.id, @segment, m.profile_id, m.version, m.entered, m.outcome, m.reason, @at,
			m.changed_at, m.message_id, m.cause, m.subscription_id, m.event
		FROM attempt, unnest(@profiles::uuid[], @versions::bigint[], @entered::boolean[], @outcomes::text[],
			@reasons::text[], @changed::timestamptz[], @messages::text[], @causes::text[], @subscriptions::bigint[],
			@events::text[])
			AS m (profile_id, version, entered, outcome, reason, changed_at, message_id, cause, subscription_id, event)`
	n := len(c.members)
	var (
		said     = c.arrays()
		subs     = make([]*int64, n)
		events   = make([]string, n)
		outcomes = make([]string, n)
		reasons  = make([]string, n)
		changed  = make([]time.Time, n)
		messages = make([]string, n)
		causes   = make([]string, n)
	)
	for i, m := range c.members {
		r := a.outcome.row(i)
		outcomes[i], reasons[i] = string(r.Class), r.Reason
		changed[i], messages[i], causes[i] = m.ChangedAt, m.MessageID, m.Cause
		said.profiles[i] = m.whose()
		if m.event != nil {
			subs[i], events[i] = &m.event.subscription, m.event.name
		}
	}
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": c.lane, "destination": c.destination, "batch": c.id, "key": c.key, "number": c.tries,
		"started": a.started,
		"latency": a.latency.Microseconds(), "outcome": string(a.outcome.Class), "status": a.outcome.Status,
		"reason": a.outcome.Reason, "excerpt": a.outcome.Excerpt, "segment": c.segment,
		"at": a.started.Add(a.latency), "profiles": said.profiles, "versions": said.versions,
		"entered": said.entered, "outcomes": outcomes, "reasons": reasons, "changed": changed, "messages": messages, "causes": causes,
		"subscriptions": subs, "events": events,
	})
}

// changeDestination writes what an answer means for the destination. It is not paused if somebody has changed it since it was
// read as that version: whoever has just resumed it wants it tried as it is now.
func changeDestination(ctx context.Context, tx pgx.Tx, id, version int64, d decision) error {
	const status = `
		UPDATE destinations
		SET status = @status, status_reason = @reason, version = version + 1, updated_at = now()
		WHERE id = @id AND status = 'active' AND version = @version`
	const block = `
		UPDATE destinations
		SET blocked_until = greatest(blocked_until, now() + @wait)
		WHERE id = @id`
	if d.status != "" {
		_, err := tx.Exec(ctx, status, pgx.StrictNamedArgs{"id": id, "version": version, "status": d.status, "reason": d.reason})
		if err != nil {
			return fmt.Errorf("set destination %d %s: %w", id, d.status, err)
		}
	}
	if d.block > 0 {
		if _, err := tx.Exec(ctx, block, pgx.StrictNamedArgs{"id": id, "wait": d.block}); err != nil {
			return fmt.Errorf("block destination %d: %w", id, err)
		}
	}
	return nil
}

// sweep gives back one batch whose lease has run out: its process died or hung, and nobody knows what became of it. It
// tells whether there was one.
func (q *queue) sweep(ctx context.Context, lanes int) (found bool, err error) {
	const query = `
		SELECT lane, id, destination_id, segment_id, profiles, versions, attempts, removing, body IS NOT NULL
		FROM activation_batches
		WHERE lane = ANY(@lanes::smallint[]) AND claim_token IS NOT NULL AND lease_until < now()
		LIMIT 1
		FOR UPDATE SKIP LOCKED`
	err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		var (
			c        claim
			profiles []ProfileID
			versions []int64
			encoded  bool
		)
		err := tx.QueryRow(ctx, query, pgx.StrictNamedArgs{"lanes": laneNumbers(lanes)}).
			Scan(&c.lane, &c.id, &c.destination, &c.segment, &profiles, &versions, &c.attempts, &c.removing, &encoded)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		found = true
		for i, p := range profiles {
			c.members = append(c.members, claimed{Profile: p, Version: versions[i], Identity: -1})
		}
		var d decision
		attempts := min(c.attempts+1, len(q.schedule)) // a batch that kills whoever sends it must slow down
		wait, _ := delay(q.schedule, attempts)
		d.retry(c.members, len(c.members), attempts, wait, "nobody knows how the last attempt ended")
		return q.applyDecision(ctx, tx, &c, d, []int64{0}, encoded)
	})
	if err != nil {
		return false, fmt.Errorf("sweep claims whose lease ran out: %w", err)
	}
	return found, nil
}

// tidy forgets batches of which every member has changed since they were last tried, and with them the bodies: a batch
// without rows never gets any again.
func (q *queue) tidy(ctx context.Context) error {
	const query = `
		DELETE FROM activation_batches b
		WHERE claim_token IS NULL AND NOT EXISTS (
			SELECT
			FROM activations a
			WHERE a.lane = b.lane AND a.destination_id = b.destination_id AND a.segment_id = b.segment_id
				AND a.profile_id = ANY(b.profiles) AND a.batch_id = b.id)
			AND NOT EXISTS (
				SELECT
				FROM conversions c
				WHERE c.lane = b.lane AND c.destination_id = b.destination_id AND c.id = ANY(b.versions)
					AND c.batch_id = b.id)
		RETURNING b.id, b.removing`
	err := pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, query)
		var (
			id       int64
			removing int
			marked   []int64
		)
		_, err := pgx.ForEachRow(rows, []any{&id, &removing}, func() error {
			if removing > 0 {
				marked = append(marked, id)
			}
			return nil
		})
		for i := 0; err == nil && i < len(marked); i++ {
			err = q.unmark(ctx, tx, marked[i])
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("forget batches without members: %w", err)
	}
	return nil
}

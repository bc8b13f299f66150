package activation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
)

const (
	pollEvery = time.Minute
	pollFor   = 24 * time.Hour
	pollLease = time.Minute
)

// keepReceipt turns a claim whose message the partner took in into a receipt, which is polled until the partner says what
// became of the members.
func (q *queue) keepReceipt(ctx context.Context, tx pgx.Tx, c *claim, a attempt, d decision) error {
	const query = `
		INSERT INTO activation_receipts
			(lane, id, destination_id, segment_id, message_key, receipt, profiles, versions, entered, identities, accepted_at,
			 give_up_at, poll_at)
		VALUES (@lane, @id, @destination, @segment, @key, @receipt, @profiles, @versions, @entered, @identities, @at,
			now() + @for::interval, now() + @every::interval)`
	s := c.arrays()
	_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
		"lane": c.lane, "id": c.id, "destination": c.destination, "segment": c.segment, "key": c.key,
		"receipt": d.receipt, "profiles": s.profiles, "versions": s.versions, "entered": s.entered,
		"identities": s.identities, "at": a.started.Add(a.latency), "for": d.pollFor, "every": d.pollEvery,
	})
	if err != nil {
		return fmt.Errorf("keep the receipt of batch %d: %w", c.id, err)
	}
	return nil
}

// poll asks what became of one message and tells whether there was one to ask for.
func (d *Dispatcher) poll(ctx context.Context) (found bool, err error) {
	const take = `
		UPDATE activation_receipts r
		SET poll_at = now() + @lease::interval, claim_token = @token, polls = polls + 1
		FROM (
			SELECT r.lane, r.id
			FROM activation_receipts r
			JOIN destinations d ON d.id = r.destination_id
			WHERE r.poll_at <= now() AND d.status = 'active' AND d.blocked_until <= now() AND ` + tokenHolds + `
			ORDER BY r.poll_at
			LIMIT 1
			FOR UPDATE OF r SKIP LOCKED
		) n
		WHERE r.lane = n.lane AND r.id = n.id
		RETURNING r.lane, r.id, r.destination_id, r.segment_id, r.message_key, r.receipt, r.profiles, r.versions, r.entered,
			r.identities, r.polls, r.give_up_at < now()`
	var (
		c       claim
		receipt string
		s       said
		late    bool
	)
	rand.Read(c.token[:])
	err = d.queue.pool.QueryRow(ctx, take, pgx.StrictNamedArgs{"lease": pollLease, "token": c.token}).Scan(
		&c.lane, &c.id, &c.destination, &c.segment, &c.key, &receipt, &s.profiles, &s.versions, &s.entered, &s.identities,
		&c.tries, &late)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("claim a receipt: %w", err)
	}
	stop := ctx
	ctx = context.WithoutCancel(ctx)
	t, err := target(ctx, d.queue.pool, d.queue.ring, d.partners, c.destination)
	if err != nil {
		return true, err
	}
	poller, ok := t.partner.(Poller)
	if !ok {
		return true, fmt.Errorf("poll for destination %d: %w", c.destination, ErrUnsupported)
	}
	limits := t.partner.Limits(t.Target)
	c.workspace, c.version, c.byProfile, c.ttl, c.created = t.Workspace, t.version, limits.ByProfile, limits.TTL, time.Now()
	one := d.accounts.of(t, limits)
	if pause, err := d.accounts.take(ctx, one); err != nil || pause > 0 {
		return true, errors.Join(err, d.pollAgain(ctx, &c, max(pause, 100*time.Millisecond)))
	}
	for i, p := range s.profiles {
		c.members = append(c.members, claimed{
			Profile: p, Version: s.versions[i], Entered: s.entered[i], Identity: s.identities[i],
		})
		if !s.entered[i] && !c.byProfile {
			c.removing++
		}
	}

	a := attempt{started: time.Now()}
	asking, cancel := context.WithTimeout(stop, min(limits.Timeout, pollLease/2))
	defer cancel()
	polled := t.cleanPolled(poller.Poll(asking, t.Target, receipt))
	a.latency = time.Since(a.started)
	if err := d.accounts.heed(ctx, one, polled.Outcome); err != nil {
		d.log.WarnContext(ctx, "note what an account may ask", "err", err)
	}
	if polled.Class != OK && stop.Err() != nil { // we broke it off
		return true, d.pollAgain(ctx, &c, 0)
	}
	if polled.Class == OK {
		d.refresher.prove(t)
	}
	if !polled.Done {
		switch polled.Class {
		case Refresh:
			if o := d.freshen(ctx, t); o.Class == OK {
				return true, d.pollAgain(ctx, &c, 0)
			}
		case Reauth, Config, Gone:
			pause := decision{status: Paused, reason: polled.Reason}
			err := pgx.BeginFunc(ctx, d.queue.pool, func(tx pgx.Tx) error {
				return changeDestination(ctx, tx, c.destination, t.version, pause)
			})
			return true, errors.Join(err, d.pollAgain(ctx, &c, orElse(limits.PollEvery, pollEvery)))
		}
		if !late {
			return true, d.pollAgain(ctx, &c, max(orElse(limits.PollEvery, pollEvery), min(polled.Wait, longestWait)))
		}
		polled.Outcome = Outcome{Class: Retry, Unknown: true, Reason: "the partner did not say what became of it"}
	}
	a.outcome = polled.Outcome
	a.outcome.Receipt = ""
	return true, d.queue.polled(ctx, &c, a, polled, d.cfg.Schedule)
}

func orElse(d, standard time.Duration) time.Duration {
	if d == 0 {
		return standard
	}
	return d
}

func (d *Dispatcher) pollAgain(ctx context.Context, c *claim, in time.Duration) error {
	const query = `
		UPDATE activation_receipts
		SET poll_at = now() + @in::interval, claim_token = NULL
		WHERE lane = @lane AND id = @id AND claim_token = @token`
	_, err := d.queue.pool.Exec(ctx, query, pgx.StrictNamedArgs{"lane": c.lane, "id": c.id, "token": c.token, "in": in})
	if err != nil {
		return fmt.Errorf("put off polling: %w", err)
	}
	return nil
}

// polled writes down, in one transaction, what became of a message that the partner had taken in. Rows that went their own
// way meanwhile are none of its business.
func (q *queue) polled(ctx context.Context, c *claim, a attempt, p Polled, schedule []time.Duration) error {
	const lock = `
		SELECT true
		FROM activation_receipts
		WHERE lane = @lane AND id = @id AND claim_token = @token AND poll_at IS NOT NULL
		FOR UPDATE`
	const done = `
		UPDATE activation_receipts
		SET poll_at = NULL, claim_token = NULL, outcome = @outcome, counts = @counts::text::jsonb, match = @match,
			done_at = now()
		WHERE lane = @lane AND id = @id`
	const rows = `
		SELECT ` + claimedColumns + `
		FROM activations a
		WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment
			AND a.profile_id = ANY(@profiles) AND a.batch_id = @id AND a.status = 'accepted'
		ORDER BY a.profile_id
		FOR UPDATE`
	counts := p.Counts
	if counts == nil {
		counts = []ReasonCount{}
	}
	text, err := json.Marshal(counts)
	if err != nil {
		return fmt.Errorf("encode counts: %w", err)
	}
	what := p.decide(c, schedule)
	err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		var mine bool
		err := tx.QueryRow(ctx, lock, pgx.StrictNamedArgs{"lane": c.lane, "id": c.id, "token": c.token}).Scan(&mine)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil // somebody else wrote it down, or the destination is gone
		}
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, done, pgx.StrictNamedArgs{
			"lane": c.lane, "id": c.id, "outcome": string(p.Class), "counts": string(text), "match": p.Match,
		})
		if err != nil {
			return err
		}
		if c.ofEvents() {
			return q.polledEvents(ctx, tx, c, a, what)
		}
		said := c.arrays()
		found, _ := tx.Query(ctx, rows, pgx.StrictNamedArgs{
			"lane": c.lane, "destination": c.destination, "segment": c.segment, "profiles": said.profiles, "id": c.id,
		})
		members, err := pgx.CollectRows(found, scanClaimed)
		if err != nil {
			return err
		}
		ours := make(map[ProfileID]claimed, len(members))
		for _, m := range members {
			ours[m.Profile] = m
		}
		// The ledger gets a line for whoever the answer still means something to.
		about, outcomes := *c, a.outcome.Rows
		about.members, a.outcome.Rows = nil, nil
		for i, m := range c.members {
			row, ok := ours[m.Profile]
			if !ok {
				continue
			}
			if row.Wanted && !m.Entered || row.IdentityAt != nil && row.IdentityAt.After(row.ChangedAt) {
				row = row.replace()
			}
			row.Entered, row.Version, row.Identity = m.Entered, m.Version, m.Identity
			about.members = append(about.members, row)
			if i < len(outcomes) {
				a.outcome.Rows = append(a.outcome.Rows, outcomes[i])
			}
		}
		if err := applyResults(ctx, tx, c, what.rows, a.outcome.Unknown); err != nil {
			return err
		}
		var removed []claimed
		for _, r := range what.rows {
			if r.status == settled && !r.Entered {
				r.ids = ours[r.Profile].held
				removed = append(removed, r.claimed)
			}
		}
		if err := q.removed(ctx, tx, c, removed); err != nil {
			return err
		}
		if err := q.unmark(ctx, tx, c.id); err != nil {
			return err
		}
		if err := writeLedger(ctx, tx, &about, a); err != nil {
			return err
		}
		return changeDestination(ctx, tx, c.destination, c.version, what)
	})
	if err != nil {
		return fmt.Errorf("record what became of batch %d: %w", c.id, err)
	}
	return nil
}

// decide tells what follows from what became of a message. If the partner only tells how many were refused, nobody is sent
// again: it would refuse the same ones.
func (p Polled) decide(c *claim, schedule []time.Duration) decision {
	if p.Class == OK || p.Class == Partial && p.Rows == nil {
		var d decision
		for _, m := range c.members {
			d.rows = append(d.rows, result{claimed: m, status: settled})
		}
		return d
	}
	d := decide(c, p.Outcome, schedule, c.created)
	for i := range d.rows { // each row for itself: the message is answered
		d.rows[i].group = 0
	}
	d.again = nil
	return d
}

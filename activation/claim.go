package activation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// queue is the sending side of the ledger: what is due, who sends it, and what came of it.
//
// Locks are taken in one order everywhere: a batch, then its rows by profile, then the destination. Rows wait for nobody
// but µbatches that are about to commit.
type queue struct {
	pool     *pgxpool.Pool
	ring     *KeyRing
	lease    time.Duration
	schedule []time.Duration
}

// claim is a batch that this process alone may send, until its lease runs out.
type claim struct {
	lane        int
	workspace   int32
	destination int64
	segment     int64
	id          int64
	key         string // of the message
	token       [16]byte
	taken       time.Time // by our clock, before the lease began
	created     time.Time // when the first attempt was claimed
	tries       int       // with this key, this one included
	attempts    int       // failed so far, as far as the schedule is concerned
	body        []byte    // nil until it is encoded
	members     []claimed
}

// claimed is one row of a claim.
type claimed struct {
	Profile   ProfileID
	Entered   bool
	Version   int64
	ChangedAt time.Time
	MessageID string
	Cause     string
}

// refs returns the members as a partner sees them.
func (c *claim) refs() []MemberRef {
	refs := make([]MemberRef, len(c.members))
	for i, m := range c.members {
		refs[i] = MemberRef{Profile: m.Profile, Entered: m.Entered, Version: m.Version}
	}
	return refs
}

// oldest returns the first batch or row of a lane that is due at a destination, removes before adds. version is that of
// the destination as the caller knows it: under any other, or when it is paused or blocked, nothing is due.
const oldest = `
	SELECT a.segment_id, a.batch_id, a.wanted
	FROM destinations d
	CROSS JOIN LATERAL (
		(SELECT segment_id, batch_id, wanted
		FROM activations
		WHERE lane = @lane AND destination_id = d.id AND NOT wanted AND status = 'pending' AND next_at <= now()
		ORDER BY next_at
		LIMIT 1)
		UNION ALL
		(SELECT segment_id, batch_id, wanted
		FROM activations
		WHERE lane = @lane AND destination_id = d.id AND wanted AND status = 'pending' AND next_at <= now()
		ORDER BY next_at
		LIMIT 1)
	) a
	WHERE d.id = @destination AND d.version = @version AND d.status = 'active' AND d.blocked_until <= now()
	ORDER BY a.wanted
	LIMIT 1`

// claim takes what is due in a lane for a destination, as much as fits into one message. It returns nil if nothing is, or
// if others have it. A batch that was tried before is taken as it was, unless somebody in it has changed since then: then
// those who have not become a batch of their own.
func (q *queue) claim(ctx context.Context, lane int, t Target, version int64, limits Limits) (c *claim, err error) {
	destination := t.ID
	taken := time.Now()
	err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		// A claim that a crash undoes was not sent yet: the body is written, durably, in a transaction after this one.
		const async = `SET LOCAL synchronous_commit = off`
		var (
			segment int64
			batch   *int64
			wanted  bool
			first   pgx.Batch
		)
		first.Queue(async)
		first.Queue(oldest, pgx.StrictNamedArgs{"lane": lane, "destination": destination, "version": version}).
			QueryRow(func(row pgx.Row) error { return row.Scan(&segment, &batch, &wanted) })
		err := tx.SendBatch(ctx, &first).Close()
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		fresh := claim{
			lane: lane, workspace: t.Workspace, destination: destination, segment: segment, key: newMessageKey(), taken: taken, created: taken,
		}
		rand.Read(fresh.token[:])
		if batch != nil {
			c, err = q.claimBatch(ctx, tx, fresh, *batch)
		} else {
			c, err = q.claimRows(ctx, tx, fresh, wanted, limits)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claim work of lane %d for destination %d: %w", lane, destination, err)
	}
	return c, nil
}

func newMessageKey() string { return "msg_" + strings.ToLower(rand.Text()) }

// claimRows makes a new batch of rows that are in none.
func (q *queue) claimRows(ctx context.Context, tx pgx.Tx, c claim, wanted bool, limits Limits) (*claim, error) {
	const query = `
		SELECT profile_id, wanted, version, changed_at, message_id, cause
		FROM activations
		WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment AND wanted = @wanted
			AND status = 'pending' AND next_at <= now() AND batch_id IS NULL
		ORDER BY next_at
		LIMIT @limit
		FOR UPDATE SKIP LOCKED`
	for _, wanted := range []bool{wanted, !wanted} {
		rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{
			"lane": c.lane, "destination": c.destination, "segment": c.segment, "wanted": wanted,
			"limit": limits.Members - len(c.members),
		})
		some, err := pgx.CollectRows(rows, pgx.RowToStructByPos[claimed])
		if err != nil {
			return nil, err
		}
		c.members = append(c.members, some...)
		if !limits.Mixed || len(c.members) == limits.Members {
			break
		}
	}
	if len(c.members) == 0 {
		return nil, nil
	}
	// What happened first is told first.
	slices.SortStableFunc(c.members, func(a, b claimed) int { return a.ChangedAt.Compare(b.ChangedAt) })
	return &c, q.insert(ctx, tx, &c)
}

// insert writes the batch of a claim whose rows are locked, and its rows.
func (q *queue) insert(ctx context.Context, tx pgx.Tx, c *claim) error {
	const query = `
		WITH batch AS (
			INSERT INTO activation_batches
				(lane, id, destination_id, segment_id, message_key, profiles, versions, tries, attempts,
				 created_at, claim_token, lease_until)
			VALUES (@lane, nextval('activation_batch'), @destination, @segment, @key, @profiles, @versions, 1, @attempts,
				@created, @token, now() + @lease)
			RETURNING id
		), rows AS (
			UPDATE activations a
			SET status = 'claimed', batch_id = batch.id
			FROM batch, unnest(@profiles::uuid[]) AS p (id)
			WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment AND a.profile_id = p.id
		)
		SELECT id FROM batch`
	c.tries = 1
	profiles, versions := c.arrays()
	return tx.QueryRow(ctx, query, pgx.StrictNamedArgs{
		"lane": c.lane, "destination": c.destination, "segment": c.segment, "key": c.key, "profiles": profiles,
		"versions": versions, "attempts": c.attempts, "created": c.created, "token": c.token, "lease": q.lease,
	}).Scan(&c.id)
}

func (c *claim) arrays() (profiles []ProfileID, versions []int64) {
	for _, m := range c.members {
		profiles, versions = append(profiles, m.Profile), append(versions, m.Version)
	}
	return profiles, versions
}

// claimBatch takes a batch that was tried before.
func (q *queue) claimBatch(ctx context.Context, tx pgx.Tx, c claim, id int64) (*claim, error) {
	const lock = `
		SELECT message_key, profiles, body, tries + 1, attempts, created_at
		FROM activation_batches
		WHERE lane = @lane AND id = @id AND claim_token IS NULL
		FOR UPDATE SKIP LOCKED`
	// Rows that wait for a batch which is not there would wait for ever.
	const orphans = `
		UPDATE activations
		SET batch_id = NULL
		WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment AND status = 'pending'
			AND batch_id = @id AND NOT EXISTS (SELECT FROM activation_batches WHERE lane = @lane AND id = @id)`
	const rows = `
		SELECT a.profile_id, a.wanted, a.version, a.changed_at, a.message_id, a.cause
		FROM activations a
		WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment
			AND a.profile_id = ANY(@profiles) AND a.batch_id = @id AND a.status = 'pending'
		ORDER BY a.profile_id
		FOR UPDATE`
	const forget = `DELETE FROM activation_batches WHERE lane = @lane AND id = @id`
	const take = `
		WITH batch AS (
			UPDATE activation_batches
			SET tries = tries + 1, claim_token = @token, lease_until = now() + @lease
			WHERE lane = @lane AND id = @id
		)
		UPDATE activations
		SET status = 'claimed'
		WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment AND profile_id = ANY(@profiles)
			AND batch_id = @id`
	args := func(more pgx.StrictNamedArgs) pgx.StrictNamedArgs {
		more["lane"], more["id"] = c.lane, id
		return more
	}
	var (
		key      string
		sealed   []byte
		profiles []ProfileID
	)
	err := tx.QueryRow(ctx, lock, args(pgx.StrictNamedArgs{})).
		Scan(&key, &profiles, &sealed, &c.tries, &c.attempts, &c.created)
	if errors.Is(err, pgx.ErrNoRows) {
		_, err := tx.Exec(ctx, orphans, args(pgx.StrictNamedArgs{"destination": c.destination, "segment": c.segment}))
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	found, _ := tx.Query(ctx, rows, args(pgx.StrictNamedArgs{
		"destination": c.destination, "segment": c.segment, "profiles": profiles,
	}))
	members, err := pgx.CollectRows(found, pgx.RowToStructByPos[claimed])
	if err != nil {
		return nil, err
	}
	if len(members) < len(profiles) {
		_, err := tx.Exec(ctx, forget, args(pgx.StrictNamedArgs{}))
		if err != nil || len(members) == 0 {
			return nil, err
		}
		c.members = members
		return &c, q.insert(ctx, tx, &c)
	}

	c.id, c.key = id, key
	byProfile := make(map[ProfileID]claimed, len(members))
	for _, m := range members {
		byProfile[m.Profile] = m
	}
	for _, p := range profiles { // in the order in which the body has them
		c.members = append(c.members, byProfile[p])
	}
	if sealed != nil {
		if c.body, err = q.ring.Open(bodyOf(c.workspace, id), sealed); err != nil {
			return nil, err
		}
	}
	_, err = tx.Exec(ctx, take, args(pgx.StrictNamedArgs{
		"destination": c.destination, "segment": c.segment, "profiles": profiles, "token": c.token, "lease": q.lease,
	}))
	return &c, err
}

func bodyOf(workspace int32, batch int64) Place {
	return Place{Workspace: workspace, Table: "activation_batches", Column: "body", ID: batch}
}

// errLost says that a claim's lease ran out and somebody else took care of it.
var errLost = errors.New("the claim was lost")

// persist writes a claim's body down, so that whoever tries again sends the same bytes. The members become the first ones,
// which the body is about; the rest is given back, and those who are gone are set aside.
func (q *queue) persist(ctx context.Context, c *claim, body []byte, members, rest, gone []claimed) error {
	const query = `
		UPDATE activation_batches
		SET body = @body, profiles = @profiles, versions = @versions
		WHERE lane = @lane AND id = @id AND claim_token = @token`
	c.members, c.body = members, body
	profiles, versions := c.arrays()
	results := setAside(gone)
	for _, m := range rest {
		results = append(results, result{claimed: m, status: pending})
	}
	err := pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
			"body": q.ring.Seal(bodyOf(c.workspace, c.id), body), "profiles": profiles, "versions": versions,
			"lane": c.lane, "id": c.id, "token": c.token,
		})
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errLost
		}
		return applyResults(ctx, tx, c, results, false)
	})
	if err != nil {
		return fmt.Errorf("keep the body of batch %d: %w", c.id, err)
	}
	return nil
}

// drop ends a claim of which nobody is left to be told about.
func (q *queue) drop(ctx context.Context, c *claim) error {
	err := pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		if _, err := q.lockClaim(ctx, tx, c, 0); err != nil {
			return err
		}
		return q.applyDecision(ctx, tx, c, decision{rows: setAside(c.members)}, nil, false)
	})
	if err != nil {
		return fmt.Errorf("drop batch %d: %w", c.id, err)
	}
	return nil
}

// setAside is what becomes of members whose profiles are not there. If they were merged or deleted, their rows have
// changed by now and this does not apply to them.
func setAside(gone []claimed) (results []result) {
	for _, m := range gone {
		results = append(results, result{claimed: m, status: failed, reason: "the profile is gone"})
	}
	return results
}

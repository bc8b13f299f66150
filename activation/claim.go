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
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// queue is the sending side of the ledger: what is due, who sends it, and what came of it.
//
// Locks are taken in one order everywhere: a batch, then its rows by profile, then holdings by lane and identifier, then
// the destination. Rows wait for nobody but µbatches that are about to commit.
type queue struct {
	pool     *pgxpool.Pool
	ring     *KeyRing
	lanes    int
	lease    time.Duration
	schedule []time.Duration
}

// claim is a batch that this process alone may send, until its lease runs out.
type claim struct {
	lane        int
	workspace   int32
	destination int64
	version     int64 // of the destination, as it was when this was claimed
	segment     int64
	audience    string
	since       time.Time // from when on the audience could be sent to
	byProfile   bool
	ttl         time.Duration // after which the partner forgets members
	id          int64
	key         string // of the message
	token       [16]byte
	taken       time.Time // by our clock, before the lease began
	created     time.Time // when the first attempt was claimed
	tries       int       // with this key, this one included
	attempts    int       // failed so far, as far as the schedule is concerned
	body        []byte    // nil until it is encoded
	removing    int       // of how many holdings the body takes away
	members     []claimed
}

// claimed is one row of a claim.
type claimed struct {
	Profile         ProfileID
	Wanted          bool
	Version         int64
	ChangedAt       time.Time
	MessageID       string
	Cause           string
	Sent            *bool
	Kept            []byte // sent_identifiers
	Identity        int32
	IdentityAt      *time.Time
	IdentityMessage string
	Resend          bool

	// What the message says of the person, once that is decided.
	Entered bool        `db:"-"`
	held    Identifiers // what the partner may know the person by before the message
	ids     Identifiers // what the message tells it
	person  Person      // as the body has it
	until   time.Time   // when ids end; zero: never

	event *conversion // of a claim of events
}

// columns of activations, as claimed has them.
const claimedColumns = `a.profile_id, a.wanted, a.version, a.changed_at, a.message_id, a.cause, a.sent, a.sent_identifiers,
			a.identity, a.identity_at, a.identity_message, a.resend`

func scanClaimed(row pgx.CollectableRow) (m claimed, err error) {
	err = row.Scan(&m.Profile, &m.Wanted, &m.Version, &m.ChangedAt, &m.MessageID, &m.Cause, &m.Sent, &m.Kept, &m.Identity,
		&m.IdentityAt, &m.IdentityMessage, &m.Resend)
	if err == nil {
		m.held, err = readIdentifiers(m.Kept)
	}
	m.Entered, m.ids = m.Wanted, m.held
	return m, err
}

// refs returns the members as a partner sees them.
func (c *claim) refs() []MemberRef {
	refs := make([]MemberRef, len(c.members))
	for i, m := range c.members {
		refs[i] = MemberRef{Profile: m.Profile, Entered: m.Entered, Version: m.Version}
	}
	return refs
}

// message returns the claim as a partner sees it.
func (c *claim) message() Message {
	m := Message{Key: c.key, Batch: c.id, Segment: c.segment, Audience: c.audience, Since: c.since, Body: c.body, Attempt: c.tries}
	if c.ofEvents() {
		m.Events = c.events()
	} else {
		m.Members = c.refs()
	}
	return m
}

// tokenHolds tells of a destination d that its access token may be used: it has not ended, or nobody knows when it does and
// it is not being refreshed.
const tokenHolds = `(d.token_expires_at > now() OR d.token_expires_at IS NULL AND d.refresh_until <= now())`

// reachable tells of a destination d, as the caller knows it, that something may be sent to it: not if it is another
// version by now, paused or blocked.
const reachable = `d.id = @destination AND d.version = @version AND d.secrets_version = @secrets AND d.status = 'active'
			AND d.blocked_until <= now() AND ` + tokenHolds

// oldest returns the first batch or row of a lane that is due at a destination: removes for the sake of consent first, then
// removes, then adds.
const oldest = `
	SELECT a.segment_id, a.batch_id, a.rank
	FROM destinations d
	CROSS JOIN (VALUES (0::smallint), (1::smallint), (2::smallint)) AS r (rank)
	CROSS JOIN LATERAL (
		SELECT segment_id, batch_id, rank
		FROM activations
		WHERE lane = @lane AND destination_id = d.id AND activations.rank = r.rank AND status = 'pending' AND next_at <= now()
		ORDER BY next_at
		LIMIT 1
	) a
	WHERE ` + reachable + `
	ORDER BY r.rank
	LIMIT 1`

// claimAny takes what is due in a lane for a destination, be it people or events, of which some are looked for first.
func (q *queue) claimAny(ctx context.Context, lane int, l *line, eventsFirst bool) (c *claim, again bool, err error) {
	of := []func(context.Context, int, *line) (*claim, bool, error){q.claim, q.claimEvents}
	if eventsFirst {
		slices.Reverse(of)
	}
	for _, claim := range of {
		if c, again, err = claim(ctx, lane, l); err != nil || c != nil || again {
			return c, again, err
		}
	}
	return nil, false, nil
}

// claim takes people who are due in a lane for a destination, as much as fits into one message. It returns nil if nothing is, or
// if others have it; again tells that something else may be due. A batch that was tried before is taken as it was, unless
// somebody in it has changed since then: then those who have not become a batch of their own.
func (q *queue) claim(ctx context.Context, lane int, l *line) (c *claim, again bool, err error) {
	taken := time.Now()
	err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		// A claim that a crash undoes was not sent yet: the body is written, durably, in a transaction after this one.
		const async = `SET LOCAL synchronous_commit = off`
		var (
			segment int64
			batch   *int64
			rank    int16
			first   pgx.Batch
		)
		first.Queue(async)
		first.Queue(oldest, pgx.StrictNamedArgs{
			"lane": lane, "destination": l.target.ID, "version": l.target.version, "secrets": l.target.secrets,
		}).QueryRow(func(row pgx.Row) error { return row.Scan(&segment, &batch, &rank) })
		err := tx.SendBatch(ctx, &first).Close()
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		fresh := claim{
			lane: lane, workspace: l.target.Workspace, destination: l.target.ID, version: l.target.version, segment: segment, byProfile: l.limits.ByProfile,
			ttl: l.limits.TTL, key: newMessageKey(), taken: taken, created: taken,
		}
		rand.Read(fresh.token[:])
		if l.limits.NeedsAudience {
			ready, err := q.audience(ctx, tx, &fresh)
			if err != nil || !ready {
				again = true
				return err
			}
		}
		if batch != nil {
			c, err = q.claimBatch(ctx, tx, fresh, *batch)
			again = c == nil
		} else {
			c, err = q.claimRows(ctx, tx, fresh, rank, l.limits)
		}
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("claim work of lane %d for destination %d: %w", lane, l.target.ID, err)
	}
	return c, again, nil
}

func newMessageKey() string { return "msg_" + strings.ToLower(rand.Text()) }

// audience reads which audience a claim is about, which does not change before the claim is made. If there is none, or it is
// being changed, what is due of the segment is put off.
func (q *queue) audience(ctx context.Context, tx pgx.Tx, c *claim) (ready bool, err error) {
	const query = `
		SELECT audience, ready_at <= now() AND NOT resetting, ready_at
		FROM destination_segments
		WHERE destination_id = @destination AND segment_id = @segment
		FOR SHARE`
	const putOff = `
		WITH chosen AS (
			SELECT a.profile_id, s.ready_at
			FROM activations a
			LEFT JOIN destination_segments s ON s.destination_id = a.destination_id AND s.segment_id = a.segment_id
			WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment AND a.status = 'pending'
				AND a.next_at <= now()
			ORDER BY a.profile_id
			LIMIT @chunk
			FOR UPDATE OF a SKIP LOCKED
		)
		UPDATE activations a
		SET next_at = CASE
			WHEN s.ready_at IS NULL THEN now() + interval '1 hour' -- the segment is none of the destination's
			ELSE greatest(now() + interval '1 second', s.ready_at) END
		FROM chosen s
		WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment
			AND a.profile_id = s.profile_id`
	var since pgtype.Timestamptz // may be infinite, which counts as unknown
	err = tx.QueryRow(ctx, query, pgx.StrictNamedArgs{"destination": c.destination, "segment": c.segment}).
		Scan(&c.audience, &ready, &since)
	c.since = since.Time
	if err != nil && !errors.Is(err, pgx.ErrNoRows) || ready {
		return ready, err
	}
	_, err = tx.Exec(ctx, putOff, pgx.StrictNamedArgs{
		"lane": c.lane, "destination": c.destination, "segment": c.segment, "chunk": chunk,
	})
	return false, err
}

// claimRows makes a new batch of rows that are in none. Those that wait for company come along: they have it now.
func (q *queue) claimRows(ctx context.Context, tx pgx.Tx, c claim, rank int16, limits Limits) (*claim, error) {
	const query = `
		SELECT ` + claimedColumns + `
		FROM activations a
		WHERE lane = @lane AND destination_id = @destination AND segment_id = @segment AND rank = @rank
			AND status = 'pending' AND next_at <= now() + @linger AND batch_id IS NULL
		ORDER BY next_at
		LIMIT @limit
		FOR UPDATE SKIP LOCKED`
	ranks := map[int16][]int16{0: {0, 1}, 1: {1}, 2: {2}}[rank]
	if limits.Mixed {
		ranks = map[int16][]int16{0: {0, 1, 2}, 1: {1, 2}, 2: {2, 1}}[rank]
	}
	var batch pgx.Batch
	for _, rank := range ranks {
		batch.Queue(query, pgx.StrictNamedArgs{
			"lane": c.lane, "destination": c.destination, "segment": c.segment, "rank": rank,
			"limit": limits.Members, "linger": limits.Linger,
		}).Query(func(rows pgx.Rows) error {
			some, err := pgx.CollectRows(rows, scanClaimed)
			c.members = append(c.members, some[:min(len(some), limits.Members-len(c.members))]...)
			return err
		})
	}
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, err
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
	const batch = `
		WITH batch AS (
			INSERT INTO activation_batches
				(lane, id, destination_id, segment_id, message_key, profiles, versions, tries, attempts,
				 created_at, claim_token, lease_until)
			VALUES (@lane, nextval('activation_batch'), @destination, @segment, @key, @profiles, @versions, 1, @attempts,
				@created, @token, now() + @lease)
			RETURNING id
		), rows AS (`
	const people = batch + `
			UPDATE activations a
			SET status = 'claimed', batch_id = batch.id
			FROM batch, unnest(@profiles::uuid[]) AS p (id)
			WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment AND a.profile_id = p.id
		)
		SELECT id FROM batch`
	const events = batch + `
			UPDATE conversions c
			SET status = 'claimed', batch_id = batch.id
			FROM batch
			WHERE c.lane = @lane AND c.destination_id = @destination AND c.id = ANY(@versions)
		)
		SELECT id FROM batch`
	query := people
	if c.ofEvents() {
		query = events
	}
	c.tries = 1
	said := c.arrays()
	return tx.QueryRow(ctx, query, pgx.StrictNamedArgs{
		"lane": c.lane, "destination": c.destination, "segment": c.segment, "key": c.key, "profiles": said.profiles,
		"versions": said.versions, "attempts": c.attempts, "created": c.created, "token": c.token, "lease": q.lease,
	}).Scan(&c.id)
}

// said is what a message says of whom, column by column.
type said struct {
	profiles   []ProfileID
	versions   []int64
	entered    []bool
	identities []int32
}

func (c *claim) arrays() (s said) {
	for _, m := range c.members {
		s.profiles, s.versions = append(s.profiles, m.Profile), append(s.versions, m.Version)
		s.entered, s.identities = append(s.entered, m.Entered), append(s.identities, m.Identity)
	}
	return s
}

// claimBatch takes a batch that was tried before.
func (q *queue) claimBatch(ctx context.Context, tx pgx.Tx, c claim, id int64) (*claim, error) {
	const lock = `
		SELECT message_key, profiles, body, tries + 1, attempts, created_at, entered, identities, removing
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
		SELECT ` + claimedColumns + `
		FROM activations a
		WHERE a.lane = @lane AND a.destination_id = @destination AND a.segment_id = @segment
			AND a.profile_id = ANY(@profiles) AND a.batch_id = @id AND a.status = 'pending'
		ORDER BY a.profile_id
		FOR UPDATE`
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
		removing int
		s        said
	)
	err := tx.QueryRow(ctx, lock, args(pgx.StrictNamedArgs{})).
		Scan(&key, &s.profiles, &sealed, &c.tries, &c.attempts, &c.created, &s.entered, &s.identities, &removing)
	if errors.Is(err, pgx.ErrNoRows) {
		_, err := tx.Exec(ctx, orphans, args(pgx.StrictNamedArgs{"destination": c.destination, "segment": c.segment}))
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	found, _ := tx.Query(ctx, rows, args(pgx.StrictNamedArgs{
		"destination": c.destination, "segment": c.segment, "profiles": s.profiles,
	}))
	members, err := pgx.CollectRows(found, scanClaimed)
	if err != nil {
		return nil, err
	}
	byProfile := make(map[ProfileID]claimed, len(members))
	for _, m := range members {
		byProfile[m.Profile] = m
	}
	stale := len(members) < len(s.profiles)
	for i, p := range s.profiles { // in the order in which the body has them
		m, ok := byProfile[p]
		if !ok {
			continue
		}
		if sealed != nil {
			stale = stale || m.Identity != s.identities[i]
			m.Entered = s.entered[i]
		}
		c.members = append(c.members, m)
	}
	if !stale && removing > 0 {
		n, err := q.stillRemoving(ctx, tx, id)
		if err != nil {
			return nil, err
		}
		stale = n < removing
	}
	if stale {
		if err := q.forget(ctx, tx, c.lane, id, removing); err != nil || len(c.members) == 0 {
			return nil, err
		}
		for i := range c.members {
			c.members[i].Entered = c.members[i].Wanted
		}
		return &c, q.insert(ctx, tx, &c)
	}

	c.id, c.key, c.removing = id, key, removing
	if sealed != nil {
		if c.body, err = q.ring.Open(bodyOf(c.workspace, id), sealed); err != nil {
			return nil, err
		}
	}
	_, err = tx.Exec(ctx, take, args(pgx.StrictNamedArgs{
		"destination": c.destination, "segment": c.segment, "profiles": s.profiles, "token": c.token, "lease": q.lease,
	}))
	return &c, err
}

// forget deletes a batch that is locked, and the marks of what it was to remove.
func (q *queue) forget(ctx context.Context, tx pgx.Tx, lane int, id int64, removing int) error {
	const query = `DELETE FROM activation_batches WHERE lane = @lane AND id = @id`
	if _, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"lane": lane, "id": id}); err != nil {
		return err
	}
	if removing == 0 {
		return nil
	}
	return q.unmark(ctx, tx, id)
}

func bodyOf(workspace int32, batch int64) Place {
	return Place{Workspace: workspace, Table: "activation_batches", Column: "body", ID: batch}
}

// errLost says that a claim's lease ran out and somebody else took care of it.
var errLost = errors.New("the claim was lost")

package profiles

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
)

// Erasure is one person who is being forgotten, or was. It does not say who.
type Erasure struct {
	ID          int64
	Kind        string // of the identifier that was given
	Hash        []byte // HMAC-SHA-256 of it
	Known       bool   // whether anybody was known by it, when it was asked for or by the time the lanes were done
	Reason      string
	KeyID       int64 // of the API key that asked
	KeyName     string
	AskedAt     time.Time
	ErasedAt    *time.Time // when nothing was left of the person but at destinations
	CompletedAt *time.Time // when nothing was left there either
	Tombstones  int        // left, once that is known
	Deleted     map[string]int64
}

// NewErasure is what somebody gives to have a person forgotten.
type NewErasure struct {
	Kind    string
	Key     Key // of the identifier
	Reason  string
	KeyID   int64
	KeyName string
}

// Erasures keeps who is to be forgotten.
type Erasures struct {
	db    database
	lanes int
	keys  *activation.KeyRing
}

// NewErasures returns the erasures kept in db, a pool or a transaction.
func NewErasures(db database, lanes int, keys *activation.KeyRing) *Erasures {
	return &Erasures{db: db, lanes: lanes, keys: keys}
}

// Ask has the person who is known by an identifier forgotten: everybody who is, if several are. From its commit on, events
// that name any of the person's identifiers are kept out. It may be repeated: while an erasure is under way, another one of
// an identifier that is its person's own is the same one, and made is false.
func (s *Erasures) Ask(ctx context.Context, workspace int32, secret Secret, n NewErasure) (e Erasure, made bool, err error) {
	const insert = `
		INSERT INTO erasures (workspace_id, kind, hash, known, reason, api_key_id, api_key_name)
		VALUES (@workspace, @kind, @hash, @known, @reason, @key_id, @key_name)
		RETURNING id`
	const keys = `
		INSERT INTO erasure_keys (erasure_id, key, role)
		SELECT @id, key, role
		FROM unnest(@keys::uuid[], @roles::smallint[]) AS t (key, role)`
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		// One at a time, so that two who ask for the same get the same.
		const lock = `SELECT FROM workspaces WHERE id = $1 FOR NO KEY UPDATE`
		if _, err := tx.Exec(ctx, lock, workspace); err != nil {
			return err
		}
		key, err := openTombstoneKey(ctx, tx, s.keys, workspace)
		if err != nil {
			return err
		}
		g := &grave{secret: key}
		known, anybody, err := s.who(ctx, tx, workspace, secret, n.Key)
		if err != nil {
			return err
		}
		id, err := s.underWay(ctx, tx, workspace, n.Key, g.hash(n.Key), anybody)
		if err != nil || id != 0 {
			e.ID = id
			return err
		}
		made = true
		err = tx.QueryRow(ctx, insert, pgx.StrictNamedArgs{
			"workspace": workspace, "kind": n.Kind, "hash": g.hash(n.Key), "known": anybody, "reason": n.Reason, "key_id": n.KeyID,
			"key_name": n.KeyName,
		}).Scan(&e.ID)
		if err != nil {
			return err
		}
		var all []Key
		var roles []int16
		var hashes [][]byte
		for key, role := range known {
			all, roles, hashes = append(all, key), append(roles, role), append(hashes, g.hash(key))
		}
		if _, err := tx.Exec(ctx, keys, pgx.StrictNamedArgs{"id": e.ID, "keys": all, "roles": roles}); err != nil {
			return err
		}
		return leaveTombstones(ctx, tx, workspace, e.ID, hashes)
	})
	if err != nil {
		return Erasure{}, false, fmt.Errorf("ask for an erasure: %w", err)
	}
	e, err = s.Get(ctx, workspace, e.ID)
	return e, made, err
}

// who returns what is known at once of the person of an identifier, and whether anybody is. The lanes find the rest.
func (s *Erasures) who(
	ctx context.Context, tx pgx.Tx, workspace int32, secret Secret, key Key,
) (known map[Key]int16, anybody bool, err error) {
	found, err := NewReader(tx, s.lanes).Known(ctx, workspace, key)
	if err != nil {
		return nil, false, err
	}
	known = map[Key]int16{}
	for _, p := range found {
		for _, key := range p.contacts(secret) {
			known[key] = keyContact
		}
	}
	for _, p := range found {
		known[p.ID] = keyOwn
		for _, f := range p.Fragments {
			known[f.Key] = keyOwn
		}
	}
	known[key] = keyAsked
	return known, len(found) > 0, nil
}

// Known returns the profiles of everybody who is known by an identifier, given by its key: one, unless several share an
// e-mail address, a phone number or a custom id.
func (r *Reader) Known(ctx context.Context, workspace int32, key Key) ([]*Profile, error) {
	const lookups = `
		SELECT p.id, p.state
		FROM lookups AS k
		JOIN profiles AS p ON p.lane = k.lane AND p.workspace_id = k.workspace_id AND p.id = k.profile_id
		WHERE k.lane = ANY (@lanes) AND k.workspace_id = @workspace AND k.key = @key
		ORDER BY p.id`
	rows, _ := r.db.Query(ctx, lookups, pgx.StrictNamedArgs{"lanes": laneList(r.lanes), "workspace": workspace, "key": key})
	found, err := pgx.CollectRows(rows, scanProfile(workspace))
	if err != nil {
		return nil, fmt.Errorf("look up profiles: %w", err)
	}
	p, err := r.ByID(ctx, workspace, key)
	if errors.Is(err, ErrNotFound) {
		return found, nil
	}
	if err != nil {
		return nil, err
	}
	return append(slices.DeleteFunc(found, func(q *Profile) bool { return q.ID == p.ID }), p), nil
}

// underWay returns an erasure, not complete, that is about whoever an identifier is of: it was asked for by it, or has found
// it to be the person's own. One that merely left its tombstone, because its person could be found by it, is not: others may
// be, too. Once the lanes are done, whoever is known by the identifier has come back since, and is to be forgotten anew.
func (s *Erasures) underWay(
	ctx context.Context, tx pgx.Tx, workspace int32, key Key, hash []byte, anybody bool,
) (id int64, err error) {
	const query = `
		SELECT e.id
		FROM erasures AS e
		WHERE e.workspace_id = @workspace AND e.completed_at IS NULL AND (e.erased_at IS NULL OR NOT @anybody)
			AND (e.hash = @hash OR EXISTS (
				SELECT
				FROM erasure_keys AS k
				WHERE k.erasure_id = e.id AND k.key = @key AND k.role IN (1, 2)))
		ORDER BY e.id
		LIMIT 1`
	err = tx.QueryRow(ctx, query, pgx.StrictNamedArgs{
		"workspace": workspace, "key": key, "hash": hash, "anybody": anybody,
	}).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return id, err
}

const selectErasures = `
	SELECT e.id, e.kind, e.hash, e.known, e.reason, e.api_key_id, e.api_key_name, e.asked_at, e.erased_at, e.completed_at, e.tombstones,
		ARRAY(SELECT d.deleted FROM lane_erasures AS d WHERE d.erasure_id = e.id)
	FROM erasures AS e`

func scanErasure(row pgx.CollectableRow) (e Erasure, err error) {
	var deleted [][]byte
	err = row.Scan(&e.ID, &e.Kind, &e.Hash, &e.Known, &e.Reason, &e.KeyID, &e.KeyName, &e.AskedAt, &e.ErasedAt, &e.CompletedAt, &e.Tombstones, &deleted)
	e.Deleted = map[string]int64{}
	for _, packed := range deleted {
		var counts map[string]int64
		if err := json.Unmarshal(packed, &counts); err != nil {
			return e, err
		}
		for kind, n := range counts {
			e.Deleted[kind] += n
		}
	}
	e.Known = e.Known || e.Deleted["profiles"] > 0 // whose events were still on their way to the lanes
	return e, err
}

// Get returns an erasure, or [ErrNotFound].
func (s *Erasures) Get(ctx context.Context, workspace int32, id int64) (Erasure, error) {
	const query = selectErasures + `
		WHERE e.workspace_id = @workspace AND e.id = @id`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "id": id})
	e, err := pgx.CollectExactlyOneRow(rows, scanErasure)
	if errors.Is(err, pgx.ErrNoRows) {
		return Erasure{}, ErrNotFound
	}
	if err != nil {
		return Erasure{}, fmt.Errorf("get erasure: %w", err)
	}
	return e, nil
}

// List returns at most limit erasures of a workspace from before one, the newest first. Before 0 is from the newest on.
func (s *Erasures) List(ctx context.Context, workspace int32, before int64, limit int) ([]Erasure, error) {
	const query = selectErasures + `
		WHERE e.workspace_id = @workspace AND (@before::bigint = 0 OR e.id < @before)
		ORDER BY e.id DESC
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "before": before, "limit": limit})
	list, err := pgx.CollectRows(rows, scanErasure)
	if err != nil {
		return nil, fmt.Errorf("list erasures: %w", err)
	}
	return list, nil
}

// settleErasures closes the tombstones of erasures that every lane has done its part in, and completes those that every
// destination has. Any number of processes may run it. seen is what the caller's last run has left: an erasure that does not
// get on is looked at less and less often.
func (s *Store) settleErasures(ctx context.Context, seen looks) error {
	const open = `SELECT id, erased_at FROM erasures WHERE completed_at IS NULL AND (erased_at IS NULL OR NOT EXISTS (
		SELECT FROM erasure_removes AS r WHERE r.erasure_id = erasures.id AND r.outcome = 'waiting')) ORDER BY id`
	type row struct {
		ID       int64
		ErasedAt *time.Time
	}
	released, errs := s.activation.Released(ctx, s.pool)
	if released > 0 {
		clear(seen)
	}
	rows, _ := s.pool.Query(ctx, open)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return fmt.Errorf("read erasures under way: %w", err)
	}
	underWay := looks{}
	for _, e := range list {
		before := seen[e.ID]
		if before.erased != (e.ErasedAt != nil) {
			before = look{}
		}
		if time.Now().Before(before.next) {
			underWay[e.ID] = before
			continue
		}
		if e.ErasedAt == nil {
			err = s.closeErasure(ctx, e.ID)
		} else {
			err = s.completeErasure(ctx, e.ID, *e.ErasedAt)
		}
		errs = errors.Join(errs, err)
		wait := min(max(2*before.wait, time.Second), time.Minute)
		underWay[e.ID] = look{erased: e.ErasedAt != nil, wait: wait, next: time.Now().Add(wait)}
	}
	clear(seen)
	maps.Copy(seen, underWay)
	return errs
}

// looks says of erasures under way when to look at them next: after 1 s, 2 s, 4 s, … 60 s in which they did not get on.
type looks map[int64]look

type look struct {
	erased bool // whether it was, in the lanes, when it was looked at
	wait   time.Duration
	next   time.Time
}

// erasedInLanes tells of an erasure whether every lane has done its part in the last round, and heard all that any other
// had told it before that.
const erasedInLanes = `
	SELECT e.erased_at IS NULL
		AND @lanes = (SELECT count(*) FROM lane_erasures AS d WHERE d.erasure_id = e.id AND d.round = e.round)
		AND NOT EXISTS (
			SELECT
			FROM lane_erasures AS d
			JOIN outbox AS o ON o.lane = d.lane AND o.seq <= d.outbox_seq
			JOIN lanes AS t ON t.lane = o.target
			WHERE d.erasure_id = e.id AND o.seq > coalesce(t.heard[o.lane + 1], 0))
	FROM erasures AS e
	WHERE e.id = @id`

// closeErasure says since when nothing is left of a person in the lanes, if nothing is. No µbatch is under way at that
// moment, so whatever one of them kept out was received before it.
func (s *Store) closeErasure(ctx context.Context, id int64) error {
	args := pgx.StrictNamedArgs{"id": id, "lanes": s.lanes}
	var over bool
	if err := s.pool.QueryRow(ctx, erasedInLanes, args).Scan(&over); err != nil {
		return fmt.Errorf("ask how far an erasure is: %w", err)
	}
	if !over {
		return nil
	}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		const lock = `SELECT set_config('lock_timeout', '1s', true), pg_advisory_xact_lock($1)`
		if _, err := tx.Exec(ctx, lock, activation.ConfigLock); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, erasedInLanes+` FOR UPDATE`, args).Scan(&over); err != nil || !over {
			return err
		}
		const shut = `
			WITH closed AS (
				UPDATE tombstones
				SET erased_at = @at
				WHERE erasure_id = @id
				RETURNING 1
			)
			UPDATE erasures
			SET erased_at = @at, tombstones = (SELECT count(*) FROM closed)
			WHERE id = @id`
		var at time.Time
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&at); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, shut, pgx.StrictNamedArgs{"id": id, "at": at}); err != nil {
			return err
		}
		return announceTombstones(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("close the tombstones of an erasure: %w", err)
	}
	return nil
}

// completeErasure forgets who was forgotten, once destinations have let go.
func (s *Store) completeErasure(ctx context.Context, id int64, at time.Time) error {
	const lock = `SELECT workspace_id FROM erasures WHERE id = @id AND completed_at IS NULL FOR UPDATE SKIP LOCKED`
	const keys = `SELECT key FROM erasure_keys WHERE erasure_id = @id AND role IN (1, 2)`
	const outbox = `
		SELECT EXISTS (
			SELECT
			FROM lane_erasures AS d
			JOIN outbox AS o ON o.lane = d.lane AND o.seq <= d.outbox_seq
			WHERE d.erasure_id = @id)`
	const forget = `DELETE FROM erasure_keys WHERE erasure_id = @id`
	const complete = `UPDATE erasures SET completed_at = clock_timestamp() WHERE id = @id`
	args := pgx.StrictNamedArgs{"id": id}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var workspace int32
		var told bool
		err := tx.QueryRow(ctx, lock, args).Scan(&workspace)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, keys, args)
		own, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
		if err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, outbox, args).Scan(&told); err != nil {
			return err
		}
		left, err := s.activation.Forget(ctx, tx, s.lanes, workspace, id, own, at)
		if err != nil {
			return err
		}
		waiting, err := s.activation.Waiting(ctx, tx, id)
		if err != nil || told || left || waiting > 0 {
			return err
		}
		if _, err := tx.Exec(ctx, forget, args); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, complete, args)
		return err
	})
	if err != nil {
		return fmt.Errorf("complete an erasure: %w", err)
	}
	return nil
}

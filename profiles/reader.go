package profiles

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Reader answers questions about people. It reads what the lanes have committed and changes nothing.
type Reader struct {
	db    database
	lanes int
}

// NewReader returns a reader of db, a pool or a transaction, of an installation with that many lanes.
func NewReader(db database, lanes int) *Reader { return &Reader{db: db, lanes: lanes} }

// AsOf returns the moment up to which every accepted event is in the answers of the reader, or zero if nobody knows.
func (r *Reader) AsOf(ctx context.Context) (time.Time, error) { return asOf(ctx, r.db, r.lanes) }

// TimersLate returns how long the first profile has been waiting in which a membership may have changed by itself; 0 if none
// has.
func (r *Reader) TimersLate(ctx context.Context) (time.Duration, error) {
	lanes := make([]int, r.lanes)
	for i := range lanes {
		lanes[i] = i
	}
	_, oldest, err := due(ctx, r.db, lanes, 1)
	return oldest, err
}

// ByID returns the profile of an id, which may be the key of any identifier that belongs to it, or [ErrNotFound].
func (r *Reader) ByID(ctx context.Context, workspace int32, id Key) (*Profile, error) {
	root, err := r.root(ctx, workspace, id)
	if err != nil {
		return nil, err
	}
	const query = `
		SELECT id, state
		FROM profiles
		WHERE lane = @lane AND workspace_id = @workspace AND id = @id`
	args := pgx.StrictNamedArgs{"lane": root.Lane(r.lanes), "workspace": workspace, "id": root}
	rows, _ := r.db.Query(ctx, query, args) // err: below
	p, err := pgx.CollectExactlyOneRow(rows, scanProfile(workspace))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("get profile %s: %w", id, err)
	}
	return p, nil
}

// root returns the root that an identifier's home lane says it belongs to. While a change of roots is on its way between
// lanes, the root may itself have got another.
func (r *Reader) root(ctx context.Context, workspace int32, key Key) (Key, error) {
	const query = `
		SELECT root
		FROM routes
		WHERE lane = @lane AND workspace_id = @workspace AND key = @key`
	for range 3 {
		var root Key
		args := pgx.StrictNamedArgs{"lane": key.Lane(r.lanes), "workspace": workspace, "key": key}
		err := r.db.QueryRow(ctx, query, args).Scan(&root)
		switch {
		case errors.Is(err, pgx.ErrNoRows), err == nil && root == key:
			return key, nil
		case err != nil:
			return Key{}, fmt.Errorf("find root of %s: %w", key, err)
		}
		key = root
	}
	return key, nil
}

// ByIdentifier returns the profile that an identifier belongs to, or [ErrNotFound]. Where several share an e-mail
// address, a phone number or a custom id, it returns the one that was seen last.
func (r *Reader) ByIdentifier(ctx context.Context, workspace int32, secret Secret, id Identifier) (*Profile, error) {
	key := secret.Key(id.normal())
	if id.Kind == UserID || id.Kind == AnonymousID {
		return r.ByID(ctx, workspace, key)
	}
	const query = `
		SELECT p.id, p.state
		FROM lookups AS k
		JOIN profiles AS p ON p.lane = k.lane AND p.workspace_id = k.workspace_id AND p.id = k.profile_id
		WHERE k.lane = ANY (@lanes) AND k.workspace_id = @workspace AND k.key = @key
		ORDER BY p.last_seen_at DESC, p.id
		LIMIT 1`
	args := pgx.StrictNamedArgs{"lanes": laneList(r.lanes), "workspace": workspace, "key": key}
	rows, _ := r.db.Query(ctx, query, args) // err: below
	p, err := pgx.CollectExactlyOneRow(rows, scanProfile(workspace))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("look up profile: %w", err)
	}
	return p, nil
}

// Place is a place in a list that goes through the lanes one after the other.
type Place struct {
	Lane int
	ID   Key
}

// List returns at most limit profiles of a workspace that come after a place, lane by lane, by id.
func (r *Reader) List(ctx context.Context, workspace int32, after Place, limit int) ([]*Profile, error) {
	const query = `
		SELECT id, state
		FROM profiles
		WHERE lane = @lane AND workspace_id = @workspace AND id > @after
		ORDER BY id
		LIMIT @limit`
	list, err := throughLanes(r, after, limit, func(lane int, after Key, limit int) ([]*Profile, error) {
		rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
			"lane": lane, "workspace": workspace, "after": after, "limit": limit,
		})
		return pgx.CollectRows(rows, scanProfile(workspace))
	})
	if err != nil {
		return nil, fmt.Errorf("list profiles: %w", err)
	}
	return list, nil
}

// Count returns how many profiles a workspace has.
func (r *Reader) Count(ctx context.Context, workspace int32) (n int64, err error) {
	const query = `
		SELECT coalesce(sum(profiles), 0)::bigint
		FROM profile_counts
		WHERE lane = ANY (@lanes) AND workspace_id = @workspace`
	err = r.db.QueryRow(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(r.lanes), "workspace": workspace}).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count profiles: %w", err)
	}
	return n, nil
}

// Member is somebody in a segment.
type Member struct {
	Profile     Key
	EnteredAt   time.Time
	Identifiers []Identifier
}

// Members returns at most limit members of a segment that come after a place, lane by lane, by id.
func (r *Reader) Members(ctx context.Context, workspace int32, segment int64, after Place, limit int) ([]Member, error) {
	const query = `
		SELECT m.profile_id, m.entered_at, p.state
		FROM memberships AS m
		LEFT JOIN profiles AS p ON p.lane = m.lane AND p.workspace_id = m.workspace_id AND p.id = m.profile_id
		WHERE m.lane = @lane AND m.segment_id = @segment AND m.profile_id > @after AND m.workspace_id = @workspace
		ORDER BY m.profile_id
		LIMIT @limit`
	scan := func(row pgx.CollectableRow) (m Member, err error) {
		var state []byte
		if err := row.Scan(&m.Profile, &m.EnteredAt, &state); err != nil || state == nil {
			return m, err
		}
		p, err := DecodeProfile(m.Profile, workspace, state)
		if err != nil {
			return m, err
		}
		m.Identifiers = p.Identifiers()
		return m, nil
	}
	list, err := throughLanes(r, after, limit, func(lane int, after Key, limit int) ([]Member, error) {
		rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
			"lane": lane, "workspace": workspace, "segment": segment, "after": after, "limit": limit,
		})
		return pgx.CollectRows(rows, scan)
	})
	if err != nil {
		return nil, fmt.Errorf("list members of segment %d: %w", segment, err)
	}
	return list, nil
}

// throughLanes collects up to limit of what the lanes have after a place, each asked on its own.
func throughLanes[T any](r *Reader, after Place, limit int, ask func(lane int, after Key, limit int) ([]T, error)) ([]T, error) {
	var list []T
	for lane := max(after.Lane, 0); lane < r.lanes && len(list) < limit; lane++ {
		found, err := ask(lane, after.ID, limit-len(list))
		if err != nil {
			return nil, err
		}
		list, after.ID = append(list, found...), Key{}
	}
	return list, nil
}

// PastEvent is an event of the archive.
type PastEvent struct {
	At         Moment // by the time it happened
	Source     int32
	Type       string
	Name       string
	ReceivedAt time.Time
	AppliedAt  time.Time
	Payload    []byte
}

// Moment is a place in a list that goes back in time. The zero Moment is before the first.
type Moment struct {
	At   time.Time
	Lane int
	Seq  int64
}

// moment returns the arguments that stand for m: a null time for the zero one.
func (m Moment) args(args pgx.StrictNamedArgs) pgx.StrictNamedArgs {
	args["at"], args["at_lane"], args["at_seq"] = (*time.Time)(nil), m.Lane, m.Seq
	if !m.At.IsZero() {
		args["at"] = m.At
	}
	return args
}

// Events returns at most limit events of a profile from before a moment, the newest first: those under all identifiers
// that belong to it now.
func (r *Reader) Events(ctx context.Context, p *Profile, before Moment, limit int) ([]PastEvent, error) {
	const query = `
		SELECT e.event_at, f.lane, e.seq, e.source_id, e.type, e.name, e.received_at, e.applied_at, e.payload
		FROM unnest(@lanes::smallint[], @keys::uuid[]) AS f (lane, key)
		CROSS JOIN LATERAL (
			SELECT event_at, seq, source_id, type, name, received_at, applied_at, payload
			FROM events
			WHERE lane = f.lane AND workspace_id = @workspace AND key = f.key
				AND event_at <= coalesce(@at::timestamptz, 'infinity')
				AND (event_at, lane, seq) < (coalesce(@at::timestamptz, 'infinity'), @at_lane, @at_seq)
			ORDER BY event_at DESC, seq DESC
			LIMIT @limit) AS e
		ORDER BY e.event_at DESC, f.lane DESC, e.seq DESC
		LIMIT @limit`
	lanes, keys := r.homes(p)
	rows, _ := r.db.Query(ctx, query, before.args(pgx.StrictNamedArgs{ // err: below
		"workspace": p.Workspace, "lanes": lanes, "keys": keys, "limit": limit,
	}))
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (a PastEvent, err error) {
		err = row.Scan(&a.At.At, &a.At.Lane, &a.At.Seq, &a.Source, &a.Type, &a.Name, &a.ReceivedAt, &a.AppliedAt, &a.Payload)
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("list events of %s: %w", p.ID, err)
	}
	return list, nil
}

// homes returns the keys of a profile's fragments, each with its home lane.
func (r *Reader) homes(p *Profile) (lanes []int16, keys []Key) {
	for _, f := range p.Fragments {
		lanes, keys = append(lanes, int16(f.Key.Lane(r.lanes))), append(keys, f.Key)
	}
	return lanes, keys
}

// Recorded is an entering or leaving that has happened.
type Recorded struct {
	At      Moment
	Segment int64
	Profile Key
	Entered bool
	Cause   Cause
}

// TransitionsOfProfile returns at most limit enterings and leavings of a profile from before a moment, the newest first,
// and with them those of the profiles that were merged into it: of one segment or, if that is 0, of all.
func (r *Reader) TransitionsOfProfile(ctx context.Context, p *Profile, segment int64, before Moment, limit int) ([]Recorded, error) {
	const query = `
		SELECT t.at, f.lane, t.seq, t.segment_id, t.profile_id, t.entered, t.cause, t.cause_source_id, t.cause_message_id
		FROM unnest(@lanes::smallint[], @keys::uuid[]) AS f (lane, key)
		CROSS JOIN LATERAL (
			SELECT at, seq, segment_id, profile_id, entered, cause, cause_source_id, cause_message_id
			FROM transitions
			WHERE lane = f.lane AND workspace_id = @workspace AND profile_id = f.key AND (@segment::bigint = 0 OR segment_id = @segment)
				AND at <= coalesce(@at::timestamptz, 'infinity')
				AND (at, lane, seq) < (coalesce(@at::timestamptz, 'infinity'), @at_lane, @at_seq)
			ORDER BY at DESC, seq DESC
			LIMIT @limit) AS t
		ORDER BY t.at DESC, f.lane DESC, t.seq DESC
		LIMIT @limit`
	lanes, keys := r.homes(p)
	if !slices.Contains(keys, p.ID) {
		lanes, keys = append(lanes, int16(p.ID.Lane(r.lanes))), append(keys, p.ID)
	}
	rows, _ := r.db.Query(ctx, query, before.args(pgx.StrictNamedArgs{ // err: below
		"workspace": p.Workspace, "lanes": lanes, "keys": keys, "segment": segment, "limit": limit,
	}))
	list, err := pgx.CollectRows(rows, scanRecorded)
	if err != nil {
		return nil, fmt.Errorf("list transitions of %s: %w", p.ID, err)
	}
	return list, nil
}

func scanRecorded(row pgx.CollectableRow) (t Recorded, err error) {
	err = row.Scan(&t.At.At, &t.At.Lane, &t.At.Seq, &t.Segment, &t.Profile, &t.Entered, &t.Cause.Kind, &t.Cause.Source, &t.Cause.MessageID)
	return t, err
}

func scanProfile(workspace int32) pgx.RowToFunc[*Profile] {
	return func(row pgx.CollectableRow) (*Profile, error) {
		var id Key
		var state []byte
		if err := row.Scan(&id, &state); err != nil {
			return nil, err
		}
		return DecodeProfile(id, workspace, state)
	}
}

// Identifiers returns everything that the person is known under, users' ids first: see [Reader.ByIdentifier].
func (p *Profile) Identifiers() []Identifier {
	var ids []Identifier
	for _, f := range p.Fragments {
		if f.Identifier.Value != "" {
			ids = append(ids, f.Identifier)
		}
	}
	ids = append(ids, p.lookupIdentifiers()...)
	order := []string{UserID, AnonymousID, Email, Phone}
	rank := func(id Identifier) int {
		if i := slices.Index(order, id.Kind); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.SortFunc(ids, func(a, b Identifier) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), compareIdentifiers(a, b))
	})
	return slices.Compact(ids)
}

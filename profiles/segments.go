package profiles

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/profiles/rule"
)

// What callers act upon.
var (
	ErrChanged  = errors.New("changed by somebody else in the meantime")
	ErrDeleting = errors.New("being deleted")
)

// StoredSegment is a rule, and what is known of the people for whom it holds.
type StoredSegment struct {
	ID          int64
	Key         string
	Name        string
	Description string
	Rule        jsontext.Value // canonical
	Version     int            // counts the changes of the rule
	Revision    int            // counts all changes
	LiveVersion int            // the version that the members follow; 0 while there has been none
	Deleting    bool           // it goes when its members have left
	CreatedAt   time.Time
	UpdatedAt   time.Time

	Members  int64
	Progress float64   // of the build of Version, 0 to 1
	AsOf     time.Time // all events accepted up to then are included; zero if nobody knows
}

// Live tells whether the members follow the rule, rather than the one before, or none.
func (s StoredSegment) Live() bool { return s.LiveVersion == s.Version }

// Segments keeps the definitions of segments. It only writes down what is wanted: the lanes take it up, build it, and end
// a segment that is being deleted.
type Segments struct {
	db    database
	lanes int
}

// NewSegments returns the segments kept in db, a pool or a transaction, of an installation with that many lanes.
func NewSegments(db database, lanes int) *Segments { return &Segments{db: db, lanes: lanes} }

// SegmentDefinition is what a segment is made from.
type SegmentDefinition struct {
	Key         string
	Name        string
	Description string
	Rule        jsontext.Value
}

// Create makes a segment. The error is a [*rule.Error] if the rule is not one, and [ErrExists] if the key is taken.
func (s *Segments) Create(ctx context.Context, workspace int32, d SegmentDefinition) (StoredSegment, error) {
	r, err := rule.Parse(d.Rule)
	if err != nil {
		return StoredSegment{}, err
	}
	return s.define(ctx, workspace, func(tx pgx.Tx) (id int64, err error) {
		canonical, behaviours, err := register(ctx, tx, workspace, r)
		if err != nil {
			return 0, err
		}
		const query = `
			INSERT INTO segments (workspace_id, key, name, description, rule, behaviours)
			VALUES (@workspace, @key, @name, @description, @rule, @behaviours)
			ON CONFLICT (workspace_id, key) DO NOTHING
			RETURNING id`
		err = tx.QueryRow(ctx, query, pgx.StrictNamedArgs{
			"workspace": workspace, "key": d.Key, "name": d.Name, "description": d.Description, "rule": canonical,
			"behaviours": behaviours,
		}).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return 0, ErrExists
		}
		return id, err
	})
}

// SegmentRef names a segment, by its key or, if that is empty, its id.
type SegmentRef struct {
	Key string
	ID  int64
}

// SegmentChange says what is to be different. What is nil stays as it is.
type SegmentChange struct {
	IfRevision  int // 0: whichever
	Name        *string
	Description *string
	Rule        jsontext.Value
}

// Update changes a segment. If its rule says something else then, it has a new version, which is built; a change that
// changes nothing is no change. The error is [ErrNotFound], [ErrDeleting], [ErrChanged] if the segment is not at the
// revision wanted, or a [*rule.Error].
func (s *Segments) Update(ctx context.Context, workspace int32, ref SegmentRef, c SegmentChange) (StoredSegment, error) {
	var r *rule.Rule
	if c.Rule != nil {
		var err error
		if r, err = rule.Parse(c.Rule); err != nil {
			return StoredSegment{}, err
		}
	}
	return s.define(ctx, workspace, func(tx pgx.Tx) (int64, error) {
		old, err := lockSegment(ctx, tx, workspace, ref, c.IfRevision)
		switch {
		case err != nil:
			return 0, err
		case old.Deleting:
			return 0, ErrDeleting
		}
		name, description := old.Name, old.Description
		if c.Name != nil {
			name = *c.Name
		}
		if c.Description != nil {
			description = *c.Description
		}
		args := pgx.StrictNamedArgs{"id": old.ID, "name": name, "description": description}
		if r != nil {
			canonical, err := r.MarshalJSON()
			if err != nil {
				return 0, err
			}
			if !bytes.Equal(canonical, old.Rule) {
				args["rule"], args["behaviours"], err = register(ctx, tx, workspace, r)
				if err != nil {
					return 0, err
				}
				const query = `
					UPDATE segments
					SET name        = @name,
					    description = @description,
					    rule        = @rule,
					    behaviours  = @behaviours,
					    version     = version + 1,
					    revision    = revision + 1,
					    updated_at  = now()
					WHERE id = @id`
				_, err = tx.Exec(ctx, query, args)
				return old.ID, err
			}
		}
		if name == old.Name && description == old.Description {
			return old.ID, nil
		}
		const query = `
			UPDATE segments
			SET name        = @name,
			    description = @description,
			    revision    = revision + 1,
			    updated_at  = now()
			WHERE id = @id`
		_, err = tx.Exec(ctx, query, args)
		return old.ID, err
	})
}

// Delete has every member leave a segment, after which it is gone. Until then [StoredSegment.Deleting] is set; deleting it
// again changes nothing. The error is [ErrNotFound], or [ErrChanged] if ifRevision is neither 0 nor the segment's.
func (s *Segments) Delete(ctx context.Context, workspace int32, ref SegmentRef, ifRevision int) (StoredSegment, error) {
	return s.define(ctx, workspace, func(tx pgx.Tx) (int64, error) {
		old, err := lockSegment(ctx, tx, workspace, ref, ifRevision)
		if err != nil {
			return 0, err
		}
		const query = `
			UPDATE segments
			SET deleting   = true,
			    revision   = revision + 1,
			    updated_at = now()
			WHERE id = @id AND NOT deleting`
		_, err = tx.Exec(ctx, query, pgx.StrictNamedArgs{"id": old.ID})
		return old.ID, err
	})
}

// Get returns a segment, or [ErrNotFound].
func (s *Segments) Get(ctx context.Context, workspace int32, ref SegmentRef) (StoredSegment, error) {
	const query = selectSegment + `
		WHERE workspace_id = @workspace AND (key = @key OR @key = '' AND id = @id)`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "key": ref.Key, "id": ref.ID}) // err: below
	seg, err := pgx.CollectExactlyOneRow(rows, scanSegment)
	if errors.Is(err, pgx.ErrNoRows) {
		return StoredSegment{}, ErrNotFound
	}
	if err != nil {
		return StoredSegment{}, fmt.Errorf("get segment: %w", err)
	}
	one := []StoredSegment{seg}
	if err := s.measure(ctx, one); err != nil {
		return StoredSegment{}, err
	}
	return one[0], nil
}

// Find returns how a segment is called, or [ErrNotFound].
func (s *Segments) Find(ctx context.Context, workspace int32, ref SegmentRef) (activation.Segment, error) {
	const query = `
		SELECT id, key, name
		FROM segments
		WHERE workspace_id = @workspace AND (key = @key OR @key = '' AND id = @id)`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "key": ref.Key, "id": ref.ID}) // err: below
	seg, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[activation.Segment])
	if errors.Is(err, pgx.ErrNoRows) {
		return activation.Segment{}, ErrNotFound
	}
	if err != nil {
		return activation.Segment{}, fmt.Errorf("find segment: %w", err)
	}
	return seg, nil
}

// List returns at most limit segments of a workspace whose ids are larger than after, in the order of their ids.
func (s *Segments) List(ctx context.Context, workspace int32, after int64, limit int) ([]StoredSegment, error) {
	const query = selectSegment + `
		WHERE workspace_id = @workspace AND id > @after
		ORDER BY id
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "after": after, "limit": limit}) // err: below
	list, err := pgx.CollectRows(rows, scanSegment)
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	return list, s.measure(ctx, list)
}

// Count returns how many segments a workspace has, those being deleted among them.
func (s *Segments) Count(ctx context.Context, workspace int32) (n int64, err error) {
	const query = `SELECT count(*) FROM segments WHERE workspace_id = $1`
	err = s.db.QueryRow(ctx, query, workspace).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count segments: %w", err)
	}
	return n, nil
}

// SegmentInfo tells how segments are called. Those that are gone are missing from the answer.
func (s *Segments) SegmentInfo(ctx context.Context, workspace int32, ids []int64) (map[int64]activation.Segment, error) {
	info := map[int64]activation.Segment{}
	if len(ids) == 0 {
		return info, nil
	}
	const query = `
		SELECT id, key, name
		FROM segments
		WHERE workspace_id = @workspace AND id = ANY (@ids)`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "ids": ids}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[activation.Segment])
	if err != nil {
		return nil, fmt.Errorf("name segments: %w", err)
	}
	for _, seg := range list {
		info[seg.ID] = seg
	}
	return info, nil
}

// define runs change while nobody else changes the workspace's segments, retires the behaviours that no rule counts any
// more, and returns the segment changed.
func (s *Segments) define(ctx context.Context, workspace int32, change func(pgx.Tx) (int64, error)) (seg StoredSegment, err error) {
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		const lock = `SELECT pg_advisory_xact_lock($1, $2)`
		if _, err := tx.Exec(ctx, lock, segmentsLock, workspace); err != nil {
			return fmt.Errorf("lock segments: %w", err)
		}
		id, err := change(tx)
		if err != nil {
			return err
		}
		if err := retireBehaviours(ctx, tx, workspace); err != nil {
			return err
		}
		seg, err = NewSegments(tx, s.lanes).Get(ctx, workspace, SegmentRef{ID: id})
		return err
	})
	return seg, err
}

// segmentsLock and a workspace's id are the advisory lock of that workspace's definitions.
const segmentsLock = 0x73656773 // "segs"

// register makes sure that everything a rule counts is counted for the workspace, and returns the rule as it is stored
// and its behaviours' ids in their order.
func register(ctx context.Context, tx pgx.Tx, workspace int32, r *rule.Rule) (canonical jsontext.Value, ids []int32, err error) {
	canonical, err = r.MarshalJSON()
	if err != nil {
		return nil, nil, err
	}
	ids = []int32{}
	for _, b := range r.Behaviours() {
		// A retired behaviour has missed events, so it is never taken up again.
		const query = `
			WITH found AS (
				SELECT id
				FROM behaviours
				WHERE workspace_id = @workspace AND NOT retired AND definition = @definition AND keep >= @keep
				ORDER BY keep
				LIMIT 1
			), made AS (
				INSERT INTO behaviours (workspace_id, definition, keep)
				SELECT @workspace, @definition, @keep
				WHERE NOT EXISTS (SELECT FROM found)
				RETURNING id
			)
			SELECT id FROM found
			UNION ALL
			SELECT id FROM made`
		var id int32
		err := tx.QueryRow(ctx, query, pgx.StrictNamedArgs{
			"workspace": workspace, "definition": b.Canonical(), "keep": b.Keep,
		}).Scan(&id)
		if err != nil {
			return nil, nil, fmt.Errorf("register behaviour: %w", err)
		}
		ids = append(ids, id)
	}
	return canonical, ids, nil
}

// retireBehaviours ends the behaviours that no segment of the workspace refers to any more.
func retireBehaviours(ctx context.Context, tx pgx.Tx, workspace int32) error {
	const query = `
		UPDATE behaviours b
		SET retired = true
		WHERE b.workspace_id = @workspace AND NOT b.retired
			AND NOT EXISTS (
				SELECT
				FROM segments s
				WHERE s.workspace_id = @workspace AND (b.id = ANY (s.behaviours) OR b.id = ANY (s.live_behaviours)))`
	if _, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"workspace": workspace}); err != nil {
		return fmt.Errorf("retire behaviours: %w", err)
	}
	return nil
}

// lockSegment returns a segment whose row nobody else can change until tx ends.
func lockSegment(ctx context.Context, tx pgx.Tx, workspace int32, ref SegmentRef, ifRevision int) (StoredSegment, error) {
	const query = selectSegment + `
		WHERE workspace_id = @workspace AND (key = @key OR @key = '' AND id = @id)
		FOR UPDATE`
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "key": ref.Key, "id": ref.ID}) // err: below
	seg, err := pgx.CollectExactlyOneRow(rows, scanSegment)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return StoredSegment{}, ErrNotFound
	case err != nil:
		return StoredSegment{}, fmt.Errorf("lock segment: %w", err)
	case ifRevision != 0 && ifRevision != seg.Revision:
		return StoredSegment{}, ErrChanged
	}
	return seg, nil
}

const selectSegment = `
		SELECT id, key, name, description, rule, version, revision, live_version, deleting, created_at, updated_at
		FROM segments`

func scanSegment(row pgx.CollectableRow) (s StoredSegment, err error) {
	var stored []byte
	err = row.Scan(&s.ID, &s.Key, &s.Name, &s.Description, &stored, &s.Version, &s.Revision, &s.LiveVersion, &s.Deleting,
		&s.CreatedAt, &s.UpdatedAt)
	if err != nil {
		return StoredSegment{}, err
	}
	r, err := rule.Parse(stored) // jsonb has changed the order of members
	if err != nil {
		return StoredSegment{}, fmt.Errorf("segment %d: %w", s.ID, err)
	}
	s.Rule, err = r.MarshalJSON()
	return s, err
}

// measure fills in what the lanes say of the segments: members, progress and freshness.
func (s *Segments) measure(ctx context.Context, list []StoredSegment) error {
	if len(list) == 0 {
		return nil
	}
	ids := make([]int64, len(list))
	for i, seg := range list {
		ids[i] = seg.ID
	}
	asOf, err := asOf(ctx, s.db, s.lanes)
	if err != nil {
		return err
	}
	members, err := s.members(ctx, ids)
	if err != nil {
		return err
	}
	progress, err := s.progress(ctx, ids)
	if err != nil {
		return err
	}
	for i := range list {
		seg := &list[i]
		seg.AsOf, seg.Members, seg.Progress = asOf, members[seg.ID], 1
		if !seg.Live() {
			seg.Progress = progress[seg.ID]
		}
	}
	return nil
}

func (s *Segments) members(ctx context.Context, ids []int64) (map[int64]int64, error) {
	const query = `
		SELECT segment_id, sum(members)::bigint AS members
		FROM segment_counts
		WHERE lane = ANY (@lanes) AND segment_id = ANY (@ids)
		GROUP BY segment_id`
	type count struct{ SegmentID, Members int64 }
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(s.lanes), "ids": ids}) // err: below
	counts, err := pgx.CollectRows(rows, pgx.RowToStructByName[count])
	if err != nil {
		return nil, fmt.Errorf("count members: %w", err)
	}
	members := map[int64]int64{}
	for _, c := range counts {
		members[c.SegmentID] = c.Members
	}
	return members, nil
}

// progress tells how far the segments' builds are: half of a lane's part is replaying the archive, the other half going
// through its profiles, in the order of their ids, which are evenly spread.
func (s *Segments) progress(ctx context.Context, ids []int64) (map[int64]float64, error) {
	const query = `
		SELECT s.id AS segment_id, b.phase, b.cursor,
			coalesce((
				SELECT avg(CASE WHEN l.cut_seq > 0 THEN l.replayed_seq::float8 / l.cut_seq ELSE 1 END)
				FROM lane_behaviours l
				WHERE l.lane = b.lane AND l.behaviour_id = ANY (s.behaviours)), 0) AS replayed
		FROM segments s
		JOIN lane_segments b ON b.segment_id = s.id AND b.version = s.version
		WHERE s.id = ANY (@ids) AND s.version <> s.live_version AND b.lane = ANY (@lanes)`
	type part struct {
		SegmentID int64
		Phase     string
		Cursor    [16]byte
		Replayed  float64
	}
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(s.lanes), "ids": ids}) // err: below
	parts, err := pgx.CollectRows(rows, pgx.RowToStructByName[part])
	if err != nil {
		return nil, fmt.Errorf("measure builds: %w", err)
	}
	progress := map[int64]float64{}
	for _, p := range parts {
		var done float64
		switch p.Phase {
		case "replaying":
			done = min(p.Replayed, 1) / 2
		case "ready":
			done = 0.5
		case "evaluating":
			done = 0.5 + float64(binary.BigEndian.Uint64(p.Cursor[:8]))/(1<<64)/2
		case "done":
			done = 1
		}
		progress[p.SegmentID] += done / float64(s.lanes)
	}
	for id, p := range progress {
		progress[id] = min(p, 1)
	}
	return progress, nil
}

// asOf returns the moment up to which every accepted event is in what the database says, or zero if a lane has not said.
func asOf(ctx context.Context, db database, lanes int) (time.Time, error) {
	// What one lane has to tell another holds the moment back to just before the event that it follows from.
	const query = `
		SELECT CASE WHEN count(*) = @lanes THEN least(nullif(min(as_of), '-infinity'), (
			SELECT min(o.received_at) - interval '1 ms'
			FROM outbox AS o
			JOIN lanes AS t ON t.lane = o.target
			WHERE o.seq > coalesce(t.heard[o.lane + 1], 0))) END
		FROM lanes
		WHERE lane < @lanes`
	var at *time.Time
	if err := db.QueryRow(ctx, query, pgx.StrictNamedArgs{"lanes": lanes}).Scan(&at); err != nil {
		return time.Time{}, fmt.Errorf("read freshness: %w", err)
	}
	if at == nil {
		return time.Time{}, nil
	}
	return *at, nil
}

// laneList returns all lanes: every query over more than one names them, so that each is looked up by its own index.
func laneList(lanes int) []int16 {
	list := make([]int16, lanes)
	for i := range list {
		list[i] = int16(i)
	}
	return list
}

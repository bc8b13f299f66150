package profiles

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/profiles/rule"
)

// What callers act upon.
var (
	ErrChanged         = errors.New("changed by somebody else in the meantime")
	ErrDeleting        = errors.New("being deleted")
	ErrNeverLive       = errors.New("never been live")
	ErrNothingToCancel = errors.New("nothing to cancel")
)

// ReferredError says that other segments refer to one that is to be deleted.
type ReferredError struct{ By []string } // their keys, sorted

func (e *ReferredError) Error() string { return "referred to by " + strings.Join(e.By, ", ") }

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
	Public      bool           // visitors may be told that they are in it
	CreatedAt   time.Time
	UpdatedAt   time.Time

	Members  int64
	Progress float64   // of the build of Version, 0 to 1
	Build    *Build    // nil if it is live, or being deleted
	AsOf     time.Time // all events accepted up to then are included; zero if nobody knows
}

// The phases of a build: that of the lane which is least far.
const (
	BuildQueued     = "queued"     // not taken up yet
	BuildReplaying  = "replaying"  // the archive is gone through for what the rule counts
	BuildWaiting    = "waiting"    // for the builds of segments that the rule refers to
	BuildEvaluating = "evaluating" // the profiles are gone through
)

// Build is how far a segment's newest version is on its way to be the live one.
type Build struct {
	Version          int
	Phase            string
	Progress         float64 // 0 to 1
	LanesDone, Lanes int
	StartedAt        time.Time // when the version was made
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
	Public      bool
}

// Create makes a segment. The error is a [*rule.Error] if the rule is not one, or refers to segments that there are not,
// and [ErrExists] if the key is taken.
func (s *Segments) Create(ctx context.Context, workspace int32, d SegmentDefinition) (StoredSegment, error) {
	r, err := rule.Parse(d.Rule)
	if err != nil {
		return StoredSegment{}, err
	}
	return s.define(ctx, workspace, func(tx pgx.Tx) (id int64, err error) {
		v, err := newVersion(ctx, tx, workspace, 0, r)
		if err != nil {
			return 0, err
		}
		const query = `
			INSERT INTO segments (workspace_id, key, name, description, rule, behaviours, public)
			VALUES (@workspace, @key, @name, @description, @rule, @behaviours, @public)
			ON CONFLICT (workspace_id, key) DO NOTHING
			RETURNING id`
		err = tx.QueryRow(ctx, query, pgx.StrictNamedArgs{
			"workspace": workspace, "key": d.Key, "name": d.Name, "description": d.Description, "rule": v.rule,
			"behaviours": v.behaviours, "public": d.Public,
		}).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return 0, ErrExists
		}
		if err != nil {
			return 0, err
		}
		return id, addVersion(ctx, tx, id, v.refersTo)
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
	Public      *bool
}

// Update changes a segment. If its rule says something else then, it has a new version, which is built; a change that
// changes nothing is no change. The error is [ErrNotFound], [ErrDeleting], [ErrChanged] if the segment is not at the
// revision wanted, or a [*rule.Error], also if its references would go in a circle.
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
		name, description, public := old.Name, old.Description, old.Public
		if c.Name != nil {
			name = *c.Name
		}
		if c.Description != nil {
			description = *c.Description
		}
		if c.Public != nil {
			public = *c.Public
		}
		args := pgx.StrictNamedArgs{"id": old.ID, "name": name, "description": description, "public": public}
		if r != nil {
			canonical, err := r.MarshalJSON()
			if err != nil {
				return 0, err
			}
			if !bytes.Equal(canonical, old.Rule) {
				v, err := newVersion(ctx, tx, workspace, old.ID, r)
				if err != nil {
					return 0, err
				}
				args["rule"], args["behaviours"] = v.rule, v.behaviours
				const query = `
					UPDATE segments
					SET name        = @name,
					    description = @description,
					    public      = @public,
					    rule        = @rule,
					    behaviours  = @behaviours,
					    version     = version + 1,
					    revision    = revision + 1,
					    updated_at  = now()
					WHERE id = @id`
				if _, err := tx.Exec(ctx, query, args); err != nil {
					return 0, err
				}
				return old.ID, addVersion(ctx, tx, old.ID, v.refersTo)
			}
		}
		if name == old.Name && description == old.Description && public == old.Public {
			return old.ID, nil
		}
		const query = `
			UPDATE segments
			SET name        = @name,
			    description = @description,
			    public      = @public,
			    revision    = revision + 1,
			    updated_at  = now()
			WHERE id = @id`
		_, err = tx.Exec(ctx, query, args)
		return old.ID, err
	})
}

// Delete has every member leave a segment, after which it is gone. Until then [StoredSegment.Deleting] is set; deleting it
// again changes nothing. The error is [ErrNotFound], [ErrChanged] if ifRevision is neither 0 nor the segment's, or a
// [*ReferredError] if other segments refer to it, be it in a version that an edit of theirs has not replaced yet.
func (s *Segments) Delete(ctx context.Context, workspace int32, ref SegmentRef, ifRevision int) (StoredSegment, error) {
	return s.define(ctx, workspace, func(tx pgx.Tx) (int64, error) {
		old, err := lockSegment(ctx, tx, workspace, ref, ifRevision)
		if err != nil || old.Deleting {
			return old.ID, err
		}
		if err := checkUnreferred(ctx, tx, old.ID); err != nil {
			return 0, err
		}
		const query = `
			UPDATE segments
			SET deleting   = true,
			    revision   = revision + 1,
			    updated_at = now()
			WHERE id = @id`
		_, err = tx.Exec(ctx, query, pgx.StrictNamedArgs{"id": old.ID})
		return old.ID, err
	})
}

// Cancel takes back an edit that is not live yet: the segment has a new version with the rule that is live. It is built like
// any other, so that whoever has entered or left by the edit already goes back. The error is [ErrNotFound], [ErrDeleting],
// [ErrChanged] if ifRevision is neither 0 nor the segment's, [ErrNeverLive] if there is no live rule to go back to,
// [ErrNothingToCancel], or a [*rule.Error] if the live rule would make a circle with what others refer to by now.
func (s *Segments) Cancel(ctx context.Context, workspace int32, ref SegmentRef, ifRevision int) (StoredSegment, error) {
	return s.define(ctx, workspace, func(tx pgx.Tx) (int64, error) {
		old, err := lockSegment(ctx, tx, workspace, ref, ifRevision)
		switch {
		case err != nil:
			return 0, err
		case old.Deleting:
			return 0, ErrDeleting
		case old.LiveVersion == 0:
			return 0, ErrNeverLive
		case old.Live():
			return 0, ErrNothingToCancel
		}
		const live = `SELECT rule FROM segment_versions WHERE segment_id = @id AND version = @version`
		var text []byte
		err = tx.QueryRow(ctx, live, pgx.StrictNamedArgs{"id": old.ID, "version": old.LiveVersion}).Scan(&text)
		if err != nil {
			return 0, fmt.Errorf("read live version: %w", err)
		}
		r, err := rule.ParseStored(text)
		if err != nil {
			return 0, fmt.Errorf("live version of segment %d: %v", old.ID, err) // not the caller's mistake
		}
		canonical, err := r.MarshalJSON()
		if err != nil {
			return 0, err
		}
		if bytes.Equal(canonical, old.Rule) {
			return 0, ErrNothingToCancel
		}
		if _, err := resolve(ctx, tx, workspace, old.ID, r); err != nil {
			return 0, err
		}
		// The behaviours are the live version's own, which are being counted.
		const back = `
			UPDATE segments AS s
			SET rule       = v.rule,
			    behaviours = v.behaviours,
			    version    = s.version + 1,
			    revision   = s.revision + 1,
			    updated_at = now()
			FROM segment_versions AS v
			WHERE s.id = @id AND v.segment_id = s.id AND v.version = s.live_version
			RETURNING v.refers_to`
		var refersTo []int64
		if err := tx.QueryRow(ctx, back, pgx.StrictNamedArgs{"id": old.ID}).Scan(&refersTo); err != nil {
			return 0, err
		}
		return old.ID, addVersion(ctx, tx, old.ID, refersTo)
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

// define runs change while nobody else changes the workspace's definitions, forgets what nobody needs any more, and returns
// the segment changed.
func (s *Segments) define(ctx context.Context, workspace int32, change func(pgx.Tx) (int64, error)) (seg StoredSegment, err error) {
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := lockDefinitions(ctx, tx, workspace); err != nil {
			return err
		}
		id, err := change(tx)
		if err != nil {
			return err
		}
		if err := forgetVersions(ctx, tx, id, s.lanes); err != nil {
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
		SELECT id, key, name, description, rule, version, revision, live_version, deleting, public,
		       created_at, updated_at
		FROM segments`

func scanSegment(row pgx.CollectableRow) (s StoredSegment, err error) {
	var stored []byte
	err = row.Scan(&s.ID, &s.Key, &s.Name, &s.Description, &stored, &s.Version, &s.Revision, &s.LiveVersion, &s.Deleting,
		&s.Public, &s.CreatedAt, &s.UpdatedAt)
	if err != nil {
		return StoredSegment{}, err
	}
	r, err := rule.ParseStored(stored) // jsonb has changed the order of members
	if err != nil {
		return StoredSegment{}, fmt.Errorf("segment %d: %v", s.ID, err) // not the caller's mistake
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
	builds, err := s.builds(ctx, list)
	if err != nil {
		return err
	}
	for i := range list {
		seg := &list[i]
		seg.AsOf, seg.Members, seg.Progress = asOf, members[seg.ID], 1
		if !seg.Live() {
			seg.Build = builds[seg.ID]
			seg.Progress = 0
		}
		if seg.Build != nil {
			seg.Progress = seg.Build.Progress
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

// builds tells how far the builds of the segments' versions are, also if they have ended since these were read: half of a
// lane's part is replaying the archive, the other half going through its profiles, in the order of their ids, which are
// evenly spread.
func (s *Segments) builds(ctx context.Context, list []StoredSegment) (map[int64]*Build, error) {
	var ids []int64
	var versions []int
	for _, seg := range list {
		if !seg.Live() && !seg.Deleting {
			ids, versions = append(ids, seg.ID), append(versions, seg.Version)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	const query = `
		SELECT v.segment_id, v.version, v.created_at, coalesce(k.phase, 'queued'),
		       coalesce(k.cursor, '00000000-0000-0000-0000-000000000000'),
		       coalesce((
		           SELECT avg(CASE WHEN b.cut_seq > 0 THEN b.replayed_seq::float8 / b.cut_seq ELSE 1 END)
		           FROM lane_behaviours AS b
		           WHERE b.lane = k.lane AND b.behaviour_id = ANY (v.behaviours)), 1)
		FROM unnest(@ids::bigint[], @versions::integer[]) AS s (id, version)
		JOIN segment_versions AS v ON v.segment_id = s.id AND v.version = s.version
		CROSS JOIN unnest(@lanes::smallint[]) AS l (lane)
		LEFT JOIN lane_segments AS k ON k.lane = l.lane AND k.segment_id = s.id AND k.version = s.version`
	type part struct {
		Segment  int64
		Version  int
		Started  time.Time
		Phase    string
		Cursor   Key
		Replayed float64
	}
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"lanes": laneList(s.lanes), "ids": ids, "versions": versions,
	})
	parts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[part])
	if err != nil {
		return nil, fmt.Errorf("measure builds: %w", err)
	}
	builds := map[int64]*Build{}
	for _, p := range parts {
		b := builds[p.Segment]
		if b == nil {
			b = &Build{Version: p.Version, Phase: BuildEvaluating, Lanes: s.lanes, StartedAt: p.Started}
			builds[p.Segment] = b
		}
		phase, done := BuildQueued, 0.0
		switch p.Phase {
		case phaseReplaying:
			phase, done = BuildReplaying, min(p.Replayed, 1)/2
		case phaseReady:
			phase, done = BuildWaiting, 0.5
		case phaseEvaluating:
			phase, done = BuildEvaluating, 0.5+float64(binary.BigEndian.Uint64(p.Cursor[:8]))/(1<<64)/2
		case phaseDone:
			phase, done = BuildEvaluating, 1
			b.LanesDone++
		}
		if slices.Index(buildPhases, phase) < slices.Index(buildPhases, b.Phase) {
			b.Phase = phase
		}
		b.Progress = min(b.Progress+done/float64(s.lanes), 1)
	}
	return builds, nil
}

var buildPhases = []string{BuildQueued, BuildReplaying, BuildWaiting, BuildEvaluating}

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

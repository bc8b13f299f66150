package profiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/profiles/rule"
)

// Computed traits: aggregates of what people did, under a name.
//
// What a computed trait counts is a behaviour like those of segments, folded and replayed with them. Its value is kept
// nowhere: it is computed from the timeline when somebody reads the profile, so that it is true at that moment, also where
// a window has run out since the last event.

// ComputedTrait is a definition, and how far it has come true.
type ComputedTrait struct {
	ID          int64
	Key         string
	Name        string
	Description string
	Value       jsontext.Value // canonical: see [rule.ParseComputed]
	Version     int            // counts the changes of Value
	Revision    int            // counts all changes
	LiveVersion int            // the version that profiles show; 0 while there has been none
	Public      bool           // visitors may be told their own
	CreatedAt   time.Time
	UpdatedAt   time.Time

	Progress float64 // of the build of Version, 0 to 1
}

// Live tells whether profiles show Value, rather than the one before, or none.
func (c ComputedTrait) Live() bool { return c.LiveVersion == c.Version }

// ComputedTraits keeps the definitions of computed traits. It only writes down what is wanted: the lanes build it.
type ComputedTraits struct {
	db    database
	lanes int
}

// NewComputedTraits returns the computed traits kept in db, a pool or a transaction, of an installation with that many
// lanes.
func NewComputedTraits(db database, lanes int) *ComputedTraits {
	return &ComputedTraits{db: db, lanes: lanes}
}

// ComputedDefinition is what a computed trait is made from.
type ComputedDefinition struct {
	Key         string
	Name        string
	Description string
	Value       jsontext.Value
	Public      bool
}

// Create makes a computed trait. The error is a [*rule.Error] if its value is not one, and [ErrExists] if the key is taken.
func (s *ComputedTraits) Create(ctx context.Context, workspace int32, d ComputedDefinition) (ComputedTrait, error) {
	c, err := rule.ParseComputed(d.Value)
	if err != nil {
		return ComputedTrait{}, err
	}
	return s.define(ctx, workspace, func(tx pgx.Tx) (id int64, err error) {
		value, behaviour, err := registerComputed(ctx, tx, workspace, c)
		if err != nil {
			return 0, err
		}
		const query = `
			INSERT INTO computed_traits (workspace_id, key, name, description, value, behaviour_id, public)
			VALUES (@workspace, @key, @name, @description, @value, @behaviour, @public)
			ON CONFLICT (workspace_id, key) DO NOTHING
			RETURNING id`
		err = tx.QueryRow(ctx, query, pgx.StrictNamedArgs{
			"workspace": workspace, "key": d.Key, "name": d.Name, "description": d.Description, "value": value,
			"behaviour": behaviour, "public": d.Public,
		}).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return 0, ErrExists
		}
		return id, err
	})
}

// ComputedRef names a computed trait, by its key or, if that is empty, its id.
type ComputedRef struct {
	Key string
	ID  int64
}

// ComputedChange says what is to be different. What is nil stays as it is.
type ComputedChange struct {
	IfRevision  int // 0: whichever
	Name        *string
	Description *string
	Value       jsontext.Value
	Public      *bool
}

// Update changes a computed trait. If its value says something else then, it has a new version, which is built while
// profiles go on to show the one before. The error is [ErrNotFound], [ErrChanged] if it is not at the revision wanted, or
// a [*rule.Error].
func (s *ComputedTraits) Update(ctx context.Context, workspace int32, ref ComputedRef, c ComputedChange) (ComputedTrait, error) {
	var parsed *rule.Computed
	if c.Value != nil {
		var err error
		if parsed, err = rule.ParseComputed(c.Value); err != nil {
			return ComputedTrait{}, err
		}
	}
	return s.define(ctx, workspace, func(tx pgx.Tx) (int64, error) {
		old, err := lockComputed(ctx, tx, workspace, ref, c.IfRevision)
		if err != nil {
			return 0, err
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
		if parsed != nil {
			canonical, err := parsed.MarshalJSON()
			if err != nil {
				return 0, err
			}
			if !bytes.Equal(canonical, old.Value) {
				if args["value"], args["behaviour"], err = registerComputed(ctx, tx, workspace, parsed); err != nil {
					return 0, err
				}
				const query = `
					UPDATE computed_traits
					SET name         = @name,
					    description  = @description,
					    public       = @public,
					    value        = @value,
					    behaviour_id = @behaviour,
					    version      = version + 1,
					    revision     = revision + 1,
					    updated_at   = now()
					WHERE id = @id`
				_, err = tx.Exec(ctx, query, args)
				return old.ID, err
			}
		}
		if name == old.Name && description == old.Description && public == old.Public {
			return old.ID, nil
		}
		const query = `
			UPDATE computed_traits
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

// Delete removes a computed trait; profiles no longer show it. The error is [ErrNotFound], or [ErrChanged] if ifRevision is
// neither 0 nor the computed trait's.
func (s *ComputedTraits) Delete(ctx context.Context, workspace int32, ref ComputedRef, ifRevision int) error {
	return pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := lockDefinitions(ctx, tx, workspace); err != nil {
			return err
		}
		old, err := lockComputed(ctx, tx, workspace, ref, ifRevision)
		if err != nil {
			return err
		}
		const query = `DELETE FROM computed_traits WHERE id = $1`
		if _, err := tx.Exec(ctx, query, old.ID); err != nil {
			return fmt.Errorf("delete computed trait: %w", err)
		}
		return retireBehaviours(ctx, tx, workspace)
	})
}

// Get returns a computed trait, or [ErrNotFound].
func (s *ComputedTraits) Get(ctx context.Context, workspace int32, ref ComputedRef) (ComputedTrait, error) {
	const query = selectComputed + `
		WHERE workspace_id = @workspace AND (key = @key OR @key = '' AND id = @id)`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "key": ref.Key, "id": ref.ID}) // err: below
	c, err := pgx.CollectExactlyOneRow(rows, scanComputed)
	if errors.Is(err, pgx.ErrNoRows) {
		return ComputedTrait{}, ErrNotFound
	}
	if err != nil {
		return ComputedTrait{}, fmt.Errorf("get computed trait: %w", err)
	}
	one := []ComputedTrait{c}
	if err := s.measure(ctx, one); err != nil {
		return ComputedTrait{}, err
	}
	return one[0], nil
}

// List returns at most limit computed traits of a workspace whose ids are larger than after, in the order of their ids.
func (s *ComputedTraits) List(ctx context.Context, workspace int32, after int64, limit int) ([]ComputedTrait, error) {
	const query = selectComputed + `
		WHERE workspace_id = @workspace AND id > @after
		ORDER BY id
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "after": after, "limit": limit}) // err: below
	list, err := pgx.CollectRows(rows, scanComputed)
	if err != nil {
		return nil, fmt.Errorf("list computed traits: %w", err)
	}
	return list, s.measure(ctx, list)
}

// define runs change while nobody else changes the workspace's definitions, retires what is counted for nobody any more,
// and returns the computed trait changed.
func (s *ComputedTraits) define(ctx context.Context, workspace int32, change func(pgx.Tx) (int64, error)) (c ComputedTrait, err error) {
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := lockDefinitions(ctx, tx, workspace); err != nil {
			return err
		}
		id, err := change(tx)
		if err != nil {
			return err
		}
		if err := retireBehaviours(ctx, tx, workspace); err != nil {
			return err
		}
		c, err = NewComputedTraits(tx, s.lanes).Get(ctx, workspace, ComputedRef{ID: id})
		return err
	})
	return c, err
}

// registerComputed makes sure that what a value is computed from is counted, and returns the value as it is stored.
func registerComputed(ctx context.Context, tx pgx.Tx, workspace int32, c *rule.Computed) (value jsontext.Value, behaviour int32, err error) {
	if value, err = c.MarshalJSON(); err != nil {
		return nil, 0, err
	}
	behaviour, err = register(ctx, tx, workspace, c.Behaviour())
	return value, behaviour, err
}

// lockComputed returns a computed trait whose row nobody else can change until tx ends.
func lockComputed(ctx context.Context, tx pgx.Tx, workspace int32, ref ComputedRef, ifRevision int) (ComputedTrait, error) {
	const query = selectComputed + `
		WHERE workspace_id = @workspace AND (key = @key OR @key = '' AND id = @id)
		FOR UPDATE`
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "key": ref.Key, "id": ref.ID}) // err: below
	c, err := pgx.CollectExactlyOneRow(rows, scanComputed)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ComputedTrait{}, ErrNotFound
	case err != nil:
		return ComputedTrait{}, fmt.Errorf("lock computed trait: %w", err)
	case ifRevision != 0 && ifRevision != c.Revision:
		return ComputedTrait{}, ErrChanged
	}
	return c, nil
}

const selectComputed = `
		SELECT id, key, name, description, value, version, revision, live_version, public, created_at, updated_at
		FROM computed_traits`

func scanComputed(row pgx.CollectableRow) (c ComputedTrait, err error) {
	var stored []byte
	err = row.Scan(&c.ID, &c.Key, &c.Name, &c.Description, &stored, &c.Version, &c.Revision, &c.LiveVersion, &c.Public,
		&c.CreatedAt, &c.UpdatedAt)
	if err != nil {
		return ComputedTrait{}, err
	}
	parsed, err := rule.ParseStoredComputed(stored) // jsonb has changed the order of members
	if err != nil {
		return ComputedTrait{}, fmt.Errorf("computed trait %d: %v", c.ID, err) // not the caller's mistake
	}
	c.Value, err = parsed.MarshalJSON()
	return c, err
}

// measure fills in how far the lanes are with what is not live.
func (s *ComputedTraits) measure(ctx context.Context, list []ComputedTrait) error {
	const query = `
		SELECT c.id, sum(CASE WHEN k.cut_seq > 0 THEN least(k.replayed_seq::float8 / k.cut_seq, 1) ELSE 1 END)
		FROM computed_traits AS c
		JOIN lane_behaviours AS k ON k.lane = ANY (@lanes) AND k.behaviour_id = c.behaviour_id
		WHERE c.id = ANY (@ids)
		GROUP BY c.id`
	var ids []int64
	for i := range list {
		list[i].Progress = 1
		if !list[i].Live() {
			ids = append(ids, list[i].ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(s.lanes), "ids": ids}) // err: below
	progress := map[int64]float64{}
	var id int64
	var lanes float64
	_, err := pgx.ForEachRow(rows, []any{&id, &lanes}, func() error {
		progress[id] = min(lanes/float64(s.lanes), 1)
		return nil
	})
	if err != nil {
		return fmt.Errorf("measure builds of computed traits: %w", err)
	}
	for i := range list {
		if !list[i].Live() {
			list[i].Progress = progress[list[i].ID]
		}
	}
	return nil
}

// computing is a version of a computed trait that is not live.
type computing struct {
	ID        int64
	Workspace int32
	Version   int
	Behaviour int32
}

func readComputing(ctx context.Context, tx pgx.Tx) ([]computing, error) {
	const query = `
		SELECT id, workspace_id, version, behaviour_id
		FROM computed_traits
		WHERE version <> live_version
		ORDER BY id`
	rows, _ := tx.Query(ctx, query) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[computing])
	if err != nil {
		return nil, fmt.Errorf("read computed traits: %w", err)
	}
	return list, nil
}

// finishComputed makes the computed traits live of whose behaviours all lanes know all.
func (l *Lane) finishComputed(ctx context.Context) (bool, error) {
	const query = `
		SELECT behaviour_id
		FROM lane_behaviours
		WHERE lane = ANY (@lanes) AND behaviour_id = ANY (@ids) AND phase = 'complete'
		GROUP BY behaviour_id
		HAVING count(*) = cardinality(@lanes::smallint[])`
	const live = `
		UPDATE computed_traits
		SET live_version = version, live_value = value, live_behaviour_id = behaviour_id
		WHERE id = $1 AND version = $2`
	byBehaviour := map[int32][]computing{}
	var ids []int32
	for _, c := range l.computing {
		if l.complete([]int32{c.Behaviour}) {
			byBehaviour[c.Behaviour], ids = append(byBehaviour[c.Behaviour], c), append(ids, c.Behaviour)
		}
	}
	if len(ids) == 0 {
		return false, nil
	}
	rows, _ := l.store.pool.Query(ctx, query, pgx.StrictNamedArgs{"lanes": laneList(l.store.lanes), "ids": ids}) // err: below
	complete, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return false, fmt.Errorf("ask which computed traits are built: %w", err)
	}
	finished := false
	for _, id := range complete {
		for _, c := range byBehaviour[id] {
			done, err := l.store.undisturbed(ctx, c.Workspace, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, live, c.ID, c.Version)
				return err
			})
			if err != nil {
				return false, fmt.Errorf("make computed trait %d live: %w", c.ID, err)
			}
			finished = finished || done
		}
	}
	if !finished {
		return false, nil
	}
	return true, l.Refresh(ctx)
}

// ComputedValues are the computed traits of a workspace that are live.
type ComputedValues []computedValue

type computedValue struct {
	key       string
	value     *rule.Computed
	behaviour int32
}

// Computed returns the computed traits of a workspace that are live. It is to be asked before the profiles are read to which
// it is applied: what a profile has kept for a version that is live no more may be dropped.
func (r *Reader) Computed(ctx context.Context, workspace int32) (ComputedValues, error) {
	return r.computed(ctx, workspace, false)
}

// computed returns those that are live, or of them only those that are public.
func (r *Reader) computed(ctx context.Context, workspace int32, onlyPublic bool) (ComputedValues, error) {
	const query = `
		SELECT key, live_value, live_behaviour_id
		FROM computed_traits
		WHERE workspace_id = @workspace AND live_version > 0 AND (public OR NOT @only_public)
		ORDER BY key`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "only_public": onlyPublic}) // err: below
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c computedValue, err error) {
		var stored []byte
		if err := row.Scan(&c.key, &stored, &c.behaviour); err != nil {
			return c, err
		}
		c.value, err = rule.ParseStoredComputed(stored)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("read computed traits: %w", err)
	}
	return list, nil
}

// Of returns what the computed traits of a profile are at the time now, by key: null where there is no value.
func (v ComputedValues) Of(p *Profile, now time.Time) map[string]jsontext.Value {
	values := make(map[string]jsontext.Value, len(v))
	for _, c := range v {
		values[c.key], _ = c.value.Value(p.timeline(c.behaviour), now)
	}
	return values
}

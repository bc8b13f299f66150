package profiles

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/profiles/rule"
)

// definitionsLock and a workspace's id are the advisory lock of that workspace's definitions.
const definitionsLock = 0x73656773 // "segs"

// lockDefinitions waits until nobody else changes the definitions of a workspace.
func lockDefinitions(ctx context.Context, tx pgx.Tx, workspace int32) error {
	const query = `SELECT pg_advisory_xact_lock($1, $2)`
	if _, err := tx.Exec(ctx, query, definitionsLock, workspace); err != nil {
		return fmt.Errorf("lock definitions: %w", err)
	}
	return nil
}

// version is a segment's rule as lanes need it.
type version struct {
	rule       jsontext.Value // canonical
	behaviours []int32        // in the rule's order
	refersTo   []int64        // segments, in the order of their keys
}

// newVersion sees to it that everything a rule counts is counted for the workspace, and that what it refers to is there.
// segment is whose rule it is to be, 0 if it is new.
func newVersion(ctx context.Context, tx pgx.Tx, workspace int32, segment int64, r *rule.Rule) (v version, err error) {
	if v.rule, err = r.MarshalJSON(); err != nil {
		return version{}, err
	}
	if v.refersTo, err = resolve(ctx, tx, workspace, segment, r); err != nil {
		return version{}, err
	}
	v.behaviours = []int32{}
	for _, b := range r.Behaviours() {
		id, err := register(ctx, tx, workspace, b)
		if err != nil {
			return version{}, err
		}
		v.behaviours = append(v.behaviours, id)
	}
	return v, nil
}

// addVersion writes down a segment's newest version, with what its rule refers to.
func addVersion(ctx context.Context, tx pgx.Tx, segment int64, refersTo []int64) error {
	const query = `
		INSERT INTO segment_versions (segment_id, version, rule, behaviours, refers_to)
		SELECT id, version, rule, behaviours, @refers_to
		FROM segments
		WHERE id = @segment`
	if _, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"segment": segment, "refers_to": refersTo}); err != nil {
		return fmt.Errorf("add version: %w", err)
	}
	return nil
}

// forgetVersions removes the versions of a segment that are neither the newest nor the live one, and that no lane follows.
// No lane begins an older one: see [Lane.beginSegments].
func forgetVersions(ctx context.Context, tx pgx.Tx, segment int64, lanes int) error {
	const query = `
		DELETE FROM segment_versions AS v
		USING segments AS s
		WHERE v.segment_id = @segment AND s.id = v.segment_id AND v.version NOT IN (s.version, s.live_version)
		  AND NOT EXISTS (
			SELECT
			FROM lane_segments AS k
			WHERE k.lane = ANY (@lanes) AND k.segment_id = v.segment_id AND k.live_version = v.version)`
	if _, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"segment": segment, "lanes": laneList(lanes)}); err != nil {
		return fmt.Errorf("forget versions: %w", err)
	}
	return nil
}

// register makes sure that a behaviour is counted for the workspace, and returns its id.
func register(ctx context.Context, tx pgx.Tx, workspace int32, b rule.Behaviour) (id int32, err error) {
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
	err = tx.QueryRow(ctx, query, pgx.StrictNamedArgs{
		"workspace": workspace, "definition": b.Canonical(), "keep": b.Keep,
	}).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("register behaviour: %w", err)
	}
	return id, nil
}

// retireBehaviours ends the behaviours that no version of a segment and no computed trait of the workspace counts any more.
// Lanes cease to fold them, and drop what they have kept for them when they next write a profile: see [Profile.forget].
// The rows stay, to tell that from what a lane has not heard of yet.
func retireBehaviours(ctx context.Context, tx pgx.Tx, workspace int32) error {
	const query = `
		UPDATE behaviours
		SET retired = true
		WHERE workspace_id = @workspace AND NOT retired AND id NOT IN (
			SELECT unnest(v.behaviours)
			FROM segments AS s
			JOIN segment_versions AS v ON v.segment_id = s.id
			WHERE s.workspace_id = @workspace
			UNION ALL
			SELECT unnest(array_remove(ARRAY[behaviour_id, live_behaviour_id], NULL))
			FROM computed_traits
			WHERE workspace_id = @workspace)`
	if _, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"workspace": workspace}); err != nil {
		return fmt.Errorf("retire behaviours: %w", err)
	}
	return nil
}

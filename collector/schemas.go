package collector

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/collector/plan"
)

// What becomes of an event that is not as its source's plan says.
const (
	ActionAllow      = "allow"      // it is counted, and nothing else
	ActionFlag       = "flag"       // it is applied, with what is wrong with it in _violations
	ActionQuarantine = "quarantine" // it is accepted, and kept out of profiles until somebody has looked at it
)

// maxSchemas is how many a source may have: all of them are in the memory of every collector.
const maxSchemas = 500

// SourceSchema says what the events of a source are like that have a name, or are of a type.
type SourceSchema struct {
	ID        int32
	SourceID  int32
	Type      string // track, identify, page, screen, group or alias
	Event     string // the name of a track call; empty for the others
	Schema    []byte // JSON Schema 2020-12, of the whole event
	Action    string
	Version   int
	CreatedAt time.Time
	UpdatedAt time.Time
}

// SchemaVersion is what a schema once was, or is.
type SchemaVersion struct {
	Version   int
	Schema    []byte
	Action    string
	CreatedAt time.Time
}

// CreateSchema adds a schema to a source. It is compiled first: the error of one that cannot be is a [*plan.Fault]. A source
// has at most one for a name or type, else it is [ErrConflict], and at most 500, else the error wraps [ErrInvalid].
func (s *SourceStore) CreateSchema(ctx context.Context, workspaceID int32, schema SourceSchema) (SourceSchema, error) {
	if _, err := plan.Compile(schema.Schema); err != nil {
		return SourceSchema{}, err
	}
	const query = `
		WITH made AS (
			INSERT INTO source_schemas (workspace_id, source_id, type, event, schema, action)
			SELECT workspace_id, id, @type, @event, @schema, @action
			FROM sources
			WHERE workspace_id = @workspace AND id = @source
				AND (SELECT count(*) FROM source_schemas WHERE source_id = @source) < @most
			RETURNING id, source_id, type, event, schema, action, version, created_at, updated_at),
		kept AS (
			INSERT INTO source_schema_versions (schema_id, version, schema, action)
			SELECT id, version, schema, action FROM made)
		SELECT id, source_id, type, event, convert_to(schema, 'UTF8') AS schema, action, version, created_at, updated_at FROM made`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"workspace": workspaceID, "source": schema.SourceID, "type": schema.Type, "event": schema.Event,
		"schema": string(schema.Schema), "action": schema.Action, "most": maxSchemas,
	}) // err: below
	made, err := collectSchema(rows, "create schema")
	if err == ErrNotFound {
		return SourceSchema{}, fmt.Errorf("%w: a source has at most %d schemas", ErrInvalid, maxSchemas)
	}
	return made, err
}

// ReplaceSchema gives a schema another text and action, which makes another version of it. Collectors follow within about a
// second. Errors are as for [SourceStore.CreateSchema].
func (s *SourceStore) ReplaceSchema(ctx context.Context, workspaceID, sourceID, id int32, text []byte, action string) (SourceSchema, error) {
	if _, err := plan.Compile(text); err != nil {
		return SourceSchema{}, err
	}
	const query = `
		WITH changed AS (
			UPDATE source_schemas
			SET schema = @schema, action = @action, version = version + 1, updated_at = now()
			WHERE workspace_id = @workspace AND source_id = @source AND id = @id
			RETURNING id, source_id, type, event, schema, action, version, created_at, updated_at),
		kept AS (
			INSERT INTO source_schema_versions (schema_id, version, schema, action)
			SELECT id, version, schema, action FROM changed)
		SELECT id, source_id, type, event, convert_to(schema, 'UTF8') AS schema, action, version, created_at, updated_at FROM changed`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"workspace": workspaceID, "source": sourceID, "id": id, "schema": string(text), "action": action,
	}) // err: below
	return collectSchema(rows, "replace schema")
}

// GetSchema returns a schema of a source, or [ErrNotFound].
func (s *SourceStore) GetSchema(ctx context.Context, workspaceID, sourceID, id int32) (SourceSchema, error) {
	const query = `
		SELECT id, source_id, type, event, convert_to(schema, 'UTF8') AS schema, action, version, created_at, updated_at
		FROM source_schemas
		WHERE workspace_id = @workspace AND source_id = @source AND id = @id`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspaceID, "source": sourceID, "id": id}) // err: below
	return collectSchema(rows, "get schema")
}

// ListSchemas returns up to limit schemas of a source, in the order of their ids, from the first whose id is above after.
func (s *SourceStore) ListSchemas(ctx context.Context, workspaceID, sourceID, after int32, limit int) ([]SourceSchema, error) {
	const query = `
		SELECT id, source_id, type, event, convert_to(schema, 'UTF8') AS schema, action, version, created_at, updated_at
		FROM source_schemas
		WHERE workspace_id = @workspace AND source_id = @source AND id > @after
		ORDER BY id
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"workspace": workspaceID, "source": sourceID, "after": after, "limit": limit,
	}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[SourceSchema])
	if err != nil {
		return nil, fmt.Errorf("list schemas: %w", err)
	}
	return list, nil
}

// ListSchemaVersions returns up to limit versions of a schema, the newest first, from the first below before, or the newest
// if that is 0.
func (s *SourceStore) ListSchemaVersions(ctx context.Context, workspaceID, sourceID, id int32, before, limit int) ([]SchemaVersion, error) {
	if _, err := s.GetSchema(ctx, workspaceID, sourceID, id); err != nil {
		return nil, err
	}
	const query = `
		SELECT version, convert_to(schema, 'UTF8') AS schema, action, created_at
		FROM source_schema_versions
		WHERE schema_id = @id AND (version < @before OR @before = 0)
		ORDER BY version DESC
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"id": id, "before": before, "limit": limit}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[SchemaVersion])
	if err != nil {
		return nil, fmt.Errorf("list versions of a schema: %w", err)
	}
	return list, nil
}

// DeleteSchema removes a schema and its versions. Its events are unplanned from then on.
func (s *SourceStore) DeleteSchema(ctx context.Context, workspaceID, sourceID, id int32) error {
	const query = `DELETE FROM source_schemas WHERE workspace_id = @workspace AND source_id = @source AND id = @id`
	tag, err := s.db.Exec(ctx, query, pgx.StrictNamedArgs{"workspace": workspaceID, "source": sourceID, "id": id})
	if err != nil {
		return fmt.Errorf("delete schema: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrNotFound
	}
	return nil
}

func collectSchema(rows pgx.Rows, doing string) (SourceSchema, error) {
	schema, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[SourceSchema])
	if err != nil {
		return SourceSchema{}, interpret(err, doing)
	}
	return schema, nil
}

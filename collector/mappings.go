package collector

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mubatch/mubatch/collector/mapping"
)

var (
	// ErrInUse says that a mapping cannot be deleted because a source, or something else, refers to it.
	ErrInUse = errors.New("in use")
	// ErrChanged says that a mapping is no longer of the version that was to be changed.
	ErrChanged = errors.New("changed in the meantime")
)

// Mapping is a document of package mapping that was saved under a key.
type Mapping struct {
	ID          int32
	WorkspaceID int32
	Key         string // unique in its workspace
	Name        string
	Document    string // YAML or JSON, as it was written
	Version     int    // counts the changes
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// MappingUpdate is what to change of a mapping; nil leaves a field as it is.
type MappingUpdate struct {
	Name      *string
	Document  *string
	IfVersion int // 0: whatever its version is
}

// MappingStore keeps the mappings of all workspaces. It sees one workspace a call. What it keeps compiles: documents that
// do not are refused with the [*mapping.InvalidError].
type MappingStore struct{ db database }

// NewMappingStore returns the mappings kept in db, a pool or a transaction.
func NewMappingStore(db database) *MappingStore { return &MappingStore{db: db} }

// Create adds a mapping: its Key and Document, and Name if it is given. A key that the workspace has already is
// [ErrConflict].
func (s *MappingStore) Create(ctx context.Context, workspaceID int32, m Mapping) (Mapping, error) {
	if !sourceKey.MatchString(m.Key) {
		return Mapping{}, fmt.Errorf("%w: the key must be 1 to 63 of a-z, 0-9, _ and -, and begin with a letter or a digit", ErrInvalid)
	}
	if m.Name == "" {
		m.Name = m.Key
	}
	if _, err := mapping.Compile([]byte(m.Document)); err != nil {
		return Mapping{}, err
	}
	const query = `
		INSERT INTO mappings (workspace_id, key, name, document)
		VALUES (@workspace, @key, @name, @document)
		RETURNING id, workspace_id, key, name, document, version, created_at, updated_at`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"workspace": workspaceID, "key": m.Key, "name": m.Name, "document": m.Document,
	}) // err: below
	return collectMapping(rows, "create mapping "+strconv.Quote(m.Key))
}

// Get returns the mapping of that key, or of that id if ref is of the form map_1.
func (s *MappingStore) Get(ctx context.Context, workspaceID int32, ref string) (Mapping, error) {
	const query = `
		SELECT id, workspace_id, key, name, document, version, created_at, updated_at
		FROM mappings
		WHERE workspace_id = @workspace AND (key = @ref OR id = @id)
		ORDER BY key = @ref DESC
		LIMIT 1`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspaceID, "ref": ref, "id": mappingID(ref)}) // err: below
	return collectMapping(rows, "get mapping "+strconv.Quote(ref))
}

// mappingID returns the id in map_1, or 0, which no mapping has.
func mappingID(ref string) int32 {
	digits, ok := strings.CutPrefix(ref, "map_")
	id, err := strconv.ParseInt(digits, 10, 32)
	if !ok || err != nil || id < 0 {
		return 0
	}
	return int32(id)
}

// List returns up to limit mappings of the workspace, in the order of their ids, from the first whose id is above after.
func (s *MappingStore) List(ctx context.Context, workspaceID, after int32, limit int) ([]Mapping, error) {
	const query = `
		SELECT id, workspace_id, key, name, document, version, created_at, updated_at
		FROM mappings
		WHERE workspace_id = @workspace AND id > @after
		ORDER BY id
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspaceID, "after": after, "limit": limit}) // err: below
	mappings, err := pgx.CollectRows(rows, pgx.RowToStructByName[Mapping])
	if err != nil {
		return nil, fmt.Errorf("list mappings: %w", err)
	}
	return mappings, nil
}

// Update changes a mapping and returns it as it is then. If it is of another version than the change is for, that is
// [ErrChanged].
func (s *MappingStore) Update(ctx context.Context, workspaceID int32, ref string, change MappingUpdate) (Mapping, error) {
	if change.Document != nil {
		if _, err := mapping.Compile([]byte(*change.Document)); err != nil {
			return Mapping{}, err
		}
	}
	old, err := s.Get(ctx, workspaceID, ref)
	if err != nil {
		return Mapping{}, err
	}
	const query = `
		UPDATE mappings
		SET name       = coalesce(@name, name),
		    document   = coalesce(@document, document),
		    version    = version + 1,
		    updated_at = now()
		WHERE id = @id AND (version = @version OR @version = 0)
		RETURNING id, workspace_id, key, name, document, version, created_at, updated_at`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"id": old.ID, "version": change.IfVersion, "name": change.Name, "document": change.Document,
	}) // err: below
	m, err := collectMapping(rows, "update mapping "+strconv.Quote(ref))
	if errors.Is(err, ErrNotFound) {
		err = ErrChanged
	}
	return m, err
}

// Delete removes a mapping, unless it is in use: a source names it in its settings, or a row of another table refers to
// it. ifVersion is as in [MappingUpdate].
func (s *MappingStore) Delete(ctx context.Context, workspaceID int32, ref string, ifVersion int) error {
	old, err := s.Get(ctx, workspaceID, ref)
	if err != nil {
		return err
	}
	if ifVersion != 0 && ifVersion != old.Version {
		return ErrChanged
	}
	const query = `
		DELETE FROM mappings AS m
		WHERE m.id = @id AND m.version = @version AND NOT EXISTS (
			SELECT FROM sources AS s
			WHERE s.workspace_id = m.workspace_id
			  AND s.settings #>> '{webhook,mapping}' IN (m.key, 'map_' || m.id))
		  AND NOT EXISTS (
			SELECT FROM kafka_sources AS k
			WHERE k.workspace_id = m.workspace_id AND k.settings ->> 'mapping' = m.key)`
	tag, err := s.db.Exec(ctx, query, pgx.StrictNamedArgs{"id": old.ID, "version": old.Version})
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "23503": // foreign_key_violation
		return ErrInUse
	case err != nil:
		return fmt.Errorf("delete mapping %q: %w", ref, err)
	case tag.RowsAffected() > 0:
		return nil
	}
	now, err := s.Get(ctx, workspaceID, ref)
	if err == nil && now.Version == old.Version {
		err = ErrInUse
	} else if err == nil {
		err = ErrChanged
	}
	return err
}

func collectMapping(rows pgx.Rows, doing string) (Mapping, error) {
	m, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Mapping])
	if err != nil {
		return Mapping{}, interpret(err, doing)
	}
	return m, nil
}

package collector

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mubatch/mubatch/activation"
)

var (
	// ErrNotFound says that there is no such source or write key in the workspace.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that the workspace has a source of that key already.
	ErrConflict = errors.New("exists already")
	// ErrInvalid is wrapped by errors that say, in words for clients, what is wrong with a source.
	ErrInvalid = errors.New("invalid source")
)

// Source is where events come from.
type Source struct {
	ID          int32
	WorkspaceID int32
	Key         string // unique in its workspace
	Name        string
	Type        string // "segment": clients of any dialect; "webhook"; TypeKafka
	Settings    SourceSettings
	Enabled     bool // a disabled source's write keys are unknown
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// Types of sources. TypeClients is for clients of any dialect, TypeKafka for one whose events come from the topics of a Kafka
// cluster, too.
const (
	TypeClients = "segment"
	TypeKafka   = "kafka"
)

// SourceSettings tell how a source's events are taken.
type SourceSettings struct {
	MergeOn   []string `json:"merge_on,omitempty"`   // kinds of identifiers on which people are merged, such as "email"
	CollectIP *bool    `json:"collect_ip,omitempty"` // whether context.ip is filled from the connection; default true
	Dialects  []string `json:"dialects,omitempty"`   // that it takes events in; default segment and rudderstack
	Unplanned string   `json:"unplanned,omitempty"`  // action for track calls that no schema is for; default none
	Bots      string   `json:"bots,omitempty"`       // flag, quarantine or off: events that no person sent; default flag

	TellUsers bool `json:"tell_users,omitempty"` // whether visitors are told of the user whose they are: see visitor.go

	Webhook *WebhookSettings `json:"webhook,omitempty"` // of a source of the type webhook, and of no other
}

// botsOff is the setting by which bots are not looked for.
const botsOff = "off"

// SourceUpdate is what to change of a source; nil leaves a field as it is.
type SourceUpdate struct {
	Name     *string
	Settings *SourceSettings
	Enabled  *bool
	Secrets  []string // of webhooks, instead of those there are
}

// WriteKey lets whoever knows it send events to its source.
type WriteKey struct {
	ID         int32
	SourceID   int32
	Key        string
	CreatedAt  time.Time
	RevokedAt  *time.Time // nil: valid
	LastUsedAt *time.Time // to the minute
}

// database is a pool, or a transaction that what is done becomes a part of.
type database interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	Begin(ctx context.Context) (pgx.Tx, error)
}

// SourceStore keeps the sources of all workspaces and their write keys. It sees one workspace a call.
type SourceStore struct {
	db   database
	keys *activation.KeyRing
}

// NewSourceStore returns the sources kept in db, a pool or a transaction.
func NewSourceStore(db database) *SourceStore { return &SourceStore{db: db} }

// WithKeys returns the same sources, able to seal and open the secrets of webhooks.
func (s *SourceStore) WithKeys(keys *activation.KeyRing) *SourceStore {
	return &SourceStore{db: s.db, keys: keys}
}

// in returns the same sources in tx.
func (s *SourceStore) in(tx pgx.Tx) *SourceStore { return &SourceStore{db: tx, keys: s.keys} }

var sourceKey = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// Create adds a source: its Key, and Name, Type and Settings if they are given, and the secrets of webhooks. It is enabled.
// A key that the workspace has already is ErrConflict; a workspace that does not exist is ErrNotFound; settings of webhooks
// that are wrong are [webhook.SettingsError]s.
func (s *SourceStore) Create(ctx context.Context, workspaceID int32, source Source, secrets ...string) (created Source, err error) {
	if !sourceKey.MatchString(source.Key) {
		return Source{}, fmt.Errorf("%w: the key must be 1 to 63 of a-z, 0-9, _ and -, and begin with a letter or a digit", ErrInvalid)
	}
	if source.Name == "" {
		source.Name = source.Key
	}
	if source.Type == "" {
		source.Type = "segment"
	}
	if err := s.checkWebhook(ctx, workspaceID, source.Type, source.Settings.Webhook, secrets); err != nil {
		return Source{}, err
	}
	const query = `
		INSERT INTO sources (workspace_id, key, name, type, settings)
		VALUES (@workspace, @key, @name, @type, @settings)
		RETURNING id, workspace_id, key, name, type, settings, enabled, created_at, updated_at`
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{
			"workspace": workspaceID, "key": source.Key, "name": source.Name, "type": source.Type, "settings": source.Settings,
		}) // err: below
		if created, err = collectSource(rows, "create source "+strconv.Quote(source.Key)); err != nil {
			return err
		}
		return s.in(tx).setWebhookSecrets(ctx, created, secrets)
	})
	if err != nil {
		return Source{}, err
	}
	return created, nil
}

// Get returns the source of that key, or of that id if ref is of the form src_1.
func (s *SourceStore) Get(ctx context.Context, workspaceID int32, ref string) (Source, error) {
	const query = `
		SELECT id, workspace_id, key, name, type, settings, enabled, created_at, updated_at
		FROM sources
		WHERE workspace_id = @workspace AND (key = @ref OR id = @id)
		ORDER BY key = @ref DESC
		LIMIT 1`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspaceID, "ref": ref, "id": sourceID(ref)}) // err: below
	return collectSource(rows, "get source "+strconv.Quote(ref))
}

// sourceID returns the id in src_1, or 0, which no source has.
func sourceID(ref string) int32 {
	digits, ok := strings.CutPrefix(ref, "src_")
	id, err := strconv.ParseInt(digits, 10, 32)
	if !ok || err != nil || id < 0 {
		return 0
	}
	return int32(id)
}

// List returns up to limit sources of the workspace, in the order of their ids, from the first whose id is above
// after.
func (s *SourceStore) List(ctx context.Context, workspaceID, after int32, limit int) ([]Source, error) {
	const query = `
		SELECT id, workspace_id, key, name, type, settings, enabled, created_at, updated_at
		FROM sources
		WHERE workspace_id = @workspace AND id > @after
		ORDER BY id
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspaceID, "after": after, "limit": limit}) // err: below
	sources, err := pgx.CollectRows(rows, pgx.RowToStructByName[Source])
	if err != nil {
		return nil, fmt.Errorf("list sources: %w", err)
	}
	return sources, nil
}

// Update changes a source and returns it as it is then. Collectors follow within about a second. Settings of webhooks that
// are wrong are [webhook.SettingsError]s.
func (s *SourceStore) Update(ctx context.Context, workspaceID int32, ref string, change SourceUpdate) (updated Source, err error) {
	if change.Name != nil && *change.Name == "" {
		return Source{}, fmt.Errorf("%w: the name must not be empty", ErrInvalid)
	}
	const query = `
		UPDATE sources
		SET name       = coalesce(@name, name),
		    settings   = coalesce(@settings, settings),
		    enabled    = coalesce(@enabled, enabled),
		    updated_at = now()
		WHERE id = (
			SELECT id
			FROM sources
			WHERE workspace_id = @workspace AND (key = @ref OR id = @id)
			ORDER BY key = @ref DESC
			LIMIT 1)
		RETURNING id, workspace_id, key, name, type, settings, enabled, created_at, updated_at`
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{
			"workspace": workspaceID, "ref": ref, "id": sourceID(ref),
			"name": change.Name, "settings": change.Settings, "enabled": change.Enabled,
		}) // err: below
		if updated, err = collectSource(rows, "update source "+strconv.Quote(ref)); err != nil {
			return err
		}
		if change.Settings == nil && change.Secrets == nil {
			return nil
		}
		return s.in(tx).updateWebhook(ctx, updated, change.Secrets)
	})
	if err != nil {
		return Source{}, err
	}
	return updated, nil
}

// Delete removes a source and its write keys. What came from it stays.
func (s *SourceStore) Delete(ctx context.Context, workspaceID int32, ref string) error {
	const query = `
		DELETE FROM sources
		WHERE id = (
			SELECT id
			FROM sources
			WHERE workspace_id = @workspace AND (key = @ref OR id = @id)
			ORDER BY key = @ref DESC
			LIMIT 1)`
	tag, err := s.db.Exec(ctx, query, pgx.StrictNamedArgs{"workspace": workspaceID, "ref": ref, "id": sourceID(ref)})
	if err != nil {
		return fmt.Errorf("delete source %q: %w", ref, err)
	}
	if tag.RowsAffected() == 0 {
		return ErrNotFound
	}
	return nil
}

// CreateWriteKey adds a write key to a source. Collectors know it at once.
func (s *SourceStore) CreateWriteKey(ctx context.Context, workspaceID int32, ref string) (WriteKey, error) {
	const query = `
		INSERT INTO write_keys (workspace_id, source_id, key)
		SELECT workspace_id, id, @new
		FROM sources
		WHERE workspace_id = @workspace AND (key = @ref OR id = @id)
		ORDER BY key = @ref DESC
		LIMIT 1
		RETURNING id, source_id, key, created_at, revoked_at, last_used_at`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"workspace": workspaceID, "ref": ref, "id": sourceID(ref), "new": NewWriteKey(),
	}) // err: below
	return collectWriteKey(rows, "create write key")
}

// ListWriteKeys returns the write keys of a source, the revoked ones too, newest first: at most limit with an id below
// before, or from the newest if that is 0.
func (s *SourceStore) ListWriteKeys(ctx context.Context, workspaceID int32, ref string, before int32, limit int) ([]WriteKey, error) {
	source, err := s.Get(ctx, workspaceID, ref)
	if err != nil {
		return nil, err
	}
	const query = `
		SELECT id, source_id, key, created_at, revoked_at, last_used_at
		FROM write_keys
		WHERE source_id = @source AND (id < @before OR @before = 0)
		ORDER BY id DESC
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"source": source.ID, "before": before, "limit": limit}) // err: below
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByName[WriteKey])
	if err != nil {
		return nil, fmt.Errorf("list write keys: %w", err)
	}
	return keys, nil
}

// RevokeWriteKey ends a write key for good: collectors refuse it within about a second. Revoking it again changes
// nothing.
func (s *SourceStore) RevokeWriteKey(ctx context.Context, workspaceID, id int32) (WriteKey, error) {
	const query = `
		UPDATE write_keys
		SET revoked_at = coalesce(revoked_at, now())
		WHERE workspace_id = @workspace AND id = @id
		RETURNING id, source_id, key, created_at, revoked_at, last_used_at`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspaceID, "id": id}) // err: below
	return collectWriteKey(rows, "revoke write key")
}

func collectSource(rows pgx.Rows, doing string) (Source, error) {
	source, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Source])
	if err != nil {
		return Source{}, interpret(err, doing)
	}
	return source, nil
}

func collectWriteKey(rows pgx.Rows, doing string) (WriteKey, error) {
	key, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[WriteKey])
	if err != nil {
		return WriteKey{}, interpret(err, doing)
	}
	return key, nil
}

// interpret turns Postgres's errors into ours.
func interpret(err error, doing string) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNotFound
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "23505": // unique_violation
			return ErrConflict
		case "23503": // foreign_key_violation
			return ErrNotFound
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

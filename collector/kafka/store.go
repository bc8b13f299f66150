package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// database is a pool, or a transaction that what is done becomes a part of.
type database interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Sealer seals the secrets of a source for storage, and opens them again.
type Sealer interface {
	Seal(workspace, source int32, secrets []byte) []byte
	Open(workspace, source int32, sealed []byte) ([]byte, error)
}

// Store keeps from where sources get their events, and the records that could not become any.
type Store struct {
	db    database
	seals Sealer
}

// NewStore returns what is kept in db, a pool or a transaction.
func NewStore(db database, seals Sealer) *Store { return &Store{db: db, seals: seals} }

// In returns the same store in db. It is nil if s is.
func (s *Store) In(db database) *Store {
	if s == nil {
		return nil
	}
	return NewStore(db, s.seals)
}

// Get returns the settings of a source and its secrets, or [collector.ErrNotFound] if it has none.
func (s *Store) Get(ctx context.Context, workspace, source int32) (Settings, Secrets, error) {
	const query = `
		SELECT settings, secrets
		FROM kafka_sources
		WHERE workspace_id = @workspace AND source_id = @source`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "source": source}) // err: below
	row, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[struct {
		Settings Settings
		Sealed   []byte
	}])
	if errors.Is(err, pgx.ErrNoRows) {
		return Settings{}, Secrets{}, collector.ErrNotFound
	}
	if err != nil {
		return Settings{}, Secrets{}, fmt.Errorf("get kafka source %d: %w", source, err)
	}
	secrets, err := s.open(workspace, source, row.Sealed)
	return row.Settings, secrets, err
}

func (s *Store) open(workspace, source int32, sealed []byte) (secrets Secrets, err error) {
	if sealed == nil {
		return secrets, nil
	}
	plain, err := s.seals.Open(workspace, source, sealed)
	if err == nil {
		err = json.Unmarshal(plain, &secrets)
	}
	if err != nil {
		return Secrets{}, fmt.Errorf("open the secrets of kafka source %d: %w", source, err)
	}
	return secrets, nil
}

// Put makes the settings and secrets of a source what they are to be. Consumers follow within seconds.
func (s *Store) Put(ctx context.Context, workspace, source int32, settings Settings, secrets Secrets) error {
	var sealed []byte
	if secrets != (Secrets{}) {
		plain, err := json.Marshal(secrets)
		if err != nil {
			return err
		}
		sealed = s.seals.Seal(workspace, source, plain)
	}
	const query = `
		INSERT INTO kafka_sources (source_id, workspace_id, settings, secrets)
		VALUES (@source, @workspace, @settings, @secrets)
		ON CONFLICT (source_id) DO UPDATE
		SET settings   = excluded.settings,
		    secrets    = excluded.secrets,
		    updated_at = clock_timestamp()`
	_, err := s.db.Exec(ctx, query, pgx.StrictNamedArgs{"source": source, "workspace": workspace, "settings": settings, "secrets": sealed})
	if err != nil {
		return fmt.Errorf("keep kafka source %d: %w", source, err)
	}
	return nil
}

// wanted is a source that is to be consumed.
type wanted struct {
	grant    collector.Grant
	settings Settings
	secrets  Secrets
	document string // of the mapping
	missing  bool   // the mapping that the settings name
	version  string // another whenever anything else is
	err      error  // why it cannot be consumed
}

// wanted returns the sources that are to be consumed.
func (s *Store) wanted(ctx context.Context) ([]wanted, error) {
	const query = `
		SELECT s.id, s.workspace_id, w.secret, s.settings, k.settings, k.secrets, coalesce(m.document, ''), m.id IS NULL,
		       concat_ws(' ', s.updated_at, k.updated_at, m.id, m.version)
		FROM kafka_sources AS k
		JOIN sources AS s ON s.id = k.source_id
		JOIN workspaces AS w ON w.id = s.workspace_id
		LEFT JOIN mappings AS m ON m.workspace_id = s.workspace_id AND m.key = k.settings ->> 'mapping'
		WHERE s.enabled AND s.type = @type
		ORDER BY s.id`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"type": collector.TypeKafka}) // err: below
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (w wanted, err error) {
		var sealed []byte
		var secret []byte
		err = row.Scan(&w.grant.SourceID, &w.grant.WorkspaceID, &secret, &w.grant.Settings, &w.settings, &sealed, &w.document, &w.missing, &w.version)
		if err != nil {
			return w, err
		}
		w.grant.Secret = profiles.Secret(secret)
		w.secrets, w.err = s.open(w.grant.WorkspaceID, w.grant.SourceID, sealed)
		return w, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read kafka sources: %w", err)
	}
	return list, nil
}

// Rejected is a record that could not become an event, or not all of its events.
type Rejected struct {
	ID         int64
	Topic      string
	Partition  int32
	Offset     int64
	Code       string
	Reason     string
	Record     []byte // its value, cut off at 64 KB
	RejectedAt time.Time
}

const (
	maxRejectedRecord = 64 << 10
	rejectedKept      = 10_000 // of a source
)

// reject sets records of a source aside, and lets go of the oldest of too many.
func (s *Store) reject(ctx context.Context, g collector.Grant, list []Rejected) error {
	if len(list) == 0 {
		return nil
	}
	var topics, codes, reasons []string
	var partitions []int32
	var offsets []int64
	var records [][]byte
	for _, r := range list {
		reason := strings.ToValidUTF8(strings.ReplaceAll(r.Reason, "\x00", "\uFFFD"), "\uFFFD") // Postgres takes no other, and the partition would wait
		topics, codes, reasons = append(topics, r.Topic), append(codes, r.Code), append(reasons, reason)
		partitions, offsets = append(partitions, r.Partition), append(offsets, r.Offset)
		records = append(records, append([]byte{}, r.Record[:min(len(r.Record), maxRejectedRecord)]...))
	}
	const query = `
		INSERT INTO kafka_rejected (workspace_id, source_id, topic, "partition", "offset", code, reason, record)
		SELECT @workspace, @source, t.*
		FROM unnest(@topics::text[], @partitions::integer[], @offsets::bigint[], @codes::text[], @reasons::text[], @records::bytea[]) AS t
		WHERE EXISTS (SELECT FROM sources WHERE id = @source)
		ON CONFLICT (source_id, topic, "partition", "offset") DO NOTHING`
	_, err := s.db.Exec(ctx, query, pgx.StrictNamedArgs{
		"workspace": g.WorkspaceID, "source": g.SourceID, "topics": topics, "partitions": partitions, "offsets": offsets,
		"codes": codes, "reasons": reasons, "records": records,
	})
	if err != nil {
		return fmt.Errorf("set records aside: %w", err)
	}
	const trim = `
		DELETE FROM kafka_rejected
		WHERE source_id = @source AND id <= (
			SELECT id
			FROM kafka_rejected
			WHERE source_id = @source
			ORDER BY id DESC
			OFFSET @kept
			LIMIT 1)`
	if _, err := s.db.Exec(ctx, trim, pgx.StrictNamedArgs{"source": g.SourceID, "kept": rejectedKept}); err != nil {
		return fmt.Errorf("let go of old records: %w", err)
	}
	return nil
}

// forget deletes the records of all sources that were set aside two weeks ago.
func (s *Store) forget(ctx context.Context) error {
	const query = `DELETE FROM kafka_rejected WHERE rejected_at < now() - interval '14 days'`
	if _, err := s.db.Exec(ctx, query); err != nil {
		return fmt.Errorf("let go of old records: %w", err)
	}
	return nil
}

// Rejected returns at most limit records of a source that were set aside, the newest first: those whose ids are below
// before, unless that is 0.
func (s *Store) Rejected(ctx context.Context, workspace, source int32, before int64, limit int) ([]Rejected, error) {
	const query = `
		SELECT id, topic, "partition", "offset", code, reason, record, rejected_at
		FROM kafka_rejected
		WHERE workspace_id = @workspace AND source_id = @source AND (id < @before OR @before = 0)
		ORDER BY id DESC
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "source": source, "before": before, "limit": limit}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[Rejected])
	if err != nil {
		return nil, fmt.Errorf("list records that were set aside: %w", err)
	}
	return list, nil
}

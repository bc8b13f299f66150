package files

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/mapping"
)

// What an import can be.
const (
	Uploading = "uploading" // its file is not there as a whole
	Queued    = "queued"    // nobody works on it: it is new, or waits for what has failed to pass
	Running   = "running"
	Paused    = "paused"
	Done      = "done"
	Failed    = "failed"
	Cancelled = "cancelled"
)

// ErrState says that an import is not in a state in which that can be done.
var ErrState = errors.New("the import is in another state")

// InvalidError says what is wrong with a new import, in words for clients.
type InvalidError struct {
	Member string // such as mapping
	Detail string
}

func (e *InvalidError) Error() string { return "invalid import: " + e.Member + " " + e.Detail }

// Keys seals the secrets of buckets.
type Keys interface {
	Seal(workspace int32, id int64, plain []byte) []byte
	Open(workspace int32, id int64, sealed []byte) ([]byte, error)
}

// Watch says how often a place is looked at for new files.
type Watch struct {
	Every  time.Duration
	Settle time.Duration // how long a file in a folder must not have changed to be taken as complete
}

// New is an import that is asked for.
type New struct {
	Source  collector.Source
	URL     string // empty: the file is uploaded
	Name    string // of the file that is uploaded
	Size    int64  // of it
	SHA256  string // of it, in hex; empty if it is not known
	Format  Format
	Mapping string
	S3      *S3
	Rate    int
	Watch   *Watch
	Again   bool // also if the same file was imported before
}

// Import is one of the imports of a workspace.
type Import struct {
	ID            int64
	SourceID      int32
	URL           string
	Format        Format
	Mapping       string
	S3            S3 // without its secrets
	Rate          int
	Watch         *Watch
	Digest        string
	Size          int64 // of an upload
	Uploaded      int64
	State         string
	Reason        string
	RowsPerSecond float32
	CreatedAt     time.Time
	StartedAt     *time.Time
	FinishedAt    *time.Time

	Files, FilesDone, FilesFailed   int64
	Bytes, BytesRead                int64
	Rows, Events, Skipped, Rejected int64
	Reasons                         map[string]int64 // rejected rows
}

// File is one of the files of an import.
type File struct {
	ID         int64
	Name       string
	Version    string
	Size       int64
	State      string
	Reason     string
	Position   Position
	BytesRead  int64
	Rows       int64
	Events     int64
	Skipped    int64
	Rejected   int64
	Reasons    map[string]int64
	FoundAt    time.Time
	FinishedAt *time.Time
}

// Reject is a row that was rejected.
type Reject struct {
	File                          string
	Row, Line                     int64
	Code, Reason, Pointer, Sample string
}

// Bounds of what is kept for an import.
const (
	MaxUpload  = 64 << 30 // bytes
	MaxChunk   = 8 << 20  // bytes of an upload that come at once
	maxRejects = 1000     // rows
)

type database interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Store keeps imports. It sees one workspace a call.
type Store struct {
	db   database
	keys Keys
}

// NewStore returns the imports kept in db, a pool or a transaction.
func NewStore(db database, keys Keys) *Store { return &Store{db, keys} }

// check refuses what could never run.
func (n *New) check() error {
	bad := func(member, format string, args ...any) error {
		return &InvalidError{member, fmt.Sprintf(format, args...)}
	}
	if n.Mapping != "" {
		if _, err := mapping.Compile([]byte(n.Mapping)); err != nil {
			return bad("mapping", "is not valid: %v", err)
		}
	}
	if n.URL == "" {
		switch {
		case n.Size <= 0 || n.Size > MaxUpload:
			return bad("upload/size", "must be from 1 to %d bytes", int64(MaxUpload))
		case n.Watch != nil:
			return bad("watch", "is for files at a url")
		case n.S3 != nil:
			return bad("s3", "is for files at a url")
		}
		return nil
	}
	at, err := ParseLocation(n.URL)
	if err != nil {
		return bad("url", "%v", err)
	}
	switch {
	case n.S3 != nil && at.Scheme != "s3":
		return bad("s3", "is for files in a bucket")
	case n.Watch != nil && n.Watch.Every < time.Second:
		return bad("watch/every", "must be at least 1s")
	case n.Watch != nil && n.Watch.Settle < 0:
		return bad("watch/settle", "must not be negative")
	}
	return nil
}

// digest tells uploads from one another: by what is in them, where it goes, and how it is read.
func (n *New) digest() string {
	if n.URL != "" || n.SHA256 == "" {
		return ""
	}
	format, _ := json.Marshal(n.Format) // has nothing that JSON cannot hold
	h := sha256.New()
	for _, part := range []string{strconv.Itoa(int(n.Source.ID)), n.SHA256, strconv.FormatInt(n.Size, 10), string(format), n.Mapping} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Create adds an import. A file whose upload is known by its SHA-256 is not imported twice, unless that is asked for: then
// the import there is, is returned, and found is true.
func (s *Store) Create(ctx context.Context, workspace int32, n New) (_ Import, found bool, err error) {
	if err := n.check(); err != nil {
		return Import{}, false, err
	}
	digest := n.digest()
	if digest != "" && !n.Again {
		const query = `
			SELECT id
			FROM imports
			WHERE workspace_id = @workspace AND digest = @digest AND digest <> '' AND state NOT IN ('failed', 'cancelled')
			ORDER BY id DESC
			LIMIT 1`
		rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "digest": digest}) // err: below
		id, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64])
		if err == nil {
			found, err := s.Get(ctx, workspace, id)
			return found, true, err
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return Import{}, false, fmt.Errorf("look for the import: %w", err)
		}
	}
	var id int64
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		id, err = NewStore(tx, s.keys).insert(ctx, workspace, n, digest)
		return err
	})
	if err != nil {
		return Import{}, false, err
	}
	made, err := s.Get(ctx, workspace, id)
	return made, false, err
}

func (s *Store) insert(ctx context.Context, workspace int32, n New, digest string) (int64, error) {
	state, open := Queued, S3{}
	if n.URL == "" {
		state = Uploading
	}
	if n.S3 != nil {
		open = *n.S3
		open.SecretAccessKey, open.SessionToken = "", ""
	}
	const query = `
		INSERT INTO imports (workspace_id, source_id, url, format, mapping, s3, rate, watch, digest, size, state)
		VALUES (@workspace, @source, @url, @format, @mapping, @s3, @rate, @watch, @digest, @size, @state)
		RETURNING id`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"workspace": workspace, "source": n.Source.ID, "url": n.URL, "format": n.Format, "mapping": n.Mapping, "s3": open,
		"rate": n.Rate, "watch": n.Watch, "digest": digest, "size": n.Size, "state": state,
	}) // err: below
	id, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64])
	if err != nil {
		return 0, fmt.Errorf("create import: %w", err)
	}
	if n.S3 != nil && n.S3.SecretAccessKey != "" {
		secret, err := json.Marshal(S3{SecretAccessKey: n.S3.SecretAccessKey, SessionToken: n.S3.SessionToken})
		if err != nil {
			return 0, fmt.Errorf("create import: %w", err)
		}
		const query = `UPDATE imports SET s3_secret = @secret WHERE id = @id`
		args := pgx.StrictNamedArgs{"id": id, "secret": s.keys.Seal(workspace, id, secret)}
		if _, err := s.db.Exec(ctx, query, args); err != nil {
			return 0, fmt.Errorf("create import: %w", err)
		}
	}
	if n.URL == "" {
		const query = `INSERT INTO import_files (import_id, name, version, size) VALUES (@id, @name, @version, @size)`
		args := pgx.StrictNamedArgs{"id": id, "name": n.Name, "version": digest, "size": n.Size}
		if _, err := s.db.Exec(ctx, query, args); err != nil {
			return 0, fmt.Errorf("create import: %w", err)
		}
	}
	return id, nil
}

// selectImports is what is known of imports, to be followed by a condition.
const selectImports = `
	SELECT i.id, i.source_id, i.url, i.format, i.mapping, i.s3, i.rate, i.watch, i.digest, i.size, i.uploaded, i.state, i.reason,
		i.rows_per_second, i.created_at, i.started_at, i.finished_at, f.files, f.files_done, f.files_failed, f.bytes, f.bytes_read,
		f.rows, f.events, f.skipped, f.rejected, r.reasons
	FROM imports AS i
	CROSS JOIN LATERAL (
		SELECT count(*) AS files, count(*) FILTER (WHERE state = 'done') AS files_done,
			count(*) FILTER (WHERE state = 'failed') AS files_failed, coalesce(sum(size), 0)::bigint AS bytes,
			coalesce(sum(bytes_read), 0)::bigint AS bytes_read, coalesce(sum(rows), 0)::bigint AS rows,
			coalesce(sum(events), 0)::bigint AS events, coalesce(sum(skipped), 0)::bigint AS skipped,
			coalesce(sum(rejected), 0)::bigint AS rejected
		FROM import_files
		WHERE import_id = i.id) AS f
	CROSS JOIN LATERAL (
		SELECT coalesce(jsonb_object_agg(code, n), '{}') AS reasons
		FROM (
			SELECT each.key AS code, sum(each.value::bigint) AS n
			FROM import_files AS of
			CROSS JOIN LATERAL jsonb_each_text(of.reasons) AS each
			WHERE of.import_id = i.id
			GROUP BY each.key) AS codes) AS r`

// Get returns an import, or collector.ErrNotFound.
func (s *Store) Get(ctx context.Context, workspace int32, id int64) (Import, error) {
	const query = selectImports + `
	WHERE i.workspace_id = @workspace AND i.id = @id`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "id": id}) // err: below
	i, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Import])
	if errors.Is(err, pgx.ErrNoRows) {
		return Import{}, collector.ErrNotFound
	}
	if err != nil {
		return Import{}, fmt.Errorf("get import %d: %w", id, err)
	}
	return i, nil
}

// List returns up to limit imports, the newest first, with ids below before, or from the newest if that is 0.
func (s *Store) List(ctx context.Context, workspace int32, before int64, limit int) ([]Import, error) {
	const query = selectImports + `
	WHERE i.workspace_id = @workspace AND (i.id < @before OR @before = 0)
	ORDER BY i.id DESC
	LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "before": before, "limit": limit}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[Import])
	if err != nil {
		return nil, fmt.Errorf("list imports: %w", err)
	}
	return list, nil
}

const fileColumns = `f.id, f.name, f.version, f.size, f.state, f.reason, f.position, f.bytes_read, f.rows, f.events, f.skipped,
		f.rejected, f.reasons, f.found_at, f.finished_at`

// Files returns up to limit files of an import, in the order in which they were found, with ids above after.
func (s *Store) Files(ctx context.Context, workspace int32, id, after int64, limit int) ([]File, error) {
	const query = `
		SELECT ` + fileColumns + `
		FROM import_files AS f
		JOIN imports AS i ON i.id = f.import_id
		WHERE i.workspace_id = @workspace AND i.id = @id AND f.id > @after
		ORDER BY f.id
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "id": id, "after": after, "limit": limit}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[File])
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	return list, nil
}

// Rejected returns the rejected rows of an import that are kept: the first of each look at a batch, 1,000 at most.
func (s *Store) Rejected(ctx context.Context, workspace int32, id int64) ([]Reject, error) {
	const query = `
		SELECT f.name AS file, r.row, r.line, r.code, r.reason, r.pointer, r.sample
		FROM import_rejects AS r
		JOIN import_files AS f ON f.import_id = r.import_id AND f.id = r.file_id
		JOIN imports AS i ON i.id = r.import_id
		WHERE i.workspace_id = @workspace AND i.id = @id
		ORDER BY r.file_id, r.row`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "id": id}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[Reject])
	if err != nil {
		return nil, fmt.Errorf("list rejected rows: %w", err)
	}
	return list, nil
}

// Upload adds to a file what comes behind its first offset bytes. What is there already is not written again; a gap is
// ErrState. When the file is there as a whole, it is imported.
func (s *Store) Upload(ctx context.Context, workspace int32, id, offset int64, data []byte) (Import, error) {
	err := pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		const query = `
			SELECT state, size, uploaded
			FROM imports
			WHERE workspace_id = @workspace AND id = @id
			FOR UPDATE`
		var state string
		var size, uploaded int64
		err := tx.QueryRow(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "id": id}).Scan(&state, &size, &uploaded)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return collector.ErrNotFound
		case err != nil:
			return fmt.Errorf("upload: %w", err)
		case state != Uploading, offset > uploaded, offset+int64(len(data)) > size:
			return ErrState
		case offset+int64(len(data)) <= uploaded:
			return nil
		}
		data, offset = data[uploaded-offset:], uploaded
		const insert = `INSERT INTO import_chunks (import_id, at, data) VALUES (@id, @at, @data)`
		if _, err := tx.Exec(ctx, insert, pgx.StrictNamedArgs{"id": id, "at": offset, "data": data}); err != nil {
			return fmt.Errorf("upload: %w", err)
		}
		const update = `
			UPDATE imports
			SET uploaded = @uploaded, state = CASE WHEN @uploaded = size THEN 'queued' ELSE state END, next_at = now()
			WHERE id = @id`
		if _, err := tx.Exec(ctx, update, pgx.StrictNamedArgs{"id": id, "uploaded": offset + int64(len(data))}); err != nil {
			return fmt.Errorf("upload: %w", err)
		}
		return nil
	})
	if err != nil {
		return Import{}, err
	}
	return s.Get(ctx, workspace, id)
}

// Pause stops an import until it is resumed. What is durable stays.
func (s *Store) Pause(ctx context.Context, workspace int32, id int64) (Import, error) {
	return s.move(ctx, workspace, id, Paused, Queued, Running)
}

// Resume goes on with an import that was paused or has failed; files that have failed are tried again from where they were.
func (s *Store) Resume(ctx context.Context, workspace int32, id int64) (Import, error) {
	const query = `
		UPDATE import_files
		SET state = 'pending', reason = '', finished_at = NULL
		WHERE state = 'failed' AND import_id = (
			SELECT id FROM imports WHERE workspace_id = @workspace AND id = @id AND state IN ('paused', 'failed'))`
	if _, err := s.db.Exec(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "id": id}); err != nil {
		return Import{}, fmt.Errorf("resume import: %w", err)
	}
	return s.move(ctx, workspace, id, Queued, Paused, Failed)
}

// Cancel ends an import. What is durable stays.
func (s *Store) Cancel(ctx context.Context, workspace int32, id int64) (Import, error) {
	i, err := s.move(ctx, workspace, id, Cancelled, Uploading, Queued, Running, Paused, Failed)
	if err != nil {
		return Import{}, err
	}
	return i, s.dropUpload(ctx, id)
}

func (s *Store) dropUpload(ctx context.Context, id int64) error {
	const query = `DELETE FROM import_chunks WHERE import_id = @id`
	if _, err := s.db.Exec(ctx, query, pgx.StrictNamedArgs{"id": id}); err != nil {
		return fmt.Errorf("drop what was uploaded: %w", err)
	}
	return nil
}

// move brings an import into a state from one of others, or returns ErrState. If it is there already, nothing happens.
func (s *Store) move(ctx context.Context, workspace int32, id int64, to string, from ...string) (Import, error) {
	const query = `
		UPDATE imports
		SET state = @to, reason = '', attempts = 0, next_at = now(), rows_per_second = 0,
			finished_at = CASE WHEN @to = 'cancelled' THEN now() END
		WHERE workspace_id = @workspace AND id = @id AND state = ANY(@from)`
	tag, err := s.db.Exec(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "id": id, "to": to, "from": from})
	if err != nil {
		return Import{}, fmt.Errorf("bring import %d into the state %s: %w", id, to, err)
	}
	i, err := s.Get(ctx, workspace, id)
	if err == nil && tag.RowsAffected() == 0 && i.State != to { // a runner may have moved it on already
		err = ErrState
	}
	return i, err
}

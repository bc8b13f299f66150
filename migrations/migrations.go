// Package migrations holds the schema that all packages share, as numbered SQL files, and brings a database up to it.
//
// NNNNNN_name.up.sql is undone by NNNNNN_name.down.sql. Each file is one transaction of its own, except those that
// hold nothing but a CREATE INDEX CONCURRENTLY. A file that has been released is never edited.
package migrations

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"time"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"
	driver "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// Files are the migrations, at the root of the file system.
//
//go:embed *.sql
var Files embed.FS

// DirtyError says that a migration was interrupted, so that nobody knows whether it was committed. A person must look,
// and then call [Force] with the version the schema is really at.
type DirtyError struct {
	Version int
}

func (e *DirtyError) Error() string {
	return fmt.Sprintf("migration %d was interrupted: the schema may or may not hold it", e.Version)
}

// Up brings the database to the newest version, and does nothing if it is there already.
//
// Callers that come at once take turns, for as long as ctx allows. When ctx ends, the migration that is running is
// finished before Up returns. A migration that fails leaves the database at the version before it, so that Up may be
// called again; one that was interrupted is reported as a [*DirtyError]. The connection must be a session, not one
// through a pooler in transaction mode.
func Up(ctx context.Context, databaseURL string) error {
	return upFrom(ctx, Files, databaseURL)
}

func upFrom(ctx context.Context, files fs.FS, databaseURL string) error {
	err := run(ctx, files, databaseURL, (*migrate.Migrate).Up)
	if err != nil {
		return fmt.Errorf("migrate up: %w", err)
	}
	return nil
}

// Down undoes every migration, and with them all that the database holds. Turns and ctx are as in [Up].
func Down(ctx context.Context, databaseURL string) error {
	err := run(ctx, Files, databaseURL, (*migrate.Migrate).Down)
	if err != nil {
		return fmt.Errorf("migrate down: %w", err)
	}
	return nil
}

// Force says that the schema is at the given version, and clean, whatever was recorded. It runs no migration.
func Force(ctx context.Context, databaseURL string, version int) error {
	err := run(ctx, Files, databaseURL, func(m *migrate.Migrate) error { return m.Force(version) })
	if err != nil {
		return fmt.Errorf("force migration version %d: %w", version, err)
	}
	return nil
}

// Version returns the number of the newest migration that the database holds, 0 for none, and whether it was
// interrupted. It changes nothing, not even a database that was never migrated.
func Version(ctx context.Context, databaseURL string) (version int, dirty bool, err error) {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return 0, false, fmt.Errorf("read migration version: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))

	const exists = `SELECT to_regclass('schema_migrations') IS NOT NULL`
	var found bool
	if err = conn.QueryRow(ctx, exists).Scan(&found); err != nil {
		return 0, false, fmt.Errorf("read migration version: %w", err)
	}
	if !found {
		return 0, false, nil
	}
	const query = `SELECT version, dirty FROM schema_migrations`
	err = conn.QueryRow(ctx, query).Scan(&version, &dirty)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read migration version: %w", err)
	}
	return version, dirty, nil
}

// run does one thing with the migrations, alone on its database.
func run(ctx context.Context, from fs.FS, databaseURL string, do func(*migrate.Migrate) error) error {
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return err
	}
	turn, err := takeTurn(ctx, cfg)
	if err != nil {
		return err
	}
	defer turn.Close(context.WithoutCancel(ctx))

	files, err := iofs.New(from, ".")
	if err != nil {
		return fmt.Errorf("read migration files: %w", err)
	}
	db, err := driver.WithInstance(stdlib.OpenDB(*cfg), &driver.Config{})
	if err != nil {
		return errors.Join(err, files.Close())
	}
	m, err := migrate.NewWithInstance("iofs", files, "pgx5", db)
	if err != nil {
		return errors.Join(err, files.Close(), db.Close())
	}
	defer m.Close()
	defer context.AfterFunc(ctx, func() { m.GracefulStop <- true })()

	err = do(m)
	var failed database.Error
	if errors.As(err, &failed) && len(failed.Query) > 0 {
		return settle(context.WithoutCancel(ctx), turn, files, failed)
	}
	return explain(err)
}

// takeTurn returns the connection that holds this database's turn; closing it passes the turn on.
//
// golang-migrate has a lock of its own, but waits for it deaf to ctx, and inside a statement, whose snapshot a
// CREATE INDEX CONCURRENTLY of the one who holds the lock would wait for in turn.
func takeTurn(ctx context.Context, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	const lock = 0x6d756261746368 // "mubatch"
	const query = `SELECT pg_try_advisory_lock($1)`
	for {
		var mine bool
		if err := conn.QueryRow(ctx, query, int64(lock)).Scan(&mine); err != nil {
			conn.Close(context.WithoutCancel(ctx))
			return nil, fmt.Errorf("wait for another migration: %w", err)
		}
		if mine {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			conn.Close(context.WithoutCancel(ctx))
			return nil, fmt.Errorf("wait for another migration: %w", context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// explain turns what golang-migrate says into what the caller should know.
func explain(err error) error {
	var dirty migrate.ErrDirty
	switch {
	case err == nil, errors.Is(err, migrate.ErrNoChange):
		return nil
	case errors.As(err, &dirty):
		return &DirtyError{Version: dirty.Version}
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("the database is at a version that this program does not have: %w", err)
	default:
		return err
	}
}

// settle says which migration failed, and where. If Postgres refused it, and it was a transaction, then nothing of it is
// in the schema, and the mark that golang-migrate leaves for a person to remove is removed here.
func settle(ctx context.Context, conn *pgx.Conn, files source.Driver, failed database.Error) error {
	const find = `SELECT version FROM schema_migrations WHERE dirty`
	var version uint
	if err := conn.QueryRow(ctx, find).Scan(&version); err != nil {
		return errors.Join(failed.OrigErr, fmt.Errorf("find the migration that failed: %w", err))
	}
	err := fmt.Errorf("migration %d: %w", version, failed.OrigErr)
	var refused *pgconn.PgError
	if errors.As(failed.OrigErr, &refused) && refused.Position > 0 {
		err = fmt.Errorf("migration %d, line %d: %w", version, failed.Line, failed.OrigErr)
	}

	text, _, readErr := files.ReadUp(version)
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	defer text.Close()
	up, readErr := io.ReadAll(text)
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	if refused == nil || !bytes.Equal(up, failed.Query) || !transaction.Match(up) {
		return err
	}

	before, prevErr := files.Prev(version)
	if prevErr != nil { // it was the first one
		const forget = `DELETE FROM schema_migrations`
		_, settleErr := conn.Exec(ctx, forget)
		return errors.Join(err, settleErr)
	}
	const restore = `UPDATE schema_migrations SET version = @before, dirty = false`
	_, settleErr := conn.Exec(ctx, restore, pgx.StrictNamedArgs{"before": int64(before)})
	return errors.Join(err, settleErr)
}

// transaction matches a file that is one transaction, comments apart.
var transaction = regexp.MustCompile(`(?s)^(--[^\n]*\n|\s)*BEGIN;.*\bCOMMIT;\s*$`)

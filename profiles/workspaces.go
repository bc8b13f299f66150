package profiles

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrExists says that there is one of that key already.
var ErrExists = errors.New("the key is taken")

// database is a pool, or a transaction that what is done becomes a part of.
type database interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Workspace is a tenant.
type Workspace struct {
	ID        int32
	Key       string
	Name      string
	Secret    Secret // never leaves the process
	CreatedAt time.Time
}

// Workspaces keeps the tenants.
type Workspaces struct{ db database }

// NewWorkspaces returns the workspaces kept in db, a pool or a transaction.
func NewWorkspaces(db database) *Workspaces { return &Workspaces{db: db} }

// Create makes a workspace with a new secret. If key is taken the error is [ErrExists].
func (s *Workspaces) Create(ctx context.Context, key, name string) (Workspace, error) {
	const query = `
		INSERT INTO workspaces (key, name, secret)
		VALUES (@key, @name, @secret)
		ON CONFLICT (key) DO NOTHING
		RETURNING id, key, name, secret, created_at`
	secret := make([]byte, 32)
	rand.Read(secret)
	w, err := s.one(ctx, query, pgx.StrictNamedArgs{"key": key, "name": name, "secret": secret})
	if errors.Is(err, ErrNotFound) {
		return Workspace{}, ErrExists
	}
	if err != nil {
		return Workspace{}, fmt.Errorf("create workspace: %w", err)
	}
	return w, nil
}

// Ensure returns the workspace of that key, which it makes if there is none.
func (s *Workspaces) Ensure(ctx context.Context, key, name string) (Workspace, error) {
	w, err := s.byKey(ctx, key) // first, since an attempt to make one uses up an id
	if !errors.Is(err, ErrNotFound) {
		return w, err
	}
	w, err = s.Create(ctx, key, name)
	if errors.Is(err, ErrExists) { // somebody else was first
		return s.byKey(ctx, key)
	}
	return w, err
}

func (s *Workspaces) byKey(ctx context.Context, key string) (Workspace, error) {
	const query = `
		SELECT id, key, name, secret, created_at
		FROM workspaces
		WHERE key = @key`
	w, err := s.one(ctx, query, pgx.StrictNamedArgs{"key": key})
	if err != nil {
		return Workspace{}, fmt.Errorf("get workspace %q: %w", key, err)
	}
	return w, nil
}

// Get returns a workspace, or [ErrNotFound].
func (s *Workspaces) Get(ctx context.Context, id int32) (Workspace, error) {
	const query = `
		SELECT id, key, name, secret, created_at
		FROM workspaces
		WHERE id = @id`
	w, err := s.one(ctx, query, pgx.StrictNamedArgs{"id": id})
	if err != nil {
		return Workspace{}, fmt.Errorf("get workspace %d: %w", id, err)
	}
	return w, nil
}

// List returns at most limit workspaces whose ids are larger than after, in the order of their ids.
func (s *Workspaces) List(ctx context.Context, after int32, limit int) ([]Workspace, error) {
	const query = `
		SELECT id, key, name, secret, created_at
		FROM workspaces
		WHERE id > @after
		ORDER BY id
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"after": after, "limit": limit}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Workspace])
	if err != nil {
		return nil, fmt.Errorf("list workspaces: %w", err)
	}
	return list, nil
}

// Rename gives a workspace another name, and returns it, or [ErrNotFound].
func (s *Workspaces) Rename(ctx context.Context, id int32, name string) (Workspace, error) {
	const query = `
		UPDATE workspaces
		SET name = @name
		WHERE id = @id
		RETURNING id, key, name, secret, created_at`
	w, err := s.one(ctx, query, pgx.StrictNamedArgs{"id": id, "name": name})
	if err != nil {
		return Workspace{}, fmt.Errorf("rename workspace %d: %w", id, err)
	}
	return w, nil
}

func (s *Workspaces) one(ctx context.Context, query string, args pgx.StrictNamedArgs) (Workspace, error) {
	rows, _ := s.db.Query(ctx, query, args) // err: below
	w, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Workspace])
	if errors.Is(err, pgx.ErrNoRows) {
		return Workspace{}, ErrNotFound
	}
	return w, err
}

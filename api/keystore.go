package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mubatch/mubatch/profiles"
)

// Scope is one thing that a key may do. None implies another.
type Scope string

// The scopes.
const (
	Read     Scope = "read"     // see everything of the workspace but its keys and who changed what
	Write    Scope = "write"    // change sources, segments and destinations, un-merge people, and replay events
	Admin    Scope = "admin"    // change the workspace and its keys, and see who changed what
	Operator Scope = "operator" // see and make workspaces
)

// Scopes are all there are.
func Scopes() []Scope { return []Scope{Read, Write, Admin, Operator} }

// ErrNoKey says that no key, or none that works any more, has that secret.
var ErrNoKey = errors.New("no such key")

// database is a pool, or a transaction that what is done becomes a part of.
type database interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Key is a secret key of the management API, without its secret.
type Key struct {
	ID         int64
	Workspace  int32
	Name       string
	Prefix     string // how the secret begins
	Scopes     []Scope
	CreatedAt  time.Time
	ExpiresAt  *time.Time
	LastUsedAt *time.Time // to the minute
	RevokedAt  *time.Time
}

// NewKey is what a key is made from.
type NewKey struct {
	Name      string
	Scopes    []Scope    // none: read, write and admin
	ExpiresAt *time.Time // nil: never
}

// KeyStore keeps the secret keys. Of a secret it keeps no more than the hash.
type KeyStore struct{ db database }

// NewKeyStore returns the keys kept in db, a pool or a transaction.
func NewKeyStore(db database) *KeyStore { return &KeyStore{db: db} }

// Create makes a key. The secret cannot be had again.
func (s *KeyStore) Create(ctx context.Context, workspace int32, n NewKey) (k Key, secret string, err error) {
	secret = newSecret()
	k, err = s.insert(ctx, workspace, n, secret)
	if err != nil {
		return Key{}, "", fmt.Errorf("create key: %w", err)
	}
	return k, secret, nil
}

// EnsureKey makes secret work for the workspace, with every scope: it makes a key of that name unless one has the secret.
// A secret that was revoked stays revoked, and one that belongs to another workspace stays there; both are an error.
func (s *KeyStore) EnsureKey(ctx context.Context, workspace int32, name, secret string) error {
	if !wellFormed(secret) {
		return errors.New("ensure key: the secret is not of the form of one")
	}
	_, err := s.insert(ctx, workspace, NewKey{Name: name, Scopes: Scopes()}, secret)
	if err != nil && !errors.Is(err, profiles.ErrExists) {
		return fmt.Errorf("ensure key: %w", err)
	}
	id, err := s.find(ctx, secret)
	if err != nil {
		return fmt.Errorf("ensure key: %w", err)
	}
	if id.key.Workspace != workspace {
		return errors.New("ensure key: the secret belongs to another workspace")
	}
	return nil
}

func (s *KeyStore) insert(ctx context.Context, workspace int32, n NewKey, secret string) (Key, error) {
	if len(n.Scopes) == 0 {
		n.Scopes = []Scope{Read, Write, Admin}
	}
	const query = `
		INSERT INTO api_keys (workspace_id, name, key_hash, prefix, scopes, expires_at)
		VALUES (@workspace, @name, @hash, @prefix, @scopes, @expires)
		ON CONFLICT (key_hash) DO NOTHING
		RETURNING id, workspace_id, name, prefix, scopes, created_at, expires_at, last_used_at, revoked_at`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"workspace": workspace, "name": n.Name, "hash": hash(secret), "prefix": secret[:len(secretPrefix)+4],
		"scopes": n.Scopes, "expires": n.ExpiresAt,
	})
	k, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Key])
	if errors.Is(err, pgx.ErrNoRows) {
		return Key{}, profiles.ErrExists
	}
	return k, err
}

// List returns at most limit keys of a workspace whose ids are larger than after, in the order of their ids, those that
// do not work any more among them.
func (s *KeyStore) List(ctx context.Context, workspace int32, after int64, limit int) ([]Key, error) {
	const query = `
		SELECT id, workspace_id, name, prefix, scopes, created_at, expires_at, last_used_at, revoked_at
		FROM api_keys
		WHERE workspace_id = @workspace AND id > @after
		ORDER BY id
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "after": after, "limit": limit}) // err: below
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Key])
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return keys, nil
}

// Revoke ends a key: within a second it works nowhere. If the workspace has no such key the error is
// [profiles.ErrNotFound].
func (s *KeyStore) Revoke(ctx context.Context, workspace int32, id int64) (Key, error) {
	const query = `
		UPDATE api_keys
		SET revoked_at = coalesce(revoked_at, now())
		WHERE workspace_id = @workspace AND id = @id
		RETURNING id, workspace_id, name, prefix, scopes, created_at, expires_at, last_used_at, revoked_at`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "id": id}) // err: below
	k, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Key])
	if errors.Is(err, pgx.ErrNoRows) {
		return Key{}, profiles.ErrNotFound
	}
	if err != nil {
		return Key{}, fmt.Errorf("revoke key %d: %w", id, err)
	}
	return k, nil
}

// identity is who asks.
type identity struct {
	key       Key
	workspace profiles.Secret
}

// find returns whose a secret is, or [ErrNoKey].
func (s *KeyStore) find(ctx context.Context, secret string) (identity, error) {
	const query = `
		SELECT k.id, k.workspace_id, k.name, k.prefix, k.scopes, k.created_at, k.expires_at, k.last_used_at, k.revoked_at,
			w.secret
		FROM api_keys k
		JOIN workspaces w ON w.id = k.workspace_id
		WHERE k.key_hash = @hash AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"hash": hash(secret)}) // err: below
	id, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (id identity, err error) {
		k := &id.key
		err = row.Scan(&k.ID, &k.Workspace, &k.Name, &k.Prefix, &k.Scopes, &k.CreatedAt, &k.ExpiresAt, &k.LastUsedAt,
			&k.RevokedAt, &id.workspace)
		return id, err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return identity{}, ErrNoKey
	}
	if err != nil {
		return identity{}, fmt.Errorf("find key: %w", err)
	}
	return id, nil
}

// touch notes that a key is in use, at most once a minute.
func (s *KeyStore) touch(ctx context.Context, id int64) error {
	const query = `
		UPDATE api_keys
		SET last_used_at = now()
		WHERE id = @id AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')`
	_, err := s.db.Exec(ctx, query, pgx.StrictNamedArgs{"id": id})
	return err
}

// A secret is secretPrefix, 256 random bits in base 62, and the CRC-32 of both in base 62, so that a mistyped one is
// known for one without asking anybody, and one that leaked into a repository is found by its form.
const (
	secretPrefix = "mub_sk_"
	randomDigits = 43
	checkDigits  = 6
)

func newSecret() string {
	random := make([]byte, 32)
	rand.Read(random)
	body := secretPrefix + base62(new(big.Int).SetBytes(random), randomDigits)
	return body + checksum(body)
}

func wellFormed(secret string) bool {
	if len(secret) != len(secretPrefix)+randomDigits+checkDigits || !strings.HasPrefix(secret, secretPrefix) {
		return false
	}
	body := secret[:len(secret)-checkDigits]
	return secret[len(body):] == checksum(body)
}

func checksum(body string) string {
	return base62(new(big.Int).SetUint64(uint64(crc32.ChecksumIEEE([]byte(body)))), checkDigits)
}

func base62(n *big.Int, digits int) string {
	s := n.Text(62)
	return strings.Repeat("0", digits-len(s)) + s
}

func hash(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

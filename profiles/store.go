package profiles

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/activation"
)

// Config tunes a [Store]. A zero field means its default.
type Config struct {
	Lanes   int    // how many lanes there are, fixed at install: 16
	Cached  int    // how many profiles the owner of a lane keeps in memory: 5,000 a lane
	Version string // of this software, noted with failed events

	// Keys open what keys the tombstones of those who were forgotten. A store without them stops where there are any.
	Keys *activation.KeyRing
}

func (c Config) withDefaults() Config {
	if c.Lanes == 0 {
		c.Lanes = 16
	}
	if c.Cached == 0 {
		c.Cached = 5000
	}
	return c
}

// Store keeps profiles, segments and all that lanes need in Postgres. It is safe for concurrent use; the lanes it opens
// are not.
type Store struct {
	pool       *pgxpool.Pool
	activation enqueuer
	wake       func()
	log        *slog.Logger
	lanes      int
	cached     int
	version    string
	keys       *activation.KeyRing
	chunks     chunks
}

// enqueuer takes over who entered and who left, what happened, which segments are no more, and who is to be forgotten;
// *activation.Ledger is the real one.
type enqueuer interface {
	Enqueue(ctx context.Context, tx pgx.Tx, lane int, changes []activation.Change) (int, error)
	AskForSubscriptions(batch *pgx.Batch, version *int64)
	Subscriptions(ctx context.Context, tx pgx.Tx, version int64) (*activation.Subscriptions, error)
	EnqueueEvents(ctx context.Context, tx pgx.Tx, lane int, subs *activation.Subscriptions, events []activation.Happened) (int, error)
	SegmentDeleted(ctx context.Context, tx pgx.Tx, segment int64) error
	ForgetEvents(ctx context.Context, tx pgx.Tx, lane int, workspace int32, persons [][16]byte) error
	Erase(ctx context.Context, tx pgx.Tx, lane int, workspace int32, erasure int64, profiles [][16]byte) error
	Released(ctx context.Context, pool *pgxpool.Pool) (int, error)
	Waiting(ctx context.Context, tx pgx.Tx, erasure int64) (int, error)
	Forget(ctx context.Context, tx pgx.Tx, lanes int, workspace int32, erasure int64, profiles [][16]byte, at time.Time) (left bool, err error)
}

// NewStore returns a store. wake is called after a commit that left something to activate; it must not block.
func NewStore(pool *pgxpool.Pool, cfg Config, out enqueuer, wake func(), log *slog.Logger) *Store {
	cfg = cfg.withDefaults()
	return &Store{
		pool:       pool,
		activation: out,
		wake:       wake,
		log:        log,
		lanes:      cfg.Lanes,
		cached:     cfg.Cached,
		version:    cfg.Version,
		keys:       cfg.Keys,
		chunks:     defaultChunks,
	}
}

// Install makes the rows of the lanes. The number of lanes is fixed by the first install: another number is an error,
// because everybody's home would change.
func (s *Store) Install(ctx context.Context) error {
	const query = `
		INSERT INTO lanes (lane)
		SELECT generate_series(0, $1::integer - 1)
		WHERE NOT EXISTS (SELECT FROM lanes)
		ON CONFLICT DO NOTHING`
	const count = `SELECT count(*) FROM lanes`
	if s.lanes < 1 || s.lanes > 1<<12 {
		return fmt.Errorf("the number of lanes is %d, must be from 1 to %d", s.lanes, 1<<12)
	}
	if _, err := s.pool.Exec(ctx, query, s.lanes); err != nil {
		return fmt.Errorf("install lanes: %w", err)
	}
	var n int
	if err := s.pool.QueryRow(ctx, count).Scan(&n); err != nil {
		return fmt.Errorf("count lanes: %w", err)
	}
	if n != s.lanes {
		return fmt.Errorf("this database was installed with %d lanes, the configuration says %d", n, s.lanes)
	}
	return s.Partition(ctx)
}

// ErrNotFound says that there is no such thing in the workspace.
var ErrNotFound = errors.New("not found")

package profiles

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
)

// Retention says how long things are kept. A zero field means its default.
type Retention struct {
	Events time.Duration // archived events, and with them what a new segment can be built from: 400 days
	Dedupe time.Duration // how long a message is sure to be remembered; it is for up to twice as long: 7 days

	Quarantine time.Duration // quarantined events: 30 days
}

func (r Retention) withDefaults() Retention {
	if r.Events == 0 {
		r.Events = 400 * 24 * time.Hour
	}
	if r.Dedupe == 0 {
		r.Dedupe = 7 * 24 * time.Hour
	}
	if r.Quarantine == 0 {
		r.Quarantine = 30 * 24 * time.Hour
	}
	return r
}

// Maintain keeps partitions ahead of time, drops those past retention, rotates dedupe and sees erasures through, until ctx
// ends. Any number of
// processes may run it.
func (s *Store) Maintain(ctx context.Context, keep Retention) error {
	keep = keep.withDefaults()
	tick := time.NewTicker(10 * time.Minute)
	defer tick.Stop()
	erasures := time.NewTicker(time.Second)
	defer erasures.Stop()
	seen := looks{}
	for {
		if err := s.maintain(ctx, keep); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "maintenance did not finish, will try again", "err", err)
		}
		for again := false; !again; {
			if err := s.settleErasures(ctx, seen); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "an erasure did not get on, will try again", "err", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				again = true
			case <-erasures.C:
			}
		}
	}
}

// maintain does all it can: what goes wrong with one thing must not keep the others from being done.
func (s *Store) maintain(ctx context.Context, keep Retention) error {
	_, err := s.RotateDedupe(ctx, keep.Dedupe)
	return errors.Join(err, s.Partition(ctx), s.DropEventsBefore(ctx, time.Now().Add(-keep.Events)), s.renewTombstoneKeys(ctx),
		s.forgetSuppressed(ctx, time.Now().Add(-keep.Events)), s.foldArrivals(ctx, time.Now()),
		s.forgetVisitorClaims(ctx), s.dropQuarantinedBefore(ctx, time.Now().Add(-keep.Quarantine)))
}

// forgetSuppressed forgets which events were suppressed before t.
func (s *Store) forgetSuppressed(ctx context.Context, t time.Time) error {
	const query = `DELETE FROM suppressed_events WHERE suppressed_at < $1`
	if _, err := s.pool.Exec(ctx, query, t); err != nil {
		return fmt.Errorf("forget suppressed events: %w", err)
	}
	return nil
}

// Partition makes the archive's partitions for yesterday, today and the next three days. Events of a day without one go
// to the default partition; they are moved when it is made.
func (s *Store) Partition(ctx context.Context) error {
	var errs []error
	for day := -1; day <= 3; day++ {
		from := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, day)
		errs = append(errs, s.partition(ctx, from))
	}
	return errors.Join(errs...)
}

const partitionName = "events_20060102"

func (s *Store) partition(ctx context.Context, from time.Time) error {
	name := from.Format(partitionName)
	const exists = `SELECT to_regclass($1) IS NOT NULL`
	var there bool
	if err := s.pool.QueryRow(ctx, exists, name).Scan(&there); err != nil {
		return fmt.Errorf("look for partition %s: %w", name, err)
	}
	if there {
		return nil
	}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := alone(ctx, tx); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, exists, name).Scan(&there); err != nil || there {
			return err // somebody else was first
		}
		// Attached rather than made as a partition, which would shut out whoever reads or writes any other.
		to := from.AddDate(0, 0, 1)
		fill := strings.NewReplacer("{name}", name, "{from}", from.Format(time.RFC3339), "{to}", to.Format(time.RFC3339))
		for _, query := range []string{
			`CREATE TABLE {name} (LIKE events INCLUDING DEFAULTS, CHECK (received_at >= '{from}' AND received_at < '{to}'))`,
			`LOCK TABLE events_default IN ACCESS EXCLUSIVE MODE`,
			`WITH late AS (DELETE FROM events_default WHERE received_at >= '{from}' AND received_at < '{to}' RETURNING *)
			INSERT INTO {name} SELECT * FROM late`,
			`ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ('{from}') TO ('{to}')`,
		} {
			if _, err := tx.Exec(ctx, fill.Replace(query)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make partition %s: %w", name, err)
	}
	return nil
}

// partitionLock serialises the making and dropping of partitions.
const partitionLock int64 = 0x6d756202

// alone waits until nobody else makes or drops partitions. What follows in tx never waits long for a lock, since
// everybody else would queue behind it.
func alone(ctx context.Context, tx pgx.Tx) error {
	const query = `SELECT set_config('lock_timeout', '1s', true), pg_advisory_xact_lock($1)`
	_, err := tx.Exec(ctx, query, partitionLock)
	return err
}

// DropEventsBefore drops the archive's days that end before t.
func (s *Store) DropEventsBefore(ctx context.Context, t time.Time) error {
	const query = `
		SELECT c.relname
		FROM pg_inherits AS i
		JOIN pg_class AS c ON c.oid = i.inhrelid
		WHERE i.inhparent = 'events'::regclass
		ORDER BY c.relname`
	rows, _ := s.pool.Query(ctx, query)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("list partitions: %w", err)
	}
	for _, name := range names {
		day, err := time.Parse(partitionName, name)
		if err != nil || day.AddDate(0, 0, 1).After(t) {
			continue // the default partition, or young enough
		}
		err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if err := alone(ctx, tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `DROP TABLE IF EXISTS `+pgx.Identifier{name}.Sanitize())
			return err
		})
		if err != nil {
			return fmt.Errorf("drop partition %s: %w", name, err)
		}
	}
	const late = `DELETE FROM events_default WHERE received_at < $1`
	if _, err := s.pool.Exec(ctx, late, t); err != nil {
		return fmt.Errorf("delete old events of the default partition: %w", err)
	}
	return nil
}

// RotateDedupe empties the older generation and makes it the current one, if the current one is older than window. It
// waits for the µbatches under way, and holds up new ones for as long as emptying a table takes. Where that would take long,
// because somebody reads the table or a µbatch hangs, it is an error, and to be tried again later.
func (s *Store) RotateDedupe(ctx context.Context, window time.Duration) (rotated bool, err error) {
	const due = `SELECT current FROM dedupe_generation WHERE rotated_at <= now() - $1::interval`
	const next = `UPDATE dedupe_generation SET current = $1, rotated_at = now()`
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		rotated = false
		rows, _ := tx.Query(ctx, due, window)
		if current, err := pgx.CollectRows(rows, pgx.RowTo[int16]); err != nil || len(current) == 0 {
			return err
		}
		const lock = `SELECT set_config('lock_timeout', '1s', true), pg_advisory_xact_lock($1)`
		if _, err := tx.Exec(ctx, lock, activation.ConfigLock); err != nil {
			return err
		}
		rows, _ = tx.Query(ctx, due, window) // somebody else may have been first
		current, err := pgx.CollectRows(rows, pgx.RowTo[int16])
		if err != nil || len(current) == 0 {
			return err
		}
		other := 1 - current[0]
		if _, err := tx.Exec(ctx, fmt.Sprintf(`TRUNCATE dedupe_%d`, other)); err != nil {
			return err
		}
		rotated = true
		_, err = tx.Exec(ctx, next, other)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("rotate dedupe: %w", err)
	}
	return rotated, nil
}

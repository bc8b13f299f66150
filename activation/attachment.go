package activation

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Attach has a destination told about a segment from now on, and, in the background, about its present members. The
// segment's own store answers for the segment's being there and in the workspace. Attaching twice changes nothing.
func (s *Store) Attach(ctx context.Context, workspace int32, ref string, segment int64) error {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return err
	}
	const query = `
		INSERT INTO destination_segments AS s (destination_id, segment_id)
		VALUES (@id, @segment)
		ON CONFLICT (destination_id, segment_id) DO UPDATE
		SET generation = excluded.generation, attached = true, filled = false, fill_until = '-infinity',
			attached_at = now()
		WHERE NOT s.attached`
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := lockConfig(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{"id": id, "segment": segment})
		return err
	})
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == foreignKeyViolation { // deleted in the meantime
		return ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("attach segment %d to destination %q: %w", segment, ref, err)
	}
	return nil
}

const foreignKeyViolation = "23503"

// Detach has a destination told about a segment no more, and, in the background, has everybody removed there whom it was
// told about. [ErrNotFound] says that there is no such destination or the segment is not attached to it.
func (s *Store) Detach(ctx context.Context, workspace int32, ref string, segment int64) error {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return err
	}
	var found bool
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := lockConfig(ctx, tx); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, detach, pgx.StrictNamedArgs{"destinations": []int64{id}, "segment": segment})
		found = tag.RowsAffected() > 0
		return err
	})
	if err != nil {
		return fmt.Errorf("detach segment %d from destination %q: %w", segment, ref, err)
	}
	if !found {
		return ErrNotFound
	}
	return nil
}

// A destinations of null stands for all of them.
const detach = `
	UPDATE destination_segments
	SET generation = nextval('destination_generation'), attached = false, filled = false, fill_until = '-infinity'
	WHERE segment_id = @segment AND attached
		AND (@destinations::bigint[] IS NULL OR destination_id = ANY(@destinations))`

// SegmentDeleted detaches a segment from all destinations, in the caller's transaction. It waits for all µbatches under
// way, so call it first, and in a transaction that holds no lock they may want.
func (l *Ledger) SegmentDeleted(ctx context.Context, tx pgx.Tx, segment int64) error {
	if err := lockConfig(ctx, tx); err != nil {
		return fmt.Errorf("detach segment %d: %w", segment, err)
	}
	_, err := tx.Exec(ctx, detach, pgx.StrictNamedArgs{"destinations": nil, "segment": segment})
	if err != nil {
		return fmt.Errorf("detach segment %d: %w", segment, err)
	}
	return nil
}

package activation

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Attach has a destination told about a segment from now on, and, in the background, about its present members. The
// segment's own store answers for the segment's being there and in the workspace. Attaching twice changes nothing. Where
// the partner needs an audience the people wait until there is one: see [Store.SetAudience] and [Creator]. [ErrUnsupported] says that the partner only
// takes events.
func (s *Store) Attach(ctx context.Context, workspace int32, ref string, segment int64) error {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return err
	}
	t, err := target(ctx, s.db, s.ring, s.partners, id)
	if err != nil {
		return storeError(err, "attach a segment to", ref)
	}
	if _, ok := t.partner.(AudiencePartner); !ok {
		return &UnsupportedError{"It takes events only: subscribe it to events instead."}
	}
	const query = `
		INSERT INTO destination_segments AS s (destination_id, segment_id, ready_at, audience_reason)
		VALUES (@id, @segment, @ready, @reason)
		ON CONFLICT (destination_id, segment_id) DO UPDATE
		SET generation = excluded.generation, attached = true, filled = false, fill_until = '-infinity',
			attached_at = now(), audience_at = '-infinity', audience_tries = 0
		WHERE NOT s.attached`
	args := pgx.StrictNamedArgs{"id": id, "segment": segment, "ready": "-infinity", "reason": ""}
	if t.partner.Limits(t.Target).NeedsAudience {
		args["ready"], args["reason"] = "infinity", noAudience(t.partner)
	}
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := lockConfig(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, query, args)
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

func noAudience(p Partner) string {
	if _, ok := p.(Creator); ok {
		return "the audience is about to be made"
	}
	return "the audience at the partner has to be given"
}

// SetAudience says which audience at the partner stands for an attached segment. If it was another one before, what was
// sent there is left there and forgotten here, and everybody is sent to the new one. [ErrNotFound] says that there is no
// such destination or the segment is not attached to it, [ErrUnsupported] that the partner needs no audience.
func (s *Store) SetAudience(ctx context.Context, workspace int32, ref string, segment int64, audience string) error {
	if audience == "" || len(audience) > 200 || strings.ContainsFunc(audience, func(r rune) bool { return r < ' ' }) {
		return &FieldError{Pointer: "/audience", Detail: "must be 1 to 200 bytes, without control characters"}
	}
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return err
	}
	t, err := target(ctx, s.db, s.ring, s.partners, id)
	if err != nil {
		return storeError(err, "set an audience at", ref)
	}
	if !t.partner.Limits(t.Target).NeedsAudience {
		return &UnsupportedError{"It needs no audiences: attach the segment, and that is all."}
	}
	const query = `
		UPDATE destination_segments
		SET resetting       = resetting OR audience <> '',
			generation      = CASE WHEN audience <> '' THEN nextval('destination_generation') ELSE generation END,
			filled          = filled AND audience = '',
			fill_until      = CASE WHEN audience <> '' THEN '-infinity' ELSE fill_until END,
			audience        = @audience,
			ready_at        = now(),
			audience_at     = '-infinity',
			audience_reason = '',
			matched         = NULL,
			matched_state   = '',
			matched_at      = NULL,
			size_at         = '-infinity'
		WHERE destination_id = @id AND segment_id = @segment AND attached AND audience <> @audience`
	const attached = `
		SELECT EXISTS (SELECT FROM destination_segments WHERE destination_id = @id AND segment_id = @segment AND attached)`
	args := pgx.StrictNamedArgs{"id": id, "segment": segment, "audience": audience}
	var found bool
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := lockConfig(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, query, args); err != nil {
			return err
		}
		delete(args, "audience")
		return tx.QueryRow(ctx, attached, args).Scan(&found)
	})
	if err != nil {
		return fmt.Errorf("set the audience of segment %d at destination %q: %w", segment, ref, err)
	}
	if !found {
		return ErrNotFound
	}
	return releaseWaiting(ctx, s.db, s.lanes, id, segment)
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

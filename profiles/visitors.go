package profiles

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
)

// Public is what visitors of a workspace may be told of themselves.
type Public struct {
	AsOf     time.Time // every event accepted up to then is in what is read later; zero if nobody knows
	segments map[int64]string
	computed ComputedValues
}

// Public returns what visitors of a workspace may be told. It is to be asked before the profiles to which it is applied,
// and stays true of them if it has been kept for a while.
func (r *Reader) Public(ctx context.Context, workspace int32) (p Public, err error) {
	if p.AsOf, err = r.AsOf(ctx); err != nil {
		return Public{}, err
	}
	const query = `
		SELECT id, key
		FROM segments
		WHERE workspace_id = $1 AND public AND NOT deleting AND live_version > 0`
	rows, _ := r.db.Query(ctx, query, workspace) // err: below
	p.segments = map[int64]string{}
	var id int64
	var key string
	_, err = pgx.ForEachRow(rows, []any{&id, &key}, func() error {
		p.segments[id] = key
		return nil
	})
	if err != nil {
		return Public{}, fmt.Errorf("read public segments: %w", err)
	}
	p.computed, err = r.computed(ctx, workspace, true)
	return p, err
}

// Empty tells whether there is nothing that a visitor may be told.
func (p Public) Empty() bool { return len(p.segments) == 0 && len(p.computed) == 0 }

// Of returns the keys of the public segments that a profile is in, sorted, and its public computed traits at the time now.
func (p Public) Of(of *Profile, now time.Time) (segments []string, traits map[string]jsontext.Value) {
	segments = []string{}
	for _, s := range of.Standings {
		if key, ok := p.segments[s.Segment]; ok && s.Member {
			segments = append(segments, key)
		}
	}
	slices.Sort(segments)
	return segments, p.computed.Of(of, now)
}

// visitorClaimsKept is how long a claim on a visitor is remembered: far longer than it takes until the lanes know the visitor.
const visitorClaimsKept = 24 * time.Hour

// ClaimVisitor tells whether a message is the first that is heard of a visitor: nobody was given the visitor before, and no
// lane knows the identifier. It must be asked before the message is in. Who sends the same message again, within an hour, is
// told the same, because the first answer may have been lost: as long as somebody could, open is true. While the lane of
// the visitor is more than three seconds behind, so that it may not know the visitor yet, no message is the first.
func (r *Reader) ClaimVisitor(ctx context.Context, workspace, source int32, visitor, message Key) (first, open bool, err error) {
	const query = `
		WITH new AS (
			INSERT INTO visitor_claims (lane, workspace_id, key, source_id, message_key)
			SELECT lane, @workspace, @key, @source, @message
			FROM lanes
			WHERE lane = @lane AND as_of > now() - interval '3 seconds'
				AND NOT EXISTS (SELECT FROM routes WHERE lane = @lane AND workspace_id = @workspace AND key = @key)
				AND NOT EXISTS (SELECT FROM profiles WHERE lane = @lane AND workspace_id = @workspace AND id = @key)
			ON CONFLICT (lane, workspace_id, key) DO NOTHING
			RETURNING source_id, message_key),
		claims AS (
			SELECT source_id, message_key
			FROM new
			UNION ALL
			SELECT source_id, message_key
			FROM visitor_claims
			WHERE lane = @lane AND workspace_id = @workspace AND key = @key AND claimed_at > now() - interval '1 hour')
		SELECT coalesce(bool_or(source_id = @source AND message_key = @message), false), count(*) > 0
		FROM claims`
	err = r.db.QueryRow(ctx, query, pgx.StrictNamedArgs{
		"lane": visitor.Lane(r.lanes), "workspace": workspace, "key": visitor, "source": source, "message": message,
	}).Scan(&first, &open)
	if err != nil {
		return false, false, fmt.Errorf("claim visitor: %w", err)
	}
	return first, open, nil
}

// forgetVisitorClaims forgets to whom visitors were given whom the lanes have known for long.
func (s *Store) forgetVisitorClaims(ctx context.Context) error {
	const query = `DELETE FROM visitor_claims WHERE claimed_at < $1`
	if _, err := s.pool.Exec(ctx, query, time.Now().Add(-visitorClaimsKept)); err != nil {
		return fmt.Errorf("forget claims on visitors: %w", err)
	}
	return nil
}

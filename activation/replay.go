package activation

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Replay says what is to be sent again. Its zero value means what failed or was parked.
type Replay struct {
	Everything bool      // everybody the destination was ever told about: a full synchronisation
	From, To   time.Time // or those whose state it last accepted or refused in [From, To); both or neither
	Segment    int64     // of one segment only, if not 0
}

// Replay has the present state of people sent again, as new messages, and returns of how many. What is being sent just now
// is left out. Of events those are sent again that failed or were parked: others were sent, or must not be.
func (s *Store) Replay(ctx context.Context, workspace int32, ref string, r Replay) (int64, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return 0, err
	}
	// Those who are neither wanted nor were ever sent are of no interest to the partner. Of others it is not known any more
	// what the partner has, unless nobody has ever been told of them. A row that failed or was parked
	// has the time of that as its next_at.
	const query = `
		WITH chosen AS (
			SELECT segment_id, profile_id
			FROM activations
			WHERE lane = @lane AND destination_id = @destination AND (segment_id, profile_id) > (@segment, @profile)
				AND (@only = 0 OR segment_id = @only)
				AND status NOT IN ('claimed', 'accepted')
				AND EXISTS (
					SELECT
					FROM destination_segments s
					WHERE s.destination_id = @destination AND s.segment_id = activations.segment_id)
				AND CASE
					WHEN @everything THEN wanted OR sent_version > 0
					WHEN @from::timestamptz IS NULL THEN status IN ('parked', 'failed', 'unreachable')
					WHEN status IN ('parked', 'failed') THEN next_at >= @from AND next_at < @to
					ELSE sent_version > 0 AND sent_at >= @from AND sent_at < @to END
			ORDER BY segment_id, profile_id
			LIMIT @chunk
			FOR UPDATE
		)
		UPDATE activations a
		SET status = 'pending', version = a.version + 1,
			sent = CASE WHEN a.sent = false AND a.sent_version = 0 AND a.sent_identifiers IS NULL THEN false END,
			batch_id = NULL, reason = '',
			next_at = greatest(now(), (
				SELECT s.ready_at
				FROM destination_segments s
				WHERE s.destination_id = @destination AND s.segment_id = a.segment_id))
		FROM chosen c
		WHERE a.lane = @lane AND a.destination_id = @destination
			AND a.segment_id = c.segment_id AND a.profile_id = c.profile_id
		RETURNING a.segment_id, a.profile_id`
	args := pgx.StrictNamedArgs{
		"destination": id, "only": r.Segment, "everything": r.Everything, "from": nil, "to": nil, "chunk": chunk,
	}
	if !r.From.IsZero() || !r.To.IsZero() {
		args["from"], args["to"] = r.From, r.To
	}
	type key struct {
		Segment int64
		Profile ProfileID
	}
	var total int64
	for lane := range s.lanes {
		var last key
		for more := true; more; {
			args["lane"], args["segment"], args["profile"] = lane, last.Segment, last.Profile
			rows, _ := s.db.Query(ctx, query, args)
			done, err := pgx.CollectRows(rows, pgx.RowToStructByPos[key])
			if err != nil {
				return total, fmt.Errorf("replay destination %q: %w", ref, err)
			}
			for _, k := range done {
				if c := cmp.Compare(k.Segment, last.Segment); c > 0 || c == 0 && bytes.Compare(k.Profile[:], last.Profile[:]) > 0 {
					last = k
				}
			}
			total += int64(len(done))
			more = len(done) == chunk
		}
	}
	n, err := s.replayEvents(ctx, id, r)
	return total + n, err
}

package activation

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Involved is somebody whose membership of a segment a message changed.
type Involved struct {
	Lane    int
	Segment int64
	Profile ProfileID
}

// Traced is something that a destination was told because of a message, or is to be.
type Traced struct {
	Destination    int64
	DestinationKey string
	Segment        int64
	Profile        ProfileID
	Entered        bool
	Outcome        string // of the attempt, or the status of what has not come to an end
	Reason         string
	Attempt        int        // 0 if there was none
	HTTPStatus     int        // 0 if there was no answer
	ChangedAt      time.Time  // when the membership changed
	At             *time.Time // when the outcome was known; nil if it is not

	Subscription *int64 // if it was told of the event itself; then there is no segment, and ChangedAt is when we received it
}

// Trace returns what the destinations of a workspace were told because of a message, in order, and then what is still to
// come. A change that a later one overtook before it was sent is not among it.
func (s *Store) Trace(ctx context.Context, workspace int32, messageID string, who []Involved) ([]Traced, error) {
	const query = `
		WITH who AS (
			SELECT lane, segment_id, profile_id
			FROM unnest(@lanes::smallint[], @segments::bigint[], @profiles::uuid[]) AS t (lane, segment_id, profile_id)
		)
		SELECT d.destination_id, t.key, d.segment_id, d.profile_id, d.entered, d.outcome, d.reason, a.number, a.status,
			d.changed_at, d.at AS at, NULL::bigint AS subscription_id
		FROM who
		JOIN deliveries d USING (lane, segment_id, profile_id)
		JOIN activation_attempts a ON a.lane = d.lane AND a.id = d.attempt_id
		JOIN destinations t ON t.id = d.destination_id
		WHERE t.workspace_id = @workspace AND d.message_id = @message
		UNION ALL
		SELECT a.destination_id, t.key, a.segment_id, a.profile_id, a.wanted, a.status, a.reason, 0, 0, a.changed_at, NULL, NULL
		FROM who
		JOIN destinations t ON t.workspace_id = @workspace
		JOIN activations a ON a.lane = who.lane AND a.destination_id = t.id AND a.segment_id = who.segment_id
			AND a.profile_id = who.profile_id
		WHERE a.message_id = @message AND a.status <> 'settled'
		UNION ALL
		SELECT d.destination_id, t.key, 0, d.profile_id, true, d.outcome, d.reason, a.number, a.status, d.changed_at, d.at,
			d.subscription_id
		FROM deliveries d
		JOIN activation_attempts a ON a.lane = d.lane AND a.id = d.attempt_id
		JOIN destinations t ON t.id = d.destination_id
		WHERE d.lane = ANY(@all::smallint[]) AND d.message_id = @message AND d.subscription_id IS NOT NULL
			AND t.workspace_id = @workspace
		UNION ALL
		SELECT c.destination_id, t.key, 0, c.person, true, c.status, c.reason, 0, 0, c.received_at, NULL, c.subscription_id
		FROM destinations t
		JOIN conversions c ON c.lane = ANY(@all::smallint[]) AND c.destination_id = t.id AND c.message_id = @message
		WHERE t.workspace_id = @workspace AND c.status <> 'sent'
		ORDER BY at NULLS LAST, destination_id, segment_id, profile_id`
	var (
		lanes    []int16
		segments []int64
		profiles []ProfileID
	)
	for _, w := range who {
		lanes, segments, profiles = append(lanes, int16(w.Lane)), append(segments, w.Segment), append(profiles, w.Profile)
	}
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"workspace": workspace, "message": messageID, "all": laneNumbers(s.lanes), "lanes": lanes, "segments": segments, "profiles": profiles,
	})
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Traced])
	if err != nil {
		return nil, fmt.Errorf("trace deliveries: %w", err)
	}
	return list, nil
}

package activation

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Delivery is one person in one attempt: a line of the ledger.
type Delivery struct {
	ID         int64
	Segment    int64
	Profile    ProfileID
	Version    int64
	Entered    bool
	Outcome    string // of the person
	Reason     string
	At         time.Time // when the outcome was known
	ChangedAt  time.Time // when the membership changed
	MessageID  string    // of the event that caused the change
	Cause      string
	MessageKey string // of the message to the partner: a webhook's id
	Attempt    int    // at that message, from 1
	HTTPStatus int    // 0 if there was no answer
	Latency    time.Duration
	Excerpt    string // of the answer, redacted

	// Of an event: which subscription selected it, and its name. Then there is no segment, and Version says nothing. The
	// profile is that of the person when it was sent, ChangedAt when we received it.
	Subscription *int64
	Event        string
}

// DeliveryFilter selects from the ledger. Zero fields select everything.
type DeliveryFilter struct {
	Segment    int64
	Profile    *ProfileID
	Outcome    Class
	HTTPStatus int
	Before     int64 // ids below it: where the previous page ended
	Limit      int   // required
}

// Deliveries returns a page of a destination's ledger, the newest lines first.
func (s *Store) Deliveries(ctx context.Context, workspace int32, ref string, f DeliveryFilter) ([]Delivery, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return nil, err
	}
	const query = `
		SELECT d.id, d.segment_id, d.profile_id, d.version, d.entered, d.outcome, d.reason, d.at, d.changed_at,
			d.message_id, d.cause, a.message_key, a.number, a.status, a.latency_us * interval '1 microsecond', a.excerpt,
			d.subscription_id, d.event
		FROM generate_series(0, @lanes - 1) AS l (lane)
		CROSS JOIN LATERAL (
			SELECT d.*
			FROM deliveries d
			WHERE d.lane = l.lane::smallint AND d.destination_id = @destination AND (@before = 0 OR d.id < @before)
				AND (@segment = 0 OR d.segment_id = @segment)
				AND (@profile::uuid IS NULL OR d.profile_id = @profile)
				AND (@outcome = '' OR d.outcome = @outcome)
				AND (@status = 0 OR EXISTS (
					SELECT
					FROM activation_attempts a
					WHERE a.lane = d.lane AND a.id = d.attempt_id AND a.status = @status))
			ORDER BY d.id DESC
			LIMIT @limit
		) d
		JOIN activation_attempts a ON a.lane = d.lane AND a.id = d.attempt_id
		ORDER BY d.id DESC
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"lanes": s.lanes, "destination": id, "before": f.Before, "segment": f.Segment, "profile": f.Profile,
		"outcome": string(f.Outcome), "status": f.HTTPStatus, "limit": f.Limit,
	})
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Delivery])
	if err != nil {
		return nil, fmt.Errorf("list deliveries of destination %q: %w", ref, err)
	}
	return list, nil
}

// Summary counts the people of a destination's ledger.
type Summary struct {
	Wanted      int64 // should be there
	Sent        int64 // are there, as far as is known
	Accepted    int64 // the partner works on what it was told of them
	Unknown     int64 // may be there or not: an attempt's outcome is unknown
	Pending     int64 // wait to be sent, or are being sent
	Unreachable int64 // should be there, but the partner cannot know them by anything
	Parked      int64 // given up after the schedule's end
	Failed      int64 // refused
	Denied      int64 // in the segment, but without the consent that the destination asks for
	Drift       int64 // are there and should not be, or could be there and are not, for whatever reason
}

// counts are a Summary's columns.
const counts = `
			count(*) FILTER (WHERE wanted),
			count(*) FILTER (WHERE sent),
			count(*) FILTER (WHERE status = 'accepted'),
			count(*) FILTER (WHERE sent IS NULL),
			count(*) FILTER (WHERE status IN ('pending', 'claimed')),
			count(*) FILTER (WHERE status = 'unreachable'),
			count(*) FILTER (WHERE status = 'parked'),
			count(*) FILTER (WHERE status = 'failed'),
			count(*) FILTER (WHERE member AND NOT allowed),
			count(*) FILTER (WHERE sent IS DISTINCT FROM wanted AND status <> 'unreachable')`

// Summary returns the counts of a destination, or of one of its segments if segment is not 0.
func (s *Store) Summary(ctx context.Context, workspace int32, ref string, segment int64) (Summary, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return Summary{}, err
	}
	const query = `
		SELECT` + counts + `
		FROM activations
		WHERE lane BETWEEN 0 AND @lanes - 1 AND destination_id = @destination AND (@segment = 0 OR segment_id = @segment)`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": s.lanes, "destination": id, "segment": segment})
	sum, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Summary])
	if err != nil {
		return Summary{}, fmt.Errorf("summarize destination %q: %w", ref, err)
	}
	return sum, nil
}

// Summaries returns the counts of each segment that a destination was told about.
func (s *Store) Summaries(ctx context.Context, workspace int32, ref string) (map[int64]Summary, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return nil, err
	}
	const query = `
		SELECT segment_id,` + counts + `
		FROM activations
		WHERE lane BETWEEN 0 AND @lanes - 1 AND destination_id = @destination
		GROUP BY segment_id`
	type row struct {
		Segment int64
		Summary
	}
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": s.lanes, "destination": id})
	list, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (x row, err error) {
		err = r.Scan(&x.Segment, &x.Wanted, &x.Sent, &x.Accepted, &x.Unknown, &x.Pending, &x.Unreachable, &x.Parked,
			&x.Failed, &x.Denied, &x.Drift)
		return x, err
	})
	if err != nil {
		return nil, fmt.Errorf("summarize segments of destination %q: %w", ref, err)
	}
	all := make(map[int64]Summary, len(list))
	for _, x := range list {
		all[x.Segment] = x.Summary
	}
	return all, nil
}

// FailureCount is how many people are not as they should be at a destination, or how many events were not sent, for one
// reason.
type FailureCount struct {
	Segment int64
	Status  string // failed, parked, unreachable, expired or forgotten (events only), pending (to be tried again, or waiting for somebody or for an audience), or refused (the partner said how many, not who)
	Reason  string
	Count   int64
	Last    time.Time // when it last happened; of refused ones within the time that the ledger is kept

	Subscription *int64 // of events: then there is no segment
}

// Failures returns what is wrong at a destination, or for one of its segments if segment is not 0, the most frequent first.
func (s *Store) Failures(ctx context.Context, workspace int32, ref string, segment int64, limit int) ([]FailureCount, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return nil, err
	}
	// A row that failed or was parked has the time of that as its next_at; for others it is the best that is known.
	const query = `
		SELECT a.segment_id, a.status, r.reason, count(*) AS n, least(max(a.next_at), now()), NULL::bigint AS subscription_id
		FROM destinations d
		JOIN activations a ON a.lane BETWEEN 0 AND @lanes - 1 AND a.destination_id = d.id
		LEFT JOIN destination_segments s ON s.destination_id = d.id AND s.segment_id = a.segment_id
		CROSS JOIN LATERAL (
			SELECT CASE
				WHEN a.reason <> '' OR a.status <> 'pending' THEN a.reason
				WHEN d.status <> 'active' THEN concat_ws(': ', 'the destination is ' || d.status, nullif(d.status_reason, ''))
				WHEN s.ready_at > now() THEN concat_ws(': ', 'waits for the audience', nullif(s.audience_reason, ''))
				ELSE '' END AS reason
		) r
		WHERE d.id = @destination AND (@segment = 0 OR a.segment_id = @segment)
			AND a.status IN ('failed', 'parked', 'unreachable', 'pending') AND r.reason <> ''
		GROUP BY a.segment_id, a.status, r.reason
		UNION ALL
		SELECT r.segment_id, 'refused', c.value ->> 'reason', sum((c.value ->> 'count')::bigint)::bigint, max(r.done_at), NULL
		FROM activation_receipts r
		CROSS JOIN LATERAL jsonb_array_elements(r.counts) AS c (value)
		WHERE r.destination_id = @destination AND (@segment = 0 OR r.segment_id = @segment) AND r.done_at IS NOT NULL
		GROUP BY r.segment_id, c.value ->> 'reason'
		UNION ALL
		SELECT 0, status, reason, count(*), least(max(coalesce(done_at, next_at)), now()), subscription_id
		FROM conversions
		WHERE lane BETWEEN 0 AND @lanes - 1 AND destination_id = @destination AND @segment = 0
			AND reason <> '' AND status IN ('failed', 'parked', 'pending')
		GROUP BY subscription_id, status, reason
		UNION ALL
		SELECT 0, outcome, reason, sum(events)::bigint, max(last_at), subscription_id
		FROM conversion_counts
		WHERE lane BETWEEN 0 AND @lanes - 1 AND destination_id = @destination AND @segment = 0
			AND outcome IN ('expired', 'forgotten')
		GROUP BY subscription_id, outcome, reason
		ORDER BY n DESC, segment_id, subscription_id, status, reason
		LIMIT @limit`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"lanes": s.lanes, "destination": id, "segment": segment, "limit": limit,
	})
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[FailureCount])
	if err != nil {
		return nil, fmt.Errorf("list failures of destination %q: %w", ref, err)
	}
	return list, nil
}

// State is what the ledger knows of one person in one segment at a destination.
type State struct {
	Segment   int64
	Profile   ProfileID
	Wanted    bool
	Member    bool  // in the segment
	Allowed   bool  // has given the consent that the destination asks for, as far as was asked
	Sent      *bool // nil if an attempt's outcome is unknown
	Version   int64
	Status    string // pending, claimed, accepted, settled, unreachable, parked or failed
	Reason    string
	Attempts  int        // failed so far
	NextAt    *time.Time // nil if nothing is to be done, or not before something else has happened
	ChangedAt time.Time
	SentAt    *time.Time
	MessageID string
	Cause     string
}

// StateFilter selects states. Zero fields select everything.
type StateFilter struct {
	Status  string
	Segment int64
	Profile *ProfileID
	Drift   bool          // only those who are there and should not be, or could be there and are not
	Since   time.Duration // and that for so long at least
	After   StateCursor
	Limit   int // required
}

// StateCursor is where a page of states ended.
type StateCursor struct {
	Lane    int
	Segment int64
	Profile ProfileID
}

// States returns a page of what the ledger knows, and where it ended; the cursor is nil on the last page.
func (s *Store) States(ctx context.Context, workspace int32, ref string, f StateFilter) ([]State, *StateCursor, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return nil, nil, err
	}
	const query = `
		SELECT a.segment_id, a.profile_id, a.wanted, a.member, a.allowed, a.sent, a.version, a.status, a.reason, coalesce(b.attempts, 0),
			nullif(a.next_at, 'infinity'), a.changed_at, a.sent_at, a.message_id, a.cause
		FROM activations a
		LEFT JOIN activation_batches b ON b.lane = a.lane AND b.id = a.batch_id
		WHERE a.lane = @lane AND a.destination_id = @destination
			AND (a.segment_id, a.profile_id) > (@after_segment, @after_profile)
			AND (@status = '' OR a.status = @status)
			AND (@segment = 0 OR a.segment_id = @segment)
			AND (@profile::uuid IS NULL OR a.profile_id = @profile)
			AND (NOT @drift OR a.sent IS DISTINCT FROM a.wanted AND a.status <> 'unreachable'
				AND a.changed_at <= now() - @since::interval)
		ORDER BY a.segment_id, a.profile_id
		LIMIT @limit`
	var list []State
	after := f.After
	for ; after.Lane < s.lanes; after = (StateCursor{Lane: after.Lane + 1}) {
		rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
			"lane": after.Lane, "destination": id, "after_segment": after.Segment, "after_profile": after.Profile,
			"status": f.Status, "segment": f.Segment, "profile": f.Profile, "drift": f.Drift, "since": f.Since,
			"limit": f.Limit - len(list),
		})
		some, err := pgx.CollectRows(rows, pgx.RowToStructByPos[State])
		if err != nil {
			return nil, nil, fmt.Errorf("list states of destination %q: %w", ref, err)
		}
		if list = append(list, some...); len(list) == f.Limit {
			last := list[len(list)-1]
			return list, &StateCursor{Lane: after.Lane, Segment: last.Segment, Profile: last.Profile}, nil
		}
	}
	return list, nil, nil
}

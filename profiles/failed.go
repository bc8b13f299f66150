package profiles

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// FailedID names a failed event.
type FailedID struct {
	Lane int
	ID   int64
}

// FailedEvent is an event that could not be applied, without what was in it.
type FailedEvent struct {
	FailedID
	Source     int32
	ReceivedAt time.Time
	FailedAt   time.Time
	Stage      string // frame, decode, fold, store, crash
	Reason     string
	SQLState   string
	Attempts   int
	Software   string
	ReplayedAt *time.Time
}

// FailedFilter selects failed events: all that is given must hold.
type FailedFilter struct {
	Stage    string
	Source   int32
	Replayed *bool
	After    *time.Time // failed at or after
	Before   *time.Time // failed before
}

func (f FailedFilter) args(args pgx.StrictNamedArgs) pgx.StrictNamedArgs {
	args["stage"], args["source"], args["replayed"] = f.Stage, f.Source, f.Replayed
	args["from"], args["until"] = f.After, f.Before
	return args
}

const (
	selectFailed = `
		SELECT lane, id, source_id, received_at, failed_at, stage, reason, sqlstate, attempts, software, replayed_at
		FROM failed_events`
	failedFilter = `
			AND (@stage = '' OR stage = @stage)
			AND (@source = 0 OR source_id = @source)
			AND (@replayed::boolean IS NULL OR (replayed_at IS NOT NULL) = @replayed)
			AND (@from::timestamptz IS NULL OR failed_at >= @from)
			AND (@until::timestamptz IS NULL OR failed_at < @until)`
)

func scanFailed(row pgx.CollectableRow) (f FailedEvent, err error) {
	err = row.Scan(&f.Lane, &f.ID, &f.Source, &f.ReceivedAt, &f.FailedAt, &f.Stage, &f.Reason, &f.SQLState, &f.Attempts,
		&f.Software, &f.ReplayedAt)
	return f, err
}

// Failed returns at most limit failed events from before a moment, the newest first.
func (r *Reader) Failed(ctx context.Context, workspace int32, filter FailedFilter, before Moment, limit int) ([]FailedEvent, error) {
	const query = selectFailed + `
		WHERE lane = ANY (@lanes) AND workspace_id = @workspace
			AND (failed_at, lane, id) < (coalesce(@at::timestamptz, 'infinity'), @at_lane, @at_seq)` + failedFilter + `
		ORDER BY failed_at DESC, lane DESC, id DESC
		LIMIT @limit`
	rows, _ := r.db.Query(ctx, query, filter.args(before.args(pgx.StrictNamedArgs{ // err: below
		"workspace": workspace, "lanes": laneList(r.lanes), "limit": limit,
	})))
	list, err := pgx.CollectRows(rows, scanFailed)
	if err != nil {
		return nil, fmt.Errorf("list failed events: %w", err)
	}
	return list, nil
}

// ToReplay returns at most limit failed events that the filter selects and that were not replayed, the oldest first.
func (r *Reader) ToReplay(ctx context.Context, workspace int32, filter FailedFilter, limit int) ([]FailedID, error) {
	const query = `
		SELECT lane, id
		FROM failed_events
		WHERE lane = ANY (@lanes) AND workspace_id = @workspace` + failedFilter + `
		ORDER BY failed_at, lane, id
		LIMIT @limit`
	unplayed := false
	filter.Replayed = &unplayed
	rows, _ := r.db.Query(ctx, query, filter.args(pgx.StrictNamedArgs{ // err: below
		"workspace": workspace, "lanes": laneList(r.lanes), "limit": limit,
	}))
	ids, err := pgx.CollectRows(rows, pgx.RowToStructByPos[FailedID])
	if err != nil {
		return nil, fmt.Errorf("select failed events: %w", err)
	}
	return ids, nil
}

// FailedMessage returns a failed event and what was in it, or [ErrNotFound]. What cannot be read as a message is returned
// as it was in the stream.
func (r *Reader) FailedMessage(ctx context.Context, workspace int32, id FailedID) (f FailedEvent, body []byte, err error) {
	const query = selectFailed + `
		WHERE lane = @lane AND id = @id AND workspace_id = @workspace`
	args := pgx.StrictNamedArgs{"lane": id.Lane, "id": id.ID, "workspace": workspace}
	rows, _ := r.db.Query(ctx, query, args) // err: below
	f, err = pgx.CollectExactlyOneRow(rows, scanFailed)
	if errors.Is(err, pgx.ErrNoRows) {
		return FailedEvent{}, nil, ErrNotFound
	}
	if err != nil {
		return FailedEvent{}, nil, fmt.Errorf("get failed event: %w", err)
	}
	const content = `SELECT message FROM failed_events WHERE lane = @lane AND id = @id AND workspace_id = @workspace`
	if err := r.db.QueryRow(ctx, content, args).Scan(&body); err != nil {
		return FailedEvent{}, nil, fmt.Errorf("get failed event's message: %w", err)
	}
	if m, err := DecodeMessage(body); err == nil {
		body = m.Body
	}
	return f, body, nil
}

// Replays returns messages that have failed events tried again, in the lanes where they failed. Each is distinct for its
// failed event, so that replaying one twice does it once. Those that are not the workspace's, or could not be read as
// messages in the first place, are left out.
func (s *Store) Replays(ctx context.Context, workspace int32, ids []FailedID) (map[FailedID]Message, error) {
	const query = `
		SELECT f.lane, f.id, f.message
		FROM failed_events AS f
		JOIN unnest(@lanes::smallint[], @ids::bigint[]) AS t (lane, id) USING (lane, id)
		WHERE f.workspace_id = @workspace`
	lanes, numbers := splitFailed(ids)
	rows, _ := s.pool.Query(ctx, query, pgx.StrictNamedArgs{"lanes": lanes, "ids": numbers, "workspace": workspace})
	messages := make(map[FailedID]Message, len(ids))
	var id FailedID
	var packed []byte
	_, err := pgx.ForEachRow(rows, []any{&id.Lane, &id.ID, &packed}, func() error {
		failed, err := DecodeMessage(packed)
		if err != nil {
			return nil // an entry that was never a message
		}
		m := Message{Kind: KindReplay, Workspace: workspace, Key: failed.Key, Received: failed.Received, Body: slices.Clone(packed)}
		binary.BigEndian.PutUint64(m.ID[:8], 1<<63|uint64(id.Lane)) // no outbox has such a number
		binary.BigEndian.PutUint64(m.ID[8:], uint64(id.ID))
		messages[id] = m
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read failed events: %w", err)
	}
	return messages, nil
}

// Replayed notes that failed events were put back into their lanes.
func (s *Store) Replayed(ctx context.Context, workspace int32, ids []FailedID) error {
	const query = `
		UPDATE failed_events AS f
		SET replayed_at = now()
		FROM unnest(@lanes::smallint[], @ids::bigint[]) AS t (lane, id)
		WHERE f.lane = t.lane AND f.id = t.id AND f.workspace_id = @workspace`
	lanes, numbers := splitFailed(ids)
	_, err := s.pool.Exec(ctx, query, pgx.StrictNamedArgs{"lanes": lanes, "ids": numbers, "workspace": workspace})
	if err != nil {
		return fmt.Errorf("note replayed events: %w", err)
	}
	return nil
}

func splitFailed(ids []FailedID) (lanes []int16, numbers []int64) {
	for _, id := range ids {
		lanes, numbers = append(lanes, int16(id.Lane)), append(numbers, id.ID)
	}
	return lanes, numbers
}

package profiles

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Traced is what became of an event, or of a decision on claims, which has no source.
type Traced struct {
	Source     int32
	ReceivedAt time.Time

	Suppressed bool // it came too late: whom it is about was forgotten

	Quarantined *QuarantinedEvent // it is kept out of profiles; nil: it is not

	Applied   bool // otherwise it failed
	Type      string
	Name      string
	Profile   Key // whose it is now
	EventAt   time.Time
	AppliedAt time.Time

	Failed FailedEvent

	Transitions []Recorded // that it caused, in order
}

// Trace returns what became of the events of a messageId: one for each source that sent it, the one received last first.
// An event that is not among them has not been flushed yet, or never came in.
func (r *Reader) Trace(ctx context.Context, workspace int32, messageID string) ([]Traced, error) {
	args := pgx.StrictNamedArgs{"workspace": workspace, "lanes": laneList(r.lanes), "message": MessageKey(messageID)}
	const applied = `
		SELECT source_id, received_at, type, name, key, event_at, applied_at
		FROM events
		WHERE lane = ANY (@lanes) AND message_key = @message AND workspace_id = @workspace`
	rows, _ := r.db.Query(ctx, applied, args) // err: below
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t Traced, err error) {
		t.Applied = true
		err = row.Scan(&t.Source, &t.ReceivedAt, &t.Type, &t.Name, &t.Profile, &t.EventAt, &t.AppliedAt)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("trace applied events: %w", err)
	}
	for i := range found {
		if found[i].Profile, err = r.root(ctx, workspace, found[i].Profile); err != nil {
			return nil, err
		}
	}

	decided, err := r.decided(ctx, workspace, args)
	if err != nil {
		return nil, err
	}
	found = append(found, decided...)

	const failed = selectFailed + `
		WHERE lane = ANY (@lanes) AND message_key = @message AND workspace_id = @workspace
		ORDER BY failed_at DESC`
	rows, _ = r.db.Query(ctx, failed, args) // err: below
	failures, err := pgx.CollectRows(rows, scanFailed)
	if err != nil {
		return nil, fmt.Errorf("trace failed events: %w", err)
	}
	for _, f := range failures {
		if !slices.ContainsFunc(found, func(t Traced) bool { return t.Source == f.Source }) {
			found = append(found, Traced{Source: f.Source, ReceivedAt: f.ReceivedAt, Failed: f})
		}
	}

	const quarantined = `
		SELECT lane, id, source_id, message_id, received_at, quarantined_at, type, event, reason, violations, NULL::bytea
		FROM quarantined_events
		WHERE lane = ANY (@lanes) AND message_key = @message AND workspace_id = @workspace`
	rows, _ = r.db.Query(ctx, quarantined, args) // err: below
	held, err := pgx.CollectRows(rows, scanQuarantined)
	if err != nil {
		return nil, fmt.Errorf("trace quarantined events: %w", err)
	}
	for _, q := range held {
		if !slices.ContainsFunc(found, func(t Traced) bool { return t.Source == q.Source }) {
			found = append(found, Traced{Source: q.Source, ReceivedAt: q.ReceivedAt, Quarantined: &q})
		}
	}

	const suppressed = `
		SELECT source_id, received_at
		FROM suppressed_events
		WHERE lane = ANY (@lanes) AND message_key = @message AND workspace_id = @workspace`
	rows, _ = r.db.Query(ctx, suppressed, args) // err: below
	late, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t Traced, err error) {
		t.Suppressed = true
		err = row.Scan(&t.Source, &t.ReceivedAt)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("trace suppressed events: %w", err)
	}
	for _, s := range late {
		found = slices.DeleteFunc(found, func(t Traced) bool { return t.Source == s.Source && !t.Applied })
		if !slices.ContainsFunc(found, func(t Traced) bool { return t.Source == s.Source }) {
			found = append(found, s)
		}
	}

	const caused = `
		SELECT at, lane, seq, segment_id, profile_id, entered, cause, cause_source_id, cause_message_id
		FROM transitions
		WHERE lane = ANY (@lanes) AND cause_message_key = @message AND workspace_id = @workspace
		ORDER BY at, lane, seq`
	rows, _ = r.db.Query(ctx, caused, args) // err: below
	transitions, err := pgx.CollectRows(rows, scanRecorded)
	if err != nil {
		return nil, fmt.Errorf("trace transitions: %w", err)
	}
	for _, t := range transitions {
		for i := range found {
			if found[i].Source == t.Cause.Source {
				found[i].Transitions = append(found[i].Transitions, t)
			}
		}
	}
	slices.SortFunc(found, func(a, b Traced) int {
		return cmp.Or(b.ReceivedAt.Compare(a.ReceivedAt), cmp.Compare(a.Source, b.Source))
	})
	return found, nil
}

// decided returns what is known of a decision on claims: that a lane has taken it in.
func (r *Reader) decided(ctx context.Context, workspace int32, args pgx.StrictNamedArgs) ([]Traced, error) {
	const query = `
		SELECT key, void, decided_at, applied_at
		FROM decisions
		WHERE lane = ANY (@lanes) AND workspace_id = @workspace AND message_key = @message`
	rows, _ := r.db.Query(ctx, query, args) // err: below
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t Traced, err error) {
		var void bool
		t.Applied, t.Type = true, "remerge"
		if err = row.Scan(&t.Profile, &void, &t.EventAt, &t.AppliedAt); void {
			t.Type = "unmerge"
		}
		t.ReceivedAt = t.EventAt
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("trace decisions: %w", err)
	}
	for i := range found {
		if found[i].Profile, err = r.root(ctx, workspace, found[i].Profile); err != nil {
			return nil, err
		}
	}
	return found, nil
}

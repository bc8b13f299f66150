package collector

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// HealthWriter writes what became of the events of each source to Postgres every few seconds: for each minute of the last
// day and each hour of the last 90 days, with the reasons why events were rejected or violated the plan. It counts what came
// in, also what came in twice. A process that dies takes what it has not written with it; while Postgres is down it is kept.
type HealthWriter struct {
	tallies *tallies
	pool    *pgxpool.Pool
	log     *slog.Logger
}

// NewHealthWriter returns a writer of what comes in through in.
func NewHealthWriter(in *Intake, pool *pgxpool.Pool, log *slog.Logger) *HealthWriter {
	return &HealthWriter{tallies: in.tallies, pool: pool, log: log}
}

const (
	healthEvery   = 3 * time.Second
	healthTimeout = 5 * time.Second
	keepMinutes   = 25 * time.Hour
	keepHours     = 90 * 24 * time.Hour
	keepSamples   = 20 // of rejected events, per source
)

// Run writes until ctx ends, then once more, and returns nil.
func (w *HealthWriter) Run(ctx context.Context) error {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	var tidied time.Time
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.write(context.WithoutCancel(ctx))
			return nil
		}
		w.write(ctx)
		if time.Since(tidied) > 10*time.Minute {
			tidied = time.Now()
			w.tidy(ctx)
		}
	}
}

// write writes what was added since the last time.
func (w *HealthWriter) write(ctx context.Context) {
	taken := w.tallies.take()
	if len(taken) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	if err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error { return writeTallies(ctx, tx, taken, time.Now()) }); err != nil {
		w.tallies.giveBack(taken)
		w.log.WarnContext(ctx, "the health of sources is not written, will try again", "err", err)
	}
}

func writeTallies(ctx context.Context, tx pgx.Tx, taken map[int32]*sourceTally, now time.Time) error {
	// A bucket's skew is an array, which unnest would flatten: it goes as text.
	const health = `
		INSERT INTO source_health AS h (source_id, span, at, workspace_id, accepted, rejected, unavailable, quarantined, flagged, bots,
		                                skew, last_seen_at)
		SELECT source_id, span, date_trunc(span, @now::timestamptz, 'UTC'), workspace_id, accepted, rejected, unavailable, quarantined,
		       flagged, bots, skew::bigint[], last_seen_at
		FROM unnest(@sources::integer[], @workspaces::integer[], @accepted::bigint[], @rejected::bigint[], @unavailable::bigint[],
		            @quarantined::bigint[], @flagged::bigint[], @bots::bigint[], @skew::text[], @seen::timestamptz[])
		     AS t (source_id, workspace_id, accepted, rejected, unavailable, quarantined, flagged, bots, skew, last_seen_at)
		CROSS JOIN (VALUES ('hour'), ('minute')) AS s (span)
		ORDER BY source_id, span
		ON CONFLICT (source_id, span, at) DO UPDATE
		SET accepted     = h.accepted + excluded.accepted,
		    rejected     = h.rejected + excluded.rejected,
		    unavailable  = h.unavailable + excluded.unavailable,
		    quarantined  = h.quarantined + excluded.quarantined,
		    flagged      = h.flagged + excluded.flagged,
		    bots         = h.bots + excluded.bots,
		    skew         = ARRAY(
		        SELECT a + b FROM unnest(h.skew, excluded.skew) WITH ORDINALITY AS t (a, b, i) ORDER BY i),
		    last_seen_at = greatest(h.last_seen_at, excluded.last_seen_at)`
	const faults = `
		INSERT INTO source_faults AS f (source_id, hour, outcome, event, reason, workspace_id, events)
		SELECT source_id, date_trunc('hour', @now::timestamptz, 'UTC'), outcome, event, reason, workspace_id, events
		FROM unnest(@sources::integer[], @workspaces::integer[], @outcomes::text[], @events::text[], @reasons::text[], @counts::bigint[])
		     AS t (source_id, workspace_id, outcome, event, reason, events)
		ORDER BY source_id, outcome, event, reason
		ON CONFLICT (source_id, hour, outcome, event, reason) DO UPDATE SET events = f.events + excluded.events`
	const samples = `
		INSERT INTO source_rejects (workspace_id, source_id, at, type, code, pointer, reason)
		SELECT workspace_id, source_id, at, type, code, pointer, reason
		FROM unnest(@workspaces::integer[], @sources::integer[], @at::timestamptz[], @types::text[], @codes::text[], @pointers::text[],
		            @reasons::text[]) AS t (workspace_id, source_id, at, type, code, pointer, reason)`
	var ids, workspaces, faultIDs, faultWorkspaces, sampleIDs, sampleWorkspaces []int32
	var counts [tallyCounts][]int64
	var skew, outcomes, events, reasons, types, codes, pointers, why []string
	var seen, at []time.Time
	var times []int64
	for _, id := range slices.Sorted(maps.Keys(taken)) {
		s := taken[id]
		ids, workspaces, seen = append(ids, id), append(workspaces, s.workspace), append(seen, s.lastSeen)
		for i, n := range s.counts {
			counts[i] = append(counts[i], n)
		}
		skew = append(skew, arrayText(s.skew[:]))
		for _, f := range slices.SortedFunc(maps.Keys(s.faults), compareFaults) {
			faultIDs, faultWorkspaces = append(faultIDs, id), append(faultWorkspaces, s.workspace)
			outcomes, events, reasons = append(outcomes, f.outcome), append(events, f.event), append(reasons, f.reason)
			times = append(times, s.faults[f])
		}
		for _, r := range s.samples {
			sampleIDs, sampleWorkspaces, at = append(sampleIDs, id), append(sampleWorkspaces, s.workspace), append(at, r.At)
			types, codes = append(types, r.Type), append(codes, r.Code)
			pointers, why = append(pointers, r.Pointer), append(why, r.Reason)
		}
	}
	batch := &pgx.Batch{}
	batch.Queue(health, pgx.StrictNamedArgs{
		"now": now, "sources": ids, "workspaces": workspaces, "accepted": counts[countAccepted], "rejected": counts[countRejected],
		"unavailable": counts[countUnavailable], "quarantined": counts[countQuarantined], "flagged": counts[countFlagged],
		"bots": counts[countBots], "skew": skew, "seen": seen,
	})
	if len(faultIDs) > 0 {
		batch.Queue(faults, pgx.StrictNamedArgs{
			"now": now, "sources": faultIDs, "workspaces": faultWorkspaces, "outcomes": outcomes, "events": events, "reasons": reasons,
			"counts": times,
		})
	}
	if len(sampleIDs) > 0 {
		batch.Queue(samples, pgx.StrictNamedArgs{
			"sources": sampleIDs, "workspaces": sampleWorkspaces, "at": at, "types": types, "codes": codes, "pointers": pointers,
			"reasons": why,
		})
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("write the health of sources: %w", err)
	}
	return nil
}

// arrayText returns numbers as Postgres writes an array of them.
func arrayText(list []int64) string {
	b := []byte{'{'}
	for i, n := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Append(b, n)
	}
	return string(append(b, '}'))
}

// tidy deletes what is too old, and all but the last samples.
func (w *HealthWriter) tidy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	batch := &pgx.Batch{}
	batch.Queue(`DELETE FROM source_health WHERE span = 'minute' AND at < $1`, time.Now().Add(-keepMinutes))
	batch.Queue(`DELETE FROM source_health WHERE span = 'hour' AND at < $1`, time.Now().Add(-keepHours))
	batch.Queue(`DELETE FROM source_faults WHERE hour < $1`, time.Now().Add(-keepHours))
	batch.Queue(`
		DELETE FROM source_rejects AS r
		USING (SELECT id, row_number() OVER (PARTITION BY source_id ORDER BY id DESC) AS place FROM source_rejects) AS t
		WHERE r.id = t.id AND (t.place > $1 OR r.at < $2)`, keepSamples, time.Now().Add(-keepHours))
	if err := w.pool.SendBatch(ctx, batch).Close(); err != nil && ctx.Err() == nil {
		w.log.WarnContext(ctx, "the health of sources is not tidied, will try again", "err", err)
	}
}

// Flow is what came in in a while.
type Flow struct {
	At          time.Time // when it began
	Accepted    int64
	Rejected    int64
	Unavailable int64 // answered with 503
	Quarantined int64 // of those accepted
	Flagged     int64
	Bots        int64
}

// SourceHealth is how a source is.
type SourceHealth struct {
	LastSeenAt *time.Time
	Minutes    []Flow // of the last hour in which something came in, the newest first
	Hours      []Flow // of the last 24
	Skew       Skew   // of the last 24 hours
	Faults     []FaultCount
	Samples    []RejectedSample // the last ones, the newest first
}

// Skew is how far clients' clocks are behind ours, as far as that can be told from how long their events took.
type Skew struct {
	Events      int64
	Median, P95 time.Duration // P95 without regard to the sign
}

// FaultCount is how often something became of events of a name for a reason.
type FaultCount struct {
	At      time.Time // when the hour or the day began; zero if it was not asked by time
	Outcome string    // rejected, allowed, flagged or quarantined
	Event   string
	Reason  string
	Events  int64
}

// Health returns how a source was a few seconds ago.
func (s *SourceStore) Health(ctx context.Context, workspaceID, sourceID int32) (h SourceHealth, err error) {
	const last = `SELECT max(last_seen_at) FROM source_health WHERE source_id = @source AND workspace_id = @workspace AND span = 'hour'`
	const flow = `
		SELECT at, accepted, rejected, unavailable, quarantined, flagged, bots
		FROM source_health
		WHERE source_id = @source AND workspace_id = @workspace AND span = @span AND at > now() - @since::interval
		ORDER BY at DESC`
	const skew = `
		SELECT i::integer, sum(n)::bigint
		FROM source_health, unnest(skew) WITH ORDINALITY AS t (n, i)
		WHERE source_id = @source AND workspace_id = @workspace AND span = 'hour' AND at > now() - interval '24 hours' AND n > 0
		GROUP BY i
		ORDER BY i`
	const rejects = `
		SELECT at, type, code, pointer, reason
		FROM source_rejects
		WHERE source_id = @source AND workspace_id = @workspace
		ORDER BY id DESC
		LIMIT @limit`
	args := pgx.StrictNamedArgs{"source": sourceID, "workspace": workspaceID}
	with := func(name string, value any, more ...any) pgx.StrictNamedArgs {
		all := maps.Clone(args)
		all[name] = value
		for i := 0; i < len(more); i += 2 {
			all[more[i].(string)] = more[i+1]
		}
		return all
	}
	rows, _ := s.db.Query(ctx, last, args) // err: below
	if h.LastSeenAt, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[*time.Time]); err != nil {
		return h, fmt.Errorf("read when a source was seen: %w", err)
	}
	for _, part := range []struct {
		span  string
		since time.Duration
		to    *[]Flow
	}{{"minute", time.Hour, &h.Minutes}, {"hour", 24 * time.Hour, &h.Hours}} {
		rows, _ := s.db.Query(ctx, flow, with("span", part.span, "since", part.since)) // err: below
		if *part.to, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Flow]); err != nil {
			return h, fmt.Errorf("read the flow of a source: %w", err)
		}
	}
	rows, _ = s.db.Query(ctx, skew, args) // err: below
	var buckets [skewBuckets]int64
	var i int
	var n int64
	if _, err = pgx.ForEachRow(rows, []any{&i, &n}, func() error {
		if i <= skewBuckets {
			buckets[i-1] = n
		}
		return nil
	}); err != nil {
		return h, fmt.Errorf("read the clocks of a source: %w", err)
	}
	h.Skew = summarize(buckets)
	if h.Faults, err = s.faults(ctx, workspaceID, sourceID, time.Now().Add(-24*time.Hour), time.Now(), ""); err != nil {
		return h, err
	}
	rows, _ = s.db.Query(ctx, rejects, with("limit", maxSamples)) // err: below
	if h.Samples, err = pgx.CollectRows(rows, pgx.RowToStructByPos[RejectedSample]); err != nil {
		return h, fmt.Errorf("read rejected events of a source: %w", err)
	}
	return h, nil
}

// summarize returns what buckets of clocks amount to.
func summarize(buckets [skewBuckets]int64) (s Skew) {
	byDistance := map[int]int64{}
	for i, n := range buckets {
		s.Events += n
		byDistance[max(i-skewMiddle, skewMiddle-i)] += n
	}
	if s.Events == 0 {
		return s
	}
	var sum int64
	for i, n := range buckets {
		if sum += n; sum*2 >= s.Events {
			s.Median = bucketSkew(i)
			break
		}
	}
	sum = 0
	for _, distance := range slices.Sorted(maps.Keys(byDistance)) {
		if sum += byDistance[distance]; sum*100 >= s.Events*95 {
			s.P95 = bucketSkew(skewMiddle + distance)
			break
		}
	}
	return s
}

// Quality returns what was wrong with the events of a source, by hour or by day (UTC), from the hour of a moment to another,
// the newest first.
func (s *SourceStore) Quality(ctx context.Context, workspaceID, sourceID int32, from, until time.Time, granularity string) ([]FaultCount, error) {
	return s.faults(ctx, workspaceID, sourceID, from, until, granularity)
}

// faults is Quality, or with no granularity the sum over all of the time.
func (s *SourceStore) faults(ctx context.Context, workspaceID, sourceID int32, from, until time.Time, granularity string) ([]FaultCount, error) {
	const query = `
		SELECT CASE WHEN @granularity = '' THEN 'epoch'::timestamptz ELSE date_trunc(@granularity, hour, 'UTC') END AS at, outcome, event,
		       reason, sum(events)::bigint
		FROM source_faults
		WHERE source_id = @source AND workspace_id = @workspace AND hour >= date_trunc('hour', @from::timestamptz) AND hour < @until
		GROUP BY 1, outcome, event, reason
		ORDER BY 1 DESC, 5 DESC, outcome, event, reason`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{
		"source": sourceID, "workspace": workspaceID, "from": from, "until": until, "granularity": granularity,
	}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[FaultCount])
	if err != nil {
		return nil, fmt.Errorf("read what was wrong with events: %w", err)
	}
	return list, nil
}

package activation

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mubatch/mubatch/profiles/rule"
)

// Happened is an event that a µbatch has applied, and that has not been applied before.
type Happened struct {
	Workspace  int32
	Source     int32
	Person     ProfileID // the key of the identifier whose event it is
	MessageID  string
	Type, Name string
	At         time.Time
	Received   time.Time
	Properties jsontext.Value
	Body       []byte // all of it, as it is kept

	// Decided is what the event itself says of consent. Known says that Consent is what the person has decided, the event
	// included: it is not if the person's profile is in another lane.
	Decided map[string]bool
	Known   bool
	Consent map[string]bool
}

// Subscriptions are those of all destinations, at one moment.
type Subscriptions struct {
	version     int64
	byWorkspace map[int32][]subscribed
}

// subscribed is a destination and what it is told of.
type subscribed struct {
	destination int64
	gate        Gate
	linger      time.Duration
	filters     []filter // the first one that matches counts
}

type filter struct {
	id    int64
	where rule.Where
	EventFilter
}

// Wants tells whether any destination of a workspace is told of events.
func (s *Subscriptions) Wants(workspace int32) bool { return len(s.byWorkspace[workspace]) > 0 }

// matches returns the subscription of a destination that selects an event, if one does.
func (d *subscribed) matches(h *Happened) (subscription int64, ok bool) {
	for i := range d.filters {
		if f := &d.filters[i]; f.matches(h) {
			return f.id, true
		}
	}
	return 0, false
}

func (f *filter) matches(h *Happened) bool {
	return (len(f.Types) == 0 || slices.Contains(f.Types, h.Type)) &&
		(len(f.Names) == 0 || slices.Contains(f.Names, h.Name)) &&
		(len(f.Sources) == 0 || slices.Contains(f.Sources, h.Source)) &&
		f.where.Matches(h.Properties)
}

// subscriptionCache holds what was last read.
type subscriptionCache struct {
	mu   sync.Mutex
	last *Subscriptions
}

// AskForSubscriptions adds to a batch the question which version of the subscriptions holds in the caller's transaction,
// which must hold [ConfigLock]. Its answer is for [Ledger.Subscriptions].
func (l *Ledger) AskForSubscriptions(batch *pgx.Batch, version *int64) {
	const query = `SELECT last_value FROM event_subscription_version`
	batch.Queue(query).QueryRow(func(row pgx.Row) error { return row.Scan(version) })
}

// Subscriptions returns those of a version. It asks the database only if it has not seen them yet.
func (l *Ledger) Subscriptions(ctx context.Context, tx pgx.Tx, version int64) (*Subscriptions, error) {
	l.subscriptions.mu.Lock()
	defer l.subscriptions.mu.Unlock()
	if last := l.subscriptions.last; last != nil && last.version == version {
		return last, nil
	}
	const query = `
		SELECT ` + subscriptionColumns + `, d.workspace_id, d.purposes, d.consent_mode, d.linger
		FROM event_subscriptions s
		JOIN destinations d ON d.id = s.destination_id
		ORDER BY s.destination_id, s.id`
	fresh := &Subscriptions{version: version, byWorkspace: map[int32][]subscribed{}}
	rows, _ := tx.Query(ctx, query) // err: below
	_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
		var (
			f         filter
			d         subscribed
			workspace int32
			where     string
		)
		err := row.Scan(&f.id, &d.destination, nil, &f.Types, &f.Names, &f.Sources, &where, nil, nil, nil, nil, &workspace,
			&d.gate.Purposes, &d.gate.Mode, &d.linger)
		if err == nil {
			f.where, err = rule.ParseWhere([]byte(where))
		}
		if err != nil {
			return struct{}{}, err
		}
		list := fresh.byWorkspace[workspace]
		if n := len(list); n == 0 || list[n-1].destination != d.destination {
			list = append(list, d)
		}
		last := &list[len(list)-1]
		last.filters = append(last.filters, f)
		fresh.byWorkspace[workspace] = list
		return struct{}{}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read subscriptions: %w", err)
	}
	l.subscriptions.last = fresh
	return fresh, nil
}

// EnqueueEvents has destinations told of the events of one lane that they subscribe to, in the caller's transaction, which
// must be read committed and hold [ConfigLock]. It returns how many rows it wrote: if any, wake the dispatcher after the
// commit. An event that a destination was told of before, as far back as rows are kept, is not enqueued for it again.
//
// An event of a person who has not given the consent that a destination asks for is counted as denied, and not kept.
func (l *Ledger) EnqueueEvents(
	ctx context.Context, tx pgx.Tx, lane int, subs *Subscriptions, events []Happened,
) (n int, err error) {
	const insert = `
		INSERT INTO conversions
			(lane, destination_id, subscription_id, person, message_id, name, event_at, received_at, body, next_at)
		SELECT @lane, destination_id, subscription_id, person, message_id, name, event_at, received_at, body,
			now() + linger_us * interval '1 microsecond'
		FROM unnest(@destinations::bigint[], @subscriptions::bigint[], @persons::uuid[], @messages::text[], @names::text[],
			@at::timestamptz[], @received::timestamptz[], @bodies::bytea[], @linger::bigint[])
			AS t (destination_id, subscription_id, person, message_id, name, event_at, received_at, body, linger_us)
		ORDER BY destination_id, message_id
		ON CONFLICT (lane, destination_id, message_id) DO NOTHING`
	var (
		destinations, subscriptions, lingers []int64
		persons                              []ProfileID
		messages, names                      []string
		at, received                         []time.Time
		bodies                               [][]byte
		denied                               = map[ended]int64{}
		considered                           int
	)
	for i := range events {
		h := &events[i]
		for j := range subs.byWorkspace[h.Workspace] {
			d := &subs.byWorkspace[h.Workspace][j]
			subscription, ok := d.matches(h)
			if !ok {
				continue
			}
			considered++
			if !d.gate.mayAllow(h) {
				denied[ended{d.destination, subscription, eventDenied, noConsent}]++
				continue
			}
			destinations, subscriptions = append(destinations, d.destination), append(subscriptions, subscription)
			lingers = append(lingers, d.linger.Microseconds())
			persons, messages, names = append(persons, h.Person), append(messages, h.MessageID), append(names, h.Name)
			at, received, bodies = append(at, h.At), append(received, h.Received), append(bodies, h.Body)
		}
	}
	if considered == 0 {
		return 0, nil
	}
	var batch pgx.Batch
	if len(destinations) > 0 {
		batch.Queue(insert, pgx.StrictNamedArgs{
			"lane": lane, "destinations": destinations, "subscriptions": subscriptions, "persons": persons,
			"messages": messages, "names": names, "at": at, "received": received, "bodies": bodies, "linger": lingers,
		}).Exec(func(tag pgconn.CommandTag) error {
			n = int(tag.RowsAffected())
			return nil
		})
	}
	countEnded(&batch, lane, denied)
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return 0, fmt.Errorf("enqueue %d events of lane %d: %w", considered, lane, err)
	}
	l.events.WithLabelValues("enqueued").Add(float64(n))
	for _, events := range denied {
		l.events.WithLabelValues("denied").Add(float64(events))
	}
	return n, nil
}

// noConsent is why an event is denied.
const noConsent = "the person has not given the consent that the destination asks for"

// mayAllow tells whether a person may be sent, as far as is known where the event was applied. What is not known is found
// out before it is sent.
func (g Gate) mayAllow(h *Happened) bool {
	if h.Known {
		return g.Allows(h.Consent)
	}
	refused := Gate{Purposes: g.Purposes, Mode: NotDenied}
	return refused.Allows(h.Decided)
}

// How an event may end at a destination.
const (
	eventSent      = "sent"
	eventDenied    = "denied"    // the person has not given the consent that the destination asks for
	eventExpired   = "expired"   // older than the partner takes
	eventForgotten = "forgotten" // not sent, and its row is gone
)

// ended is an event's end at a destination.
type ended struct {
	destination, subscription int64
	outcome, reason           string
}

// countEnded counts events that came to an end and leave no row.
func countEnded(batch *pgx.Batch, lane int, all map[ended]int64) {
	if len(all) == 0 {
		return
	}
	const query = `
		INSERT INTO conversion_counts AS c (lane, destination_id, subscription_id, outcome, reason, events, last_at)
		SELECT @lane, destination_id, subscription_id, outcome, reason, events, now()
		FROM unnest(@destinations::bigint[], @subscriptions::bigint[], @outcomes::text[], @reasons::text[], @events::bigint[])
			AS t (destination_id, subscription_id, outcome, reason, events)
		ORDER BY destination_id, subscription_id, outcome, reason` + addCounts
	var (
		destinations, subscriptions, events []int64
		outcomes, reasons                   []string
	)
	for e, n := range all {
		destinations, subscriptions = append(destinations, e.destination), append(subscriptions, e.subscription)
		outcomes, reasons, events = append(outcomes, e.outcome), append(reasons, e.reason), append(events, n)
	}
	batch.Queue(query, pgx.StrictNamedArgs{
		"lane": lane, "destinations": destinations, "subscriptions": subscriptions, "outcomes": outcomes, "reasons": reasons,
		"events": events,
	})
}

// addCounts ends an insertion into conversion_counts, which is in the order of the primary key.
const addCounts = `
		ON CONFLICT (lane, destination_id, subscription_id, outcome, reason) DO UPDATE
		SET events = c.events + excluded.events, last_at = excluded.last_at`

// forgetting returns a statement that deletes conversions and counts them as forgotten, for @reason. chosen selects the ids
// of some of them, of @lane and @destination.
func forgetting(chosen string) string {
	return `
		WITH chosen AS (` + chosen + `
		), gone AS (
			DELETE FROM conversions c
			USING chosen
			WHERE c.lane = @lane AND c.destination_id = @destination AND c.id = chosen.id
			RETURNING c.subscription_id, c.status
		), counted AS (
			INSERT INTO conversion_counts AS c (lane, destination_id, subscription_id, outcome, reason, events, last_at)
			SELECT @lane::smallint, @destination::bigint, subscription_id, 'forgotten', @reason::text, count(*), now()
			FROM gone
			WHERE status NOT IN ('sent', 'denied', 'expired')
			GROUP BY subscription_id
			ORDER BY subscription_id` + addCounts + `
		)
		SELECT FROM gone`
}

// ForgetEvents deletes what a lane keeps for destinations of the events of a person, in the transaction in which it forgets
// the person: what waits to be sent, failed, or was sent, and the messages that were made of it. persons are the keys of all
// identifiers that are the person's. What is being sent just now arrives.
func (l *Ledger) ForgetEvents(ctx context.Context, tx pgx.Tx, lane int, workspace int32, persons []ProfileID) error {
	const reason = "the person was forgotten"
	const chosen = `
		SELECT id
		FROM conversions
		WHERE lane = @lane AND destination_id = @destination AND person = ANY(@persons::uuid[])
		ORDER BY id
		LIMIT @chunk
		FOR UPDATE`
	// Messages are made anew without what is gone.
	const unmake = `
		WITH made AS (
			DELETE FROM activation_batches b
			WHERE b.lane = @lane AND b.destination_id = @destination AND b.segment_id = 0 AND b.claim_token IS NULL
				AND b.id IN (
					SELECT batch_id
					FROM conversions
					WHERE lane = @lane AND destination_id = @destination AND person = ANY(@persons::uuid[])
						AND status = 'pending' AND batch_id IS NOT NULL)
			RETURNING b.id
		)
		UPDATE conversions c
		SET batch_id = NULL
		FROM made
		WHERE c.lane = @lane AND c.destination_id = @destination AND c.batch_id = made.id AND c.status = 'pending'`
	const affected = `
		SELECT DISTINCT c.destination_id
		FROM conversions c
		JOIN destinations d ON d.id = c.destination_id
		WHERE c.lane = @lane AND c.person = ANY(@persons::uuid[]) AND d.workspace_id = @workspace
		ORDER BY c.destination_id`
	rows, _ := tx.Query(ctx, affected, pgx.StrictNamedArgs{"lane": lane, "persons": persons, "workspace": workspace})
	destinations, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("find a person's conversions: %w", err)
	}
	for _, destination := range destinations {
		args := pgx.StrictNamedArgs{"lane": lane, "destination": destination, "persons": persons}
		if _, err := tx.Exec(ctx, unmake, args); err != nil {
			return fmt.Errorf("unmake messages about a person: %w", err)
		}
		args["reason"] = reason
		if _, err := inChunks(ctx, tx, forgetting(chosen), args); err != nil {
			return fmt.Errorf("forget a person's conversions: %w", err)
		}
	}
	return nil
}

package activation

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
)

// EventSummary counts the events that a destination subscribes to, each of them once.
type EventSummary struct {
	Waiting   int64 // to be sent, or being sent
	Accepted  int64 // the partner works on them
	Sent      int64
	Failed    int64 // refused
	Parked    int64 // given up after the schedule's end
	Denied    int64 // the person has not given the consent that the destination asks for
	Expired   int64 // got older than the partner takes
	Forgotten int64 // not sent, and not kept any more
}

func (s *EventSummary) add(t EventSummary) {
	s.Waiting += t.Waiting
	s.Accepted += t.Accepted
	s.Sent += t.Sent
	s.Failed += t.Failed
	s.Parked += t.Parked
	s.Denied += t.Denied
	s.Expired += t.Expired
	s.Forgotten += t.Forgotten
}

// EventSummaries returns the counts of a destination, and those of each subscription that it has or had, by its id.
func (s *Store) EventSummaries(ctx context.Context, workspace int32, ref string) (EventSummary, map[int64]EventSummary, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return EventSummary{}, nil, err
	}
	const query = `
		SELECT subscription_id,
			sum(n) FILTER (WHERE status IN ('pending', 'claimed'))::bigint,
			sum(n) FILTER (WHERE status = 'accepted')::bigint,
			sum(n) FILTER (WHERE status = 'sent')::bigint,
			sum(n) FILTER (WHERE status = 'failed')::bigint,
			sum(n) FILTER (WHERE status = 'parked')::bigint,
			sum(n) FILTER (WHERE status = 'denied')::bigint,
			sum(n) FILTER (WHERE status = 'expired')::bigint,
			sum(n) FILTER (WHERE status = 'forgotten')::bigint
		FROM (
			SELECT subscription_id, status, count(*) AS n
			FROM conversions
			WHERE lane BETWEEN 0 AND @lanes - 1 AND destination_id = @destination
				AND status NOT IN ('sent', 'denied', 'expired')
			GROUP BY subscription_id, status
			UNION ALL
			SELECT subscription_id, outcome, sum(events)
			FROM conversion_counts
			WHERE lane BETWEEN 0 AND @lanes - 1 AND destination_id = @destination
			GROUP BY subscription_id, outcome
		) c
		GROUP BY subscription_id`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"lanes": s.lanes, "destination": id}) // err: below
	var total EventSummary
	each := map[int64]EventSummary{}
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
		var (
			subscription int64
			n            [8]*int64
		)
		err := row.Scan(&subscription, &n[0], &n[1], &n[2], &n[3], &n[4], &n[5], &n[6], &n[7])
		of := func(i int) int64 {
			if n[i] == nil {
				return 0
			}
			return *n[i]
		}
		sum := EventSummary{of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7)}
		each[subscription] = sum
		total.add(sum)
		return struct{}{}, err
	})
	if err != nil {
		return EventSummary{}, nil, fmt.Errorf("summarize events of destination %q: %w", ref, err)
	}
	return total, each, nil
}

// replayEvents has events that failed or were parked sent again.
func (s *Store) replayEvents(ctx context.Context, id int64, r Replay) (total int64, err error) {
	if r.Segment != 0 || r.Everything {
		return 0, nil
	}
	const query = `
		WITH chosen AS (
			SELECT id
			FROM conversions
			WHERE lane = @lane AND destination_id = @destination AND status IN ('failed', 'parked')
				AND (@from::timestamptz IS NULL OR done_at >= @from AND done_at < @to)
			ORDER BY id
			LIMIT @chunk
			FOR UPDATE
		)
		UPDATE conversions c
		SET status = 'pending', batch_id = NULL, reason = '', next_at = now(), doubted_at = NULL, done_at = NULL
		FROM chosen
		WHERE c.lane = @lane AND c.destination_id = @destination AND c.id = chosen.id`
	args := pgx.StrictNamedArgs{"destination": id, "from": nil, "to": nil}
	if !r.From.IsZero() || !r.To.IsZero() {
		args["from"], args["to"] = r.From, r.To
	}
	for lane := range s.lanes {
		args["lane"] = lane
		n, err := inChunks(ctx, s.db, query, args)
		if total += n; err != nil {
			return total, fmt.Errorf("replay events: %w", err)
		}
	}
	return total, nil
}

// latest tells what happened lately: see [EventDryRun].
type latest interface {
	people

	// LatestEvents calls fn with events of a workspace, the newest first, until it returns false.
	LatestEvents(ctx context.Context, workspace int32, fn func(Happened) bool) error
}

// EventDryRun is what a destination would be sent of events.
type EventDryRun struct {
	Events    int         // in the message
	Denied    int         // whose person has not given the consent that the destination asks for
	Refused   []Refused   // that the partner cannot take, and why
	Requests  []Draft     // the requests that would be made, redacted
	Validated *TestResult // what the partner says of the message, if it checks without counting

	// Unselected is why the subscription would not select the sample; empty if it would. What it would be is shown all the
	// same.
	Unselected string
}

// Refused is an event that a partner cannot take.
type Refused struct {
	MessageID string
	Reason    string
}

// dryRunEvents is how many events a dry run is about, at most.
const dryRunEvents = 10

// DryRunEvents makes the message about the latest events that a subscription selects, or about a sample in the form in which
// events come in, and shows it instead of sending it. A partner that checks messages without counting them is asked to. The
// sample's person is known by no more than the sample says, and need not have consented, but is denied if the sample says
// so. How old events are is not looked at, nor is the source of a sample.
func (s *Store) DryRunEvents(
	ctx context.Context, workspace int32, ref, key string, sample jsontext.Value, who latest,
) (EventDryRun, error) {
	sub, err := s.Subscription(ctx, workspace, ref, key)
	if err != nil {
		return EventDryRun{}, err
	}
	t, err := target(ctx, s.db, s.ring, s.partners, sub.Destination)
	if err != nil {
		return EventDryRun{}, storeError(err, "try", ref)
	}
	partner, ok := t.partner.(EventPartner)
	if !ok {
		return EventDryRun{}, &UnsupportedError{"It takes audiences only: try a segment instead."}
	}
	limits := t.partner.Limits(t.Target)
	found, err := s.samples(ctx, workspace, sub, sample, who)
	if err != nil {
		return EventDryRun{}, err
	}
	var out EventDryRun
	if sample != nil {
		if out.Unselected, err = sub.unselected(sample, found[0].event.name); err != nil {
			return EventDryRun{}, err
		}
	}
	var members []claimed
	for _, m := range found {
		gate := t.gate
		if sample != nil {
			gate.Mode = NotDenied
		}
		if !gate.Allows(m.person.Consent) {
			out.Denied++
			continue
		}
		m.event.mapping = &sub.Mapping
		if reason := m.event.ready(partner, t.Target, &m); reason != "" {
			out.Refused = append(out.Refused, Refused{m.MessageID, reason})
			continue
		}
		if limits.OnePerson && len(members) > 0 && !m.sameVisitor(members[0]) {
			continue
		}
		members = append(members, m)
	}
	if len(members) == 0 {
		return out, nil
	}
	members = members[:min(len(members), max(limits.Events, limits.Members, 1))]
	l := &line{target: t, limits: limits}
	c := claim{workspace: workspace, destination: t.ID, segment: noSegment, key: "msg_dry_run", tries: 1}
	body, took, err := l.encodeEvents(&c, members)
	if err != nil {
		return EventDryRun{}, dryRunError(err)
	}
	c.body, c.members = body, members[:took]
	out.Events = took
	out.Requests, out.Validated, err = t.draft(ctx, limits, c.message(), true)
	return out, err
}

// samples returns the events that a dry run is about.
func (s *Store) samples(
	ctx context.Context, workspace int32, sub Subscription, sample jsontext.Value, who latest,
) (found []claimed, err error) {
	if sample != nil {
		now := time.Now()
		e, err := decodeEvent("", now, sample)
		if err != nil {
			return nil, &FieldError{Pointer: "/event", Detail: "must be an event, with a timestamp of RFC 3339 if it has one"}
		}
		return []claimed{{
			MessageID: e.MessageID, ChangedAt: now, person: e.sampled(),
			event: &conversion{subscription: sub.ID, name: sampleName(sample, e), at: now, body: sample},
		}}, nil
	}
	where, err := sub.check()
	if err != nil {
		return nil, fmt.Errorf("read the conditions of subscription %q: %w", sub.Key, err)
	}
	f := filter{id: sub.ID, where: where, EventFilter: sub.EventFilter}
	var keys [][16]byte
	err = who.LatestEvents(ctx, workspace, func(h Happened) bool {
		if f.matches(&h) {
			keys = append(keys, h.Person)
			found = append(found, claimed{
				Profile: h.Person, MessageID: h.MessageID, ChangedAt: h.Received,
				event: &conversion{subscription: sub.ID, name: h.Name, at: h.At, body: h.Body},
			})
		}
		return len(found) < dryRunEvents
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	persons, err := who.PeopleOf(ctx, workspace, keys)
	if err != nil {
		return nil, err
	}
	for i := range found {
		found[i].person = persons[found[i].Profile]
	}
	return found, nil
}

// unselected returns why a subscription does not select a sample, as far as its source has no part in it.
func (s Subscription) unselected(sample jsontext.Value, name string) (reason string, err error) {
	where, err := s.check()
	if err != nil {
		return "", fmt.Errorf("read the conditions of subscription %q: %w", s.Key, err)
	}
	kind := cmp.Or(unquoted(lookUp(sample, []string{"type"})), "track")
	switch {
	case len(s.Types) > 0 && !slices.Contains(s.Types, kind):
		return "its type is none of the subscription's types", nil
	case len(s.Names) > 0 && !slices.Contains(s.Names, name):
		return "its name is none of the subscription's names", nil
	case !where.Matches(lookUp(sample, []string{"properties"})):
		return "its properties do not meet the subscription's conditions", nil
	}
	return "", nil
}

// sampleName is the name by which rules would refer to a sample.
func sampleName(sample jsontext.Value, e Event) string {
	switch e.Type {
	case "page":
		return "Page Viewed"
	case "screen":
		return "Screen Viewed"
	}
	if v := lookUp(sample, []string{"event"}); v.Kind() == '"' {
		return unquoted(v)
	}
	return ""
}

// sampled is the person of a sample.
func (e Event) sampled() Person {
	var p Person
	for _, id := range []Identifier{{"user_id", e.UserID}, {"anonymous_id", e.AnonymousID}} {
		if id.Value != "" {
			p.Identifiers = append(p.Identifiers, id)
		}
	}
	p.Consent = map[string]bool{}
	decisions := membersOf(lookUp(e.Context.Raw, []string{"consent"}))
	for _, decided := range []map[string]jsontext.Value{decisions, membersOf(decisions["categoryPreferences"])} {
		for purpose, v := range decided {
			switch strings.ToLower(string(v)) {
			case "true", `"granted"`:
				p.Consent[purpose] = true
			case "false", `"denied"`:
				p.Consent[purpose] = false
			}
		}
	}
	p.Traits = map[string]jsontext.Value{}
	if traits := lookUp(e.Context.Raw, []string{"traits"}); traits != nil {
		for name, v := range membersOf(traits) {
			p.Traits[name] = v
			if (name == "email" || name == "phone") && v.Kind() == '"' {
				p.Identifiers = append(p.Identifiers, Identifier{name, unquoted(v)})
			}
		}
	}
	return p
}

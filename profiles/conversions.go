package profiles

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
)

// What activation is told of events, and what it asks about those whose events they are.

// enqueueEvents has destinations told of the events that a step applied, and returns of how many.
func (l *Lane) enqueueEvents(ctx context.Context, tx pgx.Tx, out *Outcome, version int64) (n int, err error) {
	subs, err := l.store.activation.Subscriptions(ctx, tx, version)
	if err != nil {
		return 0, err
	}
	var all []activation.Happened
	for _, a := range out.Archive {
		if subs.Wants(a.Message.Workspace) {
			all = append(all, out.happened(a))
		}
	}
	if len(all) == 0 {
		return 0, nil
	}
	return l.store.activation.EnqueueEvents(ctx, tx, l.number, subs, all)
}

// happened returns what activation is told of an event. What the person has decided is known if the profile is of this
// lane; then it includes what the event says.
func (o *Outcome) happened(a Archived) activation.Happened {
	h := activation.Happened{
		Workspace:  a.Message.Workspace,
		Source:     a.Message.Source,
		Person:     activation.ProfileID(a.Message.Key),
		MessageID:  a.event.MessageID,
		Type:       a.Type,
		Name:       a.Name,
		At:         time.UnixMilli(a.EventAt).UTC(),
		Received:   a.Message.Received.UTC(),
		Properties: a.event.Properties,
		Body:       a.Message.Body,
		Decided:    a.event.decided(),
	}
	root := a.root
	if r := o.Routes[Ref{a.Message.Workspace, a.Message.Key}]; r != nil {
		root = r.Root
	}
	if p := o.Profiles[Ref{a.Message.Workspace, root}]; p != nil {
		h.Known, h.Consent = true, p.decisions()
	}
	return h
}

// decided returns what the event itself says of consent.
func (e *Event) decided() map[string]bool {
	f := e.fragment(Key{}, Stamp{}, nil)
	if len(f.Consent) == 0 {
		return nil
	}
	decided := make(map[string]bool, len(f.Consent))
	for _, c := range f.Consent {
		decided[c.Purpose] = c.Granted
	}
	return decided
}

// PeopleOf returns what partners may be told of those whom identifiers belong to now, by the keys of the identifiers. Those
// that are nobody's, or whose profile has not arrived in its lane yet, are missing.
func (s *Store) PeopleOf(ctx context.Context, workspace int32, keys [][16]byte) (map[[16]byte]activation.Person, error) {
	const routes = `
		SELECT r.key, r.root
		FROM unnest(@lanes::smallint[], @keys::uuid[]) AS k (lane, key)
		JOIN routes r ON r.lane = k.lane AND r.workspace_id = @workspace AND r.key = k.key`
	const profiles = `
		SELECT p.id, p.state
		FROM unnest(@lanes::smallint[], @keys::uuid[]) AS k (lane, id)
		JOIN profiles p ON p.lane = k.lane AND p.workspace_id = @workspace AND p.id = k.id`
	args := func(keys []Key) pgx.StrictNamedArgs {
		lanes := make([]int16, len(keys))
		for i, k := range keys {
			lanes[i] = int16(k.Lane(s.lanes))
		}
		return pgx.StrictNamedArgs{"workspace": workspace, "lanes": lanes, "keys": keys}
	}
	root := make(map[Key]Key, len(keys)) // as far as it has been followed
	var ask []Key
	for _, k := range keys {
		if _, twice := root[k]; !twice {
			root[k] = k
			ask = append(ask, k)
		}
	}
	asked := ask
	next := map[Key]Key{}
	for range 3 { // as far as a route may lead: visitor, user, the user's family
		if len(ask) == 0 {
			break
		}
		var key, to Key
		var further []Key
		rows, _ := s.pool.Query(ctx, routes, args(ask)) // err: below
		_, err := pgx.ForEachRow(rows, []any{&key, &to}, func() error {
			if next[key] = to; to != key {
				further = append(further, to)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("find whose %d identifiers are: %w", len(asked), err)
		}
		ask = further
	}
	wanted := map[Key]bool{}
	var ids []Key
	for _, k := range asked {
		r := k
		for range 3 {
			to, ok := next[r]
			if !ok || to == r {
				break
			}
			r = to
		}
		if root[k] = r; !wanted[r] {
			wanted[r] = true
			ids = append(ids, r)
		}
	}
	found := make(map[Key]activation.Person, len(ids))
	var id Key
	var packed []byte
	rows, _ := s.pool.Query(ctx, profiles, args(ids)) // err: below
	_, err := pgx.ForEachRow(rows, []any{&id, &packed}, func() error {
		p, err := DecodeProfile(id, workspace, packed)
		if err != nil {
			return err
		}
		found[id] = p.person()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read people of %d identifiers: %w", len(asked), err)
	}
	people := make(map[[16]byte]activation.Person, len(asked))
	for _, k := range asked {
		if p, ok := found[root[k]]; ok {
			people[k] = p
		}
	}
	return people, nil
}

// LatestEvents calls fn with events of a workspace, of each lane the newest first, until it returns false. It looks at the
// newest thousands of a lane and no further.
func (s *Store) LatestEvents(ctx context.Context, workspace int32, fn func(activation.Happened) bool) error {
	const query = `
		SELECT e.source_id, e.key, e.type, e.name, e.event_at, e.received_at, e.payload
		FROM lanes l
		CROSS JOIN LATERAL (
			SELECT source_id, key, type, name, event_at, received_at, payload
			FROM events
			WHERE lane = l.lane AND seq > l.archive_seq - @deep AND workspace_id = @workspace
			ORDER BY seq DESC
			LIMIT @most
		) e
		WHERE l.lane = @lane`
	const deep, most = 5000, 500
	for lane := range s.lanes {
		rows, _ := s.pool.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
			"lane": lane, "workspace": workspace, "deep": deep, "most": most,
		})
		more := true
		for more && rows.Next() {
			h := activation.Happened{Workspace: workspace}
			var key Key
			if err := rows.Scan(&h.Source, &key, &h.Type, &h.Name, &h.At, &h.Received, &h.Body); err != nil {
				rows.Close()
				return fmt.Errorf("read the latest events of lane %d: %w", lane, err)
			}
			e, err := DecodeEvent(h.Body)
			if err != nil {
				continue // archived by another version: it is of no use as an example
			}
			h.Person, h.MessageID, h.Properties = activation.ProfileID(key), e.MessageID, e.Properties
			more = fn(h)
		}
		rows.Close()
		if err := rows.Err(); err != nil {
			return fmt.Errorf("read the latest events of lane %d: %w", lane, err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

package activation

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/profiles/rule"
)

// Subscription says which events a destination is told of, and as what.
type Subscription struct {
	ID          int64
	Destination int64
	Key         string
	EventFilter
	Mapping   Mapping
	Version   int64
	CreatedAt time.Time
	UpdatedAt time.Time
}

// EventFilter selects events. What is empty selects all.
type EventFilter struct {
	Types   []string       // track, page, …
	Names   []string       // as rules have them: "Order Completed", "Page Viewed"
	Sources []int32        // their ids
	Where   jsontext.Value // conditions on properties, as the where of a rule's event has them
}

// EventTypes are those that events may have.
var EventTypes = []string{"track", "page", "screen", "identify", "group", "alias"}

const maxListed = 100

var subscriptionForm = regexp.MustCompile(`^sub_[0-9]+$`)

// check returns the conditions of a filter, or what is wrong with it as [*FieldError]s, joined.
func (f EventFilter) check() (rule.Where, error) {
	var errs []error
	if len(f.Types) == 0 && len(f.Names) == 0 {
		errs = append(errs, &FieldError{Detail: "must have types or names: which events are meant", Code: CodeRequired})
	}
	for i, kind := range f.Types {
		if !slices.Contains(EventTypes, kind) {
			errs = append(errs, &FieldError{Pointer: "/types/" + strconv.Itoa(i), Detail: "must be one of " + strings.Join(EventTypes, ", ")})
		}
	}
	if len(f.Names) > maxListed {
		errs = append(errs, &FieldError{Pointer: "/names", Detail: "must be at most " + strconv.Itoa(maxListed)})
	}
	for i, name := range f.Names {
		if name == "" || len(name) > 200 {
			errs = append(errs, &FieldError{Pointer: "/names/" + strconv.Itoa(i), Detail: "must be of 1 to 200 bytes"})
		}
	}
	if len(f.Sources) > maxListed {
		errs = append(errs, &FieldError{Pointer: "/sources", Detail: "must be at most " + strconv.Itoa(maxListed)})
	}
	where := rule.Where{}
	if f.Where != nil {
		var err error
		var wrong *rule.Error
		if where, err = rule.ParseWhere(f.Where); errors.As(err, &wrong) {
			for _, p := range wrong.Problems {
				errs = append(errs, &FieldError{Pointer: "/where" + strings.TrimPrefix(p.Pointer, "#"), Detail: p.Detail})
			}
		}
	}
	return where, errors.Join(errs...)
}

// NewSubscription is what somebody gives to make a [Subscription], or to replace one.
type NewSubscription struct {
	EventFilter
	Mapping Mapping
	Version int64 // that the caller has seen; 0 if it does not care
}

// Subscribe has a destination told of the events that happen from now on and that a filter selects, under a key. Another
// subscription of that key it replaces; then what has not been tried goes by the new mapping. [ErrUnsupported] says that the partner
// takes no events, [ErrStale] that somebody else changed it since n.Version; what is wrong with the request is reported as
// [*FieldError]s, joined.
func (s *Store) Subscribe(
	ctx context.Context, workspace int32, ref, key string, n NewSubscription,
) (made Subscription, created bool, err error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return Subscription{}, false, err
	}
	t, err := target(ctx, s.db, s.ring, s.partners, id)
	if err != nil {
		return Subscription{}, false, storeError(err, "subscribe", ref)
	}
	if err := s.checkSubscription(t, key, &n); err != nil {
		return Subscription{}, false, err
	}
	mapping, err := json.Marshal(n.Mapping, json.Deterministic(true))
	if err != nil {
		return Subscription{}, false, &FieldError{Pointer: "/mapping", Detail: "must be JSON"}
	}
	const present = `
		SELECT version
		FROM event_subscriptions
		WHERE destination_id = @id AND key = @key
		FOR UPDATE`
	const upsert = `
		INSERT INTO event_subscriptions AS s (destination_id, key, types, names, sources, conditions, mapping)
		VALUES (@id, @key, @types, @names, @sources, @conditions, @mapping)
		ON CONFLICT (destination_id, key) DO UPDATE
		SET types = @types, names = @names, sources = @sources, conditions = @conditions, mapping = @mapping,
			version = s.version + 1, updated_at = now()`
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := lockConfig(ctx, tx); err != nil {
			return err
		}
		args := pgx.StrictNamedArgs{"id": id, "key": key}
		var version int64
		err := tx.QueryRow(ctx, present, args).Scan(&version)
		if created = errors.Is(err, pgx.ErrNoRows); err != nil && !created {
			return err
		}
		if n.Version != 0 && n.Version != version {
			return ErrStale
		}
		args["types"], args["names"], args["sources"] = orNone(n.Types), orNone(n.Names), orNone(n.Sources)
		args["conditions"], args["mapping"] = string(n.Where), string(mapping)
		if _, err := tx.Exec(ctx, upsert, args); err != nil {
			return err
		}
		return subscriptionsChanged(ctx, tx)
	})
	if err != nil {
		return Subscription{}, false, storeError(err, "subscribe", ref)
	}
	made, err = s.Subscription(ctx, workspace, ref, key)
	return made, created, err
}

func orNone[T any](list []T) []T { return append([]T{}, list...) }

// checkSubscription tells what is wrong with a subscription, and writes its conditions in their canonical form.
func (s *Store) checkSubscription(t served, key string, n *NewSubscription) error {
	partner, ok := t.partner.(EventPartner)
	if !ok {
		return &UnsupportedError{"It takes audiences only: attach segments instead."}
	}
	where, err := n.check()
	errs := []error{err}
	if !keyForm.MatchString(key) || subscriptionForm.MatchString(key) {
		errs = append(errs, &FieldError{Pointer: "/key", Detail: "must be 1 to 63 of a-z, 0-9, _ and -, begin with a letter or digit, and not look like an id"})
	}
	if err := n.Mapping.check(); err != nil {
		errs = append(errs, under("/mapping", err))
	} else {
		errs = append(errs, under("/mapping", partner.CheckMapping(t.Target, n.Mapping)))
	}
	for i, name := range n.Names {
		if _, ok := partner.MapEvent(t.Target, name); !ok && n.Mapping.Name == "" {
			errs = append(errs, &FieldError{
				Pointer: "/names/" + strconv.Itoa(i), Detail: "is no event that the partner has a name for: give mapping.name",
			})
		}
	}
	n.Where = jsontext.Value(where.String())
	return errors.Join(errs...)
}

// under returns what is wrong with a member of a body as something that is wrong with the body.
func under(member string, err error) error {
	var field *FieldError
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, e := range several.Unwrap() {
			errs = append(errs, under(member, e))
		}
		return errors.Join(errs...)
	}
	if errors.As(err, &field) {
		return &FieldError{Pointer: member + field.Pointer, Detail: field.Detail, Code: field.Code}
	}
	return err
}

// subscriptionsChanged has all µbatches from now on read the subscriptions anew. The caller holds the config lock.
func subscriptionsChanged(ctx context.Context, tx pgx.Tx) error {
	const query = `SELECT nextval('event_subscription_version')`
	_, err := tx.Exec(ctx, query)
	return err
}

const subscriptionColumns = `s.id, s.destination_id, s.key, s.types, s.names, s.sources, s.conditions, s.mapping, s.version,
			s.created_at, s.updated_at`

func scanSubscription(row pgx.CollectableRow) (s Subscription, err error) {
	var conditions, mapping string
	err = row.Scan(&s.ID, &s.Destination, &s.Key, &s.Types, &s.Names, &s.Sources, &conditions, &mapping, &s.Version,
		&s.CreatedAt, &s.UpdatedAt)
	if err == nil {
		s.Where = jsontext.Value(conditions)
		err = json.Unmarshal([]byte(mapping), &s.Mapping)
	}
	return s, err
}

// Subscription returns one of a destination's subscriptions, or [ErrNotFound].
func (s *Store) Subscription(ctx context.Context, workspace int32, ref, key string) (Subscription, error) {
	list, err := s.Subscriptions(ctx, workspace, ref)
	if err != nil {
		return Subscription{}, err
	}
	i := slices.IndexFunc(list, func(s Subscription) bool { return s.Key == key })
	if i < 0 {
		return Subscription{}, ErrNotFound
	}
	return list[i], nil
}

// Subscriptions returns all of a destination's subscriptions, the oldest first.
func (s *Store) Subscriptions(ctx context.Context, workspace int32, ref string) ([]Subscription, error) {
	id, err := s.find(ctx, workspace, ref)
	if err != nil {
		return nil, err
	}
	const query = `
		SELECT ` + subscriptionColumns + `
		FROM event_subscriptions s
		WHERE s.destination_id = @id
		ORDER BY s.id`
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"id": id})
	list, err := pgx.CollectRows(rows, scanSubscription)
	if err != nil {
		return nil, fmt.Errorf("list subscriptions of destination %q: %w", ref, err)
	}
	return list, nil
}

// Unsubscribe has a destination told of those events no more. What waits to be sent is forgotten; what is being sent is
// not called back.
func (s *Store) Unsubscribe(ctx context.Context, workspace int32, ref, key string, version int64) error {
	sub, err := s.Subscription(ctx, workspace, ref, key)
	if err != nil {
		return err
	}
	if version != 0 && version != sub.Version {
		return ErrStale
	}
	const remove = `DELETE FROM event_subscriptions WHERE id = @id`
	const waiting = `
		SELECT id
		FROM conversions
		WHERE lane = @lane AND destination_id = @destination AND subscription_id = @subscription
			AND status IN ('pending', 'failed', 'parked')
		ORDER BY id
		LIMIT @chunk
		FOR UPDATE`
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := lockConfig(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, remove, pgx.StrictNamedArgs{"id": sub.ID}); err != nil {
			return err
		}
		return subscriptionsChanged(ctx, tx)
	})
	if err != nil {
		return storeError(err, "unsubscribe", ref)
	}
	for lane := range s.lanes {
		_, err := inChunks(ctx, s.db, forgetting(waiting), pgx.StrictNamedArgs{
			"lane": lane, "destination": sub.Destination, "subscription": sub.ID, "reason": "the subscription was removed",
		})
		if err != nil {
			return storeError(err, "forget what waits for", ref)
		}
	}
	return nil
}

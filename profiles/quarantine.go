package profiles

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
)

// An event that is not as its source's plan says may be quarantined: it was accepted, and so it comes through its lane and is
// remembered there like any other, but it goes to a table instead of into a profile. Releasing it is another message to that
// lane, which takes it out of the table and applies what it has become, both in one transaction: it is released once,
// whatever crashes and however long after. What belongs to another lane by then goes there through the outbox.
//
//	KindQuarantine ─► lane ─► quarantined_events ─► KindRelease ─► lane ─► profile
//	                                                                 └─► KindMoved ─► home lane ─► profile

// Violation is one thing that is wrong with an event.
type Violation struct {
	Code    string `json:"code"`
	Pointer string `json:"pointer,omitzero"` // where in the event
	Detail  string `json:"detail,omitzero"`  // a sentence about the plan, without anything of the event
}

// Quarantined is what a message of [KindQuarantine] holds.
type Quarantined struct {
	MessageID  string
	Type       string // of the event; empty for what is not an event yet
	Event      string // its name, if it has one
	Violations []Violation
	Body       []byte // the event, cleaned; or what was received
}

// AppendQuarantined packs the body of a [KindQuarantine].
func AppendQuarantined(dst []byte, q Quarantined) ([]byte, error) {
	violations, err := json.Marshal(q.Violations)
	if err != nil {
		return nil, fmt.Errorf("pack violations: %w", err)
	}
	p := packer(append(dst, codecVersion))
	p.string(q.MessageID)
	p.string(q.Type)
	p.string(q.Event)
	p.string(string(violations))
	p.string(string(q.Body))
	return p, nil
}

// DecodeQuarantined reads what [AppendQuarantined] wrote.
func DecodeQuarantined(b []byte) (q Quarantined, err error) {
	u := unpacker{b: b}
	u.version()
	q.MessageID, q.Type, q.Event = u.string(), u.string(), u.string()
	violations := u.string()
	q.Body = u.bytes(u.len())
	if err := u.done("quarantined event"); err != nil {
		return Quarantined{}, err
	}
	if err := json.Unmarshal([]byte(violations), &q.Violations); err != nil {
		return Quarantined{}, fmt.Errorf("decode violations: %w: %w", errCorrupt, err)
	}
	return q, nil
}

// event returns the event that a message is about, if it is about one that can be read.
func (m *Message) event() (body []byte, ok bool) {
	switch m.Kind {
	case KindEvent:
		return m.Body, true
	case KindQuarantine:
		q, err := DecodeQuarantined(m.Body)
		return q.Body, err == nil && q.Type != ""
	}
	return nil, false
}

// rawKeys returns the keys of whatever may name somebody in a quarantined message that is not an event yet: every text and
// number in it, as every kind of identifier. It looks at no more than it would find in an event.
func rawKeys(m *Message, secret Secret) (keys []Key) {
	const most = 2000
	q, err := DecodeQuarantined(m.Body)
	if m.Kind != KindQuarantine || err != nil {
		return nil
	}
	d := jsontext.NewDecoder(bytes.NewReader(q.Body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	for range most {
		t, err := d.ReadToken()
		if err != nil {
			if !errors.Is(err, io.EOF) && len(keys) == 0 {
				return nil // not JSON: nobody can tell
			}
			return keys
		}
		if t.Kind() != '"' && t.Kind() != '0' || len(t.String()) > 255 {
			continue
		}
		for _, kind := range []string{UserID, AnonymousID, Email, Phone} {
			if id := (Identifier{Kind: kind, Value: t.String()}).normal(); id.Value != "" {
				keys = append(keys, secret.Key(id))
			}
		}
	}
	return keys
}

// QuarantineID names a quarantined event.
type QuarantineID struct {
	Lane int
	ID   int64
}

// ReleaseMessage returns the message that takes an event out of quarantine and has events, each of [KindEvent], applied in
// its place. It is distinct for the quarantined event.
func ReleaseMessage(workspace int32, id QuarantineID, received time.Time, events []Message) Message {
	p := packer{codecVersion}
	p.int(id.ID)
	p.uint(uint64(len(events)))
	m := Message{Kind: KindRelease, Workspace: workspace, Received: received}
	for _, e := range events {
		p.string(string(AppendMessage(nil, e)))
		m.Key = e.Key
	}
	m.Body = p
	binary.BigEndian.PutUint64(m.ID[:8], 3<<62|uint64(id.Lane)) // neither an outbox nor a failed event has such a number
	binary.BigEndian.PutUint64(m.ID[8:], uint64(id.ID))
	return m
}

func readRelease(body []byte) (id int64, events []Message, err error) {
	u := unpacker{b: body}
	u.version()
	id = u.int()
	for range u.len() {
		e, err := DecodeMessage(u.bytes(u.len()))
		if err != nil {
			return 0, nil, err
		}
		events = append(events, e)
	}
	return id, events, u.done("release")
}

// unwrap replaces messages that bring others by those. The events in them count as accepted once more. A message that cannot
// be read is left as it is, and fails as one that nobody knows. What they bring may bring others in turn: a release that
// failed comes again in a replay.
func (l *Lane) unwrap(ctx context.Context, tx pgx.Tx, messages []Message, t *tally) ([]Message, error) {
	if !slices.ContainsFunc(messages, func(m Message) bool {
		return m.Kind == KindReplay || m.Kind == KindRelease || m.Kind == KindMoved
	}) {
		return messages, nil
	}
	out := make([]Message, 0, len(messages))
	var perhapsKnown []Message // under their own messageIds
	for queue := messages; len(queue) > 0; queue = queue[1:] {
		m := &queue[0]
		switch m.Kind {
		case KindReplay, KindMoved:
			inner, err := DecodeMessage(m.Body)
			switch {
			case err != nil:
				out = append(out, *m)
			case m.Kind == KindMoved:
				perhapsKnown = append(perhapsKnown, inner)
			case inner.Kind == KindRelease || inner.Kind == KindMoved:
				queue = slices.Insert(slices.Clone(queue), 1, inner) // messages stay as they are
			default:
				t.count(&inner).accepted++
				out = append(out, inner)
			}
		case KindRelease:
			id, events, err := readRelease(m.Body)
			if err != nil {
				out = append(out, *m)
				continue
			}
			source, key, err := l.takeOut(ctx, tx, m.Workspace, id)
			if errors.Is(err, ErrNotFound) {
				continue // it was released before, or discarded
			}
			if err != nil {
				return nil, err
			}
			remembered := false
			for _, e := range events {
				switch target := e.Key.Lane(l.store.lanes); {
				case target != l.number:
					if err := l.move(ctx, tx, target, e, t); err != nil {
						return nil, err
					}
				case !remembered && e.Source == source && e.ID == key: // since it was quarantined
					remembered = true
					t.count(&e).accepted++
					out = append(out, e)
				default:
					perhapsKnown = append(perhapsKnown, e)
				}
			}
		default:
			out = append(out, *m)
		}
	}
	fresh, err := l.dedupe(ctx, tx, perhapsKnown, 0, t)
	return append(out, fresh...), err
}

// takeOut takes an event out of quarantine and returns what it was remembered by, or [ErrNotFound].
func (l *Lane) takeOut(ctx context.Context, tx pgx.Tx, workspace int32, id int64) (source int32, key Key, err error) {
	const query = `
		DELETE FROM quarantined_events
		WHERE lane = @lane AND id = @id AND workspace_id = @workspace
		RETURNING source_id, message_key`
	err = tx.QueryRow(ctx, query, pgx.StrictNamedArgs{"lane": l.number, "id": id, "workspace": workspace}).Scan(&source, &key)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, Key{}, ErrNotFound
	}
	if err != nil {
		return 0, Key{}, fmt.Errorf("take an event out of the quarantine of lane %d: %w", l.number, err)
	}
	return source, key, nil
}

// move sends an event to another lane.
func (l *Lane) move(ctx context.Context, tx pgx.Tx, target int, e Message, t *tally) error {
	t.seqs.outbox++
	o := Outgoing{Seq: t.seqs.outbox, Target: target, Message: Message{
		Kind: KindMoved, Workspace: e.Workspace, ID: outboxID(l.number, t.seqs.outbox), Key: e.Key, Received: e.Received,
		Body: AppendMessage(nil, e),
	}}
	batch := &pgx.Batch{}
	l.writeOutbox(batch, &Outcome{Outbox: []Outgoing{o}})
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("move an event out of lane %d: %w", l.number, err)
	}
	t.result.Outbox = append(t.result.Outbox, o)
	return nil
}

// apart returns the messages that are to be quarantined apart from the others. decoded holds events by their place among
// the messages.
func apart(messages []Message, decoded map[int]*Event) (others []Message, ofThose map[int]*Event, held []Message) {
	if !slices.ContainsFunc(messages, func(m Message) bool { return m.Kind == KindQuarantine }) {
		return messages, decoded, nil
	}
	ofThose = map[int]*Event{}
	for i, m := range messages {
		if m.Kind == KindQuarantine {
			held = append(held, m)
			continue
		}
		if e := decoded[i]; e != nil {
			ofThose[len(others)] = e
		}
		others = append(others, m)
	}
	return others, ofThose, held
}

// quarantine keeps events out of profiles, with what is wrong with them.
func (l *Lane) quarantine(ctx context.Context, tx pgx.Tx, held []Message, t *tally) error {
	const query = `
		INSERT INTO quarantined_events (lane, workspace_id, source_id, message_key, message_id, received_at, type, event, reason,
		                                violations, message, keys)
		SELECT @lane, workspace_id, source_id, message_key, message_id, received_at, type, event, reason, violations::jsonb, message,
		       names::uuid[]
		FROM unnest(@workspaces::integer[], @sources::integer[], @keys::uuid[], @ids::text[], @received::timestamptz[],
		            @types::text[], @events::text[], @reasons::text[], @violations::text[], @messages::bytea[], @names::text[])
		     AS t (workspace_id, source_id, message_key, message_id, received_at, type, event, reason, violations, message, names)`
	if len(held) == 0 {
		return nil
	}
	var workspaces, sources []int32
	var keys []Key
	var received []time.Time
	var ids, types, events, reasons, violations, names []string
	var messages [][]byte
	var broken []failure
	for i := range held {
		m := &held[i]
		q, err := DecodeQuarantined(m.Body)
		if err != nil {
			broken = append(broken, failure{m, "decode", err.Error(), ""})
			continue
		}
		list, err := json.Marshal(q.Violations)
		if err != nil {
			return fmt.Errorf("write violations: %w", err)
		}
		reason := "unknown"
		if len(q.Violations) > 0 {
			reason = q.Violations[0].Code
		}
		workspaces, sources, keys = append(workspaces, m.Workspace), append(sources, m.Source), append(keys, m.ID)
		ids, types, events = append(ids, clean(q.MessageID)), append(types, clean(q.Type)), append(events, clean(q.Event))
		reasons, violations = append(reasons, clean(reason)), append(violations, string(list))
		received, messages = append(received, m.Received), append(messages, AppendMessage(nil, *m))
		names = append(names, l.namedIn(m))
		t.count(m).quarantined++
	}
	if err := l.keepFailed(ctx, tx, broken, t); err != nil || len(ids) == 0 {
		return err
	}
	_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
		"lane": l.number, "workspaces": workspaces, "sources": sources, "keys": keys, "ids": ids, "received": received,
		"types": types, "events": events, "reasons": reasons, "violations": violations, "messages": messages,
		"names": names,
	})
	if err != nil {
		return fmt.Errorf("quarantine events of lane %d: %w", l.number, err)
	}
	t.result.Quarantined += len(ids)
	return nil
}

// namedIn returns the keys of all whom a message names, as the text of an array of Postgres.
func (l *Lane) namedIn(m *Message) string {
	keys := []Key{m.Key}
	if d := l.definitions[m.Workspace]; d != nil {
		var e *Event
		if body, ok := m.event(); ok {
			e, _ = parseEvent(body) // nil: whatever may name somebody
		}
		keys = named(m, e, d.Secret)
	}
	slices.SortFunc(keys, func(a, b Key) int { return bytes.Compare(a[:], b[:]) })
	list := []byte{'{'}
	for i, key := range slices.Compact(keys) {
		if i > 0 {
			list = append(list, ',')
		}
		list = hex.AppendEncode(list, key[:])
	}
	return string(append(list, '}'))
}

// dropQuarantinedBefore deletes the events that were quarantined before t.
func (s *Store) dropQuarantinedBefore(ctx context.Context, t time.Time) error {
	const query = `DELETE FROM quarantined_events WHERE quarantined_at < $1`
	if _, err := s.pool.Exec(ctx, query, t); err != nil {
		return fmt.Errorf("delete old quarantined events: %w", err)
	}
	return nil
}

// QuarantinedEvent is an event in quarantine.
type QuarantinedEvent struct {
	QuarantineID
	Source        int32
	MessageID     string
	ReceivedAt    time.Time
	QuarantinedAt time.Time
	Type          string
	Event         string
	Reason        string // the code of the first violation
	Violations    []Violation

	Body []byte // where it is asked for
}

// QuarantineFilter selects quarantined events: all that is given must hold.
type QuarantineFilter struct {
	Source int32
	Event  string
	Reason string
	From   *time.Time // quarantined at or after
	Until  *time.Time // quarantined before
	IDs    []QuarantineID
}

func (f QuarantineFilter) args(args pgx.StrictNamedArgs) pgx.StrictNamedArgs {
	args["source"], args["event"], args["reason"], args["from"], args["until"] = f.Source, f.Event, f.Reason, f.From, f.Until
	if f.IDs == nil {
		return args
	}
	lanes, ids := make([]int16, len(f.IDs)), make([]int64, len(f.IDs))
	for i, id := range f.IDs {
		lanes[i], ids[i] = int16(id.Lane), id.ID
	}
	args["id_lanes"], args["ids"] = lanes, ids
	return args
}

// Quarantine is the quarantine of all lanes, for whoever looks at it. It sees one workspace a call.
type Quarantine struct {
	db    database
	lanes int
}

// NewQuarantine returns the quarantine in db, a pool or a transaction, of an installation with that many lanes.
func NewQuarantine(db database, lanes int) *Quarantine { return &Quarantine{db: db, lanes: lanes} }

const quarantineFilter = `
			lane = ANY (@lanes) AND workspace_id = @workspace
			AND (@source = 0 OR source_id = @source)
			AND (@event = '' OR event = @event)
			AND (@reason = '' OR reason = @reason)
			AND (@from::timestamptz IS NULL OR quarantined_at >= @from)
			AND (@until::timestamptz IS NULL OR quarantined_at < @until)`

// where returns the condition of a query for what the filter selects. That for ids stands alone, so that the primary key
// finds them.
func (f QuarantineFilter) where() string {
	if f.IDs == nil {
		return quarantineFilter
	}
	return quarantineFilter + `
			AND (lane, id) IN (SELECT * FROM unnest(@id_lanes::smallint[], @ids::bigint[]))`
}

func scanQuarantined(row pgx.CollectableRow) (e QuarantinedEvent, err error) {
	var violations, packed []byte
	err = row.Scan(&e.Lane, &e.ID, &e.Source, &e.MessageID, &e.ReceivedAt, &e.QuarantinedAt, &e.Type, &e.Event, &e.Reason,
		&violations, &packed)
	if err == nil {
		err = json.Unmarshal(violations, &e.Violations)
	}
	if err != nil || packed == nil {
		return e, err
	}
	m, err := DecodeMessage(packed)
	if err != nil {
		return e, err
	}
	q, err := DecodeQuarantined(m.Body)
	e.Body = q.Body
	return e, err
}

// List returns at most limit events from before a moment, the newest first, without their bodies.
func (q *Quarantine) List(ctx context.Context, workspace int32, filter QuarantineFilter, before Moment, limit int) ([]QuarantinedEvent, error) {
	query := `
		SELECT lane, id, source_id, message_id, received_at, quarantined_at, type, event, reason, violations, NULL::bytea
		FROM quarantined_events
		WHERE (quarantined_at, lane, id) < (coalesce(@at::timestamptz, 'infinity'), @at_lane, @at_seq) AND` + filter.where() + `
		ORDER BY quarantined_at DESC, lane DESC, id DESC
		LIMIT @limit`
	return q.collect(ctx, query, filter.args(before.args(pgx.StrictNamedArgs{
		"workspace": workspace, "lanes": laneList(q.lanes), "limit": limit,
	})))
}

// Oldest returns at most limit events from after a moment, the oldest first, with their bodies.
func (q *Quarantine) Oldest(ctx context.Context, workspace int32, filter QuarantineFilter, after Moment, limit int) ([]QuarantinedEvent, error) {
	query := `
		SELECT lane, id, source_id, message_id, received_at, quarantined_at, type, event, reason, violations, message
		FROM quarantined_events
		WHERE (quarantined_at, lane, id) > (coalesce(@at::timestamptz, '-infinity'), @at_lane, @at_seq) AND` + filter.where() + `
		ORDER BY quarantined_at, lane, id
		LIMIT @limit`
	return q.collect(ctx, query, filter.args(after.args(pgx.StrictNamedArgs{
		"workspace": workspace, "lanes": laneList(q.lanes), "limit": limit,
	})))
}

func (q *Quarantine) collect(ctx context.Context, query string, args pgx.StrictNamedArgs) ([]QuarantinedEvent, error) {
	rows, _ := q.db.Query(ctx, query, args) // err: below
	list, err := pgx.CollectRows(rows, scanQuarantined)
	if err != nil {
		return nil, fmt.Errorf("list quarantined events: %w", err)
	}
	return list, nil
}

// Get returns an event with its body, or [ErrNotFound].
func (q *Quarantine) Get(ctx context.Context, workspace int32, id QuarantineID) (QuarantinedEvent, error) {
	found, err := q.Oldest(ctx, workspace, QuarantineFilter{IDs: []QuarantineID{id}}, Moment{}, 1)
	if err != nil {
		return QuarantinedEvent{}, err
	}
	if len(found) == 0 {
		return QuarantinedEvent{}, ErrNotFound
	}
	return found[0], nil
}

// Discard deletes the events that the filter selects, and returns how many there were. They are not applied any more, not
// even if they were being released. It deletes some at a time: after an error, some may be gone.
func (q *Quarantine) Discard(ctx context.Context, workspace int32, filter QuarantineFilter) (int, error) {
	const chunk = 10_000
	query := `
		DELETE FROM quarantined_events
		WHERE (lane, id) IN (SELECT lane, id FROM quarantined_events WHERE` + filter.where() + ` LIMIT @limit)`
	args := filter.args(pgx.StrictNamedArgs{"workspace": workspace, "lanes": laneList(q.lanes), "limit": chunk})
	for gone := 0; ; {
		tag, err := q.db.Exec(ctx, query, args)
		if err != nil {
			return gone, fmt.Errorf("discard quarantined events: %w", err)
		}
		if gone += int(tag.RowsAffected()); tag.RowsAffected() < chunk {
			return gone, nil
		}
	}
}

package profiles

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
)

// Who was forgotten leaves a tombstone under each identifier: a hash that tells nobody whose it is, and the moment. What
// happened up to then, or was received by then, and names one of them, changes nothing any more, however it gets here.
// What happens later may begin a new profile. A tombstone without a moment is that of somebody who is being forgotten: for
// as long as that takes, everything that names them is kept out.
//
// The hash is keyed with a secret of the workspace that is sealed with the installation's keys, so that nobody who has but
// the database can try out who was forgotten. It outlives them: it is sealed anew when they change.

// grave is what a lane knows of those who were forgotten in a workspace.
type grave struct {
	secret []byte
	open   bool      // somebody is being forgotten
	until  time.Time // nobody was forgotten later
}

// hash returns what a tombstone has of an identifier.
func (g *grave) hash(key Key) []byte {
	mac := hmac.New(sha256.New, g.secret)
	mac.Write(key[:])
	return mac.Sum(nil)
}

func tombstoneKeyOf(workspace int32) activation.Place {
	return activation.Place{Workspace: workspace, Table: "tombstone_keys", Column: "key", ID: int64(workspace)}
}

var errNoKeys = errors.New("somebody was forgotten, and without the encryption keys nobody can tell whose events must be kept out")

// openTombstoneKey returns the secret that keys the tombstones of a workspace, which is made if there is none.
func openTombstoneKey(ctx context.Context, tx pgx.Tx, keys *activation.KeyRing, workspace int32) ([]byte, error) {
	const lookup = `SELECT key FROM tombstone_keys WHERE workspace_id = @workspace`
	const insert = `
		INSERT INTO tombstone_keys (workspace_id, key)
		VALUES (@workspace, @key)
		ON CONFLICT DO NOTHING`
	if keys == nil {
		return nil, errNoKeys
	}
	var sealed []byte
	err := tx.QueryRow(ctx, lookup, pgx.StrictNamedArgs{"workspace": workspace}).Scan(&sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		secret := make([]byte, 32)
		rand.Read(secret)
		fresh := keys.Seal(tombstoneKeyOf(workspace), secret)
		if _, err = tx.Exec(ctx, insert, pgx.StrictNamedArgs{"workspace": workspace, "key": fresh}); err == nil {
			err = tx.QueryRow(ctx, lookup, pgx.StrictNamedArgs{"workspace": workspace}).Scan(&sealed)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the key of tombstones: %w", err)
	}
	return keys.Open(tombstoneKeyOf(workspace), sealed)
}

// renewTombstoneKeys seals what keys the tombstones with the newest of the installation's keys.
func (s *Store) renewTombstoneKeys(ctx context.Context) error {
	const query = `SELECT workspace_id, key FROM tombstone_keys ORDER BY workspace_id`
	const update = `UPDATE tombstone_keys SET key = @fresh WHERE workspace_id = @workspace AND key = @sealed`
	if s.keys == nil {
		return nil
	}
	type row struct {
		Workspace int32
		Sealed    []byte
	}
	rows, _ := s.pool.Query(ctx, query)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return fmt.Errorf("read the keys of tombstones: %w", err)
	}
	for _, r := range list {
		fresh, err := s.keys.Renew(tombstoneKeyOf(r.Workspace), r.Sealed)
		if err == nil && fresh != nil {
			_, err = s.pool.Exec(ctx, update, pgx.StrictNamedArgs{"fresh": fresh, "workspace": r.Workspace, "sealed": r.Sealed})
		}
		if err != nil {
			return fmt.Errorf("seal the key of tombstones anew: %w", err)
		}
	}
	return nil
}

// leaveTombstones leaves tombstones, or opens those that are there, and has every lane heed them from its next transaction
// on.
func leaveTombstones(ctx context.Context, tx pgx.Tx, workspace int32, erasure int64, hashes [][]byte) error {
	const leave = `
		INSERT INTO tombstones (workspace_id, hash, erasure_id)
		SELECT @workspace, hash, @erasure
		FROM (SELECT DISTINCT hash FROM unnest(@hashes::bytea[]) AS t (hash)) AS t
		ORDER BY hash
		ON CONFLICT (workspace_id, hash) DO UPDATE
		SET erasure_id = excluded.erasure_id, erased_at = NULL`
	if len(hashes) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, leave, pgx.StrictNamedArgs{"workspace": workspace, "erasure": erasure, "hashes": hashes})
	if err == nil {
		err = announceTombstones(ctx, tx)
	}
	if err != nil {
		return fmt.Errorf("leave tombstones: %w", err)
	}
	return nil
}

func announceTombstones(ctx context.Context, tx pgx.Tx) error {
	const announce = `UPDATE dedupe_generation SET tombstones = tombstones + 1`
	_, err := tx.Exec(ctx, announce)
	return err
}

// readGraves reads in which workspaces anybody was forgotten. Without the keys the lane must not go on.
func (l *Lane) readGraves(ctx context.Context, tx pgx.Tx, version int64) error {
	const query = `
		SELECT e.workspace_id, k.key, bool_or(e.erased_at IS NULL), coalesce(max(e.erased_at), 'epoch')
		FROM erasures AS e
		JOIN tombstone_keys AS k ON k.workspace_id = e.workspace_id
		GROUP BY e.workspace_id, k.key`
	graves := map[int32]*grave{}
	rows, _ := tx.Query(ctx, query)
	var workspace int32
	var sealed []byte
	var g grave
	_, err := pgx.ForEachRow(rows, []any{&workspace, &sealed, &g.open, &g.until}, func() (err error) {
		if l.store.keys == nil {
			return errNoKeys
		}
		known := g
		known.secret, err = l.store.keys.Open(tombstoneKeyOf(workspace), sealed)
		graves[workspace] = &known
		return err
	})
	if err != nil {
		return fmt.Errorf("read who was forgotten: %w", err)
	}
	l.graves, l.tombstones = graves, version
	return nil
}

// tombstonesOf returns those that stand for some identifiers, with the zero time for whom is being forgotten.
func (l *Lane) tombstonesOf(ctx context.Context, tx pgx.Tx, refs []Ref) (map[Ref]time.Time, error) {
	const query = `
		SELECT t.workspace_id, t.hash, coalesce(t.erased_at, '0001-01-01 00:00:00Z')
		FROM tombstones AS t
		JOIN unnest(@workspaces::integer[], @hashes::bytea[]) AS n (workspace_id, hash) USING (workspace_id, hash)`
	type name struct {
		workspace int32
		hash      [sha256.Size]byte
	}
	byHash := make(map[name]Ref, len(refs))
	var workspaces []int32
	var hashes [][]byte
	for _, ref := range refs {
		hash := l.graves[ref.Workspace].hash(ref.Key)
		n := name{ref.Workspace, [sha256.Size]byte(hash)}
		if _, twice := byHash[n]; !twice {
			byHash[n] = ref
			workspaces, hashes = append(workspaces, ref.Workspace), append(hashes, hash)
		}
	}
	found := map[Ref]time.Time{}
	if len(hashes) == 0 {
		return found, nil
	}
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"workspaces": workspaces, "hashes": hashes})
	var workspace int32
	var hash []byte
	var at time.Time
	_, err := pgx.ForEachRow(rows, []any{&workspace, &hash, &at}, func() error {
		found[byHash[name{workspace, [sha256.Size]byte(hash)}]] = at
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for tombstones: %w", err)
	}
	return found, nil
}

// suppress takes out of fresh messages those that tell of somebody who was forgotten what was before that, and counts
// them. It costs nothing where nobody was, and next to nothing for what happened since. decoded holds the events that had
// to be read for it, by their place; with read false none is, and only what a message is filed under is looked at.
func (l *Lane) suppress(ctx context.Context, tx pgx.Tx, fresh []Message, read bool, now time.Time, t *tally) (kept []Message, decoded map[int]*Event, err error) {
	decoded = map[int]*Event{}
	if len(l.graves) == 0 {
		return fresh, decoded, nil
	}
	type naming struct {
		keys []Key
		at   time.Time
	}
	var refs []Ref
	namings := make([]naming, len(fresh))
	events := make([]*Event, len(fresh))
	for i := range fresh {
		m := &fresh[i]
		g := l.graves[m.Workspace]
		if g == nil || l.definitions[m.Workspace] == nil {
			continue
		}
		at := m.Received
		if body, ok := m.event(); ok && read {
			if events[i], err = DecodeEvent(body); err == nil && events[i].Timestamp.Before(at) {
				at = events[i].Timestamp
			}
		}
		if !g.open && at.After(g.until) {
			continue
		}
		keys := []Key{m.Key}
		if read {
			keys = named(m, events[i], l.definitions[m.Workspace].Secret)
		}
		namings[i] = naming{keys, at}
		for _, key := range keys {
			refs = append(refs, Ref{m.Workspace, key})
		}
	}
	graves, err := l.tombstonesOf(ctx, tx, refs)
	if err != nil {
		return nil, nil, err
	}
	var late []Message
	kept = make([]Message, 0, len(fresh))
	for i, m := range fresh {
		dead := slices.ContainsFunc(namings[i].keys, func(key Key) bool {
			at, found := graves[Ref{m.Workspace, key}]
			return found && (at.IsZero() || !namings[i].at.After(at))
		})
		if dead {
			t.count(&m).suppressed++
			t.result.Suppressed++
			late = append(late, m)
			continue
		}
		if events[i] != nil {
			decoded[len(kept)] = events[i]
		}
		kept = append(kept, m)
	}
	return kept, decoded, l.noteSuppressed(ctx, tx, late, now)
}

// noteSuppressed remembers which events were suppressed, for whoever asks what became of them.
func (l *Lane) noteSuppressed(ctx context.Context, tx pgx.Tx, late []Message, now time.Time) error {
	const query = `
		INSERT INTO suppressed_events (lane, workspace_id, source_id, message_key, received_at, suppressed_at)
		SELECT @lane, workspace_id, source_id, message_key, received_at, @now
		FROM unnest(@workspaces::integer[], @sources::integer[], @messages::uuid[], @received::timestamptz[])
		     AS t (workspace_id, source_id, message_key, received_at)
		ON CONFLICT DO NOTHING`
	var workspaces, sources []int32
	var messages []Key
	var received []time.Time
	for _, m := range late {
		if m.Kind != KindEvent && m.Kind != KindQuarantine {
			continue
		}
		workspaces, sources = append(workspaces, m.Workspace), append(sources, m.Source)
		messages, received = append(messages, m.ID), append(received, m.Received)
	}
	if len(messages) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, query, pgx.StrictNamedArgs{
		"lane": l.number, "now": now, "workspaces": workspaces, "sources": sources, "messages": messages, "received": received,
	})
	if err != nil {
		return fmt.Errorf("note suppressed events: %w", err)
	}
	return nil
}

// named returns the keys of all that a message names: an event, of everything that it says whose it is, but for a group,
// which is nobody in particular. What cannot be read is nobody's but whom it is filed under.
func named(m *Message, e *Event, secret Secret) []Key {
	keys := []Key{m.Key}
	switch m.Kind {
	case KindEvent, KindQuarantine:
		if e == nil {
			return append(keys, rawKeys(m, secret)...)
		}
		var ids []Identifier
		for _, id := range []Identifier{
			{UserID, e.UserID}, {AnonymousID, e.AnonymousID}, {UserID, e.PreviousID}, {AnonymousID, e.PreviousID},
		} {
			if id.Value != "" {
				ids = append(ids, id)
			}
		}
		for _, id := range append(ids, e.contacts()...) {
			if id.Kind != GroupID {
				keys = append(keys, secret.Key(id))
			}
		}
	case KindClaim:
		if _, c, _, err := readClaim(m.Body); err == nil {
			keys = append(keys, c.Parent, c.Root)
		}
	case KindLink:
		if parent, _, _, err := readLink(m.Body); err == nil {
			keys = append(keys, parent)
		}
	case KindRoot, KindRoute:
		if root, _, _, err := readRoute(m.Body); err == nil {
			keys = append(keys, root)
		}
	case KindPiece:
		if root, _, _, _, err := readPiece(m.Body); err == nil {
			keys = append(keys, root)
		}
	case KindVerdict, KindLinkVerdict:
		if d, err := readDecision(m); err == nil {
			for _, p := range d.Pairs {
				keys = append(keys, p.Parent, p.Child)
			}
		}
	}
	return keys
}

// replayable leaves out of a replay of the archive who is being forgotten. What the archive has of somebody who was
// forgotten before has happened since.
func (l *Lane) replayable(ctx context.Context, tx pgx.Tx, r *Replay) (*Replay, error) {
	if r == nil || l.graves[r.Workspace] == nil || !l.graves[r.Workspace].open {
		return r, nil
	}
	var refs []Ref
	for _, e := range r.Events {
		refs = append(refs, Ref{r.Workspace, e.Key})
	}
	graves, err := l.tombstonesOf(ctx, tx, refs)
	if err != nil {
		return nil, err
	}
	left := *r
	left.Events = slices.DeleteFunc(slices.Clone(r.Events), func(e Replayed) bool {
		at, found := graves[Ref{r.Workspace, e.Key}]
		return found && at.IsZero()
	})
	return &left, nil
}

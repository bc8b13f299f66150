package profiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
)

// How the lanes forget somebody.
//
// Tombstones come first: from the moment they are committed no lane takes in anything that names the person, be it an event
// or what another lane has to tell. Then every lane, as its owner and between two µbatches, deletes what it has under the
// person's identifiers. What it finds out while it does so (whom they have claimed, by whom they were, what else belongs to
// the profile) is added in the same transaction, with its tombstones, and begins another round, in which every lane looks
// again. When a round has added nothing and all that the lanes had told each other before is heard, nothing of the person
// is left, and nothing can come: the tombstones are closed with that moment ([Store.settleErasures]).
//
//	asked ──► tombstones ──► each lane: find, delete, tell activation ──► closed ──► let go of by destinations ──► complete
//	             ▲                 │ found more: another round
//	             └─────────────────┘
//
// All of it is in tables, and each step is one transaction: whoever owns a lane next goes on where the last one ended.

// What a key is to an erasure.
const (
	keyAsked     = 1 // the person's, and to be looked people up by
	keyOwn       = 2 // the person's
	keyContact   = 3 // under which the person could be found, as others may be, too: only its tombstone matters
	keyNeighbour = 4 // somebody else's who has a claim on the person, or on whom the person has one
	keyClaimed   = 5 // a visitor's on whom the person has a claim; whose it is, its home has still to say
	keyLinked    = 6 // a user's, of which the family lane has
)

// erasure is one that a lane has to do its part in.
type erasure struct {
	id        int64
	workspace int32
	round     int
}

func (l *Lane) readErasing(ctx context.Context, tx pgx.Tx) ([]erasure, error) {
	const query = `
		SELECT e.id, e.workspace_id, e.round
		FROM erasures AS e
		LEFT JOIN lane_erasures AS d ON d.erasure_id = e.id AND d.lane = @lane
		WHERE e.completed_at IS NULL AND e.erased_at IS NULL AND coalesce(d.round, 0) < e.round
		ORDER BY e.id`
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"lane": l.number}) // err: below
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e erasure, err error) {
		err = row.Scan(&e.id, &e.workspace, &e.round)
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read who is to be forgotten: %w", err)
	}
	return list, nil
}

// eraseChunk deletes some of a person's archived events or, when few are left, everything else that the lane has of the
// person.
func (l *Lane) eraseChunk(ctx context.Context, e erasure) (worked bool, res Result, err error) {
	const most = 5000
	x := &eraser{lane: l, erasure: e, secret: l.definitions[e.workspace].Secret, deleted: map[string]int64{}}
	var more bool
	res, err = l.commit(ctx, work{
		first: func(ctx context.Context, tx pgx.Tx, w *work) error {
			if err := x.load(ctx, tx); err != nil || x.over {
				return err
			}
			n, err := x.exec(ctx, tx, "events", eraseEvents, pgx.StrictNamedArgs{"limit": most})
			if more = n == most; more || err != nil {
				return err
			}
			if err := x.discover(ctx, tx); err != nil {
				return err
			}
			w.erase = &Erase{Workspace: e.workspace, Keys: x.own()}
			return nil
		},
		also: func(ctx context.Context, tx pgx.Tx) error {
			if x.over {
				return nil
			}
			if !more {
				if err := x.delete(ctx, tx); err != nil {
					return err
				}
			}
			return x.save(ctx, tx, !more)
		},
	})
	if errors.Is(err, errBusy) {
		l.eraseAt = time.Now().Add(100 * time.Millisecond)
		return true, Result{}, nil
	}
	if IsBug(err) { // builds are not to wait for it
		l.log.ErrorContext(ctx, "an erasure does not get on, will try again", "erasure", e.id, "in", putOff, "err", err)
		l.eraseAt = time.Now().Add(putOff)
		return true, Result{}, nil
	}
	if err != nil {
		return false, Result{}, err
	}
	l.state = NewState() // what it knows of the person is gone, too
	if !more {
		l.erasing = l.erasing[1:]
	}
	return true, res, nil
}

const eraseEvents = `
	DELETE FROM events
	WHERE (tableoid, ctid) IN (
		SELECT tableoid, ctid
		FROM events
		WHERE lane = @lane AND workspace_id = @workspace AND key = ANY (@own)
		LIMIT @limit)`

// eraser is one transaction of a lane that forgets somebody.
type eraser struct {
	erasure
	lane    *Lane
	secret  Secret
	over    bool // nothing is left to do
	keys    map[Key]int16
	added   map[Key]bool
	changes int  // of keys
	another bool // every lane has to look again
	deleted map[string]int64
}

// errBusy says that another lane works at an erasure.
var errBusy = errors.New("another lane works at the erasure")

// load locks the erasure, so that one lane at a time adds to it, and reads whom it is about. It waits for no other lane, but
// returns errBusy: the lane has others to serve.
func (x *eraser) load(ctx context.Context, tx pgx.Tx) error {
	const lock = `SELECT round, erased_at IS NOT NULL FROM erasures WHERE id = @id FOR UPDATE SKIP LOCKED`
	const query = `SELECT key, role FROM erasure_keys WHERE erasure_id = @id`
	x.keys, x.added = map[Key]int16{}, map[Key]bool{}
	if err := tx.QueryRow(ctx, lock, pgx.StrictNamedArgs{"id": x.id}).Scan(&x.round, &x.over); err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			return errBusy
		}
		return fmt.Errorf("lock erasure: %w", err)
	}
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"id": x.id})
	var key Key
	var role int16
	_, err := pgx.ForEachRow(rows, []any{&key, &role}, func() error {
		x.keys[key] = role
		return nil
	})
	if err != nil {
		return fmt.Errorf("read who is to be forgotten: %w", err)
	}
	return nil
}

func (x *eraser) is(key Key) bool {
	role := x.keys[key]
	return role == keyAsked || role == keyOwn
}

// add notes what a key is, if that is more than was known.
func (x *eraser) add(key Key, role int16) {
	if known, ok := x.keys[key]; key == (Key{}) || ok && known <= role {
		return
	}
	_, known := x.keys[key]
	x.another = x.another || role == keyAsked || role == keyOwn || !known && role != keyContact
	x.keys[key], x.added[key] = role, true
	x.changes++
}

func (x *eraser) with(roles ...int16) []Key {
	var keys []Key
	for key, role := range x.keys {
		if slices.Contains(roles, role) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b Key) int { return bytes.Compare(a[:], b[:]) })
	return keys
}

func (x *eraser) own() []Key { return x.with(keyAsked, keyOwn) }

// exec runs a statement about the person in the lane and counts what it deletes.
func (x *eraser) exec(ctx context.Context, tx pgx.Tx, kind, query string, more pgx.StrictNamedArgs) (int64, error) {
	args := pgx.StrictNamedArgs{"lane": x.lane.number, "workspace": x.workspace}
	if strings.Contains(query, "@own") {
		args["own"] = x.own()
	}
	maps.Copy(args, more)
	tag, err := tx.Exec(ctx, query, args)
	if err != nil {
		return 0, fmt.Errorf("erase %s of lane %d: %w", kind, x.lane.number, err)
	}
	if n := tag.RowsAffected(); n > 0 {
		x.deleted[kind] += n
	}
	return tag.RowsAffected(), nil
}

// discover finds, as far as the lane knows, what else is the person's.
func (x *eraser) discover(ctx context.Context, tx pgx.Tx) error {
	for before := -1; before != x.changes; {
		before = x.changes
		x.deleted["profiles"], x.deleted["identities"], x.deleted["traits"], x.deleted["memberships"] = 0, 0, 0, 0
		for _, find := range []func(context.Context, pgx.Tx) error{x.inProfiles, x.inLookups, x.inRoutes, x.inClaims, x.inFamilies} {
			if err := find(ctx, tx); err != nil {
				return fmt.Errorf("find what lane %d has of somebody: %w", x.lane.number, err)
			}
		}
	}
	return nil
}

func (x *eraser) inProfiles(ctx context.Context, tx pgx.Tx) error {
	const query = `
		SELECT id, state
		FROM profiles
		WHERE lane = @lane AND workspace_id = @workspace AND id = ANY (@own)`
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"lane": x.lane.number, "workspace": x.workspace, "own": x.own()})
	list, err := pgx.CollectRows(rows, scanProfile(x.workspace))
	for _, p := range list {
		x.deleted["profiles"]++
		x.deleted["identities"] += int64(len(p.Fragments))
		for _, f := range p.Fragments {
			x.deleted["traits"] += int64(len(f.Traits))
			x.add(f.Key, keyOwn)
		}
		for _, s := range p.Standings {
			if s.Member {
				x.deleted["memberships"]++
			}
		}
		for _, key := range p.contacts(x.secret) {
			x.add(key, keyContact)
		}
	}
	return err
}

// contacts returns the keys of what a profile can be found by besides its own identifiers, but for groups.
func (p *Profile) contacts(secret Secret) (keys []Key) {
	for _, id := range p.lookupIdentifiers() {
		if id.Kind != GroupID {
			keys = append(keys, secret.Key(id))
		}
	}
	return keys
}

func (x *eraser) inLookups(ctx context.Context, tx pgx.Tx) error {
	const query = `
		SELECT profile_id
		FROM lookups
		WHERE lane = @lane AND workspace_id = @workspace AND key = ANY (@asked)`
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"lane": x.lane.number, "workspace": x.workspace, "asked": x.with(keyAsked)})
	list, err := pgx.CollectRows(rows, pgx.RowTo[Key])
	for _, key := range list {
		x.add(key, keyOwn)
	}
	return err
}

// inRoutes looks at the homes of identifiers: theirs, and those of whom they have a claim on. A claim that a home does not
// know is on its way, and will be kept out: whom nobody else has claimed is the person's as if it had arrived.
func (x *eraser) inRoutes(ctx context.Context, tx pgx.Tx) error {
	homes, err := x.homes(ctx, tx)
	for key, r := range homes {
		if x.is(r.Root) {
			x.add(key, keyOwn)
		}
		if !x.is(key) {
			continue
		}
		x.add(r.Root, keyOwn)
		for _, c := range r.Claims {
			x.add(c.Parent, keyNeighbour)
		}
		for _, v := range r.Verdicts {
			x.add(v.Parent, keyNeighbour)
		}
	}
	for _, key := range x.with(keyClaimed) {
		r := homes[key]
		switch {
		case err != nil || !x.atHome(key):
		case r == nil, r.Root == key && !r.knows(x.is):
			x.add(key, keyOwn)
		default:
			x.add(key, keyNeighbour)
		}
	}
	return err
}

// knows tells whether any of some people has a claim, or there is a decision on it.
func (r *Route) knows(is func(Key) bool) bool {
	return slices.ContainsFunc(r.Claims, func(c Claimed) bool { return is(c.Parent) }) ||
		slices.ContainsFunc(r.Verdicts, func(v Verdict) bool { return is(v.Parent) })
}

func (x *eraser) atHome(key Key) bool { return key.Lane(x.lane.store.lanes) == x.lane.number }

// homes returns the routes of the identifiers that are at home in the lane.
func (x *eraser) homes(ctx context.Context, tx pgx.Tx) (map[Key]*Route, error) {
	keys := slices.DeleteFunc(x.with(keyAsked, keyOwn, keyNeighbour, keyClaimed, keyLinked), func(key Key) bool { return !x.atHome(key) })
	return NewReader(tx, x.lane.store.lanes).routesAtHome(ctx, x.workspace, keys)
}

// inClaims looks at whom the person's identifiers have claimed, which may be nobody else's.
func (x *eraser) inClaims(ctx context.Context, tx pgx.Tx) error {
	const query = `
		SELECT child, kind
		FROM claims
		WHERE lane = @lane AND workspace_id = @workspace AND parent = ANY (@own)`
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"lane": x.lane.number, "workspace": x.workspace, "own": x.own()})
	var key Key
	var kind MessageKind
	_, err := pgx.ForEachRow(rows, []any{&key, &kind}, func() error {
		role := int16(keyClaimed)
		if kind == KindLink {
			role = keyLinked
		}
		x.add(key, role)
		return nil
	})
	return err
}

// inFamilies looks at who is whose among users. A claim on one who is in no family with the person is on its way.
func (x *eraser) inFamilies(ctx context.Context, tx pgx.Tx) error {
	own, linked := x.own(), x.with(keyLinked)
	families, err := x.families(ctx, tx, append(own, linked...))
	if err != nil || families == nil {
		return err
	}
	for _, key := range own {
		f := families[key]
		if f == nil {
			continue
		}
		for member, root := range f.Roots {
			switch {
			case x.is(root):
				x.add(member, keyOwn)
			case x.is(member):
				x.add(root, keyOwn)
			}
		}
		for _, c := range f.Claims {
			switch {
			case x.is(c.Child):
				x.add(c.Parent, keyNeighbour)
			case x.is(c.Parent):
				x.add(c.Child, keyNeighbour)
			}
		}
	}
	for _, key := range linked {
		switch f := families[key]; {
		case x.keys[key] != keyLinked: // found in a family with the person
		case f == nil, f.Roots[key] == key:
			x.add(key, keyOwn)
		default:
			x.add(key, keyNeighbour)
		}
	}
	return nil
}

// families returns the families of identifiers, by each of their members, if the lane has the families.
func (x *eraser) families(ctx context.Context, tx pgx.Tx, keys []Key) (map[Key]*Family, error) {
	if familyLane(x.secret, x.lane.store.lanes) != x.lane.number {
		return nil, nil
	}
	return NewReader(tx, x.lane.store.lanes).families(ctx, x.workspace, x.secret, keys)
}

// delete deletes what the lane has of the person besides the profile, and has destinations told.
func (x *eraser) delete(ctx context.Context, tx pgx.Tx) error {
	const all = 1 << 40
	neighbours := x.with(keyNeighbour, keyClaimed, keyLinked)
	for _, step := range []struct {
		kind, query string
		more        pgx.StrictNamedArgs
	}{
		{"events", eraseEvents, pgx.StrictNamedArgs{"limit": all}},
		{"transitions", `DELETE FROM transitions WHERE lane = @lane AND workspace_id = @workspace AND profile_id = ANY (@own)`, nil},
		{"decisions", `DELETE FROM decisions WHERE lane = @lane AND workspace_id = @workspace AND key = ANY (@own)`, nil},
		{
			"claims", `
			DELETE FROM claims
			WHERE lane = @lane AND workspace_id = @workspace
				AND (parent = ANY (@own) OR parent = ANY (@neighbours) AND child = ANY (@own))`,
			pgx.StrictNamedArgs{"neighbours": neighbours},
		},
	} {
		if _, err := x.exec(ctx, tx, step.kind, step.query, step.more); err != nil {
			return err
		}
	}
	for _, drop := range []func(context.Context, pgx.Tx) error{x.leaveHomes, x.leaveFamilies, x.dropFailed, x.dropQuarantined} {
		if err := drop(ctx, tx); err != nil {
			return fmt.Errorf("forget somebody in lane %d: %w", x.lane.number, err)
		}
	}
	const routes = `DELETE FROM routes WHERE lane = @lane AND workspace_id = @workspace AND key = ANY (@own)`
	if _, err := x.exec(ctx, tx, "routes", routes, nil); err != nil {
		return err
	}
	persons := make([][16]byte, 0, len(x.keys))
	for _, key := range x.own() {
		persons = append(persons, key)
	}
	if err := x.lane.store.activation.ForgetEvents(ctx, tx, x.lane.number, x.workspace, persons); err != nil {
		return err
	}
	return x.lane.store.activation.Erase(ctx, tx, x.lane.number, x.workspace, x.id, x.here())
}

// here returns those of the person's identifiers under which the lane may have had a profile.
func (x *eraser) here() (ids [][16]byte) {
	for _, key := range x.own() {
		if x.atHome(key) {
			ids = append(ids, key)
		}
	}
	return ids
}

// leaveHomes takes the person's claims on others, and the decisions on them, out of those others' homes. They decided
// nothing there, or the others would be the person's.
func (x *eraser) leaveHomes(ctx context.Context, tx pgx.Tx) error {
	const update = `
		UPDATE routes
		SET claims = @claims
		WHERE lane = @lane AND workspace_id = @workspace AND key = @key`
	homes, err := x.homes(ctx, tx)
	if err != nil {
		return err
	}
	for key, r := range homes {
		if x.is(key) {
			continue
		}
		n := len(r.Claims) + len(r.Verdicts)
		r.Claims = slices.DeleteFunc(r.Claims, func(c Claimed) bool { return x.is(c.Parent) || x.is(c.Root) })
		r.Verdicts = slices.DeleteFunc(r.Verdicts, func(v Verdict) bool { return x.is(v.Parent) })
		if n == len(r.Claims)+len(r.Verdicts) {
			continue
		}
		args := pgx.StrictNamedArgs{"lane": x.lane.number, "workspace": x.workspace, "key": key, "claims": appendClaims(r)}
		if _, err := tx.Exec(ctx, update, args); err != nil {
			return err
		}
	}
	return nil
}

// leaveFamilies takes the person's identifiers out of their families. The others stand to each other as before: no claim
// that stands leads from one root's people to another's.
func (x *eraser) leaveFamilies(ctx context.Context, tx pgx.Tx) error {
	const members = `DELETE FROM family_members WHERE lane = @lane AND workspace_id = @workspace AND key = ANY (@own)`
	const remove = `DELETE FROM families WHERE lane = @lane AND workspace_id = @workspace AND id = @id`
	families, err := x.families(ctx, tx, x.own())
	if err != nil || families == nil {
		return err
	}
	batch := &pgx.Batch{}
	left := map[*Family]bool{}
	for _, f := range families {
		if left[f] {
			continue // of another member
		}
		left[f] = true
		batch.Queue(remove, pgx.StrictNamedArgs{"lane": x.lane.number, "workspace": x.workspace, "id": f.ID})
		maps.DeleteFunc(f.Roots, func(key, _ Key) bool { return x.is(key) })
		f.Claims = slices.DeleteFunc(f.Claims, func(c Link) bool { return x.is(c.Child) || x.is(c.Parent) })
		f.Verdicts = slices.DeleteFunc(f.Verdicts, func(v Verdict) bool { return x.is(v.Child) || x.is(v.Parent) })
		if len(f.Roots) == 0 {
			continue
		}
		if x.is(f.ID) {
			f.ID = slices.MinFunc(slices.Collect(maps.Keys(f.Roots)), func(a, b Key) int { return bytes.Compare(a[:], b[:]) })
		}
		x.lane.writeFamilies(batch, &Outcome{Families: map[Key]*Family{f.ID: f}})
	}
	batch.Queue(members, pgx.StrictNamedArgs{"lane": x.lane.number, "workspace": x.workspace, "own": x.own()})
	return tx.SendBatch(ctx, batch).Close()
}

// dropQuarantined deletes the quarantined events that name the person in any way. Whom they name was noted with them, because
// anybody can have many of them made.
func (x *eraser) dropQuarantined(ctx context.Context, tx pgx.Tx) error {
	const remove = `DELETE FROM quarantined_events WHERE lane = @lane AND workspace_id = @workspace AND keys && @keys::uuid[]`
	_, err := x.exec(ctx, tx, "quarantined_events", remove, pgx.StrictNamedArgs{"keys": x.with(keyAsked, keyOwn, keyContact)})
	return err
}

// dropFailed deletes the failed events that name the person in any way. They have to be read for that; as with all that
// fails, there are few.
func (x *eraser) dropFailed(ctx context.Context, tx pgx.Tx) error {
	const query = `
		SELECT id, message
		FROM failed_events
		WHERE lane = @lane AND workspace_id = @workspace AND id > @after
		ORDER BY id
		LIMIT 1000`
	const remove = `DELETE FROM failed_events WHERE lane = @lane AND workspace_id = @workspace AND id = ANY (@ids)`
	var theirs []int64
	for after, n := int64(0), 1; n > 0; {
		rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"lane": x.lane.number, "workspace": x.workspace, "after": after})
		var packed []byte
		n = 0
		_, err := pgx.ForEachRow(rows, []any{&after, &packed}, func() error {
			n++
			m, err := DecodeMessage(packed)
			if err != nil {
				return nil // never was a message: nobody can tell
			}
			var e *Event
			if body, ok := m.event(); ok {
				if e, err = parseEvent(body); err != nil {
					e = nil
				}
			}
			if slices.ContainsFunc(named(&m, e, x.secret), func(key Key) bool { return x.is(key) || x.keys[key] == keyContact }) {
				theirs = append(theirs, after)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	_, err := x.exec(ctx, tx, "failed_events", remove, pgx.StrictNamedArgs{"ids": theirs})
	return err
}

// save notes how much was deleted and whom else it is about. If whole, the lane's part in this round is done.
func (x *eraser) save(ctx context.Context, tx pgx.Tx, whole bool) error {
	const keys = `
		INSERT INTO erasure_keys AS k (erasure_id, key, role)
		SELECT @id, key, role
		FROM unnest(@keys::uuid[], @roles::smallint[]) AS t (key, role)
		ON CONFLICT (erasure_id, key) DO UPDATE SET role = excluded.role`
	const again = `UPDATE erasures SET round = round + 1 WHERE id = @id`
	const before = `SELECT deleted FROM lane_erasures WHERE erasure_id = @id AND lane = @lane`
	const done = `
		INSERT INTO lane_erasures (lane, erasure_id, round, outbox_seq, deleted)
		VALUES (@lane, @id, @round, @outbox, @deleted)
		ON CONFLICT (erasure_id, lane) DO UPDATE
		SET round = excluded.round, outbox_seq = excluded.outbox_seq, deleted = excluded.deleted`
	if len(x.added) > 0 {
		var added []Key
		var roles []int16
		var hashes [][]byte
		for key := range x.added {
			role := x.keys[key]
			added, roles = append(added, key), append(roles, role)
			if role <= keyContact {
				hashes = append(hashes, x.lane.graves[x.workspace].hash(key))
			}
		}
		if _, err := tx.Exec(ctx, keys, pgx.StrictNamedArgs{"id": x.id, "keys": added, "roles": roles}); err != nil {
			return fmt.Errorf("note whom else an erasure is about: %w", err)
		}
		if err := leaveTombstones(ctx, tx, x.workspace, x.id, hashes); err != nil {
			return err
		}
		if x.another {
			if _, err := tx.Exec(ctx, again, pgx.StrictNamedArgs{"id": x.id}); err != nil {
				return fmt.Errorf("begin another round of an erasure: %w", err)
			}
		}
	}
	var packed []byte
	sum := map[string]int64{}
	err := tx.QueryRow(ctx, before, pgx.StrictNamedArgs{"id": x.id, "lane": x.lane.number}).Scan(&packed)
	if err == nil {
		err = json.Unmarshal(packed, &sum)
	} else if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	for kind, n := range x.deleted {
		if n > 0 {
			sum[kind] += n
		}
	}
	if err == nil {
		packed, err = json.Marshal(sum, json.Deterministic(true))
	}
	if err == nil {
		round := x.round
		if !whole {
			round = 0
		}
		_, err = tx.Exec(ctx, done, pgx.StrictNamedArgs{
			"lane": x.lane.number, "id": x.id, "round": round, "outbox": x.lane.seqs.outbox, "deleted": packed,
		})
	}
	if err != nil {
		return fmt.Errorf("note how far lane %d is with an erasure: %w", x.lane.number, err)
	}
	return nil
}

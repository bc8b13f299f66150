package profiles

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// ParseIdentity reads how people write an identifier, as "kind:value" or as the id that stands for it, and returns its
// key.
func (s Secret) ParseIdentity(text string) (Key, error) {
	if strings.HasPrefix(text, "p_") {
		return ParseKey(text)
	}
	id, err := ParseIdentifier(text)
	if err != nil {
		return Key{}, err
	}
	return s.Key(id.normal()), nil
}

// Unmerge returns the decision that takes the identifier of key out of the profile of root, to be put into its lane: it
// names every claim by which the two are one person, as far as the lanes have committed. Whom a user claims goes with the
// user. The error is [ErrNotFound] if no claim has key belong to root, which may also be because it is on its way.
func (r *Reader) Unmerge(ctx context.Context, workspace int32, secret Secret, root, key Key) (Decision, error) {
	on, err := r.claimsOn(ctx, workspace, secret, key)
	if err != nil {
		return Decision{}, err
	}
	var pairs []Pair
	if on.users() {
		pairs = on.family.separate(key, root)
	} else {
		for _, c := range on.home.Claims {
			if pair := (Pair{c.Parent, key}); c.Root == root && !on.home.Verdicts.void(pair) {
				pairs = append(pairs, pair)
			}
		}
	}
	return on.decide(key, pairs, true)
}

// Remerge returns the decision that takes back those by which the identifier of key was taken out of the profile of root:
// the claims that they named count again. The error is [ErrNotFound] if there was none.
func (r *Reader) Remerge(ctx context.Context, workspace int32, secret Secret, root, key Key) (Decision, error) {
	on, err := r.claimsOn(ctx, workspace, secret, key)
	if err != nil {
		return Decision{}, err
	}
	roots := on.roots()
	rootOf := func(k Key) Key {
		if r, ok := roots[k]; ok {
			return r
		}
		return k
	}
	var taken []Stamp
	for _, v := range on.verdicts() {
		back := v.Child == key && rootOf(v.Parent) == root || v.Child == root && rootOf(v.Parent) == rootOf(key)
		if v.Void && back {
			taken = append(taken, v.Stamp)
		}
	}
	var pairs []Pair
	for _, v := range on.verdicts() {
		if v.Void && slices.Contains(taken, v.Stamp) {
			pairs = append(pairs, v.Pair)
		}
	}
	return on.decide(key, pairs, false)
}

// claimsOn is all that is known of the claims on an identifier: at a visitor's home, or in a user's family.
type claimsOn struct {
	home   *Route
	family *Family
}

func (c claimsOn) users() bool { return len(c.home.Claims)+len(c.home.Verdicts) == 0 }

func (c claimsOn) verdicts() verdicts {
	if c.users() {
		return c.family.Verdicts
	}
	return c.home.Verdicts
}

// roots returns the roots of those who claim.
func (c claimsOn) roots() map[Key]Key {
	if c.users() {
		return c.family.decide()
	}
	roots := map[Key]Key{}
	for _, claim := range c.home.Claims {
		roots[claim.Parent] = claim.Root
	}
	return roots
}

// decide makes a decision that is later than all that were made before, whatever the clocks say.
func (c claimsOn) decide(key Key, pairs []Pair, void bool) (Decision, error) {
	if len(pairs) == 0 {
		return Decision{}, ErrNotFound
	}
	at := time.Now().UnixMilli()
	for _, v := range c.verdicts() {
		at = max(at, v.Stamp.At+1)
	}
	name := "unmerge-"
	if !void {
		name = "remerge-"
	}
	return Decision{
		MessageID: name + rand.Text(), At: time.UnixMilli(at).UTC(), Void: void, Key: key, Users: c.users(), Pairs: pairs,
	}, nil
}

// separate returns the claims that have to be void for key and root, who have one root now, to have two. These are the
// claims on key by anybody of root; and where key had claimed root as well, and would be the root of both once those are
// void, the claims on root. f is changed.
func (f *Family) separate(key, root Key) (pairs []Pair) {
	for {
		roots := f.decide()
		if roots[key] != roots[root] {
			return pairs
		}
		child := key
		if roots[key] == key {
			child = root
		}
		before := len(pairs)
		for _, c := range f.Claims {
			pair := Pair{c.Parent, c.Child}
			if c.Child == child && roots[c.Parent] == roots[key] && !f.Verdicts.void(pair) {
				pairs = append(pairs, pair)
				f.Verdicts, _ = f.Verdicts.take(Verdict{pair, Stamp{At: 1<<63 - 1}, true})
			}
		}
		if len(pairs) == before {
			return pairs // one and the same
		}
	}
}

func (r *Reader) claimsOn(ctx context.Context, workspace int32, secret Secret, key Key) (on claimsOn, err error) {
	homes, err := r.routesAtHome(ctx, workspace, []Key{key})
	if err != nil {
		return on, err
	}
	families, err := r.families(ctx, workspace, secret, []Key{key})
	if err != nil {
		return on, err
	}
	on = claimsOn{homes[key], families[key]}
	if on.home == nil {
		on.home = &Route{Workspace: workspace, Root: key}
	}
	if on.family == nil {
		on.family = &Family{ID: key, Workspace: workspace, Roots: map[Key]Key{key: key}}
	}
	return on, nil
}

func (r *Reader) routesAtHome(ctx context.Context, workspace int32, keys []Key) (map[Key]*Route, error) {
	const query = `
		SELECT r.key, r.root, r.version, r.claims
		FROM routes AS r
		JOIN unnest(@lanes::smallint[], @keys::uuid[]) AS t (lane, key) USING (lane, key)
		WHERE r.workspace_id = @workspace`
	lanes := make([]int16, len(keys))
	for i, key := range keys {
		lanes[i] = int16(key.Lane(r.lanes))
	}
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "lanes": lanes, "keys": keys})
	found := make(map[Key]*Route, len(keys))
	_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (none struct{}, err error) {
		var key Key
		var packed []byte
		route := &Route{Workspace: workspace}
		if err := row.Scan(&key, &route.Root, &route.Version, &packed); err != nil {
			return none, err
		}
		found[key] = route
		return none, decodeClaims(route, packed)
	})
	if err != nil {
		return nil, fmt.Errorf("read claims: %w", err)
	}
	return found, nil
}

// families returns the families of keys, by each of their members.
func (r *Reader) families(ctx context.Context, workspace int32, secret Secret, keys []Key) (map[Key]*Family, error) {
	const query = `
		SELECT id, state
		FROM families
		WHERE lane = @lane AND workspace_id = @workspace AND id IN (
			SELECT family_id
			FROM family_members
			WHERE lane = @lane AND workspace_id = @workspace AND key = ANY (@keys))`
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"lane": familyLane(secret, r.lanes), "workspace": workspace, "keys": keys})
	found := map[Key]*Family{}
	_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (none struct{}, err error) {
		var id Key
		var packed []byte
		if err := row.Scan(&id, &packed); err != nil {
			return none, err
		}
		f, err := decodeFamily(id, workspace, packed)
		for member := range f.Roots {
			found[member] = f
		}
		return none, err
	})
	if err != nil {
		return nil, fmt.Errorf("read families: %w", err)
	}
	return found, nil
}

// Identity is one of the identifiers that a profile is the merge of.
type Identity struct {
	Key        Key
	Identifier Identifier
	FirstSeen  time.Time // zero if it was only ever claimed
	LastSeen   time.Time
	Root       bool        // the profile's id is its key
	Claim      *KnownClaim // by which it belongs to the profile; nil for the root, and while one is on its way
}

// KnownClaim is the claim by which an identifier belongs to its profile.
type KnownClaim struct {
	By         Key
	Identifier Identifier // of who claims; empty if the profile does not tell it any more
	At         time.Time  // event time
	MessageID  string     // of the event that made it
}

// Identities returns at most limit of a profile's identities, in the order of their keys, from after a key on.
func (r *Reader) Identities(ctx context.Context, secret Secret, p *Profile, after Key, limit int) ([]Identity, error) {
	var list []Identity
	var keys []Key
	for _, f := range p.Fragments {
		if slices.Compare(f.Key[:], after[:]) <= 0 || f.Identifier.Value == "" || len(list) == limit {
			continue
		}
		id := Identity{Key: f.Key, Identifier: f.Identifier, Root: f.Key == p.ID}
		if f.FirstSeen != 0 {
			id.FirstSeen, id.LastSeen = time.UnixMilli(f.FirstSeen), time.UnixMilli(f.LastSeen)
		}
		list, keys = append(list, id), append(keys, f.Key)
	}
	homes, err := r.routesAtHome(ctx, p.Workspace, keys)
	if err != nil {
		return nil, err
	}
	families, err := r.families(ctx, p.Workspace, secret, keys)
	if err != nil {
		return nil, err
	}
	stand := map[*Family]forest{}
	names := p.names(secret)
	var pairs []Pair
	for i := range list {
		id := &list[i]
		var by Key
		var stamp Stamp
		switch home, family := homes[id.Key], families[id.Key]; {
		case id.Root:
			continue
		case home != nil && len(home.Claims) > 0:
			j := slices.IndexFunc(home.Claims, func(c Claimed) bool { return !home.Verdicts.void(Pair{c.Parent, id.Key}) })
			if j < 0 || home.Claims[j].Root != p.ID {
				continue
			}
			by, stamp = home.Claims[j].Parent, home.Claims[j].Stamp
		case family != nil:
			if stand[family] == nil {
				stand[family] = family.stand()
			}
			link, ok := stand[family][id.Key]
			if !ok || stand[family].root(id.Key) != p.ID {
				continue
			}
			by, stamp = link.Parent, link.Stamp
		default:
			continue
		}
		id.Claim = &KnownClaim{By: by, Identifier: names[by], At: time.UnixMilli(stamp.At)}
		pairs = append(pairs, Pair{by, id.Key})
	}
	made, err := r.claimMessages(ctx, p.Workspace, pairs)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if c := list[i].Claim; c != nil {
			c.MessageID = made[Pair{c.By, list[i].Key}]
		}
	}
	return list, nil
}

// names returns the identifiers that a profile is known by, under their keys.
func (p *Profile) names(secret Secret) map[Key]Identifier {
	names := map[Key]Identifier{}
	for _, id := range p.Identifiers() {
		names[secret.Key(id)] = id
	}
	return names
}

// claimMessages returns which messages made claims. A claim is kept where the event was that made it: at the claimant's
// home or, if people are merged by what is in their events, at the home of who is claimed.
func (r *Reader) claimMessages(ctx context.Context, workspace int32, pairs []Pair) (map[Pair]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	const query = `
		SELECT c.parent, c.child, c.message_id
		FROM claims AS c
		JOIN unnest(@lanes::smallint[], @parents::uuid[], @children::uuid[]) AS t (lane, parent, child) USING (lane, parent, child)
		WHERE c.workspace_id = @workspace`
	var lanes []int16
	var parents, children []Key
	for _, p := range pairs {
		for _, home := range []Key{p.Parent, p.Child} {
			lanes, parents, children = append(lanes, int16(home.Lane(r.lanes))), append(parents, p.Parent), append(children, p.Child)
		}
	}
	rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace, "lanes": lanes, "parents": parents, "children": children})
	made := make(map[Pair]string, len(pairs))
	var pair Pair
	var message string
	_, err := pgx.ForEachRow(rows, []any{&pair.Parent, &pair.Child, &message}, func() error {
		made[pair] = message
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read claims: %w", err)
	}
	return made, nil
}

// Root returns the root of the profile that an identifier belongs to. While a merge or un-merge is on its way, it may
// itself have got another.
func (r *Reader) Root(ctx context.Context, workspace int32, key Key) (Key, error) {
	return r.root(ctx, workspace, key)
}

package profiles

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// read fetches what a step was missing into the lane's state, in one round trip. What does not exist is noted as nil.
func (l *Lane) read(ctx context.Context, tx pgx.Tx, missing *Missing) error {
	batch := &pgx.Batch{}
	l.readProfiles(batch, missing.Profiles)
	l.readRoutes(batch, missing.Routes)
	l.readClaims(batch, missing.Claims)
	l.readChildren(batch, missing.Children)
	l.readFamilies(batch, missing.Families)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("read state of lane %d: %w", l.number, err)
	}
	return nil
}

// columns splits refs into the arrays that a statement takes.
func columns(refs map[Ref]struct{}) (workspaces []int32, keys []Key) {
	for ref := range refs {
		workspaces, keys = append(workspaces, ref.Workspace), append(keys, ref.Key)
	}
	return workspaces, keys
}

func (l *Lane) readProfiles(batch *pgx.Batch, refs map[Ref]struct{}) {
	if len(refs) == 0 {
		return
	}
	const query = `
		SELECT workspace_id, id, p.state
		FROM profiles AS p
		JOIN unnest(@workspaces::integer[], @keys::uuid[]) AS t (workspace_id, id) USING (workspace_id, id)
		WHERE p.lane = @lane`
	workspaces, keys := columns(refs)
	for _, key := range keys {
		l.state.Profiles[key] = nil
	}
	queue(batch, query, pgx.StrictNamedArgs{"lane": l.number, "workspaces": workspaces, "keys": keys}, func(row pgx.CollectableRow) error {
		var workspace int32
		var id Key
		var packed []byte
		if err := row.Scan(&workspace, &id, &packed); err != nil {
			return err
		}
		p, err := DecodeProfile(id, workspace, packed)
		l.state.Profiles[id] = p
		return err
	})
}

func (l *Lane) readRoutes(batch *pgx.Batch, refs map[Ref]struct{}) {
	if len(refs) == 0 {
		return
	}
	const query = `
		SELECT workspace_id, key, r.root, r.version, r.claims
		FROM routes AS r
		JOIN unnest(@workspaces::integer[], @keys::uuid[]) AS t (workspace_id, key) USING (workspace_id, key)
		WHERE r.lane = @lane`
	workspaces, keys := columns(refs)
	for _, key := range keys {
		l.state.Routes[key] = nil
	}
	queue(batch, query, pgx.StrictNamedArgs{"lane": l.number, "workspaces": workspaces, "keys": keys}, func(row pgx.CollectableRow) error {
		var key Key
		var packed []byte
		r := &Route{}
		if err := row.Scan(&r.Workspace, &key, &r.Root, &r.Version, &packed); err != nil {
			return err
		}
		l.state.Routes[key] = r
		return decodeClaims(r, packed)
	})
}

func (l *Lane) readClaims(batch *pgx.Batch, refs map[PairRef]struct{}) {
	if len(refs) == 0 {
		return
	}
	const query = `
		SELECT parent, child, c.kind, c.at, c.stamp, c.message_id, c.named
		FROM claims AS c
		JOIN unnest(@workspaces::integer[], @parents::uuid[], @children::uuid[]) AS t (workspace_id, parent, child)
		     USING (workspace_id, parent, child)
		WHERE c.lane = @lane`
	var workspaces []int32
	var parents, children []Key
	for ref := range refs {
		workspaces = append(workspaces, ref.Workspace)
		parents, children = append(parents, ref.Parent), append(children, ref.Child)
		l.state.Claims[ref.Pair] = nil
	}
	args := pgx.StrictNamedArgs{"lane": l.number, "workspaces": workspaces, "parents": parents, "children": children}
	queue(batch, query, args, func(row pgx.CollectableRow) error {
		c, err := scanClaim(row)
		l.state.Claims[c.Pair] = c
		return err
	})
}

func (l *Lane) readChildren(batch *pgx.Batch, refs map[Ref]struct{}) {
	if len(refs) == 0 {
		return
	}
	const query = `
		SELECT parent, child, c.kind, c.at, c.stamp, c.message_id, c.named
		FROM claims AS c
		JOIN unnest(@workspaces::integer[], @keys::uuid[]) AS t (workspace_id, parent) USING (workspace_id, parent)
		WHERE c.lane = @lane`
	workspaces, keys := columns(refs)
	for _, key := range keys {
		l.state.Children[key] = nil
	}
	queue(batch, query, pgx.StrictNamedArgs{"lane": l.number, "workspaces": workspaces, "keys": keys}, func(row pgx.CollectableRow) error {
		c, err := scanClaim(row)
		l.state.Children[c.Parent] = append(l.state.Children[c.Parent], c)
		return err
	})
}

func scanClaim(row pgx.CollectableRow) (*Claim, error) {
	c := &Claim{}
	var stamp int64
	err := row.Scan(&c.Parent, &c.Child, &c.Kind, &c.Stamp.At, &stamp, &c.MessageID, &c.Named)
	c.Stamp.ID = uint64(stamp)
	return c, err
}

func (l *Lane) readFamilies(batch *pgx.Batch, refs map[Ref]struct{}) {
	if len(refs) == 0 {
		return
	}
	const query = `
		SELECT DISTINCT f.workspace_id, f.id, f.state
		FROM family_members AS m
		JOIN unnest(@workspaces::integer[], @keys::uuid[]) AS t (workspace_id, key) USING (workspace_id, key)
		JOIN families AS f ON f.lane = m.lane AND f.workspace_id = m.workspace_id AND f.id = m.family_id
		WHERE m.lane = @lane`
	workspaces, keys := columns(refs)
	for _, key := range keys {
		l.state.Families[key] = nil
	}
	queue(batch, query, pgx.StrictNamedArgs{"lane": l.number, "workspaces": workspaces, "keys": keys}, func(row pgx.CollectableRow) error {
		var workspace int32
		var id Key
		var packed []byte
		if err := row.Scan(&workspace, &id, &packed); err != nil {
			return err
		}
		f, err := decodeFamily(id, workspace, packed)
		for member := range f.Roots {
			l.state.Families[member] = f
		}
		return err
	})
}

// queue adds a query to a batch and has each row it returns read.
func queue(batch *pgx.Batch, query string, args pgx.StrictNamedArgs, read func(pgx.CollectableRow) error) {
	batch.Queue(query, args).Query(func(rows pgx.Rows) error {
		_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) { return struct{}{}, read(row) })
		return err
	})
}

// remember brings the lane's cache up to what was decided.
func (l *Lane) remember(out *Outcome) {
	s := l.state
	for ref, p := range out.Profiles {
		s.Profiles[ref.Key] = p
	}
	for ref, r := range out.Routes {
		s.Routes[ref.Key] = r
	}
	for ref, c := range out.Claims {
		s.Claims[ref.Pair] = c
		delete(s.Children, ref.Parent)
	}
	for _, f := range out.Families {
		for member := range f.Roots {
			s.Families[member] = f
		}
	}
	trim(s.Profiles, l.store.cached)
	trim(s.Routes, 4*l.store.cached)
	trim(s.Claims, 4*l.store.cached)
	trim(s.Children, l.store.cached)
	trim(s.Families, l.store.cached)
}

// trim forgets entries of a cache, whichever come first, until half of what it may hold is left.
func trim[K comparable, V any](cache map[K]V, most int) {
	if len(cache) <= most {
		return
	}
	for k := range cache {
		if len(cache) <= most/2 {
			return
		}
		delete(cache, k)
	}
}

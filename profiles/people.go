package profiles

import (
	"context"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
)

// What activation asks about people: who they are, and who is in a segment.

// People returns what partners may be told of the profiles of one lane. Those that are not there any more are missing.
// A person's identifiers are those under which they were seen and the current e-mail address and phone number.
func (s *Store) People(ctx context.Context, lane int, workspace int32, ids [][16]byte) (map[[16]byte]activation.Person, error) {
	const query = `SELECT id, state FROM profiles WHERE lane = $1 AND workspace_id = $2 AND id = ANY ($3)`
	keys := make([]Key, len(ids))
	for i, id := range ids {
		keys[i] = id
	}
	rows, _ := s.pool.Query(ctx, query, lane, workspace, keys)
	people := make(map[[16]byte]activation.Person, len(ids))
	var id Key
	var packed []byte
	_, err := pgx.ForEachRow(rows, []any{&id, &packed}, func() error {
		p, err := DecodeProfile(id, workspace, packed)
		if err != nil {
			return err
		}
		people[id] = p.person()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read people of lane %d: %w", lane, err)
	}
	return people, nil
}

func (p *Profile) person() activation.Person {
	merged := p.Merged()
	out := activation.Person{
		ID:      activation.ProfileID(p.ID),
		Traits:  make(map[string]jsontext.Value, len(merged.Traits)),
		Consent: make(map[string]bool, len(merged.Consent)),
	}
	for _, t := range merged.Traits {
		out.Traits[t.Name] = t.Value.Clone()
	}
	for _, c := range merged.Consent {
		out.Consent[c.Purpose] = c.Granted
	}
	ids := p.lookupIdentifiers()
	for _, k := range merged.Identifiers {
		ids = append(ids, k.Identifier)
	}
	slices.SortFunc(ids, compareIdentifiers)
	for _, id := range slices.Compact(ids) {
		if id.Value != "" {
			out.Identifiers = append(out.Identifiers, activation.Identifier{Kind: id.Kind, Value: id.Value})
		}
	}
	return out
}

// EachMember calls fn with the members of a segment, some of one lane at a time. Members that come or go while it runs may
// or may not be among them.
func (s *Store) EachMember(ctx context.Context, workspace int32, segment int64, fn func(lane int, ids [][16]byte) error) error {
	const query = `
		SELECT profile_id
		FROM memberships
		WHERE lane = $1 AND workspace_id = $2 AND segment_id = $3 AND profile_id > $4
		ORDER BY profile_id
		LIMIT $5`
	const chunk = 5000
	for lane := range s.lanes {
		var after Key
		for {
			rows, _ := s.pool.Query(ctx, query, lane, workspace, segment, after, chunk)
			ids, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
			if err != nil {
				return fmt.Errorf("read members of segment %d in lane %d: %w", segment, lane, err)
			}
			if len(ids) == 0 {
				break
			}
			if err := fn(lane, ids); err != nil {
				return err
			}
			after = ids[len(ids)-1]
		}
	}
	return nil
}

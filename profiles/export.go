package profiles

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// EachMember calls fn with everybody in a segment, some of one lane at a time, which take a bounded amount of memory.
// Whoever is a member during all of it is passed exactly once; whoever enters or leaves meanwhile may be. Of somebody who is
// gone by now there is no profile. An error of fn ends it and is returned.
func (r *Reader) EachMember(ctx context.Context, workspace int32, segment int64, fn func(list []FullMember) error) error {
	const query = `
		SELECT m.profile_id, m.entered_at, p.state
		FROM memberships AS m
		LEFT JOIN profiles AS p ON p.lane = m.lane AND p.workspace_id = m.workspace_id AND p.id = m.profile_id
		WHERE m.lane = @lane AND m.segment_id = @segment AND m.profile_id > @after AND m.workspace_id = @workspace
		ORDER BY m.profile_id
		LIMIT @limit`
	const chunk = 500
	for lane := range r.lanes {
		for after, more := (Key{}), true; more; {
			rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
				"lane": lane, "workspace": workspace, "segment": segment, "after": after, "limit": chunk,
			})
			list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m FullMember, err error) {
				var state []byte
				if err := row.Scan(&m.ID, &m.EnteredAt, &state); err != nil || state == nil {
					return m, err
				}
				m.Profile, err = DecodeProfile(m.ID, workspace, state)
				return m, err
			})
			if err != nil {
				return fmt.Errorf("export members of segment %d in lane %d: %w", segment, lane, err)
			}
			if more = len(list) == chunk; more {
				after = list[len(list)-1].ID
			}
			if len(list) == 0 {
				continue
			}
			if err := fn(list); err != nil {
				return err
			}
		}
	}
	return nil
}

// FullMember is somebody in a segment, with all that is known of them.
type FullMember struct {
	ID        Key
	EnteredAt time.Time
	Profile   *Profile
}

// Newest returns the identifier of a kind that was seen last: of e-mail addresses and phone numbers, the current one. It is
// empty if there is none.
func (p *Profile) Newest(kind string) string {
	if kind == Email || kind == Phone {
		if value, ok := p.Trait(kind); ok && value.Kind() == '"' {
			if id := (Identifier{Kind: kind, Value: text(value)}).normal(); id.Value != "" {
				return id.Value
			}
		}
	}
	var newest Known
	consider := func(k Known) {
		if k.Kind != kind || k.Value == "" {
			return
		}
		if order := k.Last.Compare(newest.Last); newest.Value == "" || order > 0 || order == 0 && k.Value > newest.Value {
			newest = k
		}
	}
	for _, f := range p.Fragments {
		consider(Known{f.Identifier, Stamp{At: f.LastSeen}})
		for _, k := range f.Identifiers {
			consider(k)
		}
	}
	return newest.Value
}

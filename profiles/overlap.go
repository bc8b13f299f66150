package profiles

import (
	"context"
	"fmt"
	"math/bits"

	"github.com/jackc/pgx/v5"
)

// MaxOverlap is how many segments [Reader.Overlap] compares at most.
const MaxOverlap = 6

// Overlap tells how segments overlap. Members, Only and All count people: those of each segment, those in no other of them,
// and those in all of them. Union counts those in any.
type Overlap struct {
	Members, Only []int64 // in the order in which the segments were given
	All, Union    int64
}

// Overlap compares the members of up to [MaxOverlap] different segments, exactly: each lane's are put side by side in the
// order of their ids. All of a lane is of one moment.
func (r *Reader) Overlap(ctx context.Context, workspace int32, segments []int64) (Overlap, error) {
	const query = `
		SELECT which, count(*)
		FROM (
			SELECT bit_or(s.bit) AS which
			FROM unnest(@segments::bigint[], @bits::integer[]) AS s (id, bit)
			JOIN memberships AS m ON m.lane = @lane AND m.segment_id = s.id AND m.workspace_id = @workspace
			GROUP BY m.profile_id) AS people
		GROUP BY which`
	o := Overlap{Members: make([]int64, len(segments)), Only: make([]int64, len(segments))}
	masks := make([]int32, len(segments))
	for i := range masks {
		masks[i] = 1 << i
	}
	for lane := range r.lanes {
		rows, _ := r.db.Query(ctx, query, pgx.StrictNamedArgs{"lane": lane, "workspace": workspace, "segments": segments, "bits": masks})
		var which int32
		var n int64
		_, err := pgx.ForEachRow(rows, []any{&which, &n}, func() error {
			o.Union += n
			if which == 1<<len(segments)-1 {
				o.All += n
			}
			for i := range segments {
				if which>>i&1 != 0 {
					o.Members[i] += n
					if bits.OnesCount32(uint32(which)) == 1 {
						o.Only[i] += n
					}
				}
			}
			return nil
		})
		if err != nil {
			return Overlap{}, fmt.Errorf("compare segments in lane %d: %w", lane, err)
		}
	}
	return o, nil
}

package profiles

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/profiles/rule"
)

// maxReferences is how many references may follow one upon the other: a segment that refers to one that refers to one.
const maxReferences = 16

// referrer is a segment by what its newest rule refers to.
type referrer struct {
	ID       int64
	Key      string
	Deleting bool
	RefersTo []int64
}

// resolve returns the ids of the segments that a rule refers to. segment is whose rule it is to be, 0 if it is new. The error
// is a [*rule.Error] if one is not there, or is being deleted, or if the references would go in a circle or too deep.
func resolve(ctx context.Context, tx pgx.Tx, workspace int32, segment int64, r *rule.Rule) ([]int64, error) {
	ids := []int64{}
	if len(r.Segments()) == 0 {
		return ids, nil
	}
	const query = `
		SELECT s.id, s.key, s.deleting, v.refers_to
		FROM segments AS s
		JOIN segment_versions AS v ON v.segment_id = s.id AND v.version = s.version
		WHERE s.workspace_id = @workspace
		ORDER BY s.id`
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"workspace": workspace}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[referrer])
	if err != nil {
		return nil, fmt.Errorf("read references: %w", err)
	}
	g := references{}
	byKey := map[string]*referrer{}
	for i := range list {
		g[list[i].ID], byKey[list[i].Key] = &list[i], &list[i]
	}
	above := 0
	if segment != 0 {
		above = g.above(segment, map[int64]int{})
		g[segment].RefersTo = nil // it is about to be something else
	}
	wrong := map[string]string{} // by key
	for _, key := range r.Segments() {
		to := byKey[key]
		if to == nil || to.Deleting {
			wrong[key] = "no segment has this key"
			continue
		}
		ids = append(ids, to.ID)
		if path := g.path(to.ID, segment, map[int64]bool{}); path != nil {
			wrong[key] = "makes a circle: " + strings.Join(append([]string{g[segment].Key}, path...), " → ")
			continue
		}
		if n := above + 1 + g.below(to.ID, map[int64]int{}); n > maxReferences {
			wrong[key] = fmt.Sprintf("makes %d references one upon the other, at most %d are allowed", n, maxReferences)
		}
	}
	if len(wrong) == 0 {
		return ids, nil
	}
	canonical, err := r.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var node any
	if err := json.Unmarshal(canonical, &node); err != nil {
		return nil, err
	}
	faults := &rule.Error{}
	eachReference("#", node, func(at, key string) {
		if detail := wrong[key]; detail != "" {
			faults.Problems = append(faults.Problems, rule.Problem{Pointer: at, Detail: detail})
		}
	})
	return nil, faults
}

// references are the segments of a workspace, by id.
type references map[int64]*referrer

// path returns the keys on a way from one segment to another, both included, or nil if there is none.
func (g references) path(from, to int64, seen map[int64]bool) []string {
	s := g[from]
	if s == nil || seen[from] {
		return nil
	}
	seen[from] = true
	if from == to {
		return []string{s.Key}
	}
	for _, next := range s.RefersTo {
		if rest := g.path(next, to, seen); rest != nil {
			return append([]string{s.Key}, rest...)
		}
	}
	return nil
}

// below returns how many references follow one upon the other from a segment on. known is what was found before.
func (g references) below(id int64, known map[int64]int) int {
	s := g[id]
	if n, ok := known[id]; ok || s == nil {
		return n
	}
	deepest := 0
	for _, next := range s.RefersTo {
		deepest = max(deepest, 1+g.below(next, known))
	}
	known[id] = deepest
	return deepest
}

// above returns how many references lead to a segment one upon the other. known is what was found before.
func (g references) above(id int64, known map[int64]int) int {
	if n, ok := known[id]; ok {
		return n
	}
	highest := 0
	for _, s := range g {
		if slices.Contains(s.RefersTo, id) {
			highest = max(highest, 1+g.above(s.ID, known))
		}
	}
	known[id] = highest
	return highest
}

// eachReference calls fn with every reference of a rule in its canonical form, and where it is.
func eachReference(at string, node any, fn func(at, key string)) {
	n, _ := node.(map[string]any)
	if key, ok := n["segment"].(string); ok {
		fn(at+"/segment", key)
	}
	for _, group := range []string{"all", "any"} {
		list, _ := n[group].([]any)
		for i, inner := range list {
			eachReference(at+"/"+group+"/"+strconv.Itoa(i), inner, fn)
		}
	}
	if inner, ok := n["not"]; ok {
		eachReference(at+"/not", inner, fn)
	}
}

// checkUnreferred returns a [*ReferredError] if another segment refers to this one, in its newest version or in one that is
// still followed. Those that are being deleted do not count: a lane empties them first.
func checkUnreferred(ctx context.Context, tx pgx.Tx, segment int64) error {
	const query = `
		SELECT DISTINCT s.key
		FROM segments AS s
		JOIN segment_versions AS v ON v.segment_id = s.id
		WHERE s.workspace_id = (SELECT workspace_id FROM segments WHERE id = @segment) AND NOT s.deleting
		  AND @segment = ANY (v.refers_to)
		ORDER BY s.key`
	rows, _ := tx.Query(ctx, query, pgx.StrictNamedArgs{"segment": segment}) // err: below
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for references: %w", err)
	}
	if len(keys) > 0 {
		return &ReferredError{By: keys}
	}
	return nil
}

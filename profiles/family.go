package profiles

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
)

// familyLane is the lane that decides, for a whole workspace, which user belongs to which. Users claim users rarely (by
// alias, or where a source merges people by e-mail), but such claims can form chains and circles, and one place that sees
// them all can decide them without asking around.
func (s *step) familyLane(workspace int32) int {
	return familyLane(s.in.Definitions[workspace].Secret, s.in.Lanes)
}

func familyLane(secret Secret, lanes int) int {
	return secret.Key(Identifier{Kind: "workspace"}).Lane(lanes)
}

// Family is a set of users, connected by claims, and each one's root.
//
// The claims that are not void are taken in the order of their stamps. One does not stand if its child has a parent
// already or if the child is the parent's root, which would close a circle. What remains is a forest, the same whatever
// the order of arrival. Who was once connected stays in one family, also if all that connects them is void.
type Family struct {
	ID        Key // of any one member
	Workspace int32
	Version   int64
	Claims    []Link
	Verdicts  verdicts // on claims whose child is a member
	Roots     map[Key]Key
}

// Link is a claim between users.
type Link struct {
	Child, Parent Key
	Stamp         Stamp
}

func (l Link) compare(m Link) int {
	return cmp.Or(l.Stamp.Compare(m.Stamp), bytes.Compare(l.Parent[:], m.Parent[:]), bytes.Compare(l.Child[:], m.Child[:]))
}

// linked handles a claim between users, in the workspace's family lane.
func (s *step) linked(m *Message) error {
	parent, stamp, cause, err := readLink(m.Body)
	if err != nil {
		return err
	}
	a, okA := s.family(m.Workspace, m.Key)
	b, okB := s.family(m.Workspace, parent)
	if !okA || !okB {
		return nil
	}
	link := Link{Child: m.Key, Parent: parent, Stamp: stamp}
	if !a.wants(link) {
		return nil
	}
	if a.ID != b.ID {
		a = s.unite(a, b)
	}
	a.add(link)
	s.settleFamily(a, cause)
	return nil
}

// settleFamily decides a family anew and tells the users whose root is another one now.
func (s *step) settleFamily(f *Family, cause Cause) {
	roots := f.decide()
	changed := make([]Key, 0, len(roots))
	for key, root := range roots {
		if f.Roots[key] != root {
			changed = append(changed, key)
		}
	}
	f.Roots = roots
	for key := range roots {
		s.members[key] = f
	}
	s.out.Families[f.ID] = f
	if len(changed) == 0 {
		return
	}
	f.Version++
	slices.SortFunc(changed, func(a, b Key) int { return bytes.Compare(a[:], b[:]) })
	for _, key := range changed {
		s.send(key.Lane(s.in.Lanes), routeMessage(KindRoot, f.Workspace, key, roots[key], f.Version, cause))
	}
}

// family returns a copy of the family of key that the step may change; one of its own if it has none. ok is false while
// it has not been read.
func (s *step) family(workspace int32, key Key) (f *Family, ok bool) {
	if f, ok := s.members[key]; ok {
		return f, true
	}
	known, ok := s.in.State.Families[key]
	if !ok {
		s.missing.Families[Ref{workspace, key}] = struct{}{}
		return nil, false
	}
	if known == nil {
		f = &Family{ID: key, Workspace: workspace, Roots: map[Key]Key{key: key}}
	} else {
		copied := *known
		f = &copied
		f.Claims = slices.Clone(known.Claims)
		f.Roots = maps.Clone(known.Roots)
	}
	for member := range f.Roots {
		s.members[member] = f
	}
	return f, true
}

// unite makes one family of two. The greater version goes on, so that every member's versions keep growing.
func (s *step) unite(a, b *Family) *Family {
	if len(a.Roots) < len(b.Roots) {
		a, b = b, a
	}
	a.Version = max(a.Version, b.Version)
	a.Claims = append(a.Claims, b.Claims...)
	for _, v := range b.Verdicts {
		a.Verdicts, _ = a.Verdicts.take(v)
	}
	maps.Copy(a.Roots, b.Roots)
	s.out.Gone[b.ID] = b
	delete(s.out.Families, b.ID)
	return a
}

// wants tells whether a claim can make a difference: it is among the earliest of its child and earlier than the same
// pair's.
func (f *Family) wants(l Link) bool {
	earlier := 0
	for _, c := range f.Claims {
		if c.Child != l.Child {
			continue
		}
		if c.Parent == l.Parent && c.Stamp.Compare(l.Stamp) <= 0 {
			return false
		}
		if c.compare(l) < 0 {
			earlier++
		}
	}
	return earlier < maxClaims
}

func (f *Family) add(l Link) {
	f.Claims = slices.DeleteFunc(f.Claims, func(c Link) bool { return c.Child == l.Child && c.Parent == l.Parent })
	f.Claims = append(f.Claims, l)
	slices.SortFunc(f.Claims, Link.compare)
	n := 0
	f.Claims = slices.DeleteFunc(f.Claims, func(c Link) bool {
		if c.Child == l.Child {
			n++
		}
		return c.Child == l.Child && n > maxClaims
	})
}

// forest is the claims that stand, by child.
type forest map[Key]Link

func (t forest) root(k Key) Key {
	for {
		l, ok := t[k]
		if !ok {
			return k
		}
		k = l.Parent
	}
}

// stand returns the claims that stand.
func (f *Family) stand() forest {
	t := forest{}
	slices.SortFunc(f.Claims, Link.compare)
	for _, c := range f.Claims {
		if f.Verdicts.void(Pair{c.Parent, c.Child}) {
			continue
		}
		if _, taken := t[c.Child]; !taken && t.root(c.Parent) != c.Child {
			t[c.Child] = c
		}
	}
	return t
}

// decide returns every member's root.
func (f *Family) decide() map[Key]Key {
	t := f.stand()
	roots := make(map[Key]Key, len(f.Roots))
	for member := range f.Roots {
		roots[member] = t.root(member)
	}
	for _, c := range f.Claims {
		roots[c.Child], roots[c.Parent] = t.root(c.Child), t.root(c.Parent)
	}
	return roots
}

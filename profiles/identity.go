package profiles

import (
	"bytes"
	"slices"
)

// How fragments find their profile.
//
// An identifier's home lane knows its claims and so its root, under a version that grows with every change. A fragment is
// kept in the lane of its root. When the root changes, the home lane tells the lane that had the fragment, and that lane
// sends it on; what arrives there late is sent on too, because a lane remembers the newest version it has heard of. Parts
// of a fragment may travel at the same time by different ways: they merge in any order, each arrives once, and every lane
// that ever held the fragment learns of the version that follows its own. So all parts end with the latest root.

// maxClaims is how many claims on one identifier are remembered: the earliest ones, void or not. Were void ones not to
// count, a claim that was forgotten before a decision would have been kept after it, and the order of arrival would
// matter. So the claims kept follow from the claims alone, the verdicts from the decisions alone, and the root from both:
// it is the same in any order. The price is that an identifier all of whose twenty earliest claimants were refused goes
// home, although others claim it.
const maxClaims = 20

// Route says where an identifier's fragment belongs. Its home lane also has the claims that decide it.
type Route struct {
	Workspace int32
	Root      Key
	Version   int64
	Claims    []Claimed // by stamp and parent; empty but at home
	Verdicts  verdicts  // on claims that are there or to come; empty but at home
}

// decide returns the root of a visitor, at its home: that of the earliest claimant whose claim is not void, or else its
// own key.
func (r *Route) decide(key Key) Key {
	for _, c := range r.Claims {
		if !r.Verdicts.void(Pair{c.Parent, key}) {
			return c.Root
		}
	}
	return key
}

// Claimed is a claim as the claimed identifier's home knows it: who claims, since when, and the claimant's own root, as
// of a version.
type Claimed struct {
	Parent      Key
	Stamp       Stamp
	Root        Key
	RootVersion int64
}

// Claim is a claim as the claimant's home remembers it: the earliest that was sent for the pair.
type Claim struct {
	Pair
	Kind      MessageKind // [KindClaim] or [KindLink]
	Stamp     Stamp
	MessageID string
	Named     bool // the claimed identifier itself was sent along
}

func (c Claimed) compare(d Claimed) int {
	if o := c.Stamp.Compare(d.Stamp); o != 0 {
		return o
	}
	return bytes.Compare(c.Parent[:], d.Parent[:])
}

// route returns what this lane knows of where key belongs. At home an identifier without a route is its own root;
// elsewhere nothing is known of it, which is version -1. ok is false while it has not been read.
func (s *step) route(workspace int32, key Key) (r *Route, ok bool) {
	if r, ok := s.routes[key]; ok {
		return r, true
	}
	r, ok = s.in.State.Routes[key]
	if !ok {
		s.missing.Routes[Ref{workspace, key}] = struct{}{}
		return nil, false
	}
	if r != nil {
		return r, true
	}
	if key.Lane(s.in.Lanes) == s.in.Lane {
		return &Route{Workspace: workspace, Root: key}, true
	}
	return &Route{Workspace: workspace, Version: -1}, true
}

func (s *step) setRoute(key Key, r *Route) {
	s.routes[key] = r
	s.out.Routes[Ref{r.Workspace, key}] = r
}

// claim notes that parent claims child and tells the lane that decides. A claim that is not earlier than one already made
// for the pair decides nothing.
//
// id is the claimed identifier, where it is sure that there is one: then it shows among the person's, even if nothing was
// ever seen under it alone.
func (s *step) claim(workspace int32, parent, child Key, id Identifier, kind MessageKind, stamp Stamp, cause Cause) {
	if parent == child {
		return
	}
	pair := Pair{parent, child}
	known, ok := s.claims[pair]
	if !ok {
		if known, ok = s.in.State.Claims[pair]; !ok {
			s.missing.Claims[PairRef{workspace, pair}] = struct{}{}
			return
		}
	}
	c := &Claim{Pair: pair, Kind: kind, Stamp: stamp, MessageID: cause.MessageID, Named: id != (Identifier{})}
	if known != nil {
		if known.Stamp.Compare(stamp) <= 0 {
			if known.Named || !c.Named {
				return
			}
			c.Stamp, c.MessageID = known.Stamp, known.MessageID
		}
		c.Named = c.Named || known.Named
	}
	s.claims[pair] = c
	s.out.Claims[PairRef{workspace, pair}] = c
	if kind == KindLink {
		s.send(s.familyLane(workspace), linkMessage(workspace, child, parent, c.Stamp, cause))
		return
	}
	root, version := parent, int64(0)
	if parent.Lane(s.in.Lanes) == s.in.Lane {
		r, ok := s.route(workspace, parent)
		if !ok {
			return
		}
		root, version = r.Root, r.Version
	}
	s.send(child.Lane(s.in.Lanes), claimMessage(workspace, child, id, Claimed{parent, c.Stamp, root, version}, cause))
}

// claimed handles a claim on a visitor, at the visitor's home: the earliest claimant has it.
func (s *step) claimed(m *Message) error {
	id, c, cause, err := readClaim(m.Body)
	if err != nil {
		return err
	}
	s.weigh(m, c, cause)
	if id != (Identifier{}) {
		s.deliver(m.Workspace, Fragment{Key: m.Key, Identifier: id}, cause)
	}
	return nil
}

// weigh puts a claim among those on its identifier, and moves the identifier's fragment if another one is the earliest
// now.
func (s *step) weigh(m *Message, c Claimed, cause Cause) {
	r, ok := s.route(m.Workspace, m.Key)
	if !ok {
		return
	}
	next := *r
	next.Claims = slices.Clone(r.Claims)
	i := slices.IndexFunc(next.Claims, func(k Claimed) bool { return k.Parent == c.Parent })
	if i >= 0 {
		known := next.Claims[i]
		if known.RootVersion > c.RootVersion { // an older message that was overtaken
			c.Root, c.RootVersion = known.Root, known.RootVersion
		}
		if known.Stamp.Compare(c.Stamp) < 0 {
			c.Stamp = known.Stamp
		}
		if c == known {
			return
		}
		next.Claims = slices.Delete(next.Claims, i, i+1)
	}
	next.Claims = append(next.Claims, c)
	slices.SortFunc(next.Claims, Claimed.compare)
	next.Claims = next.Claims[:min(len(next.Claims), maxClaims)]
	s.moveHome(m.Workspace, m.Key, r, &next, next.decide(m.Key), r.Version+1, cause)
}

// rooted handles a decision of the family lane, at the user's home.
func (s *step) rooted(m *Message) error {
	root, version, cause, err := readRoute(m.Body)
	if err != nil {
		return err
	}
	r, ok := s.route(m.Workspace, m.Key)
	if !ok || version <= r.Version {
		return nil
	}
	next := *r
	s.moveHome(m.Workspace, m.Key, r, &next, root, version, cause)

	// Whom the user claims goes with the user.
	children, ok := s.children(m.Workspace, m.Key)
	if !ok {
		return nil
	}
	for _, c := range children {
		if c.Kind == KindClaim {
			s.send(c.Child.Lane(s.in.Lanes), claimMessage(m.Workspace, c.Child, Identifier{}, Claimed{m.Key, c.Stamp, root, version}, cause))
		}
	}
	return nil
}

// children returns the claims made for parent, in the order of the children.
func (s *step) children(workspace int32, parent Key) ([]*Claim, bool) {
	known, ok := s.in.State.Children[parent]
	if !ok {
		s.missing.Children[Ref{workspace, parent}] = struct{}{}
		return nil, false
	}
	byChild := map[Key]*Claim{}
	for _, c := range known {
		byChild[c.Child] = c
	}
	for pair, c := range s.claims {
		if pair.Parent == parent {
			byChild[pair.Child] = c
		}
	}
	all := make([]*Claim, 0, len(byChild))
	for _, c := range byChild {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *Claim) int { return bytes.Compare(a.Child[:], b.Child[:]) })
	return all, true
}

// moveHome changes a route at its identifier's home, and moves the fragment if the root is another one.
func (s *step) moveHome(workspace int32, key Key, old, next *Route, root Key, version int64, cause Cause) {
	if root == old.Root {
		if version > old.Version && len(next.Claims)+len(next.Verdicts) == 0 {
			next.Version = version // the family lane's count
		}
		s.setRoute(key, next)
		return
	}
	next.Root, next.Version = root, version
	s.setRoute(key, next)
	cause = moved(cause)
	if holder := old.Root.Lane(s.in.Lanes); holder != s.in.Lane {
		s.send(holder, routeMessage(KindRoute, workspace, key, root, version, cause))
		return
	}
	if f, found := s.leave(old.Root, workspace, key, cause); found {
		s.deliver(workspace, f, cause)
	}
}

// moved is what a fragment moves by: a merge, whatever the claim came with, unless it is an un-merge.
func moved(cause Cause) Cause {
	if cause.Kind != CauseUnmerge {
		cause.Kind = CauseMerge
	}
	return cause
}

// routed handles word that a fragment this lane had belongs elsewhere now.
func (s *step) routed(m *Message) error {
	root, version, cause, err := readRoute(m.Body)
	if err != nil {
		return err
	}
	s.adopt(m.Workspace, m.Key, root, version, cause)
	return nil
}

// adopt takes over a newer route of an identifier that is at home elsewhere, and moves what this lane has of it.
func (s *step) adopt(workspace int32, key, root Key, version int64, cause Cause) {
	r, ok := s.route(workspace, key)
	if !ok || version <= r.Version {
		return
	}
	s.setRoute(key, &Route{Workspace: workspace, Root: root, Version: version})
	if r.Version < 0 || r.Root == root || r.Root.Lane(s.in.Lanes) != s.in.Lane {
		return
	}
	if f, found := s.leave(r.Root, workspace, key, cause); found {
		s.deliver(workspace, f, cause)
	}
}

// piece handles a fragment, or a part of one, that another lane sent here or onward.
func (s *step) piece(m *Message) error {
	root, version, f, cause, err := readPiece(m.Body)
	if err != nil {
		return err
	}
	if m.Key.Lane(s.in.Lanes) != s.in.Lane {
		s.adopt(m.Workspace, m.Key, root, version, moved(cause))
	}
	s.deliver(m.Workspace, f, cause)
	return nil
}

// deliver puts a fragment, or a part of one, where it belongs as far as this lane knows.
func (s *step) deliver(workspace int32, f Fragment, cause Cause) {
	r, ok := s.route(workspace, f.Key)
	if !ok {
		if _, known := s.in.State.Profiles[f.Key]; !known && f.Key.Lane(s.in.Lanes) == s.in.Lane {
			s.missing.Profiles[Ref{workspace, f.Key}] = struct{}{} // most are their own root: saves asking again
		}
		return
	}
	if target := r.Root.Lane(s.in.Lanes); target != s.in.Lane {
		s.send(target, pieceMessage(workspace, r.Root, r.Version, f, cause))
		return
	}
	s.join(r.Root, workspace, f, cause)
}

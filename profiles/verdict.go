package profiles

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"time"
)

// Decision says of pairs that the claims of the one on the other are void, or that they count again, whether there are
// such claims already or they are still to come. Of several decisions on a pair the latest stands, by time and then by
// message, in whatever order they arrive.
type Decision struct {
	MessageID string
	At        time.Time // to the millisecond
	Void      bool
	Key       Key  // the identifier that it is about
	Users     bool // the pairs are of users; otherwise all are of one visitor, and Key is that visitor's
	Pairs     []Pair
}

func (d Decision) stamp() Stamp { return stampOf(d.At.UnixMilli(), MessageKey(d.MessageID)) }

// Message returns the decision as a message, and the lane that it goes to.
func (d Decision) Message(workspace int32, secret Secret, lanes int) (lane int, m Message) {
	kind, lane := KindVerdict, d.Key.Lane(lanes)
	if d.Users {
		kind, lane = KindLinkVerdict, familyLane(secret, lanes)
	}
	return lane, Message{
		Kind: kind, Workspace: workspace, ID: MessageKey(d.MessageID), Key: d.Key, Received: d.At.Truncate(time.Millisecond), Body: appendDecision(d),
	}
}

// Verdict is the latest decision on a pair.
type Verdict struct {
	Pair
	Stamp Stamp
	Void  bool
}

func (v Verdict) compare(w Verdict) int {
	return cmp.Or(bytes.Compare(v.Child[:], w.Child[:]), bytes.Compare(v.Parent[:], w.Parent[:]))
}

// verdicts are the latest decisions, by child and parent. They are kept apart from the claims, and all of them: a claim
// may come after the decision on it, or drop out of those that are remembered and come back under an earlier stamp.
// Somebody has made each of them, so they are few.
type verdicts []Verdict

// take returns vs with v among them, and whether that made a difference. vs itself is not changed.
func (vs verdicts) take(v Verdict) (verdicts, bool) {
	i, found := slices.BinarySearchFunc(vs, v, Verdict.compare)
	if !found {
		return slices.Insert(slices.Clone(vs), i, v), true
	}
	switch order := v.Stamp.Compare(vs[i].Stamp); {
	case order < 0, order == 0 && (vs[i].Void || !v.Void): // two that cannot be told apart: void, whichever comes first
		return vs, false
	}
	vs = slices.Clone(vs)
	vs[i] = v
	return vs, true
}

// void tells whether the claims of a pair do not count.
func (vs verdicts) void(p Pair) bool {
	i, found := slices.BinarySearchFunc(vs, Verdict{Pair: p}, Verdict.compare)
	return found && vs[i].Void
}

// cause is what a decision has the memberships changed by.
func (d Decision) cause() Cause {
	kind := CauseUnmerge
	if !d.Void {
		kind = CauseMerge
	}
	return Cause{Kind: kind, MessageID: d.MessageID}
}

// judged handles a decision on a visitor, at the visitor's home.
func (s *step) judged(m *Message) error {
	d, err := readDecision(m)
	if err != nil {
		return err
	}
	if m.Key.Lane(s.in.Lanes) != s.in.Lane || slices.ContainsFunc(d.Pairs, func(p Pair) bool { return p.Child != m.Key }) {
		return errors.New("the decision is not at its visitor's home")
	}
	s.out.Decided = append(s.out.Decided, Decided{Message: m, Decision: d})
	r, ok := s.route(m.Workspace, m.Key)
	if !ok {
		return nil
	}
	next, changed := *r, false
	for _, p := range d.Pairs {
		var news bool
		next.Verdicts, news = next.Verdicts.take(Verdict{p, d.stamp(), d.Void})
		changed = changed || news
	}
	if changed {
		s.moveHome(m.Workspace, m.Key, r, &next, next.decide(m.Key), r.Version+1, d.cause())
	}
	return nil
}

// linkJudged handles a decision on users, in the workspace's family lane. A user's verdicts are kept in the user's family,
// as the claims on the user are.
func (s *step) linkJudged(m *Message) error {
	d, err := readDecision(m)
	if err != nil {
		return err
	}
	if s.familyLane(m.Workspace) != s.in.Lane {
		return errors.New("the decision is not in the family lane")
	}
	s.out.Decided = append(s.out.Decided, Decided{Message: m, Decision: d})
	var changed []*Family
	for _, p := range d.Pairs {
		f, ok := s.family(m.Workspace, p.Child)
		if !ok {
			continue
		}
		var news bool
		f.Verdicts, news = f.Verdicts.take(Verdict{p, d.stamp(), d.Void})
		if news && !slices.Contains(changed, f) {
			changed = append(changed, f)
		}
	}
	for _, f := range changed {
		s.settleFamily(f, d.cause())
	}
	return nil
}

// Decided is a decision that was taken in, whether or not a later one stands.
type Decided struct {
	Message  *Message
	Decision Decision
}

package profiles

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// Why a membership changed.
const (
	CauseEvent  = "event"
	CauseTimer  = "timer"
	CauseBuild  = "build"
	CauseEdit   = "edit"
	CauseDelete = "delete"
	CauseMerge  = "merge"

	CauseUnmerge = "unmerge" // a decision that claims are void
	CauseErasure = activation.CauseErasure
)

// Cause is what made a membership change: its kind and, for events, merges and un-merges, the message.
type Cause struct {
	Kind      string
	Source    int32
	MessageID string
}

// Pair is a claim's two ends.
type Pair struct{ Parent, Child Key }

// State is the part of a lane's state that a step may need. A key that is present with a nil value is known to be
// absent; a key that is not present has not been read. A step changes nothing in it.
type State struct {
	Profiles map[Key]*Profile
	Routes   map[Key]*Route
	Claims   map[Pair]*Claim
	Children map[Key][]*Claim // by parent: every claim made for it
	Families map[Key]*Family  // by member
}

// NewState returns an empty state: nothing has been read.
func NewState() *State {
	return &State{
		Profiles: map[Key]*Profile{},
		Routes:   map[Key]*Route{},
		Claims:   map[Pair]*Claim{},
		Children: map[Key][]*Claim{},
		Families: map[Key]*Family{},
	}
}

// Ref names something of a workspace.
type Ref struct {
	Workspace int32
	Key       Key
}

// PairRef names a claim of a workspace.
type PairRef struct {
	Workspace int32
	Pair
}

// Missing is what a step needed and its [State] did not have.
type Missing struct {
	Profiles map[Ref]struct{}
	Routes   map[Ref]struct{}
	Claims   map[PairRef]struct{}
	Children map[Ref]struct{}
	Families map[Ref]struct{}
}

func newMissing() *Missing {
	return &Missing{
		Profiles: map[Ref]struct{}{},
		Routes:   map[Ref]struct{}{},
		Claims:   map[PairRef]struct{}{},
		Children: map[Ref]struct{}{},
		Families: map[Ref]struct{}{},
	}
}

func (m *Missing) empty() bool {
	return len(m.Profiles)+len(m.Routes)+len(m.Claims)+len(m.Children)+len(m.Families) == 0
}

// Input is all that a step depends on.
type Input struct {
	Lane, Lanes int
	Now         time.Time
	OutboxSeq   int64 // the last number the lane's outbox used
	Definitions map[int32]*Definitions
	State       *State
	Messages    []Message // fresh ones: each is given once
	Due         []Ref     // profiles in which a membership may have changed by itself
	Sweep       *Sweep
	Replay      *Replay
	Erase       *Erase

	events map[int]*Event // decoded messages, kept from one try to the next; may be nil
}

// Sweep is a segment that is to be evaluated for profiles in which nothing happened, because its rule is new.
type Sweep struct {
	Segment  int64
	Profiles []Ref
	Cause    string
}

// Replay is a part of the archive that is folded again, for behaviours that are newer than it. Nothing but their
// timelines comes of it.
type Replay struct {
	Workspace  int32
	Behaviours map[string][]*Behaviour // by event name
	Events     []Replayed
}

// Replayed is an archived event.
type Replayed struct {
	Key        Key
	At         int64 // unix milliseconds, event time
	Name       string
	Properties jsontext.Value
}

// Erase takes everything out of profiles that was seen under some identifiers, and out of those that are theirs whatever
// else is in them.
type Erase struct {
	Workspace int32
	Keys      []Key
}

// Outcome is what a step decided. It holds the new value of everything that changed.
type Outcome struct {
	Profiles    map[Ref]*Profile // nil: gone
	Before      map[Ref]*Profile // as they were, for the same keys; nil: new
	Routes      map[Ref]*Route
	Claims      map[PairRef]*Claim
	Families    map[Key]*Family // by family id
	Gone        map[Key]*Family // families that were merged into others
	Transitions []Transition
	Archive     []Archived
	Decided     []Decided
	Failed      []Failed
	Outbox      []Outgoing
	OutboxSeq   int64
}

// Transition is one entering or leaving.
type Transition struct {
	Workspace int32
	Segment   int64
	Profile   Key
	Entered   bool
	At        int64 // unix milliseconds
	Cause     Cause
}

// Archived is an event on its way to the archive.
type Archived struct {
	Message *Message
	EventAt int64
	Type    string
	Name    string

	event *Event
	root  Key // of whom it is, as far as the lane knew when it came
}

// Failed is a message that cannot be applied, and why.
type Failed struct {
	Index  int // in Input.Messages
	Stage  string
	Reason string
}

// Outgoing is a message to another lane.
type Outgoing struct {
	Seq     int64
	Target  int
	Message Message
}

// Step folds messages into a lane's state. It is pure: the same input gives the same outcome. If the state did not have
// all that was needed, it returns what is missing and no outcome; then it is to be called again with a fuller state. A
// message that cannot be applied is in Failed and has no other effect.
func Step(in Input) (*Outcome, *Missing) {
	var failed []Failed
	skip := map[int]bool{}
	for {
		s := newStep(in)
		bad := s.run(skip)
		if bad == nil {
			if !s.missing.empty() {
				return nil, s.missing
			}
			s.out.Failed = append(s.out.Failed, failed...)
			slices.SortFunc(s.out.Failed, func(a, b Failed) int { return a.Index - b.Index })
			return s.out, nil
		}
		if !s.missing.empty() {
			return nil, s.missing // what failed may have failed for want of it
		}
		// The message may have left something half done: start again without it.
		failed = append(failed, *bad)
		skip[bad.Index] = true
	}
}

type step struct {
	in      Input
	now     int64
	out     *Outcome
	missing *Missing
	owned   map[Key]*ownedProfile
	routes  map[Key]*Route
	claims  map[Pair]*Claim
	members map[Key]*Family // families changed in this step, by member
	since   time.Time       // when the event was accepted from which what is being done follows
	queue   []Message       // to this lane, from this step
}

// ownedProfile is a profile that the step may change.
type ownedProfile struct {
	*Profile
	before  *Profile
	changed bool
	left    *Cause          // why its last fragment went
	touched map[int64]touch // segments in which the membership may be another now
}

func newStep(in Input) *step {
	return &step{
		in:  in,
		now: in.Now.UnixMilli(),
		out: &Outcome{
			Profiles:  map[Ref]*Profile{},
			Before:    map[Ref]*Profile{},
			Routes:    map[Ref]*Route{},
			Claims:    map[PairRef]*Claim{},
			Families:  map[Key]*Family{},
			Gone:      map[Key]*Family{},
			OutboxSeq: in.OutboxSeq,
		},
		missing: newMissing(),
		owned:   map[Key]*ownedProfile{},
		routes:  map[Key]*Route{},
		claims:  map[Pair]*Claim{},
		members: map[Key]*Family{},
	}
}

// run handles all messages but those to be skipped, then evaluates. It returns a message that went wrong half-way, if
// there was one.
func (s *step) run(skip map[int]bool) *Failed {
	for i := range s.in.Messages {
		if skip[i] {
			continue
		}
		if bad := s.try(i); bad != nil {
			return bad
		}
	}
	s.since = s.in.Now
	if s.in.Replay != nil {
		if err := s.replay(s.in.Replay); err != nil {
			panic(err) // what a step sends itself can be read
		}
	}
	if s.in.Erase != nil {
		for _, key := range s.in.Erase.Keys {
			s.erase(s.in.Erase.Workspace, key)
		}
	}
	for _, ref := range s.in.Due {
		s.own(ref.Workspace, ref.Key)
	}
	if sweep := s.in.Sweep; sweep != nil {
		for _, ref := range sweep.Profiles {
			if p := s.own(ref.Workspace, ref.Key); p != nil && p.before != nil {
				s.mark(p, s.in.Definitions[ref.Workspace].evaluated(sweep.Segment), Cause{Kind: sweep.Cause})
			}
		}
	}
	if s.missing.empty() {
		s.evaluate()
	}
	return nil
}

// try handles one message and what it makes the lane tell itself. A panic is the message's fault, not the lane's.
func (s *step) try(i int) (bad *Failed) {
	m := &s.in.Messages[i]
	defer func() {
		if r := recover(); r != nil {
			bad = &Failed{Index: i, Stage: "fold", Reason: fmt.Sprintf("panic: %v\n%s", r, debug.Stack())}
		}
	}()
	s.since = m.Received
	if err := s.handle(i, m); err != nil { // it could not be read, so nothing has come of it
		s.out.Failed = append(s.out.Failed, Failed{Index: i, Stage: "decode", Reason: err.Error()})
		return nil
	}
	if err := s.drain(); err != nil {
		return &Failed{Index: i, Stage: "fold", Reason: err.Error()}
	}
	return nil
}

// drain handles what the lane has to tell itself.
func (s *step) drain() error {
	for len(s.queue) > 0 {
		next := s.queue[0]
		s.queue = s.queue[1:]
		if err := s.handle(-1, &next); err != nil {
			return err
		}
	}
	return nil
}

// replay folds archived events again. Events of one identifier travel together.
func (s *step) replay(r *Replay) error {
	fragments := map[Key]*Fragment{}
	var keys []Key
	for _, e := range r.Events {
		for _, b := range r.Behaviours[e.Name] {
			t := Behaved{b.ID, b.Empty()}
			if !b.Fold(&t.Timeline, e.At, e.Properties) {
				continue
			}
			f := fragments[e.Key]
			if f == nil {
				f = &Fragment{Key: e.Key}
				fragments[e.Key] = f
				keys = append(keys, e.Key)
			}
			f.addTimeline(t)
		}
	}
	for _, key := range keys {
		s.deliver(r.Workspace, *fragments[key], Cause{Kind: CauseBuild})
	}
	return s.drain()
}

// erase takes the fragment of an identifier out of the profile that this lane has it in, and empties the identifier's own.
func (s *step) erase(workspace int32, key Key) {
	cause := Cause{Kind: CauseErasure}
	r, ok := s.route(workspace, key)
	if !ok {
		return
	}
	if r.Version >= 0 && r.Root != key && r.Root.Lane(s.in.Lanes) == s.in.Lane {
		s.leave(r.Root, workspace, key, cause)
	}
	p := s.own(workspace, key)
	for p != nil && len(p.Fragments) > 0 {
		s.leave(key, workspace, p.Fragments[0].Key, cause)
	}
}

// handle does what a message says. It returns an error only before it has done anything.
func (s *step) handle(i int, m *Message) error {
	if s.in.Definitions[m.Workspace] == nil {
		return fmt.Errorf("workspace %d is not known", m.Workspace)
	}
	switch m.Kind {
	case KindEvent:
		return s.event(i, m)
	case KindClaim:
		return s.claimed(m)
	case KindLink:
		return s.linked(m)
	case KindRoot:
		return s.rooted(m)
	case KindRoute:
		return s.routed(m)
	case KindPiece:
		return s.piece(m)
	case KindVerdict:
		return s.judged(m)
	case KindLinkVerdict:
		return s.linkJudged(m)
	}
	return fmt.Errorf("message kind %d is not known", m.Kind)
}

// event archives an event, makes the claims that follow from it, and sends its part to where its fragment belongs.
func (s *step) event(i int, m *Message) error {
	e := s.in.events[i]
	if e == nil {
		var err error
		if e, err = DecodeEvent(m.Body); err != nil {
			return err
		}
		if s.in.events != nil {
			s.in.events[i] = e
		}
	}
	defs := s.in.Definitions[m.Workspace]
	id := e.Identifier()
	key := defs.Secret.Key(id)
	if key != m.Key || key.Lane(s.in.Lanes) != s.in.Lane {
		return errors.New("the event is not at its identifier's home")
	}
	at := e.Timestamp.UnixMilli()
	stamp := stampOf(at, m.ID)
	cause := Cause{Kind: CauseEvent, Source: m.Source, MessageID: e.MessageID}
	archived := len(s.out.Archive)
	s.out.Archive = append(s.out.Archive, Archived{Message: m, EventAt: at, Type: e.Type, Name: e.Name(), event: e, root: key})

	if e.UserID != "" && e.AnonymousID != "" {
		visitor := Identifier{Kind: AnonymousID, Value: e.AnonymousID}
		s.claim(m.Workspace, key, defs.Secret.Key(visitor), visitor, KindClaim, stamp, cause)
	}
	if e.Type == "alias" && e.UserID != "" && e.PreviousID != "" {
		// The previous id may have been a visitor's or a user's: both now belong to the user.
		visitor := Identifier{Kind: AnonymousID, Value: e.PreviousID}
		s.claim(m.Workspace, key, defs.Secret.Key(visitor), Identifier{}, KindClaim, stamp, cause)
		user := Identifier{Kind: UserID, Value: e.PreviousID}
		s.claim(m.Workspace, key, defs.Secret.Key(user), Identifier{}, KindLink, stamp, cause)
	}
	kind := KindClaim
	if id.Kind == UserID {
		kind = KindLink
	}
	for _, by := range e.mergers() {
		s.claim(m.Workspace, defs.Secret.Key(by), key, id, kind, stamp, cause)
	}

	s.deliver(m.Workspace, e.fragment(key, stamp, defs.behaviours[e.Name()]), cause)
	if r, ok := s.route(m.Workspace, key); ok {
		s.out.Archive[archived].root = r.Root
	}
	return nil
}

// send queues a message for a lane; one for this lane is handled within the same step.
func (s *step) send(target int, m Message) {
	if target == s.in.Lane {
		s.queue = append(s.queue, m)
		return
	}
	s.out.OutboxSeq++
	m.ID = outboxID(s.in.Lane, s.out.OutboxSeq)
	m.Received = s.since
	s.out.Outbox = append(s.out.Outbox, Outgoing{Seq: s.out.OutboxSeq, Target: target, Message: m})
}

// outboxID makes a message between lanes distinct for dedupe: its lane and its number there. readOutboxID reads it.
func outboxID(lane int, seq int64) (id Key) {
	binary.BigEndian.PutUint64(id[:8], uint64(lane))
	binary.BigEndian.PutUint64(id[8:], uint64(seq))
	return id
}

func readOutboxID(id Key) (lane int, seq int64) {
	return int(binary.BigEndian.Uint64(id[:8])), int64(binary.BigEndian.Uint64(id[8:]))
}

// own returns a copy of a profile that the step may change, empty if there was none, or nil while it has not been read.
func (s *step) own(workspace int32, id Key) *ownedProfile {
	if p, ok := s.owned[id]; ok {
		return p
	}
	before, ok := s.in.State.Profiles[id]
	if !ok {
		s.missing.Profiles[Ref{workspace, id}] = struct{}{}
		return nil
	}
	p := &ownedProfile{before: before}
	if before != nil {
		p.Profile = before.clone()
	} else {
		p.Profile = &Profile{ID: id, Workspace: workspace}
	}
	s.owned[id] = p
	return p
}

// join merges a fragment or a part of one into a profile and notes which segments may change by it.
func (s *step) join(root Key, workspace int32, f Fragment, cause Cause) {
	p := s.own(workspace, root)
	if p == nil {
		return
	}
	s.touch(p, &f, cause)
	if len(p.Fragments) == 0 {
		for _, e := range s.in.Definitions[workspace].vacuous {
			s.mark(p, e, cause)
		}
	}
	p.attach(f)
	p.changed = true
}

// leave takes a fragment out of a profile.
func (s *step) leave(root Key, workspace int32, key Key, cause Cause) (Fragment, bool) {
	p := s.own(workspace, root)
	if p == nil {
		return Fragment{}, false
	}
	i, found := slices.BinarySearchFunc(p.Fragments, key, compareFragment)
	if !found {
		return Fragment{}, false
	}
	s.touch(p, &p.Fragments[i], cause)
	f := p.Fragments[i]
	p.Fragments = slices.Delete(p.Fragments, i, i+1)
	p.changed = true
	if len(p.Fragments) == 0 {
		p.left = &cause
	}
	return f, true
}

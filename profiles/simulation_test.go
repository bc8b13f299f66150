package profiles_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
	"github.com/mubatch/mubatch/profiles/rule"
)

// The simulation runs the pure step over many lanes with everything that may go wrong between them, and compares what is
// left at the end with a naive fold over the set of events. It knows nothing of how the step does it.

var (
	simRuns = flag.Int("simulation.runs", 10_000, "how many random runs the simulation does")
	simSeed = flag.Uint64("simulation.seed", 0, "run only this seed")
)

// raceDetector tells whether the tests run under it, which makes them several times slower.
var raceDetector bool

func simDefinitions(t testing.TB) map[int32]*profiles.Definitions {
	t.Helper()
	var behaviours []*profiles.Behaviour
	var segments []*profiles.Segment
	for _, s := range profilestest.Segments {
		r, err := rule.Parse([]byte(s.Rule))
		if err != nil {
			t.Fatal(err)
		}
		segment := &profiles.Segment{ID: s.ID, Version: 1, Rule: r}
		for _, b := range r.Behaviours() {
			id := int32(len(behaviours) + 1)
			behaviours = append(behaviours, &profiles.Behaviour{ID: id, Behaviour: b})
			segment.Behaviours = append(segment.Behaviours, id)
		}
		segments = append(segments, segment)
	}
	return map[int32]*profiles.Definitions{1: profiles.NewDefinitions(1, profilestest.Secret, behaviours, segments)}
}

// simLane is a lane's stream and what is durable of it.
type simLane struct {
	stream    []profiles.Message
	offset    int
	state     *profiles.State
	known     map[simID]bool
	outboxSeq int64
	outbox    []profiles.Outgoing // committed, perhaps not published
}

type simID struct {
	source int32
	id     profiles.Key
}

type sim struct {
	rng    *rand.Rand
	defs   map[int32]*profiles.Definitions
	lanes  []*simLane
	now    time.Time
	last   map[simMembership]bool // the last transition of each
	broken string
}

type simMembership struct {
	profile profiles.Key
	segment int64
}

func newSim(rng *rand.Rand, defs map[int32]*profiles.Definitions, lanes int) *sim {
	s := &sim{rng: rng, defs: defs, now: profilestest.Start, last: map[simMembership]bool{}}
	for range lanes {
		s.lanes = append(s.lanes, &simLane{state: profiles.NewState(), known: map[simID]bool{}})
	}
	return s
}

// history is what happens in a run: a set of events and a set of decisions on the claims they make.
type history struct {
	events    []profilestest.Event
	decisions []profilestest.Decision
}

func randomHistory(seed uint64) history {
	rng := rand.New(rand.NewPCG(seed, 1))
	events := profilestest.RandomEvents(rng)
	return history{events, profilestest.RandomDecisions(rng, events)}
}

// without returns the history but for the i-th of its events and decisions.
func (h history) without(i int) history {
	if i < len(h.events) {
		return history{slices.Delete(slices.Clone(h.events), i, i+1), h.decisions}
	}
	i -= len(h.events)
	return history{h.events, slices.Delete(slices.Clone(h.decisions), i, i+1)}
}

// simRouted is a message on its way to a lane.
type simRouted struct {
	lane int
	profiles.Message
}

// run delivers the history in a random order with duplicates, while lanes step, fail, publish and ring in between, then
// lets everything come to rest at the end of the simulated minute.
func (s *sim) run(h history) {
	var queue []simRouted
	for _, e := range h.events {
		for range 1 + s.rng.IntN(4)/3 {
			m := e.Message()
			queue = append(queue, simRouted{m.Key.Lane(len(s.lanes)), m})
		}
	}
	for _, d := range h.decisions {
		for range 1 + s.rng.IntN(4)/3 {
			lane, m := d.Message(len(s.lanes))
			queue = append(queue, simRouted{lane, m})
		}
	}
	s.rng.Shuffle(len(queue), func(i, j int) { queue[i], queue[j] = queue[j], queue[i] })
	end := profilestest.Start.Add(60 * time.Second)
	for range 10_000 + 400*len(queue) {
		if len(queue) == 0 && s.rest() {
			break
		}
		switch s.rng.IntN(5) {
		case 0:
			if len(queue) > 0 {
				m := queue[0]
				queue = queue[1:]
				l := s.lanes[m.lane]
				l.stream = append(l.stream, m.Message)
			}
		case 1, 2:
			s.step(s.rng.IntN(len(s.lanes)), s.rng.IntN(5) == 0)
		case 3:
			s.publish(s.rng.IntN(len(s.lanes)))
		case 4:
			if s.now.Before(end) {
				s.now = s.now.Add(time.Duration(s.rng.IntN(2000)) * time.Millisecond)
			}
			s.ring(s.rng.IntN(len(s.lanes)))
		}
	}
	if len(queue) > 0 || !s.rest() {
		s.broken = "never came to rest"
	}
	s.now = end
	for i := range s.lanes {
		s.ring(i)
	}
}

func (s *sim) rest() bool {
	for _, l := range s.lanes {
		if l.offset < len(l.stream) || len(l.outbox) > 0 {
			return false
		}
	}
	return true
}

// step applies the next few messages of a lane, or does so and loses the commit.
func (s *sim) step(lane int, lose bool) {
	l := s.lanes[lane]
	n := min(1+s.rng.IntN(6), len(l.stream)-l.offset)
	if n == 0 {
		return
	}
	var fresh []profiles.Message
	seen := map[simID]bool{}
	for _, m := range l.stream[l.offset : l.offset+n] {
		id := simID{m.Source, m.ID}
		if !l.known[id] && !seen[id] {
			fresh = append(fresh, m)
			seen[id] = true
		}
	}
	out := s.call(lane, profiles.Input{Messages: fresh})
	if lose {
		return
	}
	l.offset += n
	maps.Copy(l.known, seen)
	s.commit(lane, out)
}

// ring re-evaluates whoever is due in a lane.
func (s *sim) ring(lane int) {
	var due []profiles.Ref
	for key, p := range s.lanes[lane].state.Profiles {
		if p == nil {
			continue
		}
		for _, st := range p.Standings {
			if st.Due != 0 && st.Due <= s.now.UnixMilli() {
				due = append(due, profiles.Ref{Workspace: 1, Key: key})
				break
			}
		}
	}
	if len(due) > 0 {
		s.commit(lane, s.call(lane, profiles.Input{Due: due}))
	}
}

// call runs the step, giving it what it misses.
func (s *sim) call(lane int, in profiles.Input) *profiles.Outcome {
	l := s.lanes[lane]
	view := profiles.NewState()
	in.Lane, in.Lanes, in.Now, in.OutboxSeq, in.Definitions, in.State = lane, len(s.lanes), s.now, l.outboxSeq, s.defs, view
	for range 20 {
		out, missing := profiles.Step(in)
		if missing == nil {
			if len(out.Failed) > 0 {
				s.broken = "failed: " + out.Failed[0].Reason
			}
			return out
		}
		for ref := range missing.Profiles {
			view.Profiles[ref.Key] = l.state.Profiles[ref.Key]
		}
		for ref := range missing.Routes {
			view.Routes[ref.Key] = l.state.Routes[ref.Key]
		}
		for ref := range missing.Claims {
			view.Claims[ref.Pair] = l.state.Claims[ref.Pair]
		}
		for ref := range missing.Children {
			view.Children[ref.Key] = nil
			for pair, c := range l.state.Claims {
				if pair.Parent == ref.Key && c != nil {
					view.Children[ref.Key] = append(view.Children[ref.Key], c)
				}
			}
		}
		for ref := range missing.Families {
			view.Families[ref.Key] = l.state.Families[ref.Key]
		}
	}
	s.broken = "the step never has all it needs"
	return &profiles.Outcome{OutboxSeq: l.outboxSeq}
}

func (s *sim) commit(lane int, out *profiles.Outcome) {
	l := s.lanes[lane]
	for ref, p := range out.Profiles {
		if p == nil {
			delete(l.state.Profiles, ref.Key)
			continue
		}
		packed := profiles.AppendProfile(nil, p) // what is stored is the packed form
		read, err := profiles.DecodeProfile(ref.Key, ref.Workspace, packed)
		if err != nil {
			s.broken = err.Error()
			return
		}
		l.state.Profiles[ref.Key] = read
	}
	for ref, r := range out.Routes {
		read := &profiles.Route{Workspace: r.Workspace, Root: r.Root, Version: r.Version}
		if err := profiles.DecodeClaims(read, profiles.AppendClaims(r)); err != nil {
			s.broken = err.Error()
			return
		}
		l.state.Routes[ref.Key] = read
	}
	for ref, c := range out.Claims {
		l.state.Claims[ref.Pair] = c
	}
	for _, f := range out.Families {
		read, err := profiles.DecodeFamily(f.ID, f.Workspace, profiles.AppendFamily(f))
		if err != nil {
			s.broken = err.Error()
			return
		}
		for member := range f.Roots {
			l.state.Families[member] = read
		}
	}
	for _, t := range out.Transitions {
		m := simMembership{t.Profile, t.Segment}
		if s.last[m] == t.Entered {
			s.broken = fmt.Sprintf("%s entered=%v segment %d twice in a row", t.Profile, t.Entered, t.Segment)
		}
		if t.Cause.Kind == "" {
			s.broken = "a transition without a cause"
		}
		s.last[m] = t.Entered
	}
	l.outboxSeq = out.OutboxSeq
	l.outbox = append(l.outbox, out.Outbox...)
}

// publish moves one of a lane's outgoing messages, any one, to its stream; sometimes it forgets that it did.
func (s *sim) publish(lane int) {
	l := s.lanes[lane]
	if len(l.outbox) == 0 {
		return
	}
	i := s.rng.IntN(len(l.outbox))
	o := l.outbox[i]
	target := s.lanes[o.Target]
	packed := profiles.AppendMessage(nil, o.Message)
	m, err := profiles.DecodeMessage(packed)
	if err != nil {
		s.broken = err.Error()
		return
	}
	target.stream = append(target.stream, m)
	if s.rng.IntN(5) > 0 {
		l.outbox = slices.Delete(l.outbox, i, i+1)
	}
}

// people shows the lanes' profiles as the naive fold shows its own.
func (s *sim) people() map[profiles.Key]profilestest.Person {
	out := map[profiles.Key]profilestest.Person{}
	for i, l := range s.lanes {
		for key, p := range l.state.Profiles {
			if p == nil {
				continue
			}
			if key.Lane(len(s.lanes)) != i {
				s.broken = "a profile is not in its root's lane"
			}
			x := profilestest.Person{Traits: map[string]string{}}
			for _, f := range p.Fragments {
				x.Fragments = append(x.Fragments, f.Key.String())
			}
			slices.Sort(x.Fragments)
			for _, t := range p.Merged().Traits {
				x.Traits[t.Name] = string(t.Value)
			}
			for _, st := range p.Standings {
				if st.Member {
					x.Segments = append(x.Segments, st.Segment)
				}
				if s.last[simMembership{key, st.Segment}] != st.Member {
					s.broken = "a membership is not what its last transition said"
				}
			}
			out[key] = x
		}
	}
	return out
}

// simulate returns what is wrong at the end of a run, or nothing.
func simulate(defs map[int32]*profiles.Definitions, seed uint64, lanes int, h history) string {
	s := newSim(rand.New(rand.NewPCG(seed, 2)), defs, lanes)
	s.run(h)
	got := s.people()
	if s.broken != "" {
		return s.broken
	}
	return gocmp.Diff(profilestest.Fold(h.events, s.now, h.decisions...), got)
}

// shrink takes events and decisions away for as long as the run still fails.
func shrink(defs map[int32]*profiles.Definitions, seed uint64, lanes int, h history) history {
	for again := true; again; {
		again = false
		for i := range len(h.events) + len(h.decisions) {
			fewer := h.without(i)
			for try := range uint64(20) { // another order may be needed now
				if simulate(defs, seed+try<<32, lanes, fewer) != "" {
					h, again = fewer, true
					break
				}
			}
			if again {
				break
			}
		}
	}
	return h
}

func TestTheStateIsAFunctionOfTheSetOfEvents(t *testing.T) {
	t.Parallel()
	defs := simDefinitions(t)
	runs, first := *simRuns, uint64(1)
	if testing.Short() || raceDetector {
		runs = min(runs, 500) // there is but one goroutine; make simulation does them all
	}
	if *simSeed != 0 {
		runs, first = 1, *simSeed
	}
	for seed := first; seed < first+uint64(runs); seed++ {
		h := randomHistory(seed)
		for _, lanes := range []int{1, 2, 16} {
			if diff := simulate(defs, seed, lanes, h); diff != "" {
				small := shrink(defs, seed, lanes, h)
				var list strings.Builder
				for _, e := range small.events {
					fmt.Fprintf(&list, "\t%+v\n", e)
				}
				for _, d := range small.decisions {
					fmt.Fprintf(&list, "\t%+v\n", d)
				}
				t.Fatalf("seed %d, %d lanes (-want +got):\n%s\nsmallest set of events and decisions found that fails:\n%s",
					seed, lanes, diff, list.String())
			}
		}
	}
	fmt.Fprintf(os.Stderr, "simulation: %d runs from seed %d, each with 1, 2 and 16 lanes\n", runs, first)
}

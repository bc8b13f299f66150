package profiles_test

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
	"github.com/mubatch/mubatch/profiles/profilestest/brute"
	"github.com/mubatch/mubatch/profiles/rule"
)

// What a lane knows of definitions, and how it comes to know more, is played here as builds do it: behaviours are replayed
// from the lane's own archive up to an exact cut, other lanes' pieces of it arrive whenever they do, and then the lane
// follows the new version and sweeps its profiles.

// plan is what happens in a run of the lanes, but for when.
type plan struct {
	seed  uint64
	lanes int
	crowd
	edits []edit
}

// crowd is what people do, and what is decided on who they are.
type crowd struct {
	acts      []profilestest.Act
	decisions []profilestest.Decision
}

// edit makes, changes or deletes a segment. One that is not possible when its time comes is left out.
type edit struct {
	key  string
	rule any // decoded; nil: delete
}

func drawPlan(seed uint64) plan {
	rng := rand.New(rand.NewPCG(seed, 4))
	c := newChance(rng, rng.IntN(2))
	c.Start = profilestest.Start.UnixMilli()
	p := plan{seed: seed, lanes: []int{1, 2, 3, 5, 16}[rng.IntN(5)]}
	p.acts = profilestest.Crowd(c, 1+rng.IntN(40))
	if rng.IntN(2) == 0 {
		p.decisions = profilestest.Decisions(c, p.acts)
	}
	segments := 1 + rng.IntN(12)
	rules := map[string][]any{}
	for n := range segments + rng.IntN(10) {
		i := n
		if n >= segments { // one that exists
			i = rng.IntN(segments)
		}
		c.Segments = nil
		for j := range min(n, segments) {
			if j != i {
				c.Segments = append(c.Segments, "s"+strconv.Itoa(j))
			}
		}
		e := edit{key: "s" + strconv.Itoa(i), rule: c.Rule(1 + rng.IntN(3))}
		switch old := rules[e.key]; {
		case n < segments:
		case rng.IntN(6) == 0:
			e.rule = nil
		case rng.IntN(6) == 0 && len(old) > 0:
			e.rule = old[rng.IntN(len(old))]
		}
		if e.rule != nil {
			rules[e.key] = append(rules[e.key], e.rule)
		}
		p.edits = append(p.edits, e)
	}
	return p
}

// registry is how a workspace's segments are defined, which is what the lanes build from.
type registry struct {
	segments   []*defined // by id
	behaviours []*counted
	lastID     int64
	revision   int // grows with every change
}

// defined is a segment.
type defined struct {
	id       int64
	key      string
	newest   int
	live     int // the version that every lane has followed to its end; 0: none
	deleting bool
	versions map[int]*version // those that may be followed
}

// wanted is the version that lanes are to bring about, 0 if the segment is to be emptied.
func (d *defined) wanted() int {
	if d.deleting {
		return 0
	}
	return d.newest
}

// version is a rule that a segment has or had.
type version struct {
	decoded    any
	text       string
	rule       *rule.Rule
	behaviours []int32
	refersTo   []int64
}

// counted is a behaviour that lanes fold.
type counted struct {
	profiles.Behaviour
	canonical []byte
	retired   bool
}

func (r *registry) segment(id int64) *defined {
	i := slices.IndexFunc(r.segments, func(d *defined) bool { return d.id == id })
	if i < 0 {
		return nil
	}
	return r.segments[i]
}

// apply does an edit if it can be done.
func (w *world) apply(e edit) {
	r := w.registry
	var d *defined
	if i := slices.IndexFunc(r.segments, func(d *defined) bool { return d.key == e.key }); i >= 0 {
		d = r.segments[i]
	}
	switch {
	case d != nil && d.deleting, d == nil && e.rule == nil:
		return
	case e.rule == nil:
		if r.isReferredTo(d.id) {
			return
		}
		d.deleting = true
		w.changed()
		return
	}
	v := &version{decoded: e.rule, text: encode(e.rule)}
	var err error
	if v.rule, err = rule.Parse([]byte(v.text)); err != nil {
		panic(fmt.Sprintf("%s: %v", v.text, err))
	}
	for _, key := range v.rule.Segments() {
		i := slices.IndexFunc(r.segments, func(d *defined) bool { return d.key == key && !d.deleting })
		if i < 0 || d != nil && r.leads(r.segments[i].id, d.id) {
			return
		}
		v.refersTo = append(v.refersTo, r.segments[i].id)
	}
	v.behaviours = r.register(v.rule)
	if d == nil {
		r.lastID++
		d = &defined{id: r.lastID, key: e.key, versions: map[int]*version{}}
		r.segments = append(r.segments, d)
	}
	d.newest++
	d.versions[d.newest] = v
	w.changed()
}

// leads tells whether the newest rules lead from one segment to another.
func (r *registry) leads(from, to int64) bool {
	d := r.segment(from)
	return from == to || slices.ContainsFunc(d.versions[d.newest].refersTo, func(id int64) bool { return r.leads(id, to) })
}

// isReferredTo tells whether another segment refers to this one, in a version that may still be followed.
func (r *registry) isReferredTo(id int64) bool {
	return slices.ContainsFunc(r.segments, func(d *defined) bool {
		for _, v := range d.versions {
			if !d.deleting && slices.Contains(v.refersTo, id) {
				return true
			}
		}
		return false
	})
}

// register returns the ids of a rule's behaviours. What keeps enough already is used again, unless it has been retired.
func (r *registry) register(parsed *rule.Rule) (ids []int32) {
	for _, b := range parsed.Behaviours() {
		var found *counted
		for _, k := range r.behaviours {
			if !k.retired && bytes.Equal(k.canonical, b.Canonical()) && k.Keep >= b.Keep && (found == nil || k.Keep < found.Keep) {
				found = k
			}
		}
		if found == nil {
			read, err := rule.ParseBehaviour(b.Canonical(), b.Keep)
			if err != nil {
				panic(err)
			}
			found = &counted{profiles.Behaviour{ID: int32(len(r.behaviours) + 1), Behaviour: read}, b.Canonical(), false}
			r.behaviours = append(r.behaviours, found)
		}
		ids = append(ids, found.ID)
	}
	return ids
}

// changed forgets versions that nobody is to follow any more, and retires the behaviours of which that leaves none.
func (w *world) changed() {
	r := w.registry
	r.revision++
	used := map[int32]bool{}
	for _, d := range r.segments {
		for n, v := range d.versions {
			followed := slices.ContainsFunc(w.builders, func(b *builder) bool {
				return b.segments[d.id] != nil && b.segments[d.id].followed == n
			})
			if n != d.newest && n != d.live && !followed {
				delete(d.versions, n)
				continue
			}
			for _, id := range v.behaviours {
				used[id] = true
			}
		}
	}
	for _, b := range r.behaviours {
		b.retired = b.retired || !used[b.ID]
	}
}

// rules are the live rules by key, decoded.
func (r *registry) rules() map[string]any {
	rules := map[string]any{}
	for _, d := range r.segments {
		rules[d.key] = d.versions[d.live].decoded
	}
	return rules
}

// builder is what a lane knows of the definitions, and how far it is with them.
type builder struct {
	revision    int
	definitions map[int32]*profiles.Definitions
	archive     []profiles.Replayed
	behaviours  map[int32]*catching
	segments    map[int64]*following
}

// catching is how far a lane is with a behaviour.
type catching struct {
	phase     string
	done, cut int // of the archive
	since     int // how long the lane's stream was when every lane was first seen to be as far, plus one
}

// following is how far a lane is with a segment.
type following struct {
	version  int // on its way to be followed; 0: deleted
	phase    string
	cursor   profiles.Key
	followed int // 0: none
}

// The phases of a behaviour, in their order.
const (
	replaying = "replaying"
	replayed  = "replayed" // its own archive
	settled   = "settled"  // what the others had replayed, too
	complete  = "complete" // and what came of that
)

// The phases of a segment, in their order.
const (
	waiting    = "waiting"
	evaluating = "evaluating"
	done       = "done"
)

// world is a simulation in which segments are edited as well.
type world struct {
	*sim
	plan        plan
	registry    *registry
	builders    []*builder
	delivered   crowd
	edits       []edit // still to come
	transitions []profiles.Transition
	tally       *tally
	rang, moved int // profiles that timers re-evaluated, and memberships that changed by it
}

func newWorld(p plan, t *tally) *world {
	w := &world{
		sim:      newSim(rand.New(rand.NewPCG(p.seed, 5)), nil, p.lanes),
		plan:     p,
		registry: &registry{},
		edits:    p.edits,
		tally:    t,
	}
	for range p.lanes {
		w.builders = append(w.builders, &builder{behaviours: map[int32]*catching{}, segments: map[int64]*following{}})
	}
	return w
}

// live brings everything about in a random order, and compares whenever all has come to rest. It returns what is wrong.
func (w *world) live() string {
	acts, decisions := slices.Clone(w.plan.acts), slices.Clone(w.plan.decisions)
	w.rng.Shuffle(len(acts), func(i, j int) { acts[i], acts[j] = acts[j], acts[i] })
	w.rng.Shuffle(len(decisions), func(i, j int) { decisions[i], decisions[j] = decisions[j], decisions[i] })
	for lane := range w.lanes {
		w.refresh(lane)
	}
	if w.rng.IntN(2) == 0 { // some segments are there before everybody
		w.happen(crowd{}, len(w.edits)/2)
	}
	for rests := 1 + w.rng.IntN(3); rests > 0 && w.broken == ""; rests-- {
		n, m := len(acts)/rests, len(decisions)/rests
		w.happen(crowd{acts[:n], decisions[:m]}, len(w.edits)/rests)
		acts, decisions = acts[n:], decisions[m:]
		if w.broken != "" {
			break
		}
		steps := 3
		if rests == 1 {
			steps = 30
		}
		if wrong := w.walk(steps); wrong != "" {
			return wrong
		}
	}
	return w.broken
}

// happen delivers what happens and does some edits while the lanes do all that lanes do, until all has come to rest.
func (w *world) happen(h crowd, edits int) {
	var queue []simRouted
	for _, a := range h.acts {
		for range 1 + w.rng.IntN(4)/3 {
			m := a.Message()
			queue = append(queue, simRouted{m.Key.Lane(len(w.lanes)), m})
		}
	}
	for _, d := range h.decisions {
		for range 1 + w.rng.IntN(4)/3 {
			lane, m := d.Message(len(w.lanes))
			queue = append(queue, simRouted{lane, m})
		}
	}
	w.delivered.acts = append(w.delivered.acts, h.acts...)
	w.delivered.decisions = append(w.delivered.decisions, h.decisions...)
	w.rng.Shuffle(len(queue), func(i, j int) { queue[i], queue[j] = queue[j], queue[i] })
	for range 100_000 {
		lane := w.rng.IntN(len(w.lanes))
		switch w.rng.IntN(8) {
		case 0:
			if len(queue) > 0 {
				l := w.lanes[queue[0].lane]
				l.stream = append(l.stream, queue[0].Message)
				queue = queue[1:]
			}
		case 1, 2:
			w.step(lane)
		case 3, 4:
			w.publish(lane)
		case 5:
			w.now = w.now.Add(time.Duration(w.rng.IntN(40)) * time.Millisecond)
			w.ring(lane)
		case 6:
			w.build(lane)
		case 7:
			if edits > 0 && w.rng.IntN(4) == 0 {
				w.apply(w.edits[0])
				w.edits = w.edits[1:]
				edits--
			}
			if w.builders[lane].revision != w.registry.revision {
				w.refresh(lane)
			}
		}
		if w.broken != "" || len(queue) == 0 && edits == 0 && w.rest() && w.built() {
			return
		}
	}
	w.broken = "never came to rest"
}

// call runs the pure step with the lane's own definitions.
func (w *world) call(lane int, in profiles.Input) *profiles.Outcome {
	w.defs = w.builders[lane].definitions
	return w.sim.call(lane, in)
}

// commit makes an outcome last, or loses it.
func (w *world) commit(lane int, out *profiles.Outcome) bool {
	if w.rng.IntN(6) == 0 {
		return false
	}
	b := w.builders[lane]
	for _, a := range out.Archive {
		e, err := profiles.DecodeEvent(a.Message.Body)
		if err != nil {
			w.broken = err.Error()
		}
		b.archive = append(b.archive, profiles.Replayed{Key: a.Message.Key, At: a.EventAt, Name: a.Name, Properties: e.Properties})
	}
	w.transitions = append(w.transitions, out.Transitions...)
	w.sim.commit(lane, out)
	return true
}

func (w *world) step(lane int) {
	l := w.lanes[lane]
	n := min(1+w.rng.IntN(6), len(l.stream)-l.offset)
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
	if w.commit(lane, w.call(lane, profiles.Input{Messages: fresh})) {
		l.offset += n
		maps.Copy(l.known, seen)
	}
}

// ring re-evaluates whoever is due in a lane.
func (w *world) ring(lane int) {
	due := w.due(lane)
	if len(due) == 0 {
		return
	}
	out := w.call(lane, profiles.Input{Due: due})
	for _, t := range out.Transitions {
		if t.Cause.Kind != profiles.CauseTimer {
			w.broken = fmt.Sprintf("a timer's cause is %q", t.Cause.Kind)
		}
	}
	if w.commit(lane, out) {
		w.rang += len(due)
		w.moved += len(out.Transitions)
	}
}

func (w *world) due(lane int) (due []profiles.Ref) {
	for key, p := range w.lanes[lane].state.Profiles {
		if p != nil && slices.ContainsFunc(p.Standings, func(s profiles.Standing) bool { return s.Due != 0 && s.Due <= w.now.UnixMilli() }) {
			due = append(due, profiles.Ref{Workspace: 1, Key: key})
		}
	}
	slices.SortFunc(due, func(a, b profiles.Ref) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	return due
}

// ringAll rings until nobody is due at the present.
func (w *world) ringAll() {
	for lane := range w.lanes {
		for n := 0; len(w.due(lane)) > 0 && w.broken == ""; n++ {
			if n == 100 {
				w.broken = "timers ring and ring"
			}
			w.ring(lane)
		}
	}
}

// refresh lets a lane take up what is new in the registry: exactly between two µbatches.
func (w *world) refresh(lane int) {
	b := w.builders[lane]
	b.revision = w.registry.revision
	for id := range b.segments {
		if w.registry.segment(id) == nil {
			delete(b.segments, id)
		}
	}
	for _, d := range w.registry.segments {
		if b.segments[d.id] == nil {
			b.segments[d.id] = &following{version: d.wanted(), phase: waiting}
		}
		if f := b.segments[d.id]; f.version != d.wanted() {
			*f = following{version: d.wanted(), phase: waiting, followed: f.followed}
		}
	}
	for _, k := range w.registry.behaviours {
		switch {
		case k.retired:
			delete(b.behaviours, k.ID)
		case b.behaviours[k.ID] == nil:
			b.behaviours[k.ID] = &catching{phase: replaying, cut: len(b.archive)}
		}
	}
	w.define(b)
}

// define makes the definitions of what a lane folds and of what it follows.
func (w *world) define(b *builder) {
	var behaviours []*profiles.Behaviour
	for _, k := range w.registry.behaviours {
		if b.behaviours[k.ID] != nil {
			behaviours = append(behaviours, &k.Behaviour)
		}
	}
	var segments []*profiles.Segment
	for _, d := range w.registry.segments {
		n := b.segments[d.id].followed
		if n == 0 {
			continue
		}
		v := d.versions[n]
		segments = append(segments, &profiles.Segment{ID: d.id, Key: d.key, Version: n, Rule: v.rule, Behaviours: v.behaviours})
	}
	b.definitions = map[int32]*profiles.Definitions{1: profiles.NewDefinitions(1, profilestest.Secret, behaviours, segments)}
}

// built tells whether every segment is live in every lane.
func (w *world) built() bool {
	for _, b := range w.builders {
		if b.revision != w.registry.revision {
			return false
		}
	}
	return !slices.ContainsFunc(w.registry.segments, func(d *defined) bool { return d.deleting || d.live != d.newest })
}

// build does the next chunk of what a lane has to build. All that it had for others is published by then.
func (w *world) build(lane int) {
	b := w.builders[lane]
	if len(w.lanes[lane].outbox) > 0 {
		return
	}
	for _, d := range w.registry.segments {
		if f := b.segments[d.id]; f != nil && f.phase == evaluating {
			w.sweep(lane, d, f)
			return
		}
	}
	if w.begin(lane) || w.finish(lane) || w.pass(lane) {
		return
	}
	w.replay(lane)
}

// begin lets a lane follow the newest versions that have all they need.
func (w *world) begin(lane int) (begun bool) {
	b := w.builders[lane]
	var able []*defined
	for _, d := range w.registry.segments {
		f := b.segments[d.id]
		if f != nil && f.phase == waiting && f.version == d.wanted() && !w.waits(b, d, f) {
			able = append(able, d)
		}
	}
	for _, d := range able {
		f := b.segments[d.id]
		f.phase, f.followed = evaluating, f.version
	}
	if len(able) > 0 {
		w.refresh(lane)
	}
	return len(able) > 0
}

// waits tells whether behaviours have to be counted or other segments to be brought up first: all that the rule refers to,
// in however many steps. A segment is emptied only once nothing in the lane refers to it.
func (w *world) waits(b *builder, d *defined, f *following) bool {
	if f.version == 0 {
		return slices.ContainsFunc(w.registry.segments, func(other *defined) bool {
			o := b.segments[other.id]
			return o != nil && o.followed > 0 && slices.Contains(other.versions[o.followed].refersTo, d.id)
		})
	}
	v := d.versions[f.version]
	for _, id := range v.behaviours {
		if c := b.behaviours[id]; c == nil || c.phase != complete {
			return true
		}
	}
	var unsettled func(id int64) bool
	unsettled = func(id int64) bool {
		other, o := w.registry.segment(id), b.segments[id]
		return other == nil || o == nil || o.phase != done || o.version != other.wanted() ||
			slices.ContainsFunc(other.versions[o.version].refersTo, unsettled)
	}
	return slices.ContainsFunc(v.refersTo, unsettled)
}

// sweep evaluates the new version for the next profiles of the lane.
func (w *world) sweep(lane int, d *defined, f *following) {
	var refs []profiles.Ref
	for key, profile := range w.lanes[lane].state.Profiles {
		if profile != nil && bytes.Compare(key[:], f.cursor[:]) > 0 {
			refs = append(refs, profiles.Ref{Workspace: 1, Key: key})
		}
	}
	if len(refs) == 0 {
		f.phase = done
		return
	}
	slices.SortFunc(refs, func(a, b profiles.Ref) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	refs = refs[:min(len(refs), 1+w.rng.IntN(3))]
	cause := profiles.CauseEdit
	switch {
	case f.version == 0:
		cause = profiles.CauseDelete
	case d.live == 0:
		cause = profiles.CauseBuild
	}
	if w.commit(lane, w.call(lane, profiles.Input{Sweep: &profiles.Sweep{Segment: d.id, Profiles: refs, Cause: cause}})) {
		f.cursor = refs[len(refs)-1].Key
	}
}

// finish makes the versions live that every lane is done with, or takes deleted segments away.
func (w *world) finish(lane int) (finished bool) {
	r := w.registry
	for _, d := range slices.Clone(r.segments) {
		if d.live == d.newest && !d.deleting || !w.every(func(b *builder) bool {
			f := b.segments[d.id]
			return f != nil && f.version == d.wanted() && f.phase == done
		}) {
			continue
		}
		finished = true
		if !d.deleting {
			d.live = d.newest
			continue
		}
		r.segments = slices.DeleteFunc(r.segments, func(x *defined) bool { return x == d })
		for _, l := range w.lanes {
			for key, p := range l.state.Profiles {
				if p != nil && slices.ContainsFunc(p.Standings, func(s profiles.Standing) bool { return s.Segment == d.id }) {
					w.broken = fmt.Sprintf("%s is still in a segment that is deleted", key)
				}
			}
		}
	}
	if finished {
		w.changed()
		w.refresh(lane)
	}
	return finished
}

// every tells whether something is so in every lane.
func (w *world) every(is func(*builder) bool) bool {
	return !slices.ContainsFunc(w.builders, func(b *builder) bool { return !is(b) })
}

// pass moves a lane's behaviours to their next phase, as far as they may go there: after every lane has got as far, and
// what that meant for this one is applied.
func (w *world) pass(lane int) (passed bool) {
	b, l := w.builders[lane], w.lanes[lane]
	order := []string{replaying, replayed, settled, complete}
	for id, c := range b.behaviours {
		switch {
		case c.phase == complete, c.phase == replaying && c.done < c.cut:
			continue
		case c.phase == replaying:
			c.phase, passed = replayed, true
			continue
		case c.since == 0 && w.every(func(b *builder) bool {
			other := b.behaviours[id]
			return other != nil && slices.Index(order, other.phase) >= slices.Index(order, c.phase)
		}):
			c.since = len(l.stream) + 1
		}
		if c.since > 0 && l.offset >= c.since-1 {
			*c = catching{phase: order[slices.Index(order, c.phase)+1], done: c.done, cut: c.cut}
			passed = true
		}
	}
	return passed
}

// replay folds the next part of the archive for the behaviours that are behind. Those that are equally far go together.
func (w *world) replay(lane int) {
	b := w.builders[lane]
	var first *catching
	for _, id := range slices.Sorted(maps.Keys(b.behaviours)) {
		if c := b.behaviours[id]; c.done < c.cut && (first == nil || c.done > first.done) {
			first = c
		}
	}
	if first == nil {
		return
	}
	from, to := first.done, min(first.cut, first.done+1+w.rng.IntN(6))
	in := &profiles.Replay{Workspace: 1, Behaviours: map[string][]*profiles.Behaviour{}}
	var together []*catching
	for _, id := range slices.Sorted(maps.Keys(b.behaviours)) {
		if c := b.behaviours[id]; c.done == from && c.done < c.cut {
			k := &w.registry.behaviours[id-1].Behaviour
			in.Behaviours[k.Event] = append(in.Behaviours[k.Event], k)
			together = append(together, c)
			to = min(to, c.cut)
		}
	}
	for _, e := range b.archive[from:to] {
		if in.Behaviours[e.Name] != nil {
			in.Events = append(in.Events, e)
		}
	}
	if w.commit(lane, w.call(lane, profiles.Input{Replay: in})) {
		for _, c := range together {
			c.done = to
		}
	}
}

// walk compares at the present and as time goes on: usually to when the next timer rings. Just before it rings nothing
// must have changed, and when it has rung everything must be true.
func (w *world) walk(steps int) string {
	people := profilestest.People(w.delivered.acts, w.delivered.decisions)
	rules := w.registry.rules()
	histories := map[profiles.Key]string{}
	for key, p := range people {
		histories[key] = encode(p)
	}
	compare := func() string { return w.compare(people, histories, rules) }
	for range steps {
		w.ringAll()
		if wrong := compare(); wrong != "" {
			return wrong
		}
		next := w.nextDue()
		if next.IsZero() {
			break
		}
		if w.rng.IntN(8) == 0 {
			w.now = w.now.Add(time.Duration(w.rng.Int64N(int64(30 * time.Second))))
			continue
		}
		w.now = next.Add(-time.Millisecond)
		if wrong := compare(); wrong != "" {
			return "just before a timer: " + wrong
		}
		w.now = next
	}
	if w.nextDue().IsZero() { // then it stays like this
		before := w.now
		w.now = before.Add(time.Duration(w.rng.Int64N(int64(300 * time.Second))))
		if wrong := compare(); wrong != "" {
			return "with no timer set: " + wrong
		}
		w.now = before
	}
	return w.broken
}

func (w *world) nextDue() (next time.Time) {
	for _, l := range w.lanes {
		for _, p := range l.state.Profiles {
			if p == nil {
				continue
			}
			for _, s := range p.Standings {
				if s.Due != 0 {
					next = sooner(next, time.UnixMilli(s.Due))
				}
			}
		}
	}
	return next
}

// compare says who is in a segment though they should not be, or the other way round.
func (w *world) compare(people map[profiles.Key]*brute.Person, histories map[profiles.Key]string, rules map[string]any) string {
	found := 0
	for lane, l := range w.lanes {
		for key, p := range l.state.Profiles {
			switch {
			case p == nil:
				continue
			case people[key] == nil:
				return fmt.Sprintf("nobody should be %s", key)
			case key.Lane(len(w.lanes)) != lane:
				return fmt.Sprintf("%s is in lane %d", key, lane)
			}
			found++
			for _, d := range w.registry.segments {
				want := brute.Holds(rules[d.key], people[key], rules, w.now.UnixMilli())
				got := slices.ContainsFunc(p.Standings, func(s profiles.Standing) bool { return s.Segment == d.id && s.Member })
				if got != want {
					return w.explain(d, key, asked{rule: rules[d.key], segments: rules, person: people[key]}, got)
				}
				if got != w.last[simMembership{key, d.id}] {
					return fmt.Sprintf("%s: a membership is not what its last transition said", key)
				}
				if w.tally != nil {
					w.tally.add(d.versions[d.live].text, histories[key], w.now.UnixMilli(), want)
				}
			}
		}
	}
	if found != len(people) {
		return fmt.Sprintf("there are %d people, want %d", found, len(people))
	}
	return ""
}

func (w *world) explain(d *defined, key profiles.Key, a asked, got bool) string {
	var b strings.Builder
	for _, t := range w.transitions {
		if t.Profile == key && t.Segment == d.id {
			fmt.Fprintf(&b, "it was:   entered %v at %d by %s %s\n", t.Entered, t.At, t.Cause.Kind, t.Cause.MessageID)
		}
	}
	return fmt.Sprintf("%s in %s at %d: %v, want %v\n%s%s", key, d.key, w.now.UnixMilli(), got, !got, a, b.String())
}

// fails returns what is wrong in a run of p, or nothing.
func (p plan) fails(t *tally) (wrong string, w *world) {
	w = newWorld(p, t)
	return w.live(), w
}

// smallest leaves out what it can of a plan that still fails.
func (p plan) smallest() plan {
	fails := func(p plan) (plan, bool) {
		for range 30 { // another order may be needed now
			if wrong, _ := p.fails(nil); wrong != "" {
				return p, true
			}
			p.seed += 1 << 32
		}
		return p, false
	}
	for again := true; again; {
		again = false
		var simpler []plan
		for i := range p.acts {
			q := p
			q.acts = slices.Delete(slices.Clone(p.acts), i, i+1)
			simpler = append(simpler, q)
		}
		for i, e := range p.edits {
			q := p
			q.edits = slices.Delete(slices.Clone(p.edits), i, i+1)
			simpler = append(simpler, q)
			for _, r := range brute.SimplerRules(e.rule) {
				if _, err := rule.Parse([]byte(encode(r))); err != nil {
					continue
				}
				q.edits = slices.Clone(p.edits)
				q.edits[i].rule = r
				simpler = append(simpler, q)
			}
		}
		for i := range p.decisions {
			q := p
			q.decisions = slices.Delete(slices.Clone(p.decisions), i, i+1)
			simpler = append(simpler, q)
		}
		if p.lanes > 1 {
			q := p
			q.lanes = 1
			simpler = append(simpler, q)
		}
		for _, q := range simpler {
			if q, failed := fails(q); failed {
				p, again = q, true
				break
			}
		}
	}
	return p
}

func (p plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d lanes\n", p.lanes)
	for _, e := range p.edits {
		fmt.Fprintf(&b, "edit:     %s: %s\n", e.key, encode(e.rule))
	}
	acts := slices.Clone(p.acts)
	slices.SortFunc(acts, func(a, b profilestest.Act) int { return cmp.Compare(a.At, b.At) })
	for _, a := range acts {
		fmt.Fprintf(&b, "event:    at %d %s\n", a.At, a.Message().Body)
	}
	for _, d := range p.decisions {
		fmt.Fprintf(&b, "decision: at %d %+v\n", d.At.UnixMilli(), d)
	}
	return b.String()
}

func TestMembershipsAgreeWithLookingAtEverything(t *testing.T) {
	t.Parallel()
	count := newTally()
	first, n := oracleSeeds(*oracleRuns / 5)
	rang, moved := 0, 0
	for seed := first; seed < first+n; seed++ {
		p := drawPlan(seed)
		wrong, w := p.fails(count)
		if wrong != "" {
			small := p.smallest()
			why, _ := small.fails(nil)
			t.Fatalf("seed %d: %s\n%s\nsmallest that was found: %s\n%s", seed, wrong, p, why, small)
		}
		rang, moved = rang+w.rang, moved+w.moved
	}
	count.report(t, "lanes", first, n, 100)
	fmt.Fprintf(os.Stderr, "oracle, lanes: %d times somebody was due, and %d memberships changed by it\n", rang, moved)
}

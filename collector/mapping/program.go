package mapping

import (
	"fmt"
	"sync"
)

// Bounds of what becomes of an input.
const (
	maxRules  = 200
	maxEvents = 2500
	maxEvent  = 32 << 10   // bytes
	maxOutput = 8 << 20    // bytes, of all events together
	maxWork   = 10_000_000 // in steps of a few nanoseconds
	workBytes = 8          // of a text, that are read in a step
	workValue = 10         // steps that a value costs which is kept: it takes memory, too
	keepNodes = 20_000     // of a tree, so that a large input does not hold its memory for ever
)

// FaultError is why an input could not be mapped, or an event of it.
type FaultError struct {
	Rule   string // the name of the rule, or rules[0]; empty if it is the input itself
	Line   int    // of the document; 0 if it is the input itself
	Path   string // of the cell, such as rules[0].event.timestamp
	Index  int    // of the element that the rule was at
	Code   string
	Detail string // without anything of the input
	More   int    // how many other events could not be made
}

func (e *FaultError) Error() string {
	if e.Line == 0 {
		return "map: " + e.Detail
	}
	return fmt.Sprintf("map: line %d: %s: %s", e.Line, e.Path, e.Detail)
}

// Program is a compiled document. It may be used by many goroutines at once.
type Program struct {
	rules []rule
	first bool // only the first rule that applies
	runs  sync.Pool
}

type rule struct {
	position
	name    string
	when    *expression // nil: always
	forEach cell        // nil: for the body
	event   *objectCell
}

// run is one input on its way through a program.
type run struct {
	tree
	in     Input
	work   int
	err    *FaultError
	output int
	buf    []byte
}

// spend counts work, and ends the run when there was too much of it.
func (r *run) spend(n int) bool {
	if r == nil {
		return true
	}
	r.work += n
	if r.work > maxWork && r.err == nil {
		r.err = &FaultError{Code: "too_much_work", Detail: "the input takes more work than is allowed"}
	}
	return r.err == nil
}

// fail ends what is being done.
func (r *run) fail(at position, code, detail string) value {
	if r.err == nil {
		r.err = &FaultError{Line: at.line, Path: at.path, Code: code, Detail: detail}
	}
	return value{}
}

// ends tells whether nothing more can be done after a fault; otherwise it concerns one event.
func (e *FaultError) ends() bool {
	return e.Code == "too_much_work" || e.Code == "too_many_events" || e.Code == "output_too_large"
}

// Map returns the events that the input becomes, in the order of the rules and of the elements; none if no rule applies.
// If one cannot be made, the error is a [*FaultError] about the first of those, and the others are returned beside it,
// unless a bound was reached: then none is.
func (p *Program) Map(in Input) ([][]byte, error) {
	r, ok := p.runs.Get().(*run)
	if !ok {
		r = new(run)
	}
	defer func() {
		r.in, r.src = Input{}, ""
		if cap(r.nodes) <= keepNodes {
			p.runs.Put(r)
		}
	}()
	r.in, r.work, r.err, r.output = in, 0, nil, 0
	if fault := r.parse(in.Body); fault != nil {
		return nil, fault
	}
	var events [][]byte
	var first *FaultError
	body := scope{item: r.body()}
	for i := range p.rules {
		made, applied, fault := p.rules[i].apply(r, &body, len(events))
		events = append(events, made...)
		if fault != nil {
			if fault.ends() {
				return nil, fault
			}
			if first == nil {
				first = fault
			} else {
				first.More += fault.More + 1
			}
		}
		if applied && p.first {
			break
		}
	}
	if first != nil {
		return events, first
	}
	return events, nil
}

// apply returns the events that a rule makes of the input, and whether it applies.
func (rl *rule) apply(r *run, body *scope, before int) (events [][]byte, applied bool, first *FaultError) {
	fault := func(index int) bool { // and whether to go on
		f := r.err
		f.Rule, f.Index = rl.name, index
		if f.Line == 0 {
			f.Line, f.Path = rl.line, rl.path
		}
		if first == nil || f.ends() {
			first = f
		} else {
			first.More++
		}
		r.err = nil
		return !f.ends()
	}
	one := func(s *scope) bool {
		if rl.when != nil && rl.when.perItem && !rl.when.holds(r, s) {
			return r.err == nil || fault(s.index)
		}
		applied = true
		event := rl.make(r, s, before+len(events))
		if r.err != nil {
			return fault(s.index)
		}
		events = append(events, event)
		return true
	}

	if rl.when != nil && !rl.when.perItem && !rl.when.holds(r, body) {
		if r.err != nil {
			fault(0)
		}
		return nil, false, first
	}
	if rl.forEach == nil {
		one(body)
		return events, applied, first
	}
	of := rl.forEach.eval(r, body)
	if r.err == nil && !of.missing() && of.kind != list {
		r.fail(rl.position, "wrong_type", "for_each needs a list, and finds "+of.kind.String())
	}
	if r.err != nil {
		fault(0)
		return nil, false, first
	}
	if of.missing() {
		return nil, false, nil
	}
	s := scope{outer: body}
	r.each(of, func(_ string, item value) bool {
		s.item = item
		on := one(&s)
		s.index++
		return on
	})
	if r.err != nil {
		fault(s.index)
	}
	return events, applied, first
}

// make returns one event.
func (rl *rule) make(r *run, s *scope, before int) []byte {
	v := rl.event.eval(r, s)
	if r.err != nil {
		return nil
	}
	if before >= maxEvents {
		r.fail(rl.position, "too_many_events", fmt.Sprintf("the input becomes more than %d events", maxEvents))
		return nil
	}
	if v.kind == absent {
		v = value{kind: object, made: &composite{}}
	}
	r.buf = r.write(r.buf[:0], v, maxEvent)
	if !r.spend(len(r.buf) / workBytes) {
		return nil
	}
	if len(r.buf) > maxEvent {
		r.fail(rl.position, "event_too_large", fmt.Sprintf("the event is larger than %d bytes", maxEvent))
		return nil
	}
	if r.output += len(r.buf); r.output > maxOutput {
		r.fail(rl.position, "output_too_large", fmt.Sprintf("the events are larger than %d bytes together", maxOutput))
		return nil
	}
	return append([]byte(nil), r.buf...)
}

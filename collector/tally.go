package collector

import (
	"cmp"
	"math/bits"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of what is kept of a source in memory until it is written.
const (
	maxFaults  = 200 // events and reasons, in an hour
	maxSamples = 10  // of rejected events
)

// skewBuckets is how many buckets clients' clocks are counted in. The middle one is for less than a millisecond; each to the
// right for twice as far behind as the one before, and to the left for as far ahead.
const skewBuckets = 2*skewMiddle + 1

const skewMiddle = 32

// tally is what became of the events of a request, before it is added to its source's.
type tally struct {
	received time.Time
	counts   [tallyCounts]int64
	skew     [skewBuckets]int32
	faults   []faultKey
	samples  []RejectedSample
}

const (
	countAccepted = iota
	countRejected
	countUnavailable
	countQuarantined
	countFlagged
	countBots
	tallyCounts
)

// faultKey is a reason for which something became of events of a name.
type faultKey struct{ outcome, event, reason string }

// RejectedSample is where and why an event was rejected.
type RejectedSample struct {
	At      time.Time
	Type    string
	Code    string
	Pointer string
	Reason  string
}

func (t *tally) rejected(kind string, f *fault) {
	t.counts[countRejected]++
	t.faults = append(t.faults, faultKey{"rejected", kind, f.code})
	if len(t.samples) < maxSamples {
		t.samples = append(t.samples, RejectedSample{t.received, kind, f.code, impersonal(f), f.reason})
	}
}

// outcomes are what is said of actions that were taken.
var outcomes = map[string]string{ActionAllow: "allowed", ActionFlag: "flagged", ActionQuarantine: "quarantined"}

func (t *tally) accepted(e *cleaned, f *finding, event string) {
	t.counts[countAccepted]++
	if e.skewed {
		t.skew[skewBucket(e.skew)]++
	}
	if f.bot != "" {
		t.counts[countBots]++
	}
	switch f.action {
	case "":
		return
	case ActionQuarantine:
		t.counts[countQuarantined]++
	case ActionFlag:
		t.counts[countFlagged]++
	}
	seen := make([]string, 0, 4)
	for _, v := range f.violations {
		if !slices.Contains(seen, v.Code) {
			seen = append(seen, v.Code)
			t.faults = append(t.faults, faultKey{outcomes[f.action], cmp.Or(event, e.kind), v.Code})
		}
	}
}

// harmless is a name in a pointer that tells of nobody.
var harmless = regexp.MustCompile(`^([A-Za-z_][A-Za-z_ -]{0,40}|[0-9]{1,4})$`)

// impersonal returns where a fault is, without names of members that may be about somebody.
func impersonal(f *fault) string {
	var tokens []string
	for _, token := range slices.Backward(f.path) {
		if !harmless.MatchString(token) {
			token = "…"
		}
		tokens = append(tokens, token)
	}
	return "/" + strings.Join(tokens, "/")
}

func skewBucket(d time.Duration) int {
	n := bits.Len64(uint64(d.Abs().Milliseconds()))
	n = min(n, skewMiddle)
	if d < 0 {
		return skewMiddle - n
	}
	return skewMiddle + n
}

// bucketSkew is a typical one of a bucket's.
func bucketSkew(bucket int) time.Duration {
	n := bucket - skewMiddle
	if n == 0 {
		return 0
	}
	d := time.Duration(3<<min(max(n, -n), skewMiddle)) * time.Millisecond / 4 // of 2ⁿ⁻¹ to 2ⁿ, the middle
	if n < 0 {
		return -d
	}
	return d
}

// tallies are what became of the events of each source since they were taken last. Requests add to them, and hold each other
// up for no longer than that takes; one source does not wait for another.
type tallies struct {
	mu       sync.RWMutex
	bySource map[int32]*sourceTally
	named    map[int32]*namedFaults
}

// namedFaults are the faults of a source that are counted by name. Whoever has a write key can think of any number of names.
type namedFaults struct {
	hour time.Time
	keys map[faultKey]bool
}

type sourceTally struct {
	mu        sync.Mutex
	workspace int32
	lastSeen  time.Time
	counts    [tallyCounts]int64
	skew      [skewBuckets]int64
	faults    map[faultKey]int64
	samples   []RejectedSample // the last ones
	named     *namedFaults     // outlives what is taken
}

func newTallies() *tallies {
	return &tallies{bySource: map[int32]*sourceTally{}, named: map[int32]*namedFaults{}}
}

// add adds what became of a request's events. If they are not known to be durable, none is known to have been accepted.
func (ts *tallies) add(g Grant, t *tally, durable bool) {
	for !ts.tryAdd(g.SourceID, t, durable) {
		ts.mu.Lock()
		if ts.bySource[g.SourceID] == nil {
			if ts.named[g.SourceID] == nil {
				ts.named[g.SourceID] = &namedFaults{}
			}
			ts.bySource[g.SourceID] = &sourceTally{workspace: g.WorkspaceID, faults: map[faultKey]int64{}, named: ts.named[g.SourceID]}
		}
		ts.mu.Unlock()
	}
}

// tryAdd returns false if nothing was added to a source since the last time everything was taken.
func (ts *tallies) tryAdd(source int32, t *tally, durable bool) bool {
	ts.mu.RLock()
	defer ts.mu.RUnlock() // not before: what is taken is not to change any more
	s := ts.bySource[source]
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(t, durable)
	return true
}

func (s *sourceTally) add(t *tally, durable bool) {
	if t.received.After(s.lastSeen) {
		s.lastSeen = t.received
	}
	if !durable {
		s.counts[countUnavailable] += t.counts[countAccepted]
		return
	}
	for i, n := range t.counts {
		s.counts[i] += n
	}
	for i, n := range t.skew {
		s.skew[i] += int64(n)
	}
	for _, f := range t.faults {
		s.fault(f, 1)
	}
	s.sample(t.samples)
}

// fault counts a fault. When there are too many kinds of them in an hour, those that are new are counted under one name.
func (s *sourceTally) fault(f faultKey, n int64) {
	const mostName = 200
	if len(f.event) > mostName {
		f.event = strings.ToValidUTF8(f.event[:mostName], "")
	}
	if hour := s.lastSeen.Truncate(time.Hour); s.named.keys == nil || !hour.Equal(s.named.hour) {
		s.named.hour, s.named.keys = hour, map[faultKey]bool{}
	}
	for _, other := range []faultKey{f, {f.outcome, otherKind, f.reason}, {f.outcome, otherKind, otherKind}} {
		if f = other; s.named.keys[f] {
			break
		}
		if len(s.named.keys) < maxFaults {
			s.named.keys[f] = true
			break
		}
	}
	s.faults[f] += n
}

func (s *sourceTally) sample(list []RejectedSample) {
	s.samples = append(s.samples, list...)
	if n := len(s.samples); n > maxSamples {
		s.samples = slices.Delete(s.samples, 0, n-maxSamples)
	}
}

// take returns what was added since the last call.
func (ts *tallies) take() map[int32]*sourceTally {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	taken := ts.bySource
	ts.bySource = make(map[int32]*sourceTally, len(taken))
	return taken
}

// giveBack adds what could not be written, to be written with what comes next.
func (ts *tallies) giveBack(taken map[int32]*sourceTally) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for id, old := range taken {
		s := ts.bySource[id]
		if s == nil {
			ts.bySource[id] = old
			continue
		}
		for i, n := range old.counts {
			s.counts[i] += n
		}
		for i, n := range old.skew {
			s.skew[i] += n
		}
		for f, n := range old.faults {
			s.faults[f] += n
		}
		newer := s.samples
		s.samples = old.samples
		s.sample(newer)
		if old.lastSeen.After(s.lastSeen) {
			s.lastSeen = old.lastSeen
		}
	}
}

func compareFaults(a, b faultKey) int {
	return cmp.Or(cmp.Compare(a.outcome, b.outcome), cmp.Compare(a.event, b.event), cmp.Compare(a.reason, b.reason))
}

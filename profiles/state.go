package profiles

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// How much of one kind a fragment keeps. Beyond it the oldest go, so that the result does not depend on the order of
// arrival.
const (
	maxTraits             = 1000
	maxIdentifiersPerKind = 20
)

// Stamp orders writes of the same thing: by event time, then by message. The later one wins a trait, the earlier one a
// claim.
type Stamp struct {
	At int64  // unix milliseconds, event time
	ID uint64 // the leading bytes of the message's key
}

// stampOf returns the stamp of what a message with this key says of the moment at.
func stampOf(at int64, message Key) Stamp {
	return Stamp{At: at, ID: binary.BigEndian.Uint64(message[:])}
}

// Compare returns -1, 0 or +1, as s is before, equal to or after t.
func (s Stamp) Compare(t Stamp) int {
	return cmp.Or(cmp.Compare(s.At, t.At), cmp.Compare(s.ID, t.ID))
}

// Trait is the last value written under a name. The value null removes the trait and is remembered as a write.
type Trait struct {
	Name  string
	Value jsontext.Value
	Stamp Stamp
}

// Removed tells whether the last write took the trait away.
func (t Trait) Removed() bool { return t.Value.Kind() == 'n' }

// Consent is the latest decision for a purpose, such as ad_storage.
type Consent struct {
	Purpose string
	Granted bool
	Stamp   Stamp
}

// Known is a further identifier seen together with a fragment's own, such as a custom id.
type Known struct {
	Identifier
	Last Stamp
}

// Behaved is the timeline of a behaviour, by the behaviour's id.
type Behaved struct {
	Behaviour int32
	timeline.Timeline
}

// Fragment is what was seen under one identifier. Merging fragments of the same identifier is commutative and
// associative; nothing in it may be merged twice.
type Fragment struct {
	Key         Key
	Identifier  Identifier
	FirstSeen   int64 // unix milliseconds, event time
	LastSeen    int64
	Traits      []Trait   // by name
	Identifiers []Known   // by kind and value
	Consent     []Consent // by purpose
	Timelines   []Behaved // by behaviour
}

// Standing is how a profile stands to a segment: whether it is a member, since when, and when that may change by itself.
type Standing struct {
	Segment int64
	Member  bool
	Since   int64 // unix milliseconds, of the last change
	Due     int64 // unix milliseconds, 0: never by itself
}

// Profile is one person as far as is known: the fragments of all identifiers that belong to the root identifier, whose
// key is the profile's id.
type Profile struct {
	ID        Key
	Workspace int32
	Fragments []Fragment // by key
	Standings []Standing // by segment
}

// merge takes over what g knows. Both stand for the same identifier.
func (f *Fragment) merge(g Fragment) {
	if f.Identifier == (Identifier{}) {
		f.Identifier = g.Identifier
	}
	if g.FirstSeen != 0 && (f.FirstSeen == 0 || g.FirstSeen < f.FirstSeen) {
		f.FirstSeen = g.FirstSeen
	}
	f.LastSeen = max(f.LastSeen, g.LastSeen)

	for _, t := range g.Traits {
		f.setTrait(t)
	}
	for _, k := range g.Identifiers {
		f.addIdentifier(k)
	}
	for _, c := range g.Consent {
		f.setConsent(c)
	}
	for _, b := range g.Timelines {
		f.addTimeline(b)
	}
}

func (f *Fragment) setTrait(t Trait) {
	i, found := slices.BinarySearchFunc(f.Traits, t.Name, func(t Trait, name string) int { return cmp.Compare(t.Name, name) })
	if found {
		if later(t, f.Traits[i]) {
			f.Traits[i] = t
		}
		return
	}
	f.Traits = slices.Insert(f.Traits, i, t)
	if len(f.Traits) > maxTraits {
		oldest := 0
		for i := range f.Traits {
			if f.Traits[i].Stamp.Compare(f.Traits[oldest].Stamp) < 0 {
				oldest = i
			}
		}
		f.Traits = slices.Delete(f.Traits, oldest, oldest+1)
	}
}

// later tells whether a wins over b. Two sources may use the same messageId at the same time; then the greater value
// wins, so that the order of arrival still does not matter.
func later(a, b Trait) bool {
	if c := a.Stamp.Compare(b.Stamp); c != 0 {
		return c > 0
	}
	return bytes.Compare(a.Value, b.Value) > 0
}

func (f *Fragment) addIdentifier(k Known) {
	i, found := slices.BinarySearchFunc(f.Identifiers, k.Identifier, func(k Known, id Identifier) int {
		return compareIdentifiers(k.Identifier, id)
	})
	if found {
		if k.Last.Compare(f.Identifiers[i].Last) > 0 {
			f.Identifiers[i].Last = k.Last
		}
		return
	}
	f.Identifiers = slices.Insert(f.Identifiers, i, k)

	same, oldest := 0, -1
	for i, other := range f.Identifiers {
		if other.Kind != k.Kind {
			continue
		}
		same++
		if oldest < 0 || other.Last.Compare(f.Identifiers[oldest].Last) < 0 {
			oldest = i
		}
	}
	if same > maxIdentifiersPerKind {
		f.Identifiers = slices.Delete(f.Identifiers, oldest, oldest+1)
	}
}

func compareIdentifiers(a, b Identifier) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Value, b.Value))
}

func (f *Fragment) setConsent(c Consent) {
	i, found := slices.BinarySearchFunc(f.Consent, c.Purpose, func(c Consent, p string) int { return cmp.Compare(c.Purpose, p) })
	if !found {
		f.Consent = slices.Insert(f.Consent, i, c)
		return
	}
	switch order := c.Stamp.Compare(f.Consent[i].Stamp); {
	case order > 0:
		f.Consent[i] = c
	case order == 0 && !c.Granted: // the cautious reading of a tie
		f.Consent[i].Granted = false
	}
}

func (f *Fragment) addTimeline(b Behaved) {
	i, found := slices.BinarySearchFunc(f.Timelines, b.Behaviour, func(b Behaved, id int32) int { return cmp.Compare(b.Behaviour, id) })
	if found {
		f.Timelines[i].Merge(b.Timeline)
		return
	}
	b.Timeline = b.Clone()
	f.Timelines = slices.Insert(f.Timelines, i, b)
}

// clone returns a copy that shares nothing that is ever changed in place.
func (f Fragment) clone() Fragment {
	f.Traits = slices.Clone(f.Traits)
	f.Identifiers = slices.Clone(f.Identifiers)
	f.Consent = slices.Clone(f.Consent)
	f.Timelines = slices.Clone(f.Timelines)
	for i := range f.Timelines {
		f.Timelines[i].Timeline = f.Timelines[i].Clone()
	}
	return f
}

func (p *Profile) clone() *Profile {
	c := *p
	c.Fragments = make([]Fragment, len(p.Fragments))
	for i, f := range p.Fragments {
		c.Fragments[i] = f.clone()
	}
	c.Standings = slices.Clone(p.Standings)
	return &c
}

// forget drops the timelines of behaviours that are counted no more. A profile is rid of them when it is next written, which
// costs nothing extra; until then they do no harm, because ids are not used again.
func (p *Profile) forget(retired map[int32]bool) {
	if len(retired) == 0 {
		return
	}
	for i := range p.Fragments {
		f := &p.Fragments[i]
		f.Timelines = slices.DeleteFunc(f.Timelines, func(b Behaved) bool { return retired[b.Behaviour] })
	}
}

// attach merges a fragment, or a part of one, into the profile.
func (p *Profile) attach(f Fragment) {
	i, found := slices.BinarySearchFunc(p.Fragments, f.Key, compareFragment)
	if found {
		p.Fragments[i].merge(f)
		return
	}
	p.Fragments = slices.Insert(p.Fragments, i, f.clone())
}

// Fragment returns what was seen under the identifier of key, or false if that is not of the profile.
func (p *Profile) Fragment(key Key) (Fragment, bool) {
	i, found := slices.BinarySearchFunc(p.Fragments, key, compareFragment)
	if !found {
		return Fragment{}, false
	}
	return p.Fragments[i], true
}

func compareFragment(f Fragment, key Key) int { return bytes.Compare(f.Key[:], key[:]) }

// Trait returns the value last written under name in any fragment, if it was not removed.
func (p *Profile) Trait(name string) (jsontext.Value, bool) {
	var last Trait
	for _, f := range p.Fragments {
		i, found := slices.BinarySearchFunc(f.Traits, name, func(t Trait, name string) int { return cmp.Compare(t.Name, name) })
		if found && (last.Name == "" || later(f.Traits[i], last)) {
			last = f.Traits[i]
		}
	}
	if last.Value == nil || last.Removed() {
		return nil, false
	}
	return last.Value, true
}

// consent returns the latest decision on a purpose over all fragments. Of decisions at the same time a refusal counts.
func (p *Profile) consent(purpose string) (granted, known bool) {
	var last Stamp
	for _, f := range p.Fragments {
		i, found := slices.BinarySearchFunc(f.Consent, purpose, func(c Consent, p string) int { return cmp.Compare(c.Purpose, p) })
		if !found {
			continue
		}
		c := f.Consent[i]
		switch order := c.Stamp.Compare(last); {
		case !known || order > 0:
			granted, last, known = c.Granted, c.Stamp, true
		case order == 0:
			granted = granted && c.Granted
		}
	}
	return granted, known
}

// member tells whether the profile is in a segment.
func (p *Profile) member(segment int64) bool {
	i, found := slices.BinarySearchFunc(p.Standings, segment, compareStanding)
	return found && p.Standings[i].Member
}

// timeline returns the merged timeline of a behaviour.
func (p *Profile) timeline(behaviour int32) timeline.Timeline {
	var merged timeline.Timeline
	seen := 0
	for _, f := range p.Fragments {
		i, found := slices.BinarySearchFunc(f.Timelines, behaviour, func(b Behaved, id int32) int { return cmp.Compare(b.Behaviour, id) })
		if !found {
			continue
		}
		switch seen++; seen {
		case 1:
			merged = f.Timelines[i].Timeline
		case 2: // the first one belongs to its fragment
			merged = merged.Clone()
			fallthrough
		default:
			merged.Merge(f.Timelines[i].Timeline)
		}
	}
	return merged
}

// Merged returns what is known of the person over all fragments: the current traits, every identifier, the latest
// consent, first and last seen.
func (p *Profile) Merged() Fragment {
	merged := Fragment{Key: p.ID}
	for _, f := range p.Fragments {
		merged.merge(f)
		merged.addIdentifier(Known{Identifier: f.Identifier, Last: Stamp{At: f.LastSeen}})
	}
	merged.Identifier = Identifier{}
	merged.Traits = slices.DeleteFunc(merged.Traits, Trait.Removed)
	return merged
}

// lookupIdentifiers returns the identifiers under which the profile can be found besides its fragments' own: the current
// e-mail address and phone number, and custom ids.
func (p *Profile) lookupIdentifiers() []Identifier {
	var ids []Identifier
	for _, kind := range []string{Email, Phone} {
		if value, ok := p.Trait(kind); ok && value.Kind() == '"' {
			if s, err := jsontext.AppendUnquote(nil, value); err == nil && len(s) > 0 {
				ids = append(ids, Identifier{Kind: kind, Value: string(s)}.normal())
			}
		}
	}
	for _, f := range p.Fragments {
		for _, k := range f.Identifiers {
			ids = append(ids, k.Identifier)
		}
	}
	slices.SortFunc(ids, compareIdentifiers)
	return slices.Compact(ids)
}

// standing returns the standing in a segment, adding one if there is none yet.
func (p *Profile) standing(segment int64) *Standing {
	i, found := slices.BinarySearchFunc(p.Standings, segment, compareStanding)
	if !found {
		p.Standings = slices.Insert(p.Standings, i, Standing{Segment: segment})
	}
	return &p.Standings[i]
}

func compareStanding(s Standing, segment int64) int { return cmp.Compare(s.Segment, segment) }

// due returns the next moment at which a membership may change by itself, in unix milliseconds, or 0.
func (p *Profile) due() int64 {
	var due int64
	for _, s := range p.Standings {
		if s.Due != 0 && (due == 0 || s.Due < due) {
			due = s.Due
		}
	}
	return due
}

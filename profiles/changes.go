package profiles

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/mubatch/mubatch/activation"
)

// changes returns what activation must hear of: who entered and who left, and those who stayed, once for each segment, if
// their consent changed or anything that partners know people by.
func changes(out *Outcome, now time.Time) []activation.Change {
	var all []activation.Change
	type membership struct {
		profile Key
		segment int64
	}
	moved := make(map[membership]bool, len(out.Transitions))
	consents := map[Ref]map[string]bool{}
	consentOf := func(ref Ref) map[string]bool {
		c, known := consents[ref]
		if p := out.Profiles[ref]; !known && p != nil {
			c = p.decisions()
			consents[ref] = c
		}
		return c
	}
	for _, t := range out.Transitions {
		moved[membership{t.Profile, t.Segment}] = true
		c := activation.Change{
			Workspace: t.Workspace,
			Segment:   t.Segment,
			Profile:   activation.ProfileID(t.Profile),
			Entered:   t.Entered,
			At:        time.UnixMilli(t.At).UTC(),
			Cause:     t.Cause.Kind,
			MessageID: t.Cause.MessageID,
		}
		if t.Entered {
			c.Consent = consentOf(Ref{t.Workspace, t.Profile})
		}
		all = append(all, c)
	}
	for _, ref := range slices.SortedFunc(maps.Keys(out.Profiles), compareRefs) {
		before, after := out.Before[ref], out.Profiles[ref]
		if before == nil || after == nil || !slices.ContainsFunc(after.Standings, func(s Standing) bool { return s.Member }) {
			continue
		}
		stamp, differs := after.differs(before)
		if !differs {
			continue
		}
		cause := Cause{Kind: CauseMerge}
		if id, found := out.messageID(ref.Workspace, stamp); found {
			cause = Cause{Kind: CauseEvent, MessageID: id}
		}
		for _, s := range after.Standings {
			if !s.Member || moved[membership{ref.Key, s.Segment}] {
				continue
			}
			all = append(all, activation.Change{
				Workspace: ref.Workspace,
				Segment:   s.Segment,
				Profile:   activation.ProfileID(ref.Key),
				Entered:   true,
				Consent:   consentOf(ref),
				At:        now.UTC(),
				Cause:     cause.Kind,
				MessageID: cause.MessageID,
			})
		}
	}
	return all
}

// decisions returns the person's latest decision for each purpose.
func (p *Profile) decisions() map[string]bool {
	var merged Fragment
	for _, f := range p.Fragments {
		for _, c := range f.Consent {
			merged.setConsent(c)
		}
	}
	if len(merged.Consent) == 0 {
		return nil
	}
	decided := make(map[string]bool, len(merged.Consent))
	for _, c := range merged.Consent {
		decided[c.Purpose] = c.Granted
	}
	return decided
}

// differs tells whether partners may know the person by something else than before, or may hear of the person where they
// might not, or the other way round, and the latest stamp of what made the difference.
func (p *Profile) differs(before *Profile) (Stamp, bool) {
	if p.sameFacts(before) {
		return Stamp{}, false
	}
	var last Stamp
	differs := false
	note := func(s Stamp) {
		differs = true
		if s.Compare(last) > 0 {
			last = s
		}
	}
	for _, name := range activation.IdentifyingTraits {
		was, is := before.lastTrait(name), p.lastTrait(name)
		if was.Removed() {
			was.Value = nil
		}
		if is.Removed() {
			is.Value = nil
		}
		if !bytes.Equal(was.Value, is.Value) {
			note(is.Stamp)
		}
	}
	if !maps.Equal(before.decisions(), p.decisions()) {
		for _, f := range p.Fragments {
			for _, c := range f.Consent {
				note(c.Stamp)
			}
		}
		differs = true
	}
	if !slices.Equal(before.allIdentifiers(), p.allIdentifiers()) {
		for _, f := range p.Fragments {
			for _, k := range f.Identifiers {
				note(k.Last)
			}
		}
		differs = true
	}
	return last, differs
}

// sameFacts tells that no trait, decision or identifier of any fragment changed, as with most events.
func (p *Profile) sameFacts(before *Profile) bool {
	return slices.EqualFunc(p.Fragments, before.Fragments, func(f, g Fragment) bool {
		return f.Key == g.Key && f.Identifier == g.Identifier &&
			slices.EqualFunc(f.Traits, g.Traits, func(a, b Trait) bool { return a.Stamp == b.Stamp && a.Name == b.Name && bytes.Equal(a.Value, b.Value) }) &&
			slices.EqualFunc(f.Consent, g.Consent, func(a, b Consent) bool { return a == b }) &&
			slices.EqualFunc(f.Identifiers, g.Identifiers, func(a, b Known) bool { return a.Identifier == b.Identifier })
	})
}

// lastTrait returns what was last written under name in any fragment, even if that removed it.
func (p *Profile) lastTrait(name string) (last Trait) {
	for _, f := range p.Fragments {
		for _, t := range f.Traits {
			if t.Name == name && (last.Name == "" || later(t, last)) {
				last = t
			}
		}
	}
	return last
}

// allIdentifiers returns all under which the person was seen, and the current e-mail address and phone number: at least
// those that partners are told of.
func (p *Profile) allIdentifiers() []Identifier {
	ids := p.lookupIdentifiers()
	for _, f := range p.Fragments {
		if f.Identifier.Value != "" {
			ids = append(ids, f.Identifier)
		}
	}
	slices.SortFunc(ids, compareIdentifiers)
	return slices.Compact(ids)
}

// messageID returns the messageId of the event of this µbatch that left a stamp.
func (o *Outcome) messageID(workspace int32, s Stamp) (string, bool) {
	if s == (Stamp{}) {
		return "", false
	}
	for _, a := range o.Archive {
		if a.Message.Workspace != workspace || binary.BigEndian.Uint64(a.Message.ID[:]) != s.ID || a.EventAt != s.At {
			continue
		}
		if e, err := DecodeEvent(a.Message.Body); err == nil {
			return e.MessageID, true
		}
	}
	return "", false
}

package profiles_test

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mubatch/mubatch/profiles"
	"github.com/mubatch/mubatch/profiles/profilestest"
	"github.com/mubatch/mubatch/profiles/timeline"
)

// fullProfile has something of everything.
func fullProfile() *profiles.Profile {
	var times timeline.Timeline
	times.Keep = 3
	for _, at := range []int64{5, 1 << 50, -7, 5, 0} {
		times.Add(at)
	}
	stamp := profiles.Stamp{At: -1, ID: 1<<64 - 1}
	fragment := profiles.Fragment{
		Key: profiles.Key{1}, Identifier: profiles.Identifier{Kind: "user_id", Value: "ada\x00é"}, FirstSeen: -5, LastSeen: 1 << 60,
		Traits: []profiles.Trait{{Name: "", Value: []byte(`null`), Stamp: stamp}, {Name: "plan", Value: []byte(`"pro"`)}},
		Identifiers: []profiles.Known{
			{Identifier: profiles.Identifier{Kind: "crm", Value: "1"}, Last: stamp},
			{Identifier: profiles.Identifier{Kind: "crm", Value: "2"}},
		},
		Consent:   []profiles.Consent{{Purpose: "ad_storage", Granted: true, Stamp: stamp}, {Purpose: "x"}},
		Timelines: []profiles.Behaved{{Behaviour: 1 << 30, Timeline: times}, {Behaviour: 7}},
	}
	return &profiles.Profile{
		ID: profiles.Key{1}, Workspace: 3,
		Fragments: []profiles.Fragment{fragment, {Key: profiles.Key{2}}},
		Standings: []profiles.Standing{{Segment: 1 << 40, Member: true, Since: 9, Due: 1 << 41}, {Segment: 2}},
	}
}

func TestAPackedProfileIsReadBackTheSame(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]*profiles.Profile{
		"something of everything": fullProfile(),
		"nothing":                 {ID: profiles.Key{9}, Workspace: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			packed := profiles.AppendProfile([]byte("before"), want)
			got, err := profiles.DecodeProfile(want.ID, want.Workspace, bytes.TrimPrefix(packed, []byte("before")))
			if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
				t.Errorf("(-want +got):\n%s%v", diff, err)
			}
		})
	}
}

func TestWhatIsNotAPackedProfileIsRefused(t *testing.T) {
	t.Parallel()
	packed := profiles.AppendProfile(nil, fullProfile())
	for n := range packed {
		if _, err := profiles.DecodeProfile(profiles.Key{1}, 3, packed[:n]); err == nil {
			t.Errorf("the first %d of %d bytes are read as a whole", n, len(packed))
		}
	}
	if _, err := profiles.DecodeProfile(profiles.Key{1}, 3, append(packed, 0)); err == nil {
		t.Error("a byte too many is not noticed")
	}
	packed[0]++
	if _, err := profiles.DecodeProfile(profiles.Key{1}, 3, packed); err == nil {
		t.Error("a version of the future is read")
	}
}

func TestAPackedMessageIsReadBackTheSame(t *testing.T) {
	t.Parallel()
	for _, want := range []profiles.Message{
		{Kind: profiles.KindEvent, Workspace: 1 << 30, Source: 7, ID: profiles.Key{1}, Key: profiles.Key{2}, Received: profilestest.Start, Body: []byte(`{}`)},
		{Kind: profiles.KindPiece, Received: time.UnixMilli(-1).UTC()},
	} {
		packed := profiles.AppendMessage(nil, want)
		got, err := profiles.DecodeMessage(packed)
		if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("(-want +got):\n%s%v", diff, err)
		}
		for n := range packed {
			if _, err := profiles.DecodeMessage(packed[:n]); err == nil {
				t.Errorf("the first %d of %d bytes are read as a whole", n, len(packed))
			}
		}
	}
}

func FuzzDecodeProfile(f *testing.F) {
	f.Add(profiles.AppendProfile(nil, fullProfile()))
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := profiles.DecodeProfile(profiles.Key{1}, 1, b)
		if err != nil {
			return
		}
		again, err := profiles.DecodeProfile(profiles.Key{1}, 1, profiles.AppendProfile(nil, p))
		if diff := gocmp.Diff(p, again, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("what was read is not written so that it is read back the same (-want +got):\n%s%v", diff, err)
		}
	})
}

func FuzzDecodeMessage(f *testing.F) {
	for _, e := range profilestest.RandomEvents(rand.New(rand.NewPCG(1, 1))) {
		f.Add(profiles.AppendMessage(nil, e.Message()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := profiles.DecodeMessage(b)
		if err != nil {
			return
		}
		again, err := profiles.DecodeMessage(profiles.AppendMessage(nil, m))
		if diff := gocmp.Diff(m, again, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("what was read is not written so that it is read back the same (-want +got):\n%s%v", diff, err)
		}
	})
}

// FuzzBetweenLanes gives lanes all kinds of things as what another lane has to tell them: a lane may refuse it, but not
// fall over it, and what it takes must leave a profile that can be stored.
func FuzzBetweenLanes(f *testing.F) {
	defs := simDefinitions(f)
	for seed := range uint64(20) {
		s := newSim(rand.New(rand.NewPCG(seed, 3)), defs, 4)
		for _, e := range profilestest.RandomEvents(s.rng) {
			m := e.Message()
			lane := s.lanes[m.Key.Lane(4)]
			lane.stream = append(lane.stream, m)
		}
		for i, l := range s.lanes {
			for l.offset < len(l.stream) {
				s.step(i, false)
			}
			for _, o := range l.outbox {
				f.Add(byte(o.Message.Kind), o.Message.Key[:], o.Message.Body)
			}
		}
	}
	f.Fuzz(func(t *testing.T, kind byte, key, body []byte) {
		var k profiles.Key
		copy(k[:], key)
		m := profiles.Message{Kind: profiles.MessageKind(kind), Workspace: 1, ID: profiles.Key{1}, Key: k, Received: profilestest.Start, Body: body}
		view := profiles.NewState()
		in := profiles.Input{Lane: 1, Lanes: 4, Now: profilestest.Start, Definitions: defs, State: view, Messages: []profiles.Message{m}}
		for range 10 {
			out, missing := profiles.Step(in)
			if missing == nil {
				for ref, p := range out.Profiles {
					if p == nil {
						continue
					}
					if _, err := profiles.DecodeProfile(ref.Key, ref.Workspace, profiles.AppendProfile(nil, p)); err != nil {
						t.Error(err)
					}
				}
				return
			}
			for ref := range missing.Profiles {
				view.Profiles[ref.Key] = nil
			}
			for ref := range missing.Routes {
				view.Routes[ref.Key] = nil
			}
			for ref := range missing.Claims {
				view.Claims[ref.Pair] = nil
			}
			for ref := range missing.Children {
				view.Children[ref.Key] = nil
			}
			for ref := range missing.Families {
				view.Families[ref.Key] = nil
			}
		}
		t.Error("the step never has all it needs")
	})
}

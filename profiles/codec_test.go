package profiles_test

import (
	"bytes"
	"encoding/hex"
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

func TestClaimsFromBeforeThereWereVerdictsAreReadAndWrittenAsTheyWere(t *testing.T) {
	t.Parallel()
	// Written by the version before.
	claims := unhex(t, "01020100000000000000000000000000000080a0d5edee66000000000000000702000000000000000000000000000000060400000000000000"+
		"000000000000000001ffffffffffffffff0400000000000000000000000000000000")
	family := unhex(t, "010a01010000000000000000000000000000000200000000000000000000000000000080a0d5edee66000000000000000701010000000000000000"+
		"0000000000000002000000000000000000000000000000")

	wantRoute := profiles.Route{Claims: []profiles.Claimed{
		{Parent: profiles.Key{1}, Stamp: profiles.Stamp{At: 1767225600000, ID: 7}, Root: profiles.Key{2}, RootVersion: 3},
		{Parent: profiles.Key{4}, Stamp: profiles.Stamp{At: -1, ID: 1<<64 - 1}, Root: profiles.Key{4}},
	}}
	var route profiles.Route
	if err := profiles.DecodeClaims(&route, claims); err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(wantRoute, route); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if again := profiles.AppendClaims(&route); !bytes.Equal(again, claims) {
		t.Errorf("claims are written as %x", again)
	}
	got, err := profiles.DecodeFamily(profiles.Key{1}, 3, family)
	if err != nil {
		t.Fatal(err)
	}
	wantFamily := &profiles.Family{
		ID: profiles.Key{1}, Workspace: 3, Version: 5, Roots: map[profiles.Key]profiles.Key{{1}: {2}},
		Claims: []profiles.Link{{Child: profiles.Key{1}, Parent: profiles.Key{2}, Stamp: profiles.Stamp{At: 1767225600000, ID: 7}}},
	}
	if diff := gocmp.Diff(wantFamily, got); diff != "" {
		t.Errorf("family (-want +got):\n%s", diff)
	}
	if again := profiles.AppendFamily(got); !bytes.Equal(again, family) {
		t.Errorf("the family is written as %x", again)
	}

	// The whole of what is written with verdicts is read back: a part of it is not.
	verdict := profiles.Verdict{Pair: profiles.Pair{Parent: profiles.Key{1}, Child: profiles.Key{9}}, Stamp: profiles.Stamp{At: 5, ID: 6}, Void: true}
	route.Verdicts, got.Verdicts = append(route.Verdicts, verdict), append(got.Verdicts, verdict)
	claims, family = profiles.AppendClaims(&route), profiles.AppendFamily(got)
	var read profiles.Route
	if err := profiles.DecodeClaims(&read, claims); err != nil || !gocmp.Equal(route, read) {
		t.Errorf("claims with a verdict are read as %+v, %v", read, err)
	}
	if read, err := profiles.DecodeFamily(profiles.Key{1}, 3, family); err != nil || !gocmp.Equal(got, read) {
		t.Errorf("a family with a verdict is read as %+v, %v", read, err)
	}
	for n := range claims {
		if err := profiles.DecodeClaims(new(profiles.Route), claims[:n]); err == nil && n > 0 {
			t.Errorf("the first %d of %d bytes of claims are read as a whole", n, len(claims))
		}
	}
	for n := range family {
		if _, err := profiles.DecodeFamily(profiles.Key{1}, 3, family[:n]); err == nil {
			t.Errorf("the first %d of %d bytes of a family are read as a whole", n, len(family))
		}
	}
	claims[0]++
	if err := profiles.DecodeClaims(new(profiles.Route), claims); err == nil {
		t.Error("a version of the future is read")
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
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
		events := profilestest.RandomEvents(s.rng)
		for _, e := range events {
			m := e.Message()
			lane := s.lanes[m.Key.Lane(4)]
			lane.stream = append(lane.stream, m)
		}
		for _, d := range profilestest.RandomDecisions(s.rng, events) {
			_, m := d.Message(4)
			f.Add(byte(m.Kind), m.Key[:], m.Body)
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

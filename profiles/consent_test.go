package profiles

import (
	"maps"
	"testing"
)

// A decision that is repeated under one identifier may be the latest of all, and so take back what was decided under another.
func TestARepeatedDecisionMayBeTheLatest(t *testing.T) {
	t.Parallel()
	person := func(visitor int64) *Profile {
		return &Profile{Fragments: []Fragment{
			{Key: Key{1}, Consent: []Consent{{Purpose: "ad_user_data", Stamp: Stamp{At: visitor, ID: 1}}}},
			{Key: Key{2}, Consent: []Consent{{Purpose: "ad_user_data", Granted: true, Stamp: Stamp{At: 2, ID: 2}}}},
		}}
	}
	before, after := person(1), person(3)
	if !before.decisions()["ad_user_data"] || after.decisions()["ad_user_data"] {
		t.Fatalf("decided before: %v, after: %v", before.decisions(), after.decisions())
	}
	if stamp, differs := after.differs(before); !differs || stamp.At != 3 {
		t.Errorf("differs = %v, %v: the withdrawal is not noticed", stamp, differs)
	}
	if _, differs := person(0).differs(before); differs {
		t.Error("an earlier repetition makes a difference")
	}
}

// Clients write down differently what a visitor has decided.
func TestConsentIsReadAsClientsWriteIt(t *testing.T) {
	t.Parallel()
	want := map[string]bool{"analytics": true, "ads": false}
	for client, context := range map[string]string{
		"ours":          `{"consent":{"analytics":"granted","ads":"denied"}}`,
		"Segment's":     `{"consent":{"categoryPreferences":{"analytics":true,"ads":false}}}`,
		"RudderStack's": `{"consentManagement":{"provider":"oneTrust","allowedConsentIds":["analytics","ads"],"deniedConsentIds":["ads"]}}`,
		"unheard of":    `{"consent":{"analytics":true,"ads":false},"consentManagement":{"allowedConsentIds":{"analytics":1},"deniedConsentIds":[1]}}`,
	} {
		e := Event{Type: "track", UserID: "ada", Context: []byte(context)}
		f := e.fragment(Key{1}, Stamp{At: 1, ID: 1}, nil)
		got := map[string]bool{}
		for _, c := range f.Consent {
			got[c.Purpose] = c.Granted
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v", client, got)
		}
	}
}

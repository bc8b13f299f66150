package profiles

import "testing"

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

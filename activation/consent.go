package activation

import "slices"

// Purposes of consent that advertising asks for, under the names that profiles have for them.
const (
	AdStorage         = "ad_storage"
	AdUserData        = "ad_user_data"
	AdPersonalization = "ad_personalization"
)

// GPC is the purpose under which a Global Privacy Control signal is kept. Where it is true the person has opted out of sale
// and sharing: all purposes of advertising count as denied, whatever else was decided.
const GPC = "gpc"

// ConsentMode tells how purposes are read of which a person has decided nothing.
type ConsentMode string

// The modes of consent.
const (
	Granted   ConsentMode = "granted"    // every purpose must have been granted
	NotDenied ConsentMode = "not_denied" // no purpose may have been denied
)

// Gate is the consent without which a destination hears nothing of a person. Its zero value lets everybody through.
type Gate struct {
	Purposes []string    `json:"purposes"`
	Mode     ConsentMode `json:"mode"`
}

// AdGate is the gate of advertising partners: what is sent is user data, for personalised advertising, and both must have
// been granted.
func AdGate() Gate { return Gate{Purposes: []string{AdUserData, AdPersonalization}, Mode: Granted} }

// Allows tells whether a person who decided so may be sent.
func (g Gate) Allows(consent map[string]bool) bool {
	for _, purpose := range g.Purposes {
		granted, decided := consent[purpose]
		switch {
		case consent[GPC] && slices.Contains(adPurposes, purpose):
			return false
		case decided && !granted, !decided && g.Mode != NotDenied:
			return false
		}
	}
	return true
}

var adPurposes = []string{AdStorage, AdUserData, AdPersonalization}

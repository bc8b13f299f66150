package activation

import "strconv"

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
	consent = effective(consent)
	for _, purpose := range g.Purposes {
		granted, decided := consent[purpose]
		if decided && !granted || !decided && g.Mode != NotDenied {
			return false
		}
	}
	return true
}

var adPurposes = []string{AdStorage, AdUserData, AdPersonalization}

func (g Gate) purposes() []string { return append([]string{}, g.Purposes...) }

func (g Gate) mode() ConsentMode {
	if g.Mode == "" {
		return Granted
	}
	return g.Mode
}

// check tells what is wrong with a gate that somebody gave, as a [*FieldError].
func (g Gate) check() error {
	if g.mode() != Granted && g.mode() != NotDenied {
		return &FieldError{Pointer: "/consent/mode", Detail: "must be granted or not_denied"}
	}
	if len(g.Purposes) > 20 {
		return &FieldError{Pointer: "/consent/purposes", Detail: "must be at most 20"}
	}
	for i, p := range g.Purposes {
		if p == "" || len(p) > 100 || p == GPC {
			return &FieldError{Pointer: "/consent/purposes/" + strconv.Itoa(i), Detail: "must be the name of a purpose, of 1 to 100 bytes"}
		}
	}
	return nil
}

// effective returns a person's decisions with what follows from a Global Privacy Control signal.
func effective(consent map[string]bool) map[string]bool {
	if !consent[GPC] {
		return consent
	}
	out := make(map[string]bool, len(consent)+len(adPurposes))
	for purpose, granted := range consent {
		out[purpose] = granted
	}
	for _, purpose := range adPurposes {
		out[purpose] = false
	}
	return out
}

package meta

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
)

// The columns of a row, under Meta's names for them. These three are keys by each of which Meta can know somebody; a row has
// one of them.
const (
	email  = "EMAIL"
	phone  = "PHONE"
	device = "MADID"
)

// These say more of whom a key stands for.
const (
	firstName  = "FN"
	lastName   = "LN"
	gender     = "GEN"
	birthYear  = "DOBY"
	birthMonth = "DOBM"
	birthDay   = "DOBD"
	city       = "CT"
	state      = "ST"
	postalCode = "ZIP"
	country    = "COUNTRY"
	externID   = "EXTERN_ID"
	processing = "DATA_PROCESSING_OPTIONS"
)

// limited is the one data processing option there is: Limited Data Use.
const limited = "LDU"

// maxKeys is how many keys of one person are sent at most: nobody has more, but accounts that many share do.
const maxKeys = 100

// maxExternID is how long an id of the customer's own may be, in bytes.
const maxExternID = 200

// ldu are the states of which Meta limits the use of data of residents if it is told to.
var ldu = []string{"ca", "co", "ct", "de", "fl", "mt", "ne", "nh", "nj", "or", "tx"}

// Identify implements [activation.AudiencePartner].
func (*Partner) Identify(t activation.Target, p activation.Person) (ids activation.Identifiers, err error) {
	cfg, _, err := read(t.Settings)
	if err != nil {
		return ids, fmt.Errorf("read a destination's settings: %w", err)
	}
	_, _, code := countryOf(p)
	country := cmp.Or(code, cfg.DefaultCountry)
	if ids.IDs = keysOf(p, country); len(ids.IDs) == 0 {
		ids.Reason = unreachable(p, country)
		return ids, nil
	}
	if !cfg.KeysOnly {
		ids.Details = detailsOf(p)
	}
	if id := p.ExternalID(); cfg.ExternID && mayBeExtern(id) {
		ids.Details = append(ids.Details, activation.Identifier{Kind: externID, Value: id})
	}
	if limit(cfg.LimitedDataUse, p, country) {
		ids.Details = append(ids.Details, activation.Identifier{Kind: processing, Value: limited})
	}
	return ids, nil
}

// keysOf returns by what Meta can know a person, each once. Phone numbers that do not say their country are of the given one.
func keysOf(p activation.Person, country string) (keys []activation.Identifier) {
	add := func(kind, value string) {
		if id := (activation.Identifier{Kind: kind, Value: value}); len(keys) < maxKeys && !slices.Contains(keys, id) {
			keys = append(keys, id)
		}
	}
	for _, raw := range p.Emails() {
		if t, ok := matchkey.Meta.Email(raw); ok {
			add(email, t.Hex())
		}
	}
	for _, raw := range p.Phones() {
		if t, ok := matchkey.Meta.Phone(raw, country); ok {
			add(phone, t.Hex())
		}
	}
	apple, others := p.Devices()
	for _, raw := range slices.Concat(apple, others) {
		if t, ok := matchkey.Device(raw); ok {
			add(device, t.String()) // not hashed
		}
	}
	return keys
}

// detailsOf returns what else Meta may be told of a person.
func detailsOf(p activation.Person) (details []activation.Identifier) {
	add := func(kind string, t matchkey.Text, ok bool) {
		if ok {
			details = append(details, activation.Identifier{Kind: kind, Value: t.Hex()})
		}
	}
	living, lives, code := countryOf(p)
	t, ok := Name(p.FirstName())
	add(firstName, t, ok)
	t, ok = Name(p.LastName())
	add(lastName, t, ok)
	if g := p.Gender(); g != "" {
		details = append(details, activation.Identifier{Kind: gender, Value: matchkey.Hex(g)})
	}
	year, month, day, ok := birthOf(p)
	add(birthYear, year, ok)
	add(birthMonth, month, ok)
	add(birthDay, day, ok)
	t, ok = City(p.City())
	add(city, t, ok)
	t, ok = State(p.Region(), code)
	add(state, t, ok)
	t, ok = PostalCode(p.PostalCode(), code)
	add(postalCode, t, ok)
	add(country, living, lives)
	return details
}

// birthOf returns when a person was born.
func birthOf(p activation.Person) (year, month, day matchkey.Text, ok bool) {
	return Birth(p.Text("birthday", "birthdate", "date_of_birth", "dateOfBirth"))
}

// countryOf returns the country that somebody lives in as Meta wants it, and as two upper-case letters, or "".
func countryOf(p activation.Person) (t matchkey.Text, ok bool, code string) {
	t, ok = Country(cmp.Or(p.Country(), p.Text("country_code", "countryCode", "country")))
	if ok && !t.Hashed() {
		code = strings.ToUpper(t.String())
	}
	return t, ok, code
}

// unreachable says why Meta cannot know a person.
func unreachable(p activation.Person, country string) string {
	apple, others := p.Devices()
	switch {
	case len(p.Phones()) > 0 && country == "":
		return "the phone number does not say its country, and the destination has no default country"
	case len(p.Emails())+len(p.Phones())+len(apple)+len(others) > 0:
		return "what is given is no e-mail address, phone number or advertising id that Meta could use"
	}
	return "neither an e-mail address nor a phone number nor an advertising id is known"
}

// mayBeExtern tells whether an id of the customer's own may be sent as it is: many use e-mail addresses and phone numbers
// for that.
func mayBeExtern(id string) bool {
	if id == "" || len(id) > maxExternID || strings.Contains(id, "@") || matchkey.Nothing(id) {
		return false
	}
	_, number := matchkey.Meta.Phone(id, "")
	return !number
}

// limit tells whether Meta is to limit the use of a person's data. In the United States that goes by the state, and where we
// do not know it Meta finds out: residents of other states are not affected.
func limit(mode string, p activation.Person, country string) bool {
	switch mode {
	case "all":
		return true
	case "us_states":
		t, known := State(p.Region(), country)
		covered := slices.Contains(ldu, t.String())
		return country == "US" && (!known || t.Hashed() || covered) || country == "" && covered
	}
	return false
}

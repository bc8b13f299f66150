package filedrop

import (
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"slices"
	"strings"
	"unicode"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
)

// column is one that a file may have. What it holds of a person is an identifier, or a detail, under the column's name.
type column struct {
	name   string
	detail bool // says something of the person only together with identifiers
	whole  bool // is of the person: on each of the person's rows
	text   bool // is text that a spreadsheet may take for a formula
	word   string
	of     func(person) []string
}

// person is one whose identifiers are looked for.
type person struct {
	activation.Person
	country string // of phone numbers that do not say theirs
}

// columns are all of them, in the order in which they come if nobody says otherwise.
var columns = []column{
	{name: "audience_key", detail: true, whole: true, of: func(p person) []string {
		return []string{cmp.Or(externalID(p), profileID(p.ID))}
	}},
	{name: "email_sha256", word: "e-mail address", of: func(p person) []string {
		return each(p.Emails(), func(raw string) (string, bool) {
			t, ok := matchkey.Recipe{}.Email(raw)
			return t.Hex(), ok
		})
	}},
	{name: "phone_sha256", word: "phone number", of: func(p person) []string {
		return each(phones(p), func(e164 string) (string, bool) { return matchkey.Hex(e164[1:]), true })
	}},
	{name: "phone_e164_sha256", word: "phone number", of: func(p person) []string {
		return each(phones(p), func(e164 string) (string, bool) { return matchkey.Hex(e164), true })
	}},
	{name: "phone_us_sha1", word: "US phone number", of: func(p person) []string {
		return each(phones(p), func(e164 string) (string, bool) {
			national, ok := strings.CutPrefix(e164, "+1")
			sum := sha1.Sum([]byte(national))
			return hex.EncodeToString(sum[:]), ok && len(national) == 10
		})
	}},
	{name: "maid", word: "device id", of: func(p person) []string {
		return each(devices(p), func(id string) (string, bool) { return id, true })
	}},
	{name: "maid_sha256", word: "device id", of: func(p person) []string {
		return each(devices(p), func(id string) (string, bool) { return matchkey.Hex(id), true })
	}},
	{name: "external_id", whole: true, word: "customer id", of: func(p person) []string { return one(externalID(p)) }},
	{name: "external_id_sha256", whole: true, word: "customer id", of: func(p person) []string {
		return hashed(externalID(p))
	}},
	{name: "profile_id", whole: true, of: func(p person) []string { return []string{profileID(p.ID)} }},
	{name: "first_name_sha256", detail: true, whole: true, of: func(p person) []string {
		return hashed(strings.ToLower(line(p.FirstName())))
	}},
	{name: "last_name_sha256", detail: true, whole: true, of: func(p person) []string {
		return hashed(strings.ToLower(line(p.LastName())))
	}},
	{name: "first_name", detail: true, whole: true, text: true, of: func(p person) []string { return one(line(p.FirstName())) }},
	{name: "last_name", detail: true, whole: true, text: true, of: func(p person) []string { return one(line(p.LastName())) }},
	{name: "city", detail: true, whole: true, text: true, of: func(p person) []string { return one(line(p.City())) }},
	{name: "region", detail: true, whole: true, text: true, of: func(p person) []string { return one(line(p.Region())) }},
	{name: "postal_code", detail: true, whole: true, text: true, of: func(p person) []string { return one(line(p.PostalCode())) }},
	{name: "country", detail: true, whole: true, text: true, of: func(p person) []string { return one(p.Country()) }},
}

func columnOf(name string) (column, bool) {
	i := slices.IndexFunc(columns, func(c column) bool { return c.name == name })
	if i < 0 {
		return column{detail: true}, false
	}
	return columns[i], true
}

// Identify implements [activation.AudiencePartner]. A person is known by what the destination's columns hold.
func (drop) Identify(t activation.Target, who activation.Person) (ids activation.Identifiers, err error) {
	f, err := fileOf(t)
	if err != nil {
		return ids, err
	}
	p := person{Person: who, country: cmp.Or(who.Country(), f.DefaultCountry)}
	names := f.Columns
	if f.Profile == liveRamp {
		names = slices.Concat([]string{"audience_key"}, slices.DeleteFunc(slices.Clone(names), func(name string) bool {
			return name == "audience_key"
		}))
	}
	var words []string
	for _, name := range names {
		c, _ := columnOf(name)
		if c.of == nil {
			continue
		}
		for _, value := range c.of(p) {
			id := activation.Identifier{Kind: name, Value: value}
			if c.detail {
				ids.Details = append(ids.Details, id)
			} else {
				ids.IDs = append(ids.IDs, id)
			}
		}
		if c.word != "" && !slices.Contains(words, c.word) {
			words = append(words, c.word)
		}
	}
	if len(ids.IDs) == 0 {
		ids.Reason = "there is no usable " + strings.Join(words, " and no usable ")
		wanted := slices.ContainsFunc(words, func(w string) bool { return strings.HasSuffix(w, "phone number") })
		if wanted && p.country == "" && len(p.Phones()) > 0 && len(phones(p)) == 0 {
			ids.Reason += "; a phone number is there, but neither it nor the destination says of which country"
		}
	}
	return ids, nil
}

// each returns what values become, in order, without what cannot be used and what is there already.
func each(values []string, as func(string) (string, bool)) (out []string) {
	for _, v := range values {
		if s, ok := as(v); ok && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// one returns a value, if it is one.
func one(value string) []string {
	if matchkey.Nothing(value) {
		return nil
	}
	return []string{value}
}

func hashed(value string) []string {
	if matchkey.Nothing(value) {
		return nil
	}
	return []string{matchkey.Hex(value)}
}

// phones returns the usable numbers of a person in the form of E.164, such as +16505551212.
func phones(p person) []string {
	return each(p.Phones(), func(raw string) (string, bool) {
		t, ok := matchkey.Recipe{}.WithPlus(true).Phone(raw, p.country)
		return t.String(), ok
	})
}

func devices(p person) []string {
	apple, others := p.Devices()
	return each(slices.Concat(apple, others), func(raw string) (string, bool) {
		t, ok := matchkey.Device(raw)
		return t.String(), ok
	})
}

// externalID returns what the customer's own system calls a person, as it is. An id that a file would not bring back the
// same, because of a line break for instance, is none.
func externalID(p person) string {
	id := p.ExternalID()
	if matchkey.Nothing(id) || len(id) > 512 || strings.TrimSpace(id) != id || strings.ContainsFunc(id, unicode.IsControl) {
		return ""
	}
	return id
}

func profileID(id activation.ProfileID) string { return "p_" + hex.EncodeToString(id[:]) }

// line returns a text on one line, with single spaces, or "" if it is too long to be a name or a place.
func line(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(text) > 512 {
		return ""
	}
	return text
}

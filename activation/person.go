package activation

import (
	"cmp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Emails returns the e-mail addresses that a person is known by, as they came: first those that are identifiers, in order,
// then the trait.
func (p Person) Emails() []string { return withText(p.Identified("email"), p.Text("email")) }

// Phones returns the phone numbers that a person is known by, as they came: first those that are identifiers, in order, then
// the traits.
func (p Person) Phones() []string {
	return withText(withText(p.Identified("phone"), p.Text("phone")), p.Text("mobile"))
}

// Devices returns the advertising ids of Apple devices and of others that a person is known by, as they came.
func (p Person) Devices() (apple, others []string) {
	apple = withText(p.Identified("idfa"), p.Text("idfa"))
	others = p.Identified("gaid")
	for _, name := range []string{"gaid", "aaid", "advertising_id", "advertisingId", "maid"} {
		others = withText(others, p.Text(name))
	}
	return apple, others
}

// ExternalID returns what the customer's own system calls a person, or "".
func (p Person) ExternalID() string {
	if ids := p.Identified("user_id"); len(ids) > 0 {
		return ids[0]
	}
	return p.Text("external_id", "externalId", "customer_id", "customerId")
}

// FirstName returns a person's first name, or "". Of somebody who has a full name only it is the first word.
func (p Person) FirstName() string {
	first, _ := p.splitName()
	return cmp.Or(p.Text("first_name", "firstName"), first)
}

// LastName returns a person's last name, or "". Of somebody who has a full name only it is all but the first word.
func (p Person) LastName() string {
	_, last := p.splitName()
	return cmp.Or(p.Text("last_name", "lastName"), last)
}

func (p Person) splitName() (first, last string) {
	first, last, _ = strings.Cut(strings.TrimSpace(p.Text("name")), " ")
	if last = strings.TrimSpace(last); last == "" {
		return "", "" // one word may be either
	}
	return first, last
}

// City returns the city that a person lives in, or "".
func (p Person) City() string { return p.place("city") }

// Region returns the state or region that a person lives in, or "".
func (p Person) Region() string { return p.place("state", "region") }

// PostalCode returns a person's postal code, or "".
func (p Person) PostalCode() string { return p.place("postal_code", "postalCode", "zip") }

// Country returns the country that a person lives in as two upper-case letters (ISO 3166), or "" if it is not known or
// given otherwise.
func (p Person) Country() string {
	country := strings.ToUpper(strings.TrimSpace(p.place("country_code", "countryCode", "country")))
	if len(country) != 2 || country[0] < 'A' || country[0] > 'Z' || country[1] < 'A' || country[1] > 'Z' {
		return ""
	}
	return country
}

// Gender returns "f", "m" or "".
func (p Person) Gender() string {
	switch g := strings.ToLower(strings.TrimSpace(p.Text("gender"))); g {
	case "f", "female", "woman", "w", "girl":
		return "f"
	case "m", "male", "man", "boy":
		return "m"
	default:
		return ""
	}
}

// place returns a part of where somebody lives: a trait of its own, or a member of the trait address.
func (p Person) place(names ...string) string {
	if s := p.Text(names...); s != "" {
		return s
	}
	address := p.Traits["address"]
	if address.Kind() != '{' {
		return ""
	}
	var members map[string]jsontext.Value
	if json.Unmarshal(address, &members) != nil {
		return ""
	}
	return Person{Traits: members}.Text(names...)
}

func withText(list []string, s string) []string {
	if s == "" || slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

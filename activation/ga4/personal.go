package ga4

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/mubatch/mubatch/activation"
)

var (
	// address matches what every e-mail address has, however often it was escaped.
	address = regexp.MustCompile(`@|%(?:25)*40`)

	// phone matches numbers that are written as phone numbers are: with a plus, or an area code in parentheses.
	phone = regexp.MustCompile(`(?i)(?:\+|%2B) ?[1-9](?:[ ()./-]{0,2}\d){6,14}|\(\d{2,5}\)[ ./-]?\d{3}`)

	// grouped matches a text that is nothing but groups of digits, and no decimal number. Order numbers may look like that,
	// too.
	grouped = regexp.MustCompile(`^\d{2,5}(?:(?:[ /-]\d{2,8}){1,4}|(?:\.\d{2,8}){2,4})$`)
)

// personal knows what must not be told of one person.
type personal struct {
	phones []string // the last digits of the person's own numbers
}

// How many digits a phone number has, with its area code: at most as E.164 says.
const fewestDigits, mostDigits = 9, 15

func personalOf(p activation.Person) personal {
	var own personal
	for _, number := range p.Phones() {
		if d := digits(number); len(d) >= fewestDigits {
			own.phones = append(own.phones, d[len(d)-fewestDigits:])
		}
	}
	return own
}

// in tells whether a text that goes under a name holds an e-mail address or a phone number. Only the person's own number is
// told from an order number that is written in the same way.
func (p personal) in(name, text string) bool {
	if address.MatchString(text) || phone.MatchString(text) {
		return true
	}
	d := digits(text)
	for _, number := range p.phones {
		if strings.Contains(d, number) {
			return true
		}
	}
	return !isID(name) && grouped.MatchString(text) && len(d) >= fewestDigits && len(d) <= mostDigits
}

// page returns the address of a page without what is personal in it, or "" if more than its query and fragment are.
func (p personal) page(name, raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	var kept []string
	parts := strings.Split(u.RawQuery, "&")
	for _, part := range parts {
		text, err := url.QueryUnescape(part)
		key, _, _ := strings.Cut(text, "=")
		if err == nil && !isPersonal(key) && !isPersonal(strings.ToLower(key)) && !p.in(name, part) && !p.in(name, text) {
			kept = append(kept, part)
		}
	}
	if len(kept) == len(parts) && !p.in(name, raw) {
		return raw
	}
	u.RawQuery, u.Fragment, u.RawFragment, u.User = strings.Join(kept, "&"), "", "", nil
	if clean := u.String(); !p.in(name, clean) {
		return clean
	}
	return ""
}

// shared are those of the traits that people are known by that many people have in common, or that only the customer can
// tell people by.
var shared = []string{
	"gender", "city", "state", "region", "country", "country_code", "countryCode", "company", "title",
	"external_id", "externalId", "customer_id", "customerId",
}

// isPersonal tells whether a trait says who somebody is.
func isPersonal(trait string) bool {
	return slices.Contains(activation.IdentifyingTraits, trait) && !slices.Contains(shared, trait)
}

// leadsToPersonal tells whether a mapping's path leads to what says who somebody is. Products and promotions have names, too.
func leadsToPersonal(path string) bool {
	steps := strings.Split(path, ".")
	last := steps[len(steps)-1]
	return path == "context.ip" || isPersonal(last) && (last != "name" || slices.Contains(steps, "traits"))
}

// namesPersonal tells whether a cell names what says who somebody is. Whatever it does with the traits is taken for that.
func namesPersonal(cell string) bool {
	words := strings.FieldsFunc(cell, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	return slices.Contains(words, "traits") || slices.Contains(words, "ip") ||
		slices.ContainsFunc(words, func(word string) bool { return word != "name" && isPersonal(word) })
}

func digits(s string) string {
	return strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, s)
}

package matchkey

import (
	"strings"

	"github.com/nyaruka/phonenumbers"
)

// parsePhone reads a phone number and returns it in the form of E.164, such as +16505551212. A number that does not say
// its country, by a leading + or 00, is read as one of country (two letters, ISO 3166), and refused if that is empty:
// a guess would be somebody else's number.
func parsePhone(raw, country string) (e164 string, ok bool) {
	s := trim(raw)
	if digits, found := strings.CutPrefix(s, "+"); found {
		s = "+" + strings.TrimLeft(digits, "0 ")
	} else if digits, found := strings.CutPrefix(s, "00"); found {
		s = "+" + strings.TrimLeft(digits, "0 ")
	}
	if len(s) > 64 || strings.ContainsAny(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ@") {
		return "", false // a word, or a number with an extension, which nobody has to himself
	}
	if country = strings.ToUpper(trim(country)); len(country) != 2 {
		country = ""
	}
	if country == "" && !strings.HasPrefix(s, "+") {
		return "", false
	}
	n, err := phonenumbers.Parse(s, country)
	if err != nil || !phonenumbers.IsPossibleNumber(n) {
		return "", false
	}
	return phonenumbers.Format(n, phonenumbers.E164), true
}

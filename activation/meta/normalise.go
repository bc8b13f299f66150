package meta

import (
	"cmp"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/text/language"
	"golang.org/x/text/language/display"

	"github.com/mubatch/mubatch/activation/matchkey"
)

// The functions of this file bring what is known of a person into the form that Meta hashes: see "Hashing and normalization"
// in Marketing API, Customer File Custom Audiences, and the tests of Meta's parameter builder, whose answers they give where
// the two agree. The Conversions API asks for the same. ok is false if raw is nothing of the kind. What is a SHA-256 already
// stays as it is. E-mail addresses and phone numbers are [matchkey.Meta]'s, and genders [activation.Person.Gender]'s.

// Name returns a first or last name: letters of any script in lower case, without spaces and punctuation.
func Name(raw string) (t matchkey.Text, ok bool) { return matchkey.Other(raw, bare) }

// City returns the name of a city, as [Name] does.
func City(raw string) (t matchkey.Text, ok bool) { return matchkey.Other(raw, bare) }

// State returns a state or region of a country (two letters, ISO 3166, or ""): of the United States the two letters of its
// postal abbreviation, elsewhere its name as [Name] does.
func State(raw, country string) (t matchkey.Text, ok bool) {
	return matchkey.Other(raw, func(s string) string {
		s = bare(strings.TrimPrefix(strings.ToLower(s), strings.ToLower(cmp.Or(country, "US"))+"-")) // ISO 3166-2: US-CA
		if code := states[s]; code != "" && (country == "" || strings.EqualFold(country, "US")) {
			return code
		}
		return s
	})
}

// PostalCode returns a postal code of a country (two letters, ISO 3166, or "") in lower case, without spaces and dashes. Of
// one of the United States it is the first five digits.
func PostalCode(raw, country string) (t matchkey.Text, ok bool) {
	return matchkey.Other(raw, func(s string) string {
		s = strings.ToLower(strings.Join(strings.Fields(s), ""))
		us := strings.EqualFold(country, "US") || country == "" && len(s) == 10 && s[5] == '-' && digits(s[:5]) && digits(s[6:])
		s = strings.ReplaceAll(s, "-", "")
		switch {
		case us && (len(s) < 5 || !digits(s[:5])):
			return ""
		case us:
			return s[:5]
		case len(s) < 2:
			return ""
		}
		return s
	})
}

// Country returns a country as two lower-case letters, given as an ISO 3166 code of two or three letters or by its English
// name.
func Country(raw string) (t matchkey.Text, ok bool) {
	return matchkey.Other(raw, func(s string) string {
		if code := countries()[bare(s)]; code != "" {
			return code
		}
		region, err := language.ParseRegion(s)
		if err != nil || !region.IsCountry() {
			return ""
		}
		return strings.ToLower(region.Canonicalize().String())
	})
}

// Birth returns the year, month and day of a birthday, as YYYY, MM and DD. It has to be given with the year first, or, with
// full stops between them, with the day first: other orders are not the same everywhere.
func Birth(raw string) (year, month, day matchkey.Text, ok bool) {
	raw = strings.TrimSpace(raw)
	if len(raw) > 10 && (raw[10] == 'T' || raw[10] == ' ') {
		raw = raw[:10]
	}
	for _, layout := range []string{"2006-1-2", "2006/1/2", "2006.1.2", "20060102", "2.1.2006"} {
		at, err := time.Parse(layout, raw)
		if err != nil || at.Year() < 1900 || at.Year() > 2100 {
			continue
		}
		part := func(layout string) matchkey.Text {
			t, _ := matchkey.Other(at.Format(layout), func(s string) string { return s })
			return t
		}
		return part("2006"), part("01"), part("02"), true
	}
	return year, month, day, false
}

// bare returns a text in lower case, without spaces, punctuation and symbols.
func bare(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.IsPunct(r) || unicode.IsSymbol(r) || unicode.IsControl(r) {
			return -1
		}
		return r
	}, strings.ToLower(s))
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }

// countries are the codes of countries, by their English names.
var countries = sync.OnceValue(func() map[string]string {
	codes := map[string]string{"unitedstatesofamerica": "us", "greatbritain": "gb"}
	names := display.English.Regions()
	for a := 'A'; a <= 'Z'; a++ {
		for b := 'A'; b <= 'Z'; b++ {
			region, err := language.ParseRegion(string([]rune{a, b}))
			if err != nil || !region.IsCountry() || region.Canonicalize() != region {
				continue
			}
			if name := bare(names.Name(region)); name != "" {
				codes[name] = strings.ToLower(region.String())
			}
		}
	}
	return codes
})

// states are the postal abbreviations of the United States, by the names of the states.
var states = map[string]string{
	"alabama": "al", "alaska": "ak", "arizona": "az", "arkansas": "ar", "california": "ca", "colorado": "co", "connecticut": "ct",
	"delaware": "de", "districtofcolumbia": "dc", "florida": "fl", "georgia": "ga", "hawaii": "hi", "idaho": "id", "illinois": "il",
	"indiana": "in", "iowa": "ia", "kansas": "ks", "kentucky": "ky", "louisiana": "la", "maine": "me", "maryland": "md",
	"massachusetts": "ma", "michigan": "mi", "minnesota": "mn", "mississippi": "ms", "missouri": "mo", "montana": "mt",
	"nebraska": "ne", "nevada": "nv", "newhampshire": "nh", "newjersey": "nj", "newmexico": "nm", "newyork": "ny",
	"northcarolina": "nc", "northdakota": "nd", "ohio": "oh", "oklahoma": "ok", "oregon": "or", "pennsylvania": "pa",
	"puertorico": "pr", "rhodeisland": "ri", "southcarolina": "sc", "southdakota": "sd", "tennessee": "tn", "texas": "tx",
	"utah": "ut", "vermont": "vt", "virginia": "va", "washington": "wa", "westvirginia": "wv", "wisconsin": "wi", "wyoming": "wy",
}

package matchkey

import "strings"

// Recipe is how one partner wants e-mail addresses and phone numbers before they are hashed.
type Recipe struct {
	email emailRule
	plus  bool // phone numbers begin with +
}

// The recipes of partners, as far as they publish them.
var (
	Meta      = Recipe{}
	LinkedIn  = Recipe{}
	Snapchat  = Recipe{}
	Pinterest = Recipe{plus: true}
	Criteo    = Recipe{}
	X         = Recipe{plus: true}
	Yahoo     = Recipe{plus: true}
	Microsoft = Recipe{plus: true} // its recipe for phone numbers is not published

	// Google ignores dots and tags in addresses of its own mail only.
	Google = Recipe{email: emailRule{dots: true, tag: true, at: func(domain string) bool { return gmail[domain] }}, plus: true}

	// UID2 is also what The Trade Desk and EUID use. It knows gmail.com only.
	UID2 = Recipe{email: emailRule{dots: true, tag: true, at: func(domain string) bool { return domain == "gmail.com" }}, plus: true}

	// Reddit ignores dots and tags in addresses of every domain.
	Reddit = Recipe{email: emailRule{dots: true, tag: true}, plus: true}

	// TikTok contradicts itself. Its API reference asks for lower case and a phone number with +, which this is.
	TikTok = Recipe{plus: true}
)

// WithoutTags returns the recipe that also cuts e-mail addresses at the first plus sign of the local part, in every domain.
func (r Recipe) WithoutTags() Recipe {
	r.email.tag, r.email.at = true, nil
	return r
}

// WithTags returns the recipe that leaves what follows a plus sign in e-mail addresses.
func (r Recipe) WithTags() Recipe {
	r.email.tag = false
	return r
}

// WithoutDots returns the recipe that also leaves the dots of the local part out of e-mail addresses, in every domain.
func (r Recipe) WithoutDots() Recipe {
	r.email.dots, r.email.at = true, nil
	return r
}

// WithPlus returns the recipe in which phone numbers begin with +, or do not.
func (r Recipe) WithPlus(plus bool) Recipe {
	r.plus = plus
	return r
}

// Email returns an e-mail address as the partner wants it. ok is false if raw is none.
func (r Recipe) Email(raw string) (t Text, ok bool) {
	if t, ok := prehashed(raw); ok {
		return t, !Poisoned(t.value)
	}
	a, ok := parseEmail(raw)
	if !ok {
		return Text{}, false
	}
	s, ok := r.email.apply(a)
	return Text{value: s}, ok
}

// Phone returns a phone number as the partner wants it. One that does not say its country is read as one of country (two
// letters, ISO 3166). ok is false if raw is none, or if nobody knows of which country. A hash is refused, too: partners
// disagree on phone numbers so much that one made for another would never match.
func (r Recipe) Phone(raw, country string) (t Text, ok bool) {
	s, ok := parsePhone(raw, country)
	if !ok {
		return Text{}, false
	}
	if !r.plus {
		s = strings.TrimPrefix(s, "+")
	}
	return Text{value: s}, true
}

// Device returns the advertising id of a device in lower case with hyphens, as partners want it, hashed or not. ok is false
// if raw is none, or the one of all who have opted out, which is zeros.
func Device(raw string) (t Text, ok bool) {
	s := strings.ToLower(trim(raw))
	if len(s) != 36 || strings.Trim(s, "0-") == "" {
		return Text{}, false
	}
	for i, c := range []byte(s) {
		hyphen := i == 8 || i == 13 || i == 18 || i == 23
		if hyphen != (c == '-') || !hyphen && !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return Text{}, false
		}
	}
	return Text{value: s}, true
}

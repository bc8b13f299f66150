package google

import (
	"cmp"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/text/language"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
)

// Kinds of identifiers.
const (
	email   = "email"
	phone   = "phone"
	address = "address" // see joinAddress
	mobile  = "mobile"
	userID  = "user_id"
)

// Identify implements [activation.AudiencePartner].
func (*Partner) Identify(t activation.Target, p activation.Person) (ids activation.Identifiers, err error) {
	cfg, _, err := read(t.Settings)
	if err != nil {
		return activation.Identifiers{}, err
	}
	add := func(kind, value string) {
		if id := (activation.Identifier{Kind: kind, Value: value}); !slices.Contains(ids.IDs, id) {
			ids.IDs = append(ids.IDs, id)
		}
	}
	switch cfg.data() {
	case mobileIDs:
		for _, id := range devices(cfg.MobilePlatform, p) {
			add(mobile, id)
		}
		if len(ids.IDs) == 0 {
			ids.Reason = "no advertising id of an Android device is known"
			if cfg.MobilePlatform == "ios" {
				ids.Reason = "no advertising id of an Apple device is known"
			}
		}
	case userIDs:
		for _, id := range append(p.Identified("user_id"), p.ExternalID()) {
			if id = strings.TrimSpace(id); !matchkey.Nothing(id) {
				add(userID, id)
			}
		}
		if len(ids.IDs) == 0 {
			ids.Reason = "no user id is known"
		}
	default:
		ids.Reason = contacts(p, cfg.GmailTags == "both", cfg.DefaultCountry, add)
	}
	if len(ids.IDs) > 0 {
		ids.Reason = ""
	}
	return ids, nil
}

// contacts adds what contact data of a person Google can use, and returns why there may be none. With tags, what follows the
// plus sign of a Gmail address counts, too. A person of whom no country is known lives in home.
func contacts(p activation.Person, tags bool, home string, add func(kind, value string)) (reason string) {
	recipes := []matchkey.Recipe{matchkey.Google}
	if tags {
		recipes = append(recipes, matchkey.Google.WithTags())
	}
	for _, raw := range p.Emails() {
		for _, recipe := range recipes {
			if t, ok := recipe.Email(raw); ok {
				add(email, t.Hex())
			}
		}
	}
	country := region(cmp.Or(p.Country(), home))
	for _, raw := range p.Phones() {
		if t, ok := matchkey.Google.Phone(raw, country); ok {
			add(phone, t.Hex())
		}
	}
	given, family, postal := givenName(p.FirstName()), familyName(p.LastName()), postalCode(p.PostalCode())
	if given != "" && family != "" && country != "" && postal != "" {
		add(address, joinAddress(given, family, country, postal))
	}
	switch {
	case len(p.Emails())+len(p.Phones()) == 0:
		return "neither an e-mail address nor a phone number nor a whole postal address is known"
	case len(p.Emails()) == 0 && country == "":
		return "the phone number does not say its country, and none is known"
	default:
		return "the e-mail address or phone number is not a valid one"
	}
}

// joinAddress makes one identifier of a postal address: Google matches its four members only all at once, and recognises
// people by it alone, so that it must not be taken away while somebody else has it. Names are hashed; region and postal code
// are not.
func joinAddress(given, family, region, postal string) string {
	return given + " " + family + " " + region + " " + postal
}

func splitAddress(value string) (a addressInfo, ok bool) {
	parts := strings.SplitN(value, " ", 4)
	if len(parts) != 4 {
		return addressInfo{}, false
	}
	return addressInfo{parts[0], parts[1], parts[2], parts[3]}, true
}

// What Google's own libraries for the Data Manager API take away from names, in lower case.
var (
	namePrefix = regexp.MustCompile(`(?:mr|mrs|ms|dr)\.(?:\s|$)`)
	nameSuffix = regexp.MustCompile(`(?:,\s*|\s+)(?:jr\.|sr\.|2nd|3rd|ii|iii|iv|v|vi|cpa|dc|dds|vm|jd|md|phd)\s?$`)
)

// givenName returns the hash of a first name, or "" if there is none.
func givenName(raw string) string {
	return hashName(raw, func(name string) string { return namePrefix.ReplaceAllString(name, "") })
}

// familyName returns the hash of a last name, or "" if there is none.
func familyName(raw string) string {
	return hashName(raw, func(name string) string {
		for nameSuffix.MatchString(name) {
			name = nameSuffix.ReplaceAllString(name, "")
		}
		return name
	})
}

// hashName hashes a name without what bare takes away. One that is a hash already stays as it is.
func hashName(raw string, bare func(string) string) string {
	name := strings.ToLower(strings.TrimSpace(raw))
	if matchkey.Nothing(name) || matchkey.Poisoned(name) {
		return ""
	}
	if hashed(name) {
		return name
	}
	if name = strings.TrimSpace(bare(name)); name == "" {
		return ""
	}
	return matchkey.Hex(name)
}

// postalCode returns a postal code as it is written, or "" for what can be none: a hash, or a word.
func postalCode(raw string) string {
	code := strings.TrimSpace(raw)
	odd := func(r rune) bool {
		return r != ' ' && r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}
	if !strings.ContainsAny(code, "0123456789") || len(code) > 16 || strings.ContainsFunc(code, odd) {
		return ""
	}
	return code
}

// region returns a country under the code that ISO 3166 has for it, GB for UK for instance, or "" if there is none: one
// that Google does not know has it refuse the person altogether.
func region(country string) string {
	r, err := language.ParseRegion(country)
	if err != nil || !r.IsCountry() {
		return ""
	}
	return r.Canonicalize().String()
}

func hashed(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32
}

// devices returns a person's advertising ids of a platform, in the case in which its devices write them.
func devices(platform string, p activation.Person) (ids []string) {
	apple, others := p.Devices()
	raw, written := others, strings.ToLower
	if platform == "ios" {
		raw, written = apple, strings.ToUpper
	}
	for _, r := range raw {
		if t, ok := matchkey.Device(r); ok {
			ids = append(ids, written(t.String()))
		}
	}
	return ids
}

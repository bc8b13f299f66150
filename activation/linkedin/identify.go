package linkedin

import (
	"crypto/sha512"
	"encoding/hex"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
)

// Kinds of identifiers, as LinkedIn names them.
const (
	sha256Email = "SHA256_EMAIL"
	sha512Email = "SHA512_EMAIL"
	googleAID   = "GOOGLE_AID"

	firstName = "firstName"
	lastName  = "lastName"
	title     = "title"
	company   = "company"
	country   = "country"
)

// Identify implements [activation.AudiencePartner].
func (*Partner) Identify(t activation.Target, p activation.Person) (ids activation.Identifiers, err error) {
	cfg, _, err := read(t)
	if err != nil {
		return ids, err
	}
	emails := p.Emails()
	for _, raw := range emails {
		if email, ok := matchkey.LinkedIn.Email(raw); ok {
			ids.IDs = append(ids.IDs, hashed(cfg, email))
		}
	}
	apple, others := devices(p)
	for _, device := range others {
		ids.IDs = append(ids.IDs, activation.Identifier{Kind: googleAID, Value: device})
	}
	switch {
	case len(ids.IDs) > 0:
		if cfg.SendNames {
			ids.Details = details(p)
		}
	case len(emails) > 0:
		ids.Reason = "the e-mail address is not a valid one, and LinkedIn needs one or an Android advertising id"
	case len(apple) > 0:
		ids.Reason = "LinkedIn does not know Apple devices: it needs an e-mail address or an Android advertising id"
	case len(p.Phones()) > 0:
		ids.Reason = "LinkedIn does not know phone numbers: it needs an e-mail address or an Android advertising id"
	default:
		ids.Reason = "neither an e-mail address nor an Android advertising id is known"
	}
	return ids, nil
}

// hashed returns an e-mail address as the destination wants it. One that came as a hash stays the SHA-256 it is.
func hashed(cfg Config, email matchkey.Text) activation.Identifier {
	if cfg.EmailHash == "sha512" && !email.Hashed() {
		sum := sha512.Sum512([]byte(email.String()))
		return activation.Identifier{Kind: sha512Email, Value: hex.EncodeToString(sum[:])}
	}
	return activation.Identifier{Kind: sha256Email, Value: email.Hex()}
}

// devices returns advertising ids of Apple devices, and of others: a source may give the same one under both names.
func devices(p activation.Person) (apple, others []string) {
	normal := func(raw []string) (texts []string) {
		for _, id := range raw {
			if device, ok := matchkey.Device(id); ok {
				texts = append(texts, device.String())
			}
		}
		return texts
	}
	ios, rest := p.Devices()
	apple, others = normal(ios), normal(rest)
	return apple, slices.DeleteFunc(others, func(id string) bool { return slices.Contains(apple, id) })
}

// details returns what else LinkedIn takes of a person, in its own order. A value that is longer than LinkedIn allows is left
// out: without it the person may be found, with it the person would be refused.
func details(p activation.Person) (list []activation.Identifier) {
	add := func(kind, raw string, most int) {
		text := strings.Join(strings.Fields(strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(raw, ""))), " ")
		if !matchkey.Nothing(text) && !strings.Contains(text, "@") && utf8.RuneCountInString(text) <= most {
			list = append(list, activation.Identifier{Kind: kind, Value: text})
		}
	}
	add(firstName, p.FirstName(), 35)
	add(lastName, p.LastName(), 35)
	add(title, p.Text("title"), 50)
	add(company, p.Text("company"), 50)
	add(country, p.Country(), 2)
	return list
}

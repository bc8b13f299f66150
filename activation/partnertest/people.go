package partnertest

import (
	"fmt"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// Somebody returns the n-th person, with an address, a phone number and a name that nobody else has.
func Somebody(n int) activation.Person { return Known(n, n) }

// Known returns the n-th person as one that is known by what the as-th is otherwise known by: the same, or one who has
// another e-mail address and phone number now, or shares them with somebody.
func Known(n, as int) activation.Person {
	email, phone := fmt.Sprintf("person.%d@example.com", as), fmt.Sprintf("+1650555%04d", as)
	return activation.Person{
		ID: Profile(n),
		Identifiers: []activation.Identifier{
			{Kind: "email", Value: email},
			{Kind: "phone", Value: phone},
			{Kind: "user_id", Value: fmt.Sprintf("cust-%d", n)},
		},
		Traits: map[string]jsontext.Value{
			"email":      jsontext.Value(`"` + email + `"`),
			"phone":      jsontext.Value(`"` + phone + `"`),
			"first_name": jsontext.Value(fmt.Sprintf(`"Ada%d"`, as)),
			"last_name":  jsontext.Value(`"Lovelace"`),
			"country":    jsontext.Value(`"US"`),
			"zip":        jsontext.Value(`"94045"`),
			"plan":       jsontext.Value(`"pro"`), // which identifies nobody
		},
		Consent: map[string]bool{"ad_storage": true, "ad_user_data": true, "ad_personalization": true},
	}
}

// renumbered returns a person as the n-th one: with the same address, phone number and name, but the customer's id of that
// one, which nobody else has.
func renumbered(p activation.Person, n int) activation.Person {
	p.ID, p.Identifiers = Profile(n), slices.Clone(p.Identifiers)
	for i, id := range p.Identifiers {
		if id.Kind == "user_id" {
			p.Identifiers[i].Value = fmt.Sprintf("cust-%d", n)
		}
	}
	return p
}

// Nameless returns the n-th person as one of whom only our own id is known.
func Nameless(n int) activation.Person {
	p := Somebody(n)
	p.Identifiers = []activation.Identifier{{Kind: "anonymous_id", Value: fmt.Sprintf("visitor-%d", n)}}
	p.Traits = map[string]jsontext.Value{}
	return p
}

// texts returns a person's identifiers of a kind, and a trait, as fakes read them.
func texts(p activation.Person, kind, trait string) (list []string) {
	list = p.Identified(kind)
	if s := p.Text(trait); s != "" && !slices.Contains(list, s) {
		list = append(list, s)
	}
	return list
}

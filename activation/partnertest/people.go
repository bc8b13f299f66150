package partnertest

import (
	"fmt"

	"github.com/mubatch/mubatch/activation"
)

// Somebody returns the n-th person.
func Somebody(n int) activation.Person {
	return activation.Person{
		ID: Profile(n),
		Identifiers: []activation.Identifier{
			{Kind: "user_id", Value: fmt.Sprintf("cust-%d", n)},
			{Kind: "email", Value: fmt.Sprintf("person.%d@example.com", n)},
		},
		Consent: map[string]bool{"ad_storage": true, "ad_user_data": true, "ad_personalization": true},
	}
}

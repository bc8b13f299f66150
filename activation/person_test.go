package activation_test

import (
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
)

func TestWhatIsKnownOfAPerson(t *testing.T) {
	t.Parallel()
	type known struct {
		Emails, Phones, Apple, Others                                []string
		External, First, Last, City, Region, Postal, Country, Gender string
	}
	for _, tt := range []struct {
		name, traits string
		identifiers  []activation.Identifier
		want         known
	}{
		{name: "nothing", traits: `{}`},
		{
			name:        "identifiers before traits, each once",
			traits:      `{"email":"b@example.com","phone":"+1 650","mobile":"+49 1","external_id":"other"}`,
			identifiers: []activation.Identifier{{Kind: "email", Value: "a@example.com"}, {Kind: "email", Value: "b@example.com"}, {Kind: "phone", Value: "+1650"}, {Kind: "user_id", Value: "cust-1"}},
			want: known{
				Emails: []string{"a@example.com", "b@example.com"}, Phones: []string{"+1650", "+1 650", "+49 1"}, External: "cust-1",
			},
		},
		{
			name:   "an address as an object, and a full name",
			traits: `{"name":"Ada King Lovelace","address":{"city":"London","state":"LND","postalCode":"W1","country":"gb"},"gender":"Female"}`,
			want: known{
				First: "Ada", Last: "King Lovelace", City: "London", Region: "LND", Postal: "W1", Country: "GB", Gender: "f",
			},
		},
		{
			name:   "traits of their own before those, and no country that is spelt out",
			traits: `{"name":"Ada","firstName":"Augusta","zip":94045,"address":{"zip":"1","country":"Germany"},"country":"Deutschland","gender":"x"}`,
			want:   known{First: "Augusta", Postal: "94045"},
		},
		{name: "a child", traits: `{"gender":"Boy"}`, want: known{Gender: "m"}},
		{name: "an address that is a text", traits: `{"address":"1 Main St","name":"Ada"}`},
		{
			name:   "devices",
			traits: `{"idfa":"A","gaid":"G","advertisingId":"H"}`,
			want:   known{Apple: []string{"A"}, Others: []string{"G", "H"}},
		},
	} {
		p := activation.Person{Identifiers: tt.identifiers}
		if err := json.Unmarshal([]byte(tt.traits), &p.Traits); err != nil {
			t.Fatal(err)
		}
		got := known{
			Emails: p.Emails(), Phones: p.Phones(), External: p.ExternalID(), First: p.FirstName(), Last: p.LastName(), City: p.City(),
			Region: p.Region(), Postal: p.PostalCode(), Country: p.Country(), Gender: p.Gender(),
		}
		got.Apple, got.Others = p.Devices()
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

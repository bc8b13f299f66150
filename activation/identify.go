package activation

import (
	"github.com/go-json-experiment/json/jsontext"
)

// IdentifyingTraits are the traits that partners may derive identifiers from. When one of them changes, or an identifier of
// the person does, what was sent of the person is looked at again; when another one does, it is not. Names are as sources
// send them: "address" may hold an object.
var IdentifyingTraits = []string{
	"email", "phone", "mobile",
	"name", "first_name", "firstName", "last_name", "lastName",
	"gender", "birthday", "birthdate", "date_of_birth", "dateOfBirth",
	"address", "street", "city", "state", "region", "zip", "postal_code", "postalCode", "country", "country_code", "countryCode",
	"idfa", "idfv", "gaid", "aaid", "advertising_id", "advertisingId", "maid", "device_id", "deviceId", "ramp_id", "tdid", "uid2",
	"company", "title", "external_id", "externalId", "customer_id", "customerId",
}

// Text returns the first of the named traits that is a text or a number, as text, or "".
func (p Person) Text(names ...string) string {
	for _, name := range names {
		switch v := p.Traits[name]; v.Kind() {
		case '"':
			if s, err := jsontext.AppendUnquote(nil, v); err == nil && len(s) > 0 {
				return string(s)
			}
		case '0':
			return string(v)
		}
	}
	return ""
}

// Identified returns the values of the person's identifiers of a kind, such as email, in order.
func (p Person) Identified(kind string) (values []string) {
	for _, id := range p.Identifiers {
		if id.Kind == kind {
			values = append(values, id.Value)
		}
	}
	return values
}

package activation

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"

	"github.com/go-json-experiment/json"
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

// identifying returns what Identify may see of a person.
func (p Person) identifying() Person {
	traits := make(map[string]jsontext.Value, len(p.Traits))
	for _, name := range IdentifyingTraits {
		if v, ok := p.Traits[name]; ok {
			traits[name] = v
		}
	}
	p.Traits, p.Consent = traits, nil
	return p
}

// empty tells that there is nothing a person could be known by.
func (ids Identifiers) empty() bool { return len(ids.IDs) == 0 }

func (ids Identifiers) equal(other Identifiers) bool {
	return slices.Equal(ids.IDs, other.IDs) && slices.Equal(ids.Details, other.Details)
}

// covers tells whether all of other is among ids: whoever is known by other can be told of as ids without having been taken
// away first.
func (ids Identifiers) covers(other Identifiers) bool {
	in := func(list []Identifier) func(Identifier) bool {
		return func(id Identifier) bool { return !slices.Contains(list, id) }
	}
	return !slices.ContainsFunc(other.IDs, in(ids.IDs)) && !slices.ContainsFunc(other.Details, in(ids.Details))
}

// bytes is how identifiers are kept, nil if there are none.
func (ids Identifiers) bytes() []byte {
	if ids.empty() {
		return nil
	}
	b, err := json.Marshal(ids)
	if err != nil { // texts that are no UTF-8: a partner that makes such is not to be trusted with the rest
		panic("activation: identifiers cannot be kept: " + err.Error())
	}
	return b
}

// readIdentifiers reads what bytes returned.
func readIdentifiers(b []byte) (ids Identifiers, err error) {
	if len(b) > 0 {
		err = json.Unmarshal(b, &ids)
	}
	return ids, err
}

// handle stands for an identifier, in 128 bits.
type handle [16]byte

func handleOf(id Identifier) handle {
	sum := sha256.Sum256([]byte(id.Kind + "\x00" + id.Value))
	return handle(sum[:16])
}

func (h handle) lane(lanes int) int { return int(binary.BigEndian.Uint64(h[:8]) % uint64(lanes)) }

func (h handle) String() string { return hex.EncodeToString(h[:]) }

// handles returns those of all IDs, each once.
func (ids Identifiers) handles() []handle {
	list := make([]handle, 0, len(ids.IDs))
	for _, id := range ids.IDs {
		if h := handleOf(id); !slices.Contains(list, h) {
			list = append(list, h)
		}
	}
	return list
}

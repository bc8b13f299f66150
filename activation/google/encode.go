package google

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

const (
	maxRows        = 10_000
	maxIdentifiers = 10
	maxBody        = 4 << 20 // Google names no limit; so much is an answer to 10,000 people with two identifiers each
)

// reference names the one destination of a request.
const reference = "list"

// request is the body of audienceMembers:ingest and audienceMembers:remove.
type request struct {
	Destinations []destination    `json:"destinations"`
	Members      []jsontext.Value `json:"audienceMembers"`
	Encoding     string           `json:"encoding,omitzero"`
	Terms        *terms           `json:"termsOfService,omitzero"`
}

type destination struct {
	Reference string         `json:"reference"`
	Operating productAccount `json:"operatingAccount"`
	Login     productAccount `json:"loginAccount,omitzero"`
	List      string         `json:"productDestinationId"`
}

type productAccount struct {
	Type string `json:"accountType"`
	ID   string `json:"accountId"`
}

type terms struct {
	CustomerMatch string `json:"customerMatchTermsOfServiceStatus"`
}

// row is one audience member. A person with more identifiers than fit into one has several, of which all but the first name
// the destination. It is the only one, so that makes no difference to Google, and tells us where a person begins.
type row struct {
	References []string    `json:"destinationReferences,omitzero"`
	UserData   *userRow    `json:"userData,omitzero"`
	MobileData *mobileRow  `json:"mobileData,omitzero"`
	UserIDData *userIDRow  `json:"userIdData,omitzero"`
	Consent    *consentRow `json:"consent,omitzero"`
}

type userRow struct {
	Identifiers []userIdentifier `json:"userIdentifiers"`
}

type userIdentifier struct {
	Email   string      `json:"emailAddress,omitzero"`
	Phone   string      `json:"phoneNumber,omitzero"`
	Address addressInfo `json:"address,omitzero"`
}

type addressInfo struct {
	Given  string `json:"givenName"`
	Family string `json:"familyName"`
	Region string `json:"regionCode"`
	Postal string `json:"postalCode"`
}

type mobileRow struct {
	IDs []string `json:"mobileIds"`
}

type userIDRow struct {
	ID string `json:"userId"`
}

type consentRow struct {
	UserData        string `json:"adUserData,omitzero"`
	Personalization string `json:"adPersonalization,omitzero"`
}

var errNoList = errors.New("there is no list to send to")

// Encode implements [activation.AudiencePartner]. Members of another data type than the first one's wait for another message: after
// the destination's data were changed, people have to be removed as they were sent.
func (*Partner) Encode(t activation.Target, b activation.Batch) (body []byte, took int, err error) {
	cfg, _, err := read(t.Settings)
	if err != nil {
		return nil, 0, fmt.Errorf("read settings: %w", err)
	}
	if b.Audience == "" {
		return nil, 0, errNoList
	}
	r := request{Destinations: []destination{{
		Reference: reference, Operating: productAccount{cfg.accountType(), cfg.AccountID}, List: b.Audience,
	}}}
	if cfg.LoginAccountID != "" {
		r.Destinations[0].Login = productAccount{cfg.loginAccountType(), cfg.LoginAccountID}
	}
	data := dataType(b.Members[0])
	if data == userData {
		r.Encoding = "HEX"
	}
	if b.Members[0].Entered && data != userIDs {
		r.Terms = &terms{"ACCEPTED"}
	}
	size := 0
	for _, m := range b.Members {
		if dataType(m) != data {
			break
		}
		rows, err := rows(data, m)
		if err != nil {
			return nil, 0, err
		}
		for _, r := range rows {
			size += len(r) + 1
		}
		if took > 0 && (len(r.Members)+len(rows) > maxRows || size > maxBody) {
			break
		}
		r.Members = append(r.Members, rows...)
		took++
	}
	body, err = json.Marshal(r)
	return body, took, err
}

func dataType(m activation.Member) string {
	if len(m.Identifiers.IDs) > 0 {
		switch m.Identifiers.IDs[0].Kind {
		case mobile:
			return mobileIDs
		case userID:
			return userIDs
		}
	}
	return userData
}

// rows returns the audience members that one person becomes.
func rows(data string, m activation.Member) (rows []jsontext.Value, err error) {
	most := maxIdentifiers
	if data == userIDs {
		most = 1
	}
	for from := 0; from < len(m.Identifiers.IDs); from += most {
		var r row
		if from > 0 {
			r.References = []string{reference}
		}
		if m.Entered {
			r.Consent = consent(m.Person.Consent)
		}
		ids := m.Identifiers.IDs[from:min(from+most, len(m.Identifiers.IDs))]
		switch data {
		case mobileIDs:
			r.MobileData = &mobileRow{}
			for _, id := range ids {
				r.MobileData.IDs = append(r.MobileData.IDs, id.Value)
			}
		case userIDs:
			r.UserIDData = &userIDRow{ids[0].Value}
		default:
			if r.UserData, err = contactRow(ids); err != nil {
				return nil, err
			}
		}
		text, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("encode an audience member: %w", err)
		}
		rows = append(rows, text)
	}
	return rows, nil
}

func contactRow(ids []activation.Identifier) (*userRow, error) {
	u := &userRow{}
	for _, id := range ids {
		switch id.Kind {
		case email:
			u.Identifiers = append(u.Identifiers, userIdentifier{Email: id.Value})
		case phone:
			u.Identifiers = append(u.Identifiers, userIdentifier{Phone: id.Value})
		case address:
			a, ok := splitAddress(id.Value)
			if !ok {
				return nil, errors.New("a postal address is not one of ours")
			}
			u.Identifiers = append(u.Identifiers, userIdentifier{Address: a})
		default:
			return nil, fmt.Errorf("identifiers of the kind %q are not known", id.Kind)
		}
	}
	return u, nil
}

// consent tells Google what a person has decided, and nothing of what the person has not.
func consent(decided map[string]bool) *consentRow {
	say := func(purpose string) string {
		granted, ok := decided[purpose]
		switch {
		case decided[activation.GPC]:
			return "CONSENT_DENIED"
		case !ok:
			return ""
		case granted:
			return "CONSENT_GRANTED"
		default:
			return "CONSENT_DENIED"
		}
	}
	if c := (consentRow{say(activation.AdUserData), say(activation.AdPersonalization)}); c != (consentRow{}) {
		return &c
	}
	return nil
}

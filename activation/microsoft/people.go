package microsoft

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
)

// The kinds of identifiers, as CustomerListItemSubType names them.
const (
	email = "Email" // SHA-256
	phone = "Phone" // SHA-256
	crm   = "CRM"   // the customer's own id, as it is
)

// perPerson is how many items one person may have, so that everybody fits into a call. Who has more is nobody in particular.
const perPerson = 100

// Identify implements [activation.AudiencePartner]. All identifiers of a person are of the one kind that the destination wants. How
// phone numbers are normalised is not published: the destination's settings say.
func (*Partner) Identify(t activation.Target, p activation.Person) (ids activation.Identifiers, err error) {
	cfg, _, err := settings(activation.Settings{Config: t.Config})
	if err != nil {
		return ids, fmt.Errorf("read the settings of a Microsoft destination: %w", err)
	}
	switch cfg.Identifier {
	case "crm":
		crms(&ids, p)
	case "phone":
		phones(&ids, p, matchkey.Microsoft.WithPlus(cfg.PhoneFormat != "digits"), cmp.Or(p.Country(), cfg.DefaultCountry))
	default:
		emails(&ids, p)
	}
	if len(ids.IDs) > 0 {
		ids.Reason = ""
	}
	return ids, nil
}

func add(ids *activation.Identifiers, kind, value string) {
	id := activation.Identifier{Kind: kind, Value: value}
	if !slices.Contains(ids.IDs, id) && len(ids.IDs) < perPerson {
		ids.IDs = append(ids.IDs, id)
	}
}

func emails(ids *activation.Identifiers, p activation.Person) {
	ids.Reason = "no e-mail address is known"
	for _, raw := range p.Emails() {
		if text, ok := matchkey.Microsoft.Email(raw); ok {
			add(ids, email, text.Hex())
		} else if !matchkey.Nothing(raw) {
			ids.Reason = "what is given as e-mail address is none"
		}
	}
}

func phones(ids *activation.Identifiers, p activation.Person, recipe matchkey.Recipe, country string) {
	ids.Reason = "no phone number is known"
	for _, raw := range p.Phones() {
		text, ok := recipe.Phone(raw, country)
		_, somewhere := recipe.Phone(raw, "US")
		switch {
		case ok:
			add(ids, phone, text.Hex())
		case country == "" && somewhere:
			ids.Reason = "the phone number does not say its country, and neither the person nor the destination has one"
		case !matchkey.Nothing(raw):
			ids.Reason = "what is given as phone number is none"
		}
	}
}

// crms adds the customer's own ids of a person. Shops whose ids are e-mail addresses must not have those sent as they are.
func crms(ids *activation.Identifiers, p activation.Person) {
	ids.Reason = "no id of the customer's own system is known"
	for _, raw := range append(p.Identified("user_id"), p.ExternalID()) {
		switch raw = strings.TrimSpace(raw); {
		case matchkey.Nothing(raw):
		case strings.Contains(raw, "@"):
			ids.Reason = "the customer's own id is an e-mail address, which is not sent as it is"
		default:
			add(ids, crm, raw)
		}
	}
}

// message is what is kept to be sent: the body of a call, and how many of its items each member has, so that what is said of
// items can be said of people.
type message struct {
	Counts []int          `json:"counts"`
	Body   jsontext.Value `json:"body"`
}

// application is the body of CustomerListUserData/Apply.
type application struct {
	Data userData `json:"CustomerListUserData"`
}

type userData struct {
	Audience string   `json:"AudienceId"`
	Action   string   `json:"ActionType"`
	Kind     string   `json:"CustomerListItemSubType"`
	Items    []string `json:"CustomerListItems"`
	Accept   bool     `json:"AcceptCustomerMatchTerm,omitzero"`
}

// Encode implements [activation.AudiencePartner]. It ends where somebody comes who is known by another kind of identifier, as those
// are who were sent before the destination's settings said another.
func (*Partner) Encode(t activation.Target, b activation.Batch) (body []byte, took int, err error) {
	cfg, _, err := settings(activation.Settings{Config: t.Config})
	if err != nil {
		return nil, 0, fmt.Errorf("read the settings of a Microsoft destination: %w", err)
	}
	data := userData{Audience: b.Audience, Action: "Remove", Accept: cfg.AcceptTerms}
	if b.Members[0].Entered {
		data.Action = "Add"
	}
	var m message
	for _, member := range b.Members {
		items, kind, err := itemsOf(member.Identifiers)
		if err != nil {
			return nil, 0, err
		}
		if took > 0 && (kind != data.Kind || len(data.Items)+len(items) > cfg.Items) {
			break
		}
		data.Kind = kind
		data.Items = append(data.Items, items...)
		m.Counts = append(m.Counts, len(items))
		took++
	}
	if m.Body, err = json.Marshal(application{data}); err != nil {
		return nil, 0, fmt.Errorf("encode a call: %w", err)
	}
	body, err = json.Marshal(m)
	return body, took, err
}

// itemsOf returns what stands for a person, and of which kind all of it is.
func itemsOf(ids activation.Identifiers) (items []string, kind string, err error) {
	for _, id := range ids.IDs {
		if kind != "" && id.Kind != kind {
			return nil, "", errors.New("one person has identifiers of several kinds")
		}
		kind = id.Kind
		items = append(items, id.Value)
	}
	return items, kind, nil
}

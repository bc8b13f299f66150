package ga4

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// visitor is what a request says of whom it is about: "JSON POST body" in the Measurement Protocol's reference.
type visitor struct {
	ClientID      string              `json:"client_id,omitzero"`
	AppInstanceID string              `json:"app_instance_id,omitzero"`
	UserID        string              `json:"user_id,omitzero"`
	UserAgent     string              `json:"user_agent,omitzero"`
	Properties    map[string]property `json:"user_properties,omitzero"`
	Consent       consent             `json:"consent,omitzero"`
}

type property struct {
	Value jsontext.Value `json:"value"`
}

// consent is what the person has decided. Of what nobody decided Google Analytics goes by what it heard on the site.
type consent struct {
	AdUserData        string `json:"ad_user_data,omitzero"`
	AdPersonalization string `json:"ad_personalization,omitzero"`
}

// visitor returns whom an event is of, or why Google Analytics could not know.
func (cfg Config) visitor(e activation.Event, own personal) (v visitor, refusal string) {
	cookies := cookiesOf(e.Context.Raw)
	if cfg.FirebaseAppID != "" {
		if v.AppInstanceID = appInstance(e, cookies); v.AppInstanceID == "" {
			return v, "the event does not say of which app instance it is: app_instance_id has to be in its context, " +
				"or a field of the mapping"
		}
	} else {
		v.ClientID = client(e, cookies, own)
	}
	for _, id := range []string{e.UserID, e.Person.ExternalID()} {
		if id != "" && !cfg.NoUserID && utf8.RuneCountInString(id) <= maxUserID && !own.in("user_id", id) {
			v.UserID = id
			break
		}
	}
	if agent := e.Context.UserAgent; cfg.UserAgent && !own.in("user_agent", agent) {
		v.UserAgent = agent
	}
	for name, trait := range cfg.UserProperties {
		value, ok := scalar(e.Person.Traits[trait])
		if !ok || own.in(name, plain(value)) || utf8.RuneCountInString(plain(value)) > maxPropertyValue {
			continue
		}
		if v.Properties == nil {
			v.Properties = map[string]property{}
		}
		v.Properties[name] = property{value}
	}
	v.Consent.AdUserData = decision(e.Person.Consent, activation.AdUserData)
	v.Consent.AdPersonalization = decision(e.Person.Consent, activation.AdPersonalization)
	return v, ""
}

func decision(decided map[string]bool, purpose string) string {
	granted, ok := decided[purpose]
	switch {
	case decided[activation.GPC], ok && !granted:
		return "DENIED"
	case ok:
		return "GRANTED"
	default:
		return ""
	}
}

var (
	// clientID is the form that Google asks for: two positive numbers.
	clientID = regexp.MustCompile(`^[1-9][0-9]{0,19}\.[1-9][0-9]{0,19}$`)

	// gaCookie is the cookie _ga, which ends with the client id: GA1.1.123.456.
	gaCookie = regexp.MustCompile(`^(?:GA)?1\.[0-9]+(?:-[0-9]+)?\.([1-9][0-9]{0,19}\.[1-9][0-9]{0,19})$`)

	appInstanceID = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

// client returns the client id of an event's visitor: the one that Google's tag gave to the browser, so that what the tag
// counts is the same visitor's, or else one that is made of the anonymous id and always the same for it.
func client(e activation.Event, cookies map[string]string, own personal) string {
	if id := plain(e.Fields["client_id"]); clientID.MatchString(id) {
		return id
	}
	for _, name := range []string{"_ga", "client_id", "clientId"} {
		if id := gaCookie.FindStringSubmatch(cookies[name]); id != nil {
			return id[1]
		}
		if id := cookies[name]; clientID.MatchString(id) {
			return id
		}
	}
	of := "anonymous id\x00" + e.AnonymousID
	if e.AnonymousID == "" || own.in("client_id", e.AnonymousID) {
		of = "profile\x00" + string(e.Person.ID[:])
	}
	sum := sha256.Sum256([]byte("client id of " + of))
	half := func(b []byte) uint32 { return binary.BigEndian.Uint32(b)%(1<<31-1) + 1 }
	return fmt.Sprintf("%d.%d", half(sum[:4]), half(sum[4:8]))
}

func appInstance(e activation.Event, cookies map[string]string) string {
	for _, id := range []string{plain(e.Fields["app_instance_id"]), cookies["app_instance_id"], cookies["appInstanceId"]} {
		if id = strings.ToLower(id); appInstanceID.MatchString(id) {
			return id
		}
	}
	return ""
}

// session returns the id of an event's session as the cookie of the stream has it, in either of its forms:
// GS1.1.1673933110.12.0… and GS2.1.s1747132561$o1$g0….
func (cfg Config) session(e activation.Event) string {
	cookies := cookiesOf(e.Context.Raw)
	id := cookies["sessionId"]
	if parts := strings.SplitN(cookies["_ga_"+strings.TrimPrefix(cfg.MeasurementID, "G-")], ".", 4); len(parts) >= 3 {
		switch parts[0] {
		case "GS1":
			id = parts[2]
		case "GS2":
			for part := range strings.SplitSeq(parts[2], "$") {
				if s, ok := strings.CutPrefix(part, "s"); ok {
					id = s
				}
			}
		}
	}
	return id
}

// cookiesOf returns the texts and numbers in an event's context, and in its cookies, clickIds, app and device.
func cookiesOf(context jsontext.Value) map[string]string {
	found := map[string]string{}
	var members map[string]jsontext.Value
	if len(context) == 0 || json.Unmarshal(context, &members) != nil {
		return found
	}
	for _, inner := range []string{"device", "app", "clickIds", "cookies"} {
		var more map[string]jsontext.Value
		if v := members[inner]; v.Kind() == '{' && json.Unmarshal(v, &more) == nil {
			for name, v := range more {
				found[name] = plain(v)
			}
		}
	}
	for name, v := range members {
		if s := plain(v); s != "" {
			found[name] = s
		}
	}
	return found
}

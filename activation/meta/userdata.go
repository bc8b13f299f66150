package meta

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
)

// userData is by what Meta can know who did something: Conversions API, Customer Information Parameters. The lists are of
// hashes; the others go as they are.
type userData struct {
	Emails       []string `json:"em,omitempty"`
	Phones       []string `json:"ph,omitempty"`
	FirstNames   []string `json:"fn,omitempty"`
	LastNames    []string `json:"ln,omitempty"`
	Births       []string `json:"db,omitempty"` // YYYYMMDD
	Genders      []string `json:"ge,omitempty"`
	Cities       []string `json:"ct,omitempty"`
	States       []string `json:"st,omitempty"`
	PostalCodes  []string `json:"zp,omitempty"`
	Countries    []string `json:"country,omitempty"`
	ExternalIDs  []string `json:"external_id,omitempty"`
	IP           string   `json:"client_ip_address,omitzero"`
	UserAgent    string   `json:"client_user_agent,omitzero"`
	Click        string   `json:"fbc,omitzero"`
	Browser      string   `json:"fbp,omitzero"`
	AdvertiserID string   `json:"madid,omitzero"` // of events of apps
}

// userDataOf says who did something, with all that is known of the person and of the browser or device.
func userDataOf(cfg ConversionsConfig, e activation.Event, source string) userData {
	u := userData{
		IP: publicIP(e.Context.IP), UserAgent: strings.TrimSpace(e.Context.UserAgent), Click: clickOf(e),
		Browser: cookie(e.Context.ClickIDs["fbp"]),
	}
	lists := map[string]*[]string{
		email: &u.Emails, phone: &u.Phones, firstName: &u.FirstNames, lastName: &u.LastNames, gender: &u.Genders,
		city: &u.Cities, state: &u.States, postalCode: &u.PostalCodes, country: &u.Countries,
	}
	_, _, lives := countryOf(e.Person)
	known := keysOf(e.Person, cmp.Or(lives, cfg.DefaultCountry))
	if !cfg.KeysOnly {
		known = append(known, detailsOf(e.Person)...)
		if year, month, day, ok := birthOf(e.Person); ok {
			u.Births = []string{matchkey.Hex(year.String() + month.String() + day.String())}
		}
	}
	for _, id := range known {
		if list := lists[id.Kind]; list != nil {
			*list = append(*list, id.Value)
		}
	}
	for _, raw := range append(e.Person.Identified("user_id"), e.Person.ExternalID()) {
		t, ok := matchkey.Other(raw, func(s string) string { return s })
		if ok && len(u.ExternalIDs) < maxKeys && !slices.Contains(u.ExternalIDs, t.Hex()) {
			u.ExternalIDs = append(u.ExternalIDs, t.Hex())
		}
	}
	if tracking := e.Context.Device.AdTracking; source == app && (tracking == nil || *tracking) {
		if t, ok := matchkey.Device(e.Context.Device.AdvertisingID); ok {
			u.AdvertiserID = t.String()
		}
	}
	return u
}

// usable tells whether Meta could know somebody by this: Conversions API, Best Practices, has combinations that it refuses,
// such as a first name with a gender, or a user agent with places.
func (u userData) usable() bool {
	key := len(u.Emails)+len(u.Phones)+len(u.ExternalIDs) > 0 || u.Click+u.Browser+u.AdvertiserID != ""
	browser := u.IP != "" && u.UserAgent != ""
	name := len(u.FirstNames) > 0 && len(u.LastNames) > 0 && len(u.Births)+len(u.Cities)+len(u.PostalCodes) > 0
	return key || browser || name
}

// unmatched says why Meta cannot know who did something.
func unmatched(p activation.Person, cfg ConversionsConfig) string {
	if _, _, lives := countryOf(p); len(p.Phones()) > 0 && lives == "" && cfg.DefaultCountry == "" {
		return "the phone number does not say its country, and the destination has no default country"
	}
	return "nothing is known by which Meta could tell who it was: no e-mail address, phone number, user id, click or browser"
}

// cookies are Meta's _fbc and _fbp: Conversions API, fbp and fbc Parameters.
var cookies = regexp.MustCompile(`^fb\.[0-9]\.[0-9]{10,16}\.[^\s@]+$`)

func cookie(raw string) string {
	if !cookies.MatchString(raw) {
		return ""
	}
	return raw
}

// clickOf returns the click on an ad that led to an event: what the cookie holds, or else what it would hold had it been set
// at the moment of the event.
func clickOf(e activation.Event) string {
	if c := cookie(e.Context.ClickIDs["fbc"]); c != "" {
		return c
	}
	if id := e.Context.ClickIDs["fbclid"]; id != "" {
		return cookie(fmt.Sprintf("fb.1.%d.%s", e.Timestamp.UnixMilli(), id))
	}
	return ""
}

// publicIP returns an address in the usual form, or "" if it is one that says nothing of anybody.
func publicIP(raw string) string {
	ip, err := netip.ParseAddr(strings.TrimSpace(raw))
	if err != nil {
		return ""
	}
	if ip = ip.Unmap().WithZone(""); !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return ""
	}
	return ip.String()
}

package google

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
)

// eventRequest is the body of events:ingest.
type eventRequest struct {
	Destinations []destination    `json:"destinations"`
	Events       []jsontext.Value `json:"events"`
	Encoding     string           `json:"encoding"`
}

// conversion is google.ads.datamanager.v1.Event, as far as it is written here.
type conversion struct {
	TransactionID string           `json:"transactionId"`
	Timestamp     time.Time        `json:"eventTimestamp"`
	Source        string           `json:"eventSource"`
	Name          string           `json:"eventName,omitzero"`
	UserData      *userRow         `json:"userData,omitzero"`
	Consent       *consentRow      `json:"consent,omitzero"`
	Ad            adIdentifiers    `json:"adIdentifiers,omitzero"`
	ClientID      string           `json:"clientId,omitzero"`
	AppInstanceID string           `json:"appInstanceId,omitzero"`
	UserID        string           `json:"userId,omitzero"`
	Currency      string           `json:"currency,omitzero"`
	Value         jsontext.Value   `json:"conversionValue,omitzero"`
	Count         jsontext.Value   `json:"conversionCount,omitzero"`
	Cart          *cartData        `json:"cartData,omitzero"`
	Properties    userProperties   `json:"userProperties,omitzero"`
	Device        deviceInfo       `json:"eventDeviceInfo,omitzero"`
	Variables     []customVariable `json:"customVariables,omitzero"`
	Parameters    []parameter      `json:"additionalEventParameters,omitzero"`
}

type adIdentifiers struct {
	SessionAttributes string `json:"sessionAttributes,omitzero"`
	GCLID             string `json:"gclid,omitzero"`
	GBRAID            string `json:"gbraid,omitzero"`
	WBRAID            string `json:"wbraid,omitzero"`
	MobileDeviceID    string `json:"mobileDeviceId,omitzero"`
	DCLID             string `json:"dclid,omitzero"`
	MatchID           string `json:"matchId,omitzero"`
}

type userProperties struct {
	Type  string `json:"customerType,omitzero"`
	Value string `json:"customerValueBucket,omitzero"`
}

type deviceInfo struct {
	UserAgent string `json:"userAgent,omitzero"`
	IP        string `json:"ipAddress,omitzero"`
}

type customVariable struct {
	Variable string `json:"variable"`
	Value    string `json:"value"`
}

type parameter struct {
	Name  string `json:"parameterName"`
	Value string `json:"value"`
}

type cartData struct {
	MerchantID string         `json:"merchantId,omitzero"`
	Label      string         `json:"merchantFeedLabel,omitzero"`
	Language   string         `json:"merchantFeedLanguageCode,omitzero"`
	Discount   jsontext.Value `json:"transactionDiscount,omitzero"`
	Items      []item         `json:"items,omitzero"`
	Coupons    []string       `json:"couponCodes,omitzero"`
}

type item struct {
	ProductID  string         `json:"merchantProductId,omitzero"`
	Quantity   string         `json:"quantity,omitzero"` // 64 bits are a string in JSON
	UnitPrice  jsontext.Value `json:"unitPrice,omitzero"`
	ItemID     string         `json:"itemId,omitzero"`
	Parameters []parameter    `json:"additionalItemParameters,omitzero"`
}

// RefuseEvent implements [activation.EventPartner].
func (*Conversions) RefuseEvent(to activation.Target, e activation.Event) (reason string) {
	cfg, _, err := readConversions(to.Settings)
	if err != nil {
		return "" // EncodeEvents says so
	}
	_, reason = newConversion(cfg, e)
	return reason
}

// EncodeEvents implements [activation.EventPartner]. All events are for the one destination.
func (*Conversions) EncodeEvents(to activation.Target, b activation.EventBatch) (body []byte, took int, err error) {
	cfg, _, err := readConversions(to.Settings)
	if err != nil {
		return nil, 0, fmt.Errorf("read settings: %w", err)
	}
	events := make([]conversion, len(b.Events))
	for i, e := range b.Events {
		events[i], _ = newConversion(cfg, e)
	}
	return encodeEvents(cfg, events)
}

func encodeEvents(cfg ConversionsConfig, events []conversion) (body []byte, took int, err error) {
	r := eventRequest{Destinations: []destination{cfg.destination()}, Encoding: "HEX"}
	size := 0
	for _, e := range events {
		text, err := json.Marshal(e)
		if err != nil {
			return nil, 0, fmt.Errorf("encode an event: %w", err)
		}
		if size += len(text) + 1; took > 0 && (took == cfg.batch() || size > maxBody) {
			break
		}
		r.Events = append(r.Events, text)
		took++
	}
	body, err = json.Marshal(r)
	return body, took, err
}

// reader reads the fields of one event, and keeps the first thing that is wrong with one.
type reader struct {
	fields map[string]jsontext.Value
	wrong  string
}

func (r *reader) fault(name, what string) { r.wrong = cmp.Or(r.wrong, name+" "+what) }

// text is a field that is a text, or a number as it was written.
func (r *reader) text(name string) string {
	v := r.fields[name]
	if v == nil {
		return ""
	}
	s := strings.TrimSpace(scalar(v))
	switch {
	case v.Kind() == '{' || v.Kind() == '[':
		r.fault(name, "is not a text")
	case strings.Contains(s, "@"):
		r.fault(name, "holds an e-mail address, which must not be sent as it is")
		return ""
	}
	return s
}

// of is a field that is one of a few words.
func (r *reader) of(name string) string {
	s := r.text(name)
	if s != "" && !slices.Contains(eventEnums[name], s) {
		r.fault(name, "is not one of "+strings.Join(eventEnums[name], ", "))
	}
	return s
}

func (r *reader) number(name string) jsontext.Value {
	v := r.fields[name]
	if v == nil || v.Kind() == '"' && scalar(v) == "" {
		return nil
	}
	n, ok := number(v)
	if !ok {
		r.fault(name, "is not a number")
	}
	return n
}

func (r *reader) currency() string {
	s := strings.ToUpper(r.text(currencyCode))
	if s != "" && !isCurrency(s) {
		r.fault(currencyCode, "is not the three letters of a currency (ISO 4217)")
	}
	return s
}

// click is a click id, from its field or else from the event's context. What can be none is left out.
func (r *reader) click(name string, e activation.Event) string {
	id := cmp.Or(r.text(name), e.Context.ClickIDs[name])
	if !clickID.MatchString(id) {
		return ""
	}
	return id
}

var clickID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,512}$`)

// newConversion makes what Google is told of an event, or says why it cannot be told.
func newConversion(cfg ConversionsConfig, e activation.Event) (c conversion, reason string) {
	r := &reader{fields: e.Fields}
	c = conversion{
		TransactionID: cmp.Or(r.text(transactionID), e.MessageID),
		Timestamp:     e.Timestamp.UTC(),
		Source:        cmp.Or(r.of(eventSource), cfg.EventSource, source(e)),
		Consent:       consent(e.Person.Consent),
		Ad:            adIdentifiers{SessionAttributes: r.text(sessionAttributes)},
		Currency:      r.currency(),
		Value:         r.number(conversionValue),
		Count:         r.number(conversionCount),
		Properties:    userProperties{r.of(customerType), r.of(customerValueBucket)},
		Device:        device(cfg, e),
	}
	// One click is enough, and the ids of clicks on iOS leave no room for another, nor for a cart.
	switch {
	case r.click(gclid, e) != "":
		c.Ad.GCLID = r.click(gclid, e)
	case r.click(gbraid, e) != "":
		c.Ad.GBRAID = r.click(gbraid, e)
	default:
		c.Ad.WBRAID = r.click(wbraid, e)
	}
	if c.Ad.GBRAID == "" && c.Ad.WBRAID == "" {
		c.Cart = r.cart(cfg)
	}
	var unknown string
	if !cfg.ClickIDsOnly {
		c.UserData, unknown = contactData(cfg, e.Person)
	}
	if strings.Contains(c.TransactionID, "@") {
		r.fault(transactionID, "is the event's message id, which holds an e-mail address")
	}
	reason = c.identify(cfg, r, e, unknown)
	for _, name := range slices.Sorted(maps.Keys(e.Fields)) {
		if variable, ok := strings.CutPrefix(name, customVariables); ok && r.text(name) != "" {
			c.Variables = append(c.Variables, customVariable{variable, r.text(name)})
		} else if of, ok := strings.CutPrefix(name, customParameters); ok && r.text(name) != "" {
			c.Parameters = append(c.Parameters, parameter{of, r.text(name)})
		}
	}
	return c, cmp.Or(r.wrong, reason)
}

// identify adds what each product knows people and clicks by beside contact data, and says why that may not be enough.
// unknown is why there is no contact data.
func (c *conversion) identify(cfg ConversionsConfig, r *reader, e activation.Event, unknown string) (reason string) {
	switch cfg.accountType() {
	case analyticsAccount:
		c.Name, c.UserID = e.As, cmp.Or(r.text(ownUserID), withoutAddress(e.UserID))
		if cfg.web() {
			c.ClientID = cmp.Or(r.text(clientID), e.Context.ClickIDs["client_id"])
			if c.ClientID == "" {
				return "the event has no client id of Google Analytics, without which a web data stream takes none: map clientId"
			}
			return ""
		}
		if c.AppInstanceID = r.text(appInstanceID); c.AppInstanceID == "" {
			return "the event has no app instance id of Google Analytics, without which an app's data stream takes none: map appInstanceId"
		}
		return ""
	case floodlightAccount:
		c.Ad.DCLID, c.Ad.MatchID = r.click(dclid, e), r.text(matchID)
		c.Ad.MobileDeviceID = mobileDevice(r.text(mobileDeviceID), e)
		if c.Ad == (adIdentifiers{SessionAttributes: c.Ad.SessionAttributes}) {
			return "the event has neither a click id nor a match id nor an advertising id, of which Floodlight asks for one"
		}
		return ""
	}
	switch {
	case c.UserData != nil || c.Ad != adIdentifiers{}:
		return ""
	case cfg.ClickIDsOnly:
		return "the event has no click id of Google's (gclid, gbraid, wbraid), and the destination sends nothing else"
	default:
		return unknown + ", and the event has no click id of Google's (gclid, gbraid, wbraid)"
	}
}

// contactData returns the identifiers that Google takes of a person: the first ten, since an event cannot be told twice.
func contactData(cfg ConversionsConfig, p activation.Person) (u *userRow, unknown string) {
	var ids []activation.Identifier
	unknown = contacts(p, cfg.GmailTags == "both", cfg.DefaultCountry, func(kind, value string) {
		if id := (activation.Identifier{Kind: kind, Value: value}); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	})
	if len(ids) == 0 {
		return nil, unknown
	}
	u, err := contactRow(ids[:min(len(ids), maxIdentifiers)])
	if err != nil {
		return nil, "what is known of the person cannot be read"
	}
	return u, ""
}

// source is where an event happened, as far as it tells.
func source(e activation.Event) string {
	if e.Type == "screen" || e.Context.App != (activation.EventApp{}) {
		return "APP"
	}
	return "WEB"
}

// Where Google Ads does not take addresses of the internet: the European Economic Area, the United Kingdom and Switzerland,
// with what belongs to them.
var withoutIP = []string{
	"AT", "AX", "BE", "BG", "CH", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GB", "GF", "GG", "GI", "GP", "GR", "HR", "HU",
	"IE", "IM", "IS", "IT", "JE", "LI", "LT", "LU", "LV", "MF", "MQ", "MT", "NL", "NO", "PL", "PT", "RE", "RO", "SE", "SI", "SK",
	"YT",
}

// device says what is known of the device. The address is sent if it is wanted, and of people only who are known to live where
// Google takes it.
func device(cfg ConversionsConfig, e activation.Event) (d deviceInfo) {
	d.UserAgent = withoutAddress(e.Context.UserAgent)
	country := region(cmp.Or(e.Person.Country(), cfg.DefaultCountry))
	if ip, err := netip.ParseAddr(e.Context.IP); err == nil && cfg.SendIP && country != "" && !slices.Contains(withoutIP, country) {
		d.IP = ip.WithZone("").String()
	}
	return d
}

// mobileDevice is the advertising id of the device on which something happened, in the case in which such devices write it,
// unless whoever owns it has turned that off.
func mobileDevice(mapped string, e activation.Event) string {
	if on := e.Context.Device.AdTracking; on != nil && !*on {
		return ""
	}
	id, ok := matchkey.Device(cmp.Or(mapped, e.Context.Device.AdvertisingID))
	switch os := strings.ToLower(e.Context.OS.Name); {
	case !ok:
		return ""
	case os == "ios" || os == "ipados":
		return strings.ToUpper(id.String())
	default:
		return strings.ToLower(id.String())
	}
}

// cart makes the cart of an event, or nil if it has none.
func (r *reader) cart(cfg ConversionsConfig) *cartData {
	c := cartData{Discount: r.number(transactionDiscount)}
	for _, v := range elements(r.fields[couponCodes]) {
		if s := strings.TrimSpace(scalar(v)); s != "" && !strings.Contains(s, "@") {
			c.Coupons = append(c.Coupons, s)
		}
	}
	for _, v := range elements(r.fields[cartItems]) {
		if i, ok := newItem(cfg, v); ok {
			c.Items = append(c.Items, i)
		}
	}
	if len(c.Items) == 0 && len(c.Coupons) == 0 && c.Discount == nil {
		return nil
	}
	if len(c.Items) > 0 {
		c.MerchantID, c.Label, c.Language = cfg.MerchantID, cfg.MerchantLabel, cfg.MerchantLanguage
	}
	return &c
}

// Parameters of items in Google Analytics, and what Segment's products call them.
var itemParameters = [][2]string{
	{"item_name", "name"}, {"item_brand", "brand"}, {"item_category", "category"}, {"item_variant", "variant"}, {"coupon", "coupon"},
}

// newItem makes an item of a product. One that has no id is left out, and so are numbers that are none: they do not keep the
// conversion from being told.
func newItem(cfg ConversionsConfig, v jsontext.Value) (i item, ok bool) {
	var product map[string]jsontext.Value
	if v.Kind() != '{' || json.Unmarshal(v, &product) != nil {
		return item{}, false
	}
	say := func(name string) string { return withoutAddress(strings.TrimSpace(scalar(product[name]))) }
	id := cmp.Or(say("product_id"), say("sku"))
	if cfg.ItemID == "sku" {
		id = cmp.Or(say("sku"), say("product_id"))
	}
	if id == "" {
		return item{}, false
	}
	i.ItemID = id
	if quantity, err := strconv.ParseUint(say("quantity"), 10, 31); err == nil {
		i.Quantity = strconv.FormatUint(quantity, 10)
	}
	i.UnitPrice, _ = number(product["price"])
	if cfg.accountType() != analyticsAccount {
		i.ProductID = id
		return i, true
	}
	for _, p := range itemParameters {
		if s := say(p[1]); s != "" {
			i.Parameters = append(i.Parameters, parameter{p[0], s})
		}
	}
	return i, true
}

// elements are those of a list; anything else is one by itself.
func elements(v jsontext.Value) (list []jsontext.Value) {
	if v == nil {
		return nil
	}
	if v.Kind() != '[' {
		return []jsontext.Value{v}
	}
	if json.Unmarshal(v, &list) != nil {
		return nil
	}
	return list
}

// scalar is what a text says, or a number or truth value as it was written.
func scalar(v jsontext.Value) (s string) {
	switch v.Kind() {
	case '"':
		if json.Unmarshal(v, &s) != nil {
			return ""
		}
		return s
	case '0', 't', 'f':
		return strings.TrimSpace(string(v))
	default:
		return ""
	}
}

// number is a number as it was written, in quotes or not, that Google can keep as a double.
func number(v jsontext.Value) (jsontext.Value, bool) {
	n := jsontext.Value(strings.TrimSpace(scalar(v)))
	if n.Kind() != '0' || !n.IsValid() {
		return nil, false
	}
	if _, err := strconv.ParseFloat(string(n), 64); err != nil {
		return nil, false
	}
	return n, true
}

func isCurrency(s string) bool {
	return len(s) == 3 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

// withoutAddress is a text, or "" if it holds an e-mail address.
func withoutAddress(s string) string {
	if strings.Contains(s, "@") {
		return ""
	}
	return s
}

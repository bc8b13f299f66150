package ga4

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// numbers are the parameters that have to be numbers: "Events" in the Measurement Protocol's reference. Sources send some of
// them as texts.
var numbers = []string{"value", "tax", "shipping", "price", "discount", "quantity", "index", "engagement_time_msec"}

// texts are those that have to be texts, beside all that end with _id or _name.
var texts = []string{"coupon", "currency", "affiliation", "method", "search_term", "payment_type", "creative_slot", "item_brand"}

// item is what an item may say, and what products are called where Segment's specs have other names for it.
var item = []struct {
	name string
	from []string
}{
	{"item_id", []string{"product_id", "sku", "id"}},
	{"item_name", []string{"name"}},
	{"item_brand", []string{"brand"}},
	{"item_category", []string{"category"}},
	{"item_variant", []string{"variant"}},
	{"price", nil},
	{"quantity", nil},
	{"coupon", nil},
	{"discount", nil},
	{"affiliation", nil},
	{"index", []string{"position"}},
	{"item_category2", nil},
	{"item_category3", nil},
	{"item_category4", nil},
	{"item_category5", nil},
	{"item_list_id", []string{"list_id"}},
	{"item_list_name", nil},
	{"location_id", nil},
	{"promotion_id", nil},
	{"promotion_name", nil},
	{"creative_name", nil},
	{"creative_slot", nil},
}

// isMapped tells whether a parameter is one that events have by themselves.
func isMapped(name string) bool {
	for _, m := range mappings {
		if _, ok := m.Fields[name]; ok {
			return true
		}
	}
	return false
}

// isID tells whether a parameter is nothing without its end, and may be digits in groups.
func isID(name string) bool {
	return strings.HasSuffix(name, "_id") || name == "coupon" || name == "currency"
}

func isText(name string) bool {
	if name == "session_id" {
		return false
	}
	return slices.Contains(texts, name) || strings.HasSuffix(name, "_id") || strings.HasSuffix(name, "_name")
}

// longest returns how many characters a parameter may have: "Limitations" in the Measurement Protocol's guide, and "Event
// collection limits" in the help of Google Analytics.
func (cfg Config) longest(name string) int {
	switch name {
	case "page_location":
		return 1000
	case "page_referrer":
		return 420
	case "page_title":
		return 300
	}
	if cfg.Analytics360 {
		return 500
	}
	return 100
}

var currency = regexp.MustCompile(`^[A-Z]{3}$`)

// parameters returns those of an event, or why it cannot be sent.
func (cfg Config) parameters(e activation.Event, own personal) (params map[string]jsontext.Value, refusal string) {
	params = map[string]jsontext.Value{}
	for name, v := range e.Fields {
		switch {
		case name == "client_id", name == "app_instance_id", parameterFault(name) != "":
		case name == "items":
			if list := cfg.items(v, own); list != nil {
				params[name] = list
			}
		default:
			if v, ok := cfg.parameter(name, v, own); ok {
				params[name] = v
			}
		}
	}
	if _, ok := params["session_id"]; !ok {
		if v, ok := cfg.parameter("session_id", quoted(cfg.session(e)), own); ok {
			params["session_id"] = v
		}
	}
	if name := cfg.MessageIDParameter; name != "" {
		if v, ok := cfg.parameter(name, quoted(e.MessageID), own); ok {
			params[name] = v
		}
	}
	if refusal := cfg.price(e.As, params); refusal != "" {
		return nil, refusal
	}
	if len(params) > maxParameters {
		return nil, "it has more than " + itoa(maxParameters) + " parameters"
	}
	return params, ""
}

// price sees to it that a value has a currency, without which it counts for nothing, and a sale what it is known by.
func (cfg Config) price(name string, params map[string]jsontext.Value) (refusal string) {
	sale := name == "purchase" || name == "refund"
	if sale && params["transaction_id"] == nil {
		return "a " + name + " needs a transaction_id that is neither too long nor personal, by which one that comes twice is counted once"
	}
	if params["value"] == nil || params["currency"] != nil {
		return ""
	}
	switch {
	case cfg.DefaultCurrency != "":
		params["currency"] = quoted(cfg.DefaultCurrency)
	case sale:
		return "a " + name + " with a value needs a currency of three letters (ISO 4217)"
	default:
		delete(params, "value")
	}
	return ""
}

// parameter returns a parameter as it can be sent, or false.
func (cfg Config) parameter(name string, v jsontext.Value, own personal) (jsontext.Value, bool) {
	if slices.Contains(numbers, name) {
		n, ok := number(v, name == "quantity" || name == "index")
		return n, ok && !own.in(name, string(n))
	}
	v, ok := scalar(v)
	text := plain(v)
	switch {
	case !ok:
		return nil, false
	case name == "page_location", name == "page_referrer":
		text = own.page(name, text)
	case own.in(name, text):
		return nil, false
	case name == "session_id":
		return v, sessionForm.MatchString(text)
	case name == "currency":
		if text = strings.ToUpper(text); !currency.MatchString(text) {
			return nil, false
		}
	case v.Kind() == '0' && !isText(name):
		return v, true
	}
	if longest := cfg.longest(name); utf8.RuneCountInString(text) > longest {
		if isID(name) || name == cfg.MessageIDParameter {
			return nil, false
		}
		text = strings.TrimSpace(string([]rune(text)[:longest]))
	}
	return quoted(text), text != ""
}

// sessionForm is that of a session id: the time at which it began.
var sessionForm = regexp.MustCompile(`^[1-9][0-9]{0,15}$`)

// items returns the items of an event, from products or from one of them, or nil.
func (cfg Config) items(v jsontext.Value, own personal) jsontext.Value {
	var products []jsontext.Value
	switch v.Kind() {
	case '{':
		products = []jsontext.Value{v}
	case '[':
		if json.Unmarshal(v, &products) != nil {
			return nil
		}
	}
	var list []map[string]jsontext.Value
	for _, p := range products[:min(len(products), maxItems)] {
		var members map[string]jsontext.Value
		if p.Kind() != '{' || json.Unmarshal(p, &members) != nil {
			continue
		}
		made := map[string]jsontext.Value{}
		for _, it := range item {
			for _, from := range append([]string{it.name}, it.from...) {
				if v, ok := cfg.parameter(it.name, members[from], own); ok {
					made[it.name] = v
					break
				}
			}
		}
		if made["item_id"] != nil || made["item_name"] != nil {
			list = append(list, made)
		}
	}
	if len(list) == 0 {
		return nil
	}
	b, err := json.Marshal(list, json.Deterministic(true))
	if err != nil {
		return nil
	}
	return b
}

// number returns a number as it was written, or one that is written as a text.
func number(v jsontext.Value, whole bool) (jsontext.Value, bool) {
	text := plain(v)
	if v = jsontext.Value(text); v.Kind() != '0' || !v.IsValid() {
		return nil, false
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(f, 0) || whole && f != math.Trunc(f) {
		return nil, false
	}
	return v, true
}

// scalar returns a value that is a text or a number, or is written as a text: true and false.
func scalar(v jsontext.Value) (jsontext.Value, bool) {
	switch v.Kind() {
	case '"', 't', 'f':
		text := plain(v)
		return quoted(text), text != ""
	case '0':
		return number(v, false)
	}
	return nil, false
}

// plain returns what a text, a number or a truth says, without spaces around it, or "".
func plain(v jsontext.Value) string {
	switch v.Kind() {
	case '"':
		var s string
		if json.Unmarshal(v, &s) != nil {
			return ""
		}
		return strings.TrimSpace(s)
	case '0', 't', 'f':
		return strings.TrimSpace(string(v))
	}
	return ""
}

func quoted(s string) jsontext.Value {
	v, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		return jsontext.Value(`""`) // no UTF-8
	}
	return v
}

func itoa(n int) string { return strconv.Itoa(n) }

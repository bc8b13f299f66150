package ga4

import (
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// nameForm is that of all names: "Limitations" in the Measurement Protocol's guide.
var nameForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)

// Names that nobody may use: "Reserved names" in the Measurement Protocol's reference.
var (
	reservedPrefixes = []string{"_", "firebase_", "ga_", "google_"}

	reservedEvents = []string{
		"ad_activeview", "ad_click", "ad_exposure", "ad_query", "ad_reward", "adunit_exposure", "app_clear_data",
		"app_exception", "app_install", "app_remove", "app_store_refund", "app_update", "app_upgrade", "dynamic_link_app_open",
		"dynamic_link_app_update", "dynamic_link_first_open", "error", "firebase_campaign", "firebase_in_app_message_action",
		"firebase_in_app_message_dismiss", "firebase_in_app_message_impression", "first_open", "first_visit",
		"notification_dismiss", "notification_foreground", "notification_open", "notification_receive", "notification_send",
		"os_update", "session_start", "user_engagement",
	}
	appEvents          = []string{"ad_impression", "in_app_purchase", "screen_view"} // of app streams only
	reservedParameters = []string{"firebase_conversion"}
	reservedProperties = []string{
		"first_open_time", "first_visit_time", "last_deep_link_referrer", "user_id", "first_open_after_install",
	}
)

func nameFault(name string, most int, reserved []string) string {
	switch {
	case len(name) > most:
		return "must have at most " + itoa(most) + " characters"
	case slices.Contains(reserved, name) ||
		slices.ContainsFunc(reservedPrefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) }):
		return "is a name that Google keeps to itself"
	case !nameForm.MatchString(name):
		return "must be letters, digits and underscores, and begin with a letter"
	}
	return ""
}

// eventFault tells what is wrong with the name of an event, to be read behind it, or "".
func (cfg Config) eventFault(name string) string {
	if cfg.FirebaseAppID == "" && slices.Contains(appEvents, name) {
		return "is a name for events of apps only"
	}
	return nameFault(name, maxName, reservedEvents)
}

func parameterFault(name string) string { return nameFault(name, maxName, reservedParameters) }

// propertyFault tells what is wrong with a user property that is to have the value of a trait.
func propertyFault(name, trait string) string {
	if trait == "" {
		return "must name a trait"
	}
	if isPersonal(trait) {
		return "must not be made of personal data, which Google Analytics forbids"
	}
	return nameFault(name, maxPropertyName, reservedProperties)
}

// How the events of Segment's e-commerce and B2B specs are called: "Events" in the Measurement Protocol's reference.
var mappings = map[string]activation.Mapping{
	"Products Searched":         mapped("search", "search_term", "properties.query"),
	"Product List Viewed":       mapped("view_item_list", listed...),
	"Product List Filtered":     mapped("view_item_list", listed...),
	"Product Clicked":           mapped("select_item", "items", "properties", "item_list_id", "properties.list_id"),
	"Product Viewed":            mapped("view_item", product...),
	"Product Added":             mapped("add_to_cart", product...),
	"Product Removed":           mapped("remove_from_cart", product...),
	"Product Added to Wishlist": mapped("add_to_wishlist", product...),
	"Cart Viewed":               mapped("view_cart", cart...),
	"Checkout Started":          mapped("begin_checkout", cart...),
	"Payment Info Entered":      mapped("add_payment_info", append([]string{"payment_type", "properties.payment_method"}, cart...)...),
	"Order Completed":           mapped("purchase", order...),
	"Order Refunded":            mapped("refund", order...),
	"Promotion Viewed":          mapped("view_promotion", promotion...),
	"Promotion Clicked":         mapped("select_promotion", promotion...),
	"Product Shared":            mapped("share", "method", "properties.share_via", "item_id", "properties.product_id"),
	"Cart Shared":               mapped("share", "method", "properties.share_via", "item_id", "properties.cart_id"),
	"Signed Up":                 mapped("sign_up", "method", "properties.method"),
	"Signed In":                 mapped("login", "method", "properties.method"),
	"Lead Generated":            mapped("generate_lead", "value", "properties.value", "currency", "properties.currency"),
	"Page Viewed":               mapped("page_view"),
}

var (
	listed    = []string{"items", "properties.products", "item_list_id", "properties.list_id", "item_list_name", "properties.category"}
	product   = []string{"items", "properties", "value", "properties.value", "currency", "properties.currency"}
	cart      = []string{"items", "properties.products", "value", "properties.value", "currency", "properties.currency", "coupon", "properties.coupon"}
	promotion = []string{"promotion_id", "properties.promotion_id", "promotion_name", "properties.name", "creative_name", "properties.creative", "creative_slot", "properties.position"}
	order     = []string{
		"items", "properties.products", "value", "properties.total", "currency", "properties.currency", "coupon", "properties.coupon",
		"transaction_id", "properties.order_id", "tax", "properties.tax", "shipping", "properties.shipping",
		"affiliation", "properties.affiliation",
	}
)

// mapped returns a mapping with fields at paths, and those that all events have. Without session_id and
// engagement_time_msec an event is in no report on sessions, and not among those of right now.
func mapped(name string, fieldsAndPaths ...string) activation.Mapping {
	m := activation.Mapping{Name: name, Fields: map[string]activation.Field{
		"session_id": activation.At("context.session_id"), "engagement_time_msec": {Value: jsontext.Value("1")},
		"page_location": activation.At("context.page.url"), "page_title": activation.At("context.page.title"),
		"page_referrer": activation.At("context.page.referrer"),
	}}
	for pair := range slices.Chunk(fieldsAndPaths, 2) {
		m.Fields[pair[0]] = activation.At(pair[1])
	}
	return m
}

// MapEvent implements [activation.EventPartner]. Events that Google has no name for go under their own, spelt as Google's
// are: "Trial Started" is trial_started.
func (*Partner) MapEvent(to activation.Target, name string) (activation.Mapping, bool) {
	cfg, _, _ := read(to.Settings) // what cannot be read is reported when a message is made
	m, ok := mappings[name]
	if name == "Screen Viewed" && cfg.FirebaseAppID != "" {
		m, ok = mapped("screen_view", "screen_name", "properties.name"), true
	}
	if !ok {
		m = mapped(spelt(name))
		ok = cfg.eventFault(m.Name) == ""
	}
	return m, ok
}

// spelt returns a name with its words in lower case and joined by underscores, which a name may have already.
func spelt(name string) string {
	words := strings.FieldsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune("-_.:/", r) })
	return strings.ToLower(strings.Join(words, "_"))
}

// escape writes a name for a JSON Pointer (RFC 6901).
var escape = strings.NewReplacer("~", "~0", "/", "~1")

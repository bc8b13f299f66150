package google

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// Fields of an event that a mapping may say, by Google's names. Items are made of products as Segment's e-commerce events
// have them, of one or of a list; they, discounts and coupons become the cart.
const (
	transactionID       = "transactionId"
	eventSource         = "eventSource"
	conversionValue     = "conversionValue"
	conversionCount     = "conversionCount"
	currencyCode        = "currency"
	cartItems           = "items"
	transactionDiscount = "transactionDiscount"
	couponCodes         = "couponCodes"
	customerType        = "customerType"
	customerValueBucket = "customerValueBucket"
	clientID            = "clientId"
	appInstanceID       = "appInstanceId"
	ownUserID           = "userId"
	gclid               = "gclid"
	gbraid              = "gbraid"
	wbraid              = "wbraid"
	dclid               = "dclid"
	matchID             = "matchId"
	sessionAttributes   = "sessionAttributes"
	mobileDeviceID      = "mobileDeviceId"

	// What follows these is the name of a custom variable, or of a parameter of a Google Analytics event.
	customVariables  = "customVariables."
	customParameters = "additionalEventParameters."
)

var eventFields = []string{
	transactionID, eventSource, conversionValue, conversionCount, currencyCode, cartItems, transactionDiscount, couponCodes,
	customerType, customerValueBucket, clientID, appInstanceID, ownUserID, gclid, gbraid, wbraid, dclid, matchID,
	sessionAttributes, mobileDeviceID,
}

// What fields may say that are not free.
var eventEnums = map[string][]string{
	eventSource:         {"WEB", "APP", "IN_STORE", "PHONE", "MESSAGE", "OTHER"},
	customerType:        {"NEW", "RETURNING", "REENGAGED"},
	customerValueBucket: {"LOW", "MEDIUM", "HIGH"},
}

// recommended are the events of Segment's e-commerce spec, and what Google Analytics recommends to call them.
var recommended = map[string]activation.Mapping{
	"Order Completed":           {Name: "purchase", Fields: cart("properties.total", "properties.products")},
	"Order Refunded":            {Name: "refund", Fields: cart("properties.total", "properties.products")},
	"Checkout Started":          {Name: "begin_checkout", Fields: cart("properties.value", "properties.products")},
	"Payment Info Entered":      {Name: "add_payment_info"},
	"Cart Viewed":               {Name: "view_cart", Fields: cart("properties.value", "properties.products")},
	"Product Added":             {Name: "add_to_cart", Fields: cart("properties.price", "properties")},
	"Product Added to Wishlist": {Name: "add_to_wishlist", Fields: cart("properties.price", "properties")},
	"Product Removed":           {Name: "remove_from_cart", Fields: cart("properties.price", "properties")},
	"Product Viewed":            {Name: "view_item", Fields: cart("properties.price", "properties")},
	"Product Clicked":           {Name: "select_item", Fields: cart("properties.price", "properties")},
	"Product List Viewed":       {Name: "view_item_list", Fields: cart("", "properties.products")},
	"Product Shared":            {Name: "share"},
	"Products Searched":         {Name: "search", Fields: map[string]activation.Field{customParameters + "search_term": activation.At("properties.query")}},
	"Promotion Viewed":          {Name: "view_promotion"},
	"Promotion Clicked":         {Name: "select_promotion"},
	"Signed Up":                 {Name: "sign_up"},
	"Signed In":                 {Name: "login"},
}

func cart(value, items string) map[string]activation.Field {
	fields := map[string]activation.Field{
		currencyCode: activation.At("properties.currency"), cartItems: activation.At(items),
		couponCodes: activation.At("properties.coupon"),
	}
	if value != "" {
		fields[conversionValue] = activation.At(value)
	}
	if items == "properties.products" {
		fields[transactionDiscount] = activation.At("properties.discount")
	}
	return fields
}

// MapEvent implements [activation.EventPartner]. A conversion action or Floodlight activity has no names for events: whatever
// is subscribed to counts, but what undoes an order. Google Analytics is told of the events that it recommends.
func (*Conversions) MapEvent(to activation.Target, name string) (activation.Mapping, bool) {
	cfg, _, _ := readConversions(to.Settings) // what cannot be read is said when something is sent
	analytics := cfg.accountType() == analyticsAccount
	known, ok := recommended[name]
	m := activation.Mapping{Name: known.Name, Fields: maps.Clone(known.Fields)}
	if m.Fields == nil {
		m.Fields = map[string]activation.Field{}
	}
	if !analytics {
		ok = name != "Order Refunded" && name != "Order Cancelled"
		m.Name = name
		maps.DeleteFunc(m.Fields, func(field string, _ activation.Field) bool { return strings.HasPrefix(field, customParameters) })
		if known.Name == "" {
			m.Fields[conversionValue], m.Fields[currencyCode] = activation.At("properties.value"), activation.At("properties.currency")
		}
	}
	if cfg.TransactionID == "order_id" {
		m.Fields[transactionID] = activation.At("properties.order_id")
	}
	return m, ok
}

var analyticsName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,39}$`)

// CheckMapping implements [activation.EventPartner].
func (*Conversions) CheckMapping(to activation.Target, m activation.Mapping) error {
	cfg, _, err := readConversions(to.Settings)
	if err != nil {
		return err
	}
	var errs []error
	analytics := cfg.accountType() == analyticsAccount
	if analytics && m.Name != "" && !analyticsName.MatchString(m.Name) {
		errs = append(errs, &activation.FieldError{
			Pointer: "/name",
			Detail:  "must be what Google Analytics can call an event: a letter, then up to 39 letters, digits and underscores",
		})
	}
	for _, name := range slices.Sorted(maps.Keys(m.Fields)) {
		if wrong := checkField(analytics, name, m.Fields[name].Value); wrong != "" {
			at := strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
			errs = append(errs, &activation.FieldError{Pointer: "/fields/" + at, Detail: wrong})
		}
	}
	return errors.Join(errs...)
}

// checkField tells what is wrong with a field, and with the value that it always has, if it does.
func checkField(analytics bool, name string, value jsontext.Value) (wrong string) {
	variable, isVariable := strings.CutPrefix(name, customVariables)
	parameter, isParameter := strings.CutPrefix(name, customParameters)
	switch {
	case isVariable && analytics:
		return "is for conversion actions and Floodlight: Google Analytics has " + customParameters + "…"
	case isParameter && !analytics:
		return "is for Google Analytics: conversion actions and Floodlight have " + customVariables + "…"
	case isVariable && variable == "":
		return "must name the custom variable"
	case isParameter && !analyticsName.MatchString(parameter):
		return "must name a parameter: a letter, then up to 39 letters, digits and underscores"
	case !isVariable && !isParameter && !slices.Contains(eventFields, name):
		return "is not known: it must be one of " + strings.Join(eventFields, ", ") + ", or begin with " + customVariables +
			" or " + customParameters
	}
	if value == nil || value.Kind() == 'n' {
		return ""
	}
	if all, ok := eventEnums[name]; ok && !slices.Contains(all, scalar(value)) {
		return "must be one of " + strings.Join(all, ", ")
	}
	switch name {
	case conversionValue, conversionCount, transactionDiscount:
		if _, ok := number(value); !ok {
			return "must be a number"
		}
	case currencyCode:
		if !isCurrency(scalar(value)) {
			return "must be the three letters of a currency (ISO 4217)"
		}
	}
	return ""
}

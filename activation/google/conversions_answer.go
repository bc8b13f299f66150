package google

import (
	"maps"

	"github.com/mubatch/mubatch/activation"
)

// ofConversions is how refusals are put at destinations that take events.
var ofConversions = vocabulary{
	config: with(configReasons, map[string]string{
		"INVALID_DESTINATION":             "Google does not accept the accounts and product_destination_id together: check account_type, account_id, login_account_id and product_destination_id",
		"NOT_ALLOWLISTED":                 "Google does not allow the account to be sent such events",
		"TERMS_AND_CONDITIONS_NOT_SIGNED": "the advertiser has not accepted Google's terms for customer data",
		"INVALID_CONVERSION_ACTION_ID":    "the conversion action is not there, or not in this account: check product_destination_id",
		"INVALID_CONVERSION_ACTION_TYPE":  "the conversion action does not take imported events: it has to be one of the type UPLOAD_CLICKS or WEBPAGE",

		"DESTINATION_ACCOUNT_NOT_ENABLED_ENHANCED_CONVERSIONS_FOR_LEADS": "enhanced conversions for leads are not turned on in the account: turn them on, or set click_ids_only",
		"DESTINATION_ACCOUNT_DATA_POLICY_PROHIBITS_ENHANCED_CONVERSIONS": "Google's customer data policies keep the account from enhanced conversions: set click_ids_only",
		"DESTINATION_ACCOUNT_ENHANCED_CONVERSIONS_TERMS_NOT_SIGNED":      "the advertiser has not accepted the terms of enhanced conversions",
		"UNSUPPORTED_OPERATING_ACCOUNT_FOR_DATA_PARTNER":                 "a data partner may not send events for such an account",
		"REQUIRED_PREREQUISITE_LINK_MISSING":                             "the account lacks a link to another one that Google asks for",

		"INVALID_PROPERTY_TYPE": "the Google Analytics property is not of a type that takes such events",
		"INVALID_STREAM_TYPE":   "the data stream is not of a type that takes such events: check product_destination_id",
		"GOOGLE_ANALYTICS_SUBPROPERTY_OR_ROLLUP_PROPERTY_NOT_ALLOWED": "a subproperty or roll-up property of Google Analytics takes no events",

		"INVALID_MERCHANT_ID":                 "Merchant Center does not know merchant_id",
		"INVALID_MERCHANT_FEED_LANGUAGE_CODE": "merchant_feed_language_code is not a language",
		"ACCOUNT_INELIGIBLE_FOR_STORE_SALES":  "the account may not be sent store sales",
	}),
	rows: with(rowReasons, map[string]string{
		"REQUIRED_FIELD_MISSING":                         "Google misses a part of the event",
		"INVALID_FORMAT":                                 "Google finds a part of the event malformed",
		"INVALID_EVENT":                                  "Google does not accept the event",
		"NO_IDENTIFIERS_PROVIDED":                        "Google finds nothing in the event that it could know the person or the click by",
		"EVENT_TIME_INVALID":                             "the event is too old for Google, or in the future",
		"INVALID_CURRENCY_CODE":                          "Google does not know the currency",
		"INVALID_NUMBER_FORMAT":                          "Google finds a number of the event malformed",
		"INVALID_EVENT_NAME":                             "Google does not take events of this name",
		"RESERVED_NAME_USED":                             "Google has reserved the name of the event or of a parameter for itself",
		"EVENT_SOURCE_AND_DESTINATION_MISMATCH":          "the destination does not take events from where this one is said to come from: see event_source",
		"BOTH_CLIENT_ID_AND_APP_INSTANCE_ID_NOT_ALLOWED": "the event has both a client id and an app instance id",
		"INVALID_COUPON_CODE":                            "Google does not accept a coupon code",
		"CUSTOM_VARIABLE_VALUE_CONTAINS_PII":             "a custom variable holds personal data",
		"CUSTOM_VARIABLE_NOT_ENABLED":                    "a custom variable is not turned on at Google",
		"CUSTOM_VARIABLE_NOT_FOUND":                      "Google does not know a custom variable",
		"INVALID_CUSTOM_VARIABLE_VALUE":                  "Google does not accept the value of a custom variable",
		"FIELD_VALUE_TOO_LONG":                           "a text of the event is too long for Google",
	}),
	missing: "the account is not there: check account_type, account_id and product_destination_id",
	one:     "event",
}

func with(reasons, more map[string]string) map[string]string {
	reasons = maps.Clone(reasons)
	maps.Copy(reasons, more)
	return reasons
}

// Why events were refused, by Google's ProcessingErrorReason.
var eventProcessing = with(processing, map[string]string{
	"INVALID_FORMAT":            "Google finds a part of the event malformed",
	"INVALID_EVENT":             "Google does not accept the event",
	"EVENT_TOO_OLD":             "the event is too old for Google",
	"INVALID_GCLID":             "Google cannot read the gclid",
	"INVALID_GBRAID":            "Google cannot read the gbraid",
	"INVALID_WBRAID":            "Google cannot read the wbraid",
	"INVALID_CLICK":             "the click did not come from a campaign of Google Ads",
	"CLICK_NOT_FOUND":           "Google finds no click that the event could come from",
	"TOO_RECENT_CLICK":          "the click was too short a time ago",
	"CONVERSION_PRECEDES_CLICK": "the event happened before the click",
	"OPERATING_ACCOUNT_MISMATCH_FOR_AD_IDENTIFIER":              "the click belongs to another account",
	"INVALID_OPERATING_ACCOUNT_FOR_CLICK":                       "the click belongs to another account",
	"ONE_PER_CLICK_CONVERSION_ACTION_NOT_PERMITTED_WITH_BRAID":  "a conversion action that counts one conversion per click takes no gbraid or wbraid",
	"DESTINATION_ACCOUNT_ENHANCED_CONVERSIONS_TERMS_NOT_SIGNED": "the advertiser has not accepted the terms of enhanced conversions",
	"EXTERNAL_ATTRIBUTION_DATA_MISSING":                         "the conversion action attributes elsewhere, and takes no such events",
	"INVALID_MERCHANT_ID":                                       "merchant_id is none",
	"INVALID_CUSTOM_VARIABLE":                                   "Google does not accept a custom variable",
	"CUSTOM_VARIABLE_NOT_ENABLED":                               "a custom variable is not turned on at Google",
})

// ofEvents says what became of a request about events.
//
// What is there already, of an attempt of which nobody knew or by a tag of Google's, is as good as taken in. What may pass has
// the whole message sent again, even if Google took in a part of it: that part it will know by its transaction ids.
func (s status) ofEvents(o activation.Outcome) activation.Polled {
	polled := activation.Polled{Done: true, Outcome: o}
	if s.State == "SUCCESS" {
		return polled
	}
	var there, passing bool
	var refused status
	var config string
	for _, c := range s.Error.Counts {
		reason := bare(c.Reason)
		switch reason {
		case "DUPLICATE_TRANSACTION_ID", "DUPLICATE_GCLID":
			there = true
			continue
		case "INTERNAL_ERROR", "TOO_RECENT_CLICK":
			passing = true
		case "NO_CONSENT", "DESTINATION_ACCOUNT_ENHANCED_CONVERSIONS_TERMS_NOT_SIGNED", "EXTERNAL_ATTRIBUTION_DATA_MISSING",
			"INVALID_MERCHANT_ID":
			config = eventProcessing[reason]
		}
		refused.Error.Counts = append(refused.Error.Counts, c)
	}
	polled.Counts = refused.counts(eventProcessing)
	failed := s.State == "FAILED"
	switch {
	case failed && config != "":
		polled.Class, polled.Reason = activation.Config, config
	case passing || failed && len(s.Error.Counts) == 0:
		polled.Class, polled.Reason = activation.Retry, "Google could not work on all of it yet"
	case len(polled.Counts) == 0: // or all were there
	case failed && !there:
		polled.Class, polled.Reason = activation.Drop, polled.Counts[0].Reason
	default:
		polled.Class, polled.Reason = activation.Partial, "Google refused some of the events"
	}
	return polled
}

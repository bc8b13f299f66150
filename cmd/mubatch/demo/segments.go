package demo

import "github.com/go-json-experiment/json/jsontext"

// segment is one that the demo creates.
type segment struct {
	Key         string         `json:"key"`
	Name        string         `json:"name"`
	Description string         `json:"description"`
	Rule        jsontext.Value `json:"rule"`
}

// segments are what a marketer of that shop would want. Package oracle says in SQL who must be in each.
var segments = []segment{
	{
		"big-spenders", "Recent big spenders",
		"Ordered for 300 pounds or more at least twice in 90 days: invite them to the preview.",
		jsontext.Value(`{"event": "Order Completed", "where": [{"property": "revenue", "op": "gte", "value": 300}],
			"count": {"gte": 2}, "within": "90d"}`),
	},
	{
		"lapsed-regulars", "Lapsed regulars",
		"Ordered three times or more, but not in the last 120 days: win them back.",
		jsontext.Value(`{"all": [{"event": "Order Completed", "count": {"gte": 3}},
			{"not": {"event": "Order Completed", "within": "120d"}}]}`),
	},
	{
		"heart-not-jumbo", "Bought the heart, not the bag",
		"Bought the hanging heart T-light holder (85123A), but never the red jumbo bag (85099B): show them the bag.",
		jsontext.Value(`{"all": [
			{"event": "Order Completed", "where": [{"property": "products.product_id", "op": "eq", "value": "85123A"}]},
			{"not": {"event": "Order Completed", "where": [{"property": "products.product_id", "op": "eq", "value": "85099B"}]}}]}`),
	},
	{
		"refunders", "Refunders",
		"Gave something back in the last 180 days: leave them out of the next campaign.",
		jsontext.Value(`{"event": "Order Refunded", "within": "180d"}`),
	},
	{
		"germany-france", "Germany and France",
		"Customers there: write to them in their language.",
		jsontext.Value(`{"trait": "country", "op": "in", "value": ["Germany", "France"]}`),
	},
}

// liveSegment is entered and left by the demo's own people, whose latency is measured.
var liveSegment = segment{
	"demo-live", "The demo's own people",
	"Has an open basket, by the demo's own doing: it measures how long an event takes.",
	jsontext.Value(`{"trait": "demo_basket", "op": "eq", "value": true}`),
}

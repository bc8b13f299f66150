package demo

import "github.com/go-json-experiment/json/jsontext"

// question is what a marketer of that shop asks of any day, as a segment. Package oracle answers it in SQL, under the same
// key.
type question struct {
	segment
	turn int // when its segment is made, at the first of the dates; at the next date it is its successor's turn
}

// questions are asked as of several dates. A question comes after those that its rule refers to, and has their turn.
var questions = []question{
	{segment{
		"worth-keeping", "Worth keeping",
		"Spent 500 pounds or more in the last 90 days, with two orders or more.",
		jsontext.Value(`{"all": [
			{"event": "Order Completed", "sum": {"property": "revenue", "gte": 500}, "within": "90d"},
			{"event": "Order Completed", "count": {"gte": 2}, "within": "90d"}]}`),
	}, 0},
	{segment{
		"wide-range", "Buyers of many things",
		"Bought 20 different products or more in the last 30 days, and gave nothing back in them.",
		jsontext.Value(`{"all": [
			{"event": "Order Completed", "distinct": {"property": "products.product_id", "gte": 20}, "within": "30d"},
			{"not": {"event": "Order Refunded", "within": "30d"}}]}`),
	}, 1},
	{segment{
		"good-start", "A good start",
		"Ordered for the first time within the last 30 days, and for 200 pounds or more on average.",
		jsontext.Value(`{"all": [
			{"event": "Order Completed", "first": {"op": "within_last", "value": "30d"}},
			{"event": "Order Completed", "avg": {"property": "revenue", "gte": 200}}]}`),
	}, 2},
	{segment{
		"second-thoughts", "Second thoughts",
		"Gave something back within 14 days of an order.",
		jsontext.Value(`{"sequence": [{"event": "Order Completed"}, {"event": "Order Refunded", "within": "14d"}]}`),
	}, 0},
	{segment{
		"one-off-abroad", "Abroad, and not again",
		"Customers abroad who ordered, and then not again for 60 days.",
		jsontext.Value(`{"all": [
			{"trait": "country", "op": "exists"},
			{"trait": "country", "op": "neq", "value": "United Kingdom"},
			{"sequence": [{"event": "Order Completed"}], "then_not": {"event": "Order Completed", "within": "60d"}}]}`),
	}, 1},
	{segment{
		"vips", "VIPs",
		"Spent 2,000 pounds or more in all, or 1,000 in one order.",
		jsontext.Value(`{"any": [
			{"event": "Order Completed", "sum": {"property": "revenue", "gte": 2000}},
			{"event": "Order Completed", "max": {"property": "revenue", "gte": 1000}}]}`),
	}, 2},
	{segment{
		"lapsed", "Lapsed",
		"Ordered before, the last time 90 days ago or earlier.",
		jsontext.Value(`{"event": "Order Completed", "last": {"op": "more_than_ago", "value": "90d"}}`),
	}, 2},
	{segment{
		"lapsed-vips", "Lapsed VIPs",
		"VIPs who have lapsed, by reference to these two segments.",
		jsontext.Value(`{"all": [{"segment": "vips"}, {"segment": "lapsed"}]}`),
	}, 2},
}

// figure is what is to be known of everybody, as a computed trait. Package oracle has it in SQL, under the same key.
type figure struct {
	Key   string         `json:"key"`
	Name  string         `json:"name"`
	Value jsontext.Value `json:"value"`
	turn  int            // like that of a question
}

var figures = []figure{
	{"revenue", "Revenue", jsontext.Value(`{"event": "Order Completed", "sum": {"property": "revenue"}}`), 0},
	{"revenue-90d", "Revenue of 90 days", jsontext.Value(`{"event": "Order Completed", "sum": {"property": "revenue"}, "within": "90d"}`), 1},
	{"average-order", "Average order", jsontext.Value(`{"event": "Order Completed", "avg": {"property": "revenue"}}`), 2},
	{"products", "Different products", jsontext.Value(`{"event": "Order Completed", "distinct": {"property": "products.product_id"}}`), 1},
	{"last-order", "Last order", jsontext.Value(`{"event": "Order Completed", "last": {}}`), 2},
}

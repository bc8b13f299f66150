package rule_test

import (
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/rule"
)

const shopRule = `{"all": [
	{"trait": "country", "op": "in", "value": ["DE", "FR", "United Kingdom"]},
	{"event": "Order Completed", "where": [{"property": "revenue", "op": "gte", "value": 50}], "count": {"gte": 2}, "within": "30d"},
	{"not": {"event": "Order Refunded", "within": "90d"}},
	{"any": [{"trait": "address.city", "op": "starts_with", "value": "B"}, {"event": "Signed Up", "within": "7d"}]}
]}`

const order = `{"order_id":"536365","revenue":139.12,"currency":"GBP","country":"United Kingdom","products":[
	{"product_id":"85123A","name":"WHITE HANGING HEART T-LIGHT HOLDER","quantity":6,"price":2.55},
	{"product_id":"71053","name":"WHITE METAL LANTERN","quantity":6,"price":3.39},
	{"product_id":"84406B","name":"CREAM CUPID HEARTS COAT HANGER","quantity":8,"price":2.75},
	{"product_id":"84029G","name":"KNITTED UNION FLAG HOT WATER BOTTLE","quantity":6,"price":3.39},
	{"product_id":"84029E","name":"RED WOOLLY HOTTIE WHITE HEART.","quantity":6,"price":3.39}]}`

// nestedRule is the design's example.
const nestedRule = `{"all": [
	{"trait": "country", "op": "in", "value": ["DE", "FR", "United Kingdom"]},
	{"event": "Order Completed", "where": [{"property": "revenue", "op": "gte", "value": 50}], "count": {"gte": 2}, "within": "30d"},
	{"not": {"event": "Unsubscribed", "within": "90d"}},
	{"any": [{"segment": "vip"},
		{"sequence": [{"event": "Product Added"}, {"event": "Checkout Started", "within": "1h"}],
		 "then_not": {"event": "Order Completed", "within": "24h"}}]}
]}`

func BenchmarkEval(b *testing.B) {
	at := noon.UnixMilli()
	var events []naiveEvent
	for i := range int64(100) { // a visit every eight hours, an order every two days
		visit := at - 1_000_000 - i*28_800_000
		events = append(events, naiveEvent{"Product Added", `{}`, visit}, naiveEvent{"Checkout Started", `{}`, visit + 600_000})
		if i%6 == 1 {
			events = append(events, naiveEvent{"Order Completed", order, visit + 900_000})
		}
	}
	events = append(events, naiveEvent{"Signed Up", `{}`, at - 86_400_000})
	for _, bench := range []struct{ name, rule string }{
		{"trait", `{"trait": "country", "op": "in", "value": ["DE", "FR", "United Kingdom"]}`},
		{"count", `{"event": "Order Completed", "count": {"gte": 2}, "within": "30d"}`},
		{"sum", `{"event": "Order Completed", "sum": {"property": "revenue", "gte": 500}, "within": "30d"}`},
		{"sequence", `{"sequence": [{"event": "Product Added"}, {"event": "Checkout Started", "within": "1h"}],
			"then_not": {"event": "Unsubscribed", "within": "24h"}, "within": "30d"}`},
		{"nested", nestedRule},
		{"shop", shopRule},
	} {
		b.Run(bench.name, func(b *testing.B) {
			r := parse(b, bench.rule)
			p := remember(r, map[string]string{
				"country": `"United Kingdom"`,
				"address": `{"street":"Unter den Linden 1","zip":"10117","city":"Berlin"}`,
			}, events)
			p.segments = map[string]bool{"vip": true}
			if holds, _ := r.Eval(p, noon); !holds {
				b.Fatal("the rule does not hold")
			}
			b.ReportAllocs()
			for b.Loop() {
				r.Eval(p, noon)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "evaluations/s")
		})
	}
}

// The cost of an event is that of each behaviour of its name.
func BenchmarkFold(b *testing.B) {
	for _, bench := range []struct{ name, rule string }{
		{"count", `{"event":"E","count":{"gte":2},"within":"30d"}`},
		{"count where", `{"event":"E","where":[{"property":"revenue","op":"gte","value":50}],"count":{"gte":2},"within":"30d"}`},
		{"sum", `{"event":"E","sum":{"property":"revenue","gte":2}}`},
		{"sum in a window", `{"event":"E","sum":{"property":"revenue","gte":2},"within":"30d"}`},
		{"max of many", `{"event":"E","max":{"property":"products.price","gte":2}}`},
		{"distinct", `{"event":"E","distinct":{"property":"products.product_id","gte":10}}`},
		{"last", `{"event":"E","last":{"property":"currency","op":"eq","value":"GBP"}}`},
	} {
		b.Run(bench.name, func(b *testing.B) {
			behaviour := parse(b, bench.rule).Behaviours()[0]
			t := behaviour.Empty()
			properties := jsontext.Value(order)
			at := noon.UnixMilli()
			b.ReportAllocs()
			for b.Loop() {
				at += 60_000
				behaviour.Fold(&t, at, properties)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkMatches(b *testing.B) {
	for _, bench := range []struct{ name, condition string }{
		{"first property", `{"property":"order_id","op":"eq","value":"536365"}`},
		{"decimal", `{"property":"revenue","op":"gte","value":50}`},
		{"last product", `{"property":"products.product_id","op":"eq","value":"84029E"}`},
		{"absent", `{"property":"coupon","op":"exists"}`},
		{"in a long list", `{"property":"revenue","op":"in","value":[` + numbers(999) + `,139.12]}`},
	} {
		b.Run(bench.name, func(b *testing.B) {
			buyers := behaviour(b, bench.condition)
			properties := jsontext.Value(order)
			b.SetBytes(int64(len(properties)))
			b.ReportAllocs()
			for b.Loop() {
				buyers.Matches(properties)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkParse(b *testing.B) {
	text := []byte(shopRule)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rule.Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

package mapping_test

import (
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/collector/mapping"
)

// order maps a Shopify order to 12 fields and a list of products.
const order = `
version: 1
rules:
- event:
    type: track
    event: Order Completed
    messageId: $headers.x-shopify-webhook-id
    timestamp: $.created_at
    userId: $.customer.id | string
    properties:
      order_id: $.id | string
      total: $.total_price | number
      revenue: $.subtotal_price | number
      tax: $.total_tax | number
      discount: $.total_discounts | number
      currency: $.currency
      email: $.email | lower
      products:
        $each: $.line_items
        $set: {product_id: $.product_id | string, sku: $.sku, name: $.title, price: $.price | number, quantity: $.quantity}
`

func benchmarkMap(b *testing.B, document string) {
	in := readInput(b, "testdata/shopify/order.json")
	_ = (*jsontext.Value)(&in.Body).Compact()
	p, err := mapping.Compile([]byte(document))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(in.Body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Map(in); err != nil {
			b.Fatal(err)
		}
	}
}

// What is spent on a body before any cell is looked at: that no rule applies to it is told by its headers.
func BenchmarkRead(b *testing.B) {
	benchmarkMap(b, "version: 1\nrules:\n- {for_each: $.absent, event: {type: page, userId: u}}\n")
}

func BenchmarkOrder(b *testing.B) { benchmarkMap(b, order) }

func BenchmarkPredicate(b *testing.B) {
	benchmarkMap(b, "version: 1\nrules:\n- {when: \"body.currency == 'EUR' && body.order_number > 1000\", event: {type: page, userId: u}}\n")
}

func BenchmarkTemplate(b *testing.B) {
	document, _ := mapping.Template("shopify")
	benchmarkMap(b, string(document))
}

// To compare with: the body into Go's maps.
func BenchmarkDecode(b *testing.B) {
	in := readInput(b, "testdata/shopify/order.json")
	_ = (*jsontext.Value)(&in.Body).Compact()
	b.SetBytes(int64(len(in.Body)))
	b.ReportAllocs()
	for b.Loop() {
		var v any
		if err := json.Unmarshal(in.Body, &v); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	document, _ := mapping.Template("shopify")
	for b.Loop() {
		if _, err := mapping.Compile(document); err != nil {
			b.Fatal(err)
		}
	}
}

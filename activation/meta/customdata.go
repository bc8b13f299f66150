package meta

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/text/currency"
)

// maxContents is how many products of one event are told of.
const maxContents = 200

// content is a product, and how many of it.
type content struct {
	ID       string         `json:"id"`
	Quantity int64          `json:"quantity"`
	Price    jsontext.Value `json:"item_price,omitzero"`
}

// customData returns what a subscription and the standard mapping found, as Meta wants it: Conversions API, Standard
// Parameters.
//
//	value, predicted_ltv    a number as it was written, also if that was in quotes
//	currency                three capitals (ISO 4217); without it there is no value
//	content_ids             ids; of products, theirs
//	contents                of products: id, quantity and item_price
//	num_items               a number; of products, how many there are of them all
//	order_id, status, …     texts; numbers become such
//
// What is not of that kind is left out, and so is what holds an e-mail address, which Meta wants no event to hold. What Meta
// has no rule for goes as it is.
func customData(fields map[string]jsontext.Value) map[string]jsontext.Value {
	data := map[string]jsontext.Value{}
	set := func(name string, v jsontext.Value) {
		if v != nil && !bytes.ContainsRune(v, '@') && !bytes.Contains(v, []byte(`\u0040`)) {
			data[name] = v
		}
	}
	for name, v := range fields {
		switch name {
		case actionSource:
		case "value", "predicted_ltv", "net_revenue":
			set(name, number(v))
		case "currency":
			if unit, err := currency.ParseISO(text(v)); err == nil {
				set(name, encode(unit.String()))
			}
		case "content_ids":
			var ids []string
			for _, e := range elements(v) {
				if id := productID(e); id != "" && len(ids) < maxContents {
					ids = append(ids, id)
				}
			}
			set(name, list(ids))
		case "contents":
			set(name, list(contentsOf(v)))
		case "num_items":
			set(name, count(v))
		case "order_id", "content_name", "content_category", "content_type", "search_string", "status", "delivery_category":
			if s := text(v); s != "" {
				set(name, encode(s))
			}
		default:
			set(name, v)
		}
	}
	if data["value"] == nil || data["currency"] == nil {
		delete(data, "value")
		delete(data, "currency")
	}
	if data["content_type"] == nil && data["content_ids"] != nil {
		data["content_type"] = jsontext.Value(`"product"`)
	}
	return data
}

func contentsOf(v jsontext.Value) (all []content) {
	for _, e := range elements(v) {
		if id := productID(e); id != "" && len(all) < maxContents {
			m := members(e)
			c := content{ID: id, Quantity: quantity(m), Price: number(m["item_price"])}
			if c.Price == nil {
				c.Price = number(m["price"])
			}
			all = append(all, c)
		}
	}
	return all
}

// count returns how many things there are: a number, or that of products.
func count(v jsontext.Value) jsontext.Value {
	if n := number(v); n != nil {
		return n
	}
	var n int64
	for _, c := range contentsOf(v) {
		n += c.Quantity
	}
	if n == 0 {
		return nil
	}
	return encode(n)
}

// quantity returns that of a product, which is 1 if it does not say.
func quantity(product map[string]jsontext.Value) int64 {
	n, err := strconv.ParseInt(string(number(product["quantity"])), 10, 32)
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// productID returns the id of a product, or of what is one itself.
func productID(v jsontext.Value) string {
	m := members(v)
	if m == nil {
		return text(v)
	}
	for _, name := range []string{"product_id", "sku", "id"} {
		if id := text(m[name]); id != "" {
			return id
		}
	}
	return ""
}

// elements returns those of an array, or what is no array as its only one.
func elements(v jsontext.Value) (all []jsontext.Value) {
	if v.Kind() != '[' {
		return []jsontext.Value{v}
	}
	_ = json.Unmarshal(v, &all) // it was read before
	return all
}

func members(v jsontext.Value) (m map[string]jsontext.Value) {
	if v.Kind() == '{' {
		_ = json.Unmarshal(v, &m) // as above
	}
	return m
}

// text returns what a text or number says, without the space around it, or "".
func text(v jsontext.Value) string {
	switch v.Kind() {
	case '"':
		s, err := jsontext.AppendUnquote(nil, v)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(s))
	case '0':
		return string(v)
	}
	return ""
}

// number returns a number as it was written, in quotes or not, or nil.
func number(v jsontext.Value) jsontext.Value {
	n := jsontext.Value(text(v))
	if n.Kind() != '0' || !n.IsValid() {
		return nil
	}
	return n
}

// list encodes what is not empty.
func list[T any](all []T) jsontext.Value {
	if len(all) == 0 {
		return nil
	}
	return encode(all)
}

// encode returns the JSON of what always has one.
func encode(v any) jsontext.Value {
	b, err := json.Marshal(v, jsontext.AllowInvalidUTF8(true))
	if err != nil {
		panic("meta: " + err.Error())
	}
	return b
}

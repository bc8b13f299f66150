package demo

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// An event is what is sent of an invoice or of a customer. It is made into JSON only when it is sent.
type event struct {
	messageID string
	person    string // what tells one person from another, whom the order of events matters to
	at        time.Time
	invoice   *invoice
	identify  bool
}

// makeEvents returns what happened in the shop, in order: each invoice, and before it, if the customer is new or has
// moved, who that is. The messageIds depend on the data alone, so that sending it all again changes nothing.
func makeEvents(invoices []*invoice) []event {
	type known struct {
		country string
		times   int
	}
	customers := map[string]known{}
	events := make([]event, 0, len(invoices)*5/4)
	for _, in := range invoices {
		userID, anonymousID := in.person()
		if c := customers[userID]; userID != "" && c.country != in.country {
			c.country = in.country
			c.times++
			customers[userID] = c
			id := fmt.Sprintf("online-retail-customer-%s-%d", userID, c.times)
			events = append(events, event{messageID: id, person: userID, at: in.at, invoice: in, identify: true})
		}
		events = append(events, event{
			messageID: "online-retail-" + in.number, person: userID + anonymousID, at: in.at, invoice: in,
		})
	}
	return events
}

// wireEvent is an event as Segment's HTTP API takes it.
type wireEvent struct {
	Type        string         `json:"type"`
	Event       string         `json:"event,omitzero"`
	MessageID   string         `json:"messageId"`
	UserID      string         `json:"userId,omitzero"`
	AnonymousID string         `json:"anonymousId,omitzero"`
	Timestamp   string         `json:"timestamp"`
	Traits      jsontext.Value `json:"traits,omitzero"`
	Properties  *order         `json:"properties,omitzero"`
}

type order struct {
	OrderID  string         `json:"order_id"`
	Revenue  jsontext.Value `json:"revenue"`
	Currency string         `json:"currency"`
	Country  string         `json:"country"`
	Products any            `json:"products"`
}

type product struct {
	ProductID string         `json:"product_id"`
	Name      string         `json:"name"`
	Quantity  int64          `json:"quantity"`
	Price     jsontext.Value `json:"price"`
}

// columns are the products of an invoice that has too many of them: the n-th of each list belong together.
type columns struct {
	ProductID []string         `json:"product_id"`
	Name      []string         `json:"name,omitzero"`
	Quantity  []int64          `json:"quantity"`
	Price     []jsontext.Value `json:"price"`
}

// Bounds of an event: the server takes 32 KB and 1,000 members, and adds some.
const (
	maxEvent = 31 << 10
	maxLines = 240
)

const timeFormat = "2006-01-02T15:04:05.000Z"

// encode returns the event as JSON, its time moved by shift. The largest invoices, of up to 1,114 lines, do not fit into
// an event line by line: theirs have the products as columns, without names if need be. Amounts are written as they are in
// the invoice or added up exactly, with the sign they have there: those of a refund are below zero.
func (e *event) encode(shift time.Duration) ([]byte, error) {
	in := e.invoice
	w := wireEvent{MessageID: e.messageID, Timestamp: e.at.Add(shift).UTC().Format(timeFormat)}
	w.UserID, w.AnonymousID = in.person()
	if e.identify {
		w.Type = "identify"
		traits, err := json.Marshal(map[string]string{"country": in.country})
		if err != nil {
			return nil, err
		}
		w.Traits = traits
		return json.Marshal(w)
	}
	w.Type, w.Event = "track", "Order Completed"
	if in.refund {
		w.Event = "Order Refunded"
	}
	w.Properties = &order{OrderID: in.number, Revenue: jsontext.Value(in.total.String()), Currency: "GBP", Country: in.country}
	for _, products := range []func(*invoice) any{asLines, asColumns, asNamelessColumns} {
		if w.Properties.Products = products(in); w.Properties.Products == nil {
			continue
		}
		text, err := json.Marshal(w)
		if err != nil || len(text) <= maxEvent {
			return text, err
		}
	}
	return nil, fmt.Errorf("invoice %s has %d lines, more than fit into an event", in.number, len(in.lines))
}

func asLines(in *invoice) any {
	if len(in.lines) > maxLines {
		return nil
	}
	list := make([]product, len(in.lines))
	for i, l := range in.lines {
		list[i] = product{l.stockCode, l.description, l.quantity, jsontext.Value(l.price)}
	}
	return list
}

func asColumns(in *invoice) any {
	c := asNamelessColumns(in).([]columns)
	for _, l := range in.lines {
		c[0].Name = append(c[0].Name, l.description)
	}
	return c
}

func asNamelessColumns(in *invoice) any {
	var c columns
	for _, l := range in.lines {
		c.ProductID = append(c.ProductID, l.stockCode)
		c.Quantity = append(c.Quantity, l.quantity)
		c.Price = append(c.Price, jsontext.Value(l.price))
	}
	return []columns{c}
}

package oracle_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/cmd/mubatch/demo/oracle"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

// sale is a line of the sales, at some time after the first.
type sale struct {
	invoice  string
	after    time.Duration
	price    string
	customer string
	country  string
}

const day = 24 * time.Hour

var firstSale = time.Date(2011, 1, 1, 10, 0, 0, 0, time.UTC)

// salesOf returns the lines as the shop has them. Every line is of another product.
func salesOf(lines []sale) string {
	var b strings.Builder
	b.WriteString("InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n")
	for i, l := range lines {
		quantity := 1
		if strings.HasPrefix(l.invoice, "C") {
			quantity = -1
		}
		customer := l.customer
		if customer != "" {
			customer += ".0"
		}
		fmt.Fprintf(&b, "%s,P%d,THING,%d,%s,%s,%s,%s\n",
			l.invoice, i, quantity, firstSale.Add(l.after).Format(time.DateTime), l.price, customer, l.country)
	}
	return b.String()
}

// things returns as many lines of an invoice, a penny each.
func things(n int, l sale) []sale {
	l.price = "0.01"
	return slices.Repeat([]sale{l}, n)
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	type when struct {
		name  string
		until time.Duration // after the first sale: what is sold later is not known
		now   time.Duration
		want  bool
	}
	var often []sale
	for i := range 101 {
		often = append(often, sale{fmt.Sprint("o", i), time.Duration(i) * time.Minute, "1", "100", "Spain"})
	}
	url := pgtest.NewURL(t)
	for _, tt := range []struct {
		question string
		sales    []sale
		whens    []when
	}{
		{"worth-keeping", []sale{
			{"1", 0, "400", "100", "Spain"},
			{"C2", day, "400", "100", "Spain"},
			{"3", 2 * day, "50", "100", "Spain"},
			{"3", 2 * day, "50", "100", "Spain"},
			{"4", 3 * day, "499.99", "100", "Spain"},
		}, []when{
			{"after one order", 2*day - time.Minute, 2 * day, false},
			{"after the second", 2 * day, 2 * day, true},
			{"when the first is almost 90 days old", 2 * day, 90*day - ms, true},
			{"when only the second counts, of which one is not enough", 2 * day, 90 * day, false},
			{"when two count, without the first", 3 * day, 91 * day, true},
			{"when only the last does", 3 * day, 92 * day, false},
		}},
		{"worth-keeping", []sale{
			{"1", 0, "400", "100", "Spain"}, {"2", 2 * day, "50", "100", "Spain"}, {"3", 2 * day, "50", "100", "Spain"},
		}, []when{
			{"when the first is no longer one of the orders", 2 * day, 90 * day, true},
			{"it counts as money to the end of its 3 hours, those from 9:00 to 12:00", 2 * day, 90*day + 2*time.Hour - ms, true},
			{"and not longer", 2 * day, 90*day + 2*time.Hour, false},
		}},
		{"wide-range", append(append(things(10, sale{"1", 0, "", "100", "Spain"}), things(10, sale{"2", day, "", "100", "Spain"})...),
			sale{"C3", 2 * day, "1", "100", "Spain"}), []when{
			{"after ten things", 0, 0, false},
			{"after ten more", day, day, true},
			{"until the first are 30 days old", day, 30*day - ms, true},
			{"when they are", day, 30 * day, false},
			{"after a refund", 2 * day, 2 * day, false},
		}},
		{"wide-range", append([]sale{{"C1", 0, "1", "100", "Spain"}}, things(20, sale{"2", 10 * day, "", "100", "Spain"})...), []when{
			{"before the refund is 30 days old", 10 * day, 30*day - ms, false},
			{"when it is", 10 * day, 30 * day, true},
		}},
		{"good-start", []sale{
			{"1", 0, "300", "100", "Spain"},
			{"2", day, "100", "100", "Spain"},
			{"3", 2 * day, "199.99", "100", "Spain"},
			{"C4", 3 * day, "300", "100", "Spain"},
			{"5", 4 * day, "200.01", "100", "Spain"},
		}, []when{
			{"with one good order", 0, 0, true},
			{"with an average of 200", day, day, true},
			{"a little less", 2 * day, 2 * day, false},
			{"and again; refunds are not looked at", 4 * day, 4 * day, true},
			{"until the first is 30 days old", 4 * day, 30*day - ms, true},
			{"when it is", 4 * day, 30 * day, false},
		}},
		{"second-thoughts", []sale{
			{"C1", 0, "1", "100", "Spain"},
			{"2", 0, "1", "100", "Spain"},
			{"C3", 14*day + time.Minute, "1", "100", "Spain"},
			{"4", 20 * day, "1", "100", "Spain"},
			{"C5", 34 * day, "1", "100", "Spain"},
		}, []when{
			{"a refund with the order is not after it", 0, 30 * day, false},
			{"a refund after more than 14 days", 14*day + time.Minute, 30 * day, false},
			{"a refund after 14 days", 34 * day, 34 * day, true},
			{"for ever", 34 * day, 400 * day, true},
		}},
		{"second-thoughts", append(often, sale{"C1", 30 * time.Second, "1", "100", "Spain"}), []when{
			{"of an order before the newest 100", day, day, false},
		}},
		{"one-off-abroad", []sale{
			{"1", 0, "1", "100", "Spain"},
			{"2", 60 * day, "1", "100", "Spain"},
			{"3", 60*day + time.Minute, "1", "100", "United Kingdom"},
			{"4", 121 * day, "1", "100", "France"},
		}, []when{
			{"after 60 days, in which there was none before their end", 0, 60 * day, false},
			{"after that", 0, 60*day + ms, true},
			{"after the second order, which came in time", 60 * day, 61 * day, false},
			{"60 days after the second", 60 * day, 120*day + ms, true},
			{"after moving to the UK", 60*day + time.Minute, 121 * day, false},
			{"abroad again; an order does not undo that there was none for 60 days", 121 * day, 121 * day, true},
		}},
		{"vips", []sale{
			{"1", 0, "999.99", "100", "Spain"}, {"2", day, "999.99", "100", "Spain"}, {"C3", day, "999.99", "100", "Spain"}, {"4", 2 * day, "0.02", "100", "Spain"},
		}, []when{
			{"for almost 2,000", day, day, false},
			{"for 2,000", 2 * day, 999 * day, true},
		}},
		{"vips", []sale{{"1", 0, "500", "100", "Spain"}, {"1", 0, "500", "100", "Spain"}}, []when{
			{"for one order of 1,000", 0, 0, true},
		}},
		{"lapsed", []sale{
			{"1", 0, "1", "100", "Spain"}, {"C2", day, "1", "100", "Spain"}, {"3", 2 * day, "1", "100", "Spain"},
		}, []when{
			{"almost 90 days after the order", day, 90*day - ms, false},
			{"90 days after it", day, 90 * day, true},
			{"90 days after an order that was not the last", 2 * day, 90 * day, false},
		}},
		{"lapsed-vips", []sale{{"1", 0, "1000", "100", "Spain"}, {"2", 0, "999", "200", "Spain"}}, []when{
			{"no longer a customer", 0, 90 * day, true},
			{"still a customer", 0, 90*day - ms, false},
		}},
	} {
		o, err := oracle.Open(t.Context(), url, strings.NewReader(salesOf(tt.sales)))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range tt.whens {
			t.Run(tt.question+", "+w.name, func(t *testing.T) {
				// Moved by whole days, so that the 3 hours begin when they say.
				const shift = 5000 * day
				got, err := o.Answer(t.Context(), tt.question, firstSale.Add(w.until), shift, firstSale.Add(w.now+shift))
				if err != nil {
					t.Fatal(err)
				}
				want := []string{}
				if w.want {
					want = []string{"user_id:100"}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			})
		}
		o.Close()
	}
}

func TestFigures(t *testing.T) {
	t.Parallel()
	sales := append([]sale{
		{"1", 0, "10.5", "100", "Spain"},
		{"2", day, "0.001", "100", "Spain"},
		{"2", day, "0.5", "100", "Spain"},
		{"3", day, "1", "100", "Spain"},
		{"C4", 2 * day, "7", "100", "Spain"},
		{"C5", 2 * day, "7", "200", "Spain"},
	}, things(1001, sale{"6", 0, "", "", "Spain"})...)
	o, err := oracle.Open(t.Context(), pgtest.NewURL(t), strings.NewReader(salesOf(sales)))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	const shift = 5000 * day
	for _, tt := range []struct {
		figure string
		now    time.Duration
		want   []string
	}{
		{"revenue", 500 * day, []string{"anonymous_id:guest-6 10.010000000000000", "user_id:100 12.001000000000000", "user_id:200 0.000000000000000"}},
		{"revenue-90d", 90*day + 2*time.Hour - time.Millisecond, []string{
			"anonymous_id:guest-6 10.010000000000000", "user_id:100 12.001000000000000", "user_id:200 0.000000000000000",
		}},
		{"revenue-90d", 90*day + 2*time.Hour, []string{
			"anonymous_id:guest-6 0.000000000000000", "user_id:100 1.501000000000000", "user_id:200 0.000000000000000",
		}},
		{"average-order", 500 * day, []string{"anonymous_id:guest-6 10.010000000000000", "user_id:100 4.000333333333000"}},
		{"products", 500 * day, []string{"anonymous_id:guest-6 1000.000000000000000", "user_id:100 4.000000000000000", "user_id:200 0.000000000000000"}},
		{"last-order", 500 * day, []string{
			"anonymous_id:guest-6 2024-09-09T10:00:00.000Z", "user_id:100 2024-09-10T10:00:00.000Z",
		}},
	} {
		got, err := o.Answer(t.Context(), tt.figure, firstSale.Add(2*day), shift, firstSale.Add(tt.now+shift))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s after %s, -want +got:\n%s", tt.figure, tt.now, diff)
		}
	}
}

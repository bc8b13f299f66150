package demo

import (
	"flag"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles/rule"
)

var full = flag.String("full", "", "the full data set, to run the tests of the sample on it as well")

// eachFile runs a test on the sample, and on the full data set if it is there.
func eachFile(t *testing.T, test func(t *testing.T, path string)) {
	t.Run("the sample", func(t *testing.T) { t.Parallel(); test(t, "") })
	if *full != "" {
		t.Run("the full data set", func(t *testing.T) { t.Parallel(); test(t, *full) })
	}
}

func mustRead(t *testing.T, path string) []*invoice {
	t.Helper()
	file, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	invoices, err := readInvoices(file)
	if err != nil {
		t.Fatal(err)
	}
	return invoices
}

func TestSampleHasWhatItsReadmeSays(t *testing.T) {
	t.Parallel()
	type counts struct{ Customers, Guests, Orders, Refunds, Lines int }
	var got counts
	customers := map[string]bool{}
	for _, in := range mustRead(t, "") {
		if !InSample(in.customer, in.number) {
			t.Errorf("invoice %s of customer %q should not be in the sample", in.number, in.customer)
		}
		if in.customer == "" {
			got.Guests++
		} else {
			customers[in.customer] = true
		}
		if in.refund {
			got.Refunds++
		} else {
			got.Orders++
		}
		got.Lines += len(in.lines)
	}
	got.Customers = len(customers)
	want := counts{Customers: 158, Guests: 61, Orders: 741, Refunds: 113, Lines: 17811}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the sample, -want +got:\n%s", diff)
	}
}

func TestEveryEventFitsAndAddsUp(t *testing.T) {
	t.Parallel()
	eachFile(t, func(t *testing.T, path string) {
		seen := map[string]bool{}
		nameless := 0
		for _, e := range makeEvents(mustRead(t, path)) {
			text, err := e.encode(time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if len(text) > 32<<10 {
				t.Errorf("%s has %d bytes", e.messageID, len(text))
			}
			if seen[e.messageID] {
				t.Errorf("%s comes twice", e.messageID)
			}
			seen[e.messageID] = true
			if e.identify {
				continue
			}
			lines, revenue := decode(t, text)
			want := make([]product, len(e.invoice.lines))
			for i, l := range e.invoice.lines {
				want[i] = product{l.stockCode, lines[i].Name, l.quantity, jsontext.Value(l.price)}
			}
			if lines[0].Name == "" && e.invoice.lines[0].description != "" {
				nameless++
			}
			if diff := cmp.Diff(want, lines); diff != "" {
				t.Errorf("products of %s, -want +got:\n%s", e.messageID, diff)
			}
			sum := new(big.Rat)
			for _, p := range lines {
				sum.Add(sum, new(big.Rat).Mul(new(big.Rat).SetInt64(p.Quantity), rat(t, string(p.Price))))
			}
			if sum.Cmp(rat(t, revenue)) != 0 {
				t.Errorf("%s has the revenue %s, its lines add up to %s", e.messageID, revenue, sum.FloatString(3))
			}
		}
		t.Logf("%d events, %d of them name products by their ids alone", len(seen), nameless)
	})
}

// decode returns an order's products, however they are written, and its revenue.
func decode(t *testing.T, text []byte) (lines []product, revenue string) {
	t.Helper()
	var sent struct {
		Properties struct {
			Revenue  jsontext.Value   `json:"revenue"`
			Products []jsontext.Value `json:"products"`
		} `json:"properties"`
	}
	if err := json.Unmarshal(text, &sent); err != nil {
		t.Fatal(err)
	}
	for _, raw := range sent.Properties.Products {
		var c columns
		if json.Unmarshal(raw, &c) == nil {
			for i := range c.ProductID {
				p := product{ProductID: c.ProductID[i], Quantity: c.Quantity[i], Price: c.Price[i]}
				if c.Name != nil {
					p.Name = c.Name[i]
				}
				lines = append(lines, p)
			}
			continue
		}
		var p product
		if err := json.Unmarshal(raw, &p); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, p)
	}
	return lines, string(sent.Properties.Revenue)
}

func rat(t *testing.T, s string) *big.Rat {
	t.Helper()
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		t.Fatalf("%q is not a number", s)
	}
	return r
}

func TestSegmentsAreValid(t *testing.T) {
	t.Parallel()
	all := append(slices.Clone(segments), liveSegment)
	for _, q := range questions {
		all = append(all, q.segment)
	}
	for _, s := range all {
		if _, err := rule.Parse(s.Rule); err != nil {
			t.Errorf("%s: %v", s.Key, err)
		}
	}
	for _, f := range figures {
		if _, err := rule.ParseComputed(f.Value); err != nil {
			t.Errorf("%s: %v", f.Key, err)
		}
	}
}

func TestMoneyIsExact(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{"0.0", "0.00"}, {"2.55", "2.55"}, {"0.001", "0.001"}, {"-11062.06", "-11062.06"}, {"-0.5", "-0.50"}, {"38970.0", "38970.00"},
	} {
		m, err := parseMoney(tt.in)
		if err != nil || m.String() != tt.want {
			t.Errorf("%s is read as %s, %v; want %s", tt.in, m, err, tt.want)
		}
	}
	for _, wrong := range []string{"", "x", "1.2345", "1e3"} {
		if m, err := parseMoney(wrong); err == nil {
			t.Errorf("%q is read as %s", wrong, m)
		}
	}
}

func TestReadRefusesWhatIsNotThatShop(t *testing.T) {
	t.Parallel()
	head := strings.Join(header, ",") + "\n"
	for name, text := range map[string]string{
		"an empty file":      "",
		"other columns":      "a,b\n",
		"no line":            head,
		"a broken date":      head + "1,A,x,1,yesterday,1.0,,UK\n",
		"a broken quantity":  head + "1,A,x,1.5,2010-12-01 08:26:00,1.0,,UK\n",
		"a broken price":     head + "1,A,x,1,2010-12-01 08:26:00,1.00001,,UK\n",
		"too few columns":    head + "1,A\n",
		"an unclosed string": head + "1,\"A,x,1,2010-12-01 08:26:00,1.0,,UK\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := readInvoices(strings.NewReader(text)); err == nil {
				t.Error("is accepted")
			}
		})
	}
}

func Example_invoice() {
	in := &invoice{
		number: "536365", customer: "17850", country: "United Kingdom",
		at:    time.Date(2010, 12, 1, 8, 26, 0, 0, time.UTC),
		lines: []line{{"85123A", "WHITE HANGING HEART T-LIGHT HOLDER", 6, "2.55"}},
		total: 15300,
	}
	for _, e := range makeEvents([]*invoice{in}) {
		text, err := e.encode(0)
		fmt.Println(string(text), err)
	}

	// Output:
	// {"type":"identify","messageId":"online-retail-customer-17850-1","userId":"17850","timestamp":"2010-12-01T08:26:00.000Z","traits":{"country":"United Kingdom"}} <nil>
	// {"type":"track","event":"Order Completed","messageId":"online-retail-536365","userId":"17850","timestamp":"2010-12-01T08:26:00.000Z","properties":{"order_id":"536365","revenue":15.30,"currency":"GBP","country":"United Kingdom","products":[{"product_id":"85123A","name":"WHITE HANGING HEART T-LIGHT HOLDER","quantity":6,"price":2.55}]}} <nil>
}

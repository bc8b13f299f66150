package files

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mubatch/mubatch/collector/mapping"
)

const orders = `
version: 1
rules:
  - when: body.status == 'paid'
    event:
      type: track
      event: Order Completed
      userId: $.customer
      timestamp: $.paid_at | date
      properties:
        order_id: $.order
        revenue: $.total | number
        currency: $.currency
        products: [{product_id: $.skus | split('|')}]
`

func ordersCSV(n int) string {
	var b strings.Builder
	b.WriteString("order,customer,status,paid_at,total,currency,skus\n")
	for i := range n {
		fmt.Fprintf(&b, "%d,customer-%d,paid,2026-01-02T03:04:05Z,%d.50,EUR,\"85123A|71053|%d\"\n", i, i%1000, i, i)
	}
	return b.String()
}

// BenchmarkRows is what reading costs, alone and with a mapping.
func BenchmarkRows(b *testing.B) {
	const n = 10_000
	text := ordersCSV(n)
	m, err := mapping.Compile([]byte(orders))
	if err != nil {
		b.Fatal(err)
	}
	for name, p := range map[string]*program{"parse": nil, "parse and map": newProgram(m, "shop", "a.csv", "x")} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				r, err := openRows(b.Context(), inMemory(text), "a.csv", Format{}, Position{})
				if err != nil {
					b.Fatal(err)
				}
				rows := 0
				for {
					row, err := r.Next()
					if errors.Is(err, io.EOF) {
						break
					}
					if err != nil {
						b.Fatal(err)
					}
					rows++
					if p != nil {
						if events, fault := p.events(row, time.Time{}); len(events) != 1 || fault != nil {
							b.Fatal(events, fault)
						}
					}
				}
				if rows != n {
					b.Fatal(rows)
				}
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkImport is what an import of CSV through a mapping gets into lanes of real stores, with how far it is saved.
func BenchmarkImport(b *testing.B) {
	const n = 20_000
	text := ordersCSV(n)
	d := newDesk(b)
	d.cfg.Batch = 1000
	d.write("a.csv", text)
	d.runnerInto(d.in.Intake)
	for b.Loop() {
		if i := d.until(d.create(New{URL: "file:a.csv", Mapping: orders}), ended); i.Events != n {
			b.Fatalf("%+v", i)
		}
	}
	b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "rows/s")
}

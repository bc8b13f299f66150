package oracle_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/cmd/mubatch/demo/oracle"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

const sales = `InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country
1,85123A,HEART,10,2011-01-01 10:00:00,30.0,100.0,Germany
1,22423,"CAKE, STAND",1,2011-01-01 10:01:00,0.125,100.0,Germany
2,85123A,HEART,10,2011-02-01 10:00:00,30.0,100.0,Spain
C3,85123A,HEART,-1,2011-03-01 10:00:00,30.0,100.0,Spain
4,85123A,HEART,1,2011-03-01 11:00:00,2.5,,France
5,85099B,BAG,1,2011-03-01 12:00:00,2.5,200.0,France
6,85123A,HEART,1,2011-03-01 13:00:00,2.5,200.0,France
7,22423,STAND,0,2011-03-01 14:00:00,0.0,200.0,France
`

func TestOracle(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	o, err := oracle.Open(ctx, pgtest.NewURL(t), strings.NewReader(sales))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()

	totals, err := o.Totals(ctx)
	if err != nil {
		t.Fatal(err)
	}
	totals.Last = totals.Last.UTC()
	last := time.Date(2011, 3, 1, 14, 0, 0, 0, time.UTC)
	want := oracle.Totals{Customers: 2, Guests: 1, Orders: 6, Refunds: 1, Revenue: "577.625", Last: last}
	if diff := cmp.Diff(want, totals); diff != "" {
		t.Errorf("totals, -want +got:\n%s", diff)
	}

	accounts, err := o.Accounts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	wantAccounts := map[string]oracle.Account{
		"user_id:100":          {Orders: 2, Refunds: 1, Revenue: "570.125", Country: "Spain"},
		"user_id:200":          {Orders: 3, Revenue: "5", Country: "France"},
		"anonymous_id:guest-4": {Orders: 1, Revenue: "2.5"},
	}
	if diff := cmp.Diff(wantAccounts, accounts); diff != "" {
		t.Errorf("accounts, -want +got:\n%s", diff)
	}

	const day = 24 * time.Hour
	first := time.Date(2011, 1, 1, 10, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name string
		now  time.Time
		want map[string][]string
	}{
		{"when the last purchase is now", last, map[string][]string{
			"big-spenders": {"user_id:100"}, "heart-not-jumbo": {"anonymous_id:guest-4", "user_id:100"},
			"refunders": {"user_id:100"}, "germany-france": {"user_id:200"},
		}},
		{"a moment before the first purchase is 90 days old", first.Add(90*day - time.Millisecond), map[string][]string{
			"big-spenders": {"user_id:100"}, "heart-not-jumbo": {"anonymous_id:guest-4", "user_id:100"},
			"refunders": {"user_id:100"}, "germany-france": {"user_id:200"},
		}},
		{"when the first purchase is 90 days old", first.Add(90 * day), map[string][]string{
			"heart-not-jumbo": {"anonymous_id:guest-4", "user_id:100"},
			"refunders":       {"user_id:100"}, "germany-france": {"user_id:200"},
		}},
		{"when the last purchase is 120 days old", last.Add(120 * day), map[string][]string{
			"heart-not-jumbo": {"anonymous_id:guest-4", "user_id:100"}, "lapsed-regulars": {"user_id:200"},
			"refunders": {"user_id:100"}, "germany-france": {"user_id:200"},
		}},
	} {
		const shift = 5000*day + 7*time.Millisecond
		got, err := o.Members(ctx, shift, tt.now.Add(shift))
		if err != nil {
			t.Fatal(err)
		}
		for key, people := range got {
			if len(people) == 0 {
				delete(got, key)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("members %s, -want +got:\n%s", tt.name, diff)
		}
	}
}

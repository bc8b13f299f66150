// Package oracle says, in SQL over the raw lines of the shop's sales, what the demo must end with. It shares nothing with
// the code that makes events of them, nor with the code that evaluates segments, so that the two can be compared.
package oracle

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Oracle answers from a copy of the sales in temporary tables. It is for one goroutine.
type Oracle struct{ conn *pgx.Conn }

// Open copies the sales, as CSV, into temporary tables of a connection to the database. They go with [Oracle.Close].
func Open(ctx context.Context, databaseURL string, sales io.Reader) (*Oracle, error) {
	const raw = `
		CREATE TEMPORARY TABLE sales (
			invoice_no   text,
			stock_code   text,
			description  text,
			quantity     integer,
			invoice_date timestamp,
			unit_price   numeric,
			customer_id  text,
			country      text
		)`
	const load = `COPY sales FROM STDIN (FORMAT csv, HEADER)`
	const invoices = `
		CREATE TEMPORARY TABLE invoices AS
		SELECT invoice_no,
			CASE WHEN max(customer_id) IS NULL
				THEN 'anonymous_id:guest-' || invoice_no
				ELSE 'user_id:' || split_part(max(customer_id), '.', 1) END AS person,
			max(customer_id) IS NULL AS guest,
			invoice_no LIKE 'C%' AS refund,
			min(invoice_date) AT TIME ZONE 'UTC' AS at,
			sum(quantity * unit_price) AS total,
			max(country) AS country,
			array_agg(DISTINCT stock_code) AS products
		FROM sales
		GROUP BY invoice_no`
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["timezone"] = "UTC" // where a day has 24 hours, always
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	o := &Oracle{conn}
	if _, err := conn.Exec(ctx, raw); err != nil {
		o.Close()
		return nil, fmt.Errorf("make the table of sales: %w", err)
	}
	if _, err := conn.PgConn().CopyFrom(ctx, sales, load); err != nil {
		o.Close()
		return nil, fmt.Errorf("copy the sales: %w", err)
	}
	if _, err := conn.Exec(ctx, invoices); err != nil {
		o.Close()
		return nil, fmt.Errorf("gather the invoices: %w", err)
	}
	return o, nil
}

// Close forgets everything.
func (o *Oracle) Close() { o.conn.Close(context.Background()) }

// Totals are the shop's sales in a few numbers.
type Totals struct {
	Customers int
	Guests    int
	Orders    int
	Refunds   int
	Revenue   string // of orders and refunds together
	Last      time.Time
}

// Totals returns the totals.
func (o *Oracle) Totals(ctx context.Context) (Totals, error) {
	const query = `
		SELECT count(DISTINCT person) FILTER (WHERE NOT guest), count(DISTINCT person) FILTER (WHERE guest),
			count(*) FILTER (WHERE NOT refund), count(*) FILTER (WHERE refund), trim_scale(sum(total))::text, max(at)
		FROM invoices`
	rows, _ := o.conn.Query(ctx, query)
	t, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Totals])
	if err != nil {
		return Totals{}, fmt.Errorf("total the sales: %w", err)
	}
	return t, nil
}

// Account is what one customer or guest bought and gave back.
type Account struct {
	Orders  int
	Refunds int
	Revenue string // of orders and refunds together, without zeros at the end
	Country string // empty for a guest, whom nobody asked
}

// Accounts returns everybody's account, by identifier: "user_id:17850", "anonymous_id:guest-536414".
func (o *Oracle) Accounts(ctx context.Context) (map[string]Account, error) {
	const query = `
		SELECT person, count(*) FILTER (WHERE NOT refund), count(*) FILTER (WHERE refund), trim_scale(sum(total))::text,
			CASE WHEN bool_or(guest) THEN '' ELSE (array_agg(country ORDER BY at DESC, invoice_no DESC))[1] END
		FROM invoices
		GROUP BY person`
	accounts := map[string]Account{}
	var person string
	var a Account
	rows, _ := o.conn.Query(ctx, query)
	_, err := pgx.ForEachRow(rows, []any{&person, &a.Orders, &a.Refunds, &a.Revenue, &a.Country}, func() error {
		accounts[person] = a
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("total each account: %w", err)
	}
	return accounts, nil
}

// members has a query for each of the demo's segments: who is in it at @now, if the sales were @shift later.
var members = map[string]string{
	"big-spenders": `
		SELECT person
		FROM invoices
		WHERE NOT refund AND total >= 300 AND at + @shift::interval > @now::timestamptz - interval '90 days'
		GROUP BY person
		HAVING count(*) >= 2`,
	"lapsed-regulars": `
		SELECT person
		FROM invoices
		WHERE NOT refund
		GROUP BY person
		HAVING count(*) >= 3 AND max(at) + @shift::interval <= @now::timestamptz - interval '120 days'`,
	"heart-not-jumbo": `
		SELECT person
		FROM invoices
		WHERE NOT refund
		GROUP BY person
		HAVING bool_or('85123A' = ANY (products)) AND NOT bool_or('85099B' = ANY (products))`,
	"refunders": `
		SELECT DISTINCT person
		FROM invoices
		WHERE refund AND at + @shift::interval > @now::timestamptz - interval '180 days'`,
	"germany-france": `
		SELECT person
		FROM (
			SELECT DISTINCT ON (person) person, country
			FROM invoices
			WHERE NOT guest
			ORDER BY person, at DESC, invoice_no DESC
		) AS latest
		WHERE country IN ('Germany', 'France')`,
}

// Members returns who is in each of the demo's segments at a time, if everything was sold so much later than the sales
// say, by the segment's key, sorted.
func (o *Oracle) Members(ctx context.Context, shift time.Duration, now time.Time) (map[string][]string, error) {
	all := map[string][]string{}
	for key, query := range members {
		args := pgx.NamedArgs{"shift": shift, "now": now} // not every query needs them
		rows, _ := o.conn.Query(ctx, query, args)
		people, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, fmt.Errorf("find the members of %s: %w", key, err)
		}
		slices.Sort(people)
		all[key] = people
	}
	return all, nil
}

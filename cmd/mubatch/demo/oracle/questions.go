package oracle

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// The answers read what had been sold by a date, with the times moved. Of a sequence's events, the newest 100 of each kind
// count: that is a documented limit of rules.
const sold = `
	WITH sold AS (
		SELECT person, guest, refund, at + @shift::interval AS at, total, country, products, invoice_no
		FROM invoices
		WHERE at <= @until::timestamptz
	), newest AS (
		SELECT person, refund, at
		FROM (
			SELECT person, refund, at, row_number() OVER (PARTITION BY person, refund ORDER BY at DESC) AS nth
			FROM sold
		) AS numbered
		WHERE nth <= 100
	), countries AS (
		SELECT DISTINCT ON (person) person, country
		FROM sold
		WHERE NOT guest
		ORDER BY person, at DESC, invoice_no DESC
	), vips AS (
		SELECT person
		FROM sold
		WHERE NOT refund
		GROUP BY person
		HAVING sum(total) >= 2000 OR max(total) >= 1000
	), lapsed AS (
		SELECT person
		FROM sold
		WHERE NOT refund
		GROUP BY person
		HAVING max(at) <= @now::timestamptz - interval '90 days'
	)`

// answers has a query for each of the questions: who fits at @now, if everything up to @until was sold @shift later.
// Of the figures, everybody's, each row is a person and the value, with 15 decimals if it is a number.
var answers = map[string]string{
	// A count in a window is exact. A sum in a window of 90 days has the documented resolution of 3 hours (90 days / 720, which
	// is among the steps): what was spent counts until 90 days after the end of the 3 hours in which it was.
	"worth-keeping": `
		SELECT person
		FROM sold
		WHERE NOT refund
		GROUP BY person
		HAVING count(*) FILTER (WHERE at > @now::timestamptz - interval '90 days') >= 2
		   AND sum(total) FILTER (WHERE date_bin('3 hours', at, 'epoch'::timestamptz) + interval '3 hours'
		                              > @now::timestamptz - interval '90 days') >= 500`,
	"wide-range": `
		SELECT person
		FROM sold
		CROSS JOIN unnest(products) AS product
		WHERE NOT refund AND at > @now::timestamptz - interval '30 days'
		GROUP BY person
		HAVING count(DISTINCT product) >= 20
		EXCEPT
		SELECT person
		FROM sold
		WHERE refund AND at > @now::timestamptz - interval '30 days'`,
	"good-start": `
		SELECT person
		FROM sold
		WHERE NOT refund
		GROUP BY person
		HAVING min(at) > @now::timestamptz - interval '30 days' AND min(at) <= @now::timestamptz
		   AND sum(total) >= 200 * count(*)`,
	"second-thoughts": `
		SELECT DISTINCT o.person
		FROM newest AS o
		JOIN newest AS r ON r.person = o.person AND r.at > o.at AND r.at <= o.at + interval '14 days'
		WHERE NOT o.refund AND r.refund`,
	"one-off-abroad": `
		SELECT DISTINCT o.person
		FROM newest AS o
		JOIN countries AS c ON c.person = o.person
		WHERE NOT o.refund AND c.country <> 'United Kingdom' AND o.at + interval '60 days' < @now::timestamptz
		  AND NOT EXISTS (
			SELECT FROM newest AS again
			WHERE again.person = o.person AND NOT again.refund AND again.at > o.at AND again.at <= o.at + interval '60 days')`,
	"vips":   `SELECT person FROM vips`,
	"lapsed": `SELECT person FROM lapsed`,
	"lapsed-vips": `
		SELECT person
		FROM vips
		JOIN lapsed USING (person)`,

	"revenue": `
		SELECT person || ' ' || round(coalesce(sum(total) FILTER (WHERE NOT refund), 0), 15)
		FROM sold
		GROUP BY person`,
	// Of 90 days like in worth-keeping.
	"revenue-90d": `
		SELECT person || ' ' || round(coalesce(sum(total) FILTER (WHERE NOT refund AND date_bin('3 hours', at, 'epoch'::timestamptz)
			+ interval '3 hours' > @now::timestamptz - interval '90 days'), 0), 15)
		FROM sold
		GROUP BY person`,
	// To 12 decimals.
	"average-order": `
		SELECT person || ' ' || round(round(sum(total)::numeric(40, 25) / count(*), 12), 15)
		FROM sold
		WHERE NOT refund
		GROUP BY person`,
	// Up to 1,000.
	"products": `
		SELECT person || ' ' || round(least(1000, count(DISTINCT product) FILTER (WHERE NOT refund)), 15)
		FROM sold
		CROSS JOIN unnest(products) AS product
		GROUP BY person`,
	"last-order": `
		SELECT person || ' ' || to_char(max(at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
		FROM sold
		WHERE NOT refund
		GROUP BY person`,
}

// Answer returns the people who are the answer to a question, by its key, or everybody of whom there is a figure of that
// key, with a space and its value. It is what is true at a time now, if everything that was sold until then, and nothing
// else, was sold so much later than the sales say. It is sorted. now counts in whole milliseconds.
func (o *Oracle) Answer(ctx context.Context, question string, until time.Time, shift time.Duration, now time.Time) ([]string, error) {
	query, ok := answers[question]
	if !ok {
		return nil, fmt.Errorf("the question %q is unknown", question)
	}
	args := pgx.NamedArgs{"until": until, "shift": shift, "now": now.Truncate(time.Millisecond)} // not every query needs them
	rows, _ := o.conn.Query(ctx, sold+query, args)
	people, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("answer %s: %w", question, err)
	}
	slices.Sort(people)
	return people, nil
}

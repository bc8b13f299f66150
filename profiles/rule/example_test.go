package rule_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/rule"
	"github.com/mubatch/mubatch/profiles/timeline"
)

// ada is what is kept of one profile.
type ada struct {
	traits    map[string]string
	timelines []timeline.Timeline
}

func (a ada) Trait(name string) (jsontext.Value, bool) {
	v, ok := a.traits[name]
	return jsontext.Value(v), ok
}

func (a ada) Timeline(i int) timeline.Timeline { return a.timelines[i] }

func (a ada) Consent(string) (granted, known bool) { return false, false }

func (a ada) Segment(string) bool { return false }

func Example() {
	r, err := rule.Parse([]byte(`{"all": [
		{"trait": "country", "op": "in", "value": ["DE", "FR"]},
		{"event": "Order Completed", "where": [{"property": "revenue", "op": "gte", "value": 50}],
		 "count": {"gte": 2}, "within": "30d"}
	]}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(r.Describe())

	// Keep a timeline for each behaviour, of what the rule needs.
	now := time.Date(2026, 3, 20, 9, 0, 0, 0, time.UTC)
	a := ada{traits: map[string]string{"country": `"FR"`}}
	for _, b := range r.Behaviours() {
		t := b.Empty()
		for day, properties := range map[int]string{1: `{"revenue": 80}`, 7: `{"revenue": 12.5}`, 19: `{"revenue": 50.00}`} {
			b.Fold(&t, time.Date(2026, 3, day, 9, 0, 0, 0, time.UTC).UnixMilli(), jsontext.Value(properties))
		}
		a.timelines = append(a.timelines, t)
	}

	holds, until := r.Eval(a, now)
	fmt.Println(holds, "until", until)
	holds, until = r.Eval(a, until)
	fmt.Println(holds, "until", until)

	// Output:
	// Everyone whose country is one of "DE", "FR" and who did "Order Completed" (where revenue is at least 50) at least 2 times in the last 30 days.
	// true until 2026-03-31 09:00:00 +0000 UTC
	// false until 0001-01-01 00:00:00 +0000 UTC
}

func ExampleParse_problems() {
	_, err := rule.Parse([]byte(`{"any": [{"event": "Order Completed", "within": "1 month"}, {"cohort": "vip"}]}`))
	var problems *rule.Error
	if errors.As(err, &problems) {
		for _, p := range problems.Problems {
			fmt.Println(p.Pointer, p.Detail)
		}
	}

	// Output:
	// #/any/0/within must be a duration of w, d, h, m and s, in this order, like "30d" or "1d12h"
	// #/any/1/cohort is unknown; known here are all, any, not, trait, event, sequence, consent, segment
}

func ExampleComputed() {
	c, err := rule.ParseComputed([]byte(`{"event": "Order Completed", "sum": {"property": "revenue"}, "within": "30d"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.Describe())

	b := c.Behaviour()
	t := b.Empty()
	b.Fold(&t, time.Date(2026, 3, 1, 9, 30, 0, 0, time.UTC).UnixMilli(), jsontext.Value(`{"revenue": 80.10}`))
	b.Fold(&t, time.Date(2026, 3, 19, 9, 30, 0, 0, time.UTC).UnixMilli(), jsontext.Value(`{"revenue": 12.4}`))

	// A window of 30 days goes by the hour.
	value, until := c.Value(t, time.Date(2026, 3, 20, 9, 0, 0, 0, time.UTC))
	fmt.Println(value, "until", until)
	value, until = c.Value(t, until)
	fmt.Println(value, "until", until)

	// Output:
	// The sum of revenue over "Order Completed" in the last 30 days.
	// 92.5 until 2026-03-31 10:00:00 +0000 UTC
	// 12.4 until 2026-04-18 10:00:00 +0000 UTC
}

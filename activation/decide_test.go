package activation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	const (
		exact = time.Hour
		end   = 3 // attempts that the schedule below has room for
	)
	schedule := []time.Duration{exact, exact, exact}
	rows := func(classes ...Class) (rows []RowOutcome) {
		for _, c := range classes {
			rows = append(rows, RowOutcome{Class: c, Reason: string(c)})
		}
		return rows
	}
	// Members: + is an add, - a remove. In the answer each has its status; those in the same brackets are sent again
	// together; ! marks the batch itself, with its id and its bytes; then come failed attempts.
	for name, tc := range map[string]struct {
		members  string
		attempts int
		age      time.Duration
		outcome  Outcome
		want     string
	}{
		"what is accepted is settled":                    {"+-", 0, 0, Outcome{Class: OK}, "settled settled"},
		"a failure is tried again as it is":              {"+-", 0, 0, Outcome{Class: Retry}, "[pending pending]!1"},
		"the last attempt of the schedule":               {"+", end - 1, 0, Outcome{Class: Retry}, "[pending]!3"},
		"adds are parked at the end":                     {"++", end, 0, Outcome{Class: Retry}, "parked parked"},
		"removes go on at the end":                       {"--", end, 0, Outcome{Class: Retry}, "[pending pending]!4"},
		"removes go on without the adds":                 {"+-", end, 0, Outcome{Class: Retry}, "parked [pending]4"},
		"waiting as asked is not a failure":              {"+-", 2, 0, Outcome{Class: RetryAfter, Wait: exact}, "[pending pending]!2 blocked"},
		"waiting as asked ends after three days":         {"+-", 2, 73 * time.Hour, Outcome{Class: RetryAfter}, "parked [pending]2 blocked"},
		"a revoked credential pauses":                    {"+", 2, 0, Outcome{Class: Reauth}, "[pending]!2 paused"},
		"a token that cannot be refreshed pauses":        {"+", 0, 0, Outcome{Class: Refresh}, "[pending]!0 paused"},
		"a missing audience pauses":                      {"+", 0, 0, Outcome{Class: Config}, "[pending]!0 paused"},
		"a receiver that is gone disables":               {"+", 0, 0, Outcome{Class: Gone}, "[pending]!0 disabled"},
		"what is too large is halved":                    {"+++", 1, 0, Outcome{Class: Split}, "[pending]1 [pending pending]1"},
		"one add that is too large has failed":           {"+", 1, 0, Outcome{Class: Split}, "failed"},
		"one remove that is too large is tried daily":    {"-", 1, 0, Outcome{Class: Split}, "[pending]!3"},
		"what is refused has failed":                     {"++", 0, 0, Outcome{Class: Drop}, "failed failed"},
		"a refused remove is tried daily":                {"+-", 0, 0, Outcome{Class: Drop}, "failed [pending]3"},
		"each member by itself":                          {"+++", 0, 0, Outcome{Class: Partial, Rows: rows(OK, Drop, Retry)}, "settled failed [pending]1"},
		"members that are not mentioned are tried again": {"++", 0, 0, Outcome{Class: Partial, Rows: rows(OK)}, "settled [pending]1"},
		"a class that nobody knows is tried again":       {"+", 0, 0, Outcome{Class: "odd"}, "[pending]!1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now := time.Now()
			c := &claim{attempts: tc.attempts, created: now.Add(-tc.age)}
			for i, sign := range tc.members {
				c.members = append(c.members, claimed{Profile: ProfileID{byte(i)}, Entered: sign == '+'})
			}
			d := decide(c, tc.outcome, schedule, now)
			if diff := cmp.Diff(tc.want, describe(t, c, d)); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			for _, r := range d.rows {
				retried := r.status == pending && tc.outcome.Class == Retry
				if retried && tc.attempts < end && (r.wait < exact*79/100 || r.wait > exact*121/100) {
					t.Errorf("it waits %v, want %v give or take a fifth", r.wait, exact)
				}
			}
		})
	}
}

func describe(t *testing.T, c *claim, d decision) string {
	t.Helper()
	if len(d.rows) != len(c.members) {
		t.Errorf("%d rows for %d members", len(d.rows), len(c.members))
	}
	slices.SortStableFunc(d.rows, func(a, b result) int { return slices.Compare(a.Profile[:], b.Profile[:]) })
	var words []string
	for i := 0; i < len(d.rows); {
		g := d.rows[i].group
		if g == 0 {
			words = append(words, d.rows[i].status)
			i++
			continue
		}
		var same []string
		for ; i < len(d.rows) && d.rows[i].group == g; i++ {
			same = append(same, d.rows[i].status)
		}
		mark := ""
		if d.again[g-1].same {
			mark = "!"
		}
		words = append(words, fmt.Sprintf("[%s]%s%d", strings.Join(same, " "), mark, d.again[g-1].attempts))
	}
	if d.block > 0 {
		words = append(words, "blocked")
	}
	if d.status != "" {
		words = append(words, string(d.status))
	}
	return strings.Join(words, " ")
}

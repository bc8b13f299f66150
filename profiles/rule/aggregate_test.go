package rule_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/profiles/rule"
)

func TestEvalOfAggregates(t *testing.T) {
	t.Parallel()
	// Each event is "seconds ago: properties".
	did := func(events ...string) (list []naiveEvent) {
		for _, e := range events {
			ago, properties, _ := strings.Cut(e, ": ")
			d, err := time.ParseDuration(ago)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, naiveEvent{"Bought", properties, noon.Add(-d).UnixMilli()})
		}
		return list
	}
	long := strings.Repeat("x", 513)
	tests := []struct {
		name   string
		rule   string // but for the event
		events []naiveEvent
		want   bool
		in     time.Duration // from noon to the end of the answer; 0 is for ever
	}{
		{"a sum of nothing is 0", `"sum":{"property":"n","eq":0}`, nil, true, 0},
		{"a sum that is not reached", `"sum":{"property":"n","gte":10}`, did(`1s: {"n":9.99}`), false, 0},
		{"a sum of decimals is exact", `"sum":{"property":"n","eq":0.3}`, did(`1s: {"n":0.1}`, `2s: {"n":0.1}`, `3s: {"n":0.1}`), true, 0},
		{"a sum beyond 2^53 is exact", `"sum":{"property":"n","eq":18014398509481985}`, did(`1s: {"n":9007199254740993}`, `2s: {"n":9007199254740992}`), true, 0},
		{"a sum of the largest and the smallest is exact", `"sum":{"property":"n","gt":9999999999999999999999999999999999}`, did(`1s: {"n":9999999999999999999999999999999999}`, `2s: {"n":1e-34}`), true, 0},
		{"a sum takes every value", `"sum":{"property":"items.price","eq":6}`, did(`1s: {"items":[{"price":1},{"price":2},{"price":[3]}]}`), true, 0},
		{"a sum takes no text", `"sum":{"property":"n","eq":1}`, did(`1s: {"n":"5"}`, `2s: {"n":1}`, `3s: {"n":true}`, `4s: {"n":null}`), true, 0},
		{"a sum leaves out what has too many digits", `"sum":{"property":"n","eq":1}`, did(`1s: {"n":1}`, `2s: {"n":1.2345678901234567890123456789012345}`), true, 0},
		{"a sum leaves out what is too large", `"sum":{"property":"n","eq":1}`, did(`1s: {"n":1}`, `2s: {"n":1e34}`), true, 0},
		{"a sum leaves out what is too small", `"sum":{"property":"n","eq":1}`, did(`1s: {"n":1}`, `2s: {"n":0.9e-34}`), true, 0},
		{"a sum may be negative", `"sum":{"property":"n","lt":0}`, did(`1s: {"n":-1}`, `2s: {"n":0.5}`), true, 0},
		{
			"a sum in a window ends with the second in which its oldest part ends", `"sum":{"property":"n","gte":3},"within":"10s"`,
			did(`4.5s: {"n":1}`, `1s: {"n":2}`, `9s: {"n":0}`), true, 6 * time.Second,
		},
		{"what left a window less than its resolution ago still counts", `"sum":{"property":"n","gte":1},"within":"10s"`, did(`10s: {"n":1}`), true, time.Second},
		{"what left a window with its second does not", `"sum":{"property":"n","gte":1},"within":"10s"`, did(`10.001s: {"n":1}`), false, 0},
		{"a window of an hour goes by 5 seconds", `"sum":{"property":"n","gte":1},"within":"1h"`, did(`58s: {"n":1}`), true, 59*time.Minute + 5*time.Second},
		{"a window of 30 days goes by the hour", `"sum":{"property":"n","gte":1},"within":"30d"`, did(`90m: {"n":1}`), true, 30*24*time.Hour - time.Hour},
		{"a sum may come back below", `"sum":{"property":"n","lte":2},"within":"10s"`, did(`3s: {"n":2}`, `2s: {"n":1}`), false, 8 * time.Second},
		{"a sum may leave, come back, and leave: the first counts", `"sum":{"property":"n","eq":3},"within":"10s"`, did(`3s: {"n":1}`, `2s: {"n":-1}`, `1s: {"n":3}`), true, 8 * time.Second},
		{"a sum outside a period", `"sum":{"property":"n","gte":1},"between":{"from":"2026-03-01T11:59:59Z"}`, did(`2s: {"n":1}`), false, 0},
		{"a sum inside a period", `"sum":{"property":"n","gte":1},"between":{"from":"2026-03-01T11:59:58Z"}`, did(`2s: {"n":1}`), true, 0},
		{"the end of a period is outside", `"between":{"to":"2026-03-01T11:59:58Z"}`, did(`2s: {}`), false, 0},
		{"never in a period", `"count":{"eq":0},"between":{"from":"2026-02-01","to":"2026-03-01"}`, did(`13h: {}`), false, 0},

		{"an average of nothing is none", `"avg":{"property":"n","lte":1000}`, did(`1s: {}`), false, 0},
		{"an average divides by the values", `"avg":{"property":"n","eq":2}`, did(`1s: {"n":[1,2]}`, `2s: {"n":3}`, `3s: {}`), true, 0},
		{"an average is not rounded", `"avg":{"property":"n","gt":0.3333333333333333333333333333333333}`, did(`1s: {"n":1}`, `2s: {"n":0}`, `3s: {"n":0}`), true, 0},
		{"an average is not rounded up", `"avg":{"property":"n","gte":0.3333333333333333333333333333333334}`, did(`1s: {"n":1}`, `2s: {"n":0}`, `3s: {"n":0}`), false, 0},
		{"an average in a window may rise", `"avg":{"property":"n","gte":2},"within":"10s"`, did(`3s: {"n":1}`, `2s: {"n":2}`), false, 8 * time.Second},
		{"an average ends with its window", `"avg":{"property":"n","gte":0},"within":"10s"`, did(`3s: {"n":1}`), true, 8 * time.Second},

		{"the smallest of nothing is none", `"min":{"property":"n","lte":1000}`, nil, false, 0},
		{"the smallest", `"min":{"property":"n","eq":-1.5}`, did(`1s: {"n":2}`, `2s: {"n":[7,-1.50]}`), true, 0},
		{"the smallest in a window", `"min":{"property":"n","gte":2},"within":"10s"`, did(`3s: {"n":1}`, `2s: {"n":2}`, `1s: {"n":3}`), false, 8 * time.Second},
		{"the largest in a window", `"max":{"property":"n","gte":2},"within":"10s"`, did(`3s: {"n":1}`, `2s: {"n":2}`, `1s: {"n":1}`), true, 9 * time.Second},
		{"the largest beyond 2^53", `"max":{"property":"n","gt":9007199254740992}`, did(`1s: {"n":9007199254740993}`), true, 0},

		{"no different values are 0", `"distinct":{"property":"s","eq":0}`, did(`1s: {}`), true, 0},
		{"numbers that are equal are one value", `"distinct":{"property":"s","eq":4}`, did(`1s: {"s":[1,1.0,"1",true,"true",null,[2],{}]}`, `2s: {"s":10e-1}`), true, 0},
		{"different values in a window are exact", `"distinct":{"property":"s","gte":2},"within":"10s"`, did(`1s: {"s":"a"}`, `9.5s: {"s":"a"}`, `4.25s: {"s":"b"}`), true, 5750 * time.Millisecond},
		{"long values are different", `"distinct":{"property":"s","eq":2}`, did(`1s: {"s":"`+long+`a"}`, `1s: {"s":"`+long+`b"}`), true, 0},

		{"the first value", `"first":{"property":"s","op":"eq","value":"a"}`, did(`2s: {"s":"b"}`, `3s: {"s":"a"}`, `4s: {"s":[{}]}`), true, 0},
		{"the last value", `"last":{"property":"s","op":"in","value":["b",7]}`, did(`2s: {"s":"b"}`, `3s: {"s":"a"}`, `1s: {"s":null}`), true, 0},
		{"the last value, late", `"last":{"property":"s","op":"eq","value":"b"}`, did(`3s: {"s":"a"}`, `2s: {"s":"b"}`, `5s: {"s":"c"}`), true, 0},
		{"the last of nothing is not even other", `"last":{"property":"s","op":"neq","value":"b"}`, did(`2s: {}`), false, 0},
		{"the last is not other", `"last":{"property":"s","op":"not_in","value":["a"]}`, did(`2s: {"s":"b"}`), true, 0},
		{"the last exists", `"last":{"property":"s","op":"exists"}`, did(`2s: {"s":false}`), true, 0},
		{"what is the last is never absent", `"last":{"property":"s","op":"not_exists"}`, did(`2s: {"t":1}`), false, 0},
		{"a long text is no last value", `"last":{"property":"s","op":"eq","value":"a"}`, did(`3s: {"s":"a"}`, `2s: {"s":"`+long+`"}`), true, 0},
		{"a text of 512 bytes is", `"last":{"property":"s","op":"starts_with","value":"xx"}`, did(`3s: {"s":"a"}`, `2s: {"s":"`+long[1:]+`"}`), true, 0},
		{"the last of a tie is the greatest text", `"last":{"property":"s","op":"eq","value":true}`, did(`2s: {"s":["b",true,10]}`, `2s: {"s":9}`), true, 0},
		{"the first of a tie is the smallest text", `"first":{"property":"s","op":"eq","value":"a"}`, did(`2s: {"s":["b",true,10]}`, `2s: {"s":"a"}`), true, 0},
		{"the last in a window is exact", `"last":{"property":"s","op":"eq","value":"a"},"within":"10s"`, did(`3.25s: {"s":"a"}`), true, 6750 * time.Millisecond},
		{"the last in a window that is another", `"last":{"property":"s","op":"eq","value":"b"},"within":"10s"`, did(`3s: {"s":"a"}`, `4s: {"s":"b"}`), false, 0},
		{"the first in a window changes", `"first":{"property":"s","op":"eq","value":"b"},"within":"10s"`, did(`3s: {"s":"a"}`, `2s: {"s":"b"}`), false, 8 * time.Second},
		{
			"the first in a window stays the same as long as others are like it", `"first":{"property":"s","op":"eq","value":"a"},"within":"10s"`,
			did(`5s: {"s":"a"}`, `3s: {"s":"a"}`, `2s: {"s":"a"}`, `1s: {"s":"b"}`), true, 9 * time.Second,
		},
		{"the first value is a date", `"first":{"property":"s","op":"within_last","value":"1h"}`, did(`2s: {"s":"2026-03-01T11:30:00Z"}`), true, 30 * time.Minute},
		{"a date in a window that ends first", `"last":{"property":"s","op":"within_last","value":"1h"},"within":"10s"`, did(`2s: {"s":"2026-03-01T11:30:00Z"}`), true, 8 * time.Second},
		{"a date that comes after its window", `"last":{"property":"s","op":"within_last","value":"1h"},"within":"10s"`, did(`2s: {"s":"2026-03-01T12:30:00Z"}`), false, 0},

		{"did it first long ago", `"first":{"op":"more_than_ago","value":"1d"}`, did(`25h: {}`, `1s: {}`), true, 0},
		{"will have done it first long ago", `"first":{"op":"more_than_ago","value":"1d"}`, did(`23h: {}`, `1s: {}`), false, time.Hour},
		{"did, but more than some time ago", `"last":{"op":"more_than_ago","value":"1d"}`, did(`25h: {}`, `23h: {}`), false, time.Hour},
		{"never did is not long ago", `"last":{"op":"more_than_ago","value":"1d"}`, nil, false, 0},
		{"did it last before a date", `"last":{"op":"before","value":"2026-03-01T12:00:00Z"}`, did(`1s: {}`), true, 0},
		{"did it first after a date", `"first":{"op":"after","value":"2026-03-01T11:59:59Z"}`, did(`1s: {}`), false, 0},
		{"did it first in a window after a date", `"first":{"op":"after","value":"2026-03-01T11:59:58.5Z"},"within":"10s"`, did(`2s: {}`, `1s: {}`), false, 9 * time.Second},
		{"did it last within some time, in a longer window", `"last":{"op":"within_last","value":"5s"},"within":"10s"`, did(`2s: {}`), true, 3 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := parse(t, `{"event":"Bought",`+tt.rule+`}`)
			got, until := r.Eval(remember(r, nil, tt.events), noon)
			want := time.Time{}
			if tt.in > 0 {
				want = noon.Add(tt.in)
			}
			if got != tt.want || !until.Equal(want) {
				t.Errorf("%v until %v, want %v until %v", got, until, tt.want, want)
			}
		})
	}
}

// A window's resolution is the smallest step that divides it into at most 720.
func TestResolution(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ within, want string }{
		{"1s", "1s"},
		{"12m", "1s"},
		{"12m1s", "2s"},
		{"1h", "5s"},
		{"3h", "15s"},
		{"3h1s", "30s"},
		{"1d", "2m"},
		{"7d", "15m"},
		{"30d", "1h"},
		{"31d", "2h"},
		{"90d", "3h"},
		{"365d", "1d"},
		{"3653d", "7d"},
	} {
		b := parse(t, fmt.Sprintf(`{"event":"E","sum":{"property":"n","gt":0},"within":%q}`, tt.within)).Behaviours()[0]
		if got, want := string(b.Canonical()), fmt.Sprintf(`"resolution":%q`, tt.want); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", tt.within, got, want)
		}
	}
}

// Whatever a rule or a computed value needs, the store can keep: its behaviours read back as themselves, fold the same
// events to the same timelines, and these can be written down and read again.
func TestBehavioursReadBackAsThemselves(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		behaviours := parse(t, anyRule(t, 1)).Behaviours()
		c, err := rule.ParseComputed([]byte(anyComputed(t)))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range append(behaviours, c.Behaviour()) {
			back, err := rule.ParseBehaviour(b.Canonical(), b.Keep)
			if err != nil || string(back.Canonical()) != string(b.Canonical()) {
				t.Fatalf("%s reads back as %s, error %v", b.Canonical(), back.Canonical(), err)
			}
			one, other := b.Empty(), back.Empty()
			for range rapid.IntRange(0, 5).Draw(t, "events") {
				e := anyEvent(t)
				did := b.Fold(&one, e.at, jsontext.Value(e.properties))
				if didBack := back.Fold(&other, e.at, jsontext.Value(e.properties)); did != didBack {
					t.Fatalf("%s: folds %s: %v, read back %v", b.Canonical(), e.properties, did, didBack)
				}
			}
			x, err := one.AppendBinary(nil)
			if err != nil {
				t.Fatal(err)
			}
			y, err := other.AppendBinary(nil)
			if err != nil || string(x) != string(y) {
				t.Fatalf("%s: folded to %x, read back to %x, error %v", b.Canonical(), x, y, err)
			}
		}
	})
}

// Two nodes that need the same data share a behaviour.
func TestBehavioursAreShared(t *testing.T) {
	t.Parallel()
	r := parse(t, `{"all":[
		{"event":"E","sum":{"property":"n","gt":1}},
		{"event":"E","avg":{"property":"n","lt":9}},
		{"event":"E","sum":{"property":"n","gt":1},"within":"30d"},
		{"event":"E","avg":{"property":"n","lt":9},"within":"30d"},
		{"event":"E","min":{"property":"n","gt":1}},
		{"event":"E","distinct":{"property":"n","gt":3}},
		{"event":"E","distinct":{"property":"n","lte":7},"within":"30d"},
		{"event":"E"},
		{"event":"E","first":{"op":"more_than_ago","value":"1d"}},
		{"event":"E","last":{"op":"more_than_ago","value":"1d"},"within":"2d"},
		{"sequence":[{"event":"E"},{"event":"E","within":"1d"}]},
		{"event":"E","count":{"gte":7},"within":"1d"},
		{"event":"E","first":{"op":"more_than_ago","value":"1d"},"within":"30d"},
		{"event":"E","between":{"from":"2026-01-01"}},
		{"event":"E","count":{"gte":2},"between":{"from":1767225600}},
		{"event":"E","last":{"property":"n","op":"eq","value":1},"within":"30d"},
		{"event":"E","last":{"property":"n","op":"eq","value":2}}
	]}`)
	var got []string
	for _, b := range r.Behaviours() {
		got = append(got, fmt.Sprintf("%s %d", b.Canonical(), b.Keep))
	}
	want := []string{
		`{"event":"E","tally":"sum","property":"n"} 0`,
		`{"event":"E","tally":"sum","property":"n","resolution":"1h","span":"30d"} 0`,
		`{"event":"E","tally":"min","property":"n"} 0`,
		`{"event":"E","tally":"distinct","property":"n"} 8`,
		`{"event":"E"} 100`,
		`{"event":"E","tally":"first","resolution":"1h","span":"30d"} 0`,
		`{"event":"E","between":{"from":"2026-01-01T00:00:00Z"}} 0`,
		`{"event":"E","tally":"last","property":"n"} 0`,
	}
	if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
		t.Errorf("behaviours are\n%s\nwant\n%s", a, b)
	}
}

// What is no behaviour that can be kept is refused, so that it cannot be stored.
func TestParseBehaviourRefusesWhatCannotBeKept(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		`{"event":"E","tally":"sum"}`,
		`{"event":"E","tally":"avg","property":"n"}`,
		`{"event":"E","tally":"first"}`,
		`{"event":"E","tally":"last"}`,
		`{"event":"E","tally":"last","property":"n","resolution":"1s","span":"1m"}`,
		`{"event":"E","tally":"distinct","property":"n","resolution":"1s","span":"1m"}`,
		`{"event":"E","property":"n"}`,
		`{"event":"E","tally":"min","property":"n","resolution":"1s"}`,
		`{"event":"E","tally":"min","property":"n","span":"1s"}`,
		`{"event":"E","tally":"min","property":"n","resolution":"1s","span":"721s"}`,
		`{"event":"E","tally":"most","property":"n"}`,
		`{"event":"E","between":{}}`,
	} {
		if b, err := rule.ParseBehaviour([]byte(s), 0); err == nil {
			t.Errorf("%s is read as %s", s, b.Canonical())
		}
	}
}

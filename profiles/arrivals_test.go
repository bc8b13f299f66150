package profiles

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// However the events of any number of tabs are mixed, repeated and cut into batches of any lanes, what is counted is what a
// set of their numbers says.
func TestArrivalsAreExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const day = 20780
		k := arrivalKey{1, 1, day}
		now := k.date().Add(20 * time.Hour)
		nowMinute := uint32((20*time.Hour + 2*arrivalEarly) / time.Minute)
		want := Arrivals{Day: k.date()}
		var coming []run
		for stream := range rapid.IntRange(0, 4).Draw(t, "streams") {
			var first []uint32 // minutes, 0 for what never comes
			last := 0
			for n := range rapid.IntRange(1, 30).Draw(t, "events") {
				minute := uint32(0)
				if rapid.IntRange(0, 3).Draw(t, "arrives") > 0 {
					minute = nowMinute - uint32(rapid.IntRange(0, 120).Draw(t, "minutes ago"))
					last = n + 1
				}
				first = append(first, minute)
			}
			if last == 0 {
				continue
			}
			want.Streams++
			want.Sent += int64(last)
			for n, minute := range first[:last] {
				if minute > 0 {
					want.Received++
					for range rapid.IntRange(1, 3).Draw(t, "times") { // also when it is folded twice
						coming = append(coming, run{uint64(stream), uint32(n + 1), uint32(n + 1), minute})
					}
					continue
				}
				noticed := nowMinute
				for _, behind := range first[n:last] {
					if behind > 0 {
						noticed = min(noticed, behind)
					}
				}
				if nowMinute-noticed < 60 {
					want.InFlight++
				} else {
					want.Missing++
				}
			}
		}
		coming = rapid.Permutation(coming).Draw(t, "order")
		var stored []byte
		for len(coming) > 0 {
			n := rapid.IntRange(1, len(coming)).Draw(t, "batch")
			stored = appendRuns(stored, union(append([]run{}, coming[:n]...)))
			coming = coming[n:]
			if rapid.Bool().Draw(t, "fold") {
				runs, err := decodeRuns(nil, stored)
				if err != nil {
					t.Fatal(err)
				}
				stored = appendRuns(nil, union(runs))
			}
		}
		runs, err := decodeRuns(nil, stored)
		if err != nil {
			t.Fatal(err)
		}
		got := k.count(union(runs), now)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		if got.Sent != got.Received+got.Missing+got.InFlight {
			t.Errorf("%+v does not add up", got)
		}
	})
}

func TestOnlyNumbersThatCanBeBelievedCount(t *testing.T) {
	t.Parallel()
	received := time.Unix(20780*24*3600, 0).Add(time.Hour) // day g18
	for mub, want := range map[string]bool{
		`{"s":"g18abcdef","n":7}`:   true,
		`{"s":"g1aabcdef","n":7}`:   false, // the day after tomorrow
		`{"s":"g18abcdef","n":0}`:   false,
		`{"s":"g18abcdef","n":-1}`:  false,
		`{"s":"g18abcdef","n":1.5}`: false,
		`{"s":"g18abcdef","n":1e9}`: false,
		`{"s":"g18abcdef","n":"7"}`: false,
		`{"s":"g18"    ,"n":7}`:     false,
		`{"s":"!!!abcdef","n":7}`:   false,
		`{"s":"001abcdef","n":7}`:   false, // a clock that begins in 1970
		`{"n":7}`:                   false,
		`{"s":17,"n":7}`:            false,
		`{"s":"g0habcdef","n":7}`:   true,  // 27 days later
		`{"s":"g00abcdef","n":7}`:   false, // 44 days later
	} {
		m := Message{Kind: KindEvent, Workspace: 1, Source: 2, Received: received, Body: fmt.Appendf(nil, `{"context":{"page":{},"mub":%s}}`, mub)}
		k, r, ok := numbered(&m)
		if ok != want {
			t.Errorf("%s: %v, want %v", mub, ok, want)
		}
		if ok && (k.workspace != 1 || k.source != 2 || r.first != 7 || r.last != 7) {
			t.Errorf("%s: %+v %+v", mub, k, r)
		}
	}
	body, err := AppendQuarantined(nil, Quarantined{Type: "track", Body: []byte(`{"context":{"mub":{"s":"g18abcdef","n":7}}}`)})
	if err != nil {
		t.Fatal(err)
	}
	held := Message{Kind: KindQuarantine, Workspace: 1, Source: 2, Received: received, Body: body}
	if _, r, ok := numbered(&held); !ok || r.first != 7 {
		t.Error("what is quarantined counts as lost")
	}
	other := Message{Kind: KindEvent, Received: received, Body: []byte(`{"properties":{"mub":{"s":"g18abcdef","n":7}}}`)}
	if _, _, ok := numbered(&other); ok {
		t.Error("a property is taken for a number")
	}
}

func FuzzDecodeRuns(f *testing.F) {
	f.Add(appendRuns(nil, []run{{1, 1, 3, 10}, {1, 5, 5, 9}, {2, 2, 2, 100}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		runs, err := decodeRuns(nil, b)
		if err != nil {
			return
		}
		runs = union(runs)
		again, err := decodeRuns(nil, appendRuns(nil, runs))
		if err != nil || cmp.Diff(len(runs), len(again)) != "" {
			t.Errorf("%v: %v, then %v", err, runs, again)
		}
	})
}

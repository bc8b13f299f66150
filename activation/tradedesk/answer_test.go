package tradedesk

import (
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/tradedesk/uid2"
)

// The vectors are those of the tests of an integration that signs so in production.
func TestSignature(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"data":"example"}`: "rvxETQ7kIU5Cko3GddD2AeFpz8E=",
		`{"data":123}`:       "V5RSVwxqHRLkZftZ0+IrZAp4L4s=",
		`{"data":true}`:      "oZ28NtyMYDGxRV0E+Tgvz7B1jds=",
	} {
		if got := signature("secret", []byte(body)); got != want {
			t.Errorf("signature of %s is %s, want %s", body, got, want)
		}
	}
}

func TestHowLongAMappingHolds(t *testing.T) {
	t.Parallel()
	now, day := time.Now(), 24*time.Hour
	for name, test := range map[string]struct {
		until []time.Duration // of each raw UID2, as the operator says
		want  time.Duration
	}{
		"as long as it says":        {[]time.Duration{20 * day}, 20 * day},
		"as long as all of them":    {[]time.Duration{20 * day, 10 * day, 30 * day}, 10 * day},
		"an hour, if it is over":    {[]time.Duration{20 * day, -day}, time.Hour},
		"90 days, if it never ends": {[]time.Duration{50_000 * day}, 90 * day},
		"a day, if there is none":   {nil, day},
	} {
		found := map[uid2.Hash]uid2.ID{}
		var ids activation.Identifiers
		for i, until := range test.until {
			id := activation.Identifier{Kind: emailHash, Value: string(rune('a' + i))}
			h, _ := hashOf(id)
			ids.IDs, found[h] = append(ids.IDs, id), uid2.ID{Raw: id.Value, Until: now.Add(until)}
		}
		if m := (Config{Scheme: "uid2"}).mapped(ids, found, now); !m.Until.Equal(now.Add(test.want)) {
			t.Errorf("%s: it holds for %v, want %v", name, m.Until.Sub(now), test.want)
		}
	}
	device := activation.Identifiers{IDs: []activation.Identifier{{Kind: "DAID", Value: "d"}}}
	if m := (Config{}).mapped(device, nil, now); !m.Until.Equal(now.Add(90 * day)) {
		t.Errorf("what was not mapped holds for %v", m.Until.Sub(now))
	}
}

// Whatever The Trade Desk says it refused, each member has an outcome, or all are sent again in halves, or nobody is; and
// nobody is in of whom nothing was taken.
func FuzzFailedLines(f *testing.F) {
	for _, lines := range []string{
		`[]`, `[{"ItemNumber":1,"ErrorCode":"Uid2Error"},{"ItemNumber":2,"ErrorCode":"x"}]`, `[{"ItemNumber":0}]`,
		`[{"UID2":"b","ErrorCode":"MissingUserId"}]`, `[{"ItemNumber":-9223372036854775808,"ErrorCode":"Uid2Error"}]`,
		`[{"ItemNumber":3,"ErrorCode":"TargetingDataDisabled"}]`, `[{"ItemNumber":99}]`,
	} {
		f.Add(lines, false)
		f.Add(lines, true)
	}
	m := message{Data: jsontext.Value(`{"Items":[{"TDID":"a"},{"UID2":"b"},{"UID2":"c"}]}`), Items: []int{2, 1}}
	members := []activation.MemberRef{{Entered: true}, {}}
	f.Fuzz(func(t *testing.T, text string, fromZero bool) {
		var lines []failedLine
		if json.Unmarshal([]byte(text), &lines) != nil {
			return
		}
		o := m.result(activation.Outcome{Class: activation.OK}, lines, fromZero, members)
		switch o.Class {
		case activation.OK:
			if len(lines) > 0 {
				t.Errorf("%s is no refusal", text)
			}
		case activation.Config, activation.Split:
		case activation.Partial:
			if len(o.Rows) != len(members) {
				t.Errorf("%s makes outcomes of %d members", text, len(o.Rows))
			}
			for _, r := range o.Rows {
				if r.Class != activation.OK && (r.Class != activation.Drop || r.Reason == "") {
					t.Errorf("%s makes %+v", text, r)
				}
			}
		default:
			t.Errorf("%s makes %+v", text, o)
		}
	})
}

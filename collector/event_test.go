package collector

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
)

var (
	testReceived = time.Date(2026, 3, 1, 12, 0, 0, 500e6, time.UTC)
	testShared   = shared{received: testReceived, maxBytes: 36 << 10}
)

// times is what an event without times of its own is kept with.
const times = `"timestamp":"2026-03-01T12:00:00.500Z","receivedAt":"2026-03-01T12:00:00.500Z"`

func cleanOne(t testing.TB, raw, kind string, of shared) (cleaned, *fault) {
	t.Helper()
	if _, err := parseEnvelope([]byte(raw), false, 0); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return new(eventCleaner).clean([]byte(raw), kind, &of)
}

func TestWhatIsKeptOfAnEvent(t *testing.T) {
	t.Parallel()
	batch := testShared
	batch.context = []byte(`{"library":{"name":"go"},"locale":"de"}`)
	batch.integrations = []byte(`{"All":true}`)
	batch.sentAt = []byte(`"2026-03-01T11:59:00Z"`)
	ip := testShared
	ip.ip = []byte(`"192.0.2.1"`)
	both := batch
	both.ip = ip.ip
	batchIP := ip
	batchIP.context = []byte(`{"ip":"198.51.100.7"}`)

	tests := []struct {
		name, kind, raw string
		of              shared
		want            string
	}{
		{
			"members come in a fixed order, without space, those unknown last", "", `{
				"zebra": [1, 2 , {"a" : null}], "integrations": {"All": false}, "traits": {"t": 1}, "properties": {"p": 1.50},
				"context": {"c": true}, "category": "docs", "sentAt": "2026-03-01T12:00:00.5Z", "timestamp": "2026-03-01T12:00:00.5Z",
				"groupId": "g", "previousId": "p", "anonymousId": "a", "userId": "u", "messageId": "m", "name": "n", "event": "e",
				"type": "track", "channel": "web"
			}`, testShared,
			`{"type":"track","event":"e","name":"n","messageId":"m","userId":"u","anonymousId":"a","previousId":"p","groupId":"g",` +
				`"timestamp":"2026-03-01T12:00:00.500Z","originalTimestamp":"2026-03-01T12:00:00.5Z","sentAt":"2026-03-01T12:00:00.5Z",` +
				`"receivedAt":"2026-03-01T12:00:00.500Z","category":"docs","context":{"c":true},"properties":{"p":1.50},"traits":{"t":1},` +
				`"integrations":{"All":false},"zebra":[1,2,{"a":null}],"channel":"web"}`,
		},
		{
			"what is empty, null, or ours to say, is left out", "page",
			`{"type":["track"],"messageId":"m","userId":"u","anonymousId":"","name":"","event":null,"context":{},"properties":[],` +
				`"traits":null,"receivedAt":"x","writeKey":"secret","_metadata":{},"_sanitized":7,"_blocked":[1]}`, testShared,
			`{"type":"page","messageId":"m","userId":"u",` + times + `}`,
		},
		{
			"numbers stay as they were written", "identify",
			`{"messageId":"m","userId":"u","traits":{"a":9007199254740993,"b":1.10,"c":-0,"d":1E+2,"e":820982911946154508,"f":1e308,` +
				`"g":0e308,"h":0.00000000000000000000000000000000000000000000000001,"i":1234567890123456789012345678901234567890}}`, testShared,
			`{"type":"identify","messageId":"m","userId":"u",` + times + `,"traits":{"a":9007199254740993,"b":1.10,"c":-0,"d":1E+2,` +
				`"e":820982911946154508,"f":1e308,"g":0e308,"h":0.00000000000000000000000000000000000000000000000001,` +
				`"i":1234567890123456789012345678901234567890}}`,
		},
		{
			"ids that are numbers become their text", "alias", `{"messageId":12,"userId":9007199254740993,"previousId":1.0}`, testShared,
			`{"type":"alias","messageId":"12","userId":"9007199254740993","previousId":"1.0",` + times + `}`,
		},
		{
			"strings have no more escapes than they need", "identify",
			`{"messageId":"m","userId":"\u0061\/\u00fc\ud83d\ude00","traits":{"\u006b":"\"\\\b\f\n\r\t\u001f\u007f\u2028ü"}}`, testShared,
			`{"type":"identify","messageId":"m","userId":"a/ü😀",` + times + `,"traits":{"k":"\"\\\b\f\n\r\t\u001f` + "\u007f\u2028" + `ü"}}`,
		},
		{
			"what Postgres does not store is replaced and counted", "identify",
			`{"messageId":"m","userId":"u","traits":{"nul\u0000":"\u0000","half":"\ud800","halves":"\udc00\ud800x","bytes":"` + "\xff\xc3" + `é","ok":"\\u0000"}}`, testShared,
			`{"type":"identify","messageId":"m","userId":"u",` + times + `,"traits":{"nul�":"�","half":"�","halves":"��x","bytes":"��é","ok":"\\u0000"},"_sanitized":7}`,
		},
		{
			"ids that identify nobody are left out and named", "track",
			`{"messageId":"m","event":"e","userId":"NULL","anonymousId":"a","groupId":" 000-0 "}`, testShared,
			`{"type":"track","event":"e","messageId":"m","anonymousId":"a",` + times + `,"_blocked":["userId","groupId"]}`,
		},
		{
			"the batch fills in what the event does not say", "track",
			`{"messageId":"m","event":"e","userId":"u","timestamp":"2026-03-01T11:58:00Z","context":{"locale":"fr","x":{"library":1}}}`, batch,
			`{"type":"track","event":"e","messageId":"m","userId":"u","timestamp":"2026-03-01T11:59:00.500Z",` +
				`"originalTimestamp":"2026-03-01T11:58:00Z","sentAt":"2026-03-01T11:59:00Z","receivedAt":"2026-03-01T12:00:00.500Z",` +
				`"context":{"locale":"fr","x":{"library":1},"library":{"name":"go"}},"integrations":{"All":true}}`,
		},
		{
			"the event's own sentAt goes before the batch's", "track",
			`{"messageId":"m","event":"e","userId":"u","sentAt":"2026-03-01T12:00:00.5Z"}`, batch,
			`{"type":"track","event":"e","messageId":"m","userId":"u","timestamp":"2026-03-01T12:00:00.500Z","sentAt":"2026-03-01T12:00:00.5Z",` +
				`"receivedAt":"2026-03-01T12:00:00.500Z","context":{"library":{"name":"go"},"locale":"de"},"integrations":{"All":true}}`,
		},
		{
			"the address of the connection is filled in", "page", `{"messageId":"m","userId":"u"}`, ip,
			`{"type":"page","messageId":"m","userId":"u",` + times + `,"context":{"ip":"192.0.2.1"}}`,
		},
		{
			"but not over one that is there", "page", `{"messageId":"m","userId":"u","context":{"ip":"203.0.113.9"}}`, ip,
			`{"type":"page","messageId":"m","userId":"u",` + times + `,"context":{"ip":"203.0.113.9"}}`,
		},
		{
			"nor over one of the batch", "page", `{"messageId":"m","userId":"u","context":{"a":"ip"}}`, batchIP,
			`{"type":"page","messageId":"m","userId":"u",` + times + `,"context":{"a":"ip","ip":"198.51.100.7"}}`,
		},
		{
			"both together", "page", `{"messageId":"m","userId":"u","sentAt":null}`, both,
			`{"type":"page","messageId":"m","userId":"u","timestamp":"2026-03-01T12:00:00.500Z","sentAt":"2026-03-01T11:59:00Z",` +
				`"receivedAt":"2026-03-01T12:00:00.500Z","context":{"library":{"name":"go"},"locale":"de","ip":"192.0.2.1"},"integrations":{"All":true}}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, f := cleanOne(t, tt.raw, tt.kind, tt.of)
			if f != nil {
				t.Fatalf("rejected: %s %s", f.pointer(), f.reason)
			}
			if diff := cmp.Diff(tt.want, string(e.body)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhomAnEventIsAbout(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]profiles.Identifier{
		`"userId":"u","anonymousId":"a"`:              {Kind: profiles.UserID, Value: "u"},
		`"anonymousId":"a"`:                           {Kind: profiles.AnonymousID, Value: "a"},
		`"userId":"undefined","anonymousId":"a"`:      {Kind: profiles.AnonymousID, Value: "a"},
		`"userId":false,"anonymousId":7`:              {Kind: profiles.AnonymousID, Value: "7"},
		`"userId":"\u0000"`:                           {Kind: profiles.UserID, Value: "\ufffd"},
		`"userId":" u "`:                              {Kind: profiles.UserID, Value: " u "},
		`"userId":"` + strings.Repeat("x", 255) + `"`: {Kind: profiles.UserID, Value: strings.Repeat("x", 255)},
	} {
		e, f := cleanOne(t, `{"messageId":"m",`+raw+`}`, "identify", testShared)
		if f != nil {
			t.Errorf("%s: rejected: %s %s", raw, f.pointer(), f.reason)
		} else if e.who != want || e.messageID != "m" || e.generated {
			t.Errorf("%s: %+v, want %v", raw, e, want)
		}
	}
}

func TestBlockedIdentifiers(t *testing.T) {
	t.Parallel()
	for _, id := range []string{
		"", " ", "null", "Null", "undefined", "none", "nil", "0", "-1", "anonymous", "GUEST", "unknown", "N/A", "nan", "NaN",
		"[object Object]", "true", "False", "000", "-", "00000000-0000-0000-0000-000000000000", "\tnull\n",
	} {
		if !Blocked(id) {
			t.Errorf("%q identifies somebody", id)
		}
	}
	for _, id := range []string{"1", "-2", "a", "nully", "0x0", "000a", "ada", "00000000-0000-0000-0000-000000000001", "[object object]s"} {
		if Blocked(id) {
			t.Errorf("%q identifies nobody", id)
		}
	}
}

func TestRejectedEvents(t *testing.T) {
	t.Parallel()
	nested := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"k%d":1,`, i)
		}
		return b.String()
	}
	tests := []struct{ name, kind, raw, pointer, code string }{
		{"no type in a batch", "", `{"userId":"u"}`, "#/type", "missing_type"},
		{"an unknown type", "", `{"userId":"u","type":"Track"}`, "#/type", "unknown_type"},
		{"a type that is no string", "", `{"userId":"u","type":1}`, "#/type", "wrong_type"},
		{"a track without its event", "track", `{"userId":"u"}`, "#/event", "missing_event"},
		{"a track with a blank event", "track", `{"userId":"u","event":"  "}`, "#/event", "missing_event"},
		{"an event that is no string", "track", `{"userId":"u","event":{"a":1}}`, "#/event", "wrong_type"},
		{"nobody", "page", `{"messageId":"m"}`, "#", "missing_id"},
		{"nobody but blocked ids", "page", `{"userId":"null","anonymousId":"0"}`, "#", "missing_id"},
		{"names match exactly", "page", `{"userid":"u","UserId":"u"}`, "#", "missing_id"},
		{"a userId that is an object", "page", `{"userId":{"id":1}}`, "#/userId", "wrong_type"},
		{"a userId too long", "page", `{"userId":"` + strings.Repeat("x", 256) + `"}`, "#/userId", "id_too_long"},
		{"an anonymousId too long beside a userId", "page", `{"userId":"u","anonymousId":"` + strings.Repeat("x", 256) + `"}`, "#/anonymousId", "id_too_long"},
		{"an alias without userId", "alias", `{"anonymousId":"a","previousId":"p"}`, "#/userId", "missing_user_id"},
		{"an alias without previousId", "alias", `{"userId":"u"}`, "#/previousId", "missing_previous_id"},
		{"an alias of a blocked id", "alias", `{"userId":"u","previousId":"guest"}`, "#/previousId", "missing_previous_id"},
		{"a group without groupId", "group", `{"userId":"u"}`, "#/groupId", "missing_group_id"},
		{"traits that are a string", "identify", `{"userId":"u","traits":"x"}`, "#/traits", "wrong_type"},
		{"properties that are a list", "track", `{"userId":"u","event":"e","properties":[1]}`, "#/properties", "wrong_type"},
		{"context that is a number", "page", `{"userId":"u","context":1}`, "#/context", "wrong_type"},
		{"a timestamp that is an object", "page", `{"userId":"u","timestamp":{}}`, "#/timestamp", "wrong_type"},
		{"a messageId that is a list", "page", `{"userId":"u","messageId":["m"]}`, "#/messageId", "wrong_type"},
		{"a member twice", "page", `{"userId":"u","userId":"v"}`, "#/userId", "duplicate_member"},
		{"a member twice, deep, however it is written", "page", `{"userId":"u","traits":{"a/b":[{"x":1},{"x":1,"\u0078":2}]}}`, "#/traits/a~1b/1/x", "duplicate_member"},
		{"a member twice after repair", "page", `{"userId":"u","traits":{"\u0000":1,"\ud800":1}}`, "#/traits/%EF%BF%BD", "duplicate_member"},
		{"too deep", "page", `{"userId":"u","traits":` + nested(32) + `}`, "#/traits" + strings.Repeat("/a", 31), "too_deep"},
		{"too deep with lists", "page", `{"userId":"u","x":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`, "#/x" + strings.Repeat("/0", 31), "too_deep"},
		{"too many members", "page", `{"userId":"u","traits":{` + many(999) + `"last":1}}`, "#/traits", "too_many_members"},
		{"a member name too long", "page", `{"userId":"u","traits":{"` + strings.Repeat("k", 257) + `":1}}`, "#/traits", "name_too_long"},
		{"a number too large", "page", `{"userId":"u","traits":{"n":[1,1e309]}}`, "#/traits/n/1", "number_out_of_range"},
		{"a number too small", "page", `{"userId":"u","traits":{"n":1e-309}}`, "#/traits/n", "number_out_of_range"},
		{"a number too large in the sum", "page", `{"userId":"u","traits":{"n":10e308}}`, "#/traits/n", "number_out_of_range"},
		{"a number too small in the sum", "page", `{"userId":"u","traits":{"n":0.001e-306}}`, "#/traits/n", "number_out_of_range"},
		{"a number with an absurd exponent", "page", `{"userId":"u","traits":{"n":0e99999999999999999999}}`, "#/traits/n", "number_out_of_range"},
		{"a number with too many digits", "page", `{"userId":"u","traits":{"n":` + strings.Repeat("1", 41) + `}}`, "#/traits/n", "number_out_of_range"},
		{"an id that is such a number", "page", `{"userId":1e999}`, "#/userId", "number_out_of_range"},
		{"too large", "page", `{"userId":"u","x":"` + strings.Repeat("x", 36<<10) + `"}`, "#", "too_large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, f := cleanOne(t, tt.raw, tt.kind, testShared)
			if f == nil {
				t.Fatalf("kept as %s", e.body)
			}
			if f.pointer() != tt.pointer || f.code != tt.code || f.reason == "" {
				t.Errorf("%s %s %q, want %s %s", f.pointer(), f.code, f.reason, tt.pointer, tt.code)
			}
		})
	}

	for name, raw := range map[string]string{
		"depth 32":                   `{"userId":"u","traits":` + nested(31) + `}`,
		"1,000 members":              `{"userId":"u","traits":{` + many(997) + `"last":1}}`,
		"256 bytes of name, escaped": `{"userId":"u","traits":{"` + strings.Repeat(`\"`, 256) + `":1}}`,
	} {
		if _, f := cleanOne(t, raw, "page", testShared); f != nil {
			t.Errorf("%s is rejected: %s %s", name, f.pointer(), f.reason)
		}
	}
}

func TestEventTime(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, original, sentAt, want string }{
		{"nothing is said", "", "", "2026-03-01T12:00:00.500Z"},
		{"without sentAt the clock is right", `"2026-02-01T00:00:00Z"`, "", "2026-02-01T00:00:00.000Z"},
		{"a clock that is right", `"2026-03-01T11:00:00Z"`, `"2026-03-01T12:00:00.5Z"`, "2026-03-01T11:00:00.000Z"},
		{"a clock ahead by an hour", `"2026-03-01T12:30:00Z"`, `"2026-03-01T13:00:00.5Z"`, "2026-03-01T11:30:00.000Z"},
		{"a clock behind by a day", `"2026-02-28T11:00:00.5Z"`, `"2026-02-28T12:00:00.5Z"`, "2026-03-01T11:00:00.500Z"},
		{"a clock off by more than two days says nothing", `"2026-02-20T11:00:00Z"`, `"2026-02-20T12:00:00Z"`, "2026-03-01T12:00:00.500Z"},
		{"history sent today", `"2019-06-01T10:00:00+02:00"`, `"2026-03-01T12:00:00.5Z"`, "2019-06-01T08:00:00.000Z"},
		{"not before 2000", `"1969-12-31T23:59:59Z"`, "", "2000-01-01T00:00:00.000Z"},
		{"not far ahead", `"2999-01-01T00:00:00Z"`, "", "2026-03-01T12:05:00.500Z"},
		{"happened after it was sent", `"2026-03-01T12:10:00Z"`, `"2026-03-01T12:00:00Z"`, "2026-03-01T12:05:00.500Z"},
		{"not a time", `"now"`, `"2026-03-01T12:00:00Z"`, "2026-03-01T12:00:00.500Z"},
		{"sentAt is not a time", `"2026-02-01T00:00:00Z"`, `"infinity"`, "2026-02-01T00:00:00.000Z"},
		{"milliseconds", `1772362800123`, "", "2026-03-01T11:00:00.123Z"},
		{"seconds", `1772362800`, "", "2026-03-01T11:00:00.000Z"},
		{"seconds with a fraction in a string", `"1772362800.25"`, "", "2026-03-01T11:00:00.250Z"},
		{"microseconds", `1772362800123456`, "", "2026-03-01T11:00:00.123Z"},
		{"a number out of range", `1e300`, "", "2026-03-01T12:00:00.500Z"},
		{"without a colon in the zone", `"2026-03-01T12:00:00.123+0100"`, "", "2026-03-01T11:00:00.123Z"},
		{"without a zone", `"2026-03-01T11:00:00"`, "", "2026-03-01T11:00:00.000Z"},
		{"with a space", `"2026-03-01 11:00:00.5"`, "", "2026-03-01T11:00:00.500Z"},
		{"a day", `"2026-02-28"`, "", "2026-02-28T00:00:00.000Z"},
		{"to the nanosecond", `"2026-03-01T11:00:00.123999999Z"`, "", "2026-03-01T11:00:00.123Z"},
		{"year 0 and year 9999", `"0000-01-01T00:00:00Z"`, `"9999-12-31T23:59:59Z"`, "2026-03-01T12:00:00.500Z"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var original, sentAt []byte
			if tt.original != "" {
				original = []byte(tt.original)
			}
			if tt.sentAt != "" {
				sentAt = []byte(tt.sentAt)
			}
			sent, ok := parseTime(sentAt)
			got := string(appendTime(nil, eventTime(testReceived, original, sent, ok)))
			if got != `"`+tt.want+`"` {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

func TestAMadeMessageID(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 1000 {
		e, f := cleanOne(t, `{"userId":"u","messageId":""}`, "page", testShared)
		if f != nil || !e.generated || len(e.messageID) != 36 || e.messageID[14] != '7' || seen[e.messageID] {
			t.Fatalf("%+v, %v", e, f)
		}
		seen[e.messageID] = true
		if !bytes.Contains(e.body, []byte(`"messageId":"`+e.messageID+`"`)) {
			t.Fatalf("%s is not in %s", e.messageID, e.body)
		}
	}
}

// odd is JSON, and more or less JSON, that parsers stumble over.
var odd = []string{
	`{"userId":"u"}`, `{"userId":"u","traits":{"n":1e308,"m":-1e-308,"z":-0,"f":0.1e1}}`,
	`{"userId":"u","traits":{"\u0000":"\ud800\udc00","\ud83d":"\ude00","":"","\uffff":"\ufffe"}}`,
	`{"userId":"u","x":"` + "\xed\xa0\x80\xf4\x90\x80\x80\xc0\x80" + `"}`, `{"userId":"\u0000\u0000","anonymousId":"a"}`,
	`{"userId":"u","x":[[[[]]],{},"",null,true,false,0]}`, "\t{ \"userId\" :\r\n 1e5 , \"x\" : [ 1 , 2 ] }\n",
	`{"userId":"u","timestamp":"2026-13-45","sentAt":1e17,"originalTimestamp":-1}`, `{"userId":"u","":1,"a\\\"b":{"\\":"\\"}}`,
	`{"userId":"u","__proto__":{"constructor":1},"\u202e":"\u202e"}`, `{"userId":"u","x":1` + strings.Repeat("0", 39) + `}`,
	`{"userId":"u","context":{"ip":null,"consent":{}},"properties":{"a":0.000001e-290}}`,
	`{"userId":"` + strings.Repeat("ü", 127) + `"}`, `{"userId":"u","a":1,"a":2}`, `{"userId":1.0e+1}`, `{"messageId":"\n","userId":"'; DROP TABLE x;--"}`,
}

func FuzzClean(f *testing.F) {
	for _, raw := range odd {
		f.Add([]byte(raw))
	}
	of := testShared
	of.context, of.ip, of.sentAt = []byte(`{"library":{"name":"x"}}`), []byte(`"::1"`), []byte(`"2026-03-01T12:00:00Z"`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = parseEnvelope(raw, true, 10)
		if _, err := parseEnvelope(raw, false, 0); err != nil {
			return
		}
		e, flt := new(eventCleaner).clean(raw, "identify", &of)
		if flt != nil {
			if flt.code == "" || flt.reason == "" || !strings.HasPrefix(flt.pointer("batch", "0"), "#/batch/0") {
				t.Errorf("%+v", flt)
			}
			return
		}
		mustBeStrict(t, e.body)

		// What has been cleaned is clean: again changes the times (they are corrected again) and leaves out what was noted,
		// and from then on nothing.
		of := shared{received: testReceived, maxBytes: 1 << 30}
		second, flt := new(eventCleaner).clean(e.body, "identify", &of)
		if flt != nil || second.who != e.who || second.messageID != e.messageID || second.generated {
			t.Fatalf("%s: %+v %+v", e.body, second, flt)
		}
		third, flt := new(eventCleaner).clean(second.body, "identify", &of)
		if flt != nil || !bytes.Equal(second.body, third.body) {
			t.Errorf("%+v, cleaned again\n%s\nbecomes\n%s", flt, second.body, third.body)
		}
	})
}

// mustBeStrict checks that body is JSON by the strictest rules: unique names, UTF-8.
func mustBeStrict(t *testing.T, body []byte) {
	t.Helper()
	dec := jsontext.NewDecoder(bytes.NewReader(body))
	if _, err := dec.ReadValue(); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		t.Fatalf("something behind %s", body)
	}
	if !json.Valid(body) || bytes.Contains(body, []byte{0}) {
		t.Fatalf("not valid: %s", body)
	}
}

func TestWhatIsKeptPostgresTakes(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	kept := 0
	for _, raw := range odd {
		if _, err := parseEnvelope([]byte(raw), false, 0); err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		e, f := new(eventCleaner).clean([]byte(raw), "identify", &testShared)
		if f != nil {
			continue
		}
		mustBeStrict(t, e.body)
		var length int
		if err := pool.QueryRow(t.Context(), `SELECT length(($1::text)::jsonb::text)`, string(e.body)).Scan(&length); err != nil {
			t.Errorf("%s: %v", e.body, err)
		}
		kept++
	}
	if kept < len(odd)-2 {
		t.Errorf("only %d of %d were kept", kept, len(odd))
	}
}

func BenchmarkClean(b *testing.B) {
	raw := []byte(sampleEvent)
	ec := new(eventCleaner)
	of := testShared
	of.ip = []byte(`"192.0.2.1"`)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseEnvelope(raw, false, 0); err != nil {
			b.Fatal(err)
		}
		if _, f := ec.clean(raw, "track", &of); f != nil {
			b.Fatal(f.reason)
		}
	}
}

const sampleEvent = `{"type":"track","event":"Product Added","userId":"user-48211","anonymousId":"0b1f6f0e-6a1c-4b6e-9d6b-2f8f2f5d7c11",` +
	`"messageId":"node-next-1772366400123-0b1f6f0e-6a1c-4b6e-9d6b-2f8f2f5d7c11","timestamp":"2026-03-01T12:00:00.123Z","sentAt":"2026-03-01T12:00:00.456Z",` +
	`"context":{"library":{"name":"analytics-node","version":"3.1.0"},"locale":"de-DE","userAgent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",` +
	`"page":{"url":"https://shop.example/p/41","path":"/p/41","title":"Lamp","referrer":""}},` +
	`"properties":{"product_id":"41","sku":"L-41","name":"Lamp","price":19.99,"quantity":2,"currency":"EUR","tags":["a","b"]},"integrations":{"All":true}}`

package collector

import (
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles"
)

// FuzzTranslators holds what every translator makes of anything to what the cleaner demands: JSON, which it accepts or rejects
// with a reason.
func FuzzTranslators(f *testing.F) {
	for i, dialect := range fuzzed {
		files, err := filepath.Glob(filepath.Join("testdata", "dialects", dialect, "*.http"))
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			head, body, _ := strings.Cut(string(text), "\n\n")
			line, _, _ := strings.Cut(head, "\n")
			_, query, _ := strings.Cut(line, "?")
			f.Add(i, body)
			f.Add(i, query)
		}
		f.Add(i, `[{"properties":{"$set":null,"$unset":{"a":1},"$groups":{"a":{}}}}]`)
		f.Add(i, `{"payload":{"data":{"a":1},"timestamp":{}},"type":"event","data":[{"e":"ue","ue_pr":"{}","co":"[]"}]}`)
		f.Add(i, `rec=1&idgoal=0&ec_items=[[null,{},[],"x","1e999"],[]]&uadata={&cvar=1`)
	}
	g := Grant{SourceID: 1, Secret: profiles.Secret("secret")}
	f.Fuzz(func(t *testing.T, dialect int, text string) {
		if dialect < 0 || dialect >= len(fuzzed) {
			return
		}
		ec := new(eventCleaner)
		for _, c := range fuzzedCalls(fuzzed[dialect], text) {
			drafts, fault := c.translate(g)
			if fault != nil {
				if fault.code == "" || fault.reason == "" {
					t.Fatalf("a fault without a reason: %+v", fault)
				}
				continue
			}
			if len(drafts) == 0 {
				t.Fatal("neither events nor a fault")
			}
			for _, d := range drafts {
				raw := d.raw()
				if !jsontext.Value(raw).IsValid(jsonOptions...) {
					t.Fatalf("no JSON: %s", raw)
				}
				if e, fault := ec.clean(raw, "", &testShared); fault == nil && e.messageID == "" {
					t.Fatalf("no messageId: %s", raw)
				}
			}
		}
	})
}

var fuzzed = []string{DialectPostHog, DialectSnowplow, DialectUmami, DialectPlausible, DialectMatomo, DialectGoatCounter}

// fuzzedCalls returns what a text is as a body or a query of a dialect.
func fuzzedCalls(dialect, text string) (calls []call) {
	h := &Handler{}
	r := httptest.NewRequest("POST", "/", nil)
	from := &client{ip: "192.0.2.1", userAgent: "browser", hints: object{}}
	query, _ := url.ParseQuery(text)
	value, err := parseBody([]byte(text))
	switch dialect {
	case DialectPostHog:
		in, err := posthogParse([]byte(text), testReceived, from, query)
		if err != nil {
			return nil
		}
		return in.calls
	case DialectSnowplow:
		list := []jsontext.Value{queryObject(query).raw()}
		if payload, _ := parseObject(value); err == nil && payload != nil {
			more, _ := elements(payload["data"])
			list = append(list, more...)
		}
		return h.snowplowParcel(r, testReceived, list).calls
	case DialectUmami:
		if err != nil {
			return nil
		}
		t := umamiTranslator{received: testReceived, from: from}
		return []call{t.call(value, 0)}
	case DialectPlausible:
		e, f := parseObject(value)
		if f != nil {
			return nil
		}
		return []call{{translate: func(g Grant) ([]*draft, *fault) { return plausibleEvent(g, e, value, from, testReceived) }}}
	case DialectMatomo:
		t := matomoTranslator{received: testReceived, from: from}
		return []call{t.call(query, 0)}
	case DialectGoatCounter:
		t := goatcounterTranslator{received: testReceived, from: from}
		hit := queryObject(query)
		if e, _ := parseObject(value); e != nil {
			hit = e
		}
		return []call{{translate: func(g Grant) ([]*draft, *fault) { return t.event(g, hit, 0) }}}
	}
	return nil
}

func TestVisitorsAreOfADay(t *testing.T) {
	t.Parallel()
	g := Grant{SourceID: 1, Secret: profiles.Secret("secret")}
	day := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	id := visitor(g, day, "site", "192.0.2.1", "browser")
	if again := visitor(g, day.Add(24*time.Hour-1), "site", "192.0.2.1", "browser"); again != id {
		t.Errorf("within a day %s became %s", id, again)
	}
	others := map[string]string{
		"on the next day":      visitor(g, day.Add(24*time.Hour), "site", "192.0.2.1", "browser"),
		"on another site":      visitor(g, day, "sit", "e192.0.2.1", "browser"),
		"from another address": visitor(g, day, "site", "192.0.2.2", "browser"),
		"in another browser":   visitor(g, day, "site", "192.0.2.1", "browser 2"),
		"at another source":    visitor(Grant{SourceID: 2, Secret: g.Secret}, day, "site", "192.0.2.1", "browser"),
		"in another workspace": visitor(Grant{SourceID: 1, Secret: profiles.Secret("other")}, day, "site", "192.0.2.1", "browser"),
	}
	for where, other := range others {
		if other == id {
			t.Errorf("%s the visitor is the same", where)
		}
	}
	if zone := visitor(g, day.In(time.FixedZone("", -3600)), "site", "192.0.2.1", "browser"); zone != id {
		t.Errorf("in another zone %s became %s", id, zone)
	}
}

// Requests of Matomo's without a random number are the same event if the action's second, its visitor and its place in the
// list are.
func TestMatomoTellsActionsApart(t *testing.T) {
	t.Parallel()
	g := Grant{SourceID: 1, Secret: profiles.Secret("secret")}
	messageID := func(ip, query string, after time.Duration, index int) string {
		t.Helper()
		values, err := url.ParseQuery("rec=1&url=https://shop.example/&" + query)
		if err != nil {
			t.Fatal(err)
		}
		m := matomoTranslator{received: testReceived.Add(after), from: &client{ip: ip, userAgent: "browser", hints: object{}}}
		drafts, f := m.call(values, index).translate(g)
		if f != nil || len(drafts) != 1 {
			t.Fatal(drafts, f)
		}
		return drafts[0].messageID
	}
	const here, there = "192.0.2.1", "192.0.2.2"
	for name, test := range map[string]struct {
		one, other string
		same       bool
	}{
		"sent twice in a second":           {messageID(here, "", 0, 0), messageID(here, "", 0, 0), true},
		"of two visitors":                  {messageID(here, "", 0, 0), messageID(there, "", 0, 0), false},
		"of two visitors who say when":     {messageID(here, "cdt=1772366400", 0, 0), messageID(there, "cdt=1772366400", 0, 0), false},
		"of two users":                     {messageID(here, "uid=ada", 0, 0), messageID(here, "uid=bob", 0, 0), false},
		"alike in one list":                {messageID(here, "", 0, 0), messageID(here, "", 0, 1), false},
		"a second apart":                   {messageID(here, "", 0, 0), messageID(here, "", time.Second, 0), false},
		"kept, and sent again":             {messageID(here, "cdo=60", 0, 0), messageID(here, "cdo=69", 9*time.Second, 0), true},
		"dated, and sent again":            {messageID(here, "cdt=1772366400", 0, 0), messageID(here, "cdt=1772366400", 48*time.Hour, 0), true},
		"numbered, and sent again":         {messageID(here, "r=384625", 0, 0), messageID(there, "r=384625&cdo=9", 9*time.Second, 3), true},
		"numbered differently in a second": {messageID(here, "r=384625", 0, 0), messageID(here, "r=384626", 0, 0), false},
	} {
		if (test.one == test.other) != test.same {
			t.Errorf("%s: %s and %s", name, test.one, test.other)
		}
	}
}

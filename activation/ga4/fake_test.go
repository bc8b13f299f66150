package ga4_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mubatch/mubatch/activation/partnertest"
)

// The fake notes every mistake that it is there to find, and answers as if nothing were wrong. Its validation server tells.
func TestTheFakeFindsMistakes(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(time.Millisecond)
	order, _ := partnertest.Order(7, now)
	params := `{"transaction_id":"o-7","value":7.10,"currency":"EUR"}`
	sent := func(at time.Time, name, params string) string {
		return fmt.Sprintf(`{"client_id":"1.2","user_id":"cust-7","consent":{"ad_user_data":"GRANTED","ad_personalization":"GRANTED"},`+
			`"events":[{"name":%q,"timestamp_micros":%d,"params":%s}]}`, name, at.UnixMicro(), params)
	}
	good := sent(now, "purchase", params)
	edit := func(from, to string) string {
		if !strings.Contains(good, from) {
			t.Fatalf("there is no %s to edit", from)
		}
		return strings.Replace(good, from, to, 1)
	}
	with := func(more string) string { return edit(`{"transaction_id"`, `{`+more+`,"transaction_id"`) }
	many := func(n int, form string) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf(form, i))
		}
		return strings.Join(list, ",")
	}
	one := good[strings.Index(good, `[{"name"`)+1 : len(good)-2]
	for name, tt := range map[string]struct {
		method, path, query, kind, body string
		code                            string // of the validation server
		violation                       string
		counted                         bool
	}{
		"nothing":                      {body: good, counted: true},
		"another path":                 {path: "/g/collect", body: good, violation: "nothing that there is"},
		"another method":               {method: http.MethodPut, body: good, violation: "only POST"},
		"another content type":         {kind: "text/plain", body: good, violation: "only POST of application/json"},
		"a wrong secret":               {query: "api_secret=x&measurement_id=G-1A2BCD345E", body: good, violation: "the query"},
		"more in the query":            {query: "api_secret=s3cr3t-of-the-stream-Zz9&measurement_id=G-1A2BCD345E&v=2", body: good, violation: "the query"},
		"no JSON":                      {body: "x", code: "VALUE_INVALID", violation: "cannot be read"},
		"an unknown member":            {body: edit(`{"client_id"`, `{"x":1,"client_id"`), code: "VALUE_INVALID", violation: "cannot be read"},
		"a member twice":               {body: edit(`{"client_id"`, `{"user_id":"cust-7","client_id"`), code: "VALUE_INVALID", violation: "cannot be read"},
		"a time as a text":             {body: edit(`"timestamp_micros":`, `"timestamp_micros":"1","x":`), code: "VALUE_INVALID", violation: "cannot be read"},
		"no client":                    {body: edit(`"client_id":"1.2",`, ``), code: "VALUE_REQUIRED", violation: "client_id"},
		"a client that is a cookie":    {body: edit(`"1.2"`, `"GA1.1.1.2"`), code: "VALUE_REQUIRED", violation: "client_id"},
		"an app's visitor":             {body: edit(`{"client_id"`, `{"app_instance_id":"a","client_id"`), code: "VALUE_INVALID", violation: "for apps"},
		"a user too long":              {body: edit(`"cust-7"`, `"`+strings.Repeat("x", 257)+`"`), code: "VALUE_INVALID", violation: "256 characters"},
		"another user":                 {body: edit(`"cust-7"`, `"cust-8"`), violation: "the user", counted: true},
		"no consent":                   {body: edit(`"consent":{"ad_user_data":"GRANTED","ad_personalization":"GRANTED"},`, ``), violation: "never decided", counted: true},
		"consent in lower case":        {body: edit(`"GRANTED"`, `"granted"`), code: "VALUE_INVALID", violation: "GRANTED or DENIED"},
		"consent that was not given":   {body: edit(`"GRANTED"`, `"DENIED"`), violation: "never decided", counted: true},
		"a property nobody asked for":  {body: edit(`"events"`, `"user_properties":{"tier":{"value":"pro"}},"events"`), violation: "tier is not that", counted: true},
		"a property reserved":          {body: edit(`"events"`, `"user_properties":{"first_open_time":{"value":"1"}},"events"`), code: "NAME_RESERVED", violation: "reserved"},
		"a property's name too long":   {body: edit(`"events"`, `"user_properties":{"`+strings.Repeat("x", 25)+`":{"value":"1"}},"events"`), code: "NAME_INVALID", violation: "no name"},
		"a property's value too long":  {body: edit(`"events"`, `"user_properties":{"tier":{"value":"`+strings.Repeat("x", 37)+`"}},"events"`), code: "VALUE_INVALID", violation: "36 characters"},
		"too many properties":          {body: edit(`"events"`, `"user_properties":{`+many(26, `"p%d":{"value":"1"}`)+`},"events"`), code: "EXCEEDED_MAX_ENTITIES", violation: "at most 25"},
		"no events":                    {body: edit(one, ``), code: "EXCEEDED_MAX_ENTITIES", violation: "1 to 25"},
		"too many events":              {body: edit(one, strings.TrimSuffix(strings.Repeat(one+",", 26), ",")), code: "EXCEEDED_MAX_ENTITIES", violation: "1 to 25"},
		"a reserved event":             {body: sent(now, "session_start", `{}`), code: "NAME_RESERVED", violation: "reserved"},
		"a reserved prefix":            {body: sent(now, "google_x", `{}`), code: "NAME_RESERVED", violation: "reserved"},
		"an event of apps":             {body: sent(now, "screen_view", `{}`), code: "NAME_RESERVED", violation: "for apps"},
		"a name with a space":          {body: sent(now, "a b", `{}`), code: "NAME_INVALID", violation: "is called"},
		"an old event":                 {body: sent(now.Add(-73*time.Hour), "purchase", params), code: "VALUE_OUT_OF_BOUNDS", violation: "ago"},
		"an event of tomorrow":         {body: sent(now.Add(time.Hour), "purchase", params), code: "VALUE_OUT_OF_BOUNDS", violation: "ago"},
		"another time":                 {body: sent(now.Add(-time.Hour), "purchase", params), violation: "another time", counted: true},
		"no time":                      {body: edit(fmt.Sprintf(`"timestamp_micros":%d,`, now.UnixMicro()), ``), violation: "when it arrives"},
		"too many parameters":          {body: with(many(26, `"p%d":1`)), code: "EXCEEDED_MAX_ENTITIES", violation: "at most 25"},
		"a reserved parameter":         {body: with(`"firebase_conversion":1`), code: "NAME_RESERVED", violation: "reserved"},
		"a parameter with a dot":       {body: with(`"a.b":1`), code: "NAME_INVALID", violation: "no name"},
		"a text too long":              {body: with(`"a":"` + strings.Repeat("x", 101) + `"`), code: "VALUE_INVALID", violation: "1 to 100"},
		"an object":                    {body: with(`"a":{}`), code: "VALUE_INVALID", violation: "a text"},
		"a truth":                      {body: with(`"a":true`), code: "VALUE_INVALID", violation: "a text"},
		"a value as a text":            {body: edit(`7.10`, `"7.10"`), code: "VALUE_INVALID", violation: "must be a number"},
		"another value":                {body: edit(`7.10`, `7.1`), violation: "another value", counted: true},
		"no currency":                  {body: edit(`,"currency":"EUR"`, ``), code: "VALUE_REQUIRED", violation: "beside value"},
		"a currency that is none":      {body: edit(`"EUR"`, `"Euro"`), code: "VALUE_INVALID", violation: "ISO 4217"},
		"a number for an order":        {body: edit(`"o-7"`, `7`), code: "VALUE_INVALID", violation: "must be a text"},
		"no order":                     {body: edit(`"transaction_id":"o-7",`, ``), code: "VALUE_REQUIRED", violation: "transaction_id"},
		"an unknown order":             {body: edit(`"o-7"`, `"o-8"`), violation: "never heard of"},
		"items that are none":          {body: with(`"items":{}`), code: "VALUE_INVALID", violation: "1 to 200"},
		"an item that is nothing":      {body: with(`"items":[{"price":1}]`), code: "VALUE_REQUIRED", violation: "neither item_id"},
		"too many items":               {body: with(`"items":[` + many(201, `{"item_id":"%d"}`) + `]`), code: "VALUE_INVALID", violation: "1 to 200"},
		"half an item":                 {body: with(`"items":[{"item_id":"a","quantity":0.5}]`), code: "VALUE_INVALID", violation: "whole number"},
		"an address":                   {body: with(`"a":"ada@example.com"`), violation: "e-mail address", counted: true},
		"a phone number":               {body: with(`"a":"+49 171 1234567"`), violation: "a phone number", counted: true},
		"somebody's own number":        {body: with(`"a":"16505550007"`), violation: "somebody's phone number", counted: true},
		"too large":                    {body: edit(`{"client_id"`, strings.Repeat(" ", 130_000)+`{"client_id"`), code: "EXCEEDED_MAX_ENTITIES", violation: "130 kB"},
		"strictness that costs events": {body: edit(`"events"`, `"validation_behavior":"ENFORCE_RECOMMENDATIONS","events"`), violation: "validation_behavior", counted: true},
	} {
		fake := partnertest.NewGA4(t, partnertest.GA4Options{})
		fake.Expect(order)
		ask := func(path, body string) (string, int) {
			method, query, kind := http.MethodPost, fake.Query(), "application/json"
			if tt.method != "" {
				method = tt.method
			}
			if tt.query != "" {
				query = tt.query
			}
			if tt.kind != "" {
				kind = tt.kind
			}
			return partnertest.Ask(t, method, fake.URL()+path+"?"+query, body, map[string]string{"Content-Type": kind})
		}
		path, want := "/mp/collect", 204
		if tt.path != "" {
			path, want = tt.path, 404
		}
		if _, status := ask(path, tt.body); status != want {
			t.Errorf("%s: the answer is %d", name, status)
		}
		violations := fake.Violations()
		if found := slices.ContainsFunc(violations, func(v string) bool { return strings.Contains(v, tt.violation) }); found != (len(violations) > 0) || found == (tt.violation == "") {
			t.Errorf("%s: noted is %q, want %q", name, violations, tt.violation)
		}
		if counted := len(fake.Received()) > 0; counted != tt.counted {
			t.Errorf("%s: counted %v, want %v", name, counted, tt.counted)
		}
		if path != "/mp/collect" {
			continue
		}
		answer, status := ask("/debug/mp/collect", tt.body)
		if found := strings.Contains(answer, `"validationCode":"`); status != 200 || found != (tt.code != "") || !strings.Contains(answer, tt.code) {
			t.Errorf("%s: the validation server says %s, want %q", name, answer, tt.code)
		}
	}
}

func TestTheFakeForgetsWithoutAWord(t *testing.T) {
	t.Parallel()
	fake := partnertest.NewGA4(t, partnertest.GA4Options{})
	at := time.Now().UTC().Truncate(time.Millisecond)
	order, _ := partnertest.Order(7, at)
	login, _ := partnertest.Order(15, at.Add(-time.Minute)) // of the same person
	fake.Expect(order, login)
	send := func(at time.Time, name, params string) {
		body := fmt.Sprintf(`{"client_id":"1.2","user_id":"cust-7","consent":{"ad_user_data":"GRANTED","ad_personalization":"GRANTED"},`+
			`"events":[{"name":%q,"timestamp_micros":%d,"params":%s}]}`, name, at.UnixMicro(), params)
		if _, status := partnertest.Ask(t, http.MethodPost, fake.URL()+"/mp/collect?"+fake.Query(), body, map[string]string{"Content-Type": "application/json"}); status != 204 {
			t.Errorf("the answer is %d", status)
		}
	}
	purchase := func() { send(at, "purchase", `{"transaction_id":"o-7","value":7.10,"currency":"EUR"}`) }
	fake.Revoke()
	purchase()
	fake.Heal()
	fake.RefuseEvent("order-7", true)
	purchase()
	if got := fake.Received(); len(got) > 0 {
		t.Errorf("it counts %v", got)
	}
	fake.RefuseEvent("order-7", false)
	for range 2 {
		purchase()
		send(at.Add(-time.Minute), "login", `{}`)
	}
	if got, want := fake.Received(), []string{"order-15", "order-15", "order-7"}; !slices.Equal(got, want) {
		t.Errorf("it counts %v, want %v: a purchase once, anything else twice", got, want)
	}
	partnertest.NoViolations(t, fake)
}

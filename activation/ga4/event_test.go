package ga4_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/ga4"
	"github.com/mubatch/mubatch/activation/partnertest"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 123456789, time.UTC)

func target(config string) activation.Target {
	return activation.Target{Settings: activation.Settings{
		Config: jsontext.Value(config), Secrets: jsontext.Value(`{"api_secret":"0123456789abcdefgh"}`),
	}}
}

const web, app = `{"measurement_id":"G-1A2BCD345E"}`, `{"firebase_app_id":"1:2:ios:3"}`

// happened returns an event with fields in place of a mapping's.
func happened(as string, fields map[string]string) activation.Event {
	e := activation.Event{
		MessageID: "m-1", Type: "track", Timestamp: noon, ReceivedAt: noon, AnonymousID: "visitor-1", As: as,
		Fields: map[string]jsontext.Value{},
	}
	for name, v := range fields {
		e.Fields[name] = jsontext.Value(v)
	}
	return e
}

func encode(t *testing.T, config string, events ...activation.Event) (string, int) {
	t.Helper()
	p := ga4.New(nil, activation.Outbound{})
	for _, e := range events {
		if reason := p.RefuseEvent(target(config), e); reason != "" {
			t.Fatalf("%s is refused: %s", e.MessageID, reason)
		}
	}
	body, took, err := p.EncodeEvents(target(config), activation.EventBatch{Events: events, At: noon.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return string(body), took
}

func TestBodies(t *testing.T) {
	t.Parallel()
	order, _ := partnertest.Order(7, noon)
	order.Context.Raw = jsontext.Value(`{"_ga":"GA1.1.123.456","_ga_1A2BCD345E":"GS2.1.s1785600000$o1$g0","page":{}}`)
	order.As, order.Fields = "purchase", map[string]jsontext.Value{
		"transaction_id": jsontext.Value(`"o-7"`), "value": jsontext.Value(`"7.10"`), "currency": jsontext.Value(`"eur"`),
		"items":         jsontext.Value(`[{"product_id":1,"name":"Engine","price":7.10,"quantity":"2","position":1.5,"size":"XL"},{"colour":"red"}]`),
		"page_location": jsontext.Value(`"https://shop.example/thanks?gclid=g-7&mail=ada%40example.com#ada"`), "page_title": jsontext.Value(`"Thanks"`),
		"engagement_time_msec": jsontext.Value("1"), "note": jsontext.Value(`"call +49 171 1234567"`), "gift": jsontext.Value(`true`),
	}
	const orderParams = `"params":{"currency":"EUR","engagement_time_msec":1,"gift":"true",` +
		`"items":[{"item_id":"1","item_name":"Engine","price":7.10,"quantity":2}],` +
		`"page_location":"https://shop.example/thanks?gclid=g-7","page_title":"Thanks","session_id":"1785600000","transaction_id":"o-7","value":7.10`
	cart := happened("add_to_cart", map[string]string{"items": `{"sku":"s-1","price":5}`, "value": "5"})
	screen := happened("screen_view", map[string]string{"screen_name": `"Home"`, "app_instance_id": `"0123456789ABCDEF0123456789abcdef"`})
	for name, tt := range map[string]struct {
		config string
		event  activation.Event
		want   string
	}{
		"a purchase": {
			web, order,
			`{"client_id":"123.456","user_id":"cust-7","consent":{"ad_user_data":"GRANTED","ad_personalization":"GRANTED"},` +
				`"events":[{"name":"purchase","timestamp_micros":1795348800123000,` + orderParams + `}}]}`,
		},
		"a purchase with everything": {
			`{"measurement_id":"G-1A2BCD345E","user_properties":{"tier":"plan","x":"nothing","m":"nickname"},"user_agent":true,"message_id_parameter":"event_id"}`,
			func() activation.Event {
				e := order
				e.Context.UserAgent = "Mozilla/5.0"
				e.Person.Traits = map[string]jsontext.Value{"plan": jsontext.Value(`"pro"`), "nickname": jsontext.Value(`"ada@example.com"`)}
				return e
			}(),
			`{"client_id":"123.456","user_id":"cust-7","user_agent":"Mozilla/5.0","user_properties":{"tier":{"value":"pro"}},` +
				`"consent":{"ad_user_data":"GRANTED","ad_personalization":"GRANTED"},` +
				`"events":[{"name":"purchase","timestamp_micros":1795348800123000,` +
				strings.Replace(orderParams, `"gift"`, `"event_id":"order-7","gift"`, 1) + `}}]}`,
		},
		"a visitor without a cookie, and a value without a currency": {
			web, cart,
			`{"client_id":"549513803.596958942","events":[{"name":"add_to_cart","timestamp_micros":1795348800123456,` +
				`"params":{"items":[{"item_id":"s-1","price":5}]}}]}`,
		},
		"a default currency": {
			`{"measurement_id":"G-1A2BCD345E","default_currency":"USD"}`, cart,
			`{"client_id":"549513803.596958942","events":[{"name":"add_to_cart","timestamp_micros":1795348800123456,` +
				`"params":{"currency":"USD","items":[{"item_id":"s-1","price":5}],"value":5}}]}`,
		},
		"an app": {
			app, screen,
			`{"app_instance_id":"0123456789abcdef0123456789abcdef","events":[{"name":"screen_view","timestamp_micros":1795348800123456,` +
				`"params":{"screen_name":"Home"}}]}`,
		},
	} {
		got, _ := encode(t, tt.config, tt.event)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestVisitors(t *testing.T) {
	t.Parallel()
	base := happened("login", nil)
	type visitor struct {
		Client string `json:"client_id"`
		App    string `json:"app_instance_id"`
		User   string `json:"user_id"`
	}
	of := func(config, context string, change func(*activation.Event)) (v visitor) {
		e := base
		e.Context.Raw = jsontext.Value(context)
		if change != nil {
			change(&e)
		}
		body, _ := encode(t, config, e)
		if err := json.Unmarshal([]byte(body), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	derived := of(web, `{}`, nil).Client
	for context, want := range map[string]string{
		`{"_ga":"GA1.1.123.456"}`:                     "123.456",
		`{"_ga":"GA1.2-3.123.456"}`:                   "123.456",
		`{"_ga":"1.2.123.456"}`:                       "123.456",
		`{"cookies":{"_ga":"GA1.1.123.456"}}`:         "123.456",
		`{"clickIds":{"client_id":"123.456"}}`:        "123.456",
		`{"client_id":"123.456"}`:                     "123.456",
		`{"_ga":"GA1.1.amp-x"}`:                       derived,
		`{"_ga":"GA1.1.0.456"}`:                       derived,
		`{"client_id":"my-oauth-client"}`:             derived,
		`{"page":{"url":"https://x/?client_id=1.2"}}`: derived, // of somebody's log in
		`[]`: derived,
	} {
		if got := of(web, context, nil).Client; got != want {
			t.Errorf("%s: client_id is %s, want %s", context, got, want)
		}
	}
	named := func(name, v string) func(*activation.Event) {
		return func(e *activation.Event) { e.Fields = map[string]jsontext.Value{name: jsontext.Value(v)} }
	}
	if got := of(web, `{"_ga":"GA1.1.1.2"}`, named("client_id", `"3.4"`)).Client; got != "3.4" {
		t.Errorf("the mapping's client id: %s", got)
	}
	person := func(n int) func(*activation.Event) {
		return func(e *activation.Event) { e.AnonymousID, e.Person = "", partnertest.Nameless(n) }
	}
	one, again, two := of(web, `{}`, person(1)).Client, of(web, `{}`, person(1)).Client, of(web, `{}`, person(2)).Client
	if one != again || one == two || one == derived {
		t.Errorf("client ids of profiles: %s, %s, %s", one, again, two)
	}
	address := of(web, `{}`, func(e *activation.Event) { e.AnonymousID, e.Person.ID = "ada@example.com", partnertest.Profile(1) }).Client
	if address != one {
		t.Errorf("a client id is made of an address: %s", address)
	}

	const instance = "0123456789abcdef0123456789abcdef"
	for _, context := range []string{`{"app_instance_id":"` + instance + `"}`, `{"app":{"appInstanceId":"` + instance + `"}}`, `{"device":{"app_instance_id":"` + instance + `"}}`} {
		if got := of(app, context, nil); got.App != instance || got.Client != "" {
			t.Errorf("%s: %+v", context, got)
		}
	}

	for name, tt := range map[string]struct {
		config, id string
		person     activation.Person
		want       string
	}{
		"the event's":             {web, "cust-1", partnertest.Somebody(2), "cust-1"},
		"the person's":            {web, "", partnertest.Somebody(2), "cust-2"},
		"nobody's":                {web, "", partnertest.Nameless(2), ""},
		"not wanted":              {`{"measurement_id":"G-1A2BCD345E","no_user_id":true}`, "cust-1", partnertest.Somebody(2), ""},
		"an address":              {web, "ada@example.com", partnertest.Nameless(2), ""},
		"a phone number":          {web, "+491711234567", partnertest.Nameless(2), ""},
		"the person's own number": {web, "16505550002", partnertest.Known(2, 2), "cust-2"},
		"too long":                {web, strings.Repeat("ö", 257), partnertest.Nameless(2), ""},
		"a number":                {web, "40061234567890", partnertest.Nameless(2), "40061234567890"},
	} {
		got := of(tt.config, `{}`, func(e *activation.Event) { e.UserID, e.Person = tt.id, tt.person }).User
		if got != tt.want {
			t.Errorf("%s: user_id is %q, want %q", name, got, tt.want)
		}
	}
}

func TestConsentGoesAlong(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		decided map[string]bool
		want    string
	}{
		{nil, ``},
		{map[string]bool{"analytics_storage": true}, ``},
		{map[string]bool{"ad_user_data": true}, `"consent":{"ad_user_data":"GRANTED"},`},
		{map[string]bool{"ad_user_data": false, "ad_personalization": true}, `"consent":{"ad_user_data":"DENIED","ad_personalization":"GRANTED"},`},
		{map[string]bool{"gpc": true, "ad_personalization": true}, `"consent":{"ad_user_data":"DENIED","ad_personalization":"DENIED"},`},
		{map[string]bool{"gpc": false}, ``},
	} {
		e := happened("login", nil)
		e.Person.Consent = tt.decided
		got, _ := encode(t, web, e)
		want := `{"client_id":"549513803.596958942",` + tt.want + `"events":[{"name":"login","timestamp_micros":1795348800123456,"params":{}}]}`
		if got != want {
			t.Errorf("%v: %s", tt.decided, got)
		}
	}
}

func TestEventsThatCannotBeSent(t *testing.T) {
	t.Parallel()
	p := ga4.New(nil, activation.Outbound{})
	many := map[string]string{}
	for n := range 26 {
		many[fmt.Sprintf("p%d", n)] = "1"
	}
	large := `[` + strings.Repeat(`{"item_id":"`+strings.Repeat("x", 100)+`","item_name":"`+strings.Repeat("ö", 100)+
		`","item_brand":"`+strings.Repeat("ö", 100)+`","item_variant":"`+strings.Repeat("ö", 100)+`"},`, 199) + `{}]`
	for name, tt := range map[string]struct {
		config string
		event  activation.Event
		words  string // "" if it can be sent
	}{
		"nothing":                            {web, happened("login", nil), ""},
		"a reserved name":                    {web, happened("session_start", nil), "the event's name at Google Analytics is a name that Google keeps to itself"},
		"a reserved prefix":                  {web, happened("ga_login", nil), "Google keeps to itself"},
		"a name with spaces":                 {web, happened("Log In", nil), "must be letters, digits and underscores"},
		"a name that is too long":            {web, happened(strings.Repeat("x", 41), nil), "at most 40 characters"},
		"an event of apps on the web":        {web, happened("screen_view", nil), "for events of apps only"},
		"an app's event without an instance": {app, happened("screen_view", nil), "app_instance_id"},
		"a purchase without an order":        {web, happened("purchase", nil), "a purchase needs a transaction_id"},
		"a purchase of an address":           {web, happened("purchase", map[string]string{"transaction_id": `"ada@example.com"`}), "needs a transaction_id"},
		"a purchase with too long an id":     {web, happened("purchase", map[string]string{"transaction_id": `"` + strings.Repeat("x", 101) + `"`}), "needs a transaction_id"},
		"a long id in the paid edition":      {`{"measurement_id":"G-1A2BCD345E","analytics_360":true}`, happened("purchase", map[string]string{"transaction_id": `"` + strings.Repeat("x", 101) + `"`}), ""},
		"an order number in groups":          {web, happened("purchase", map[string]string{"transaction_id": `"1234-5678-9012"`}), ""},
		"a purchase without a currency":      {web, happened("purchase", map[string]string{"transaction_id": `"o"`, "value": "1"}), "needs a currency"},
		"a refund with a wrong currency":     {web, happened("refund", map[string]string{"transaction_id": `"o"`, "value": "1", "currency": `"Euro"`}), "a refund with a value needs a currency"},
		"too many parameters":                {web, happened("login", many), "more than 25 parameters"},
		"too large":                          {web, happened("view_cart", map[string]string{"items": large}), "130 kB"},
	} {
		got := p.RefuseEvent(target(tt.config), tt.event)
		if tt.words == "" && got != "" || !strings.Contains(got, tt.words) {
			t.Errorf("%s: %q, want %q", name, got, tt.words)
		}
	}
}

func TestParameters(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ö", 2000)
	for _, tt := range []struct{ name, value, want string }{
		{"method", `"Google"`, `"Google"`},
		{"method", `" Google "`, `"Google"`},
		{"method", `""`, ``},
		{"method", `7`, `"7"`},
		{"score", `7.50`, `7.50`},
		{"score", `1e999`, ``},
		{"score", `false`, `"false"`},
		{"score", `{"a":1}`, ``},
		{"score", `[1]`, ``},
		{"tax", `"1.5"`, `1.5`},
		{"tax", `"1,5"`, ``},
		{"tax", `"NaN"`, ``},
		{"text", `"` + long + `"`, `"` + long[:200] + `"`},
		{"page_title", `"` + long + `"`, `"` + long[:600] + `"`},
		{"group_id", `"` + long + `"`, ``},
		{"text", `"Ada <ada@example.com>"`, ``},
		{"text", `"ada%40example.com"`, ``},
		{"text", `"ada%2540example.com"`, ``},
		{"text", `"+49 (0)171 1234567"`, ``},
		{"text", `"(650) 555-1212"`, ``},
		{"text", `"650 555 1212"`, ``},
		{"text", `"6505550001"`, ``}, // the person's own
		{"text", `6505550001`, ``},
		{"tax", `6505550001`, ``},
		{"text", `"650.555.1212"`, ``},
		{"text", `"6505559999"`, `"6505559999"`},
		{"score", `12.3456789`, `12.3456789`},
		{"tax", `"19.99000000"`, `19.99000000`},
		{"text", `"2026-11-22"`, `"2026-11-22"`},
		{"item_id", `"1234-5678-9012"`, `"1234-5678-9012"`},
		{"session_id", `1785600000`, `1785600000`},
		{"session_id", `"1785600000"`, `"1785600000"`},
		{"session_id", `"5f3a2b18-9c4d"`, ``},
		{"page_location", `"https://x.example/a?b=c&d=%2B491711234567&e=f#g"`, `"https://x.example/a?b=c&e=f"`},
		{"page_location", `"https://x.example/a?phone=0171&b=c&Email=ada"`, `"https://x.example/a?b=c"`},
		{"page_location", `"https://x.example/a?b=%zz"`, `"https://x.example/a"`},
		{"page_location", `"https://x.example/a?b=c&d=e#f"`, `"https://x.example/a?b=c&d=e#f"`},
		{"page_location", `"https://x.example/a b"`, `"https://x.example/a b"`},
		{"page_location", `"https://x.example/ada@example.com"`, ``},
		{"page_location", `"://"`, ``},
		{"page_referrer", `"https://ada:x@x.example/"`, `"https://x.example/"`},
		{"firebase_conversion", `1`, ``},
		{"_x", `1`, ``},
		{"items", `"x"`, ``},
		{"items", `[{"price":1}]`, ``},
		{"items", `{"sku":"a","product_id":"b"}`, `[{"item_id":"b"}]`},
		{"items", `{"item_id":"a","name":"call +49 171 1234567","quantity":0.5}`, `[{"item_id":"a"}]`},
	} {
		e := happened("login", map[string]string{tt.name: tt.value})
		e.Person = partnertest.Somebody(1)
		body, _ := encode(t, web, e)
		var sent struct {
			Events []struct {
				Params map[string]jsontext.Value `json:"params"`
			} `json:"events"`
		}
		if err := json.Unmarshal([]byte(body), &sent); err != nil {
			t.Fatal(err)
		}
		if got := string(sent.Events[0].Params[tt.name]); got != tt.want {
			t.Errorf("%s %.60s: sent as %q, want %q", tt.name, tt.value, got, tt.want)
		}
	}
	for cookie, want := range map[string]string{
		"GS1.1.1673933110.12.0.1673933110.60.0.0": `"1673933110"`, "GS2.1.o1$g0$s1747132561$t1747132655": `"1747132561"`,
		"GS3.1.x": "", "GS1": "",
	} {
		e := happened("login", nil)
		e.Context.Raw = jsontext.Value(`{"cookies":{"_ga_1A2BCD345E":"` + cookie + `"}}`)
		body, _ := encode(t, web, e)
		if strings.Contains(body, `"session_id"`) != (want != "") || !strings.Contains(body, want) {
			t.Errorf("%s: %s", cookie, body)
		}
	}
}

func TestAMessageIsOfOneVisitor(t *testing.T) {
	t.Parallel()
	list := func(n int, change func(i int, e *activation.Event)) (events []activation.Event) {
		for i := range n {
			e := happened("login", nil)
			e.MessageID = fmt.Sprint(i)
			change(i, &e)
			events = append(events, e)
		}
		return events
	}
	fat := jsontext.Value(`[` + strings.TrimSuffix(strings.Repeat(`{"item_name":"`+strings.Repeat("x", 100)+`"},`, 200), ",") + `]`)
	for name, tt := range map[string]struct {
		events []activation.Event
		took   int
	}{
		"the same visitor": {list(5, func(int, *activation.Event) {}), 5},
		"more than 25":     {list(30, func(int, *activation.Event) {}), 25},
		"another device":   {list(5, func(i int, e *activation.Event) { e.AnonymousID = fmt.Sprint("visitor-", i/3) }), 3},
		"another user":     {list(5, func(i int, e *activation.Event) { e.UserID = fmt.Sprint("cust-", i/2) }), 2},
		"another decision": {list(5, func(i int, e *activation.Event) { e.Person.Consent = map[string]bool{"ad_user_data": i < 4} }), 4},
		"there and back":   {list(5, func(i int, e *activation.Event) { e.AnonymousID = fmt.Sprint("visitor-", i%2) }), 1},
		"more than 130 kB": {list(25, func(_ int, e *activation.Event) { e.Fields["items"] = fat }), 5},
		"different page URLs": {list(3, func(i int, e *activation.Event) {
			e.Fields["page_location"] = jsontext.Value(fmt.Sprintf(`"https://x/%d"`, i))
		}), 3},
	} {
		body, took := encode(t, web, tt.events...)
		again, _ := encode(t, web, tt.events...)
		if took != tt.took || len(body) >= 130_000 || body != again {
			t.Errorf("%s: took %d in %d bytes, want %d", name, took, len(body), tt.took)
		}
	}
	early := happened("login", nil)
	early.Timestamp = noon.Add(2 * time.Hour) // of a device whose clock is ahead
	if body, _ := encode(t, web, early); !strings.Contains(body, fmt.Sprint(noon.Add(time.Hour).UnixMicro())) {
		t.Errorf("an event of the future: %s", body)
	}
}

func TestMappings(t *testing.T) {
	t.Parallel()
	p := ga4.New(nil, activation.Outbound{})
	for name, want := range map[string]string{
		"Order Completed": "purchase", "Order Refunded": "refund", "Product Added": "add_to_cart", "Product Removed": "remove_from_cart",
		"Product Viewed": "view_item", "Product List Viewed": "view_item_list", "Product Clicked": "select_item", "Cart Viewed": "view_cart",
		"Checkout Started": "begin_checkout", "Payment Info Entered": "add_payment_info", "Products Searched": "search",
		"Promotion Viewed": "view_promotion", "Product Added to Wishlist": "add_to_wishlist", "Signed Up": "sign_up", "Signed In": "login",
		"Lead Generated": "generate_lead", "Page Viewed": "page_view", "Trial Started": "trial_started", "plan-changed": "plan_changed",
		"Screen Viewed": "screen_viewed", "Session Start": "", "購入": "", "": "", strings.Repeat("x", 41): "",
	} {
		m, ok := p.MapEvent(target(web), name)
		if ok != (want != "") || ok && m.Name != want {
			t.Errorf("%q is %q, %v, want %q", name, m.Name, ok, want)
		}
		if !ok {
			continue
		}
		if err := p.CheckMapping(target(web), m); err != nil {
			t.Errorf("%q: its own mapping is wrong: %v", name, err)
		}
	}
	if m, ok := p.MapEvent(target(app), "Screen Viewed"); !ok || m.Name != "screen_view" {
		t.Errorf("a screen of an app is %q, %v", m.Name, ok)
	}
	fields := map[string]activation.Field{
		"currency": {Value: jsontext.Value("978")}, "value": {Value: jsontext.Value(`"9"`)},
		"_a": activation.At("event"), "a/b": activation.At("event"), "null": {Value: jsontext.Value("null")},
		"hash": {Cell: jsontext.Value(`"$.properties.email | sha256"`)}, "sum": {Cell: jsontext.Value(`"= body.properties.a + 1"`)},
		"mail": activation.At("properties.email"), "who": activation.At("context.traits.name"), "what": activation.At("properties.name"),
	}
	for n := range 25 {
		fields[fmt.Sprintf("p%d", n)] = activation.At("event")
	}
	want := []activation.FieldError{
		{Pointer: "/name", Detail: "is a name that Google keeps to itself"},
		{Pointer: "/fields/_a", Detail: "is a name that Google keeps to itself"},
		{Pointer: "/fields/a~1b", Detail: "must be letters, digits and underscores, and begin with a letter"},
		{Pointer: "/fields/currency/value", Detail: "must be a string, such as EUR"},
		{Pointer: "/fields/hash/cell", Detail: "must not name personal data, which Google Analytics forbids"},
		{Pointer: "/fields/mail/path", Detail: "must not lead to personal data, which Google Analytics forbids"},
		{Pointer: "/fields/value/value", Detail: "must be a number"},
		{Pointer: "/fields/who/path", Detail: "must not lead to personal data, which Google Analytics forbids"},
		{Pointer: "/fields", Detail: "must be at most 25"},
	}
	err := p.CheckMapping(target(web), activation.Mapping{Name: "error", Fields: fields})
	if diff := cmp.Diff(want, partnertest.FieldErrors(err)); diff != "" {
		t.Error(diff)
	}
}

// However strange what events say is, whatever is not refused passes the validation server, holds nothing personal, and is of
// one visitor.
func TestWhatIsSentIsAsItShouldBe(t *testing.T) {
	t.Parallel()
	p, fake := newGA4(t, partnertest.GA4Options{})
	to := activation.Target{Settings: fake.Settings()}
	fake.Seed(partnertest.Somebody(1), partnertest.Somebody(2))
	names := []string{
		"items", "value", "currency", "transaction_id", "session_id", "page_location", "page_title", "coupon", "quantity", "score", "_x", "client_id",
	}
	const own = "the person's own number"
	values := []string{
		`1`, `-0.5`, `1e400`, `"7"`, `"ada@example.com"`, `"+49 171 1234567"`, own, `"(650)555-1212"`, `true`, `null`, `""`, `" "`, `"EUR"`, `"1.2"`,
		`"https://x.example/?m=ada%40example.com"`, `{}`, `[]`, `{"sku":"a","price":"x","quantity":1.5,"name":"+1 650 555 0001"}`, `[{"name":"n"},7]`,
		`"` + strings.Repeat("ö", 1200) + `"`, `"1785600000"`, `"a\u0000b"`,
	}
	events := []string{"purchase", "login", "view_item", "session_start", "a b"}
	rapid.Check(t, func(t *rapid.T) {
		var all []activation.Event
		for range rapid.IntRange(1, 30).Draw(t, "events") {
			n := rapid.IntRange(1, 2).Draw(t, "person")
			e := happened(rapid.SampledFrom(events).Draw(t, "name"), nil)
			e.Timestamp, e.AnonymousID, e.Person = time.Now(), fmt.Sprint("visitor-", n), partnertest.Somebody(n)
			e.UserID = rapid.SampledFrom([]string{"", "u-" + fmt.Sprint(n), "ada@example.com", "+16505550001"}).Draw(t, "user")
			for range rapid.IntRange(0, 6).Draw(t, "fields") {
				v := rapid.SampledFrom(values).Draw(t, "value")
				if v == own {
					v = fmt.Sprintf(`"650555000%d"`, n)
				}
				e.Fields[rapid.SampledFrom(names).Draw(t, "field")] = jsontext.Value(v)
			}
			if p.RefuseEvent(to, e) == "" {
				all = append(all, e)
			}
		}
		for len(all) > 0 {
			body, took, err := p.EncodeEvents(to, activation.EventBatch{Events: all, At: time.Now()})
			if err != nil || took < 1 {
				t.Fatalf("took %d of %d events: %v", took, len(all), err)
			}
			for _, e := range all[:took] {
				if e.Person.ID != all[0].Person.ID {
					t.Fatalf("events of two people are in one message")
				}
			}
			if o := p.Validate(t.Context(), to, activation.Message{Body: body}); o.Class != activation.OK {
				t.Fatalf("%s: %+v", body, o)
			}
			if v := fake.Violations(); len(v) > 0 {
				t.Fatalf("%s: %s", body, v)
			}
			all = all[took:]
		}
	})
}

package meta_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/meta"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// dataset returns the target of a destination that has some more in its config than it needs.
func dataset(t testing.TB, more string) activation.Target {
	t.Helper()
	s, err := meta.NewConversions(nil, private).Prepare(activation.Settings{
		Config: jsontext.Value(`{"dataset_id":"1"` + more + `}`), Secrets: jsontext.Value(`{"access_token":"EAAB"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	return activation.Target{ID: 3, Workspace: 1, Key: "events", Settings: s}
}

func TestPrepareConversions(t *testing.T) {
	t.Parallel()
	p := meta.NewConversions(nil, activation.Outbound{})
	const token = `{"access_token":" EAAB\n"}`
	got, err := p.Prepare(activation.Settings{Config: jsontext.Value(`{"dataset_id":" 42 "}`), Secrets: jsontext.Value(token)})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"dataset_id":"42","api_url":"https://graph.facebook.com","api_version":"v25.0","token_in":"query",` +
		`"action_source":"website","batch":200,"concurrency":4,"limited_data_use":"off"}`
	if diff := cmp.Diff(want, string(got.Config)); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	if string(got.Secrets) != `{"access_token":"EAAB"}` {
		t.Errorf("secrets %s", got.Secrets)
	}
	for name, tt := range map[string]struct {
		config, secrets string
		want            []string
	}{
		"nothing":             {``, ``, []string{"/config/dataset_id", "/secrets/access_token"}},
		"a dataset's name":    {`{"dataset_id":"shop"}`, token, []string{"/config/dataset_id"}},
		"a dataset of spaces": {`{"dataset_id":" "}`, token, []string{"/config/dataset_id"}},
		"a token of spaces":   {`{"dataset_id":"1"}`, `{"access_token":" "}`, []string{"/secrets/access_token"}},
		"plain HTTP":          {`{"dataset_id":"1","api_url":"http://graph.example"}`, token, []string{"/config/api_url"}},
		"a version in words":  {`{"dataset_id":"1","api_version":"25"}`, token, []string{"/config/api_version"}},
		"an unknown place":    {`{"dataset_id":"1","token_in":"cookie"}`, token, []string{"/config/token_in"}},
		"an unknown source":   {`{"dataset_id":"1","action_source":"moon"}`, token, []string{"/config/action_source"}},
		"chats of Meta's own": {`{"dataset_id":"1","action_source":"business_messaging"}`, token, []string{"/config/action_source"}},
		"too many events":     {`{"dataset_id":"1","batch":1001}`, token, []string{"/config/batch"}},
		"no concurrency":      {`{"dataset_id":"1","concurrency":-1}`, token, []string{"/config/concurrency"}},
		"a country in words":  {`{"dataset_id":"1","default_country":"Germany"}`, token, []string{"/config/default_country"}},
		"an unknown limit":    {`{"dataset_id":"1","limited_data_use":"some"}`, token, []string{"/config/limited_data_use"}},
		"a long code":         {`{"dataset_id":"1","test_event_code":"` + strings.Repeat("x", 101) + `"}`, token, []string{"/config/test_event_code"}},
		"a proof of nothing":  {`{"dataset_id":"1","proof_time":true}`, token, []string{"/secrets/app_secret"}},
		"an unknown member":   {`{"dataset_id":"1","pixel_id":"2"}`, token, []string{"/config/pixel_id"}},
		"a number for a text": {`{"dataset_id":1}`, token, []string{"/config/dataset_id"}},
	} {
		_, err := p.Prepare(activation.Settings{Config: jsontext.Value(tt.config), Secrets: jsontext.Value(tt.secrets)})
		if diff := cmp.Diff(tt.want, pointers(err)); diff != "" {
			t.Errorf("%s: fields (-want +got):\n%s", name, diff)
		}
	}
	masked := p.Mask(jsontext.Value(`{"access_token":"EAAB-secret-token-abcd","app_secret":"short"}`))
	if diff := cmp.Diff(map[string]string{"access_token": "…abcd", "app_secret": "…"}, masked); diff != "" {
		t.Errorf("Mask (-want +got):\n%s", diff)
	}
	if masked := p.Mask(nil); masked != nil {
		t.Errorf("Mask of nothing = %v", masked)
	}
}

func TestLimitsOfConversions(t *testing.T) {
	t.Parallel()
	p := meta.NewConversions(nil, private)
	want := activation.Limits{
		Events: 700, Concurrency: 2, Timeout: 30 * time.Second, Linger: time.Second, Account: "meta_conversions:1",
		MaxAge: 7*24*time.Hour - 30*time.Second,
	}
	if diff := cmp.Diff(want, p.Limits(dataset(t, `,"batch":700,"concurrency":2`))); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
	if got := p.Limits(dataset(t, `,"action_source":"physical_store"`)).MaxAge; got != 62*24*time.Hour-30*time.Second {
		t.Errorf("events of shops may be %v old", got)
	}
	if gate := p.Gate(); gate.Allows(nil) || !gate.Allows(partnertest.Somebody(1).Consent) {
		t.Errorf("gate %+v", gate)
	}
}

// at is when the events of these tests happened, and sent when they are sent.
var (
	at   = time.Date(2026, 8, 1, 10, 0, 0, 5_000_000, time.UTC)
	sent = at.Add(time.Minute)
)

// occurred returns an event as the standard mapping, and more, has it.
func occurred(t testing.TB, name, properties, more string, who activation.Person) activation.Event {
	t.Helper()
	e := activation.Event{
		MessageID: "ord-1001", Type: "track", Name: name, Timestamp: at, Person: who, Properties: jsontext.Value(properties),
		Fields: map[string]jsontext.Value{}, Context: activation.EventContext{
			IP: "203.0.113.7", UserAgent: "Mozilla/5.0", Page: activation.EventPage{URL: "https://shop.example/thanks?a=1#top"},
		},
	}
	m, ok := meta.NewConversions(nil, private).MapEvent(activation.Target{}, name)
	if !ok {
		t.Fatalf("there is no standard event for %s", name)
	}
	e.As = m.Name
	var members map[string]jsontext.Value
	if err := json.Unmarshal([]byte(properties), &members); err != nil {
		t.Fatal(err)
	}
	for field, from := range m.Fields {
		v := jsontext.Value(properties)
		if _, member, ok := strings.Cut(from.Path, "."); ok {
			v = members[member]
		}
		if v != nil {
			e.Fields[field] = v
		}
	}
	if more != "" {
		if err := json.Unmarshal([]byte(more), &e.Fields); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

const (
	john   = "62a14e44f765419d10fea99367361a727c12365e2520f32218d505ed9aa0f62f"
	number = "e323ec626319ca94ee8bff2e4c87cf613be6ea19919ed1364124e16807ab3176"
)

func TestEncodeEvents(t *testing.T) {
	t.Parallel()
	p := meta.NewConversions(nil, private)
	const browser = `"client_ip_address":"203.0.113.7","client_user_agent":"Mozilla/5.0"`
	const place = `"action_source":"website","event_source_url":"https://shop.example/thanks?a=1"`
	mail := person(t, `{"email":"John_Smith@gmail.com"}`)
	californian := person(t, `{"email":"John_Smith@gmail.com","country":"US","state":"California"}`)
	head := func(name string) string {
		return `{"data":[{"event_name":"` + name + `","event_time":1785578400,"event_id":"ord-1001",` + place + `,`
	}
	user := `"user_data":{"em":["` + john + `"],` + browser + `}`
	of := func(who activation.Person, name, properties, more string) func(testing.TB) activation.Event {
		return func(t testing.TB) activation.Event { return occurred(t, name, properties, more, who) }
	}
	in := func(make func(testing.TB) activation.Event, change func(*activation.Event)) func(testing.TB) activation.Event {
		return func(t testing.TB) activation.Event {
			e := make(t)
			change(&e)
			return e
		}
	}
	page := of(mail, "Page Viewed", `{}`, "")
	yes := true
	for _, tt := range []struct {
		name, config string
		event        func(testing.TB) activation.Event
		want         string
	}{
		{
			name: "an order, and all that is known of a person",
			event: in(of(activation.Person{
				Identifiers: []activation.Identifier{
					{Kind: "email", Value: "John_Smith@gmail.com"},
					{Kind: "email", Value: "second@example.com"},
					{Kind: "phone", Value: "+1 (650) 555-1212"},
					{Kind: "user_id", Value: "cust-42"},
					{Kind: "user_id", Value: "null"},
				},
				Traits: person(t, `{"first_name":"Valéry","last_name":"Doe","gender":"Male","birthday":"1990-01-15",`+
					`"address":{"city":"San Francisco","state":"California","zip":"37221-3312","country":"US"}}`).Traits,
			}, "Order Completed", `{"order_id":1001,"total":49.90,"currency":"eur","products":[`+
				`{"product_id":"a","price":20.00,"quantity":2},{"sku":7,"price":"9.90"},{"name":"no id"}]}`, ""),
				func(e *activation.Event) {
					e.Context.ClickIDs = map[string]string{"fbc": "fb.1.1554763741205.AbCd", "fbp": "fb.1.1558571054389.1098115397", "fbclid": "x"}
				}),
			want: head("Purchase") + `"user_data":{"em":["` + john + `","` + partnertest.Hex("second@example.com") + `"],` +
				`"ph":["` + number + `"],` +
				`"fn":["08e1996b5dd49e62a4b4c010d44e4345592a863bb9f8e3976219bac29417149c"],` +
				`"ln":["799ef92a11af918e3fb741df42934f3b568ed2d93ac1df74f1b8d41a27932a6f"],` +
				`"db":["` + partnertest.Hex("19900115") + `"],` +
				`"ge":["62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a"],` +
				`"ct":["1a6bd4d9d79dc0a79b53795c70d3349fa9e38968a3fbefbfe8783efb1d2b6aac"],` +
				`"st":["` + partnertest.Hex("ca") + `"],"zp":["` + partnertest.Hex("37221") + `"],` +
				`"country":["79adb2a2fce5c6ba215fe5f27f532d4e7edbac4b6a5e09e1ef3a08084a904621"],` +
				`"external_id":["` + partnertest.Hex("cust-42") + `"],` + browser +
				`,"fbc":"fb.1.1554763741205.AbCd","fbp":"fb.1.1558571054389.1098115397"},` +
				`"custom_data":{"content_ids":["a","7"],"content_type":"product","contents":[{"id":"a","quantity":2,"item_price":20.00},` +
				`{"id":"7","quantity":1,"item_price":9.90}],"currency":"EUR","num_items":3,"order_id":"1001","value":49.90}}]}`,
		},
		{name: "a page", event: page, want: head("PageView") + user + `}]}`},
		{
			name: "keys only, a code for test events, and an address of the landing page", config: `,"keys_only":true,"test_event_code":"TEST123"`,
			event: in(of(californian, "Page Viewed", `{}`, ""), func(e *activation.Event) {
				e.Context.ClickIDs = map[string]string{"fbclid": "IwAR0-x_Y", "fbp": "1098115397"}
			}),
			want: head("PageView") + `"user_data":{"em":["` + john + `"],` + browser + `,"fbc":"fb.1.1785578400005.IwAR0-x_Y"}}],"test_event_code":"TEST123"}`,
		},
		{
			name:  "a product",
			event: of(mail, "Product Viewed", `{"product_id":"a","name":"Engine","category":"Toys","price":"12.50","currency":"USD","quantity":3}`, ""),
			want: head("ViewContent") + user + `,"custom_data":{"content_category":"Toys","content_ids":["a"],"content_name":"Engine",` +
				`"content_type":"product","contents":[{"id":"a","quantity":3,"item_price":12.50}],"currency":"USD","value":12.50}}]}`,
		},
		{
			name:  "a product without a price, as of a group",
			event: of(mail, "Product Added", `{"sku":"a","currency":"USD"}`, `{"content_type":"product_group"}`),
			want: head("AddToCart") + user + `,"custom_data":{"content_ids":["a"],"content_type":"product_group",` +
				`"contents":[{"id":"a","quantity":1}]}}]}`,
		},
		{
			name:  "what a subscription makes up, and without what holds an address",
			event: of(mail, "Products Searched", `{"query":"ada@example.com"}`, `{"season":["spring"],"note":"ada\u0040example.com","rank":1.0,"action_source":"chat","num_items":4,"content_ids":"b"}`),
			want: strings.Replace(head("Search"), "website", "chat", 1) + user +
				`,"custom_data":{"content_ids":["b"],"content_type":"product","num_items":4,"rank":1.0,"season":["spring"]}}]}`,
		},
		{
			name: "addresses in a URL, a private IP address, and a clock that is ahead",
			event: in(page, func(e *activation.Event) {
				e.Context.Page.URL, e.Context.IP = "https://me:secret@shop.example/u/ada@example.com?m=ada%40example.com", "10.1.2.3"
				e.Timestamp = at.Add(time.Hour)
			}),
			want: `{"data":[{"event_name":"PageView","event_time":1785578460,"event_id":"ord-1001","action_source":"website",` +
				`"event_source_url":"https://shop.example/","user_data":{"em":["` + john + `"],"client_user_agent":"Mozilla/5.0"}}]}`,
		},
		{
			name: "a Californian, within limits", config: `,"limited_data_use":"us_states","keys_only":true`,
			event: of(californian, "Page Viewed", `{}`, ""),
			want:  head("PageView") + user + `,"data_processing_options":["LDU"],"data_processing_options_country":1,"data_processing_options_state":1000}]}`,
		},
		{
			name: "anybody, within limits", config: `,"limited_data_use":"all"`, event: page,
			want: head("PageView") + user + `,"data_processing_options":["LDU"],"data_processing_options_country":0,"data_processing_options_state":0}]}`,
		},
		{
			name: "somebody who has opted out of sale and sharing, where the gate asks for less",
			event: in(page, func(e *activation.Event) {
				e.Person.Consent = map[string]bool{activation.GPC: true}
			}),
			want: head("PageView") + `"opt_out":true,` + user +
				`,"data_processing_options":["LDU"],"data_processing_options_country":0,"data_processing_options_state":0}]}`,
		},
		{
			name: "somebody who has refused personalised advertising, where the gate asks for less",
			event: in(page, func(e *activation.Event) {
				e.Person.Consent = map[string]bool{activation.AdPersonalization: false}
			}),
			want: head("PageView") + `"opt_out":true,` + user + `}]}`,
		},
		{
			name: "an app", config: `,"action_source":"app"`,
			event: in(page, func(e *activation.Event) {
				e.Context = activation.EventContext{
					Locale: "en-US", Timezone: "Europe/Berlin", OS: activation.EventOS{Name: "iOS", Version: "17.1"},
					App: activation.EventApp{Namespace: "com.shop", Version: "2.1"},
					Device: activation.EventDevice{
						AdvertisingID: "5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25", AdTracking: &yes, Model: "iPhone15,2",
					},
				}
			}),
			want: `{"data":[{"event_name":"PageView","event_time":1785578400,"event_id":"ord-1001","action_source":"app",` +
				`"user_data":{"em":["` + john + `"],"madid":"5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25"},` +
				`"app_data":{"advertiser_tracking_enabled":1,"application_tracking_enabled":1,"extinfo":["i2","com.shop","2.1","2.1",` +
				`"17.1","iPhone15,2","en_US","","","","","","","","","Europe/Berlin"]}}]}`,
		},
		{
			name: "an app that may not track", config: `,"action_source":"app"`,
			event: in(page, func(e *activation.Event) {
				no := false
				e.Person.Consent = map[string]bool{activation.AdPersonalization: false}
				e.Context = activation.EventContext{
					OS:     activation.EventOS{Version: "14"},
					Device: activation.EventDevice{Type: "android", AdvertisingID: "5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25", AdTracking: &no},
				}
			}),
			want: `{"data":[{"event_name":"PageView","event_time":1785578400,"event_id":"ord-1001","action_source":"app","opt_out":true,` +
				`"user_data":{"em":["` + john + `"]},` +
				`"app_data":{"advertiser_tracking_enabled":0,"application_tracking_enabled":0,"extinfo":["a2","","","",` +
				`"14","","","","","","","","","","",""]}}]}`,
		},
	} {
		to, e := dataset(t, tt.config), tt.event(t)
		if reason := p.RefuseEvent(to, e); reason != "" {
			t.Errorf("%s: refused: %s", tt.name, reason)
		}
		got, took, err := p.EncodeEvents(to, activation.EventBatch{Events: []activation.Event{e}, At: sent})
		if err != nil || took != 1 {
			t.Errorf("%s: took %d, %v", tt.name, took, err)
		}
		if diff := cmp.Diff(tt.want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	bad := activation.Target{Settings: activation.Settings{Config: jsontext.Value(`[]`)}}
	if _, _, err := p.EncodeEvents(bad, activation.EventBatch{Events: []activation.Event{page(t)}}); err == nil {
		t.Error("settings that cannot be read are none")
	}
	if reason := p.RefuseEvent(bad, page(t)); reason != "" {
		t.Errorf("settings that cannot be read are the event's fault: %s", reason)
	}
	if err := p.CheckMapping(bad, activation.Mapping{}); err == nil {
		t.Error("settings that cannot be read are none")
	}
}

// The people are those that every partner is tried with.
func TestUserData(t *testing.T) {
	t.Parallel()
	p := meta.NewConversions(nil, private)
	for _, tt := range []struct{ name, config, traits, want string }{
		{
			"an address and a number of the United States", "", `{"email":"john_smith@gmail.com","phone":"(650)555-1212","country":"US"}`,
			`{"em":["` + john + `"],"ph":["` + number + `"],"country":["` + partnertest.Hex("us") + `"]}`,
		},
		{
			"an address in capitals", "", `{"email":"ALEXZ@example.com ","phone":"+1-800-555-0100"}`,
			`{"em":["509e933019bb285a134a9334b8bb679dff79d0ce023d529af4bd744d47b4fd8a"],"ph":["` + partnertest.Hex("18005550100") + `"]}`,
		},
		{
			"dots, plus signs and a trunk zero", "", `{"email":"  Jane.Doe+Promo@GMail.com ","phone":"+49 (0)171 1234567"}`,
			`{"em":["5f0d1df1fc49e30424381b57b1d4c73e067772a4267dde043a19b026935602c8"],"ph":["7e25b7844dc82e53d76a507d7f6130832c805e097c1e038793c36ce22c358132"]}`,
		},
		{
			"a number of the destination's country", `,"default_country":"DE"`, `{"phone":"0171 1234567"}`,
			`{"ph":["7e25b7844dc82e53d76a507d7f6130832c805e097c1e038793c36ce22c358132"]}`,
		},
		{
			"hashes", "", `{"email":"` + strings.ToUpper(john) + `","phone":"` + number + `","external_id":"` + strings.ToUpper(john) + `"}`,
			`{"em":["` + john + `"],"external_id":["` + john + `"]}`,
		},
		{
			"names with a city", "", `{"first_name":"정","last_name":"Doe","city":"San Francisco"}`,
			`{"fn":["8fa8cd9c440be61d0151429310034083132b35975c4bea67fdd74158eb51db14"],` +
				`"ln":["799ef92a11af918e3fb741df42934f3b568ed2d93ac1df74f1b8d41a27932a6f"],` +
				`"ct":["1a6bd4d9d79dc0a79b53795c70d3349fa9e38968a3fbefbfe8783efb1d2b6aac"]}`,
		},
		{"an id", "", `{"external_id":"cust-1"}`, `{"external_id":["` + partnertest.Hex("cust-1") + `"]}`},
		{
			"a number without a country", "", `{"phone":"0171 1234567"}`,
			"the phone number does not say its country, and the destination has no default country",
		},
		{"nothing", "", `{}`, "nothing is known by which"},
		{"words for nothing", "", `{"email":"null","phone":"undefined","country":"DE","external_id":"None"}`, "nothing is known by which"},
		{"the hash of nothing", "", `{"email":"` + partnertest.Hex("") + `"}`, "nothing is known by which"},
		{"a combination that Meta refuses", "", `{"first_name":"Ada","gender":"f"}`, "nothing is known by which"},
	} {
		to := dataset(t, tt.config+`,"action_source":"system_generated"`)
		e := activation.Event{MessageID: "m", As: "Lead", Timestamp: at, Person: person(t, tt.traits)}
		if reason := p.RefuseEvent(to, e); reason != "" {
			if !strings.HasPrefix(reason, tt.want) {
				t.Errorf("%s: %s, want %s", tt.name, reason, tt.want)
			}
			continue
		}
		body, _, err := p.EncodeEvents(to, activation.EventBatch{Events: []activation.Event{e}, At: sent})
		if err != nil {
			t.Fatal(err)
		}
		_, got, _ := strings.Cut(string(body), `"user_data":`)
		if diff := cmp.Diff(tt.want+"}]}", got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestRefuseEvent(t *testing.T) {
	t.Parallel()
	p := meta.NewConversions(nil, private)
	mail := person(t, `{"email":"john_smith@gmail.com"}`)
	for _, tt := range []struct {
		name, config, more string
		change             func(*activation.Event)
		want               string // is in the reason; "" for none
	}{
		{name: "nothing"},
		{name: "no user agent", change: func(e *activation.Event) { e.Context.UserAgent = " " }, want: "user agent"},
		{name: "no page", change: func(e *activation.Event) { e.Context.Page.URL = "" }, want: "URL"},
		{name: "a page of an app", change: func(e *activation.Event) { e.Context.Page.URL = "app://cart" }, want: "URL"},
		{name: "no page where none is needed", more: `{"action_source":"email"}`, change: func(e *activation.Event) { e.Context = activation.EventContext{} }},
		{name: "an unknown place", more: `{"action_source":"moon"}`, want: "must be one of"},
		{name: "a number for a place", more: `{"action_source":1}`, want: "must be one of"},
		{name: "another place than a shop", config: `,"action_source":"physical_store"`, more: `{"action_source":"website"}`, want: "physical_store"},
		{name: "a shop", config: `,"action_source":"physical_store"`, change: func(e *activation.Event) { e.Context = activation.EventContext{} }},
		{name: "an app on nobody knows what", more: `{"action_source":"app"}`, want: "Android or iOS"},
		{name: "an app on no version", more: `{"action_source":"app"}`, change: func(e *activation.Event) { e.Context.OS.Name = "Android" }, want: "version"},
		{name: "no total", more: `{"value":null}`, want: "a value"},
		{name: "a total in words", more: `{"value":"ten"}`, want: "a value"},
		{name: "a total with a comma", more: `{"value":"1,50"}`, want: "a value"},
		{name: "no currency", more: `{"currency":"euros"}`, want: "currency"},
		{name: "a browser alone", change: func(e *activation.Event) { e.Person = activation.Person{} }},
		{name: "a browser without an address", change: func(e *activation.Event) { e.Person, e.Context.IP = activation.Person{}, "127.0.0.1" }, want: "nothing is known"},
		{name: "a click alone", change: func(e *activation.Event) {
			e.Person, e.Context.IP, e.Context.ClickIDs = activation.Person{}, "", map[string]string{"fbclid": "x"}
		}},
		{name: "a click that is none", change: func(e *activation.Event) {
			e.Person, e.Context.IP, e.Context.ClickIDs = activation.Person{}, "", map[string]string{"fbclid": "x y", "fbp": "ada@example.com"}
		}, want: "nothing is known"},
	} {
		e := occurred(t, "Order Completed", `{"total":10,"currency":"EUR"}`, tt.more, mail)
		if tt.change != nil {
			tt.change(&e)
		}
		if got := p.RefuseEvent(dataset(t, tt.config), e); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestCheckMapping(t *testing.T) {
	t.Parallel()
	p := meta.NewConversions(nil, private)
	literal := func(v string) activation.Field { return activation.Field{Value: jsontext.Value(v)} }
	for _, tt := range []struct {
		config string
		fields map[string]activation.Field
		want   []string
	}{
		{fields: map[string]activation.Field{
			"value": activation.At("properties.revenue"), "my_field2": literal(`1`), "action_source": literal(`"app"`), "status": literal(`null`),
		}},
		{fields: map[string]activation.Field{"action_source": activation.At("context.channel")}},
		{
			fields: map[string]activation.Field{"event_id": literal(`"1"`), "user_data": literal(`{}`), "a/b": literal(`1`), "action_source": literal(`"moon"`)},
			want:   []string{"/fields/a~1b", "/fields/action_source", "/fields/event_id", "/fields/user_data"},
		},
		{
			config: `,"action_source":"physical_store"`, fields: map[string]activation.Field{"action_source": literal(`"website"`)},
			want: []string{"/fields/action_source"},
		},
	} {
		err := p.CheckMapping(dataset(t, tt.config), activation.Mapping{Name: "Lead", Fields: tt.fields})
		if diff := cmp.Diff(tt.want, pointers(err)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.fields, diff)
		}
	}
	if _, ok := p.MapEvent(activation.Target{}, "Coupon Denied"); ok {
		t.Error("there is a standard event for what is none")
	}
}

// Whoever did them, and however many: no event is said to be of two people, no message has too many, none is lost, and the
// same events give the same bytes.
func TestEventsAreThoseOfOnePersonEach(t *testing.T) {
	t.Parallel()
	p := meta.NewConversions(nil, private)
	rapid.Check(t, func(r *rapid.T) {
		batch := rapid.IntRange(1, 20).Draw(r, "batch")
		to := dataset(t, fmt.Sprintf(`,"batch":%d,"action_source":"other"`, batch))
		b := activation.EventBatch{At: sent}
		for n := range rapid.IntRange(1, 40).Draw(r, "events") {
			b.Events = append(b.Events, activation.Event{
				MessageID: fmt.Sprintf("m-%d", n), As: "Lead", Timestamp: at, Person: partnertest.Somebody(rapid.IntRange(0, 5).Draw(r, "who")),
				Fields: map[string]jsontext.Value{"b": jsontext.Value(`1`), "a": jsontext.Value(rapid.SampledFrom([]string{`0.10`, `"x"`, `{"z":1,"y":2}`}).Draw(r, "a"))},
			})
		}
		for len(b.Events) > 0 {
			got, took, err := p.EncodeEvents(to, b)
			again, _, _ := p.EncodeEvents(to, b)
			if err != nil || took != min(batch, len(b.Events)) || string(got) != string(again) {
				r.Fatalf("took %d of %d, %v", took, len(b.Events), err)
			}
			var body struct {
				Data []struct {
					ID   string `json:"event_id"`
					User struct {
						Emails []string `json:"em"`
						Phones []string `json:"ph"`
						Names  []string `json:"fn"`
						IDs    []string `json:"external_id"`
					} `json:"user_data"`
					Custom map[string]jsontext.Value `json:"custom_data"`
				} `json:"data"`
			}
			if err := json.Unmarshal(got, &body); err != nil || len(body.Data) != took {
				r.Fatalf("%d events, %v", len(body.Data), err)
			}
			for i, e := range body.Data {
				want := b.Events[i]
				who := want.Person
				is := fmt.Sprint(e.ID, e.User.Emails, e.User.Phones, e.User.Names, e.User.IDs, string(e.Custom["a"]))
				one := func(s string) []string { return []string{partnertest.Hex(s)} }
				should := fmt.Sprint(want.MessageID, one(who.Emails()[0]), one(who.Phones()[0][1:]), one(strings.ToLower(who.FirstName())),
					one(who.ExternalID()), string(want.Fields["a"]))
				if is != should {
					r.Fatalf("event %s, want %s", is, should)
				}
			}
			b.Events = b.Events[took:]
		}
	})
}

func FuzzCustomData(f *testing.F) {
	for _, s := range []string{`49.90`, `"1e3"`, `[{"product_id":"a","quantity":2}]`, `{"sku":7}`, `"\ud800"`, `null`, `[[]]`, `"eur"`, `true`} {
		f.Add(s)
	}
	p := meta.NewConversions(nil, private)
	to := dataset(f, `,"action_source":"other"`)
	f.Fuzz(func(t *testing.T, raw string) {
		v := jsontext.Value(raw)
		if !v.IsValid() {
			return
		}
		e := activation.Event{MessageID: "m", As: "Lead", Timestamp: at, Person: partnertest.Somebody(1), Fields: map[string]jsontext.Value{}}
		for _, name := range []string{"value", "currency", "content_ids", "contents", "num_items", "order_id", "more"} {
			e.Fields[name] = v
		}
		p.RefuseEvent(to, e)
		body, took, err := p.EncodeEvents(to, activation.EventBatch{Events: []activation.Event{e}, At: sent})
		if err != nil || took != 1 || !jsontext.Value(body).IsValid() {
			t.Errorf("%s became %s, %v", raw, body, err)
		}
		if strings.Contains(string(body), "@") {
			t.Errorf("%s became %s, which holds an address", raw, body)
		}
	})
}

// dialogue is a partner and what one destination of it says to a fake.
type dialogue struct {
	*meta.Conversions
	fake *partnertest.MetaConversions
	to   activation.Target
}

func newDialogue(t testing.TB, o partnertest.MetaConversionsOptions) dialogue {
	t.Helper()
	p, fake := newConversions(t, o)
	s, err := p.Prepare(fake.Settings())
	if err != nil {
		t.Fatal(err)
	}
	return dialogue{p, fake, activation.Target{ID: 3, Workspace: 1, Key: "events", Settings: s}}
}

// send sends a message about the first orders.
func (d dialogue) send(t testing.TB, orders int) activation.Outcome {
	t.Helper()
	b := activation.EventBatch{At: time.Now()}
	m := activation.Message{Attempt: 1}
	for n := range orders {
		e, _ := partnertest.Order(n, time.Now())
		d.fake.Seed(e.Person)
		d.fake.Expect(e)
		more := occurred(t, e.Name, string(e.Properties), "", e.Person)
		var c struct {
			Browser string `json:"fbp"`
		}
		if err := json.Unmarshal(e.Context.Raw, &e.Context); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(e.Context.Raw, &c); err != nil {
			t.Fatal(err)
		}
		_, click, _ := strings.Cut(e.Context.Page.URL, "fbclid=")
		e.As, e.Fields, e.Context.ClickIDs = more.As, more.Fields, map[string]string{"fbp": c.Browser, "fbclid": click}
		b.Events = append(b.Events, e)
		m.Events = append(m.Events, activation.EventRef{MessageID: e.MessageID})
	}
	body, took, err := d.EncodeEvents(d.to, b)
	if err != nil || took != orders {
		t.Fatalf("took %d, %v", took, err)
	}
	m.Body = body
	return d.Send(t.Context(), d.to, m)
}

func (d dialogue) clean(t testing.TB) {
	t.Helper()
	for _, v := range d.fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

func TestErrorsOfConversions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status, code, subcode int
		header                http.Header
		class                 activation.Class
		wait                  time.Duration
		reason                string
	}{
		{status: 400, code: 190, subcode: 460, class: activation.Reauth, reason: "password"},
		{status: 401, code: 190, subcode: 463, class: activation.Reauth, reason: "ended"},
		{status: 403, code: 200, class: activation.Config, reason: "access to the dataset"},
		{status: 400, code: 10, class: activation.Config, reason: "access to the dataset"},
		{status: 400, code: 100, subcode: 33, class: activation.Config, reason: "the dataset is not there"},
		{status: 400, code: 100, subcode: 2804003, class: activation.Split, reason: "older than Meta takes"},
		{status: 400, code: 100, class: activation.Split, reason: "does not accept"},
		{status: 400, code: 105, class: activation.Split, reason: "too long"},
		{status: 400, code: 2635, class: activation.Config, reason: "version"},
		{status: 403, code: 368, class: activation.Config, reason: "policies"},
		{status: 500, code: 1, class: activation.Retry},
		{status: 503, code: 2, class: activation.Retry},
		{status: 400, code: 4, subcode: 1504022, class: activation.RetryAfter, wait: 5 * time.Minute},
		{
			status: 403, code: 80004, class: activation.RetryAfter, wait: 19 * time.Minute, reason: "too many",
			header: http.Header{"X-Business-Use-Case-Usage": {`{"1":[{"type":"ads_management","call_count":100,"estimated_time_to_regain_access":19}]}`}},
		},
	} {
		d := newDialogue(t, partnertest.MetaConversionsOptions{})
		body := fmt.Sprintf(`{"error":{"message":"m","type":"OAuthException","code":%d,"error_subcode":%d}}`, tt.code, tt.subcode)
		d.fake.Script(partnertest.Fault{Status: tt.status, Body: body, Header: tt.header})
		o := d.send(t, 2)
		if o.Class != tt.class || o.Wait != tt.wait || !strings.Contains(o.Reason, tt.reason) || o.Reason == "" {
			t.Errorf("%d, code %d (%d): %+v, want %s, %v, %q", tt.status, tt.code, tt.subcode, o, tt.class, tt.wait, tt.reason)
		}
	}
}

func TestAnswersAboutEvents(t *testing.T) {
	t.Parallel()
	d := newDialogue(t, partnertest.MetaConversionsOptions{})
	d.fake.Use(80)
	if o := d.send(t, 3); o.Class != activation.OK || o.Usage != .8 {
		t.Errorf("%+v, want ok, and 80 %% used", o)
	}
	if o := d.send(t, 3); o.Class != activation.OK || len(d.fake.Received()) != 3 {
		t.Errorf("sent again: %+v, and %v counts", o, d.fake.Received())
	}
	d.fake.RefuseEvent("order-1", true)
	if o := d.send(t, 3); o.Class != activation.Split || o.Unknown {
		t.Errorf("one that is bad: %+v, want split", o)
	}
	d.fake.RefuseEvent("order-1", false)
	d.fake.Partly(true)
	if o := d.send(t, 3); o.Class != activation.Split || !o.Unknown {
		t.Errorf("one that was not taken: %+v, want split, and unknown, since the others were", o)
	}
	if o := d.send(t, 1); o.Class != activation.Split || o.Unknown {
		t.Errorf("the only one: %+v, want split, which gives it up", o)
	}
	d.fake.Partly(false)
	for _, answer := range []string{`{}`, `[]`, `{"events_received":"two"}`} {
		d.fake.Script(partnertest.Fault{Status: 200, Body: answer})
		if o := d.send(t, 1); o.Class != activation.Retry || !o.Unknown {
			t.Errorf("%s: %+v, want retry", answer, o)
		}
	}
	d.clean(t)
	bad := activation.Target{Settings: activation.Settings{Config: jsontext.Value(`[]`)}}
	for _, o := range []activation.Outcome{d.Send(t.Context(), bad, activation.Message{}), d.Test(t.Context(), bad)} {
		if o.Class != activation.Config {
			t.Errorf("settings that cannot be read: %+v", o)
		}
	}
}

func TestTestOfConversionsSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		dataset, token string
		fault          partnertest.Fault
		lost           bool
		class          activation.Class
		reason         string
	}{
		"nothing":              {class: activation.OK},
		"a wrong token":        {token: "EAAB", class: activation.Reauth, reason: "token"},
		"a wrong dataset":      {dataset: "1", class: activation.Config, reason: "the dataset is not there"},
		"a lost dataset":       {lost: true, class: activation.Config, reason: "the dataset is not there"},
		"no permission":        {fault: partnertest.Fault{Status: 403, Body: `{"error":{"code":200}}`}, class: activation.Config, reason: "access to the dataset"},
		"an answer of another": {fault: partnertest.Fault{Status: 200, Body: `{"id":"1"}`}, class: activation.Retry, reason: "promises"},
	} {
		for _, code := range []string{"", "TEST123"} {
			d := newDialogue(t, partnertest.MetaConversionsOptions{TestEventCode: code})
			d.fake.Lose(tt.lost)
			if tt.dataset != "" {
				d.to.Config = jsontext.Value(strings.Replace(string(d.to.Config), "555000111222", tt.dataset, 1))
			}
			if tt.token != "" {
				d.to.Secrets = jsontext.Value(`{"access_token":"` + tt.token + `"}`)
			}
			if tt.fault.Status > 0 {
				tt.fault.Match = func(*http.Request) bool { return true }
				d.fake.Script(tt.fault)
			}
			if o := d.Test(t.Context(), d.to); o.Class != tt.class || !strings.Contains(o.Reason, tt.reason) {
				t.Errorf("%s, code %q: %+v, want %s, %q", name, code, o, tt.class, tt.reason)
			}
			if got := d.fake.Received(); len(got) > 0 {
				t.Errorf("%s, code %q: %v counts", name, code, got)
			}
			if tt.class == activation.OK {
				d.clean(t)
			}
		}
	}
}

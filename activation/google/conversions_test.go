package google

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// eventTarget returns a destination for events with some more in its config than it needs.
func eventTarget(more string) activation.Target {
	to := target("")
	to.Config = jsontext.Value(`{"account_id":"1234567890","product_destination_id":"7123456789"` + more + `}`)
	return to
}

const (
	analytics  = `,"account_type":"GOOGLE_ANALYTICS_PROPERTY"`
	floodlight = `,"account_type":"FLOODLIGHT_CONFIG"`
)

// ofStream returns a destination at a data stream of Google Analytics.
func ofStream(stream, more string) activation.Target {
	to := eventTarget(analytics + more)
	to.Config = jsontext.Value(strings.Replace(string(to.Config), "7123456789", stream, 1))
	return to
}

var inMarch = time.Date(2026, 3, 1, 12, 30, 45, 123_000_000, time.FixedZone("", 3600))

// event returns something that somebody did, as the partner's own mapping has it.
func event(to activation.Target, name, properties string, p activation.Person) activation.Event {
	e := activation.Event{
		MessageID: "m-1", Type: "track", Name: name, Timestamp: inMarch, UserID: "cust-1", Properties: jsontext.Value(properties),
		Person: p, Fields: map[string]jsontext.Value{},
	}
	m, _ := (&Conversions{}).MapEvent(to, name)
	e.As = m.Name
	for field, from := range m.Fields {
		v := jsontext.Value(`{"properties":` + properties + `}`)
		for _, step := range strings.Split(from.Path, ".") {
			var members map[string]jsontext.Value
			if json.Unmarshal(v, &members) != nil {
				panic(v)
			}
			if v = members[step]; v == nil {
				break
			}
		}
		if v != nil {
			e.Fields[field] = v
		}
	}
	return e
}

func decided(p activation.Person, granted bool) activation.Person {
	p.Consent = map[string]bool{activation.AdUserData: granted, activation.AdPersonalization: granted}
	return p
}

const orderProperties = `{"order_id":"o-7","total":"49.90","currency":"eur","discount":5.00,"coupon":"SPRING",` +
	`"products":[{"product_id":"sku-1","sku":"S1","name":"Engine","price":20.10,"quantity":2},{"sku":"S2","price":"9.70","quantity":"1"},{"name":"no id"}]}`

func TestEncodeEvents(t *testing.T) {
	t.Parallel()
	alex := decided(person(`{"email":"alexz@example.com","country":"US"}`), true)
	const (
		mail   = `"userData":{"userIdentifiers":[{"emailAddress":"509e933019bb285a134a9334b8bb679dff79d0ce023d529af4bd744d47b4fd8a"}]}`
		yes    = `"consent":{"adUserData":"CONSENT_GRANTED","adPersonalization":"CONSENT_GRANTED"}`
		at     = `"eventTimestamp":"2026-03-01T11:30:45.123Z"`
		amount = `"currency":"EUR","conversionValue":49.90`
	)
	type change = func(*activation.Event)
	for name, tc := range map[string]struct {
		to         activation.Target
		event      string
		properties string
		person     activation.Person
		change     change
		want       string
		login      string
	}{
		"an order, at Google Ads": {
			to: eventTarget(`,"login_account_id":"9876543210","merchant_id":"55","merchant_feed_label":"US","merchant_feed_language_code":"en"`), event: "Order Completed",
			properties: orderProperties, person: alex,
			change: func(e *activation.Event) {
				e.Context = activation.EventContext{
					UserAgent: "Mozilla/5.0", IP: "203.0.113.7",
					ClickIDs: map[string]string{"gclid": "Cj0K_1-a", "gbraid": "g", "wbraid": "w", "dclid": "d", "client_id": "1.2"},
				}
			},
			want: `{"transactionId":"m-1",` + at + `,"eventSource":"WEB",` + mail + `,` + yes + `,"adIdentifiers":{"gclid":"Cj0K_1-a"},` + amount +
				`,"cartData":{"merchantId":"55","merchantFeedLabel":"US","merchantFeedLanguageCode":"en","transactionDiscount":5.00,"items":[` +
				`{"merchantProductId":"sku-1","quantity":"2","unitPrice":20.10,"itemId":"sku-1"},` +
				`{"merchantProductId":"S2","quantity":"1","unitPrice":9.70,"itemId":"S2"}],"couponCodes":["SPRING"]},` +
				`"eventDeviceInfo":{"userAgent":"Mozilla/5.0"}}`,
			login: `"loginAccount":{"accountType":"GOOGLE_ADS","accountId":"9876543210"},`,
		},
		"a click on iOS leaves no room for a cart, and click ids alone are sent": {
			to: eventTarget(`,"click_ids_only":true,"transaction_id":"order_id"`), event: "Order Completed", properties: orderProperties, person: alex,
			change: func(e *activation.Event) { e.Context.ClickIDs = map[string]string{"wbraid": "w-1"} },
			want:   `{"transactionId":"o-7",` + at + `,"eventSource":"WEB",` + yes + `,"adIdentifiers":{"wbraid":"w-1"},` + amount + `}`,
		},
		"an order without an id of its own": {
			to: eventTarget(`,"transaction_id":"order_id"`), event: "Order Completed", properties: `{}`, person: alex,
			want: `{"transactionId":"m-1",` + at + `,"eventSource":"WEB",` + mail + `,` + yes + `}`,
		},
		"a lead, of somebody who has not decided, in an app": {
			to: eventTarget(""), event: "Lead Won", properties: `{"value":12345678901234567890.12,"currency":"USD"}`, person: person(`{"email":"alexz@example.com"}`),
			change: func(e *activation.Event) { e.Context.App.Name = "Shop" },
			want: `{"transactionId":"m-1",` + at + `,"eventSource":"APP",` + mail +
				`,"currency":"USD","conversionValue":12345678901234567890.12}`,
		},
		"what a subscription says": {
			to: eventTarget(`,"event_source":"PHONE"`), event: "Lead Won", properties: `{}`, person: decided(alex, false),
			change: func(e *activation.Event) {
				e.Fields = map[string]jsontext.Value{
					transactionID: jsontext.Value(`4711`), eventSource: jsontext.Value(`"IN_STORE"`), conversionValue: jsontext.Value(`1e3`),
					conversionCount: jsontext.Value(`2`), customerType: jsontext.Value(`"NEW"`), customerValueBucket: jsontext.Value(`"HIGH"`),
					gclid: jsontext.Value(`"mapped"`), customVariables + "size": jsontext.Value(`"L"`), customVariables + "age": jsontext.Value(`7`),
				}
			},
			want: `{"transactionId":"4711",` + at + `,"eventSource":"IN_STORE",` + mail +
				`,"consent":{"adUserData":"CONSENT_DENIED","adPersonalization":"CONSENT_DENIED"},"adIdentifiers":{"gclid":"mapped"},` +
				`"conversionValue":1e3,"conversionCount":2,"userProperties":{"customerType":"NEW","customerValueBucket":"HIGH"},` +
				`"customVariables":[{"variable":"age","value":"7"},{"variable":"size","value":"L"}]}`,
		},
		"at Floodlight, a device": {
			to: eventTarget(floodlight), event: "Lead Won", properties: `{}`, person: decided(person(`{}`), true),
			change: func(e *activation.Event) {
				e.Context.Device.AdvertisingID, e.Context.OS.Name = "5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25", "iOS"
				e.Context.ClickIDs = map[string]string{"dclid": "d-1"}
			},
			want: `{"transactionId":"m-1",` + at + `,"eventSource":"WEB",` + yes +
				`,"adIdentifiers":{"mobileDeviceId":"5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25","dclid":"d-1"}}`,
		},
		"at Google Analytics, a product": {
			to: ofStream("G-1", `,"item_id":"sku"`), event: "Product Added", properties: `{"product_id":"p","sku":"s","name":"Engine","price":3,"quantity":1.5,"currency":"GBP"}`,
			person: alex, change: func(e *activation.Event) { e.Context.ClickIDs = map[string]string{"client_id": "1.2"} },
			want: `{"transactionId":"m-1",` + at + `,"eventSource":"WEB","eventName":"add_to_cart",` + mail + `,` + yes +
				`,"clientId":"1.2","userId":"cust-1","currency":"GBP","conversionValue":3,` +
				`"cartData":{"items":[{"unitPrice":3,"itemId":"s","additionalItemParameters":[{"parameterName":"item_name","value":"Engine"}]}]}}`,
		},
		"at Google Analytics, a search in an app": {
			to: ofStream("1:2:ios:3", ""), event: "Products Searched", properties: `{"query":"steam engine"}`, person: decided(person(`{}`), true),
			change: func(e *activation.Event) {
				e.Type, e.Fields[appInstanceID] = "screen", jsontext.Value(`"abc"`)
			},
			want: `{"transactionId":"m-1",` + at + `,"eventSource":"APP","eventName":"search",` + yes + `,"appInstanceId":"abc","userId":"cust-1",` +
				`"additionalEventParameters":[{"parameterName":"search_term","value":"steam engine"}]}`,
		},
	} {
		e := event(tc.to, tc.event, tc.properties, tc.person)
		if tc.change != nil {
			tc.change(&e)
		}
		p := &Conversions{}
		if reason := p.RefuseEvent(tc.to, e); reason != "" {
			t.Errorf("%s: refused: %s", name, reason)
		}
		body, took, err := p.EncodeEvents(tc.to, activation.EventBatch{Events: []activation.Event{e}})
		cfg, _, _ := readConversions(tc.to.Settings)
		want := fmt.Sprintf(`{"destinations":[{"reference":"events","operatingAccount":{"accountType":%q,"accountId":"1234567890"},%s`+
			`"productDestinationId":%q}],"events":[%s],"encoding":"HEX"}`, cfg.accountType(), tc.login, cfg.DestinationID, tc.want)
		if diff := cmp.Diff(want, string(body)); err != nil || took != 1 || diff != "" {
			t.Errorf("%s: took %d, %v; body (-want +got):\n%s", name, took, err, diff)
		}
	}
	if _, _, err := (&Conversions{}).EncodeEvents(eventTarget(`,"x":1`), activation.EventBatch{Events: make([]activation.Event, 1)}); err == nil {
		t.Error("settings that cannot be read make a body")
	}
}

// Addresses of the internet are sent of people only who are known to live where Google takes them.
func TestIPAddresses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ more, traits, ip, want string }{
		{"", `{"country":"US"}`, "203.0.113.7", ""},
		{`,"send_ip":true`, `{"country":"US"}`, "203.0.113.7", "203.0.113.7"},
		{`,"send_ip":true`, `{"country":"US"}`, "2001:db8::7", "2001:db8::7"},
		{`,"send_ip":true`, `{"country":"US"}`, "somewhere", ""},
		{`,"send_ip":true`, `{}`, "203.0.113.7", ""},
		{`,"send_ip":true,"default_country":"CA"`, `{}`, "203.0.113.7", "203.0.113.7"},
		{`,"send_ip":true,"default_country":"US"`, `{"country":"UK"}`, "203.0.113.7", ""},
		{`,"send_ip":true`, `{"country":"DE"}`, "203.0.113.7", ""},
		{`,"send_ip":true`, `{"country":"NO"}`, "203.0.113.7", ""},
	} {
		cfg, _, err := readConversions(eventTarget(tc.more).Settings)
		if err != nil {
			t.Fatal(err)
		}
		e := activation.Event{Person: person(tc.traits), Context: activation.EventContext{IP: tc.ip, UserAgent: "bot (bot@example.com)"}}
		if d := device(cfg, e); d.IP != tc.want || d.UserAgent != "" {
			t.Errorf("%+v: %+v", tc, d)
		}
	}
}

// What of people identifies them is what Customer Match sends, on the people whom fakes are to know.
func TestWhoCannotBeTold(t *testing.T) {
	t.Parallel()
	off := false
	for name, tc := range map[string]struct {
		to     activation.Target
		person activation.Person
		change func(*activation.Event)
		reason string
	}{
		"an address":        {to: eventTarget(""), person: person(`{"email":"  Jane.Doe+Promo@GMail.com "}`)},
		"a hash":            {to: eventTarget(""), person: person(`{"email":"509e933019bb285a134a9334b8bb679dff79d0ce023d529af4bd744d47b4fd8a"}`)},
		"a number":          {to: eventTarget(`,"default_country":"DE"`), person: person(`{"phone":"0171 1234567"}`)},
		"a postal address":  {to: eventTarget(""), person: person(`{"first_name":"Valéry","last_name":"정","country":"FR","zip":"75001"}`)},
		"a click":           {to: eventTarget(""), person: person(`{}`), change: clicked("gbraid", "x")},
		"nothing":           {to: eventTarget(""), person: person(`{"plan":"pro"}`), reason: "neither an e-mail address nor a phone number nor a whole postal address is known, and the event has no click id"},
		"no country":        {to: eventTarget(""), person: person(`{"phone":"0171 1234567"}`), reason: "the phone number does not say its country, and none is known, and"},
		"the hash of null":  {to: eventTarget(""), person: person(`{"email":"74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"}`), reason: "not a valid one"},
		"a click with an @": {to: eventTarget(""), person: person(`{}`), change: clicked("gclid", "ada@example.com"), reason: "no click id"},
		"another's click":   {to: eventTarget(""), person: person(`{}`), change: clicked("fbclid", "x"), reason: "no click id"},
		"only clicks count": {to: eventTarget(`,"click_ids_only":true`), person: person(`{"email":"a@example.com"}`), reason: "the destination sends nothing else"},
		"Floodlight":        {to: eventTarget(floodlight), person: person(`{"email":"a@example.com"}`), reason: "Floodlight asks for one"},
		"Floodlight, tracking off": {to: eventTarget(floodlight), person: person(`{}`), reason: "Floodlight asks for one", change: func(e *activation.Event) {
			e.Context.Device = activation.EventDevice{AdvertisingID: "5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25", AdTracking: &off}
		}},
		"Floodlight, a match id":    {to: eventTarget(floodlight), person: person(`{}`), change: field(matchID, `"m"`)},
		"Analytics without client":  {to: ofStream("G-1", ""), person: person(`{"email":"a@example.com"}`), reason: "map clientId"},
		"Analytics without app":     {to: ofStream("1:2:ios:3", ""), person: person(`{"email":"a@example.com"}`), reason: "map appInstanceId"},
		"a value that is none":      {to: eventTarget(""), person: person(`{"email":"a@example.com"}`), change: field(conversionValue, `"49,90"`), reason: "conversionValue is not a number"},
		"a value beyond bounds":     {to: eventTarget(""), person: person(`{"email":"a@example.com"}`), change: field(conversionValue, `1e999`), reason: "conversionValue is not a number"},
		"an empty value":            {to: eventTarget(""), person: person(`{"email":"a@example.com"}`), change: field(conversionValue, `""`)},
		"a currency that is none":   {to: eventTarget(""), person: person(`{"email":"a@example.com"}`), change: field(currencyCode, `"Euro"`), reason: "currency is not"},
		"a source that is none":     {to: eventTarget(""), person: person(`{"email":"a@example.com"}`), change: field(eventSource, `"website"`), reason: "eventSource is not one of WEB"},
		"an address as a variable":  {to: eventTarget(""), person: person(`{"email":"a@example.com"}`), change: field(customVariables+"who", `"a@example.com"`), reason: "holds an e-mail address"},
		"an object as a variable":   {to: eventTarget(""), person: person(`{"email":"a@example.com"}`), change: field(customVariables+"who", `{}`), reason: "is not a text"},
		"an address as the event's": {to: eventTarget(""), person: person(`{"email":"a@example.com"}`), change: func(e *activation.Event) { e.MessageID = "a@example.com" }, reason: "message id, which holds"},
	} {
		e := event(tc.to, "Order Completed", `{}`, tc.person)
		if tc.change != nil {
			tc.change(&e)
		}
		reason := (&Conversions{}).RefuseEvent(tc.to, e)
		if !strings.Contains(reason, tc.reason) || (reason == "") != (tc.reason == "") || strings.Contains(reason, "@") {
			t.Errorf("%s: %q, want %q", name, reason, tc.reason)
		}
	}
}

func clicked(name, id string) func(*activation.Event) {
	return func(e *activation.Event) { e.Context.ClickIDs = map[string]string{name: id} }
}

func field(name, value string) func(*activation.Event) {
	return func(e *activation.Event) { e.Fields[name] = jsontext.Value(value) }
}

// However many events of people with however many identifiers there are, a request has no more events, identifiers and bytes
// than it may, and says of each event what its own person is known by.
func TestEncodeEventsKeepsLimitsAndPeopleApart(t *testing.T) {
	t.Parallel()
	p, rng, to := &Conversions{}, rand.New(rand.NewPCG(1, 2)), eventTarget(`,"batch":2000`)
	for range 4 {
		var b activation.EventBatch
		long := strings.Repeat("x", rng.IntN(5000))
		for n := range 1 + rng.IntN(2500) {
			var ids []activation.Identifier
			for i := range 1 + rng.IntN(20) {
				ids = append(ids, activation.Identifier{Kind: "email", Value: fmt.Sprintf("%032x%032x", n, i)})
			}
			e := event(to, "Order Completed", `{}`, person(`{}`, ids...))
			e.MessageID = fmt.Sprintf("m-%d", n)
			e.Fields[customVariables+"long"] = jsontext.Value(`"` + long + `"`)
			b.Events = append(b.Events, e)
		}
		body, took, err := p.EncodeEvents(to, b)
		if err != nil || took < 1 || took > 2000 || len(body) > maxBody+1000 {
			t.Fatalf("%d events: took %d in %d bytes, %v", len(b.Events), took, len(body), err)
		}
		if again, _, _ := p.EncodeEvents(to, b); !bytes.Equal(body, again) {
			t.Error("the same batch has two bodies")
		}
		var r struct {
			Events []conversion `json:"events"`
		}
		if err := json.Unmarshal(body, &r); err != nil || len(r.Events) != took {
			t.Fatalf("%d events, want %d, %v", len(r.Events), took, err)
		}
		for n, e := range r.Events {
			if len(e.UserData.Identifiers) > maxIdentifiers || e.TransactionID != fmt.Sprintf("m-%d", n) {
				t.Fatalf("event %d is %q, with %d identifiers", n, e.TransactionID, len(e.UserData.Identifiers))
			}
			for _, id := range e.UserData.Identifiers {
				if !strings.HasPrefix(id.Email, fmt.Sprintf("%032x", n)) {
					t.Fatalf("event %d has somebody else's identifier", n)
				}
			}
		}
	}
}

func TestMappingsAreChecked(t *testing.T) {
	t.Parallel()
	p := &Conversions{}
	always := func(name, value string) activation.Mapping {
		return activation.Mapping{Fields: map[string]activation.Field{name: {Value: jsontext.Value(value)}}}
	}
	for _, tc := range []struct {
		to   activation.Target
		m    activation.Mapping
		want []string
	}{
		{eventTarget(""), activation.Mapping{Name: "Anything at all"}, nil},
		{ofStream("G-1", ""), activation.Mapping{Name: "Anything at all"}, []string{"/name"}},
		{ofStream("G-1", ""), activation.Mapping{Name: "generate_lead"}, nil},
		{eventTarget(""), always(eventSource, `"WEB"`), nil},
		{eventTarget(""), always(eventSource, `null`), nil},
		{eventTarget(""), always(eventSource, `"web"`), []string{"/fields/eventSource"}},
		{eventTarget(""), always(customerType, `"OLD"`), []string{"/fields/customerType"}},
		{eventTarget(""), always(conversionValue, `"x"`), []string{"/fields/conversionValue"}},
		{eventTarget(""), always(currencyCode, `"euro"`), []string{"/fields/currency"}},
		{eventTarget(""), always("conversion_value", `1`), []string{"/fields/conversion_value"}},
		{eventTarget(""), always(customVariables+"size", `"L"`), nil},
		{eventTarget(""), always(customVariables, `"L"`), []string{"/fields/customVariables."}},
		{ofStream("G-1", ""), always(customVariables+"size", `"L"`), []string{"/fields/customVariables.size"}},
		{eventTarget(""), always(customParameters+"size", `"L"`), []string{"/fields/additionalEventParameters.size"}},
		{ofStream("G-1", ""), always(customParameters+"size", `"L"`), nil},
		{ofStream("G-1", ""), always(customParameters+"a/b", `"L"`), []string{"/fields/additionalEventParameters.a~1b"}},
	} {
		if diff := cmp.Diff(tc.want, pointers(p.CheckMapping(tc.to, tc.m))); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tc.m, diff)
		}
	}
	// What the partner maps by itself is what a subscription might say, too.
	for _, to := range []activation.Target{eventTarget(""), eventTarget(floodlight), ofStream("G-1", `,"transaction_id":"order_id"`)} {
		for name := range recommended {
			m, ok := p.MapEvent(to, name)
			if err := p.CheckMapping(to, m); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			cfg, _, _ := readConversions(to.Settings)
			if want := cfg.accountType() == analyticsAccount || name != "Order Refunded"; ok != want {
				t.Errorf("%s is mapped at %s: %t", name, cfg.accountType(), ok)
			}
		}
	}
	if _, ok := p.MapEvent(ofStream("G-1", ""), "Lead Won"); ok {
		t.Error("Google Analytics is told of what it does not recommend")
	}
}

func TestConversionsArePrepared(t *testing.T) {
	t.Parallel()
	p := NewConversions(nil, activation.Outbound{})
	const good = `{"client_id":"4711-x","client_secret":"s","refresh_token":"r"}`
	service := string(partnertest.NewGoogleEvents(t, partnertest.GoogleEventsOptions{ServiceAccount: true}).Settings().Secrets)
	for name, tc := range map[string]struct {
		config, secrets string
		want            []string
	}{
		"an account, a conversion action and a credential are enough": {`{"account_id":"1","product_destination_id":"2"}`, good, nil},
		"a service account":    {`{"account_id":"1","product_destination_id":"2"}`, service, nil},
		"a data stream":        {`{"account_type":"GOOGLE_ANALYTICS_PROPERTY","account_id":"1","product_destination_id":"G-X"}`, good, nil},
		"everything there is":  {`{"account_id":"1","account_type":"FLOODLIGHT_CONFIG","login_account_id":"4","login_account_type":"DATA_PARTNER","product_destination_id":"2","transaction_id":"order_id","event_source":"APP","click_ids_only":true,"send_ip":true,"default_country":"DE","gmail_tags":"both","item_id":"sku","merchant_id":"3","merchant_feed_label":"DE","merchant_feed_language_code":"de","max_age_days":90,"batch":2000,"api_url":"https://datamanager.example.com","token_url":"https://token.example.com/token"}`, good, nil},
		"nothing":              {`{}`, `{}`, []string{"/config/account_id", "/config/product_destination_id", "/secrets/client_id", "/secrets/client_secret", "/secrets/refresh_token"}},
		"a data stream of Ads": {`{"account_id":"1","product_destination_id":"G-X"}`, good, []string{"/config/product_destination_id"}},
		"types that are none": {
			`{"account_id":"1-2","product_destination_id":"2","account_type":"DATA_PARTNER","login_account_type":"X","login_account_id":"a","transaction_id":"x","event_source":"web","gmail_tags":"x","item_id":"id","merchant_id":"m","default_country":"Germany"}`, good,
			[]string{"/config/account_type", "/config/account_id", "/config/login_account_type", "/config/login_account_id", "/config/transaction_id", "/config/event_source", "/config/default_country", "/config/gmail_tags", "/config/item_id", "/config/merchant_id"},
		},
		"numbers":                         {`{"account_id":"1","product_destination_id":"2","max_age_days":91,"batch":2001}`, good, []string{"/config/max_age_days", "/config/batch"}},
		"addresses":                       {`{"account_id":"1","product_destination_id":"2","api_url":"http://x"}`, good, []string{"/config/api_url"}},
		"something unknown":               {`{"account_id":"1","product_destination_id":"2","terms_accepted":true}`, good, []string{"/config/terms_accepted"}},
		"a service account without a key": {`{"account_id":"1","product_destination_id":"2"}`, `{"service_account":{"client_email":"a"}}`, []string{"/secrets/service_account"}},
	} {
		kept, err := p.Prepare(activation.Settings{Config: jsontext.Value(tc.config), Secrets: jsontext.Value(tc.secrets)})
		got := pointers(err)
		if name == "something unknown" { // which ends the reading of what follows
			got = got[:1]
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %v; fields (-want +got):\n%s", name, err, diff)
		}
		for what, shown := range p.Mask(kept.Secrets) {
			if err == nil && len([]rune(shown)) > 5 {
				t.Errorf("%s: the masked %s is %q", name, what, shown)
			}
		}
	}
	days := func(to activation.Target) float64 { return p.Limits(to).MaxAge.Hours() / 24 }
	if days(eventTarget("")) != 63 || days(ofStream("G-1", "")) != 3 || days(eventTarget(`,"max_age_days":7`)) != 7 {
		t.Error("events may be of another age than is said")
	}
	if l := p.Limits(eventTarget("")); l.Events != 500 || l.Account != "4711" || l.PollEvery < 30*time.Second {
		t.Errorf("%+v", l)
	}
}

func TestWhatRefusalsOfEventsMean(t *testing.T) {
	t.Parallel()
	p := &Conversions{client: newPartner(t).client}
	m := activation.Message{Body: []byte(`{"events":[{},{},{}]}`), Events: make([]activation.EventRef, 3)}
	type test struct {
		body    string
		class   activation.Class
		reason  string // a part of it
		dropped []int
	}
	at := func(i int, reason string) string {
		return fieldViolation(fmt.Sprintf("events.events[%d].user_data", i), reason)
	}
	tests := map[string]test{
		"one event":               {refused(400, "INVALID_ARGUMENT", at(1, "INVALID_HEX_ENCODING")), activation.Partial, "malformed", []int{1}},
		"two events":              {refused(400, "INVALID_ARGUMENT", at(0, "INVALID_EVENT"), fieldViolation("events[2]", "EVENT_TIME_INVALID")), activation.Partial, "too old", []int{0, 2}},
		"a reason nobody knows":   {refused(400, "INVALID_ARGUMENT", at(0, "BRAND_NEW")), activation.Partial, "the event: brand new", []int{0}},
		"an event not there":      {refused(400, "INVALID_ARGUMENT", at(3, "INVALID_EVENT")), activation.Split, "", nil},
		"too many":                {refused(400, "INVALID_ARGUMENT", fieldViolation("events", "TOO_MANY_EVENTS")), activation.Split, "", nil},
		"config, at an event":     {refused(400, "INVALID_ARGUMENT", at(0, "INVALID_MERCHANT_ID")), activation.Config, "merchant_id", nil},
		"no permission":           {refused(403, "PERMISSION_DENIED"), activation.Config, "account_id", nil},
		"not there":               {refused(404, "NOT_FOUND"), activation.Config, "product_destination_id", nil},
		"the token has ended":     {refused(401, "UNAUTHENTICATED"), activation.Refresh, "", nil},
		"the quota is used up":    {refused(429, "RESOURCE_EXHAUSTED"), activation.RetryAfter, "quota", nil},
		"Google is not available": {refused(503, "UNAVAILABLE"), activation.Retry, "", nil},
		"no request id":           {`{}`, activation.Retry, "names no request", nil},
	}
	status := map[string]int{"no permission": 403, "not there": 404, "the token has ended": 401, "the quota is used up": 429, "Google is not available": 503, "no request id": 200}
	for reason, words := range ofConversions.config {
		tests[reason] = test{refused(400, "INVALID_ARGUMENT", fieldViolation("destinations[0]", reason)), activation.Config, words, nil}
	}
	for reason, words := range ofConversions.rows {
		tests["row "+reason] = test{refused(400, "INVALID_ARGUMENT", at(2, reason)), activation.Partial, words, []int{2}}
	}
	for name, tc := range tests {
		code := status[name]
		if code == 0 {
			code = 400
		}
		to := eventTarget(`,` + serverOf(t, code, tc.body))
		o := p.Send(t.Context(), to, m)
		var dropped []int
		reasons := o.Reason
		for i, r := range o.Rows {
			if r.Class == activation.Drop {
				dropped = append(dropped, i)
				reasons += r.Reason
			}
		}
		if o.Class != tc.class || !strings.Contains(reasons, tc.reason) || cmp.Diff(tc.dropped, dropped) != "" || strings.Contains(reasons, "@") {
			t.Errorf("%s: %+v, want %s, dropped %v, %q", name, o, tc.class, tc.dropped, tc.reason)
		}
	}
	if o := p.Send(t.Context(), eventTarget(`,"x":1`), m); o.Class != activation.Config {
		t.Errorf("with settings that cannot be read: %+v", o)
	}
}

// serverOf returns the members of a config that lead to a server with one answer to everything.
func serverOf(t testing.TB, status int, body string) string {
	t.Helper()
	var cfg map[string]string
	if err := json.Unmarshal(answering(t, status, nil, body).Config, &cfg, json.WithUnmarshalers(json.UnmarshalFromFunc(
		func(d *jsontext.Decoder, s *string) error {
			v, err := d.ReadValue()
			*s = scalar(v)
			return err
		}))); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`"api_url":%q,"token_url":%q`, cfg["api_url"], cfg["token_url"])
}

// Google counts what it refused and does not name it. Duplicates are there; what may pass is sent again.
func TestWhatBecameOfEvents(t *testing.T) {
	t.Parallel()
	p := &Conversions{client: newPartner(t).client}
	for name, tc := range map[string]struct {
		state   string
		reasons []string
		class   activation.Class
		done    bool
		counts  int
	}{
		"processing":                      {"PROCESSING", nil, activation.OK, false, 0},
		"all is well":                     {"SUCCESS", nil, activation.OK, true, 0},
		"all were there":                  {"FAILED", []string{"REASON_DUPLICATE_TRANSACTION_ID"}, activation.OK, true, 0},
		"some were there":                 {"PARTIAL_SUCCESS", []string{"REASON_DUPLICATE_TRANSACTION_ID", "REASON_DUPLICATE_GCLID"}, activation.OK, true, 0},
		"some were refused":               {"PARTIAL_SUCCESS", []string{"REASON_EVENT_TOO_OLD", "REASON_DUPLICATE_TRANSACTION_ID"}, activation.Partial, true, 1},
		"some were there, others refused": {"FAILED", []string{"REASON_DUPLICATE_TRANSACTION_ID", "REASON_INVALID_GCLID"}, activation.Partial, true, 1},
		"all were refused":                {"FAILED", []string{"REASON_INVALID_GCLID", "OPERATING_ACCOUNT_MISMATCH_FOR_AD_IDENTIFIER"}, activation.Drop, true, 2},
		"some clicks are too recent":      {"PARTIAL_SUCCESS", []string{"REASON_TOO_RECENT_CLICK"}, activation.Retry, true, 1},
		"Google failed":                   {"FAILED", []string{"REASON_INTERNAL_ERROR"}, activation.Retry, true, 1},
		"it failed for no reason":         {"FAILED", nil, activation.Retry, true, 0},
		"the advertiser has to act":       {"FAILED", []string{"REASON_NO_CONSENT"}, activation.Config, true, 1},
		"the terms are not signed":        {"FAILED", []string{"REASON_DESTINATION_ACCOUNT_ENHANCED_CONVERSIONS_TERMS_NOT_SIGNED"}, activation.Config, true, 1},
	} {
		var counts []string
		for _, r := range tc.reasons {
			counts = append(counts, fmt.Sprintf(`{"recordCount":"2","reason":"PROCESSING_ERROR_%s"}`, r))
		}
		body := fmt.Sprintf(`{"requestStatusPerDestination":[{"requestStatus":%q,"errorInfo":{"errorCounts":[%s]},"eventsIngestionStatus":{"recordCount":"9"}}]}`,
			tc.state, strings.Join(counts, ","))
		got := p.Poll(t.Context(), eventTarget(`,`+serverOf(t, 200, body)), newReceipt("r"))
		if got.Class != tc.class || got.Done != tc.done || len(got.Counts) != tc.counts || strings.Contains(fmt.Sprint(got.Counts), "PROCESSING") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func eventsReachable(t testing.TB, fake *partnertest.GoogleEvents) (*Conversions, activation.Target) {
	t.Helper()
	p := &Conversions{client: newPartner(t).client}
	to := activation.Target{ID: 3, Key: "ads", Settings: fake.Settings()}
	fresh, _, o := p.Refresh(t.Context(), to)
	if o.Class != activation.OK {
		t.Fatalf("Refresh = %+v", o)
	}
	to.Settings = fresh
	return p, to
}

// The connection is tested with an example that Google checks and does not count.
func TestTheConnectionForEventsIsTested(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{adsAccount, floodlightAccount, analyticsAccount} {
		fake := partnertest.NewGoogleEvents(t, partnertest.GoogleEventsOptions{AccountType: kind})
		p, to := eventsReachable(t, fake)
		if o := p.Test(t.Context(), to); o.Class != activation.OK {
			t.Errorf("%s: Test = %+v", kind, o)
		}
		fake.Advance(time.Hour - time.Second)
		if got := fake.Received(); len(got) > 0 || len(fake.Violations()) > 0 {
			t.Errorf("%s: the example counts as %q, violations %q", kind, got, fake.Violations())
		}
		for name, tc := range map[string]struct{ old, to, reason string }{
			"a wrong account":     {`"1234567890"`, `"1"`, "check account_type, account_id"},
			"a wrong destination": {`"product_destination_id":"`, `"product_destination_id":"9`, "check product_destination_id"},
		} {
			wrong := to
			wrong.Config = jsontext.Value(strings.Replace(string(to.Config), tc.old, tc.to, 1))
			if kind == analyticsAccount && name == "a wrong destination" {
				continue // it would be another kind of stream
			}
			if o := p.Test(t.Context(), wrong); o.Class != activation.Config || !strings.Contains(o.Reason, tc.reason) {
				t.Errorf("%s, %s: %+v", kind, name, o)
			}
		}
		to.Secrets = jsontext.Value(strings.Replace(string(to.Secrets), "ya29.", "ya30.", 1))
		if o := p.Test(t.Context(), to); o.Class != activation.Refresh {
			t.Errorf("%s, a wrong token: %+v", kind, o)
		}
	}
	p := &Conversions{client: newPartner(t).client}
	for reason, words := range map[string]string{
		"DESTINATION_ACCOUNT_NOT_ENABLED_ENHANCED_CONVERSIONS_FOR_LEADS": "click_ids_only", "INVALID_CONVERSION_ACTION_TYPE": "UPLOAD_CLICKS",
	} {
		to := eventTarget(`,` + serverOf(t, 400, refused(400, "INVALID_ARGUMENT", fieldViolation("destinations[0]", reason))))
		if o := p.Test(t.Context(), to); o.Class != activation.Config || !strings.Contains(o.Reason, words) {
			t.Errorf("%s: %+v", reason, o)
		}
	}
	to := eventTarget(`,` + serverOf(t, 400, refused(400, "INVALID_ARGUMENT")))
	if o := p.Test(t.Context(), to); o.Class != activation.Config {
		t.Errorf("what is not understood: %+v", o)
	}
}

// A part of a message that Google cannot work on yet has all of it sent again, and each event counts once.
func TestWhatIsTooRecentIsSentAgain(t *testing.T) {
	t.Parallel()
	fake := partnertest.NewGoogleEvents(t, partnertest.GoogleEventsOptions{AccountType: analyticsAccount})
	p, to := eventsReachable(t, fake)
	var b activation.EventBatch
	m := activation.Message{}
	for n := range 3 {
		order, _ := partnertest.Order(n, time.Now())
		fake.Seed(order.Person)
		fake.Expect(order)
		e := event(to, order.Name, string(order.Properties), order.Person)
		e.MessageID, e.Timestamp = order.MessageID, order.Timestamp
		e.Context.ClickIDs = map[string]string{"gclid": fmt.Sprintf("g-%d", n), "client_id": "1.2"}
		b.Events, m.Events = append(b.Events, e), append(m.Events, activation.EventRef{MessageID: e.MessageID})
	}
	var err error
	if m.Body, _, err = p.EncodeEvents(to, b); err != nil {
		t.Fatal(err)
	}
	if o := p.Validate(t.Context(), to, m); o.Class != activation.OK {
		t.Errorf("Validate = %+v", o)
	}
	drafts, err := p.Draft(activation.Target{Settings: fake.Settings()}, m)
	if err != nil || len(drafts) != 1 || !strings.HasSuffix(drafts[0].URL, "/v1/events:ingest") || !bytes.Equal(drafts[0].Body, m.Body) {
		t.Errorf("Draft = %+v, %v", drafts, err)
	}
	fake.Recent("order-1", true)
	for _, tc := range []struct {
		class activation.Class
		want  []string
	}{
		{activation.Retry, []string{"order-0", "order-2"}}, {activation.OK, []string{"order-0", "order-1", "order-2"}},
	} {
		_, to = eventsReachable(t, fake)
		o := p.Send(t.Context(), to, m)
		if o.Class != activation.OK || o.Receipt == "" {
			t.Fatalf("Send = %+v", o)
		}
		fake.Advance(time.Minute)
		if polled := p.Poll(t.Context(), to, o.Receipt); polled.Done || fake.Unasked() > 0 {
			t.Errorf("too early, Poll = %+v", polled)
		}
		fake.Advance(20 * time.Minute)
		if polled := p.Poll(t.Context(), to, o.Receipt); !polled.Done || polled.Class != tc.class {
			t.Errorf("Poll = %+v, want %s", polled, tc.class)
		}
		if got := fake.Received(); !slices.Equal(got, tc.want) {
			t.Errorf("%q count, want %q", got, tc.want)
		}
		fake.Recent("order-1", false)
	}
	for _, v := range fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

// What is wrong with an event is answered as Google would, and noted where Google would say nothing.
func TestTheFakeOfEventsIsStrict(t *testing.T) {
	t.Parallel()
	order, _ := partnertest.Order(7, time.Now())
	european := partnertest.Somebody(8)
	european.Traits["country"] = jsontext.Value(`"DE"`)
	mail, other := partnertest.Hex("person.7@example.com"), partnertest.Hex("person.8@example.com")
	ids := func(hashes ...string) string {
		return `[{"emailAddress":"` + strings.Join(hashes, `"},{"emailAddress":"`) + `"}]`
	}
	good := map[string]string{
		"transactionId": `"order-7"`, "eventTimestamp": `"` + order.Timestamp.Format(time.RFC3339Nano) + `"`, "eventSource": `"WEB"`,
		"userData": `{"userIdentifiers":` + ids(mail) + `}`, "adIdentifiers": `{"gclid":"g-7"}`, "currency": `"EUR"`, "conversionValue": `7.10`,
		"cartData": `{"items":[{"merchantProductId":"sku-1","itemId":"sku-1","quantity":"1","unitPrice":7.10}]}`,
	}
	body := func(events, encoding string) string {
		return `{"destinations":[{"reference":"r","operatingAccount":{"accountType":"GOOGLE_ADS","accountId":"1234567890"},` +
			`"loginAccount":{"accountType":"GOOGLE_ADS","accountId":"9876543210"},"productDestinationId":"7123456789"}],"events":[` + events + `]` + encoding + `}`
	}
	const hex = `,"encoding":"HEX"`
	for name, tc := range map[string]struct {
		with      map[string]string // members of the event; "" for none
		body      string
		status    int // 200 if 0
		answer    string
		violation string
	}{
		"all is well":             {},
		"no encoding":             {body: body(`{}`, ""), status: 400, answer: "REQUIRED_FIELD_MISSING", violation: "encoding"},
		"no events":               {body: body("", hex), status: 400, answer: "REQUIRED_FIELD_MISSING", violation: "none"},
		"2,001 events":            {body: body(strings.Repeat(`{},`, 2000)+`{}`, hex), status: 400, answer: "TOO_MANY_EVENTS", violation: "2001"},
		"another action":          {body: strings.Replace(body(`{}`, hex), "7123456789", "1", 1), status: 400, answer: "INVALID_CONVERSION_ACTION_ID", violation: "not there"},
		"another account":         {body: strings.Replace(body(`{}`, hex), "1234567890", "1", 1), status: 400, answer: "INVALID_DESTINATION", violation: "for"},
		"an unknown member":       {with: map[string]string{"value": `1`}, status: 400, answer: "Unknown name", violation: "value"},
		"a number as a text":      {with: map[string]string{"conversionValue": `"7.10"`}, status: 400, answer: "INVALID_NUMBER_FORMAT", violation: "no number"},
		"a quantity as a number":  {with: map[string]string{"cartData": `{"items":[{"quantity":1}]}`}, status: 400, violation: "quantity"},
		"no transaction id":       {with: map[string]string{"transactionId": ""}, violation: "counts twice"},
		"another transaction id":  {with: map[string]string{"transactionId": `"x"`}, violation: "never heard of"},
		"no time":                 {with: map[string]string{"eventTimestamp": ""}, status: 400, answer: "REQUIRED_FIELD_MISSING", violation: "none"},
		"long ago":                {with: map[string]string{"eventTimestamp": `"2020-01-01T00:00:00Z"`}, status: 400, answer: "EVENT_TIME_INVALID", violation: "old"},
		"another time":            {with: map[string]string{"eventTimestamp": `"` + order.Timestamp.Add(-time.Hour).Format(time.RFC3339Nano) + `"`}, violation: "happened at"},
		"a source that is none":   {with: map[string]string{"eventSource": `"website"`}, status: 400, answer: "INVALID_ENUM_VALUE", violation: "website"},
		"a small currency":        {with: map[string]string{"currency": `"eur"`}, status: 400, answer: "INVALID_CURRENCY_CODE", violation: "eur"},
		"another value":           {with: map[string]string{"conversionValue": `7.1`}, violation: "worth 7.10"},
		"no cart":                 {with: map[string]string{"cartData": ""}, violation: "products"},
		"another price":           {with: map[string]string{"cartData": `{"items":[{"merchantProductId":"sku-1","itemId":"sku-1","quantity":"1","unitPrice":7}]}`}, violation: "another item"},
		"no product of Merchant":  {with: map[string]string{"cartData": `{"items":[{"itemId":"sku-1","quantity":"1","unitPrice":7.10}]}`}, violation: "Merchant Center"},
		"another click":           {with: map[string]string{"adIdentifiers": `{"gclid":"g-8"}`}, violation: "comes from click"},
		"two clicks":              {with: map[string]string{"adIdentifiers": `{"gclid":"g-7","wbraid":"w"}`}, violation: "want one"},
		"a cart with wbraid":      {with: map[string]string{"adIdentifiers": `{"wbraid":"w"}`}, violation: "not supported with gbraid"},
		"nothing to know it by":   {with: map[string]string{"adIdentifiers": "", "userData": ""}, status: 400, answer: "NO_IDENTIFIERS_PROVIDED", violation: "nothing to know"},
		"no identifiers":          {with: map[string]string{"userData": `{"userIdentifiers":[]}`}, status: 400, answer: "REQUIRED_FIELD_MISSING", violation: "none"},
		"eleven identifiers":      {with: map[string]string{"userData": `{"userIdentifiers":` + ids(slices.Repeat([]string{mail}, 11)...) + `}`}, status: 400, answer: "TOO_MANY_USER_IDENTIFIERS", violation: "11"},
		"an address":              {with: map[string]string{"userData": `{"userIdentifiers":` + ids("person.7@example.com") + `}`}, status: 400, answer: "INVALID_HEX_ENCODING", violation: "e-mail address"},
		"an MD5":                  {with: map[string]string{"userData": `{"userIdentifiers":` + ids(mail[:32]) + `}`}, status: 400, answer: "INVALID_SHA256_FORMAT", violation: "no SHA-256"},
		"hashed twice":            {with: map[string]string{"userData": `{"userIdentifiers":` + ids(partnertest.Hex(mail)) + `}`}, violation: "hashed twice"},
		"somebody else":           {with: map[string]string{"userData": `{"userIdentifiers":` + ids(other) + `}`}, violation: "another person"},
		"Europe, not asked":       {with: map[string]string{"userData": `{"userIdentifiers":` + ids(other) + `}`}, violation: "Europe"},
		"Europe, an IP address":   {with: map[string]string{"userData": `{"userIdentifiers":` + ids(other) + `}`, "eventDeviceInfo": `{"ipAddress":"203.0.113.7"}`}, violation: "IP address of somebody in Europe"},
		"an IP address not one":   {with: map[string]string{"eventDeviceInfo": `{"ipAddress":"here"}`}, status: 400, answer: "INVALID_FORMAT", violation: "here"},
		"a made-up consent":       {with: map[string]string{"consent": `{"adUserData":"GRANTED"}`}, status: 400, answer: "INVALID_ENUM_VALUE", violation: "GRANTED"},
		"a client id":             {with: map[string]string{"clientId": `"1.2"`}, violation: "only Google Analytics knows"},
		"a device that is none":   {with: map[string]string{"adIdentifiers": `{"gclid":"g-7","mobileDeviceId":"x"}`}, status: 400, answer: "INVALID_MOBILE_ID_FORMAT", violation: "x"},
		"a reference to nothing":  {with: map[string]string{"destinationReferences": `["x"]`}, status: 400, answer: "INVALID_DESTINATION", violation: "no destination"},
		"an unknown customer":     {with: map[string]string{"userProperties": `{"customerType":"OLD"}`}, status: 400, answer: "INVALID_ENUM_VALUE", violation: "OLD"},
		"a discount of no number": {with: map[string]string{"cartData": `{"transactionDiscount":"5"}`}, status: 400, answer: "INVALID_NUMBER_FORMAT", violation: "no number"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := partnertest.NewGoogleEvents(t, partnertest.GoogleEventsOptions{})
			fake.Seed(order.Person, european)
			fake.Expect(order)
			_, to := eventsReachable(t, fake)
			_, sec, err := readConversions(to.Settings)
			if err != nil {
				t.Fatal(err)
			}
			text := tc.body
			if text == "" {
				members := maps.Clone(good)
				maps.Copy(members, tc.with)
				var list []string
				for name, v := range members {
					if v != "" {
						list = append(list, `"`+name+`":`+v)
					}
				}
				text = body("{"+strings.Join(list, ",")+"}", hex)
			}
			want := tc.status
			if want == 0 {
				want = 200
			}
			status, answer := post(t, fake.URL+"/v1/events:ingest", sec.AccessToken, text)
			if status != want || !strings.Contains(answer, tc.answer) {
				t.Errorf("%d %s, want %d with %q", status, answer, want, tc.answer)
			}
			violations := strings.Join(fake.Violations(), "\n")
			if !strings.Contains(violations, tc.violation) || tc.violation == "" && violations != "" {
				t.Errorf("violations %q, want %q", violations, tc.violation)
			}
		})
	}
}

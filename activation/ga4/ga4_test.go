package ga4_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/ga4"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func TestSettings(t *testing.T) {
	t.Parallel()
	p := ga4.New(nil, activation.Outbound{})
	const secret = `{"api_secret":"0123456789abcdefgh"}`
	for _, tt := range []struct {
		config, secrets string
		want            []activation.FieldError
	}{
		{`{"measurement_id":"G-1A2BCD345E"}`, secret, nil},
		{`{"firebase_app_id":"1:1234567890:android:321abc456def7890"}`, secret, nil},
		{`{"measurement_id":" G-1A2BCD345E ","region":"eu","user_properties":{"tier":"plan","home":"country"},"default_currency":"EUR",` +
			`"message_id_parameter":"event_id","analytics_360":true,"no_user_id":true,"user_agent":true,"concurrency":2}`, secret, nil},
		{`{}`, `{}`, []activation.FieldError{
			{Pointer: "/secrets/api_secret", Detail: "is required"},
			{Pointer: "/config/measurement_id", Detail: "is required, unless there is a firebase_app_id"},
		}},
		{`{"measurement_id":"1234567890","region":"us","concurrency":99}`, `{"api_secret":" \n"}`, []activation.FieldError{
			{Pointer: "/config/region", Detail: "must be one of global, eu"},
			{Pointer: "/config/concurrency", Detail: "must be at most 16"},
			{Pointer: "/secrets/api_secret", Detail: "is required"},
			{Pointer: "/config/measurement_id", Detail: "must be a measurement id such as G-1A2BCD345E, which is not the stream id"},
		}},
		{`{"measurement_id":"G-1A2BCD345E","firebase_app_id":"x"}`, secret, []activation.FieldError{
			{Pointer: "/config/firebase_app_id", Detail: "must not be given beside measurement_id: a destination is one data stream"},
		}},
		{`{"firebase_app_id":"com.example.app","api_url":"http://127.0.0.1"}`, secret, []activation.FieldError{
			{Pointer: "/config/firebase_app_id", Detail: "must be a Firebase app id such as 1:1234567890:android:321abc456def7890"},
			{Pointer: "/config/api_url", Detail: "must begin with https://"},
		}},
		{`{"measurement_id":"G-1A2BCD345E","api_url":"https://ga.example.com/?a=b","default_currency":"eur","message_id_parameter":"_id"}`, secret, []activation.FieldError{
			{Pointer: "/config/api_url", Detail: "must not have a query"},
			{Pointer: "/config/default_currency", Detail: "must be the three upper-case letters of a currency (ISO 4217)"},
			{Pointer: "/config/message_id_parameter", Detail: "is a name that Google keeps to itself"},
		}},
		{`{"measurement_id":"G-1A2BCD345E","message_id_parameter":"transaction_id","user_properties":{` +
			`"a":"email","b":"","user_id":"plan","much_too_long_for_a_property":"plan","a/b":"plan"}}`, secret, []activation.FieldError{
			{Pointer: "/config/message_id_parameter", Detail: "must not be a parameter that events have already"},
			{Pointer: "/config/user_properties/a", Detail: "must not be made of personal data, which Google Analytics forbids"},
			{Pointer: "/config/user_properties/a~1b", Detail: "must be letters, digits and underscores, and begin with a letter"},
			{Pointer: "/config/user_properties/b", Detail: "must name a trait"},
			{Pointer: "/config/user_properties/much_too_long_for_a_property", Detail: "must have at most 24 characters"},
			{Pointer: "/config/user_properties/user_id", Detail: "is a name that Google keeps to itself"},
		}},
		{`{"measurement_id":1,"more":2}`, secret, []activation.FieldError{
			{Pointer: "/config/measurement_id", Detail: "must be a string"},
			{Pointer: "/config/more", Detail: "is not known here"},
			{Pointer: "/config/measurement_id", Detail: "is required, unless there is a firebase_app_id"},
		}},
	} {
		kept, err := p.Prepare(activation.Settings{Config: jsontext.Value(tt.config), Secrets: jsontext.Value(tt.secrets)})
		if diff := cmp.Diff(tt.want, partnertest.FieldErrors(err)); diff != "" {
			t.Errorf("%s: %s", tt.config, diff)
		}
		if tt.want != nil {
			continue
		}
		if again, err := p.Prepare(kept); err != nil || string(again.Config) != string(kept.Config) {
			t.Errorf("%s: what was stored is stored as %s, %v", tt.config, again.Config, err)
		}
	}
	kept, err := p.Prepare(activation.Settings{Config: jsontext.Value(`{"measurement_id":"G-1A2BCD345E"}`), Secrets: jsontext.Value(secret)})
	if want := `{"measurement_id":"G-1A2BCD345E","region":"global","concurrency":8}`; err != nil || string(kept.Config) != want {
		t.Errorf("the defaults are %s, %v, want %s", kept.Config, err, want)
	}
	if diff := cmp.Diff(map[string]string{"api_secret": "…efgh"}, p.Mask(kept.Secrets)); diff != "" {
		t.Errorf("Mask: %s", diff)
	}
	if shown := p.Mask(jsontext.Value(`{}`)); shown != nil {
		t.Errorf("Mask of nothing = %v", shown)
	}
}

// catch is a transport that keeps where requests go, and answers as Google does.
type catch struct{ urls []string }

func (c *catch) RoundTrip(r *http.Request) (*http.Response, error) {
	c.urls = append(c.urls, r.URL.String())
	return &http.Response{StatusCode: http.StatusNoContent, Body: io.NopCloser(strings.NewReader(""))}, nil
}

func TestWhereEventsGo(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		`{"measurement_id":"G-1A2BCD345E"}`:                                                    "https://www.google-analytics.com/mp/collect?api_secret=s+%26&measurement_id=G-1A2BCD345E",
		`{"measurement_id":"G-1A2BCD345E","region":"eu"}`:                                      "https://region1.google-analytics.com/mp/collect?api_secret=s+%26&measurement_id=G-1A2BCD345E",
		`{"firebase_app_id":"1:2:ios:3"}`:                                                      "https://www.google-analytics.com/mp/collect?api_secret=s+%26&firebase_app_id=1%3A2%3Aios%3A3",
		`{"measurement_id":"G-1A2BCD345E","region":"eu","api_url":"https://ga.example.com/x"}`: "https://ga.example.com/x/mp/collect?api_secret=s+%26&measurement_id=G-1A2BCD345E",
	} {
		var c catch
		p := ga4.New(&http.Client{Transport: &c}, activation.Outbound{})
		to := activation.Target{Settings: activation.Settings{Config: jsontext.Value(config), Secrets: jsontext.Value(`{"api_secret":"s &"}`)}}
		o := p.Send(t.Context(), to, activation.Message{Body: []byte(`{}`)})
		if o.Class != activation.OK || len(c.urls) != 1 || c.urls[0] != want {
			t.Errorf("%s: %v, %+v, want %s", config, c.urls, o, want)
		}
	}
}

// at is a destination whose partner is somewhere else.
func at(url string) activation.Target {
	return activation.Target{Settings: activation.Settings{
		Config:  jsontext.Value(`{"measurement_id":"G-1A2BCD345E","api_url":"` + url + `"}`),
		Secrets: jsontext.Value(`{"api_secret":"0123456789abcdefgh"}`),
	}}
}

func TestWhatAnswersMean(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status int
		class  activation.Class
	}{
		{200, activation.OK},
		{204, activation.OK},
		{400, activation.Split},
		{401, activation.Reauth},
		{403, activation.Config},
		{404, activation.Config},
		{413, activation.Split},
		{429, activation.Retry},
		{500, activation.Retry},
	} {
		url := partnertest.Answering(t, tt.status, "")
		p := ga4.New(partnertest.NewClient(t), partnertest.Private)
		o := p.Send(t.Context(), at(url), activation.Message{Body: []byte(`{}`)})
		if o.Class != tt.class || o.Status != tt.status || (o.Reason == "") != (o.Class == activation.OK) {
			t.Errorf("%d: %+v, want %s", tt.status, o, tt.class)
		}
	}
	p := ga4.New(partnertest.NewClient(t), partnertest.Private)
	page := partnertest.Answering(t, 200, "<!DOCTYPE html><html><body>Log in to the network</body></html>")
	if o := p.Send(t.Context(), at(page), activation.Message{Body: []byte(`{}`)}); o.Class != activation.Retry || !o.Unknown {
		t.Errorf("a page of somebody in between: %+v", o)
	}
	bad := activation.Target{Settings: activation.Settings{Config: jsontext.Value(`[]`)}}
	if o := p.Send(t.Context(), bad, activation.Message{Body: []byte(`{}`)}); o.Class != activation.Config {
		t.Errorf("settings that cannot be read: %+v", o)
	}
}

func TestTheConnectionIsTested(t *testing.T) {
	t.Parallel()
	p := ga4.New(partnertest.NewClient(t), partnertest.Private)
	for _, firebase := range []bool{false, true} {
		fake := partnertest.NewGA4(t, partnertest.GA4Options{Firebase: firebase})
		o := p.Test(t.Context(), activation.Target{Settings: fake.Settings()})
		if o.Class != activation.OK || !strings.Contains(o.Reason, "never tells whether the api_secret") {
			t.Errorf("all is well: %+v", o)
		}
		if got := fake.Received(); len(got) > 0 {
			t.Errorf("a test counts as %v", got)
		}
		partnertest.NoViolations(t, fake)
	}
	for name, tt := range map[string]struct {
		url, words string
		class      activation.Class
	}{
		"another API":                {partnertest.Answering(t, 404, "{}"), "there is no Measurement Protocol: look at api_url", activation.Config},
		"a login page":               {partnertest.Answering(t, 200, "<html>"), "not what the partner promises", activation.Retry},
		"an answer without findings": {partnertest.Answering(t, 200, "{}"), "not what the partner promises", activation.Retry},
		"an answer without a body":   {partnertest.Answering(t, 204, ""), "not what the partner promises", activation.Retry},
		"a proxy that wants a login": {partnertest.Answering(t, 401, ""), "somebody in between refused", activation.Reauth},
		"nobody there":               {"http://127.0.0.1:1", "the connection was refused", activation.Retry},
		"findings": {
			partnertest.Answering(t, 200, `{"validationMessages":[
			{"fieldPath":"events[0].params.currency","description":"of ada@example.com","validationCode":"VALUE_REQUIRED"},
			{"fieldPath":"ada@example.com","description":"","validationCode":"NAME_INVALID"},
			{"fieldPath":"a","validationCode":"NAME_RESERVED"},{"fieldPath":"b","validationCode":"EXCEEDED_MAX_ENTITIES"},
			{"fieldPath":"c","validationCode":"NEWS"},{"fieldPath":"d","validationCode":"VALUE_INVALID"}]}`),
			"Google Analytics would not take this: events[0].params.currency is missing something that is required; something has a " +
				"name that is not allowed; a has a name that Google keeps to itself; b has too many of something; c is not as it should be; and 1 more",
			activation.Drop,
		},
	} {
		o := p.Test(t.Context(), at(tt.url))
		if o.Class != tt.class || !strings.Contains(o.Reason, tt.words) || strings.Contains(o.Excerpt, "ada@") {
			t.Errorf("%s: %+v, want %s, %q", name, o, tt.class, tt.words)
		}
	}
}

func TestDryRuns(t *testing.T) {
	t.Parallel()
	p, fake := newGA4(t, partnertest.GA4Options{})
	bench := partnertest.NewBench(t, p)
	bench.Destination(t, "fake", p.Type(), fake.Settings())
	_, _, err := bench.Store.Subscribe(t.Context(), bench.Workspace, "fake", "all", activation.NewSubscription{
		EventFilter: activation.EventFilter{Types: []string{"track"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	try := func(sample string) activation.EventDryRun {
		t.Helper()
		run, err := bench.Store.DryRunEvents(t.Context(), bench.Workspace, "fake", "all", jsontext.Value(sample), nil)
		if err != nil {
			t.Fatal(err)
		}
		return run
	}
	run := try(`{"type":"track","event":"Order Completed","messageId":"m1","anonymousId":"a1","properties":{"order_id":"o-1"}}`)
	if len(run.Requests) != 1 || !strings.Contains(run.Requests[0].URL, "api_secret=…") || strings.Contains(run.Requests[0].URL, "s3cr3t") {
		t.Errorf("the dry run shows %+v", run.Requests)
	}
	if run.Validated == nil || !run.Validated.OK {
		t.Errorf("the validation server says %+v", run.Validated)
	}
	const said = `"messageId":"m1","anonymousId":"a1","context":{"page":{"url":"https://shop.example/","title":"Shop"}},"properties":{` +
		`"order_id":"o-1","total":27.5,"value":"25.00","currency":"eur","tax":2,"coupon":"summer","list_id":"l-1","category":"Games","query":"x",` +
		`"payment_method":"Visa","product_id":"p-1","sku":"s-1","name":"Monopoly","price":19,"quantity":1,"position":3,"method":"Google","share_via":"e-mail",` +
		`"promotion_id":"r-1","creative":"banner","products":[{"product_id":"p-1","name":"Monopoly","price":19,"quantity":1,"image_url":"https://x"}]}}`
	for _, name := range []string{
		"Products Searched", "Product List Viewed", "Product List Filtered", "Product Clicked", "Product Viewed", "Product Added",
		"Product Removed", "Product Added to Wishlist", "Cart Viewed", "Checkout Started", "Payment Info Entered", "Order Completed",
		"Order Refunded", "Promotion Viewed", "Promotion Clicked", "Product Shared", "Cart Shared", "Signed Up", "Signed In", "Lead Generated",
		"Trial Started",
	} {
		run := try(`{"type":"track","event":"` + name + `",` + said)
		if run.Events != 1 || run.Validated == nil || !run.Validated.OK {
			t.Errorf("%s: %+v", name, run)
		}
	}
	if run := try(`{"type":"page",` + said); run.Events != 1 || !strings.Contains(string(run.Requests[0].Body), `"page_view"`) {
		t.Errorf("a page: %+v", run)
	}
	run = try(`{"type":"track","event":"Order Completed","messageId":"m1","anonymousId":"a1"}`)
	if len(run.Refused) != 1 || !strings.Contains(run.Refused[0].Reason, "transaction_id") {
		t.Errorf("an order without an id: %+v", run)
	}
	if got := fake.Received(); len(got) > 0 {
		t.Errorf("dry runs count as %v", got)
	}
	partnertest.NoViolations(t, fake)
}

func TestAnAppsEventsArrive(t *testing.T) {
	t.Parallel()
	p, fake := newGA4(t, partnertest.GA4Options{Firebase: true})
	to := activation.Target{Settings: fake.Settings()}
	order, _ := partnertest.Order(7, time.Now())
	order.Context.Raw = jsontext.Value(`{"app":{"app_instance_id":"0123456789abcdef0123456789abcdef"}}`)
	order.As, order.Fields = "purchase", map[string]jsontext.Value{
		"transaction_id": jsontext.Value(`"o-7"`), "value": jsontext.Value(`7.10`), "currency": jsontext.Value(`"EUR"`),
	}
	fake.Expect(order)
	if reason := p.RefuseEvent(to, order); reason != "" {
		t.Fatal(reason)
	}
	body, _, err := p.EncodeEvents(to, activation.EventBatch{Events: []activation.Event{order}})
	if err != nil {
		t.Fatal(err)
	}
	if o := p.Send(t.Context(), to, activation.Message{Body: body}); o.Class != activation.OK {
		t.Errorf("Send = %+v", o)
	}
	if diff := cmp.Diff([]string{"order-7"}, fake.Received()); diff != "" {
		t.Error(diff)
	}
	partnertest.NoViolations(t, fake)
}

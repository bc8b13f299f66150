package partnertest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func TestMetaConversionsNoticesWhatIsWrong(t *testing.T) {
	t.Parallel()
	const events = "/v25.0/555000111222/events?access_token=" + metaToken
	now := time.Now()
	order, _ := partnertest.Order(3, now)
	// All of it is right.
	right := fmt.Sprintf(`{"data":[{"event_name":"Purchase","event_time":%d,"event_id":"order-3","action_source":"website",`+
		`"event_source_url":"https://shop.example/thanks?gclid=g-3&fbclid=f-3","user_data":{"em":["%s"],"ph":["%s"],"fn":["%s"],`+
		`"ln":["%s"],"zp":["%s"],"country":["%s"],"external_id":["%s"],"client_ip_address":"203.0.113.7",`+
		`"client_user_agent":"Mozilla/5.0 (X11; Linux x86_64)","fbc":"fb.1.%d.f-3","fbp":"fb.1.1558571054389.3"},`+
		`"custom_data":{"value":3.10,"currency":"EUR","order_id":"o-3","content_ids":["sku-1"],"content_type":"product",`+
		`"contents":[{"id":"sku-1","quantity":1,"item_price":3.10}],"num_items":1}}]}`,
		now.Unix(), partnertest.Hex("person.3@example.com"), partnertest.Hex("16505550003"), partnertest.Hex("ada3"),
		partnertest.Hex("lovelace"), partnertest.Hex("94045"), partnertest.Hex("us"), partnertest.Hex("cust-3"),
		order.Timestamp.UnixMilli())
	with := func(old, replacement string) string {
		t.Helper()
		if !strings.Contains(right, old) {
			t.Fatalf("there is no %s", old)
		}
		return strings.Replace(right, old, replacement, 1)
	}
	hash, second := partnertest.Hex("person.3@example.com"), fmt.Sprintf(`"event_time":%d`, now.Unix())
	email := func(value string) string { return with(hash, value) }
	user := right[strings.Index(right, `"em"`):strings.Index(right, `},"custom_data"`)]
	one := strings.TrimSuffix(strings.TrimPrefix(right, `{"data":[`), `]}`)
	type options = partnertest.MetaConversionsOptions
	for name, tt := range map[string]struct {
		options options
		path    string // events if ""
		body    string // right if ""
		header  []string
		answer  string // is in the answer; that all is well if ""
		want    string // is in a violation; "" for none
	}{
		"nothing":                     {},
		"no token":                    {path: "/v25.0/555000111222/events", answer: `"code":104`, want: "no access token"},
		"the token in the header":     {path: "/v25.0/555000111222/events", header: []string{"Authorization", "Bearer " + metaToken}, answer: `"code":104`, want: "in the header"},
		"no proof":                    {options: options{Proof: "plain"}, answer: "appsecret_proof", want: "proof"},
		"another version":             {path: strings.Replace(events, "v25.0", "v9.0", 1), answer: `"code":2635`, want: "not served"},
		"another dataset":             {path: strings.Replace(events, "555000111222", "1", 1), answer: `"error_subcode":33`, want: "dataset 1"},
		"another path":                {path: strings.Replace(events, "events", "users", 1), answer: `"code":2500`, want: "not known"},
		"a parameter":                 {path: events + "&debug=all", want: "debug"},
		"a form":                      {header: []string{"Content-Type", "application/x-www-form-urlencoded"}, answer: `"code":100`, want: "content type"},
		"an unknown member":           {body: with(`"event_id"`, `"event_uuid":"1","event_id"`), answer: `"code":100`, want: "event_uuid"},
		"a member twice":              {body: with(`"event_id"`, `"event_id":"1","event_id"`), answer: `"code":100`, want: "duplicate"},
		"a number for a text":         {body: with(`"order-3"`, `3`), answer: `"code":100`, want: "cannot be read"},
		"no events":                   {body: `{"data":[]}`, answer: `"code":100`, want: "0 events"},
		"too many events":             {body: `{"data":[` + strings.TrimSuffix(strings.Repeat(one+",", 1001), ",") + `]}`, answer: `"code":100`, want: "1001 events"},
		"a code for test events":      {body: with(`{"data"`, `{"test_event_code":"X","data"`), want: "code for test events"},
		"no code for test events":     {options: options{TestEventCode: "X"}, want: "code for test events"},
		"a test that counts":          {body: with("Purchase", "ConnectionTest"), want: "without a code"},
		"no name":                     {body: with("Purchase", ""), answer: `"code":100`, want: "no name"},
		"another name":                {body: with("Purchase", "Lead"), want: "named Lead"},
		"no id":                       {body: with("order-3", ""), want: "no id"},
		"a stranger's event":          {body: with("order-3", "order-4"), want: "never heard of"},
		"milliseconds":                {body: with(second, fmt.Sprintf(`"event_time":%d`, now.UnixMilli())), answer: `"error_subcode":2804004`, want: "milliseconds"},
		"a time in words":             {body: with(second, `"event_time":"2026-08-01T00:00:00Z"`), answer: `"code":100`, want: "no integer"},
		"a fraction of a second":      {body: with(second, second+".5"), answer: `"code":100`, want: "no integer"},
		"another time":                {body: with(second, fmt.Sprintf(`"event_time":%d`, now.Unix()-60)), want: "when or where"},
		"an old event":                {body: with(second, fmt.Sprintf(`"event_time":%d`, now.AddDate(0, 0, -8).Unix())), answer: `"error_subcode":2804003`, want: "too old"},
		"an old event of a shop":      {body: strings.Replace(with(second, fmt.Sprintf(`"event_time":%d`, now.AddDate(0, 0, -8).Unix())), `"website"`, `"physical_store"`, 1), want: "when or where"},
		"a very old event of a shop":  {body: strings.Replace(with(second, fmt.Sprintf(`"event_time":%d`, now.AddDate(0, 0, -63).Unix())), `"website"`, `"physical_store"`, 1), answer: `"error_subcode":2804003`, want: "too old"},
		"an unknown source":           {body: with(`"website"`, `"web"`), answer: `"code":100`, want: "action_source"},
		"another source":              {body: with(`"website"`, `"chat"`), want: "when or where"},
		"no user agent":               {body: with(`"client_user_agent":"Mozilla/5.0 (X11; Linux x86_64)",`, ``), answer: `"error_subcode":2804019`, want: "no user agent"},
		"no URL":                      {body: with(`"event_source_url":"https://shop.example/thanks?gclid=g-3&fbclid=f-3",`, ``), answer: `"error_subcode":2804019`, want: "no URL"},
		"another URL":                 {body: with("/thanks", "/thank-you"), want: "has the URL"},
		"an app without its data":     {body: with(`"website"`, `"app"`), answer: `"code":100`, want: "app_data"},
		"an app's data, too short":    {body: with(`"website"`, `"app","app_data":{"advertiser_tracking_enabled":1,"application_tracking_enabled":1,"extinfo":["i2"]}`), answer: `"code":100`, want: "app_data"},
		"a madid of no app":           {body: with(`"fbp"`, `"madid":"5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25","fbp"`), want: "madid"},
		"a key of audiences":          {body: with(`"em"`, `"EMAIL"`), answer: `"code":100`, want: "EMAIL"},
		"a text for a list":           {body: with(`["`+hash+`"]`, `"`+hash+`"`), answer: `"code":100`, want: "user_data that is not known, or empty: em"},
		"an empty list":               {body: with(`["`+hash+`"]`, `[]`), answer: `"code":100`, want: "or empty: em"},
		"a user agent alone":          {body: with(user, `"client_user_agent":"Mozilla/5.0 (X11; Linux x86_64)"`), answer: `"error_subcode":2804050`, want: "too little"},
		"a browser alone":             {body: with(user[:strings.Index(user, `"client_ip`)], ``), want: "does not say em"},
		"an address that is no hash":  {body: email("person.3"), answer: `"code":100`, want: "em is not hashed"},
		"an address anywhere":         {body: email("person.3@example.com"), answer: `"code":100`, want: "e-mail address"},
		"an address in a URL":         {body: with("thanks?", "thanks?m=a%40b.example&"), want: "e-mail address"},
		"upper case":                  {body: email(strings.ToUpper(hash)), want: "is in upper case"},
		"the hash of a hash":          {body: email(partnertest.Hex(hash)), want: "hashed twice"},
		"the hash of nothing":         {body: email(partnertest.Hex("")), want: "hash of nothing"},
		"the hash of null":            {body: email(partnertest.Hex("null")), want: "hash of null"},
		"a line break":                {body: email(partnertest.Hex("person.3@example.com\n")), want: "line break"},
		"an address for Google":       {body: email(partnertest.Hex("person3@example.com")), want: "as Google does"},
		"a stranger's address":        {body: email(partnertest.Hex("x@example.com")), want: "not right for anybody"},
		"another's address":           {body: email(partnertest.Hex("person.2@example.com")), want: "mixes"},
		"a number with a plus sign":   {body: with(partnertest.Hex("16505550003"), partnertest.Hex("+16505550003")), want: "hashed with +"},
		"an id that is not hashed":    {body: with(partnertest.Hex("cust-3"), "cust-3"), want: "is not hashed"},
		"a country in capitals":       {body: with(partnertest.Hex("us"), partnertest.Hex("US")), want: "capitals"},
		"no phone number":             {body: with(`"ph":["`+partnertest.Hex("16505550003")+`"],`, ``), want: "does not say ph"},
		"details that were not asked": {options: options{KeysOnly: true}, want: "not right for anybody"},
		"a click as it came":          {body: with(fmt.Sprintf("fb.1.%d.f-3", order.Timestamp.UnixMilli()), "f-3"), want: "fbc that is none"},
		"a click in seconds":          {body: with(fmt.Sprintf("fb.1.%d.f-3", order.Timestamp.UnixMilli()), fmt.Sprintf("fb.1.%d.f-3", now.Unix())), want: "fbc that is none"},
		"no browser":                  {body: with(`,"fbp":"fb.1.1558571054389.3"`, ``), want: `has fbp ""`},
		"an address of nobody":        {body: with("203.0.113.7", "10.1.2.3"), want: "says anything"},
		"another IP address":          {body: with("203.0.113.7", "203.0.113.8"), want: "client_ip_address"},
		"a value in quotes":           {body: with(`3.10,"currency"`, `"3.10","currency"`), answer: `"error_subcode":2804009`, want: "value that is a number"},
		"no currency":                 {body: with(`"currency":"EUR",`, ``), answer: `"error_subcode":2804009`, want: "no currency"},
		"a value that was rounded":    {body: with(`3.10,"currency"`, `3.1,"currency"`), want: "has value 3.1, want 3.10"},
		"other products":              {body: with(`"quantity":1`, `"quantity":2`), want: "has contents"},
		"something of our own":        {body: with(`"num_items":1`, `"num_items":1,"shoe_size":9`), want: "shoe_size"},
		"limits for nobody":           {body: with(`"event_id"`, `"data_processing_options":["LDU"],"data_processing_options_country":0,"data_processing_options_state":0,"event_id"`), want: "limited data use true"},
		"no limits":                   {options: options{LimitedDataUse: "all"}, want: "limited data use false"},
		"limits without a place":      {options: options{LimitedDataUse: "all"}, body: with(`"event_id"`, `"data_processing_options":["LDU"],"event_id"`), answer: `"code":100`, want: "country and state"},
		"limits at a wrong place":     {options: options{LimitedDataUse: "all"}, body: with(`"event_id"`, `"data_processing_options":["LDU"],"data_processing_options_country":1,"data_processing_options_state":1000,"event_id"`), want: "of state 1000"},
		"limits at an unknown place":  {options: options{LimitedDataUse: "all"}, body: with(`"event_id"`, `"data_processing_options":["LDU"],"data_processing_options_country":49,"data_processing_options_state":0,"event_id"`), answer: `"code":100`, want: "country and state"},
		"unknown limits":              {body: with(`"event_id"`, `"data_processing_options":["ALL"],"event_id"`), answer: `"code":100`, want: "not known"},
		"a place for no limits":       {body: with(`"event_id"`, `"data_processing_options_country":0,"event_id"`), want: "no data processing options"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := partnertest.NewMetaConversions(t, tt.options)
			for n := range 4 {
				f.Seed(partnertest.Somebody(n))
			}
			f.Expect(order)
			path, body := events, right
			if tt.path != "" {
				path = tt.path
			}
			if tt.body != "" {
				body = tt.body
			}
			status, answer := metaAsk(t, "POST", f.URL+path, body, tt.header...)
			if tt.answer == "" {
				tt.answer = `{"events_received":1`
			}
			if (status == 200) != strings.HasPrefix(tt.answer, `{"events_received`) || !strings.Contains(answer, tt.answer) {
				t.Errorf("answer %d %s, want %q", status, answer, tt.answer)
			}
			found := f.Violations()
			if tt.want == "" && len(found) > 0 || !strings.Contains(strings.Join(found, "\n"), tt.want) {
				t.Errorf("violations %q, want %q", found, tt.want)
			}
			if got := f.Received(); status != 200 && len(got) > 0 {
				t.Errorf("%v were refused, and count", got)
			}
		})
	}
	f := partnertest.NewMetaConversions(t, options{})
	f.Seed(partnertest.Somebody(3))
	f.Expect(order)
	for range 2 { // what comes again counts once
		metaAsk(t, "POST", f.URL+events, right)
	}
	if diff := cmp.Diff([]string{"order-3"}, f.Received()); diff != "" || len(f.Violations()) > 0 {
		t.Errorf("received (-want +got):\n%s\nviolations %q", diff, f.Violations())
	}
	// Under another name it counts again.
	metaAsk(t, "POST", f.URL+events, with("Purchase", "Lead"))
	if diff := cmp.Diff([]string{"order-3", "order-3"}, f.Received()); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
	f.RefuseEvent("order-3", true)
	if status, answer := metaAsk(t, "POST", f.URL+events, right); status != 400 || !strings.Contains(answer, `"code":100`) {
		t.Errorf("what is refused: %d %s", status, answer)
	}
	limited := order
	limited.Person.Consent = map[string]bool{activation.GPC: true}
	f = partnertest.NewMetaConversions(t, options{})
	f.Seed(partnertest.Somebody(3))
	f.Expect(limited)
	metaAsk(t, "POST", f.URL+events, right)
	if found := strings.Join(f.Violations(), "\n"); !strings.Contains(found, "limited data use false") {
		t.Errorf("of somebody who has opted out: %q", found)
	}
}

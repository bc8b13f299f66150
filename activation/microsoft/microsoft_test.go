package microsoft_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/microsoft"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func TestPrepare(t *testing.T) {
	t.Parallel()
	const (
		config = `{"customer_id":"1111","account_id":"2222","client_id":"c"}`
		tokens = `{"developer_token":"0123456789abcdef","refresh_token":"0123456789ghijkl"}`
	)
	strict := microsoft.New(nil, activation.Outbound{})
	for _, tt := range []struct {
		config, secrets string
		want            []activation.FieldError
	}{
		{config, tokens, nil},
		{
			`{"customer_id":"1111","account_id":"2222","client_id":"c","identifier":"phone","phone_format":"digits","default_country":"DE",` +
				`"accept_terms":true,"items":10000,"api_url":"https://campaign.api.sandbox.bingads.microsoft.com/CampaignManagement/v13",` +
				`"token_url":"https://login.microsoftonline.com/organizations/oauth2/v2.0/token"}`,
			`{"developer_token":"d","client_secret":"s","refresh_token":"r","access_token":"a"}`, nil,
		},
		{`{}`, `{}`, []activation.FieldError{
			{Pointer: "/config/customer_id", Detail: "is required"},
			{Pointer: "/config/account_id", Detail: "is required"},
			{Pointer: "/config/client_id", Detail: "is required"},
			{Pointer: "/secrets/developer_token", Detail: "is required"},
			{Pointer: "/secrets/refresh_token", Detail: "is required"},
		}},
		{
			`{"customer_id":"a","account_id":"-2","client_id":"c","identifier":"name","phone_format":"both","default_country":"de","items":1,` +
				`"api_url":"http://127.0.0.1","token_url":"x"}`, tokens,
			[]activation.FieldError{
				{Pointer: "/config/customer_id", Detail: "must be digits only"},
				{Pointer: "/config/account_id", Detail: "must be digits only"},
				{Pointer: "/config/identifier", Detail: "must be one of email, crm, phone"},
				{Pointer: "/config/phone_format", Detail: "must be one of e164_plus, digits"},
				{Pointer: "/config/default_country", Detail: "must be the two upper-case letters of a country (ISO 3166)"},
				{Pointer: "/config/items", Detail: "must be at least 100"},
				{Pointer: "/config/api_url", Detail: "must begin with https://"},
				{Pointer: "/config/token_url", Detail: "is not a URL"},
			},
		},
		{`{"customer_id":1111,"account_id":"2222","client_id":"c"}`, tokens, []activation.FieldError{{Pointer: "/config/customer_id", Detail: "must be a string"}}},
		{config, `{"developer_token":"d","refresh_token":"r","password":"p"}`, []activation.FieldError{{Pointer: "/secrets/password", Detail: "is not known here"}}},
	} {
		kept, err := strict.Prepare(activation.Settings{Config: jsontext.Value(tt.config), Secrets: jsontext.Value(tt.secrets)})
		if diff := cmp.Diff(tt.want, partnertest.FieldErrors(err)); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.config, tt.secrets, diff)
		}
		if tt.want == nil && (string(kept.Config) != tt.config || string(kept.Secrets) != tt.secrets) {
			t.Errorf("what is stored of %s %s is %s %s", tt.config, tt.secrets, kept.Config, kept.Secrets)
		}
	}
	want := map[string]string{"developer_token": "…cdef", "refresh_token": "…ijkl"}
	if diff := cmp.Diff(want, strict.Mask(jsontext.Value(tokens))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(activation.AdGate(), strict.Gate()); diff != "" {
		t.Error(diff)
	}
	limits := activation.Limits{
		Members: 1000, Concurrency: 4, Timeout: 20 * time.Second, Linger: time.Second, NeedsAudience: true, Account: "customer_1111",
	}
	if diff := cmp.Diff(limits, strict.Limits(target(""))); diff != "" {
		t.Error(diff)
	}
}

// answering returns a partner and a destination whose every request is answered so.
func answering(t *testing.T, status int, body string) (*microsoft.Partner, activation.Target) {
	t.Helper()
	at := partnertest.Answering(t, status, body)
	return microsoft.New(partnertest.NewClient(t), partnertest.Private), target(fmt.Sprintf(`,"api_url":%q,"token_url":%q`, at+"/", at))
}

func TestWhatAnswersMean(t *testing.T) {
	t.Parallel()
	const html = "<html>Bad gateway</html>"
	errors := func(code int, name string) string {
		return fmt.Sprintf(`{"Errors":[{"Code":%d,"ErrorCode":%q,"Message":"…","Detail":""}],"TrackingId":"t","Type":"AdApiFaultDetail"}`, code, name)
	}
	operation := func(code int, name string) string {
		return fmt.Sprintf(`{"BatchErrors":[],"OperationErrors":[{"Code":%d,"ErrorCode":%q}],"TrackingId":"t","Type":"ApiFaultDetail"}`, code, name)
	}
	for _, tt := range []struct {
		status  int
		body    string
		class   activation.Class
		wait    time.Duration
		unknown bool
		reason  string // a part of it
	}{
		{status: 200, body: `{"PartialErrors":[]}`, class: activation.OK},
		{status: 200, body: `{"PartialErrors":null}`, class: activation.OK},
		{status: 200, body: `{"PartialErrors":[null]}`, class: activation.OK},
		{status: 401, body: errors(109, "AuthenticationTokenExpired"), class: activation.Refresh, reason: "has ended"},
		{status: 400, body: errors(109, ""), class: activation.Refresh, reason: "has ended"},
		{status: 401, body: ``, class: activation.Refresh, reason: "was refused"},
		{status: 400, body: errors(105, "InvalidCredentials"), class: activation.Reauth, reason: "connect the account again"},
		{status: 400, body: errors(106, "UserIsNotAuthorized"), class: activation.Config, reason: "customer_id and account_id"},
		{status: 400, body: errors(1, "InvalidDeveloperToken"), class: activation.Config, reason: "developer token"},
		{status: 400, body: errors(1, "InvalidAccountId"), class: activation.Config, reason: "account_id is wrong"},
		{status: 400, body: errors(117, "CallRateExceeded"), class: activation.RetryAfter, wait: time.Minute, reason: "too many calls"},
		{status: 400, body: errors(117, ""), class: activation.RetryAfter, wait: time.Minute, reason: "too many calls"},
		{status: 400, body: errors(207, "ConcurrentRequestOverLimit"), class: activation.Retry, reason: "at once"},
		{status: 400, body: operation(8003, "CustomerListTermsAndConditionsNotAccepted"), class: activation.Config, reason: "accept_terms"},
		{status: 400, body: operation(8003, ""), class: activation.Config, reason: "accept_terms"},
		{status: 400, body: operation(4701, "InvalidAudienceId"), class: activation.Config, reason: "not there"},
		{status: 400, body: operation(4303, "BatchSizeExceeded"), class: activation.Split, reason: "BatchSizeExceeded"},
		{status: 400, body: `{"BatchErrors":[{"Index":0,"Code":5,"ErrorCode":"NullItem"}],"OperationErrors":[]}`, class: activation.Split, reason: "NullItem"},
		{status: 400, body: operation(9, ""), class: activation.Split, reason: "no name"},
		{status: 400, body: errors(0, "InternalError"), class: activation.Retry, unknown: true, reason: "Microsoft's own"},
		{status: 500, body: errors(0, "InternalError"), class: activation.Retry, unknown: true, reason: "500"},
		{status: 200, body: html, class: activation.Retry, unknown: true, reason: "not what the partner promises"},
		{status: 200, body: `{"PartialErrors":{}}`, class: activation.Retry, unknown: true, reason: "not what the partner promises"},
		{status: 400, body: html, class: activation.Retry, reason: "a gateway answered 400"},
		{status: 403, body: html, class: activation.Retry, reason: "a gateway answered 403"},
		{status: 404, body: html, class: activation.Config, reason: "api_url"},
		{status: 413, body: html, class: activation.Split, reason: "413"},
		{status: 429, body: html, class: activation.Retry, reason: "429"},
		{status: 502, body: html, class: activation.Retry, unknown: true, reason: "502"},
		{status: 200, body: `{"PartialErrors":[{"Code":4701,"ErrorCode":"InvalidAudienceId"}]}`, class: activation.Config, unknown: true, reason: "not there"},
		{status: 200, body: `{"PartialErrors":[{"Index":9,"Code":9,"ErrorCode":"Odd"}]}`, class: activation.Split, unknown: true, reason: "Odd"},
		{status: 200, body: `{"PartialErrors":[{"Index":0,"Code":8003}]}`, class: activation.Config, unknown: true, reason: "accept_terms"},
	} {
		p, to := answering(t, tt.status, tt.body)
		o := p.Send(t.Context(), to, activation.Message{Body: []byte(`{"counts":[1],"body":{}}`)})
		if o.Class != tt.class || o.Wait != tt.wait || o.Unknown != tt.unknown || o.Status != tt.status ||
			!strings.Contains(o.Reason, tt.reason) || (o.Reason == "") != (o.Class == activation.OK) {
			t.Errorf("%d %s: %+v, want %s, %v, unknown %v, %q", tt.status, tt.body, o, tt.class, tt.wait, tt.unknown, tt.reason)
		}
	}
	p := microsoft.New(nil, partnertest.Private)
	for name, tt := range map[string]struct {
		to    activation.Target
		body  string
		class activation.Class
	}{
		"no settings":     {activation.Target{}, `{}`, activation.Config},
		"no message":      {target(""), `x`, activation.Config},
		"no access token": {activation.Target{Settings: activation.Settings{Config: target("").Config}}, `{}`, activation.Refresh},
	} {
		if o := p.Send(t.Context(), tt.to, activation.Message{Body: []byte(tt.body)}); o.Class != tt.class {
			t.Errorf("%s: %+v, want %s", name, o, tt.class)
		}
	}
}

// What is said of items is said of the people they are of.
func TestPartialErrors(t *testing.T) {
	t.Parallel()
	const invalid = `"Code":4099,"ErrorCode":"InvalidCustomerListItem"`
	ok := activation.RowOutcome{Class: activation.OK}
	drop := activation.RowOutcome{Class: activation.Drop, Reason: "Microsoft refused it: InvalidCustomerListItem"}
	again := activation.RowOutcome{Class: activation.Retry, Reason: "an error of Microsoft's own"}
	for name, tt := range map[string]struct {
		entered bool
		errors  string
		unknown bool
		want    []activation.RowOutcome
	}{
		"somebody's only item":                       {true, `{"Index":0,` + invalid + `}`, false, []activation.RowOutcome{drop, ok, ok}},
		"one of the two of somebody who enters":      {true, `{"Index":2,` + invalid + `}`, false, []activation.RowOutcome{ok, ok, ok}},
		"both of somebody who enters":                {true, `{"Index":1,` + invalid + `},{"Index":2,` + invalid + `}`, false, []activation.RowOutcome{ok, drop, ok}},
		"one of the two of somebody who leaves":      {false, `{"Index":2,` + invalid + `}`, false, []activation.RowOutcome{ok, drop, ok}},
		"one refused, and one that had bad luck":     {true, `{"Index":1,"Code":0},{"Index":2,` + invalid + `}`, true, []activation.RowOutcome{ok, again, ok}},
		"one that had bad luck, and the one refused": {true, `{"Index":3,"Code":0},{"Index":0,` + invalid + `}`, true, []activation.RowOutcome{drop, ok, again}},
	} {
		p, to := answering(t, 200, `{"PartialErrors":[`+tt.errors+`]}`)
		o := p.Send(t.Context(), to, activation.Message{
			Body:    []byte(`{"counts":[1,2,1],"body":{}}`),
			Members: []activation.MemberRef{{Entered: tt.entered}, {Entered: tt.entered}, {Entered: tt.entered}},
		})
		if o.Class != activation.Partial || o.Unknown != tt.unknown || o.Reason == "" {
			t.Errorf("%s: %+v", name, o)
		}
		if diff := cmp.Diff(tt.want, o.Rows); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	p, f := start(t, partnertest.MicrosoftOptions{})
	to := at(f)
	fresh, expires, o := p.Refresh(t.Context(), to)
	if o.Class != activation.OK || time.Until(expires) < 50*time.Minute || time.Until(expires) > time.Hour {
		t.Fatalf("Refresh = %v, %+v", expires, o)
	}
	want := `{"developer_token":"ABC123DEF456","refresh_token":"refresh-token-1","access_token":"access-token-1"}`
	if string(fresh.Secrets) != want || string(fresh.Config) != string(to.Config) {
		t.Errorf("the fresh settings are %s %s, want the secrets %s", fresh.Config, fresh.Secrets, want)
	}
	if o := p.Test(t.Context(), to); o.Class != activation.Refresh {
		t.Errorf("Test with the old token = %+v", o)
	}
	to.Settings = fresh
	if o := p.Test(t.Context(), to); o.Class != activation.OK {
		t.Errorf("Test with the new token = %+v", o)
	}
	partnertest.NoViolations(t, f)
	f.Revoke()
	if _, _, o := p.Refresh(t.Context(), to); o.Class != activation.Reauth {
		t.Errorf("Refresh after all was revoked = %+v", o)
	}
	if _, _, o := p.Refresh(t.Context(), activation.Target{}); o.Class != activation.Config {
		t.Errorf("Refresh without settings = %+v", o)
	}
}

// A web app tells its secret, and a refresh token that is not replaced stays.
func TestRefreshOfAWebApp(t *testing.T) {
	t.Parallel()
	var form string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		form = r.FormValue("client_secret")
		io.WriteString(w, `{"access_token":"new"}`)
	}))
	t.Cleanup(server.Close)
	to := target(fmt.Sprintf(`,"token_url":%q`, server.URL))
	to.Secrets = jsontext.Value(`{"developer_token":"d","client_secret":"s","refresh_token":"r"}`)
	fresh, expires, o := microsoft.New(partnertest.NewClient(t), partnertest.Private).Refresh(t.Context(), to)
	if o.Class != activation.OK || !expires.IsZero() || form != "s" {
		t.Errorf("Refresh = %v, %+v; the secret sent is %q", expires, o, form)
	}
	if want := `{"developer_token":"d","client_secret":"s","refresh_token":"r","access_token":"new"}`; string(fresh.Secrets) != want {
		t.Errorf("the fresh secrets are %s, want %s", fresh.Secrets, want)
	}
}

// at returns a destination at a fake.
func at(f *partnertest.Microsoft) activation.Target {
	return activation.Target{ID: 3, Settings: f.Settings()}
}

func TestConnectionsAreTested(t *testing.T) {
	t.Parallel()
	p, f := start(t, partnertest.MicrosoftOptions{})
	if o := p.Test(t.Context(), at(f)); o.Class != activation.OK {
		t.Errorf("Test = %+v", o)
	}
	with := func(from, to string) activation.Target {
		s := at(f)
		s.Config = jsontext.Value(strings.ReplaceAll(string(s.Config), from, to))
		s.Secrets = jsontext.Value(strings.ReplaceAll(string(s.Secrets), from, to))
		return s
	}
	for name, tt := range map[string]struct {
		to     activation.Target
		class  activation.Class
		reason string
	}{
		"a token that is not known":   {with("access-token-0", "other"), activation.Refresh, "the access token has ended"},
		"no token yet":                {with("access-token-0", ""), activation.Refresh, "no access token yet"},
		"a wrong developer token":     {with("ABC123DEF456", "other"), activation.Reauth, "the credentials or the developer token were refused"},
		"an account of somebody else": {with("2222", "3333"), activation.Config, "look at customer_id and account_id"},
		"no settings":                 {activation.Target{}, activation.Config, "cannot be read"},
	} {
		if o := p.Test(t.Context(), tt.to); o.Class != tt.class || !strings.Contains(o.Reason, tt.reason) {
			t.Errorf("%s: %+v, want %s, %q", name, o, tt.class, tt.reason)
		}
	}
}

func TestListsAreMadeOnce(t *testing.T) {
	t.Parallel()
	p, f := start(t, partnertest.MicrosoftOptions{})
	f.List("Somebody else's (mubatch dst_33 seg_7)")
	segment := activation.Segment{ID: 7, Key: "big-spenders", Name: "Big spenders"}
	making := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Audiences") }
	f.Script(partnertest.Fault{Reset: true, Apply: true, Match: making})
	if made, o := p.Create(t.Context(), at(f), segment); o.Class != activation.Retry || !o.Unknown || made != "" {
		t.Errorf("Create without an answer = %q, %+v", made, o)
	}
	made, o := p.Create(t.Context(), at(f), segment)
	if o.Class != activation.OK || made == "" {
		t.Fatalf("Create = %q, %+v", made, o)
	}
	segment.Name = "Largest spenders"
	if again, o := p.Create(t.Context(), at(f), segment); o.Class != activation.OK || again != made {
		t.Errorf("Create of a segment that was renamed = %q, %+v, want %q", again, o, made)
	}
	other := activation.Segment{ID: 77, Key: "other", Name: strings.Repeat("Größte Käufer ", 20)}
	if second, o := p.Create(t.Context(), at(f), other); o.Class != activation.OK || second == made {
		t.Errorf("Create for another segment = %q, %+v", second, o)
	}
	if names := f.Lists(); len(names) != 3 || names[1] != "Big spenders (mubatch dst_3 seg_7)" || len([]rune(names[2])) > 100 || !strings.HasSuffix(names[2], "Größte (mubatch dst_3 seg_77)") {
		t.Errorf("the lists are %q", names)
	}
	partnertest.NoViolations(t, f)
	f.Revoke()
	if _, o := p.Create(t.Context(), at(f), segment); o.Class != activation.Reauth {
		t.Errorf("Create after all was revoked = %+v", o)
	}
}

func TestAnswersThatLackWhatTheyShouldHold(t *testing.T) {
	t.Parallel()
	segment := activation.Segment{ID: 7, Name: "Big spenders"}
	for body, class := range map[string]activation.Class{
		`{"AudienceIds":[],"PartialErrors":[]}`: activation.Retry,
		`{}`:                                    activation.Retry,
		`{"AudienceIds":[null],"PartialErrors":[{"Index":0,"Code":1,"ErrorCode":"NameTaken"}]}`: activation.Split,
		`{"AudienceIds":[null],"PartialErrors":[{"Index":0,"Code":106}]}`:                       activation.Config,
		`{"Audiences":[null,{"Id":814,"Name":"x (mubatch dst_3 seg_7)"}]}`:                      activation.OK,
	} {
		p, to := answering(t, 200, body)
		made, o := p.Create(t.Context(), to, segment)
		if o.Class != class || o.Reason == "" != (class == activation.OK) || (made == "814") != (class == activation.OK) {
			t.Errorf("%s: Create = %q, %+v, want %s", body, made, o, class)
		}
	}
	for body, want := range map[string]int64{
		`{"Audiences":[null],"PartialErrors":[{"Index":0,"Code":4701}]}`:            -1,
		`{"Audiences":[{"Id":"814"}]}`:                                              -1,
		`{"Audiences":[{"Id":"814","AudienceNetworkSize":null,"SearchSize":1200}]}`: 1200,
		`{"Audiences":[{"Id":"814","AudienceNetworkSize":"900","SearchSize":"0"}]}`: 900,
		`{"Audiences":[{"Id":"815","SearchSize":"5"}]}`:                             -1,
	} {
		p, to := answering(t, 200, body)
		if size, o := p.Size(t.Context(), to, "814"); o.Class != activation.OK || size.Matched != want {
			t.Errorf("%s: Size = %+v, %+v, want %d", body, size, o, want)
		}
	}
}

// The customer's own ids come and go as others do.
func TestOwnIDs(t *testing.T) {
	t.Parallel()
	p, f := start(t, partnertest.MicrosoftOptions{Identifier: "crm"})
	list := f.List("made by hand")
	batch := activation.Batch{Audience: list}
	for n := range 3 {
		somebody := partnertest.Somebody(n)
		f.Seed(somebody)
		ids, err := p.Identify(at(f), somebody)
		if err != nil {
			t.Fatal(err)
		}
		batch.Members = append(batch.Members, activation.Member{Identifiers: ids, Entered: true})
	}
	for _, entered := range []bool{true, false} {
		for i := range batch.Members {
			batch.Members[i].Entered = entered
		}
		body, _, err := p.Encode(at(f), batch)
		if err != nil {
			t.Fatal(err)
		}
		if o := p.Send(t.Context(), at(f), activation.Message{Body: body}); o.Class != activation.OK {
			t.Fatalf("Send = %+v", o)
		}
		want := map[bool]int64{true: 3}[entered]
		if size, o := p.Size(t.Context(), at(f), list); o.Class != activation.OK || size.Matched != want {
			t.Errorf("Size = %+v, %+v, want %d", size, o, want)
		}
	}
	partnertest.NoViolations(t, f)
}

func TestTermsThatNobodyAccepted(t *testing.T) {
	t.Parallel()
	p, f := start(t, partnertest.MicrosoftOptions{TermsOpen: true})
	f.List("made by hand")
	f.Seed(partnertest.Somebody(1))
	m := activation.Message{Body: fmt.Appendf(nil, `{"counts":[1],"body":{"CustomerListUserData":{"AudienceId":"814123456","ActionType":"Add",`+
		`"CustomerListItemSubType":"Email","CustomerListItems":[%q]}}}`, partnertest.Hex("person.1@example.com"))}
	if o := p.Send(t.Context(), at(f), m); o.Class != activation.Config || !strings.Contains(o.Reason, "accept_terms") {
		t.Errorf("Send = %+v", o)
	}
	if v := f.Violations(); len(v) > 0 {
		t.Errorf("noted is %q", v)
	}
}

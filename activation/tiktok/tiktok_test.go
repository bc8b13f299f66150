package tiktok_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/activation/tiktok"
)

func TestPrepare(t *testing.T) {
	t.Parallel()
	const token = `{"access_token":"0123456789abcdef"}`
	strict := tiktok.New(nil, activation.Outbound{})
	for _, tt := range []struct {
		config, secrets string
		want            []activation.FieldError
	}{
		{`{"advertiser_ids":["7001"]}`, token, nil},
		{
			`{"advertiser_ids":["7001","7002"],"app_id":"718","phone_format":"both","email_format":"all","device_hash":"md5",` +
				`"default_country":"DE","rows":10000,"requests_per_second":50,"api_url":"https://sandbox-ads.tiktok.com/open_api/v1.3"}`,
			token, nil,
		},
		{`{}`, `{}`, []activation.FieldError{
			{Pointer: "/config/advertiser_ids", Detail: "is required"}, {Pointer: "/secrets/access_token", Detail: "is required"},
		}},
		{`{"advertiser_ids":[]}`, token, []activation.FieldError{{Pointer: "/config/advertiser_ids", Detail: "must have at least 1 of them"}}},
		{`{"advertiser_ids":["7001","7001"]}`, token, []activation.FieldError{{Pointer: "/config/advertiser_ids", Detail: "must not have one twice"}}},
		{`{"advertiser_ids":["7001","x"]}`, token, []activation.FieldError{{Pointer: "/config/advertiser_ids/1", Detail: "must be digits only"}}},
		{`{"advertiser_ids":[7001]}`, token, []activation.FieldError{{Pointer: "/config/advertiser_ids/0", Detail: "must be a string"}}},
		{`{"advertiser_ids":["7001"],"advertiser_id":"1"}`, token, []activation.FieldError{{Pointer: "/config/advertiser_id", Detail: "is not known here"}}},
		{
			`{"advertiser_ids":["7001"],"app_id":"a","phone_format":"e164","email_format":"raw","device_hash":"sha1","default_country":"de",` +
				`"rows":99,"requests_per_second":-1,"api_url":"http://127.0.0.1"}`, token,
			[]activation.FieldError{
				{Pointer: "/config/app_id", Detail: "must be digits only"},
				{Pointer: "/config/phone_format", Detail: "must be one of e164_plus, digits, both"},
				{Pointer: "/config/email_format", Detail: "must be one of plain, without_tags, without_tags_and_dots, all"},
				{Pointer: "/config/device_hash", Detail: "must be one of sha256, md5"},
				{Pointer: "/config/default_country", Detail: "must be the two upper-case letters of a country (ISO 3166)"},
				{Pointer: "/config/rows", Detail: "must be at least 100"},
				{Pointer: "/config/requests_per_second", Detail: "must be at least 1"},
				{Pointer: "/config/api_url", Detail: "must begin with https://"},
			},
		},
	} {
		kept, err := strict.Prepare(activation.Settings{Config: jsontext.Value(tt.config), Secrets: jsontext.Value(tt.secrets)})
		if diff := cmp.Diff(tt.want, partnertest.FieldErrors(err)); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.config, tt.secrets, diff)
		}
		if tt.want == nil && (string(kept.Config) != tt.config || string(kept.Secrets) != tt.secrets) {
			t.Errorf("what is stored of %s is %s %s", tt.config, kept.Config, kept.Secrets)
		}
	}
	if diff := cmp.Diff(map[string]string{"access_token": "…cdef"}, strict.Mask(jsontext.Value(token))); diff != "" {
		t.Error(diff)
	}
	if shown := strict.Mask(nil); shown != nil {
		t.Errorf("of nothing %v is shown", shown)
	}
	if diff := cmp.Diff(activation.AdGate(), strict.Gate()); diff != "" {
		t.Error(diff)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]activation.Limits{
		``: {Members: 1000, Account: "advertiser_7001", Rates: []activation.Rate{{Requests: 5, Per: time.Second}}},
		`,"app_id":"718","rows":250,"requests_per_second":20`: {
			Members: 250, Account: "app_718", Rates: []activation.Rate{{Requests: 20, Per: time.Second}},
		},
	} {
		want.Concurrency, want.Timeout, want.Linger, want.NeedsAudience = 4, 20*time.Second, time.Second, true
		if diff := cmp.Diff(want, (&tiktok.Partner{}).Limits(target(config))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", config, diff)
		}
	}
}

// answering returns a partner and a destination whose every request is answered so.
func answering(t *testing.T, status int, body string) (*tiktok.Partner, activation.Target) {
	t.Helper()
	at := partnertest.Answering(t, status, body)
	return tiktok.New(partnertest.NewClient(t), partnertest.Private), target(fmt.Sprintf(`,"api_url":%q`, at+"/"))
}

func TestWhatAnswersMean(t *testing.T) {
	t.Parallel()
	const html = "<html>Bad gateway</html>"
	said := func(code int, message string) string {
		return fmt.Sprintf(`{"code":%d,"message":%q,"request_id":"2026","data":{}}`, code, message)
	}
	for _, tt := range []struct {
		status  int
		body    string
		attempt int
		class   activation.Class
		wait    time.Duration
		unknown bool
		reason  string // a part of it
	}{
		{status: 200, body: said(0, "OK"), class: activation.OK},
		{status: 200, body: said(20001, "Partial success"), class: activation.Split, unknown: true, reason: "a part"},
		{status: 200, body: said(40001, "No permission"), class: activation.Config, reason: "Audience Management"},
		{status: 200, body: said(40002, "batch_data: too many rows"), class: activation.Split, reason: "refused the values"},
		{status: 200, body: said(40002, "audience_ids: not found"), class: activation.Config, reason: "not there"},
		{status: 200, body: said(40002, "Advertiser does not exist"), class: activation.Config, reason: "not there"},
		{status: 200, body: said(40007, "Object does not exist"), class: activation.Config, reason: "not there"},
		{status: 200, body: said(40100, "Too many requests"), attempt: 1, class: activation.RetryAfter, wait: 2 * time.Second, reason: "too many"},
		{status: 200, body: said(40100, "Too many requests"), attempt: 3, class: activation.RetryAfter, wait: 8 * time.Second, reason: "too many"},
		{status: 200, body: said(40100, "Too many requests"), attempt: 900, class: activation.RetryAfter, wait: 5 * time.Minute, reason: "too many"},
		{status: 200, body: said(40102, "Expired"), class: activation.Reauth, reason: "connect the account again"},
		{status: 200, body: said(40104, "Empty"), class: activation.Reauth, reason: "connect the account again"},
		{status: 200, body: said(40105, "Access token is incorrect"), class: activation.Reauth, reason: "connect the account again"},
		{status: 200, body: said(50000, "System error"), class: activation.Retry, unknown: true, reason: "50000"},
		{status: 200, body: said(51305, "?"), class: activation.Retry, unknown: true, reason: "51305"},
		{status: 200, body: said(40700, "?"), class: activation.Retry, reason: "code 40700"},
		{status: 400, body: said(40105, "Access token is incorrect"), class: activation.Reauth, reason: "connect the account again"},
		{status: 200, body: html, class: activation.Retry, unknown: true, reason: "not what the partner promises"},
		{status: 200, body: `{"message":"OK"}`, class: activation.Retry, unknown: true, reason: "not what the partner promises"},
		{status: 200, body: `{"code":"0"}`, class: activation.Retry, unknown: true, reason: "not what the partner promises"},
		{status: 400, body: html, class: activation.Retry, reason: "a gateway answered 400"},
		{status: 401, body: html, class: activation.Retry, reason: "a gateway answered 401"},
		{status: 403, body: html, class: activation.Retry, reason: "a gateway answered 403"},
		{status: 404, body: html, class: activation.Config, reason: "api_url"},
		{status: 413, body: html, class: activation.Split, reason: "413"},
		{status: 429, body: html, class: activation.Retry, reason: "429"},
		{status: 502, body: html, class: activation.Retry, unknown: true, reason: "502"},
	} {
		p, to := answering(t, tt.status, tt.body)
		o := p.Send(t.Context(), to, activation.Message{Body: []byte(`{}`), Attempt: tt.attempt})
		if o.Class != tt.class || o.Wait != tt.wait || o.Unknown != tt.unknown || o.Status != tt.status ||
			!strings.Contains(o.Reason, tt.reason) || (o.Reason == "") != (o.Class == activation.OK) {
			t.Errorf("%d %s: %+v, want %s, %v, unknown %v, %q", tt.status, tt.body, o, tt.class, tt.wait, tt.unknown, tt.reason)
		}
	}
	if o := tiktok.New(nil, partnertest.Private).Send(t.Context(), activation.Target{}, activation.Message{}); o.Class != activation.Config {
		t.Errorf("without settings: %+v", o)
	}
}

// at returns a destination at a fake.
func at(f *partnertest.TikTok) activation.Target {
	return activation.Target{ID: 3, Settings: f.Settings()}
}

func TestConnectionsAreTested(t *testing.T) {
	t.Parallel()
	p, f := start(t, partnertest.TikTokOptions{})
	if o := p.Test(t.Context(), at(f)); o.Class != activation.OK {
		t.Errorf("Test = %+v", o)
	}
	with := func(advertisers, token string) activation.Target {
		return activation.Target{Settings: activation.Settings{
			Config:  jsontext.Value(fmt.Sprintf(`{"advertiser_ids":%s,"api_url":%q}`, advertisers, f.URL)),
			Secrets: jsontext.Value(fmt.Sprintf(`{"access_token":%q}`, token)),
		}}
	}
	ours := fmt.Sprintf("[%q]", partnertest.TikTokAdvertiser)
	for name, tt := range map[string]struct {
		to     activation.Target
		class  activation.Class
		reason string
	}{
		"a wrong token":       {with(ours, "other"), activation.Reauth, "the access token is wrong or was revoked"},
		"a second advertiser": {with(fmt.Sprintf("[%q,%q]", partnertest.TikTokAdvertiser, partnertest.TikTokOtherAdvertiser), f.Token), activation.Config, "advertiser " + partnertest.TikTokOtherAdvertiser + ": the token may not"},
		"no settings":         {activation.Target{}, activation.Config, "cannot be read"},
	} {
		if o := p.Test(t.Context(), tt.to); o.Class != tt.class || !strings.Contains(o.Reason, tt.reason) {
			t.Errorf("%s: %+v, want %s, %q", name, o, tt.class, tt.reason)
		}
	}
	partnertest.NoViolations(t, f)
}

func TestAudiencesAreMadeOnce(t *testing.T) {
	t.Parallel()
	p, f := start(t, partnertest.TikTokOptions{})
	for n := range 150 { // more than a page
		f.Audience(partnertest.TikTokAdvertiser, fmt.Sprintf("Somebody else's %d (mubatch dst_33 seg_7)", n))
	}
	segment := activation.Segment{ID: 7, Key: "big-spenders", Name: "Big spenders"}
	f.Script(partnertest.Fault{Reset: true, Apply: true, Match: func(r *http.Request) bool { return r.Method == http.MethodPost }})
	made, o := p.Create(t.Context(), at(f), segment)
	if o.Class != activation.Retry || !o.Unknown || made != "" {
		t.Errorf("Create without an answer = %q, %+v", made, o)
	}
	made, o = p.Create(t.Context(), at(f), segment)
	if o.Class != activation.OK || made == "" {
		t.Fatalf("Create = %q, %+v", made, o)
	}
	renamed := activation.Segment{ID: 7, Key: "big-spenders", Name: strings.Repeat("Größte Käufer ", 20)}
	if again, o := p.Create(t.Context(), at(f), renamed); o.Class != activation.OK || again != made {
		t.Errorf("Create of a segment that was renamed = %q, %+v, want %q", again, o, made)
	}
	other := activation.Segment{ID: 77, Key: "big-spenders-2", Name: strings.Repeat("Größte Käufer ", 20)}
	if second, o := p.Create(t.Context(), at(f), other); o.Class != activation.OK || second == made {
		t.Errorf("Create for another segment = %q, %+v", second, o)
	}
	nameless := activation.Segment{ID: 8, Key: "vip"}
	if _, o := p.Create(t.Context(), at(f), nameless); o.Class != activation.OK {
		t.Errorf("Create for a segment without a name = %+v", o)
	}
	want := []string{
		"Big spenders (mubatch dst_3 seg_7)", "Größte Käufer Größte Käufer Größte Käufer Größt (mubatch dst_3 seg_77)", "vip (mubatch dst_3 seg_8)",
	}
	if diff := cmp.Diff(want, f.Audiences(partnertest.TikTokAdvertiser)[150:]); diff != "" {
		t.Errorf("audiences (-want +got):\n%s", diff)
	}
	partnertest.NoViolations(t, f)
	f.Revoke()
	if _, o := p.Create(t.Context(), at(f), segment); o.Class != activation.Reauth {
		t.Errorf("Create with a revoked token = %+v", o)
	}
	if _, o := p.Create(t.Context(), activation.Target{}, segment); o.Class != activation.Config {
		t.Errorf("Create without settings = %+v", o)
	}
}

func TestAnswersThatLackWhatTheyShouldHold(t *testing.T) {
	t.Parallel()
	p, to := answering(t, 200, `{"code":0,"message":"OK","data":{}}`)
	if made, o := p.Create(t.Context(), to, activation.Segment{ID: 7}); made != "" || o.Class != activation.Retry || !o.Unknown {
		t.Errorf("Create = %q, %+v", made, o)
	}
	if size, o := p.Size(t.Context(), to, "1"); o.Class != activation.OK || size.Matched != -1 || size.State != "" {
		t.Errorf("Size = %+v, %+v", size, o)
	}
	p, to = answering(t, 200, `{"code":0,"message":"OK","data":[]}`)
	if o := p.Test(t.Context(), to); o.Class != activation.Retry {
		t.Errorf("Test = %+v", o)
	}
	if size, o := p.Size(t.Context(), to, "1"); o.Class != activation.Retry || size.Matched != -1 {
		t.Errorf("Size = %+v, %+v", size, o)
	}
	p, to = answering(t, 200, `{"code":0,"data":{"list":[{"audience_id":1770001,"name":"x (mubatch dst_3 seg_7)"}]}}`)
	if made, o := p.Create(t.Context(), to, activation.Segment{ID: 7}); made != "1770001" || o.Class != activation.OK {
		t.Errorf("Create of one whose id is a number = %q, %+v", made, o)
	}
	p, to = answering(t, 200, `{"code":0,"data":{"list":[{"audience_details":{"audience_id":"1","cover_num":"1200","msg":"Ready"}}]}}`)
	if size, o := p.Size(t.Context(), to, "1"); o.Class != activation.OK || size != (activation.Size{Matched: 1200, State: "Ready"}) {
		t.Errorf("Size = %+v, %+v", size, o)
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	p, f := start(t, partnertest.TikTokOptions{})
	id := f.Audience(partnertest.TikTokAdvertiser, "made by hand")
	if o := p.Send(t.Context(), at(f), about(t, p, f, id, 3)); o.Class != activation.OK {
		t.Fatalf("Send = %+v", o)
	}
	size, o := p.Size(t.Context(), at(f), id)
	if o.Class != activation.OK || size.Matched != 3 || size.State != "not valid yet, or not any more" {
		t.Errorf("Size = %+v, %+v", size, o)
	}
	partnertest.NoViolations(t, f)
}

// about returns a message that has so many people, whom the fake gets to know, enter an audience.
func about(t *testing.T, p *tiktok.Partner, f *partnertest.TikTok, audience string, people int) activation.Message {
	t.Helper()
	batch := activation.Batch{Audience: audience}
	for n := range people {
		somebody := partnertest.Somebody(n)
		f.Seed(somebody)
		ids, err := p.Identify(at(f), somebody)
		if err != nil {
			t.Fatal(err)
		}
		batch.Members = append(batch.Members, activation.Member{Person: somebody, Identifiers: ids, Entered: true})
	}
	body, _, err := p.Encode(at(f), batch)
	if err != nil {
		t.Fatal(err)
	}
	return activation.Message{Body: body, Audience: audience}
}

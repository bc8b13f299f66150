package google

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
	"github.com/mubatch/mubatch/activation/partnertest"
)

func newPartner(t testing.TB) *Partner {
	private := activation.Outbound{AllowPrivate: true}
	client := activation.NewClient(private)
	t.Cleanup(client.CloseIdleConnections)
	return New(client, private)
}

// answering returns a destination whose API gives one answer to everything.
func answering(t testing.TB, status int, header http.Header, body string) activation.Target {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for name, values := range header {
			w.Header()[name] = values
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	return target(fmt.Sprintf(`,"api_url":%q,"token_url":%q`, server.URL, server.URL))
}

// reachable returns a destination at a fake, with an access token.
func reachable(t testing.TB, p *Partner, fake *partnertest.Google) activation.Target {
	t.Helper()
	to := activation.Target{ID: 3, Key: "ads", Settings: fake.Settings()}
	fresh, expires, o := p.Refresh(t.Context(), to)
	if o.Class != activation.OK || time.Until(expires) < 50*time.Minute {
		t.Fatalf("Refresh = %+v, until %v", o, expires)
	}
	to.Settings = fresh
	return to
}

func refused(code int, status string, details ...string) string {
	return fmt.Sprintf(`{"error":{"code":%d,"message":"There was a problem.","status":%q,"details":[%s]}}`, code, status, strings.Join(details, ","))
}

func fieldViolation(field, reason string) string {
	return fmt.Sprintf(`{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{"field":%q,"description":"for ada@example.com","reason":%q}]}`, field, reason)
}

func TestWhatRefusalsMean(t *testing.T) {
	t.Parallel()
	p := newPartner(t)
	const rows = `{"destinations":[],"audienceMembers":[{},{"destinationReferences":["list"]},{},{}]}`
	m := activation.Message{Audience: "1", Body: []byte(rows), Members: []activation.MemberRef{{Entered: true}, {Entered: true}, {Entered: true}}}
	at := func(row int) string {
		return fmt.Sprintf("audience_members.audience_members[%d].user_data.user_identifiers", row)
	}
	type test struct {
		status  int
		header  http.Header
		body    string
		class   activation.Class
		wait    time.Duration
		reason  string // a part of it
		dropped []int  // members
	}
	tests := map[string]test{
		"the token has ended":               {status: 401, body: refused(401, "UNAUTHENTICATED"), class: activation.Refresh},
		"the token has ended, says a proxy": {status: 401, class: activation.Refresh},
		"no permission":                     {status: 403, body: refused(403, "PERMISSION_DENIED"), class: activation.Config, reason: "login_account_id"},
		"the API is not enabled":            {status: 403, body: refused(403, "PERMISSION_DENIED", `{"reason":"SERVICE_DISABLED"}`), class: activation.Config, reason: "not enabled"},
		"the scope was not granted":         {status: 403, body: refused(403, "PERMISSION_DENIED", `{"reason":"ACCESS_TOKEN_SCOPE_INSUFFICIENT"}`), class: activation.Config, reason: "connect the account again"},
		"not there":                         {status: 404, body: refused(404, "NOT_FOUND"), class: activation.Config, reason: "account_id"},
		"aborted":                           {status: 409, body: refused(409, "ABORTED"), class: activation.Retry},
		"quota of a minute":                 {status: 429, body: refused(429, "RESOURCE_EXHAUSTED"), class: activation.RetryAfter, wait: time.Minute},
		"quota of a day":                    {status: 429, body: refused(429, "RESOURCE_EXHAUSTED", `{"reason":"RATE_LIMIT_EXCEEDED","metadata":{"quota_limit":"RequestsPerDayPerProject"}}`), class: activation.RetryAfter, wait: time.Hour},
		"quota, with a delay":               {status: 429, body: refused(429, "RESOURCE_EXHAUSTED", `{"retryDelay":"34.5s"}`), class: activation.RetryAfter, wait: 34500 * time.Millisecond},
		"quota, with a header":              {status: 429, header: http.Header{"Retry-After": {"7"}}, body: refused(429, "RESOURCE_EXHAUSTED"), class: activation.RetryAfter, wait: 7 * time.Second},
		"internal":                          {status: 500, body: refused(500, "INTERNAL"), class: activation.Retry},
		"unavailable":                       {status: 503, body: refused(503, "UNAVAILABLE"), class: activation.Retry},
		"too late":                          {status: 504, body: refused(504, "DEADLINE_EXCEEDED"), class: activation.Retry},
		"too many people":                   {status: 400, body: refused(400, "INVALID_ARGUMENT", fieldViolation("audience_members", "TOO_MANY_AUDIENCE_MEMBERS")), class: activation.Split},
		"too large":                         {status: 413, class: activation.Split},
		"a request that is not understood":  {status: 400, body: refused(400, "INVALID_ARGUMENT"), class: activation.Split},
		"something wrong with the terms":    {status: 400, body: refused(400, "INVALID_ARGUMENT", fieldViolation("terms_of_service.status", "INVALID_ENUM_VALUE")), class: activation.Config, reason: "termsofservice: invalid enum value"},
		"one person": {
			status: 400, body: refused(400, "INVALID_ARGUMENT", fieldViolation(at(2), "INVALID_HEX_ENCODING")), class: activation.Partial, dropped: []int{1},
		},
		"a row that goes on with somebody": {
			status: 400, body: refused(400, "INVALID_ARGUMENT", fieldViolation(at(1), "INVALID_POSTAL_CODE"), fieldViolation("audienceMembers[3]", "INVALID_FORMAT")),
			class: activation.Partial, dropped: []int{0, 2},
		},
		"a reason that nobody knows":            {status: 400, body: refused(400, "INVALID_ARGUMENT", fieldViolation(at(0), "BRAND_NEW_REASON")), class: activation.Partial, dropped: []int{0}},
		"a row that is not there":               {status: 400, body: refused(400, "INVALID_ARGUMENT", fieldViolation(at(9), "INVALID_FORMAT")), class: activation.Split},
		"a person, and the list is gone anyway": {status: 400, body: refused(400, "INVALID_ARGUMENT", fieldViolation(at(0), "INVALID_FORMAT"), fieldViolation("destinations[0]", "INVALID_USER_LIST_ID")), class: activation.Config},
		"a page":                                {status: 200, body: "<html>", class: activation.Retry},
		"no request id":                         {status: 200, body: "{}", class: activation.Retry},
	}
	for reason, words := range configReasons {
		tests[reason] = test{status: 400, body: refused(400, "INVALID_ARGUMENT", fieldViolation("destinations[0]", reason)), class: activation.Config, reason: words}
	}
	for reason, words := range rowReasons {
		tests["row "+reason] = test{status: 400, body: refused(400, "INVALID_ARGUMENT", fieldViolation(at(0), reason)), class: activation.Partial, dropped: []int{0}, reason: words}
	}
	for name, tc := range tests {
		o := p.Send(t.Context(), answering(t, tc.status, tc.header, tc.body), m)
		var dropped []int
		reasons := o.Reason
		for i, r := range o.Rows {
			if r.Class == activation.Drop {
				dropped = append(dropped, i)
				reasons += r.Reason
			} else if r.Class != activation.Retry {
				t.Errorf("%s: member %d is %+v", name, i, r)
			}
		}
		if o.Class != tc.class || o.Wait != tc.wait || !strings.Contains(reasons, tc.reason) || cmp.Diff(tc.dropped, dropped) != "" {
			t.Errorf("%s: %+v, want %s, wait %v, dropped %v, %q", name, o, tc.class, tc.wait, tc.dropped, tc.reason)
		}
		if strings.Contains(o.Reason+o.Excerpt, "ada@") {
			t.Errorf("%s: an address is in the outcome", name)
		}
	}
	if o := p.Send(t.Context(), activation.Target{}, m); o.Class != activation.Refresh {
		t.Errorf("without an access token: %+v, want a refresh", o)
	}
	if o := p.Send(t.Context(), target(`,"x":1`), m); o.Class != activation.Config {
		t.Errorf("with settings that cannot be read: %+v", o)
	}
}

func TestPoll(t *testing.T) {
	t.Parallel()
	p := newPartner(t)
	state := func(state, more string) string {
		return fmt.Sprintf(`{"requestStatusPerDestination":[{"destination":{"reference":"list"},"requestStatus":%q%s}]}`, state, more)
	}
	count := func(n int, reason string) string {
		return fmt.Sprintf(`,"errorInfo":{"errorCounts":[{"recordCount":"%d","reason":"PROCESSING_ERROR_REASON_%s"}]}`, n, reason)
	}
	match := func(rate string) string {
		return `,"audienceMembersIngestionStatus":{"userDataIngestionStatus":{"recordCount":"100","userIdentifierCount":"180","uploadMatchRateRange":"MATCH_RATE_RANGE_` + rate + `"}}`
	}
	for name, tc := range map[string]struct {
		status int
		body   string
		want   activation.Polled
	}{
		"processing":                {200, state("PROCESSING", ""), activation.Polled{Outcome: activation.Outcome{Class: activation.OK}}},
		"a state that nobody knows": {200, state("REQUEST_STATUS_UNKNOWN", ""), activation.Polled{Outcome: activation.Outcome{Class: activation.OK}}},
		"no state":                  {200, `{}`, activation.Polled{Outcome: activation.Outcome{Class: activation.OK}}},
		"a page":                    {200, `<html>`, activation.Polled{Outcome: activation.Outcome{Class: activation.Retry}}},
		"success":                   {200, state("SUCCESS", match("61_TO_70")), activation.Polled{Done: true, Match: "61 to 70 %", Outcome: activation.Outcome{Class: activation.OK}}},
		"a low rate":                {200, state("SUCCESS", match("LESS_THAN_20")), activation.Polled{Done: true, Match: "less than 20 %", Outcome: activation.Outcome{Class: activation.OK}}},
		"few":                       {200, state("SUCCESS", match("NOT_ELIGIBLE")), activation.Polled{Done: true, Match: "too few people to tell", Outcome: activation.Outcome{Class: activation.OK}}},
		"no rate":                   {200, state("SUCCESS", match("UNKNOWN")), activation.Polled{Done: true, Outcome: activation.Outcome{Class: activation.OK}}},
		"a removal":                 {200, state("SUCCESS", `,"audienceMembersRemovalStatus":{"userDataRemovalStatus":{"recordCount":"3"}}`), activation.Polled{Done: true, Outcome: activation.Outcome{Class: activation.OK}}},
		"some refused": {200, state("PARTIAL_SUCCESS", count(3, "INVALID_FORMAT")+match("91_TO_100")), activation.Polled{
			Done: true, Match: "91 to 100 %", Outcome: activation.Outcome{Class: activation.Partial},
			Counts: []activation.ReasonCount{{Reason: "Google finds an identifier malformed", Count: 3}},
		}},
		"some refused for what nobody knows": {200, state("PARTIAL_SUCCESS", count(1, "SOMETHING_NEW")), activation.Polled{
			Done: true, Outcome: activation.Outcome{Class: activation.Partial}, Counts: []activation.ReasonCount{{Reason: "something new", Count: 1}},
		}},
		"all refused for want of consent": {200, state("FAILED", count(5, "DENIED_CONSENT")), activation.Polled{
			Done: true, Outcome: activation.Outcome{Class: activation.Drop},
			Counts: []activation.ReasonCount{{Reason: processing["DENIED_CONSENT"], Count: 5}},
		}},
		"all refused by the advertiser's settings": {200, state("FAILED", count(5, "NO_CONSENT")), activation.Polled{
			Done: true, Outcome: activation.Outcome{Class: activation.Config}, Counts: []activation.ReasonCount{{Reason: processing["NO_CONSENT"], Count: 5}},
		}},
		"Google failed": {200, state("FAILED", count(5, "INTERNAL_ERROR")), activation.Polled{
			Done: true, Outcome: activation.Outcome{Class: activation.Retry}, Counts: []activation.ReasonCount{{Reason: "Google failed", Count: 5}},
		}},
		"it failed for no reason": {200, state("FAILED", ""), activation.Polled{Done: true, Outcome: activation.Outcome{Class: activation.Retry}}},
		"the request is not known": {400, refused(400, "INVALID_ARGUMENT", fieldViolation("request_id", "INVALID_REQUEST_ID")), activation.Polled{
			Done: true, Outcome: activation.Outcome{Class: activation.Retry},
		}},
		"the token has ended": {401, refused(401, "UNAUTHENTICATED"), activation.Polled{Outcome: activation.Outcome{Class: activation.Refresh}}},
		"no permission":       {403, refused(403, "PERMISSION_DENIED"), activation.Polled{Outcome: activation.Outcome{Class: activation.Config}}},
	} {
		got := p.Poll(t.Context(), answering(t, tc.status, nil, tc.body), newReceipt("r-1"))
		if (got.Reason == "") != (got.Class == activation.OK) {
			t.Errorf("%s: the reason is %q", name, got.Reason)
		}
		got.Outcome = activation.Outcome{Class: got.Class}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for ago, want := range map[time.Duration]time.Duration{30 * time.Minute: 15 * time.Minute, 6 * time.Hour: 3 * time.Hour, 20 * time.Hour: 4 * time.Hour} {
		got := p.Poll(t.Context(), answering(t, 200, nil, state("PROCESSING", "")), fmt.Sprintf("%d r-1", time.Now().Add(-ago).Unix()))
		if got.Wait < want || got.Wait > want+time.Minute {
			t.Errorf("after %v it waits for %v more, want %v", ago, got.Wait, want)
		}
	}
}

func TestCreateFindsWhatItMade(t *testing.T) {
	t.Parallel()
	for _, data := range []string{userData, mobileIDs, userIDs} {
		p, fake := newPartner(t), partnertest.NewGoogle(t, partnertest.GoogleOptions{Data: data})
		to := reachable(t, p, fake)
		s := activation.Segment{ID: 7, Key: "carts", Name: "Cart abandoners"}
		first, o := p.Create(t.Context(), to, s)
		if o.Class != activation.OK || first == "" {
			t.Fatalf("%s: Create = %q, %+v", data, first, o)
		}
		s.Name = "Carts"
		if again, o := p.Create(t.Context(), to, s); again != first || o.Class != activation.OK || fake.Lists() != 1 {
			t.Errorf("%s: Create again = %q, %+v, want %q", data, again, o, first)
		}
		to.Key = "other"
		if other, o := p.Create(t.Context(), to, s); other == first || o.Class != activation.OK {
			t.Errorf("%s: another destination's list is %q, %+v", data, other, o)
		}
		size, o := p.Size(t.Context(), to, first)
		if diff := cmp.Diff(activation.Size{Matched: 1, State: "OPEN"}, size); diff != "" || o.Class != activation.OK {
			t.Errorf("%s: %+v; size (-want +got):\n%s", data, o, diff)
		}
		for _, v := range fake.Violations() {
			t.Errorf("%s: violation: %s", data, v)
		}
	}
	p := newPartner(t)
	for reason, class := range map[string]activation.Class{"DISPLAY_NAME_ALREADY_USED": activation.Config, "FIELD_VALUE_TOO_LONG": activation.Config} {
		to := answering(t, 400, nil, refused(400, "INVALID_ARGUMENT", fieldViolation("user_list.display_name", reason)))
		if _, o := p.Create(t.Context(), to, activation.Segment{ID: 7}); o.Class != class || o.Reason == "" {
			t.Errorf("%s: %+v, want %s", reason, o, class)
		}
	}
	size, _ := p.Size(t.Context(), answering(t, 200, nil, `{"membershipStatus":"CLOSED","ingestedUserListInfo":{"contactIdInfo":{"matchRatePercentage":63}}}`), "1")
	if diff := cmp.Diff(activation.Size{Matched: -1, State: "CLOSED, 63 % recognised"}, size); diff != "" {
		t.Errorf("size (-want +got):\n%s", diff)
	}
}

func TestTheConnectionIsTested(t *testing.T) {
	t.Parallel()
	p, fake := newPartner(t), partnertest.NewGoogle(t, partnertest.GoogleOptions{})
	to := reachable(t, p, fake)
	if o := p.Test(t.Context(), to); o.Class != activation.OK {
		t.Errorf("Test = %+v", o)
	}
	replaced := func(old, to string) func(activation.Target) activation.Target {
		return func(t activation.Target) activation.Target {
			t.Config = jsontext.Value(strings.Replace(string(t.Config), old, to, 1))
			t.Secrets = jsontext.Value(strings.Replace(string(t.Secrets), old, to, 1))
			return t
		}
	}
	for name, tc := range map[string]struct {
		change func(activation.Target) activation.Target
		class  activation.Class
		reason string
	}{
		"a wrong account":        {replaced(`"1234567890"`, `"1"`), activation.Config, "check account_id"},
		"a wrong token":          {replaced("ya29.", "ya30."), activation.Refresh, "the access token"},
		"settings that are none": {replaced(`"account_id"`, `"account"`), activation.Config, "cannot be read"},
		"nobody is there":        {replaced("127.0.0.1:", "127.0.0.1:1"), activation.Retry, ""},
	} {
		if o := p.Test(t.Context(), tc.change(to)); o.Class != tc.class || !strings.Contains(o.Reason, tc.reason) {
			t.Errorf("%s: %+v, want %s, %q", name, o, tc.class, tc.reason)
		}
	}
	for name, tc := range map[string]struct{ body, reason string }{
		"a missing scope":     {refused(403, "PERMISSION_DENIED", `{"reason":"ACCESS_TOKEN_SCOPE_INSUFFICIENT"}`), "allow it"},
		"the API is off":      {refused(403, "PERMISSION_DENIED", `{"reason":"SERVICE_DISABLED"}`), "not enabled"},
		"a malformed account": {refused(400, "INVALID_ARGUMENT", fieldViolation("parent", "INVALID_RESOURCE_NAME")), "account_type"},
	} {
		if o := p.Test(t.Context(), answering(t, 403, nil, tc.body)); o.Class != activation.Config || !strings.Contains(o.Reason, tc.reason) {
			t.Errorf("%s: %+v, want %q", name, o, tc.reason)
		}
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	p := newPartner(t)
	service := partnertest.NewGoogle(t, partnertest.GoogleOptions{ServiceAccount: true})
	reachable(t, p, service)
	for _, v := range service.Violations() {
		t.Errorf("violation: %s", v)
	}
	service.Revoke()
	if _, _, o := p.Refresh(t.Context(), activation.Target{Settings: service.Settings()}); o.Class != activation.Reauth || !strings.Contains(o.Reason, "service account") {
		t.Errorf("a deleted key: %+v", o)
	}
	for body, want := range map[string]activation.Class{
		`{"error":"invalid_grant","error_description":"Token has been expired or revoked."}`: activation.Reauth,
		`{"error":"invalid_client"}`: activation.Reauth,
		`<html>`:                     activation.Retry,
	} {
		if _, _, o := p.Refresh(t.Context(), answering(t, 400, nil, body)); o.Class != want {
			t.Errorf("%s: %+v, want %s", body, o, want)
		}
	}
	fresh, _, o := p.Refresh(t.Context(), answering(t, 200, nil, `{"access_token":"new","refresh_token":"newer","expires_in":10}`))
	_, sec, err := read(fresh)
	if o.Class != activation.OK || err != nil || sec.AccessToken != "new" || sec.RefreshToken != "newer" || sec.ClientID != "4711-x" {
		t.Errorf("%+v, %v", o, err)
	}
}

// A message is checked without being applied, and shown without a token.
func TestValidateAndDraft(t *testing.T) {
	t.Parallel()
	p, fake := newPartner(t), partnertest.NewGoogle(t, partnertest.GoogleOptions{})
	fake.List("8123")
	somebody := partnertest.Somebody(1)
	fake.Seed(somebody)
	to := reachable(t, p, fake)
	ids, err := p.Identify(to, somebody)
	if err != nil {
		t.Fatal(err)
	}
	for _, entered := range []bool{true, false} {
		m := activation.Member{Person: somebody, Identifiers: ids, Entered: entered}
		body, _, err := p.Encode(to, activation.Batch{Audience: "8123", Members: []activation.Member{m}})
		if err != nil {
			t.Fatal(err)
		}
		message := activation.Message{Audience: "8123", Body: body, Members: []activation.MemberRef{{Entered: entered}}}
		if o := p.Validate(t.Context(), to, message); o.Class != activation.OK || o.Receipt != "" {
			t.Errorf("Validate = %+v", o)
		}
		drafts, err := p.Draft(activation.Target{Settings: fake.Settings()}, message)
		suffix := map[bool]string{true: ":ingest", false: ":remove"}[entered]
		if err != nil || len(drafts) != 1 || !strings.HasSuffix(drafts[0].URL, suffix) || string(drafts[0].Body) != string(body) {
			t.Errorf("Draft = %+v, %v", drafts, err)
		}
	}
	fake.Advance(24 * time.Hour)
	if n := len(fake.Members(partnertest.Audience{ID: "8123"})); n > 0 {
		t.Errorf("%d people were added", n)
	}
	for _, v := range fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

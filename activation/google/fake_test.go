package google

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// What a partner may do wrong is answered as Google would, and noted where Google would say nothing.
func TestTheFakeIsStrict(t *testing.T) {
	t.Parallel()
	const (
		rightEmail = "509e933019bb285a134a9334b8bb679dff79d0ce023d529af4bd744d47b4fd8a"
		rightPhone = "fb4f73a6ec5fdb7077d564cdd22c3554b43ce49168550c3b12c547b78c517b30"
		given      = "4135aa9dc1b842a653dea846903ddb95bfb8c5a10c504a7fa16e10bc31d1fdf0" // alex
		family     = "c512ca0c5c1e71be19f3356821e56732b5fb3ac894b0dbc5846d0b6920106fb3" // quinn
		european   = "d6117306485ed0e50afab3ac871e98f81699151f30281527d63ff5f233656c69"
		head       = `{"destinations":[{"reference":"r","operatingAccount":{"accountType":"GOOGLE_ADS","accountId":"1234567890"},` +
			`"loginAccount":{"accountType":"GOOGLE_ADS","accountId":"9876543210"},"productDestinationId":"8123"}],"audienceMembers":[`
		tail = `],"encoding":"HEX","termsOfService":{"customerMatchTermsOfServiceStatus":"ACCEPTED"}}`
	)
	row := func(ids string) string { return `{"userData":{"userIdentifiers":[` + ids + `]}}` }
	mail := func(hash string) string { return row(`{"emailAddress":"` + hash + `"}`) }
	place := func(given, region, postal string) string {
		return row(fmt.Sprintf(`{"address":{"givenName":%q,"familyName":%q,"regionCode":%q,"postalCode":%q}}`, given, family, region, postal))
	}
	good := mail(rightEmail)
	for name, tc := range map[string]struct {
		path, body string
		token      string // the right one if empty
		status     int    // 200 if 0
		answer     string // a part of it
		violation  string // a part of it; "" for none
	}{
		"all is well":        {body: head + good + tail},
		"a removal":          {path: "/v1/audienceMembers:remove", body: head + good + `],"encoding":"HEX"}`},
		"a whole address":    {body: head + place(given, "US", "94045") + tail},
		"no token":           {token: "-", body: head + good + tail, status: 401, answer: "UNAUTHENTICATED", violation: "without a token"},
		"another token":      {token: "old", body: head + good + tail, status: 401, answer: "UNAUTHENTICATED"},
		"an unknown path":    {path: "/v1/users", body: head + good + tail, status: 404, violation: "is not known"},
		"the Ads API's name": {body: head + row(`{"addressInfo":{}}`) + tail, status: 400, answer: "Unknown name", violation: "addressInfo"},
		"an old member":      {body: strings.Replace(head, `"accountType"`, `"product":"GOOGLE_ADS","accountType"`, 1) + good + tail, status: 400, answer: "Unknown name", violation: "product"},
		"a member twice":     {body: head + good + `],"encoding":"HEX","encoding":"HEX"}`, status: 400, violation: "duplicate"},
		"terms on a removal": {path: "/v1/audienceMembers:remove", body: head + good + tail, status: 400, answer: "Unknown name", violation: "termsOfService"},
		"consent on a removal": {
			path: "/v1/audienceMembers:remove", body: head + good + `],"encoding":"HEX","consent":{}}`, status: 400, answer: "Unknown name", violation: "consent",
		},
		"no terms":                 {body: head + good + `],"encoding":"HEX"}`, status: 400, answer: "TERMS_AND_CONDITIONS_NOT_SIGNED", violation: "terms"},
		"no encoding":              {body: head + good + `],"termsOfService":{"customerMatchTermsOfServiceStatus":"ACCEPTED"}}`, status: 400, answer: "REQUIRED_FIELD_MISSING", violation: "encoding"},
		"hyphens in an account id": {body: strings.Replace(head, "1234567890", "123-456-7890", 1) + good + tail, status: 400, answer: "INVALID_DESTINATION", violation: "123-456-7890"},
		"another list":             {body: strings.Replace(head, "8123", "8124", 1) + good + tail, status: 400, answer: "INVALID_USER_LIST_ID", violation: "8124"},
		"a reference to nothing":   {body: head + `{"destinationReferences":["x"],` + good[1:] + tail, status: 400, answer: "INVALID_DESTINATION", violation: "no destination"},
		"two destinations of one name": {
			body:   strings.Replace(head, `"destinations":[`, `"destinations":[{"reference":"r"},`, 1) + good + tail,
			status: 400, answer: "DUPLICATE_DESTINATION_REFERENCE", violation: "twice",
		},
		"eleven destinations": {
			body:   strings.Replace(head, `"destinations":[`, `"destinations":[`+strings.Repeat(`{},`, 10), 1) + good + tail,
			status: 400, answer: "TOO_MANY_DESTINATIONS", violation: "11",
		},
		"text":                {body: head + mail("alexz@example.com") + tail, status: 400, answer: "INVALID_HEX_ENCODING", violation: "e-mail address"},
		"an MD5":              {body: head + mail(rightEmail[:32]) + tail, status: 400, answer: "INVALID_SHA256_FORMAT", violation: "no SHA-256"},
		"half an address":     {body: head + place("", "US", "94045") + tail, status: 400, answer: "REQUIRED_FIELD_MISSING", violation: "not whole"},
		"a small region":      {body: head + place(given, "us", "94045") + tail, status: 400, answer: "INVALID_FORMAT", violation: "region"},
		"a hashed region":     {body: head + place(given, family, "94045") + tail, status: 400, answer: "INVALID_FORMAT", violation: "region"},
		"a hashed code":       {body: head + place(given, "US", family) + tail, status: 400, answer: "INVALID_POSTAL_CODE", violation: "hashed"},
		"nobody":              {body: head + tail, status: 400, answer: "REQUIRED_FIELD_MISSING", violation: "none"},
		"a row of nothing":    {body: head + row("") + tail, status: 400, answer: "REQUIRED_FIELD_MISSING", violation: "no identifier"},
		"eleven identifiers":  {body: head + row(strings.Repeat(`{"emailAddress":"`+rightEmail+`"},`, 10)+`{"emailAddress":"`+rightEmail+`"}`) + tail, status: 400, answer: "TOO_MANY_USER_IDENTIFIERS", violation: "11"},
		"two kinds in one":    {body: head + row(`{"emailAddress":"`+rightEmail+`","phoneNumber":"`+rightPhone+`"}`) + tail, status: 400, answer: "REQUIRED_FIELD_MISSING", violation: "want one"},
		"10,001 people":       {body: head + strings.Repeat(good+",", 10_000) + good + tail, status: 400, answer: "TOO_MANY_AUDIENCE_MEMBERS", violation: "10001"},
		"two data types":      {body: head + good + `,{"mobileData":{"mobileIds":["x"]}}` + tail, status: 400, answer: "MULTIPLE_DATA_TYPES_NOT_ALLOWED", violation: "MOBILE_ID"},
		"the wrong data type": {body: head + `{"userIdData":{"userId":"x"}}` + tail, status: 400, answer: "INVALID_USER_LIST_TYPE", violation: "USER_ID"},
		"a made-up consent":   {body: head + `{"consent":{"adUserData":"GRANTED"},` + good[1:] + tail, status: 400, answer: "INVALID_ENUM_VALUE", violation: "GRANTED"},

		"no plus sign":          {body: head + row(`{"phoneNumber":"`+partnertest.Hex("18005550100")+`"}`) + tail, violation: "without its plus sign"},
		"dots at Gmail":         {body: head + mail(partnertest.Hex("jane.doe+promo@gmail.com")) + tail, violation: "dots or the tag"},
		"a title":               {body: head + place(partnertest.Hex("Dr. Alex"), "US", "94045") + tail, violation: "given name that was not normalised"},
		"hashed twice":          {body: head + mail(partnertest.Hex(rightEmail)) + tail, violation: "hashed twice"},
		"upper case":            {body: head + mail(strings.ToUpper(rightEmail)) + tail, violation: "upper case"},
		"the hash of nothing":   {body: head + mail(partnertest.Hex("")) + tail, violation: "hash of nothing"},
		"nobody's":              {body: head + mail(partnertest.Hex("x@example.com")) + tail, violation: "not right for anybody"},
		"two people in a row":   {body: head + row(`{"emailAddress":"`+rightEmail+`"},{"emailAddress":"`+european+`"}`) + tail, violation: "different people"},
		"the same value twice":  {body: head + row(`{"emailAddress":"`+rightEmail+`"},{"emailAddress":"`+rightEmail+`"}`) + tail, violation: "twice"},
		"Europe, not asked":     {body: head + mail(european) + tail, violation: "Europe"},
		"Europe, one consent":   {body: head + `{"consent":{"adUserData":"CONSENT_GRANTED"},` + mail(european)[1:] + tail, violation: "Europe"},
		"Europe, both consents": {body: head + `{"consent":{"adUserData":"CONSENT_GRANTED","adPersonalization":"CONSENT_GRANTED"},` + mail(european)[1:] + tail},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, fake := newPartner(t), partnertest.NewGoogle(t, partnertest.GoogleOptions{})
			fake.List("8123")
			alex := person(`{"first_name":"Dr. Alex","last_name":"Quinn, Jr.","country":"US","zip":"94045"}`,
				activation.Identifier{Kind: "email", Value: " ALEXZ@example.com"}, activation.Identifier{Kind: "phone", Value: "1 800 555 0100"})
			jane := person(`{"country":"DE"}`, activation.Identifier{Kind: "email", Value: "  Jane.Doe+Promo@GMail.com "},
				activation.Identifier{Kind: "phone", Value: "+49 (0)171 1234567"})
			jane.ID = activation.ProfileID{2}
			fake.Seed(alex, jane)
			token := tc.token
			if token == "" {
				_, sec, err := read(reachable(t, p, fake).Settings)
				if err != nil {
					t.Fatal(err)
				}
				token = sec.AccessToken
			}
			status, answer := post(t, fake.URL+cmp.Or(tc.path, "/v1/audienceMembers:ingest"), strings.Trim(token, "-"), tc.body)
			if status != cmp.Or(tc.status, 200) || !strings.Contains(answer, tc.answer) {
				t.Errorf("%d %s, want %d with %q", status, answer, cmp.Or(tc.status, 200), tc.answer)
			}
			violations := strings.Join(fake.Violations(), "\n")
			if !strings.Contains(violations, tc.violation) || tc.violation == "" && violations != "" {
				t.Errorf("violations %q, want %q", violations, tc.violation)
			}
		})
	}
}

func post(t testing.TB, url, token, body string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// The fake takes what the partner makes of the people whom fakes are to know, and recognises them.
func TestSeedPeopleAreRecognised(t *testing.T) {
	t.Parallel()
	people := []activation.Person{
		person(`{"country":"US"}`, activation.Identifier{Kind: "email", Value: "john_smith@gmail.com"}, activation.Identifier{Kind: "phone", Value: "(650)555-1212"}),
		person(`{"first_name":"Mrs. Ada","last_name":"Quinn, Jr.","country":"US","zip":"94045"}`, activation.Identifier{Kind: "email", Value: "alexz@example.com"}, activation.Identifier{Kind: "phone", Value: "+1-800-555-0100"}),
		person(`{"country":"DE"}`, activation.Identifier{Kind: "email", Value: "  Jane.Doe+Promo@GMail.com "}, activation.Identifier{Kind: "phone", Value: "+49 (0)171 1234567"}),
		person(`{"first_name":"Valéry","last_name":"정","country":"FR","zip":"75001"}`),
		person(`{"country":"US","gaid":"5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25"}`, activation.Identifier{Kind: "email", Value: "user@example.com"},
			activation.Identifier{Kind: "phone", Value: "1 (234) 567-8901"}, activation.Identifier{Kind: "user_id", Value: "cust-1"}),
		person(`{"plan":"pro"}`),
		person(`{}`, activation.Identifier{Kind: "phone", Value: "0171 1234567"}),
	}
	for i := range people {
		people[i].ID = activation.ProfileID{byte(i + 1)}
		people[i].Consent = map[string]bool{"ad_user_data": true, "ad_personalization": true}
	}
	for _, tc := range []struct {
		options partnertest.GoogleOptions
		want    int
	}{
		{partnertest.GoogleOptions{}, 5},
		{partnertest.GoogleOptions{GmailTags: "both"}, 5},
		{partnertest.GoogleOptions{Data: mobileIDs}, 1},
		{partnertest.GoogleOptions{Data: userIDs}, 1},
	} {
		p, fake := newPartner(t), partnertest.NewGoogle(t, tc.options)
		fake.List("8123")
		fake.Seed(people...)
		var to activation.Target
		send := func(entered bool) (receipt string) {
			b := activation.Batch{Audience: "8123"}
			m := activation.Message{Audience: "8123"}
			for _, someone := range people {
				ids, err := p.Identify(to, someone)
				if err != nil {
					t.Fatal(err)
				}
				if len(ids.IDs) > 0 {
					b.Members = append(b.Members, activation.Member{Person: someone, Identifiers: ids, Entered: entered})
					m.Members = append(m.Members, activation.MemberRef{Entered: entered})
				}
			}
			var err error
			if m.Body, _, err = p.Encode(to, b); err != nil {
				t.Fatal(err)
			}
			o := p.Send(t.Context(), to, m)
			if o.Class != activation.OK || o.Receipt == "" {
				t.Fatalf("%+v: Send = %+v", tc.options, o)
			}
			return o.Receipt
		}
		audience := partnertest.Audience{ID: "8123"}
		for _, entered := range []bool{true, false} {
			to = reachable(t, p, fake) // tokens last for an hour
			receipt := send(entered)
			if fake.Unasked() == 0 {
				t.Error("a status that nobody has asked for is not counted")
			}
			fake.Advance(10 * time.Minute)
			if polled := p.Poll(t.Context(), to, receipt); polled.Done || polled.Class != activation.OK {
				t.Errorf("%+v: too early, Poll = %+v", tc.options, polled)
			}
			fake.Advance(20 * time.Minute)
			got, want := len(fake.Members(audience)), map[bool]int{true: tc.want}[entered]
			if polled := p.Poll(t.Context(), to, receipt); !polled.Done || polled.Class != activation.OK || got != want {
				t.Errorf("%+v: %d people are there, want %d; Poll = %+v", tc.options, got, want, polled)
			}
			if left := fake.Leftovers(audience); len(left) > 0 || fake.Unasked() > 0 {
				t.Errorf("%+v: %v are nobody's, %d requests were not asked for", tc.options, left, fake.Unasked())
			}
		}
		for _, v := range fake.Violations() {
			t.Errorf("%+v: violation: %s", tc.options, v)
		}
	}
}

// The fake notices who asks too often, too fast, or with what has ended.
func TestTheFakeCountsRequests(t *testing.T) {
	t.Parallel()
	p, fake := newPartner(t), partnertest.NewGoogle(t, partnertest.GoogleOptions{})
	to := reachable(t, p, fake)
	last := activation.Outcome{}
	for range 301 {
		last = p.Test(t.Context(), to)
	}
	if last.Class != activation.RetryAfter || len(fake.Violations()) > 0 {
		t.Errorf("request 301 of a minute: %+v, %v", last, fake.Violations())
	}
	fake.Advance(time.Hour)
	for range 9 {
		if o := p.Test(t.Context(), to); o.Class != activation.Refresh {
			t.Errorf("a token that has ended: %+v", o)
		}
	}
	if v := strings.Join(fake.Violations(), "\n"); !strings.Contains(v, "a token that has ended goes on being used") {
		t.Errorf("violations %q", v)
	}
}

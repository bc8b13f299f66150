package linkedin_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/linkedin"
)

const (
	smith = "62a14e44f765419d10fea99367361a727c12365e2520f32218d505ed9aa0f62f"
	alexz = "509e933019bb285a134a9334b8bb679dff79d0ce023d529af4bd744d47b4fd8a"
	jane  = "5f0d1df1fc49e30424381b57b1d4c73e067772a4267dde043a19b026935602c8"
	maid  = "5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25"
)

// target is a destination at a URL, with further members of its config.
func target(at, config string) activation.Target {
	return activation.Target{ID: 12, Workspace: 1, Settings: activation.Settings{
		Config:  jsontext.Value(fmt.Sprintf(`{"account_id":"512345","source_platform":"MUBATCH","api_url":%q%s}`, at, config)),
		Secrets: jsontext.Value(`{"access_token":"AQX-access-token-0"}`),
	}}
}

func client(t testing.TB) *http.Client {
	c := activation.NewClient(private)
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func identifiers(pairs ...string) (ids []activation.Identifier) {
	for i := 0; i < len(pairs); i += 2 {
		ids = append(ids, activation.Identifier{Kind: pairs[i], Value: pairs[i+1]})
	}
	return ids
}

// person is somebody with identifiers, and with traits as JSON.
func person(traits string, pairs ...string) activation.Person {
	p := activation.Person{Identifiers: identifiers(pairs...)}
	if traits != "" {
		if err := json.Unmarshal([]byte(traits), &p.Traits); err != nil {
			panic(err)
		}
	}
	return p
}

func TestIdentify(t *testing.T) {
	t.Parallel()
	const names = `,"send_names":true`
	for name, tt := range map[string]struct {
		config string
		person activation.Person
		want   activation.Identifiers
	}{
		"an address": {person: person("", "email", "testing@testing.com"), want: activation.Identifiers{
			IDs: identifiers("SHA256_EMAIL", "584c4423c421df49955759498a71495aba49b8780eb9387dff333b6f0982c777"),
		}},
		"an address as a trait": {person: person(`{"email":"random@rudderstack.com"}`), want: activation.Identifiers{
			IDs: identifiers("SHA256_EMAIL", "52ac4b9ef8f745e007c19fac81ddb0a3f50b20029f6699ca1406225fc217f392"),
		}},
		"dots and tags stay": {person: person("", "email", "  Jane.Doe+Promo@GMail.com ", "phone", "+49 (0)171 1234567"), want: activation.Identifiers{
			IDs: identifiers("SHA256_EMAIL", jane),
		}},
		"several addresses and a device": {
			person: person(`{"email":"alexz@example.com"}`, "email", "john_smith@gmail.com", "gaid", strings.ToUpper(maid)),
			want:   activation.Identifiers{IDs: identifiers("SHA256_EMAIL", smith, "SHA256_EMAIL", alexz, "GOOGLE_AID", maid)},
		},
		"SHA-512": {config: `,"email_hash":"sha512"`, person: person("", "email", "TEST@Example.com"), want: activation.Identifiers{
			IDs: identifiers("SHA512_EMAIL", "3af3174fa10ef8bd28ce7620c25fe18d1d5f93b9b3c4db3413402a0ec66369eab560c8cc0cefed323a2213ddec7c8a2c9ab912761215ada3e3c8c447cb318e07"),
		}},
		"a hash stays what it is":             {person: person("", "email", strings.ToUpper(smith)), want: activation.Identifiers{IDs: identifiers("SHA256_EMAIL", smith)}},
		"a hash is SHA-256 also with SHA-512": {config: `,"email_hash":"sha512"`, person: person("", "email", smith), want: activation.Identifiers{IDs: identifiers("SHA256_EMAIL", smith)}},
		"names are not sent unless asked for": {person: person(`{"first_name":"John","last_name":"Smith"}`, "email", "john_smith@gmail.com"), want: activation.Identifiers{
			IDs: identifiers("SHA256_EMAIL", smith),
		}},
		"names": {
			config: names,
			person: person(`{"name":" Valéry  정 ","title":"Buyer\n","company":"Example","country":"de"}`, "email", "john_smith@gmail.com"),
			want: activation.Identifiers{
				IDs:     identifiers("SHA256_EMAIL", smith),
				Details: identifiers("firstName", "Valéry", "lastName", "정", "title", "Buyer", "company", "Example", "country", "DE"),
			},
		},
		"names that are none": {
			config: names,
			person: person(`{"first_name":"null","last_name":"ada@example.com","title":"`+strings.Repeat("x", 51)+`","country":"Germany"}`, "email", "john_smith@gmail.com"),
			want:   activation.Identifiers{IDs: identifiers("SHA256_EMAIL", smith)},
		},
		"an Apple device": {person: person("", "idfa", maid), want: activation.Identifiers{
			Reason: "LinkedIn does not know Apple devices: it needs an e-mail address or an Android advertising id",
		}},
		"an Apple device that is also called something else": {
			person: person(`{"advertising_id":"`+maid+`"}`, "idfa", maid, "email", "john_smith@gmail.com"),
			want:   activation.Identifiers{IDs: identifiers("SHA256_EMAIL", smith)},
		},
		"a device whose owner has opted out": {person: person("", "gaid", "00000000-0000-0000-0000-000000000000"), want: activation.Identifiers{
			Reason: "neither an e-mail address nor an Android advertising id is known",
		}},
		"a phone number": {person: person("", "phone", "(650)555-1212"), want: activation.Identifiers{
			Reason: "LinkedIn does not know phone numbers: it needs an e-mail address or an Android advertising id",
		}},
		"nobody": {config: names, person: person(`{"name":"John Smith"}`, "anonymous_id", "v1"), want: activation.Identifiers{
			Reason: "neither an e-mail address nor an Android advertising id is known",
		}},
	} {
		got, err := linkedin.New(nil, private).Identify(target("http://x", tt.config), tt.person)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	for _, bad := range []string{
		"", "null", "a@b", "test@@example.com", "quinn",
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
		"eb045d78d273107348b0300c01d29b7552d622abbc6faf81b3ec55359aa9950c",
	} {
		got, err := linkedin.New(nil, private).Identify(target("http://x", ""), person("", "email", bad))
		if err != nil || len(got.IDs) > 0 || got.Reason == "" {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	body, took, err := linkedin.New(nil, private).Encode(target("http://x", ""), activation.Batch{Members: []activation.Member{
		{Entered: true, Identifiers: activation.Identifiers{
			IDs:     identifiers("SHA256_EMAIL", smith, "SHA256_EMAIL", alexz, "GOOGLE_AID", maid),
			Details: identifiers("firstName", "John", "lastName", "Smith", "title", "Buyer", "company", "Example & Co", "country", "US"),
		}},
		{Identifiers: activation.Identifiers{IDs: identifiers("SHA256_EMAIL", jane), Details: identifiers("firstName", "Jane")}},
	}})
	const want = `{"elements":[{"action":"ADD","userIds":[{"idType":"SHA256_EMAIL","idValue":"` + smith + `"},` +
		`{"idType":"SHA256_EMAIL","idValue":"` + alexz + `"},{"idType":"GOOGLE_AID","idValue":"` + maid + `"}],` +
		`"firstName":"John","lastName":"Smith","title":"Buyer","company":"Example & Co","country":"US"},` +
		`{"action":"REMOVE","userIds":[{"idType":"SHA256_EMAIL","idValue":"` + jane + `"}]}]}`
	if diff := cmp.Diff(want, string(body)); err != nil || took != 2 || diff != "" {
		t.Errorf("took %d, %v (-want +got):\n%s", took, err, diff)
	}
}

// However many people there are, however much is known of them, a message is about the first of them, one element each.
func FuzzEncode(f *testing.F) {
	f.Add(uint64(1), 3, 2)
	f.Add(uint64(2), 5000, 1)
	f.Add(uint64(3), 1000, 30)
	f.Add(uint64(4), 2, 20_000)
	f.Fuzz(func(t *testing.T, seed uint64, people, most int) {
		if people < 1 || people > 5000 || most < 1 || people*most > 50_000 {
			t.Skip()
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		text := func() string { return hex.EncodeToString(fmt.Appendf(nil, "%032d", rng.Uint64())) }
		b := activation.Batch{Members: make([]activation.Member, people)}
		for i := range b.Members {
			m := &b.Members[i]
			m.Entered = rng.IntN(2) == 0
			for range 1 + rng.IntN(most) {
				m.Identifiers.IDs = append(m.Identifiers.IDs, identifiers("SHA256_EMAIL", text())...)
			}
			if rng.IntN(2) == 0 {
				m.Identifiers.Details = identifiers("lastName", `"`+text()[:8])
			}
		}
		p := linkedin.New(nil, private)
		body, took, err := p.Encode(target("http://x", ""), b)
		again, _, _ := p.Encode(target("http://x", ""), b)
		if err != nil || took < 1 || took > people || len(body) > 1<<20 && took > 1 || string(again) != string(body) {
			t.Fatalf("of %d people it took %d into %d bytes, %v", people, took, len(body), err)
		}
		var m struct {
			Elements []struct {
				Action  string `json:"action"`
				UserIDs []struct {
					Type  string `json:"idType"`
					Value string `json:"idValue"`
				} `json:"userIds"`
				LastName string `json:"lastName"`
			} `json:"elements"`
		}
		if err := json.Unmarshal(body, &m, json.RejectUnknownMembers(true)); err != nil || len(m.Elements) != took {
			t.Fatalf("%d elements, %v, want %d", len(m.Elements), err, took)
		}
		for i, e := range m.Elements {
			of := b.Members[i]
			var ids []activation.Identifier
			for _, id := range e.UserIDs {
				ids = append(ids, activation.Identifier{Kind: id.Type, Value: id.Value})
			}
			if !slices.Equal(ids, of.Identifiers.IDs) || (e.Action == "ADD") != of.Entered || !of.Entered && e.LastName != "" ||
				of.Entered && e.LastName != of.Identifiers.Get("lastName") {
				t.Fatalf("element %d is not of person %d: %+v", i, i, e)
			}
		}
	})
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	const least, token = `{"account_id":"512345","source_platform":"MUBATCH"}`, `{"access_token":"AQX-access-token-0"}`
	for name, tt := range map[string]struct {
		config, secrets string
		want            []string
	}{
		"the least":            {config: least, secrets: token},
		"nothing":              {want: []string{"/config/account_id", "/config/source_platform", "/secrets/access_token"}},
		"a URN":                {config: `{"account_id":"urn:li:sponsoredAccount:512345","source_platform":"M"}`, secrets: token, want: []string{"/config/account_id"}},
		"a number":             {config: `{"account_id":512345,"source_platform":"M"}`, secrets: token, want: []string{"/config/account_id"}},
		"a token of two lines": {config: least, secrets: `{"access_token":"AQX\nB"}`, want: []string{"/secrets/access_token"}},
		"half a refresh token": {
			config: least, secrets: `{"access_token":"AQX","refresh_token":"AQW"}`, want: []string{"/config/client_id", "/secrets/client_secret"},
		},
		"everything": {
			config: `{"account_id":"1","source_platform":"M","client_id":"app","version":"202612","email_hash":"sha512","send_names":true,` +
				`"batch":5000,"concurrency":16,"requests_per_minute":600,"api_url":"http://x/","token_url":"http://y/"}`,
			secrets: `{"access_token":"AQX","refresh_token":"AQW","client_secret":"s"}`,
		},
		"everything wrong": {
			config: `{"account_id":"1","source_platform":"M","version":"2026-8","email_hash":"md5","batch":5001,"concurrency":17,` +
				`"requests_per_minute":-1,"api_url":"x","token_url":"ftp://y/"}`,
			secrets: `{"access_token":"AQX","pass":"x"}`,
			want: []string{
				"/config/api_url", "/config/batch", "/config/concurrency", "/config/email_hash", "/config/requests_per_minute",
				"/config/token_url", "/config/version", "/secrets/pass",
			},
		},
	} {
		s := activation.Settings{Config: jsontext.Value(tt.config), Secrets: jsontext.Value(tt.secrets)}
		kept, err := linkedin.New(nil, private).Prepare(s)
		if diff := cmp.Diff(tt.want, pointers(err)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if err == nil && (string(kept.Config) != tt.config || string(kept.Secrets) != tt.secrets) {
			t.Errorf("%s: what is kept is not what was given: %s %s", name, kept.Config, kept.Secrets)
		}
	}
	if _, err := linkedin.New(nil, activation.Outbound{}).Prepare(target("http://127.0.0.1/", "").Settings); err == nil {
		t.Error("a URL without TLS is accepted")
	}
}

// pointers returns the fields that an error is about, in order.
func pointers(err error) (list []string) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			list = append(list, pointers(e)...)
		}
		slices.Sort(list)
		return list
	}
	var f *activation.FieldError
	if errors.As(err, &f) {
		list = append(list, f.Pointer)
	}
	return list
}

func TestMask(t *testing.T) {
	t.Parallel()
	shown := linkedin.New(nil, private).Mask(jsontext.Value(
		`{"access_token":"AQX-0123456789-abcd","refresh_token":"AQW-0123456789-efgh","client_secret":"short"}`))
	want := map[string]string{"access_token": "…abcd", "refresh_token": "…efgh", "client_secret": "…"}
	if diff := cmp.Diff(want, shown); diff != "" {
		t.Error(diff)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	p := linkedin.New(nil, private)
	l := p.Limits(target("http://x", ""))
	if l.Members != 1000 || !l.Mixed || !l.NeedsAudience || l.Rates[0] != (activation.Rate{Requests: 500, Per: time.Minute}) {
		t.Errorf("by default: %+v", l)
	}
	if strings.Contains(l.Account, "AQX") {
		t.Errorf("the account %q has a token in it", l.Account)
	}
	l = p.Limits(target("http://x", `,"batch":7,"concurrency":2,"requests_per_minute":60`))
	if l.Members != 7 || l.Concurrency != 2 || l.Rates[0].Requests != 60 {
		t.Errorf("as told: %+v", l)
	}
}

// What LinkedIn's answers to a message mean.
func TestAnswers(t *testing.T) {
	t.Parallel()
	const minute, day = "Resource level throttle APPLICATION_AND_MEMBER MINUTE limit for calls to this resource is reached.",
		"Resource level throttle APPLICATION_AND_MEMBER DAY limit for calls to this resource is reached."
	for _, tt := range []struct {
		status int
		body   string
		after  string
		since  time.Duration
		secret string
		class  activation.Class
		words  string // in the reason
	}{
		{status: 200, body: `{"elements":[{"status":201},{"status":201}]}`, class: activation.OK},
		{status: 200, body: `{"elements":[{"status":201}]}`, class: activation.Retry},
		{status: 200, body: `<html>`, class: activation.Retry},
		{status: 400, body: `{"message":"Too many elements","status":400}`, class: activation.Split},
		{status: 400, body: `{"code":"VERSION_MISSING","status":400}`, class: activation.Config, words: "version 202608"},
		{status: 401, body: `{"message":"Empty oauth2_access_token","serviceErrorCode":401,"status":401}`, class: activation.Reauth, words: "connect the account again"},
		{status: 401, body: `{"serviceErrorCode":65602,"status":401}`, secret: `,"refresh_token":"r","client_secret":"s"`, class: activation.Refresh},
		{
			status: 401, body: `{"serviceErrorCode":65601,"status":401}`, words: "yet", class: activation.Retry,
			secret: `,"refresh_token":"r","client_secret":"s","refreshed_at":"` + time.Now().UTC().Format(time.RFC3339) + `"`,
		},
		{
			status: 401, body: `{"serviceErrorCode":65602,"status":401}`, class: activation.Refresh,
			secret: `,"refresh_token":"r","client_secret":"s","refreshed_at":"` + time.Now().UTC().Format(time.RFC3339) + `"`,
		},
		{
			status: 401, body: `{"serviceErrorCode":65601,"status":401}`, class: activation.Refresh,
			secret: `,"refresh_token":"r","client_secret":"s","refreshed_at":"2026-01-02T03:04:05Z"`,
		},
		{status: 403, body: `{"status":403}`, class: activation.Config, words: "rw_dmp_segments"},
		{status: 404, since: time.Minute, class: activation.Retry, words: "yet"},
		{status: 404, since: 11 * time.Minute, class: activation.Config, words: "deleted"},
		{status: 413, class: activation.Split},
		{status: 426, body: `{"status":426,"code":"NONEXISTENT_VERSION","message":"Requested version 20260801 is not active"}`, class: activation.Config, words: "version 202608"},
		{status: 429, body: `{"message":"` + minute + `","status":429}`, class: activation.RetryAfter},
		{status: 429, body: `{"message":"` + day + `","status":429}`, class: activation.RetryAfter},
		{status: 429, after: "7", class: activation.RetryAfter},
		{status: 500, class: activation.Retry},
		{status: 503, after: "7", class: activation.RetryAfter},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if tt.after != "" {
				w.Header().Set("Retry-After", tt.after)
			}
			w.WriteHeader(tt.status)
			io.WriteString(w, tt.body)
		}))
		t.Cleanup(server.Close)
		to := target(server.URL, "")
		to.Secrets = jsontext.Value(`{"access_token":"AQX"` + tt.secret + `}`)
		before := time.Now().UTC()
		o := linkedin.New(client(t), private).Send(t.Context(), to, activation.Message{
			Audience: "77", Since: time.Now().Add(-tt.since), Body: []byte(`{}`), Members: make([]activation.MemberRef, 2),
		})
		if o.Class != tt.class || !strings.Contains(o.Reason, tt.words) || (o.Reason == "") != (o.Class == activation.OK) {
			t.Errorf("%d %s: %+v, want %s", tt.status, tt.body, o, tt.class)
		}
		switch {
		case tt.after != "" && o.Wait != 7*time.Second, strings.Contains(tt.body, minute) && o.Wait != time.Minute:
			t.Errorf("%d %s: wait %v", tt.status, tt.body, o.Wait)
		case strings.Contains(tt.body, day): // until midnight
			if end := before.Add(o.Wait); end.Sub(end.Round(24*time.Hour)).Abs() > time.Minute || o.Wait <= 0 {
				t.Errorf("at %v: wait %v", before, o.Wait)
			}
		}
	}
}

// What LinkedIn says of single people.
func TestPeopleRefused(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"elements":[{"status":201},{"status":400,"message":"ada@example.com is not valid"},{"status":500},{"status":200},{"status":429},{}]}`)
	}))
	t.Cleanup(server.Close)
	o := linkedin.New(client(t), private).Send(t.Context(), target(server.URL, ""), activation.Message{
		Audience: "77", Body: []byte(`{}`), Members: make([]activation.MemberRef, 6),
	})
	var classes []activation.Class
	for _, r := range o.Rows {
		classes = append(classes, r.Class)
	}
	want := []activation.Class{activation.OK, activation.Drop, activation.Retry, activation.OK, activation.Retry, activation.Retry}
	if diff := cmp.Diff(want, classes); o.Class != activation.Partial || diff != "" {
		t.Errorf("%+v: %s", o, diff)
	}
	if strings.Contains(o.Excerpt+o.Reason+o.Rows[1].Reason, "ada@") || !strings.Contains(o.Excerpt, "400") {
		t.Errorf("reason %q, excerpt %q", o.Reason, o.Excerpt)
	}
}

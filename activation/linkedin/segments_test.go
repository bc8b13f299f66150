package linkedin_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/linkedin"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func noViolations(t testing.TB, fake *partnertest.LinkedIn) {
	t.Helper()
	for _, v := range fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

// A test of the connection says in words what is wrong.
func TestConnection(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		old, new string // in the settings
		fault    partnertest.Fault
		sunset   bool
		class    activation.Class
		words    string
	}{
		"all is well":       {class: activation.OK},
		"another account":   {old: "512345", new: "512346", class: activation.Config, words: "does not allow"},
		"another platform":  {old: "MUBATCH", new: "MUBATSCH", class: activation.Config, words: "source platform"},
		"a wrong token":     {old: "AQX-access-token-0", new: "AQX-wrong", class: activation.Refresh, words: "token"},
		"a version's end":   {sunset: true, class: activation.Config, words: "later version"},
		"a viewer":          {fault: partnertest.Fault{Status: 403}, class: activation.Config, words: "role above viewer"},
		"no such account":   {fault: partnertest.Fault{Status: 404}, class: activation.Config, words: "does not know the ad account"},
		"LinkedIn is down":  {fault: partnertest.Fault{Status: 503}, class: activation.Retry, words: "503"},
		"a page of a proxy": {fault: partnertest.Fault{Status: 200, Body: "<html>"}, class: activation.Retry, words: "not what the partner promises"},
	} {
		partner, fake := newPartner(t, partnertest.LinkedInOptions{})
		s := fake.Settings()
		s.Config = jsontext.Value(strings.Replace(string(s.Config), tt.old, tt.new, 1))
		s.Secrets = jsontext.Value(strings.Replace(string(s.Secrets), tt.old, tt.new, 1))
		if tt.fault.Status > 0 {
			tt.fault.Match = func(*http.Request) bool { return true }
			fake.Script(tt.fault)
		}
		if tt.sunset {
			fake.Sunset()
		}
		o := partner.Test(t.Context(), activation.Target{Settings: s})
		if o.Class != tt.class || !strings.Contains(o.Reason, tt.words) {
			t.Errorf("%s: %+v, want %s", name, o, tt.class)
		}
		noViolations(t, fake)
	}
}

// However often a segment is asked for, there is one.
func TestCreate(t *testing.T) {
	t.Parallel()
	for _, options := range []partnertest.LinkedInOptions{{}, {RestliID: true}} {
		partner, fake := newPartner(t, options)
		creator, to := partner.(activation.Creator), activation.Target{ID: 12, Settings: fake.Settings()}
		id, o := creator.Create(t.Context(), to, partnertest.Segment(7))
		if o.Class != activation.OK || id == "" || o.Wait < 5*time.Second {
			t.Fatalf("Create = %q, %+v", id, o)
		}
		again, o := creator.Create(t.Context(), to, partnertest.Segment(7))
		if o.Class != activation.OK || again != id || o.Wait < 5*time.Second || fake.Segments() != 1 {
			t.Errorf("Create again = %q, %+v, and there are %d segments, want %q", again, o, fake.Segments(), id)
		}
		to.ID = 13 // which may ask for other consent
		if other, o := creator.Create(t.Context(), to, partnertest.Segment(7)); o.Class != activation.OK || other == id {
			t.Errorf("another destination gets %q, %+v", other, o)
		}
		noViolations(t, fake)
		s := fake.Settings()
		to.Config = jsontext.Value(strings.Replace(string(s.Config), "MUBATCH", "MUBATSCH", 1))
		if _, o := creator.Create(t.Context(), to, partnertest.Segment(8)); o.Class != activation.Config || !strings.Contains(o.Reason, "source platform") {
			t.Errorf("with a wrong source platform: %+v", o)
		}
		to.Config = s.Config
		post := func(r *http.Request) bool { return r.Method == http.MethodPost }
		for status, class := range map[int]activation.Class{400: activation.Config, 403: activation.Config, 409: activation.Retry, 500: activation.Retry} {
			fake.Script(partnertest.Fault{Match: post, Status: status})
			if id, o := creator.Create(t.Context(), to, partnertest.Segment(9)); o.Class != class || id != "" {
				t.Errorf("%d: %q, %+v, want %s", status, id, o, class)
			}
		}
		fake.Script(partnertest.Fault{Match: post, Apply: true, Reset: true}) // it was made, and nobody heard of it
		if id, o := creator.Create(t.Context(), to, partnertest.Segment(9)); o.Class != activation.Retry || id != "" || !o.Unknown {
			t.Errorf("without an answer: %q, %+v", id, o)
		}
		before := fake.Segments()
		if id, o := creator.Create(t.Context(), to, partnertest.Segment(9)); o.Class != activation.OK || id == "" || fake.Segments() != before {
			t.Errorf("after that: %q, %+v", id, o)
		}
		noViolations(t, fake)
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	partner, fake := newPartner(t, partnertest.LinkedInOptions{Segment: "77"})
	sizer, to := partner.(activation.Sizer), activation.Target{Settings: fake.Settings()}
	if size, o := sizer.Size(t.Context(), to, "77"); o.Class != activation.OK || size != (activation.Size{State: "READY"}) {
		t.Errorf("Size = %+v, %+v", size, o)
	}
	if _, o := sizer.Size(t.Context(), to, "78"); o.Class != activation.Config {
		t.Errorf("Size of what is not there = %+v", o)
	}
	one := func(r *http.Request) bool { return true }
	fake.Script(partnertest.Fault{Match: one, Body: `{"id":77,"destinations":[{"destination":"LINKEDIN","status":"BUILDING"}]}`})
	if size, o := sizer.Size(t.Context(), to, "77"); o.Class != activation.OK || size != (activation.Size{Matched: -1, State: "BUILDING"}) {
		t.Errorf("Size of what is being built = %+v, %+v", size, o)
	}
	noViolations(t, fake)
}

// A refresh keeps all but the tokens, whichever of them LinkedIn gives.
func TestRefresh(t *testing.T) {
	t.Parallel()
	for _, options := range []partnertest.LinkedInOptions{{}, {Rotates: true}, {Silent: true}} {
		partner, fake := newPartner(t, options)
		refresher, old := partner.(activation.Refresher), fake.Settings()
		fresh, expires, o := refresher.Refresh(t.Context(), activation.Target{Settings: old})
		if o.Class != activation.OK || time.Until(expires) < 59*24*time.Hour {
			t.Fatalf("%+v: ends %v, %+v", options, expires, o)
		}
		if diff := cmp.Diff(tokens(t, fake.Settings()), tokens(t, fresh)); diff != "" {
			t.Errorf("%+v: the secrets (-want +got):\n%s", options, diff)
		}
		if o := partner.Test(t.Context(), activation.Target{Settings: fresh}); o.Class != activation.OK {
			t.Errorf("%+v: with the new token: %+v", options, o)
		}
		fake.Advance(300 * 24 * time.Hour) // what a refresh makes no longer
		again, _, o := refresher.Refresh(t.Context(), activation.Target{Settings: fresh})
		if o.Class != activation.OK {
			t.Errorf("%+v: within a year: %+v", options, o)
		}
		fake.Advance(66 * 24 * time.Hour)
		if _, _, o = refresher.Refresh(t.Context(), activation.Target{Settings: again}); o.Class != activation.Reauth || !strings.Contains(o.Reason, "connect the account again") {
			t.Errorf("%+v: after a year: %+v", options, o)
		}
		noViolations(t, fake)
	}
	only := target("http://127.0.0.1:1", "")
	same, expires, o := linkedin.New(client(t), private).Refresh(t.Context(), only)
	if o.Class != activation.OK || !expires.IsZero() || string(same.Secrets) != string(only.Secrets) {
		t.Errorf("without a refresh token: ends %v, %+v", expires, o)
	}
}

// tokens returns a destination's secrets but for what we add.
func tokens(t *testing.T, s activation.Settings) (all map[string]string) {
	t.Helper()
	if err := json.Unmarshal(s.Secrets, &all); err != nil {
		t.Fatal(err)
	}
	delete(all, "refreshed_at")
	return all
}

// stage is a destination of whose segment there are people.
func stage(t *testing.T, o partnertest.LinkedInOptions, people int) (*partnertest.Bench, *partnertest.LinkedIn) {
	partner, fake := newPartner(t, o)
	b := partnertest.NewBench(t, partner)
	b.Destination(t, "linkedin", "linkedin", fake.Settings(), 7)
	for n := range people {
		fake.Seed(partnertest.Somebody(n))
		b.World.Add(partnertest.Somebody(n))
		b.Apply(t, activation.Change{Segment: 7, Profile: partnertest.Profile(n), Entered: true})
	}
	return b, fake
}

func get(t *testing.T, b *partnertest.Bench) activation.Destination {
	t.Helper()
	d, err := b.Store.Get(t.Context(), b.Workspace, "linkedin")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// LinkedIn may not know a new segment for a while. Of one that has been there that means that it was deleted.
func TestSegmentsThatAreNotThere(t *testing.T) {
	t.Parallel()
	const people = 5
	b, fake := stage(t, partnertest.LinkedInOptions{Shy: 90 * time.Second}, people)
	b.Dispatch(t, activation.DispatchConfig{Schedule: slices.Repeat([]time.Duration{30 * time.Second}, 10)})
	early := false
	partnertest.Eventually(t, "everybody is sent", func() bool {
		sum, err := b.Store.Summary(t.Context(), b.Workspace, "linkedin", 0)
		if err != nil {
			t.Fatal(err)
		}
		if d := get(t, b); d.Status != activation.Active {
			t.Fatalf("the destination is %s: %s", d.Status, d.StatusReason)
		}
		lines, err := b.Store.Deliveries(t.Context(), b.Workspace, "linkedin", activation.DeliveryFilter{Outcome: activation.Retry, Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		early = early || len(lines) > 0
		time.Sleep(300 * time.Millisecond)
		if sum.Sent < people {
			b.Warp(t, 20*time.Second, fake)
		}
		return sum.Sent == people && sum.Pending == 0
	})
	if !early {
		t.Error("LinkedIn knew the segment at once")
	}
	noViolations(t, fake)

	d := get(t, b)
	fake.Delete(d.Segments[0].Audience)
	b.Warp(t, 10*time.Minute, fake)
	b.Apply(t, activation.Change{Segment: 7, Profile: partnertest.Profile(0)})
	partnertest.Eventually(t, "the destination is paused", func() bool { return get(t, b).Status == activation.Paused })
	if reason := get(t, b).StatusReason; !strings.Contains(reason, "deleted at LinkedIn") {
		t.Errorf("the reason is %q", reason)
	}
	noViolations(t, fake)
}

// Of people of one message whom LinkedIn takes, refuses, and cannot take yet, each gets what is due to them.
func TestMixedAnswers(t *testing.T) {
	t.Parallel()
	const people = 12
	b, fake := stage(t, partnertest.LinkedInOptions{Segment: "77"}, people)
	if err := b.Store.SetAudience(t.Context(), b.Workspace, "linkedin", 7, "77"); err != nil {
		t.Fatal(err)
	}
	for n := range people {
		fake.Refuse(partnertest.Profile(n), n == 0)
		if n%3 == 1 {
			fake.Stumble(partnertest.Profile(n), 2)
		}
	}
	b.Dispatch(t, activation.DispatchConfig{})
	if sum := b.Rest(t, "linkedin"); sum.Sent != people-1 || sum.Failed != 1 {
		t.Errorf("%+v, want all sent but one", sum)
	}
	if n := len(fake.Members(partnertest.Audience{ID: "77"})); n != people-1 {
		t.Errorf("LinkedIn has %d people, want %d", n, people-1)
	}
	noViolations(t, fake)
}

// The end of a version pauses the destination and says what to do; the end of a token without a refresh token, too.
func TestWhatSomebodyHasToMend(t *testing.T) {
	t.Parallel()
	for words, end := range map[string]func(*partnertest.LinkedIn){
		"set a later version":       (*partnertest.LinkedIn).Sunset,
		"connect the account again": (*partnertest.LinkedIn).Expire,
	} {
		b, fake := stage(t, partnertest.LinkedInOptions{Segment: "77"}, 2)
		if err := b.Store.SetAudience(t.Context(), b.Workspace, "linkedin", 7, "77"); err != nil {
			t.Fatal(err)
		}
		secrets := jsontext.Value(`{"access_token":"AQX-access-token-0"}`)
		if _, err := b.Store.Update(t.Context(), b.Workspace, "linkedin", activation.Update{Secrets: secrets}); err != nil {
			t.Fatal(err)
		}
		b.Dispatch(t, activation.DispatchConfig{})
		if sum := b.Rest(t, "linkedin"); sum.Sent != 2 || get(t, b).Status != activation.Active {
			t.Errorf("before: %+v, the destination is %s", sum, get(t, b).Status)
		}
		end(fake)
		b.Apply(t, activation.Change{Segment: 7, Profile: partnertest.Profile(0)})
		partnertest.Eventually(t, "the destination is paused", func() bool { return get(t, b).Status == activation.Paused })
		if reason := get(t, b).StatusReason; !strings.Contains(reason, words) {
			t.Errorf("the reason is %q, want %q", reason, words)
		}
		noViolations(t, fake)
	}
}

// The fake notes what it should: else nothing that it finds right would mean anything.
func TestTheFakeIsStrict(t *testing.T) {
	t.Parallel()
	const (
		users = "POST /rest/dmpSegments/77/users"
		md5   = "19772af43b0939029b6ff71cc8c84d0e"
	)
	row := func(kind, value string) string {
		return `{"elements":[{"action":"ADD","userIds":[{"idType":"` + kind + `","idValue":"` + value + `"}]}]}`
	}
	good := row("SHA256_EMAIL", jane)
	for name, tt := range map[string]struct {
		request string            // users unless given
		header  map[string]string // that differs
		body    string            // good unless given
		status  int
		answer  string
		noted   string // "" for nothing
	}{
		"a good one":                    {status: 200, answer: `{"status":201}`},
		"no version":                    {header: map[string]string{"LinkedIn-Version": ""}, status: 400, noted: "LinkedIn-Version is missing"},
		"a malformed version":           {header: map[string]string{"LinkedIn-Version": "2026-08"}, status: 400, noted: `LinkedIn-Version is "2026-08"`},
		"a month that is none":          {header: map[string]string{"LinkedIn-Version": "202613"}, status: 400, noted: `LinkedIn-Version is "202613"`},
		"a version that has ended":      {header: map[string]string{"LinkedIn-Version": "202508"}, status: 426, noted: "none of the last 12 months"},
		"the oldest version":            {header: map[string]string{"LinkedIn-Version": "202509"}, status: 200},
		"a version to come":             {header: map[string]string{"LinkedIn-Version": "202609"}, status: 426, noted: "none of the last 12 months"},
		"another protocol":              {header: map[string]string{"X-Restli-Protocol-Version": "1.0.0"}, status: 400, noted: "X-Restli-Protocol-Version"},
		"no method":                     {header: map[string]string{"X-RestLi-Method": ""}, status: 400, noted: "X-RestLi-Method"},
		"another type":                  {header: map[string]string{"Content-Type": "text/plain"}, status: 415, noted: "Content-Type"},
		"no token":                      {header: map[string]string{"Authorization": ""}, status: 401, answer: `"serviceErrorCode":401`, noted: "the token is missing"},
		"a token that has ended":        {header: map[string]string{"Authorization": "Bearer old"}, status: 401, answer: "65602"},
		"nobody":                        {body: `{"elements":[]}`, status: 400, noted: "a message of 0 people"},
		"too many people":               {body: `{"elements":[` + strings.Repeat(`{"action":"ADD"},`, 5000) + `{"action":"ADD"}]}`, status: 400, noted: "a message of 5001 people"},
		"an unknown member":             {body: `{"elements":[],"more":1}`, status: 400, noted: "unknown"},
		"a wrong type":                  {body: `{"elements":[{"action":1}]}`, status: 400, noted: "a message of"},
		"a member twice":                {body: `{"elements":[],"elements":[]}`, status: 400, noted: "duplicate"},
		"an unknown action":             {body: strings.Replace(good, "ADD", "CREATE", 1), status: 200, answer: `"status":400`, noted: `the action is "CREATE"`},
		"neither ids nor names":         {body: `{"elements":[{"action":"ADD","userIds":[],"firstName":"Jane"}]}`, status: 200, answer: `"status":400`, noted: "neither a user id nor a full name"},
		"names that nobody asked for":   {body: strings.Replace(good, `]}]}`, `],"lastName":"Doe"}]}`, 1), status: 200, answer: `"status":400`, noted: "nobody has asked for them"},
		"an unknown id type":            {body: row("IDFA", maid), status: 200, answer: `"status":400`, noted: `the id type is "IDFA"`},
		"an MD5":                        {body: row("SHA256_EMAIL", md5), status: 200, answer: `"status":400`, noted: "64 lower-case hexadecimal digits"},
		"upper case":                    {body: row("SHA256_EMAIL", strings.ToUpper(jane)), status: 200, answer: `"status":400`, noted: "64 lower-case hexadecimal digits"},
		"SHA-256 for SHA-512":           {body: row("SHA512_EMAIL", jane), status: 200, answer: `"status":400`, noted: "128 lower-case hexadecimal digits"},
		"a device that is hashed":       {body: row("GOOGLE_AID", "83dc3f5f32b9472613b0f038d36f22585a609d018af6f6067f50da318bf354bd"), status: 200, answer: `"status":400`, noted: "GOOGLE_AID is a hash"},
		"a device in upper case":        {body: row("GOOGLE_AID", strings.ToUpper(maid)), status: 200, noted: "is in upper case"},
		"an Apple device":               {body: row("GOOGLE_AID", "00000000-0000-0000-0000-0000000000a1"), status: 200, noted: "is the id of an Apple device"},
		"an address that is not hashed": {body: row("SHA256_EMAIL", "jane.doe+promo@gmail.com"), status: 200, answer: `"status":400`, noted: "there is an e-mail address in it"},
		"not normalised":                {body: row("SHA256_EMAIL", "2478f700273bf1eb3c1a24e7212c80f20437bf00e94ee6bf58e4f4db4fe6fc1c"), status: 200, answer: `{"status":201}`, noted: "was not normalised"},
		"not in lower case":             {body: row("SHA256_EMAIL", "0cba52013f15961947314f2247af8afc075d2c2f569da4337728775a1b3235ce"), status: 200, answer: `{"status":201}`, noted: "in capital letters"},
		"a newline behind":              {body: row("SHA256_EMAIL", "fcbc87f44bb2f9a732e90e04135c3b4a438166a24e540dbfaa1de1673a60c66e"), status: 200, answer: `{"status":201}`, noted: "with a line break"},
		"hashed twice":                  {body: row("SHA256_EMAIL", "33382566b69f5857aacf774920e340a709e63bed702c1b4acc2a3fed6b50e16d"), status: 200, answer: `{"status":201}`, noted: "is hashed twice"},
		"the hash of nothing":           {body: row("SHA256_EMAIL", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), status: 200, answer: `{"status":201}`, noted: "is the hash of nothing"},
		"without dots and tag":          {body: row("SHA256_EMAIL", "d6117306485ed0e50afab3ac871e98f81699151f30281527d63ff5f233656c69"), status: 200, answer: `{"status":201}`, noted: "without its dots and tag"},
		"without a tag":                 {body: row("SHA256_EMAIL", "831f6494ad6be4fcb3a724c3d5fef22d3ceffa3c62ef3a7984e45a0ea177f982"), status: 200, answer: `{"status":201}`, noted: "without its tag"},
		"somebody else's":               {body: row("SHA256_EMAIL", "973dfe463ec85785f5f95af5ba3906eedb2d931c24e69824a89ea65dba4e813b"), status: 200, answer: `{"status":201}`, noted: "is not right for anybody"},
		"two people in one": {
			body:   strings.Replace(good, `]}]}`, `,{"idType":"SHA256_EMAIL","idValue":"`+smith+`"}]}]}`, 1),
			status: 200, noted: "mixes the identifiers of different people",
		},
		"an id twice": {
			body:   strings.Replace(good, `]}]}`, `,{"idType":"SHA256_EMAIL","idValue":"`+jane+`"}]}]}`, 1),
			status: 200, answer: `"status":400`, noted: "is there twice",
		},
		"added and removed at once": {
			body:   strings.Replace(good, `]}]}`, `]},{"action":"REMOVE","userIds":[{"idType":"SHA256_EMAIL","idValue":"`+jane+`"}]}]}`, 1),
			status: 200, noted: "to be added and removed by one message",
		},
		"a segment that is not there": {request: "POST /rest/dmpSegments/78/users", status: 404},
		"an unknown path":             {request: "POST /rest/dmpSegments/77/people", header: map[string]string{"X-RestLi-Method": ""}, status: 404, noted: "is not known"},
		"a segment without a name": {
			request: "POST /rest/dmpSegments", header: map[string]string{"X-RestLi-Method": ""},
			body: `{"sourcePlatform":"MUBATCH"}`, status: 400, noted: "a segment is asked for in a wrong way",
		},
		"a search by something else": {
			request: "GET /rest/dmpSegments?q=name&name=x", header: map[string]string{"X-RestLi-Method": ""}, status: 400, noted: "searched by",
		},
		"a token asked for as JSON": {request: "POST /oauth/v2/accessToken", body: `{}`, status: 400, noted: "a token is asked for in a wrong way"},
		"a token for another app": {
			request: "POST /oauth/v2/accessToken", header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
			body: "grant_type=refresh_token&refresh_token=r&client_id=x&client_secret=y", status: 401, noted: "an app that is not known",
		},
		"a refresh token that was replaced": {
			request: "POST /oauth/v2/accessToken", header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
			body:   "grant_type=refresh_token&refresh_token=r&client_id=app&client_secret=app-secret-0123456789",
			status: 400, answer: "invalid_grant", noted: "was replaced",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := strict(t)
			if tt.request == "" {
				tt.request = users
			}
			if tt.body == "" {
				tt.body = good
			}
			status, answer := ask(t, fake, tt.request, tt.header, tt.body)
			noted := strings.Join(fake.Violations(), "\n")
			if status != tt.status || !strings.Contains(answer, tt.answer) {
				t.Errorf("answered %d %s, want %d %s", status, answer, tt.status, tt.answer)
			}
			if (noted == "") != (tt.noted == "") || !strings.Contains(noted, tt.noted) {
				t.Errorf("noted %q, want %q", noted, tt.noted)
			}
		})
	}
}

// And what it should of requests that follow each other.
func TestTheFakeRemembers(t *testing.T) {
	t.Parallel()
	const users = "POST /rest/dmpSegments/77/users"
	good := `{"elements":[{"action":"ADD","userIds":[{"idType":"SHA256_EMAIL","idValue":"` + jane + `"}]},` +
		`{"action":"ADD","userIds":[{"idType":"SHA256_EMAIL","idValue":"` + smith + `"}]}]}`
	for name, tt := range map[string]struct {
		before func(*partnertest.LinkedIn)
		status []int
		noted  string
	}{
		"what was taken is sent again, since others were not": {
			before: func(f *partnertest.LinkedIn) { f.Refuse(partnertest.Profile(1), true) }, status: []int{200, 200}, noted: "is sent again",
		},
		"nothing is wrong with sending again what was taken": {before: func(*partnertest.LinkedIn) {}, status: []int{200, 200}},
		"too many in a minute, and too early after that": {
			before: func(f *partnertest.LinkedIn) {}, status: []int{200, 200, 200, 429, 0, 429}, noted: "before it was allowed to",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := strict(t)
			tt.before(fake)
			for i, want := range tt.status {
				if want == 0 {
					time.Sleep(1100 * time.Millisecond) // what was under way may come for a second
					continue
				}
				if status, answer := ask(t, fake, users, nil, good); status != want {
					t.Errorf("request %d: %d %s, want %d", i, status, answer, want)
				}
			}
			noted := strings.Join(fake.Violations(), "\n")
			if (noted == "") != (tt.noted == "") || !strings.Contains(noted, tt.noted) {
				t.Errorf("noted %q, want %q", noted, tt.noted)
			}
		})
	}
	t.Run("a segment that is new, and one that is made twice", func(t *testing.T) {
		t.Parallel()
		fake := strict(t)
		segment := `{"name":"x","sourcePlatform":"MUBATCH","sourceSegmentId":"s","account":"urn:li:sponsoredAccount:512345",` +
			`"accessPolicy":"PRIVATE","type":"USER","destinations":[{"destination":"LINKEDIN"}]}`
		none := map[string]string{"X-RestLi-Method": ""}
		if status, answer := ask(t, fake, "POST /rest/dmpSegments", none, segment); status != 201 || answer != "" {
			t.Errorf("made: %d %q, want an empty body", status, answer)
		}
		if status, _ := ask(t, fake, "POST /rest/dmpSegments/9821701/users", nil, good); status != 404 {
			t.Errorf("people come at once: %d, want 404", status)
		}
		if status, _ := ask(t, fake, "POST /rest/dmpSegments", none, segment); status != 409 {
			t.Errorf("made again: %d, want 409", status)
		}
		if noted := fake.Violations(); len(noted) != 2 || !strings.Contains(noted[0], "want 5 s") || !strings.Contains(noted[1], "made twice") {
			t.Errorf("noted %q", noted)
		}
	})
}

// strict returns a fake with a segment, which knows three people.
func strict(t *testing.T) *partnertest.LinkedIn {
	_, fake := newPartner(t, partnertest.LinkedInOptions{Segment: "77", Minute: 3})
	for n, p := range []activation.Person{
		person("", "email", "  Jane.Doe+Promo@GMail.com ", "gaid", maid), person("", "email", "john_smith@gmail.com"),
		person("", "idfa", "00000000-0000-0000-0000-0000000000A1"),
	} {
		p.ID = partnertest.Profile(n)
		fake.Seed(p)
	}
	return fake
}

// ask sends a request with the right headers, but for those that are given, to a fake.
func ask(t *testing.T, fake *partnertest.LinkedIn, request string, header map[string]string, body string) (status int, answer string) {
	t.Helper()
	method, path, _ := strings.Cut(request, " ")
	req, err := http.NewRequestWithContext(t.Context(), method, fake.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"Authorization": "Bearer AQX-access-token-0", "LinkedIn-Version": "202608", "X-Restli-Protocol-Version": "2.0.0",
		"X-RestLi-Method": "BATCH_CREATE", "Content-Type": "application/json",
	} {
		if other, ok := header[name]; ok {
			value = other
		}
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	res, err := client(t).Do(req)
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

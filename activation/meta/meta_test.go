package meta_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
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

// prepared returns the target of a destination with the given settings.
func prepared(t testing.TB, p *meta.Partner, s activation.Settings) activation.Target {
	t.Helper()
	s, err := p.Prepare(s)
	if err != nil {
		t.Fatal(err)
	}
	return activation.Target{ID: 3, Workspace: 1, Key: "ads", Settings: s}
}

// configured returns the target of a destination that has some more in its config than it needs.
func configured(t testing.TB, more string) activation.Target {
	t.Helper()
	return prepared(t, meta.New(nil, private), activation.Settings{
		Config: jsontext.Value(`{"ad_account_id":"1"` + more + `}`), Secrets: jsontext.Value(`{"access_token":"EAAB"}`),
	})
}

func person(t testing.TB, traits string, ids ...activation.Identifier) activation.Person {
	t.Helper()
	p := activation.Person{Identifiers: ids}
	if err := json.Unmarshal([]byte(traits), &p.Traits); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	p := meta.New(nil, activation.Outbound{})
	const token = `{"access_token":" EAAB\n"}`
	got, err := p.Prepare(activation.Settings{Config: jsontext.Value(`{"ad_account_id":"act_42"}`), Secrets: jsontext.Value(token)})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"ad_account_id":"42","api_url":"https://graph.facebook.com","api_version":"v25.0","token_in":"query","batch":5000,` +
		`"concurrency":4,"requests_per_hour":5000,"customer_file_source":"USER_PROVIDED_ONLY","limited_data_use":"off"}`
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
		"nothing":              {``, ``, []string{"/config/ad_account_id", "/secrets/access_token"}},
		"an account's name":    {`{"ad_account_id":"shop"}`, token, []string{"/config/ad_account_id"}},
		"a token of spaces":    {`{"ad_account_id":"1"}`, `{"access_token":" "}`, []string{"/secrets/access_token"}},
		"plain HTTP":           {`{"ad_account_id":"1","api_url":"http://graph.example"}`, token, []string{"/config/api_url"}},
		"a version in words":   {`{"ad_account_id":"1","api_version":"25"}`, token, []string{"/config/api_version"}},
		"too many rows":        {`{"ad_account_id":"1","batch":10001}`, token, []string{"/config/batch"}},
		"no concurrency":       {`{"ad_account_id":"1","concurrency":-1}`, token, []string{"/config/concurrency"}},
		"a country in words":   {`{"ad_account_id":"1","default_country":"Germany"}`, token, []string{"/config/default_country"}},
		"an unknown source":    {`{"ad_account_id":"1","customer_file_source":"FOUND"}`, token, []string{"/config/customer_file_source"}},
		"an unknown limit":     {`{"ad_account_id":"1","limited_data_use":"some"}`, token, []string{"/config/limited_data_use"}},
		"an unknown place":     {`{"ad_account_id":"1","token_in":"cookie"}`, token, []string{"/config/token_in"}},
		"too many requests":    {`{"ad_account_id":"1","requests_per_hour":700001}`, token, []string{"/config/requests_per_hour"}},
		"a proof of nothing":   {`{"ad_account_id":"1","proof_time":true}`, token, []string{"/secrets/app_secret"}},
		"an unknown member":    {`{"ad_account_id":"1","account":"2"}`, token, []string{"/config/account"}},
		"a number for a text":  {`{"ad_account_id":1}`, token, []string{"/config/ad_account_id"}},
		"an account of spaces": {`{"ad_account_id":" "}`, token, []string{"/config/ad_account_id"}},
		"two things at a time": {`{"ad_account_id":"x","api_version":"x"}`, token, []string{"/config/ad_account_id", "/config/api_version"}},
	} {
		_, err := p.Prepare(activation.Settings{Config: jsontext.Value(tt.config), Secrets: jsontext.Value(tt.secrets)})
		if diff := cmp.Diff(tt.want, pointers(err)); diff != "" {
			t.Errorf("%s: fields (-want +got):\n%s", name, diff)
		}
	}
}

// pointers returns those of all field errors that are joined in err.
func pointers(err error) (list []string) {
	var field *activation.FieldError
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			list = append(list, pointers(err)...)
		}
	} else if errors.As(err, &field) {
		list = append(list, field.Pointer)
	}
	return list
}

func TestLimits(t *testing.T) {
	t.Parallel()
	p := meta.New(nil, private)
	got := p.Limits(configured(t, `,"batch":700,"concurrency":2,"requests_per_hour":190000`))
	want := activation.Limits{
		Members: 700, Concurrency: 2, Timeout: 30 * time.Second, Linger: time.Second, NeedsAudience: true, Account: "meta:1",
		Rates: []activation.Rate{{Requests: 190_000, Per: time.Hour}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
	if gate := p.Gate(); gate.Allows(nil) || !gate.Allows(partnertest.Somebody(1).Consent) {
		t.Errorf("gate %+v", gate)
	}
}

func TestMaskShowsNoSecret(t *testing.T) {
	t.Parallel()
	p := meta.New(nil, private)
	got := p.Mask(jsontext.Value(`{"access_token":"EAAB-secret-token-abcd","app_secret":"short"}`))
	if diff := cmp.Diff(map[string]string{"access_token": "…abcd", "app_secret": "…"}, got); diff != "" {
		t.Errorf("Mask (-want +got):\n%s", diff)
	}
	if got := p.Mask(nil); got != nil {
		t.Errorf("Mask of nothing = %v", got)
	}
}

// The vectors are Meta's own, from its documentation and the tests of its parameter builder, and those of integrations.
func TestIdentify(t *testing.T) {
	t.Parallel()
	type ids = []activation.Identifier
	const (
		john   = "62a14e44f765419d10fea99367361a727c12365e2520f32218d505ed9aa0f62f"
		number = "e323ec626319ca94ee8bff2e4c87cf613be6ea19919ed1364124e16807ab3176"
		us     = "79adb2a2fce5c6ba215fe5f27f532d4e7edbac4b6a5e09e1ef3a08084a904621"
		ca     = "6959097001d10501ac7d54c0bdb8db61420f658f2922cc26e46d536119a31126"
	)
	of := func(kind string, values ...string) (list ids) {
		for _, v := range values {
			list = append(list, activation.Identifier{Kind: kind, Value: v})
		}
		return list
	}
	for _, tt := range []struct {
		name, config, traits string
		known                ids
		want                 activation.Identifiers
	}{
		{
			name:   "an address and a number of the United States",
			traits: `{"email":"John_Smith@gmail.com","phone":"(650)555-1212","country":"US"}`,
			want:   activation.Identifiers{IDs: append(of("EMAIL", john), of("PHONE", number)...), Details: of("COUNTRY", us)},
		},
		{
			name:   "keys only",
			config: `,"keys_only":true`,
			traits: `{"email":"John_Smith@gmail.com","country":"US","first_name":"John","birthday":"1990-01-15","gender":"m"}`,
			want:   activation.Identifiers{IDs: of("EMAIL", john)},
		},
		{
			name:   "dots and plus signs stay, and so does everything before a trunk zero that is left out",
			traits: `{"email":"  Jane.Doe+Promo@GMail.com ","phone":"+49 (0)171 1234567"}`,
			want: activation.Identifiers{IDs: append(
				of("EMAIL", "5f0d1df1fc49e30424381b57b1d4c73e067772a4267dde043a19b026935602c8"),
				of("PHONE", "7e25b7844dc82e53d76a507d7f6130832c805e097c1e038793c36ce22c358132")...)},
		},
		{
			name:   "what stands behind an address, and a full stop, are left out",
			traits: `{"email":"foo@fb.com\t\r\n\u0000\u000b."}`,
			want:   activation.Identifiers{IDs: of("EMAIL", "1ee4ddb6421ca98465fde8f62bb0155c9d9277a73380d414be6d90743b8a5ed7")},
		},
		{
			name:   "a number without a country, of the destination's",
			config: `,"default_country":"DE"`,
			traits: `{"phone":"0171 1234567"}`,
			want:   activation.Identifiers{IDs: of("PHONE", "7e25b7844dc82e53d76a507d7f6130832c805e097c1e038793c36ce22c358132")},
		},
		{
			name:   "a number without a country",
			traits: `{"phone":"0171 1234567"}`,
			want:   activation.Identifiers{Reason: "the phone number does not say its country, and the destination has no default country"},
		},
		{
			name:   "names and places",
			traits: `{"email":"john_smith@gmail.com","name":"Valéry Doe","gender":"Male","birthday":"1990-01-15","address":{"city":"San Francisco","state":"California","zip":"37221-3312","country":"US"}}`,
			want: activation.Identifiers{IDs: of("EMAIL", john), Details: slices.Concat(
				of("FN", "08e1996b5dd49e62a4b4c010d44e4345592a863bb9f8e3976219bac29417149c"),
				of("LN", "799ef92a11af918e3fb741df42934f3b568ed2d93ac1df74f1b8d41a27932a6f"),
				of("GEN", "62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a"),
				of("DOBY", "a7be8e1fe282a37cd666e0632b17d933fa13f21addf4798fc0455bc166e2488c"),
				of("DOBM", partnertest.Hex("01")),
				of("DOBD", "e629fa6598d732768f7c726b4b621285f9c3b85303900aa912017db7617d8bdb"),
				of("CT", "1a6bd4d9d79dc0a79b53795c70d3349fa9e38968a3fbefbfe8783efb1d2b6aac"),
				of("ST", ca),
				of("ZIP", partnertest.Hex("37221")),
				of("COUNTRY", us),
			)},
		},
		{
			name:   "letters of any script",
			traits: `{"email":"john_smith@gmail.com","first_name":"정"}`,
			want: activation.Identifiers{
				IDs: of("EMAIL", john), Details: of("FN", "8fa8cd9c440be61d0151429310034083132b35975c4bea67fdd74158eb51db14"),
			},
		},
		{
			name:   "several of a kind, each once where nothing but case tells them apart",
			traits: `{"email":"a@example.com","mobile":"+1-555-123-4567","idfa":"5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25","gaid":"00000000-0000-0000-0000-000000000000"}`,
			known:  append(of("email", "John_Smith@gmail.com", "b@example.com", "JOHN_SMITH@gmail.com"), of("phone", "+1 (616) 954-78 88")...),
			want: activation.Identifiers{IDs: slices.Concat(
				of("EMAIL", john, partnertest.Hex("b@example.com"), partnertest.Hex("a@example.com")),
				of("PHONE", partnertest.Hex("16169547888"), "d6736136ea896c1bfdc553e0e86e702c70d060d805696ca3e4e9e0961353860a"),
				of("MADID", "5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25"),
			)},
		},
		{
			name:   "a hash is not hashed again, and of a phone number nobody knows how it was made",
			traits: `{"email":"` + strings.ToUpper(john) + `","phone":"` + number + `"}`,
			want:   activation.Identifiers{IDs: of("EMAIL", john)},
		},
		{
			name:   "the hash of nothing",
			traits: `{"email":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`,
			want:   activation.Identifiers{Reason: "what is given is no e-mail address, phone number or advertising id that Meta could use"},
		},
		{
			name:   "poison among the details, and a hash",
			traits: `{"email":"john_smith@gmail.com","country":"74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b","city":"` + us + `"}`,
			want:   activation.Identifiers{IDs: of("EMAIL", john), Details: of("CT", us)},
		},
		{
			name:   "the country as a hash, which tells nothing of a phone number",
			traits: `{"email":"john_smith@gmail.com","phone":"(650)555-1212","country":"` + us + `"}`,
			want:   activation.Identifiers{IDs: of("EMAIL", john), Details: of("COUNTRY", us)},
		},
		{
			name:   "words for nothing",
			traits: `{"email":"null","phone":"undefined","country":"DE"}`,
			want:   activation.Identifiers{Reason: "what is given is no e-mail address, phone number or advertising id that Meta could use"},
		},
		{
			name:   "an id of the customer's own stands for nobody",
			config: `,"extern_id":true`,
			traits: `{"first_name":"Ada"}`,
			known:  of("user_id", "cust-42"),
			want:   activation.Identifiers{Reason: "neither an e-mail address nor a phone number nor an advertising id is known"},
		},
		{
			name:   "an id of the customer's own goes along, as it is",
			config: `,"extern_id":true`,
			traits: `{"email":"john_smith@gmail.com"}`,
			known:  of("user_id", "cust-42"),
			want:   activation.Identifiers{IDs: of("EMAIL", john), Details: of("EXTERN_ID", "cust-42")},
		},
		{
			name:   "unless it is an address",
			config: `,"extern_id":true`,
			traits: `{"email":"john_smith@gmail.com"}`,
			known:  of("user_id", "john_smith@gmail.com"),
			want:   activation.Identifiers{IDs: of("EMAIL", john)},
		},
		{
			name:   "or a number",
			config: `,"extern_id":true`,
			traits: `{"email":"john_smith@gmail.com"}`,
			known:  of("user_id", "+16505551212"),
			want:   activation.Identifiers{IDs: of("EMAIL", john)},
		},
		{
			name:   "a resident of California whose data may be used within limits",
			config: `,"limited_data_use":"us_states","keys_only":true`,
			traits: `{"email":"john_smith@gmail.com","country":"United States","state":"US-CA"}`,
			want:   activation.Identifiers{IDs: of("EMAIL", john), Details: of("DATA_PROCESSING_OPTIONS", "LDU")},
		},
		{
			name:   "a resident of the United States, nobody knows where",
			config: `,"limited_data_use":"us_states","keys_only":true`,
			traits: `{"email":"john_smith@gmail.com","country":"US"}`,
			want:   activation.Identifiers{IDs: of("EMAIL", john), Details: of("DATA_PROCESSING_OPTIONS", "LDU")},
		},
		{
			name:   "a resident of New York",
			config: `,"limited_data_use":"us_states","keys_only":true`,
			traits: `{"email":"john_smith@gmail.com","country":"US","state":"New York"}`,
			want:   activation.Identifiers{IDs: of("EMAIL", john)},
		},
		{
			name:   "a resident of Canada",
			config: `,"limited_data_use":"us_states","keys_only":true`,
			traits: `{"email":"john_smith@gmail.com","country":"CA","state":"CT"}`,
			want:   activation.Identifiers{IDs: of("EMAIL", john)},
		},
		{
			name:   "limits for all",
			config: `,"limited_data_use":"all","keys_only":true`,
			traits: `{"email":"john_smith@gmail.com"}`,
			want:   activation.Identifiers{IDs: of("EMAIL", john), Details: of("DATA_PROCESSING_OPTIONS", "LDU")},
		},
		{name: "nothing", traits: `{}`, want: activation.Identifiers{Reason: "neither an e-mail address nor a phone number nor an advertising id is known"}},
	} {
		got, err := meta.New(nil, private).Identify(configured(t, tt.config), person(t, tt.traits, tt.known...))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if _, err := meta.New(nil, private).Identify(activation.Target{Settings: activation.Settings{Config: []byte(`[]`)}}, activation.Person{}); err == nil {
		t.Error("settings that cannot be read are none")
	}
	refused := []string{
		"a@b", "@b.c", "test..test@example.com", "test@example", ".test@example.com", "test@@example.com", "te st@example.com",
	}
	for _, raw := range refused {
		got, err := meta.New(nil, private).Identify(configured(t, ""), person(t, fmt.Sprintf(`{"email":%q}`, raw)))
		if err != nil || len(got.IDs) > 0 {
			t.Errorf("%q became %v, %v", raw, got, err)
		}
	}
}

func TestAPersonHasNoMoreThanAHundredKeys(t *testing.T) {
	t.Parallel()
	var p activation.Person
	for n := range 150 {
		p.Identifiers = append(p.Identifiers, activation.Identifier{Kind: "email", Value: fmt.Sprintf("p%d@example.com", n)})
	}
	got, err := meta.New(nil, private).Identify(configured(t, ""), p)
	if err != nil || len(got.IDs) != 100 || got.IDs[99].Value != partnertest.Hex("p99@example.com") {
		t.Errorf("%d keys, %v", len(got.IDs), err)
	}
}

// segment is the one that the tests' messages are about.
var segment = activation.Segment{ID: 7, Key: "vip", Name: "VIPs"}

// identified returns people as members that are to be added or removed.
func identified(t testing.TB, p *meta.Partner, to activation.Target, entered bool, people ...activation.Person) activation.Batch {
	t.Helper()
	b := activation.Batch{ID: 1, Segment: segment, Audience: "23"}
	for _, who := range people {
		ids, err := p.Identify(to, who)
		if err != nil {
			t.Fatal(err)
		}
		b.Members = append(b.Members, activation.Member{Person: who, Identifiers: ids, Entered: entered})
	}
	return b
}

func TestEncode(t *testing.T) {
	t.Parallel()
	p := meta.New(nil, private)
	john := person(t, `{"email":"John_Smith@gmail.com","phone":"+1 650 555 1212","first_name":"Valéry","country":"US","state":"CA"}`,
		activation.Identifier{Kind: "user_id", Value: "cust-42"})
	device := person(t, `{"gaid":"5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25"}`)
	const (
		email, phone = `"62a14e44f765419d10fea99367361a727c12365e2520f32218d505ed9aa0f62f"`, `"e323ec626319ca94ee8bff2e4c87cf613be6ea19919ed1364124e16807ab3176"`
		gaid         = `"5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25"`
		name         = `"08e1996b5dd49e62a4b4c010d44e4345592a863bb9f8e3976219bac29417149c"`
		us           = `"79adb2a2fce5c6ba215fe5f27f532d4e7edbac4b6a5e09e1ef3a08084a904621"`
		ca           = `"6959097001d10501ac7d54c0bdb8db61420f658f2922cc26e46d536119a31126"`
	)
	for _, tt := range []struct {
		name, config string
		entered      bool
		people       []activation.Person
		took         int
		want         string
	}{
		{
			name: "a row for each key", entered: true, people: []activation.Person{john, device}, took: 2,
			want: `{"payload":{"schema":["EMAIL","PHONE","MADID","FN","ST","COUNTRY"],"is_raw":false,"data":[` +
				`[` + email + `,"","",` + name + `,` + ca + `,` + us + `],` +
				`["",` + phone + `,"",` + name + `,` + ca + `,` + us + `],` +
				`["","",` + gaid + `,"","",""]]}}`,
		},
		{
			name: "no columns that nobody needs, and the same rows to remove", people: []activation.Person{device}, took: 1,
			config: `,"customer_consent":true`,
			want:   `{"payload":{"schema":["MADID"],"is_raw":false,"data":[[` + gaid + `]]}}`,
		},
		{
			name: "everything that is optional", entered: true, people: []activation.Person{john, device}, took: 2,
			config: `,"customer_consent":true,"keys_only":true,"extern_id":true,"limited_data_use":"us_states"`,
			want: `{"customer_consent":true,"payload":{"schema":["EMAIL","PHONE","MADID","EXTERN_ID","DATA_PROCESSING_OPTIONS"],"is_raw":false,"data":[` +
				`[` + email + `,"","","cust-42",["LDU"]],` +
				`["",` + phone + `,"","cust-42",["LDU"]],` +
				`["","",` + gaid + `,"",[]]]}}`,
		},
		{
			name: "no more rows than a message may have", entered: true, people: []activation.Person{device, john}, took: 1,
			config: `,"batch":2`,
			want:   `{"payload":{"schema":["MADID"],"is_raw":false,"data":[[` + gaid + `]]}}`,
		},
		{
			name: "but all of one person", entered: true, people: []activation.Person{john, device}, took: 1,
			config: `,"batch":1,"keys_only":true`,
			want:   `{"payload":{"schema":["EMAIL","PHONE"],"is_raw":false,"data":[[` + email + `,""],["",` + phone + `]]}}`,
		},
	} {
		to := configured(t, tt.config)
		got, took, err := p.Encode(to, identified(t, p, to, tt.entered, tt.people...))
		if err != nil || took != tt.took {
			t.Errorf("%s: took %d, %v, want %d", tt.name, took, err, tt.took)
		}
		if diff := cmp.Diff(tt.want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	strange := activation.Batch{Members: []activation.Member{{Identifiers: activation.Identifiers{
		IDs: []activation.Identifier{{Kind: "EMAIL", Value: "1"}}, Details: []activation.Identifier{{Kind: "SHOE_SIZE", Value: "2"}},
	}}}}
	if _, _, err := p.Encode(configured(t, ""), strange); err == nil {
		t.Error("a column that Meta does not have was encoded")
	}
}

// Whoever they are, and however many: no row has values of two people, no message has too many rows, none is lost, and the
// same people give the same bytes.
func TestRowsAreThoseOfOnePersonEach(t *testing.T) {
	t.Parallel()
	p := meta.New(nil, private)
	rapid.Check(t, func(t *rapid.T) {
		batch := rapid.IntRange(1, 40).Draw(t, "batch")
		settings, err := p.Prepare(activation.Settings{
			Config:  jsontext.Value(fmt.Sprintf(`{"ad_account_id":"1","batch":%d}`, batch)),
			Secrets: jsontext.Value(`{"access_token":"EAAB"}`),
		})
		if err != nil {
			t.Fatal(err)
		}
		to := activation.Target{Settings: settings}
		b := activation.Batch{Audience: "23"}
		for n := range rapid.IntRange(1, 12).Draw(t, "people") {
			var ids activation.Identifiers
			for k := range rapid.IntRange(1, 5).Draw(t, "keys") {
				kind := rapid.SampledFrom([]string{"EMAIL", "PHONE", "MADID"}).Draw(t, "kind")
				ids.IDs = append(ids.IDs, activation.Identifier{Kind: kind, Value: fmt.Sprintf("%d-%d", n, k)})
			}
			for _, kind := range []string{"FN", "ZIP", "EXTERN_ID"} {
				if rapid.Bool().Draw(t, kind) {
					ids.Details = append(ids.Details, activation.Identifier{Kind: kind, Value: fmt.Sprintf("%d-%s", n, kind)})
				}
			}
			b.Members = append(b.Members, activation.Member{Identifiers: ids, Entered: true})
		}
		for len(b.Members) > 0 {
			got, took, err := p.Encode(to, b)
			again, _, _ := p.Encode(to, b)
			if err != nil || took < 1 || took > len(b.Members) || string(got) != string(again) {
				t.Fatalf("took %d of %d, %v", took, len(b.Members), err)
			}
			var body struct {
				Payload struct {
					Schema []string   `json:"schema"`
					Data   [][]string `json:"data"`
				} `json:"payload"`
			}
			if err := json.Unmarshal(got, &body); err != nil {
				t.Fatal(err)
			}
			if took > 1 && len(body.Payload.Data) > batch {
				t.Fatalf("%d rows, want %d at most", len(body.Payload.Data), batch)
			}
			want := map[string]int{}
			for _, m := range b.Members[:took] {
				for _, id := range m.Identifiers.IDs {
					want[fmt.Sprint(append([]activation.Identifier{id}, m.Identifiers.Details...))]++
				}
			}
			for _, row := range body.Payload.Data {
				if len(row) != len(body.Payload.Schema) {
					t.Fatalf("a row has %d values, the schema %d", len(row), len(body.Payload.Schema))
				}
				var is []activation.Identifier
				for i, v := range row {
					if v != "" {
						is = append(is, activation.Identifier{Kind: body.Payload.Schema[i], Value: v})
					}
				}
				want[fmt.Sprint(is)]--
			}
			for row, n := range want {
				if n != 0 {
					t.Fatalf("row %s is missing %d times", row, n)
				}
			}
			b.Members = b.Members[took:]
		}
	})
}

// talk is a partner and what one destination of it says to a fake.
type talk struct {
	*meta.Partner
	fake *partnertest.Meta
	to   activation.Target
}

func newTalk(t testing.TB, o partnertest.MetaOptions) talk {
	t.Helper()
	p, fake := newMeta(t, o)
	return talk{p, fake, prepared(t, p, fake.Settings())}
}

// send sends a message about people to audience 23.
func (c talk) send(t testing.TB, entered bool, people ...activation.Person) activation.Outcome {
	t.Helper()
	b := identified(t, c.Partner, c.to, entered, people...)
	body, took, err := c.Encode(c.to, b)
	if err != nil || took != len(people) {
		t.Fatalf("took %d, %v", took, err)
	}
	m := activation.Message{Audience: "23", Body: body, Attempt: 1}
	for _, p := range people {
		m.Members = append(m.Members, activation.MemberRef{Profile: p.ID, Entered: entered})
	}
	return c.Send(t.Context(), c.to, m)
}

func (c talk) clean(t testing.TB) {
	t.Helper()
	for _, v := range c.fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	const other = "OAuthException"
	for _, tt := range []struct {
		status, code, subcode int
		message               string
		header                http.Header
		class                 activation.Class
		wait                  time.Duration
		reason                string
	}{
		{status: 400, code: 190, subcode: 460, class: activation.Reauth, reason: "password"},
		{status: 401, code: 190, subcode: 463, class: activation.Reauth, reason: "ended"},
		{status: 500, code: 190, class: activation.Reauth, reason: "make a new one for a system user"},
		{status: 400, code: 102, class: activation.Reauth},
		{status: 400, code: 104, class: activation.Reauth},
		{status: 403, code: 200, class: activation.Config, reason: "ads_management"},
		{status: 400, code: 10, class: activation.Config},
		{status: 400, code: 294, class: activation.Config},
		{status: 400, code: 100, subcode: 33, class: activation.Config, reason: "the audience is not there"},
		{status: 400, code: 100, subcode: 1713230, class: activation.Config, reason: "flagged"},
		{status: 400, code: 100, message: "Invalid appsecret_proof provided in the API argument", class: activation.Config, reason: "app secret"},
		{status: 400, code: 100, class: activation.Split},
		{status: 400, code: 105, class: activation.Split},
		{status: 400, code: 2635, class: activation.Config, reason: "version"},
		{status: 400, code: 2650, class: activation.Config},
		{status: 400, code: 2655, class: activation.Config, reason: "terms"},
		{status: 400, code: 1487301, class: activation.Config, reason: "shared"},
		{status: 400, code: 100, subcode: 1487366, class: activation.Config, reason: "deleted"},
		{status: 403, code: 368, class: activation.Config, reason: "policies"},
		{status: 500, code: 1, class: activation.Retry},
		{status: 503, code: 2, class: activation.Retry},
		{status: 400, code: 341, class: activation.Retry},
		{status: 400, code: 5000, class: activation.Retry},
		{status: 400, code: 21009, class: activation.Retry},
		{status: 400, code: 4, subcode: 1504022, class: activation.RetryAfter, wait: 5 * time.Minute},
		{status: 403, code: 17, subcode: 2446079, class: activation.RetryAfter, wait: 5 * time.Minute},
		{status: 400, code: 32, class: activation.RetryAfter, wait: 5 * time.Minute},
		{status: 400, code: 613, subcode: 1487742, class: activation.RetryAfter, wait: 5 * time.Minute},
		{
			status: 403, code: 80003, class: activation.RetryAfter, wait: 19 * time.Minute, reason: "too many",
			header: http.Header{"X-Business-Use-Case-Usage": {`{"1":[{"type":"custom_audience","call_count":100,"estimated_time_to_regain_access":19}]}`}},
		},
		{
			status: 400, code: 80003, class: activation.RetryAfter, wait: 100 * time.Second,
			header: http.Header{"X-Ad-Account-Usage": {`{"acc_id_util_pct":99.67,"reset_time_duration":100}`}},
		},
		{status: 429, code: 4, class: activation.RetryAfter, wait: 7 * time.Second, header: http.Header{"Retry-After": {"7"}}},
		{status: 418, code: 77777, class: activation.Retry},
	} {
		c := newTalk(t, partnertest.MetaOptions{})
		body := fmt.Sprintf(`{"error":{"message":%q,"type":%q,"code":%d,"error_subcode":%d}}`, tt.message, other, tt.code, tt.subcode)
		c.fake.Script(partnertest.Fault{Status: tt.status, Body: body, Header: tt.header})
		o := c.send(t, true, partnertest.Somebody(1))
		if o.Class != tt.class || o.Wait != tt.wait || o.Status != tt.status || !strings.Contains(o.Reason, tt.reason) || o.Reason == "" {
			t.Errorf("%d, code %d (%d): %+v, want %s, %v, %q", tt.status, tt.code, tt.subcode, o, tt.class, tt.wait, tt.reason)
		}
		if unknown := tt.class == activation.Retry && tt.code != 77777 || tt.status >= 500; o.Unknown != unknown {
			t.Errorf("%d, code %d: unknown is %t, want %t", tt.status, tt.code, o.Unknown, unknown)
		}
	}
	// is_transient counts where the code says nothing, and a page of somebody in between is read by its status.
	for body, want := range map[string]activation.Class{
		`{"error":{"code":77777,"is_transient":true}}`: activation.Retry,
		`<html>no</html>`: activation.Split,
	} {
		c := newTalk(t, partnertest.MetaOptions{})
		c.fake.Script(partnertest.Fault{Status: 400, Body: body})
		if o := c.send(t, true, partnertest.Somebody(1)); o.Class != want {
			t.Errorf("%s: %+v, want %s", body, o, want)
		}
	}
}

func TestUsageIsTold(t *testing.T) {
	t.Parallel()
	for percent, want := range map[int]struct {
		used float64
		wait time.Duration
	}{
		12:  {.28, 0}, // the app's
		80:  {.80, 0},
		95:  {.95, time.Minute},
		100: {1, time.Minute},
		250: {1, 2 * time.Minute},
	} {
		c := newTalk(t, partnertest.MetaOptions{})
		c.fake.Make("23")
		c.fake.Seed(partnertest.Somebody(1))
		c.fake.Use(percent)
		o := c.send(t, true, partnertest.Somebody(1))
		if o.Class != activation.OK || o.Usage != want.used || o.Wait != want.wait {
			t.Errorf("%d %%: %+v, want %v, %v", percent, o, want.used, want.wait)
		}
		c.clean(t)
	}
	// What Meta does not say as we know it tells nothing, and reports have a budget of their own.
	for _, h := range []string{`oops`, `[]`, `{"1":{"call_count":99}}`, `{"1":[{"type":"ads_insights","call_count":99}]}`} {
		c := newTalk(t, partnertest.MetaOptions{})
		c.fake.Script(partnertest.Fault{
			Status: 200, Body: `{"num_received":3}`, Header: http.Header{"X-Business-Use-Case-Usage": {h}},
		})
		if o := c.send(t, true, partnertest.Somebody(1)); o.Class != activation.OK || o.Usage != 0 || o.Wait != 0 {
			t.Errorf("%s: %+v", h, o)
		}
	}
}

// Meta tells how many rows it could not read, and not which.
func TestRowsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	good, bad := partnertest.Somebody(1), partnertest.Somebody(2)
	c := newTalk(t, partnertest.MetaOptions{})
	c.fake.Make("23")
	c.fake.Seed(good, bad)
	c.fake.Refuse(bad.ID, true)
	if o := c.send(t, true, good, bad); o.Class != activation.Split || !o.Unknown {
		t.Errorf("one of two: %+v, want split, and unknown, since the other is there by now", o)
	}
	if o := c.send(t, true, good); o.Class != activation.OK {
		t.Errorf("the good one: %+v", o)
	}
	if o := c.send(t, true, bad); o.Class != activation.Drop || o.Unknown {
		t.Errorf("the bad one: %+v", o)
	}
	if o := c.send(t, false, good, bad); o.Class != activation.OK {
		t.Errorf("to remove: %+v", o)
	}
	c.clean(t)
	for answer, want := range map[string]activation.Class{
		`{"num_received":2,"num_invalid_entries":1}`: activation.OK, // the person is there by the other key
		`{"num_received":2,"num_invalid_entries":2}`: activation.Drop,
		`{"num_received":0,"num_invalid_entries":2}`: activation.Drop,
		`{"audience_id":"23"}`:                       activation.Retry,
		`{"num_received":"two"}`:                     activation.Retry,
		`[]`:                                         activation.Retry,
	} {
		c.fake.Script(partnertest.Fault{Status: 200, Body: answer})
		if o := c.send(t, true, good); o.Class != want || o.Reason == "" {
			t.Errorf("%s: %+v, want %s", answer, o, want)
		}
	}
}

func TestTestSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		account, token string
		fault          partnertest.Fault
		terms          bool
		class          activation.Class
		reason         string
	}{
		"nothing":              {terms: true, class: activation.OK},
		"a wrong token":        {token: "EAAB", terms: true, class: activation.Reauth, reason: "token"},
		"a wrong account":      {account: "1", terms: true, class: activation.Config, reason: "the ad account is not there"},
		"no permission":        {fault: partnertest.Fault{Status: 403, Body: `{"error":{"code":200}}`}, terms: true, class: activation.Config, reason: "ads_management"},
		"terms not accepted":   {class: activation.Config, reason: "terms"},
		"an answer of another": {fault: partnertest.Fault{Status: 200, Body: `{"id":"act_1"}`}, class: activation.Retry, reason: "promises"},
	} {
		c := newTalk(t, partnertest.MetaOptions{})
		c.fake.Accept(tt.terms)
		if tt.account != "" {
			c.to.Config = jsontext.Value(strings.Replace(string(c.to.Config), "1234509876", tt.account, 1))
		}
		if tt.token != "" {
			c.to.Secrets = jsontext.Value(`{"access_token":"` + tt.token + `"}`)
		}
		if tt.fault.Status > 0 {
			tt.fault.Match = func(*http.Request) bool { return true }
			c.fake.Script(tt.fault)
		}
		if o := c.Test(t.Context(), c.to); o.Class != tt.class || !strings.Contains(o.Reason, tt.reason) {
			t.Errorf("%s: %+v, want %s, %q", name, o, tt.class, tt.reason)
		}
	}
	p := meta.New(nil, private)
	unreadable := activation.Target{Settings: activation.Settings{Config: []byte(`[]`)}}
	if o := p.Test(t.Context(), unreadable); o.Class != activation.Config {
		t.Errorf("settings that cannot be read: %+v", o)
	}
	if _, o := p.Create(t.Context(), unreadable, segment); o.Class != activation.Config {
		t.Errorf("settings that cannot be read: %+v", o)
	}
	if o := p.Send(t.Context(), unreadable, activation.Message{}); o.Class != activation.Config {
		t.Errorf("settings that cannot be read: %+v", o)
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	c := newTalk(t, partnertest.MetaOptions{})
	for n := range 5 { // which fill more than a page
		c.fake.Make(fmt.Sprintf("made-%d", n))
	}
	first, o := c.Create(t.Context(), c.to, segment)
	if o.Class != activation.OK || first == "" {
		t.Fatalf("Create = %q, %+v", first, o)
	}
	again, o := c.Create(t.Context(), c.to, activation.Segment{ID: 7, Key: "vip", Name: "VIPs, renamed"})
	if o.Class != activation.OK || again != first {
		t.Errorf("made again it is %q, %+v, want %q", again, o, first)
	}
	other, o := c.Create(t.Context(), c.to, activation.Segment{ID: 8, Key: "new", Name: strings.Repeat("ß", 300)})
	if o.Class != activation.OK || other == first {
		t.Errorf("that of another segment is %q, %+v", other, o)
	}
	elsewhere := c.to
	elsewhere.ID++
	if id, o := c.Create(t.Context(), elsewhere, segment); o.Class != activation.OK || id == first {
		t.Errorf("that of another destination is %q, %+v", id, o)
	}
	if n := c.fake.Audiences(); n != 8 {
		t.Errorf("there are %d audiences, want 8", n)
	}
	c.clean(t)
	c.fake.Script(partnertest.Fault{Status: 500, Match: func(*http.Request) bool { return true }})
	if id, o := c.Create(t.Context(), c.to, activation.Segment{ID: 9, Key: "x"}); o.Class != activation.Retry || id != "" {
		t.Errorf("where nobody can look for it: %q, %+v", id, o)
	}
	if n := c.fake.Audiences(); n != 8 {
		t.Errorf("there are %d audiences, want 8", n)
	}
	c.fake.Script(partnertest.Fault{Status: 200, Body: `{}`, Match: func(r *http.Request) bool { return r.Method == http.MethodPost }})
	if id, o := c.Create(t.Context(), c.to, activation.Segment{ID: 10, Key: "y"}); o.Class != activation.Retry || id != "" {
		t.Errorf("an audience without an id: %q, %+v", id, o)
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	c := newTalk(t, partnertest.MetaOptions{Batch: 100})
	c.fake.Make("23")
	size, o := c.Size(t.Context(), c.to, "23")
	if o.Class != activation.OK || size != (activation.Size{Matched: -1, State: "This audience is ready for use."}) {
		t.Errorf("Size of an empty audience = %+v, %+v", size, o)
	}
	var people []activation.Person
	for n := range 25 {
		people = append(people, partnertest.Somebody(n))
	}
	c.fake.Seed(people...)
	if o := c.send(t, true, people...); o.Class != activation.OK {
		t.Fatalf("%+v", o)
	}
	c.fake.Mark("23", "flagged")
	if size, o = c.Size(t.Context(), c.to, "23"); o.Class != activation.OK || size != (activation.Size{Matched: 25, State: "status 471"}) {
		t.Errorf("Size = %+v, %+v", size, o)
	}
	c.clean(t)
	if _, o = c.Size(t.Context(), c.to, "24"); o.Class != activation.Config {
		t.Errorf("Size of what is not there: %+v", o)
	}
}

func TestAudiencesThatTakeNothing(t *testing.T) {
	t.Parallel()
	c := newTalk(t, partnertest.MetaOptions{})
	c.fake.Make("23")
	c.fake.Seed(partnertest.Somebody(1))
	for _, state := range []string{"flagged", "unshared", "deleted"} {
		c.fake.Mark("23", state)
		if o := c.send(t, true, partnertest.Somebody(1)); o.Class != activation.Config {
			t.Errorf("%s: %+v", state, o)
		}
	}
	c.fake.Mark("23", "")
	c.fake.Accept(false)
	if o := c.send(t, true, partnertest.Somebody(1)); o.Class != activation.Config || !strings.Contains(o.Reason, "terms") {
		t.Errorf("terms: %+v", o)
	}
	c.clean(t)
}

// A dry run shows a request as it would go out, but for what is secret.
func TestADryRunShowsNoSecret(t *testing.T) {
	t.Parallel()
	for _, o := range []partnertest.MetaOptions{{Proof: "timed"}, {Proof: "plain", TokenIn: "header"}} {
		p, fake := newMeta(t, o)
		b := partnertest.NewBench(t, p)
		b.Destination(t, "ads", "meta", fake.Settings(), segment.ID)
		b.World.Add(partnertest.Somebody(1))
		b.Apply(t, activation.Change{Segment: segment.ID, Profile: partnertest.Profile(1), Entered: true})
		run, err := b.Store.DryRun(t.Context(), b.Workspace, "ads", segment.ID, b.World, b.World)
		if err != nil || len(run.Requests) != 1 {
			t.Fatalf("DryRun = %+v, %v", run, err)
		}
		r := run.Requests[0]
		shown := fmt.Sprint(r.URL, r.Header, string(r.Body))
		for _, secret := range []string{"EAAB", "token0", partnertest.Hex("person.1@example.com")[:8]} {
			if strings.Contains(shown, secret) {
				t.Errorf("the dry run shows %q: %s", secret, shown)
			}
		}
		query := r.URL[strings.Index(r.URL, "?")+1:]
		for pair := range strings.SplitSeq(query, "&") {
			if !strings.HasSuffix(pair, "=…") {
				t.Errorf("the dry run shows the parameter %s", pair)
			}
		}
		if r.Method != http.MethodPost || !strings.Contains(shown, `"schema":["EMAIL"`) {
			t.Errorf("the dry run does not show what would be sent: %s %s", r.Method, shown)
		}
	}
}

// Of two addresses of one person one goes and the other stays, and so does what somebody else has too.
func TestOneOfSeveralKeysIsRemoved(t *testing.T) {
	t.Parallel()
	p, fake := newMeta(t, partnertest.MetaOptions{})
	b := partnertest.NewBench(t, p)
	b.Destination(t, "ads", "meta", fake.Settings(), segment.ID)
	two, wife := partnertest.Somebody(1), partnertest.Somebody(2)
	shared := activation.Identifier{Kind: "phone", Value: "+16505559999"}
	two.Identifiers = append(two.Identifiers, activation.Identifier{Kind: "email", Value: "second@example.com"}, shared)
	wife.Identifiers = append(wife.Identifiers, shared)
	for _, who := range []activation.Person{two, wife} {
		fake.Seed(who)
		b.World.Add(who)
		b.Apply(t, activation.Change{Segment: segment.ID, Profile: who.ID, Entered: true})
	}
	b.Dispatch(t, activation.DispatchConfig{})
	b.Rest(t, "ads")
	one := partnertest.Somebody(1)
	fake.Seed(one)
	b.Person(t, one, "m-2")
	b.Rest(t, "ads")
	d, err := b.Store.Get(t.Context(), b.Workspace, "ads")
	if err != nil {
		t.Fatal(err)
	}
	audience := partnertest.Audience{Segment: segment.ID, ID: d.Segments[0].Audience}
	if diff := cmp.Diff(2, len(fake.Members(audience))); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	if left := fake.Leftovers(audience); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	b.Apply(t, activation.Change{Segment: segment.ID, Profile: one.ID})
	b.Rest(t, "ads")
	if got := fake.Members(audience); len(got) != 1 || got[0] != wife.ID {
		t.Errorf("members %v, want the other one", got)
	}
	for _, v := range fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

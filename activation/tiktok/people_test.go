package tiktok_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/activation/tiktok"
)

// target is a destination with more settings than it needs.
func target(more string) activation.Target {
	return activation.Target{ID: 3, Settings: activation.Settings{
		Config: jsontext.Value(`{"advertiser_ids":["7001","7002"]` + more + `}`), Secrets: jsontext.Value(`{"access_token":"t"}`),
	}}
}

// What TikTok's help centre and integrations that are in use publish, and what we computed of others.
func TestIdentify(t *testing.T) {
	t.Parallel()
	const (
		janeDoe    = "d6117306485ed0e50afab3ac871e98f81699151f30281527d63ff5f233656c69" // janedoe@gmail.com
		janePlain  = "5f0d1df1fc49e30424381b57b1d4c73e067772a4267dde043a19b026935602c8" // jane.doe+promo@gmail.com
		janeNoTag  = "831f6494ad6be4fcb3a724c3d5fef22d3ceffa3c62ef3a7984e45a0ea177f982" // jane.doe@gmail.com
		german     = "26fe61aab2698bb3696dc47387e6c64172c6c716727917caaf6ff965d030cb3d" // +491711234567
		digits     = "7e25b7844dc82e53d76a507d7f6130832c805e097c1e038793c36ce22c358132" // 491711234567
		device     = "5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25"
		deviceHash = "83dc3f5f32b9472613b0f038d36f22585a609d018af6f6067f50da318bf354bd"
		deviceMD5  = "a1a71d7132ffc45541100d58092ac49e"
		noUsable   = "no e-mail address, phone number or advertising id is known"
		noCountry  = "the phone number does not say its country, and neither the person nor the destination has one"
		unusable   = "what is given as e-mail address, phone number or advertising id is not one that TikTok could match"
	)
	email := func(hash string) activation.Identifier {
		return activation.Identifier{Kind: "EMAIL_SHA256", Value: hash}
	}
	phone := func(hash string) activation.Identifier {
		return activation.Identifier{Kind: "PHONE_SHA256", Value: hash}
	}
	hash := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:])
	}
	jane := map[string]string{"email": "  Jane.Doe+Promo@GMail.com ", "phone": "+49 (0)171 1234567", "country": "DE"}
	for name, tt := range map[string]struct {
		config string
		traits map[string]string
		ids    []activation.Identifier
		want   []activation.Identifier
		reason string
	}{
		"the help centre's e-mail address": {traits: map[string]string{"email": "janedoe@gmail.com"}, want: []activation.Identifier{email(janeDoe)}},
		"the help centre's phone number": {
			config: `,"phone_format":"digits"`, traits: map[string]string{"phone": "+37493828222"},
			want: []activation.Identifier{phone("65b7e6dcf6f4310f8d7cbfbd78289a753062fb054d6664fb9aaac5df66a422d4")},
		},
		"the help centre's device": {traits: map[string]string{"idfa": device}, want: []activation.Identifier{{Kind: "IDFA_SHA256", Value: deviceHash}}},
		"another device":           {traits: map[string]string{"aaid": device}, want: []activation.Identifier{{Kind: "AAID_SHA256", Value: deviceHash}}},
		"devices as MD5": {
			config: `,"device_hash":"md5"`, traits: map[string]string{"idfa": device, "gaid": device},
			want: []activation.Identifier{{Kind: "IDFA_MD5", Value: deviceMD5}, {Kind: "AAID_MD5", Value: deviceMD5}},
		},
		"a phone number of the reference": {
			traits: map[string]string{"phone": "+1 657 777 0000"},
			want:   []activation.Identifier{phone("a6e82c2f4091baff57a4f33d01efb65bfbeacbbfbcfaa9d0ff9f57d28d78fedb")},
		},
		"space behind an address": {
			traits: map[string]string{"email": "van@abc.com "},
			want:   []activation.Identifier{email("2048acfa84a01121060ca2fc8a673a76d427176dc37224d4408c21973bd90e5c")},
		},
		"space in an address": {
			traits: map[string]string{"email": "testing @\ttesting.com"},
			want:   []activation.Identifier{email("584c4423c421df49955759498a71495aba49b8780eb9387dff333b6f0982c777")},
		},
		"Jane, as the reference says":             {traits: jane, want: []activation.Identifier{email(janePlain), phone(german)}},
		"Jane, without tags":                      {config: `,"email_format":"without_tags","phone_format":"digits"`, traits: jane, want: []activation.Identifier{email(janeNoTag), phone(digits)}},
		"Jane, without tags and dots":             {config: `,"email_format":"without_tags_and_dots"`, traits: jane, want: []activation.Identifier{email(janeDoe), phone(german)}},
		"Jane, in all forms":                      {config: `,"email_format":"all","phone_format":"both"`, traits: jane, want: []activation.Identifier{email(janePlain), email(janeNoTag), email(janeDoe), phone(german), phone(digits)}},
		"somebody whose address has but one form": {config: `,"email_format":"all"`, traits: map[string]string{"email": "janedoe@gmail.com"}, want: []activation.Identifier{email(janeDoe)}},
		"several addresses and numbers": {
			traits: map[string]string{"email": "c@example.com", "mobile": "+14155550100"},
			ids: []activation.Identifier{
				{Kind: "email", Value: "b@example.com"},
				{Kind: "email", Value: "a@example.com"},
				{Kind: "phone", Value: "+14155550199"},
				{Kind: "user_id", Value: "cust-1"},
			},
			want: []activation.Identifier{
				email(hash("b@example.com")), email(hash("a@example.com")), email(hash("c@example.com")),
				phone(hash("+14155550199")), phone(hash("+14155550100")),
			},
		},
		"John": {
			traits: map[string]string{"email": "john_smith@gmail.com", "phone": "(650)555-1212", "country": "us"},
			want:   []activation.Identifier{email(hash("john_smith@gmail.com")), phone(hash("+16505551212"))},
		},
		"Alex": {
			traits: map[string]string{"email": "alexz@example.com", "phone": "+1-800-555-0100"},
			want:   []activation.Identifier{email(hash("alexz@example.com")), phone(hash("+18005550100"))},
		},
		"a number in the country of the destination": {
			config: `,"default_country":"US"`, traits: map[string]string{"phone": "1 (234) 567-8901"},
			want: []activation.Identifier{phone(hash("+12345678901"))},
		},
		"an address that came as a hash, in capitals": {
			config: `,"email_format":"all"`, traits: map[string]string{"email": "D6117306485ED0E50AFAB3AC871E98F81699151F30281527D63FF5F233656C69"},
			want: []activation.Identifier{email(janeDoe)},
		},
		"nobody":                           {traits: map[string]string{"first_name": "Valéry"}, ids: []activation.Identifier{{Kind: "user_id", Value: "c-1"}}, reason: noUsable},
		"words for nothing":                {traits: map[string]string{"email": "null", "phone": "undefined", "idfa": ""}, reason: noUsable},
		"a number without a country":       {traits: map[string]string{"phone": "(650)555-1212"}, reason: noCountry},
		"a number of no country":           {traits: map[string]string{"phone": "12", "country": "US"}, reason: unusable},
		"a number that came as a hash":     {traits: map[string]string{"phone": german}, reason: unusable},
		"no address":                       {traits: map[string]string{"email": "jane.doe"}, reason: unusable},
		"two addresses in one":             {traits: map[string]string{"email": "a@example.com b@example.com"}, reason: unusable},
		"the hash of nothing":              {traits: map[string]string{"email": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}, reason: unusable},
		"the hash of null":                 {traits: map[string]string{"email": "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"}, reason: unusable},
		"the hash of undefined":            {traits: map[string]string{"email": "eb045d78d273107348b0300c01d29b7552d622abbc6faf81b3ec55359aa9950c"}, reason: unusable},
		"the device of all who have opted": {traits: map[string]string{"idfa": "00000000-0000-0000-0000-000000000000"}, reason: unusable},
	} {
		got, err := (&tiktok.Partner{}).Identify(target(tt.config), partnertest.With(tt.traits, tt.ids...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		want := activation.Identifiers{IDs: tt.want, Reason: tt.reason}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if _, err := (&tiktok.Partner{}).Identify(activation.Target{}, partnertest.With(jane)); err == nil {
		t.Error("people are identified without settings")
	}
}

func TestManyIdentifiersOfOnePersonAreBounded(t *testing.T) {
	t.Parallel()
	var p activation.Person
	for n := range 150 {
		p.Identifiers = append(p.Identifiers, activation.Identifier{Kind: "email", Value: fmt.Sprintf("p%d@example.com", n)})
	}
	ids, err := (&tiktok.Partner{}).Identify(target(""), p)
	if err != nil || len(ids.IDs) != 100 {
		t.Errorf("%d identifiers, %v, want 100", len(ids.IDs), err)
	}
}

func member(entered bool, ids ...string) activation.Member {
	m := activation.Member{Entered: entered}
	for i := 0; i < len(ids); i += 2 {
		m.Identifiers.IDs = append(m.Identifiers.IDs, activation.Identifier{Kind: ids[i], Value: ids[i+1]})
	}
	return m
}

func TestEncode(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		members []activation.Member
		want    string
	}{
		"one person": {
			[]activation.Member{member(true, "EMAIL_SHA256", "e1", "PHONE_SHA256", "p1")},
			`{"advertiser_ids":["7001","7002"],"action":"add","id_schema":["EMAIL_SHA256","PHONE_SHA256"],"batch_data":[` +
				`[{"id":"e1","audience_ids":["1770001"]},{"id":"p1","audience_ids":["1770001"]}]]}`,
		},
		"people of whom different things are known": {
			[]activation.Member{member(true, "IDFA_SHA256", "i1"), member(true, "EMAIL_SHA256", "e2")},
			`{"advertiser_ids":["7001","7002"],"action":"add","id_schema":["EMAIL_SHA256","IDFA_SHA256"],"batch_data":[` +
				`[{},{"id":"i1","audience_ids":["1770001"]}],[{"id":"e2","audience_ids":["1770001"]},{}]]}`,
		},
		"one person who has several, which leave": {
			[]activation.Member{member(false, "EMAIL_SHA256", "e1", "EMAIL_SHA256", "e2", "PHONE_SHA256", "p1"), member(false, "AAID_MD5", "a2")},
			`{"advertiser_ids":["7001","7002"],"action":"delete","id_schema":["EMAIL_SHA256","PHONE_SHA256","AAID_MD5"],"batch_data":[` +
				`[{"id":"e1","audience_ids":["1770001"]},{"id":"p1","audience_ids":["1770001"]},{}],` +
				`[{"id":"e2","audience_ids":["1770001"]},{},{}],[{},{},{"id":"a2","audience_ids":["1770001"]}]]}`,
		},
	} {
		body, took, err := (&tiktok.Partner{}).Encode(target(""), activation.Batch{Audience: "1770001", Members: tt.members})
		if err != nil || took != len(tt.members) || string(body) != tt.want {
			t.Errorf("%s: took %d, %v:\n%s\nwant\n%s", name, took, err, body, tt.want)
		}
	}
	if _, _, err := (&tiktok.Partner{}).Encode(activation.Target{}, activation.Batch{Members: make([]activation.Member, 1)}); err == nil {
		t.Error("a message is made without settings")
	}
}

// However many people there are and whatever is known of them, a message has the whole of as many as fit, in rows of which
// each is about one of them, and is the same again.
func TestMessagesAreWhole(t *testing.T) {
	t.Parallel()
	kinds := []string{"EMAIL_SHA256", "PHONE_SHA256", "IDFA_SHA256", "AAID_SHA256", "IDFA_MD5", "AAID_MD5"}
	rapid.Check(t, func(t *rapid.T) {
		const most = 100
		var members []activation.Member
		owner := map[string]int{}
		for n := range rapid.IntRange(1, 60).Draw(t, "people") {
			var m activation.Member
			for _, kind := range kinds {
				for i := range rapid.IntRange(0, 4).Draw(t, kind) {
					value := fmt.Sprintf("%s %d of %d", kind, i, n)
					owner[value] = n
					m.Identifiers.IDs = append(m.Identifiers.IDs, activation.Identifier{Kind: kind, Value: value})
				}
			}
			if len(m.Identifiers.IDs) > 0 {
				members = append(members, m)
			}
		}
		if len(members) == 0 {
			return
		}
		batch := activation.Batch{Audience: "1770001", Members: members}
		body, took, err := (&tiktok.Partner{}).Encode(target(`,"rows":100`), batch)
		again, _, _ := (&tiktok.Partner{}).Encode(target(`,"rows":100`), batch)
		if err != nil || took < 1 || took > len(members) || !bytes.Equal(body, again) {
			t.Fatalf("took %d of %d, %v", took, len(members), err)
		}
		var m struct {
			Schema []string `json:"id_schema"`
			Rows   [][]struct {
				ID string `json:"id"`
			} `json:"batch_data"`
		}
		if err := json.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
		if len(m.Rows) > most {
			t.Fatalf("%d rows, want at most %d", len(m.Rows), most)
		}
		sent := map[string]bool{}
		for _, row := range m.Rows {
			of := map[int]bool{}
			for column, cell := range row {
				if cell.ID == "" {
					continue
				}
				if cell.ID[:len(m.Schema[column])] != m.Schema[column] {
					t.Fatalf("%q is in column %s", cell.ID, m.Schema[column])
				}
				of[owner[cell.ID]] = true
				sent[cell.ID] = true
			}
			if len(of) != 1 || len(row) != len(m.Schema) {
				t.Fatalf("a row of %d columns is about %d people", len(row), len(of))
			}
		}
		want := map[string]bool{}
		for _, m := range members[:took] {
			for _, id := range m.Identifiers.IDs {
				want[id.Value] = true
			}
		}
		if !maps.Equal(want, sent) {
			t.Fatalf("%d identifiers were sent, want %d: %v", len(sent), len(want), slices.Sorted(maps.Keys(sent)))
		}
	})
}

package microsoft_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/microsoft"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// target is a destination with more settings than it needs.
func target(more string) activation.Target {
	return activation.Target{ID: 3, Settings: activation.Settings{
		Config:  jsontext.Value(`{"customer_id":"1111","account_id":"2222","client_id":"c"` + more + `}`),
		Secrets: jsontext.Value(`{"developer_token":"d","refresh_token":"r","access_token":"a"}`),
	}}
}

// What integrations that are in use publish, and what we computed of others.
func TestIdentify(t *testing.T) {
	t.Parallel()
	id := func(kind, value string) []activation.Identifier {
		return []activation.Identifier{{Kind: kind, Value: value}}
	}
	jane := map[string]string{"email": "  Jane.Doe+Promo@GMail.com ", "phone": "+49 (0)171 1234567", "country": "DE"}
	const (
		noCountry = "the phone number does not say its country, and neither the person nor the destination has one"
		noPhone   = "no phone number is known"
		noEmail   = "no e-mail address is known"
		badEmail  = "what is given as e-mail address is none"
	)
	for name, tt := range map[string]struct {
		config string
		traits map[string]string
		ids    []activation.Identifier
		want   []activation.Identifier
		reason string
	}{
		"an address that others publish": {traits: map[string]string{"email": "demo@segment.com"}, want: id("Email", "5a95f052958dac8ed1d66d74eb481b3ccdbbc953b583c5ff0325be6b091d6281")},
		"space behind an address":        {traits: map[string]string{"email": "van@abc.com "}, want: id("Email", "2048acfa84a01121060ca2fc8a673a76d427176dc37224d4408c21973bd90e5c")},
		"Jane":                           {traits: jane, want: id("Email", "5f0d1df1fc49e30424381b57b1d4c73e067772a4267dde043a19b026935602c8")},
		"Jane by phone":                  {config: `,"identifier":"phone"`, traits: jane, want: id("Phone", "26fe61aab2698bb3696dc47387e6c64172c6c716727917caaf6ff965d030cb3d")},
		"Jane by phone, digits alone":    {config: `,"identifier":"phone","phone_format":"digits"`, traits: jane, want: id("Phone", "7e25b7844dc82e53d76a507d7f6130832c805e097c1e038793c36ce22c358132")},
		"John":                           {traits: map[string]string{"email": "john_smith@gmail.com"}, want: id("Email", partnertest.Hex("john_smith@gmail.com"))},
		"Alex by phone":                  {config: `,"identifier":"phone"`, traits: map[string]string{"phone": "+1-800-555-0100"}, want: id("Phone", partnertest.Hex("+18005550100"))},
		"a number in the country of the destination": {
			config: `,"identifier":"phone","default_country":"US"`, traits: map[string]string{"phone": "1 (234) 567-8901"},
			want: id("Phone", partnertest.Hex("+12345678901")),
		},
		"an address that came as a hash": {
			traits: map[string]string{"email": "5A95F052958DAC8ED1D66D74EB481B3CCDBBC953B583C5FF0325BE6B091D6281"},
			want:   id("Email", "5a95f052958dac8ed1d66d74eb481b3ccdbbc953b583c5ff0325be6b091d6281"),
		},
		"several addresses": {
			traits: map[string]string{"email": "c@example.com"},
			ids:    []activation.Identifier{{Kind: "email", Value: "b@example.com"}, {Kind: "email", Value: "null"}, {Kind: "email", Value: "c@example.com"}},
			want:   append(id("Email", partnertest.Hex("b@example.com")), id("Email", partnertest.Hex("c@example.com"))...),
		},
		"own ids": {
			config: `,"identifier":"crm"`, ids: []activation.Identifier{{Kind: "user_id", Value: " cust-1 "}, {Kind: "user_id", Value: "cust-2"}},
			want: append(id("CRM", "cust-1"), id("CRM", "cust-2")...),
		},
		"an own id among traits":         {config: `,"identifier":"crm"`, traits: map[string]string{"customer_id": "c-9"}, want: id("CRM", "c-9")},
		"own ids that are addresses":     {config: `,"identifier":"crm"`, ids: id("user_id", "ada@example.com"), reason: "the customer's own id is an e-mail address, which is not sent as it is"},
		"no own id":                      {config: `,"identifier":"crm"`, traits: map[string]string{"external_id": "null"}, reason: "no id of the customer's own system is known"},
		"nobody":                         {traits: map[string]string{"first_name": "Valéry", "phone": "+18005550100"}, reason: noEmail},
		"a word for nothing":             {traits: map[string]string{"email": "undefined"}, reason: noEmail},
		"no address":                     {traits: map[string]string{"email": "jane.doe"}, reason: badEmail},
		"the hash of nothing":            {traits: map[string]string{"email": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}, reason: badEmail},
		"the hash of null":               {traits: map[string]string{"email": "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"}, reason: badEmail},
		"the hash of undefined":          {traits: map[string]string{"email": "eb045d78d273107348b0300c01d29b7552d622abbc6faf81b3ec55359aa9950c"}, reason: badEmail},
		"nobody by phone":                {config: `,"identifier":"phone"`, traits: map[string]string{"email": "a@example.com"}, reason: noPhone},
		"a word for no number":           {config: `,"identifier":"phone"`, traits: map[string]string{"phone": "null"}, reason: noPhone},
		"a number without a country":     {config: `,"identifier":"phone"`, traits: map[string]string{"phone": "(650)555-1212"}, reason: noCountry},
		"a number that came as a hash":   {config: `,"identifier":"phone"`, traits: map[string]string{"phone": partnertest.Hex("+18005550100")}, reason: "what is given as phone number is none"},
		"one of two numbers has country": {config: `,"identifier":"phone"`, traits: map[string]string{"phone": "(650)555-1212", "mobile": "+18005550100"}, want: id("Phone", partnertest.Hex("+18005550100"))},
	} {
		got, err := (&microsoft.Partner{}).Identify(target(tt.config), partnertest.With(tt.traits, tt.ids...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(activation.Identifiers{IDs: tt.want, Reason: tt.reason}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if _, err := (&microsoft.Partner{}).Identify(activation.Target{}, partnertest.With(jane)); err == nil {
		t.Error("people are identified without settings")
	}
	var many activation.Person
	for n := range 150 {
		many.Identifiers = append(many.Identifiers, activation.Identifier{Kind: "email", Value: fmt.Sprintf("p%d@example.com", n)})
	}
	if ids, err := (&microsoft.Partner{}).Identify(target(""), many); err != nil || len(ids.IDs) != 100 {
		t.Errorf("of somebody with 150 addresses %d are sent, %v, want 100", len(ids.IDs), err)
	}
}

func member(entered bool, kind string, values ...string) activation.Member {
	m := activation.Member{Entered: entered}
	for _, v := range values {
		m.Identifiers.IDs = append(m.Identifiers.IDs, activation.Identifier{Kind: kind, Value: v})
	}
	return m
}

func TestEncode(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		config  string
		members []activation.Member
		took    int
		want    string
	}{
		"people who enter": {
			members: []activation.Member{member(true, "Email", "e1", "e2"), member(true, "Email", "e3")}, took: 2,
			want: `{"counts":[2,1],"body":{"CustomerListUserData":{"AudienceId":"814","ActionType":"Add","CustomerListItemSubType":"Email",` +
				`"CustomerListItems":["e1","e2","e3"]}}}`,
		},
		"people who leave, with the terms": {
			config: `,"accept_terms":true,"identifier":"crm"`, members: []activation.Member{member(false, "CRM", "c1")}, took: 1,
			want: `{"counts":[1],"body":{"CustomerListUserData":{"AudienceId":"814","ActionType":"Remove","CustomerListItemSubType":"CRM",` +
				`"CustomerListItems":["c1"],"AcceptCustomerMatchTerm":true}}}`,
		},
		"people who were known by something else": {
			config:  `,"identifier":"phone"`,
			members: []activation.Member{member(false, "Email", "e1"), member(false, "Email", "e2"), member(false, "Phone", "p1")}, took: 2,
			want: `{"counts":[1,1],"body":{"CustomerListUserData":{"AudienceId":"814","ActionType":"Remove","CustomerListItemSubType":"Email",` +
				`"CustomerListItems":["e1","e2"]}}}`,
		},
	} {
		body, took, err := (&microsoft.Partner{}).Encode(target(tt.config), activation.Batch{Audience: "814", Members: tt.members})
		if err != nil || took != tt.took || string(body) != tt.want {
			t.Errorf("%s: took %d, %v:\n%s\nwant\n%s", name, took, err, body, tt.want)
		}
	}
	mixed := member(true, "Email", "e1")
	mixed.Identifiers.IDs = append(mixed.Identifiers.IDs, activation.Identifier{Kind: "Phone", Value: "p1"})
	if _, _, err := (&microsoft.Partner{}).Encode(target(""), activation.Batch{Members: []activation.Member{mixed}}); err == nil {
		t.Error("a person known by two kinds is sent")
	}
	if _, _, err := (&microsoft.Partner{}).Encode(activation.Target{}, activation.Batch{Members: make([]activation.Member, 1)}); err == nil {
		t.Error("a message is made without settings")
	}
}

// However many people there are and however they are known, a message has the whole of as many of the first as fit, all of
// one kind, in order, and is the same again.
func TestMessagesAreWhole(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const most = 100
		var members []activation.Member
		for n := range rapid.IntRange(1, 60).Draw(t, "people") {
			kind := rapid.SampledFrom([]string{"Email", "Email", "Email", "Phone"}).Draw(t, "kind")
			var values []string
			for i := range rapid.IntRange(1, 9).Draw(t, "items") {
				values = append(values, fmt.Sprintf("%s %d of %d", kind, i, n))
			}
			members = append(members, member(true, kind, values...))
		}
		batch := activation.Batch{Audience: "814", Members: members}
		body, took, err := (&microsoft.Partner{}).Encode(target(`,"items":100`), batch)
		again, _, _ := (&microsoft.Partner{}).Encode(target(`,"items":100`), batch)
		if err != nil || took < 1 || took > len(members) || !bytes.Equal(body, again) {
			t.Fatalf("took %d of %d, %v", took, len(members), err)
		}
		var m struct {
			Counts []int
			Body   struct {
				CustomerListUserData struct {
					CustomerListItemSubType string
					CustomerListItems       []string
				}
			}
		}
		if err := json.Unmarshal(body, &m, json.MatchCaseInsensitiveNames(true)); err != nil {
			t.Fatal(err)
		}
		data := m.Body.CustomerListUserData
		if len(data.CustomerListItems) > most {
			t.Fatalf("%d items, want at most %d", len(data.CustomerListItems), most)
		}
		var want []string
		for i, member := range members[:took] {
			for _, id := range member.Identifiers.IDs {
				if id.Kind != data.CustomerListItemSubType {
					t.Fatalf("%q is among items of the kind %s", id.Value, data.CustomerListItemSubType)
				}
				want = append(want, id.Value)
			}
			if m.Counts[i] != len(member.Identifiers.IDs) {
				t.Fatalf("member %d has %d items, want %d", i, m.Counts[i], len(member.Identifiers.IDs))
			}
		}
		if diff := cmp.Diff(want, data.CustomerListItems); diff != "" || len(m.Counts) != took {
			t.Fatalf("%d counts for %d members; items (-want +got):\n%s", len(m.Counts), took, diff)
		}
	})
}

func TestDraftNeedsNoToken(t *testing.T) {
	t.Parallel()
	to := target("")
	to.Secrets = jsontext.Value(`{"developer_token":"d","refresh_token":"r"}`)
	p := microsoft.New(http.DefaultClient, activation.Outbound{})
	body, _, err := p.Encode(to, activation.Batch{Audience: "17", Members: []activation.Member{{
		Entered: true, Identifiers: activation.Identifiers{IDs: []activation.Identifier{{Kind: "email", Value: strings.Repeat("ab", 32)}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	drafts, err := p.Draft(to, activation.Message{Body: body})
	if err != nil || len(drafts) != 1 || !strings.HasSuffix(drafts[0].URL, "/CustomerListUserData/Apply") ||
		drafts[0].Header.Get("Authorization") == "" || !strings.Contains(string(drafts[0].Body), "17") {
		t.Errorf("Draft = %+v, %v", drafts, err)
	}
}

package google

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/matchkey"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// target returns a destination with some more in its config than it needs.
func target(more string) activation.Target {
	return activation.Target{ID: 3, Key: "ads", Settings: activation.Settings{
		Config:  jsontext.Value(`{"account_id":"1234567890","terms_accepted":true` + more + `}`),
		Secrets: jsontext.Value(`{"client_id":"4711-x","client_secret":"s","refresh_token":"r","access_token":"ya29.x"}`),
	}}
}

// person returns somebody with traits, and with the e-mail addresses and phone numbers among them as identifiers.
func person(traits string, identifiers ...activation.Identifier) activation.Person {
	p := activation.Person{ID: activation.ProfileID{1}, Identifiers: identifiers}
	if err := json.Unmarshal([]byte(traits), &p.Traits); err != nil {
		panic(err)
	}
	return p
}

func TestIdentify(t *testing.T) {
	t.Parallel()
	const (
		alex   = "128a07bfe2df877c52076e60d7774cf5baaa046c5a6c48daf30ff43ecca2f814"
		quinn  = "c512ca0c5c1e71be19f3356821e56732b5fb3ac894b0dbc5846d0b6920106fb3"
		family = "77762c287e61ce065bee5c15464012c6fbe088398b8057627d5577249430d574"
	)
	id := func(kind, value string) activation.Identifier { return activation.Identifier{Kind: kind, Value: value} }
	for name, tc := range map[string]struct {
		more   string
		person activation.Person
		want   []activation.Identifier
		reason string
	}{
		"an address with spaces and capitals": {
			person: person(`{"email":"  ALEXZ@example.com  "}`),
			want:   []activation.Identifier{id(email, "509e933019bb285a134a9334b8bb679dff79d0ce023d529af4bd744d47b4fd8a")},
		},
		"dots at Gmail": {
			person: person(`{"email":"Jefferson.Loves.hiking@gmail.com"}`),
			want:   []activation.Identifier{id(email, "515d2f967f73864e76937ab2b897210a86fd286016903b1b08c3da07c75f513e")},
		},
		"googlemail.com stays what it is": {
			person: person(`{"email":"j.e.f..ferson.Loves.hiking@googlemail.com"}`),
			want:   []activation.Identifier{id(email, "2824967181c781aced84c32bf8bb51fc6401202eeff88263776f63c99df9314c")},
		},
		"a tag elsewhere stays": {
			person: person(`{"email":"user.name+NYC@Example.com"}`),
			want:   []activation.Identifier{id(email, "f109a2a632fbcea5fc82049f50beed3d8621bf9034399f437fb622222acccdac")},
		},
		"a tag at Gmail is cut": {
			person: person(`{"email":"  Jane.Doe+Promo@GMail.com "}`),
			want:   []activation.Identifier{id(email, "d6117306485ed0e50afab3ac871e98f81699151f30281527d63ff5f233656c69")},
		},
		"a tag at Gmail in both forms": {
			more:   `,"gmail_tags":"both"`,
			person: person(`{"email":"  Jane.Doe+Promo@GMail.com "}`),
			want: []activation.Identifier{
				id(email, "d6117306485ed0e50afab3ac871e98f81699151f30281527d63ff5f233656c69"),
				id(email, "3a627126a4392d8cec5f5d4eaa26639d3cfe852ebf1f1b49c3ffa61667798637"),
			},
		},
		"both forms are the same without a tag": {
			more:   `,"gmail_tags":"both"`,
			person: person(`{"email":"alexz@example.com"}`),
			want:   []activation.Identifier{id(email, "509e933019bb285a134a9334b8bb679dff79d0ce023d529af4bd744d47b4fd8a")},
		},
		"phone numbers": {
			person: person(`{"phone":"+1-800-555-0100","mobile":"+44-113-496-0987"}`),
			want: []activation.Identifier{
				id(phone, "fb4f73a6ec5fdb7077d564cdd22c3554b43ce49168550c3b12c547b78c517b30"),
				id(phone, "0fac52d27ec377f8ad2f9de75d1f9bace693237e31868ae6f4616b8bbd0e94fb"),
			},
		},
		"a phone number of the person's country": {
			person: person(`{"phone":"1 800 555 0100","country":"us"}`),
			want:   []activation.Identifier{id(phone, "fb4f73a6ec5fdb7077d564cdd22c3554b43ce49168550c3b12c547b78c517b30")},
		},
		"a phone number of the destination's country": {
			more:   `,"default_country":"DE"`,
			person: person(`{"phone":"0171 1234567"}`),
			want:   []activation.Identifier{id(phone, "26fe61aab2698bb3696dc47387e6c64172c6c716727917caaf6ff965d030cb3d")},
		},
		"a number with its trunk prefix": {
			person: person(`{"phone":"+49 (0)171 1234567"}`),
			want:   []activation.Identifier{id(phone, "26fe61aab2698bb3696dc47387e6c64172c6c716727917caaf6ff965d030cb3d")},
		},
		"a whole postal address stands by itself": {
			person: person(`{"first_name":" Alex Dr.","last_name":"quinn, jr. dds","country":"  us  ","zip":" 94045  "}`),
			want:   []activation.Identifier{id(address, matchkey.Hex("alex")+" "+quinn+" US 94045")},
		},
		"a postal address within an object": {
			person: person(`{"first_name":"Mralex","last_name":" FamilyName ","address":{"country":"GB","postal_code":"1229-076"}}`),
			want:   []activation.Identifier{id(address, matchkey.Hex("mralex")+" "+family+" GB 1229-076")},
		},
		"a country by another code": {
			person: person(`{"phone":"0113 496 0987","first_name":"Alex","last_name":"Quinn","country":"UK","zip":"LS1 1AA"}`),
			want: []activation.Identifier{
				id(phone, "0fac52d27ec377f8ad2f9de75d1f9bace693237e31868ae6f4616b8bbd0e94fb"), id(address, matchkey.Hex("alex")+" "+quinn+" GB LS1 1AA"),
			},
		},
		"a country that is none": {
			person: person(`{"email":"dana@example.com","first_name":"Alex","last_name":"Quinn","country":"XQ","zip":"94045"}`),
			want:   []activation.Identifier{id(email, "07e2f1394b0ea80e2adca010ea8318df697001a005ba7452720edda4b0ce57b3")},
		},
		"names in other scripts": {
			person: person(`{"first_name":"Valéry","last_name":"정","country":"FR","zip":"75001"}`),
			want:   []activation.Identifier{id(address, matchkey.Hex("valéry")+" "+matchkey.Hex("정")+" FR 75001")},
		},
		"hashed before": {
			person: person(`{"email":"` + strings.ToUpper(alex) + `","first_name":"` + alex + `","last_name":"` + strings.ToUpper(quinn) + `","country":"US","zip":"94045"}`),
			want:   []activation.Identifier{id(email, alex), id(address, alex+" "+quinn+" US 94045")},
		},
		"an address without a country is left out": {
			person: person(`{"email":"alexz@example.com","first_name":"Alex","last_name":"Quinn","zip":"94045"}`),
			want:   []activation.Identifier{id(email, "509e933019bb285a134a9334b8bb679dff79d0ce023d529af4bd744d47b4fd8a")},
		},
		"an address with a hashed postal code is left out": {
			person: person(`{"first_name":"Alex","last_name":"Quinn","country":"US","zip":"` + alex + `"}`),
			reason: "neither an e-mail address nor a phone number nor a whole postal address is known",
		},
		"a name that is only a title": {
			person: person(`{"first_name":" Mr. ","last_name":"Quinn","country":"US","zip":"94045"}`),
			reason: "neither an e-mail address nor a phone number nor a whole postal address is known",
		},
		"several of everything, each once": {
			person: person(`{"email":"dana@example.com","phone":"+18005550100"}`,
				id("email", "alexz@example.com"), id("email", "ALEXZ@example.com"), id("phone", "+1 800 555 0100")),
			want: []activation.Identifier{
				id(email, "509e933019bb285a134a9334b8bb679dff79d0ce023d529af4bd744d47b4fd8a"),
				id(email, "07e2f1394b0ea80e2adca010ea8318df697001a005ba7452720edda4b0ce57b3"),
				id(phone, "fb4f73a6ec5fdb7077d564cdd22c3554b43ce49168550c3b12c547b78c517b30"),
			},
		},
		"nothing is known":                {person: person(`{"plan":"pro"}`), reason: "neither an e-mail address nor a phone number nor a whole postal address is known"},
		"a phone number without country":  {person: person(`{"phone":"0171 1234567"}`), reason: "the phone number does not say its country, and none is known"},
		"addresses that are none":         {person: person(`{"email":"quinn"}`), reason: "the e-mail address or phone number is not a valid one"},
		"placeholders":                    {person: person(`{"email":"null","phone":"undefined","country":"US"}`), reason: "the e-mail address or phone number is not a valid one"},
		"the hash of nothing":             {person: person(`{"email":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`), reason: "the e-mail address or phone number is not a valid one"},
		"a hashed phone number":           {person: person(`{"phone":"fb4f73a6ec5fdb7077d564cdd22c3554b43ce49168550c3b12c547b78c517b30","country":"US"}`), reason: "the e-mail address or phone number is not a valid one"},
		"an Android device":               {more: `,"data":"mobile_ids","mobile_platform":"android","mobile_app_id":"a"`, person: person(`{"gaid":"5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25","idfa":"00000000-9C4D-4E7F-B8E2-17D3A1E69B25"}`), want: []activation.Identifier{id(mobile, "5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25")}},
		"an Apple device":                 {more: `,"data":"mobile_ids","mobile_platform":"ios","mobile_app_id":"a"`, person: person(`{"idfa":"5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25"}`), want: []activation.Identifier{id(mobile, "5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25")}},
		"a device that opted out":         {more: `,"data":"mobile_ids","mobile_platform":"ios","mobile_app_id":"a"`, person: person(`{"idfa":"00000000-0000-0000-0000-000000000000","email":"a@example.com"}`), reason: "no advertising id of an Apple device is known"},
		"user ids":                        {more: `,"data":"user_ids"`, person: person(`{"email":"a@example.com"}`, id("user_id", "c-1"), id("user_id", "c-2")), want: []activation.Identifier{id(userID, "c-1"), id(userID, "c-2")}},
		"a user id that is a placeholder": {more: `,"data":"user_ids"`, person: person(`{"external_id":"null"}`), reason: "no user id is known"},
	} {
		got, err := (&Partner{}).Identify(target(tc.more), tc.person)
		if diff := cmp.Diff(tc.want, got.IDs); err != nil || diff != "" || got.Reason != tc.reason || len(got.Details) > 0 {
			t.Errorf("%s: %v, reason %q, want %q; identifiers (-want +got):\n%s", name, err, got.Reason, tc.reason, diff)
		}
	}
	if _, err := (&Partner{}).Identify(target(`,"x":1`), activation.Person{}); err == nil {
		t.Error("settings that cannot be read identify somebody")
	}
}

// The examples are those of the tests of Google's own libraries.
func TestNames(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{" Alex Dr.": "alex", "Mralex": "mralex", "Mrs. Ada": "ada", " Mr. ": "", "null": "", " ": ""} {
		if got := givenName(raw); want != "" && got != matchkey.Hex(want) || want == "" && got != "" {
			t.Errorf("the first name %q is %s, want the hash of %q", raw, got, want)
		}
	}
	for raw, want := range map[string]string{
		"Quinn, Jr.": "quinn", "quinn, jr. dds": "quinn", "Quinn-Alex": "quinn-alex", " FamilyName ": "familyname", "Boardds": "boardds",
		"lacparm": "lacparm", ",Jr.,DDS ": "", "Smith III": "smith", "O'Neill": "o'neill",
	} {
		if got := familyName(raw); want != "" && got != matchkey.Hex(want) || want == "" && got != "" {
			t.Errorf("the last name %q is %s, want the hash of %q", raw, got, want)
		}
	}
	for raw, want := range map[string]string{" 94045  ": "94045", "1229-076": "1229-076", "SW1A 1AA": "SW1A 1AA", "": "", "null": "", "94045;": "", "unknown": ""} {
		if got := postalCode(raw); got != want {
			t.Errorf("the postal code %q is %q, want %q", raw, got, want)
		}
	}
}

func member(entered bool, ids ...activation.Identifier) activation.Member {
	m := activation.Member{Identifiers: activation.Identifiers{IDs: ids}, Entered: entered}
	if entered {
		m.Person.Consent = map[string]bool{"ad_user_data": true, "ad_personalization": true}
	}
	return m
}

func TestEncode(t *testing.T) {
	t.Parallel()
	p := &Partner{}
	const destinations = `{"destinations":[{"reference":"list","operatingAccount":{"accountType":"GOOGLE_ADS","accountId":"1234567890"},` +
		`"loginAccount":{"accountType":"GOOGLE_ADS","accountId":"9876543210"},"productDestinationId":"8123"}],"audienceMembers":[`
	const consents = `"consent":{"adUserData":"CONSENT_GRANTED","adPersonalization":"CONSENT_GRANTED"}`
	denied, undecided, gpc := member(true, activation.Identifier{Kind: email, Value: "e"}), member(true, activation.Identifier{Kind: email, Value: "e"}), member(true, activation.Identifier{Kind: email, Value: "e"})
	denied.Person.Consent = map[string]bool{"ad_user_data": true, "ad_personalization": false}
	undecided.Person.Consent = nil
	gpc.Person.Consent["gpc"] = true
	for name, tc := range map[string]struct {
		members []activation.Member
		want    string
		took    int
	}{
		"contacts are added": {
			[]activation.Member{
				member(true, activation.Identifier{Kind: email, Value: "e1"}, activation.Identifier{Kind: phone, Value: "p1"}, activation.Identifier{Kind: address, Value: "g f US SW1A 1AA"}),
				member(true, activation.Identifier{Kind: email, Value: "e2"}),
			},
			`{"userData":{"userIdentifiers":[{"emailAddress":"e1"},{"phoneNumber":"p1"},` +
				`{"address":{"givenName":"g","familyName":"f","regionCode":"US","postalCode":"SW1A 1AA"}}]},` + consents + `},` +
				`{"userData":{"userIdentifiers":[{"emailAddress":"e2"}]},` + consents + `}],` +
				`"encoding":"HEX","termsOfService":{"customerMatchTermsOfServiceStatus":"ACCEPTED"}}`, 2,
		},
		"contacts are removed": {
			[]activation.Member{member(false, activation.Identifier{Kind: phone, Value: "p1"})},
			`{"userData":{"userIdentifiers":[{"phoneNumber":"p1"}]}}],"encoding":"HEX"}`, 1,
		},
		"devices are added, and contacts wait for another message": {
			[]activation.Member{
				member(true, activation.Identifier{Kind: mobile, Value: "m1"}, activation.Identifier{Kind: mobile, Value: "m2"}),
				member(true, activation.Identifier{Kind: email, Value: "e1"}),
			},
			`{"mobileData":{"mobileIds":["m1","m2"]},` + consents + `}],"termsOfService":{"customerMatchTermsOfServiceStatus":"ACCEPTED"}}`, 1,
		},
		"user ids have a row each": {
			[]activation.Member{member(true, activation.Identifier{Kind: userID, Value: "u1"}, activation.Identifier{Kind: userID, Value: "u2"})},
			`{"userIdData":{"userId":"u1"},` + consents + `},{"destinationReferences":["list"],"userIdData":{"userId":"u2"},` + consents + `}]}`, 1,
		},
		"what was decided is said": {
			[]activation.Member{denied, undecided, gpc},
			`{"userData":{"userIdentifiers":[{"emailAddress":"e"}]},"consent":{"adUserData":"CONSENT_GRANTED","adPersonalization":"CONSENT_DENIED"}},` +
				`{"userData":{"userIdentifiers":[{"emailAddress":"e"}]}},` +
				`{"userData":{"userIdentifiers":[{"emailAddress":"e"}]},"consent":{"adUserData":"CONSENT_DENIED","adPersonalization":"CONSENT_DENIED"}}],` +
				`"encoding":"HEX","termsOfService":{"customerMatchTermsOfServiceStatus":"ACCEPTED"}}`, 3,
		},
	} {
		body, took, err := p.Encode(target(`,"login_account_id":"9876543210"`), activation.Batch{Audience: "8123", Members: tc.members})
		if diff := cmp.Diff(destinations+tc.want, string(body)); err != nil || took != tc.took || diff != "" {
			t.Errorf("%s: took %d, %v; body (-want +got):\n%s", name, took, err, diff)
		}
	}
	if _, _, err := p.Encode(target(""), activation.Batch{Members: []activation.Member{denied}}); err == nil {
		t.Error("a message without a list was made")
	}
}

// However many people with however many identifiers there are, a request has no more rows, identifiers and bytes than it
// may, says of each person what the person is known by, and tells people apart.
func TestEncodeKeepsLimitsAndPeopleApart(t *testing.T) {
	t.Parallel()
	p, rng := &Partner{}, rand.New(rand.NewPCG(1, 2))
	for range 8 {
		data := rng.IntN(3)
		var all []activation.Member
		for n := range 1 + rng.IntN(12_000) {
			most := []int{1, 3, 25}[rng.IntN(3)]
			var ids []activation.Identifier
			for i := range 1 + rng.IntN(most) {
				value := fmt.Sprintf("%032x%032x", n, i)
				ids = append(ids, activation.Identifier{Kind: []string{email, mobile, userID}[data], Value: value})
			}
			all = append(all, member(true, ids...))
		}
		b := activation.Batch{Audience: "8123", Members: all}
		body, took, err := p.Encode(target(""), b)
		if err != nil || took < 1 || len(body) > maxBody+1000 {
			t.Fatalf("%d people: took %d in %d bytes, %v", len(all), took, len(body), err)
		}
		again, _, _ := p.Encode(target(""), b)
		if !bytes.Equal(body, again) {
			t.Error("the same batch has two bodies")
		}
		var r struct {
			Rows []row `json:"audienceMembers"`
		}
		if err := json.Unmarshal(body, &r); err != nil {
			t.Fatal(err)
		}
		owner, ok := owners(activation.Message{Body: body, Members: make([]activation.MemberRef, took)})
		if !ok || len(r.Rows) > maxRows || len(owner) != len(r.Rows) {
			t.Fatalf("%d rows, of %d owners, %t", len(r.Rows), len(owner), ok)
		}
		said := make([][]string, took)
		for i, row := range r.Rows {
			var values []string
			switch {
			case row.UserData != nil:
				for _, id := range row.UserData.Identifiers {
					values = append(values, id.Email)
				}
			case row.MobileData != nil:
				values = row.MobileData.IDs
			default:
				values = []string{row.UserIDData.ID}
			}
			if len(values) > maxIdentifiers {
				t.Fatalf("row %d has %d identifiers", i, len(values))
			}
			said[owner[i]] = append(said[owner[i]], values...)
		}
		for i, values := range said {
			var want []string
			for _, id := range all[i].Identifiers.IDs {
				want = append(want, id.Value)
			}
			if !slices.Equal(values, want) {
				t.Fatalf("of person %d the rows say %d identifiers, want %d", i, len(values), len(want))
			}
		}
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add("a.b+c@gmail.com", "0171 1234567", "Dr. Ada", "Lovelace, Jr.", "DE", "SW1A 1AA")
	f.Add("\x00", "+", "mr.", " ii", "", strings.Repeat("9", 20))
	f.Fuzz(func(t *testing.T, mail, number, first, last, country, zip string) {
		traits := map[string]jsontext.Value{}
		for name, s := range map[string]string{"email": mail, "phone": number, "first_name": first, "last_name": last, "country": country, "zip": zip} {
			if v, err := jsontext.AppendQuote(nil, s); err == nil {
				traits[name] = v
			}
		}
		p := &Partner{}
		ids, err := p.Identify(target(`,"gmail_tags":"both"`), activation.Person{Traits: traits})
		if err != nil || (ids.Reason == "") == (len(ids.IDs) == 0) {
			t.Fatalf("%+v, %v", ids, err)
		}
		if len(ids.IDs) == 0 {
			return
		}
		for _, id := range ids.IDs {
			if a, ok := splitAddress(id.Value); id.Kind == address && (!ok || !hashed(a.Given) || !hashed(a.Family) || a.Postal == "") {
				t.Errorf("the address %q is not whole", id.Value)
			} else if id.Kind != address && (!hashed(id.Value) || matchkey.Poisoned(id.Value)) {
				t.Errorf("%s %q is no hash", id.Kind, id.Value)
			}
		}
		if _, took, err := p.Encode(target(""), activation.Batch{Audience: "1", Members: []activation.Member{member(true, ids.IDs...)}}); took != 1 || err != nil {
			t.Errorf("took %d, %v", took, err)
		}
	})
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	p := New(nil, activation.Outbound{})
	const good = `{"client_id":"4711-x","client_secret":"s","refresh_token":"r"}`
	service := string(partnertest.NewGoogle(t, partnertest.GoogleOptions{ServiceAccount: true}).Settings().Secrets)
	for name, tc := range map[string]struct {
		config, secrets string
		want            []string
	}{
		"an account, the terms and a credential are enough": {`{"account_id":"123","terms_accepted":true}`, good, nil},
		"a service account":               {`{"account_id":"123","terms_accepted":true}`, service, nil},
		"user ids need no terms":          {`{"account_id":"123","data":"user_ids"}`, good, nil},
		"everything there is":             {`{"account_id":"123","account_type":"DISPLAY_VIDEO_ADVERTISER","login_account_id":"4","login_account_type":"DISPLAY_VIDEO_PARTNER","data":"mobile_ids","mobile_platform":"ios","mobile_app_id":"1","terms_accepted":true,"default_country":"DE","gmail_tags":"both","membership_days":30,"batch":10000,"api_url":"https://datamanager.example.com","token_url":"https://token.example.com/token"}`, good, nil},
		"nothing":                         {`{}`, `{}`, []string{"/config/account_id", "/secrets/client_id", "/secrets/client_secret", "/secrets/refresh_token", "/config/terms_accepted"}},
		"hyphens":                         {`{"account_id":"123-456","login_account_id":"1-2","terms_accepted":true}`, good, []string{"/config/account_id", "/config/login_account_id"}},
		"types that are none":             {`{"account_id":"1","account_type":"ADS","login_account_type":"X","data":"all","gmail_tags":"x","terms_accepted":true}`, good, []string{"/config/account_type", "/config/login_account_type", "/config/data", "/config/gmail_tags"}},
		"devices of no app":               {`{"account_id":"1","data":"mobile_ids","terms_accepted":true}`, good, []string{"/config/mobile_platform", "/config/mobile_app_id"}},
		"numbers":                         {`{"account_id":"1","membership_days":541,"batch":10001,"default_country":"Germany","terms_accepted":true}`, good, []string{"/config/default_country", "/config/membership_days", "/config/batch"}},
		"addresses":                       {`{"account_id":"1","api_url":"http://x","terms_accepted":true}`, good, []string{"/config/api_url"}},
		"something unknown":               {`{"account_id":"1","terms":true}`, good, []string{"/config/terms", "/config/terms_accepted"}},
		"a service account without a key": {`{"account_id":"1","terms_accepted":true}`, `{"service_account":{"client_email":"a"}}`, []string{"/secrets/service_account"}},
		"a service account and a person's credential": {`{"account_id":"1","terms_accepted":true}`, `{"client_id":"x",` + service[1:], []string{"/secrets/service_account"}},
	} {
		kept, err := p.Prepare(activation.Settings{Config: jsontext.Value(tc.config), Secrets: jsontext.Value(tc.secrets)})
		if diff := cmp.Diff(tc.want, pointers(err)); diff != "" {
			t.Errorf("%s: %v; fields (-want +got):\n%s", name, err, diff)
		}
		if err != nil {
			continue
		}
		if again, err := p.Prepare(kept); err != nil || !bytes.Equal(again.Config, kept.Config) || !bytes.Equal(again.Secrets, kept.Secrets) {
			t.Errorf("%s: what was prepared is prepared otherwise, %v", name, err)
		}
		for what, shown := range p.Mask(kept.Secrets) {
			if len([]rune(shown)) > 5 {
				t.Errorf("%s: the masked %s is %q", name, what, shown)
			}
		}
		if len(p.Mask(kept.Secrets)) == 0 || bytes.Contains(kept.Secrets, []byte("token_uri")) {
			t.Errorf("%s: nothing is shown, or more is kept than is needed", name)
		}
	}
}

// pointers returns what fields an error is about.
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
	p := &Partner{}
	l := p.Limits(target(`,"membership_days":10`))
	if l.Members != 5000 || l.Mixed || !l.NeedsAudience || l.TTL != 240*time.Hour || l.Account != "4711" || l.PollEvery < 30*time.Second {
		t.Errorf("%+v", l)
	}
	if l = p.Limits(target(`,"batch":7`)); l.Members != 7 || l.TTL != 540*24*time.Hour {
		t.Errorf("%+v", l)
	}
	fake := partnertest.NewGoogle(t, partnertest.GoogleOptions{ServiceAccount: true})
	if l = p.Limits(activation.Target{Settings: fake.Settings()}); l.Account != "shop" {
		t.Errorf("the account is %q", l.Account)
	}
}

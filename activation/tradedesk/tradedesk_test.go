package tradedesk_test

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/activation/tradedesk"
)

const (
	operatorSecrets = `"uid2_api_key":"key","uid2_client_secret":"wJ0hP19QU4hmpB64Y3fV2dAed8t/mupw3sjN5jNRFzg="`
	withToken       = `{"token":"made-in-the-ui-4242",` + operatorSecrets + `}`
)

func target(config string) activation.Target {
	return activation.Target{Settings: activation.Settings{
		Config: jsontext.Value(config), Secrets: jsontext.Value(withToken),
	}}
}

func person(email, phone string, traits ...string) activation.Person {
	p := activation.Person{Traits: map[string]jsontext.Value{}}
	for i := 0; i < len(traits); i += 2 {
		p.Traits[traits[i]] = jsontext.Value(fmt.Sprintf("%q", traits[i+1]))
	}
	if email != "" {
		p.Identifiers = append(p.Identifiers, activation.Identifier{Kind: "email", Value: email})
	}
	if phone != "" {
		p.Identifiers = append(p.Identifiers, activation.Identifier{Kind: "phone", Value: phone})
	}
	return p
}

func TestIdentify(t *testing.T) {
	t.Parallel()
	const plain = `{"advertiser_id":"adv123"}`
	for name, test := range map[string]struct {
		person activation.Person
		config string
		want   []string
		reason string
	}{
		"an address with space and capitals":   {person: person("  ALEXZ@example.com  ", ""), want: []string{"email_hash UJ6TMBm7KFoTSpM0uLtnnf950M4CPVKa9L10TUe0/Yo="}},
		"user2@example.com":                    {person: person("user2@example.com", ""), want: []string{"email_hash KzsrnOhCq4tqbGFMsflgS7ig1QLRr0nFJrcrEIlOlbU="}},
		"capitals":                             {person: person("MyEmail@example.com", ""), want: []string{"email_hash FsGNM28LJQ8OLZB0Us65ZYp07NrovJSGTCMSKnLMJ6U="}},
		"capitals before the at":               {person: person("JANESAOIRSE@example.com", ""), want: []string{"email_hash 1mcOepIAfxtf94Xx/IHlOqbT170GvfXEc83HKGwoS20="}},
		"dots elsewhere stay":                  {person: person("jane.saoirse@example.com", ""), want: []string{"email_hash sZZDLHuYmiypHIN5mVfFFdpT5sE6vyC3j+qU8RfpC/g="}},
		"dots at gmail.com go":                 {person: person("JANE.SAOIRSE@gmail.com", ""), want: []string{"email_hash ku4mBX7Z3qJTXWyLFB1INzkyR2WZGW4ANSJUiW21iI8="}},
		"tags at gmail.com go":                 {person: person("JaneSaoirse+Work@gmail.com", ""), want: []string{"email_hash ku4mBX7Z3qJTXWyLFB1INzkyR2WZGW4ANSJUiW21iI8="}},
		"tags elsewhere stay":                  {person: person("user.name+NYC@Example.com", ""), want: []string{"email_hash 8QmipjL7zqX8ggSfUL7tPYYhv5A0OZ9Df7YiIirMzaw="}},
		"a number of a person's country":       {person: person("", "1 (234) 567-8901", "country", "US"), want: []string{"phone_hash EObwtHBUqDNZR33LNSMdtt5cafsYFuGmuY4ZLenlue4="}},
		"a number of the default country":      {person: person("", "1 800 555 0100"), config: `{"advertiser_id":"a","default_country":"US"}`, want: []string{"phone_hash +09zpuxf23B31WTN0iw1VLQ85JFoVQw7EsVHt4xRezA="}},
		"a number that says its country":       {person: person("", "+44-113-496-0987"), want: []string{"phone_hash D6xS0n7Dd/itL53nXR+brOaTI34xhorm9GFri70OlPs="}},
		"a number with a zero in brackets":     {person: person("", "+49 (0)171 1234567"), want: []string{"phone_hash " + base64OfHash("+491711234567")}},
		"a hash of an address passes, recoded": {person: person("b4c9a289323b21a01c3e940f150eb9b8c542587f1abfd8f0e1cc1ffc5e475514", ""), want: []string{"email_hash tMmiiTI7IaAcPpQPFQ65uMVCWH8av9jw4cwf/F5HVRQ="}},
		"devices and a browser": {
			person: person("", "", "idfa", "5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25", "gaid", "00000000-0000-0000-0000-000000000000", "tdid", "7a7b0000-1111-2222-3333-444455556666"),
			want:   []string{"DAID 5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25", "TDID 7a7b0000-1111-2222-3333-444455556666"},
		},
		"all that there is": {
			person: person("user@example.com", "+12345678901", "email", "user2@example.com"),
			want: []string{
				"email_hash tMmiiTI7IaAcPpQPFQ65uMVCWH8av9jw4cwf/F5HVRQ=", "email_hash KzsrnOhCq4tqbGFMsflgS7ig1QLRr0nFJrcrEIlOlbU=",
				"phone_hash EObwtHBUqDNZR33LNSMdtt5cafsYFuGmuY4ZLenlue4=",
			},
		},
		"John Smith": {
			person: person("john_smith@gmail.com", "(650)555-1212", "country", "US"),
			want:   []string{"email_hash " + base64OfHash("john_smith@gmail.com"), "phone_hash " + base64OfHash("+16505551212")},
		},
		"Jane Doe": {
			person: person("  Jane.Doe+Promo@GMail.com ", "+49 (0)171 1234567", "country", "DE"),
			want:   []string{"email_hash " + base64OfHash("janedoe@gmail.com"), "phone_hash " + base64OfHash("+491711234567")},
		},
		"nobody": {person: person("", ""), reason: "neither an e-mail address, a phone number nor an advertising id is known"},
		"a number of nobody knows where": {
			person: person("", "(650)555-1212"), reason: "of the phone number the country is not known",
		},
		"a number that is a hash": {
			person: person("", "10e6f0b47054a83359477dcb35231db6de5c69fb1816e1a6b98e192de9e5b9ee", "country", "US"),
			reason: "what is known is no valid e-mail address or phone number",
		},
		"the hash of nothing": {
			person: person("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", ""),
			reason: "what is known is no valid e-mail address or phone number",
		},
		"the hash of null":   {person: person("74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b", ""), reason: "what is known is no valid e-mail address or phone number"},
		"a word for nothing": {person: person("undefined", ""), reason: "what is known is no valid e-mail address or phone number"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ids, err := newPartner(t).Identify(target(cmp.Or(test.config, plain)), test.person)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, id := range ids.IDs {
				got = append(got, id.Kind+" "+id.Value)
			}
			if diff := gocmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if ids.Reason != test.reason {
				t.Errorf("Reason is %q, want %q", ids.Reason, test.reason)
			}
		})
	}
}

// base64OfHash is computed from the other form of the hash, by the test's own tools.
func base64OfHash(text string) string {
	hex := partnertest.Hex(text)
	var b []byte
	for i := 0; i < len(hex); i += 2 {
		var one byte
		fmt.Sscanf(hex[i:i+2], "%02x", &one)
		b = append(b, one)
	}
	text64, _ := json.Marshal(b) // bytes are base64 in JSON
	return strings.Trim(string(text64), `"`)
}

func member(n int, entered bool, cause string, ids ...string) activation.Member {
	m := activation.Member{Person: activation.Person{ID: partnertest.Profile(n)}, Entered: entered, Cause: cause}
	for i := 0; i < len(ids); i += 2 {
		m.Identifiers.IDs = append(m.Identifiers.IDs, activation.Identifier{Kind: ids[i], Value: ids[i+1]})
	}
	return m
}

const rawUID2 = "AdvIvSiaum0P5s3X/7X8h8sz+OhF2IG8DNbEnkWSbYM="

func TestEncode(t *testing.T) {
	t.Parallel()
	const config = `{"advertiser_id":"adv123","data_provider_id":"prov9"}`
	for name, test := range map[string]struct {
		config  string
		members []activation.Member
		want    string
		took    int
	}{
		"who enters and who leaves, each identifier an item": {
			members: []activation.Member{
				member(1, true, "event", "UID2", rawUID2, "DAID", "5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25"),
				member(2, false, "event", "TDID", "7a7b0000-1111-2222-3333-444455556666"),
			},
			took: 2,
			want: `{"data":{"AdvertiserId":"adv123","DataProviderId":"prov9","DataLoadTraceId":"mubatch-8812","Items":[` +
				`{"UID2":"` + rawUID2 + `","Data":[{"Name":"big-spenders","TtlInMinutes":43200}]},` +
				`{"DAID":"5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25","Data":[{"Name":"big-spenders","TtlInMinutes":43200}]},` +
				`{"TDID":"7a7b0000-1111-2222-3333-444455556666","Data":[{"Name":"big-spenders","TtlInMinutes":0}]}` +
				`]},"items":[2,1]}`,
		},
		"another scheme, prefix and time to live": {
			config:  `{"advertiser_id":"adv123","scheme":"euid","name_prefix":"shop_","ttl_minutes":10080}`,
			members: []activation.Member{member(1, true, "event", "EUID", rawUID2)},
			took:    1,
			want: `{"data":{"AdvertiserId":"adv123","DataLoadTraceId":"mubatch-8812","Items":[` +
				`{"EUID":"` + rawUID2 + `","Data":[{"Name":"shop_big-spenders","TtlInMinutes":10080}]}]},"items":[1]}`,
		},
		"who is to be forgotten has a message alone": {
			members: []activation.Member{
				member(1, false, activation.CauseErasure, "UID2", rawUID2, "TDID", "7a7b0000-1111-2222-3333-444455556666"),
				member(2, false, "event", "UID2", rawUID2),
			},
			took: 1,
			want: `{"data":{"AdvertiserId":"adv123","DataProviderId":"prov9","DataLoadTraceId":"mubatch-8812","Items":[` +
				`{"UID2":"` + rawUID2 + `","Data":[{"Name":"big-spenders","TtlInMinutes":0}]},` +
				`{"TDID":"7a7b0000-1111-2222-3333-444455556666","Data":[{"Name":"big-spenders","TtlInMinutes":0}]}` +
				`]},"items":[2],"deletion":{"AdvertiserId":"adv123","Items":[{"UID2":"` + rawUID2 + `"},` +
				`{"TDID":"7a7b0000-1111-2222-3333-444455556666"}],"RequestType":"Deletion"}}`,
		},
		"and is not joined by them": {
			members: []activation.Member{
				member(2, false, "consent", "UID2", rawUID2),
				member(1, false, activation.CauseErasure, "UID2", rawUID2),
			},
			took: 1,
			want: `{"data":{"AdvertiserId":"adv123","DataProviderId":"prov9","DataLoadTraceId":"mubatch-8812","Items":[` +
				`{"UID2":"` + rawUID2 + `","Data":[{"Name":"big-spenders","TtlInMinutes":0}]}]},"items":[1]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body, took, err := newPartner(t).Encode(target(cmp.Or(test.config, config)), activation.Batch{
				ID: 8812, Segment: partnertest.Segment(7), Members: test.members,
			})
			if err != nil || took != test.took {
				t.Fatalf("Encode took %d, %v, want %d", took, err, test.took)
			}
			if diff := gocmp.Diff(test.want, string(body)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// However many people with however many identifiers there are, a body has those of the first, in their order, is not too
// large, and is the same each time.
func TestEncodeKeepsItsLimits(t *testing.T) {
	t.Parallel()
	p, to := newPartner(t), target(`{"advertiser_id":"adv123","max_body_bytes":2000}`)
	type parsed struct {
		Data struct {
			Items []struct {
				UID2 string
				Data []struct{ TtlInMinutes int }
			}
		} `json:"data"`
		Items []int `json:"items"`
	}
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 0))
		b := activation.Batch{ID: 1, Segment: partnertest.Segment(7)}
		for n := range 1 + rng.IntN(30) {
			m := member(n, rng.IntN(2) == 0, []string{"event", activation.CauseErasure}[rng.IntN(2)])
			for i := range 1 + rng.IntN(4) {
				m.Identifiers.IDs = append(m.Identifiers.IDs, activation.Identifier{Kind: "UID2", Value: fmt.Sprintf("%d/%d", n, i)})
			}
			b.Members = append(b.Members, m)
		}
		body, took, err := p.Encode(to, b)
		if err != nil || took < 1 {
			t.Fatalf("seed %d: Encode = %d, %v", seed, took, err)
		}
		var m struct {
			Data jsontext.Value `json:"data"`
		}
		var is parsed
		if err := errors.Join(json.Unmarshal(body, &m), json.Unmarshal(body, &is)); err != nil {
			t.Fatal(err)
		}
		if len(m.Data) > 2000 && took > 1 {
			t.Errorf("seed %d: %d members make %d bytes", seed, took, len(m.Data))
		}
		if len(is.Items) != took {
			t.Fatalf("seed %d: items of %d members, took %d", seed, len(is.Items), took)
		}
		items := is.Data.Items
		for i, member := range b.Members[:took] {
			for j, id := range member.Identifiers.IDs {
				if items[j].UID2 != id.Value || (items[j].Data[0].TtlInMinutes > 0) != member.Entered {
					t.Errorf("seed %d: item %d of member %d is %+v", seed, j, i, items[j])
				}
			}
			if is.Items[i] != len(member.Identifiers.IDs) {
				t.Errorf("seed %d: member %d has %d items", seed, i, is.Items[i])
			}
			items = items[is.Items[i]:]
		}
		b.Members = b.Members[:took]
		if again, n, err := p.Encode(to, b); err != nil || n != took || string(again) != string(body) {
			t.Errorf("seed %d: the same members make another body", seed)
		}
	}
}

// sent encodes a batch and returns it as the machinery sends it.
func sent(t testing.TB, p *tradedesk.Partner, to activation.Target, members ...activation.Member) activation.Message {
	t.Helper()
	body, took, err := p.Encode(to, activation.Batch{ID: 1, Segment: partnertest.Segment(7), Members: members})
	if err != nil || took != len(members) {
		t.Fatalf("Encode took %d of %d, %v", took, len(members), err)
	}
	m := activation.Message{Key: "msg_1", Batch: 1, Segment: 7, Body: body, Attempt: 1}
	for _, member := range members {
		m.Members = append(m.Members, activation.MemberRef{Profile: member.Person.ID, Entered: member.Entered})
	}
	return m
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		status int
		code   string
		class  activation.Class
	}{
		{400, "UnknownRequest", activation.Drop},
		{400, "IncorrectContent", activation.Drop},
		{400, "MissingData", activation.Drop},
		{400, "SerializationFailed", activation.Drop},
		{400, "", activation.Split},
		{401, "AuthenticationFailed", activation.Reauth},
		{401, "InvalidToken", activation.Reauth},
		{403, "IncorrectPermissions", activation.Config},
		{403, "AdvertiserMisconfigured", activation.Config},
		{403, "TargetingDataLimitReached", activation.Config},
		{404, "EndpointNotConfigured", activation.Config},
		{413, "MaxRequestSizeExceeded", activation.Split},
		{429, "", activation.Retry},
		{500, "", activation.Retry},
		{503, "", activation.Retry},
	} {
		t.Run(fmt.Sprint(test.status, test.code), func(t *testing.T) {
			t.Parallel()
			fake := partnertest.NewTradeDesk(t, partnertest.TradeDeskOptions{Auth: "token"})
			p, to := newPartner(t), activation.Target{Settings: fake.Settings()}
			fake.Script(partnertest.Fault{Status: test.status, Body: fmt.Sprintf(`{"ErrorCode":%q,"Message":"of ann@example.com"}`, test.code)})
			o := p.Send(t.Context(), to, sent(t, p, to, member(1, true, "event", "UID2", rawUID2)))
			if o.Class != test.class || o.Status != test.status || o.Reason == "" || o.Unknown != (test.status >= 500) {
				t.Errorf("outcome %+v, want %s", o, test.class)
			}
			if strings.Contains(o.Reason+o.Excerpt, "ann@") {
				t.Errorf("there is personal data in %+v", o)
			}
		})
	}
	t.Run("how long to wait", func(t *testing.T) {
		t.Parallel()
		fake := partnertest.NewTradeDesk(t, partnertest.TradeDeskOptions{Auth: "token"})
		p, to := newPartner(t), activation.Target{Settings: fake.Settings()}
		fake.Script(partnertest.Fault{Status: 429, Wait: 3 * time.Second})
		o := p.Send(t.Context(), to, sent(t, p, to, member(1, true, "event", "UID2", rawUID2)))
		if o.Class != activation.RetryAfter || o.Wait != 3*time.Second {
			t.Errorf("outcome %+v, want to wait for 3 s", o)
		}
	})
	t.Run("an access token that was had for a login", func(t *testing.T) {
		t.Parallel()
		fake := partnertest.NewTradeDesk(t, partnertest.TradeDeskOptions{})
		p, to := newPartner(t), activation.Target{Settings: fake.Settings()}
		m := sent(t, p, to, member(1, true, "event", "UID2", rawUID2))
		if o := p.Send(t.Context(), to, m); o.Class != activation.Refresh || fake.Requests() != 0 {
			t.Errorf("without a token the outcome is %+v, after %d requests", o, fake.Requests())
		}
		fresh, expires, o := p.Refresh(t.Context(), to)
		if left := time.Until(expires); o.Class != activation.OK || left < 23*time.Hour || left > 24*time.Hour {
			t.Fatalf("Refresh = %v, %+v", expires, o)
		}
		if _, err := p.Prepare(fresh); err != nil { // as with an update of the config alone
			t.Errorf("Prepare of refreshed settings: %v", err)
		}
		to.Settings = fresh
		fake.Expire()
		if o := p.Send(t.Context(), to, m); o.Class != activation.Refresh {
			t.Errorf("with a token that has ended the outcome is %+v", o)
		}
		fake.Revoke()
		if _, _, o := p.Refresh(t.Context(), to); o.Class != activation.Reauth || o.Reason != "the login or the password was refused" {
			t.Errorf("Refresh = %+v", o)
		}
	})
}

func TestFailedLines(t *testing.T) {
	t.Parallel()
	two := []activation.Member{
		member(1, true, "event", "TDID", "t1", "UID2", "u1"), member(2, true, "event", "UID2", "u2"), member(3, false, "event", "UID2", "u3"),
	}
	ok := activation.RowOutcome{Class: activation.OK}
	drop := func(reason string) activation.RowOutcome {
		return activation.RowOutcome{Class: activation.Drop, Reason: reason}
	}
	const (
		optedOut = "The Trade Desk does not take the UID2: the person may have opted out"
		missing  = "The Trade Desk does not take the identifier"
	)
	for name, test := range map[string]struct {
		lines    string
		fromZero bool
		class    activation.Class
		rows     []activation.RowOutcome
	}{
		"none": {class: activation.OK},
		"by number": {
			lines: `{"ItemNumber":3,"ErrorCode":"Uid2Error"}`, class: activation.Partial,
			rows: []activation.RowOutcome{ok, drop(optedOut), ok},
		},
		"by number from 0": {
			lines: `{"ItemNumber":2,"ErrorCode":"Uid2Error"}`, fromZero: true, class: activation.Partial,
			rows: []activation.RowOutcome{ok, drop(optedOut), ok},
		},
		"by a number that shows that it is from 0": {
			lines: `{"ItemNumber":0,"ErrorCode":"MissingUserId"},{"ItemNumber":2,"ErrorCode":"Uid2Error"}`, class: activation.Partial,
			rows: []activation.RowOutcome{{Class: activation.OK, Reason: missing}, drop(optedOut), ok},
		},
		"by a number that shows that it is from 1": {
			lines: `{"ItemNumber":4,"ErrorCode":"MissingUserId"},{"ItemNumber":3,"ErrorCode":"Uid2Error"}`, fromZero: true,
			class: activation.Partial, rows: []activation.RowOutcome{ok, drop(optedOut), drop(missing)},
		},
		"by name, whatever the number": {
			lines: `{"ItemNumber":1,"DataNumber":1,"UID2":"u2","DataName":"x","ErrorCode":"Uid2Error"}`, class: activation.Partial,
			rows: []activation.RowOutcome{ok, drop(optedOut), ok},
		},
		"one identifier of two is enough": {
			lines: `{"ItemNumber":2,"ErrorCode":"MissingUserId"}`, class: activation.Partial,
			rows: []activation.RowOutcome{{Class: activation.OK, Reason: missing}, ok, ok},
		},
		"both are too many": {
			lines: `{"ItemNumber":2,"ErrorCode":"MissingUserId"},{"ItemNumber":1,"ErrorCode":"UserNotMapped"}`, class: activation.Partial,
			rows: []activation.RowOutcome{drop(missing), ok, ok},
		},
		"who is known to nobody need not be removed": {
			lines: `{"ItemNumber":4,"ErrorCode":"UserNotMapped"}`, class: activation.Partial,
			rows: []activation.RowOutcome{ok, ok, {Class: activation.OK, Reason: "The Trade Desk knows nobody by the identifier"}},
		},
		"nor who has opted out": {
			lines: `{"ItemNumber":4,"ErrorCode":"Uid2Error"}`, class: activation.Partial,
			rows: []activation.RowOutcome{ok, ok, {Class: activation.OK, Reason: optedOut}},
		},
		"a code that nobody has heard of": {
			lines: `{"ItemNumber":3,"ErrorCode":"Surprise"}`, class: activation.Partial,
			rows: []activation.RowOutcome{ok, drop("The Trade Desk refused the identifier: Surprise"), ok},
		},
		"a number that no item has":       {lines: `{"ItemNumber":9,"ErrorCode":"Uid2Error"}`, class: activation.Split},
		"the advertiser has too many":     {lines: `{"ItemNumber":3,"ErrorCode":"TargetingDataCountLimitExceeded"}`, class: activation.Config},
		"the advertiser may make no more": {lines: `{"ItemNumber":3,"ErrorCode":"TargetingDataCreationLimitExceeded"}`, class: activation.Config},
		"the segment is disabled":         {lines: `{"ItemNumber":3,"ErrorCode":"TargetingDataDisabled"}`, class: activation.Config},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := partnertest.NewTradeDesk(t, partnertest.TradeDeskOptions{Auth: "token", FromZero: test.fromZero})
			p, to := newPartner(t), activation.Target{Settings: fake.Settings()}
			fake.Script(partnertest.Fault{Status: 200, Body: `{"FailedLines":[` + test.lines + `]}`})
			o := p.Send(t.Context(), to, sent(t, p, to, two...))
			if o.Class != test.class {
				t.Errorf("outcome %+v, want %s", o, test.class)
			}
			if diff := gocmp.Diff(test.rows, o.Rows); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatIsKeptOfAnAnswerTellsNobody(t *testing.T) {
	t.Parallel()
	fake := partnertest.NewTradeDesk(t, partnertest.TradeDeskOptions{Auth: "token"})
	p, to := newPartner(t), activation.Target{Settings: fake.Settings()}
	const tdid = "7a7b0000-1111-2222-3333-444455556666"
	fake.Script(partnertest.Fault{Status: 200, Body: `{"FailedLines":[{"ItemNumber":1,"UID2":"` + rawUID2 + `","ErrorCode":"` + rawUID2 + `","Message":"` + tdid + `"}]}`})
	o := p.Send(t.Context(), to, sent(t, p, to, member(1, true, "event", "UID2", rawUID2)))
	if o.Class != activation.Partial || o.Rows[0].Class != activation.Drop {
		t.Fatalf("outcome %+v", o)
	}
	if kept := fmt.Sprint(o); strings.Contains(kept, rawUID2) || strings.Contains(kept, tdid) {
		t.Errorf("identifiers are in %s", kept)
	}
}

func TestMap(t *testing.T) {
	t.Parallel()
	stage := func(t *testing.T, o partnertest.TradeDeskOptions) (*tradedesk.Partner, *partnertest.TradeDesk, activation.Target) {
		fake := partnertest.NewTradeDesk(t, o)
		return newPartner(t), fake, activation.Target{Settings: fake.Settings()}
	}
	user := person("user@example.com", "+12345678901", "tdid", "7a7b0000-1111-2222-3333-444455556666")
	user.ID = partnertest.Profile(1)
	leaver := person("optout@example.com", "+16505551212", "tdid", "7a7b0000-1111-2222-3333-444455557777")
	leaver.ID = partnertest.Profile(2)
	identify := func(t *testing.T, p *tradedesk.Partner, to activation.Target, people ...activation.Person) (all []activation.Identifiers) {
		for _, one := range people {
			ids, err := p.Identify(to, one)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, ids)
		}
		return all
	}
	for _, millis := range []bool{false, true} {
		t.Run(fmt.Sprintf("who is mapped, and who has opted out, milliseconds %v", millis), func(t *testing.T) {
			t.Parallel()
			p, fake, to := stage(t, partnertest.TradeDeskOptions{Millis: millis})
			fake.Seed(user, leaver)
			fake.OptOut(person("optout@example.com", ""))
			nameless := activation.Identifiers{IDs: []activation.Identifier{{Kind: "DAID", Value: "d"}}}
			mapped, o := p.Map(t.Context(), to, append(identify(t, p, to, user, leaver, user), nameless))
			if o.Class != activation.OK || len(mapped) != 4 {
				t.Fatalf("Map = %+v, %+v", mapped, o)
			}
			kinds := func(ids activation.Identifiers) (kinds []string) {
				for _, id := range ids.IDs {
					kinds = append(kinds, id.Kind)
				}
				return kinds
			}
			if got := kinds(mapped[0].Identifiers); !slices.Equal(got, []string{"UID2", "UID2", "TDID"}) {
				t.Errorf("a person is known by %v", got)
			}
			if left := time.Until(mapped[0].Until); left < 19*24*time.Hour || left > 20*24*time.Hour+time.Minute {
				t.Errorf("it holds for %v, want 20 days", left)
			}
			if len(mapped[1].IDs) > 0 || mapped[1].Reason != "the person has opted out of UID2" || mapped[1].Until.IsZero() {
				t.Errorf("who has opted out is %+v", mapped[1])
			}
			if !gocmp.Equal(mapped[0].IDs, mapped[2].IDs) || !gocmp.Equal(mapped[3].IDs, nameless.IDs) || mapped[3].Until.IsZero() {
				t.Errorf("Map = %+v", mapped)
			}
			if times, different := fake.Asked(); times != 4 || different != 4 {
				t.Errorf("%d hashes were asked for %d times", different, times)
			}
			for _, v := range fake.Violations() {
				t.Error(v)
			}
		})
	}
	t.Run("what the operator cannot use", func(t *testing.T) {
		t.Parallel()
		p, _, to := stage(t, partnertest.TradeDeskOptions{})
		mapped, o := p.Map(t.Context(), to, []activation.Identifiers{{IDs: []activation.Identifier{{Kind: "email_hash", Value: "no hash"}}}})
		if o.Class != activation.OK || len(mapped[0].IDs) > 0 || mapped[0].Reason != "UID2 has no identifier for the person" {
			t.Errorf("Map = %+v, %+v", mapped, o)
		}
	})
	t.Run("more than fit into one request", func(t *testing.T) {
		t.Parallel()
		p, fake, to := stage(t, partnertest.TradeDeskOptions{})
		ids := make([]activation.Identifiers, 5001)
		for i := range ids {
			ids[i].IDs = []activation.Identifier{{Kind: "phone_hash", Value: base64OfHash(fmt.Sprint(i))}}
		}
		mapped, o := p.Map(t.Context(), to, ids)
		if o.Class != activation.OK || len(mapped) != len(ids) || fake.Requests() != 2 || mapped[5000].Get("UID2") == "" {
			t.Errorf("%d were mapped with %d requests: %+v", len(mapped), fake.Requests(), o)
		}
	})
	t.Run("nobody who is to be mapped", func(t *testing.T) {
		t.Parallel()
		p, fake, to := stage(t, partnertest.TradeDeskOptions{})
		mapped, o := p.Map(t.Context(), to, []activation.Identifiers{{IDs: []activation.Identifier{{Kind: "TDID", Value: "t"}}}})
		if o.Class != activation.OK || fake.Requests() > 0 || mapped[0].Get("TDID") != "t" {
			t.Errorf("Map = %+v, %+v after %d requests", mapped, o, fake.Requests())
		}
	})

	all := func(*http.Request) bool { return true }
	for name, test := range map[string]struct {
		spoil  func(*partnertest.TradeDesk)
		change []string // in the settings
		class  activation.Class
		reason string
	}{
		"an answer to another request": {
			spoil: func(f *partnertest.TradeDesk) { f.Forge(1) },
			class: activation.Retry, reason: "the UID2 operator's answer is none to the request",
		},
		"an answer that is not encrypted": {
			spoil: func(f *partnertest.TradeDesk) {
				f.Script(partnertest.Fault{Match: all, Body: `{"status":"success","body":{}}`})
			},
			class: activation.Retry, reason: "the UID2 operator's answer is none to the request",
		},
		"another key's secret": {
			change: []string{"wJ0hP19QU4hmpB64Y3fV2dAed8t/mupw3sjN5jNRFzg=", "AAAAP19QU4hmpB64Y3fV2dAed8t/mupw3sjN5jNRFzg="},
			class:  activation.Config, reason: "the UID2 operator could not read the request: the client secret may be another key's",
		},
		"an unknown key": {
			change: []string{"UID2-C-L-999", "UID2-C-L-111"}, class: activation.Reauth, reason: "the UID2 API key was refused",
		},
		"a clock that is off": {
			spoil: func(f *partnertest.TradeDesk) { f.Script(partnertest.Fault{Match: all, Skew: 10 * time.Minute}) },
			class: activation.Retry, reason: "the UID2 operator's clock differs from ours by more than a minute",
		},
		"too many requests": {
			spoil: func(f *partnertest.TradeDesk) { f.Script(partnertest.Fault{Match: all, Status: 429}) },
			class: activation.Retry, reason: "the UID2 operator: the partner answered 429",
		},
		"an outage": {
			spoil: func(f *partnertest.TradeDesk) { f.Script(partnertest.Fault{Match: all, Status: 500}) },
			class: activation.Retry, reason: "the UID2 operator: the partner answered 500",
		},
		"another place": {
			spoil: func(f *partnertest.TradeDesk) { f.Script(partnertest.Fault{Match: all, Status: 404}) },
			class: activation.Config, reason: "the UID2 operator refused: what the destination names is not there",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, fake, to := stage(t, partnertest.TradeDeskOptions{})
			fake.Seed(user)
			if test.spoil != nil {
				test.spoil(fake)
			}
			if test.change != nil {
				to.Secrets = jsontext.Value(strings.ReplaceAll(string(to.Secrets), test.change[0], test.change[1]))
			}
			mapped, o := p.Map(t.Context(), to, identify(t, p, to, user))
			if o.Class != test.class || o.Reason != test.reason || o.Unknown || mapped != nil {
				t.Errorf("Map = %+v, %+v, want %s, %q", mapped, o, test.class, test.reason)
			}
		})
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	p := newPartner(t)
	const config = `{"advertiser_id":"adv123"}`
	for name, s := range map[string]activation.Settings{
		"a token":              {Config: jsontext.Value(config), Secrets: jsontext.Value(withToken)},
		"a login":              {Config: jsontext.Value(config), Secrets: jsontext.Value(`{"login":"l","password":"p",` + operatorSecrets + `}`)},
		"a secret":             {Config: jsontext.Value(config), Secrets: jsontext.Value(`{"advertiser_secret":"s",` + operatorSecrets + `}`)},
		"two secrets":          {Config: jsontext.Value(config), Secrets: jsontext.Value(`{"advertiser_secret":"s","data_provider_secret":"d",` + operatorSecrets + `}`)},
		"everything in config": {Config: jsontext.Value(`{"advertiser_id":"a","data_provider_id":"d","region":"euw","scheme":"euid","name_prefix":"x","ttl_minutes":259200,"default_country":"DE","batch":5000,"concurrency":4,"max_body_bytes":2500000,"items_from_zero":true,"api_url":"https://example.com","deletion_url":"https://example.com","platform_url":"https://example.com","operator_url":"https://example.com"}`), Secrets: jsontext.Value(withToken)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := p.Prepare(s); err != nil {
				t.Error(err)
			}
		})
	}
	for name, test := range map[string]struct {
		config, secrets string
		want            []string
	}{
		"nothing":                {want: []string{"/config/advertiser_id", "/secrets", "/secrets/uid2_api_key", "/secrets/uid2_client_secret"}},
		"an unknown field":       {config: `{"advertiser_id":"a","nope":1}`, want: []string{"/config/nope"}},
		"a wrong type":           {config: `{"advertiser_id":7}`, want: []string{"/config/advertiser_id"}},
		"an unknown region":      {config: `{"advertiser_id":"a","region":"mars"}`, want: []string{"/config/region"}},
		"an unknown scheme":      {config: `{"advertiser_id":"a","scheme":"uid3"}`, want: []string{"/config/scheme"}},
		"too long a life":        {config: `{"advertiser_id":"a","ttl_minutes":259201}`, want: []string{"/config/ttl_minutes"}},
		"too short a life":       {config: `{"advertiser_id":"a","ttl_minutes":59}`, want: []string{"/config/ttl_minutes"}},
		"no country":             {config: `{"advertiser_id":"a","default_country":"Germany"}`, want: []string{"/config/default_country"}},
		"too many at once":       {config: `{"advertiser_id":"a","concurrency":5}`, want: []string{"/config/concurrency"}},
		"too large":              {config: `{"advertiser_id":"a","max_body_bytes":10000001,"batch":5001}`, want: []string{"/config/batch", "/config/max_body_bytes"}},
		"too long a prefix":      {config: `{"advertiser_id":"a","name_prefix":"` + strings.Repeat("x", 65) + `"}`, want: []string{"/config/name_prefix"}},
		"places that are none":   {config: `{"advertiser_id":"a","api_url":"x","deletion_url":"x","platform_url":"x","operator_url":"x"}`, want: []string{"/config/api_url", "/config/deletion_url", "/config/operator_url", "/config/platform_url"}},
		"two ways to be let in":  {secrets: `{"token":"t","advertiser_secret":"s",` + operatorSecrets + `}`, want: []string{"/secrets"}},
		"no way to be let in":    {secrets: `{` + operatorSecrets + `}`, want: []string{"/secrets"}},
		"no password":            {secrets: `{"login":"l",` + operatorSecrets + `}`, want: []string{"/secrets/password"}},
		"no login":               {secrets: `{"password":"p",` + operatorSecrets + `}`, want: []string{"/secrets/login"}},
		"a secret that is alone": {secrets: `{"token":"t","data_provider_secret":"s",` + operatorSecrets + `}`, want: []string{"/secrets/data_provider_secret"}},
		"a secret that is short": {secrets: `{"token":"t","uid2_api_key":"k","uid2_client_secret":"c2hvcnQ="}`, want: []string{"/secrets/uid2_client_secret"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := activation.Settings{Config: jsontext.Value(test.config), Secrets: jsontext.Value(test.secrets)}
			if name != "nothing" {
				s.Config = jsontext.Value(cmp.Or(test.config, config))
				s.Secrets = jsontext.Value(cmp.Or(test.secrets, withToken))
			} else {
				s = activation.Settings{Config: jsontext.Value(`{}`), Secrets: jsontext.Value(`{}`)}
			}
			_, err := p.Prepare(s)
			if diff := gocmp.Diff(test.want, pointers(err)); diff != "" {
				t.Errorf("what is wrong (-want +got):\n%s", diff)
			}
		})
	}
}

func pointers(err error) (list []string) {
	var field *activation.FieldError
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range many.Unwrap() {
			list = append(list, pointers(one)...)
		}
	} else if errors.As(err, &field) {
		list = append(list, field.Pointer)
	}
	slices.Sort(list)
	return list
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	p := newPartner(t)
	l := p.Limits(target(`{"advertiser_id":"adv123"}`))
	want := activation.Limits{
		Members: 1000, Mixed: true, Concurrency: 4, Timeout: 20 * time.Second, Linger: activation.DefaultLinger,
		Account: "https://use-data.adsrvr.org adv123", TTL: 30 * 24 * time.Hour,
	}
	if diff := gocmp.Diff(want, l); diff != "" {
		t.Errorf("Limits (-want +got):\n%s", diff)
	}
	for config, url := range map[string]string{
		`{"advertiser_id":"adv123","region":"tok"}`:                            "https://tok-data.adsrvr.org/data/advertiser",
		`{"advertiser_id":"adv123","region":"cn2"}`:                            "https://data-cn2.adsrvr.cn/data/advertiser",
		`{"advertiser_id":"adv123","region":"sin","api_url":"https://a.com/"}`: "https://a.com/data/advertiser",
	} {
		to := target(config)
		drafts, err := p.Draft(to, sent(t, p, to, member(1, true, "event", "UID2", rawUID2)))
		if err != nil || len(drafts) != 1 || drafts[0].URL != url || drafts[0].Header.Get("TTD-Auth") != "made-in-the-ui-4242" {
			t.Errorf("Draft for %s = %+v, %v", config, drafts, err)
		}
	}
	if p.Type() != "tradedesk" || !gocmp.Equal(p.Gate(), activation.AdGate()) {
		t.Errorf("type %s, gate %v", p.Type(), p.Gate())
	}
}

func TestMaskShowsNoSecret(t *testing.T) {
	t.Parallel()
	p := newPartner(t)
	secrets := jsontext.Value(`{"login":"somebody-long","password":"pass","access_token":"a-very-long-token",` + operatorSecrets + `}`)
	want := map[string]string{"login": "…long", "password": "…", "uid2_api_key": "…", "uid2_client_secret": "…Fzg="}
	if diff := gocmp.Diff(want, p.Mask(secrets)); diff != "" {
		t.Errorf("Mask (-want +got):\n%s", diff)
	}
	if shown := p.Mask(jsontext.Value(`{"nope":1}`)); len(shown) > 0 {
		t.Errorf("Mask of what cannot be read is %v", shown)
	}
}

func TestTest(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		auth     string
		old, new string // in the settings
		script   partnertest.Fault
		class    activation.Class
		reason   string
	}{
		"all is well":            {auth: "token", class: activation.OK},
		"all is well, signed":    {auth: "signature", class: activation.OK},
		"no token yet":           {auth: "login", class: activation.Refresh, reason: "there is no access token yet"},
		"a wrong token":          {auth: "token", old: "ttd-token-0000", new: "ttd-token-1111", class: activation.Reauth, reason: "the token was refused: it has ended or was revoked"},
		"a wrong secret":         {auth: "signature", old: "advertiser-secret", new: "adviser-secret", class: activation.Reauth, reason: "the signature was refused: the advertiser id or its secret is wrong"},
		"another's advertiser":   {auth: "token", old: "adv123", new: "adv124", class: activation.Config, reason: "the credential may not send data of this advertiser"},
		"no first-party data":    {auth: "token", script: partnertest.Fault{Status: 403, Body: `{"ErrorCode":"AdvertiserMisconfigured"}`}, class: activation.Config, reason: "the advertiser is not set up for first-party data"},
		"a wrong region":         {auth: "token", script: partnertest.Fault{Status: 404, Body: `{"ErrorCode":"EndpointNotConfigured"}`}, class: activation.Config, reason: "this region or advertiser has no first-party data API"},
		"an unknown UID2 key":    {auth: "token", old: "UID2-C-L-999", new: "UID2-C-L-111", class: activation.Reauth, reason: "the UID2 API key was refused"},
		"another UID2 secret":    {auth: "token", old: "wJ0hP19Q", new: "wJ0hP19R", class: activation.Config, reason: "the UID2 operator could not read the request: the client secret may be another key's"},
		"a request nobody knows": {auth: "token", script: partnertest.Fault{Status: 400, Body: `{"ErrorCode":"UnknownRequest"}`}, class: activation.Drop, reason: "The Trade Desk does not know the request"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := partnertest.NewTradeDesk(t, partnertest.TradeDeskOptions{Auth: test.auth})
			s := fake.Settings()
			if test.old != "" {
				s.Config = jsontext.Value(strings.ReplaceAll(string(s.Config), test.old, test.new))
				s.Secrets = jsontext.Value(strings.ReplaceAll(string(s.Secrets), test.old, test.new))
			}
			if test.script.Status != 0 {
				fake.Script(test.script)
			}
			o := newPartner(t).Test(t.Context(), activation.Target{Settings: s})
			if o.Class != test.class || o.Reason != test.reason {
				t.Errorf("Test = %+v, want %s, %q", o, test.class, test.reason)
			}
			if there := fake.Members(partnertest.Audience{Segment: 7}); len(there) > 0 {
				t.Errorf("somebody was added")
			}
		})
	}
}

package partnertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// ask sends a request to a fake and returns what it answers.
func ask(t *testing.T, f *TradeDesk, method, path string, header map[string]string, body string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, f.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for name, value := range header {
		req.Header.Set(name, value)
	}
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

// finds fails the test unless a fake has found just what it should: nothing, or one thing.
func finds(t *testing.T, f *TradeDesk, want string) {
	t.Helper()
	list := f.Violations()
	if want == "" && len(list) > 0 || want != "" && (len(list) == 0 || !strings.Contains(list[0], want)) {
		t.Errorf("violations %q, want %q", list, want)
	}
}

// A fake that finds nothing wrong proves nothing.
func TestTradeDeskFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	const (
		good   = `{"AdvertiserId":"adv123","DataProviderId":"prov9","Items":[%s]}`
		data   = `"Data":[{"Name":"n","TtlInMinutes":60}]`
		device = `"DAID":"5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25"`
	)
	items := func(s string) string { return fmt.Sprintf(good, s) }
	one := items(`{` + device + `,` + data + `}`)
	ttl := func(s string) string { return items(`{` + device + `,"Data":[{"Name":"n","TtlInMinutes":` + s + `}]}`) }
	named := func(s string) string {
		return items(`{` + device + `,"Data":[{"Name":"` + s + `","TtlInMinutes":60}]}`)
	}
	uid := func(s string) string { return items(`{"UID2":"` + s + `",` + data + `}`) }
	for name, test := range map[string]struct {
		method, path string
		header       map[string]string // more or other than a good token
		body         string
		status       int
		answer       string
		violation    string
	}{
		"all is well":              {body: one, status: 200, answer: `{}`},
		"no items":                 {body: items(""), status: 400, answer: "MissingData"},
		"no token":                 {header: map[string]string{"TTD-Auth": ""}, body: one, status: 401, answer: "InvalidToken", violation: "neither a token nor a signature"},
		"a wrong token":            {header: map[string]string{"TTD-Auth": "x"}, body: one, status: 401, answer: "InvalidToken"},
		"a wrong signature":        {header: map[string]string{"TTD-Auth": "", "TtdSignature": "x"}, body: one, status: 401, answer: "AuthenticationFailed", violation: "is not that of the body"},
		"a token and a signature":  {header: map[string]string{"TtdSignature": "x"}, body: one, status: 401, answer: "InvalidToken", violation: "or both"},
		"TTLInMinutes":             {body: items(`{` + device + `,"Data":[{"Name":"n","TTLInMinutes":60}]}`), status: 400, answer: "SerializationFailed", violation: "cannot be read"},
		"ttlInMinutes":             {body: items(`{` + device + `,"Data":[{"Name":"n","ttlInMinutes":60}]}`), status: 400, answer: "SerializationFailed", violation: "cannot be read"},
		"a member twice":           {body: items(`{` + device + `,` + device + `,` + data + `}`), status: 400, answer: "SerializationFailed", violation: "cannot be read"},
		"no identifier":            {body: items(`{` + data + `}`), status: 200, answer: "MissingUserId", violation: "has 0 identifiers"},
		"two identifiers":          {body: items(`{` + device + `,"TDID":"7a7b0000-1111-2222-3333-444455556666",` + data + `}`), status: 200, answer: "MissingUserId", violation: "has 2 identifiers"},
		"a short UID2":             {body: uid("c2hvcnQ="), status: 200, answer: "MissingUserId", violation: "not the base64 of 32 bytes"},
		"a UID2 that is no base64": {body: uid("AdvIvSiaum0P5s3X_7X8h8sz-OhF2IG8DNbEnkWSbYM="), status: 200, answer: "MissingUserId", violation: "not the base64 of 32 bytes"},
		"an address":               {body: uid("person.1@example.com"), status: 200, answer: "MissingUserId", violation: "e-mail address"},
		"a hash":                   {body: uid(Hex("person.1@example.com")), status: 200, answer: "MissingUserId", violation: "an address or a hash"},
		"a hash in base64":         {body: uid(base64Hash("person.1@example.com")), status: 200, violation: "is a hash, not a raw UID2"},
		"somebody unknown":         {body: uid(base64Hash("x")), status: 200, violation: "is not right for anybody"},
		"an EUID":                  {body: items(`{"EUID":"` + base64Hash("x") + `",` + data + `}`), status: 200, answer: "MissingUserId", violation: "a kind that nobody has"},
		"a negative TTL":           {body: ttl("-1"), status: 200, answer: "InvalidTtlInMinutes", violation: "TtlInMinutes is -1"},
		"too long a TTL":           {body: ttl("259201"), status: 200, answer: "InvalidTtlInMinutes", violation: "TtlInMinutes is 259201"},
		"the longest TTL":          {body: ttl("259200"), status: 200, answer: `{}`},
		"half a minute":            {body: ttl("0.5"), status: 200, answer: "InvalidTtlInMinutes", violation: "TtlInMinutes is 0.5"},
		"a TTL as text":            {body: ttl(`"60"`), status: 200, answer: "InvalidTtlInMinutes", violation: "TtlInMinutes is"},
		"too long a name":          {body: named(strings.Repeat("n", 129)), status: 200, answer: "DataNameTooLong", violation: "129 bytes"},
		"a name that is just":      {body: named(strings.Repeat("n", 128)), status: 200, answer: `{}`},
		"no name":                  {body: named(""), status: 200, answer: "DataNameTooLong", violation: "0 bytes"},
		"two segments":             {body: items(`{` + device + `,"Data":[{"Name":"n","TtlInMinutes":60},{"Name":"m","TtlInMinutes":60}]}`), status: 200, answer: "ItemDeserializationError", violation: "about 2 segments"},
		"too large a body":         {body: one + strings.Repeat(" ", 64<<10), status: 413, answer: "MaxRequestSizeExceeded"},
		"another advertiser":       {body: strings.Replace(one, "adv123", "adv124", 1), status: 403, answer: "IncorrectPermissions"},
		"another provider":         {body: strings.Replace(one, "prov9", "prov8", 1), status: 403, answer: "IncorrectPermissions"},
		"another method":           {method: "PUT", body: one, status: 404, violation: "is not known"},
		"another path":             {path: "/data/advertisers", body: one, status: 404, answer: "EndpointNotConfigured", violation: "is not known"},
		"a query":                  {path: "/data/advertiser?x=1", body: one, status: 404, violation: "is not known"},
		"another content type":     {header: map[string]string{"Content-Type": "text/plain"}, body: one, status: 200, violation: "Content-Type"},
		"no JSON":                  {body: "x", status: 400, answer: "SerializationFailed", violation: "cannot be read"},

		"a deletion":                     {path: "/data/deletion-optout/advertiser", body: `{"AdvertiserId":"adv123","Items":[{` + device + `}],"RequestType":"Deletion"}`, status: 200, answer: `{}`},
		"a deletion of another kind":     {path: "/data/deletion-optout/advertiser", body: `{"AdvertiserId":"adv123","Items":[{` + device + `}],"RequestType":"Delete"}`, status: 400, answer: "IncorrectContent", violation: `"Delete"`},
		"a deletion of nobody":           {path: "/data/deletion-optout/advertiser", body: `{"AdvertiserId":"adv123","Items":[],"RequestType":"Deletion"}`, status: 400, answer: "IncorrectContent", violation: "0 items"},
		"a deletion of somebody unknown": {path: "/data/deletion-optout/advertiser", body: `{"AdvertiserId":"adv123","Items":[{"TDID":"x"}],"RequestType":"Deletion"}`, status: 200, violation: "not right for anybody"},
		"a deletion of more than one":    {path: "/data/deletion-optout/advertiser", body: `{"AdvertiserId":"adv123","Items":[{` + device + `,"TDID":"x"}],"RequestType":"Deletion"}`, status: 200, violation: "has 2 identifiers"},
		"a deletion with data":           {path: "/data/deletion-optout/advertiser", body: `{"AdvertiserId":"adv123","Items":[{` + device + `,` + data + `}],"RequestType":"Deletion"}`, status: 400, answer: "SerializationFailed", violation: "cannot be read"},
		"a deletion for another":         {path: "/data/deletion-optout/advertiser", body: `{"AdvertiserId":"adv124","Items":[{` + device + `}],"RequestType":"Deletion"}`, status: 403, answer: "IncorrectPermissions"},

		"a login":                 {path: "/v3/authentication", body: `{"Login":"api-user-0001","Password":"correct horse battery","TokenExpirationInMinutes":1440}`, status: 200, answer: "access-token-1"},
		"a wrong password":        {path: "/v3/authentication", body: `{"Login":"api-user-0001","Password":"x","TokenExpirationInMinutes":1440}`, status: 401, answer: "AuthenticationFailed"},
		"a token for two days":    {path: "/v3/authentication", body: `{"Login":"api-user-0001","Password":"correct horse battery","TokenExpirationInMinutes":2880}`, status: 400, answer: "IncorrectContent", violation: "2880 minutes"},
		"a login with other data": {path: "/v3/authentication", body: `{"Login":"api-user-0001","Pass":"x"}`, status: 400, answer: "SerializationFailed", violation: "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			auth := "token"
			if test.path == "/v3/authentication" {
				auth = "login"
			}
			f := NewTradeDesk(t, TradeDeskOptions{Auth: auth})
			p := Somebody(1)
			p.Traits["gaid"] = []byte(`"5F3A2B18-9c4d-4e7f-b8e2-17d3a1e69b25"`)
			f.Seed(p)
			header := map[string]string{"TTD-Auth": tradeDeskToken}
			for k, v := range test.header {
				header[k] = v
			}
			method, path := "POST", "/data/advertiser"
			if test.method != "" {
				method = test.method
			}
			if test.path != "" {
				path = test.path
			}
			status, answer := ask(t, f, method, path, header, test.body)
			if status != test.status || !strings.Contains(answer, test.answer) {
				t.Errorf("the answer is %d %s, want %d %s", status, answer, test.status, test.answer)
			}
			finds(t, f, test.violation)
		})
	}
}

const (
	// seeded is a device of the person that seededTradeDesk knows, and about a good message that adds it.
	seeded = "5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25"
	about  = `{"AdvertiserId":"adv123","DataProviderId":"prov9","Items":[{"DAID":"` + seeded + `","Data":[{"Name":"shop-big-spenders","TtlInMinutes":60}]}]}`
)

func seededTradeDesk(t *testing.T, o TradeDeskOptions) *TradeDesk {
	f := NewTradeDesk(t, o)
	p := Somebody(1)
	p.Traits["gaid"] = []byte(`"` + seeded + `"`)
	f.Seed(p)
	return f
}

func TestTradeDeskKeepsTime(t *testing.T) {
	t.Parallel()
	auth := map[string]string{"TTD-Auth": tradeDeskToken}
	t.Run("who is not sent again is forgotten", func(t *testing.T) {
		t.Parallel()
		f := seededTradeDesk(t, TradeDeskOptions{Auth: "token"})
		ask(t, f, "POST", "/data/advertiser", auth, about)
		f.Advance(59 * time.Minute)
		if n := len(f.Members(Audience{})); n != 1 {
			t.Errorf("there are %d members, want 1", n)
		}
		finds(t, f, "")
		f.Advance(2 * time.Minute)
		if n := len(f.Members(Audience{})); n != 0 {
			t.Errorf("there are %d members, want none", n)
		}
		finds(t, f, "was forgotten")
	})
	t.Run("who comes too early is found out", func(t *testing.T) {
		t.Parallel()
		f := seededTradeDesk(t, TradeDeskOptions{Auth: "token"})
		f.Script(Fault{Status: 429, Wait: time.Hour})
		if status, _ := ask(t, f, "POST", "/data/advertiser", auth, about); status != 429 {
			t.Errorf("the answer is %d", status)
		}
		time.Sleep(underway + 50*time.Millisecond)
		ask(t, f, "POST", "/data/advertiser", auth, about)
		finds(t, f, "before it was allowed to")
	})
	t.Run("a token ends", func(t *testing.T) {
		t.Parallel()
		f := seededTradeDesk(t, TradeDeskOptions{})
		ask(t, f, "POST", "/v3/authentication", nil, `{"Login":"api-user-0001","Password":"correct horse battery","TokenExpirationInMinutes":30}`)
		login := map[string]string{"TTD-Auth": "access-token-1"}
		if status, _ := ask(t, f, "POST", "/data/advertiser", login, about); status != 200 {
			t.Errorf("with a good token the answer is %d", status)
		}
		f.Advance(30 * time.Minute)
		for range 9 {
			if status, _ := ask(t, f, "POST", "/data/advertiser", login, about); status != 401 {
				t.Errorf("with a token that has ended the answer is %d", status)
			}
		}
		finds(t, f, "goes on being used")
	})
}

func TestTradeDeskFindsWhatIsRepeated(t *testing.T) {
	t.Parallel()
	f := seededTradeDesk(t, TradeDeskOptions{Auth: "token"})
	f.Refuse(Profile(1), true)
	for range 4 {
		finds(t, f, "")
		_, answer := ask(t, f, "POST", "/data/advertiser", map[string]string{"TTD-Auth": tradeDeskToken}, about)
		if !strings.Contains(answer, `"ItemNumber":1`) || !strings.Contains(answer, "Uid2Error") {
			t.Errorf("the answer is %s", answer)
		}
	}
	finds(t, f, "again and again")
}

func TestTradeDeskFindsTooManyAtOnce(t *testing.T) {
	t.Parallel()
	f := seededTradeDesk(t, TradeDeskOptions{Auth: "token", Parallel: 2})
	f.mu.Lock() // until both are there
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), "POST", f.URL+"/data/advertiser", strings.NewReader(about))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("TTD-Auth", tradeDeskToken)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
		})
	}
	Eventually(t, "two requests are there", func() bool { return f.open.Load() == 2 })
	f.mu.Unlock()
	both.Wait()
	finds(t, f, "2 requests came at once")
}

// envelope is a request to the operator, as it should be.
type envelope struct {
	version byte
	at      time.Time
	nonce   string
	text    string
}

func (e envelope) seal() string {
	gcm := uid2Cipher()
	plain := binary.BigEndian.AppendUint64(nil, uint64(e.at.UnixMilli()))
	plain = append(append(plain, e.nonce...), e.text...)
	iv := make([]byte, gcm.NonceSize())
	rand.Read(iv)
	return base64.StdEncoding.EncodeToString(gcm.Seal(append([]byte{e.version}, iv...), iv, plain, nil))
}

func TestTradeDeskOperatorFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	emails := func(hashes ...string) string { return `{"email_hash":["` + strings.Join(hashes, `","`) + `"]}` }
	good := func() envelope {
		return envelope{version: 1, at: time.Now(), nonce: "12345678", text: emails(base64Hash("person.1@example.com"))}
	}
	with := func(change func(*envelope)) string {
		e := good()
		change(&e)
		return e.seal()
	}
	text := func(s string) string { return with(func(e *envelope) { e.text = s }) }
	tampered, err := base64.StdEncoding.DecodeString(good().seal())
	if err != nil {
		t.Fatal(err)
	}
	tampered[len(tampered)-1] ^= 1
	for name, test := range map[string]struct {
		key, body string
		status    int
		answer    string // of an error, or of what is mapped
		violation string
	}{
		"all is well":             {body: good().seal(), status: 200, answer: `"p":null,"r":`},
		"the example":             {body: text(emails(base64Hash("user@example.com"))), status: 200, answer: `"u":`},
		"another key":             {key: "x", body: good().seal(), status: 401, answer: "unauthorized"},
		"another version":         {body: with(func(e *envelope) { e.version = 2 }), status: 400, answer: "client_error", violation: "version"},
		"a wrong tag":             {body: base64.StdEncoding.EncodeToString(tampered), status: 400, answer: "client_error", violation: "cannot be decrypted"},
		"no base64":               {body: "!", status: 400, answer: "client_error", violation: "no envelope"},
		"an old request":          {body: with(func(e *envelope) { e.at = e.at.Add(-62 * time.Second) }), status: 400, answer: "client_error", violation: "too old"},
		"an address":              {body: text(`{"email":["a"]}`), status: 400, answer: "client_error", violation: "other than hashes"},
		"another member":          {body: text(`{"emails":["a"]}`), status: 400, answer: "client_error", violation: "other than hashes"},
		"nothing":                 {body: text(`{}`), status: 400, answer: "client_error", violation: "0 hashes"},
		"a hash in digits":        {body: text(emails(Hex("person.1@example.com"))), status: 200, answer: "invalid identifier", violation: "is in hexadecimal digits"},
		"a hash of a hash":        {body: text(emails(base64Hash(Hex("person.1@example.com")))), status: 200, answer: `"u":`, violation: "is hashed twice"},
		"a number without plus":   {body: text(`{"phone_hash":["` + base64Hash("16505550001") + `"]}`), status: 200, answer: `"u":`, violation: "a number without +"},
		"no normal form":          {body: text(emails("VpLXEp5N1bj/V1WzjgZsC+FfuYdntAOywSVIO00FD/E=")), status: 200, answer: `"u":`, violation: "was not normalised"},
		"somebody unknown":        {body: text(emails(base64Hash("x"))), status: 200, answer: `"u":`, violation: "not right for anybody"},
		"who has opted out":       {body: text(emails(base64Hash("optout@example.com"))), status: 200, answer: `{"e":"optout"}`},
		"an e-mail hash as phone": {body: text(`{"phone_hash":["` + base64Hash("person.1@example.com") + `"]}`), status: 200, violation: "not right for anybody"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := NewTradeDesk(t, TradeDeskOptions{})
			jane, leaver := Somebody(2), Somebody(3)
			jane.Traits["email"] = []byte(`"JANESaoirse@gmail.com"`)
			leaver.Traits["email"] = []byte(`"optout@example.com"`)
			f.Seed(Somebody(1), jane, leaver)
			f.OptOut(leaver)
			key := uid2Key
			if test.key != "" {
				key = test.key
			}
			status, answer := ask(t, f, "POST", "/v3/identity/map", map[string]string{"Authorization": "Bearer " + key}, test.body)
			if status == 200 {
				sealed, err := base64.StdEncoding.DecodeString(answer)
				if err != nil {
					t.Fatal(err)
				}
				plain, err := uid2Cipher().Open(nil, sealed[:12], sealed[12:], nil)
				if err != nil || !bytes.Equal(plain[8:16], []byte("12345678")) {
					t.Fatalf("the answer is %q, %v", plain, err)
				}
				answer = string(plain[16:])
			}
			if status != test.status || !strings.Contains(answer, test.answer) {
				t.Errorf("the answer is %d %s, want %d %s", status, answer, test.status, test.answer)
			}
			finds(t, f, test.violation)
		})
	}
	auth := map[string]string{"Authorization": "Bearer " + uid2Key}
	t.Run("a nonce that was used", func(t *testing.T) {
		t.Parallel()
		f := NewTradeDesk(t, TradeDeskOptions{})
		f.Seed(Somebody(1))
		ask(t, f, "POST", "/v3/identity/map", auth, good().seal())
		finds(t, f, "")
		if status, _ := ask(t, f, "POST", "/v3/identity/map", auth, good().seal()); status != 400 {
			t.Errorf("the answer is %d", status)
		}
		finds(t, f, "the nonce was used before")
	})
	t.Run("asking for what is known", func(t *testing.T) {
		t.Parallel()
		f := NewTradeDesk(t, TradeDeskOptions{})
		f.Seed(Somebody(1))
		for n := range 6 {
			finds(t, f, "")
			ask(t, f, "POST", "/v3/identity/map", auth, with(func(e *envelope) { e.nonce = fmt.Sprintf("nonce %02d", n) }))
		}
		finds(t, f, "again and again")
	})
	t.Run("sending who has opted out", func(t *testing.T) {
		t.Parallel()
		f := seededTradeDesk(t, TradeDeskOptions{Auth: "token"})
		f.OptOut(Somebody(1))
		send := func() { ask(t, f, "POST", "/data/advertiser", map[string]string{"TTD-Auth": tradeDeskToken}, about) }
		send()
		finds(t, f, "") // nobody knew
		ask(t, f, "POST", "/v3/identity/map", auth, good().seal())
		send()
		finds(t, f, "has opted out")
	})
}

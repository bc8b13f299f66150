package partnertest_test

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

const (
	metaToken = "EAABsbCS1iHgBOZCtest0000000000000000000000token"
	metaUsers = "/v25.0/23/users?access_token=" + metaToken
)

// metaPhone is a body about the phone number of the second person.
var metaPhone = `{"payload":{"schema":["PHONE"],"is_raw":false,"data":[["` + partnertest.Hex("16505550002") + `"]]}}`

// metaCall makes a request to a fake, and returns the status and the body of the answer.
func metaCall(t *testing.T, f *partnertest.Meta, method, path, body string, header ...string) (status int, answer string) {
	t.Helper()
	return metaAsk(t, method, f.URL+path, body, header...)
}

func metaAsk(t *testing.T, method, url, body string, header ...string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	read, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(read)
}

// metaPerson has something of everything that may be got wrong.
func metaPerson() activation.Person {
	return activation.Person{
		ID: partnertest.Profile(1),
		Identifiers: []activation.Identifier{
			{Kind: "email", Value: "  Jane.Doe+Promo@GMail.com "}, {Kind: "phone", Value: "+49 (0)171 1234567"}, {Kind: "user_id", Value: "cust-1"},
		},
		Traits: map[string]jsontext.Value{
			"maid": jsontext.Value(`"5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25"`), "first_name": jsontext.Value(`"Valéry"`),
			"state": jsontext.Value(`"California"`), "country": jsontext.Value(`"US"`),
		},
	}
}

func TestMetaNoticesWhatIsWrong(t *testing.T) {
	t.Parallel()
	const (
		email     = "5f0d1df1fc49e30424381b57b1d4c73e067772a4267dde043a19b026935602c8"
		phone     = "7e25b7844dc82e53d76a507d7f6130832c805e097c1e038793c36ce22c358132"
		users     = "/v25.0/23/users?access_token=" + metaToken
		audiences = "/v25.0/act_1234509876/customaudiences?access_token=" + metaToken
	)
	sum := md5.Sum([]byte("jane.doe+promo@gmail.com"))
	payload := func(schema, data string) string {
		return `{"payload":{"schema":` + schema + `,"is_raw":false,"data":` + data + `}}`
	}
	one := func(kind, value string) string { return payload(`["`+kind+`"]`, `[["`+value+`"]]`) }
	right := one("EMAIL", email)
	rows := func(n int) string {
		return payload(`["EMAIL"]`, "["+strings.TrimSuffix(strings.Repeat(`["`+email+`"],`, n), ",")+"]")
	}
	session := func(id string, batch int, last bool) string {
		return fmt.Sprintf(`{"session":{"session_id":%s,"batch_seq":%d,"last_batch_flag":%t,"estimated_num_total":2},%s`, id, batch, last, right[1:])
	}
	type request struct{ method, path, body string }
	post := func(body string) []request { return []request{{"POST", metaUsers, body}} }
	for name, tt := range map[string]struct {
		options  partnertest.MetaOptions
		requests []request
		header   []string
		status   int    // of the last answer: 200 if 0
		answer   string // is in the last answer
		want     string // is in a violation; "" for none
	}{
		"nothing":                         {requests: post(right), answer: `"num_received":1,"num_invalid_entries":0`},
		"a list of one key":               {requests: post(payload(`"PHONE_SHA256"`, `["`+phone+`"]`)), answer: `"num_received":1`},
		"keys and details in one row":     {options: partnertest.MetaOptions{ExternID: true}, requests: post(payload(`["EMAIL","PHONE","EXTERN_ID"]`, `[["`+email+`","`+phone+`","cust-1"]]`))},
		"two batches of a session":        {requests: append(post(session("1", 1, false)), post(session("1", 2, true))...)},
		"no token":                        {requests: []request{{"POST", "/v25.0/23/users", right}}, status: 400, answer: `"code":104`, want: "no access token"},
		"the token in the header":         {requests: []request{{"POST", "/v25.0/23/users", right}}, header: []string{"Authorization", "Bearer " + metaToken}, status: 400, want: "in the header"},
		"the token in the query":          {options: partnertest.MetaOptions{TokenIn: "header"}, requests: post(right), status: 400, want: "in the query"},
		"another version":                 {requests: []request{{"POST", strings.Replace(metaUsers, "v25.0", "v9.0", 1), right}}, status: 400, answer: `"code":2635`, want: "not served"},
		"another audience":                {requests: []request{{"POST", strings.Replace(metaUsers, "23", "24", 1), right}}, status: 400, answer: `"error_subcode":33`, want: `audience "24" is not there`},
		"another path":                    {requests: []request{{"PUT", metaUsers, right}}, status: 400, want: "not known"},
		"a parameter":                     {requests: []request{{"POST", metaUsers + "&debug=all", right}}, want: "debug"},
		"a form":                          {requests: post(right), header: []string{"Content-Type", "application/x-www-form-urlencoded"}, status: 400, want: "content type"},
		"no proof":                        {options: partnertest.MetaOptions{Proof: "plain"}, requests: post(right), status: 400, answer: "Invalid appsecret_proof", want: "proof"},
		"a wrong proof":                   {options: partnertest.MetaOptions{Proof: "plain"}, requests: []request{{"POST", metaUsers + "&appsecret_proof=00", right}}, status: 400, want: "proof"},
		"an old proof":                    {options: partnertest.MetaOptions{Proof: "timed"}, requests: []request{{"POST", metaUsers + "&appsecret_proof=00&appsecret_time=1", right}}, status: 400, want: "is off by"},
		"an unknown member":               {requests: post(`{"payloads":{},` + right[1:]), status: 400, answer: `"code":100`, want: "payloads"},
		"a member twice":                  {requests: post(`{"customer_consent":false,"customer_consent":false,` + right[1:]), status: 400, want: "duplicate"},
		"a number for a text":             {requests: post(payload(`["EMAIL"]`, `[[1]]`)), status: 400, want: "no text"},
		"an unknown key":                  {requests: post(one("MAIL", email)), status: 400, answer: `"code":100`, want: `unknown key "MAIL"`},
		"a key twice":                     {requests: post(payload(`["EMAIL","EMAIL"]`, `[["`+email+`",""]]`)), status: 400, want: "EMAIL twice"},
		"a short row":                     {requests: post(payload(`["EMAIL","PHONE"]`, `[["`+email+`"]]`)), status: 400, want: "has 1 values, the schema 2"},
		"a list for a row":                {requests: post(payload(`["EMAIL"]`, `["`+email+`"]`)), status: 400, want: "no list"},
		"a row for a list":                {requests: post(payload(`"EMAIL_SHA256"`, `[["`+email+`"]]`)), status: 400, want: "no text"},
		"a key that may not be alone":     {requests: post(payload(`"FN"`, `["`+email+`"]`)), status: 400, want: "stand alone"},
		"no rows":                         {requests: post(rows(0)), status: 400, answer: `"code":100`, want: "0 rows"},
		"too many rows":                   {requests: post(rows(10_001)), status: 400, answer: `"code":100`, want: "10001 rows"},
		"an empty row":                    {requests: post(one("EMAIL", "")), answer: `"num_invalid_entries":1`, want: "is empty"},
		"no key":                          {requests: post(one("FN", partnertest.Hex("valéry"))), want: "nothing but details"},
		"an address that is not hashed":   {requests: post(one("EMAIL", "jane.doe+promo@gmail.com")), answer: `"num_invalid_entries":1,"invalid_entry_samples":{"0"`, want: "EMAIL is not hashed"},
		"an address anywhere":             {requests: post(one("EMAIL", "jane.doe+promo@gmail.com")), answer: `"num_invalid_entries":1`, want: "there is an e-mail address in it"},
		"base64":                          {requests: post(one("EMAIL", "Xw0d8fxJ4wQkOBtX")), answer: `"num_invalid_entries":1`, want: "EMAIL is not hashed"},
		"upper case":                      {requests: post(one("EMAIL", strings.ToUpper(email))), answer: `"num_invalid_entries":0`, want: "is in upper case"},
		"an MD5":                          {requests: post(one("EMAIL", hex.EncodeToString(sum[:]))), answer: `"num_invalid_entries":0`, want: "is an MD5"},
		"a SHA-1":                         {requests: post(one("EMAIL", "64e4687b18a12506cc6df48f1ac678c812a4ce19")), want: "is a SHA-1"},
		"the hash of a hash":              {requests: post(one("EMAIL", "33382566b69f5857aacf774920e340a709e63bed702c1b4acc2a3fed6b50e16d")), want: "hashed twice"},
		"the hash of nothing":             {requests: post(one("EMAIL", partnertest.Hex(""))), want: "the hash of nothing"},
		"the hash of null":                {requests: post(one("PHONE", partnertest.Hex("null"))), want: "the hash of null"},
		"a line break":                    {requests: post(one("EMAIL", "fcbc87f44bb2f9a732e90e04135c3b4a438166a24e540dbfaa1de1673a60c66e")), want: "line break"},
		"an address as it came":           {requests: post(one("EMAIL", "2478f700273bf1eb3c1a24e7212c80f20437bf00e94ee6bf58e4f4db4fe6fc1c")), want: "as it came"},
		"an address with capitals":        {requests: post(one("EMAIL", "0cba52013f15961947314f2247af8afc075d2c2f569da4337728775a1b3235ce")), want: "with capitals"},
		"an address for Google":           {requests: post(one("EMAIL", "d6117306485ed0e50afab3ac871e98f81699151f30281527d63ff5f233656c69")), want: "as Google does"},
		"an address without its tag":      {requests: post(one("EMAIL", "831f6494ad6be4fcb3a724c3d5fef22d3ceffa3c62ef3a7984e45a0ea177f982")), want: "plus sign"},
		"a number with a plus sign":       {requests: post(one("PHONE", "26fe61aab2698bb3696dc47387e6c64172c6c716727917caaf6ff965d030cb3d")), want: "hashed with +"},
		"a number with leading zeros":     {requests: post(one("PHONE", "abe4a8f7d0540abdaa028758ced57b79732f7495f44aa361e9acca4965eabefb")), want: "leading zeros"},
		"a number without its country":    {requests: post(one("PHONE", "34ebedc6792310fc2686f989aef386aba05e2ee3d468a547a15e4f4689abb4c0")), want: "country code"},
		"a stranger's address":            {requests: post(one("EMAIL", partnertest.Hex("x@example.com"))), want: "not right for anybody"},
		"a device in upper case":          {requests: post(one("MADID", "5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25")), want: "upper case"},
		"a device that is hashed":         {requests: post(one("MADID", "83dc3f5f32b9472613b0f038d36f22585a609d018af6f6067f50da318bf354bd")), want: "as they are"},
		"an id that is hashed":            {options: partnertest.MetaOptions{ExternID: true}, requests: post(payload(`["EMAIL","EXTERN_ID"]`, `[["`+email+`","`+partnertest.Hex("cust-1")+`"]]`)), want: "as they are"},
		"an id that is not asked for":     {requests: post(payload(`["EMAIL","EXTERN_ID"]`, `[["`+email+`","cust-1"]]`)), want: "not right for anybody"},
		"a country in capitals":           {requests: post(payload(`["EMAIL","COUNTRY"]`, `[["`+email+`","`+partnertest.Hex("US")+`"]]`)), want: "capitals"},
		"two people in a row":             {requests: post(payload(`["EMAIL","PHONE"]`, `[["`+email+`","`+partnertest.Hex("16505550002")+`"]]`)), want: "mixes"},
		"no limits":                       {options: partnertest.MetaOptions{LimitedDataUse: "us_states"}, requests: post(right), answer: `"num_invalid_entries":0`, want: "limited data use is false"},
		"limits for nobody":               {requests: post(payload(`["EMAIL","DATA_PROCESSING_OPTIONS"]`, `[["`+email+`",["LDU"]]]`)), want: "limited data use is true"},
		"unknown limits":                  {requests: post(payload(`["EMAIL","DATA_PROCESSING_OPTIONS"]`, `[["`+email+`",["ALL"]]]`)), status: 400, want: "processing options"},
		"no limits to remove":             {options: partnertest.MetaOptions{LimitedDataUse: "all"}, requests: []request{{"DELETE", metaUsers, right}}},
		"no consent":                      {options: partnertest.MetaOptions{CustomerConsent: true}, requests: post(right), want: "customer_consent is false"},
		"a session that begins late":      {requests: post(session("1", 2, false)), status: 400, answer: `"code":100`, want: "batch_seq"},
		"a batch after the last":          {requests: append(post(session("1", 1, true)), post(session("1", 2, true))...), status: 400, want: "batch_seq"},
		"a session's id in words":         {requests: post(session(`"one"`, 1, true)), status: 400, want: "session_id"},
		"an audience of another kind":     {requests: []request{{"POST", audiences, `{"name":"n","subtype":"LOOKALIKE","customer_file_source":"USER_PROVIDED_ONLY"}`}}, status: 400, want: "cannot be"},
		"an audience of unknown source":   {requests: []request{{"POST", audiences, `{"name":"n","subtype":"CUSTOM","customer_file_source":"X"}`}}, status: 400, want: "cannot be"},
		"an audience twice":               {requests: []request{{"POST", audiences, `{"name":"n","subtype":"CUSTOM","description":"d","customer_file_source":"USER_PROVIDED_ONLY"}`}, {"POST", audiences, `{"name":"n","subtype":"CUSTOM","description":"d","customer_file_source":"USER_PROVIDED_ONLY"}`}}, want: "twice"},
		"another account":                 {requests: []request{{"GET", strings.Replace(audiences, "act_1", "act_2", 1), ""}}, status: 400, answer: `"error_subcode":33`, want: "ad account"},
		"an audience's field that is not": {requests: []request{{"GET", strings.Replace(metaUsers, "/users", "", 1) + "&fields=id,size", ""}}, status: 400, answer: "nonexisting field", want: `"size"`},
		"an audience that is not":         {requests: []request{{"GET", "/v25.0/24?fields=id&access_token=" + metaToken, ""}}, status: 400, answer: `"error_subcode":33`, want: "audience 24"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := partnertest.NewMeta(t, tt.options)
			f.Make("23")
			f.Seed(metaPerson(), partnertest.Somebody(2))
			var (
				status int
				answer string
			)
			for _, r := range tt.requests {
				status, answer = metaCall(t, f, r.method, r.path, r.body, tt.header...)
			}
			if tt.status == 0 {
				tt.status = 200
			}
			if status != tt.status || !strings.Contains(answer, tt.answer) {
				t.Errorf("answer %d %s, want %d and %q", status, answer, tt.status, tt.answer)
			}
			found := f.Violations()
			if tt.want == "" && len(found) > 0 || !strings.Contains(strings.Join(found, "\n"), tt.want) {
				t.Errorf("violations %q, want %q", found, tt.want)
			}
		})
	}
}

func TestMetaHoldsWhomItIsTold(t *testing.T) {
	t.Parallel()
	f := partnertest.NewMeta(t, partnertest.MetaOptions{})
	f.Make("23")
	f.Seed(partnertest.Somebody(2))
	audience := partnertest.Audience{ID: "23"}
	for range 2 {
		metaCall(t, f, "POST", metaUsers, metaPhone)
		if got := f.Members(audience); len(got) != 1 || len(f.Leftovers(audience)) != 0 {
			t.Errorf("members %v, left %v", got, f.Leftovers(audience))
		}
	}
	f.Seed(partnertest.Known(2, 3))
	if got := f.Members(audience); len(got) != 0 || len(f.Leftovers(audience)) != 1 {
		t.Errorf("members %v, left %v", got, f.Leftovers(audience))
	}
	for range 2 {
		metaCall(t, f, "DELETE", metaUsers, metaPhone)
		if got := f.Leftovers(audience); len(got) != 0 {
			t.Errorf("left %v", got)
		}
	}
	f.Refuse(partnertest.Profile(2), true)
	_, answer := metaCall(t, f, "POST", metaUsers, strings.Replace(metaPhone, partnertest.Hex("16505550002"), partnertest.Hex("16505550003"), 1))
	if len(f.Members(audience)) != 0 || !strings.Contains(answer, `"num_invalid_entries":1`) {
		t.Errorf("who is refused is held, or not told: %s", answer)
	}
	if found := f.Violations(); len(found) > 0 {
		t.Errorf("violations %q", found)
	}
}

func TestMetaStatesAreNoViolations(t *testing.T) {
	t.Parallel()
	f := partnertest.NewMeta(t, partnertest.MetaOptions{})
	f.Make("23")
	f.Seed(partnertest.Somebody(2))
	for state, want := range map[string]string{"flagged": "1713230", "unshared": "1487301", "deleted": "1487366"} {
		f.Mark("23", state)
		if _, answer := metaCall(t, f, "POST", metaUsers, metaPhone); !strings.Contains(answer, want) {
			t.Errorf("%s: %s", state, answer)
		}
	}
	f.Mark("23", "")
	f.Accept(false)
	if _, answer := metaCall(t, f, "POST", metaUsers, metaPhone); !strings.Contains(answer, "2655") {
		t.Errorf("terms: %s", answer)
	}
	f.Accept(true)
	if found := f.Violations(); len(found) > 0 {
		t.Errorf("violations %q", found)
	}
}

func TestMetaNoticesWhoGoesOn(t *testing.T) {
	t.Parallel()
	f := partnertest.NewMeta(t, partnertest.MetaOptions{})
	f.Make("23")
	f.Revoke()
	statuses := map[int]bool{}
	for range 9 {
		status, answer := metaCall(t, f, "GET", "/v25.0/23?fields=id&access_token="+metaToken, "")
		statuses[status] = true
		var body struct {
			Error struct {
				Code    int `json:"code"`
				Subcode int `json:"error_subcode"`
			} `json:"error"`
		}
		if err := json.Unmarshal([]byte(answer), &body); err != nil || body.Error.Code != 190 || body.Error.Subcode != 463 {
			t.Errorf("%s, %v", answer, err)
		}
	}
	if found := f.Violations(); len(found) != 1 || !statuses[400] || !statuses[401] {
		t.Errorf("violations %q, statuses %v", found, statuses)
	}
	f = partnertest.NewMeta(t, partnertest.MetaOptions{})
	f.Make("23")
	f.Seed(partnertest.Somebody(2))
	f.Script(f.Words().Wait(time.Second))
	if status, answer := metaCall(t, f, "POST", metaUsers, metaPhone); status == 200 || !strings.Contains(answer, "too many calls") {
		t.Errorf("%d %s", status, answer)
	}
	time.Sleep(1100 * time.Millisecond) // by then nothing is under way that was sent before
	metaCall(t, f, "POST", metaUsers, metaPhone)
	if found := strings.Join(f.Violations(), "\n"); !strings.Contains(found, "before it was allowed to") {
		t.Errorf("violations %q", found)
	}
}

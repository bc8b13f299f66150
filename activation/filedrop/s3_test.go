package filedrop_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/filedrop"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// changed returns settings with some members replaced, as somebody does who mistypes them.
func changed(t testing.TB, s activation.Settings, config, secrets map[string]any) activation.Settings {
	t.Helper()
	with := func(v jsontext.Value, more map[string]any) jsontext.Value {
		var members map[string]any
		if err := json.Unmarshal(v, &members); err != nil {
			t.Fatal(err)
		}
		maps.Copy(members, more)
		out, err := json.Marshal(members)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	return activation.Settings{Config: with(s.Config, config), Secrets: with(s.Secrets, secrets)}
}

// message makes one about some people, who are added.
func message(t testing.TB, p activation.AudiencePartner, to activation.Target, id int64, people ...activation.Person) activation.Message {
	t.Helper()
	b := activation.Batch{ID: id, Segment: activation.Segment{ID: 7, Key: "carts"}, At: time.Now()}
	for _, person := range people {
		ids, err := p.Identify(to, person)
		if err != nil {
			t.Fatal(err)
		}
		b.Members = append(b.Members, activation.Member{Person: person, Identifiers: ids, Entered: true})
	}
	body, took, err := p.Encode(to, b)
	if err != nil || took != len(people) {
		t.Fatalf("it took %d of %d, %v", took, len(people), err)
	}
	return activation.Message{Key: fmt.Sprintf("msg_k%d", id), Batch: id, Body: body}
}

func noViolations(t testing.TB, fake partnertest.Fake) {
	t.Helper()
	for _, v := range fake.Violations() {
		t.Errorf("violation: %s", v)
	}
}

func minute(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestWhatS3ErrorsMean(t *testing.T) {
	t.Parallel()
	partner, fake := newS3(t, partnertest.S3Options{})
	to := activation.Target{Settings: fake.Settings()}
	fake.Seed(partnertest.Somebody(1))
	for i, tt := range []struct {
		status int
		code   string
		class  activation.Class
	}{
		{403, "SignatureDoesNotMatch", activation.Reauth},
		{403, "InvalidAccessKeyId", activation.Reauth},
		{400, "ExpiredToken", activation.Reauth},
		{403, "ExpiredToken", activation.Reauth},
		{403, "AccessDenied", activation.Config},
		{403, "RequestTimeTooSkewed", activation.Retry},
		{404, "NoSuchBucket", activation.Config},
		{301, "PermanentRedirect", activation.Config},
		{400, "AuthorizationHeaderMalformed", activation.Config},
		{307, "TemporaryRedirect", activation.Retry},
		{400, "AccessControlListNotSupported", activation.Config},
		{400, "KMS.DisabledException", activation.Config},
		{501, "NotImplemented", activation.Config},
		{400, "EntityTooLarge", activation.Split},
		{413, "EntityTooLarge", activation.Split},
		{400, "InvalidArgument", activation.Config},
		{400, "RequestTimeout", activation.Retry},
		{400, "BadDigest", activation.Retry},
		{409, "OperationAborted", activation.Retry},
		{429, "TooManyRequests", activation.Retry},
		{500, "InternalError", activation.Retry},
		{500, "SomethingNew", activation.Retry},
		{503, "SlowDown", activation.Retry},
		{503, "ServiceUnavailable", activation.Retry},
	} {
		fault := partnertest.S3Fault(tt.status, tt.code)
		fault.Match = func(*http.Request) bool { return true }
		fake.Script(fault)
		o := partner.Send(minute(t), to, message(t, partner, to, int64(i+1), partnertest.Somebody(1)))
		if o.Class != tt.class || o.Status != tt.status || o.Reason == "" {
			t.Errorf("%d %s: %+v, want %s", tt.status, tt.code, o, tt.class)
		}
		if strings.Contains(o.Reason+o.Excerpt, "@") || strings.Contains(o.Excerpt, "AKIA") || !strings.Contains(o.Excerpt, ": for …, …") {
			t.Errorf("%s: the excerpt is %q", tt.code, o.Excerpt)
		}
	}
	for status, class := range map[int]activation.Class{
		400: activation.Retry, 403: activation.Config, 404: activation.Config, 413: activation.Split, 502: activation.Retry,
	} { // from somebody in between
		fake.Script(partnertest.Fault{Status: status, Body: "<html>no</html>", Match: func(*http.Request) bool { return true }})
		o := partner.Send(minute(t), to, message(t, partner, to, 99, partnertest.Somebody(1)))
		if o.Class != class {
			t.Errorf("%d: %+v, want %s", status, o, class)
		}
	}
	fake.Script(partnertest.Fault{Status: 503, Wait: 3 * time.Second, Body: partnertest.S3Fault(503, "SlowDown").Body, Match: func(*http.Request) bool { return true }})
	if o := partner.Send(minute(t), to, message(t, partner, to, 100, partnertest.Somebody(1))); o.Class != activation.RetryAfter || o.Wait != 3*time.Second {
		t.Errorf("SlowDown with Retry-After: %+v", o)
	}
	if n := len(fake.Files()); n > 0 {
		t.Errorf("%d files were written", n)
	}
}

// What Test says of each mistake that somebody makes.
func TestTellsWhatIsWrongWithS3(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		config, secrets map[string]any
		fault           partnertest.Fault
		class           activation.Class
		says            string
	}{
		"nothing":                  {class: activation.OK},
		"an access key id":         {secrets: map[string]any{"access_key_id": "AKIAOTHER"}, class: activation.Reauth, says: "the access key id is not known"},
		"a secret access key":      {secrets: map[string]any{"secret_access_key": "other"}, class: activation.Reauth, says: "the secret access key does not go"},
		"a bucket that is not":     {config: map[string]any{"bucket": "other"}, class: activation.Config, says: "the bucket does not exist"},
		"another region":           {fault: partnertest.S3Fault(400, "AuthorizationHeaderMalformed"), class: activation.Config, says: "in another region"},
		"no permission":            {fault: partnertest.S3Fault(403, "AccessDenied"), class: activation.Config, says: "s3:PutObject is missing"},
		"a session that is over":   {fault: partnertest.S3Fault(400, "ExpiredToken"), class: activation.Reauth, says: "the session token has ended"},
		"a store that is not well": {fault: partnertest.S3Fault(503, "SlowDown"), class: activation.Retry, says: "fewer requests"},
		"uploads may not be given up": {
			fault: partnertest.Fault{
				Status: 403, Body: partnertest.S3Fault(403, "AccessDenied").Body,
				Match: func(r *http.Request) bool { return r.Method == http.MethodDelete },
			},
			class: activation.Config, says: "s3:AbortMultipartUpload is missing",
		},
		"a page of something else":    {fault: partnertest.Fault{Status: 404, Body: "<html>not here</html>"}, class: activation.Config, says: "look at endpoint"},
		"a method that is not":        {fault: partnertest.Fault{Status: 405, Body: "no"}, class: activation.Retry, says: "look at endpoint"},
		"a port where nobody listens": {config: map[string]any{"endpoint": "http://127.0.0.1:1"}, class: activation.Retry, says: "connection was refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			partner, fake := newS3(t, partnertest.S3Options{})
			if tt.fault.Status != 0 {
				if tt.fault.Match == nil {
					tt.fault.Match = func(*http.Request) bool { return true }
				}
				fake.Script(tt.fault)
			}
			o := partner.Test(minute(t), activation.Target{Settings: changed(t, fake.Settings(), tt.config, tt.secrets)})
			if o.Class != tt.class || !strings.Contains(o.Reason, tt.says) {
				t.Errorf("%s, %q, want %s, %q", o.Class, o.Reason, tt.class, tt.says)
			}
			if n := len(fake.Files()); n > 0 {
				t.Errorf("it left %v", fake.Files())
			}
			if tt.class == activation.OK {
				noViolations(t, fake)
			}
		})
	}
}

func TestLargeFilesGoInParts(t *testing.T) {
	t.Parallel()
	const many = 12_000
	somebody := partnertest.Somebody(1)
	somebody.Identifiers[2].Value = strings.Repeat("c", 500)
	o := partnertest.FileOptions{Columns: []string{"email_sha256", "external_id"}, Plain: true, Rows: many}
	part := func(n string) func(*http.Request) bool {
		return func(r *http.Request) bool { return r.URL.Query().Get("partNumber") == n }
	}
	completing := func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") }
	for name, tt := range map[string]struct {
		fault partnertest.Fault
		class activation.Class
	}{
		"nothing goes wrong":            {class: activation.OK},
		"the store asks for less":       {partnertest.Fault{Status: 503, Body: partnertest.S3Fault(503, "SlowDown").Body, Match: part("2")}, activation.Retry},
		"the connection breaks":         {partnertest.Fault{Reset: true, Match: part("1")}, activation.Retry},
		"a part is answered by a proxy": {partnertest.Fault{Status: 200, Body: "<html>", Match: part("1")}, activation.Retry},
		"the end is 200 with an error": {
			partnertest.Fault{Status: 200, Body: "\n\n" + partnertest.S3Fault(200, "InternalError").Body, Match: completing}, activation.Retry,
		},
		"the end is 200 with a page": {partnertest.Fault{Status: 200, Body: "<html></html>", Match: completing}, activation.Retry},
		"the end is applied and not heard of": {
			partnertest.Fault{Reset: true, Apply: true, Match: completing}, activation.Retry,
		},
		"there is no time left": {partnertest.Fault{Delay: time.Minute, Match: part("2")}, activation.Retry},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			partner, fake := newS3(t, partnertest.S3Options{FileOptions: o})
			fake.Seed(somebody)
			to := activation.Target{Settings: fake.Settings()}
			m := message(t, partner, to, 1, slices.Repeat([]activation.Person{somebody}, many)...)
			if tt.fault.Match != nil {
				fake.Script(tt.fault)
			}
			ctx := minute(t)
			if tt.fault.Delay > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 4*time.Second)
				defer cancel()
			}
			first := partner.Send(ctx, to, m)
			if first.Class != tt.class {
				t.Errorf("the first attempt is %+v, want %s", first, tt.class)
			}
			noViolations(t, fake) // such as parts that are left behind
			if tt.class != activation.OK {
				if o := partner.Send(minute(t), to, m); o.Class != activation.OK {
					t.Errorf("the second attempt is %+v", o)
				}
			}
			if got := len(fake.Members(partnertest.Audience{Segment: 7})); got != 1 || len(fake.Files()) != 2 {
				t.Errorf("%d people in %v, want 1 in 2 files", got, fake.Files())
			}
			noViolations(t, fake)
		})
	}
}

// The fake tells right from wrong.
func TestS3FakeIsStrict(t *testing.T) {
	t.Parallel()
	somebody := partnertest.Somebody(1)
	row := func(email string) string {
		return "action,email_sha256,phone_sha256,external_id\nadd," + email + ",,cust-1\n"
	}
	good := row(partnertest.Hex("person.1@example.com"))
	manifest := func(data, more string) string {
		return `{"run_id":"000000000001-k1","audience":"seg_7","mode":"delta","sequence":1,"files":[{"key":"audiences/seg_7/2026/08/22/` +
			`000000000001-k1-0001.csv","rows":1,"bytes":` + fmt.Sprint(len(data)) + `,"sha256":"` + partnertest.Hex(data) + `"}],` +
			`"columns":["action","email_sha256","phone_sha256","external_id"],"created_at":"2026-08-22T10:00:00Z"` + more + `}`
	}
	const at = "audiences/seg_7/2026/08/22/000000000001-k1"
	for name, tt := range map[string]struct {
		data, manifest string
		turn           bool // the manifest first
		again          string
		want           string // "" for nothing
	}{
		"all is well":                    {data: good, manifest: manifest(good, "")},
		"an address that is not hashed":  {data: row("person.1@example.com"), want: "holds an e-mail address"},
		"a hash in capitals":             {data: row(strings.ToUpper(partnertest.Hex("person.1@example.com"))), want: "want a hash in lower-case digits"},
		"a hash of what is not in order": {data: row(partnertest.Hex("person.1@example.com\n")), want: "is the hash of a text with a line break"},
		"hashed twice":                   {data: row(partnertest.Hex(partnertest.Hex("person.1@example.com"))), want: "is hashed twice"},
		"the hash of nothing":            {data: row(partnertest.Hex("")), want: "is the hash of nothing"},
		"somebody else's address":        {data: row(partnertest.Hex("person.2@example.com")), want: "mixes the identifiers"},
		"a row about nobody":             {data: "action,email_sha256,phone_sha256,external_id\nadd,,,\n", want: "0 identifiers"},
		"no action":                      {data: strings.Replace(good, "add", "", 1), want: `is to ""`},
		"other columns":                  {data: strings.Replace(good, "external_id", "id", 1), want: "has columns"},
		"no rows":                        {data: "action,email_sha256,phone_sha256,external_id\n", want: "has 1 rows"},
		"a byte order mark":              {data: "\ufeff" + good, want: "byte order mark"},
		"other line endings":             {data: strings.ReplaceAll(good, "\n", "\r\n"), want: "wrong line endings"},
		"a manifest before its file":     {data: good, manifest: manifest(good, ""), turn: true, want: "is there before"},
		"another checksum":               {data: good, manifest: manifest(strings.Replace(good, "1", "2", 1), ""), want: "another size or checksum"},
		"another count of rows":          {data: good, manifest: strings.Replace(manifest(good, ""), `"rows":1`, `"rows":2`, 1), want: "tells of 2 rows"},
		"another run":                    {data: good, manifest: strings.Replace(manifest(good, ""), "-k1", "-k2", 1), want: "does not go with its name"},
		"a member that nobody knows":     {data: good, manifest: manifest(good, `,"x":1`), want: "cannot be read"},
		"a second object for a run":      {data: good, again: "audiences/seg_7/2026/08/22/000000000001-k2-0001.csv", want: "run 1 has files as"},
		"other bytes for a name":         {data: good, again: at + "-0001.csv", want: "was written again, as another"},
		"a name of one's own":            {data: good, again: "audience.csv", want: "is not the name of a file"},
	} {
		fake := partnertest.NewS3(t, partnertest.S3Options{FileOptions: partnertest.FileOptions{Plain: true}})
		fake.Seed(somebody, partnertest.Somebody(2))
		files := [][2]string{{at + "-0001.csv", tt.data}}
		if tt.manifest == "" && tt.again == "" {
			tt.manifest = manifest(tt.data, "")
		}
		if tt.manifest != "" {
			files = append(files, [2]string{at + ".manifest.json", tt.manifest})
		}
		if tt.turn {
			slices.Reverse(files)
		}
		if tt.again != "" {
			files = append(files, [2]string{tt.again, strings.Replace(good, "cust-1", "cust-2", 1)})
		}
		for _, f := range files {
			fake.Put(f[0], []byte(f[1]))
		}
		got := strings.Join(fake.Violations(), "\n")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestS3FakeWantsSignatures(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		config, secrets map[string]any
		options         partnertest.S3Options
		spoil           func(*http.Request)
		status          int
		want            string
	}{
		"another secret":      {secrets: map[string]any{"secret_access_key": "x"}, status: 403, want: "the signature is wrong"},
		"another region":      {config: map[string]any{"region": "us-east-1"}, status: 403, want: "cannot be read"},
		"no session":          {options: partnertest.S3Options{Session: true}, secrets: map[string]any{"session_token": ""}, status: 403, want: "somebody else"},
		"no encryption":       {options: partnertest.S3Options{Encryption: "AES256"}, config: map[string]any{"encryption": ""}, status: 403, want: "Server-Side-Encryption"},
		"nothing for owners":  {options: partnertest.S3Options{Owned: true}, config: map[string]any{"bucket_owner_full_control": false}, status: 403, want: "X-Amz-Acl"},
		"no checksum":         {config: map[string]any{"checksum": false}, status: 400, want: "the checksum is"},
		"a header on the way": {spoil: func(r *http.Request) { r.Header.Set("X-Amz-Acl", "public-read") }, status: 403, want: "is not signed"},
		"a header of no use":  {spoil: func(r *http.Request) { r.Header.Set("X-Trace", "1") }, status: 200, want: "is not known"},
		"another body":        {spoil: func(r *http.Request) { r.Body = http.NoBody; r.ContentLength = 0 }, status: 400, want: "is not what x-amz-content-sha256 says"},
		"an hour ago": {spoil: func(r *http.Request) {
			r.Header.Set("X-Amz-Date", time.Now().Add(-time.Hour).UTC().Format("20060102T150405Z"))
		}, status: 403, want: "was signed"},
		"another path":         {spoil: func(r *http.Request) { r.URL.Path, r.URL.RawPath = r.URL.Path+"x", "" }, status: 403, want: "the signature is wrong"},
		"another bucket":       {config: map[string]any{"bucket": "other"}, status: 404, want: "is in no bucket"},
		"a method of no use":   {spoil: func(r *http.Request) { r.Method = http.MethodPatch }, status: 403, want: "the signature is wrong"},
		"a query that is none": {spoil: func(r *http.Request) { r.URL.RawQuery = "acl=" }, status: 403, want: "the signature is wrong"},
	} {
		client := activation.NewClient(private)
		t.Cleanup(client.CloseIdleConnections)
		if tt.spoil != nil {
			client.Transport = spoiler{tt.spoil, client.Transport}
		}
		fake := partnertest.NewS3(t, tt.options)
		partner := filedrop.NewS3(client, private)
		to := activation.Target{Settings: changed(t, fake.Settings(), tt.config, tt.secrets)}
		fake.Seed(partnertest.Somebody(1))
		o := partner.Send(minute(t), to, message(t, partner, to, 1, partnertest.Somebody(1)))
		if got := strings.Join(fake.Violations(), "\n"); o.Status != tt.status || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %d %s, %q, want %d, %q", name, o.Status, o.Reason, got, tt.status, tt.want)
		}
	}
}

// spoiler changes requests after they were signed.
type spoiler struct {
	how  func(*http.Request)
	next http.RoundTripper
}

func (s spoiler) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	s.how(r)
	return s.next.RoundTrip(r)
}

// What people are called survives the way through a file, and no spreadsheet reckons with it.
func TestNamesSurvive(t *testing.T) {
	t.Parallel()
	for _, o := range []partnertest.FileOptions{
		{Columns: []string{"email_sha256", "external_id", "first_name", "last_name", "city", "region", "postal_code"}},
		{Columns: []string{"email_sha256", "first_name", "last_name", "city"}, CRLF: true, Plain: true},
	} {
		partner, fake := newS3(t, partnertest.S3Options{FileOptions: o})
		to := activation.Target{Settings: fake.Settings()}
		var people []activation.Person
		for i, text := range []string{
			`Ada "Countess", of`, "two\nlines\r\nand a half", "null\x00byte", "=1+1", "+cmd|' /C calc'!A0", "-1", "Valéry 정 😀", "  spaces\t ", "'quoted", `\.`,
		} {
			p := partnertest.Somebody(i)
			value, err := jsontext.AppendQuote(nil, text)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"first_name", "last_name", "city", "region"} {
				p.Traits[name] = value
			}
			p.Identifiers[2].Value = strings.Map(func(r rune) rune {
				if r < ' ' {
					return '_'
				}
				return r
			}, strings.TrimSpace(text)) + fmt.Sprint(i)
			people = append(people, p)
		}
		fake.Seed(people...)
		if out := partner.Send(minute(t), to, message(t, partner, to, 1, people...)); out.Class != activation.OK {
			t.Errorf("%+v", out)
		}
		if got := len(fake.Members(partnertest.Audience{Segment: 7})); got != len(people) {
			t.Errorf("%d people are there, want %d", got, len(people))
		}
		noViolations(t, fake)
	}
}

func TestARetryWritesTheSame(t *testing.T) {
	t.Parallel()
	partner, fake := newS3(t, partnertest.S3Options{})
	to := activation.Target{Settings: fake.Settings()}
	fake.Seed(partnertest.Somebody(1))
	m := message(t, partner, to, 1, partnertest.Somebody(1))
	for range 3 {
		if o := partner.Send(minute(t), to, m); o.Class != activation.OK {
			t.Fatalf("%+v", o)
		}
	}
	// Settings that change in between do not change what a message writes.
	to.Settings = changed(t, to.Settings, map[string]any{"file": map[string]any{"path": "elsewhere/{run_id}", "compression": "none"}}, nil)
	if o := partner.Send(minute(t), to, m); o.Class != activation.OK {
		t.Fatalf("%+v", o)
	}
	if n := len(fake.Files()); n != 2 {
		t.Errorf("there are %v", fake.Files())
	}
	noViolations(t, fake)
}

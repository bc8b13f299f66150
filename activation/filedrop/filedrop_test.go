package filedrop

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
)

// The vectors are Amazon's: "Examples: Signature Calculations in AWS Signature Version 4".
func TestSign(t *testing.T) {
	t.Parallel()
	sec := s3Secrets{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
	now := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		method, key string
		header      http.Header
		body, want  string
	}{
		{
			"GET", "test.txt",
			http.Header{"Range": {"bytes=0-9"}},
			"",
			"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
		},
		{
			"PUT", "test$file.text",
			http.Header{"Date": {"Fri, 24 May 2013 00:00:00 GMT"}, "X-Amz-Storage-Class": {"REDUCED_REDUNDANCY"}},
			"Welcome to Amazon S3.", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
		},
	} {
		h, err := sign(t.Context(), sec, "us-east-1", tt.method, "https://examplebucket.s3.amazonaws.com/"+escape(tt.key), tt.header,
			[]byte(tt.body), now)
		if err != nil {
			t.Fatal(err)
		}
		if _, got, _ := strings.Cut(h.Get("Authorization"), "Signature="); got != tt.want {
			t.Errorf("%s %s: the signature is %s, want %s", tt.method, tt.key, got, tt.want)
		}
	}
}

func TestURL(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]S3Config{
		"https://drop.s3.eu-west-1.amazonaws.com/a/dt%3D2026/x.csv":     {Bucket: "drop", Region: "eu-west-1"},
		"https://drop.s3.cn-north-1.amazonaws.com.cn/a/dt%3D2026/x.csv": {Bucket: "drop", Region: "cn-north-1"},
		"https://s3.eu-west-1.amazonaws.com/my.drop/a/dt%3D2026/x.csv":  {Bucket: "my.drop", Region: "eu-west-1"},
		"https://s3.eu-west-1.amazonaws.com/Drop/a/dt%3D2026/x.csv":     {Bucket: "Drop", Region: "eu-west-1"},
		"https://drop.r2.example.com:8443/a/dt%3D2026/x.csv":            {Bucket: "drop", Region: "auto", Endpoint: "https://r2.example.com:8443"},
		"https://minio.example.com/drop/a/dt%3D2026/x.csv":              {Bucket: "drop", Endpoint: "https://minio.example.com", PathStyle: true},
	} {
		if got := (&bucket{cfg: cfg}).url("a/dt=2026/x.csv"); got != want {
			t.Errorf("the URL is %s, want %s", got, want)
		}
	}
}

func target(t testing.TB, file string) activation.Target {
	t.Helper()
	return activation.Target{Settings: activation.Settings{Config: jsontext.Value(`{"file":` + file + `}`)}}
}

func traits(pairs ...string) map[string]jsontext.Value {
	m := map[string]jsontext.Value{}
	for i := 0; i < len(pairs); i += 2 {
		text, err := jsontext.AppendQuote(nil, pairs[i+1])
		if err != nil {
			panic(err)
		}
		m[pairs[i]] = text
	}
	return m
}

func TestIdentify(t *testing.T) {
	t.Parallel()
	const hash = "5f0d1df1fc49e30424381b57b1d4c73e067772a4267dde043a19b026935602c8"
	all := `["email_sha256","phone_sha256","phone_e164_sha256","phone_us_sha1","maid","maid_sha256","external_id","first_name","last_name_sha256"]`
	for name, tt := range map[string]struct {
		file   string
		traits map[string]jsontext.Value
		want   []string
		reason string
	}{
		"LiveRamp's own example": {
			`{"columns":["email_sha256"]}`, traits("email", "test@example.com"),
			[]string{"email_sha256 973dfe463ec85785f5f95af5ba3906eedb2d931c24e69824a89ea65dba4e813b"},
			"",
		},
		"an address as it is typed, and a German number": {
			`{"columns":["email_sha256","phone_sha256","phone_e164_sha256","phone_us_sha1"]}`,
			traits("email", "  Jane.Doe+Promo@GMail.com ", "phone", "+49 (0)171 1234567", "country", "DE"),
			[]string{
				"email_sha256 " + hash,
				"phone_sha256 7e25b7844dc82e53d76a507d7f6130832c805e097c1e038793c36ce22c358132",
				"phone_e164_sha256 26fe61aab2698bb3696dc47387e6c64172c6c716727917caaf6ff965d030cb3d",
			},
			"",
		},
		"everything about an American": {
			`{"columns":` + all + `}`,
			traits("email", "john_smith@gmail.com", "phone", "(650)555-1212", "country", "us", "first_name", " Alex\n Dr. ",
				"last_name", "QUINN", "maid", "5F3A2B18-9C4D-4E7F-B8E2-17D3A1E69B25", "external_id", `a "b", =c`),
			[]string{
				"email_sha256 " + sha256hex("john_smith@gmail.com"),
				"phone_sha256 " + sha256hex("16505551212"),
				"phone_e164_sha256 " + sha256hex("+16505551212"),
				"phone_us_sha1 f02288e672259432fe70d036212140bf2f4745af",
				"maid 5f3a2b18-9c4d-4e7f-b8e2-17d3a1e69b25",
				"maid_sha256 83dc3f5f32b9472613b0f038d36f22585a609d018af6f6067f50da318bf354bd",
				`external_id a "b", =c`,
				"first_name Alex Dr.",
				"last_name_sha256 " + sha256hex("quinn"),
			},
			"",
		},
		"a hash of an address, in capitals": {
			`{}`, traits("email", strings.ToUpper(hash)), []string{"email_sha256 " + hash}, "",
		},
		"the country of the destination": {
			`{"default_country":"DE"}`, traits("phone", "0171 1234567"),
			[]string{"phone_sha256 7e25b7844dc82e53d76a507d7f6130832c805e097c1e038793c36ce22c358132"},
			"",
		},
		"a phone number of nobody knows which country": {
			`{}`, traits("phone", "0171 1234567"), nil,
			"there is no usable e-mail address and no usable phone number and no usable customer id; a phone number is there, but " +
				"neither it nor the destination says of which country",
		},
		"a hash of a phone number, of which nobody knows the form": {
			`{"default_country":"DE"}`, traits("phone", hash), nil,
			"there is no usable e-mail address and no usable phone number and no usable customer id",
		},
		"values that stand for none, and their hashes": {
			`{"columns":["email_sha256","external_id","external_id_sha256"]}`,
			traits("email", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "external_id", "null"), nil,
			"there is no usable e-mail address and no usable customer id",
		},
		"ids that a file would not bring back": {
			`{"columns":["external_id"]}`, traits("external_id", "a\x00b"), nil, "there is no usable customer id",
		},
		"names alone are nobody": {
			`{}`, traits("first_name", "Ada", "last_name", "Lovelace"), nil,
			"there is no usable e-mail address and no usable phone number and no usable customer id",
		},
		"our own id is always there": {
			`{"columns":["profile_id"]}`, nil, []string{"profile_id p_01000000000000000000000000000000"}, "",
		},
		"a key for LiveRamp is the customer's own id": {
			`{"profile":"liveramp"}`, traits("email", "test@example.com", "customer_id", "c-1"),
			[]string{"email_sha256 973dfe463ec85785f5f95af5ba3906eedb2d931c24e69824a89ea65dba4e813b", "audience_key c-1"},
			"",
		},
		"a key for LiveRamp is ours where there is none": {
			`{"profile":"liveramp"}`, traits("email", "test@example.com"),
			[]string{
				"email_sha256 973dfe463ec85785f5f95af5ba3906eedb2d931c24e69824a89ea65dba4e813b",
				"audience_key p_01000000000000000000000000000000",
			},
			"",
		},
		"a key alone is nobody to LiveRamp": {
			`{"profile":"liveramp"}`, traits("customer_id", "c-1"), nil, "there is no usable e-mail address and no usable US phone number",
		},
	} {
		ids, err := drop{}.Identify(target(t, tt.file), activation.Person{ID: activation.ProfileID{1}, Traits: tt.traits})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		if len(ids.IDs) > 0 {
			for _, id := range slices.Concat(ids.IDs, ids.Details) {
				got = append(got, id.Kind+" "+id.Value)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if ids.Reason != tt.reason {
			t.Errorf("%s: the reason is %q, want %q", name, ids.Reason, tt.reason)
		}
	}
}

func id(pairs ...string) (ids []activation.Identifier) {
	for i := 0; i < len(pairs); i += 2 {
		ids = append(ids, activation.Identifier{Kind: pairs[i], Value: pairs[i+1]})
	}
	return ids
}

var encodeAt = time.Date(2026, 8, 22, 23, 30, 0, 5000, time.FixedZone("", -3600))

func batch(members ...activation.Member) activation.Batch {
	return activation.Batch{ID: 8812, Segment: activation.Segment{ID: 7, Key: "carts", Name: "Cart abandoners"}, At: encodeAt, Members: members}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	ada := activation.Member{Person: activation.Person{ID: activation.ProfileID{1}}, Entered: true, Identifiers: activation.Identifiers{
		IDs:     id("email_sha256", "aa", "email_sha256", "bb", "phone_sha256", "cc", "external_id", `=1,"2"`),
		Details: id("first_name", "=HYPERLINK(1)", "city", `São "Paulo", 😀`, "audience_key", "c-1"),
	}}
	bob := activation.Member{Person: activation.Person{ID: activation.ProfileID{2}}, Identifiers: activation.Identifiers{
		IDs: id("phone_sha256", "dd"),
	}}
	old := activation.Member{Person: activation.Person{ID: activation.ProfileID{3}}, Identifiers: activation.Identifiers{
		IDs: id("maid", "ee", "email_sha256", "ff"),
	}}
	for name, tt := range map[string]struct {
		file    string
		members []activation.Member
		path    string
		want    string
		took    int
	}{
		"a row for each address, and rows of both kinds": {
			`{"compression":"none"}`,
			[]activation.Member{ada, bob},
			"audiences/seg_7/2026/08/23/000000008812-k5-0001.csv",
			"action,email_sha256,phone_sha256,external_id\nadd,aa,cc,\"=1,\"\"2\"\"\"\nadd,bb,,\"=1,\"\"2\"\"\"\nremove,,dd,\n", 2,
		},
		"text is no formula, and ids are as they are": {
			`{"compression":"none","columns":["first_name","external_id","city"],"line_ending":"crlf","path":"x/dt={yyyy}-{mm}-{dd}/{segment_key}-{run_id}"}`,
			[]activation.Member{ada},
			"x/dt=2026-08-23/carts-000000008812-k5-0001.csv",
			"action,first_name,external_id,city,email_sha256,phone_sha256\r\n" +
				"add,'=HYPERLINK(1),\"=1,\"\"2\"\"\",\"São \"\"Paulo\"\", 😀\",aa,cc\r\n" +
				"add,'=HYPERLINK(1),\"=1,\"\"2\"\"\",\"São \"\"Paulo\"\", 😀\",bb,\r\n", 1,
		},
		"what was sent under other settings is removed as it was": {
			`{"compression":"none","columns":["email_sha256"]}`,
			[]activation.Member{old},
			"audiences/seg_7/2026/08/23/000000008812-k5-0001.csv", "action,email_sha256,maid\nremove,ff,ee\n", 1,
		},
		"LiveRamp, to be added": {
			`{"profile":"liveramp","compression":"none"}`,
			[]activation.Member{ada, bob},
			"audiences/carts/add/000000008812-k5-0001.csv",
			`"audience_key","email_sha256","phone_us_sha1","phone_sha256","external_id"` + "\n" +
				`"c-1","aa","","cc","=1,""2"""` + "\n" + `"c-1","bb","","","=1,""2"""` + "\n", 1,
		},
		"LiveRamp, to be removed": {
			`{"profile":"liveramp","compression":"none","columns":["phone_sha256"]}`,
			[]activation.Member{bob, ada},
			"audiences/carts/remove/000000008812-k5-0001.csv",
			`"audience_key","phone_sha256"` + "\n" + `"p_02000000000000000000000000000000","dd"` + "\n", 1,
		},
		"no more rows than asked for": {
			`{"compression":"none","rows":2}`,
			[]activation.Member{bob, ada, bob},
			"audiences/seg_7/2026/08/23/000000008812-k5-0001.csv", "action,email_sha256,phone_sha256,external_id\nremove,,dd,\n", 1,
		},
		"one person may have more": {
			`{"compression":"none","rows":1}`,
			[]activation.Member{ada, bob},
			"audiences/seg_7/2026/08/23/000000008812-k5-0001.csv",
			"action,email_sha256,phone_sha256,external_id\nadd,aa,cc,\"=1,\"\"2\"\"\"\nadd,bb,,\"=1,\"\"2\"\"\"\n", 1,
		},
	} {
		body, took, err := drop{}.Encode(target(t, tt.file), batch(tt.members...))
		if err != nil || took != tt.took {
			t.Errorf("%s: it took %d, %v, want %d", name, took, err, tt.took)
		}
		r, err := readRun(body)
		if err != nil {
			t.Fatal(err)
		}
		files, err := r.files(activation.Message{Key: "msg_k5", Batch: 8812})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, string(files[0].data)); diff != "" || files[0].name != tt.path {
			t.Errorf("%s: %s, want %s (-want +got):\n%s", name, files[0].name, tt.path, diff)
		}
	}
}

func TestManifest(t *testing.T) {
	t.Parallel()
	bob := activation.Member{Identifiers: activation.Identifiers{IDs: id("phone_sha256", "dd")}}
	body, _, err := drop{}.Encode(target(t, `{"compression":"none"}`), batch(bob))
	if err != nil {
		t.Fatal(err)
	}
	r, err := readRun(body)
	if err != nil {
		t.Fatal(err)
	}
	files, err := r.files(activation.Message{Key: "msg_k5", Batch: 8812})
	if err != nil || len(files) != 2 {
		t.Fatalf("%d files, %v, want 2", len(files), err)
	}
	want := `{"run_id":"000000008812-k5","audience":"seg_7","segment_key":"carts","segment_name":"Cart abandoners","mode":"delta",` +
		`"sequence":8812,"files":[{"key":"audiences/seg_7/2026/08/23/000000008812-k5-0001.csv","rows":1,"bytes":57,` +
		`"sha256":"` + sha256hex("action,email_sha256,phone_sha256,external_id\nremove,,dd,\n") + `"}],` +
		`"columns":["action","email_sha256","phone_sha256","external_id"],"created_at":"2026-08-23T00:30:00.000005Z"}`
	if diff := cmp.Diff(want, string(files[1].data)); diff != "" {
		t.Errorf("the manifest (-want +got):\n%s", diff)
	}
	if name := files[1].name; name != "audiences/seg_7/2026/08/23/000000008812-k5.manifest.json" {
		t.Errorf("the manifest is called %s", name)
	}
}

// However people and settings are, a file says of each person what is to be said, keeps to its limits, and is the same when it
// is made again.
func TestEncodeKeepsPeopleApart(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := File{
			Profile:     rapid.SampledFrom([]string{standard, liveRamp}).Draw(t, "profile"),
			Compression: rapid.SampledFrom([]string{"gzip", "none"}).Draw(t, "compression"),
			LineEnding:  rapid.SampledFrom([]string{"lf", "crlf"}).Draw(t, "ending"),
			Rows:        rapid.IntRange(1, 12).Draw(t, "rows"),
		}.withDefaults()
		config, err := json.Marshal(map[string]File{"file": f})
		if err != nil {
			t.Fatal(err)
		}
		to := activation.Target{Settings: activation.Settings{Config: config}}
		var members []activation.Member
		owner := map[string]int{} // identifier → whose
		text := rapid.StringMatching(`[-=+@'",;a-z \x{e9}\x{1F600}]{0,6}`)
		for n := range rapid.IntRange(1, 8).Draw(t, "members") {
			m := activation.Member{Entered: rapid.Bool().Draw(t, "entered"), Person: activation.Person{ID: activation.ProfileID{byte(n)}}}
			for i := range rapid.IntRange(1, 5).Draw(t, "ids") {
				kind := rapid.SampledFrom([]string{"email_sha256", "phone_sha256", "maid", "external_id"}).Draw(t, "kind")
				value := fmt.Sprintf("%d.%d%s", n, i, text.Draw(t, "value"))
				if kind == "external_id" && m.Identifiers.Get(kind) != "" {
					continue
				}
				m.Identifiers.IDs = append(m.Identifiers.IDs, activation.Identifier{Kind: kind, Value: value})
				owner[kind+value] = n
			}
			members = append(members, m)
		}
		b := batch(members...)
		body, took, err := drop{}.Encode(to, b)
		if err != nil || took < 1 || took > len(members) {
			t.Fatalf("it took %d of %d, %v", took, len(members), err)
		}
		if again, _, _ := (drop{}).Encode(to, b); !bytes.Equal(body, again) {
			t.Fatal("the same batch gave other bytes")
		}
		r, err := readRun(body)
		if err != nil {
			t.Fatal(err)
		}
		data := io.Reader(bytes.NewReader(r.data))
		if f.Compression == "gzip" {
			if data, err = gzip.NewReader(data); err != nil {
				t.Fatal(err)
			}
		}
		rows, err := csv.NewReader(data).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		header, rows := rows[0], rows[1:]
		if len(rows) != r.Rows || len(rows) > f.Rows && took > 1 {
			t.Fatalf("%d rows, the head says %d, want at most %d", len(rows), r.Rows, f.Rows)
		}
		said := map[string]bool{}
		for _, row := range rows {
			whose := -1
			for i, cell := range row {
				n, ok := owner[header[i]+cell]
				switch {
				case header[i] == "action" || header[i] == "audience_key" || cell == "":
					continue
				case !ok:
					t.Fatalf("%s %q is nobody's", header[i], cell)
				case whose >= 0 && whose != n:
					t.Fatalf("a row mixes persons %d and %d", whose, n)
				}
				whose = n
				said[header[i]+cell] = true
			}
			if whose < 0 {
				t.Fatal("a row is about nobody")
			}
			if action := row[0]; f.Profile == standard && (action == "add") != members[whose].Entered {
				t.Fatalf("person %d is to %s", whose, action)
			}
			if f.Profile == liveRamp && members[whose].Entered != members[0].Entered {
				t.Fatal("a file of LiveRamp's has both actions")
			}
		}
		for i, m := range members[:took] {
			for _, one := range m.Identifiers.IDs {
				if !said[one.Kind+one.Value] {
					t.Fatalf("%s of person %d is missing", one.Kind, i)
				}
			}
		}
	})
}

func TestEncodeKeepsToBytes(t *testing.T) {
	t.Parallel()
	var members []activation.Member
	for range 100 {
		members = append(members, activation.Member{Entered: true, Identifiers: activation.Identifiers{
			IDs: id("external_id", strings.Repeat("x", 1<<20)),
		}})
	}
	body, took, err := drop{}.Encode(target(t, `{"compression":"none"}`), batch(members...))
	if err != nil || took < 30 || took > 32 || len(body) > maxFile+1000 {
		t.Errorf("it took %d of 100 MiB into %d bytes, %v", took, len(body), err)
	}
}

// faults returns what is wrong with settings, by pointer.
func faults(err error) map[string]string {
	got := map[string]string{}
	var walk func(error)
	walk = func(err error) {
		var field *activation.FieldError
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, err := range joined.Unwrap() {
				walk(err)
			}
		} else if errors.As(err, &field) {
			got[field.Pointer] = field.Detail
		} else if err != nil {
			got["?"] = err.Error()
		}
	}
	walk(err)
	return got
}

func TestPrepareS3(t *testing.T) {
	t.Parallel()
	const keys = `{"access_key_id":"AKIAIOSFODNN7EXAMPLE","secret_access_key":"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}`
	p := NewS3(nil, activation.Outbound{})
	prepared, err := p.Prepare(activation.Settings{Config: jsontext.Value(`{"bucket":"drop","region":"eu-west-1"}`), Secrets: jsontext.Value(keys)})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"bucket":"drop","region":"eu-west-1","file":{"profile":"standard","path":"audiences/{segment_id}/{yyyy}/{mm}/{dd}/{run_id}",` +
		`"columns":["email_sha256","phone_sha256","external_id"],"compression":"gzip","line_ending":"lf","rows":10000,"interval_seconds":60}}`
	if diff := cmp.Diff(want, string(prepared.Config)); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	limits := p.Limits(activation.Target{Settings: prepared})
	if limits.Members != 10_000 || !limits.Mixed || limits.Linger != time.Minute || limits.ByProfile || limits.NeedsAudience {
		t.Errorf("limits %+v", limits)
	}
	if again, err := p.Prepare(prepared); err != nil || string(again.Config) != string(prepared.Config) {
		t.Errorf("what was prepared is prepared as %s, %v", again.Config, err)
	}
	for name, tt := range map[string]struct {
		config, secrets string
		want            map[string]string
	}{
		"nothing": {``, ``, map[string]string{
			"/config/bucket": "is required", "/config/region": "is required", "/secrets/access_key_id": "is required",
			"/secrets/secret_access_key": "is required",
		}},
		"a member that is not known": {`{"bucket":"drop","region":"r","buckett":1}`, keys, map[string]string{"/config/buckett": "is not known here"}},
		"everything that is off": {
			`{"bucket":"a/b","region":"Europe","endpoint":"http://10.0.0.1/x","encryption":"DES","kms_key_id":"k","file":{"profile":"x",
			"columns":["email","email_sha256","email_sha256"],"path":"/a/{run_id}","rows":50001,"interval_seconds":3601,
			"line_ending":"cr","compression":"zip","default_country":"Germany"}}`,
			`{"access_key_id":"a,b","secret_access_key":"a b"}`,
			map[string]string{
				"/config/bucket": "may hold letters, digits, and . _ -", "/config/region": "must be the name of a region, such as eu-central-1",
				"/config/endpoint": "must begin with https://", "/config/encryption": "must be one of AES256, aws:kms",
				"/config/kms_key_id":   "must be the id of a key, and goes with encryption aws:kms",
				"/config/file/profile": "must be one of standard, liveramp", "/config/file/path": "must not begin with /",
				"/config/file/columns/0": "must be one of audience_key, email_sha256, phone_sha256, phone_e164_sha256, phone_us_sha1, maid, " +
					"maid_sha256, external_id, external_id_sha256, profile_id, first_name_sha256, last_name_sha256, first_name, last_name, " +
					"city, region, postal_code, country",
				"/config/file/columns/2": "is there twice", "/config/file/rows": "must be at most 50000",
				"/config/file/interval_seconds": "must be at most 3600", "/config/file/line_ending": "must be one of lf, crlf",
				"/config/file/compression":     "must be one of gzip, none",
				"/config/file/default_country": "must be the two upper-case letters of a country (ISO 3166)",
				"/secrets/access_key_id":       "holds a character that none has", "/secrets/secret_access_key": "holds a character that none has",
			},
		},
		"an endpoint with a bucket in it": {
			`{"bucket":"drop","region":"r","endpoint":"https://example.com/drop"}`, keys,
			map[string]string{"/config/endpoint": "must end with the host, without the bucket"},
		},
		"an endpoint inside": {
			`{"bucket":"drop","region":"r","endpoint":"https://169.254.169.254"}`, keys,
			map[string]string{"/config/endpoint": "is not on the public internet"},
		},
		"columns that nobody is known by": {
			`{"bucket":"drop","region":"r","file":{"columns":["first_name","city"]}}`, keys,
			map[string]string{"/config/file/columns": "must hold at least one by which people are known, such as email_sha256"},
		},
	} {
		_, err := p.Prepare(activation.Settings{Config: jsontext.Value(tt.config), Secrets: jsontext.Value(tt.secrets)})
		if diff := cmp.Diff(tt.want, faults(err)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestPaths(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		file File
		want string
	}{
		{File{}, ""},
		{File{Profile: liveRamp}, ""},
		{File{Path: "{segment_key}_{run_id}"}, ""},
		{File{Path: "/in/dt={yyyy}-{mm}-{dd}/{run_id}"}, ""},
		{File{Path: "in/file"}, "must have {run_id} once, in its last part, or files would overwrite each other"},
		{File{Path: "{run_id}/file"}, "must have {run_id} once, in its last part, or files would overwrite each other"},
		{File{Path: "{run_id}/{run_id}"}, "must have {run_id} once, in its last part, or files would overwrite each other"},
		{File{Path: "in/../{run_id}"}, "has a part that is empty, or only full stops"},
		{File{Path: "in//{run_id}"}, "has a part that is empty, or only full stops"},
		{File{Path: "in/"}, "has a part that is empty, or only full stops"},
		{File{Path: "in/{run_id}?x"}, "may hold letters, digits, and . _ = / -"},
		{File{Path: "in/{run_id"}, "may hold letters, digits, and . _ = / -"},
		{File{Path: "{hh}/{run_id}"}, "knows these placeholders: {segment_id}, {segment_key}, {action}, {yyyy}, {mm}, {dd}, {run_id}"},
		{File{Path: "{action}/{run_id}"}, "must not have {action}: rows of both kinds share a file"},
		{File{Path: "in/{run_id}", WithoutManifest: true}, "must have {segment_id} or {segment_key}: without a manifest nothing else tells the audience"},
		{File{Path: "{segment_id}/{run_id}", Profile: liveRamp}, "must have {action}: the rows of this profile do not tell who is to be removed"},
		{File{Path: "{action}/{run_id}", Profile: liveRamp}, "must have {segment_id} or {segment_key}: without a manifest nothing else tells the audience"},
	} {
		if got := faults(tt.file.withDefaults().check())["/config/file/path"]; got != tt.want {
			t.Errorf("%q: %q, want %q", tt.file.Path, got, tt.want)
		}
	}
	for path, want := range map[string]string{"a/b/{mm}": "a/b/", "{run_id}": "", "/x{mm}/{run_id}": "/", "a/{run_id}": "a/"} {
		if got := (File{Path: path}).folder(); got != want {
			t.Errorf("the folder of %s is %q, want %q", path, got, want)
		}
	}
	for text, want := range map[string]string{"carts": "carts", "a/../b": "a_.._b", "..": "seg_7", "": "seg_7", "ü x": "__x"} {
		if got := pathPart(text, "seg_7"); strings.Trim(got, "_") != strings.Trim(want, "_") {
			t.Errorf("%q is %q in a path, want %q", text, got, want)
		}
	}
}

// Names and places, which nothing makes unreadable, are not shown.
func TestDraftsShowNoNames(t *testing.T) {
	t.Parallel()
	ada := activation.Member{Entered: true, Identifiers: activation.Identifiers{
		IDs: id("email_sha256", strings.Repeat("a", 64)), Details: id("first_name", "Ada", "city", "London"),
	}}
	for _, compression := range []string{"gzip", "none"} {
		to := activation.Target{Settings: activation.Settings{Config: jsontext.Value(
			`{"bucket":"drop","region":"eu-west-1","file":{"columns":["email_sha256","first_name","city"],"compression":"` + compression + `"}}`,
		)}}
		body, _, err := drop{}.Encode(to, batch(ada))
		if err != nil {
			t.Fatal(err)
		}
		drafts, err := (&S3{}).Draft(to, activation.Message{Key: "msg_dry_run", Body: body})
		if err != nil || len(drafts) != 2 {
			t.Fatalf("%d drafts, %v, want 2", len(drafts), err)
		}
		want := "action,email_sha256,first_name,city\nadd," + strings.Repeat("a", 64) + ",…,…\n"
		if diff := cmp.Diff(want, string(drafts[0].Body)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", compression, diff)
		}
		if !strings.HasPrefix(drafts[0].URL, "https://drop.s3.eu-west-1.amazonaws.com/audiences/seg_7/2026/08/23/000000000000-dry_run-0001.csv") {
			t.Errorf("the URL is %s", drafts[0].URL)
		}
	}
}

func TestMask(t *testing.T) {
	t.Parallel()
	const key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	shown := fmt.Sprint((&S3{}).Mask(jsontext.Value(`{"access_key_id":"AKIAIOSFODNN7EXAMPLE","secret_access_key":"` + key + `","session_token":"` + key + `"}`)))
	if strings.Contains(shown, key[:8]) || !strings.Contains(shown, "…MPLE") {
		t.Errorf("s3: %s", shown)
	}
}

func sha256hex(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

package uid2

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/mubatch/mubatch/activation"
)

const clientSecret = "wJ0hP19QU4hmpB64Y3fV2dAed8t/mupw3sjN5jNRFzg="

func operator(t testing.TB) Operator {
	secret, err := ParseSecret(" " + clientSecret + "\n")
	if err != nil {
		t.Fatal(err)
	}
	return Operator{Key: "key", Secret: secret}
}

func TestParseSecret(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "c2hvcnQ=", "no base64", clientSecret + "AAAA"} {
		if secret, err := ParseSecret(text); err == nil {
			t.Errorf("ParseSecret(%q) = %x, want an error", text, secret)
		}
	}
}

// The request is as the documentation of encryption lays it out, byte by byte.
func TestSeal(t *testing.T) {
	t.Parallel()
	o, now := operator(t), time.UnixMilli(1_700_000_000_123)
	body, nonce, err := o.seal(question{Emails: []string{Example.Value}}, now)
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := base64.StdEncoding.DecodeString(string(body))
	if err != nil || envelope[0] != 1 {
		t.Fatalf("the envelope is %x, %v", envelope, err)
	}
	gcm, err := o.gcm()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := gcm.Open(nil, envelope[1:13], envelope[13:], nil)
	if err != nil {
		t.Fatal(err)
	}
	want := binary.BigEndian.AppendUint64(nil, 1_700_000_000_123)
	want = append(append(want, nonce[:]...), `{"email_hash":["tMmiiTI7IaAcPpQPFQ65uMVCWH8av9jw4cwf/F5HVRQ="]}`...)
	if !bytes.Equal(plain, want) {
		t.Errorf("in the envelope there is %q, want %q", plain, want)
	}
	if again, other, err := o.seal(question{}, now); err != nil || other == nonce || bytes.Equal(again[:24], body[:24]) {
		t.Errorf("a nonce or an initialisation vector was used twice: %v", err)
	}
}

// answers starts an operator that answers with a text, encrypted as it should be.
func answers(t *testing.T, o Operator, text string) Operator {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request bytes.Buffer
		request.ReadFrom(r.Body)
		envelope, _ := base64.StdEncoding.DecodeString(request.String())
		gcm, _ := o.gcm()
		plain, err := gcm.Open(nil, envelope[1:13], envelope[13:], nil)
		if err != nil {
			t.Error(err)
			return
		}
		iv := make([]byte, gcm.NonceSize())
		w.Write([]byte(base64.StdEncoding.EncodeToString(gcm.Seal(iv, iv, append(plain[:16:16], text...), nil))))
	}))
	t.Cleanup(server.Close)
	o.URL = server.URL
	return o
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	hashes := []Hash{{Value: "a"}, {Phone: true, Value: "b"}, {Value: "c"}}
	for name, test := range map[string]struct {
		text string
		want []ID
	}{
		"each in its place": {
			`{"body":{"email":[],"email_hash":[{"u":"A","p":"old","r":1735689600},{"e":"invalid identifier"}],"phone":[],"phone_hash":[{"u":"B","p":null,"r":1735689600123}]},"status":"success"}`,
			[]ID{{Raw: "A", Until: time.Unix(1735689600, 0)}, {Raw: "B", Until: time.UnixMilli(1735689600123)}, {}},
		},
		"one has opted out": {
			`{"body":{"email_hash":[{"e":"optout"},{"u":"C","r":1}],"phone_hash":[{"e":"OPTOUT"}]},"status":"success"}`,
			[]ID{{OptedOut: true}, {OptedOut: true}, {Raw: "C", Until: time.Unix(1, 0)}},
		},
		"too few":         {text: `{"body":{"email_hash":[{"u":"A","r":1}],"phone_hash":[{"u":"B","r":1}]},"status":"success"}`},
		"too many":        {text: `{"body":{"email_hash":[{},{},{}],"phone_hash":[{}]},"status":"success"}`},
		"no success":      {text: `{"body":{"email_hash":[{},{}],"phone_hash":[{}]},"status":"partial"}`},
		"no JSON":         {text: `success`},
		"no word at all":  {},
		"the wrong types": {text: `{"body":[],"status":"success"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ids, out := answers(t, operator(t), test.text).Map(t.Context(), http.DefaultClient, hashes)
			if test.want == nil {
				if out.Class != activation.Retry || ids != nil || out.Excerpt != "" {
					t.Errorf("Map = %v, %+v, want to try again", ids, out)
				}
				return
			}
			if out.Class != activation.OK || len(ids) != len(test.want) {
				t.Fatalf("Map = %v, %+v", ids, out)
			}
			for i, id := range ids {
				if id.Raw != test.want[i].Raw || !id.Until.Equal(test.want[i].Until) || id.OptedOut != test.want[i].OptedOut {
					t.Errorf("of hash %d it says %+v, want %+v", i, id, test.want[i])
				}
			}
		})
	}
}

// Whatever an operator answers, it is taken only if it is one to the request.
func FuzzOpen(f *testing.F) {
	o := operator(f)
	var nonce [8]byte
	body, _, err := o.seal(question{}, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(""))
	f.Add([]byte("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"))
	f.Fuzz(func(t *testing.T, body []byte) {
		var got answer
		if err := o.open(body, nonce, &got); err == nil {
			t.Errorf("%q was taken", body)
		}
	})
}

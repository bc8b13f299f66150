package webhook

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// The vectors are those of the Standard Webhooks libraries' own tests.
func TestSign(t *testing.T) {
	t.Parallel()
	key, err := parseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	got := sign([][]byte{key}, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("sign = %s, want %s", got, want)
	}
	if got == "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=" {
		t.Error("sign gives the signature that must be refused")
	}
	two := sign([][]byte{key, key}, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if two != got+" "+got {
		t.Errorf("with two keys sign = %s", two)
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	if a, b := NewSecret(), NewSecret(); a == b {
		t.Error("two new secrets are the same")
	} else if _, err := parseSecret(a); err != nil {
		t.Errorf("a new secret is refused: %v", err)
	}
	encoded := func(n int) string { return "whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, n)) }
	for _, bad := range []string{"", "whsec_", "whsec_!", encoded(23), encoded(65), encoded(24)[1:]} {
		if _, err := parseSecret(bad); err == nil {
			t.Errorf("parseSecret(%q) succeeded", bad)
		} else if len(bad) > 10 && strings.Contains(err.Error(), bad[6:]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	p := New(nil, activation.Outbound{})
	for name, tc := range map[string]struct {
		config, secrets string
		want            []string
	}{
		"a URL is enough":            {`{"url":"https://example.com/hook"}`, ``, nil},
		"a URL is needed":            {``, ``, []string{"/config/url"}},
		"an unknown member":          {`{"url":"https://example.com/","urll":1}`, ``, []string{"/config/urll"}},
		"a batch that is too large":  {`{"url":"https://example.com/","batch":1001}`, ``, []string{"/config/batch"}},
		"too much at once":           {`{"url":"https://example.com/","concurrency":17}`, ``, []string{"/config/concurrency"}},
		"a secret that is too short": {`{"url":"https://example.com/"}`, `{"secret":"whsec_AAAA"}`, []string{"/secrets/secret"}},
		"everything is told at once": {`{"url":"http://x/","batch":-1}`, `{"secret":"x"}`, []string{"/config/batch", "/config/url", "/secrets/secret"}},
	} {
		_, err := p.Prepare(activation.Settings{Config: jsontext.Value(tc.config), Secrets: jsontext.Value(tc.secrets)})
		var got []string
		for _, field := range partnertest.FieldErrors(err) {
			got = append(got, field.Pointer)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: fields (-want +got):\n%s", name, diff)
		}
	}
}

func TestRotate(t *testing.T) {
	t.Parallel()
	p := New(nil, activation.Outbound{})
	first, err := p.Prepare(activation.Settings{Config: jsontext.Value(`{"url":"https://example.com/"}`)})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	kept, shown, err := p.Rotate(first.Secrets, now)
	if err != nil {
		t.Fatal(err)
	}
	_, before, err := read(activation.Settings{Secrets: first.Secrets})
	_, after, wrong := read(activation.Settings{Secrets: kept})
	if err := errors.Join(err, wrong); err != nil {
		t.Fatal(err)
	}
	if after.Previous != before.Secret || after.Secret != shown["secret"] || after.Secret == before.Secret {
		t.Error("the new secret is not followed by the old one")
	}
	for after24h, want := range map[time.Duration]int{0: 2, 23 * time.Hour: 2, 25 * time.Hour: 1} {
		if keys, err := after.keys(now.Add(after24h)); err != nil || len(keys) != want {
			t.Errorf("%v after a rotation %d secrets sign, %v, want %d", after24h, len(keys), err, want)
		}
	}
	masked := p.Mask(kept)
	if len(masked) != 2 || strings.Contains(fmt.Sprint(masked), after.Secret[6:20]) || strings.Contains(fmt.Sprint(masked), after.Previous[6:20]) {
		t.Errorf("Mask = %v", masked)
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	now := time.Now()
	header := func(pairs ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			h.Set(pairs[i], pairs[i+1])
		}
		return h
	}
	date := func(d time.Duration) string { return now.Add(d).UTC().Format(http.TimeFormat) }
	for name, tc := range map[string]struct {
		status int
		header http.Header
		class  activation.Class
		wait   time.Duration
	}{
		"200":                        {200, nil, activation.OK, 0},
		"204":                        {204, nil, activation.OK, 0},
		"301":                        {301, nil, activation.Retry, 0},
		"307":                        {307, nil, activation.Retry, 0},
		"400":                        {400, nil, activation.Split, 0},
		"400 by a good clock":        {400, header("Date", date(time.Minute)), activation.Split, 0},
		"400 by a clock that is off": {400, header("Date", date(10*time.Minute)), activation.Retry, 0},
		"401":                        {401, nil, activation.Reauth, 0},
		"401 by a clock that is off": {401, header("Date", date(-10*time.Minute)), activation.Retry, 0},
		"403":                        {403, nil, activation.Reauth, 0},
		"404":                        {404, nil, activation.Retry, 0},
		"408":                        {408, nil, activation.Retry, 0},
		"410":                        {410, nil, activation.Gone, 0},
		"413":                        {413, nil, activation.Split, 0},
		"422":                        {422, nil, activation.Split, 0},
		"425":                        {425, nil, activation.Retry, 0},
		"429":                        {429, nil, activation.Retry, 0},
		"429 with seconds":           {429, header("Retry-After", "7"), activation.RetryAfter, 7 * time.Second},
		"429 with a past date":       {429, header("Retry-After", date(-time.Hour)), activation.RetryAfter, 0},
		"429 with nonsense":          {429, header("Retry-After", "soon"), activation.Retry, 0},
		"429 with a negative number": {429, header("Retry-After", "-1"), activation.Retry, 0},
		"500":                        {500, nil, activation.Retry, 0},
		"503 with seconds":           {503, header("Retry-After", "120"), activation.RetryAfter, 2 * time.Minute},
	} {
		res := &http.Response{StatusCode: tc.status, Header: tc.header}
		if o := classify(res, now); o.Class != tc.class || o.Wait != tc.wait {
			t.Errorf("%s: %s, wait %v, want %s, wait %v", name, o.Class, o.Wait, tc.class, tc.wait)
		}
	}
	if wait, ok := retryAfter(date(90*time.Second), now); !ok || wait < 88*time.Second || wait > 90*time.Second {
		t.Errorf("Retry-After as a date: %v, %t", wait, ok)
	}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 8, 22, 10, 0, 0, 123_000_000, time.UTC)
	b := activation.Batch{
		ID: 8812, At: at, Segment: activation.Segment{ID: 7, Key: "carts", Name: "cart abandoners"},
		Members: []activation.Member{
			{
				Person:  activation.Person{ID: activation.ProfileID{1}, Identifiers: []activation.Identifier{{Kind: "user_id", Value: "cust-42"}, {Kind: "email", Value: "ada@example.com"}}},
				Entered: true, Version: 3, At: at, MessageID: "m-1", Cause: "event",
			},
			{Person: activation.Person{ID: activation.ProfileID{9}}, Version: 4, At: at, Cause: "timer"},
		},
	}
	body, took, err := encode(b)
	if err != nil || took != 2 {
		t.Fatalf("encode took %d, %v", took, err)
	}
	const want = `{"type":"segment.membership_changed","timestamp":"2026-08-22T10:00:00.123Z",` +
		`"data":{"segment":{"id":"seg_7","key":"carts","name":"cart abandoners"},"sequence":8812,` +
		`"entered":[{"profile_id":"p_01000000000000000000000000000000","external_id":"cust-42",` +
		`"identifiers":[{"kind":"user_id","value":"cust-42"},{"kind":"email","value":"ada@example.com"}],` +
		`"version":3,"at":"2026-08-22T10:00:00.123Z","cause":"event","message_id":"m-1"}],` +
		`"left":[{"profile_id":"p_09000000000000000000000000000000","identifiers":[],` +
		`"version":4,"at":"2026-08-22T10:00:00.123Z","cause":"timer"}]}}`
	if diff := cmp.Diff(want, string(body)); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}

	many := b
	for range 1000 {
		many.Members = append(many.Members, b.Members[0])
	}
	body, took, err = encode(many)
	if err != nil || len(body) > maxBody || took < 50 || took == len(many.Members) {
		t.Errorf("of %d members it took %d into %d bytes, %v", len(many.Members), took, len(body), err)
	}
	many.Members = many.Members[:1]
	many.Members[0].Person.Identifiers[0].Value = strings.Repeat("x", 2*maxBody)
	if _, took, err = encode(many); err != nil || took != 1 {
		t.Errorf("of one large member it took %d, %v, want 1", took, err)
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	p := New(nil, activation.Outbound{})
	first, other := NewSecret(), NewSecret()
	present := jsontext.Value(`{"secret":"` + first + `"}`)
	now := time.Now()
	for given, want := range map[string]secrets{
		`{}`:                            {Secret: first},
		`{"secret":"` + first + `"}`:    {Secret: first},
		`{"secret":" ` + first + `\n"}`: {Secret: first},
		`{"secret":"` + other + `"}`:    {Secret: other, Previous: first, Until: now.Add(overlap).UTC()},
		`{"secret":"whsec_AAAA"}`:       {Secret: "whsec_AAAA", Previous: first, Until: now.Add(overlap).UTC()}, // for Prepare to refuse
	} {
		_, got, err := read(activation.Settings{Secrets: p.Replace(present, jsontext.Value(given), now)})
		if err != nil || got.Secret != want.Secret || got.Previous != want.Previous || !got.Until.Equal(want.Until) {
			t.Errorf("%s: %+v, %v, want %+v", given, got, err, want)
		}
	}
	if got := p.Replace(present, jsontext.Value(`{"secrett":"x"}`), now); string(got) != `{"secrett":"x"}` {
		t.Errorf("what cannot be read becomes %s", got)
	}
}

func TestTestSaysWhatToLookAt(t *testing.T) {
	t.Parallel()
	cfg := activation.Outbound{AllowPrivate: true}
	client := activation.NewClient(cfg)
	t.Cleanup(client.CloseIdleConnections)
	for status, want := range map[int]struct {
		class activation.Class
		says  string
	}{
		200: {activation.OK, ""},
		400: {activation.Config, "signing secret"},
		401: {activation.Reauth, "signing secret"},
		403: {activation.Reauth, "signing secret"},
		404: {activation.Retry, "look at the URL"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		t.Cleanup(server.Close)
		p := New(client, cfg)
		settings, err := p.Prepare(activation.Settings{Config: jsontext.Value(`{"url":"` + server.URL + `"}`)})
		if err != nil {
			t.Fatal(err)
		}
		if o := p.Test(t.Context(), activation.Target{Settings: settings}); o.Class != want.class || !strings.Contains(o.Reason, want.says) {
			t.Errorf("%d: %s, %q, want %s, %q", status, o.Class, o.Reason, want.class, want.says)
		}
	}
}

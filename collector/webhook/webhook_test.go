package webhook_test

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/collector/webhook"
)

// sent is a request as a provider signs it.
type sent struct {
	settings webhook.Settings
	secret   string
	url      string // default https://hooks.example.com/v1/webhooks/key
	header   map[string]string
	body     string
	at       time.Time // when it was signed
}

func (s sent) request() *http.Request {
	url := s.url
	if url == "" {
		url = "https://hooks.example.com/v1/webhooks/key"
	}
	r := httptest.NewRequest(http.MethodPost, url, strings.NewReader(s.body))
	for name, value := range s.header {
		r.Header.Set(name, value)
	}
	return r
}

func mac(hash func() hash.Hash, key, text string) []byte {
	m := hmac.New(hash, []byte(key))
	m.Write([]byte(text))
	return m.Sum(nil)
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

var at = time.Unix(1_700_000_000, 0)

// published are requests whose signatures the providers themselves have published.
var published = map[string]sent{
	"github, Validating webhook deliveries": {
		settings: webhook.Settings{Provider: "github"}, secret: "It's a Secret to Everybody",
		header: map[string]string{
			"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
			"Content-Type":        "text/plain",
		},
		body: "Hello, World!",
	},
	"slack, Verifying requests": {
		settings: webhook.Settings{Provider: "slack"}, secret: "8f742231b10e8888abcd99yyyzzz85a5", at: time.Unix(1531420618, 0),
		header: map[string]string{
			"X-Slack-Signature":         "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
			"X-Slack-Request-Timestamp": "1531420618",
			"Content-Type":              "application/x-www-form-urlencoded",
		},
		body: "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
	},
	"standard webhooks, its libraries": {
		settings: webhook.Settings{Provider: "standard_webhooks"}, secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", at: time.Unix(1614265330, 0),
		header: map[string]string{
			"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330",
			"webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		},
		body: `{"test": 2432232314}`,
	},
}

// signed are requests signed here as the providers' documents say.
func signed() map[string]sent {
	seconds, millis := strconv.FormatInt(at.Unix(), 10), strconv.FormatInt(at.UnixMilli(), 10)
	const body = `{"id":"evt_1","event_id":"Ev1","amount":12345678901234567890}`
	const address = "https://hooks.example.com/v1/webhooks/key"
	plain := sha256.Sum256([]byte("s3cret" + "POST" + address + "?a=b%2Cc" + body))
	return map[string]sent{
		"stripe": {settings: webhook.Settings{Provider: "stripe"}, header: map[string]string{
			"Stripe-Signature": "t=" + seconds + ",v1=" + hex.EncodeToString(mac(sha256.New, "s3cret", seconds+"."+body)) + ",v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39",
		}},
		"shopify": {settings: webhook.Settings{Provider: "shopify"}, header: map[string]string{
			"X-Shopify-Hmac-Sha256": b64(mac(sha256.New, "s3cret", body)), "X-Shopify-Webhook-Id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
		}},
		"github": {settings: webhook.Settings{Provider: "github"}, header: map[string]string{
			"X-Hub-Signature-256": "sha256=" + hex.EncodeToString(mac(sha256.New, "s3cret", body)), "X-GitHub-Delivery": "72d3162e",
		}},
		"woocommerce": {settings: webhook.Settings{Provider: "woocommerce"}, header: map[string]string{
			"X-WC-Webhook-Signature": b64(mac(sha256.New, "s3cret", body)), "X-WC-Webhook-Delivery-ID": "d1",
		}},
		"hubspot": {settings: webhook.Settings{Provider: "hubspot"}, url: address + "?a=b%2Cc", header: map[string]string{
			"X-HubSpot-Signature-v3":      b64(mac(sha256.New, "s3cret", "POST"+address+"?a=b,c"+body+millis)),
			"X-HubSpot-Request-Timestamp": millis,
		}},
		"hubspot behind a proxy": {
			settings: webhook.Settings{Provider: "hubspot", URL: address + "?a=b%2Cc"}, url: "http://10.0.0.7:8080/other",
			header: map[string]string{
				"X-HubSpot-Signature-v3":      b64(mac(sha256.New, "s3cret", "POST"+address+"?a=b,c"+body+millis)),
				"X-HubSpot-Request-Timestamp": millis,
			},
		},
		"hubspot v2": {settings: webhook.Settings{Provider: "hubspot", Version: "v2"}, url: address + "?a=b%2Cc", header: map[string]string{
			"X-HubSpot-Signature": hex.EncodeToString(plain[:]), "X-HubSpot-Signature-Version": "v2",
		}},
		"typeform": {settings: webhook.Settings{Provider: "typeform"}, header: map[string]string{
			"Typeform-Signature": "sha256=" + b64(mac(sha256.New, "s3cret", body)),
		}},
		"calendly": {settings: webhook.Settings{Provider: "calendly"}, header: map[string]string{
			"Calendly-Webhook-Signature": "t=" + seconds + ",v1=" + hex.EncodeToString(mac(sha256.New, "s3cret", seconds+"."+body)),
		}},
		"slack": {settings: webhook.Settings{Provider: "slack"}, header: map[string]string{
			"X-Slack-Signature":         "v0=" + hex.EncodeToString(mac(sha256.New, "s3cret", "v0:"+seconds+":"+body)),
			"X-Slack-Request-Timestamp": seconds,
		}},
		"svix": {settings: webhook.Settings{Provider: "svix"}, secret: "whsec_czNjcmV0", header: map[string]string{
			"svix-id": "msg_1", "svix-timestamp": seconds,
			"svix-signature": "v1a,zzzz v1," + b64(mac(sha256.New, "s3cret", "msg_1."+seconds+"."+body)),
		}},
		"generic, sha1": {settings: webhook.Settings{Provider: "generic", Verify: "hmac", Header: "X-Sig", Algorithm: "sha1", Prefix: "sha1="}, header: map[string]string{
			"X-Sig": "sha1=" + hex.EncodeToString(mac(sha1.New, "s3cret", body)),
		}},
		"generic, sha512 in base64 for URLs, with a time and an id": {
			settings: webhook.Settings{
				Provider: "generic", Verify: "hmac", Header: "X-Sig", Algorithm: "sha512", Encoding: "base64", TimestampHeader: "X-Time",
				Signed: "{id}:{timestamp}:{body};", IDHeader: "X-Id", Tolerance: 60,
			},
			header: map[string]string{
				"X-Sig":  base64.RawURLEncoding.EncodeToString(mac(sha512.New, "s3cret", "7:"+millis+":"+body+";")),
				"X-Time": millis, "X-Id": "7",
			},
		},
		"basic":  {settings: webhook.Settings{Provider: "generic", Verify: "basic", Username: "ada"}, header: map[string]string{"Authorization": "Basic " + b64([]byte("ada:s3cret"))}},
		"bearer": {settings: webhook.Settings{Provider: "generic", Verify: "bearer"}, header: map[string]string{"Authorization": "bearer s3cret"}},
		"token in a header": {settings: webhook.Settings{Provider: "cloudevents", Verify: "bearer", Header: "X-Token"}, header: map[string]string{
			"X-Token": "s3cret", "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t",
		}},
		"token in the query": {settings: webhook.Settings{Provider: "generic", Verify: "bearer"}, url: address + "?access_token=s3cret"},
	}
}

// all returns both, complete.
func all() map[string]sent {
	list := signed()
	for name, s := range list {
		if s.secret == "" {
			s.secret = "s3cret"
		}
		s.body, s.at = `{"id":"evt_1","event_id":"Ev1","amount":12345678901234567890}`, at
		list[name] = s
	}
	for name, s := range published {
		list[name] = s
	}
	return list
}

func endpoint(t testing.TB, s webhook.Settings, secrets ...string) *webhook.Endpoint {
	t.Helper()
	e, err := webhook.New(s, secrets)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// receive returns the ids of what a request brings. That a verified body is not what it should be is no concern here.
func receive(e *webhook.Endpoint, r *http.Request, body string, now time.Time) ([]string, error) {
	deliveries, _, err := e.Receive(r, []byte(body), now)
	if errors.Is(err, webhook.ErrMalformed) {
		err = nil
	}
	var ids []string
	for _, d := range deliveries {
		ids = append(ids, d.ID)
	}
	return ids, err
}

func TestWhatTheProviderSignedIsVerified(t *testing.T) {
	t.Parallel()
	wantIDs := map[string]string{
		"stripe": "evt_1", "shopify": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043", "github": "72d3162e", "woocommerce": "d1", "typeform": "Ev1",
		"slack": "Ev1", "svix": "msg_1", "generic, sha512 in base64 for URLs, with a time and an id": "7",
		"token in a header": "/s#1", "standard webhooks, its libraries": "msg_p5jXN8AQM9LWM0D4loKWxJek",
	}
	for name, s := range all() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := endpoint(t, s.settings, "whsec_b2xkZXI=", s.secret)
			ids, err := receive(e, s.request(), s.body, s.at)
			if err != nil {
				t.Fatal(err)
			}
			if want := wantIDs[name]; want != "" && !slices.Equal(ids, []string{want}) {
				t.Errorf("ids %q, want %q", ids, want)
			}
			again, _ := receive(e, s.request(), s.body, s.at)
			if diff := cmp.Diff(ids, again); diff != "" {
				t.Errorf("sent again it has other ids (-first +again):\n%s", diff)
			}
		})
	}
}

func TestWhatTheProviderDidNotSignIsRefused(t *testing.T) {
	t.Parallel()
	for name, s := range all() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := endpoint(t, s.settings, s.secret)
			refuse := func(what string, r *http.Request, body string) {
				t.Helper()
				if ids, err := receive(e, r, body, s.at); !errors.Is(err, webhook.ErrUnverified) {
					t.Errorf("%s: %q, %v; want ErrUnverified", what, ids, err)
				}
			}
			other := endpoint(t, s.settings, "whsec_b3RoZXI=")
			if _, err := receive(other, s.request(), s.body, s.at); !errors.Is(err, webhook.ErrUnverified) {
				t.Errorf("another secret: %v", err)
			}
			signs := s.settings.Verify == "" || s.settings.Verify == "hmac"
			if signs {
				for i := range s.body {
					b := []byte(s.body)
					b[i] ^= 1
					refuse("byte "+strconv.Itoa(i)+" changed", s.request(), string(b))
				}
				refuse("cut short", s.request(), s.body[:len(s.body)-1])
				refuse("no body", s.request(), "")
			}
			decisive := func(header string) bool {
				h := strings.ToLower(header)
				return strings.Contains(h, "sig") || strings.Contains(h, "time") || strings.Contains(h, "hmac") || h == "authorization" || strings.Contains(h, "token") ||
					strings.HasSuffix(h, "-id") && (strings.HasPrefix(h, "svix") || strings.HasPrefix(h, "webhook") || h == "x-id")
			}
			for header, value := range s.header {
				if !decisive(header) || strings.HasSuffix(header, "-Version") {
					continue
				}
				r := s.request()
				r.Header.Del(header)
				refuse("without "+header, r, s.body)
				r = s.request()
				r.Header.Set(header, "")
				refuse("with an empty "+header, r, s.body)
				r = s.request()
				if !strings.HasSuffix(strings.ToLower(header), "-id") {
					r.Header.Add(header, value)
					refuse("with "+header+" twice", r, s.body)
				}
				r = s.request()
				r.Header.Set(header, strings.Repeat("9", 40))
				refuse("with nonsense in "+header, r, s.body)
			}
			r := s.request()
			r.Method = http.MethodPut
			refuse("with PUT", r, s.body)
		})
	}
}

func TestWhatIsSentAgainLaterIsStale(t *testing.T) {
	t.Parallel()
	timed := 0
	for name, s := range all() {
		e := endpoint(t, s.settings, s.secret)
		tolerance := 300 * time.Second
		if s.settings.Tolerance != 0 {
			tolerance = time.Duration(s.settings.Tolerance) * time.Second
		}
		_, err := receive(e, s.request(), s.body, s.at.Add(24*time.Hour))
		if err == nil {
			continue // its signature has no time
		}
		timed++
		for _, d := range []time.Duration{tolerance + time.Second, -tolerance - time.Second} {
			if _, err := receive(e, s.request(), s.body, s.at.Add(d)); !errors.Is(err, webhook.ErrStale) {
				t.Errorf("%s, %v later: %v, want ErrStale", name, d, err)
			}
		}
		for _, d := range []time.Duration{tolerance, -tolerance} {
			if _, err := receive(e, s.request(), s.body, s.at.Add(d)); err != nil {
				t.Errorf("%s, %v later: %v", name, d, err)
			}
		}
	}
	if timed != 9 { // stripe, calendly, 2 × slack, 2 × hubspot, standard, svix, generic
		t.Errorf("%d of the requests have a time", timed)
	}
}

func TestSeveralSignatures(t *testing.T) {
	t.Parallel()
	s := all()["stripe"]
	e := endpoint(t, s.settings, s.secret)
	good := s.header["Stripe-Signature"]
	stamp, rest, _ := strings.Cut(good, ",")
	for header, want := range map[string]error{
		stamp + ",v1=" + strings.Repeat("00", 32) + "," + rest: nil, // one of them is ours
		stamp + ", " + rest:                               nil,
		stamp + ",t=1," + rest:                            webhook.ErrUnverified,
		strings.Replace(good, "v1=", "v2=", 1):            webhook.ErrUnverified,
		stamp + strings.Repeat(",v1=00", 16) + "," + rest: webhook.ErrUnverified, // no more are looked at
		stamp: webhook.ErrUnverified,
		strings.Replace(good, "t=17", "t=017", 1):                       webhook.ErrUnverified,
		strings.Replace(good, "v1="+rest[3:5], "v1="+rest[3:5]+"00", 1): webhook.ErrUnverified,
	} {
		r := s.request()
		r.Header.Set("Stripe-Signature", header)
		if _, err := receive(e, r, s.body, at); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", header, err, want)
		}
	}
}

func TestHandshakes(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		settings webhook.Settings
		secret   string
		method   string
		url      string
		header   map[string]string
		body     string
		want     string // "type: body", or "" if it is none
	}{
		"mailchimp looks whether somebody is there": {settings: webhook.Settings{Provider: "mailchimp"}, method: "GET", want: ": "},
		"woocommerce pings":                         {settings: webhook.Settings{Provider: "woocommerce"}, secret: "s", body: "webhook_id=17", want: ": "},
		"a ping with more in it is none":            {settings: webhook.Settings{Provider: "woocommerce"}, secret: "s", body: "webhook_id=17&a=b"},
		"microsoft graph": {
			settings: webhook.Settings{Provider: "generic", Verify: "bearer"}, secret: "s", url: "https://h/x?validationToken=a%3Cb", want: "text/plain; charset=utf-8: a<b",
		},
		"event grid": {
			settings: webhook.Settings{Provider: "cloudevents", Verify: "path"}, header: map[string]string{"aeg-event-type": "SubscriptionValidation"},
			body: `[{"id":"2d1781af","topic":"/subscriptions/x","subject":"","data":{"validationCode":"512d38b6-c7b8","validationUrl":"https://x"},"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","eventTime":"2018-01-25T22:12:19Z","metadataVersion":"1","dataVersion":"1"}]`,
			want: `application/json: {"validationResponse":"512d38b6-c7b8"}`,
		},
		"event grid without a code": {
			settings: webhook.Settings{Provider: "cloudevents", Verify: "bearer"}, secret: "s", header: map[string]string{"aeg-event-type": "SubscriptionValidation"}, body: `[{}]`,
		},
		"slack's challenge must be signed": {settings: webhook.Settings{Provider: "slack"}, secret: "s", body: `{"type":"url_verification","challenge":"3eZbrw1aB"}`},
		"stripe has none":                  {settings: webhook.Settings{Provider: "stripe"}, secret: "s", method: "GET"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var secrets []string
			if test.secret != "" {
				secrets = append(secrets, test.secret)
			}
			s := sent{url: test.url, header: test.header, body: test.body}
			r := s.request()
			if test.method != "" {
				r.Method = test.method
			}
			deliveries, answer, err := endpoint(t, test.settings, secrets...).Receive(r, []byte(test.body), at)
			switch {
			case test.want == "":
				if answer != nil || !errors.Is(err, webhook.ErrUnverified) {
					t.Errorf("answered %+v, %v", answer, err)
				}
			case err != nil || answer == nil || len(deliveries) > 0:
				t.Errorf("%v, %+v", err, deliveries)
			case answer.ContentType+": "+string(answer.Body) != test.want:
				t.Errorf("answered %s: %s", answer.ContentType, answer.Body)
			}
		})
	}

	stamp := strconv.FormatInt(at.Unix(), 10)
	body := `{"token":"Jhj5dZrVaK7ZwHHjRyZWjbDl","challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P","type":"url_verification"}`
	s := sent{body: body, header: map[string]string{
		"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": "v0=" + hex.EncodeToString(mac(sha256.New, "s", "v0:"+stamp+":"+body)),
	}}
	_, answer, err := endpoint(t, webhook.Settings{Provider: "slack"}, "s").Receive(s.request(), []byte(body), at)
	if err != nil || answer == nil || string(answer.Body) != "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P" {
		t.Errorf("slack's challenge: %+v, %v", answer, err)
	}
}

func TestDeliveries(t *testing.T) {
	t.Parallel()
	path := func(provider string) webhook.Settings { return webhook.Settings{Provider: provider, Verify: "path"} }
	for name, test := range map[string]struct {
		settings webhook.Settings
		header   map[string]string
		body     string
		want     []string // "id body"
		err      string
	}{
		"a form becomes an object": {
			settings: webhook.Settings{Provider: "mailchimp"}, header: map[string]string{"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
			body: "type=subscribe&fired_at=2009-03-26+21%3A35%3A57&data%5Bid%5D=8a25ff1d98&data[merges][FNAME]=MailChimp&data[tags][]=a&data[tags][]=b",
			want: []string{`sha256-31755a8b15cb1c906d7952a0c4f0d084 {"data":{"id":"8a25ff1d98","merges":{"FNAME":"MailChimp"},"tags":["a","b"]},"fired_at":"2009-03-26 21:35:57","type":"subscribe"}`},
		},
		"a form that contradicts itself":  {settings: webhook.Settings{Provider: "mailchimp"}, header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, body: "a=1&a[b]=2", err: "contradict"},
		"a form with JSON as its payload": {settings: path("generic"), header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, body: "payload=%7B%22a%22%3A1%7D", want: []string{`sha256-015abd7f5cc57a2dd94b7590f04ad808 {"a":1}`}},
		"the id of a header":              {settings: webhook.Settings{Provider: "generic", Verify: "path", IDHeader: "X-Id"}, header: map[string]string{"X-Id": "7"}, body: ` [1] `, want: []string{`7 [1]`}},
		"nothing":                         {settings: path("generic"), body: " ", err: "empty"},
		"not JSON":                        {settings: path("generic"), body: "{", err: "not JSON"},
		"a structured CloudEvent": {
			settings: path("cloudevents"), header: map[string]string{"Content-Type": "application/cloudevents+json; charset=UTF-8"},
			body: `{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","id":"C234-1234-1234","data":{"n":12345678901234567890}}`,
			want: []string{`/mycontext#C234-1234-1234 {"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","id":"C234-1234-1234","data":{"n":12345678901234567890}}`},
		},
		"a batch of CloudEvents": {
			settings: path("cloudevents"), header: map[string]string{"Content-Type": "application/cloudevents-batch+json"},
			body: `[{"specversion":"1.0","type":"t","source":"/s","id":"1"},{"specversion":"1.0","type":"t","source":"/s","id":"2"}]`,
			want: []string{`/s#1 {"specversion":"1.0","type":"t","source":"/s","id":"1"}`, `/s#2 {"specversion":"1.0","type":"t","source":"/s","id":"2"}`},
		},
		"an empty batch": {settings: path("cloudevents"), header: map[string]string{"Content-Type": "application/cloudevents-batch+json"}, body: `[]`},
		"a binary CloudEvent": {
			settings: path("cloudevents"),
			header: map[string]string{
				"ce-specversion": "1.0", "ce-type": "com.example.someevent", "ce-source": "/mycontext/4", "ce-id": "B234-1234-1234",
				"ce-subject": "Euro%20%E2%82%AC%20%F0%9F%98%80", "Content-Type": "application/json; charset=utf-8",
			},
			body: `{"n":1.10}`,
			want: []string{`/mycontext/4#B234-1234-1234 {"data":{"n":1.10},"datacontenttype":"application/json","id":"B234-1234-1234","source":"/mycontext/4","specversion":"1.0","subject":"Euro € 😀","type":"com.example.someevent"}`},
		},
		"a binary CloudEvent of bytes": {
			settings: path("cloudevents"), header: map[string]string{"ce-specversion": "1.0", "ce-type": "t", "ce-source": "/s", "ce-id": "1", "Content-Type": "image/gif"},
			body: "GIF", want: []string{`/s#1 {"data_base64":"R0lG","datacontenttype":"image/gif","id":"1","source":"/s","specversion":"1.0","type":"t"}`},
		},
		"a CloudEvent without source": {settings: path("cloudevents"), header: map[string]string{"Content-Type": "application/cloudevents+json"}, body: `{"specversion":"1.0","type":"t","id":"1"}`, err: "source"},
		"no CloudEvent":               {settings: path("cloudevents"), body: `{}`, err: "not a CloudEvent"},
		"event grid": {
			settings: path("cloudevents"), header: map[string]string{"aeg-event-type": "Notification"},
			body: `[{"id":"1","topic":"/t","subject":"s","data":{"n":12345678901234567890},"eventType":"Microsoft.Storage.BlobCreated","eventTime":"2017-06-26T18:41:00.9584103Z"}]`,
			want: []string{`/t#1 {"data":{"n":12345678901234567890},"id":"1","source":"/t","specversion":"1.0","subject":"s","time":"2017-06-26T18:41:00.9584103Z","type":"Microsoft.Storage.BlobCreated"}`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := sent{header: test.header, body: test.body}
			deliveries, _, err := endpoint(t, test.settings).Receive(s.request(), []byte(test.body), at)
			if test.err != "" {
				if !errors.Is(err, webhook.ErrMalformed) || !strings.Contains(err.Error(), test.err) {
					t.Errorf("%v, want one with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range deliveries {
				got = append(got, d.ID+" "+string(d.Body))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("deliveries (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHubSpotSendsListsAndNumbersItsAttempts(t *testing.T) {
	t.Parallel()
	ids := func(attempt string) []string {
		body := `[{"eventId":100,"subscriptionId":1184587,"portalId":6330748,"occurredAt":1461704185000,"subscriptionType":"contact.creation","attemptNumber":` + attempt + `,"objectId":123},
			{"eventId":100,"subscriptionId":1184587,"occurredAt":1461704185000,"attemptNumber":` + attempt + `,"objectId":124}]`
		stamp := strconv.FormatInt(at.UnixMilli(), 10)
		s := sent{body: body, header: map[string]string{
			"X-HubSpot-Request-Timestamp": stamp,
			"X-HubSpot-Signature-v3":      b64(mac(sha256.New, "s", "POSThttps://hooks.example.com/v1/webhooks/key"+body+stamp)),
		}}
		ids, err := receive(endpoint(t, webhook.Settings{Provider: "hubspot"}, "s"), s.request(), body, at)
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	want := []string{"100-1184587-123-1461704185000", "100-1184587-124-1461704185000"}
	for _, attempt := range []string{"0", "1"} {
		if diff := cmp.Diff(want, ids(attempt)); diff != "" {
			t.Errorf("attempt %s (-want +got):\n%s", attempt, diff)
		}
	}
}

func TestFirehose(t *testing.T) {
	t.Parallel()
	record := func(text string) string { return `{"data":"` + b64([]byte(text)) + `"}` }
	got, err := webhook.ReadFirehose([]byte(`{"requestId":"ed4acda5","timestamp":1578090901599,"records":[` +
		record(`{"n":12345678901234567890}`) + `,` + record(`{"a":1}{"a":2}`+"\n"+`{"a":3}`) + `,` + record("not JSON") + `,{"data":"%"},` + record("") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := webhook.Firehose{RequestID: "ed4acda5", Unreadable: 2, Deliveries: []webhook.Delivery{
		{ID: "ed4acda5-0", Body: []byte(`{"n":12345678901234567890}`)},
		{ID: "ed4acda5-1", Body: []byte(`{"a":1}`)},
		{ID: "ed4acda5-1-1", Body: []byte(`{"a":2}`)},
		{ID: "ed4acda5-1-2", Body: []byte(`{"a":3}`)},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, body := range []string{``, `[]`, `{}`, `{"requestId":1}`, `{"requestId":"","records":[]}`} {
		if _, err := webhook.ReadFirehose([]byte(body)); !errors.Is(err, webhook.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", body, err)
		}
	}
}

func TestFirehoseIsBounded(t *testing.T) {
	t.Parallel()
	data := b64([]byte(strings.Repeat("1 ", webhook.MaxRecords/2+1)))
	for name, body := range map[string]string{
		"records": `{"requestId":"r","records":[` + strings.TrimSuffix(strings.Repeat("{},", webhook.MaxRecords+1), ",") + `]}`,
		"values":  `{"requestId":"r","records":[{"data":"` + data + `"},{"data":"` + data + `"}]}`,
	} {
		if got, err := webhook.ReadFirehose([]byte(body)); !errors.Is(err, webhook.ErrTooMany) || got.Deliveries != nil {
			t.Errorf("too many %s: %d deliveries, %v, want ErrTooMany", name, len(got.Deliveries), err)
		}
	}
}

func TestAllow(t *testing.T) {
	t.Parallel()
	r, h := httptest.NewRequest(http.MethodOptions, "/", nil), http.Header{}
	if webhook.Allow(h, r) || len(h) > 0 {
		t.Errorf("nobody asked: %v", h)
	}
	r.Header.Set("WebHook-Request-Origin", "eventemitter.example.com")
	if !webhook.Allow(h, r) || h.Get("WebHook-Allowed-Origin") != "eventemitter.example.com" || h.Get("WebHook-Allowed-Rate") != "*" {
		t.Errorf("answered %v", h)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		settings webhook.Settings
		secrets  []string
		want     string // members and codes, sorted
	}{
		"no provider":                        {want: "provider unknown_provider"},
		"nobody knows it":                    {settings: webhook.Settings{Provider: "acme"}, want: "provider unknown_provider"},
		"no secret":                          {settings: webhook.Settings{Provider: "stripe"}, want: "secrets required"},
		"too many secrets":                   {settings: webhook.Settings{Provider: "stripe"}, secrets: []string{"a", "b", "c", "d", "e", "f"}, want: "secrets max"},
		"a secret twice":                     {settings: webhook.Settings{Provider: "stripe"}, secrets: []string{"a", "a"}, want: "secrets unique"},
		"an empty secret":                    {settings: webhook.Settings{Provider: "stripe"}, secrets: []string{""}, want: "secrets length"},
		"a secret that must be base64":       {settings: webhook.Settings{Provider: "standard_webhooks"}, secrets: []string{"whsec_%"}, want: "secrets secret"},
		"a secret where none is of use":      {settings: webhook.Settings{Provider: "mailchimp"}, secrets: []string{"a"}, want: "secrets not_for_provider"},
		"generic does not say how":           {settings: webhook.Settings{Provider: "generic"}, secrets: []string{"a"}, want: "verify required"},
		"stripe has its own way":             {settings: webhook.Settings{Provider: "stripe", Verify: "path"}, want: "verify not_for_provider"},
		"stripe has its own header":          {settings: webhook.Settings{Provider: "stripe", Header: "X"}, secrets: []string{"a"}, want: "header not_for_provider"},
		"shopify signs no time":              {settings: webhook.Settings{Provider: "shopify", Tolerance: 60}, secrets: []string{"a"}, want: "tolerance not_for_provider"},
		"too tolerant":                       {settings: webhook.Settings{Provider: "stripe", Tolerance: 3601}, secrets: []string{"a"}, want: "tolerance range"},
		"hmac without header":                {settings: webhook.Settings{Provider: "generic", Verify: "hmac"}, secrets: []string{"a"}, want: "header required"},
		"basic without username":             {settings: webhook.Settings{Provider: "generic", Verify: "basic"}, secrets: []string{"a"}, want: "username required"},
		"a username with a colon":            {settings: webhook.Settings{Provider: "generic", Verify: "basic", Username: "a:b"}, secrets: []string{"a"}, want: "username username"},
		"no such algorithm, and no encoding": {settings: webhook.Settings{Provider: "generic", Verify: "hmac", Header: "X", Algorithm: "md5", Encoding: "rot13"}, secrets: []string{"a"}, want: "algorithm oneof, encoding oneof"},
		"a header with a space":              {settings: webhook.Settings{Provider: "generic", Verify: "hmac", Header: "X Y"}, secrets: []string{"a"}, want: "header header"},
		"a time that is not signed":          {settings: webhook.Settings{Provider: "generic", Verify: "hmac", Header: "X", TimestampHeader: "T"}, secrets: []string{"a"}, want: "signed required"},
		"a text without the body":            {settings: webhook.Settings{Provider: "generic", Verify: "hmac", Header: "X", TimestampHeader: "T", Signed: "{timestamp}"}, secrets: []string{"a"}, want: "signed signed"},
		"a text with who knows what":         {settings: webhook.Settings{Provider: "generic", Verify: "hmac", Header: "X", Signed: "{body}{path}"}, secrets: []string{"a"}, want: "signed signed"},
		"no such version":                    {settings: webhook.Settings{Provider: "hubspot", Version: "v1"}, secrets: []string{"a"}, want: "version oneof"},
		"no URL":                             {settings: webhook.Settings{Provider: "hubspot", URL: "hooks.example.com"}, secrets: []string{"a"}, want: "url url"},
		"all is well":                        {settings: webhook.Settings{Provider: "generic", Verify: "hmac", Header: "X", Encoding: "base64", TimestampHeader: "T", Signed: "{timestamp}.{body}", Tolerance: 3600}, secrets: []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := webhook.New(test.settings, test.secrets)
			var got []string
			for _, e := range flatten(err) {
				var s *webhook.SettingsError
				if !errors.As(e, &s) {
					t.Fatalf("%v is not a SettingsError", e)
				}
				got = append(got, s.Member+" "+s.Code)
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// FuzzReceive: whatever headers say, nothing panics, and what nobody signed is never taken.
func FuzzReceive(f *testing.F) {
	for _, s := range all() {
		for header, value := range s.header {
			f.Add(s.settings.Provider, header, value, s.body)
		}
	}
	f.Fuzz(func(t *testing.T, provider, header, value, body string) {
		for _, s := range []webhook.Settings{
			{Provider: provider},
			{Provider: provider, Verify: "path"},
			{Provider: provider, Verify: "bearer"},
			{Provider: provider, Verify: "hmac", Header: "X-Sig", TimestampHeader: "X-Time", Signed: "{timestamp}.{body}"},
		} {
			secrets := []string{"c2VjcmV0IHRoYXQgbm9ib2R5IGtub3dz"}
			if s.Verify == "path" || provider == "mailchimp" || provider == "firehose" {
				secrets = nil
			}
			e, err := webhook.New(s, secrets)
			if err != nil {
				continue
			}
			r := httptest.NewRequest(http.MethodPost, "https://hooks.example.com/", nil)
			r.Header.Set("X-Time", "1700000000")
			r.Header.Set("X-HubSpot-Request-Timestamp", "1700000000000")
			if r.Header.Get(header) == "" {
				r.Header.Set(header, value)
			}
			deliveries, _, err := e.Receive(r, []byte(body), at)
			if len(secrets) > 0 && (err == nil || errors.Is(err, webhook.ErrMalformed)) && len(deliveries) > 0 {
				t.Errorf("%s took what nobody signed: %q: %q", provider, header, value)
			}
			for _, d := range deliveries {
				if d.ID == "" || len(d.Body) == 0 {
					t.Errorf("a delivery without id or body: %+v", d)
				}
			}
		}
		_, _ = webhook.ReadFirehose([]byte(body))
	})
}

package webhook

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Ways of verification.
const (
	verifySignature = "signature" // as the provider says
	verifyHMAC      = "hmac"      // as the settings say
	verifyBasic     = "basic"
	verifyBearer    = "bearer"
	verifyPath      = "path" // none but that of the path, which is secret
)

// methods are those that settings may choose, where the provider leaves it to whoever sets it up.
var methods = []string{verifyHMAC, verifyBasic, verifyBearer, verifyPath}

// members are the settings that a way of verification has, and required those it cannot do without.
var (
	members = map[string][]string{
		verifyHMAC:   {"header", "prefix", "algorithm", "encoding", "timestamp_header", "signed", "tolerance"},
		verifyBasic:  {"username"},
		verifyBearer: {"header", "prefix"},
	}
	required = map[string][]string{verifyHMAC: {"header"}, verifyBasic: {"username"}}
)

const defaultTolerance = 5 * time.Minute

// provider is what is particular to one who sends webhooks.
type provider struct {
	verify        string // the way of verification; "": settings choose
	signature     func(Settings) signature
	encodedSecret bool     // the secret is base64
	members       []string // the settings it has beside those of the way of verification
	mapping       string

	greet     func(r *http.Request, body []byte) *Answer // answers handshakes that are not signed
	challenge func(body []byte) *Answer                  // answers those that are
	read      func(r *http.Request, body []byte) ([]Delivery, error)
}

// providers are all there are. What each does is from its own documentation; where that leaves something open, the rule is
// told beside it.
var providers = map[string]provider{
	"stripe": {
		verify:    verifySignature,
		signature: stamped("Stripe-Signature"),
		members:   []string{"tolerance"},
		mapping:   "stripe",
		read:      identified(inBody("id")),
	},
	"shopify": {
		verify: verifySignature,
		signature: func(Settings) signature {
			return signature{header: "X-Shopify-Hmac-Sha256", hash: sha256.New, decode: base64.StdEncoding.DecodeString}
		},
		mapping: "shopify",
		read:    identified(inHeader("X-Shopify-Webhook-Id")),
	},
	"github": {
		verify: verifySignature,
		signature: func(Settings) signature {
			return signature{header: "X-Hub-Signature-256", prefix: "sha256=", hash: sha256.New, decode: hex.DecodeString}
		},
		mapping: "github",
		read:    identified(inHeader("X-GitHub-Delivery")), // JSON, or a form that has it as payload
	},
	"woocommerce": {
		verify: verifySignature,
		signature: func(Settings) signature {
			return signature{header: "X-WC-Webhook-Signature", hash: sha256.New, decode: base64.StdEncoding.DecodeString}
		},
		mapping: "woocommerce",
		greet:   wooPing,
		read:    identified(inHeader("X-WC-Webhook-Delivery-Id")),
	},
	"hubspot": {
		verify:    verifySignature,
		signature: hubspot,
		members:   []string{"version", "url", "tolerance"},
		mapping:   "hubspot",
		read:      hubspotEvents,
	},
	"typeform": {
		verify: verifySignature,
		signature: func(Settings) signature {
			return signature{header: "Typeform-Signature", prefix: "sha256=", hash: sha256.New, decode: base64.StdEncoding.DecodeString}
		},
		mapping: "typeform",
		read:    identified(inBody("event_id")),
	},
	"calendly": {
		verify:    verifySignature,
		signature: stamped("Calendly-Webhook-Signature"),
		members:   []string{"tolerance"},
		mapping:   "calendly",
		read:      identified(nil),
	},
	"mailchimp": {
		verify:  verifyPath, // it signs nothing, and says to put a secret into the address
		mapping: "mailchimp",
		greet:   anyGet,
		read:    identified(nil),
	},
	"slack": {
		verify:    verifySignature,
		signature: slack,
		members:   []string{"tolerance"},
		mapping:   "slack",
		challenge: slackChallenge,
		read:      identified(inBody("event_id")),
	},
	"standard_webhooks": {
		verify:        verifySignature,
		signature:     standard("Webhook-"),
		encodedSecret: true,
		members:       []string{"tolerance"},
		mapping:       "standard_webhooks",
		read:          identified(inHeader("Webhook-Id")),
	},
	"svix": { // the same under the names it had first
		verify:        verifySignature,
		signature:     standard("Svix-"),
		encodedSecret: true,
		members:       []string{"tolerance"},
		mapping:       "standard_webhooks",
		read:          identified(inHeader("Svix-Id")),
	},
	"cloudevents": {
		members: []string{"id_header"},
		mapping: "cloudevents",
		greet:   microsoft,
		read:    cloudEvents,
	},
	"firehose": {
		verify:  verifyPath, // its access key is a write key
		mapping: "generic",
		read: func(_ *http.Request, body []byte) ([]Delivery, error) {
			request, err := ReadFirehose(body)
			return request.Deliveries, err
		},
	},
	"generic": {
		members: []string{"id_header"},
		mapping: "generic",
		greet:   microsoft,
		read:    identified(nil),
	},
}

// Providers returns the names of all providers, in alphabetical order.
func Providers() []string { return slices.Sorted(maps.Keys(providers)) }

// stamped is the scheme of a header "t=1700000000,v1=…,v1=…" that signs the time and the body, with a dot between them.
func stamped(header string) func(Settings) signature {
	return func(Settings) signature {
		return signature{
			header: header, hash: sha256.New, decode: hex.DecodeString, unit: time.Second,
			split: func(_ http.Header, value string) (timestamp string, signatures []string) {
				for part := range strings.SplitSeq(value, ",") {
					name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
					switch {
					case name == "t" && timestamp != "":
						return "", nil
					case name == "t":
						timestamp = value
					case name == "v1":
						signatures = append(signatures, value)
					}
				}
				return timestamp, signatures
			},
			around: func(_ *http.Request, timestamp string) [][2]string { return [][2]string{{timestamp + "."}} },
		}
	}
}

func slack(Settings) signature {
	return signature{
		header: "X-Slack-Signature", prefix: "v0=", hash: sha256.New, decode: hex.DecodeString,
		timestamp: "X-Slack-Request-Timestamp", unit: time.Second,
		around: func(_ *http.Request, timestamp string) [][2]string { return [][2]string{{"v0:" + timestamp + ":"}} },
	}
}

// standard is the scheme of Standard Webhooks, section "Webhook signatures", under a prefix of the headers' names.
func standard(prefix string) func(Settings) signature {
	return func(Settings) signature {
		return signature{
			header: prefix + "Signature", hash: sha256.New, decode: base64.StdEncoding.DecodeString, key: standardKey,
			timestamp: prefix + "Timestamp", unit: time.Second,
			split: func(h http.Header, value string) (timestamp string, signatures []string) {
				for part := range strings.FieldsSeq(value) {
					if s, ok := strings.CutPrefix(part, "v1,"); ok {
						signatures = append(signatures, s)
					}
				}
				return h.Get(prefix + "Timestamp"), signatures
			},
			around: func(r *http.Request, timestamp string) [][2]string {
				return [][2]string{{r.Header.Get(prefix+"Id") + "." + timestamp + "."}}
			},
		}
	}
}

// standardKey returns the key in a secret "whsec_<base64>".
func standardKey(secret string) ([]byte, error) {
	return base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
}

// hubspot signs the method and the address too. Version 2 is no HMAC and has no time.
func hubspot(s Settings) signature {
	if s.Version == "v2" {
		return signature{
			header: "X-HubSpot-Signature", hash: sha256.New, decode: hex.DecodeString, plain: true,
			around: func(r *http.Request, _ string) (around [][2]string) {
				for _, address := range addresses(r, s.URL) {
					around = append(around, [2]string{r.Method + address})
				}
				return around
			},
		}
	}
	return signature{
		header: "X-HubSpot-Signature-v3", hash: sha256.New, decode: base64.StdEncoding.DecodeString,
		timestamp: "X-HubSpot-Request-Timestamp", unit: time.Millisecond,
		around: func(r *http.Request, timestamp string) (around [][2]string) {
			for _, address := range addresses(r, s.URL) {
				around = append(around, [2]string{r.Method + hubspotDecoder.Replace(address), timestamp})
			}
			return around
		},
	}
}

// hubspotDecoder decodes what HubSpot's "Validating requests" lists, and nothing else.
var hubspotDecoder = strings.NewReplacer(
	"%3A", ":", "%2F", "/", "%3F", "?", "%40", "@", "%21", "!", "%24", "$", "%27", "'", "%28", "(", "%29", ")", "%2A", "*", "%2C", ",", "%3B", ";",
)

// addresses returns how the provider may know the address of r: as it is configured, or as it came here, whatever the
// proxies say. A wrong one is harmless: the signature does not match.
func addresses(r *http.Request, configured string) []string {
	if configured != "" {
		return []string{configured}
	}
	target := r.URL.RequestURI()
	list := []string{"https://" + r.Host + target, "http://" + r.Host + target}
	if host := r.Header.Get("X-Forwarded-Host"); host != "" && host != r.Host {
		list = append(list, "https://"+host+target)
	}
	return list
}

// hubspotEvents are those of a list. HubSpot does not promise that eventId tells them apart, and numbers its attempts.
func hubspotEvents(_ *http.Request, body []byte) ([]Delivery, error) {
	list, err := elements(body)
	if err != nil {
		return nil, err
	}
	deliveries := make([]Delivery, len(list))
	for i, raw := range list {
		deliveries[i].Body = raw
		var id []string
		for _, name := range []string{"eventId", "subscriptionId", "objectId", "occurredAt"} {
			if v := member(raw, name); v != "" {
				id = append(id, v)
			}
		}
		if len(id) > 1 {
			deliveries[i].ID = strings.Join(id, "-")
		}
	}
	return deliveries, nil
}

// wooPing answers what WooCommerce sends when a webhook is saved: a form that has nothing but its number, unsigned.
func wooPing(r *http.Request, body []byte) *Answer {
	digits, ok := strings.CutPrefix(string(body), "webhook_id=")
	if r.Method == http.MethodPost && ok && digits != "" && strings.Trim(digits, "0123456789") == "" {
		return &Answer{}
	}
	return nil
}

// anyGet answers whoever only wants to see that somebody is there.
func anyGet(r *http.Request, _ []byte) *Answer {
	if r.Method == http.MethodGet {
		return &Answer{}
	}
	return nil
}

// slackChallenge answers Slack's url_verification.
func slackChallenge(body []byte) *Answer {
	if member(body, "type") != "url_verification" {
		return nil
	}
	return &Answer{ContentType: "text/plain; charset=utf-8", Body: []byte(member(body, "challenge"))}
}

// microsoft answers the handshakes of Azure Event Grid's own schema, and of Microsoft Graph's change notifications.
func microsoft(r *http.Request, body []byte) *Answer {
	if r.Method != http.MethodPost {
		return nil
	}
	if token := r.URL.Query().Get("validationToken"); token != "" {
		return &Answer{ContentType: "text/plain; charset=utf-8", Body: []byte(token)}
	}
	if r.Header.Get("Aeg-Event-Type") != "SubscriptionValidation" {
		return nil
	}
	var events []struct {
		Data struct {
			ValidationCode string `json:"validationCode"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &events) != nil || len(events) != 1 || events[0].Data.ValidationCode == "" {
		return nil
	}
	answer, err := json.Marshal(map[string]string{"validationResponse": events[0].Data.ValidationCode})
	if err != nil {
		return nil
	}
	return &Answer{ContentType: "application/json", Body: answer}
}

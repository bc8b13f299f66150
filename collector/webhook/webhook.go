// Package webhook tells whether a request is one that a provider of webhooks sent, and what it brings.
//
//	request ──► handshake? ──► signature ──► deliveries
//	            answered       or refused    the id and the JSON of each
//
// It is pure: it asks nobody, keeps nothing and looks at no clock.
package webhook

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

var (
	// ErrUnverified says that nothing proves that the request is the provider's: what should is missing or wrong.
	ErrUnverified = errors.New("the request is not verified")
	// ErrStale says that the request is the provider's, but was signed so long ago, or so far in the future, that somebody
	// else may be sending it again.
	ErrStale = errors.New("the request is stale")
	// ErrMalformed is wrapped by errors that say, in words for clients, why what the provider sent cannot be read.
	ErrMalformed = errors.New("malformed")
)

// Settings say who sends webhooks, and how that is known. Fields that a provider has no use for must be empty.
type Settings struct {
	Provider string `json:"provider"`
	// Verify is how requests of a provider are verified that does not say so itself: hmac, basic, bearer or path.
	Verify string `json:"verify,omitzero"`

	Header          string `json:"header,omitzero"`           // that has the signature or the token
	Prefix          string `json:"prefix,omitzero"`           // of the value in it, such as "sha256="
	Algorithm       string `json:"algorithm,omitzero"`        // sha256, sha1 or sha512; default sha256
	Encoding        string `json:"encoding,omitzero"`         // hex or base64; default hex
	TimestampHeader string `json:"timestamp_header,omitzero"` // that has the time of signing, in seconds or milliseconds
	Signed          string `json:"signed,omitzero"`           // such as "{timestamp}.{body}"; default "{body}"
	Username        string `json:"username,omitzero"`         // of basic authentication
	IDHeader        string `json:"id_header,omitzero"`        // that has the id of the delivery
	Version         string `json:"version,omitzero"`          // of HubSpot's signature: v3 or v2; default v3
	URL             string `json:"url,omitzero"`              // the address as the provider knows it, which HubSpot signs
	Tolerance       int    `json:"tolerance,omitzero"`        // in seconds, how old a signature may be; default 300
}

// Bounds of settings.
const (
	MaxSecrets   = 5
	MaxSecret    = 512 // bytes
	maxTolerance = 3600
	maxText      = 256
)

// SettingsError says what is wrong with settings, in words for clients.
type SettingsError struct {
	Member string // of Settings, as in JSON; "secrets" for the secrets
	Code   string
	Reason string // to be read behind the member
}

func (e *SettingsError) Error() string { return e.Member + " " + e.Reason }

// Endpoint is an address that a provider sends webhooks to. It may be used at once by many.
type Endpoint struct {
	provider provider
	settings Settings
	verify   verifier
}

// verifier returns nil if a request proves that the provider sent it, and otherwise ErrUnverified or ErrStale.
type verifier func(r *http.Request, body []byte, now time.Time) error

// New returns the endpoint of settings. Any of the secrets verifies a request. An error is joined of [SettingsError]s.
func New(s Settings, secrets []string) (*Endpoint, error) {
	p, ok := providers[s.Provider]
	if !ok {
		return nil, &SettingsError{"provider", "unknown_provider", "must be one of " + strings.Join(Providers(), ", ")}
	}
	method := p.verify
	if method == "" {
		if method = s.Verify; !slices.Contains(methods, method) {
			return nil, &SettingsError{"verify", "required", "is required for this provider: " + strings.Join(methods, ", ")}
		}
	} else if s.Verify != "" && s.Verify != method {
		return nil, &SettingsError{"verify", "not_for_provider", "must be left out: this provider has a way of its own"}
	}
	if errs := slices.Concat(s.check(p, method), checkSecrets(method, p, secrets)); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	e := &Endpoint{provider: p, settings: s}
	tolerance := cmp.Or(time.Duration(s.Tolerance)*time.Second, defaultTolerance)
	switch method {
	case verifySignature, verifyHMAC:
		scheme := described
		if p.signature != nil {
			scheme = p.signature
		}
		e.verify = scheme(s).verifier(secrets, tolerance)
	case verifyBasic:
		e.verify = basic(s.Username, secrets)
	case verifyBearer:
		e.verify = bearer(s.Header, s.Prefix, secrets)
	default: // whoever knows the path is believed
		e.verify = func(*http.Request, []byte, time.Time) error { return nil }
	}
	return e, nil
}

// check returns what is wrong with s, beside the secrets.
func (s Settings) check(p provider, method string) (errs []error) {
	allowed := slices.Concat(p.members, members[method])
	for _, m := range []struct{ name, value string }{
		{"header", s.Header},
		{"prefix", s.Prefix},
		{"algorithm", s.Algorithm},
		{"encoding", s.Encoding},
		{"timestamp_header", s.TimestampHeader},
		{"signed", s.Signed},
		{"username", s.Username},
		{"id_header", s.IDHeader},
		{"version", s.Version},
		{"url", s.URL},
	} {
		wrong := func(code, reason string) { errs = append(errs, &SettingsError{m.name, code, reason}) }
		switch {
		case m.value == "":
			if slices.Contains(required[method], m.name) {
				wrong("required", "is required with "+method)
			}
		case !slices.Contains(allowed, m.name):
			wrong("not_for_provider", "has no meaning for this provider and way of verification")
		case len(m.value) > maxText:
			wrong("max", fmt.Sprintf("must have at most %d characters", maxText))
		case strings.HasSuffix(m.name, "header") && !isToken(m.value):
			wrong("header", "must be the name of a header")
		case m.name == "algorithm" && hashes[m.value] == nil:
			wrong("oneof", "must be one of sha256, sha1, sha512")
		case m.name == "encoding" && m.value != "hex" && m.value != "base64":
			wrong("oneof", "must be one of hex, base64")
		case m.name == "version" && m.value != "v3" && m.value != "v2":
			wrong("oneof", "must be one of v3, v2")
		case m.name == "username" && strings.Contains(m.value, ":"):
			wrong("username", "must not contain a colon")
		case m.name == "url":
			if u, err := url.Parse(m.value); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
				wrong("url", "must be an absolute URL")
			}
		case m.name == "signed":
			if reason := checkSigned(m.value, s.TimestampHeader != "", s.IDHeader != ""); reason != "" {
				wrong("signed", reason)
			}
		}
	}
	if method == verifyHMAC && s.TimestampHeader != "" && !strings.Contains(s.Signed, "{timestamp}") {
		errs = append(errs, &SettingsError{"signed", "required", "must contain {timestamp}: a time that is not signed proves nothing"})
	}
	if s.Tolerance != 0 {
		switch {
		case !slices.Contains(allowed, "tolerance"):
			errs = append(errs, &SettingsError{"tolerance", "not_for_provider", "has no meaning for this provider: what it signs has no time"})
		case s.Tolerance < 1 || s.Tolerance > maxTolerance:
			errs = append(errs, &SettingsError{"tolerance", "range", fmt.Sprintf("must be from 1 to %d seconds", maxTolerance)})
		}
	}
	return errs
}

func checkSecrets(method string, p provider, secrets []string) (errs []error) {
	wrong := func(code, reason string) { errs = append(errs, &SettingsError{"secrets", code, reason}) }
	switch {
	case method == verifyPath && len(secrets) > 0:
		wrong("not_for_provider", "must be left out: whoever knows the path is believed")
	case method != verifyPath && len(secrets) == 0:
		wrong("required", "must have at least one")
	case len(secrets) > MaxSecrets:
		wrong("max", fmt.Sprintf("must have at most %d", MaxSecrets))
	}
	for i, secret := range secrets {
		switch {
		case secret == "" || len(secret) > MaxSecret:
			wrong("length", fmt.Sprintf("must have 1 to %d bytes each", MaxSecret))
		case slices.Contains(secrets[:i], secret):
			wrong("unique", "must not contain anything twice")
		case p.encodedSecret:
			if _, err := standardKey(secret); err != nil {
				wrong("secret", `must be base64, behind "whsec_"`)
			}
		}
	}
	return errs
}

// isToken tells whether s may name a header, as in RFC 9110, section 5.6.2.
func isToken(s string) bool {
	return s != "" && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~") == ""
}

// Delivery is what a request brings, or one of several things.
type Delivery struct {
	ID   string // the provider's, or derived from the body: the same whenever it is sent again
	Body []byte // JSON
}

// Answer is what a handshake is answered with.
type Answer struct {
	ContentType string
	Body        []byte
}

// Receive returns what a request brings, or the answer if it is a handshake, by which providers find out whether they have
// the right address. An error is ErrUnverified or ErrStale, or wraps ErrMalformed.
func (e *Endpoint) Receive(r *http.Request, body []byte, now time.Time) ([]Delivery, *Answer, error) {
	if e.provider.greet != nil {
		if answer := e.provider.greet(r, body); answer != nil {
			return nil, answer, nil
		}
	}
	if r.Method != http.MethodPost {
		return nil, nil, ErrUnverified
	}
	if err := e.verify(r, body, now); err != nil {
		return nil, nil, err
	}
	if e.provider.challenge != nil {
		if answer := e.provider.challenge(body); answer != nil {
			return nil, answer, nil
		}
	}
	deliveries, err := e.provider.read(r, body)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	for i, d := range deliveries {
		if d.ID == "" && e.settings.IDHeader != "" {
			d.ID = r.Header.Get(e.settings.IDHeader)
		}
		if d.ID == "" {
			d.ID = derivedID(d.Body)
		}
		deliveries[i] = d
	}
	return deliveries, nil, nil
}

// Mapping returns the name of the mapping that a provider's deliveries take if none is chosen.
func Mapping(provider string) string { return providers[provider].mapping }

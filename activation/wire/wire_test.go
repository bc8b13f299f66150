package wire_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/activation/wire"
)

func serve(t *testing.T, h http.HandlerFunc) (*http.Client, string) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	client := activation.NewClient(activation.Outbound{AllowPrivate: true})
	t.Cleanup(client.CloseIdleConnections)
	return client, server.URL
}

func TestWhatAStatusMeans(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status  int
		after   string
		class   activation.Class
		wait    time.Duration
		unknown bool
	}{
		{status: 200, class: activation.OK},
		{status: 204, class: activation.OK},
		{status: 302, class: activation.Retry},
		{status: 400, class: activation.Split},
		{status: 401, class: activation.Reauth},
		{status: 403, class: activation.Config},
		{status: 404, class: activation.Config},
		{status: 408, class: activation.Retry, unknown: true},
		{status: 409, class: activation.Retry},
		{status: 413, class: activation.Split},
		{status: 422, class: activation.Split},
		{status: 429, class: activation.Retry},
		{status: 429, after: "7", class: activation.RetryAfter, wait: 7 * time.Second},
		{status: 429, after: "Mon, 02 Jan 2006 15:04:05 GMT", class: activation.RetryAfter},
		{status: 429, after: "999999", class: activation.RetryAfter, wait: 24 * time.Hour},
		{status: 429, after: "-1", class: activation.Retry},
		{status: 500, class: activation.Retry, unknown: true},
		{status: 503, after: "2", class: activation.RetryAfter, wait: 2 * time.Second, unknown: true},
	} {
		client, at := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if tt.after != "" {
				w.Header().Set("Retry-After", tt.after)
			}
			w.WriteHeader(tt.status)
			if tt.status != 204 {
				io.WriteString(w, `for ada@example.com`)
			}
		})
		a, o := wire.Do(t.Context(), client, wire.Request{Method: http.MethodPost, URL: at, Body: []byte(`{}`)})
		if a.Status != tt.status || o.Status != tt.status || o.Class != tt.class || o.Wait != tt.wait || o.Unknown != tt.unknown {
			t.Errorf("%d, Retry-After %q: %+v, want %s, %v, unknown %v", tt.status, tt.after, o, tt.class, tt.wait, tt.unknown)
		}
		if strings.Contains(o.Excerpt, "ada@") || tt.status != 204 && o.Excerpt == "" {
			t.Errorf("%d: the excerpt is %q", tt.status, o.Excerpt)
		}
		if (o.Reason == "") != (o.Class == activation.OK) {
			t.Errorf("%d: the reason is %q", tt.status, o.Reason)
		}
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]http.HandlerFunc{
		"huge": func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 5<<20)) },
		"cut short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			io.WriteString(w, "{}")
		},
	} {
		client, at := serve(t, h)
		a, o := wire.Do(t.Context(), client, wire.Request{Method: http.MethodGet, URL: at})
		if o.Class != activation.Retry || !o.Unknown || len(a.Body) > 0 {
			t.Errorf("%s: %+v, %d bytes", name, o, len(a.Body))
		}
	}
	client, at := serve(t, func(http.ResponseWriter, *http.Request) {})
	strict := activation.NewClient(activation.Outbound{})
	for name, tt := range map[string]struct {
		client *http.Client
		url    string
		class  activation.Class
	}{
		"not a URL":     {client, "http://a b", activation.Config},
		"plain HTTP":    {strict, at, activation.Config},
		"nobody there":  {client, "http://127.0.0.1:1", activation.Retry},
		"not public":    {strict, "https://127.0.0.1", activation.Retry},
		"not even HTTP": {client, "gopher://127.0.0.1", activation.Retry},
	} {
		if a, o := wire.Do(t.Context(), tt.client, wire.Request{Method: http.MethodGet, URL: tt.url}); o.Class != tt.class || o.Unknown && name != "not even HTTP" || a.Status != 0 {
			t.Errorf("%s: %+v, want %s", name, o, tt.class)
		}
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status int
		body   string
		class  activation.Class
		token  wire.Token
		life   time.Duration
	}{
		{200, `{"access_token":"a","refresh_token":"r","expires_in":3600,"scope":"s"}`, activation.OK, wire.Token{Access: "a", Refresh: "r"}, time.Hour},
		{200, `{"access_token":"a"}`, activation.OK, wire.Token{Access: "a"}, 0},
		{200, `{}`, activation.Retry, wire.Token{}, 0},
		{200, `<html>`, activation.Retry, wire.Token{}, 0},
		{400, `{"error":"invalid_grant","error_description":"revoked"}`, activation.Reauth, wire.Token{}, 0},
		{401, `{"error":"invalid_client"}`, activation.Reauth, wire.Token{}, 0},
		{400, `{"error":"invalid_scope"}`, activation.Config, wire.Token{}, 0},
		{400, `<html>`, activation.Retry, wire.Token{}, 0},
		{403, `blocked by a proxy`, activation.Retry, wire.Token{}, 0},
		{400, `{"error":"temporarily_unavailable"}`, activation.Retry, wire.Token{}, 0},
		{429, ``, activation.Retry, wire.Token{}, 0},
		{503, `{"error":"invalid_grant"}`, activation.Retry, wire.Token{}, 0},
	} {
		client, at := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("refresh_token") != "old" || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
				t.Errorf("the form is %v", r.Form)
			}
			w.WriteHeader(tt.status)
			io.WriteString(w, tt.body)
		})
		before := time.Now()
		token, o := wire.Refresh(t.Context(), client, at, url.Values{"refresh_token": {"old"}})
		if tt.status == 403 && !strings.Contains(o.Reason, "look at") {
			t.Errorf("of an unknown 403 it says %q", o.Reason)
		}
		if o.Class != tt.class || o.Excerpt != "" {
			t.Errorf("%d %s: %+v, want %s", tt.status, tt.body, o, tt.class)
		}
		if token.Expires.IsZero() != (tt.life == 0) || tt.life > 0 && token.Expires.Before(before.Add(tt.life)) {
			t.Errorf("%s: it ends at %v", tt.body, token.Expires)
		}
		token.Expires = time.Time{}
		if diff := cmp.Diff(tt.token, token); diff != "" {
			t.Errorf("%s: %s", tt.body, diff)
		}
	}
}

type reached struct {
	Region string `json:"region" validate:"oneof=eu us"`
}

func TestSettingsThatDestinationsShare(t *testing.T) {
	t.Parallel()
	type config struct {
		Account string `json:"account" validate:"required"`
		reached
	}
	err := wire.Check(activation.Settings{Config: jsontext.Value(`{"region":"mars"}`)}, &config{}, &struct{}{})
	const want = "/config/account is required\n/config/region must be one of eu, us"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	type config struct {
		Account string `json:"account" validate:"required,numeric"`
		Nested  struct {
			Format string `json:"format" validate:"omitempty,oneof=a b"`
		} `json:"nested,omitzero"`
		Batch int      `json:"batch,omitzero" validate:"min=0,max=10"`
		List  []string `json:"list,omitzero" validate:"omitempty,min=2,max=3,unique,dive,number"`
	}
	type secrets struct {
		Token    string `json:"token" validate:"required"`
		Other    string `json:"other,omitzero" validate:"required_without=Token"`
		Password string `json:"password,omitzero" secret:"text"`
	}
	for _, tt := range []struct {
		config, secrets string
		want            []activation.FieldError
	}{
		{`{"account":"12","batch":3,"nested":{"format":"b"}}`, `{"token":"t"}`, nil},
		{`{"account":"1-2","batch":11,"nested":{"format":"c"}}`, ``, []activation.FieldError{
			{Pointer: "/config/account", Detail: "must be digits only"},
			{Pointer: "/config/nested/format", Detail: "must be one of a, b"},
			{Pointer: "/config/batch", Detail: "must be at most 10"},
			{Pointer: "/secrets/token", Detail: "is required"},
			{Pointer: "/secrets/other", Detail: "is required, unless there is a token"},
		}},
		{`{"account":"1","list":["2","x"]}`, `{"token":"t"}`, []activation.FieldError{{Pointer: "/config/list/1", Detail: "must be digits only"}}},
		{`{"account":"1","list":["2"]}`, `{"token":"t"}`, []activation.FieldError{{Pointer: "/config/list", Detail: "must have at least 2 of them"}}},
		{`{"account":"1","list":["2","3","4","5"]}`, `{"token":"t"}`, []activation.FieldError{{Pointer: "/config/list", Detail: "must have at most 3 of them"}}},
		{`{"account":"1","list":["2","2"]}`, `{"token":"t"}`, []activation.FieldError{{Pointer: "/config/list", Detail: "must not have one twice"}}},
		{`{"account":1}`, `{"token":"t","more":1}`, []activation.FieldError{
			{Pointer: "/config/account", Detail: "must be a string"}, {Pointer: "/secrets/more", Detail: "is not known here"},
		}},
		{`[]`, `{"token":"t"}`, []activation.FieldError{{Pointer: "/config", Detail: "must be an object"}}},
		{`{"account":7,"batch":"1","nested":{"format":true,"x":{}},"list":["2",3,"x"],"more":1}`, `{"token":[]}`, []activation.FieldError{
			{Pointer: "/config/account", Detail: "must be a string"},
			{Pointer: "/config/batch", Detail: "must be a whole number"},
			{Pointer: "/config/list/1", Detail: "must be a string"},
			{Pointer: "/config/more", Detail: "is not known here"},
			{Pointer: "/config/nested/format", Detail: "must be a string"},
			{Pointer: "/config/nested/x", Detail: "is not known here"},
			{Pointer: "/config/list/2", Detail: "must be digits only"},
			{Pointer: "/secrets/token", Detail: "must be a string"},
			{Pointer: "/secrets/other", Detail: "is required, unless there is a token"},
		}},
		{`{"account":"1"}`, `{"token":"a b","password":" a b "}`, []activation.FieldError{{Pointer: "/secrets/token", Detail: "holds a space or line break"}}},
		{`{"account":"1"}`, `{"token":" \n"}`, []activation.FieldError{
			{Pointer: "/secrets/token", Detail: "is required"}, {Pointer: "/secrets/other", Detail: "is required, unless there is a token"},
		}},
	} {
		var (
			c config
			s secrets
		)
		err := wire.Check(activation.Settings{Config: jsontext.Value(tt.config), Secrets: jsontext.Value(tt.secrets)}, &c, &s)
		if diff := cmp.Diff(tt.want, partnertest.FieldErrors(err)); diff != "" {
			t.Errorf("%s %s: %s", tt.config, tt.secrets, diff)
		}
		if tt.want != nil {
			continue
		}
		kept, err := wire.Settings(c, s)
		var again config
		if err = errors.Join(err, wire.Read(kept, &again, &s)); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("read back: %+v, %v", again, err)
		}
	}
	var s secrets
	err := wire.Check(activation.Settings{
		Config: jsontext.Value(`{"account":"1"}`), Secrets: jsontext.Value(`{"token":"\tt-1\r\n","password":" p "}`),
	}, &config{}, &s)
	if err != nil || s.Token != "t-1" || s.Password != " p " {
		t.Errorf("secrets with white space around them are kept as %+v, %v", s, err)
	}
	err = wire.Check(activation.Settings{Config: jsontext.Value(`{"batch":"1","x":2,"list":[""]}`)}, &config{}, nil)
	var codes []string
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap()[0].(interface{ Unwrap() []error }).Unwrap() {
		codes = append(codes, e.(*activation.FieldError).Code)
	}
	if want := []string{"wrong_type", "unknown_member", "required", ""}; !slices.Equal(codes, want) {
		t.Errorf("the codes of %v are %q, want %q", err, codes, want)
	}
	ordered := map[string]int{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
	for range 20 {
		kept, err := wire.Settings(ordered, ordered)
		if want := `{"a":1,"b":2,"c":3,"d":4,"e":5}`; err != nil || string(kept.Config) != want || string(kept.Secrets) != want {
			t.Fatalf("maps are stored as %s and %s, %v", kept.Config, kept.Secrets, err)
		}
	}
	if got := wire.Mask("0123456789abcdef"); got != "…cdef" {
		t.Errorf("Mask = %q", got)
	}
	if got := wire.Mask("short"); got != "…" {
		t.Errorf("Mask of a short secret = %q", got)
	}
}

func TestHeadersThatCannotBeSent(t *testing.T) {
	t.Parallel()
	client := activation.NewClient(activation.Outbound{AllowPrivate: true})
	for _, value := range []string{"Bearer a\nb", "Bearer a\x00", "Bearer a\x7f"} {
		_, o := wire.Do(t.Context(), client, wire.Request{
			Method: "GET", URL: "http://127.0.0.1:1/", Header: http.Header{"Authorization": {value}},
		})
		if o.Class != activation.Config || o.Unknown || o.Reason != activation.ErrHeader.Error() {
			t.Errorf("%q: %+v, want the class config, and why", value, o)
		}
	}
}

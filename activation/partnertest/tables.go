package partnertest

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// What follows is for the tables of a partner's own tests, beside the suite.

// Private is what lets a partner reach a fake.
var Private = activation.Outbound{AllowPrivate: true}

// NewClient returns a client that reaches fakes, for as long as the test lives.
func NewClient(t testing.TB) *http.Client {
	t.Helper()
	client := activation.NewClient(Private)
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// Answering returns the URL of a server that answers everything with a status and a body.
func Answering(t testing.TB, status int, body string) (url string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// Ask makes a request of a fake as no partner of ours would. Headers whose value is "" are left out.
func Ask(t testing.TB, method, url, body string, header map[string]string) (answer string, status int) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), res.StatusCode
}

// With returns somebody with texts as traits, and identifiers.
func With(traits map[string]string, ids ...activation.Identifier) activation.Person {
	p := activation.Person{Identifiers: ids, Traits: map[string]jsontext.Value{}}
	for name, text := range traits {
		value, err := jsontext.AppendQuote(nil, text)
		if err != nil {
			panic(err)
		}
		p.Traits[name] = value
	}
	return p
}

// NoViolations fails the test if something was noted.
func NoViolations(t testing.TB, f interface{ Violations() []string }) {
	t.Helper()
	for _, v := range f.Violations() {
		t.Errorf("violation: %s", v)
	}
}

// FieldErrors returns the *[activation.FieldError]s that are joined in an error, in order and without their codes.
func FieldErrors(err error) (list []activation.FieldError) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			list = append(list, FieldErrors(e)...)
		}
		return list
	}
	var f *activation.FieldError
	if errors.As(err, &f) {
		list = append(list, activation.FieldError{Pointer: f.Pointer, Detail: f.Detail})
	}
	return list
}

// Package problem is how mubatch tells a client over HTTP that something went wrong: RFC 9457 problem details.
//
// A [Problem] is an error, so a handler returns it like any other and one function writes it. What is in it was written
// for clients; errors that were not are turned into [Status] first, so their texts stay in the log.
package problem

import (
	"encoding/json"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// ContentType is the media type of a problem.
const ContentType = "application/problem+json"

// base and a problem's code make its type.
const base = "https://mubatch.dev/problems/"

// Problem is an error written for a client.
type Problem struct {
	Type     string       `json:"type"`               // a URI naming the kind of problem, or "about:blank"
	Title    string       `json:"title"`              // the same for all problems of one type
	Status   int          `json:"status"`             // the HTTP status
	Detail   string       `json:"detail,omitempty"`   // what is wrong this time, and how to put it right
	Instance string       `json:"instance,omitempty"` // a URI reference naming this occurrence
	Code     string       `json:"code,omitempty"`     // the last part of the type, for programs to switch on; it never changes
	Errors   []FieldError `json:"errors,omitempty"`   // each fault found in the request

	// RetryAfter, if positive, is sent as a Retry-After header, in whole seconds, rounded up.
	RetryAfter time.Duration `json:"-"`
}

// FieldError is one fault in one place of a request.
type FieldError struct {
	Pointer string `json:"pointer"`        // JSON Pointer in its URI fragment form: "#/batch/0/event"; "#" is the whole body
	Code    string `json:"code,omitempty"` // for programs to switch on
	Detail  string `json:"detail"`         // reads well behind the pointer: "is required"
}

// New returns a problem of the kind that code names, such as "unknown_write_key". The title says the same to people.
func New(status int, code, title string) *Problem {
	return &Problem{Type: base + code, Title: title, Status: status, Code: code}
}

// Status returns the problem that says no more than the status does: for what is not for clients to know, or needs
// no saying.
func Status(status int) *Problem {
	title := http.StatusText(status)
	if title == "" {
		title = "Status " + strconv.Itoa(status)
	}
	code := strings.ToLower(strings.NewReplacer(" ", "_", "-", "_", "'", "").Replace(title))
	return &Problem{Type: "about:blank", Title: title, Status: status, Code: code}
}

// Error returns the title and the detail.
func (p *Problem) Error() string {
	if p.Detail == "" {
		return p.Title
	}
	return p.Title + ": " + p.Detail
}

// Write answers r with p. Nothing of the answer may have been written before. Headers already set are kept, but for
// those that would describe another body.
func Write(w http.ResponseWriter, r *http.Request, p *Problem) {
	body, err := json.Marshal(p)
	if err != nil { // strings and integers always marshal
		body = []byte("{}")
	}
	h := w.Header()
	h.Del("Content-Encoding")
	h.Del("ETag")
	h.Set("Content-Type", ContentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(p.RetryAfter.Seconds())), 10))
	}
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client is gone: nobody is left to tell
	}
}

// Pointer returns the JSON Pointer (RFC 6901), in its fragment form, of what is reached by the given member names and
// indices.
func Pointer(tokens ...string) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteByte('/')
		b.WriteString(escape.Replace(t))
	}
	return "#" + (&url.URL{Fragment: b.String()}).EscapedFragment()
}

var escape = strings.NewReplacer("~", "~0", "/", "~1")

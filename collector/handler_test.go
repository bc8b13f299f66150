package collector_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

func TestEveryCallIsStored(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	bodies := map[string]string{
		"track":    `{"messageId":"track","userId":"ada","event":"Signed Up","properties":{"plan":"pro"}}`,
		"identify": `{"messageId":"identify","userId":"ada","traits":{"email":"ada@example.org"}}`,
		"page":     `{"messageId":"page","anonymousId":"v1","name":"Home"}`,
		"screen":   `{"messageId":"screen","anonymousId":"v1","name":"Main"}`,
		"group":    `{"messageId":"group","userId":"ada","groupId":"g1"}`,
		"alias":    `{"messageId":"alias","userId":"ada","previousId":"v1"}`,
	}
	before := time.Now().Truncate(time.Millisecond)
	for call, body := range bodies {
		w := s.post("/v1/"+call, body)
		if w.Code != 200 || w.Body.String() != `{"success":true}` || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s", call, w.Code, w.Body)
		}
	}
	after := time.Now()
	got := map[string]profiles.Message{}
	for _, m := range s.messages() {
		got[decode[event](t, m.Body).Type] = m
	}
	for call := range bodies {
		m, ok := got[call]
		who := profiles.Identifier{Kind: profiles.UserID, Value: "ada"}
		if call == "page" || call == "screen" {
			who = profiles.Identifier{Kind: profiles.AnonymousID, Value: "v1"}
		}
		want := profiles.Message{
			Kind: profiles.KindEvent, Workspace: s.source.WorkspaceID, Source: s.source.ID, ID: profiles.MessageKey(call),
			Key: secret.Key(who), Received: m.Received, Body: m.Body,
		}
		if diff := cmp.Diff(want, m); !ok || diff != "" {
			t.Errorf("%s (-want +got):\n%s", call, diff)
		}
		if m.Received.Before(before) || m.Received.After(after) {
			t.Errorf("%s: received %v", call, m.Received)
		}
		if e := decode[event](t, m.Body); e.MessageID != call || !strings.Contains(string(e.Context), `"ip":"192.0.2.1"`) {
			t.Errorf("%s: %s", call, m.Body)
		}
	}
}

func TestABatchAnswersForEachEvent(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	w := s.post("/v1/batch", `{"context":{"library":{"name":"go"}},"sentAt":"2026-01-01T00:00:00Z","batch":[
		{"type":"track","messageId":"good","userId":"ada","event":"e"},
		{"type":"track","messageId":"no event","userId":"ada"},
		17,
		{"type":"page","userId":"ada"},
		{"type":"page","messageId":"twice","userId":"ada","context":{"x":1,"x":2}}
	]}`)
	type result struct {
		Index     int    `json:"index"`
		MessageID string `json:"message_id"`
		Generated bool   `json:"message_id_generated"`
		Status    string `json:"status"`
		Code      string `json:"code"`
		Reason    string `json:"reason"`
		Pointer   string `json:"pointer"`
	}
	type answer struct {
		Success bool     `json:"success"`
		Results []result `json:"results"`
	}
	got := decode[answer](t, w.Body.Bytes())
	if w.Code != 200 || len(got.Results) != 5 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	made := got.Results[3].MessageID
	want := answer{true, []result{
		{Index: 0, MessageID: "good", Status: "accepted"},
		{Index: 1, MessageID: "no event", Status: "rejected", Code: "missing_event", Reason: "is required in a track call", Pointer: "#/batch/1/event"},
		{Index: 2, Status: "rejected", Code: "wrong_type", Reason: "must be an object", Pointer: "#/batch/2"},
		{Index: 3, MessageID: made, Generated: true, Status: "accepted"},
		{Index: 4, MessageID: "twice", Status: "rejected", Code: "duplicate_member", Reason: "is there twice", Pointer: "#/batch/4/context/x"},
	}}
	if diff := cmp.Diff(want, got); diff != "" || made == "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	ids := map[profiles.Key]bool{}
	for _, m := range s.messages() {
		ids[m.ID] = true
		if !bytes.Contains(m.Body, []byte(`"library":{"name":"go"}`)) {
			t.Errorf("without the batch's context: %s", m.Body)
		}
	}
	if len(ids) != 2 || !ids[profiles.MessageKey("good")] || !ids[profiles.MessageKey(made)] {
		t.Errorf("%d messages are stored, want the two good ones", len(ids))
	}

	if w := s.post("/v1/batch", `{"batch":[{"type":"page","userId":"u"}]}`); w.Body.String() != `{"success":true}` {
		t.Errorf("all accepted: %s", w.Body)
	}
	w = s.post("/v1/import?results=all", `{"batch":[{"type":"page","userId":"u","messageId":"m"}]}`)
	if w.Body.String() != `{"success":true,"results":[{"index":0,"message_id":"m","status":"accepted"}]}` {
		t.Errorf("asked for results: %s", w.Body)
	}
	w = s.post("/v1/page?results=all", `{"userId":"u","messageId":"m"}`)
	if w.Body.String() != `{"success":true,"results":[{"index":0,"message_id":"m","status":"accepted"}]}` {
		t.Errorf("asked for the result of one: %s", w.Body)
	}
	if w := s.post("/v1/batch", `{"batch":[]}`); w.Code != 200 || w.Body.String() != `{"success":true}` {
		t.Errorf("an empty batch: %d %s", w.Code, w.Body)
	}
	w = s.post("/v1/batch", `{"batch":[{"type":"page"},1]}`)
	p := decode[problem.Problem](t, w.Body.Bytes())
	if w.Code != 400 || p.Code != "rejected" || len(p.Errors) != 2 || p.Errors[0].Pointer != "#/batch/0" {
		t.Errorf("all rejected: %d %s", w.Code, w.Body)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	deep := strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000)
	events := func(n int) string { return `{"batch":[` + strings.TrimSuffix(strings.Repeat("1,", n), ",") + `]}` }
	tests := []struct {
		name, path, body string
		status           int
		code, pointer    string
		detail           string
	}{
		{"nothing", "/v1/track", "", 400, "malformed_json", "#", "is empty"},
		{"space", "/v1/batch", " \n", 400, "malformed_json", "#", "is empty"},
		{"not JSON", "/v1/track", "userId=ada", 400, "malformed_json", "#", "at byte 0"},
		{"cut short", "/v1/track", `{"userId":"ada","tra`, 400, "malformed_json", "#", "ends before the JSON is complete"},
		{"cut short in the batch", "/v1/batch", `{"batch":[{"type":"page"},{"userId":`, 400, "malformed_json", "#/batch/1/userId", "ends before"},
		{"something behind it", "/v1/track", `{"userId":"ada"} {}`, 400, "malformed_json", "#", "behind the end"},
		{"rubbish behind it", "/v1/track", `{"userId":"ada"}}`, 400, "malformed_json", "#", "at byte 16"},
		{"a raw control character", "/v1/track", "{\"userId\":\"a\x00b\"}", 400, "malformed_json", "#/userId", "at byte"},
		{"not a number", "/v1/track", `{"userId":"a","x":NaN}`, 400, "malformed_json", "#/x", "at byte 18"},
		{"a comma too many", "/v1/batch", `{"batch":[{"type":"page","userId":"u"},]}`, 400, "malformed_json", "#/batch", "at byte"},
		{"a name that is no string", "/v1/batch", `{1:2}`, 400, "malformed_json", "#", "at byte"},
		{"nested beyond all measure", "/v1/track", `{"userId":"a","x":` + deep + `}`, 400, "malformed_json", "", "depth"},
		{"nested beyond all measure in the batch", "/v1/batch", `{"batch":[` + deep + `]}`, 400, "malformed_json", "", "depth"},
		{"an array", "/v1/track", `[{"userId":"ada"}]`, 400, "wrong_type", "#", "must be an object"},
		{"a batch that is an array", "/v1/batch", `[{"userId":"ada"}]`, 400, "wrong_type", "#", "must be an object"},
		{"null", "/v1/batch", `null`, 400, "wrong_type", "#", "must be an object"},
		{"no batch", "/v1/batch", `{"Batch":[]}`, 400, "missing_batch", "#/batch", "is required"},
		{"a null batch", "/v1/batch", `{"batch":null}`, 400, "missing_batch", "#/batch", "is required"},
		{"a batch that is an object", "/v1/batch", `{"batch":{}}`, 400, "wrong_type", "#/batch", "must be an array"},
		{"two batches", "/v1/batch", `{"batch":[],"batch":[]}`, 400, "duplicate_member", "#/batch", "twice"},
		{"a context that is a string", "/v1/batch", `{"batch":[],"context":"x"}`, 400, "wrong_type", "#/context", "must be an object"},
		{"a context with a fault", "/v1/batch", `{"batch":[],"context":{"a":{"b":1e999}}}`, 400, "number_out_of_range", "#/context/a/b", "beyond"},
		{"a context too large", "/v1/batch", `{"batch":[],"context":{"a":"` + strings.Repeat("x", 40_000) + `"}}`, 400, "too_large", "#/context", "larger than"},
		{"a context too large for its events", "/v1/batch", `{"context":{"a":"` + strings.Repeat("x", 30_000) + `"},` + events(2000)[1:], 400, "too_large", "#/context", "smaller batches"},
		{"a sentAt that is a list", "/v1/batch", `{"batch":[],"sentAt":[]}`, 400, "wrong_type", "#/sentAt", "must be a string"},
		{"too many events", "/v1/batch", events(2501), 400, "too_many_events", "#/batch", "has 2501 events; send at most 2500"},
		{"an absurd number of events", "/v1/batch", events(200_000), 400, "too_many_events", "#/batch", "has 200000 events"},
		{"a body too large", "/v1/track", `{"x":"` + strings.Repeat("x", 600_000) + `"}`, 413, "too_large", "", ""},
		{"an event that is rejected", "/v1/track", `{"userId":"ada"}`, 400, "rejected", "#/event", "is required"},
		{"an event too large", "/v1/track", `{"userId":"u","event":"e","x":"` + strings.Repeat("x", 40_000) + `"}`, 400, "rejected", "#", "is larger than"},
		{"a member twice", "/v1/track", `{"userId":"u","userId":"u","event":"e"}`, 400, "rejected", "#/userId", "twice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := s.post(tt.path, tt.body)
			p := decode[problem.Problem](t, w.Body.Bytes())
			if w.Code != tt.status || p.Status != tt.status || p.Code != tt.code || p.Title == "" || p.Detail == "" ||
				w.Header().Get("Content-Type") != problem.ContentType {
				t.Errorf("%d %s, want %d %s", w.Code, w.Body, tt.status, tt.code)
			}
			if tt.detail == "" {
				return
			}
			if len(p.Errors) != 1 || len(p.Errors[0].Pointer) > 1024 || !strings.Contains(p.Errors[0].Detail, tt.detail) || tt.pointer != "" && p.Errors[0].Pointer != tt.pointer {
				t.Errorf("%+v, want %s %q", p.Errors, tt.pointer, tt.detail)
			}
		})
	}
	t.Cleanup(func() {
		if n := len(s.messages()); n != 0 {
			t.Errorf("%d messages are stored, want none", n)
		}
	})
}

func gzipped(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTheContentDecidesNotTheHeaders(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	const page = `{"userId":"u"}`
	bomb := gzipped(t, `{"userId":"u","x":"`+strings.Repeat("x", 10<<20)+`"}`)
	tests := []struct {
		name, body, encoding, contentType string
		status                            int
		code                              string
	}{
		{"no content type", page, "", "", 200, ""},
		{"text/plain", page, "", "text/plain", 200, ""},
		{"a form that is none", page, "", "application/x-www-form-urlencoded", 200, ""},
		{"with a charset", page, "", "application/json; charset=UTF-8", 200, ""},
		{"gzip", gzipped(t, page), "gzip", "application/json", 200, ""},
		{"gzip in capitals", gzipped(t, page), "GZIP", "", 200, ""},
		{"gzip that does not say so", gzipped(t, page), "", "text/plain", 200, ""},
		{"gzip that a proxy unpacked", page, "gzip", "application/json", 200, ""},
		{"identity", page, "identity", "", 200, ""},
		{"a byte order mark", "\xef\xbb\xbf" + page, "", "", 200, ""},
		{"brotli", page, "br", "", 415, "unsupported_encoding"},
		{"two encodings", gzipped(t, page), "gzip, gzip", "", 415, "unsupported_encoding"},
		{"gzip in gzip", gzipped(t, gzipped(t, page)), "gzip", "", 400, "malformed_json"},
		{"gzip cut short", gzipped(t, page)[:20], "gzip", "", 400, "malformed_gzip"},
		{"gzip damaged", "\x1f\x8b" + page, "", "", 400, "malformed_gzip"},
		{"a bomb", bomb, "gzip", "", 413, "too_large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(http.MethodPost, "/v1/page", strings.NewReader(tt.body))
			r.SetBasicAuth(s.key, "")
			if tt.encoding != "" {
				r.Header.Set("Content-Encoding", tt.encoding)
			}
			if tt.contentType != "" {
				r.Header.Set("Content-Type", tt.contentType)
			}
			if tt.name == "a bomb" {
				r.ContentLength = -1 // chunked
			}
			w := s.do(r)
			if w.Code != tt.status || tt.code != "" && decode[problem.Problem](t, w.Body.Bytes()).Code != tt.code {
				t.Errorf("%d %s, want %d %s", w.Code, w.Body, tt.status, tt.code)
			}
		})
	}
}

func TestWriteKeys(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	basic := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
	unknown := collector.NewWriteKey()
	tests := []struct {
		name, authorization, header, query, body string
		status                                   int
		code                                     string
	}{
		{"Basic", basic(s.key + ":"), "", "", "", 200, ""},
		{"Basic with a password", basic(s.key + ":x"), "", "", "", 200, ""},
		{"Basic without the colon", basic(s.key), "", "", "", 200, ""},
		{"basic in lower case", "b" + basic(s.key)[1:], "", "", "", 200, ""},
		{"Bearer", "Bearer " + s.key, "", "", "", 200, ""},
		{"a header", "", s.key, "", "", 200, ""},
		{"the query", "", "", s.key, "", 200, ""},
		{"the body", "", "", "", s.key, 200, ""},
		{"an empty Basic and the body", basic(":"), "", "", s.key, 200, ""},
		{"a broken Basic and the body", "Basic !", "", "", s.key, 200, ""},
		{"the header goes before the body", basic(unknown + ":"), "", "", s.key, 401, "unknown_write_key"},
		{"none", "", "", "", "", 401, "missing_write_key"},
		{"another scheme", "Digest x", "", "", "", 401, "missing_write_key"},
		{"unknown", "Bearer " + unknown, "", "", "", 401, "unknown_write_key"},
		{"nonsense", "Bearer \x80", "", "", "", 401, "unknown_write_key"},
		{"unknown in the body", "", "", "", unknown, 401, "unknown_write_key"},
	}
	for _, call := range []string{"/v1/page", "/v1/batch"} {
		for _, tt := range tests {
			t.Run(call+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				body := map[string]any{"userId": "u", "writeKey": tt.body}
				if call == "/v1/batch" {
					body = map[string]any{"batch": []any{map[string]any{"userId": "u", "type": "page"}}, "writeKey": tt.body}
				}
				b, err := json.Marshal(body)
				if err != nil {
					t.Fatal(err)
				}
				r := httptest.NewRequest(http.MethodPost, call, bytes.NewReader(b))
				if tt.query != "" {
					r.URL.RawQuery = "writeKey=" + tt.query
				}
				if tt.authorization != "" {
					r.Header.Set("Authorization", tt.authorization)
				}
				if tt.header != "" {
					r.Header.Set("X-Write-Key", tt.header)
				}
				w := s.do(r)
				if w.Code != tt.status || tt.code != "" && decode[problem.Problem](t, w.Body.Bytes()).Code != tt.code {
					t.Errorf("%d %s, want %d %s", w.Code, w.Body, tt.status, tt.code)
				}
				if w.Code == 401 && w.Header().Get("WWW-Authenticate") == "" {
					t.Error("401 without WWW-Authenticate")
				}
			})
		}
	}
	t.Cleanup(func() {
		for _, m := range s.messages() {
			if bytes.Contains(m.Body, []byte("writeKey")) {
				t.Errorf("the write key was stored: %s", m.Body)
			}
		}
	})
}

func TestARevokedKeyAnswersLikeAnUnknownOne(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	store := collector.NewSourceStore(s.pool)
	key, err := store.CreateWriteKey(t.Context(), s.source.WorkspaceID, "shop")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.RevokeWriteKey(t.Context(), s.source.WorkspaceID, key.ID); err != nil {
		t.Fatal(err)
	}
	var answers []string
	for _, k := range []string{key.Key, collector.NewWriteKey()} {
		s.key = k
		w := s.post("/v1/page", `{"userId":"u"}`)
		answers = append(answers, fmt.Sprint(w.Code, w.Header(), w.Body))
	}
	if diff := cmp.Diff(answers[1], answers[0]); diff != "" || !strings.HasPrefix(answers[0], "401") {
		t.Errorf("(-unknown +revoked):\n%s", diff)
	}
}

func TestWithoutPostgresAnUnknownKeyMayTryAgain(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	if w := s.post("/v1/page", `{"userId":"u"}`); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	s.pool.Close()
	if w := s.post("/v1/page", `{"userId":"u"}`); w.Code != 200 {
		t.Errorf("a known key: %d %s", w.Code, w.Body)
	}
	s.key = collector.NewWriteKey()
	w := s.post("/v1/page", `{"userId":"u"}`)
	if w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("an unknown key: %d %s %s", w.Code, w.Header(), w.Body)
	}
}

func TestSlowBodiesHoldNoMoreThanTheySend(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{MaxInFlightBytes: 40 << 10})
	var slow []*io.PipeWriter
	done := make(chan int)
	for range 3 { // each holds 8 KB, however much it announces
		pr, pw := io.Pipe()
		slow = append(slow, pw)
		r := httptest.NewRequest(http.MethodPost, "/v1/page", pr)
		r.ContentLength = 500_000
		r.SetBasicAuth(s.key, "")
		go func() {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			done <- w.Code
		}()
		if _, err := pw.Write([]byte(`{"userId":`)); err != nil {
			t.Fatal(err)
		}
	}
	if w := s.post("/v1/page", `{"userId":"u"}`); w.Code != 200 {
		t.Errorf("beside three slow ones: %d %s", w.Code, w.Body)
	}
	large := `{"userId":"u","x":"` + strings.Repeat("x", 20_000) + `"}`
	w := s.post("/v1/page", large)
	if p := decode[problem.Problem](t, w.Body.Bytes()); w.Code != 503 || p.Code != "busy" || w.Header().Get("Retry-After") == "" {
		t.Errorf("beyond the bound: %d %s", w.Code, w.Body)
	}
	for _, pw := range slow {
		if _, err := pw.Write([]byte(`"u"}`)); err != nil {
			t.Error(err)
		}
		pw.Close()
		if code := <-done; code != 200 {
			t.Errorf("a slow one: %d", code)
		}
	}
	if w := s.post("/v1/page", large); w.Code != 200 {
		t.Errorf("afterwards: %d %s", w.Code, w.Body)
	}
	if n := gauge(t, s.reg, "mubatch_collector_request_bytes"); n != 0 {
		t.Errorf("%v bytes are still held", n)
	}
}

func TestOverRealConnections(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	srv := httptest.NewUnstartedServer(s)
	srv.Config.ReadTimeout = 300 * time.Millisecond
	srv.Start()
	t.Cleanup(srv.Close)
	head := "POST /v1/page?writeKey=" + s.key + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
	big := strings.Repeat("x", 600_000)
	tests := []struct{ name, raw, status, code string }{
		{"a body that never ends in time", head + "Content-Length: 100\r\n\r\n{\"userId\"", "408", "body_timeout"},
		{"a body announced too large", head + "Content-Length: 600000\r\n\r\n{", "413", "too_large"},
		{"a body too large in chunks", head + "Transfer-Encoding: chunked\r\n\r\n927c0\r\n" + big + "\r\n0\r\n\r\n", "413", "too_large"},
		{"broken chunks", head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "400", "incomplete_body"},
		{"no body at all", head + "\r\n", "400", "malformed_json"},
		{"all is well", head + "Content-Length: 14\r\n\r\n{\"userId\":\"u\"}", "200", `"success":true`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.WriteString(conn, tt.raw) }() // the server may stop reading
			answer, _ := io.ReadAll(conn)                       // and reset the connection after its answer
			if !strings.HasPrefix(string(answer), "HTTP/1.1 "+tt.status) || !strings.Contains(string(answer), tt.code) {
				t.Errorf("%q, want %s %s", answer, tt.status, tt.code)
			}
		})
	}
}

func TestRedisDownIs503AndHeals(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	s := newServerOn(t, collector.Config{AppendTimeout: time.Second}, r.client())
	page := func(id string) *httptest.ResponseRecorder {
		return s.post("/v1/page", `{"userId":"u","messageId":"`+id+`"}`)
	}
	acked := map[string]bool{}
	for i := range 3 {
		id := fmt.Sprint("up", i)
		if w := page(id); w.Code != 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		acked[id] = true

		r.kill()
		var wg sync.WaitGroup
		for j := range 8 {
			wg.Go(func() {
				w := page(fmt.Sprint("down", i, j))
				p := decode[problem.Problem](t, w.Body.Bytes())
				if w.Code != 503 || w.Header().Get("Retry-After") == "" || p.Code != "unavailable" {
					t.Errorf("redis is down: %d %s %s", w.Code, w.Header(), w.Body)
				}
			})
		}
		wg.Wait()
		pixel := s.do(httptest.NewRequest(http.MethodGet, "/v1/pixel/page?userId=u&writeKey="+s.key, nil))
		if pixel.Code != 200 || pixel.Header().Get("X-Event-Status") != "unavailable" {
			t.Errorf("pixel: %d %s", pixel.Code, pixel.Header())
		}
		r.start()
		id = fmt.Sprint("back", i)
		waitFor(t, "redis to be used again", func() bool { return page(id).Code == 200 })
		acked[id] = true
	}
	stored := ids(t, s.stream)
	for id := range acked {
		if stored[profiles.MessageKey(id)] == 0 {
			t.Errorf("%s was acknowledged and is gone", id)
		}
	}
}

func TestPixel(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	event := `{"writeKey":"` + s.key + `","messageId":"%s","userId":"ü?>~","event":"Opened","properties":{"subject":"Hi"}}`
	tests := []struct{ name, path, status, id, want string }{
		{"base64", "track?data=" + url.QueryEscape(base64.StdEncoding.EncodeToString(fmt.Appendf(nil, event, "std"))), "accepted", "std", `"subject":"Hi"`},
		{"base64url without padding", "track?data=" + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, event, "rawurl")), "accepted", "rawurl", `"userId":"ü?>~"`},
		{"base64 unescaped", "track?data=" + base64.StdEncoding.EncodeToString(fmt.Appendf(nil, event, "plus??>>")), "accepted", "plus??>>", `"event":"Opened"`},
		{"dotted", "track?writeKey=" + s.key + "&messageId=dotted&userId=u&event=Opened&properties.subject=Hi&properties.a.b=%00&context.campaign.name=x", "accepted", "dotted", `"properties":{"a":{"b":"�"},"subject":"Hi"}`},
		{"dotted page", "page?writeKey=" + s.key + "&messageId=page&anonymousId=v&name=Home", "accepted", "page", `"name":"Home"`},
		{"no key", "page?userId=u", "unauthorized", "", ""},
		{"an unknown key", "page?userId=u&writeKey=x", "unauthorized", "", ""},
		{"nothing", "page", "unauthorized", "", ""},
		{"an unknown call", "tracks?userId=u&writeKey=" + s.key, "rejected; unknown_type", "", ""},
		{"nobody", "page?writeKey=" + s.key, "rejected; missing_id", "", ""},
		{"no base64", "page?data=%25%25&writeKey=" + s.key, "rejected; malformed_data", "", ""},
		{"no JSON", "page?data=aGFsbG8&writeKey=" + s.key, "rejected; malformed_json", "", ""},
		{"no query", "page?userId=%zz&writeKey=" + s.key, "rejected; malformed_query", "", ""},
		{"a value that is an object", "page?userId=u&properties=1&properties.a=1&writeKey=" + s.key, "rejected; conflicting_members", "", ""},
		{"dots without end", "page?userId=u&" + strings.Repeat("a.", 5000) + "=1&writeKey=" + s.key, "rejected; conflicting_members", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := s.do(httptest.NewRequest(http.MethodGet, "/v1/pixel/"+tt.path, nil))
			if w.Code != 200 || w.Header().Get("Content-Type") != "image/gif" || !strings.HasPrefix(w.Body.String(), "GIF89a") ||
				w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
				t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
			}
			if got := w.Header().Get("X-Event-Status"); got != tt.status {
				t.Errorf("status %q, want %q", got, tt.status)
			}
			if tt.id == "" {
				return
			}
			for _, m := range s.messages() {
				if m.ID == profiles.MessageKey(tt.id) && strings.Contains(string(m.Body), tt.want) {
					return
				}
			}
			t.Errorf("%s is not stored", tt.want)
		})
	}
	if n := len(s.messages()); n != 5 {
		t.Errorf("%d messages are stored, want 5", n)
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	for _, path := range []string{"/v1/track", "/v1/batch", "/v1/import", "/v1/pixel/track"} {
		r := httptest.NewRequest(http.MethodOptions, path, nil)
		r.Header.Set("Origin", "https://shop.example")
		r.Header.Set("Access-Control-Request-Method", "POST")
		r.Header.Set("Access-Control-Request-Headers", "authorization,content-type,x-retry-count")
		w := s.do(r)
		got := map[string]string{"status": fmt.Sprint(w.Code)}
		for name := range w.Header() {
			got[name] = strings.Join(w.Header()[name], ", ")
		}
		want := map[string]string{
			"status":                           "204",
			"Vary":                             "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
			"Access-Control-Allow-Origin":      "https://shop.example",
			"Access-Control-Allow-Credentials": "true",
			"Access-Control-Expose-Headers":    "Retry-After, X-Event-Status",
			"Access-Control-Allow-Methods":     "GET, POST, OPTIONS",
			"Access-Control-Allow-Headers":     "authorization,content-type,x-retry-count",
			"Access-Control-Max-Age":           "86400",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("preflight of %s (-want +got):\n%s", path, diff)
		}
	}

	r := httptest.NewRequest(http.MethodPost, "/v1/page", strings.NewReader(`{}`))
	r.Header.Set("Origin", "null")
	w := s.do(r)
	if w.Code != 401 || w.Header().Get("Access-Control-Allow-Origin") != "null" || w.Header().Get("Access-Control-Expose-Headers") == "" {
		t.Errorf("an error must be readable too: %d %v", w.Code, w.Header())
	}
	if w := s.post("/v1/page", `{"userId":"u"}`); w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("without an origin: %v", w.Header())
	}
}

func TestClientAddress(t *testing.T) {
	t.Parallel()
	trusted := collector.Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}
	open, behind := newServer(t, collector.Config{}), newServer(t, trusted)
	tests := []struct {
		name      string
		s         *server
		remote    string
		forwarded []string
		want      string
	}{
		{"the connection", open, "192.0.2.1:99", nil, "192.0.2.1"},
		{"a header nobody may set", open, "192.0.2.1:99", []string{"1.2.3.4"}, "192.0.2.1"},
		{"IPv6", open, "[2001:db8::1]:99", nil, "2001:db8::1"},
		{"IPv4 in IPv6", open, "[::ffff:192.0.2.1]:99", nil, "192.0.2.1"},
		{"a unix socket", open, "@", nil, ""},
		{"behind a proxy", behind, "10.1.1.1:99", []string{"1.2.3.4"}, "1.2.3.4"},
		{"behind two proxies", behind, "10.1.1.1:99", []string{"6.6.6.6, 1.2.3.4", "10.2.2.2"}, "1.2.3.4"},
		{"a proxy that says nonsense", behind, "10.1.1.1:99", []string{"1.2.3.4, x"}, "10.1.1.1"},
		{"a proxy that says nothing", behind, "10.1.1.1:99", nil, "10.1.1.1"},
		{"not behind a proxy", behind, "192.0.2.1:99", []string{"1.2.3.4"}, "192.0.2.1"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			id := fmt.Sprint(i)
			r := httptest.NewRequest(http.MethodPost, "/v1/page", strings.NewReader(`{"userId":"u","messageId":"`+id+`"}`))
			r.SetBasicAuth(tt.s.key, "")
			r.RemoteAddr = tt.remote
			for _, f := range tt.forwarded {
				r.Header.Add("X-Forwarded-For", f)
			}
			if w := tt.s.do(r); w.Code != 200 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			for _, m := range tt.s.messages() {
				if m.ID != profiles.MessageKey(id) {
					continue
				}
				var ctx struct{ IP string }
				if c := decode[event](t, m.Body).Context; c != nil {
					ctx = decode[struct{ IP string }](t, c)
				}
				if ctx.IP != tt.want {
					t.Errorf("%q, want %q", ctx.IP, tt.want)
				}
			}
		})
	}

	off := false
	store := collector.NewSourceStore(open.pool)
	if _, err := store.Create(t.Context(), open.source.WorkspaceID, collector.Source{Key: "no-ip", Settings: collector.SourceSettings{CollectIP: &off}}); err != nil {
		t.Fatal(err)
	}
	key, err := store.CreateWriteKey(t.Context(), open.source.WorkspaceID, "no-ip")
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, "/v1/page", strings.NewReader(`{"userId":"u","messageId":"no ip"}`))
	r.SetBasicAuth(key.Key, "")
	if w := open.do(r); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	for _, m := range open.messages() {
		if m.ID == profiles.MessageKey("no ip") && bytes.Contains(m.Body, []byte("192.0.2.1")) {
			t.Errorf("the address is stored though the source does not want it: %s", m.Body)
		}
	}
}

func TestWhatIsReplacedInABatchIsFlaggedInEachOfItsEvents(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	s.post("/v1/batch", `{"context":{"a":"\u0000"},"integrations":{"b":"\ud800"},"batch":[{"type":"page","userId":"u"},{"type":"page","userId":"v","x":"\u0000"}]}`)
	var got []string
	for _, m := range s.messages() {
		_, flag, _ := bytes.Cut(m.Body, []byte(`"_sanitized":`))
		got = append(got, string(flag))
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"2}", "3}"}, got); diff != "" {
		t.Errorf("_sanitized (-want +got):\n%s", diff)
	}
}

func TestEventsAreCounted(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	s.post("/v1/batch", `{"batch":[{"type":"page","userId":"u"},{"type":"page","userId":"u"},{"type":"track","userId":"u"},3]}`)
	s.post("/v1/track", `{"userId":"u"}`)
	s.post("/v1/track", `{"userId":"u","anonymousId":"null","event":"e","x":"\u0000"}`)
	s.post("/v1/track", `{`)
	want := map[string]float64{
		`mubatch_collector_events_total page accepted`:    2,
		`mubatch_collector_events_total other rejected`:   1,
		`mubatch_collector_events_total track rejected`:   2,
		`mubatch_collector_events_total track accepted`:   1,
		`mubatch_collector_requests_total segment 200`:    2,
		`mubatch_collector_requests_total segment 400`:    2,
		`mubatch_collector_blocked_ids_total anonymousId`: 1,
		`mubatch_collector_sanitized_events_total`:        1,
		`mubatch_collector_ack_seconds`:                   2,
	}
	families, err := s.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() != "dialect" && l.GetName() != "status" {
					continue
				}
				name += " " + l.GetValue()
			}
			if strings.HasSuffix(f.GetName(), "events_total") && len(m.GetLabel()) == 2 {
				name += " " + m.GetLabel()[1].GetValue() + " " + m.GetLabel()[0].GetValue()
			}
			for _, l := range m.GetLabel() {
				if l.GetName() == "field" {
					name += " " + l.GetValue()
				}
			}
			v := m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			if v != 0 {
				got[name] = v
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

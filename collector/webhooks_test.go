package collector_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/klauspost/compress/gzip"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/webhook"
	"github.com/mubatch/mubatch/profiles"
)

// hooks is a collector with one source of webhooks, in front of a pipeline.
type hooks struct {
	*pipeline
	http.Handler
	cfg    collector.Config
	store  *collector.SourceStore
	source collector.Source
	key    string
	logs   *bytes.Buffer
}

const hookWorkspace = 1 // the pipeline's

func newKeyRing(t testing.TB) *activation.KeyRing {
	t.Helper()
	ring, _, err := activation.NewKeyRing()
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func newHooks(t testing.TB, settings webhook.Settings, secrets ...string) *hooks {
	t.Helper()
	h := &hooks{pipeline: newPipeline(t, 2), logs: new(bytes.Buffer)}
	h.cfg = collector.Config{Prefix: h.prefix, Lanes: 2, AllowDegraded: true, Keys: newKeyRing(t), DirectoryFile: filepath.Join(t.TempDir(), "keys.json")}
	h.store = collector.NewSourceStore(h.pool).WithKeys(h.cfg.Keys)
	h.source, h.key = h.add("hook", settings, secrets...)
	h.Handler = h.serve(h.pool)
	return h
}

// add makes a source of webhooks, and returns it and its write key.
func (h *hooks) add(key string, settings webhook.Settings, secrets ...string) (collector.Source, string) {
	h.t.Helper()
	source, err := h.store.Create(h.t.Context(), hookWorkspace, collector.Source{
		Key: key, Type: "webhook", Settings: collector.SourceSettings{Webhook: &collector.WebhookSettings{Settings: settings}},
	}, secrets...)
	if err != nil {
		h.t.Fatal(err)
	}
	writeKey, err := h.store.CreateWriteKey(h.t.Context(), hookWorkspace, key)
	if err != nil {
		h.t.Fatal(err)
	}
	return source, writeKey.Key
}

// serve returns a collector that knows its sources from pool.
func (h *hooks) serve(pool *pgxpool.Pool) http.Handler {
	reg, log := prometheus.NewRegistry(), slog.New(slog.NewTextHandler(h.logs, nil))
	directory := collector.NewDirectory(h.cfg, pool, reg, log)
	run(h.t, directory.Run)
	r := chi.NewRouter()
	collector.NewHandler(h.cfg, directory, collector.NewIntake(h.cfg, h.committer, reg), reg, log).Routes(r)
	return r
}

// sign returns a request that is signed with a secret, as provider generic is told below.
func (h *hooks) sign(secret, id, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/v1/webhooks/"+h.key, strings.NewReader(body))
	stamp := strconv.FormatInt(time.Now().Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "." + body))
	r.Header.Set("X-Time", stamp)
	r.Header.Set("X-Signature", hex.EncodeToString(mac.Sum(nil)))
	r.Header.Set("X-Id", id)
	return r
}

var signedHook = webhook.Settings{
	Provider: "generic", Verify: "hmac", Header: "X-Signature", TimestampHeader: "X-Time", Signed: "{timestamp}.{body}", IDHeader: "X-Id",
}

func (h *hooks) do(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// stored returns how often each message is in the lanes.
func (h *hooks) stored() map[profiles.Key]int { return ids(h.t, h.stream) }

// bodies returns the events in the lanes.
func (h *hooks) bodies() string {
	h.t.Helper()
	var b strings.Builder
	for lane := range h.stream.Lanes() {
		entries, err := h.stream.Read(h.t.Context(), lane, collector.Offset{}, 1000, 8<<20, time.Millisecond)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, e := range entries {
			for _, m := range e.Messages {
				b.Write(m.Body)
			}
		}
	}
	return b.String()
}

func TestAWebhookThatIsVerifiedIsAnEvent(t *testing.T) {
	t.Parallel()
	h := newHooks(t, signedHook, "old secret", "new secret")
	h.flush(collector.FlushConfig{Node: "one"})
	const body = `{"type":"identify","userId":"ada","traits":{"email":"ada@example.com","orders":12345678901234567890}}`
	for _, secret := range []string{"old secret", "new secret", "new secret"} { // sent again is the same event
		if w := h.do(h.sign(secret, "d1", body)); w.Code != http.StatusOK || w.Body.String() != `{"success":true}` {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	h.settle(3)
	if diff := cmp.Diff([4]int64{3, 1, 2, 0}, h.counts()); diff != "" {
		t.Errorf("accepted, applied, duplicate, failed (-want +got):\n%s", diff)
	}
	if _, ok := h.stored()[profiles.MessageKey("d1")]; !ok {
		t.Errorf("the provider's id is not the messageId: %v", h.stored())
	}
	people := h.people()
	if len(people) != 1 {
		t.Fatalf("%d people", len(people))
	}
	for _, p := range people {
		if !strings.Contains(cmp.Diff(nil, p), "12345678901234567890") {
			t.Errorf("the profile is %+v", p)
		}
	}
	waitFor(t, "the counts", func() bool { return h.state().Counts == collector.WebhookCounts{Accepted: 3} })
}

func (h *hooks) state() collector.WebhookState {
	h.t.Helper()
	states, err := h.store.Webhooks(h.t.Context(), hookWorkspace, h.source)
	if err != nil {
		h.t.Fatal(err)
	}
	return states[h.source.ID]
}

func TestAWebhookThatIsNotVerifiedLeavesNothingButANumber(t *testing.T) {
	t.Parallel()
	h := newHooks(t, signedHook, "secret")
	const body = `{"type":"track","event":"Canary-7","userId":"canary@example.com"}`
	unsigned := h.sign("secret", "d1", body)
	unsigned.Header.Del("X-Signature")
	stale := h.sign("secret", "d1", body)
	old := strconv.FormatInt(time.Now().Add(-time.Hour).Unix(), 10)
	mac := hmac.New(sha256.New, []byte("secret"))
	mac.Write([]byte(old + "." + body))
	stale.Header.Set("X-Time", old)
	stale.Header.Set("X-Signature", hex.EncodeToString(mac.Sum(nil)))
	tampered := h.sign("secret", "d1", body)
	tampered.Body = http.NoBody
	for name, test := range map[string]struct {
		r    *http.Request
		code string
	}{
		"another secret": {h.sign("other", "d1", body), "unverified"},
		"no signature":   {unsigned, "unverified"},
		"stale":          {stale, "stale_signature"},
		"tampered":       {tampered, "unverified"},
	} {
		w := h.do(test.r)
		var p struct{ Code string }
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != http.StatusUnauthorized || p.Code != test.code {
			t.Errorf("%s: %d %s, want 401 %s", name, w.Code, w.Body, test.code)
		}
	}
	if n := len(h.stored()); n > 0 {
		t.Errorf("%d messages are stored", n)
	}
	waitFor(t, "the counts", func() bool { return h.state().Counts == collector.WebhookCounts{Unverified: 4} })
	if h.logs.Len() > 0 {
		t.Errorf("logged: %s", h.logs)
	}
}

func TestWhatIsWrongWithAWebhookIsToldAsThatWhichItIs(t *testing.T) {
	t.Parallel()
	h := newHooks(t, signedHook, "secret")
	huge := `{"a":"` + strings.Repeat("x", 2<<20) + `"}`
	at := func(method, path string) *http.Request {
		return httptest.NewRequest(method, path, strings.NewReader(`{}`))
	}
	track := at(http.MethodPost, "/v1/track")
	track.SetBasicAuth(h.key, "")
	for name, test := range map[string]struct {
		r      *http.Request
		status int
		code   string
	}{
		"nobody's address":         {at(http.MethodPost, "/v1/webhooks/"+collector.NewWriteKey()), 404, "unknown_webhook"},
		"nonsense":                 {at(http.MethodPost, "/v1/webhooks/src_1"), 404, "unknown_webhook"},
		"nobody's address, asked":  {at(http.MethodOptions, "/v1/webhooks/src_1"), 404, "unknown_webhook"},
		"too large":                {h.sign("secret", "d", huge), 413, "too_large"},
		"not JSON":                 {h.sign("secret", "d", `{`), 400, "malformed_webhook"},
		"seen with a browser":      {at(http.MethodGet, "/v1/webhooks/"+h.key), 405, "method_not_allowed"},
		"its key with other calls": {track, 403, "only_webhooks"},
		"its key with firehose":    {firehose(h.key, "r", `{}`), 403, ""},
	} {
		w := h.do(test.r)
		var p struct{ Code string }
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != test.status || p.Code != test.code {
			t.Errorf("%s: %d %s, want %d %s", name, w.Code, w.Body, test.status, test.code)
		}
	}
	asks := at(http.MethodOptions, "/v1/webhooks/"+h.key)
	asks.Header.Set("WebHook-Request-Origin", "eventemitter.example.com")
	if w := h.do(asks); w.Code != 200 || w.Header().Get("WebHook-Allowed-Origin") != "eventemitter.example.com" {
		t.Errorf("a sender that asks: %d %v", w.Code, w.Header())
	}
	if n := len(h.stored()); n > 0 {
		t.Errorf("%d messages are stored", n)
	}
}

// Its sender cannot put right what the mapping makes nothing of, and so it is kept with why.
func TestWhatCannotBeMappedIsQuarantined(t *testing.T) {
	t.Parallel()
	h := newHooks(t, signedHook, "secret")
	h.flush(collector.FlushConfig{Node: "one"})
	const nobodys = `{"type":"track","event":"Order Completed"}`
	for range 2 { // sent again is the same
		if w := h.do(h.sign("secret", "d", nobodys)); w.Code != http.StatusOK {
			t.Fatalf("an event of nobody: %d %s", w.Code, w.Body)
		}
	}
	h.settle(2)
	var id, why string
	var rows int
	var message []byte
	const query = `SELECT count(*) OVER (), message_id, violations::text, message FROM quarantined_events`
	if err := h.pool.QueryRow(t.Context(), query).Scan(&rows, &id, &why, &message); err != nil {
		t.Fatal(err)
	}
	if rows != 1 || id != "d" || !strings.Contains(why, "missing_id") || !strings.Contains(string(message), "Order Completed") {
		t.Errorf("%d quarantined, %q for %s: %q", rows, id, why, message)
	}
	if n := len(h.people()); n > 0 {
		t.Errorf("%d people", n)
	}
}

// example returns the body of an example of what a provider sends.
func example(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("mapping", "testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(decode[struct{ Body json.RawMessage }](t, b).Body)
}

func TestACheckoutAtStripeIsAnOrderOfTheUser(t *testing.T) {
	t.Parallel()
	h := newHooks(t, webhook.Settings{Provider: "stripe"}, "whsec_test")
	h.flush(collector.FlushConfig{Node: "one"})
	send := func(body string) *httptest.ResponseRecorder {
		stamp := strconv.FormatInt(time.Now().Unix(), 10)
		mac := hmac.New(sha256.New, []byte("whsec_test"))
		mac.Write([]byte(stamp + "." + body))
		r := httptest.NewRequest(http.MethodPost, "/v1/webhooks/"+h.key, strings.NewReader(body))
		r.Header.Set("Stripe-Signature", "t="+stamp+",v1="+hex.EncodeToString(mac.Sum(nil)))
		return h.do(r)
	}
	for range 2 { // Stripe sends again what it is not sure of
		if w := send(example(t, "stripe/checkout")); w.Code != http.StatusOK {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	if w := send(example(t, "stripe/nothing_of_it")); w.Code != http.StatusOK || w.Body.String() != `{"success":true}` {
		t.Errorf("what the mapping makes nothing of: %d %s", w.Code, w.Body)
	}
	h.settle(4)
	if diff := cmp.Diff([4]int64{4, 2, 2, 0}, h.counts()); diff != "" {
		t.Errorf("accepted, applied, duplicate, failed (-want +got):\n%s", diff)
	}
	for _, id := range []string{"evt_1NG8Du2eZvKYlo2CUI79vXWy", "evt_1NG8Du2eZvKYlo2CUI79vXWy:2"} {
		if h.stored()[profiles.MessageKey(id)] != 2 {
			t.Errorf("%s is not in the lanes", id)
		}
	}
	if people := h.people(); len(people) != 1 {
		t.Errorf("%d people: the customer is not the user", len(people))
	}
	if body := h.bodies(); !strings.Contains(body, `"event":"Order Completed"`) || !strings.Contains(body, `"revenue":52.87`) {
		t.Errorf("the events are %s", body)
	}
	waitFor(t, "the counts", func() bool { return h.state().Counts == collector.WebhookCounts{Accepted: 2, Ignored: 1} })
}

func TestASecretIsChangedWithoutAGap(t *testing.T) {
	t.Parallel()
	h := newHooks(t, signedHook, "the first of the secrets")
	const body = `{"type":"track","event":"Seen","userId":"ada"}`
	works := func(secret string) bool { return h.do(h.sign(secret, "d", body)).Code == http.StatusOK }
	if !works("the first of the secrets") || works("the second of them all") {
		t.Fatal("the first does not work, or the second does")
	}
	ctx := t.Context()
	if _, err := h.store.AddWebhookSecret(ctx, hookWorkspace, "hook", "the second of them all"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the second", func() bool { return works("the second of them all") })
	if !works("the first of the secrets") {
		t.Error("the first does not work beside the second")
	}
	state := h.state()
	if len(state.Secrets) != 2 || state.Secrets[0].Hint != "… all" || state.Secrets[1].Hint != "…rets" || !slices.Equal(state.Keys, []string{h.key}) {
		t.Fatalf("the state is %+v", state)
	}
	if err := h.store.DeleteWebhookSecret(ctx, hookWorkspace, "hook", state.Secrets[1].ID); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the first to be gone", func() bool { return !works("the first of the secrets") })
	if !works("the second of them all") {
		t.Error("the second does not work alone")
	}
	var settings *webhook.SettingsError
	if err := h.store.DeleteWebhookSecret(ctx, hookWorkspace, "hook", state.Secrets[0].ID); !errors.As(err, &settings) {
		t.Errorf("the last was deleted: %v", err)
	}
	if err := h.store.DeleteWebhookSecret(ctx, hookWorkspace, "hook", state.Secrets[1].ID); !errors.Is(err, collector.ErrNotFound) {
		t.Errorf("delete again: %v, want ErrNotFound", err)
	}
	if _, err := h.store.AddWebhookSecret(ctx, hookWorkspace, "hook", "the second of them all"); !errors.As(err, &settings) {
		t.Errorf("the same again: %v", err)
	}
	var sealed []byte
	if err := h.pool.QueryRow(ctx, `SELECT sealed FROM webhook_secrets`).Scan(&sealed); err != nil || bytes.Contains(sealed, []byte("second")) {
		t.Errorf("the secret is stored as %q, %v", sealed, err)
	}
}

func TestWebhooksComeInWithoutPostgres(t *testing.T) {
	t.Parallel()
	h := newHooks(t, signedHook, "the secret of the hook")
	waitFor(t, "the file", func() bool { _, err := os.Stat(h.cfg.DirectoryFile); return err == nil })
	file, err := os.ReadFile(h.cfg.DirectoryFile)
	if err != nil || bytes.Contains(file, []byte("the secret of the hook")) {
		t.Errorf("the file has the secret as it is, or %v", err)
	}
	down, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/none")
	if err != nil {
		t.Fatal(err)
	}
	defer down.Close()
	h.Handler = h.serve(down)
	const body = `{"type":"track","event":"Seen","userId":"ada"}`
	if w := h.do(h.sign("the secret of the hook", "d", body)); w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := h.do(h.sign("another", "d", body)); w.Code != http.StatusUnauthorized {
		t.Errorf("another secret: %d %s", w.Code, w.Body)
	}
	h.cfg.Keys = newKeyRing(t)
	h.Handler = h.serve(down)
	if w := h.do(h.sign("the secret of the hook", "d", body)); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("without the key that opens it: %d %s", w.Code, w.Body)
	}
}

// firehose returns a request as Amazon Data Firehose makes it, of records.
func firehose(key, id string, records ...string) *http.Request {
	type record struct {
		Data string `json:"data"`
	}
	body := struct {
		RequestID string   `json:"requestId"`
		Timestamp int64    `json:"timestamp"`
		Records   []record `json:"records"`
	}{id, 1578090901599, []record{}}
	for _, r := range records {
		body.Records = append(body.Records, record{base64.StdEncoding.EncodeToString([]byte(r))})
	}
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	r := httptest.NewRequest(http.MethodPost, "/v1/firehose", bytes.NewReader(text))
	r.Header.Set("X-Amz-Firehose-Protocol-Version", "1.0")
	r.Header.Set("X-Amz-Firehose-Request-Id", id)
	r.Header.Set("X-Amz-Firehose-Access-Key", key)
	r.Header.Set("Content-Type", "application/json")
	return r
}

func TestFirehoseDeliversRecords(t *testing.T) {
	t.Parallel()
	h := newHooks(t, webhook.Settings{Provider: "firehose"})
	if _, err := h.store.Create(t.Context(), hookWorkspace, collector.Source{Key: "plain"}); err != nil {
		t.Fatal(err)
	}
	plain, err := h.store.CreateWriteKey(t.Context(), hookWorkspace, "plain")
	if err != nil {
		t.Fatal(err)
	}
	saysNothing := map[int]string{2: `"messageId":null,`, 3: `"messageId":"",`}
	event := func(n int) string {
		return `{"type":"track",` + saysNothing[n] + `"event":"Seen","userId":"u` + strconv.Itoa(n) + `"}`
	}
	const prefix = "one"
	zipped := firehose(h.key, prefix, event(1), event(2)+"\n"+event(3)+event(4))
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := packed.ReadFrom(zipped.Body); err != nil {
		t.Fatal(err)
	}
	text := bytes.Clone(packed.Bytes())
	packed.Reset()
	if _, err := z.Write(text); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	zipped.Header.Set("Content-Encoding", "gzip")
	zipped.Body, zipped.ContentLength = io.NopCloser(&packed), int64(packed.Len())
	for _, r := range []*http.Request{zipped, firehose(h.key, prefix, event(1), event(2)+event(3)+event(4))} { // and once more
		w := h.do(r)
		answer := decode[struct {
			RequestID    string `json:"requestId"`
			Timestamp    int64  `json:"timestamp"`
			ErrorMessage string `json:"errorMessage"`
		}](t, w.Body.Bytes())
		if w.Code != 200 || answer.RequestID != prefix || answer.Timestamp < 1.6e12 || answer.ErrorMessage != "" || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	stored := h.stored()
	for _, id := range []string{"-0", "-1", "-1-1", "-1-2"} {
		if stored[profiles.MessageKey(prefix+id)] != 2 {
			t.Errorf("%s%s is stored %d times, want 2", prefix, id, stored[profiles.MessageKey(prefix+id)])
		}
	}

	for name, test := range map[string]struct {
		r      *http.Request
		status int
		says   string
	}{
		"no key":       {firehose("", "r"), 401, "no write key"},
		"nobody's key": {firehose(collector.NewWriteKey(), "r"), 401, "not valid"},
		"not its form": {func() *http.Request {
			r := firehose(h.key, "r")
			r.Body = io.NopCloser(strings.NewReader("[]"))
			return r
		}(), 400, "malformed_firehose"},
		"a record that is not JSON": {firehose(h.key, "r", event(9), "nonsense"), 422, "malformed_record"},
		"a key for something else":  {firehose(plain.Key, "r", event(1)), 403, "not for Amazon Data Firehose"},
		"too many records":          {firehose(h.key, "r", strings.Repeat("1 ", webhook.MaxRecords+1)), 413, "too many records"},
	} {
		w := h.do(test.r)
		answer := decode[map[string]any](t, w.Body.Bytes())
		message, _ := answer["errorMessage"].(string)
		if w.Code != test.status || answer["requestId"] != "r" || !strings.Contains(message, test.says) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	if h.stored()[profiles.MessageKey("r-0")] != 1 {
		t.Error("a record that cannot be read kept its neighbour out")
	}
	if w := h.do(httptest.NewRequest(http.MethodPost, "/v1/webhooks/"+h.key, strings.NewReader(`{}`))); w.Code != 404 {
		t.Errorf("firehose among the webhooks: %d %s", w.Code, w.Body)
	}
}

func TestAMappingOfTheWorkspaceIsFollowed(t *testing.T) {
	t.Parallel()
	h := newHooks(t, signedHook, "secret")
	mappings := collector.NewMappingStore(h.pool)
	document := func(event string) string {
		return "version: 1\nrules:\n- event: {type: track, event: " + event + ", userId: $.who, messageId: $meta.id}\n"
	}
	if _, err := mappings.Create(t.Context(), hookWorkspace, collector.Mapping{Key: "ours", Document: document("First")}); err != nil {
		t.Fatal(err)
	}
	settings := &collector.SourceSettings{Webhook: &collector.WebhookSettings{Settings: signedHook, Mapping: "ours"}}
	if _, err := h.store.Update(t.Context(), hookWorkspace, "hook", collector.SourceUpdate{Settings: settings}); err != nil {
		t.Fatal(err)
	}
	n := 0
	makes := func(event string) func() bool {
		return func() bool {
			n++
			w := h.do(h.sign("secret", "d"+strconv.Itoa(n), `{"who":"ada"}`))
			return w.Code == http.StatusOK && strings.Contains(h.bodies(), event)
		}
	}
	waitFor(t, "the mapping", makes(`"event":"First"`))
	second := document("Second")
	if _, err := mappings.Update(t.Context(), hookWorkspace, "ours", collector.MappingUpdate{Document: &second}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the change of the mapping", makes(`"event":"Second"`))
	if err := mappings.Delete(t.Context(), hookWorkspace, "ours", 0); !errors.Is(err, collector.ErrInUse) {
		t.Errorf("delete a mapping that is in use: %v, want ErrInUse", err)
	}
}

func TestSourcesOfWebhooksAreChecked(t *testing.T) {
	t.Parallel()
	h := newHooks(t, webhook.Settings{Provider: "stripe"}, "s")
	var settings *webhook.SettingsError
	create := func(kind string, w *collector.WebhookSettings, secrets ...string) error {
		_, err := h.store.Create(t.Context(), hookWorkspace, collector.Source{Key: "x", Type: kind, Settings: collector.SourceSettings{Webhook: w}}, secrets...)
		return err
	}
	for name, err := range map[string]error{
		"no settings":         create("webhook", nil),
		"for another type":    create("segment", &collector.WebhookSettings{Settings: webhook.Settings{Provider: "stripe"}}, "s"),
		"no secret":           create("webhook", &collector.WebhookSettings{Settings: webhook.Settings{Provider: "stripe"}}),
		"an unknown mapping":  create("webhook", &collector.WebhookSettings{Settings: webhook.Settings{Provider: "stripe"}, Mapping: "nope"}, "s"),
		"an unknown provider": create("webhook", &collector.WebhookSettings{Settings: webhook.Settings{Provider: "acme"}}, "s"),
	} {
		if !errors.As(err, &settings) {
			t.Errorf("%s: %v, want a SettingsError", name, err)
		}
	}
	change := collector.SourceUpdate{Settings: &collector.SourceSettings{Webhook: &collector.WebhookSettings{Settings: webhook.Settings{Provider: "mailchimp"}}}}
	if _, err := h.store.Update(t.Context(), hookWorkspace, "hook", change); !errors.As(err, &settings) {
		t.Errorf("mailchimp with the secret of stripe: %v", err)
	}
	change.Secrets = []string{}
	if got, err := h.store.Update(t.Context(), hookWorkspace, "hook", change); err != nil || got.Settings.Webhook.Provider != "mailchimp" {
		t.Errorf("mailchimp without: %+v, %v", got, err)
	}
	if n := len(h.state().Secrets); n != 0 {
		t.Errorf("%d secrets are left", n)
	}
}

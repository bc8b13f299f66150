//go:build unix

package collector_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/posthog/posthog-go"
	sphelp "github.com/snowplow/snowplow-golang-tracker/v3/pkg/common"
	"github.com/snowplow/snowplow-golang-tracker/v3/pkg/storage/memory"
	snowplow "github.com/snowplow/snowplow-golang-tracker/v3/tracker"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// clientsFolder holds scripts and pages that use official libraries, and the list of these.
const clientsFolder = "sdktest/others"

func TestPostHogsGoLibrary(t *testing.T) {
	t.Parallel()
	s := newDialectServer(t, collector.DialectPostHog)
	at := serve(t, s)
	client, err := posthog.NewWithConfig(s.key, posthog.Config{Endpoint: at, Interval: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []posthog.Message{
		posthog.Capture{DistinctId: "ada", Event: "Order Completed", Properties: posthog.NewProperties().Set("revenue", 59.9)},
		posthog.Identify{DistinctId: "ada", Properties: posthog.NewProperties().Set("email", "ada@example.org")},
		posthog.Alias{DistinctId: "ada", Alias: "ada-of-old"},
		posthog.GroupIdentify{Type: "company", Key: "engines", Properties: posthog.NewProperties().Set("name", "Engines")},
	} {
		if err := client.Enqueue(m); err != nil {
			t.Errorf("%T: %v", m, err)
		}
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	want := []string{"alias ada", "group $company_engines", "identify ada", "track Order Completed ada"}
	if diff := cmp.Diff(want, s.told()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSnowplowsGoTracker(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"POST", "GET"} {
		s := newDialectServer(t, collector.DialectSnowplow)
		at := serve(t, s)
		emitter := snowplow.InitEmitter(
			snowplow.RequireCollectorUri(strings.TrimPrefix(at, "http://")), snowplow.RequireStorage(*memory.Init()),
			snowplow.OptionProtocol("http"), snowplow.OptionRequestType(method),
		)
		subject := snowplow.InitSubject()
		subject.SetUserId("ada")
		tracker := snowplow.InitTracker(snowplow.RequireEmitter(emitter), snowplow.OptionSubject(subject), snowplow.OptionAppId(s.key))
		tracker.TrackPageView(snowplow.PageViewEvent{PageUrl: sphelp.NewString("https://shop.example/p/41")})
		tracker.TrackStructEvent(snowplow.StructuredEvent{Category: sphelp.NewString("shop"), Action: sphelp.NewString("Added"), Value: sphelp.NewFloat64(2)})
		tracker.TrackEcommerceTransaction(snowplow.EcommerceTransactionEvent{
			OrderId: sphelp.NewString("1042"), TotalValue: sphelp.NewFloat64(59.9), Currency: sphelp.NewString("EUR"),
			Items: []snowplow.EcommerceTransactionItemEvent{{Sku: sphelp.NewString("41"), Price: sphelp.NewFloat64(59.9), Quantity: sphelp.NewInt64(1)}},
		})
		if left := tracker.BlockingFlush(600, 100); left != 0 {
			t.Errorf("%s: %d events are left", method, left)
		}
		want := []string{"page ada", "track Added ada", "track Order Completed ada", "track transaction_item ada"}
		if diff := cmp.Diff(want, s.told()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", method, diff)
		}
	}
}

// The libraries for Node, as they are, get answers that they take for success, and every call is stored.
func TestOtherProductsNodeLibraries(t *testing.T) {
	t.Parallel()
	node := clientProgram(t, "node")
	s := newServer(t, collector.Config{})
	s.update(collector.SourceSettings{Dialects: collector.Dialects()})
	at := serve(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "clients.mjs")
	cmd.Dir = clientLibraries(t)
	cmd.Env = append(os.Environ(), "COLLECT="+at, "WRITE_KEY="+s.key)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := []string{
		"alias ada", "group ada", "identify ada", "identify ada", "page Lamp ada", "page Lamp ada", "track Order Completed ada",
		"track matomo event ada", "track posthog order ada", "track snowplow struct ada", "track snowplow_described ada", "track umami order (visitor)",
	}
	settled(t, "what the libraries said", func() bool { return len(s.told()) >= len(want) })
	if diff := cmp.Diff(want, s.told()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The libraries for browsers, as they are, send from a page of another origin, under a real browser's rules.
func TestOtherProductsBrowserLibraries(t *testing.T) {
	t.Parallel()
	chromium := clientProgram(t, "chromium", "chromium-browser", "google-chrome")
	s := newServer(t, collector.Config{})
	s.update(collector.SourceSettings{Dialects: collector.Dialects()})
	at := serve(t, s)
	pages := serve(t, http.FileServer(http.Dir(clientLibraries(t))))
	page := pages + "/clients.html?" + url.Values{"collect": {at}, "key": {s.key}}.Encode()
	cmd := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0", "--user-data-dir="+t.TempDir(), page)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has children
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		settled(t, "the browser's end", func() bool { return syscall.Kill(-cmd.Process.Pid, 0) != nil })
	}()
	expected := []string{
		"alias ada", "identify ada", "page Lamp (visitor)", "page Lamp ada", "page (visitor)",
		"track plausible web (visitor)", "track posthog known ada", "track posthog web (visitor)", "track snowplow_web ada",
	}
	slices.Sort(expected)
	settled(t, "what the libraries said", func() bool { return len(s.told()) >= len(expected) })
	if diff := cmp.Diff(expected, s.told()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// told returns what the lanes hold, in the order of the words: the kind of each event, its name and whom it is about. What a
// client sent again is one event, as for dedupe: a client may lose patience with a busy machine.
func (s *server) told() []string {
	s.t.Helper()
	var lines []string
	seen := map[profiles.Key]bool{}
	for _, m := range s.messages() {
		if seen[m.ID] {
			continue
		}
		seen[m.ID] = true
		e := decode[struct{ Type, Event, Name, UserID, AnonymousID string }](s.t, m.Body)
		who := e.UserID
		if who == "" {
			who = "(visitor)"
			if strings.HasPrefix(e.AnonymousID, "$") {
				who = e.AnonymousID
			}
		}
		lines = append(lines, strings.Join(strings.Fields(fmt.Sprint(e.Type, " ", e.Event, " ", e.Name, " ", who)), " "))
	}
	slices.Sort(lines)
	return lines
}

// serve serves h until the test ends, whatever clients still hold of it then, and returns its address.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(at) }() // ends with Close
	t.Cleanup(func() { _ = srv.Close() })
	return "http://" + at.Addr().String()
}

func settled(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(4 * time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%s did not come within a minute", what)
			return
		}
	}
}

// clientProgram returns the path of a program that tests of libraries need, of any of the names.
func clientProgram(t testing.TB, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	clientLacking(t, fmt.Sprintf("no %s; install it: apt-get install nodejs npm chromium", names[0]))
	return ""
}

// clientLibraries installs the libraries, unless they are, and returns their folder.
func clientLibraries(t testing.TB) string {
	t.Helper()
	clientsMu.Lock()
	defer clientsMu.Unlock()
	folder, err := filepath.Abs(clientsFolder)
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.Stat(filepath.Join(folder, "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.Stat(filepath.Join(folder, "node_modules", ".package-lock.json")); err == nil && !got.ModTime().Before(list.ModTime()) {
		return folder
	}
	npm := clientProgram(t, "npm")
	cmd := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = folder
	if out, err := cmd.CombinedOutput(); err != nil {
		clientLacking(t, fmt.Sprintf("npm ci: %v\n%s", err, out))
	}
	return folder
}

var clientsMu sync.Mutex

// clientLacking ends a test that cannot run: with a failure where everything must.
func clientLacking(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("MUBATCH_TEST_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

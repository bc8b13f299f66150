// Package browsertest opens pages in a real Chromium, for tests of what runs in browsers.
//
//	Main ──► one browser for all tests of a package ──► New: a fresh profile for each ──► Tab
//
// A test fails if a page of its throws, writes an error to the console, or does what its Content Security Policy forbids.
package browsertest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

var (
	browser = sync.OnceValues(start)
	stop    = func() {}
)

// Main runs the tests of a package and stops the browser, if one of them started it. It is what TestMain calls.
func Main(m *testing.M) {
	code := m.Run()
	stop()
	os.Exit(code)
}

// names of the program, by system.
var names = []string{"chromium", "chromium-browser", "google-chrome"}

func find() (string, error) {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no Chromium: apt-get install -y --no-install-recommends chromium")
}

func start() (context.Context, error) {
	path, err := find()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "browsertest")
	if err != nil {
		return nil, err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], // among them what keeps it from calling anybody
		chromedp.ExecPath(path), chromedp.UserDataDir(dir), chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("host-resolver-rules", "MAP * 127.0.0.1"), // any name is a site of the test's
		chromedp.Flag("disable-features", "Translate,HttpsUpgrades"),
	)
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocator, release := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, _ := chromedp.NewContext(allocator)
	stop = func() {
		_ = chromedp.Cancel(ctx)
		release()
		_ = os.RemoveAll(dir)
	}
	if err := chromedp.Do(ctx); err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return ctx, nil
}

// Tab is a tab of the browser.
type Tab struct {
	t   testing.TB
	ctx context.Context
	// Close closes the tab, as a person does.
	Close func()

	mu      *sync.Mutex
	allowed *[]*regexp.Regexp
}

// New opens a tab in a profile of its own, without cookies and storage. Without a browser the test is skipped, unless
// MUBATCH_TEST_REQUIRE is 1.
func New(t testing.TB) *Tab {
	t.Helper()
	parent, err := browser()
	if err != nil {
		if os.Getenv("MUBATCH_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	tab := &Tab{t: t, mu: new(sync.Mutex), allowed: new([]*regexp.Regexp)}
	return tab.open(parent, chromedp.WithNewBrowserContext())
}

// Open opens another tab in the same profile.
func (tab *Tab) Open() *Tab {
	tab.t.Helper()
	return tab.open(tab.ctx)
}

func (tab *Tab) open(parent context.Context, options ...chromedp.ContextOption) *Tab {
	t := tab.t
	t.Helper()
	ctx, _ := chromedp.NewContext(parent, options...)
	other := &Tab{t: t, ctx: ctx, mu: tab.mu, allowed: tab.allowed}
	other.Close = sync.OnceFunc(func() { _ = chromedp.Cancel(ctx) })
	var heard sync.WaitGroup
	t.Cleanup(func() {
		other.Close()
		heard.Wait()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	messages := chromedp.Console(ctx)
	heard.Go(func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			if m.Type == chromedp.ConsoleError || m.IsException() {
				other.complain(m.String())
			}
		}
	})
	return other
}

func (tab *Tab) complain(message string) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	if !slices.ContainsFunc(*tab.allowed, func(re *regexp.Regexp) bool { return re.MatchString(message) }) {
		tab.t.Errorf("the page complains: %s", message)
	}
}

// Allow lets pages of the profile complain as the expression says.
func (tab *Tab) Allow(expression string) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	*tab.allowed = append(*tab.allowed, regexp.MustCompile(expression))
}

// patience is how long anything may take: machines that run tests are busy.
const patience = 30 * time.Second

// Do does things in the tab, one after the other.
func (tab *Tab) Do(actions ...chromedp.Action[chromedp.Void]) {
	tab.t.Helper()
	ctx, cancel := context.WithTimeout(tab.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		tab.t.Fatal(err)
	}
}

// Go goes to a page and returns when it has loaded.
func (tab *Tab) Go(url string) {
	tab.t.Helper()
	tab.Do(chromedp.Navigate(url))
}

// Offline cuts the tab off from the network, or joins it again.
func (tab *Tab) Offline(offline bool) {
	tab.t.Helper()
	Call(tab, emulateNetworkConditions, network.OverrideNetworkStateParams{
		Offline: offline, DownloadThroughput: -1, UploadThroughput: -1,
	})
}

// emulateNetworkConditions is what every Chromium knows; newer ones have two commands for it.
var emulateNetworkConditions = cdp.Command[network.OverrideNetworkStateParams, cdp.Empty]{Method: "Network.emulateNetworkConditions"}

// Eval returns what an expression comes to in the page; a promise is waited for.
func Eval[T any](tab *Tab, expression string) T {
	tab.t.Helper()
	ctx, cancel := context.WithTimeout(tab.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		tab.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// Run runs statements in the page.
func (tab *Tab) Run(script string) {
	tab.t.Helper()
	Eval[bool](tab, "(async () => {"+script+"; return true})()")
}

// Until waits until an expression is true in the page.
func (tab *Tab) Until(expression string) {
	tab.t.Helper()
	Until(tab.t, expression, func() bool { return Eval[bool](tab, "!!("+expression+")") })
}

// Until waits until a condition holds.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came true: %s", what)
		}
	}
}

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

// screen is what is printed, by whoever prints it.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// tailing runs mubatch tail until stop, which returns its exit code.
func tailing(t *testing.T, args ...string) (out, errs *screen, stop func() int) {
	t.Helper()
	out, errs = &screen{}, &screen{}
	ctx, cancel := context.WithCancel(context.Background())
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, commands(), append([]string{"tail", "-data", t.TempDir()}, args...), stdio{out, errs, func(string) string { return "" }})
	}()
	stop = sync.OnceValue(func() int {
		cancel()
		return <-code
	})
	t.Cleanup(func() { stop() })
	return out, errs, stop
}

func TestTailShowsWhatIsAccepted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	_, prefix := redistest.New(t)
	k, err := seed(t.Context(), pool, keys{})
	if err != nil {
		t.Fatal(err)
	}
	cfg, wrong := configured(map[string]string{
		"DATABASE_URL": pool.Config().ConnString(), "REDIS_URL": redistest.URL(t), "MUBATCH_ENCRYPTION_KEYS": k.EncryptionKeys,
		"MUBATCH_REDIS_PREFIX": prefix, "MUBATCH_LANES": "2", "MUBATCH_LOG_LEVEL": "error", "MUBATCH_ALLOW_DEGRADED": "true",
	})
	if wrong != nil {
		t.Fatal(wrong)
	}
	s := startServing(t, cfg)
	all, _, stopAll := tailing(t, "-url", s.url, "-secret-key", k.SecretKey)
	ada, _, stopAda := tailing(t, "-url", s.url, "-secret-key", k.SecretKey, "-json", "-user", "ada")
	users := 0
	eventually(t, "both show what is accepted", func() bool {
		users++
		s.send(k, fmt.Sprint("user", users), http.StatusOK)
		s.send(k, "ada", http.StatusOK)
		return strings.Contains(all.String(), "Tried") && strings.Contains(all.String(), "user") && strings.Contains(ada.String(), `"user_id":"ada"`)
	})
	if strings.Contains(ada.String(), "user1") {
		t.Errorf("shown of ada: %s", ada)
	}
	if a, b := stopAll(), stopAda(); a != 0 || b != 0 {
		t.Errorf("ended with %d and %d", a, b)
	}
	_, errs, stop := tailing(t, "-url", s.url, "-secret-key", k.SecretKey, "-source", "nothing")
	eventually(t, "a wrong filter is told", func() bool { return strings.Contains(errs.String(), "source") })
	if code := stop(); code != 1 {
		t.Errorf("ended with %d", code)
	}
}

func TestTailGoesOnWhereItWasCutOff(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 10)
	var turn int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Last-Event-ID")
		switch turn++; turn {
		case 1:
			fmt.Fprint(w, "event: ready\ndata: {}\n\nevent: event\ndata: {\"type\":\"track\",\"name\":\"One\\u001b[2J\\u009b2J\",\"user_id\":\"ada\"}\n\nid: p1\n\n")
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 3:
			fmt.Fprint(w, "event: missed\ndata: {\"events\":3}\n\nevent: event\ndata: {\"type\":\"page\",\"name\":\"Two\"}\n\n")
		default:
			fmt.Fprint(w, "event: end\ndata: {\"reason\":\"unauthorized\"}\n\n")
		}
	}))
	t.Cleanup(server.Close)
	out, errs, stop := tailing(t, "-url", server.URL, "-secret-key", "mub_sk_x")
	for i, want := range []string{"", "p1", "p1", "p1"} {
		if got := <-asked; got != want {
			t.Errorf("time %d: from %q, want %q", i, got, want)
		}
	}
	eventually(t, "it ends", func() bool { return strings.Contains(errs.String(), "not valid") })
	if code := stop(); code != 1 {
		t.Errorf("ended with %d", code)
	}
	if s := out.String(); !strings.Contains(s, "One") || !strings.Contains(s, "Two") || strings.ContainsAny(s, "\x1b\u009b") {
		t.Errorf("printed %q", s)
	}
	if !strings.Contains(errs.String(), "missed 3 events") {
		t.Errorf("told %q", errs)
	}
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

// While Postgres is down a collector takes events in, also one that is started then, and they are applied when it is back.
func TestEventsAreTakenInWithoutPostgres(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	pool := pgtest.New(t)
	_, prefix := redistest.New(t)
	k, err := seed(t.Context(), pool, keys{})
	if err != nil {
		t.Fatal(err)
	}
	link := newLink(t, pool)
	cfg, wrong := configured(map[string]string{
		"DATABASE_URL": link.url, "REDIS_URL": redistest.URL(t), "MUBATCH_ENCRYPTION_KEYS": k.EncryptionKeys,
		"MUBATCH_REDIS_PREFIX": prefix, "MUBATCH_LANES": "2", "MUBATCH_LOG_LEVEL": "error",
		"MUBATCH_WRITE_KEYS_FILE": filepath.Join(t.TempDir(), "write_keys.json"),
	})
	if wrong != nil {
		t.Fatal(wrong)
	}

	s := startServing(t, cfg)
	s.send(k, "ada", http.StatusOK)
	eventually(t, "the write keys are in the file", func() bool { _, err := os.Stat(cfg.directoryFile); return err == nil })
	link.hang()
	s.send(k, "bob", http.StatusOK)
	eventually(t, "readiness shows that Postgres hangs", s.degraded)
	link.cut()
	s.send(k, "cyd", http.StatusOK)
	s.stop()

	s = startServing(t, cfg)
	s.send(k, "dan", http.StatusOK)
	eventually(t, "readiness shows that Postgres is down", s.degraded)
	link.mend()
	for _, user := range []string{"ada", "bob", "cyd", "dan"} {
		eventually(t, user+" is there", func() bool { return s.get("/api/v1/profiles/user_id:"+user, k.SecretKey) == http.StatusOK })
	}
	eventually(t, "readiness shows that Postgres is back", func() bool { return !s.degraded() })
	s.stop()

	link.cut()
	if err := os.Remove(cfg.directoryFile); err != nil {
		t.Fatal(err)
	}
	if err := serve(t.Context(), cfg, listen(t), io.Discard); err == nil {
		t.Error("without Postgres and the file it serves")
	}
}

// Events that nobody applies are accepted, but whoever looks is told.
func TestReadinessTellsThatNobodyAppliesEvents(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	pool := pgtest.New(t)
	_, prefix := redistest.New(t)
	k, err := seed(t.Context(), pool, keys{})
	if err != nil {
		t.Fatal(err)
	}
	cfg, wrong := configured(map[string]string{
		"DATABASE_URL": pool.Config().ConnString(), "REDIS_URL": redistest.URL(t), "MUBATCH_REDIS_PREFIX": prefix, "MUBATCH_LANES": "2",
		"MUBATCH_LOG_LEVEL": "error", "MUBATCH_ROLES": "collect", "MUBATCH_ENCRYPTION_KEYS": k.EncryptionKeys,
	})
	if wrong != nil {
		t.Fatal(wrong)
	}
	collecting := startServing(t, cfg)
	collecting.send(k, "ada", http.StatusOK)
	if status, text := collecting.ready(); status != http.StatusOK || !strings.Contains(text, "never been taken") {
		t.Errorf("ready without a flusher: %d %s", status, text)
	}
	cfg.roles = "flush"
	startServing(t, cfg)
	eventually(t, "readiness shows that events are applied", func() bool { return !collecting.degraded() })
	if _, text := collecting.ready(); !strings.Contains(text, "events are applied up to ") {
		t.Errorf("readiness does not tell how far: %s", text)
	}
}

// From an event to whoever listens; and a feed that lasts for ever does not keep the server from stopping.
func TestALiveFeedEndsWithTheServer(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	pool := pgtest.New(t)
	_, prefix := redistest.New(t)
	k, err := seed(t.Context(), pool, keys{})
	if err != nil {
		t.Fatal(err)
	}
	cfg, wrong := configured(map[string]string{
		"DATABASE_URL": pool.Config().ConnString(), "REDIS_URL": redistest.URL(t), "MUBATCH_ENCRYPTION_KEYS": k.EncryptionKeys,
		"MUBATCH_REDIS_PREFIX": prefix, "MUBATCH_LANES": "2", "MUBATCH_LOG_LEVEL": "error",
	})
	if wrong != nil {
		t.Fatal(wrong)
	}
	s := startServing(t, cfg)
	ask := func(method, path, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+k.SecretKey)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		if res.StatusCode >= 300 {
			t.Fatalf("%s %s: status %d", method, path, res.StatusCode)
		}
		return res
	}
	ask("POST", "/api/v1/segments", `{"key":"triers","name":"Triers","rule":{"event":"Tried"}}`)
	feed := ask("GET", "/api/v1/segments/triers/transitions/live", "").Body
	s.send(k, "ada", http.StatusOK)
	lines := bufio.NewScanner(feed)
	wait := func(text string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), text) {
				return
			}
		}
		t.Fatalf("the feed has ended without %s: %v", text, lines.Err())
	}
	wait(`"change":"entered"`)
	s.stop()
	wait(`{"reason":"stopping"}`)
}

// A link is a way to a Postgres that can be interrupted.
type link struct {
	url string

	mu    sync.Mutex
	state string // "", "hanging" or "cut"
	conns []net.Conn
}

func newLink(t *testing.T, pool *pgxpool.Pool) *link {
	t.Helper()
	listener := listen(t)
	t.Cleanup(func() { listener.Close() })
	to := pool.Config().ConnConfig
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(to.User, to.Password), Host: listener.Addr().String(),
		Path: to.Database, RawQuery: "sslmode=disable&connect_timeout=2",
	}
	l := &link{url: u.String()}
	t.Cleanup(l.cut)
	network, address := pgconn.NetworkAddress(to.Host, to.Port)
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial(network, address)
			if err != nil || !l.add(from, back) {
				from.Close()
				continue
			}
			go l.carry(from, back)
			go l.carry(back, from)
		}
	}()
	return l
}

func (l *link) add(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, conns...)
	if l.state == "cut" {
		for _, c := range conns {
			c.Close()
		}
	}
	return l.state != "cut"
}

func (l *link) carry(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		for l.is("hanging") {
			time.Sleep(time.Millisecond)
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

func (l *link) is(state string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == state
}

func (l *link) set(state string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state = state; state == "cut" {
		for _, c := range l.conns {
			c.Close()
		}
		l.conns = nil
	}
}

func (l *link) hang() { l.set("hanging") }
func (l *link) cut()  { l.set("cut") }
func (l *link) mend() { l.set("") }

// serving is a server in this process.
type serving struct {
	t    *testing.T
	url  string
	stop func()
}

func startServing(t *testing.T, cfg config) *serving {
	t.Helper()
	listener := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, cfg, listener, t.Output()) }()
	s := &serving{t: t, url: "http://" + listener.Addr().String()}
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(s.stop)
	eventually(t, "the server is ready", func() bool { status, _ := s.ready(); return status == http.StatusOK })
	return s
}

// send sends an event of a user.
func (s *serving) send(k keys, user string, want int) {
	s.t.Helper()
	body := fmt.Sprintf(`{"writeKey": %q, "userId": %q, "event": "Tried", "messageId": %q}`, k.WriteKey, user, user)
	res, err := http.Post(s.url+"/v1/track", "application/json", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	if answer, _ := io.ReadAll(res.Body); res.StatusCode != want {
		s.t.Errorf("an event of %s: %d %s, want %d", user, res.StatusCode, answer, want)
	}
}

func (s *serving) ready() (status int, text string) {
	res, err := http.Get(s.url + "/readyz")
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	var found json.RawMessage
	if err := json.NewDecoder(res.Body).Decode(&found); err != nil {
		return res.StatusCode, err.Error()
	}
	return res.StatusCode, string(found)
}

// degraded tells whether the server says that not all is well. It must be ready all the same.
func (s *serving) degraded() bool {
	s.t.Helper()
	status, text := s.ready()
	if status != http.StatusOK {
		s.t.Errorf("readiness: %d %s", status, text)
	}
	return strings.Contains(text, `"degraded"`)
}

func (s *serving) get(path, secret string) int {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
)

// sdkScripts has a script or a page for each client library, and their versions.
const sdkScripts = "../../collector/sdktest"

// site is a server of its own that can be killed, a wire on which clients reach it, and pages of another origin.
//
//	library ─► wire ─► server      page ─► pages: "crash", then what it has to say
//	                └─ loses an answer and kills the server
type site struct {
	t       *testing.T
	at      info        // the server
	collect string      // the wire
	pages   string      // the pages
	armed   atomic.Bool // the next answer to a POST on the wire is lost, and the server killed

	env     []string // of the server
	mu      sync.Mutex
	server  *exec.Cmd
	crashes int
	ended   bool
	asked   map[string]bool // what browsers asked to be allowed to send
	logs    *begun          // of the server and the pages
}

// newSite starts a server whose source speaks all dialects.
func newSite(t *testing.T) *site {
	t.Helper()
	redistest.RequireReal(t)
	_, prefix := redistest.New(t)
	database := pgtest.NewURL(t)
	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	k, err := seed(t.Context(), pool, keys{})
	if err != nil {
		t.Fatal(err)
	}
	workspace, err := profiles.NewWorkspaces(pool).Ensure(t.Context(), "dev", "")
	if err != nil {
		t.Fatal(err)
	}
	change := collector.SourceUpdate{Settings: &collector.SourceSettings{Dialects: collector.Dialects()}}
	if _, err := collector.NewSourceStore(pool).Update(t.Context(), workspace.ID, "website", change); err != nil {
		t.Fatal(err)
	}

	listener := listen(t) // for a port that is free
	addr := listener.Addr().String()
	listener.Close()
	s := &site{t: t, at: info{URL: "http://" + addr, keys: k, DatabaseURL: database}, asked: map[string]bool{}, logs: &begun{begun: make(chan struct{})}}
	s.env = append(os.Environ(), "MUBATCH_TEST_IS_MUBATCH=serve", "DATABASE_URL="+database, "REDIS_URL="+redistest.URL(t),
		"MUBATCH_ENCRYPTION_KEYS="+k.EncryptionKeys, "MUBATCH_REDIS_PREFIX="+prefix, "MUBATCH_LANES=2", "MUBATCH_LEASE=1s",
		"MUBATCH_LOG_LEVEL=warn", "MUBATCH_ADDR="+addr)
	s.launch()
	t.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended = true
		s.server.Process.Kill()
		s.server.Wait()
		if t.Failed() {
			t.Logf("the server and the pages say:\n%s", s.logs.text())
		}
	})
	s.ready()
	s.wire(addr)
	s.serve()
	return s
}

func (s *site) launch() {
	s.server = exec.Command(os.Args[0], "serve")
	s.server.Env, s.server.Stdout, s.server.Stderr = s.env, s.logs, s.logs
	s.server.SysProcAttr = &syscall.SysProcAttr{}
	dieWithUs(s.server.SysProcAttr, syscall.SIGKILL)
	if err := s.server.Start(); err != nil {
		s.t.Errorf("start the server: %v", err)
	}
}

func (s *site) ready() {
	s.t.Helper()
	eventually(s.t, "the server is ready", func() bool {
		res, err := http.Get(s.at.URL + "/readyz")
		if err == nil {
			res.Body.Close()
		}
		return err == nil && res.StatusCode == http.StatusOK
	})
}

// crash kills the server, and starts another one after a while, so that clients find nobody there.
func (s *site) crash() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crashes++
	s.server.Process.Kill()
	s.server.Wait()
	time.AfterFunc(time.Second, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.ended {
			s.launch()
		}
	})
}

// wire carries bytes between clients and the server, as they are.
func (s *site) wire(addr string) {
	listener := listen(s.t)
	s.collect = "http://" + listener.Addr().String()
	var all sync.WaitGroup
	s.t.Cleanup(func() { listener.Close(); all.Wait() })
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { s.carry(ctx, client, addr) })
		}
	})
}

func (s *site) carry(ctx context.Context, client net.Conn, addr string) {
	defer client.Close()
	server, err := net.Dial("tcp", addr)
	if err != nil {
		return // the server is dead, and so is the connection
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	var posting atomic.Bool
	go func() {
		defer client.Close()
		defer server.Close()
		b := make([]byte, 64<<10)
		for {
			n, err := client.Read(b)
			if err != nil {
				return
			}
			if method, _, ok := bytes.Cut(b[:n], []byte(" /")); ok && len(method) <= len("OPTIONS") { // the head of a request
				posting.Store(string(method) == http.MethodPost)
				s.preflight(string(method), b[:n])
			}
			if _, err := server.Write(b[:n]); err != nil {
				return
			}
		}
	}()
	b := make([]byte, 64<<10)
	for {
		n, err := server.Read(b)
		if err != nil {
			return
		}
		if posting.Load() && s.armed.CompareAndSwap(true, false) {
			s.crash()
			return
		}
		if _, err := client.Write(b[:n]); err != nil {
			return
		}
	}
}

// preflight notes which headers a browser asks to be allowed to send.
func (s *site) preflight(method string, head []byte) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if method != http.MethodOptions || err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range strings.SplitSeq(r.Header.Get("Access-Control-Request-Headers"), ",") {
		s.asked[strings.TrimSpace(name)] = true
	}
}

// serve offers the pages and the libraries that they load, on an origin that is not the server's.
func (s *site) serve() {
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServer(http.Dir(sdkScripts)))
	mux.HandleFunc("POST /crash", func(http.ResponseWriter, *http.Request) { s.armed.Store(true) })
	mux.HandleFunc("POST /say", func(_ http.ResponseWriter, r *http.Request) {
		said, _ := io.ReadAll(r.Body)
		fmt.Fprintf(s.logs, "page: %s\n", said)
	})
	mux.HandleFunc("GET /sdk/", func(w http.ResponseWriter, r *http.Request) {
		http.StripPrefix("/sdk/", http.FileServer(http.Dir(filepath.Join(libraries(s.t), "node_modules")))).ServeHTTP(w, r)
	})
	listener := listen(s.t)
	s.pages = "http://" + listener.Addr().String()
	server := &http.Server{Handler: mux}
	go server.Serve(listener)
	s.t.Cleanup(func() { server.Close() })
}

// node runs a script to its end.
func (s *site) node(script string) {
	s.t.Helper()
	folder := s.t.TempDir()
	for _, name := range []string{script, "run.mjs"} {
		text, err := os.ReadFile(filepath.Join(sdkScripts, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, name), text, 0o600)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(libraries(s.t), "node_modules"), filepath.Join(folder, "node_modules")); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(s.t, "node"), script)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "COLLECT="+s.collect, "WRITE_KEY="+s.at.WriteKey, "PAGES="+s.pages)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// browse opens a page in Chromium, which stays open until the test ends. It finds nobody but this machine.
func (s *site) browse(page string) {
	s.t.Helper()
	chromium := program(s.t, "chromium", "chromium-browser", "google-chrome")
	libraries(s.t)
	page, query, _ := strings.Cut(page, "?")
	query += "&" + url.Values{"collect": {s.collect}, "key": {s.at.WriteKey}}.Encode()
	cmd := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0",
		"--user-data-dir="+s.t.TempDir(), s.pages+"/"+page+"?"+query)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has children
	dieWithUs(cmd.SysProcAttr, syscall.SIGKILL)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		eventually(s.t, "the browser is gone", func() bool { return syscall.Kill(-cmd.Process.Pid, 0) != nil })
	})
}

// settled waits until all calls have been applied and, if the server was to crash, the one whose answer was lost has come
// again.
func (s *site) settled(calls map[string]int, crashes bool) {
	s.t.Helper()
	want := 0
	for _, n := range calls {
		want += n
	}
	var got counts
	for end := time.Now().Add(5 * time.Minute); got.Applied < want || crashes && got.Duplicate == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("after two minutes the events are %+v, want %d applied; the server crashed %d times", got, want, s.crashes)
		}
		got = s.counts()
	}
	s.ready()
	if got = s.counts(); got.Applied != want || got.Failed != 0 || !got.AddsUp {
		s.t.Errorf("the events are %+v, want %d applied", got, want)
	}
	if s.mu.Lock(); crashes != (s.crashes == 1) {
		s.t.Errorf("the server crashed %d times", s.crashes)
	}
	s.mu.Unlock()
}

type counts struct {
	Accepted, Applied, Duplicate, Failed int
	AddsUp                               bool `json:"adds_up"`
}

// counts returns what became of all events, or nothing while the server is dead.
func (s *site) counts() counts {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.at.URL+"/api/v1/stats", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.at.SecretKey)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return counts{}
	}
	defer res.Body.Close()
	var stats struct{ Events counts }
	if res.StatusCode != http.StatusOK || json.NewDecoder(res.Body).Decode(&stats) != nil {
		return counts{}
	}
	return stats.Events
}

// pastEvent is an event of the profile that is looked at.
type pastEvent struct {
	Type, Name string
	Payload    struct {
		AnonymousID string
		Properties  struct {
			OrderID string `json:"order_id"`
			Revenue json.Number
		}
	}
}

// events returns the events of the user whom everybody talks about.
func (s *site) events() []pastEvent {
	s.t.Helper()
	var list struct{ Data []pastEvent }
	s.at.do(s.t, http.MethodGet, "/api/v1/profiles/user_id:ada/events?limit=100", nil, &list)
	return list.Data
}

// person is what is known of that user.
type person struct {
	Calls   map[string]int // the events, by what they are
	Traits  map[string]any
	Consent map[string]bool
	Alias   bool // is known under the other name too
}

func (s *site) person() person {
	s.t.Helper()
	var known, alias struct {
		ID      string
		Traits  map[string]any
		Consent map[string]struct{ Granted bool }
	}
	s.at.do(s.t, http.MethodGet, "/api/v1/profiles/user_id:ada", nil, &known)
	p := person{Calls: map[string]int{}, Traits: known.Traits}
	p.Alias = s.at.do(s.t, http.MethodGet, "/api/v1/profiles/user_id:ada-of-old", nil, &alias) && alias.ID == known.ID
	for _, e := range s.events() {
		call := e.Type
		if call == "track" {
			call += " " + e.Name
		}
		p.Calls[call]++
	}
	for purpose, decided := range known.Consent {
		if p.Consent == nil {
			p.Consent = map[string]bool{}
		}
		p.Consent[purpose] = decided.Granted
	}
	return p
}

// becomes waits until the user is known as want says, and nobody else is: merges follow their events.
func (s *site) becomes(want person) {
	s.t.Helper()
	var diff string
	var all struct{ Data []json.RawMessage }
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		diff = cmp.Diff(want, s.person())
		if s.at.do(s.t, http.MethodGet, "/api/v1/profiles", nil, &all); diff == "" && len(all.Data) == 1 {
			return
		}
	}
	s.t.Errorf("there are %d profiles, and of this one is known (-want +got):\n%s", len(all.Data), diff)
}

// program returns where a program is. Without it the test is skipped, or fails if MUBATCH_TEST_REQUIRE is 1.
func program(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	lacking(t, names[0]+" is not installed (make test-deps installs it)")
	return ""
}

func lacking(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("MUBATCH_TEST_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

var installing sync.Mutex

// libraries returns a folder with the client libraries, of exactly the versions that the lock file names. They are
// installed once, in the user's cache, without running what they bring.
func libraries(t *testing.T) string {
	t.Helper()
	lock, err := os.ReadFile(filepath.Join(sdkScripts, "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(lock)
	folder := filepath.Join(cache, "mubatch", "sdks-"+hex.EncodeToString(sum[:6]))

	installing.Lock()
	defer installing.Unlock()
	if _, err := os.Stat(folder); err == nil {
		return folder
	}
	npm := program(t, "npm")
	if os.Getenv("MUBATCH_OFFLINE") == "1" {
		t.Skip("MUBATCH_OFFLINE is 1, and the client libraries are not installed")
	}
	fresh := folder + fmt.Sprintf(".%d", os.Getpid())
	if err := os.MkdirAll(fresh, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(fresh)
	for _, name := range []string{"package.json", "package-lock.json"} {
		text, err := os.ReadFile(filepath.Join(sdkScripts, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(fresh, name), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = fresh
	if out, err := cmd.CombinedOutput(); err != nil {
		lacking(t, fmt.Sprintf("npm ci: %v\n%s", err, out))
	}
	if err := os.Rename(fresh, folder); err != nil {
		if _, there := os.Stat(folder); there != nil { // nobody else was faster
			t.Fatal(err)
		}
	}
	return folder
}

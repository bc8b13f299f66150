package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestDevServesAndRemembersItsKeys(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	data := dataFolder(t)

	first := start(t, data, nil)
	at := first.waitForInfo(t)
	if got, err := get(at.URL); err != nil || got != `{"not_durable":""}` {
		t.Errorf("%s answers %q, %v", at.URL, got, err)
	}
	path := filepath.Join(data, "dev.json")
	if stat, err := os.Stat(path); err != nil || stat.Mode().Perm() != 0o600 {
		t.Errorf("dev.json is %v, %v; want mode 0600", stat, err)
	}
	execute(t, at.DatabaseURL, `INSERT INTO workspaces (key, name, secret) VALUES ('kept', '', '')`)

	if code := first.stop(t, syscall.SIGINT); code != 0 {
		t.Errorf("Ctrl-C ends it with %d, want 0:\n%s", code, first.output())
	}
	noneLeft(t, data)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("dev.json is still there: %v", err)
	}

	second := start(t, data, nil)
	again := second.waitForInfo(t)
	if again.WriteKey == "" || again.keys != at.keys {
		t.Errorf("the second start has the keys %v, the first had %v", again.keys, at.keys)
	}
	execute(t, again.DatabaseURL, `DELETE FROM workspaces WHERE key = 'kept'`)
	if code := second.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("SIGTERM ends it with %d, want 0", code)
	}

	third := start(t, data, nil, "--reset")
	if fresh := third.waitForInfo(t); fresh.keys == at.keys {
		t.Error("the keys outlive a reset")
	}
	third.stop(t, syscall.SIGINT)
	noneLeft(t, data)
}

func TestDevRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	data := dataFolder(t)
	running := start(t, data, nil)
	at := running.waitForInfo(t)

	tests := map[string]struct {
		args []string
		code int
		want string
	}{
		"a folder that is in use":   {[]string{"--data", data, "--addr", "127.0.0.1:0"}, 1, "another mubatch dev uses"},
		"an address that is in use": {[]string{"--data", t.TempDir(), "--addr", strings.TrimPrefix(at.URL, "http://")}, 1, "choose another one with --addr"},
		"a stray argument":          {[]string{"--data", t.TempDir(), "stray"}, 2, `unexpected argument "stray"`},
		"no command to run":         {[]string{"--exec"}, 2, "--exec needs a command"},
		"an unknown flag":           {[]string{"--nonsense"}, 2, "flag provided but not defined"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := launch(t, nil, append([]string{"dev"}, tt.args...)...)
			if code := p.wait(t); code != tt.code || !strings.Contains(p.output(), tt.want) {
				t.Errorf("ended with %d and\n%s\nwant %d and %q", code, p.output(), tt.code, tt.want)
			}
		})
	}
	running.stop(t, syscall.SIGINT)
}

func TestAFailingDemoEndsTheServing(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	data := dataFolder(t)
	p := start(t, data, nil, "--demo")
	if code := p.wait(t); code != 1 || !strings.Contains(p.output(), "the demo saw 200 OK") {
		t.Errorf("ended with %d and\n%s", code, p.output())
	}
	noneLeft(t, data)
}

func TestASignalAtAnyMomentStopsEverything(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	if testing.Short() {
		t.Skip("starts many stores")
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			data := dataFolder(t)
			for _, after := range []time.Duration{5, 40, 100, 200, 350, 500, 700, 900, 1200} {
				p := start(t, data, nil)
				time.Sleep(after * time.Millisecond)
				p.stop(t, sig)
				noneLeft(t, data)
				if after < 700 { // the later ones find data to recover
					if err := os.RemoveAll(clusterOf(t, data).data); err != nil {
						t.Fatal(err)
					}
				}
			}
			p := start(t, data, nil)
			p.waitForInfo(t)
			p.stop(t, syscall.SIGINT)
			noneLeft(t, data)
		})
	}
}

func TestAStoreThatDiesIsStartedAgain(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	data := dataFolder(t)
	p := start(t, data, nil)
	at := p.waitForInfo(t)
	for _, name := range []string{"postgres", "redis"} {
		killed := 0
		for pid, line := range processesOf(t, data) {
			if strings.Contains(line, name+" -D") || strings.Contains(line, name+"-server") {
				syscall.Kill(pid, syscall.SIGKILL)
				killed++
			}
		}
		if killed != 1 {
			t.Fatalf("killed %d processes for %s, of %v", killed, name, processesOf(t, data))
		}
		p.waitFor(t, name+": is back")
	}
	execute(t, at.DatabaseURL, `SELECT`)
	p.stop(t, syscall.SIGINT)
	noneLeft(t, data)
}

func TestAnOrphanIsReusedAndStopped(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	data := dataFolder(t)
	p := start(t, data, nil)
	p.waitForInfo(t)
	lines := processesOf(t, data)
	p.stop(t, syscall.SIGINT)
	noneLeft(t, data)

	// Started as it was, but bound to nobody, as a system without the means to bind it would leave it.
	var orphan *exec.Cmd
	for _, line := range lines {
		if args := strings.Fields(line); len(args) > 2 && args[1] == "-D" {
			orphan = exec.Command(args[0], args[1:]...)
		}
	}
	if orphan == nil {
		t.Fatalf("no Postgres among %v", lines)
	}
	c := clusterOf(t, data)
	c.as.apply(orphan)
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()
	eventually(t, "the orphan writes its pid", func() bool {
		text, _ := os.ReadFile(filepath.Join(c.data, "postmaster.pid"))
		return bytes.Contains(text, []byte("ready"))
	})

	p = start(t, data, nil)
	p.waitForInfo(t)
	if !strings.Contains(p.output(), "found running") {
		t.Errorf("it does not say that it found one running:\n%s", p.output())
	}
	p.stop(t, syscall.SIGINT)
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		orphan.Process.Kill()
		t.Error("the orphan outlives the one that adopted it")
	}
	noneLeft(t, data)
}

func TestAStaleLockIsIgnored(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	data := dataFolder(t)
	p := start(t, data, nil)
	p.waitForInfo(t)
	p.stop(t, syscall.SIGINT)

	// The number of a process that is alive, and no Postgres: ours.
	where := clusterOf(t, data).data
	stale := fmt.Sprintf("%d\n%s\n", os.Getpid(), where)
	if err := os.WriteFile(filepath.Join(where, "postmaster.pid"), []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	p = start(t, data, nil)
	p.waitForInfo(t)
	p.stop(t, syscall.SIGINT)
	noneLeft(t, data)
}

func TestWithoutARedisASubstituteIsAnnounced(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	found, err := newFinder(os.Getenv).postgres(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, dataFolder(t), []string{"PATH=" + t.TempDir(), "MUBATCH_PG_BIN=" + found.bin})
	at := p.waitForInfo(t)
	const want = "in-process, NOT durable (no redis-server found)"
	if !strings.Contains(p.output(), "redis: "+want+"\n") {
		t.Errorf("it is not announced:\n%s", p.output())
	}
	if got, err := get(at.URL); err != nil || got != `{"not_durable":"`+want+`"}` {
		t.Errorf("the server is told %q, %v", got, err)
	}
	p.stop(t, syscall.SIGINT)
}

func TestExecReturnsWhatTheCommandReturns(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	tests := map[string]struct {
		command []string
		code    int
		output  string
	}{
		"a command that fails":   {[]string{"sh", "-c", "exit 7"}, 7, ""},
		"a command that is shot": {[]string{"sh", "-c", "kill -9 $$"}, 128 + 9, ""},
		"no such command":        {[]string{"/nonexistent"}, 2, "/nonexistent"},
		"a command that sees the stores, and its own flags": {
			[]string{"sh", "-c", `echo "$1 $MUBATCH_TEST_DATABASE_URL $MUBATCH_TEST_REDIS_URL" | sed -E 's,/tmp(/[^ /]+)?/mubatch-[0-9a-f]{8}(-pg)?,X,g'`, "sh", "--addr"},
			0, "--addr postgres://mubatch@/postgres?host=X&port=5432 unix://X/redis.sock\n",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			temp := tempFolder(t)
			p := launch(t, []string{"TMPDIR=" + temp}, append([]string{"dev", "--exec", "--"}, tt.command...)...)
			if code := p.wait(t); code != tt.code || !strings.Contains(p.output(), tt.output) {
				t.Errorf("ended with %d and\n%s\nwant %d and %q", code, p.output(), tt.code, tt.output)
			}
			noneLeft(t, temp)
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("left in the temporary folder: %v, %v", left, err)
			}
		})
	}
}

func TestExecPassesSignalsOn(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	tests := map[string]struct {
		script string
		signal syscall.Signal
		code   int
	}{
		"a command that minds its manners": {`trap 'exit 3' TERM; echo started; while :; do sleep 0.05; done`, syscall.SIGTERM, 3},
		"a command that just dies":         {`echo started; exec sleep 60`, syscall.SIGINT, 128 + 2},
		"a command with children":          {`sleep 61 & echo started; wait`, syscall.SIGTERM, 128 + 15},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			temp := tempFolder(t)
			p := launch(t, []string{"TMPDIR=" + temp}, "dev", "--exec", "--", "sh", "-c", `cd "$TMPDIR"; `+tt.script)
			p.waitFor(t, "started")
			if code := p.stop(t, tt.signal); code != tt.code {
				t.Errorf("ended with %d, want %d:\n%s", code, tt.code, p.output())
			}
			noneLeft(t, temp)
		})
	}
}

func TestExecLeavesNothingWhenItIsKilled(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	temp := tempFolder(t)
	p := launch(t, []string{"TMPDIR=" + temp}, "dev", "--exec", "--", "sh", "-c", "echo started; exec sleep 60")
	p.waitFor(t, "started")
	p.stop(t, syscall.SIGKILL)
	noneLeft(t, temp)

	// The next one removes its folder, once it is certain that nobody has it.
	left, err := filepath.Glob(filepath.Join(temp, throwAwayPrefix+"*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("left: %v, %v; want its folder", left, err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(left[0], old, old); err != nil {
		t.Fatal(err)
	}
	if code := launch(t, []string{"TMPDIR=" + temp}, "dev", "--exec", "--", "true").wait(t); code != 0 {
		t.Errorf("the next one ended with %d", code)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("still left: %v, %v", left, err)
	}
}

// needPrograms skips the test where there is nothing to start, unless MUBATCH_TEST_REQUIRE is 1.
func needPrograms(t testing.TB) {
	t.Helper()
	find := newFinder(os.Getenv)
	_, pgErr := find.postgres(t.Context(), 0)
	_, _, redisErr := find.redis(t.Context())
	if pgErr == nil && redisErr == nil {
		return
	}
	if os.Getenv("MUBATCH_TEST_REQUIRE") == "1" {
		t.Fatalf("Postgres: %v; Redis: %v", pgErr, redisErr)
	}
	t.Skipf("Postgres: %v; Redis: %v", pgErr, redisErr)
}

// tempFolder is like t.TempDir, but with a name that is short, and removed even if somebody still writes to it.
func tempFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "mubatch-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func dataFolder(t testing.TB) string {
	t.Helper()
	data := filepath.Join(tempFolder(t), "data")
	f := &folder{path: data}
	t.Cleanup(func() {
		for _, path := range []string{f.outside(), f.socketsPath(os.TempDir()), f.otherSocketsPath()} {
			os.RemoveAll(path)
		}
	})
	return data
}

// clusterOf returns where the Postgres of a data folder is.
func clusterOf(t *testing.T, data string) *cluster {
	t.Helper()
	as, err := identify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{as: as}
	if err := c.locate(&folder{path: data}, os.TempDir()); err != nil {
		t.Fatal(err)
	}
	return c
}

// A process is a mubatch that a test started.
type process struct {
	cmd   *exec.Cmd
	data  string
	ended chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// start starts the dev mode on a data folder.
func start(t *testing.T, data string, env []string, flags ...string) *process {
	t.Helper()
	p := launch(t, env, append([]string{"dev", "--data", data, "--addr", "127.0.0.1:0"}, flags...)...)
	p.data = data
	return p
}

func launch(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0], args...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "MUBATCH_TEST_IS_MUBATCH=1",
		"DATABASE_URL=", "REDIS_URL=", "MUBATCH_TEST_DATABASE_URL=", "MUBATCH_TEST_REDIS_URL=")
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.WaitDelay = time.Second // for a store that still holds the pipe
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

// stop signals the process and returns the code that it ends with.
func (p *process) stop(t *testing.T, s syscall.Signal) int {
	t.Helper()
	p.cmd.Process.Signal(s) // an error means that it has ended
	return p.wait(t)
}

func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(time.Minute):
		t.Fatalf("it does not end, and said\n%s", p.output())
		return 0
	}
}

func (p *process) waitFor(t *testing.T, text string) {
	t.Helper()
	eventually(t, "it says "+text, func() bool {
		select {
		case <-p.ended:
			t.Fatalf("it ended, and said\n%s", p.output())
		default:
		}
		return strings.Contains(p.output(), text)
	})
}

// waitForInfo returns what dev.json holds once the process is ready.
func (p *process) waitForInfo(t *testing.T) info {
	t.Helper()
	p.waitFor(t, "serving on")
	text, err := os.ReadFile(filepath.Join(p.data, "dev.json"))
	if err != nil {
		t.Fatal(err)
	}
	var at info
	if err := json.Unmarshal(text, &at); err != nil {
		t.Fatal(err)
	}
	return at
}

func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within five minutes: %s", what)
		}
	}
}

// noneLeft fails the test if a process that has to do with the folder is there two seconds later.
func noneLeft(t *testing.T, folder string) {
	t.Helper()
	var left map[int]string
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if left = processesOf(t, folder); len(left) == 0 {
			return
		}
	}
	t.Errorf("left running: %v", left)
	for pid := range left {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// processesOf returns the processes that work in a folder, or name it in how they were called.
func processesOf(t *testing.T, path string) map[int]string {
	t.Helper()
	name := (&folder{path: path}).shortName() // in the paths of what had to be put elsewhere
	found := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		text, err := exec.Command("ps", "-axo", "pid=,command=").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			pid, command, _ := strings.Cut(strings.TrimSpace(line), " ")
			if n, err := strconv.Atoi(pid); err == nil && (strings.Contains(command, path) || strings.Contains(command, name)) {
				found[n] = command
			}
		}
		return found
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cwd, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		text, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if line := strings.ReplaceAll(string(text), "\x00", " "); strings.Contains(line, path) || strings.Contains(line, name) ||
			strings.HasPrefix(cwd, path) || strings.Contains(cwd, name) {
			found[pid] = line
		}
	}
	return found
}

func get(url string) (string, error) {
	response, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(text)), err
}

func execute(t *testing.T, databaseURL, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	tag, err := conn.Exec(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	if !tag.Select() && tag.RowsAffected() != 1 {
		t.Errorf("%s touches %d rows, want 1", sql, tag.RowsAffected())
	}
}

// A store that is killed while it starts is started again, as one that is killed later is.
func TestAStoreThatIsKilledWhileItStartsIsStartedAgain(t *testing.T) {
	t.Parallel()
	tries := 0
	var s *server
	s = &server{
		name: "store", log: filepath.Join(t.TempDir(), "log"), force: syscall.SIGKILL, ask: syscall.SIGTERM, atOurDeath: syscall.SIGKILL,
		command: func() *exec.Cmd { return exec.Command("sleep", "60") },
		orphan:  func(context.Context) int { return 0 },
		ready: func(context.Context) error {
			if tries++; tries > 1 {
				return nil
			}
			c, _ := s.get()
			c.signal(syscall.SIGKILL)
			<-c.ended
			return errors.New("it does not answer")
		},
		say: func(string) {},
	}
	if err := s.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.kill()
	if tries != 2 {
		t.Errorf("it was asked %d times whether it is ready, want 2", tries)
	}
}

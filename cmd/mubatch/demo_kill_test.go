package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/cmd/mubatch/demo"
	"github.com/mubatch/mubatch/migrations"
)

var kills = flag.Int("kills", 9, "how often TestKillsLoseAndDoubleNothing kills something")

// killEvery is about how long it lets all of them run.
const killEvery = 1500 * time.Millisecond

// TestKillsLoseAndDoubleNothing kills the server, Redis and Postgres in turn, with SIGKILL, while the shop's sales are
// replayed by a client that sends again what was not acknowledged. In the end everything is as SQL over the raw lines
// says: whatever was acknowledged has been applied, once.
func TestKillsLoseAndDoubleNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	t.Parallel()
	needPrograms(t)
	v := newVictims(t)

	events := 1000
	if *sales != "" {
		events = 30_000
	}
	seconds := float64(*kills) * killEvery.Seconds()
	out := &begun{begun: make(chan struct{})}
	killing, stop := context.WithCancel(t.Context())
	defer stop()
	killed := make(chan map[string]int)
	go func() {
		select {
		case <-out.begun:
		case <-killing.Done():
		}
		killed <- v.kill(killing, *kills)
	}()

	result, err := demo.Run(t.Context(), demo.Config{
		URL: v.at.URL, WriteKey: v.at.WriteKey, SecretKey: v.at.SecretKey, File: *sales, Check: v.at.DatabaseURL,
		Rate: int(float64(events)/seconds) + 1, Batch: max(1, events/500), Workers: 8, Live: -1, Out: out,
	})
	stop()
	count := <-killed
	if err != nil {
		t.Fatalf("after %v: %v\n%s\n%s", count, err, out.text(), v.logs.text())
	}
	c := result.Counts
	lost, doubled := max(0, result.Sent-c.Applied), max(0, c.Applied-result.Sent)
	t.Logf("killed the server %d times, Redis %d times and Postgres %d times within %.0f s: %d events acknowledged, "+
		"%d lost, %d doubled (%d requests sent again, %d copies recognized); accounts and members are as SQL says",
		count["server"], count["redis"], count["postgres"], result.Took.Seconds(), result.Sent, lost, doubled, result.Retries, c.Duplicate)
	if testing.Verbose() {
		t.Logf("the demo says:\n%s", out.text())
	}
	if lost+doubled != 0 || !c.AddsUp || c.Failed+c.Suppressed != 0 {
		t.Errorf("%d events were acknowledged, and counted as %+v", result.Sent, c)
	}
	for _, what := range []string{"server", "redis", "postgres"} {
		if count[what] < *kills/3 {
			t.Errorf("%s was killed %d times before all was sent, want %d", what, count[what], *kills/3)
		}
	}
}

// victims are a server, a Redis and a Postgres that are started again whenever they die.
type victims struct {
	at   info
	on   *stores
	logs *begun

	mu     sync.Mutex
	server *exec.Cmd
}

func newVictims(t testing.TB) *victims {
	t.Helper()
	v := &victims{logs: &begun{begun: make(chan struct{})}}
	f, err := openFolder(dataFolder(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	v.on, err = openStores(t.Context(), f, storesPlan{settings: durable, database: "mubatch", restart: true},
		newFinder(os.Getenv), func(string) {}, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.on.kill)

	if err := migrations.Up(t.Context(), v.on.databaseURL); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), v.on.databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	k, err := seed(t.Context(), pool, keys{})
	pool.Close()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0") // for a port that is free
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	listener.Close()
	v.at = info{URL: "http://" + addr, keys: k, DatabaseURL: v.on.databaseURL, RedisURL: v.on.redisURL}
	v.keepServing(t, addr)
	return v
}

// keepServing starts a server, and another one whenever it dies, until the test ends.
func (v *victims) keepServing(t testing.TB, addr string) {
	launch := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0], "serve", "-addr", addr, "-lease", "1s", "-allow-private-destinations", "-log-level", "warn")
		cmd.Env = append(os.Environ(), "MUBATCH_TEST_IS_MUBATCH=serve",
			"DATABASE_URL="+v.at.DatabaseURL, "REDIS_URL="+v.at.RedisURL, "MUBATCH_ENCRYPTION_KEYS="+v.at.EncryptionKeys)
		cmd.Stdout, cmd.Stderr = v.logs, v.logs
		if err := cmd.Start(); err != nil {
			t.Errorf("start the server: %v", err)
		}
		return cmd
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	v.server = launch()
	go func() {
		defer close(ended)
		for {
			v.server.Wait()
			v.mu.Lock()
			if ctx.Err() == nil {
				v.server = launch()
			}
			v.mu.Unlock()
			if sleep(ctx, 50*time.Millisecond) != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		v.mu.Lock()
		cancel()
		v.server.Process.Kill()
		v.mu.Unlock()
		<-ended
	})
}

// kill kills each of the three in turn, n times in all, and returns how often it killed which before ctx ended.
func (v *victims) kill(ctx context.Context, n int) map[string]int {
	count := map[string]int{}
	for i := range n {
		if sleep(ctx, time.Duration((0.5+rand.Float64())*float64(killEvery))) != nil {
			return count
		}
		switch what := []string{"server", "redis", "postgres"}[i%3]; what {
		case "server":
			v.mu.Lock()
			v.server.Process.Kill()
			v.mu.Unlock()
			count[what]++
		default:
			for _, s := range v.on.servers {
				if c, _ := s.get(); s.name == what && c != nil {
					c.signal(syscall.SIGKILL)
					count[what]++
				}
			}
		}
	}
	return count
}

// begun keeps what is written, and tells when the demo has made its segments and its destination.
type begun struct {
	mu    sync.Mutex
	all   bytes.Buffer
	once  sync.Once
	begun chan struct{}
}

func (b *begun) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all.Write(p)
	if strings.Contains(b.all.String(), "webhook destination") {
		b.once.Do(func() { close(b.begun) })
	}
	return len(p), nil
}

func (b *begun) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprint(b.all.String())
}

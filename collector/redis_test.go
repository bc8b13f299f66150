package collector_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/mubatch/mubatch/collector"
)

// privateRedis is a Redis server of one test, which may kill it.
type privateRedis struct {
	t    testing.TB
	dir  string
	args []string
	cmd  *exec.Cmd
}

// startRedis starts a Redis server, durable unless args say otherwise, that is killed when the test ends.
func startRedis(t testing.TB, args ...string) *privateRedis {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("MUBATCH_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "mb") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	r := &privateRedis{t: t, dir: dir, args: args}
	t.Cleanup(func() {
		r.kill()
		_ = os.RemoveAll(dir)
	})
	r.start()
	return r
}

func (r *privateRedis) url() string { return "unix://" + filepath.Join(r.dir, "s") }

func (r *privateRedis) start(args ...string) {
	r.t.Helper()
	all := append([]string{
		"--port", "0", "--unixsocket", filepath.Join(r.dir, "s"), "--dir", r.dir, "--save", "",
		"--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction",
	}, r.args...)
	r.cmd = exec.Command("redis-server", append(all, args...)...)
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	opts, err := redis.ParseURL(r.url())
	if err != nil {
		r.t.Fatal(err)
	}
	rdb := redis.NewClient(opts)
	defer rdb.Close()
	waitFor(r.t, "redis to start", func() bool { return rdb.Ping(context.Background()).Err() == nil })
}

func (r *privateRedis) kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	var exit *exec.ExitError
	if err := r.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		r.t.Errorf("wait for redis: %v", err)
	}
	r.cmd = nil
}

// client returns a client as production has it.
func (r *privateRedis) client() *redis.Client {
	r.t.Helper()
	rdb, err := collector.OpenRedis(r.url(), 16)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { rdb.Close() })
	return rdb
}

// waitFor waits for done, for as long as a loaded machine may need.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

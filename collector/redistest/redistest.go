// Package redistest gives each test a part of a Redis server of its own.
//
// The server is the one that MUBATCH_TEST_REDIS_URL names; `mubatch dev --exec` starts one.
package redistest

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// New returns a client and a prefix that no other test has. When the test ends, the keys that begin with the prefix are
// removed and the client is closed. The prefix holds no braces, so a hash tag may follow it.
//
// Without a server the test is skipped, or fails if MUBATCH_TEST_REQUIRE is 1.
func New(t testing.TB) (rdb *redis.Client, prefix string) {
	t.Helper()
	rdb = open(t)
	prefix = "test_" + strings.ToLower(rand.Text()) + ":"
	t.Cleanup(func() {
		if err := remove(rdb, prefix); err != nil {
			t.Errorf("remove the test's keys: %v", err)
		}
	})
	return rdb, prefix
}

// RequireReal skips the test, or fails it if MUBATCH_TEST_REQUIRE is 1, unless the server is a real one: the in-process
// substitute keeps nothing, has no CONFIG, and miscounts lag.
func RequireReal(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := open(t).ConfigGet(ctx, "appendonly").Err(); err != nil {
		missing(t, "this test needs a real Redis, and MUBATCH_TEST_REDIS_URL names a substitute: "+err.Error())
	}
}

// URL returns the address of the test server, for those who connect by themselves. Without one the test is skipped, or
// fails if MUBATCH_TEST_REQUIRE is 1.
func URL(t testing.TB) string {
	t.Helper()
	url := os.Getenv("MUBATCH_TEST_REDIS_URL")
	if url == "" {
		missing(t, "MUBATCH_TEST_REDIS_URL is not set, so there is no Redis to test with (make test starts one)")
	}
	return url
}

func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("MUBATCH_TEST_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func open(t testing.TB) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(URL(t))
	if err != nil {
		t.Fatalf("read MUBATCH_TEST_REDIS_URL: %v", err)
	}
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { rdb.Close() })
	return rdb
}

func remove(rdb *redis.Client, prefix string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	keys := rdb.Scan(ctx, 0, prefix+"*", 1000).Iterator()
	for keys.Next(ctx) {
		if err := rdb.Unlink(ctx, keys.Val()).Err(); err != nil {
			return err
		}
	}
	return keys.Err()
}

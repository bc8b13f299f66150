// Package pgtest gives each test a Postgres database of its own, migrated and empty.
//
// The server is the one that MUBATCH_TEST_DATABASE_URL names; `mubatch dev --exec` starts one. Its databases are cloned
// from a template that is migrated once for each state of the migration files, so that a test waits about 0.1 s.
package pgtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/migrations"
)

// New returns a pool on a freshly migrated database that nobody else uses. When the test ends, the pool is closed and the
// database dropped; a connection that the test did not give back by then fails it.
//
// Without a server the test is skipped, or fails if MUBATCH_TEST_REQUIRE is 1.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return open(t, NewURL(t))
}

// NewURL is like [New] for those who connect by themselves.
func NewURL(t testing.TB) string {
	t.Helper()
	server := Server(t)
	template, err := templates(server)
	if err != nil {
		t.Fatalf("make the template database: %v", err)
	}
	return create(t, server, fmt.Sprintf("TEMPLATE %s STRATEGY wal_log", template))
}

// Empty returns the URL of a database that holds nothing, not even the schema, and is dropped when the test ends.
func Empty(t testing.TB) string {
	t.Helper()
	return create(t, Server(t), "TEMPLATE template0")
}

// Server returns the URL of the test server, for tests that need it as a whole. Without one the test is skipped, or
// fails if MUBATCH_TEST_REQUIRE is 1.
func Server(t testing.TB) string {
	t.Helper()
	server := os.Getenv("MUBATCH_TEST_DATABASE_URL")
	if server == "" {
		const missing = "MUBATCH_TEST_DATABASE_URL is not set, so there is no Postgres to test with (make test starts one)"
		if os.Getenv("MUBATCH_TEST_REQUIRE") == "1" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	return server
}

func open(t testing.TB, databaseURL string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		t.Fatalf("read the test database's URL: %v", err)
	}
	cfg.MaxConns = 8 // many tests share one server
	cfg.MinConns = 0
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatalf("open the test database: %v", err)
	}
	t.Cleanup(func() {
		closed := make(chan struct{})
		go func() {
			pool.Close()
			close(closed)
		}()
		select {
		case <-closed:
		case <-time.After(10 * time.Second):
			t.Errorf("%d connections were not given back to the test's pool", pool.Stat().AcquiredConns())
		}
	})
	return pool
}

// create makes a database the given way, to be dropped when the test ends, and returns its URL.
func create(t testing.TB, server, how string) string {
	t.Helper()
	name := "test_" + strings.ToLower(rand.Text())
	if err := execute(server, fmt.Sprintf("CREATE DATABASE %s %s", name, how)); err != nil {
		t.Fatalf("create the test database: %v", err)
	}
	t.Cleanup(func() {
		if err := execute(server, fmt.Sprintf("DROP DATABASE %s WITH (FORCE)", name)); err != nil {
			t.Errorf("drop the test database: %v", err)
		}
	})
	databaseURL, err := withDatabase(server, name)
	if err != nil {
		t.Fatalf("name the test database: %v", err)
	}
	return databaseURL
}

// templates returns the name of the migrated template on a server, which it makes at the first call.
var templates = func() func(server string) (string, error) {
	type result struct {
		name string
		err  error
	}
	var mu sync.Mutex
	made := map[string]result{}
	return func(server string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		r, ok := made[server]
		if !ok { // a failure is kept too: what made one test fail would make all of them wait for the same
			r.name, r.err = makeTemplate(server)
			made[server] = r
		}
		return r.name, r.err
	}
}()

// makeTemplate makes the template for the present migration files, unless another process has. The lock makes processes
// that come at once take turns; the rename at the end keeps a half-migrated one from being taken for it.
func makeTemplate(server string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	hash, err := schemaHash()
	if err != nil {
		return "", err
	}
	name := "template_" + hex.EncodeToString(hash[:8])

	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	const lock = `SELECT pg_advisory_lock($1)`
	if _, err := conn.Exec(ctx, lock, int64(binary.BigEndian.Uint64(hash[:8]))); err != nil {
		return "", fmt.Errorf("wait for another test's template: %w", err)
	}
	const exists = `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`
	var found bool
	if err := conn.QueryRow(ctx, exists, name).Scan(&found); err != nil || found {
		return name, err
	}

	draft := name + "_draft"
	draftURL, err := withDatabase(server, draft)
	if err != nil {
		return "", err
	}
	for _, sql := range []string{
		fmt.Sprintf("DROP DATABASE IF EXISTS %s WITH (FORCE)", draft),
		fmt.Sprintf("CREATE DATABASE %s TEMPLATE template0", draft),
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return "", err
		}
	}
	if err := migrations.Up(ctx, draftURL); err != nil {
		return "", err
	}
	// Nobody connects to a template, so that cloning it never has to wait for somebody to leave.
	for _, sql := range []string{
		fmt.Sprintf("ALTER DATABASE %s WITH ALLOW_CONNECTIONS false", draft),
		fmt.Sprintf("ALTER DATABASE %s RENAME TO %s", draft, name),
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return "", err
		}
	}
	return name, nil
}

func schemaHash() ([]byte, error) {
	h := sha256.New()
	err := fs.WalkDir(migrations.Files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(migrations.Files, path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(text), text)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read migration files: %w", err)
	}
	return h.Sum(nil), nil
}

// execute runs a statement over a connection of its own: a pool shared by all tests would outlive each of them, and look
// like a leak to those that count goroutines.
func execute(server, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return cmp.Or(err, conn.Close(ctx))
}

// withDatabase returns server, a URL or a list of keywords and values, with another database's name.
func withDatabase(server, name string) (string, error) {
	if !strings.HasPrefix(server, "postgres://") && !strings.HasPrefix(server, "postgresql://") {
		return server + " dbname=" + name, nil
	}
	u, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return u.String(), nil
}

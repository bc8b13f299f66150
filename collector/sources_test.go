package collector_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
)

var secret = profiles.Secret("the secret of the workspace")

func newWorkspace(t testing.TB, pool *pgxpool.Pool, key string) (id int32) {
	t.Helper()
	const query = `INSERT INTO workspaces (key, name, secret) VALUES ($1, $1, $2) RETURNING id`
	if err := pool.QueryRow(t.Context(), query, key, []byte(secret)).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestSourcesOfAWorkspace(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	store := collector.NewSourceStore(pool)
	ctx := t.Context()
	acme, other := newWorkspace(t, pool, "acme"), newWorkspace(t, pool, "other")

	off := false
	shop, err := store.Create(ctx, acme, collector.Source{
		Key: "shop", Name: "The shop", Settings: collector.SourceSettings{MergeOn: []string{"email"}, CollectIP: &off},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := collector.Source{
		ID: shop.ID, WorkspaceID: acme, Key: "shop", Name: "The shop", Type: "segment",
		Settings: collector.SourceSettings{MergeOn: []string{"email"}, CollectIP: &off}, Enabled: true,
		CreatedAt: shop.CreatedAt, UpdatedAt: shop.UpdatedAt,
	}
	if diff := cmp.Diff(want, shop); diff != "" {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	app, err := store.Create(ctx, acme, collector.Source{Key: "app"})
	if err != nil || app.Name != "app" {
		t.Fatalf("%+v, %v", app, err)
	}
	if _, err := store.Create(ctx, other, collector.Source{Key: "shop"}); err != nil {
		t.Errorf("the same key in another workspace: %v", err)
	}
	if _, err := store.Create(ctx, acme, collector.Source{Key: "shop"}); !errors.Is(err, collector.ErrConflict) {
		t.Errorf("the same key again: %v, want ErrConflict", err)
	}
	if _, err := store.Create(ctx, 999, collector.Source{Key: "shop"}); !errors.Is(err, collector.ErrNotFound) {
		t.Errorf("no such workspace: %v, want ErrNotFound", err)
	}
	for _, key := range []string{"", "Shop", "-a", "a b", strings.Repeat("a", 64)} {
		if _, err := store.Create(ctx, acme, collector.Source{Key: key}); !errors.Is(err, collector.ErrInvalid) {
			t.Errorf("key %q: %v, want ErrInvalid", key, err)
		}
	}

	for _, ref := range []string{"shop", "src_" + itoa(shop.ID)} {
		if got, err := store.Get(ctx, acme, ref); err != nil || got.ID != shop.ID {
			t.Errorf("get %s: %+v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"", "nope", "src_0", "src_-1", "src_x", "src_99999999999", "src_" + itoa(shop.ID+100)} {
		if _, err := store.Get(ctx, acme, ref); !errors.Is(err, collector.ErrNotFound) {
			t.Errorf("get %q: %v, want ErrNotFound", ref, err)
		}
	}
	if _, err := store.Get(ctx, other, "src_"+itoa(shop.ID)); !errors.Is(err, collector.ErrNotFound) {
		t.Errorf("get another workspace's: %v, want ErrNotFound", err)
	}

	first, err := store.List(ctx, acme, 0, 1)
	if err != nil || len(first) != 1 || first[0].ID != shop.ID {
		t.Errorf("first page: %+v, %v", first, err)
	}
	second, err := store.List(ctx, acme, first[0].ID, 10)
	if err != nil || len(second) != 1 || second[0].ID != app.ID {
		t.Errorf("second page: %+v, %v", second, err)
	}

	name := "Shop"
	if got, err := store.Update(ctx, acme, "shop", collector.SourceUpdate{Name: &name}); err != nil ||
		got.Name != name || !got.Enabled || len(got.Settings.MergeOn) != 1 || !got.UpdatedAt.After(got.CreatedAt) {
		t.Errorf("rename: %+v, %v", got, err)
	}
	if got, err := store.Update(ctx, acme, "shop", collector.SourceUpdate{Enabled: &off, Settings: &collector.SourceSettings{}}); err != nil ||
		got.Name != name || got.Enabled || got.Settings.MergeOn != nil {
		t.Errorf("disable: %+v, %v", got, err)
	}
	if _, err := store.Update(ctx, other, "app", collector.SourceUpdate{Name: &name}); !errors.Is(err, collector.ErrNotFound) {
		t.Errorf("update another workspace's: %v, want ErrNotFound", err)
	}

	key, err := store.CreateWriteKey(ctx, acme, "shop")
	if err != nil || !strings.HasPrefix(key.Key, "mub_wk_") || len(key.Key) != 35 || key.SourceID != shop.ID {
		t.Fatalf("write key %+v, %v", key, err)
	}
	newer, err := store.CreateWriteKey(ctx, acme, "shop")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.CreateWriteKey(ctx, other, "app"); !errors.Is(err, collector.ErrNotFound) {
		t.Errorf("a write key for another workspace's source: %v, want ErrNotFound", err)
	}
	if _, err := store.RevokeWriteKey(ctx, other, key.ID); !errors.Is(err, collector.ErrNotFound) {
		t.Errorf("revoke another workspace's: %v, want ErrNotFound", err)
	}
	revoked, err := store.RevokeWriteKey(ctx, acme, key.ID)
	if err != nil || revoked.RevokedAt == nil {
		t.Errorf("revoke: %+v, %v", revoked, err)
	}
	again, err := store.RevokeWriteKey(ctx, acme, key.ID)
	if diff := cmp.Diff(revoked, again); diff != "" || err != nil {
		t.Errorf("revoke again (-first +second): %v\n%s", err, diff)
	}
	keys, err := store.ListWriteKeys(ctx, acme, "shop", 0, 10)
	if diff := cmp.Diff([]collector.WriteKey{newer, revoked}, keys); diff != "" || err != nil {
		t.Errorf("write keys (-want +got): %v\n%s", err, diff)
	}
	if keys, err = store.ListWriteKeys(ctx, acme, "shop", newer.ID, 10); err != nil || len(keys) != 1 {
		t.Errorf("second page of write keys: %+v, %v", keys, err)
	}

	if err := store.Delete(ctx, other, "app"); !errors.Is(err, collector.ErrNotFound) {
		t.Errorf("delete another workspace's: %v, want ErrNotFound", err)
	}
	if err := store.Delete(ctx, acme, "shop"); err != nil {
		t.Error(err)
	}
	if err := store.Delete(ctx, acme, "shop"); !errors.Is(err, collector.ErrNotFound) {
		t.Errorf("delete again: %v, want ErrNotFound", err)
	}
}

func itoa(n int32) string { b, _ := json.Marshal(n); return string(b) }

func newDirectory(t testing.TB, cfg collector.Config, pool *pgxpool.Pool) *collector.Directory {
	t.Helper()
	return collector.NewDirectory(cfg, pool, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
}

func runDirectory(t testing.TB, d *collector.Directory) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestDirectoryFollowsTheTables(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	store := collector.NewSourceStore(pool)
	ctx := t.Context()
	workspace := newWorkspace(t, pool, "acme")
	source, err := store.Create(ctx, workspace, collector.Source{Key: "shop", Settings: collector.SourceSettings{MergeOn: []string{"email"}}})
	if err != nil {
		t.Fatal(err)
	}
	d := newDirectory(t, collector.Config{}, pool)
	runDirectory(t, d)

	key, err := store.CreateWriteKey(ctx, workspace, "shop")
	if err != nil {
		t.Fatal(err)
	}
	g, err := d.Lookup(ctx, key.Key)
	if err != nil || g.WorkspaceID != workspace || g.SourceID != source.ID || string(g.Secret) != string(secret) || len(g.Settings.MergeOn) != 1 {
		t.Errorf("a key that was just made: %+v, %v", g, err)
	}
	known := func() bool { _, err := d.Lookup(ctx, key.Key); return err == nil }
	on, off := true, false
	if _, err := store.Update(ctx, workspace, "shop", collector.SourceUpdate{Enabled: &off}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the source to be disabled", func() bool { return !known() })
	if _, err := store.Update(ctx, workspace, "shop", collector.SourceUpdate{Enabled: &on}); err != nil {
		t.Fatal(err)
	}
	if !known() {
		t.Error("the source is enabled and its key is not known at once")
	}
	if _, err := store.RevokeWriteKey(ctx, workspace, key.ID); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the key to be revoked", func() bool { return !known() })
	if _, err := d.Lookup(ctx, key.Key); !errors.Is(err, collector.ErrUnknownKey) {
		t.Errorf("%v, want ErrUnknownKey", err)
	}
}

func TestUseOfAWriteKeyIsNoted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	store := collector.NewSourceStore(pool)
	workspace := newWorkspace(t, pool, "acme")
	if _, err := store.Create(t.Context(), workspace, collector.Source{Key: "shop"}); err != nil {
		t.Fatal(err)
	}
	key, err := store.CreateWriteKey(t.Context(), workspace, "shop")
	if err != nil {
		t.Fatal(err)
	}
	d := newDirectory(t, collector.Config{}, pool)
	if _, err := d.Lookup(t.Context(), key.Key); err != nil {
		t.Fatal(err)
	}
	runDirectory(t, d)
	waitFor(t, "last_used_at", func() bool {
		keys, err := store.ListWriteKeys(t.Context(), workspace, "shop", 0, 10)
		return err == nil && keys[0].LastUsedAt != nil
	})
}

func TestManyUnknownKeysAskPostgresSeldom(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, collector.Config{}, pgtest.New(t))
	if _, err := d.Lookup(t.Context(), collector.NewWriteKey()); !errors.Is(err, collector.ErrUnknownKey) {
		t.Fatalf("%v, want ErrUnknownKey", err)
	}
	start, reads := d.AsOf(), map[time.Time]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			for range 3 {
				if _, err := d.Lookup(t.Context(), collector.NewWriteKey()); !errors.Is(err, collector.ErrUnknownKey) {
					t.Errorf("%v, want ErrUnknownKey", err)
				}
				mu.Lock()
				reads[d.AsOf()] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if most := int(time.Since(start)/(100*time.Millisecond)) + 1; len(reads) > most {
		t.Errorf("600 unknown keys: %d reads, want at most %d", len(reads), most)
	}
	asOf := d.AsOf()
	for _, key := range []string{"", "nonsense", "mub_wk_" + strings.Repeat("0", 28)} {
		if _, err := d.Lookup(t.Context(), key); !errors.Is(err, collector.ErrUnknownKey) {
			t.Errorf("%q: %v, want ErrUnknownKey", key, err)
		}
	}
	if d.AsOf() != asOf {
		t.Error("Postgres was asked for keys that cannot be")
	}
}

func TestDirectoryGoesOnWithoutPostgres(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	store := collector.NewSourceStore(pool)
	workspace := newWorkspace(t, pool, "acme")
	if _, err := store.Create(t.Context(), workspace, collector.Source{Key: "shop"}); err != nil {
		t.Fatal(err)
	}
	key, err := store.CreateWriteKey(t.Context(), workspace, "shop")
	if err != nil {
		t.Fatal(err)
	}
	cfg := collector.Config{DirectoryFile: filepath.Join(t.TempDir(), "keys.json")}
	stop := runDirectory(t, newDirectory(t, cfg, pool))
	waitFor(t, "the file", func() bool { _, err := os.Stat(cfg.DirectoryFile); return err == nil })
	stop()
	if info, err := os.Stat(cfg.DirectoryFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}

	down, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/none")
	if err != nil {
		t.Fatal(err)
	}
	defer down.Close()
	d := newDirectory(t, cfg, down)
	if g, err := d.Lookup(t.Context(), key.Key); err != nil || string(g.Secret) != string(secret) {
		t.Errorf("a key in the file: %+v, %v", g, err)
	}
	if _, err := d.Lookup(t.Context(), collector.NewWriteKey()); !errors.Is(err, collector.ErrNoDirectory) {
		t.Errorf("a key not in the file: %v, want ErrNoDirectory", err)
	}
	old := cfg
	old.DirectoryMaxAge = time.Nanosecond
	if _, err := newDirectory(t, old, down).Lookup(t.Context(), key.Key); !errors.Is(err, collector.ErrNoDirectory) {
		t.Errorf("a file too old: %v, want ErrNoDirectory", err)
	}
	other := cfg
	other.Lanes = 4
	if d := newDirectory(t, other, down); d.Usable() {
		t.Error("the file of an installation with other lanes is used")
	}
	if err := os.WriteFile(cfg.DirectoryFile, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newDirectory(t, cfg, down).Lookup(t.Context(), key.Key); !errors.Is(err, collector.ErrNoDirectory) {
		t.Errorf("a damaged file: %v, want ErrNoDirectory", err)
	}
}

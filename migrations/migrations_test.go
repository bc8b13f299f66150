package migrations_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/migrations"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

func TestUpDownUpEndsInTheSameSchema(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	databaseURL := pgtest.Empty(t)
	empty := schema(t, databaseURL)

	up(t, databaseURL)
	first := schema(t, databaseURL)
	if err := migrations.Down(ctx, databaseURL); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(empty, schema(t, databaseURL)); diff != "" {
		t.Errorf("down leaves something behind (-want +got):\n%s", diff)
	}
	up(t, databaseURL)
	if diff := cmp.Diff(first, schema(t, databaseURL)); diff != "" {
		t.Errorf("up after down differs (-want +got):\n%s", diff)
	}
	if len(first) == len(empty) {
		t.Error("up made nothing")
	}
}

func TestUpWithNothingToDo(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.NewURL(t)
	before, dirty, err := migrations.Version(t.Context(), databaseURL)
	if err != nil || before < 1 || dirty {
		t.Fatalf("version is %d, dirty %v, %v; want at least 1, clean", before, dirty, err)
	}
	up(t, databaseURL)
	if after, _, err := migrations.Version(t.Context(), databaseURL); err != nil || after != before {
		t.Errorf("version is %d after a second up, %v; want %d", after, err, before)
	}
}

func TestVersionOfAnEmptyDatabaseLeavesItEmpty(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.Empty(t)
	before := schema(t, databaseURL)
	version, dirty, err := migrations.Version(t.Context(), databaseURL)
	if version != 0 || dirty || err != nil {
		t.Errorf("version is %d, dirty %v, %v; want 0, clean", version, dirty, err)
	}
	if diff := cmp.Diff(before, schema(t, databaseURL)); diff != "" {
		t.Errorf("reading the version changed the database (-want +got):\n%s", diff)
	}
}

func TestCopiesThatStartTogetherTakeTurns(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.Empty(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := migrations.Up(t.Context(), databaseURL); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestWaitingForATurnEndsWithTheContext(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.Empty(t)
	conn := connect(t, databaseURL)
	if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock(x'6d756261746368'::bigint)`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := migrations.Up(ctx, databaseURL); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}

func TestAnInterruptedMigrationIsReportedUntilForced(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	databaseURL := pgtest.NewURL(t)
	version, _, err := migrations.Version(ctx, databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := connect(t, databaseURL).Exec(ctx, `UPDATE schema_migrations SET dirty = true`); err != nil {
		t.Fatal(err)
	}

	var dirty *migrations.DirtyError
	if err := migrations.Up(ctx, databaseURL); !errors.As(err, &dirty) || dirty.Version != version {
		t.Errorf("got %v, want a DirtyError for version %d", err, version)
	}
	if err := migrations.Force(ctx, databaseURL, version); err != nil {
		t.Fatal(err)
	}
	up(t, databaseURL)
}

func TestAFailedMigrationLeavesTheVersionBeforeIt(t *testing.T) {
	t.Parallel()
	good := fstest.MapFS{
		"000001_one.up.sql": {Data: []byte("BEGIN;\nCREATE TABLE one (id int);\nCOMMIT;\n")},
		"000002_two.up.sql": {Data: []byte("BEGIN;\nCREATE TABLE two (id int);\nCOMMIT;\n")},
	}
	tests := map[string]struct {
		name, sql string
		wantErr   string
		version   int
		dirty     bool
	}{
		"the first migration fails while it runs": {
			"000001_one.up.sql", "BEGIN;\nCREATE TABLE one (id int);\nSELECT 1/0;\nCOMMIT;\n",
			"migration 1: ERROR: division by zero", 0, false,
		},
		"the second migration fails while it runs": {
			"000002_two.up.sql", "BEGIN;\nCREATE TABLE two (id int);\nSELECT 1/0;\nCOMMIT;\n",
			"migration 2: ERROR: division by zero", 1, false,
		},
		"the second migration cannot be read": {
			"000002_two.up.sql", "BEGIN;\nCREATE TABEL two (id int);\nCOMMIT;\n",
			"migration 2, line 2: ERROR: syntax error", 1, false,
		},
		"the second migration fails outside a transaction, and a person must look": {
			"000002_two.up.sql", "CREATE UNIQUE INDEX CONCURRENTLY two ON none (id);\n",
			"migration 2: ERROR: relation", 2, true,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			databaseURL := pgtest.Empty(t)
			bad := maps.Clone(good)
			bad[tt.name] = &fstest.MapFile{Data: []byte(tt.sql)}
			err := migrations.UpFrom(t.Context(), bad, databaseURL)
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("got %v, want %s", err, tt.wantErr)
			}
			version, dirty, err := migrations.Version(t.Context(), databaseURL)
			if err != nil || version != tt.version || dirty != tt.dirty {
				t.Errorf("version is %d, dirty %v, %v; want %d, %v", version, dirty, err, tt.version, tt.dirty)
			}
			if tt.dirty {
				return
			}
			if err := migrations.UpFrom(t.Context(), good, databaseURL); err != nil {
				t.Errorf("once it is mended: %v", err)
			}
		})
	}
}

// What is counted from now on is counted for what is there already.
func TestHistoryCountsWhatWasThereBefore(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	databaseURL := pgtest.Empty(t)
	names, err := fs.Glob(migrations.Files, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	before := fstest.MapFS{}
	for _, name := range names {
		if name >= "000007" {
			continue
		}
		text, err := fs.ReadFile(migrations.Files, name)
		if err != nil {
			t.Fatal(err)
		}
		before[name] = &fstest.MapFile{Data: text}
	}
	if err := migrations.UpFrom(ctx, before, databaseURL); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, databaseURL)
	for _, sql := range []string{
		`INSERT INTO workspaces (key, name, secret) VALUES ('a', 'A', 'x')`,
		`INSERT INTO segments (workspace_id, key, name, rule, behaviours) VALUES (1, 's', 'S', '{}', '{}')`,
		`INSERT INTO profiles (lane, workspace_id, id, state, last_seen_at, updated_at)
		SELECT n % 2, 1, gen_random_uuid(), '', now(), now() FROM generate_series(1, 5) AS n`,
		`INSERT INTO transitions (lane, seq, at, workspace_id, segment_id, profile_id, entered, cause)
		SELECT 0, n, '2026-03-01T22:30:00Z'::timestamptz + n * '30 min'::interval, 1, CASE WHEN n = 7 THEN 99 ELSE 1 END, gen_random_uuid(), n <> 2, 'event'
		FROM generate_series(1, 7) AS n`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	up(t, databaseURL)
	for query, want := range map[string]string{
		`SELECT string_agg(concat_ws(' ', lane, segment_id, day, entered, "left"), ', ' ORDER BY day) FROM segment_days`: "0 1 2026-03-01 1 1, 0 1 2026-03-02 4 0",
		`SELECT string_agg(concat_ws(' ', lane, workspace_id, profiles), ', ' ORDER BY lane) FROM profile_counts`:        "0 1 2, 1 1 3",
	} {
		var got string
		if err := conn.QueryRow(ctx, query).Scan(&got); err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

func TestADatabaseFromTheFutureIsRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	databaseURL := pgtest.NewURL(t)
	if _, err := connect(t, databaseURL).Exec(ctx, `UPDATE schema_migrations SET version = 999999`); err != nil {
		t.Fatal(err)
	}
	err := migrations.Up(ctx, databaseURL)
	if err == nil || !strings.Contains(err.Error(), "a version that this program does not have") {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestEveryFileIsATransactionAndHasItsInverse(t *testing.T) {
	t.Parallel()
	names, err := fs.Glob(migrations.Files, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^\d{6}_[a-z0-9_]+\.(up|down)\.sql$`)
	for _, name := range names {
		if !form.MatchString(name) {
			t.Errorf("%s is not named NNNNNN_name.up.sql or NNNNNN_name.down.sql", name)
		}
		if up, ok := strings.CutSuffix(name, ".up.sql"); ok {
			if _, err := fs.Stat(migrations.Files, up+".down.sql"); err != nil {
				t.Errorf("%s has no inverse: %v", name, err)
			}
		}
		text, err := fs.ReadFile(migrations.Files, name)
		if err != nil {
			t.Fatal(err)
		}
		alone := regexp.MustCompile(`(?m)^(CREATE|DROP) (UNIQUE )?INDEX CONCURRENTLY`).Match(text)
		framed := regexp.MustCompile(`(?s)^(--[^\n]*\n|\s)*BEGIN;.*COMMIT;\s*$`).Match(text)
		if !alone && !framed {
			t.Errorf("%s is not one transaction, from BEGIN; to COMMIT;", name)
		}
	}
}

func up(t *testing.T, databaseURL string) {
	t.Helper()
	if err := migrations.Up(t.Context(), databaseURL); err != nil {
		t.Fatal(err)
	}
}

func connect(t *testing.T, databaseURL string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// schema lists everything in the database that a migration can make, one line each.
func schema(t *testing.T, databaseURL string) []string {
	t.Helper()
	const query = `
		WITH ours AS (
			SELECT oid, nspname
			FROM pg_namespace
			WHERE nspname <> 'information_schema' AND nspname NOT LIKE 'pg\_%'
		)
		SELECT format('schema %I', nspname) FROM ours
		UNION ALL
		SELECT format('relation %s kind %s persistence %s rls %s %s options %s partition %s of %s by %s', c.oid::regclass,
			c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.reloptions,
			pg_get_expr(c.relpartbound, c.oid),
			(SELECT i.inhparent::regclass FROM pg_inherits i WHERE i.inhrelid = c.oid),
			CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END)
		FROM pg_class c JOIN ours ON ours.oid = c.relnamespace
		UNION ALL
		SELECT format('column %s.%s %s null %s default %s generated %s identity %s collation %s storage %s statistics %s',
			c.oid::regclass, a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
			pg_get_expr(d.adbin, d.adrelid), a.attgenerated, a.attidentity, a.attcollation, a.attstorage, a.attstattarget)
		FROM pg_attribute a
		JOIN pg_class c ON c.oid = a.attrelid
		JOIN ours ON ours.oid = c.relnamespace
		LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		WHERE a.attnum > 0 AND NOT a.attisdropped
		UNION ALL
		SELECT format('constraint %s on %s: %s', o.conname, o.conrelid::regclass, pg_get_constraintdef(o.oid))
		FROM pg_constraint o JOIN ours ON ours.oid = o.connamespace
		UNION ALL
		SELECT 'index ' || pg_get_indexdef(i.indexrelid)
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN ours ON ours.oid = c.relnamespace
		UNION ALL
		SELECT 'function ' || pg_get_functiondef(p.oid)
		FROM pg_proc p JOIN ours ON ours.oid = p.pronamespace
		WHERE p.prokind IN ('f', 'p')
		UNION ALL
		SELECT 'trigger ' || pg_get_triggerdef(g.oid) FROM pg_trigger g WHERE NOT g.tgisinternal
		UNION ALL
		SELECT format('policy %s on %s for %s using %s check %s', p.polname, p.polrelid::regclass, p.polcmd,
			pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
		FROM pg_policy p
		UNION ALL
		SELECT format('type %s %s %s', y.oid::regtype, y.typtype,
			(SELECT string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = y.oid))
		FROM pg_type y JOIN ours ON ours.oid = y.typnamespace
		UNION ALL
		SELECT format('sequence %s %s from %s by %s', s.seqrelid::regclass, s.seqtypid::regtype, s.seqstart, s.seqincrement)
		FROM pg_sequence s
		UNION ALL
		SELECT format('extension %s', extname) FROM pg_extension
		UNION ALL
		SELECT format('view %s %s', c.oid::regclass, pg_get_viewdef(c.oid))
		FROM pg_class c JOIN ours ON ours.oid = c.relnamespace
		WHERE c.relkind IN ('v', 'm')
		ORDER BY 1`
	rows, _ := connect(t, databaseURL).Query(t.Context(), query) // err: below
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, line := range lines {
		if !strings.Contains(line, "schema_migrations") { // golang-migrate's own, which stays when all is undone
			kept = append(kept, line)
		}
	}
	return kept
}

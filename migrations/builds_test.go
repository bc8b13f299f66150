package migrations_test

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/migrations"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

// until returns the migrations up to one.
func until(t *testing.T, last string) fstest.MapFS {
	t.Helper()
	names, err := fs.Glob(migrations.Files, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{}
	for _, name := range names {
		if name[:6] > last {
			continue
		}
		text, err := fs.ReadFile(migrations.Files, name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: text}
	}
	return files
}

func TestBuildsUnderWaySurviveTheirMigration(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	databaseURL := pgtest.Empty(t)
	if err := migrations.UpFrom(ctx, until(t, "000004"), databaseURL); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, databaseURL)
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	lines := func(sql string) []string {
		t.Helper()
		rows, _ := conn.Query(ctx, sql) // err: below
		list, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	exec(`INSERT INTO workspaces (key, name, secret) VALUES ('w', 'w', '')`)
	exec(`INSERT INTO segments (workspace_id, key, name, rule, behaviours, version, live_version, live_rule, live_behaviours, deleting) VALUES
		(1, 'new', '', '{"event": "a"}', '{1}', 1, 0, NULL, NULL, false),
		(1, 'live', '', '{"event": "b"}', '{2}', 3, 3, '{"event": "b"}', '{2}', false),
		(1, 'edited', '', '{"event": "d"}', '{4}', 5, 3, '{"event": "c"}', '{3}', false),
		(1, 'going', '', '{"event": "e"}', '{5}', 1, 1, '{"event": "e"}', '{5}', true)`)
	exec(`INSERT INTO lane_segments (lane, segment_id, version, phase, live_version) VALUES
		(0, 1, 1, 'replaying', 0), (1, 1, 1, 'evaluating', 0), (2, 1, 1, 'done', 1),
		(0, 2, 3, 'done', 3),
		(0, 3, 5, 'ready', 3), (1, 3, 5, 'evaluating', 3), (2, 3, 5, 'done', 5), (3, 3, 4, 'done', 4), (4, 3, 3, 'done', 3),
		(0, 4, 0, 'replaying', 1), (1, 4, 0, 'evaluating', 1), (2, 4, 0, 'done', 0)`)
	exec(`INSERT INTO lane_behaviours (lane, behaviour_id, cut_seq, replayed_seq) VALUES (0, 1, 100, 50), (0, 2, 0, 0)`)
	before := lines(`SELECT row_to_json(s)::text FROM segments AS s ORDER BY id`)

	if err := migrations.UpFrom(ctx, until(t, "000005"), databaseURL); err != nil {
		t.Fatal(err)
	}
	want := []string{`1 1 {"event": "a"} {1}`, `2 3 {"event": "b"} {2}`, `3 3 {"event": "c"} {3}`, `3 5 {"event": "d"} {4}`, `4 1 {"event": "e"} {5}`}
	if diff := cmp.Diff(want, lines(`SELECT concat_ws(' ', segment_id, version, rule, behaviours) FROM segment_versions ORDER BY 1`)); diff != "" {
		t.Errorf("versions (-want +got):\n%s", diff)
	}
	// What a lane follows from its next µbatch on is a version whose rule is known.
	want = []string{"1: 0 1 1", "2: 3", "3: 3 5 5 3 3", "4: 1 0 0"}
	const followed = `SELECT segment_id || ': ' || string_agg(live_version::text, ' ' ORDER BY lane) FROM lane_segments GROUP BY segment_id ORDER BY segment_id`
	if diff := cmp.Diff(want, lines(followed)); diff != "" {
		t.Errorf("followed (-want +got):\n%s", diff)
	}

	down, err := fs.ReadFile(migrations.Files, "000005_builds.down.sql")
	if err != nil {
		t.Fatal(err)
	}
	exec(string(down))
	if diff := cmp.Diff(before, lines(`SELECT row_to_json(s)::text FROM segments AS s ORDER BY id`), cmp.Transformer("members", func(s string) map[string]bool {
		members := map[string]bool{}
		for m := range strings.SplitSeq(strings.Trim(s, "{}"), ",\"") {
			members[strings.TrimPrefix(m, `"`)] = true
		}
		return members
	})); diff != "" {
		t.Errorf("segments after down (-want +got):\n%s", diff)
	}
	want = []string{"1: 0 0 1", "2: 3", "3: 3 3 5 3 3", "4: 1 1 0"}
	if diff := cmp.Diff(want, lines(followed)); diff != "" {
		t.Errorf("finished after down (-want +got):\n%s", diff)
	}
}

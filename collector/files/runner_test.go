package files

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/parquet-go/parquet-go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
)

// desk is a database with a source, and a runner that brings what it imports into real lanes.
type desk struct {
	t      testing.TB
	pool   *pgxpool.Pool
	store  *Store
	source collector.Source
	in     *recorder
	cfg    Config
}

// recorder is the real intake, and knows what went in. It fails as often as it is told to before it does anything, and as
// often after.
type recorder struct {
	*collector.Intake
	mu            sync.Mutex
	before, after int
	taken         []string // "messageId userId"
}

func (r *recorder) Take(ctx context.Context, from collector.Grant, received time.Time, events [][]byte) ([]collector.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.before > 0 {
		r.before--
		return nil, collector.ErrBusy
	}
	results, err := r.Intake.Take(ctx, from, received, events)
	if err != nil {
		return nil, err
	}
	for i, res := range results {
		var e struct{ MessageID, UserID string }
		if err := json.Unmarshal(events[i], &e, json.MatchCaseInsensitiveNames(true)); err != nil {
			continue
		}
		if res.Status == collector.Accepted {
			r.taken = append(r.taken, e.MessageID+" "+e.UserID)
		}
	}
	if r.after > 0 {
		r.after--
		return nil, fmt.Errorf("%w: the answer was lost", collector.ErrUnavailable)
	}
	return results, nil
}

// users returns the distinct events' users, in their order.
func (r *recorder) users() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := map[string]bool{}
	var users []string
	for _, e := range r.taken {
		if id, user, _ := strings.Cut(e, " "); !seen[id] {
			seen[id] = true
			users = append(users, user)
		}
	}
	slices.Sort(users)
	return users
}

// present says that lanes are never behind.
type present struct{}

func (present) AsOf(context.Context) (time.Time, error) { return time.Now(), nil }

// plain seals nothing.
type plain struct{}

func (plain) Seal(_ int32, _ int64, text []byte) []byte { return append([]byte("sealed "), text...) }

func (plain) Open(_ int32, _ int64, text []byte) ([]byte, error) {
	return bytes.TrimPrefix(text, []byte("sealed ")), nil
}

func newDesk(t testing.TB) *desk {
	t.Helper()
	d := &desk{t: t, pool: pgtest.New(t), cfg: Config{
		Folder: t.TempDir(), Client: http.DefaultTransport, Poll: 10 * time.Millisecond, Lease: 2 * time.Second, Batch: 3,
	}}
	ws, err := profiles.NewWorkspaces(d.pool).Create(t.Context(), "acme", "Acme")
	if err != nil {
		t.Fatal(err)
	}
	if d.source, err = collector.NewSourceStore(d.pool).Create(t.Context(), ws.ID, collector.Source{Key: "shop"}); err != nil {
		t.Fatal(err)
	}
	rdb, prefix := redistest.New(t)
	cfg := collector.Config{Prefix: prefix, Lanes: 2, AllowDegraded: true}
	committer := collector.NewCommitter(cfg, collector.NewStream(cfg.Stream(), rdb), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	d.run(committer.Run)
	d.in = &recorder{Intake: collector.NewIntake(cfg, committer, prometheus.NewRegistry())}
	d.store = NewStore(d.pool, plain{})
	return d
}

// run runs something until the test ends or stop is called.
func (d *desk) run(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			d.t.Error(err)
		}
	})
	d.t.Cleanup(stop)
	return stop
}

func (d *desk) runner() (stop func()) { return d.runnerInto(d.in) }

func (d *desk) runnerInto(in intake) (stop func()) {
	return d.run(NewRunner(d.cfg, d.pool, plain{}, in, present{}, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(d.t.Output(), nil))).Run)
}

func (d *desk) create(n New) Import {
	d.t.Helper()
	n.Source = d.source
	i, _, err := d.store.Create(d.t.Context(), d.source.WorkspaceID, n)
	if err != nil {
		d.t.Fatal(err)
	}
	return i
}

// upload makes an import of a file.
func (d *desk) upload(name, text string, n New) Import {
	d.t.Helper()
	n.Name, n.Size = name, int64(len(text))
	i := d.create(n)
	for at := 0; at < len(text); at += 50 {
		part := []byte(text[at:min(at+60, len(text))]) // they overlap
		if _, err := d.store.Upload(d.t.Context(), d.source.WorkspaceID, i.ID, int64(at), part); err != nil && at+50 < len(text) {
			d.t.Fatal(err)
		}
		if at+60 >= len(text) {
			break
		}
	}
	return i
}

func (d *desk) write(name, text string) {
	d.t.Helper()
	path := filepath.Join(d.cfg.Folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// until waits until an import is as it should be.
func (d *desk) until(i Import, ok func(Import) bool) Import {
	d.t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if i, err = d.store.Get(d.t.Context(), d.source.WorkspaceID, i.ID); err != nil {
			d.t.Fatal(err)
		}
		if ok(i) {
			return i
		}
		if time.Now().After(end) {
			d.t.Fatalf("after a minute, the import is %+v", i)
		}
	}
}

func ended(i Import) bool { return i.State == Done || i.State == Failed }

func (d *desk) wantUsers(want ...string) {
	d.t.Helper()
	want = slices.Sorted(slices.Values(want))
	if diff := cmp.Diff(want, d.in.users()); diff != "" {
		d.t.Errorf("users (-want +got):\n%s", diff)
	}
}

const people = "version: 1\nrules:\n- when: 'has(body.id)'\n  event: {type: identify, userId: $.id, traits: {name: $.name, age: $.age | number}}\n"

// csvOf returns a file of people with numbers from first, and who they are.
func csvOf(first, n int) (text string, users []string) {
	var b strings.Builder
	b.WriteString("id,name\n")
	for i := first; i < first+n; i++ {
		users = append(users, fmt.Sprint("u", i))
		fmt.Fprintf(&b, "u%d,Name %d\n", i, i)
	}
	return b.String(), users
}

func TestRowsAreRejectedWithReasons(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.runner()
	mapping := strings.Replace(people, "$.age | number", "{$first: [$.age | number]}", 1)
	i := d.upload("people.csv", "id,name,age\nada,Ada,36\n,nobody,1\nbob,Bob\n\"cyd\"x,Cyd,2\ndan,Dan,old\nundefined,Eve,3\nfay,Fay,\n", New{Mapping: mapping})
	i = d.until(i, ended)
	if i.State != Done || i.Rows != 7 || i.Events != 2 || i.Skipped != 1 || i.Rejected != 4 {
		t.Errorf("the import is %+v", i)
	}
	want := map[string]int64{"wrong_columns": 1, "bad_quote": 1, "cannot_convert": 1, "missing_id": 1}
	if diff := cmp.Diff(want, i.Reasons); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
	rejects, err := d.store.Rejected(t.Context(), d.source.WorkspaceID, i.ID)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rejects {
		got = append(got, fmt.Sprintf("%s %d %d %s %s", r.File, r.Row, r.Line, r.Code, r.Sample))
	}
	if diff := cmp.Diff([]string{
		"people.csv 3 4 wrong_columns bob,Bob", `people.csv 4 5 bad_quote "cyd"x,Cyd,2`,
		`people.csv 5 6 cannot_convert {"id":"dan","name":"Dan","age":"old"}`, `people.csv 6 7 missing_id {"id":"undefined","name":"Eve","age":"3"}`,
	}, got); diff != "" {
		t.Errorf("rejected rows (-want +got):\n%s", diff)
	}
	d.wantUsers("ada", "fay")
}

// Rows without a mapping are events; whatever fails on the way in, each becomes one event.
func TestWhatFailsOnTheWayInIsBroughtAgain(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.in.before, d.in.after = 3, 3
	d.runner()
	var text strings.Builder
	var users []string
	for n := range 10 {
		users = append(users, fmt.Sprint("u", n))
		fmt.Fprintf(&text, "{\"type\":\"identify\",\"userId\":\"u%d\"}\n", n)
	}
	i := d.until(d.upload("people.ndjson", text.String(), New{}), ended)
	if i.State != Done || i.Rows != 10 || i.Events != 10 || i.Rejected != 0 {
		t.Errorf("the import is %+v", i)
	}
	d.wantUsers(users...)
	if len(d.in.taken) <= 10 {
		t.Errorf("%d events were brought: nothing was brought again", len(d.in.taken))
	}
}

// An import that is paused, and whose process ends, goes on elsewhere from where it was.
func TestAnImportGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	text, users := csvOf(0, 60)
	i := d.upload("people.csv", text, New{Mapping: people, Rate: 30})
	stop := d.runner()
	d.until(i, func(i Import) bool { return i.Rows >= 6 })
	if _, err := d.store.Pause(t.Context(), d.source.WorkspaceID, i.ID); err != nil {
		t.Fatal(err)
	}
	d.until(i, func(Import) bool {
		var free bool
		if err := d.pool.QueryRow(t.Context(), `SELECT lease_owner IS NULL FROM imports`).Scan(&free); err != nil {
			t.Fatal(err)
		}
		return free
	})
	paused := d.until(i, func(i Import) bool { return i.State == Paused })
	if paused.Rows >= 60 {
		t.Errorf("%d rows were imported before it paused", paused.Rows)
	}
	stop()
	if _, err := d.pool.Exec(t.Context(), `UPDATE imports SET rate = 0`); err != nil {
		t.Fatal(err)
	}
	if _, err := d.store.Resume(t.Context(), d.source.WorkspaceID, i.ID); err != nil {
		t.Fatal(err)
	}
	d.runner()
	i = d.until(i, ended)
	if i.State != Done || i.Rows != 60 || i.Events != 60 {
		t.Errorf("the import is %+v", i)
	}
	d.wantUsers(users...)
	var chunks int
	if err := d.pool.QueryRow(t.Context(), `SELECT count(*) FROM import_chunks`).Scan(&chunks); err != nil || chunks != 0 {
		t.Errorf("%d parts of what was uploaded are left, %v", chunks, err)
	}
}

// Each version of a file in a watched folder is imported once, when it is complete.
func TestAWatchedFolder(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	first, a := csvOf(0, 5)
	second, b := csvOf(100, 4)
	d.write("in/a.csv", first)
	d.write("in/b.csv.part", second)
	d.write("elsewhere/c.csv", second)
	if err := os.Symlink("/etc/passwd", filepath.Join(d.cfg.Folder, "in", "out.csv")); err != nil {
		t.Fatal(err)
	}
	i := d.create(New{URL: "file:in/", Mapping: people, Watch: &Watch{Every: time.Second}})
	d.runner()
	d.until(i, func(i Import) bool { return i.FilesDone == 1 })
	d.wantUsers(a...)
	if err := os.Rename(filepath.Join(d.cfg.Folder, "in/b.csv.part"), filepath.Join(d.cfg.Folder, "in/b.csv")); err != nil {
		t.Fatal(err)
	}
	d.until(i, func(i Import) bool { return i.FilesDone == 2 })
	third, c := csvOf(200, 3)
	d.write("in/a.csv", third)
	got := d.until(i, func(i Import) bool { return i.FilesDone == 3 })
	d.wantUsers(slices.Concat(a, b, c)...)
	if got.Rows != 12 || got.Files != 3 || got.State != Running {
		t.Errorf("the import is %+v", got)
	}
}

func TestABucket(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	fake := gofakes3.New(s3mem.New())
	server := httptest.NewServer(fake.Server())
	t.Cleanup(server.Close)
	put := func(name string, body []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, server.URL+"/exports"+name, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatal(res, err)
		}
		res.Body.Close()
	}
	put("", nil)
	text, users := csvOf(0, 10)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	put("/day/1.csv.gz", packed.Bytes())
	type row struct {
		ID   string `parquet:"id"`
		Name string `parquet:"name"`
	}
	var columns bytes.Buffer
	if err := parquet.Write(&columns, []row{{"p1", "One"}, {"p2", "Two"}}); err != nil {
		t.Fatal(err)
	}
	put("/day/2.parquet", columns.Bytes())
	put("/other/3.csv", []byte(text))
	s3 := &S3{Endpoint: server.URL, Region: "us-east-1", AccessKeyID: "key", SecretAccessKey: "secret"}
	d.runner()

	i := d.until(d.create(New{URL: "s3://exports/day/", Mapping: people, S3: s3}), ended)
	if i.State != Done || i.Files != 2 || i.Events != 12 || i.S3.SecretAccessKey != "" {
		t.Errorf("the import is %+v", i)
	}
	d.wantUsers(append(users, "p1", "p2")...)
	if again := d.until(d.create(New{URL: "s3://exports/day/*.gz", Mapping: people, S3: s3}), ended); again.Files != 1 || again.Events != 10 {
		t.Errorf("the import of a pattern is %+v", again)
	}
	d.wantUsers(append(users, "p1", "p2")...) // whoever imports a file again, brings the same events
	for url, want := range map[string]string{"s3://none/": "no such bucket", "s3://exports/none.csv": "no such file"} {
		if i := d.until(d.create(New{URL: url, S3: s3}), ended); i.State != Failed || !strings.Contains(i.Reason, want) {
			t.Errorf("the import of %s is %+v", url, i)
		}
	}
}

func TestImportsThatCannotBe(t *testing.T) {
	t.Parallel()
	for _, n := range []New{
		{URL: "http://example.com/a.csv"},
		{URL: "file:../a.csv"},
		{URL: "file:/a/../../b"},
		{URL: "file://host/a"},
		{URL: "s3:///a"},
		{URL: "s3://key:secret@bucket/a"},
		{URL: "s3://bucket/[a"},
		{URL: "file:a", S3: &S3{}},
		{URL: "s3://bucket/", Watch: &Watch{Every: time.Millisecond}},
		{Size: 0},
		{Size: 1, Watch: &Watch{Every: time.Minute}},
		{Size: 1, Mapping: "rules: []"},
	} {
		if err := n.check(); err == nil {
			t.Errorf("%+v is taken", n)
		}
	}
}

// Rejected rows are forgotten after a week, also those of an import that goes on, and make room for newer ones.
func TestRejectedRowsAreForgotten(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	i := d.upload("people.ndjson", "nonsense\n", New{})
	stop := d.runner()
	d.until(i, ended)
	stop()
	if _, err := d.pool.Exec(t.Context(), `UPDATE import_rejects SET rejected_at = now() - interval '8 days'`); err != nil {
		t.Fatal(err)
	}
	d.runner()
	d.until(i, func(Import) bool {
		var kept, left int
		if err := d.pool.QueryRow(t.Context(), `SELECT kept, (SELECT count(*) FROM import_rejects) FROM imports`).Scan(&kept, &left); err != nil {
			t.Fatal(err)
		}
		return kept == 0 && left == 0
	})
}

package api_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
)

func TestSegmentsAreMadeAndChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.as(w.acme, "POST", "/api/v1/segments", `{"key":"vip","name":"VIP","rule":{"all":[{"event":"Order Completed","within":"1w"},{"trait":"country","op":"eq","value":"DE"}]}}`).want(201)
	if made.str("status") != "building" || string(made.at("progress")) != "0" || string(made.at("version")) != "1" || made.Header.Get("ETag") != `"1"` {
		t.Errorf("made %s with %s", made.Body, made.Header.Get("ETag"))
	}
	if got := w.as(w.acme, "GET", "/api/v1/segments/"+made.str("id"), "").want(200); got.Header.Get("ETag") != `"1"` || got.Body != made.Body {
		t.Errorf("got %s, made %s", got.Body, made.Body)
	}

	// The same rule in other words is no new version.
	same := w.as(w.acme, "PATCH", "/api/v1/segments/vip", `{"name":"Very important","rule":{"all":[{"within":"7d","event":"Order Completed"},{"value":"DE","op":"eq","trait":"country"}]}}`, header("If-Match", `"1"`)).want(200)
	if string(same.at("version")) != "1" || string(same.at("revision")) != "2" || same.str("name") != "Very important" {
		t.Errorf("changed to %s", same.Body)
	}
	w.as(w.acme, "PATCH", "/api/v1/segments/vip", `{"name":"Mine"}`, header("If-Match", `"1"`)).want(412, "changed")
	w.as(w.acme, "DELETE", "/api/v1/segments/vip", "", header("If-Match", `W/"2"`)).want(412, "changed")
	if got := w.as(w.acme, "PATCH", "/api/v1/segments/vip", `{}`, header("If-Match", "*")).want(200); string(got.at("revision")) != "2" {
		t.Errorf("changing nothing changed %s", got.Body)
	}

	other := w.as(w.acme, "PUT", "/api/v1/segments/vip", `{"name":"VIP","rule":{"event":"Order Completed","within":"30d"}}`, header("If-Match", `"2"`)).want(200)
	if string(other.at("version")) != "2" || string(other.at("revision")) != "3" || other.Header.Get("ETag") != `"3"` || other.str("status") != "building" {
		t.Errorf("replaced by %s", other.Body)
	}

	gone := w.as(w.acme, "DELETE", "/api/v1/segments/vip", "", header("If-Match", `"3"`)).want(202)
	if gone.str("status") != "deleting" {
		t.Errorf("deleted: %s", gone.Body)
	}
	w.as(w.acme, "DELETE", "/api/v1/segments/vip", "").want(202)
	w.as(w.acme, "PATCH", "/api/v1/segments/vip", `{"name":"x"}`).want(409, "deleting")
	w.as(w.acme, "POST", "/api/v1/segments", `{"key":"vip","name":"VIP","rule":{"event":"x"}}`).want(409, "already_exists")
	w.exec(`DELETE FROM segments WHERE key = 'vip'`)
	w.as(w.acme, "DELETE", "/api/v1/segments/vip", "").want(404, "not_found")
}

func TestWhatIsWrongWithARuleIsPointedAt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	deep := `{"event":"x"}`
	for range 17 {
		deep = `{"not":` + deep + `}`
	}
	for _, tt := range []struct{ name, rule, pointer string }{
		{"an unknown operator", `{"all":[{"event":"x"},{"trait":"a","op":"like","value":"b"}]}`, "#/rule/all/1/op"},
		{"an unknown member", `{"event":"x","wihtin":"7d"}`, "#/rule/wihtin"},
		{"too much depth", deep, "#/rule/not"},
		{"no rule at all", `"vip"`, "#/rule"},
		{"a count that can never be", `{"event":"x","count":{"gte":3,"lte":2}}`, "#/rule/count"},
		{"a bad pattern", `{"trait":"a","op":"matches","value":"("}`, "#/rule/value"},
		{"a NUL", `{"event":"a\u0000"}`, "#/rule/event"},
	} {
		for _, ask := range [][2]string{{"POST", "/api/v1/segments"}, {"PUT", "/api/v1/segments/acme-buyers"}} {
			b := fmt.Sprintf(`{"key":"k","name":"n","rule":%s}`, tt.rule)
			if ask[0] == "PUT" {
				b = fmt.Sprintf(`{"name":"n","rule":%s}`, tt.rule)
			}
			got := w.as(w.acme, ask[0], ask[1], b).want(422, "invalid")
			if p := got.str("errors", 0, "pointer"); !strings.HasPrefix(p, tt.pointer) {
				t.Errorf("%s: %s", tt.name, got.Body)
			}
		}
	}
}

// behaviours lists what a workspace counts: definition, how many are kept, and whether it is retired.
func (w *world) behaviours() []string {
	w.t.Helper()
	rows, _ := w.pool.Query(w.t.Context(), `
		SELECT convert_from(definition, 'UTF8') || ' ' || keep || CASE WHEN retired THEN ' retired' ELSE '' END
		FROM behaviours
		WHERE workspace_id = $1
		ORDER BY id`, w.acme.ID) // err: below
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

func TestRulesShareBehavioursAndRetireThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`DELETE FROM segments WHERE key = 'acme-buyers'`)
	w.exec(`DELETE FROM computed_traits WHERE key = 'acme-orders'`)
	make3 := `{"key":"%s","name":"n","rule":{"event":"Order Completed","count":{"gte":%d},"within":"30d"}}`
	w.as(w.acme, "POST", "/api/v1/segments", fmt.Sprintf(make3, "three", 3)).want(201)
	w.as(w.acme, "POST", "/api/v1/segments", fmt.Sprintf(make3, "two", 2)).want(201)  // three are enough
	w.as(w.acme, "POST", "/api/v1/segments", fmt.Sprintf(make3, "five", 5)).want(201) // three are not
	want := []string{`{"event":"Order Completed"} 0 retired`, `{"event":"Order Completed"} 3`, `{"event":"Order Completed"} 5`}
	if diff := cmp.Diff(want, w.behaviours()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// While the old version answers, what it counts goes on being counted.
	w.exec(`UPDATE segments SET live_version = 1 WHERE key = 'five'`)
	w.as(w.acme, "PATCH", "/api/v1/segments/five", `{"rule":{"event":"Refund"}}`).want(200)
	if got := w.behaviours(); got[2] != `{"event":"Order Completed"} 5` || got[3] != `{"event":"Refund"} 0` {
		t.Errorf("after the edit: %v", got)
	}
	w.exec(`UPDATE segments SET live_version = 2 WHERE key = 'five'`)
	w.as(w.acme, "PATCH", "/api/v1/segments/five", `{"name":"Refunders"}`).want(200)
	if got := w.behaviours(); got[2] != `{"event":"Order Completed"} 5 retired` {
		t.Errorf("after the build: %v", got)
	}
	// A retired one has missed events: it is not taken up again.
	w.as(w.acme, "POST", "/api/v1/segments", fmt.Sprintf(make3, "five-again", 5)).want(201)
	if got := w.behaviours(); len(got) != 5 || got[4] != `{"event":"Order Completed"} 5` {
		t.Errorf("after a new rule: %v", got)
	}
}

func TestABuildShowsItsProgress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var id int64
	fmt.Sscanf(w.acme.things["segment"], "seg_%d", &id)
	progress := func() string {
		t.Helper()
		got := w.as(w.acme, "GET", "/api/v1/segments/acme-buyers", "").want(200)
		s := got.str("status") + " " + string(got.at("progress"))
		if build := string(got.at("build")); build != "null" {
			s += fmt.Sprintf(" %s %s/%s", got.str("build", "phase"), got.at("build", "lanes_done"), got.at("build", "lanes"))
			if got.str("build", "started_at") == "" || string(got.at("build", "version")) != "1" || string(got.at("build", "progress")) != string(got.at("progress")) {
				t.Errorf("build is %s", build)
			}
		}
		return s
	}
	set := func(lane int, phase, cursor string, version int) {
		t.Helper()
		w.exec(`INSERT INTO lane_segments (lane, segment_id, version, phase, cursor) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (lane, segment_id) DO UPDATE SET version = excluded.version, phase = excluded.phase, cursor = excluded.cursor`, lane, id, version, phase, cursor)
	}
	zero, half := "00000000-0000-0000-0000-000000000000", "80000000-0000-0000-0000-000000000000"
	if got := progress(); got != "building 0 queued 0/4" {
		t.Errorf("not begun: %s", got)
	}
	for lane := range 4 {
		set(lane, "replaying", zero, 1)
	}
	w.exec(`INSERT INTO lane_behaviours (lane, behaviour_id, cut_seq, replayed_seq) SELECT lane, behaviours[1], 100, 50 FROM segments, generate_series(0, 3) AS lane WHERE segments.id = $1`, id)
	if got := progress(); got != "building 0.25 replaying 0/4" {
		t.Errorf("half replayed: %s", got)
	}
	set(0, "evaluating", half, 1)
	set(1, "done", zero, 1)
	set(2, "ready", zero, 1)
	if got := progress(); got != "building 0.625 replaying 1/4" {
		t.Errorf("one done, one replaying: %s", got)
	}
	set(3, "ready", zero, 1)
	if got := progress(); got != "building 0.6875 waiting 1/4" {
		t.Errorf("one done, two waiting: %s", got)
	}
	for lane := range 4 {
		set(lane, "evaluating", half, 1)
	}
	if got := progress(); got != "building 0.75 evaluating 0/4" {
		t.Errorf("half evaluated: %s", got)
	}
	for lane := range 4 {
		set(lane, "done", zero, 1)
	}
	// It goes live between two looks of one answer: after the segment has been read, before its build is.
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), `LOCK TABLE segment_counts IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	switched := make(chan error, 1)
	go func() {
		const waiting = `SELECT count(*) FROM pg_locks WHERE relation = 'segment_counts'::regclass AND NOT granted`
		for n := 0; n == 0; {
			if err := tx.QueryRow(t.Context(), waiting).Scan(&n); err != nil {
				switched <- err
				return
			}
		}
		if _, err := tx.Exec(t.Context(), `UPDATE segments SET live_version = version WHERE id = $1`, id); err != nil {
			switched <- err
			return
		}
		switched <- tx.Commit(t.Context())
	}()
	if got := progress(); got != "building 1 evaluating 4/4" {
		t.Errorf("while it goes live: %s", got)
	}
	if err := <-switched; err != nil {
		t.Fatal(err)
	}
	if got := progress(); got != "live 1" {
		t.Errorf("built: %s", got)
	}
}

func TestAnEditIsTakenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const path = "/api/v1/segments/acme-buyers"
	w.as(w.acme, "POST", path+"/cancel", "").want(409, "never_live")
	w.exec(`UPDATE segments SET live_version = 1 WHERE key = 'acme-buyers'`)
	w.as(w.acme, "POST", path+"/cancel", "").want(409, "nothing_to_cancel")
	w.as(w.acme, "PATCH", path, `{"rule":{"event":"Refund"},"name":"Refunders"}`).want(200)
	w.as(w.acme, "POST", path+"/cancel", "", header("If-Match", `"1"`)).want(412, "changed")
	back := w.as(w.acme, "POST", path+"/cancel", "", header("If-Match", `"2"`), header("Idempotency-Key", "back")).want(200)
	if !strings.Contains(string(back.at("rule")), "Order Completed") || string(back.at("version")) != "3" || back.str("status") != "building" ||
		back.str("name") != "Refunders" || back.Header.Get("ETag") != `"3"` {
		t.Errorf("taken back: %s", back.Body)
	}
	if again := w.as(w.acme, "POST", path+"/cancel", "", header("If-Match", `"2"`), header("Idempotency-Key", "back")).want(200); again.Body != back.Body {
		t.Errorf("taken back, and again: %s", again.Body)
	}
	w.as(w.acme, "POST", path+"/cancel", "").want(409, "nothing_to_cancel")
	if got := w.behaviours(); len(got) != 2 || !strings.HasSuffix(got[1], "retired") {
		t.Errorf("counted: %v", got)
	}
	w.as(w.acme, "POST", path+"/cancel", `{"force":true}`).want(400)
	w.as(w.acme, "DELETE", path, "").want(202)
	w.as(w.acme, "POST", path+"/cancel", "").want(409, "deleting")
}

func TestSegmentsReferToEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	create := func(key, rule string) answer {
		t.Helper()
		return w.as(w.acme, "POST", "/api/v1/segments", fmt.Sprintf(`{"key":%q,"name":"n","rule":%s}`, key, rule))
	}
	edit := func(key, rule string) answer {
		t.Helper()
		return w.as(w.acme, "PATCH", "/api/v1/segments/"+key, fmt.Sprintf(`{"rule":%s}`, rule))
	}
	fault := func(a answer, pointer, detail string) {
		t.Helper()
		if a.want(422, "invalid"); a.str("errors", 0, "pointer") != pointer || a.str("errors", 0, "detail") != detail {
			t.Errorf("%s: %s, want %s: %s", a.asked, a.Body, pointer, detail)
		}
	}
	create("a", `{"event":"x"}`).want(201)
	create("b", `{"all":[{"event":"x"},{"not":{"segment":"a"}}]}`).want(201)
	create("c", `{"any":[{"segment":"a"},{"segment":"b"}]}`).want(201)
	fault(create("d", `{"any":[{"segment":"a"},{"not":{"segment":"nobody"}}]}`), "#/rule/any/1/not/segment", "no segment has this key")
	fault(create("d", `{"segment":"d"}`), "#/rule/segment", "no segment has this key")
	fault(create("d", `{"segment":"globex-buyers"}`), "#/rule/segment", "no segment has this key")
	fault(edit("a", `{"not":{"segment":"c"}}`), "#/rule/not/segment", "makes a circle: a → c → a")
	fault(edit("a", `{"segment":"a"}`), "#/rule/segment", "makes a circle: a → a")
	fault(edit("a", `{"all":[{"event":"x"},{"segment":"b"}]}`), "#/rule/all/1/segment", "makes a circle: a → b → a")
	edit("b", `{"segment":"a"}`).want(200)

	if got := w.as(w.acme, "DELETE", "/api/v1/segments/a", "").want(409, "referred"); !strings.Contains(got.str("detail"), ": b, c.") {
		t.Errorf("refused with %s", got.Body)
	}
	// What is live still refers to it, although the newest rule does not.
	w.exec(`UPDATE segments SET live_version = version`)
	edit("c", `{"segment":"b"}`).want(200)
	if got := w.as(w.acme, "DELETE", "/api/v1/segments/a", "").want(409, "referred"); !strings.Contains(got.str("detail"), ": b, c.") {
		t.Errorf("refused with %s", got.Body)
	}
	// Going back to what was live may have become a circle.
	edit("b", `{"event":"x"}`).want(200)
	edit("a", `{"segment":"b"}`).want(200)
	if got := w.as(w.acme, "POST", "/api/v1/segments/b/cancel", "").want(409, "circle"); !strings.Contains(got.str("detail"), "b → a → b") {
		t.Errorf("refused with %s", got.Body)
	}
	w.as(w.acme, "DELETE", "/api/v1/segments/c", "").want(202)
	fault(create("d", `{"segment":"c"}`), "#/rule/segment", "no segment has this key")
}

func TestReferencesHaveADepth(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	create := func(i int, rule string) answer {
		t.Helper()
		return w.as(w.acme, "POST", "/api/v1/segments", fmt.Sprintf(`{"key":"s%d","name":"n","rule":%s}`, i, rule))
	}
	create(0, `{"event":"x"}`).want(201)
	for i := 1; i <= 16; i++ {
		create(i, fmt.Sprintf(`{"segment":"s%d"}`, i-1)).want(201)
	}
	const detail = "makes 17 references one upon the other, at most 16 are allowed"
	if got := create(17, `{"segment":"s16"}`).want(422, "invalid"); got.str("errors", 0, "detail") != detail {
		t.Errorf("one more above: %s", got.Body)
	}
	got := w.as(w.acme, "PATCH", "/api/v1/segments/s0", `{"rule":{"segment":"acme-buyers"}}`).want(422, "invalid")
	if got.str("errors", 0, "detail") != detail {
		t.Errorf("one more below: %s", got.Body)
	}
}

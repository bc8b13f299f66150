package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
	"github.com/mubatch/mubatch/profiles"
)

var edited = flag.Int("edit", 2000, "how many profiles TestAnEditDuringTrafficIsExact has")

// do makes a request of the management API with in as its body, and reads the answer into out. It returns false if there
// is no such thing.
func (i info) do(t testing.TB, method, path string, in, out any) bool {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, i.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+i.SecretKey)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if res.StatusCode == http.StatusNotFound {
		return false
	}
	if err != nil || res.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %d %s %v", method, path, res.StatusCode, answer, err)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return true
}

// event is one of a user.
type event struct {
	Type      string    `json:"type"`
	Event     string    `json:"event"`
	UserID    string    `json:"userId"`
	MessageID string    `json:"messageId"`
	Timestamp time.Time `json:"timestamp,omitzero"`
}

func (i info) track(t *testing.T, events ...event) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"writeKey": i.WriteKey, "batch": events})
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(i.URL+"/v1/batch", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	defer res.Body.Close()
	if answer, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK || strings.Contains(string(answer), `"rejected"`) {
		t.Errorf("POST /v1/batch: %d %s", res.StatusCode, answer)
	}
}

// segment makes a segment and waits until it is live.
func (i info) segment(t *testing.T, key, rule string) {
	t.Helper()
	i.do(t, http.MethodPost, "/api/v1/segments", map[string]any{"key": key, "name": key, "rule": json.RawMessage(rule)}, new(any))
	i.live(t, key)
}

func (i info) live(t testing.TB, segment string) {
	t.Helper()
	end := time.Now().Add(10 * time.Minute)
	for {
		var s struct{ Status string }
		if i.do(t, http.MethodGet, "/api/v1/segments/"+segment, nil, &s); s.Status == "live" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("segment %s is %s after ten minutes", segment, s.Status)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// members are the ids of a segment's profiles.
func (i info) members(t *testing.T, segment string) []string {
	t.Helper()
	var page struct {
		Data []struct {
			ProfileID string `json:"profile_id"`
		}
	}
	i.do(t, http.MethodGet, "/api/v1/segments/"+segment+"/members?limit=100", nil, &page)
	var ids []string
	for _, m := range page.Data {
		ids = append(ids, m.ProfileID)
	}
	return ids
}

// change is a transition as the API shows it.
type change struct {
	Segment string `json:"segment_key"`
	Change  string
	At      time.Time
	Cause   struct{ Kind string }
}

// changes are those of a user in a segment, the oldest first.
func (i info) changes(t *testing.T, user, segment string) []change {
	t.Helper()
	var page struct{ Data []change }
	i.do(t, http.MethodGet, "/api/v1/profiles/user_id:"+user+"/transitions", nil, &page)
	list := slices.DeleteFunc(page.Data, func(c change) bool { return c.Segment != segment })
	slices.Reverse(list)
	return list
}

// laggard tells by how much the machine has let somebody oversleep, which the server may have to put up with as well.
func laggard(t *testing.T) (most func() time.Duration) {
	var mu sync.Mutex
	var worst time.Duration
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			const nap = 10 * time.Millisecond
			asleep := time.Now()
			select {
			case <-time.After(nap):
			case <-stop:
				return
			}
			mu.Lock()
			worst = max(worst, time.Since(asleep)-nap)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return func() time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return worst
	}
}

// serveSegments serves with its own stores until the test ends.
func serveSegments(t *testing.T) info {
	t.Helper()
	redistest.RequireReal(t)
	_, prefix := redistest.New(t)
	return serveForTest(t, pgtest.NewURL(t), prefix)
}

// A membership that ends or begins by itself does so within a second of its moment, with no traffic to bring it about,
// and anybody who asks is told.
func TestWindowsEndWithinASecond(t *testing.T) {
	t.Parallel()
	at := serveSegments(t)
	windows := []time.Duration{3 * time.Second, 10 * time.Second}
	for _, w := range windows {
		at.segment(t, "viewed-"+w.String(), fmt.Sprintf(`{"event": "Viewed", "within": "%ds"}`, int(w.Seconds())))
	}
	overslept := laggard(t)
	sent := time.Now().Truncate(time.Millisecond)
	at.track(t, event{Type: "track", Event: "Viewed", UserID: "ada", MessageID: "view", Timestamp: sent})
	for _, w := range windows {
		key := "viewed-" + w.String()
		eventually(t, "ada is in "+key, func() bool { return len(at.changes(t, "ada", key)) > 0 })
		time.Sleep(time.Until(sent.Add(w)))
		eventually(t, "ada is out of "+key, func() bool { return len(at.members(t, key)) == 0 })
		list := at.changes(t, "ada", key)
		if len(list) != 2 || list[0].Change != "entered" || list[1].Change != "left" || list[1].Cause.Kind != "timer" {
			t.Fatalf("ada's changes in %s: %+v", key, list)
		}
		if after := list[1].At.Sub(sent); after < w || after > w+time.Second+overslept() {
			t.Errorf("ada left %s %v after the event", key, after)
		}
	}
}

// TestAnEditDuringTrafficIsExact raises a segment's threshold from two orders to three while a thousand orders a second
// come in. Each profile's changes must be those of one moment at which the new rule took over: what the old one says of
// the orders before, the difference at that moment, what the new one says of those after. Run it with -edit for more
// profiles; it prints what the edit took, and what became of the traffic meanwhile.
func TestAnEditDuringTrafficIsExact(t *testing.T) {
	t.Parallel()
	const rate, perBatch = 1000, 10
	at := serveSegments(t)
	pool, err := pgxpool.New(t.Context(), at.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	people, sent := *edited, 0
	user := func(i int) string { return fmt.Sprintf("u%d", i) }
	order := func(i int) event {
		sent++
		return event{Type: "track", Event: "Order", UserID: user(i), MessageID: fmt.Sprintf("m%d", sent)}
	}
	applied := func() {
		t.Helper()
		end := time.Now().Add(10 * time.Minute)
		for n := -1; n != sent; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d of %d events are applied after ten minutes", n, sent)
			}
			const query = `SELECT coalesce(sum(applied), 0)::integer FROM counters`
			if err := pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
				t.Fatal(err)
			}
		}
	}

	before := make([]int, people) // orders of each, from none... to three
	var list []event
	for i := range people {
		before[i] = 1 + i%3
		for range before[i] {
			list = append(list, order(i))
		}
	}
	for batch := range slices.Chunk(list, 1000) {
		at.track(t, batch...)
	}
	applied()
	at.segment(t, "buyers", `{"event": "Order", "count": {"gte": 2}}`)

	// The traffic, until it is stopped.
	after := slices.Clone(before)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		var posts sync.WaitGroup
		defer posts.Wait()
		tick := time.NewTicker(time.Second * perBatch / rate)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			var batch []event
			for range perBatch {
				i := rand.IntN(people)
				after[i]++
				batch = append(batch, order(i))
			}
			posts.Go(func() { at.track(t, batch...) })
		}
	}()
	time.Sleep(time.Second)
	began := time.Now()
	rule := json.RawMessage(`{"event": "Order", "count": {"gte": 3}}`)
	at.do(t, http.MethodPatch, "/api/v1/segments/buyers", map[string]any{"rule": rule}, new(any))
	at.live(t, "buyers")
	took := time.Since(began)
	time.Sleep(500 * time.Millisecond)
	close(stop)
	<-stopped
	applied()

	const latency = `
		SELECT count(*), coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), 0), coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY ms), 0)
		FROM (SELECT 1000 * extract(epoch FROM applied_at - received_at)::float8 AS ms
		      FROM events
		      WHERE received_at BETWEEN $1 AND $2) AS e`
	var n int
	var p50, p99 float64
	if err := pool.QueryRow(t.Context(), latency, began, began.Add(took)).Scan(&n, &p50, &p99); err != nil {
		t.Fatal(err)
	}
	t.Logf("the edit of %d profiles took %.1f s; meanwhile %.0f events/s were applied, their µbatches began %.1f ms (p50), %.1f ms (p99) after acceptance",
		people, took.Seconds(), float64(n)/took.Seconds(), p50, p99)

	var secret []byte
	if err := pool.QueryRow(t.Context(), `SELECT secret FROM workspaces`).Scan(&secret); err != nil {
		t.Fatal(err)
	}
	got := changesByProfile(t, pool)
	left, wrong := 0, 0
	for i := range people {
		id := profiles.Secret(secret).Key(profiles.Identifier{Kind: profiles.UserID, Value: user(i)})
		var possible [][]string
		for cut := before[i]; cut <= after[i]; cut++ {
			possible = append(possible, editedAt(before[i], cut, after[i]))
		}
		if slices.Contains(got[id], "left by edit") {
			left++
		}
		if !slices.ContainsFunc(possible, func(want []string) bool { return slices.Equal(want, got[id]) }) {
			if wrong++; wrong < 10 {
				t.Errorf("a profile with %d orders, then %d, has changed so (-want, if the edit came early, +got):\n%s", before[i], after[i], cmp.Diff(possible[0], got[id]))
			}
		}
	}
	if left == 0 || wrong > 0 {
		t.Errorf("%d left by the edit; %d have changed as they could not", left, wrong)
	}
	const members = `SELECT count(*)::integer, (SELECT sum(members)::integer FROM segment_counts) FROM memberships`
	var stored, counted, want int
	for _, orders := range after {
		if orders >= 3 {
			want++
		}
	}
	if err := pool.QueryRow(t.Context(), members).Scan(&stored, &counted); err != nil || stored != want || counted != want {
		t.Errorf("%d members, counted as %d, want %d, %v", stored, counted, want, err)
	}
}

// editedAt says how somebody with so many orders at first, so many when the new rule took over and so many in the end
// has changed.
func editedAt(before, cut, after int) []string {
	var list []string
	member := before >= 2
	if member {
		list = append(list, "entered by build")
	}
	if !member && cut >= 2 {
		list, member = append(list, "entered by event"), true
	}
	if member && cut < 3 {
		list, member = append(list, "left by edit"), false
	}
	if !member && after >= 3 {
		list = append(list, "entered by event")
	}
	return list
}

// changesByProfile are all transitions, by profile and in their order.
func changesByProfile(t *testing.T, pool *pgxpool.Pool) map[profiles.Key][]string {
	t.Helper()
	const query = `
		SELECT profile_id, CASE WHEN entered THEN 'entered' ELSE 'left' END || ' by ' || cause
		FROM transitions
		ORDER BY lane, seq`
	rows, _ := pool.Query(t.Context(), query)
	byProfile := map[profiles.Key][]string{}
	var id profiles.Key
	var what string
	if _, err := pgx.ForEachRow(rows, []any{&id, &what}, func() error {
		byProfile[id] = append(byProfile[id], what)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return byProfile
}

// Whoever has done one thing and not another thing within a while is in the segment within a second of that while's end,
// with no traffic to bring it about; whoever has done the other thing is not.
func TestWhatDidNotHappenIsKnownWithinASecond(t *testing.T) {
	t.Parallel()
	at := serveSegments(t)
	waits := []time.Duration{3 * time.Second, 30 * time.Second}
	for _, w := range waits {
		at.segment(t, "left-"+w.String(), fmt.Sprintf(
			`{"sequence": [{"event": "Checkout Started"}], "then_not": {"event": "Order Completed", "within": "%ds"}}`, int(w.Seconds())))
	}
	overslept := laggard(t)
	sent := time.Now().Truncate(time.Millisecond)
	at.track(t,
		event{Type: "track", Event: "Checkout Started", UserID: "ada", MessageID: "m1", Timestamp: sent},
		event{Type: "track", Event: "Checkout Started", UserID: "bob", MessageID: "m2", Timestamp: sent},
		event{Type: "track", Event: "Order Completed", UserID: "bob", MessageID: "m3", Timestamp: sent.Add(time.Second)},
	)
	for _, w := range waits {
		key := "left-" + w.String()
		time.Sleep(time.Until(sent.Add(w)))
		eventually(t, "somebody is in "+key, func() bool { return len(at.members(t, key)) > 0 })
		list := at.changes(t, "ada", key)
		if len(list) != 1 || list[0].Change != "entered" || list[0].Cause.Kind != "timer" {
			t.Fatalf("ada's changes in %s: %+v", key, list)
		}
		if after := list[0].At.Sub(sent); after <= w || after > w+time.Second+overslept() {
			t.Errorf("ada entered %s %v after the event", key, after)
		}
		if list := at.changes(t, "bob", key); len(list) > 0 {
			t.Errorf("bob's changes in %s: %+v", key, list)
		}
	}
}

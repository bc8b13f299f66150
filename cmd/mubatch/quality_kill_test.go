package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// TestKillsNeitherLoseNorDoubleWhatIsQuarantined kills the server, again and again, while events come that violate the plan,
// and while they are replayed. In the end each that was acknowledged was in quarantine, and each was applied once.
func TestKillsNeitherLoseNorDoubleWhatIsQuarantined(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes ten seconds")
	}
	t.Parallel()
	needPrograms(t)
	v := newVictims(t)
	pool, err := pgxpool.New(t.Context(), v.at.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	// ask sends a request until it is answered.
	ask := func(path, key string, body any, into any) {
		t.Helper()
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, v.at.URL+path, bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+key)
			r.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultClient.Do(r)
			if err == nil {
				answer, readErr := io.ReadAll(resp.Body)
				resp.Body.Close()
				switch {
				case readErr == nil && resp.StatusCode < 300:
					if into != nil {
						if err := json.Unmarshal(answer, into); err != nil {
							t.Fatal(err)
						}
					}
					return
				case readErr == nil && resp.StatusCode < 500 && resp.StatusCode != http.StatusConflict:
					t.Fatalf("%s: %d %s", path, resp.StatusCode, answer)
				case resp.StatusCode == http.StatusConflict: // it was done before the server died
					return
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not answered: %v\n%s", path, err, v.logs.text())
			}
		}
	}
	kills := 0
	kill := func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.server.Process.Kill() == nil {
			kills++
		}
	}
	count := func(query string) (n int) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	var source string
	if err := pool.QueryRow(t.Context(), `SELECT key FROM sources ORDER BY id LIMIT 1`).Scan(&source); err != nil {
		t.Fatal(err)
	}
	ask("/api/v1/sources/"+source+"/schemas", v.at.SecretKey, map[string]any{
		"event": "Order Completed", "action": "quarantine",
		"schema": json.RawMessage(`{"properties":{"properties":{"required":["revenue"]}}}`),
	}, nil)
	time.Sleep(2 * time.Second) // collectors follow within one
	const events = 600
	for i := range events / 20 {
		batch := make([]map[string]any, 20)
		for j := range batch {
			id := fmt.Sprint("m", 20*i+j)
			batch[j] = map[string]any{"type": "track", "event": "Order Completed", "messageId": id, "userId": "user-" + fmt.Sprint(j)}
		}
		if i%8 == 4 {
			go kill()
		}
		ask("/v1/batch", v.at.WriteKey, map[string]any{"batch": batch}, nil)
	}
	deadline := time.Now().Add(time.Minute)
	for count(`SELECT count(*)::integer FROM quarantined_events`) < events {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d are in quarantine\n%s", count(`SELECT count(*)::integer FROM quarantined_events`), events, v.logs.text())
		}
		time.Sleep(50 * time.Millisecond)
	}
	if n := count(`SELECT count(*)::integer FROM events`); n != 0 {
		t.Errorf("%d events were applied that are not as planned", n)
	}

	const mend = "version: 1\nrules:\n  - event:\n      type: track\n      event: $.event\n      messageId: $.messageId\n      userId: $.userId\n" +
		"      timestamp: $.timestamp\n      properties:\n        revenue: 1\n"
	for round := 0; count(`SELECT count(*)::integer FROM quarantined_events`) > 0; round++ {
		if time.Now().After(deadline.Add(time.Minute)) {
			t.Fatalf("still in quarantine: %d\n%s", count(`SELECT count(*)::integer FROM quarantined_events`), v.logs.text())
		}
		if round < 4 {
			go kill()
		}
		ask("/api/v1/quarantine/replay", v.at.SecretKey, map[string]any{"filter": map[string]any{}, "mapping": mend}, nil)
	}
	for count(`SELECT count(*)::integer FROM events`) < events && time.Now().Before(deadline.Add(time.Minute)) {
		time.Sleep(50 * time.Millisecond)
	}
	if all, distinct := count(`SELECT count(*)::integer FROM events`), count(`SELECT count(DISTINCT message_key)::integer FROM events`); all != events || distinct != events {
		t.Errorf("%d events were applied, %d of them distinct, want each of %d once", all, distinct, events)
	}
	if n := count(`SELECT count(*)::integer FROM counters WHERE accepted <> applied + duplicate + failed + suppressed + quarantined OR failed > 0`); n != 0 {
		t.Errorf("%d rows of the counters do not add up", n)
	}
	t.Logf("killed the server %d times: %d events quarantined, and applied once", kills, events)
}

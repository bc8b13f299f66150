package main

import (
	"context"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/cmd/mubatch/demo"
	"github.com/mubatch/mubatch/collector/redistest"
	"github.com/mubatch/mubatch/migrations/pgtest"
)

var sales = flag.String("sales", "", "the full data set, for the tests of the demo to replay in place of the sample")

// TestDemoEndsAsSQLSays replays the shop's sales through a whole server and compares profiles, accounts and members with
// an independent query over the raw lines. Done again, nothing counts twice.
func TestDemoEndsAsSQLSays(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.NewURL(t)
	_, prefix := redistest.New(t)
	redistest.RequireReal(t)
	at := serveForTest(t, databaseURL, prefix)

	cfg := demo.Config{
		URL: at.URL, WriteKey: at.WriteKey, SecretKey: at.SecretKey, File: *sales, Check: databaseURL, Live: 150, Out: t.Output(),
	}
	first, err := demo.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if c := first.Counts; !c.AddsUp || c.Applied != first.Sent || c.Accepted < first.Sent || c.Failed+c.Suppressed != 0 {
		t.Errorf("%d events were sent, and counted as %+v", first.Sent, c)
	}
	for segment, n := range first.Members {
		if empty := n == 0; empty != (segment == "demo-live") { // whose people have all left again
			t.Errorf("%d are in %s", n, segment)
		}
	}
	checkLive(t, databaseURL, first.Live)
	if first.Received.Refused > 0 {
		t.Errorf("%d webhooks had a wrong signature", first.Received.Refused)
	}

	again, err := demo.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if c := again.Counts; c.Applied != 150 || c.Duplicate != again.Replayed {
		t.Errorf("of %d events sent again and 150 new ones are %d applied and %d duplicates", again.Replayed, c.Applied, c.Duplicate)
	}
	if first.Shift != again.Shift {
		t.Errorf("the second run moves the dates by %s, the first by %s", again.Shift, first.Shift)
	}
}

// checkLive compares what arrived of the 150 single events with the ledger. Somebody who left again before the entering was
// sent is not told of at all, as on a slow machine; nothing else may be missing.
func checkLive(t *testing.T, databaseURL string, arrived demo.Latencies) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	const query = `
		SELECT count(*), count(*) FILTER (WHERE entered <> "left"), coalesce(sum(entered + "left"), 0)
		FROM (SELECT count(DISTINCT d.version) FILTER (WHERE d.entered) AS entered,
		             count(DISTINCT d.version) FILTER (WHERE NOT d.entered) AS "left"
		      FROM deliveries AS d
		      JOIN segments AS s ON s.id = d.segment_id
		      WHERE s.key = 'demo-live' AND d.outcome = 'ok'
		      GROUP BY d.profile_id) AS people`
	var people, halves, delivered int
	if err := pool.QueryRow(t.Context(), query).Scan(&people, &halves, &delivered); err != nil {
		t.Fatal(err)
	}
	if halves > 0 || delivered != len(arrived) || delivered > 150 || people == 0 {
		t.Errorf("of 150 single events %d arrived; the ledger has %d delivered about %d people, %d of whom did not both enter and leave",
			len(arrived), delivered, people, halves)
	}
	if missing := 150 - delivered; missing > 0 {
		t.Logf("%d changes were undone before they were sent", missing)
	}
}

// serveForTest serves on stores of the test's own until it ends.
func serveForTest(t *testing.T, databaseURL, prefix string) info {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	k, err := seed(t.Context(), pool, keys{})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var cfg config
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	cfg.flags(flags)
	cfg.databaseURL, cfg.redisURL, cfg.prefix = databaseURL, os.Getenv("MUBATCH_TEST_REDIS_URL"), prefix
	cfg.encryptionKeys, cfg.allowPrivate, cfg.allowDegraded, cfg.logLevel = k.EncryptionKeys, true, true, "warn"

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	var logs strings.Builder
	go func() { ended <- serve(ctx, cfg, listener, &logs) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		if logs.Len() > 0 {
			t.Logf("the server says:\n%s", &logs)
		}
	})
	return info{URL: "http://" + listener.Addr().String(), keys: k, DatabaseURL: databaseURL}
}

func TestDemoRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, infoFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	all := []string{"--url", "http://127.0.0.1:1", "--write-key", "w", "--secret-key", "s", "--data", t.TempDir()}
	tests := map[string]struct {
		args []string
		code int
		want string
	}{
		"nothing to run against":   {[]string{"--data", t.TempDir()}, 2, "is mubatch dev running?"},
		"a dev.json that is none":  {[]string{"--data", broken}, 1, "read " + broken},
		"a stray argument":         {[]string{"stray"}, 2, `unexpected argument "stray"`},
		"a check without database": {append(all, "--check"), 2, "need --database-url"},
		"questions without one":    {append(all, "--questions"), 2, "need --database-url"},
		"a file that is not there": {append(all, "--file", filepath.Join(broken, "none")), 1, "no such file"},
		"a file that is no sales":  {append(all, "--file", filepath.Join(broken, infoFile)), 1, "read the sales"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, err strings.Builder
			std := stdio{&out, &err, func(string) string { return "" }}
			code := run(t.Context(), commands(), append([]string{"demo"}, tt.args...), std)
			if code != tt.code || !strings.Contains(err.String(), tt.want) {
				t.Errorf("code %d, %q; want %d, %q", code, &err, tt.code, tt.want)
			}
		})
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mubatch/mubatch/cmd/mubatch/demo"
)

// TestAnImportIsWhatAReplayIs imports the shop's orders as CSV through a mapping, while the program that imports them and
// the server are killed with SIGKILL. In the end everything is as after a replay over HTTP, and as SQL over the raw lines
// says.
func TestAnImportIsWhatAReplayIs(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	t.Parallel()
	needPrograms(t)
	v := newVictims(t)
	var out bytes.Buffer
	kills := 0
	bring := func(ctx context.Context, secretKey, source string, orders []byte, rows int) error {
		dir := t.TempDir()
		file, mapping := filepath.Join(dir, "orders.csv"), filepath.Join(dir, "orders.yaml")
		if err := os.WriteFile(file, orders, 0o600); err != nil {
			return err
		}
		if err := os.WriteFile(mapping, demo.OrdersMapping, 0o600); err != nil {
			return err
		}
		at := v.at
		at.SecretKey = secretKey
		start := func() (*exec.Cmd, chan error) {
			args := []string{"import", "-source", source, "-mapping", mapping}
			if *sales == "" {
				args = append(args, "-rate", fmt.Sprint(rows/4)) // so that there is something to kill
			}
			cmd := exec.Command(os.Args[0], append(args, file)...)
			cmd.Env = append(os.Environ(), "MUBATCH_TEST_IS_MUBATCH=serve", "MUBATCH_URL="+at.URL, "MUBATCH_SECRET_KEY="+secretKey)
			cmd.Stdout, cmd.Stderr = v.logs, v.logs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			return cmd, ended
		}
		cmd, ended := start()
		for {
			select {
			case err := <-ended:
				return err
			case <-ctx.Done():
				_ = cmd.Process.Kill()
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
			if kills == 2 || importedRows(ctx, at) <= (kills+1)*rows/4 {
				continue
			}
			kills++
			_ = cmd.Process.Kill() // it may have ended
			<-ended
			v.mu.Lock()
			v.server.Process.Kill()
			v.mu.Unlock()
			cmd, ended = start()
		}
	}
	c, err := demo.CompareImport(t.Context(), demo.Config{
		URL: v.at.URL, WriteKey: v.at.WriteKey, SecretKey: v.at.SecretKey, File: *sales, Check: v.at.DatabaseURL, Out: &out,
	}, bring)
	if err != nil {
		t.Fatalf("after %d kills: %v\n%s\n%s", kills, err, &out, v.logs.text())
	}
	if kills != 2 || len(c.Answers) != 13 {
		t.Errorf("%d kills, %d answers, want 2 and 13", kills, len(c.Answers))
	}
	t.Logf("%d rows became %d events of %d people, as over HTTP and as SQL says, in spite of %d kills; until applied, the import took %.1f s, the replay %.1f s\n%s",
		c.Rows, c.Events, c.Profiles, kills, c.Took.Seconds(), c.Replay.Seconds(), v.logs.text())
}

func TestImportTellsWhatIsRejected(t *testing.T) {
	t.Parallel()
	at := serveSegments(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mapping := write("people.yaml", "version: 1\nrules:\n- event: {type: identify, userId: $.id, traits: {name: $.name}}\n")
	good := write("good.csv", "id,name\nada,Ada\nbob,Bob\n")
	bad := write("bad.csv", "id,name\n,Nobody\n,\ncyd,Cyd\ndan\n")
	rejected := filepath.Join(dir, "rejected.csv")
	env := map[string]string{"MUBATCH_URL": at.URL, "MUBATCH_SECRET_KEY": at.SecretKey}
	for _, tc := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{good}, 0, []string{"done: 2 rows, 2 events", "0 rejected"}},
		{[]string{good}, 0, []string{"was imported before, as imp_1"}},
		{[]string{"-rejected", rejected, good, bad, bad}, rowsRejected, []string{"4 rows, 1 events", "3 rejected", "2  missing_id", "1  wrong_columns"}},
		{[]string{filepath.Join(dir, "none.csv")}, 1, []string{"no such file"}},
		{[]string{"-source", "none", good}, 1, []string{"#/source is no source"}},
		{[]string{"-mapping", good, good}, 1, []string{"#/mapping is not valid"}},
		{[]string{"file:a.csv"}, 1, []string{"allows no folder"}},
		{nil, 2, []string{"name the files"}},
	} {
		var out bytes.Buffer
		args := append([]string{"import", "-source", "website", "-mapping", mapping, "-data", dir}, tc.args...)
		code := run(t.Context(), commands(), args, stdio{&out, &out, func(name string) string { return env[name] }})
		if code != tc.code {
			t.Errorf("%v ends with %d, want %d:\n%s", tc.args, code, tc.code, &out)
		}
		for _, want := range tc.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%v does not say %q:\n%s", tc.args, want, &out)
			}
		}
	}
	text, err := os.ReadFile(rejected)
	if err != nil || strings.Count(string(text), "\n") != 7 {
		t.Errorf("the rejected rows are %v:\n%s", err, text)
	}
}

// importedRows is how far the import of a workspace is, 0 while nobody tells.
func importedRows(ctx context.Context, at info) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.URL+"/api/v1/imports", nil)
	if err != nil {
		return 0
	}
	req.Header.Set("Authorization", "Bearer "+at.SecretKey)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	var page struct {
		Data []importState `json:"data"`
	}
	if json.NewDecoder(res.Body).Decode(&page) != nil || len(page.Data) == 0 {
		return 0
	}
	return int(page.Data[0].Progress.Rows)
}

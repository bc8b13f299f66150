package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// The test binary is mubatch as well, so that tests can start it, and kill it.
func TestMain(m *testing.M) {
	if os.Getenv("MUBATCH_TEST_IS_MUBATCH") == "serve" {
		os.Exit(run(untilSignal(context.Background()), commands(), os.Args[1:], stdio{os.Stdout, os.Stderr, os.Getenv}))
	}
	if os.Getenv("MUBATCH_TEST_IS_MUBATCH") == "1" {
		cmds := []command{{"dev", "", runDev(fakes)}}
		os.Exit(run(untilSignal(context.Background()), cmds, os.Args[1:], stdio{os.Stdout, os.Stderr, os.Getenv}))
	}
	os.Exit(m.Run())
}

// fakes stand for the parts of the dev mode that come after the stores.
var fakes = hooks{
	seed: func(ctx context.Context, pool *pgxpool.Pool, remembered keys) (keys, error) {
		if err := pool.Ping(ctx); err != nil {
			return keys{}, err
		}
		if remembered == (keys{}) {
			return keys{WriteKey: "made", SecretKey: fmt.Sprint("made by ", os.Getpid())}, nil
		}
		return remembered, nil
	},
	serve: func(ctx context.Context, listener net.Listener, on *stores) error {
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			json.NewEncoder(w).Encode(map[string]string{"not_durable": on.notDurable})
		})}
		context.AfterFunc(ctx, func() { s.Close() })
		if err := s.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	},
	demo: func(ctx context.Context, at info) error {
		response, err := http.Get(at.URL)
		if err != nil {
			return err
		}
		response.Body.Close()
		return errors.New("the demo saw " + response.Status)
	},
}

func TestRun(t *testing.T) {
	t.Parallel()
	cmds := []command{
		{"good", "does well", func(context.Context, []string, stdio) error { return nil }},
		{"bad", "does not", func(context.Context, []string, stdio) error { return errors.New("a reason") }},
		{"silent", "", func(context.Context, []string, stdio) error { return &exitError{code: 7} }},
		{"missing", "", func(context.Context, []string, stdio) error { return &exitError{2, errors.New("no such thing")} }},
		{"flags", "", func(_ context.Context, args []string, std stdio) error {
			return parseFlags(flag.NewFlagSet("flags", flag.ContinueOnError), args, std)
		}},
	}
	tests := map[string]struct {
		args     []string
		want     int
		out, err string
	}{
		"a command succeeds":                       {[]string{"good"}, 0, "", ""},
		"a command fails":                          {[]string{"bad"}, 1, "", "mubatch bad: a reason\n"},
		"a command chooses its code":               {[]string{"silent"}, 7, "", ""},
		"a command chooses its code and says why":  {[]string{"missing"}, 2, "", "mubatch missing: no such thing\n"},
		"an unknown command is answered with help": {[]string{"bed"}, 2, "", "mubatch: unknown command \"bed\"\n\nusage: "},
		"no command is answered with help":         {nil, 2, "", "usage: mubatch COMMAND"},
		"help lists the commands":                  {[]string{"--help"}, 0, "  good       does well\n", ""},
		"an unknown flag is explained":             {[]string{"flags", "--x"}, 2, "", "flag provided but not defined: -x"},
		"a command's help is no failure":           {[]string{"flags", "-h"}, 0, "", "Usage of flags"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, err strings.Builder
			got := run(t.Context(), cmds, tt.args, stdio{&out, &err, os.Getenv})
			if got != tt.want || !strings.Contains(out.String(), tt.out) || !strings.Contains(err.String(), tt.err) {
				t.Errorf("code %d, output %q, errors %q; want %d, %q, %q", got, &out, &err, tt.want, tt.out, tt.err)
			}
		})
	}
}

func TestCommandsHaveDistinctNamesAndSummaries(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range commands() {
		if seen[c.name] || c.summary == "" {
			t.Errorf("command %q comes twice or has no summary", c.name)
		}
		seen[c.name] = true
	}
}

package main

import (
	"flag"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// complete is an environment with which serving can begin.
var complete = map[string]string{
	"DATABASE_URL":            "postgres://u:canary@127.0.0.1:1/x",
	"REDIS_URL":               "redis://:canary@127.0.0.1:2",
	"MUBATCH_ENCRYPTION_KEYS": "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
}

// configured returns what is wrong with a command line in an environment, a line each.
func configured(environment map[string]string, args ...string) (config, []string) {
	var cfg config
	flags := flag.NewFlagSet("test", flag.ContinueOnError)
	cfg.flags(flags)
	var wrong []string
	note := func(err error) {
		if err != nil {
			wrong = append(wrong, strings.Split(err.Error(), "\n")...)
		}
	}
	note(flags.Parse(args))
	note(fromEnvironment(flags, func(name string) string { return environment[name] }))
	note(cfg.check())
	return cfg, wrong
}

func TestConfig(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		environment map[string]string
		args        []string
		want        []string
	}{
		{name: "what is needed is enough", environment: complete},
		{name: "what is needed is asked for at once", want: []string{
			"-database-url is required: set DATABASE_URL",
			"-redis-url is required: set REDIS_URL",
			"-encryption-keys is required: mubatch keys encryption makes one",
		}},
		{
			name: "every mistake is reported at once, in one order, and without a password", environment: complete,
			args: []string{
				"-addr", "nowhere", "-database-url", "postgres://u:can ary@127.0.0.1:1/x", "-redis-url", "http://:canary@127.0.0.1:2",
				"-roles", "collect,foo", "-lanes", "0", "-redis-prefix", "", "-encryption-keys", "canary", "-trusted-proxies", "1.2.3.4",
				"-log-level", "loud", "-lease", "0s", "-trim-lag", "-1s", "-keep-events", "0s", "-dedupe-window", "0s", "-keep-ledger", "0s",
				"-delivery-lease", "9s", "-shutdown-timeout", "-1s", "-max-in-flight", "-5", "-max-batch", "0", "-cached-profiles", "0", "-database-connections", "-3",
			},
			want: []string{
				"-addr: address nowhere: missing port in address",
				"-database-url: cannot parse `postgres://u:xxxxx@127.0.0.1:1/x`: failed to parse as URL (unexpected spaces found in password, use percent-encoded spaces (%20) instead)",
				"-redis-url is not of the form redis://, rediss:// or unix://",
				`-roles: "foo" is not a role: choose from collect,flush,dispatch,api`,
				"-lanes is 0, must be from 1 to 4096",
				`-redis-prefix is "", must be something without braces`,
				"-encryption-keys: encryption key 1 is not of the form id:base64",
				`-trusted-proxies: "1.2.3.4" is not a network such as 10.0.0.0/8`,
				`-log-level: "loud" is not debug, info, warn or error`,
				"-lease is 0s, must be positive",
				"-trim-lag is -1s, must be positive",
				"-keep-events is 0s, must be positive",
				"-dedupe-window is 0s, must be positive",
				"-keep-ledger is 0s, must be positive",
				"-delivery-lease is 9s, must be at least 10s",
				"-shutdown-timeout is -1s, must be positive",
				"-max-in-flight is -5, must be at least 1",
				"-max-batch is 0, must be at least 1",
				"-cached-profiles is 0, must be at least 1",
				"-database-connections is -3, must be at least 0",
			},
		},
		{
			name: "a process must have something to do", environment: complete, args: []string{"-roles", " , "},
			want: []string{"-roles is empty: choose from collect,flush,dispatch,api"},
		},
		{
			name: "a variable that cannot be read is one mistake", environment: with(complete, "MUBATCH_LANES", "many"),
			want: []string{"MUBATCH_LANES: parse error"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, got := configured(tt.environment, tt.args...)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("mistakes (-want +got):\n%s", diff)
			}
		})
	}
}

func with(environment map[string]string, name, value string) map[string]string {
	more := maps.Clone(environment)
	more[name] = value
	return more
}

func TestTheCommandLineGoesBeforeTheEnvironment(t *testing.T) {
	t.Parallel()
	environment := with(with(complete, "MUBATCH_LANES", "4"), "MUBATCH_REDIS_PREFIX", "env:")
	cfg, wrong := configured(environment, "-lanes", "8")
	if wrong != nil || cfg.lanes != 8 || cfg.prefix != "env:" {
		t.Errorf("%d lanes, prefix %q, mistakes %v; want 8 of the flag, the prefix of the environment", cfg.lanes, cfg.prefix, wrong)
	}
}

func TestServeRefusesArgumentsBehindWhichFlagsAreNotRead(t *testing.T) {
	t.Parallel()
	var out, errs strings.Builder
	getenv := func(name string) string { return complete[name] }
	code := run(t.Context(), commands(), []string{"serve", "collect", "-addr", "127.0.0.1:1"}, stdio{&out, &errs, getenv})
	if want := "mubatch serve: unexpected argument \"collect\"\n"; code != 2 || errs.String() != want {
		t.Errorf("code %d, %q; want 2, %q", code, errs.String(), want)
	}
}

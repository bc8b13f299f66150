package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A machine is a folder with programs that are never run: versions has what each would print.
type machine struct {
	root     string
	env      map[string]string
	inPath   map[string]string // program → its path under root
	versions map[string]string // path under root → output
}

func (m machine) finder(t *testing.T) finder {
	t.Helper()
	for path := range m.versions {
		dir := filepath.Dir(filepath.Join(m.root, path))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "initdb"), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return finder{
		getenv: func(name string) string { return strings.ReplaceAll(m.env[name], "ROOT", m.root) },
		root:   m.root,
		lookPath: func(name string) (string, error) {
			if path, ok := m.inPath[name]; ok {
				return filepath.Join(m.root, path), nil
			}
			return "", fs.ErrNotExist
		},
		run: func(_ context.Context, program string, args ...string) (string, error) {
			path, err := filepath.Rel(m.root, program)
			if err != nil {
				return "", err
			}
			if text, ok := m.versions[path]; ok {
				return strings.ReplaceAll(text, "ROOT", m.root), nil
			}
			return "", fmt.Errorf("%s %s: no such program", path, args)
		},
	}
}

func TestFindPostgres(t *testing.T) {
	t.Parallel()
	debian := map[string]string{
		"usr/lib/postgresql/9.6/bin/postgres": "postgres (PostgreSQL) 9.6.24",
		"usr/lib/postgresql/14/bin/postgres":  "postgres (PostgreSQL) 14.9",
		"usr/lib/postgresql/15/bin/postgres":  "postgres (PostgreSQL) 15.18",
		"usr/lib/postgresql/18/bin/postgres":  "postgres (PostgreSQL) 18.4",
	}
	tests := map[string]struct {
		machine machine
		major   int
		want    string // the folder
		wantErr string
	}{
		"the newest of Debian's":     {machine{versions: debian}, 0, "usr/lib/postgresql/18/bin", ""},
		"the one that made the data": {machine{versions: debian}, 15, "usr/lib/postgresql/15/bin", ""},
		"data of one that is gone":   {machine{versions: debian}, 16, "", "18.4, and the data is of 16"},
		"the one in PATH comes first": {machine{
			inPath:   map[string]string{"postgres": "home/me/bin/postgres"},
			versions: map[string]string{"home/me/bin/postgres": "postgres (PostgreSQL) 16.1", "usr/lib/postgresql/18/bin/postgres": "postgres (PostgreSQL) 18.4"},
		}, 0, "home/me/bin", ""},
		"an old one in PATH is passed over": {machine{
			inPath:   map[string]string{"postgres": "home/me/bin/postgres"},
			versions: map[string]string{"home/me/bin/postgres": "postgres (PostgreSQL) 12.1", "usr/pgsql-17/bin/postgres": "postgres (PostgreSQL) 17.2"},
		}, 0, "usr/pgsql-17/bin", ""},
		"pg_config tells where": {machine{
			inPath:   map[string]string{"pg_config": "usr/bin/pg_config"},
			versions: map[string]string{"usr/bin/pg_config": "ROOT/srv/pg/bin\n", "srv/pg/bin/postgres": "postgres (PostgreSQL) 15.2"},
		}, 0, "srv/pg/bin", ""},
		"Homebrew's": {machine{versions: map[string]string{
			"opt/homebrew/opt/postgresql@15/bin/postgres": "postgres (PostgreSQL) 15.2",
			"opt/homebrew/opt/postgresql@17/bin/postgres": "postgres (PostgreSQL) 17.2",
		}}, 0, "opt/homebrew/opt/postgresql@17/bin", ""},
		"Alpine's": {machine{versions: map[string]string{
			"usr/libexec/postgresql16/postgres": "postgres (PostgreSQL) 16.2",
		}}, 0, "usr/libexec/postgresql16", ""},
		"MUBATCH_PG_BIN and no other": {machine{
			env: map[string]string{"MUBATCH_PG_BIN": "ROOT/usr/lib/postgresql/15/bin"}, versions: debian,
		}, 0, "usr/lib/postgresql/15/bin", ""},
		"MUBATCH_PG_BIN names an old one": {machine{
			env: map[string]string{"MUBATCH_PG_BIN": "ROOT/usr/lib/postgresql/14/bin"}, versions: debian,
		}, 0, "", "14.9, older than 15"},
		"MUBATCH_PG_BIN names nothing": {machine{
			env: map[string]string{"MUBATCH_PG_BIN": "ROOT/nowhere"}, versions: debian,
		}, 0, "", "MUBATCH_PG_BIN: "},
		"only old ones": {machine{versions: map[string]string{
			"usr/lib/postgresql/14/bin/postgres": "postgres (PostgreSQL) 14.9",
		}}, 0, "", "14.9, older than 15"},
		"none": {machine{}, 0, "", "none installed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.machine.root = t.TempDir()
			p, err := tt.machine.finder(t).postgres(t.Context(), tt.major)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("got %v, %v; want the error %q", p, err, tt.wantErr)
				}
				return
			}
			if want := filepath.Join(tt.machine.root, tt.want); err != nil || p.bin != want {
				t.Errorf("got %s, %v; want %s", p.bin, err, want)
			}
		})
	}
}

func TestFindRedis(t *testing.T) {
	t.Parallel()
	both := map[string]string{"redis-server": "bin/redis-server", "valkey-server": "bin/valkey-server"}
	tests := map[string]struct {
		machine machine
		want    string
		wantErr string
	}{
		"Redis": {machine{
			inPath:   both,
			versions: map[string]string{"bin/redis-server": "Redis server v=7.0.15 ", "bin/valkey-server": "Valkey server v=8.0.1 "},
		}, "7.0.15", ""},
		"Valkey under Redis's name": {machine{
			inPath:   map[string]string{"redis-server": "bin/redis-server"},
			versions: map[string]string{"bin/redis-server": "Valkey server v=8.0.1 "},
		}, "Valkey 8.0.1", ""},
		"Valkey beside an old Redis": {machine{
			inPath:   both,
			versions: map[string]string{"bin/redis-server": "Redis server v=6.0.16 ", "bin/valkey-server": "Valkey server v=8.0.1 "},
		}, "Valkey 8.0.1", ""},
		"an old Redis": {machine{
			inPath:   map[string]string{"redis-server": "bin/redis-server"},
			versions: map[string]string{"bin/redis-server": "Redis server v=6.0.16 "},
		}, "", "bin/redis-server is redis 6.0.16, too old"},
		"none": {machine{}, "", "none installed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.machine.root = t.TempDir()
			r, _, err := tt.machine.finder(t).redis(t.Context())
			if tt.wantErr != "" {
				if !errors.Is(err, errNone) || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("got %v, %v; want the error %q", r, err, tt.wantErr)
				}
				return
			}
			if err != nil || r.String() != tt.want {
				t.Errorf("got %v, %v; want %s", r, err, tt.want)
			}
		})
	}
}

func TestWithoutAPostgresTheInstallLineIsPrinted(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		machine machine
		want    []string
	}{
		"offline on Debian": {
			machine{env: map[string]string{"MUBATCH_OFFLINE": "1"}, inPath: map[string]string{"apt-get": "bin/apt-get", "npm": "bin/npm"}},
			[]string{"MUBATCH_OFFLINE=1 forbids", "apt-get install -y --no-install-recommends postgresql redis-server"},
		},
		"no npm on Alpine": {
			machine{inPath: map[string]string{"apk": "bin/apk"}},
			[]string{"there is no npm", "apk add postgresql redis"},
		},
		"no npm on an unknown system": {
			machine{},
			[]string{"there is no npm", "export DATABASE_URL="},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.machine.root = t.TempDir()
			find := tt.machine.finder(t)
			_, err := fetchPostgres(t.Context(), find, t.TempDir(), func(string) {})
			err = missingPostgres(find, errNone, err)
			var exit *exitError
			if !errors.As(err, &exit) || exit.code != 2 {
				t.Fatalf("got %v, want exit code 2", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
		})
	}
}

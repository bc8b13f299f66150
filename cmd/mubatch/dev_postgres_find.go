package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A postgres is a release whose programs are in one folder.
type postgres struct {
	release
	bin string // the folder of postgres and initdb
	how string // installed, downloaded
}

// A finder looks for installed programs. Tests give it a machine of their own.
type finder struct {
	getenv   func(string) string
	lookPath func(string) (string, error)
	root     string // what stands before the folders that versions are installed in
	// run returns what a program prints.
	run func(ctx context.Context, program string, args ...string) (string, error)
}

func newFinder(getenv func(string) string) finder {
	return finder{
		getenv:   getenv,
		lookPath: exec.LookPath,
		root:     "/",
		run: func(ctx context.Context, program string, args ...string) (string, error) {
			cmd := exec.Command(program, args...)
			cmd.Env = environ()
			return output(ctx, cmd)
		},
	}
}

// errNone says that no fitting program is installed; the error around it says what was found instead.
var errNone = errors.New("none installed")

// postgres returns the first supported Postgres: the one MUBATCH_PG_BIN names and no other, else the one in PATH, else
// the newest in the folders that packages use. Unless major is 0, only that major version fits.
func (f finder) postgres(ctx context.Context, major int) (postgres, error) {
	if bin := f.getenv("MUBATCH_PG_BIN"); bin != "" {
		p, err := f.postgresIn(ctx, bin)
		if err != nil {
			return postgres{}, fmt.Errorf("MUBATCH_PG_BIN: %w", err)
		}
		if why := unfit(p.release, major); why != "" {
			return postgres{}, fmt.Errorf("MUBATCH_PG_BIN: %s is %s", bin, why)
		}
		return p, nil
	}

	var seen []string
	for _, bin := range f.postgresFolders(ctx) {
		p, err := f.postgresIn(ctx, bin)
		if ctx.Err() != nil {
			return postgres{}, context.Cause(ctx)
		}
		if err != nil {
			continue
		}
		if why := unfit(p.release, major); why != "" {
			seen = append(seen, bin+" is "+why)
			continue
		}
		return p, nil
	}
	if len(seen) > 0 {
		return postgres{}, fmt.Errorf("%w (%s)", errNone, strings.Join(seen, ", "))
	}
	return postgres{}, errNone
}

func unfit(r release, major int) string {
	switch {
	case !r.isSupported():
		return r.text + ", older than 15"
	case major != 0 && r.major != major:
		return r.text + ", and the data is of " + strconv.Itoa(major)
	default:
		return ""
	}
}

func (f finder) postgresIn(ctx context.Context, bin string) (postgres, error) {
	if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
		return postgres{}, err
	}
	text, err := f.run(ctx, filepath.Join(bin, "postgres"), "--version")
	if err != nil {
		return postgres{}, err
	}
	r, err := parsePostgres(text)
	return postgres{release: r, bin: bin, how: "installed"}, err
}

// postgresFolders returns where the programs may be, in the order of preference.
func (f finder) postgresFolders(ctx context.Context) []string {
	var dirs []string
	if path, err := f.lookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	if path, err := f.lookPath("pg_config"); err == nil {
		if text, err := f.run(ctx, path, "--bindir"); err == nil {
			dirs = append(dirs, strings.TrimSpace(text))
		}
	}
	var versioned []string
	for _, pattern := range []string{
		"usr/lib/postgresql/*/bin", // Debian, PGDG
		"usr/libexec/postgresql*",  // Alpine
		"usr/pgsql-*/bin",          // RHEL
		"opt/homebrew/opt/postgresql@*/bin",
		"usr/local/opt/postgresql@*/bin",
		"Applications/Postgres.app/Contents/Versions/*/bin",
	} {
		found, _ := filepath.Glob(filepath.Join(f.root, pattern)) // the patterns are well-formed
		versioned = append(versioned, found...)
	}
	slices.SortStableFunc(versioned, func(a, b string) int { return versionIn(b) - versionIn(a) })
	return append(dirs, versioned...)
}

// versionIn returns the last number in a path: the version of the folders that packages use.
func versionIn(path string) int {
	end := strings.LastIndexAny(path, "0123456789") + 1
	start := strings.LastIndexFunc(path[:end], func(c rune) bool { return c < '0' || c > '9' }) + 1
	return number(path[start:end])
}

// redis returns the first supported redis-server or valkey-server in PATH, and where it is.
func (f finder) redis(ctx context.Context) (r release, path string, err error) {
	var seen []string
	for _, name := range []string{"redis-server", "valkey-server"} {
		path, err := f.lookPath(name)
		if err != nil {
			continue
		}
		text, err := f.run(ctx, path, "--version")
		if ctx.Err() != nil {
			return release{}, "", context.Cause(ctx)
		}
		if err != nil {
			seen = append(seen, err.Error())
			continue
		}
		r, err := parseRedis(text)
		switch {
		case err != nil:
			seen = append(seen, path+": "+err.Error())
		case !r.isSupported():
			seen = append(seen, fmt.Sprintf("%s is %s %s, too old", path, r.product, r.text))
		default:
			return r, path, nil
		}
	}
	if len(seen) > 0 {
		return release{}, "", fmt.Errorf("%w (%s)", errNone, strings.Join(seen, ", "))
	}
	return release{}, "", errNone
}

// installLine returns what to type, on this system, to get what is missing.
func (f finder) installLine() string {
	for _, manager := range []struct{ name, line string }{
		{"apt-get", "apt-get install -y --no-install-recommends postgresql redis-server"},
		{"apk", "apk add postgresql redis"},
		{"dnf", "dnf install -y postgresql-server redis"},
		{"brew", "brew install postgresql@17 redis"},
	} {
		if _, err := f.lookPath(manager.name); err == nil {
			return manager.line
		}
	}
	return "export DATABASE_URL=… REDIS_URL=… with the servers to use"
}

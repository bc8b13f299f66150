package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAFolderHasOneOwnerAtATime(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a", "b")
	first := open(t, path)
	if _, err := openFolder(path); err == nil || !strings.Contains(err.Error(), "another mubatch dev uses") {
		t.Errorf("the second one got %v", err)
	}
	first.close()
	open(t, path).close()
}

func TestResetRemovesWhatIsOursAndNothingElse(t *testing.T) {
	t.Parallel()
	f := open(t, t.TempDir())
	defer f.close()
	for _, name := range []string{"postgres", "postgres.new", "redis", "theirs"} {
		if err := os.Mkdir(f.file(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"keys.json", "dev.json", "dev.json.new", "postgres.log", "redis.log", "dev.txt", "postgres/PG_VERSION"} {
		if err := os.WriteFile(f.file(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.reset(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(f.path)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff([]string{".gitignore", "dev.txt", "lock", "theirs"}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestKeysAreRememberedForTheirOwnerAlone(t *testing.T) {
	t.Parallel()
	f := open(t, t.TempDir())
	defer f.close()
	if k, err := f.keys(); err != nil || k != (keys{}) {
		t.Errorf("a new folder remembers %v, %v", k, err)
	}
	want := keys{WriteKey: "w", SecretKey: "s"}
	for range 2 {
		if err := f.write(keysFile, want); err != nil {
			t.Fatal(err)
		}
	}
	if k, err := f.keys(); err != nil || k != want {
		t.Errorf("got %v, %v; want %v", k, err, want)
	}
	if info, err := os.Stat(f.file(keysFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v; want mode 0600", info.Mode(), err)
	}
}

func TestThePathOfASocketFits(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ temp, want string }{
		"the usual folder": {"/tmp", "/tmp"},
		"macOS's folder":   {"/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T", "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T"},
		"one too deep":     {"/" + strings.Repeat("deep/", 20), "/tmp"},
	}
	f := &folder{path: "/home/me/" + strings.Repeat("project/", 30) + ".mubatch"}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := f.socketsPath(tt.temp)
			if filepath.Dir(dir) != filepath.Clean(tt.want) {
				t.Errorf("got %s, want it in %s", dir, tt.want)
			}
			if longest := filepath.Join(dir, ".s.PGSQL.5432.lock"); len(longest) > 103 {
				t.Errorf("%s has %d bytes", longest, len(longest))
			}
			if again := f.socketsPath(tt.temp); again != dir {
				t.Errorf("the second time it is %s, not %s", again, dir)
			}
		})
	}
}

func TestASocketFolderOfSomebodyElseIsRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]func(path string) error{
		"a link": func(path string) error { return os.Symlink("/", path) },
		"a file": func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"a folder that others can write to": func(path string) error {
			return os.Mkdir(path, 0o700) // and see below: Mkdir minds the umask
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "sockets")
			if err := prepare(path); err != nil {
				t.Fatal(err)
			}
			if info, err := os.Lstat(path); err == nil && info.IsDir() {
				if err := os.Chmod(path, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			if err := ownFolder(path, os.Geteuid()); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func open(t *testing.T, path string) *folder {
	t.Helper()
	f, err := openFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

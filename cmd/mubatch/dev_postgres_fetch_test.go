package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnpack(t *testing.T) {
	t.Parallel()
	type file struct {
		name, text string
		mode       int64
	}
	good := []file{
		{"package/native/bin/postgres", "program", 0o755},
		{"package/native/lib/libpq.so.5.18", "library", 0o644},
		{"package/native/pg-symlinks.json", `[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so.5"}]`, 0o644},
	}
	tests := map[string]struct {
		files   []file
		spoil   bool
		wantErr string
	}{
		"a package as it should be":       {good, false, ""},
		"a package that somebody changed": {good, true, "SHA-512 is not the expected one"},
		"a file that climbs out":          {[]file{{"package/../../evil", "", 0o644}}, false, "escapes"},
		"a link that leads out": {[]file{
			{"package/native/pg-symlinks.json", `[{"source":"../../etc/passwd","target":"native/lib/passwd"}]`, 0o644},
		}, false, "outside of its folder"},
		"a link that is put outside": {[]file{
			{"package/native/pg-symlinks.json", `[{"source":"../../x","target":"../../y"}]`, 0o644},
		}, false, "escapes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var packed bytes.Buffer
			zip := gzip.NewWriter(&packed)
			archive := tar.NewWriter(zip)
			for _, f := range tt.files {
				header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.text)), Typeflag: tar.TypeReg}
				if err := archive.WriteHeader(header); err != nil {
					t.Fatal(err)
				}
				if _, err := archive.Write([]byte(f.text)); err != nil {
					t.Fatal(err)
				}
			}
			archive.Close()
			zip.Close()
			sum := sha512.Sum512(packed.Bytes())
			if tt.spoil {
				sum[0]++
			}
			outside := t.TempDir()
			path, into := filepath.Join(outside, "p.tgz"), filepath.Join(outside, "into")
			if err := os.WriteFile(path, packed.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(into, 0o700); err != nil {
				t.Fatal(err)
			}

			err := unpack(t.Context(), path, base64.StdEncoding.EncodeToString(sum[:]), into)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("got %v, want %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			native := filepath.Join(into, "package", "native")
			if info, err := os.Stat(filepath.Join(native, "bin", "postgres")); err != nil || info.Mode().Perm()&0o100 == 0 {
				t.Errorf("the program is %v, %v; want it executable", info, err)
			}
			if text, err := os.ReadFile(filepath.Join(native, "lib", "libpq.so.5")); err != nil || string(text) != "library" {
				t.Errorf("the link leads to %q, %v", text, err)
			}
		})
	}
}

func TestEveryPackageHasAHash(t *testing.T) {
	t.Parallel()
	for system, pkg := range packed {
		if sum, err := base64.StdEncoding.DecodeString(pkg.sha512); err != nil || len(sum) != sha512.Size {
			t.Errorf("%s: %q is not a SHA-512", system, pkg.sha512)
		}
	}
}

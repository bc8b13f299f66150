package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// object is a file in a place. A file of the same name with another version is another file.
type object struct {
	Name    string
	Version string
	Size    int64
}

// place is where files are.
type place interface {
	// list returns the files that are complete, in the order of their names.
	list(ctx context.Context) ([]object, error)
	// open returns what is in a file, or an error once it is not that version any more.
	open(ctx context.Context, o object) (content, io.Closer, error)
}

// maxFiles bounds what is at a location.
const maxFiles = 100_000

func tooManyFiles() error {
	return badFile("too_many_files", "there are more than %d files; name a narrower folder, prefix or pattern", maxFiles)
}

// Location says where files are: a folder of the operator's, or a bucket.
type Location struct {
	Scheme  string // "file" or "s3"
	Bucket  string
	Pattern string // a name, a folder or prefix that ends in /, or a pattern with * and ?
}

// ParseLocation reads file:folder/*.csv, whose path begins in the folder that the operator allows, or s3://bucket/prefix/.
func ParseLocation(raw string) (Location, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return Location{}, errors.New("is not a URL")
	}
	switch {
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return Location{}, errors.New("must have neither a user nor a query; in a pattern, only * stands for something")
	case u.Scheme == "s3" && u.Host != "":
		l := Location{Scheme: "s3", Bucket: u.Host, Pattern: strings.TrimPrefix(u.Path, "/")}
		return l, checkPattern(l.Pattern)
	case u.Scheme == "file" && u.Host == "":
		name := u.Opaque
		if name == "" {
			name = u.Path
		}
		if name, err = url.PathUnescape(name); err != nil {
			return Location{}, errors.New("is not a URL")
		}
		name = strings.TrimPrefix(name, "/")
		if trimmed := strings.TrimSuffix(name, "/"); trimmed != "" && !fs.ValidPath(trimmed) {
			return Location{}, errors.New("must be a path without .. and empty parts")
		}
		return Location{Scheme: "file", Pattern: name}, checkPattern(name)
	}
	return Location{}, errors.New("must be s3://bucket/prefix/ or file:folder/*.csv")
}

func checkPattern(pattern string) error {
	if _, err := path.Match(pattern, ""); err != nil {
		return errors.New("has a pattern that cannot be read")
	}
	return nil
}

// matches tells whether a name is meant.
func (l Location) matches(name string) bool {
	switch {
	case l.Pattern == "" || strings.HasSuffix(l.Pattern, "/"):
		return strings.HasPrefix(name, l.Pattern)
	case strings.ContainsAny(l.Pattern, "*?["):
		ok, _ := path.Match(l.Pattern, name) // the pattern is a good one
		return ok
	}
	return name == l.Pattern
}

// prefix is what the names that are meant have in common.
func (l Location) prefix() string {
	if i := strings.IndexAny(l.Pattern, "*?["); i >= 0 {
		return l.Pattern[:i]
	}
	return l.Pattern
}

// incomplete tells whether a file's name says that it is still being written, or is not meant for others.
func incomplete(name string) bool {
	base := path.Base(name)
	if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return true
	}
	return slices.Contains([]string{".tmp", ".part", ".partial", ".crdownload", ".filepart", ".swp"}, strings.ToLower(path.Ext(base)))
}

// folder is what matches a location in a folder of this machine. Links do not lead out of it.
type folder struct {
	root   *os.Root
	at     Location
	settle time.Duration // how long a file must not have changed to be complete
}

func (f *folder) list(ctx context.Context) ([]object, error) {
	dir := strings.TrimSuffix(f.at.prefix(), "/")
	if !strings.HasSuffix(f.at.prefix(), "/") {
		dir = path.Dir(f.at.prefix())
	}
	if dir == "" {
		dir = "."
	}
	var list []object
	err := fs.WalkDir(f.root.FS(), dir, func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case e.IsDir() && name != dir && strings.HasPrefix(e.Name(), "."):
			return fs.SkipDir
		case e.IsDir() || !f.at.matches(name) || incomplete(name):
			return nil
		}
		info, err := f.root.Stat(name)
		if err != nil || !info.Mode().IsRegular() || time.Since(info.ModTime()) < f.settle {
			return nil // gone, out of reach, or not complete
		}
		if list = append(list, object{name, versionOf(info), info.Size()}); len(list) > maxFiles {
			return tooManyFiles()
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, badFile("not_found", "there is no such folder")
	}
	if err != nil {
		return nil, fmt.Errorf("list the folder: %w", err)
	}
	return list, nil
}

func versionOf(info fs.FileInfo) string {
	return strconv.FormatInt(info.Size(), 36) + "-" + strconv.FormatInt(info.ModTime().UnixNano(), 36)
}

func (f *folder) open(_ context.Context, o object) (content, io.Closer, error) {
	file, err := f.root.Open(o.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, badFile("not_found", "the file is not there any more")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open the file: %w", err)
	}
	l := &localFile{file: file, object: o}
	if err := l.check(); err != nil {
		file.Close()
		return nil, nil, err
	}
	return l, file, nil
}

// localFile is a file of this machine.
type localFile struct {
	file *os.File
	object
}

func (l *localFile) Size() int64 { return l.object.Size }

func (l *localFile) check() error {
	info, err := l.file.Stat()
	if err != nil {
		return fmt.Errorf("look at the file: %w", err)
	}
	if versionOf(info) != l.Version {
		return errFileChanged()
	}
	return nil
}

func errFileChanged() error {
	return badFile("changed", "the file was changed while it was imported; what had been read of it stays imported")
}

func (l *localFile) From(_ context.Context, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(&checkedFile{io.NewSectionReader(l.file, offset, l.object.Size-offset), l}), nil
}

func (l *localFile) ReadAt(_ context.Context, p []byte, offset int64) (int, error) {
	return l.file.ReadAt(p, offset)
}

// checkedFile does not end before the file is found to be still the same.
type checkedFile struct {
	io.Reader
	of *localFile
}

func (c *checkedFile) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if n == 0 && errors.Is(err, io.EOF) {
		if changed := c.of.check(); changed != nil {
			return 0, changed
		}
	}
	return n, err
}

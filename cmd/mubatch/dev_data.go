package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A folder is where the dev mode keeps what must survive it: the data of private stores, and the keys. One process has
// it at a time.
type folder struct {
	path string // absolute
	lock *os.File
}

// What a folder holds. Reset removes these and nothing else: --data may name a folder that holds more.
const (
	lockFile    = "lock"
	keysFile    = "keys.json"
	infoFile    = "dev.json"
	ignoreFile  = ".gitignore"
	postgresDir = "postgres"
	redisDir    = "redis"
)

// openFolder makes the folder if it is not there, and takes it for this process until close.
func openFolder(path string) (*folder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	f := &folder{path: path}
	f.lock, err = os.OpenFile(f.file(lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		f.lock.Close()
		return nil, fmt.Errorf("another mubatch dev uses %s: stop it, or choose another folder with --data", path)
	}
	if err != nil {
		f.lock.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := os.WriteFile(f.file(ignoreFile), []byte("*\n"), 0o600); err != nil {
		f.lock.Close()
		return nil, err
	}
	return f, nil
}

func (f *folder) file(name string) string { return filepath.Join(f.path, name) }

// close gives the folder to whoever wants it next. The kernel does so too, should we be killed.
func (f *folder) close() {
	os.Remove(f.socketsPath(os.TempDir())) // unless something is left in it
	os.Remove(f.otherSocketsPath())
	syscall.Flock(int(f.lock.Fd()), syscall.LOCK_UN) // closing is not enough while a child that is just starting has it too
	f.lock.Close()
}

// reset removes everything but the lock. Nothing may be running on it.
func (f *folder) reset() error {
	var errs []error
	for _, name := range []string{keysFile, infoFile, postgresDir, redisDir} {
		for _, suffix := range []string{"", ".new", ".log"} {
			errs = append(errs, os.RemoveAll(f.file(name+suffix)))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(f.outside()))...)
}

// outside is where data goes whose user may not enter f.
func (f *folder) outside() string { return filepath.Join("/var/tmp", f.shortName()) }

// shortName is the same for the same folder each time, so that those who outlive us are found.
func (f *folder) shortName() string {
	hash := sha256.Sum256([]byte(f.path))
	return "mubatch-" + hex.EncodeToString(hash[:4])
}

// sockets returns the folder for the sockets of what runs on f.
func (f *folder) sockets(temp string) (string, error) {
	dir := f.socketsPath(temp)
	return dir, ownFolder(dir, os.Geteuid())
}

// socketsPath is under the temporary folder because the path of a socket may not be longer than about 100 bytes.
func (f *folder) socketsPath(temp string) string {
	dir := filepath.Join(temp, f.shortName())
	if len(filepath.Join(dir, ".s.PGSQL.5432.lock")) > longestSocket {
		dir = filepath.Join("/tmp", f.shortName())
	}
	return dir
}

// otherSocketsPath is for a Postgres that runs as another user, who may not be allowed into our temporary folder.
func (f *folder) otherSocketsPath() string { return filepath.Join("/tmp", f.shortName()+"-pg") }

// ownFolder makes a folder that only uid can write to, where others may have made one of the same name before.
func ownFolder(dir string, uid int) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 || owner != uid && owner != os.Geteuid() {
		return fmt.Errorf("%s is not a folder that only user %d can write to: remove it", dir, uid)
	}
	if owner != uid {
		if err := os.Lchown(dir, uid, -1); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o700)
}

// longestSocket is what macOS allows, 4 bytes less than Linux.
const longestSocket = 103

// keys are what the dev mode's workspace is spoken to with.
type keys struct {
	WriteKey       string `json:"write_key"`
	SecretKey      string `json:"secret_key"`
	EncryptionKeys string `json:"encryption_keys,omitempty"` // seal the partners' secrets; not for scripts
}

// info is dev.json, for the scripts that want to talk to what the dev mode runs.
type info struct {
	URL string `json:"url"`
	keys
	DatabaseURL string `json:"database_url"`
	RedisURL    string `json:"redis_url"`
}

// keys returns the remembered keys, the zero keys if there are none.
func (f *folder) keys() (keys, error) {
	var k keys
	text, err := os.ReadFile(f.file(keysFile))
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, err
	}
	if err := json.Unmarshal(text, &k); err != nil {
		return k, fmt.Errorf("read %s: %w", f.file(keysFile), err)
	}
	return k, nil
}

// write replaces a file, readable for its owner alone, in one step.
func (f *folder) write(name string, value any) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // shell scripts cut the addresses out of it
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(value); err != nil {
		return err
	}
	draft := f.file(name + ".new")
	if err := os.WriteFile(draft, text.Bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(draft, f.file(name))
}

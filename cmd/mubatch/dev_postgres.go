package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// durable are the settings of a Postgres that is to keep its data, throwAway those of one that is removed when the tests
// end.
var (
	durable   = []string{"shared_buffers=128MB"}
	throwAway = []string{
		"shared_buffers=128MB", "fsync=off", "synchronous_commit=off", "full_page_writes=off",
		"wal_level=minimal", "max_wal_senders=0", "max_connections=200",
	}
)

// A cluster is a private Postgres: its programs, who runs them, its data and its socket.
type cluster struct {
	postgres
	as       identity
	data     string
	socket   string // the folder of the socket
	log      string
	settings []string
}

// locate decides where the cluster of a folder is. Its data may have to be elsewhere, if its user may not enter f.
func (c *cluster) locate(f *folder, temp string) error {
	sockets, err := f.sockets(temp)
	if err != nil {
		return err
	}
	c.socket, c.data, c.log = sockets, f.file(postgresDir), f.file(postgresDir+".log")
	if c.as.uid < 0 {
		return nil
	}
	c.socket = f.otherSocketsPath()
	if err := ownFolder(c.socket, c.as.uid); err != nil {
		return err
	}
	home := f.outside()
	if err := ownFolder(home, c.as.uid); err != nil {
		return err
	}
	c.data = filepath.Join(home, postgresDir)
	return nil
}

// server returns the cluster as something to start, with its data made if there is none.
func (c *cluster) server(ctx context.Context) (*server, error) {
	if err := c.initialize(ctx); err != nil {
		return nil, fmt.Errorf("make %s: %w", c.data, err)
	}
	return &server{
		name:       "postgres",
		command:    c.command,
		log:        c.log,
		ready:      c.ping,
		orphan:     c.orphan,
		passing:    []string{"pre-existing shared memory block", "already exists"},
		ask:        syscall.SIGINT,
		force:      syscall.SIGQUIT,
		atOurDeath: syscall.SIGQUIT,
	}, nil
}

// initialize makes the data folder, under another name until it is whole.
func (c *cluster) initialize(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(c.data, "PG_VERSION")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	draft := c.data + ".new"
	if err := os.RemoveAll(draft); err != nil {
		return err
	}
	cmd := c.program("initdb", "-D", draft, "-U", "mubatch", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions", "--no-sync")
	if _, err := output(ctx, cmd); err != nil {
		return err
	}
	return os.Rename(draft, c.data)
}

func (c *cluster) command() *exec.Cmd {
	args := []string{"-D", c.data, "-k", c.socket, "-p", "5432", "-c", "listen_addresses=", "-c", "cluster_name=mubatch"}
	for _, setting := range c.settings {
		args = append(args, "-c", setting)
	}
	return c.program("postgres", args...)
}

func (c *cluster) program(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Dir = "/" // its user may not be allowed into ours
	cmd.Env = environ()
	c.as.apply(cmd)
	return cmd
}

// url returns the address of one of the cluster's databases.
func (c *cluster) url(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User("mubatch"), Path: "/" + database,
		RawQuery: "host=" + strings.ReplaceAll(url.QueryEscape(c.socket), "%2F", "/") + "&port=5432",
	}
	return u.String()
}

func (c *cluster) ping(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, c.url("postgres"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// orphan returns the Postgres that already runs on this data, left by one of us that could not take it along. Locks of
// those that are gone are removed: another process may have the number that they hold, and Postgres would believe them.
func (c *cluster) orphan(ctx context.Context) int {
	pid := c.holder(ctx, filepath.Join(c.data, "postmaster.pid"))
	c.holder(ctx, filepath.Join(c.socket, ".s.PGSQL.5432.lock"))
	if pid == 0 {
		c.endSurvivors()
	}
	return pid
}

// endSurvivors ends the children of a Postgres on our data that was killed: one that computes does not notice until it is
// done, and until then no other Postgres starts. Where there is no /proc, whoever starts one waits.
func (c *cluster) endSurvivors() {
	data, err := filepath.EvalSymlinks(c.data)
	if err != nil {
		return
	}
	entries, _ := os.ReadDir("/proc") // none, then
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cwd, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		title, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if cwd == data && strings.HasPrefix(string(title), "postgres: ") {
			syscall.Kill(pid, syscall.SIGKILL) // an error means that it has just ended
		}
	}
}

// holder returns the process that a lock file names, if that is a Postgres on our data. Else it removes the file.
func (c *cluster) holder(ctx context.Context, lock string) int {
	text, err := os.ReadFile(lock)
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, _ := strconv.Atoi(strings.TrimSpace(first)) // 0 is nobody
	if pid > 0 && alive(pid) {
		if line := commandLine(ctx, pid); strings.Contains(line, "postgres") && strings.Contains(line, c.data) {
			return pid
		}
	}
	os.Remove(lock) // an error shows when Postgres finds the file
	return 0
}

// createDatabase makes a database if it is not there.
func (c *cluster) createDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, c.url("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	const exists = `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`
	var found bool
	if err := conn.QueryRow(ctx, exists, name).Scan(&found); err != nil || found {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	return err
}

// dropDatabase removes a database and all that is in it.
func (c *cluster) dropDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, c.url("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
	return err
}

// majorOf returns the major version that made a data folder, 0 if there is none.
func majorOf(data string) int {
	text, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if err != nil {
		return 0
	}
	return number(strings.TrimSpace(string(text)))
}

// nobody exists everywhere, under this number.
const nobody = 65534

// An identity is who Postgres runs as. It refuses to run as root.
type identity struct {
	attr *syscall.SysProcAttr
	uid  int // of the other user that it is, -1 if files stay ours
	gid  int
}

// ourselves is the identity of everybody but root.
var ourselves = identity{uid: -1, gid: -1}

func (id identity) apply(cmd *exec.Cmd) {
	if id.attr != nil {
		attr := *id.attr // a copy: the starting of the child adds to it
		cmd.SysProcAttr = &attr
	}
}

// identify returns who Postgres is to run as: ourselves unless we are root, then nobody in a user namespace, and where
// those are forbidden, as in many containers, another user.
func identify(ctx context.Context) (identity, error) {
	if os.Geteuid() != 0 {
		return ourselves, nil
	}
	id := ourselves
	if id.attr = asNobody(); id.attr != nil {
		if _, err := user.LookupId(strconv.Itoa(nobody)); err == nil {
			probe := exec.Command("/bin/sh", "-c", "exit 0")
			id.apply(probe)
			if _, err := output(ctx, probe); err == nil {
				return id, nil
			}
		}
	}
	return otherUser()
}

func otherUser() (identity, error) {
	for _, name := range []string{"postgres", "_postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr != nil || gidErr != nil {
			continue
		}
		credential := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		return identity{&syscall.SysProcAttr{Credential: credential}, int(uid), int(gid)}, nil
	}
	return identity{}, errors.New("root may not run Postgres, and there is no user postgres or nobody to run it as")
}

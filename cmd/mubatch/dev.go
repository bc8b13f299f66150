package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/migrations"
)

// hooks are what the dev mode does once its stores are there and hold the schema.
type hooks struct {
	// seed makes the workspace of the dev mode, with a source and an API key, and returns their keys. remembered are the
	// ones of an earlier start on the same folder, which it makes valid again if the database does not know them; they are
	// zero at the first one.
	seed func(ctx context.Context, pool *pgxpool.Pool, remembered keys) (keys, error)
	// serve answers on the listener until ctx ends, and returns nil for that.
	serve func(ctx context.Context, listener net.Listener, on *stores) error
	// demo runs against what is being served.
	demo func(ctx context.Context, at info) error
}

// A dev is one run of the dev mode.
type dev struct {
	hooks
	stdio
	find finder

	data     string
	addr     string
	reset    bool
	withDemo bool
	exec     bool
	args     []string // with exec: the command

	saying sync.Mutex
}

func runDev(h hooks) func(context.Context, []string, stdio) error {
	return func(ctx context.Context, args []string, std stdio) error {
		d := &dev{hooks: h, stdio: std, find: newFinder(std.getenv)}
		if err := d.parse(args); err != nil {
			return err
		}
		ctx, cancel := orphaned(ctx)
		defer cancel()
		if d.exec {
			return d.runExec(ctx)
		}
		return d.run(ctx)
	}
}

func (d *dev) parse(args []string) error {
	flags := flag.NewFlagSet("mubatch dev", flag.ContinueOnError)
	flags.StringVar(&d.data, "data", ".mubatch", "the `folder` that keeps the data and the keys")
	flags.StringVar(&d.addr, "addr", "127.0.0.1:8080", "the `address` to serve on")
	flags.BoolVar(&d.reset, "reset", false, "remove what the folder keeps, then start")
	flags.BoolVar(&d.exec, "exec", false, "run the command after -- on throw-away stores instead, and return its exit code")
	if d.demo != nil {
		flags.BoolVar(&d.withDemo, "demo", false, "run the demo once everything is served")
	}
	flags.Usage = func() {
		fmt.Fprint(d.err, `usage: mubatch dev [FLAGS]
       mubatch dev --exec -- COMMAND [ARGUMENTS]

Finds or downloads a Postgres, finds a Redis, starts them for itself, migrates, makes a workspace with keys, and serves.
What to connect with is in dev.json in the data folder. DATABASE_URL and REDIS_URL, where set, are used instead, and
nothing is started. MUBATCH_PG_BIN names the folder of the Postgres programs to use; MUBATCH_OFFLINE=1 forbids downloads.

With --exec the command gets MUBATCH_TEST_DATABASE_URL and MUBATCH_TEST_REDIS_URL.

`)
		flags.PrintDefaults()
	}
	if err := parseFlags(flags, args, d.stdio); err != nil {
		return err
	}
	d.args = flags.Args()
	switch {
	case d.exec && len(d.args) == 0:
		return &exitError{2, errors.New("--exec needs a command: --exec -- COMMAND")}
	case !d.exec && len(d.args) > 0:
		return &exitError{2, fmt.Errorf("unexpected argument %q", d.args[0])}
	}
	return nil
}

// run serves until ctx ends, which is how it is meant to end: the error is nil then. Whatever it started is stopped when
// it returns.
func (d *dev) run(ctx context.Context) error {
	began := time.Now()
	f, err := openFolder(d.data)
	if err != nil {
		return err
	}
	defer f.close()
	listener, err := net.Listen("tcp", d.addr) // before all else: most often it is this that is wrong
	if err != nil {
		return fmt.Errorf("%w: choose another one with --addr", err)
	}
	defer listener.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err = d.runOn(ctx, f, listener, began, cancel)
	if errors.As(context.Cause(ctx), new(signalError)) {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return cause
	}
	return err
}

func (d *dev) runOn(ctx context.Context, f *folder, listener net.Listener, began time.Time, gone func(error)) error {
	if d.reset {
		if err := d.startOver(ctx, f); err != nil {
			return fmt.Errorf("reset %s: %w", f.path, err)
		}
	}
	on, err := openStores(ctx, f, storesPlan{
		databaseURL: d.getenv("DATABASE_URL"), redisURL: d.getenv("REDIS_URL"),
		settings: durable, database: "mubatch", restart: true,
	}, d.find, d.say, gone)
	if err != nil {
		return err
	}
	defer on.stop()

	remembered, err := f.keys()
	if err != nil {
		return err
	}
	if err := d.migrate(ctx, on, remembered == keys{}); err != nil {
		return err
	}
	at := info{URL: "http://" + listener.Addr().String(), DatabaseURL: on.databaseURL, RedisURL: on.redisURL}
	if at.keys, err = d.seedOn(ctx, on, remembered); err != nil {
		return fmt.Errorf("make the workspace: %w", err)
	}
	if err := f.write(keysFile, at.keys); err != nil {
		return err
	}
	at.EncryptionKeys = ""
	if err := f.write(infoFile, at); err != nil {
		return err
	}
	if on.private() {
		defer os.Remove(f.file(infoFile)) // what it names will be gone
	}
	d.say(fmt.Sprintf("serving on %s, ready in %.1f s; keys and addresses are in %s",
		at.URL, time.Since(began).Seconds(), d.short(f.file(infoFile))))
	return d.serveOn(ctx, listener, on, at)
}

// migrate brings the database up to date. fresh says that nothing was ever stored in it, so that a private one whose
// first migration was interrupted can be made anew.
func (d *dev) migrate(ctx context.Context, on *stores, fresh bool) error {
	err := migrations.Up(ctx, on.databaseURL)
	if !errors.As(err, new(*migrations.DirtyError)) {
		return err
	}
	if !fresh || on.cluster == nil {
		return fmt.Errorf("%w: look, then say mubatch migrate force N, or start over with --reset", err)
	}
	if err := on.cluster.dropDatabase(ctx, "mubatch"); err != nil {
		return err
	}
	if err := on.cluster.createDatabase(ctx, "mubatch"); err != nil {
		return err
	}
	return migrations.Up(ctx, on.databaseURL)
}

func (d *dev) seedOn(ctx context.Context, on *stores, remembered keys) (keys, error) {
	if d.seed == nil {
		return remembered, nil
	}
	pool, err := pgxpool.New(ctx, on.databaseURL)
	if err != nil {
		return keys{}, err
	}
	defer pool.Close()
	return d.seed(ctx, pool, remembered)
}

// serveOn serves, and runs the demo beside it. A demo that fails ends the serving.
func (d *dev) serveOn(ctx context.Context, listener net.Listener, on *stores, at info) error {
	if d.serve == nil {
		<-ctx.Done()
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var demo sync.WaitGroup
	defer demo.Wait()
	var demoErr error
	if d.withDemo {
		demo.Go(func() {
			if err := d.demo(ctx, at); err != nil && ctx.Err() == nil {
				demoErr = fmt.Errorf("demo: %w", err)
				cancel(demoErr)
			}
		})
	}
	err := d.serve(ctx, listener, on)
	cancel(nil)
	demo.Wait()
	return errors.Join(demoErr, err)
}

// startOver empties the folder. A store that an earlier run left behind on it is stopped first.
func (d *dev) startOver(ctx context.Context, f *folder) error {
	id, err := identify(ctx)
	if err != nil {
		return err
	}
	c := &cluster{as: id}
	if err := c.locate(f, os.TempDir()); err != nil {
		return err
	}
	left := &server{name: "postgres", force: syscall.SIGQUIT, adopted: c.orphan(ctx)}
	left.kill()
	sockets, err := f.sockets(os.TempDir())
	if err != nil {
		return err
	}
	left = &server{name: "redis", force: syscall.SIGKILL, adopted: redisOrphan(ctx, redisSocket(sockets), f.file(redisDir))}
	left.kill()
	return f.reset()
}

// orphaned ends the context when the go command that runs us is gone: it takes our signals for itself, and when it is
// killed by one that it does not pass on nobody else would tell us.
func orphaned(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() { cancel(nil) }
	program, err := os.Executable()
	if err != nil || !strings.Contains(program, "go-build") {
		return ctx, stop
	}
	parent := os.Getppid()
	go func() {
		for sleep(ctx, 500*time.Millisecond) == nil {
			if os.Getppid() != parent {
				cancel(signalError{syscall.SIGTERM})
			}
		}
	}()
	return ctx, stop
}

// say tells the user something, one line at a time.
func (d *dev) say(line string) {
	d.saying.Lock()
	defer d.saying.Unlock()
	fmt.Fprintln(d.out, line)
}

// short is a path as the user would write it.
func (d *dev) short(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return path
}

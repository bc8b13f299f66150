package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runExec runs the command on stores that are made for it and removed afterwards, and returns its exit code as an
// [exitError]. A signal is passed on to the command and to all that it started, which then have stopWithin to end.
func (d *dev) runExec(ctx context.Context) error {
	d.out = d.err // the command's output is not mixed with ours
	f, err := throwAwayFolder(os.TempDir())
	if err != nil {
		return err
	}
	defer func() {
		f.close()
		f.remove()
	}()

	on, err := openStores(ctx, f, storesPlan{
		databaseURL: d.getenv("MUBATCH_TEST_DATABASE_URL"), redisURL: d.getenv("MUBATCH_TEST_REDIS_URL"),
		settings: throwAway, database: "postgres",
	}, d.find, d.say, func(err error) { d.say(err.Error()) })
	var signalled signalError
	if errors.As(context.Cause(ctx), &signalled) {
		err = &exitError{code: 128 + int(signalled.signal)}
	}
	if err != nil {
		if on != nil {
			on.kill()
		}
		return err
	}
	defer on.kill()
	return d.runCommand(ctx, on)
}

func (d *dev) runCommand(ctx context.Context, on *stores) error {
	cmd := exec.Command(d.args[0], d.args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "MUBATCH_TEST_DATABASE_URL="+on.databaseURL, "MUBATCH_TEST_REDIS_URL="+on.redisURL)
	defer lendTerminal(cmd)()
	c, err := startChild(cmd, syscall.SIGKILL)
	if err != nil {
		return &exitError{2, err}
	}
	defer c.signalGroup(syscall.SIGKILL) // what the command left behind would only find the stores gone
	select {
	case <-c.ended:
	case <-ctx.Done():
		s := syscall.SIGTERM
		var signalled signalError
		if errors.As(context.Cause(ctx), &signalled) {
			s = signalled.signal
		}
		c.signalGroup(s)
		if !c.endsWithin(stopWithin) {
			c.signalGroup(syscall.SIGKILL)
			<-c.ended
		}
	}

	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case c.err == nil:
		return nil
	case ok && status.Signaled():
		return &exitError{code: 128 + int(status.Signal())}
	case ok && status.Exited():
		return &exitError{code: status.ExitStatus()}
	default:
		return fmt.Errorf("run %s: %w", d.args[0], c.err)
	}
}

// lendTerminal lets cmd read from the terminal, and hear its Ctrl-C, if it is ours to lend. Call what it returns to take it
// back.
func lendTerminal(cmd *exec.Cmd) (takeBack func()) {
	stdin := int(os.Stdin.Fd())
	foreground, err := unix.IoctlGetInt(stdin, unix.TIOCGPGRP)
	if err != nil || foreground != unix.Getpgrp() {
		return func() {} // it is no terminal, or somebody else's
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Ctty: stdin}
	return func() {
		signal.Ignore(syscall.SIGTTOU) // which would stop us, for asking from the background
		unix.IoctlSetPointerInt(stdin, unix.TIOCSPGRP, foreground)
	}
}

const throwAwayPrefix = "mubatch-exec-"

// throwAwayFolder makes a folder under temp, and removes those whose owner was killed before it could.
func throwAwayFolder(temp string) (*folder, error) {
	stale, err := filepath.Glob(filepath.Join(temp, throwAwayPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, path := range stale {
		if info, err := os.Lstat(path); err != nil || !info.IsDir() || time.Since(info.ModTime()) < time.Minute {
			continue // gone, or made so recently that its owner may not have it yet
		}
		if f, err := openFolder(path); err == nil {
			f.close()
			f.remove()
		}
	}
	path, err := os.MkdirTemp(temp, throwAwayPrefix)
	if err != nil {
		return nil, err
	}
	return openFolder(path)
}

// remove removes a throw-away folder with everything that belongs to it.
func (f *folder) remove() {
	if !strings.HasPrefix(filepath.Base(f.path), throwAwayPrefix) {
		return
	}
	for _, path := range []string{f.path, f.outside(), f.socketsPath(os.TempDir()), f.otherSocketsPath()} {
		os.RemoveAll(path) // what cannot be removed now is tried again by the next one
	}
}

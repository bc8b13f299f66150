package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A child is a process that does not outlive this one, however this one ends. It leads a process group of its own, so
// that a Ctrl-C in the terminal reaches it only through us, in our order.
type child struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of Wait; to be read once ended is closed
}

// startChild starts cmd. When this process dies, the child gets the signal atOurDeath.
func startChild(cmd *exec.Cmd, atOurDeath syscall.Signal) (*child, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	dieWithUs(cmd.SysProcAttr, atOurDeath)

	started := make(chan error)
	starter() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, err
	}
	watchdog := bindToUs(cmd.Process.Pid, atOurDeath)
	c := &child{cmd: cmd, ended: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		watchdog()
		close(c.ended)
	}()
	return c, nil
}

// starter starts the children. The signal that the kernel sends a child when its parent dies is sent when the parent's
// thread dies, so all of them are started from one that stays.
var starter = sync.OnceValue(func() chan<- func() {
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
})

// signal signals the child alone.
func (c *child) signal(s syscall.Signal) {
	if !c.hasEnded() {
		c.cmd.Process.Signal(s) // an error means that it ended just now
	}
}

// signalGroup signals the child and all that it started, even if the child itself has ended.
func (c *child) signalGroup(s syscall.Signal) {
	syscall.Kill(-c.cmd.Process.Pid, s) // an error means that nobody is left
}

func (c *child) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// endsWithin waits for the child to end.
func (c *child) endsWithin(d time.Duration) bool {
	select {
	case <-c.ended:
		return true
	case <-time.After(d):
		return false
	}
}

// output runs a short-lived child to its end and returns what it wrote. When ctx ends, the child and all that it started
// are killed.
func output(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 2 * time.Second // for a pipe that somebody else still holds
	c, err := startChild(cmd, syscall.SIGKILL)
	if err != nil {
		return "", err
	}
	select {
	case <-c.ended:
	case <-ctx.Done():
		c.signalGroup(syscall.SIGKILL)
		<-c.ended
		return "", context.Cause(ctx)
	}
	if c.err != nil {
		return "", fmt.Errorf("%s: %w%s", cmd.Args[0], c.err, indent(tail(stderr.String()+stdout.String(), 20)))
	}
	return stdout.String(), nil
}

// environ is ours without what would change how a private server, or our connection to it, behaves.
func environ(add ...string) []string {
	kept := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG=")
	})
	return append(kept, append(add, "LC_ALL=C")...)
}

// alive tells whether a process is there, ours or not.
func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// commandLine returns how a process was called, and "" if it cannot be told.
func commandLine(ctx context.Context, pid int) string {
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil {
		return strings.ReplaceAll(string(text), "\x00", " ")
	}
	text, err := output(ctx, exec.Command("ps", "-o", "command=", "-p", fmt.Sprint(pid)))
	if err != nil {
		return ""
	}
	return text
}

// tail returns the last n lines of text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func indent(text string) string {
	if text == "" {
		return ""
	}
	return "\n    " + strings.ReplaceAll(text, "\n", "\n    ")
}

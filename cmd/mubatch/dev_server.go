package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A server is a private store: a child that is started, waited for, started again if it dies, and stopped.
type server struct {
	name    string
	command func() *exec.Cmd
	log     string // the file that takes its output; the end of it is shown if it does not start

	// ready makes one attempt to talk to it.
	ready func(ctx context.Context) error
	// orphan returns the process that already serves the same data, and 0 if there is none.
	orphan func(ctx context.Context) int
	// passing are what its log says when it cannot start because its predecessor has not quite ended.
	passing []string

	ask, force syscall.Signal // to end in good order, and at once
	atOurDeath syscall.Signal
	restarts   bool               // if it dies by itself
	say        func(string)       // to the user
	gone       func(cause error)  // called when it has died and is not there again
	stopping   context.CancelFunc // ends the watching
	watched    chan struct{}      // closed when the watching has ended; nil if it never began

	mu      sync.Mutex
	child   *child
	adopted int // the process that serves in place of a child
}

const (
	startWithin = 2 * time.Minute // recovering a large data folder takes its time
	// predecessorEnds is how long the last children of a server that was killed may take to notice: on a busy machine they
	// first finish what they are computing.
	predecessorEnds = time.Minute
	stopWithin      = 10 * time.Second
)

// start returns when the server answers. Whatever it started is stopped if it does not, or when ctx ends before it does.
func (s *server) start(ctx context.Context) error {
	if err := s.launch(ctx); err != nil {
		s.end(s.force)
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stopping, s.watched = stop, make(chan struct{})
	go func() {
		defer close(s.watched)
		s.watch(watching)
	}()
	return nil
}

// stop ends the server, in good order if it can, and returns when it is no more.
func (s *server) stop() { s.stopWith(s.ask) }

// kill ends the server at once. What it did not keep is lost.
func (s *server) kill() { s.stopWith(s.force) }

func (s *server) stopWith(first syscall.Signal) {
	if s.watched != nil {
		s.stopping()
		<-s.watched
	}
	s.end(first)
}

// launch starts the process, or adopts the one that is there, and waits until it answers.
func (s *server) launch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	retryUntil := time.Now().Add(predecessorEnds)
	for {
		err := s.launchOnce(ctx)
		if !errors.As(err, new(*earlyEndError)) || time.Now().After(retryUntil) || !s.willPass(err) && !s.wasKilled() {
			return err
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func (s *server) launchOnce(ctx context.Context) error {
	if pid := s.orphan(ctx); pid != 0 {
		s.set(nil, pid)
	} else if err := s.spawn(); err != nil {
		return err
	}
	for {
		err := s.ready(ctx)
		if err == nil {
			return nil
		}
		if s.hasEnded() {
			return &earlyEndError{log: s.logTail()}
		}
		if sleep(ctx, 20*time.Millisecond) != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// earlyEndError says that a server ended before it ever answered.
type earlyEndError struct{ log string }

func (e *earlyEndError) Error() string { return "it ended at once, and says" + indent(e.log) }

func (s *server) willPass(err error) bool {
	for _, text := range s.passing {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

func (s *server) spawn() error {
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command()
	cmd.Stdout, cmd.Stderr = log, log
	c, err := startChild(cmd, s.atOurDeath)
	if err != nil {
		return err
	}
	s.set(c, 0)
	return nil
}

// watch starts the server again when it dies by itself, as the service manager of a real installation would, so that
// killing it shows what an outage does. One that does not stay up for a second, three times in a row, is given up.
func (s *server) watch(ctx context.Context) {
	for deaths := 0; ; {
		up := time.Now()
		if s.waitForEnd(ctx) != nil {
			return
		}
		if !s.restarts {
			s.gone(fmt.Errorf("%s ended by itself, and says%s", s.name, indent(s.logTail())))
			return
		}
		if deaths++; time.Since(up) > time.Second {
			deaths = 1
		}
		s.say(s.name + ": ended by itself, starting it again")
		err := s.launch(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil && deaths < 3 {
			s.say(fmt.Sprintf("%s: is back", s.name))
			continue
		}
		if err == nil {
			err = errors.New("it does not stay up, and says" + indent(s.logTail()))
		}
		s.gone(fmt.Errorf("start %s again: %w", s.name, err))
		return
	}
}

// waitForEnd returns nil when the process has ended, or ctx's error when that ends first.
func (s *server) waitForEnd(ctx context.Context) error {
	c, pid := s.get()
	if c != nil {
		select {
		case <-c.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for alive(pid) {
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// end signals the process until it has ended.
func (s *server) end(first syscall.Signal) {
	c, pid := s.get()
	for _, sig := range []syscall.Signal{first, s.force, syscall.SIGKILL} {
		switch {
		case c != nil:
			c.signal(sig)
			if c.endsWithin(stopWithin) {
				return
			}
		case pid != 0:
			syscall.Kill(pid, sig)
			for end := time.Now().Add(stopWithin); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if !alive(pid) {
					return
				}
			}
		default:
			return
		}
	}
}

func (s *server) hasEnded() bool {
	c, pid := s.get()
	if c != nil {
		return c.hasEnded()
	}
	return !alive(pid)
}

// wasKilled tells whether somebody has killed the process, as whoever tries out an outage may do while it is starting.
func (s *server) wasKilled() bool {
	c, _ := s.get()
	var exit *exec.ExitError
	if c == nil || !c.hasEnded() || !errors.As(c.err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// readyWord says how the server came to be ready.
func (s *server) readyWord() string {
	if _, pid := s.get(); pid != 0 {
		return "found running"
	}
	return "ready"
}

func (s *server) logTail() string {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return tail(string(text), 20)
}

func (s *server) set(c *child, pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.child, s.adopted = c, pid
}

func (s *server) get() (*child, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.child, s.adopted
}

// sleep waits for d, or returns the cause of ctx's end.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

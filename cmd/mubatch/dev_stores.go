package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// stores are the Postgres and the Redis that something is run on.
type stores struct {
	databaseURL string
	redisURL    string
	notDurable  string // why what Redis acknowledges may be lost; "" if it is kept

	cluster *cluster // the private Postgres, nil if it is somebody else's
	mu      sync.Mutex
	servers []*server // in the order in which they are to be stopped
	stops   []func()
}

// storesPlan says which stores are wanted.
type storesPlan struct {
	databaseURL string // to use in place of a private one
	redisURL    string
	settings    []string // of the private Postgres
	database    string   // in it, made if it is not there
	restart     bool     // those that die by themselves
}

// openStores returns with both stores answering, whatever of them is private started on the folder, and says what it
// chose. If it fails, or ctx ends before, nothing is left running. gone is called if a private one dies for good.
func openStores(ctx context.Context, f *folder, plan storesPlan, find finder, say func(string), gone func(error)) (*stores, error) {
	s := &stores{}
	starting, groupCtx := errgroup.WithContext(ctx)
	starting.Go(func() error { return s.openPostgres(groupCtx, f, plan, find, say, gone) })
	starting.Go(func() error { return s.openRedis(groupCtx, f, plan, find, say, gone) })
	err := starting.Wait()
	if err == nil {
		return s, nil
	}
	s.kill()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, err
}

func (s *stores) openPostgres(ctx context.Context, f *folder, plan storesPlan, find finder, say func(string), gone func(error)) error {
	if plan.databaseURL != "" {
		s.databaseURL = plan.databaseURL
		say("postgres: the one that the environment names")
		return nil
	}
	began := time.Now()
	id, err := identify(ctx)
	if err != nil {
		return err
	}
	c := &cluster{as: id, settings: plan.settings}
	if err := c.locate(f, os.TempDir()); err != nil {
		return err
	}
	if c.postgres, err = choosePostgres(ctx, find, id, majorOf(c.data), say); err != nil {
		return err
	}
	server, err := c.server(ctx)
	if err != nil {
		return err
	}
	if err := s.start(ctx, server, plan, say, gone); err != nil {
		return err
	}
	if err := c.createDatabase(ctx, plan.database); err != nil {
		return fmt.Errorf("create the database %s: %w", plan.database, err)
	}
	s.cluster, s.databaseURL = c, c.url(plan.database)
	where := "private cluster"
	if id.uid >= 0 {
		where += " in " + c.data
	}
	say(fmt.Sprintf("postgres: %s (%s, %s), %s in %.1f s", c.release, c.how, where, server.readyWord(), time.Since(began).Seconds()))
	return nil
}

// choosePostgres returns an installed Postgres, else a downloaded one. The data of one major version is not for another.
func choosePostgres(ctx context.Context, find finder, id identity, major int, say func(string)) (postgres, error) {
	p, err := find.postgres(ctx, major)
	if err == nil || !errors.Is(err, errNone) {
		return p, err
	}
	fetched, fetchErr := fetchPostgres(ctx, find, cacheFolder(id), say)
	if ctx.Err() != nil {
		return postgres{}, context.Cause(ctx)
	}
	if fetchErr == nil {
		why := unfit(fetched.release, major)
		if why == "" {
			return fetched, nil
		}
		fetchErr = errors.New("the downloaded one is " + why + ": install that, or start over with --reset")
	}
	return postgres{}, missingPostgres(find, err, fetchErr)
}

// missingPostgres says why there is no Postgres to run, and what to type.
func missingPostgres(find finder, installed, fetched error) error {
	return &exitError{2, fmt.Errorf("no Postgres to run: %w; %w\nwhat helps here: %s", installed, fetched, find.installLine())}
}

// cacheFolder is where the downloaded Postgres is kept, for whoever is to run it.
func cacheFolder(id identity) string {
	if dir, err := os.UserCacheDir(); err == nil && id.uid < 0 {
		return filepath.Join(dir, "mubatch")
	}
	return "/var/tmp/mubatch-cache"
}

func (s *stores) openRedis(ctx context.Context, f *folder, plan storesPlan, find finder, say func(string), gone func(error)) error {
	if plan.redisURL != "" {
		s.redisURL = plan.redisURL
		say("redis: the one that the environment names")
		return nil
	}
	began := time.Now()
	r, program, err := find.redis(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return s.openSubstitute(err, say)
	}
	sockets, err := f.sockets(os.TempDir())
	if err != nil {
		return err
	}
	server, address, err := redisServer(program, f.file(redisDir), f.file(redisDir+".log"), sockets)
	if err != nil {
		return err
	}
	if err := s.start(ctx, server, plan, say, gone); err != nil {
		return err
	}
	s.redisURL = address
	say(fmt.Sprintf("redis: %s (installed), %s in %.1f s", r, server.readyWord(), time.Since(began).Seconds()))
	return nil
}

func (s *stores) openSubstitute(why error, say func(string)) error {
	address, stop, err := substitute()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.stops = append(s.stops, stop)
	s.mu.Unlock()
	reason := "no redis-server found"
	if why != errNone {
		reason = why.Error()
	}
	s.redisURL, s.notDurable = address, fmt.Sprintf("in-process, NOT durable (%s)", reason)
	say("redis: " + s.notDurable)
	return nil
}

func (s *stores) start(ctx context.Context, srv *server, plan storesPlan, say func(string), gone func(error)) error {
	srv.say, srv.gone, srv.restarts = say, gone, plan.restart
	if err := srv.start(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if srv.name == "postgres" { // it is asked to stop first
		s.servers = append([]*server{srv}, s.servers...)
	} else {
		s.servers = append(s.servers, srv)
	}
	return nil
}

// private tells whether any of the stores goes when we go.
func (s *stores) private() bool { return len(s.servers)+len(s.stops) > 0 }

// stop ends the private stores in good order.
func (s *stores) stop() { s.end((*server).stop) }

// kill ends the private stores at once, for when their data does not matter or nothing has been written yet.
func (s *stores) kill() { s.end((*server).kill) }

func (s *stores) end(how func(*server)) {
	for _, server := range s.servers {
		how(server)
	}
	for _, stop := range s.stops {
		stop()
	}
	s.servers, s.stops = nil, nil
}

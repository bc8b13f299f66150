package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/api"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/kafka"
	"github.com/mubatch/mubatch/migrations"
	"github.com/mubatch/mubatch/profiles"
)

func runServe(ctx context.Context, args []string, std stdio) error {
	var cfg config
	flags := flag.NewFlagSet("mubatch serve", flag.ContinueOnError)
	cfg.flags(flags)
	migrate := flags.Bool("migrate", false, "bring the database to this version's schema first, which needs Postgres to be there")
	if err := parseFlags(flags, args, std); err != nil {
		return err
	}
	var unexpected error
	if flags.NArg() > 0 { // what follows it would not be read
		unexpected = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := errors.Join(unexpected, fromEnvironment(flags, std.getenv), cfg.check()); err != nil {
		return &exitError{2, err}
	}
	if *migrate {
		if err := migrations.Up(ctx, cfg.databaseURL); err != nil {
			return err
		}
	}
	listener, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		return err
	}
	return serve(ctx, cfg, listener, std.err)
}

// serve answers on listener and does what the roles say until ctx ends. Then it stops in the order of the flow, so that
// nothing that was accepted is left behind: requests, lanes, what lanes tell each other, deliveries.
func serve(ctx context.Context, cfg config, listener net.Listener, logs io.Writer) error {
	defer listener.Close()
	level, err := cfg.level()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(logs, &slog.HandlerOptions{Level: level}))
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())

	pool, err := openPool(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()

	ring, err := activation.ParseKeyRing(cfg.encryptionKeys)
	if err != nil {
		return err
	}

	// The collector's way in.
	proxies, err := cfg.proxies()
	if err != nil {
		return err
	}
	collectorCfg := collector.Config{
		Prefix:           cfg.prefix,
		Lanes:            cfg.lanes,
		AllowDegraded:    cfg.allowDegraded,
		MaxInFlightBytes: cfg.maxInFlight,
		TrustedProxies:   proxies,
		DirectoryFile:    cfg.directoryFile,
		Keys:             ring,
	}
	rdb, err := collector.OpenRedis(cfg.redisURL, cfg.lanes)
	if err != nil {
		return fmt.Errorf("open Redis: %w", err)
	}
	defer rdb.Close()
	stream := collector.NewStream(collectorCfg.Stream(), rdb)
	committer := collector.NewCommitter(collectorCfg, stream, reg, log)
	intake := collector.NewIntake(collectorCfg, committer, reg)
	health := collector.NewHealthWriter(intake, pool, log)
	directory := collector.NewDirectory(collectorCfg, pool, reg, log)
	intake.Follow(directory)
	tail := collector.NewTail(stream, reg, log)

	// Profiles, and who is told of them.
	outbound := activation.Outbound{AllowPrivate: cfg.allowPrivate}
	topics := kafka.NewStore(pool, api.KafkaSeals{Ring: ring})
	consumers := kafka.NewConsumers(topics, intake, activation.NewDialer(outbound, kafka.Ports...).DialContext, reg, log)
	destinations := activation.NewStore(pool, ring, cfg.lanes, partners(outbound)...)
	var dispatcher *activation.Dispatcher
	wake := func() { dispatcher.Wake() }
	store := profiles.NewStore(pool, profiles.Config{Lanes: cfg.lanes, Cached: cfg.cached, Version: version(), Keys: ring}, activation.NewLedger(reg), wake, log)
	segments := profiles.NewSegments(pool, cfg.lanes)
	dispatcher, err = activation.NewDispatcher(activation.DispatchConfig{Lanes: cfg.lanes, Lease: cfg.deliveryLease, Ledger: cfg.ledger}, destinations, store, segments, store, reg, log)
	if err != nil {
		return err
	}
	flusher := collector.NewFlusher(collector.FlushConfig{
		Node: node(), Lease: cfg.lease, MaxEntries: cfg.maxBatch, TrimLag: cfg.trimLag,
	}, stream, committer, store, reg, log)
	imports := importsRunner(cfg, pool, importKeys{ring}, intake, outbound, reg, log)
	installed := make(chan struct{})
	tryInstalling := false
	switch err := install(ctx, store); {
	case err == nil:
		close(installed)
	case cfg.has(roleCollect) && directory.Usable() && unreachable(err): // events are taken in all the same
		log.WarnContext(ctx, "Postgres cannot be reached, going on with the write keys of the file", "as_of", directory.AsOf(), "err", err)
		tryInstalling = true
	default:
		return err
	}

	// HTTP.
	ready := checks(pool, committer, directory, profiles.NewReader(pool, cfg.lanes))
	metrics := promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	stopping := make(chan struct{})
	router := chi.NewRouter()
	router.Use(api.RecoverPanics(log))
	if cfg.has(roleCollect) {
		collector.NewHandler(collectorCfg, directory, intake, reg, log).Routes(router)
	}
	if cfg.has(roleAPI) {
		router.Mount("/", api.New(api.Config{
			Pool:         pool,
			Lanes:        cfg.lanes,
			Destinations: destinations,
			Identities:   store,
			Replayer:     collector.NewReplayer(store, committer),
			Releaser:     collector.NewReleaser(collectorCfg, pool, committer),
			Committer:    committer,
			ImportKeys:   importKeys{ring},
			Tail:         tail,
			Kafka:        topics,
			Checks:       ready,
			Metrics:      metrics,
			Registerer:   reg,
			Log:          log,
			Stopping:     stopping,
		}))
	} else {
		router.Mount("/", api.Health(ready, metrics))
	}
	server := &http.Server{
		Handler:           router,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       75 * time.Second,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}

	server.RegisterOnShutdown(func() { close(stopping) })

	log.InfoContext(ctx, "serving", "addr", listener.Addr().String(), "roles", cfg.roleList(), "version", version())

	// Each layer runs under a context that ends after the one before it has ended.
	beneath := context.WithoutCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	lanesCtx, stopLanes := context.WithCancel(beneath)
	commitCtx, stopCommits := context.WithCancel(beneath)
	dispatchCtx, stopDispatch := context.WithCancel(beneath)

	g.Go(func() error { return ended("committer", committer.Run(commitCtx)) })
	g.Go(func() error { return ended("directory", directory.Run(ctx)) })
	g.Go(func() error {
		if !cfg.has(roleAPI) {
			return nil
		}
		return ended("tail", tail.Run(ctx))
	})
	g.Go(func() error {
		if !cfg.has(roleCollect) {
			return nil
		}
		return ended("kafka", consumers.Run(ctx))
	})
	g.Go(func() error { return ended("health of sources", health.Run(commitCtx)) })
	if tryInstalling {
		g.Go(func() error { return ended("install", installLater(ctx, store, installed)) })
	}
	lanes := make(chan struct{})
	g.Go(func() error {
		defer close(lanes)
		if !cfg.has(roleFlush) || !happens(lanesCtx, installed) {
			return nil
		}
		return ended("flusher", flusher.Run(lanesCtx))
	})
	g.Go(func() error {
		if !cfg.has(roleFlush) || !happens(ctx, installed) {
			return nil
		}
		return ended("maintenance", store.Maintain(ctx, profiles.Retention{Events: cfg.events, Dedupe: cfg.dedupe}))
	})
	g.Go(func() error {
		if !cfg.has(roleDispatch) || !happens(dispatchCtx, installed) {
			return nil
		}
		return ended("dispatcher", dispatcher.Run(dispatchCtx))
	})
	g.Go(func() error {
		if !cfg.has(roleAPI) || !happens(ctx, installed) {
			return nil
		}
		return ended("imports", imports.Run(ctx))
	})
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve HTTP: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		stopping, cancel := context.WithTimeout(beneath, cfg.shutdown)
		defer cancel()
		err := server.Shutdown(stopping)
		if err != nil {
			_ = server.Close()
		}
		stopLanes()
		<-lanes
		stopCommits()
		stopDispatch()
		return ended("requests", err)
	})
	return g.Wait()
}

// install makes sure that the lanes are there, and as many as the configuration says.
func install(ctx context.Context, store *profiles.Store) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return store.Install(ctx)
}

// installLater tries until it succeeds, for a process that began without Postgres. An error is one that does not pass.
func installLater(ctx context.Context, store *profiles.Store, installed chan<- struct{}) error {
	for sleep(ctx, time.Second) == nil {
		switch err := install(ctx, store); {
		case err == nil:
			close(installed)
			return nil
		case ctx.Err() == nil && !unreachable(err):
			return err
		}
	}
	return nil
}

// unreachable tells whether err says that Postgres could not be asked.
func unreachable(err error) bool {
	return errors.As(err, new(*pgconn.ConnectError)) || pgconn.Timeout(err) || pgconn.SafeToRetry(err)
}

// happens waits for event, and returns false if ctx ends first.
func happens(ctx context.Context, event <-chan struct{}) bool {
	select {
	case <-event:
		return true
	case <-ctx.Done():
		return false
	}
}

// ended names what an error comes from.
func ended(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func openPool(ctx context.Context, cfg config) (*pgxpool.Pool, error) {
	pc, err := pgxpool.ParseConfig(cfg.databaseURL)
	if err != nil {
		return nil, fmt.Errorf("open Postgres: %w", err)
	}
	pc.MaxConns = int32(cfg.databaseConns)
	if pc.MaxConns == 0 {
		pc.MaxConns = int32(2*cfg.lanes + 8)
	}
	pc.ConnConfig.RuntimeParams["application_name"] = "mubatch"
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("open Postgres: %w", err)
	}
	return pool, nil
}

// node names this process among those that share the lanes.
func node() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + ":" + strconv.Itoa(os.Getpid()) + ":" + strconv.FormatInt(time.Now().UnixNano(), 36)
}

// checks are what /readyz looks at. A process is ready while it can accept events.
func checks(pool *pgxpool.Pool, committer *collector.Committer, directory *collector.Directory, people *profiles.Reader) []api.Check {
	const patience = time.Second // less than a probe has: what hangs is no worse than what is down
	return []api.Check{
		{Name: "redis", Probe: func(context.Context) (api.Readiness, string) {
			h := committer.Health()
			switch {
			case !h.Ready:
				return api.NotReady, h.Reason
			case !h.Durable:
				return api.Degraded, h.Reason
			}
			return api.Ready, ""
		}},
		{Name: "postgres", Probe: func(ctx context.Context) (api.Readiness, string) {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			if err := pool.Ping(ctx); err != nil {
				return api.Degraded, "Postgres does not answer: events are accepted, and applied when it does"
			}
			return api.Ready, ""
		}},
		{Name: "write_keys", Probe: func(context.Context) (api.Readiness, string) {
			if !directory.Usable() {
				return api.NotReady, "the write keys were never read, or so long ago that they may not be used any more"
			}
			return api.Ready, ""
		}},
		{Name: "lag", Probe: func(ctx context.Context) (api.Readiness, string) {
			const bearable = 10 * time.Second // also while lanes change hands
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			asOf, err := people.AsOf(ctx)
			late, alsoErr := people.TimersLate(ctx)
			switch lag := time.Since(asOf); {
			case err != nil || alsoErr != nil:
				return api.Degraded, "nobody knows how far events have been applied: Postgres does not answer"
			case asOf.IsZero():
				return api.Degraded, "some lanes have never been taken: does a process have the role flush?"
			case lag > bearable:
				return api.Degraded, fmt.Sprintf("events are applied %.0f s behind: does a process have the role flush, and keep up?", lag.Seconds())
			case late > bearable:
				return api.Degraded, fmt.Sprintf("memberships that end by themselves do so %.0f s late", late.Seconds())
			default:
				return api.Ready, fmt.Sprintf("events are applied up to %.1f s ago", lag.Seconds())
			}
		}},
	}
}

func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "mubatch_build_info",
		Help:        "1, with the version of this program.",
		ConstLabels: prometheus.Labels{"version": version()},
	}, func() float64 { return 1 })
}

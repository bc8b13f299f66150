package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/collector"
)

// config is everything that serving can be told. Each setting is a flag, and an environment variable of the same name:
// -trim-lag is MUBATCH_TRIM_LAG, or MUBATCH_TRIM_LAG_FILE for a file that holds the value.
type config struct {
	addr        string
	databaseURL string
	redisURL    string
	roles       string

	lanes          int
	prefix         string
	allowDegraded  bool
	maxInFlight    int64
	trustedProxies string
	directoryFile  string

	lease    time.Duration
	trimLag  time.Duration
	maxBatch int
	cached   int
	events   time.Duration
	dedupe   time.Duration
	ledger   time.Duration

	deliveryLease  time.Duration
	encryptionKeys string
	allowPrivate   bool

	importDir string
	importLag time.Duration

	databaseConns int
	logLevel      string
	shutdown      time.Duration
}

// roles that a process can have.
const (
	roleCollect  = "collect"
	roleFlush    = "flush"
	roleDispatch = "dispatch"
	roleAPI      = "api"
)

var allRoles = []string{roleCollect, roleFlush, roleDispatch, roleAPI}

func (c *config) flags(flags *flag.FlagSet) {
	flags.StringVar(&c.addr, "addr", "127.0.0.1:8080", "the `address` to serve on")
	flags.StringVar(&c.databaseURL, "database-url", "", "the `URL` of Postgres; DATABASE_URL if not given")
	flags.StringVar(&c.redisURL, "redis-url", "", "the `URL` of Redis; REDIS_URL if not given")
	flags.StringVar(&c.roles, "roles", strings.Join(allRoles, ","), "what this process does, of `"+strings.Join(allRoles, ",")+"`")

	flags.IntVar(&c.lanes, "lanes", 16, "how many lanes there are; fixed by the first start on a database")
	flags.StringVar(&c.prefix, "redis-prefix", "mb:", "what the keys in Redis begin with")
	flags.BoolVar(&c.allowDegraded, "allow-degraded", false, "accept events although Redis's settings do not promise to keep them")
	flags.Int64Var(&c.maxInFlight, "max-in-flight", 64<<20, "`bytes` of requests in memory, beyond which more are refused")
	flags.StringVar(&c.trustedProxies, "trusted-proxies", "", "`networks` whose X-Forwarded-For is believed, separated by commas")
	flags.StringVar(&c.directoryFile, "write-keys-file", "", "a `file` to keep the write keys in, so that collect can also start while Postgres is down")

	flags.DurationVar(&c.lease, "lease", 6*time.Second, "how long a lane stays with a process that is not heard of")
	flags.DurationVar(&c.trimLag, "trim-lag", time.Minute, "how long applied events are kept in Redis; longer than a standby Postgres may lag")
	flags.IntVar(&c.maxBatch, "max-batch", 2000, "how many stream entries a µbatch may have")
	flags.IntVar(&c.cached, "cached-profiles", 5000, "how many profiles of each lane are kept in memory")
	flags.DurationVar(&c.events, "keep-events", 400*24*time.Hour, "how long events are archived")
	flags.DurationVar(&c.dedupe, "dedupe-window", 7*24*time.Hour, "how long a messageId is sure to be remembered")
	flags.DurationVar(&c.ledger, "keep-ledger", 90*24*time.Hour, "how long attempts to tell destinations are kept")

	flags.DurationVar(&c.deliveryLease, "delivery-lease", 45*time.Second, "how long a delivery stays with a process that is not heard of; twice what one may take")
	flags.StringVar(&c.encryptionKeys, "encryption-keys", "", "`keys` that seal the secrets of partners, webhooks, topics and buckets: id:base64 of 32 bytes, the newest first, separated by commas; required")
	flags.BoolVar(&c.allowPrivate, "allow-private-destinations", false, "send also to addresses in private networks, and without TLS")

	flags.StringVar(&c.importDir, "import-dir", "", "a `folder` from which every workspace may import files; none if not given")
	flags.DurationVar(&c.importLag, "import-lag", 2*time.Second, "how far lanes may be behind before imports wait for them")

	flags.IntVar(&c.databaseConns, "database-connections", 0, "the most connections to Postgres; 0: two a lane and eight")
	flags.StringVar(&c.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.DurationVar(&c.shutdown, "shutdown-timeout", 20*time.Second, "how long requests may take to end after a signal")
}

// fromEnvironment sets what the command line did not.
func fromEnvironment(flags *flag.FlagSet, getenv func(string) string) error {
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var errs []error
	flags.VisitAll(func(f *flag.Flag) {
		if given[f.Name] {
			return
		}
		name := "MUBATCH_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value := getenv(name)
		if file := getenv(name + "_FILE"); value == "" && file != "" {
			b, err := os.ReadFile(file)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s_FILE: %w", name, err))
				return
			}
			value = strings.TrimSpace(string(b))
		}
		if value == "" && (f.Name == "database-url" || f.Name == "redis-url") {
			name = strings.TrimPrefix(name, "MUBATCH_")
			value = getenv(name)
		}
		if value == "" {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			_ = flags.Set(f.Name, f.DefValue) // one mistake is not to be reported as two
		}
	})
	return errors.Join(errs...)
}

// check reports every mistake at once.
func (c *config) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, _, err := net.SplitHostPort(c.addr); err != nil {
		bad("-addr: %w", err)
	}
	if c.databaseURL == "" {
		bad("-database-url is required: set DATABASE_URL")
	} else if _, err := pgxpool.ParseConfig(c.databaseURL); err != nil {
		bad("-database-url: %w", err) // without the password
	}
	if c.redisURL == "" {
		bad("-redis-url is required: set REDIS_URL")
	} else if !isRedisURL(c.redisURL) {
		bad("-redis-url is not of the form redis://, rediss:// or unix://")
	}
	roles := c.roleList()
	if len(roles) == 0 {
		bad("-roles is empty: choose from %s", strings.Join(allRoles, ","))
	}
	for _, role := range roles {
		if !slices.Contains(allRoles, role) {
			bad("-roles: %q is not a role: choose from %s", role, strings.Join(allRoles, ","))
		}
	}
	if c.lanes < 1 || c.lanes > 1<<12 {
		bad("-lanes is %d, must be from 1 to %d", c.lanes, 1<<12)
	}
	if c.prefix == "" || strings.ContainsAny(c.prefix, "{}") {
		bad("-redis-prefix is %q, must be something without braces", c.prefix)
	}
	if c.encryptionKeys != "" {
		if _, err := activation.ParseKeyRing(c.encryptionKeys); err != nil {
			bad("-encryption-keys: %w", err)
		}
	} else {
		bad("-encryption-keys is required: mubatch keys encryption makes one")
	}
	if _, err := c.proxies(); err != nil {
		errs = append(errs, err)
	}
	if _, err := c.level(); err != nil {
		errs = append(errs, err)
	}
	for _, d := range []struct {
		name         string
		value, least time.Duration
	}{
		{"lease", c.lease, 1},
		{"trim-lag", c.trimLag, 1},
		{"keep-events", c.events, 1},
		{"dedupe-window", c.dedupe, 1},
		{"keep-ledger", c.ledger, 1},
		{"delivery-lease", c.deliveryLease, activation.MinLease},
		{"import-lag", c.importLag, 1},
		{"shutdown-timeout", c.shutdown, 1},
	} {
		switch {
		case d.value <= 0:
			bad("-%s is %s, must be positive", d.name, d.value)
		case d.value < d.least:
			bad("-%s is %s, must be at least %s", d.name, d.value, d.least)
		}
	}
	for _, n := range []struct {
		name         string
		value, least int64
	}{
		{"max-in-flight", c.maxInFlight, 1},
		{"max-batch", int64(c.maxBatch), 1},
		{"cached-profiles", int64(c.cached), 1},
		{"database-connections", int64(c.databaseConns), 0},
	} {
		if n.value < n.least || n.value > math.MaxInt32 && n.name != "max-in-flight" {
			bad("-%s is %d, must be at least %d", n.name, n.value, n.least)
		}
	}
	return errors.Join(errs...)
}

// isRedisURL tells whether a client can be made for url. What the parser finds wrong may quote the password.
func isRedisURL(url string) bool {
	rdb, err := collector.OpenRedis(url, 1)
	if err != nil {
		return false
	}
	_ = rdb.Close() // it has not dialled
	return true
}

func (c *config) roleList() []string {
	var roles []string
	for _, role := range strings.Split(c.roles, ",") {
		if role = strings.TrimSpace(role); role != "" {
			roles = append(roles, role)
		}
	}
	return roles
}

func (c *config) has(role string) bool { return slices.Contains(c.roleList(), role) }

func (c *config) proxies() ([]netip.Prefix, error) {
	var list []netip.Prefix
	var errs []error
	for _, s := range strings.Split(c.trustedProxies, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("-trusted-proxies: %q is not a network such as 10.0.0.0/8", s))
			continue
		}
		list = append(list, p)
	}
	return list, errors.Join(errs...)
}

func (c *config) level() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return 0, fmt.Errorf("-log-level: %q is not debug, info, warn or error", c.logLevel)
	}
	return level, nil
}

package collector

import (
	"cmp"
	"net/netip"
	"time"

	"github.com/mubatch/mubatch/activation"
)

// Config tunes the way of an event from HTTP into its lane. A zero field means its default.
type Config struct {
	Prefix string // of the keys in Redis; default "mb:"
	Lanes  int    // fixed at install; default 16

	AllowDegraded    bool          // acknowledge also what Redis's settings do not promise to keep
	AppendTimeout    time.Duration // of one exchange with Redis; default 3 s
	RecheckEvery     time.Duration // how old the last look at Redis's settings may be; default 5 s
	MaxInFlightBytes int64         // of requests being read, and again of messages waiting for their fsync; default 64 MiB

	MaxBodyBytes  int // of a request, after decompression; default 500 KB and 10 %
	MaxEventBytes int // of an event, as received and as kept; default 32 KB and 10 %
	MaxEvents     int // of a batch; default 2,500

	// TrustedProxies may name the client in X-Forwarded-For. Of its addresses the last one that is not theirs counts.
	TrustedProxies []netip.Prefix

	VisitorsPerSecond int // of one source and process whose token or segments are looked up in Postgres; default 500

	DirectoryFile   string        // where the write keys are kept for times without Postgres; default none
	DirectoryMaxAge time.Duration // how long they may be used without Postgres; default 24 h

	Keys *activation.KeyRing // opens the secrets of webhooks; without it such sources cannot be used
}

func (c Config) withDefaults() Config {
	c.Lanes = cmp.Or(c.Lanes, 16)
	c.RecheckEvery = cmp.Or(c.RecheckEvery, 5*time.Second)
	c.MaxInFlightBytes = cmp.Or(c.MaxInFlightBytes, 64<<20)
	c.MaxBodyBytes = cmp.Or(c.MaxBodyBytes, 550<<10)
	c.MaxEventBytes = cmp.Or(c.MaxEventBytes, 36<<10)
	c.MaxEvents = cmp.Or(c.MaxEvents, 2500)
	c.VisitorsPerSecond = cmp.Or(c.VisitorsPerSecond, 500)
	c.DirectoryMaxAge = cmp.Or(c.DirectoryMaxAge, 24*time.Hour)
	return c
}

// Stream returns the part of c that tunes a [Stream].
func (c Config) Stream() StreamConfig {
	return StreamConfig{Prefix: c.Prefix, Lanes: c.Lanes, Timeout: c.AppendTimeout}
}

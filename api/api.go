// Package api answers marketers and operators over HTTP: workspaces, keys, sources, profiles, segments, destinations, and
// what became of events.
//
//	request ──► who asks ──► may they? ──► handler ──► stores of collector, profiles and activation
//	            Bearer key   scope         one file a resource
//
// openapi.yaml is the contract, and a test holds the routes to it. Handlers return errors; one function, toProblem, says
// what a client may know of them.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/files"
	"github.com/mubatch/mubatch/collector/kafka"
	"github.com/mubatch/mubatch/profiles"
)

// Config is what the API cannot live without.
type Config struct {
	Pool         *pgxpool.Pool
	Lanes        int // as many as the installation has
	Destinations *activation.Store
	Identities   Identities
	Replayer     Replayer
	Releaser     Releaser
	Committer    Committer
	ImportKeys   files.Keys      // seals the secrets of buckets
	Tail         *collector.Tail // of the events as they are accepted; nil: nobody can listen to them
	Checks       []Check         // of /readyz
	Metrics      http.Handler    // of /metrics
	Kafka        *kafka.Store    // of the settings of Kafka sources
	Registerer   prometheus.Registerer
	Log          *slog.Logger

	Stopping  <-chan struct{} // closed when the server is about to stop: live feeds end then. nil: it never does
	Heartbeat time.Duration   // of live feeds in which nothing happens: 15 s
}

// Identities tells what partners may be told of people, as *profiles.Store does.
type Identities interface {
	People(ctx context.Context, lane int, workspace int32, ids [][16]byte) (map[[16]byte]activation.Person, error)
	PeopleOf(ctx context.Context, workspace int32, keys [][16]byte) (map[[16]byte]activation.Person, error)
	LatestEvents(ctx context.Context, workspace int32, fn func(activation.Happened) bool) error
}

// API is the management API.
type API struct {
	pool   *pgxpool.Pool
	stores stores
	guard  *guard
	live   *liveFeeds
	tail   *collector.Tail
	log    *slog.Logger
}

// stores are what handlers work with.
type stores struct {
	db           database
	pool         *pgxpool.Pool // for what is to stay when the transaction of the answer is undone
	lanes        int
	workspaces   *profiles.Workspaces
	segments     *profiles.Segments
	computed     *profiles.ComputedTraits
	people       *profiles.Reader
	keys         *KeyStore
	sources      *collector.SourceStore
	mappings     *collector.MappingStore
	destinations *activation.Store
	audit        *AuditLog
	identities   Identities
	replayer     Replayer
	quarantine   *profiles.Quarantine
	releaser     Releaser
	committer    Committer
	imports      *files.Store
	importKeys   files.Keys
	kafka        *kafka.Store
}

// in returns the same stores in db, a pool or a transaction.
func (s stores) in(db database) stores {
	s.db = db
	s.workspaces = profiles.NewWorkspaces(db)
	s.segments = profiles.NewSegments(db, s.lanes)
	s.computed = profiles.NewComputedTraits(db, s.lanes)
	s.people = profiles.NewReader(db, s.lanes)
	s.keys = NewKeyStore(db)
	s.audit = NewAuditLog(db)
	s.sources = collector.NewSourceStore(db)
	s.mappings = collector.NewMappingStore(db)
	s.imports = files.NewStore(db, s.importKeys)
	s.kafka = s.kafka.In(db)
	if s.destinations != nil {
		s.sources = s.sources.WithKeys(s.destinations.KeyRing())
	}
	s.quarantine = profiles.NewQuarantine(db, s.lanes)
	if tx, ok := db.(pgx.Tx); ok {
		s.destinations = s.destinations.In(tx)
	}
	return s
}

// route is an operation of the API, and the scope it needs.
type route struct {
	method, pattern string
	scope           Scope
	handle          handler
	stream          streamer      // instead of handle
	changesNothing  bool          // so that there is nothing in it to be done only once
	patience        time.Duration // how long it may take; zero: as long as any
	maxBody         int           // bytes; zero: as many as any
}

// routes are all the operations there are under /api/v1.
var routes = []route{
	{method: "GET", pattern: "/workspace", scope: Read, handle: getWorkspace},
	{method: "PATCH", pattern: "/workspace", scope: Admin, handle: updateWorkspace},
	{method: "GET", pattern: "/workspaces", scope: Operator, handle: listWorkspaces},
	{method: "POST", pattern: "/workspaces", scope: Operator, handle: createWorkspace},

	{method: "GET", pattern: "/keys", scope: Admin, handle: listKeys},
	{method: "POST", pattern: "/keys", scope: Admin, handle: createKey},
	{method: "DELETE", pattern: "/keys/{key}", scope: Admin, handle: revokeKey},

	{method: "GET", pattern: "/sources", scope: Read, handle: listSources},
	{method: "POST", pattern: "/sources", scope: Write, handle: createSource},
	{method: "GET", pattern: "/sources/{source}", scope: Read, handle: getSource},
	{method: "PATCH", pattern: "/sources/{source}", scope: Write, handle: updateSource},
	{method: "DELETE", pattern: "/sources/{source}", scope: Write, handle: deleteSource},
	{method: "GET", pattern: "/sources/{source}/write_keys", scope: Read, handle: listWriteKeys},
	{method: "POST", pattern: "/sources/{source}/write_keys", scope: Write, handle: createWriteKey},
	{method: "DELETE", pattern: "/sources/{source}/write_keys/{write_key}", scope: Write, handle: revokeWriteKey},
	{method: "GET", pattern: "/sources/{source}/snippet", scope: Read, handle: getSnippet},
	{method: "GET", pattern: "/sources/{source}/loss", scope: Read, handle: getLoss},
	{method: "POST", pattern: "/sources/{source}/webhook_secrets", scope: Write, handle: createWebhookSecret},
	{method: "DELETE", pattern: "/sources/{source}/webhook_secrets/{webhook_secret}", scope: Write, handle: deleteWebhookSecret},

	{method: "GET", pattern: "/mappings", scope: Read, handle: listMappings},
	{method: "POST", pattern: "/mappings", scope: Write, handle: createMapping},
	{method: "GET", pattern: "/mappings/templates", scope: Read, handle: listTemplates},
	{method: "POST", pattern: "/mappings/try", scope: Read, handle: tryMapping, changesNothing: true},
	{method: "GET", pattern: "/mappings/{mapping}", scope: Read, handle: getMapping},
	{method: "PATCH", pattern: "/mappings/{mapping}", scope: Write, handle: updateMapping},
	{method: "DELETE", pattern: "/mappings/{mapping}", scope: Write, handle: deleteMapping},

	{method: "GET", pattern: "/imports", scope: Read, handle: listImports},
	{method: "POST", pattern: "/imports", scope: Write, handle: createImport},
	{method: "GET", pattern: "/imports/{import}", scope: Read, handle: getImport},
	{method: "PUT", pattern: "/imports/{import}/content", scope: Write, handle: uploadImport, patience: uploadPatience, maxBody: files.MaxChunk},
	{method: "GET", pattern: "/imports/{import}/files", scope: Read, handle: listImportFiles},
	{method: "GET", pattern: "/imports/{import}/rejected.csv", scope: Read, stream: exportRejectedCSV},
	{method: "GET", pattern: "/imports/{import}/rejected.ndjson", scope: Read, stream: exportRejectedNDJSON},
	{method: "POST", pattern: "/imports/{import}/pause", scope: Write, handle: pauseImport},
	{method: "POST", pattern: "/imports/{import}/resume", scope: Write, handle: resumeImport},
	{method: "POST", pattern: "/imports/{import}/cancel", scope: Write, handle: cancelImport},

	{method: "GET", pattern: "/sources/{source}/kafka", scope: Read, handle: getKafka},
	{method: "PUT", pattern: "/sources/{source}/kafka", scope: Write, handle: putKafka},
	{method: "GET", pattern: "/sources/{source}/kafka/rejected", scope: Read, handle: listKafkaRejected},
	{method: "GET", pattern: "/sources/{source}/health", scope: Read, handle: getSourceHealth},
	{method: "GET", pattern: "/sources/{source}/quality", scope: Read, handle: getQuality},
	{method: "GET", pattern: "/sources/{source}/schemas", scope: Read, handle: listSchemas},
	{method: "POST", pattern: "/sources/{source}/schemas", scope: Write, handle: createSchema},
	{method: "GET", pattern: "/sources/{source}/schemas/{schema}", scope: Read, handle: getSchema},
	{method: "PUT", pattern: "/sources/{source}/schemas/{schema}", scope: Write, handle: replaceSchema},
	{method: "DELETE", pattern: "/sources/{source}/schemas/{schema}", scope: Write, handle: deleteSchema},
	{method: "GET", pattern: "/sources/{source}/schemas/{schema}/versions", scope: Read, handle: listSchemaVersions},

	{method: "GET", pattern: "/quarantine", scope: Read, handle: listQuarantine},
	{method: "POST", pattern: "/quarantine/replay", scope: Write, handle: replayQuarantine},
	{method: "POST", pattern: "/quarantine/discard", scope: Write, handle: discardQuarantine},
	{method: "GET", pattern: "/quarantine/{quarantined_event}", scope: Read, handle: getQuarantined},
	{method: "DELETE", pattern: "/quarantine/{quarantined_event}", scope: Write, handle: discardQuarantined},

	{method: "GET", pattern: "/profiles", scope: Read, handle: listProfiles},
	{method: "GET", pattern: "/profiles/{profile}", scope: Read, handle: getProfile},
	{method: "GET", pattern: "/profiles/{profile}/events", scope: Read, handle: listProfileEvents},
	{method: "GET", pattern: "/profiles/{profile}/transitions", scope: Read, handle: listProfileTransitions},
	{method: "GET", pattern: "/profiles/{profile}/identities", scope: Read, handle: listIdentities},
	{method: "POST", pattern: "/profiles/{profile}/unmerge", scope: Write, handle: unmergeProfile},
	{method: "POST", pattern: "/profiles/{profile}/remerge", scope: Write, handle: remergeProfile},
	{method: "GET", pattern: "/profiles/{profile}/segments", scope: Read, handle: listProfileSegments},
	{method: "GET", pattern: "/profiles/{profile}/segments/{segment}/explain", scope: Read, handle: explainMembership},

	{method: "GET", pattern: "/segments", scope: Read, handle: listSegments},
	{method: "POST", pattern: "/segments", scope: Write, handle: createSegment},
	{method: "POST", pattern: "/segments/preview", scope: Read, handle: previewSegment, changesNothing: true, patience: countPatience + previewSurplus},
	{method: "GET", pattern: "/segments/{segment}", scope: Read, handle: getSegment},
	{method: "PUT", pattern: "/segments/{segment}", scope: Write, handle: replaceSegment},
	{method: "PATCH", pattern: "/segments/{segment}", scope: Write, handle: updateSegment},
	{method: "DELETE", pattern: "/segments/{segment}", scope: Write, handle: deleteSegment},
	{method: "POST", pattern: "/segments/{segment}/cancel", scope: Write, handle: cancelSegment},
	{method: "GET", pattern: "/segments/{segment}/members", scope: Read, handle: listMembers},
	{method: "GET", pattern: "/segments/{segment}/members.csv", scope: Read, stream: exportCSV},
	{method: "GET", pattern: "/segments/{segment}/members.ndjson", scope: Read, stream: exportNDJSON},
	{method: "GET", pattern: "/segments/{segment}/overlap", scope: Read, handle: getOverlap},
	{method: "GET", pattern: "/segments/{segment}/transitions", scope: Read, handle: listSegmentTransitions},
	{method: "GET", pattern: "/segments/{segment}/transitions/live", scope: Read, stream: followSegment},
	{method: "GET", pattern: "/segments/{segment}/history", scope: Read, handle: getSegmentHistory},

	{method: "GET", pattern: "/computed_traits", scope: Read, handle: listComputed},
	{method: "POST", pattern: "/computed_traits", scope: Write, handle: createComputed},
	{method: "GET", pattern: "/computed_traits/{computed_trait}", scope: Read, handle: getComputed},
	{method: "PATCH", pattern: "/computed_traits/{computed_trait}", scope: Write, handle: updateComputed},
	{method: "DELETE", pattern: "/computed_traits/{computed_trait}", scope: Write, handle: deleteComputed},

	{method: "GET", pattern: "/destinations", scope: Read, handle: listDestinations},
	{method: "POST", pattern: "/destinations", scope: Write, handle: createDestination},
	{method: "GET", pattern: "/destinations/{destination}", scope: Read, handle: getDestination},
	{method: "PATCH", pattern: "/destinations/{destination}", scope: Write, handle: updateDestination},
	{method: "DELETE", pattern: "/destinations/{destination}", scope: Write, handle: deleteDestination},
	{method: "PUT", pattern: "/destinations/{destination}/segments/{segment}", scope: Write, handle: attachSegment},
	{method: "DELETE", pattern: "/destinations/{destination}/segments/{segment}", scope: Write, handle: detachSegment},
	{method: "PUT", pattern: "/destinations/{destination}/segments/{segment}/audience", scope: Write, handle: setAudience},
	{method: "GET", pattern: "/destinations/{destination}/events", scope: Read, handle: listSubscriptions},
	{method: "GET", pattern: "/destinations/{destination}/events/{subscription}", scope: Read, handle: getSubscription},
	{method: "PUT", pattern: "/destinations/{destination}/events/{subscription}", scope: Write, handle: putSubscription},
	{method: "DELETE", pattern: "/destinations/{destination}/events/{subscription}", scope: Write, handle: deleteSubscription},
	{method: "POST", pattern: "/destinations/{destination}/events/{subscription}/dry_run", scope: Write, handle: dryRunSubscription, changesNothing: true},
	{method: "POST", pattern: "/destinations/{destination}/pause", scope: Write, handle: pauseDestination},
	{method: "POST", pattern: "/destinations/{destination}/resume", scope: Write, handle: resumeDestination},
	{method: "POST", pattern: "/destinations/{destination}/test", scope: Write, handle: testDestination, changesNothing: true},
	{method: "POST", pattern: "/destinations/{destination}/rotate_secret", scope: Write, handle: rotateSecret},
	{method: "POST", pattern: "/destinations/{destination}/replay", scope: Write, handle: replayDestination},
	{method: "POST", pattern: "/destinations/{destination}/resync", scope: Write, handle: resyncDestination},
	{method: "POST", pattern: "/destinations/{destination}/dry_run", scope: Write, handle: dryRunDestination, changesNothing: true},
	{method: "GET", pattern: "/destinations/{destination}/failures", scope: Read, handle: listFailures},
	{method: "GET", pattern: "/destinations/{destination}/summary", scope: Read, handle: getDestinationSummary},
	{method: "GET", pattern: "/destinations/{destination}/activations", scope: Read, handle: listActivations},
	{method: "GET", pattern: "/destinations/{destination}/deliveries", scope: Read, handle: listDeliveries},

	{method: "GET", pattern: "/events/live", scope: Read, stream: followEvents},

	{method: "GET", pattern: "/traces/{message_id}", scope: Read, handle: getTrace},

	{method: "GET", pattern: "/failed_events", scope: Read, handle: listFailedEvents},
	{method: "POST", pattern: "/failed_events/replay", scope: Write, handle: replayFailedEvents},
	{method: "GET", pattern: "/failed_events/{failed_event}", scope: Read, handle: getFailedEvent},
	{method: "POST", pattern: "/failed_events/{failed_event}/replay", scope: Write, handle: replayFailedEvent},

	{method: "GET", pattern: "/stats", scope: Read, handle: getStats},

	{method: "GET", pattern: "/privacy/erasures", scope: Admin, handle: listErasures},
	{method: "POST", pattern: "/privacy/erasures", scope: Admin, handle: createErasure},
	{method: "GET", pattern: "/privacy/erasures/{erasure}", scope: Admin, handle: getErasure},
	{method: "GET", pattern: "/privacy/exports", scope: Admin, stream: exportPerson},

	{method: "GET", pattern: "/audit_log", scope: Admin, handle: listAudit},
}

// New returns the handler of everything that openapi.yaml has outside /v1. Each operation under /api/v1 admits only keys
// with its scope; one that names none admits nobody.
func New(cfg Config) chi.Router {
	s := stores{
		pool: cfg.Pool, lanes: cfg.Lanes, destinations: cfg.Destinations, identities: cfg.Identities,
		replayer: cfg.Replayer, releaser: cfg.Releaser, committer: cfg.Committer, importKeys: cfg.ImportKeys, kafka: cfg.Kafka,
	}.in(cfg.Pool)
	a := &API{pool: cfg.Pool, stores: s, guard: newGuard(s.keys), live: newLiveFeeds(s.people, cfg), tail: cfg.Tail, log: cfg.Log}

	r := chi.NewRouter()
	r.Use(identifyRequests, measure(cfg.Registerer), RecoverPanics(cfg.Log), middleware.GetHead)
	r.NotFound(notFound)
	r.MethodNotAllowed(notAllowed)
	for _, rt := range routes {
		r.Method(rt.method, "/api/v1"+rt.pattern, a.serve(rt))
	}
	mountHealth(r, cfg.Checks, cfg.Metrics)
	r.Get("/openapi.yaml", contractYAML)
	r.Get("/openapi.json", contractJSON())
	return r
}

// Health returns the handler of a process that does not serve the API: only what its operators watch.
func Health(checks []Check, metrics http.Handler) chi.Router {
	r := chi.NewRouter()
	r.NotFound(notFound)
	r.MethodNotAllowed(notAllowed)
	mountHealth(r, checks, metrics)
	return r
}

func mountHealth(r chi.Router, checks []Check, metrics http.Handler) {
	ready := readiness(checks)
	r.Get("/livez", live)
	r.Get("/readyz", ready)
	r.Get("/healthz", ready)
	r.Method("GET", "/metrics", metrics)
}

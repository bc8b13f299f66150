package collector

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/profiles"
)

// What a visitor's own page may know of the visitor: GET /v1/me.
//
//	POST /v1/batch?visitor=1 ──► nobody has been heard of under the anonymousId? ──► token, once
//	GET /v1/me, anonymousId, token ──► public segments and computed traits
//
// Anybody may send an event with any anonymousId, and anonymousIds are seen in links, logs and screenshots. So knowing one
// proves nothing, and sending an event with it does not either. What proves something is to be first: a browser makes its
// anonymousId at random, and nobody else can know it before the browser's first event has been sent. The token goes with
// the answer to that event, and never to anybody for an anonymousId that a lane, or this table of claims, has heard of.
//
// The token is a MAC over source and anonymousId under a key that is derived from the workspace's secret for this alone. It
// gives away nothing but what the workspace has marked public, and writes nothing. It holds for as long as the anonymousId:
// who copies it out of a browser is that browser, as with a cookie. It does not prove who sits in front of the browser: what
// is true of a user who signs in under an anonymousId is told to that browser until it changes its anonymousId. And whoever
// makes others use an anonymousId of their own choosing can read on, so no page may take one out of a link, unless it
// comes without a token.

const (
	minVisitorID = 16 // bytes of an anonymousId that has a token: shorter ones can be guessed

	visitorFresh   = time.Second            // for how long what was read is answered again
	visitorMaxAge  = 10                     // seconds that a browser may keep an answer
	visitorPause   = time.Second            // without claims, after one that failed
	claimPatience  = 250 * time.Millisecond // events wait for a claim that long
	readPatience   = time.Second
	visitorReaders = 8 // that read from Postgres at once
)

// visitors gives out the tokens of visitors and answers those who have one.
type visitors struct {
	cfg  Config
	keys *Directory
	log  *slog.Logger

	public  memo[int32, profiles.Public]
	answers memo[visitorQuestion, visitorAnswer]
	known   memo[visitorKey, struct{}] // those whose token nobody gets any more
	reads   singleflight.Group
	readers chan struct{}
	limits  sync.Map // of *visitorLimits by source id
	pause   atomic.Int64

	claims *prometheus.CounterVec
	read   *prometheus.CounterVec
}

// visitorKey is an anonymousId of a workspace.
type visitorKey struct {
	workspace int32
	key       profiles.Key
}

// visitorQuestion is what is asked about a visitor: of the visitor alone, or of the user whose the visitor is, too.
type visitorQuestion struct {
	visitorKey
	users bool
}

type visitorLimits struct{ claims, reads *rate.Limiter }

func newVisitors(cfg Config, keys *Directory, reg prometheus.Registerer, log *slog.Logger) *visitors {
	v := &visitors{
		cfg: cfg, keys: keys, log: log, readers: make(chan struct{}, visitorReaders),
		public:  memo[int32, profiles.Public]{life: visitorFresh, most: 1000},
		answers: memo[visitorQuestion, visitorAnswer]{life: visitorFresh, most: 20_000},
		known:   memo[visitorKey, struct{}]{life: 10 * time.Minute, most: 100_000},
		claims: promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
			Name: "mubatch_collector_visitor_tokens_total",
			Help: "Tokens of visitors that were asked for, by what became of it.",
		}, []string{"result"}),
		read: promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
			Name: "mubatch_collector_visitor_reads_total",
			Help: "Visitors who asked for their segments, by where the answer came from.",
		}, []string{"result"}),
	}
	for _, result := range []string{"granted", "refused", "limited", "unavailable"} {
		v.claims.WithLabelValues(result)
	}
	for _, result := range []string{"cached", "read", "refused", "limited", "unavailable"} {
		v.read.WithLabelValues(result)
	}
	return v
}

func (v *visitors) limitsOf(source int32) *visitorLimits {
	if l, ok := v.limits.Load(source); ok {
		return l.(*visitorLimits)
	}
	most, burst := rate.Limit(v.cfg.VisitorsPerSecond), 2*v.cfg.VisitorsPerSecond
	l, _ := v.limits.LoadOrStore(source, &visitorLimits{claims: rate.NewLimiter(most, burst), reads: rate.NewLimiter(most, burst)})
	return l.(*visitorLimits)
}

// visitorToken returns what proves that somebody was the first to be heard of under an anonymousId of a source.
func (g Grant) visitorToken(anonymousID string) string {
	key, err := hkdf.Key(sha256.New, g.Secret, nil, "mubatch visitor token", sha256.Size)
	if err != nil {
		panic(err) // only for a length out of range
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%d/%d/%s", g.WorkspaceID, g.SourceID, anonymousID)
	return "vt_" + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:24])
}

// visitorToken is how a token is told.
type visitorToken struct {
	AnonymousID string `json:"anonymousId"`
	Token       string `json:"token"`
}

// visitorClaim is a request that asks for the token of its visitor.
type visitorClaim struct {
	of    *visitors
	grant Grant
	token *visitorToken
}

// asked returns the claim of a request with ?visitor=1, or nil.
func (v *visitors) asked(r *http.Request, g Grant) *visitorClaim {
	if r.URL.RawQuery == "" || r.URL.Query().Get("visitor") != "1" {
		return nil
	}
	return &visitorClaim{of: v, grant: g}
}

// granted returns the token, or nil if there is none to be told.
func (c *visitorClaim) granted() *visitorToken {
	if c == nil {
		return nil
	}
	return c.token
}

// claim decides about the visitor of the first event that has an anonymousId. That there is no token is never a reason
// not to take the events in.
func (c *visitorClaim) claim(ctx context.Context, events []Routed) {
	for i := range events {
		e, err := eventOf(&events[i])
		if err != nil || e.AnonymousID == "" {
			continue
		}
		result := c.of.claim(ctx, c.grant, e.AnonymousID, events[i].ID)
		c.of.claims.WithLabelValues(result).Inc()
		if result == "granted" {
			c.token = &visitorToken{e.AnonymousID, c.grant.visitorToken(e.AnonymousID)}
		}
		return
	}
}

// eventOf returns the event in a message, also if it goes to the quarantine.
func eventOf(m *Routed) (*profiles.Event, error) {
	body := m.Body
	if m.Kind == profiles.KindQuarantine {
		q, err := profiles.DecodeQuarantined(body)
		if err != nil {
			return nil, err
		}
		body = q.Body
	}
	return profiles.DecodeEvent(body)
}

func (v *visitors) claim(ctx context.Context, g Grant, anonymousID string, message profiles.Key) string {
	who := visitorKey{g.WorkspaceID, g.Secret.Key(profiles.Identifier{Kind: profiles.AnonymousID, Value: anonymousID})}
	if _, known := v.known.get(who); known || len(anonymousID) < minVisitorID {
		return "refused"
	}
	if time.Now().UnixNano() < v.pause.Load() {
		return "unavailable"
	}
	if !v.limitsOf(g.SourceID).claims.Allow() {
		return "limited"
	}
	// A client that gives up says nothing about Postgres, and must not have the others pause.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimPatience)
	defer cancel()
	public, err := v.publicOf(ctx, g.WorkspaceID)
	if err == nil && public.Empty() {
		return "refused" // nobody will ask
	}
	var first, open bool
	if err == nil {
		first, open, err = v.reader().ClaimVisitor(ctx, g.WorkspaceID, g.SourceID, who.key, message)
	}
	switch {
	case err != nil:
		v.pause.Store(time.Now().Add(visitorPause).UnixNano())
		v.log.WarnContext(ctx, "tokens of visitors are not given out for now", "err", err)
		return "unavailable"
	case !first:
		if !open {
			v.known.put(who, struct{}{})
		}
		return "refused"
	}
	return "granted"
}

func (v *visitors) reader() *profiles.Reader { return profiles.NewReader(v.keys.pool, v.cfg.Lanes) }

// publicOf returns what visitors may be told, as it was a second ago at most.
func (v *visitors) publicOf(ctx context.Context, workspace int32) (profiles.Public, error) {
	if p, ok := v.public.get(workspace); ok {
		return p, nil
	}
	p, err := v.reader().Public(ctx, workspace)
	if err == nil {
		v.public.put(workspace, p)
	}
	return p, err
}

// visitorAnswer is what a visitor is told.
type visitorAnswer struct {
	body []byte
	etag string
}

// me tells visitors of themselves.
func (h *Handler) me(w http.ResponseWriter, r *http.Request) error {
	g, known, err := h.authorize(r, "")
	switch {
	case err != nil:
		return err
	case !known:
		return missingKey()
	}
	query := r.URL.Query()
	id := query.Get("anonymousId")
	if id == "" || !hmac.Equal([]byte(query.Get("token")), []byte(g.visitorToken(id))) {
		h.visitors.read.WithLabelValues("refused").Inc()
		p := problem.New(http.StatusForbidden, "wrong_visitor_token", "The token is not that of the visitor.")
		p.Detail = "Send the anonymousId and the token that came with the answer to the visitor's first event, under a write key of the same source."
		return p
	}
	answer, err := h.visitors.answer(r.Context(), g, id)
	if err != nil {
		return err
	}
	header := w.Header()
	header.Set("Cache-Control", "private, max-age="+strconv.Itoa(visitorMaxAge))
	header.Set("ETag", answer.etag)
	if slices.Contains(strings.Split(strings.ReplaceAll(r.Header.Get("If-None-Match"), " ", ""), ","), answer.etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(answer.body)))
	header.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(answer.body) // the client is gone: nobody is left to tell
	return nil
}

// answer returns what is known of a visitor, as it was a second ago at most.
func (v *visitors) answer(ctx context.Context, g Grant, anonymousID string) (visitorAnswer, error) {
	who := visitorQuestion{
		visitorKey{g.WorkspaceID, g.Secret.Key(profiles.Identifier{Kind: profiles.AnonymousID, Value: anonymousID})}, g.Settings.TellUsers,
	}
	if a, ok := v.answers.get(who); ok {
		v.read.WithLabelValues("cached").Inc()
		return a, nil
	}
	if !v.limitsOf(g.SourceID).reads.Allow() {
		v.read.WithLabelValues("limited").Inc()
		p := problem.New(http.StatusTooManyRequests, "too_many_reads", "Too many visitors ask at once.")
		p.Detail = "Ask again after the time in Retry-After."
		p.RetryAfter = retryAfter()
		return visitorAnswer{}, p
	}
	got, err, _ := v.reads.Do(strconv.Itoa(int(who.workspace))+strconv.FormatBool(who.users)+string(who.key[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readPatience) // others wait for it, too
		defer cancel()
		select {
		case v.readers <- struct{}{}:
			defer func() { <-v.readers }()
		case <-ctx.Done():
			return visitorAnswer{}, ctx.Err()
		}
		a, err := v.readAnswer(ctx, who)
		if err == nil {
			v.answers.put(who, a)
		}
		return a, err
	})
	if err != nil {
		v.read.WithLabelValues("unavailable").Inc()
		v.log.WarnContext(ctx, "a visitor could not be told of", "err", err)
		p := problem.New(http.StatusServiceUnavailable, "unavailable", "This cannot be told at the moment.")
		p.Detail = "Ask again after the time in Retry-After."
		p.RetryAfter = retryAfter()
		return visitorAnswer{}, p
	}
	v.read.WithLabelValues("read").Inc()
	return got.(visitorAnswer), nil
}

func (v *visitors) readAnswer(ctx context.Context, who visitorQuestion) (visitorAnswer, error) {
	public, err := v.publicOf(ctx, who.workspace)
	if err != nil {
		return visitorAnswer{}, err
	}
	person, tell := &profiles.Profile{}, true
	if !public.Empty() {
		person, err = v.reader().ByID(ctx, who.workspace, who.key)
		if errors.Is(err, profiles.ErrNotFound) { // no event has been applied yet
			person, err = &profiles.Profile{}, nil
		}
		if err != nil {
			return visitorAnswer{}, err
		}
		tell = who.users || person.ID == (profiles.Key{}) || alone(person, who.key)
	}
	var told struct {
		Segments []string                  `json:"segments"`
		Traits   map[string]jsontext.Value `json:"traits"`
	}
	told.Segments, told.Traits = []string{}, map[string]jsontext.Value{}
	if tell {
		told.Segments, told.Traits = public.Of(person, time.Now())
	}
	same, err := json.Marshal(told, json.Deterministic(true))
	if err != nil {
		return visitorAnswer{}, fmt.Errorf("marshal visitor: %w", err)
	}
	asOf := []byte("null")
	if !public.AsOf.IsZero() {
		asOf = appendTime(nil, public.AsOf.UTC())
	}
	sum := sha256.Sum256(same)
	return visitorAnswer{
		body: slices.Concat(same[:len(same)-1], []byte(`,"as_of":`), asOf, []byte("}")),
		etag: `W/"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`, // weak: as_of goes on
	}, nil
}

// alone tells whether nothing is in a profile but what was seen under one key.
func alone(p *profiles.Profile, key profiles.Key) bool {
	return p.ID == key && !slices.ContainsFunc(p.Fragments, func(f profiles.Fragment) bool { return f.Key != key })
}

// memo keeps values for as long as they are fresh, the newest of them: between most and twice as many. It may be used at
// once.
type memo[K comparable, V any] struct {
	life time.Duration
	most int

	mu      sync.Mutex
	newer   map[K]kept[V]
	older   map[K]kept[V]
	turnsAt time.Time // when the older ones are let go of
}

type kept[V any] struct {
	value V
	until time.Time
}

func (m *memo[K, V]) get(k K) (v V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	got, ok := m.newer[k]
	if !ok {
		got, ok = m.older[k]
	}
	if !ok || !time.Now().Before(got.until) {
		return v, false
	}
	return got.value, true
}

func (m *memo[K, V]) put(k K, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if m.newer == nil || len(m.newer) >= m.most || !now.Before(m.turnsAt) {
		m.older, m.newer, m.turnsAt = m.newer, map[K]kept[V]{}, now.Add(m.life)
	}
	m.newer[k] = kept[V]{v, now.Add(m.life)}
}

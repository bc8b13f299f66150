package collector

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/mubatch/mubatch/api/problem"
)

// segmentSettings is what Segment's libraries ask for when they load: where to send, and that there is nobody else to
// send to.
type segmentSettings struct {
	Integrations struct {
		Segment segmentIntegration `json:"Segment.io"`
	} `json:"integrations"`
	Plan struct {
		Track    segmentPlan `json:"track"`
		Identify segmentPlan `json:"identify"`
		Group    segmentPlan `json:"group"`
	} `json:"plan"`
	Metrics struct {
		SampleRate int `json:"sampleRate"`
	} `json:"metrics"`
	MiddlewareSettings        struct{} `json:"middlewareSettings"`
	EnabledMiddleware         struct{} `json:"enabledMiddleware"`
	RemotePlugins             []string `json:"remotePlugins"`
	AnalyticsNextEnabled      bool     `json:"analyticsNextEnabled"`
	LegacyVideoPluginsEnabled bool     `json:"legacyVideoPluginsEnabled"`
}

type segmentIntegration struct {
	APIKey                string   `json:"apiKey"`
	APIHost               string   `json:"apiHost"`
	Protocol              string   `json:"protocol"`
	UnbundledIntegrations []string `json:"unbundledIntegrations"`
	AddBundledMetadata    bool     `json:"addBundledMetadata"`
	MaybeBundledConfigIDs struct{} `json:"maybeBundledConfigIds"`
	VersionSettings       struct {
		ComponentTypes []string `json:"componentTypes"`
	} `json:"versionSettings"`
}

type segmentPlan struct {
	Default struct {
		Enabled bool `json:"enabled"`
	} `json:"__default"`
}

// settings answers Segment's libraries when they load. They load once and do not ask again, so while nobody can tell
// whether the key is known, they get their settings: their events are looked at when they come.
func (h *Handler) settings(w http.ResponseWriter, r *http.Request) error {
	key := chi.URLParam(r, "write_key")
	g, err := h.keys.Lookup(r.Context(), key)
	switch {
	case errors.Is(err, ErrUnknownKey) || err != nil && !wellFormed(key):
		p := problem.New(http.StatusNotFound, "unknown_write_key", "The write key is not valid.")
		p.Detail = "No source takes events under this key, so nothing is tracked. Look the key up among those of your source."
		return p
	case errors.Is(err, ErrOnlyWebhooks):
		return err
	case err == nil:
		if err := g.mustSpeak(DialectSegment); err != nil {
			return err
		}
	}
	var s segmentSettings
	s.Integrations.Segment = segmentIntegration{
		APIKey: key, APIHost: r.Host + "/v1", Protocol: h.scheme(r), UnbundledIntegrations: []string{}, AddBundledMetadata: true,
	}
	s.Integrations.Segment.VersionSettings.ComponentTypes = []string{"browser"}
	for _, plan := range []*segmentPlan{&s.Plan.Track, &s.Plan.Identify, &s.Plan.Group} {
		plan.Default.Enabled = true
	}
	s.RemotePlugins, s.AnalyticsNextEnabled = []string{}, true
	answer, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("marshal settings: %w", err)
	}
	w.Header().Set("Cache-Control", "private, max-age=300") // it names the host that was asked
	return writeJSON(w, answer)
}

// scheme returns by which the client reaches us: what the connection or a trusted proxy says, else that of the page that
// asks, because browsers let no page of HTTPS ask by HTTP, unless it is their own machine.
func (h *Handler) scheme(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	if ip, err := netip.ParseAddr(host); err == nil && h.trusted(ip.Unmap().WithZone("")) {
		if proto := r.Header.Get("X-Forwarded-Proto"); proto == "http" || proto == "https" {
			return proto
		}
	}
	if r.TLS != nil {
		return "https"
	}
	for _, page := range []string{r.Header.Get("Origin"), r.Header.Get("Referer")} {
		if u, err := url.Parse(page); err == nil && u.Scheme == "https" && !loopback(r.Host) {
			return "https"
		}
	}
	return "http"
}

// loopback tells whether a host, with or without a port, is the machine that asks.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && ip.IsLoopback()
}

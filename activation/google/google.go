// Package google keeps Customer Match lists of Google Ads and Display & Video 360 equal to segments, through the Data
// Manager API. It tells Google Ads, Floodlight and Google Analytics of events, too: see [Conversions].
//
//	Encode ──► audienceMembers:ingest, :remove ──► a request id
//	                                                  │ half an hour
//	           requestStatus:retrieve ◄───────────────┘          who was refused, how many were recognised
//	Create ──► userLists                                         lists are made, found again and measured
//	           oauth2.googleapis.com/token                       access tokens, of a person or a service account
//
// What Google asks for is said in its guides "Send audience members", "Diagnostics" and "Understand API errors", and in the
// definitions of google.ads.datamanager.v1.
package google

import (
	"net/http"
	"strings"
	"time"

	"github.com/mubatch/mubatch/activation"
)

const (
	timeout     = 20 * time.Second
	concurrency = 4
	pollEvery   = 30 * time.Minute // the guide "Diagnostics" asks for so long before the first time
	pollFor     = 24 * time.Hour
)

var rates = []activation.Rate{{Requests: 300, Per: time.Minute}, {Requests: 100_000, Per: 24 * time.Hour}}

// Partner speaks the Data Manager API. Make one with [New].
type Partner struct {
	client   *http.Client
	outbound activation.Outbound
}

var (
	_ activation.AudiencePartner = (*Partner)(nil)
	_ activation.Refresher       = (*Partner)(nil)
	_ activation.Creator         = (*Partner)(nil)
	_ activation.Poller          = (*Partner)(nil)
	_ activation.Sizer           = (*Partner)(nil)
	_ activation.Validator       = (*Partner)(nil)
	_ activation.Drafter         = (*Partner)(nil)
)

// New returns a partner that sends with client, which must be one of [activation.NewClient] for the same cfg.
func New(client *http.Client, cfg activation.Outbound) *Partner {
	return &Partner{client: client, outbound: cfg}
}

// Type returns "google_customer_match".
func (*Partner) Type() string { return "google_customer_match" }

// Gate is [activation.AdGate]: of people in the European Economic Area Google wants both consents.
func (*Partner) Gate() activation.Gate { return activation.AdGate() }

// Limits are those of Google's "Limits and quotas": requests are counted by Google Cloud project, of which the client id or
// the service account tells.
func (*Partner) Limits(t activation.Target) activation.Limits {
	cfg, sec, _ := read(t.Settings) // what cannot be read is said when something is sent
	return activation.Limits{
		Members: cfg.batch(), Concurrency: concurrency, Timeout: timeout, Linger: activation.DefaultLinger,
		NeedsAudience: true,
		Account:       sec.project(),
		Rates:         rates,
		TTL:           cfg.membership(),
		PollEvery:     pollEvery,
		PollFor:       pollFor,
	}
}

// project names the Google Cloud project whose quota requests count against. A client id begins with its number; the domain
// of a service account's address with its id.
func (s secrets) project() string {
	if key, ok := s.account(); ok {
		_, domain, _ := strings.Cut(key.Email, "@")
		project, _, _ := strings.Cut(domain, ".")
		return project
	}
	project, _, _ := strings.Cut(s.ClientID, "-")
	return project
}

package linkedin_test

import (
	"testing"
	"time"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/linkedin"
	"github.com/mubatch/mubatch/activation/partnertest"
)

var private = activation.Outbound{AllowPrivate: true}

func newPartner(t testing.TB, o partnertest.LinkedInOptions) (activation.Partner, *partnertest.LinkedIn) {
	client := activation.NewClient(private)
	t.Cleanup(client.CloseIdleConnections)
	return linkedin.New(client, private), partnertest.NewLinkedIn(t, o)
}

func TestSuite(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		options  partnertest.LinkedInOptions
		audience string
		brief    bool
	}{
		"as it is":                    {options: partnertest.LinkedInOptions{Config: `"batch":10`, Most: 10}},
		"with SHA-512 and names":      {options: partnertest.LinkedInOptions{SHA512: true, Names: true, RestliID: true, Rotates: true, Lag: 300 * time.Millisecond}, brief: true},
		"with a segment made by hand": {options: partnertest.LinkedInOptions{Segment: "77", Silent: true, Config: `"version":"202512"`}, audience: "77", brief: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			partnertest.Run(t, partnertest.Subject{
				New:      func(t testing.TB) (activation.Partner, partnertest.Fake) { return newPartner(t, tt.options) },
				Audience: tt.audience, Brief: tt.brief,
			})
		})
	}
}

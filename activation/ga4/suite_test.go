package ga4_test

import (
	"testing"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/ga4"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func newGA4(t testing.TB, o partnertest.GA4Options) (*ga4.Partner, *partnertest.GA4) {
	return ga4.New(partnertest.NewClient(t), partnertest.Private), partnertest.NewGA4(t, o)
}

func subject(o partnertest.GA4Options, brief bool) partnertest.EventSubject {
	return partnertest.EventSubject{
		New:   func(t testing.TB) (activation.EventPartner, partnertest.EventFake) { return newGA4(t, o) },
		Brief: brief, Silent: true,
	}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	partnertest.RunEvents(t, subject(partnertest.GA4Options{}, false))
}

func TestSuiteOfVariants(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]partnertest.GA4Options{
		"everything that is optional": {
			UserProperties: map[string]string{"plan": "plan", "home": "country"}, UserAgent: true, MessageIDParameter: "message_id",
		},
		"as little as possible": {NoUserID: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			partnertest.RunEvents(t, subject(o, true))
		})
	}
}

package meta_test

import (
	"testing"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/meta"
	"github.com/mubatch/mubatch/activation/partnertest"
)

var private = activation.Outbound{AllowPrivate: true}

func newMeta(t testing.TB, o partnertest.MetaOptions) (*meta.Partner, *partnertest.Meta) {
	client := activation.NewClient(private)
	t.Cleanup(client.CloseIdleConnections)
	return meta.New(client, private), partnertest.NewMeta(t, o)
}

func subject(o partnertest.MetaOptions, brief bool) partnertest.Subject {
	return partnertest.Subject{
		New:   func(t testing.TB) (activation.Partner, partnertest.Fake) { return newMeta(t, o) },
		Brief: brief,
	}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	partnertest.Run(t, subject(partnertest.MetaOptions{}, false))
}

func TestSuiteOfVariants(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]partnertest.MetaOptions{
		"a token in the header, and everything that is optional": {
			TokenIn: "header", Proof: "plain", ExternID: true, CustomerConsent: true, LimitedDataUse: "us_states",
		},
		"as little as possible": {Proof: "timed", KeysOnly: true, LimitedDataUse: "all", Version: "v26.0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			partnertest.Run(t, subject(o, true))
		})
	}
}

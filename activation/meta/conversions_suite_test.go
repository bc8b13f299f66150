package meta_test

import (
	"testing"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/meta"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func newConversions(t testing.TB, o partnertest.MetaConversionsOptions) (*meta.Conversions, *partnertest.MetaConversions) {
	client := activation.NewClient(private)
	t.Cleanup(client.CloseIdleConnections)
	return meta.NewConversions(client, private), partnertest.NewMetaConversions(t, o)
}

func eventSubject(o partnertest.MetaConversionsOptions, brief bool) partnertest.EventSubject {
	return partnertest.EventSubject{
		New:   func(t testing.TB) (activation.EventPartner, partnertest.EventFake) { return newConversions(t, o) },
		Brief: brief,
	}
}

func TestSuiteOfConversions(t *testing.T) {
	t.Parallel()
	partnertest.RunEvents(t, eventSubject(partnertest.MetaConversionsOptions{}, false))
}

func TestSuiteOfConversionsVariants(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]partnertest.MetaConversionsOptions{
		"a token in the header, test events, and limits for some": {
			TokenIn: "header", Proof: "plain", LimitedDataUse: "us_states", TestEventCode: "TEST123",
		},
		"events of shops, and limits for all": {
			Proof: "timed", KeysOnly: true, LimitedDataUse: "all", Version: "v26.0", ActionSource: "physical_store",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			partnertest.RunEvents(t, eventSubject(o, true))
		})
	}
}

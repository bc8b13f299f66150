package webhook_test

import (
	"testing"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/activation/webhook"
)

var private = activation.Outbound{AllowPrivate: true}

func TestSuite(t *testing.T) {
	t.Parallel()
	partnertest.Run(t, partnertest.Subject{
		New: func(t testing.TB) (activation.Partner, partnertest.Fake) {
			client := activation.NewClient(private)
			t.Cleanup(client.CloseIdleConnections)
			return webhook.New(client, private), partnertest.NewReceiver(t)
		},
	})
}

func TestEventSuite(t *testing.T) {
	t.Parallel()
	partnertest.RunEvents(t, partnertest.EventSubject{
		New: func(t testing.TB) (activation.EventPartner, partnertest.EventFake) {
			client := activation.NewClient(private)
			t.Cleanup(client.CloseIdleConnections)
			return webhook.New(client, private), partnertest.NewReceiver(t)
		},
	})
}

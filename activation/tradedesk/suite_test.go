package tradedesk_test

import (
	"testing"
	"time"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/activation/tradedesk"
)

var private = activation.Outbound{AllowPrivate: true}

func newPartner(t testing.TB) *tradedesk.Partner {
	client := activation.NewClient(private)
	t.Cleanup(client.CloseIdleConnections)
	return tradedesk.New(client, private)
}

// unending is a fake whose access tokens do not end.
type unending struct {
	partnertest.Fake
	partnertest.Forgetter
}

func subject(o partnertest.TradeDeskOptions) partnertest.Subject {
	return partnertest.Subject{
		New: func(t testing.TB) (activation.Partner, partnertest.Fake) {
			fake := partnertest.NewTradeDesk(t, o)
			if o.Auth == "token" || o.Auth == "signature" {
				return newPartner(t), unending{fake, fake}
			}
			return newPartner(t), fake
		},
		Brief: o != partnertest.TradeDeskOptions{},
	}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	partnertest.Run(t, subject(partnertest.TradeDeskOptions{}))
}

func TestSuiteWithSignaturesInEurope(t *testing.T) {
	t.Parallel()
	partnertest.Run(t, subject(partnertest.TradeDeskOptions{
		Auth: "signature", Scheme: "euid", FromZero: true, Terse: true, TTL: 7 * 24 * time.Hour, Rotate: 4 * 24 * time.Hour,
	}))
}

func TestSuiteWithATokenAndSmallMessages(t *testing.T) {
	t.Parallel()
	partnertest.Run(t, subject(partnertest.TradeDeskOptions{Auth: "token", Terse: true, Millis: true, Batch: 500, MaxBody: 4000}))
}

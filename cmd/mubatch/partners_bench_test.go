package main

import (
	"maps"
	"slices"
	"testing"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// BenchmarkPartners measures how many audience operations a second each partner takes, at its fake, in messages as large as
// the partner allows.
func BenchmarkPartners(b *testing.B) {
	large := map[string]func(testing.TB) partnertest.Fake{
		"google_customer_match": func(t testing.TB) partnertest.Fake {
			return partnertest.NewGoogle(t, partnertest.GoogleOptions{Batch: 10_000})
		},
		"meta": func(t testing.TB) partnertest.Fake {
			return partnertest.NewMeta(t, partnertest.MetaOptions{Batch: 10_000})
		},
		"tradedesk": func(t testing.TB) partnertest.Fake {
			return partnertest.NewTradeDesk(t, partnertest.TradeDeskOptions{Batch: 1000, MaxBody: 1 << 20})
		},
	}
	for _, kind := range slices.Sorted(maps.Keys(outlets(b))) {
		b.Run(kind, func(b *testing.B) {
			partnertest.BenchmarkPartner(b, partnertest.Subject{New: func(t testing.TB) (activation.Partner, partnertest.Fake) {
				fake := outlets(t)[kind]
				if as := large[kind]; as != nil {
					fake = as(t)
				}
				all := partners(activation.Outbound{AllowPrivate: true})
				return all[slices.IndexFunc(all, func(p activation.Partner) bool { return p.Type() == kind })], fake
			}}, 5000)
		})
	}
}

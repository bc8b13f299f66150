package main

import (
	"maps"
	"slices"
	"testing"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// BenchmarkPartners measures how many audience operations a second each partner takes, at its fake.
func BenchmarkPartners(b *testing.B) {
	fakes := outlets(b)
	for _, kind := range slices.Sorted(maps.Keys(fakes)) {
		b.Run(kind, func(b *testing.B) {
			partnertest.BenchmarkPartner(b, partnertest.Subject{New: func(t testing.TB) (activation.Partner, partnertest.Fake) {
				all := partners(activation.Outbound{AllowPrivate: true})
				return all[slices.IndexFunc(all, func(p activation.Partner) bool { return p.Type() == kind })], outlets(t)[kind]
			}}, 2000)
		})
	}
}

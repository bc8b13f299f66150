package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/mubatch/mubatch"
	"github.com/mubatch/mubatch/activation"
)

// The contract names the types of destinations that there are, each of them is tried with all others, and nothing is missing.
func TestTheContractKnowsEveryPartner(t *testing.T) {
	t.Parallel()
	var types, audiences []string
	for _, p := range partners(activation.Outbound{}) {
		types = append(types, p.Type())
		if _, ok := p.(activation.AudiencePartner); ok {
			audiences = append(audiences, p.Type())
		}
	}
	if !slices.IsSorted(types) {
		t.Errorf("%v are not sorted", types)
	}
	if enum := "    DestinationType:\n      type: string\n      enum: [" + strings.Join(types, ", ") + "]\n"; !strings.Contains(mubatch.OpenAPI(), enum) {
		t.Errorf("openapi.yaml does not have:\n%s", enum)
	}
	fakes := outlets(t)
	for _, kind := range audiences {
		if fakes[kind] == nil {
			t.Errorf("TestPartnersHoldWhomTheyShould leaves %s out", kind)
		}
	}
	if len(fakes) != len(audiences) {
		t.Errorf("there are %d fakes and %d partners with audiences", len(fakes), len(audiences))
	}
}

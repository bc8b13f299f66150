package activation_test

import (
	"testing"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func newSample(t testing.TB, o partnertest.SampleOptions) (activation.Partner, *partnertest.SampleFake) {
	client := activation.NewClient(activation.Outbound{AllowPrivate: true})
	t.Cleanup(client.CloseIdleConnections)
	return partnertest.NewSample(client), partnertest.NewSampleFake(t, o)
}

func sampleSubject(o partnertest.SampleOptions) partnertest.Subject {
	return partnertest.Subject{New: func(t testing.TB) (activation.Partner, partnertest.Fake) { return newSample(t, o) }}
}

// newSampleBench returns a bench with a destination "sample" at a fake, which hears of the segment vip, and of people who
// have decided nothing too.
func newSampleBench(t testing.TB, o partnertest.SampleOptions) (*partnertest.Bench, *partnertest.SampleFake) {
	t.Helper()
	partner, fake := newSample(t, o)
	b := partnertest.NewBench(t, partner)
	b.Destination(t, "sample", "sample", fake.Settings(), vip)
	return b, fake
}

// The machinery lives through the same as every partner, with one that has all that partners have.
func TestSample(t *testing.T) {
	t.Parallel()
	partnertest.Run(t, sampleSubject(partnertest.SampleOptions{}))
}

// And with one that answers later, forgets, and takes who enters and who leaves in one message.
func TestLateSample(t *testing.T) {
	t.Parallel()
	s := sampleSubject(partnertest.SampleOptions{
		Later: true, SampleConfig: partnertest.SampleConfig{Mixed: true, TTLMinutes: 60 * 24, LingerMS: 50},
	})
	s.Brief = true
	partnertest.Run(t, s)
}

func sampleEvents(o partnertest.SampleOptions) partnertest.EventSubject {
	return partnertest.EventSubject{New: func(t testing.TB) (activation.EventPartner, partnertest.EventFake) {
		client := activation.NewClient(activation.Outbound{AllowPrivate: true})
		t.Cleanup(client.CloseIdleConnections)
		return partnertest.NewSample(client), partnertest.SampleEventsFake{SampleFake: partnertest.NewSampleFake(t, o)}
	}}
}

// The same with events, of which one bad one has all of a message refused.
func TestSampleEvents(t *testing.T) {
	t.Parallel()
	partnertest.RunEvents(t, sampleEvents(partnertest.SampleOptions{
		SampleConfig: partnertest.SampleConfig{Strict: true, MaxAgeMinutes: 60 * 24 * 7, LingerMS: 50},
	}))
}

// And with a partner that answers later, and takes those of one visitor in a message.
func TestLateSampleEvents(t *testing.T) {
	t.Parallel()
	s := sampleEvents(partnertest.SampleOptions{Later: true, SampleConfig: partnertest.SampleConfig{OnePerson: true}})
	s.Brief = true
	partnertest.RunEvents(t, s)
}

package collector_test

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// What files and topics bring is held to the plan of their source, though no write key let it in.
func TestEventsWithoutAKeyAreHeldToThePlan(t *testing.T) {
	t.Parallel()
	s := newServer(t, collector.Config{})
	_, err := collector.NewSourceStore(s.pool).CreateSchema(t.Context(), s.source.WorkspaceID, collector.SourceSchema{
		SourceID: s.source.ID, Type: "track", Event: "Held", Action: "quarantine", Schema: []byte(`{"properties":{"properties":{"required":["plan"]}}}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	directory := collector.NewDirectory(collector.Config{Lanes: 2}, s.pool, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	s.intake.Follow(directory)
	grant := collector.Grant{
		SourceID: s.source.ID, WorkspaceID: s.source.WorkspaceID, Settings: collector.SourceSettings{Unplanned: "quarantine"},
	}
	events := [][]byte{
		[]byte(`{"type":"track","event":"Held","userId":"ada","messageId":"held"}`),
		[]byte(`{"type":"track","event":"Held","userId":"ada","messageId":"planned","properties":{"plan":"pro"}}`),
		[]byte(`{"type":"track","event":"Other","userId":"ada","messageId":"unplanned"}`),
	}
	if _, err := s.intake.Take(t.Context(), grant, time.Now(), events); !errors.Is(err, collector.ErrUnavailable) {
		t.Errorf("while no plan is known: %v, want ErrUnavailable", err)
	}
	run(t, directory.Run)
	for end := time.Now().Add(20 * time.Second); !directory.Usable(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the directory is not read")
		}
	}
	if _, err := s.intake.Take(t.Context(), grant, time.Now(), events); err != nil {
		t.Fatal(err)
	}
	kinds := map[profiles.Key]profiles.MessageKind{}
	for _, m := range s.messages() {
		kinds[m.ID] = m.Kind
	}
	for id, want := range map[string]profiles.MessageKind{
		"held": profiles.KindQuarantine, "planned": profiles.KindEvent, "unplanned": profiles.KindQuarantine,
	} {
		if got := kinds[profiles.MessageKey(id)]; got != want {
			t.Errorf("%s is of kind %d, want %d", id, got, want)
		}
	}
}

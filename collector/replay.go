package collector

import (
	"context"

	"github.com/mubatch/mubatch/profiles"
)

// Replayer puts failed events back into their lanes.
type Replayer struct {
	store     *profiles.Store
	committer *Committer
}

// NewReplayer returns a replayer of store's failed events.
func NewReplayer(store *profiles.Store, committer *Committer) *Replayer {
	return &Replayer{store: store, committer: committer}
}

// Replay has failed events tried again in the lanes they came from, under the messageIds they had, and notes that they were
// replayed. It returns how many: those that are not the workspace's, or are gone, are left out. Replaying one twice does it
// once; if it fails again it is another failed event.
func (r *Replayer) Replay(ctx context.Context, workspace int32, ids []profiles.FailedID) (int, error) {
	messages, err := r.store.Replays(ctx, workspace, ids)
	if err != nil || len(messages) == 0 {
		return 0, err
	}
	var routed []Routed
	var replayed []profiles.FailedID
	for _, id := range ids {
		if m, ok := messages[id]; ok {
			routed = append(routed, Routed{Lane: int(id.Lane), Message: m})
			replayed = append(replayed, id)
		}
	}
	if err := r.committer.Commit(ctx, routed); err != nil {
		return 0, err
	}
	return len(replayed), r.store.Replayed(ctx, workspace, replayed)
}

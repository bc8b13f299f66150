package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"
)

const (
	livePeople   = 75
	livePerEvent = 20 * time.Millisecond
)

// live sends n single events, one every 20 ms whether or not the one before has been answered, and returns when all are
// acknowledged. They are about the demo's own people, 75 of them in turn, who enter and leave a segment of their own: the
// shop's numbers stay as they are. run tells the messageIds of this run from those of others.
func (s *sender) live(ctx context.Context, run string, n int) error {
	g, ctx := errgroup.WithContext(ctx)
	tick := time.NewTicker(livePerEvent)
	defer tick.Stop()
	for i := range n {
		id := fmt.Sprintf("demo-live-%s-%d", run, i)
		body, err := json.Marshal(map[string]any{
			"messageId": id,
			"userId":    fmt.Sprintf("demo-live-%d", i%livePeople),
			"timestamp": time.Now().UTC().Format(timeFormat),
			"traits":    map[string]any{"demo_basket": i/livePeople%2 == 0, "demo": true},
		})
		if err != nil {
			return err
		}
		g.Go(func() error { return s.post(ctx, "/v1/identify", body, []string{id}) })
		select {
		case <-ctx.Done():
			return g.Wait()
		case <-tick.C:
		}
	}
	return g.Wait()
}

package demo

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const destination = "demo-receiver"

// createSegments makes the demo's segments, or makes them what they should be, and waits until their members are known.
func (c *client) createSegments(ctx context.Context, list []segment) error {
	for _, s := range list {
		err := c.do(ctx, http.MethodPost, "/api/v1/segments", s, nil)
		if hasStatus(err, http.StatusConflict) {
			body := struct {
				Name        string `json:"name"`
				Description string `json:"description"`
				Rule        any    `json:"rule"`
			}{s.Name, s.Description, s.Rule}
			err = c.do(ctx, http.MethodPut, "/api/v1/segments/"+s.Key, body, nil)
		}
		if err != nil {
			return fmt.Errorf("create the segment %s: %w", s.Key, err)
		}
	}
	for _, s := range list {
		if err := c.untilLive(ctx, "segment", "/api/v1/segments/"+s.Key); err != nil {
			return err
		}
	}
	return nil
}

// createTraits makes computed traits, and waits until profiles have them.
func (c *client) createTraits(ctx context.Context, list []figure) error {
	for _, f := range list {
		if err := c.do(ctx, http.MethodPost, "/api/v1/computed_traits", f, nil); err != nil {
			return fmt.Errorf("create the computed trait %s: %w", f.Key, err)
		}
	}
	for _, f := range list {
		if err := c.untilLive(ctx, "computed trait", "/api/v1/computed_traits/"+f.Key); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) untilLive(ctx context.Context, what, path string) error {
	return c.until(ctx, func() (string, error) {
		var now struct {
			Status string `json:"status"`
		}
		err := c.do(ctx, http.MethodGet, path, nil, &now)
		if err != nil || now.Status == "live" {
			return "", err
		}
		return fmt.Sprintf("the %s %s is %s", what, path[strings.LastIndexByte(path, '/')+1:], now.Status), nil
	})
}

// createDestination has the receiver told about the segments, as a webhook destination. One that an earlier run
// left behind, whose receiver is gone, is forgotten first; the new one is told of everybody who is in the segments already.
func (c *client) createDestination(ctx context.Context, r *receiver, list []segment) error {
	err := c.do(ctx, http.MethodDelete, "/api/v1/destinations/"+destination, nil, nil)
	if err != nil && !hasStatus(err, http.StatusNotFound) {
		return fmt.Errorf("forget the earlier destination: %w", err)
	}
	keys := make([]string, len(list))
	for i, s := range list {
		keys[i] = s.Key
	}
	err = c.do(ctx, http.MethodPost, "/api/v1/destinations", map[string]any{
		"key": destination, "name": "The demo's receiver", "type": "webhook", "segments": keys,
		"config":  map[string]any{"url": r.url},
		"secrets": map[string]any{"secret": r.secret},
	}, nil)
	if err != nil {
		return fmt.Errorf("create the destination: %w", err)
	}
	return nil
}

// pauseDestination keeps mubatch from sending to a receiver that is about to end. If mubatch itself ends, it fails.
func (c *client) pauseDestination(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	reason := map[string]string{"reason": "the demo has ended"}
	_ = c.do(ctx, http.MethodPost, "/api/v1/destinations/"+destination+"/pause", reason, nil)
}

// until calls check until it has nothing to wait for: "" is what it returns then. It says so when that takes long, and
// gives up when what it waits for has been the same for as long as patience lasts.
func (c *client) until(ctx context.Context, check func() (waitsFor string, err error)) error {
	var last string
	since, said := time.Now(), time.Now()
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		waitsFor, err := check()
		if err != nil || waitsFor == "" {
			return err
		}
		if waitsFor != last {
			last, since = waitsFor, time.Now()
		}
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			c.say("  waiting: %s", waitsFor)
		}
		if time.Since(since) > c.patience {
			return fmt.Errorf("after %s, %s", c.patience, waitsFor)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// untilCounted returns when so many events have been accounted for since a moment, and untilApplied when everything that
// was accepted before a moment is in profiles and segments. The former is true first, but counts the copies of events that
// had to be sent again; the latter is sure, but told of only now and then.
func (c *client) untilCounted(ctx context.Context, since stats, events int64) error {
	return c.until(ctx, func() (string, error) {
		s, err := c.stats(ctx)
		if n := s.Events.since(since.Events).Accepted; err == nil && n < events {
			return fmt.Sprintf("%d of %d events are accounted for", n, events), nil
		}
		return "", err
	})
}

func (c *client) untilApplied(ctx context.Context, moment time.Time) error {
	return c.until(ctx, func() (string, error) {
		s, err := c.stats(ctx)
		if err == nil && (s.AsOf == nil || s.AsOf.Before(moment)) {
			return fmt.Sprintf("%d of %d accepted events are applied, as of %v", s.Events.Applied, s.Events.Accepted, s.AsOf), nil
		}
		return "", err
	})
}

// untilInStep returns when the receiver holds exactly the members of each segment.
func (c *client) untilInStep(ctx context.Context, r *receiver, list []segment) error {
	for _, s := range list {
		err := c.until(ctx, func() (string, error) {
			want, err := c.members(ctx, s.Key)
			if err != nil {
				return "", err
			}
			got := r.holds(s.Key)
			missing, extra := 0, len(got)
			for id := range want {
				if got[id] {
					extra--
				} else {
					missing++
				}
			}
			if missing+extra == 0 {
				return "", nil
			}
			return fmt.Sprintf("the receiver lacks %d of %d members of %s, and has %d who are not", missing, len(want), s.Key, extra), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

package demo

import (
	"context"
	"encoding/base64"
	"fmt"
	"hash/fnv"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// maxBatchBytes bounds a batch: the server takes 500 KB.
const maxBatchBytes = 400 << 10

// sender sends events as batches, as an SDK would: what is not acknowledged is sent again, with the same messageIds.
type sender struct {
	*client
	header  http.Header
	shift   time.Duration
	batch   int
	limit   *rate.Limiter
	acked   *clock
	sent    atomic.Int64 // events acknowledged
	retries atomic.Int64 // batches sent again
}

func newSender(c *client, cfg Config, shift time.Duration, acked *clock) *sender {
	limit := rate.NewLimiter(rate.Inf, cfg.Batch)
	if cfg.Rate > 0 {
		limit = rate.NewLimiter(rate.Limit(cfg.Rate), cfg.Batch)
	}
	basic := base64.StdEncoding.EncodeToString([]byte(cfg.WriteKey + ":"))
	return &sender{
		client: c, header: http.Header{"Authorization": {"Basic " + basic}}, shift: shift, batch: cfg.Batch, limit: limit,
		acked: acked,
	}
}

// all sends events, each person's in their order, and returns when all are acknowledged.
func (s *sender) all(ctx context.Context, events []event, workers int) error {
	shares := make([][]event, workers)
	for _, e := range events {
		h := fnv.New32a()
		h.Write([]byte(e.person))
		w := int(h.Sum32() % uint32(workers))
		shares[w] = append(shares[w], e)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, share := range shares {
		g.Go(func() error { return s.inOrder(ctx, share) })
	}
	return g.Wait()
}

func (s *sender) inOrder(ctx context.Context, events []event) error {
	var batch []byte
	var ids []string
	flush := func() error {
		if len(ids) == 0 {
			return nil
		}
		if err := s.limit.WaitN(ctx, len(ids)); err != nil {
			return err
		}
		err := s.post(ctx, "/v1/batch", append(batch, "]}"...), ids)
		batch, ids = batch[:0], ids[:0]
		return err
	}
	for i := range events {
		text, err := events[i].encode(s.shift)
		if err != nil {
			return err
		}
		if len(ids) == s.batch || len(ids) > 0 && len(batch)+len(text) > maxBatchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		if len(ids) == 0 {
			batch = append(batch, `{"batch":[`...)
		} else {
			batch = append(batch, ',')
		}
		batch = append(batch, text...)
		ids = append(ids, events[i].messageID)
	}
	return flush()
}

// post sends one request with the events of the given ids, until it is acknowledged.
func (s *sender) post(ctx context.Context, path string, body []byte, ids []string) error {
	answer, failed, err := s.client.send(ctx, http.MethodPost, path, s.header, body)
	at := time.Now()
	s.retries.Add(int64(failed))
	if err != nil {
		return err
	}
	var a struct {
		Success bool `json:"success"`
		Results []struct {
			MessageID string `json:"message_id"`
			Status    string `json:"status"`
			Reason    string `json:"reason"`
		} `json:"results"`
	}
	if err := json.Unmarshal(answer, &a); err != nil || !a.Success {
		return fmt.Errorf("POST %s answers 200, but not that it succeeded: %q", path, answer[:min(len(answer), 200)])
	}
	for _, r := range a.Results {
		if r.Status == "rejected" {
			return fmt.Errorf("event %s is rejected: it %s", r.MessageID, r.Reason)
		}
	}
	s.acked.note(ids, at)
	s.sent.Add(int64(len(ids)))
	return nil
}

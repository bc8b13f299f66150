package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
)

// client speaks to mubatch as anybody would: it sends what failed again, for as long as patience lasts.
type client struct {
	http     *http.Client
	url      string
	key      string
	patience time.Duration // without any answer of use
	say      func(format string, args ...any)
}

func newClient(cfg Config, say func(format string, args ...any)) *client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	return &client{
		http:     &http.Client{Transport: transport, Timeout: 30 * time.Second},
		url:      cfg.URL,
		key:      cfg.SecretKey,
		patience: cfg.Patience,
		say:      say,
	}
}

// statusError is an answer that sending again will not change.
type statusError struct {
	status int
	method string
	path   string
	body   string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s %s answers %d: %s", e.method, e.path, e.status, e.body)
}

func hasStatus(err error, status int) bool {
	var e *statusError
	return errors.As(err, &e) && e.status == status
}

// do makes a request of the management API, with in as its body unless it is nil, and reads the answer into out unless
// that is nil. What is to be sent again is sent under the same Idempotency-Key.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	header := http.Header{"Authorization": {"Bearer " + c.key}}
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	if method == http.MethodPost {
		header.Set("Idempotency-Key", fmt.Sprintf("demo-%x", rand.Uint64()))
	}
	answer, _, err := c.send(ctx, method, path, header, body)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// send returns the body of a 2xx answer, and how many attempts had no such answer. It tries again after what heals by
// itself: no connection, 429, 500, 502, 503 and 504.
func (c *client) send(ctx context.Context, method, path string, header http.Header, body []byte) (answer []byte, failed int, err error) {
	until := time.Now().Add(c.patience)
	for wait := 50 * time.Millisecond; ; failed++ {
		answer, asked, err := c.once(ctx, method, path, header, body)
		if err == nil || ctx.Err() != nil {
			return answer, failed, err
		}
		var status *statusError
		if errors.As(err, &status) && !heals(status.status) {
			return nil, failed, err
		}
		pause := max(asked, time.Duration(float64(wait)*(0.5+rand.Float64())))
		if time.Now().Add(pause).After(until) {
			return nil, failed, fmt.Errorf("gave up after %d attempts: %w", failed+1, err)
		}
		select {
		case <-ctx.Done():
			return nil, failed, context.Cause(ctx)
		case <-time.After(pause):
		}
		wait = min(2*wait, 2*time.Second)
	}
}

func heals(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// once makes one attempt. asked is how long the server wants us to wait before the next.
func (c *client) once(ctx context.Context, method, path string, header http.Header, body []byte) (answer []byte, asked time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header = header.Clone()
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer res.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		return nil, 0, fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	if res.StatusCode >= 300 {
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
		excerpt := string(answer[:min(len(answer), 500)])
		return nil, time.Duration(seconds) * time.Second, &statusError{res.StatusCode, method, path, excerpt}
	}
	return answer, 0, nil
}

// each calls fn with every element of a list, page by page.
func each[T any](ctx context.Context, c *client, path string, fn func(T) error) error {
	for cursor := ""; ; {
		var page struct {
			Data       []T     `json:"data"`
			NextCursor *string `json:"next_cursor"`
			HasMore    bool    `json:"has_more"`
		}
		if err := c.do(ctx, http.MethodGet, path+"?limit=1000"+cursor, nil, &page); err != nil {
			return err
		}
		for _, one := range page.Data {
			if err := fn(one); err != nil {
				return err
			}
		}
		if !page.HasMore || page.NextCursor == nil {
			return nil
		}
		cursor = "&cursor=" + url.QueryEscape(*page.NextCursor)
	}
}

// What the demo reads of the API's answers.
type (
	identifier struct {
		Kind  string `json:"kind"`
		Value string `json:"value"`
	}
	member struct {
		ProfileID   string       `json:"profile_id"`
		Identifiers []identifier `json:"identifiers"`
	}
	Counts struct {
		Accepted   int64 `json:"accepted"`
		Applied    int64 `json:"applied"`
		Duplicate  int64 `json:"duplicate"`
		Failed     int64 `json:"failed"`
		Suppressed int64 `json:"suppressed"`
		AddsUp     bool  `json:"adds_up"`
	}
	stats struct {
		Events   Counts     `json:"events"`
		Profiles int64      `json:"profiles"`
		AsOf     *time.Time `json:"as_of"`
	}
	trace struct {
		Status string `json:"status"`
		Events []struct {
			EventAt    time.Time `json:"event_at"`
			ReceivedAt time.Time `json:"received_at"`
		} `json:"events"`
	}
)

func (c *client) stats(ctx context.Context) (s stats, err error) {
	return s, c.do(ctx, http.MethodGet, "/api/v1/stats", nil, &s)
}

// members returns who is in a segment, by profile id, and an identifier of each.
func (c *client) members(ctx context.Context, segment string) (map[string]string, error) {
	all := map[string]string{}
	err := each(ctx, c, "/api/v1/segments/"+segment+"/members", func(m member) error {
		all[m.ProfileID] = ""
		for _, id := range m.Identifiers {
			all[m.ProfileID] = id.Kind + ":" + id.Value
			if id.Kind == "user_id" {
				break
			}
		}
		return nil
	})
	return all, err
}

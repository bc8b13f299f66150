package demo

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
)

// receiver is the endpoint of the demo's destination: it checks signatures as Standard Webhooks wants, and keeps for each
// segment whom it was told to have.
type receiver struct {
	url    string
	secret string // whsec_…
	key    []byte
	server *http.Server

	arrived *clock           // when it was told of each message
	said    func(d delivery) // called for each person it is told of, one at a time

	mu     sync.Mutex
	seen   map[string]bool // webhook-ids
	held   map[place]state
	counts Received
}

type place struct{ segment, profile string } // by key, by id

type state struct {
	version int64
	in      bool
}

// delivery is one person's entering or leaving, as the receiver is told.
type delivery struct {
	Segment     string       `json:"-"`
	Entered     bool         `json:"-"`
	ProfileID   string       `json:"profile_id"`
	Identifiers []identifier `json:"identifiers"`
	Version     int64        `json:"version"`
	Cause       string       `json:"cause"`
	MessageID   string       `json:"message_id"`
}

// listen starts a receiver on this machine. It serves until ctx ends.
func listen(ctx context.Context, arrived *clock, said func(delivery)) (*receiver, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the receiver: %w", err)
	}
	key := make([]byte, 32)
	rand.Read(key)
	r := &receiver{
		url: "http://" + listener.Addr().String() + "/hooks/audience", secret: "whsec_" + base64.StdEncoding.EncodeToString(key),
		key: key, arrived: arrived, said: said, seen: map[string]bool{}, held: map[place]state{},
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 5 * time.Second}
	go r.server.Serve(listener)
	context.AfterFunc(ctx, func() { r.server.Close() })
	return r, nil
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	at := time.Now()
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	id := req.Header.Get("webhook-id")
	if err := r.verify(id, req.Header, body, at); err != nil {
		r.mu.Lock()
		r.counts.Refused++
		r.mu.Unlock()
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	var hook struct {
		Type string `json:"type"`
		Data struct {
			Segment struct {
				Key string `json:"key"`
			} `json:"segment"`
			Entered []delivery `json:"entered"`
			Left    []delivery `json:"left"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &hook); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
	if hook.Type != "segment.membership_changed" {
		return
	}
	r.take(id, at, hook.Data.Segment.Key, hook.Data.Entered, hook.Data.Left)
}

// verify tells whether we and nobody else are meant, and that it was said just now.
func (r *receiver) verify(id string, header http.Header, body []byte, now time.Time) error {
	seconds, err := strconv.ParseInt(header.Get("webhook-timestamp"), 10, 64)
	if err != nil || id == "" {
		return errors.New("webhook-id and webhook-timestamp are required")
	}
	if now.Sub(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		return errors.New("webhook-timestamp is too far from now")
	}
	mac := hmac.New(sha256.New, r.key)
	fmt.Fprintf(mac, "%s.%d.%s", id, seconds, body)
	want := mac.Sum(nil)
	for one := range strings.FieldsSeq(header.Get("webhook-signature")) {
		version, signature, _ := strings.Cut(one, ",")
		got, err := base64.StdEncoding.DecodeString(signature)
		if version == "v1" && err == nil && hmac.Equal(got, want) {
			return nil
		}
	}
	return errors.New("webhook-signature is not ours")
}

// take notes what a webhook says, unless it was said before. Of two that speak of the same person in the same segment the
// one with the greater version counts.
func (r *receiver) take(id string, at time.Time, segment string, entered, left []delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.Requests++
	if r.seen[id] {
		return
	}
	r.seen[id] = true
	var ids []string
	note := func(list []delivery, in bool) {
		for _, d := range list {
			d.Segment, d.Entered = segment, in
			r.counts.People++
			if d.MessageID != "" {
				ids = append(ids, d.MessageID)
			}
			if at := (place{segment, d.ProfileID}); d.Version > r.held[at].version {
				r.held[at] = state{d.Version, in}
			}
			r.said(d)
		}
	}
	note(entered, true)
	note(left, false)
	r.arrived.note(ids, at)
}

// holds returns whom the receiver has in a segment, by profile id.
func (r *receiver) holds(segment string) map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]bool{}
	for at, s := range r.held {
		if at.segment == segment && s.in {
			all[at.profile] = true
		}
	}
	return all
}

// Received is what a receiver has seen.
type Received struct {
	Requests int // with a signature that is right
	People   int // entering or leaving, those of repeated requests not counted again
	Refused  int
}

func (r *receiver) received() Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

type liveEventJSON struct {
	MessageID   string         `json:"message_id"`
	Type        string         `json:"type"`
	Name        string         `json:"name"`
	SourceID    string         `json:"source_id"`
	UserID      string         `json:"user_id"`
	AnonymousID string         `json:"anonymous_id"`
	EventAt     timestamp      `json:"event_at"`
	ReceivedAt  timestamp      `json:"received_at"`
	Payload     jsontext.Value `json:"payload"`
}

// eventFilter says which events a feed shows: those for which all holds that it asks for.
type eventFilter struct {
	source      int32
	kind        string
	name        string
	userID      string
	anonymousID string
	people      []profiles.Key // identities of one profile, or nil
	text        []byte         // in lower case
	secret      profiles.Secret
}

// eventFilter reads the filter of a call.
func (c *call) eventFilter() (f eventFilter, err error) {
	q, err := c.query("source", "type", "event", "user_id", "anonymous_id", "profile", "q")
	if err != nil {
		return f, err
	}
	for name := range q {
		if q.Get(name) == "" {
			return f, badParameter(name, "must not be empty")
		}
	}
	f.kind, f.name, f.userID, f.anonymousID = q.Get("type"), q.Get("event"), q.Get("user_id"), q.Get("anonymous_id")
	f.text, f.secret = bytes.ToLower([]byte(q.Get("q"))), c.id.workspace
	switch {
	case f.kind != "" && !slices.Contains([]string{"track", "identify", "page", "screen", "group", "alias"}, f.kind):
		return f, badParameter("type", "must be track, identify, page, screen, group or alias")
	case len(f.text) > 200:
		return f, badParameter("q", "must be 200 bytes at most")
	}
	if q.Has("source") {
		s, err := c.source(q.Get("source"))
		if missing(err) {
			return f, badParameter("source", "must be the key or the id of a source")
		} else if err != nil {
			return f, err
		}
		f.source = s.ID
	}
	if q.Has("profile") {
		p, err := c.profileRef(q.Get("profile"))
		if missing(err) {
			return f, badParameter("profile", "must be the id of a profile or an identifier that is known")
		} else if err != nil {
			return f, err
		}
		f.people = []profiles.Key{p.ID}
		for _, fragment := range p.Fragments {
			f.people = append(f.people, fragment.Key)
		}
	}
	return f, nil
}

// shows tells whether e is one of those asked for.
func (f *eventFilter) shows(e *collector.TailedEvent, said *profiles.Event) bool {
	switch {
	case f.source != 0 && e.Source != f.source,
		f.kind != "" && said.Type != f.kind,
		f.name != "" && said.Name() != f.name,
		f.userID != "" && said.UserID != f.userID,
		f.anonymousID != "" && said.AnonymousID != f.anonymousID,
		f.people != nil && !f.about(e, said),
		len(f.text) > 0 && !bytes.Contains(bytes.ToLower(e.Body), f.text):
		return false
	}
	return true
}

func (f *eventFilter) about(e *collector.TailedEvent, said *profiles.Event) bool {
	visitor := profiles.Identifier{Kind: profiles.AnonymousID, Value: said.AnonymousID}
	return slices.Contains(f.people, e.Key) || said.AnonymousID != "" && slices.Contains(f.people, f.secret.Key(visitor))
}

// followEvents sends events as they are accepted, as server-sent events.
func followEvents(a *API, c *call, w *streamWriter) error {
	filter, err := c.eventFilter()
	if err != nil {
		return err
	}
	var from collector.Position
	if last := c.Header.Get("Last-Event-ID"); last != "" {
		if from, err = collector.ParsePosition(last, c.lanes); err != nil {
			return badParameter("Last-Event-ID", err.Error())
		}
	}
	leave, err := a.live.join(c.workspace())
	if err != nil {
		return err
	}
	defer leave()
	if a.tail == nil {
		return fmt.Errorf("follow events: %w", collector.ErrUnavailable)
	}
	listener, err := a.tail.Listen(c.Context(), c.workspace(), from)
	if err != nil {
		return fmt.Errorf("follow events: %w", err)
	}
	defer listener.Close()

	w.head(eventStream)
	w.Header().Set("X-Accel-Buffering", "no")
	if c.Method == http.MethodHead {
		return nil
	}
	f := &eventFeed{call: c, live: a.live, guard: a.guard, w: w, filter: filter, listener: listener}
	if err := f.send([]byte("event: ready\ndata: {}\n\n")); err != nil {
		return err
	}
	return f.run()
}

// eventFeed is somebody who follows events.
type eventFeed struct {
	*call
	live     *liveFeeds
	guard    *guard
	w        *streamWriter
	filter   eventFilter
	listener *collector.Listener
	at       collector.Position
	told     bool // that it is at at
	sent     time.Time
}

// run sends until the client is gone or there is a reason to end.
func (f *eventFeed) run() error {
	ctx, cancel := context.WithCancelCause(f.Context())
	defer cancel(nil)
	go func() {
		select {
		case <-f.live.stopping:
			cancel(errStopping)
		case <-ctx.Done():
		}
	}()
	checked := time.Now()
	for {
		wait, stop := context.WithTimeoutCause(ctx, lookAtLeastEvery, errNothing)
		batch, more, err := f.listener.Next(wait)
		stop()
		switch {
		case errors.Is(err, errStopping), err == nil && !more:
			return f.end(endedStopping)
		case err != nil && !errors.Is(err, errNothing):
			return fmt.Errorf("%w: %w", errGone, err)
		case err == nil:
			if err := f.show(batch); err != nil {
				return err
			}
		}
		if time.Since(checked) >= lookAtLeastEvery {
			switch may, err := f.guard.stillMay(ctx, f.Request, Read); {
			case err != nil: // nobody knows: ask again
			case !may:
				return f.end(endedUnauthorized)
			default:
				checked = time.Now()
			}
		}
		if time.Since(f.sent) >= f.live.heartbeat || !f.told && time.Since(f.sent) >= lookAtLeastEvery {
			if err := f.send(f.appendPosition([]byte(":\n"))); err != nil {
				return err
			}
		}
	}
}

var (
	errStopping = errors.New("the server is about to stop")
	errNothing  = errors.New("nothing happens")
)

// show sends what of a batch the client asked for. Only the last has an id, so that who is cut off before it is shown all of
// them again.
func (f *eventFeed) show(batch collector.Tailed) error {
	var b []byte
	if batch.Gap || batch.Missed > 0 {
		missed := struct {
			Events *int `json:"events"`
		}{&batch.Missed}
		if batch.Gap {
			missed.Events = nil
		}
		text, err := json.Marshal(missed)
		if err != nil {
			return err
		}
		b = fmt.Appendf(b, "event: missed\ndata: %s\n\n", text)
	}
	for _, e := range batch.Events {
		said, err := e.Event()
		if err != nil || !f.filter.shows(e, said) { // what cannot be read will be kept as failed
			continue
		}
		text, err := json.Marshal(liveEventJSON{
			MessageID: said.MessageID, Type: said.Type, Name: said.Name(), SourceID: formatID(sourceID, e.Source),
			UserID: said.UserID, AnonymousID: said.AnonymousID, EventAt: timestamp(said.Timestamp), ReceivedAt: timestamp(e.Received),
			Payload: jsontext.Value(e.Body),
		}) // in one line
		if err != nil {
			return err
		}
		b = fmt.Appendf(b, "event: event\ndata: %s\n\n", text)
	}
	f.at, f.told = batch.Behind, false
	if len(b) == 0 {
		return nil
	}
	return f.send(f.appendPosition(b))
}

// appendPosition appends how far the feed is. A client keeps the id, and takes it for no event.
func (f *eventFeed) appendPosition(b []byte) []byte {
	if f.at == nil {
		return append(b, '\n')
	}
	f.told = true
	return fmt.Appendf(b, "id: %s\n\n", f.at)
}

func (f *eventFeed) end(reason string) error {
	return f.send(fmt.Appendf(nil, "event: end\ndata: {\"reason\":%q}\n\n", reason))
}

func (f *eventFeed) send(b []byte) error {
	f.sent = time.Now()
	return f.w.send(b)
}

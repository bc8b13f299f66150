package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Config says against what the demo runs, and how.
type Config struct {
	URL       string // of mubatch, such as http://127.0.0.1:8080
	WriteKey  string
	SecretKey string // with the scopes read and write

	File     string        // the sales, CSV, packed or not; the sample if empty
	Rate     int           // events a second, at most; 0 is as fast as they are taken
	Workers  int           // that send at once; 4 if 0
	Batch    int           // events in one request, at most; 100 if 0
	Live     int           // single events after the replay, to measure the latency; 300 if 0, none if negative
	Check    string        // a database URL: compare the end with what SQL over the sales says, in temporary tables there
	Keep     bool          // keep the receiver, and print what arrives, until ctx ends
	Out      io.Writer     // what the user sees
	Patience time.Duration // with a server that does not answer, or does not get on; 2 minutes if 0
}

// Result is what a run ended with.
type Result struct {
	Shift    time.Duration // how much later than in the sales everything happened
	Sent     int64         // events acknowledged
	Replayed int64         // those of them that the sales are
	Retries  int64         // requests that had to be sent again
	Took     time.Duration // for all but the live events to be acknowledged
	Applied  time.Duration // and to be in profiles and segments
	Counts   Counts        // what the server counted meanwhile
	Profiles int64
	Members  map[string]int // by segment
	Received Received
	Replay   Latencies
	Live     Latencies
}

// Run replays the shop's sales, waits until all has been applied and told, and writes what came of it. It may be
// interrupted and repeated: what has been sent before does not count again, as long as the server remembers messageIds.
func Run(ctx context.Context, cfg Config) (Result, error) {
	d := newDemo(cfg)
	defer d.http.CloseIdleConnections()
	ending, cancel := context.WithCancel(ctx)
	defer cancel()
	err := d.run(ending)
	if err == nil && d.cfg.Keep {
		d.keeping.Store(true)
		<-ctx.Done()
	}
	d.screen.finish()
	if d.receiver != nil {
		d.pauseDestination(ctx)
	}
	return d.result, err
}

type demo struct {
	cfg Config
	*client
	screen         *screen
	acked, arrived *clock
	receiver       *receiver
	result         Result

	first   string // the earliest event's messageId
	greeted atomic.Int64
	keeping atomic.Bool
}

func newDemo(cfg Config) *demo {
	cfg.Workers = cmp.Or(cfg.Workers, 4)
	cfg.Batch = cmp.Or(cfg.Batch, 100)
	cfg.Live = cmp.Or(cfg.Live, 4*livePeople)
	cfg.Patience = cmp.Or(cfg.Patience, 2*time.Minute)
	s := newScreen(cfg.Out)
	return &demo{cfg: cfg, client: newClient(cfg, s.say), screen: s, acked: newClock(), arrived: newClock()}
}

func (d *demo) run(ctx context.Context) error {
	events, err := d.read()
	if err != nil {
		return err
	}
	before, err := d.stats(ctx)
	if err != nil {
		return err
	}
	if d.result.Shift, err = d.shift(ctx, events); err != nil {
		return err
	}

	all := append(slices.Clone(segments), liveSegment)
	if err := d.createSegments(ctx, all); err != nil {
		return err
	}
	if d.receiver, err = listen(ctx, d.arrived, d.tell); err != nil {
		return err
	}
	if err := d.createDestination(ctx, d.receiver, all); err != nil {
		return err
	}
	d.say("  %d segments are told to a webhook destination, which this program receives on %s", len(all), d.receiver.url)

	s := newSender(d.client, d.cfg, d.result.Shift, d.acked)
	if err := d.replay(ctx, s, events, before); err != nil {
		return err
	}
	if err := d.untilInStep(ctx, d.receiver, all); err != nil {
		return err
	}
	d.result.Replay = between(d.acked, d.arrived)

	if d.cfg.Live > 0 {
		d.say("  … and %d single events, 50 a second, to see how long one takes", d.cfg.Live)
		acked, arrived := newClock(), d.arrived
		live := newSender(d.client, d.cfg, 0, acked)
		if err := live.live(ctx, strconv.FormatInt(time.Now().UnixMilli(), 36), d.cfg.Live); err != nil {
			return fmt.Errorf("send single events: %w", err)
		}
		if err := d.untilApplied(ctx, acked.latest()); err != nil {
			return err
		}
		if err := d.untilInStep(ctx, d.receiver, all); err != nil {
			return err
		}
		d.result.Live = between(acked, arrived)
		d.result.Sent += live.sent.Load()
		d.result.Retries += live.retries.Load()
	}

	after, err := d.stats(ctx)
	if err != nil {
		return err
	}
	d.result.Counts = after.Events.since(before.Events)
	d.result.Profiles = after.Profiles
	d.result.Received = d.receiver.received()
	d.result.Members = map[string]int{}
	for _, s := range all {
		members, err := d.members(ctx, s.Key)
		if err != nil {
			return err
		}
		d.result.Members[s.Key] = len(members)
	}
	d.table()
	if d.cfg.Check != "" {
		if err := d.check(ctx); err != nil {
			return err
		}
	}
	return d.suggest(ctx)
}

// read returns the events of the file.
func (d *demo) read() ([]event, error) {
	file, err := Open(d.cfg.File)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	invoices, err := readInvoices(file)
	if err != nil {
		return nil, err
	}
	customers := map[string]bool{}
	for _, in := range invoices {
		if in.customer != "" {
			customers[in.customer] = true
		}
	}
	what := "a sample of what a UK gift shop sold in 2010 and 2011"
	if d.cfg.File != "" {
		what = d.cfg.File
	}
	d.say("demo: %s: %s invoices, %s customers (Online Retail, Daqing Chen, UCI, CC BY 4.0)",
		what, thousands(len(invoices)), thousands(len(customers)))
	events := makeEvents(invoices)
	d.first = events[0].messageID
	return events, nil
}

// remembered is how long the server is sure to know a messageId again, less a day for a run's end.
const remembered = 6 * 24 * time.Hour

// shift returns by how much to move the dates: so that the last purchase is now, or by as much as an earlier run did, so
// that what it has sent is recognized.
func (d *demo) shift(ctx context.Context, events []event) (time.Duration, error) {
	var earlier trace
	if err := d.do(ctx, http.MethodGet, "/api/v1/traces/"+url.PathEscape(d.first), nil, &earlier); err != nil {
		return 0, err
	}
	if len(earlier.Events) > 0 {
		e := earlier.Events[0]
		if age := time.Since(e.ReceivedAt); age > remembered {
			return 0, fmt.Errorf("these sales were replayed %.0f days ago, too long for a second run not to count twice: "+
				"start with an empty database (mubatch dev --reset)", age.Hours()/24)
		}
		d.say("  these sales were replayed before, %s ago: what has been sent counts as duplicates",
			time.Since(e.ReceivedAt).Round(time.Second))
		return e.EventAt.Sub(events[0].at), nil
	}
	now := time.Now().UTC().Truncate(time.Second)
	return now.Sub(events[len(events)-1].at), nil
}

// replay sends all events and returns when they are applied.
func (d *demo) replay(ctx context.Context, s *sender, events []event, before stats) error {
	began := time.Now()
	watching, stop := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for watching.Err() == nil {
			seen := d.receiver.received()
			what := fmt.Sprintf("events sent, %s changes of membership received", thousands(seen.People))
			if n := s.retries.Load(); n > 0 {
				what += fmt.Sprintf(", %d requests sent again", n)
			}
			d.screen.progress(int(s.sent.Load()), len(events), what)
			select {
			case <-watching.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	err := s.all(ctx, events, d.cfg.Workers)
	d.result.Took = time.Since(began)
	stop()
	<-stopped
	d.screen.finish()
	d.result.Replayed, d.result.Retries = s.sent.Load(), s.retries.Load()
	d.result.Sent = d.result.Replayed
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	if err := d.untilCounted(ctx, before, d.result.Replayed); err != nil {
		return err
	}
	d.result.Applied = time.Since(began)
	return d.untilApplied(ctx, d.acked.latest())
}

// greetings is how many deliveries are shown one by one.
const greetings = 5

// tell shows what the receiver is told: the first few, and all once there is nothing else to show.
func (d *demo) tell(one delivery) {
	n := d.greeted.Add(1)
	if n > greetings && !d.keeping.Load() {
		return
	}
	what := "left"
	if one.Entered {
		what = "entered"
	}
	who := one.ProfileID
	for _, id := range one.Identifiers {
		who = id.Kind + ":" + id.Value
	}
	why := one.Cause
	if one.MessageID != "" {
		why = one.MessageID
	}
	d.say("  webhook: %s %s %s, because of %s", who, what, one.Segment, why)
	if n == greetings {
		d.say("  webhook: … and so on; its signature is right each time, or it would be refused")
	}
}

func (c Counts) since(before Counts) Counts {
	return Counts{
		Accepted: c.Accepted - before.Accepted, Applied: c.Applied - before.Applied, Duplicate: c.Duplicate - before.Duplicate,
		Failed: c.Failed - before.Failed, Suppressed: c.Suppressed - before.Suppressed, AddsUp: c.AddsUp,
	}
}

func (d *demo) table() {
	r := d.result
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	b.WriteString("\n")
	row("events", "%s sent: %s accepted, %s applied, %s duplicates, %s failed", thousands(r.Sent), thousands(r.Counts.Accepted),
		thousands(r.Counts.Applied), thousands(r.Counts.Duplicate), thousands(r.Counts.Failed))
	if r.Retries > 0 {
		row("", "%d requests had to be sent again", r.Retries)
	}
	row("speed", "%.0f events/s through the API, %.0f events/s until applied, on %d CPUs",
		float64(r.Replayed)/r.Took.Seconds(), float64(r.Replayed)/r.Applied.Seconds(), runtime.NumCPU())
	if n := min(d.cfg.Live, livePeople); n > 0 {
		row("profiles", "%s, %d of them the demo's own for the latency", thousands(r.Profiles), n)
	} else {
		row("profiles", "%s", thousands(r.Profiles))
	}
	row("activations", "%s delivered in %s signed webhooks, %d refused; the receiver has exactly the members",
		thousands(r.Received.People), thousands(r.Received.Requests), r.Received.Refused)
	row("latency", "from the HTTP answer to the webhook's arrival")
	if d.cfg.Live > 0 {
		row("", "%s  of %d of %d single events, one every %s", r.Live, len(r.Live), d.cfg.Live, livePerEvent)
	}
	if len(r.Replay) > 0 {
		row("", "%s  during the replay: mostly waiting in the queue that the replay makes", r.Replay)
	}
	b.WriteString("\n")
	fmt.Fprintf(&b, "  %-16s %8s  %s\n", "segment", "members", "")
	for _, s := range append(slices.Clone(segments), liveSegment) {
		fmt.Fprintf(&b, "  %-16s %8s  %s\n", s.Key, thousands(r.Members[s.Key]), s.Description)
	}
	d.say("%s", b.String())
}

// suggest prints what to try next.
func (d *demo) suggest(ctx context.Context) error {
	user, message, err := d.example(ctx)
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("  To try:\n\n")
	fmt.Fprintf(&b, "  export MUBATCH=%s AUTH='Authorization: Bearer %s'\n\n", d.cfg.URL, d.cfg.SecretKey)
	get := func(what, path string) {
		fmt.Fprintf(&b, "  # %s\n  curl -s -H \"$AUTH\" \"$MUBATCH%s\"\n", what, path)
	}
	get("a customer", "/api/v1/profiles/user_id:"+user)
	get("whatever that customer did", "/api/v1/profiles/user_id:"+user+"/events?limit=3")
	get("the members of a segment", "/api/v1/segments/big-spenders/members?limit=3")
	get("who entered and left it, and why", "/api/v1/segments/big-spenders/transitions?limit=3")
	get("what became of one event", "/api/v1/traces/"+message)
	get("what the receiver was told", "/api/v1/destinations/"+destination+"/deliveries?limit=3")
	get("whether every event is accounted for", "/api/v1/stats")
	fmt.Fprintf(&b, "  # a purchase now")
	if d.cfg.Keep {
		b.WriteString("; the webhook's arrival is printed here")
	}
	fmt.Fprintf(&b, "\n  curl -s -u %s: \"$MUBATCH/v1/track\" -d '{\"userId\": \"ada\", \"event\": \"Order Completed\",\n"+
		"    \"properties\": {\"revenue\": 25, \"currency\": \"GBP\", \"products\": [{\"product_id\": \"85123A\"}]}}'\n", d.cfg.WriteKey)
	d.say("%s", b.String())
	return nil
}

// example returns a customer who is in a segment, and a message because of which somebody entered one.
func (d *demo) example(ctx context.Context) (user, message string, err error) {
	user, message = "17850", d.first
	for _, s := range segments {
		members, err := d.members(ctx, s.Key)
		if err != nil {
			return "", "", err
		}
		var page struct {
			Data []struct {
				Cause struct {
					MessageID string `json:"message_id"`
				} `json:"cause"`
			} `json:"data"`
		}
		if err := d.do(ctx, http.MethodGet, "/api/v1/segments/"+s.Key+"/transitions?limit=10", nil, &page); err != nil {
			return "", "", err
		}
		for _, change := range page.Data {
			message = cmp.Or(change.Cause.MessageID, message)
		}
		for _, who := range slices.Sorted(maps.Values(members)) {
			if id, ok := strings.CutPrefix(who, "user_id:"); ok {
				return id, message, nil
			}
		}
	}
	return user, message, nil
}

func thousands[T int | int64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// ErrDiffers says that a check found something that is not as it should be.
var ErrDiffers = errors.New("the end is not what SQL over the sales says")

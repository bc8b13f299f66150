package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/mubatch/mubatch/profiles"
)

// Offset is a place in a lane: the id of a stream entry. The zero Offset is before the first.
type Offset struct{ Ms, Seq uint64 }

// ParseOffset reads what [Offset.String] writes.
func ParseOffset(s string) (Offset, error) {
	ms, seq, ok := strings.Cut(s, "-")
	m, err1 := strconv.ParseUint(ms, 10, 64)
	q, err2 := strconv.ParseUint(seq, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return Offset{}, fmt.Errorf("%q is not an offset: want ms-seq", s)
	}
	return Offset{Ms: m, Seq: q}, nil
}

// String returns o as Redis writes it: "1790000000123-0".
func (o Offset) String() string {
	return strconv.FormatUint(o.Ms, 10) + "-" + strconv.FormatUint(o.Seq, 10)
}

// Compare returns a negative number if o is before p, a positive one if it is behind, and 0 if they are the same.
func (o Offset) Compare(p Offset) int {
	return cmp.Or(cmp.Compare(o.Ms, p.Ms), cmp.Compare(o.Seq, p.Seq))
}

// IsZero tells whether o is before the first entry of any lane.
func (o Offset) IsZero() bool { return o == Offset{} }

// Entry is one frame of a lane.
type Entry struct {
	Offset   Offset
	Messages []profiles.Message // their bodies alias Raw
	Raw      []byte
	Err      error // the frame could not be decoded; wraps ErrFrame
}

// State is what Redis knows of a lane's stream.
type State struct {
	Exists bool
	Last   Offset // the id generated last, also if that entry is gone
	Length int64
	RunID  string // of the Redis that was asked; it changes when Redis restarts or another one takes over
}

// Durability is what Redis's settings promise of a write that it has answered.
type Durability struct {
	Durable bool
	Reason  string // why not
	RunID   string // of the Redis that was asked; of a cluster, those of its masters
}

// StreamConfig tunes a [Stream].
type StreamConfig struct {
	Prefix  string        // of the keys; default "mb:"
	Lanes   int           // fixed at install; default 16
	Timeout time.Duration // of one exchange with Redis; default 3 s
}

func (c StreamConfig) withDefaults() StreamConfig {
	c.Prefix = cmp.Or(c.Prefix, "mb:")
	c.Lanes = cmp.Or(c.Lanes, 16)
	c.Timeout = cmp.Or(c.Timeout, 3*time.Second)
	return c
}

const (
	frameField    = "f"     // of a stream entry
	maxFrameBytes = 1 << 20 // a larger frame is split; one message is never
	minBlock      = time.Millisecond
	maxBlock      = time.Second // a blocked read does not hear its context
)

// OpenRedis returns a client for url, with what a [Stream] needs: no retries, since a write that failed is unknown and
// the callers decide what to do about it; deadlines from the context; and connections enough for every lane to be
// read at once. It dials when it is first used.
func OpenRedis(url string, lanes int) (*redis.Client, error) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("redis url: %w", err)
	}
	opts.MaxRetries = -1
	opts.ContextTimeoutEnabled = true
	opts.DialerRetries = 1
	opts.PoolSize = max(lanes, 16) + 16
	opts.DisableIdentity = true
	return redis.NewClient(opts), nil
}

// Stream is the lanes, each a Redis stream: the only code that speaks Redis. There are no consumer groups: a lane is a
// log, whoever reads it keeps the offset, and it is trimmed only behind what has been committed. Its methods may be
// called at once.
type Stream struct {
	cfg   StreamConfig
	rdb   redis.UniversalClient
	keys  []string
	dials atomic.Uint64 // connections begun, by any user of rdb
}

// NewStream returns the lanes kept by rdb. It does no I/O.
func NewStream(cfg StreamConfig, rdb redis.UniversalClient) *Stream {
	s := &Stream{cfg: cfg.withDefaults(), rdb: rdb}
	s.keys = make([]string, s.cfg.Lanes)
	for lane := range s.keys {
		s.keys[lane] = s.cfg.Prefix + "{" + strconv.Itoa(lane) + "}"
	}
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		cluster.OnNewNode(func(node *redis.Client) { node.AddHook(dialCounter{&s.dials}) })
	} else {
		rdb.AddHook(dialCounter{&s.dials})
	}
	return s
}

// Lanes returns the number of lanes.
func (s *Stream) Lanes() int { return s.cfg.Lanes }

// Connections returns the number of connections begun so far. While it stands still, every answer came from a Redis
// that was already connected, and so from the same process with the same run id.
func (s *Stream) Connections() uint64 { return s.dials.Load() }

// AppendError says of which lanes not all frames are known to be in Redis. What is not listed is there. What is listed
// may be there all the same, in part or whole.
type AppendError struct{ Lanes map[int]error }

func (e *AppendError) Error() string {
	lane := slices.Min(slices.Collect(maps.Keys(e.Lanes)))
	return fmt.Sprintf("append to %d lanes, first lane %d: %v", len(e.Lanes), lane, e.Lanes[lane])
}

// Unwrap returns the errors of the lanes.
func (e *AppendError) Unwrap() []error { return slices.Collect(maps.Values(e.Lanes)) }

// Append adds each lane's messages behind what the lane holds, all in one pipeline: one frame a lane, or several in
// order if it would be larger than about 1 MB. It returns when Redis has answered for all. An error is an
// *[AppendError]. Whether what Redis has answered is also on disk is for [Stream.Check] to say.
func (s *Stream) Append(ctx context.Context, frames map[int][]profiles.Message) error {
	var buf frameBuffer
	return s.append(ctx, frames, &buf)
}

// frameBuffer is what Append needs and may use again.
type frameBuffer struct {
	bytes []byte
	ends  []frameEnd
}

type frameEnd struct{ lane, end int }

func (s *Stream) append(ctx context.Context, frames map[int][]profiles.Message, buf *frameBuffer) error {
	buf.bytes, buf.ends = buf.bytes[:0], buf.ends[:0]
	for lane, msgs := range frames {
		for len(msgs) > 0 {
			n := fit(msgs)
			buf.bytes = AppendFrame(buf.bytes, msgs[:n])
			buf.ends = append(buf.ends, frameEnd{lane, len(buf.bytes)})
			msgs = msgs[n:]
		}
	}
	if len(buf.ends) == 0 {
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	pipe := s.rdb.Pipeline()
	cmds := make([]*redis.StringCmd, len(buf.ends))
	start := 0
	for i, f := range buf.ends {
		cmds[i] = pipe.XAdd(ctx, &redis.XAddArgs{
			Stream: s.keys[f.lane], ID: "*", Values: []any{frameField, buf.bytes[start:f.end]},
		})
		start = f.end
	}
	_, _ = pipe.Exec(ctx) // its error is the first of those of the commands
	failed := make(map[int]error)
	for i, f := range buf.ends {
		if err := cmds[i].Err(); err != nil {
			failed[f.lane] = err
		} else if cmds[i].Val() == "" {
			failed[f.lane] = errors.New("no answer")
		}
	}
	if len(failed) > 0 {
		return &AppendError{Lanes: failed}
	}
	return nil
}

// fit returns how many of msgs go into one frame: at least one.
func fit(msgs []profiles.Message) int {
	size := 0
	for n := range msgs {
		size += frameMaxOverhead + len(msgs[n].Body)
		if size > maxFrameBytes && n > 0 {
			return n
		}
	}
	return len(msgs)
}

// Read returns what follows after in the lane, in order: at most maxEntries entries, and no more than maxBytes of
// frames unless the first alone is larger. Beyond what it returns it fetches no more than is wanted as long as frames
// are of similar size. If there is nothing it waits for up to block, which is made to lie between 1 ms and 1 s, and
// then returns nothing.
func (s *Stream) Read(ctx context.Context, lane int, after Offset, maxEntries, maxBytes int, block time.Duration) ([]Entry, error) {
	var entries []Entry
	size, largest := 0, 1<<16
	for len(entries) < maxEntries && size < maxBytes {
		if ctx.Err() != nil {
			return entries, nil // what has been read is whole
		}
		args := redis.XReadArgs{
			Streams: []string{s.keys[lane], after.String()},
			Count:   int64(max(1, min(maxEntries-len(entries), (maxBytes-size)/largest))),
			Block:   -1,
		}
		if len(entries) == 0 {
			args.Block = min(max(block, minBlock), maxBlock)
		}
		reply, err := s.rdb.XRead(ctx, &args).Result()
		if errors.Is(err, redis.Nil) || err == nil && len(reply) == 0 {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read lane %d after %v: %w", lane, after, err)
		}
		for _, m := range reply[0].Messages {
			e, err := entry(m)
			if err != nil {
				return nil, fmt.Errorf("read lane %d after %v: %w", lane, after, err)
			}
			if len(entries) > 0 && size+len(e.Raw) > maxBytes {
				return entries, nil
			}
			entries = append(entries, e)
			size += len(e.Raw)
			after = e.Offset
		}
		if int64(len(reply[0].Messages)) < args.Count {
			return entries, nil
		}
		largest = max(1, 2*size/len(entries))
	}
	return entries, nil
}

func entry(m redis.XMessage) (Entry, error) {
	offset, err := ParseOffset(m.ID)
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Offset: offset}
	raw, ok := m.Values[frameField].(string)
	if !ok {
		e.Raw = []byte(fmt.Sprint(m.Values))
		e.Err = fmt.Errorf("%w: entry %v has no field %q", ErrFrame, offset, frameField)
		return e, nil
	}
	e.Raw = []byte(raw)
	e.Messages, e.Err = DecodeFrame(e.Raw)
	return e, nil
}

// Trim removes the entries before behind, and only those: what is at it or after it stays.
func (s *Stream) Trim(ctx context.Context, lane int, behind Offset) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	if err := s.rdb.XTrimMinID(ctx, s.keys[lane], behind.String()).Err(); err != nil {
		return fmt.Errorf("trim lane %d before %v: %w", lane, behind, err)
	}
	return nil
}

// State returns the state of a lane's stream. A lane that was never written to, or was lost, does not exist.
func (s *Stream) State(ctx context.Context, lane int) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	var node redis.Cmdable = s.rdb
	if cluster, ok := s.rdb.(*redis.ClusterClient); ok {
		master, err := cluster.MasterForKey(ctx, s.keys[lane])
		if err != nil {
			return State{}, fmt.Errorf("state of lane %d: %w", lane, err)
		}
		node = master
	}
	runID, err := serverRunID(ctx, node)
	if err != nil {
		return State{}, fmt.Errorf("state of lane %d: %w", lane, err)
	}
	info, err := node.XInfoStream(ctx, s.keys[lane]).Result()
	if err != nil && strings.Contains(err.Error(), "no such key") {
		return State{RunID: runID}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("state of lane %d: %w", lane, err)
	}
	last, err := ParseOffset(info.LastGeneratedID)
	if err != nil {
		return State{}, fmt.Errorf("state of lane %d: %w", lane, err)
	}
	return State{Exists: true, Last: last, Length: info.Length, RunID: runID}, nil
}

// Ends returns the offset generated last in each lane, also if that entry is gone.
func (s *Stream) Ends(ctx context.Context) ([]Offset, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	pipe := s.rdb.Pipeline()
	cmds := make([]*redis.XInfoStreamCmd, len(s.keys))
	for lane, key := range s.keys {
		cmds[lane] = pipe.XInfoStream(ctx, key)
	}
	_, _ = pipe.Exec(ctx) // its error is the first of those of the commands
	ends := make([]Offset, len(s.keys))
	for lane, cmd := range cmds {
		info, err := cmd.Result()
		if err != nil && strings.Contains(err.Error(), "no such key") {
			continue
		}
		if err == nil {
			ends[lane], err = ParseOffset(info.LastGeneratedID)
		}
		if err != nil {
			return nil, fmt.Errorf("find the end of lane %d: %w", lane, err)
		}
	}
	return ends, nil
}

// Holds tells whether the entry at an offset of a lane is still there. As long as it is, nothing behind it was trimmed.
func (s *Stream) Holds(ctx context.Context, lane int, at Offset) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	found, err := s.rdb.XRangeN(ctx, s.keys[lane], at.String(), at.String(), 1).Result()
	if err != nil {
		return false, fmt.Errorf("look for %v in lane %d: %w", at, lane, err)
	}
	return len(found) > 0, nil
}

// ReadAll returns what follows in each of the lanes, at most maxEntries entries a lane. If there is nothing in any it waits for
// up to block, which is made to lie between 1 ms and 1 s. Of a cluster no one node can be asked for all lanes: there it
// asks again every 20 ms.
func (s *Stream) ReadAll(ctx context.Context, after []Offset, maxEntries int, block time.Duration) (byLane [][]Entry, err error) {
	block = min(max(block, minBlock), maxBlock)
	byLane = make([][]Entry, len(s.keys))
	take := func(key string, messages []redis.XMessage) error {
		lane := slices.Index(s.keys, key)
		for _, m := range messages {
			e, err := entry(m)
			if err != nil {
				return fmt.Errorf("read lane %d: %w", lane, err)
			}
			byLane[lane] = append(byLane[lane], e)
		}
		return nil
	}
	if _, cluster := s.rdb.(*redis.ClusterClient); cluster {
		for deadline := time.Now().Add(block); ; {
			pipe := s.rdb.Pipeline()
			cmds := make([]*redis.XStreamSliceCmd, len(s.keys))
			for lane, key := range s.keys {
				cmds[lane] = pipe.XRead(ctx, &redis.XReadArgs{Streams: []string{key, after[lane].String()}, Count: int64(maxEntries), Block: -1})
			}
			_, _ = pipe.Exec(ctx) // its error is the first of those of the commands
			found := false
			for lane, cmd := range cmds {
				reply, err := cmd.Result()
				if err != nil && !errors.Is(err, redis.Nil) {
					return nil, fmt.Errorf("read lane %d after %v: %w", lane, after[lane], err)
				}
				for _, stream := range reply {
					found = true
					if err := take(stream.Stream, stream.Messages); err != nil {
						return nil, err
					}
				}
			}
			if found || ctx.Err() != nil || time.Now().After(deadline) {
				return byLane, nil
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	args := redis.XReadArgs{Streams: slices.Clone(s.keys), Count: int64(maxEntries), Block: block}
	for _, at := range after {
		args.Streams = append(args.Streams, at.String())
	}
	reply, err := s.rdb.XRead(ctx, &args).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("read all lanes: %w", err)
	}
	for _, stream := range reply {
		if err := take(stream.Stream, stream.Messages); err != nil {
			return nil, err
		}
	}
	return byLane, nil
}

// EnsureAfter makes sure that every entry added from now on lies behind offset, as after the loss of the stream or a
// clock set back. It does so by putting an empty frame at offset, unless the stream is there or further already:
// Redis decides that in one step, so that the stream can never be set back, as XSETID could.
func (s *Stream) EnsureAfter(ctx context.Context, lane int, offset Offset) error {
	if offset.IsZero() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	err := s.rdb.XAdd(ctx, &redis.XAddArgs{
		Stream: s.keys[lane], ID: offset.String(), Values: []any{frameField, AppendFrame(nil, nil)},
	}).Err()
	if err != nil && !strings.Contains(err.Error(), "equal or smaller than the target stream top item") {
		return fmt.Errorf("advance lane %d to %v: %w", lane, offset, err)
	}
	return nil
}

// Check asks Redis whether a write it has answered is on disk and stays: appendonly yes, appendfsync always,
// maxmemory-policy noeviction. A Redis that does not tell is not durable, and the reason says so. The error is for a
// Redis that could not be asked.
func (s *Stream) Check(ctx context.Context) (Durability, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	cluster, ok := s.rdb.(*redis.ClusterClient)
	if !ok {
		return checkNode(ctx, s.rdb)
	}
	var (
		mu    sync.Mutex
		nodes []Durability
	)
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error {
		d, err := checkNode(ctx, master)
		mu.Lock()
		defer mu.Unlock()
		nodes = append(nodes, d)
		return err
	})
	if err != nil {
		return Durability{}, err
	}
	slices.SortFunc(nodes, func(a, b Durability) int { return strings.Compare(a.RunID, b.RunID) })
	all := Durability{Durable: len(nodes) > 0}
	for _, d := range nodes {
		all.RunID += d.RunID + " "
		if !d.Durable {
			all.Durable, all.Reason = false, d.Reason
		}
	}
	return all, nil
}

var wantSettings = []struct{ name, value string }{
	{"appendonly", "yes"}, {"appendfsync", "always"}, {"maxmemory-policy", "noeviction"},
}

func checkNode(ctx context.Context, rdb redis.Cmdable) (Durability, error) {
	runID, err := serverRunID(ctx, rdb)
	if err != nil {
		return Durability{}, fmt.Errorf("check redis: %w", err)
	}
	d := Durability{RunID: runID}
	var wrong []string
	for _, want := range wantSettings {
		got, err := rdb.ConfigGet(ctx, want.name).Result()
		if err != nil {
			if !refused(err) {
				return Durability{}, fmt.Errorf("check redis: %w", err)
			}
			d.Reason = "redis does not tell its settings: " + err.Error()
			return d, nil
		}
		if v := got[want.name]; v != want.value {
			wrong = append(wrong, fmt.Sprintf("%s is %q, must be %q", want.name, v, want.value))
		}
	}
	d.Durable, d.Reason = len(wrong) == 0, strings.Join(wrong, "; ")
	return d, nil
}

// serverRunID returns "" for a server that has no such thing.
func serverRunID(ctx context.Context, rdb redis.Cmdable) (string, error) {
	info, err := rdb.Info(ctx, "server").Result()
	if err != nil && refused(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(info) {
		if id, ok := strings.CutPrefix(line, "run_id:"); ok {
			return strings.TrimSpace(id), nil
		}
	}
	return "", nil
}

// refused tells whether err is the answer of a server that does not know a command or does not allow it, rather than
// that of one which is loading, failing over or not there.
func refused(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	code, _, _ := strings.Cut(err.Error(), " ")
	switch code {
	case "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOAUTH", "WRONGPASS":
		return false
	}
	return true
}

// dialCounter counts the connections that a client begins.
type dialCounter struct{ n *atomic.Uint64 }

func (c dialCounter) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		c.n.Add(1) // also if it failed: then something was lost
		return conn, err
	}
}

func (c dialCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (c dialCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

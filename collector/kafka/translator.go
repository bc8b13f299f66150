package kafka

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mubatch/mubatch/collector/mapping"
)

// translator makes events of the records of a source. The same record always becomes the same events.
type translator struct {
	program *mapping.Program  // nil: a record is an event in our shape
	names   map[string]string // of the topics, for ever
}

// events returns what becomes of a record. If code is not empty that is not all, and reason says why. A record without a value
// is what a compacted topic has of something deleted: nothing.
func (t *translator) events(r *kgo.Record) (events [][]byte, code, reason string) {
	if len(bytes.TrimSpace(r.Value)) == 0 {
		return nil, "", ""
	}
	made := [][]byte{r.Value}
	if t.program != nil {
		var err error
		var fault *mapping.FaultError
		made, err = t.program.Map(t.input(r))
		switch {
		case errors.As(err, &fault):
			code, reason = fault.Code, fault.Error()
		case err != nil:
			code, reason = "mapping", "cannot be mapped"
		}
	}
	for i, raw := range made {
		event, ok := t.complete(raw, r, i)
		if !ok {
			code, reason = "malformed_json", "is not a JSON object, or has a member twice"
			continue
		}
		events = append(events, event)
	}
	return events, code, reason
}

func (t *translator) input(r *kgo.Record) mapping.Input {
	in := mapping.Input{
		Body: r.Value, ReceivedAt: r.Timestamp.UTC(),
		Meta: map[string]string{
			"topic": r.Topic, "partition": strconv.Itoa(int(r.Partition)), "offset": strconv.FormatInt(r.Offset, 10), "key": string(r.Key),
		},
	}
	if len(r.Headers) > 0 {
		in.Headers = make(map[string]string, len(r.Headers))
		for _, h := range r.Headers {
			in.Headers[strings.ToLower(h.Key)] = string(h.Value)
		}
	}
	return in
}

// complete gives an event that does not say so the messageId of its place, and the time of its record.
func (t *translator) complete(raw []byte, r *kgo.Record, index int) ([]byte, bool) {
	var event map[string]jsontext.Value
	if err := json.Unmarshal(raw, &event, jsontext.AllowInvalidUTF8(true)); err != nil || event == nil {
		return nil, false
	}
	changed := false
	if lacks(event["messageId"]) {
		id := "kafka/" + t.names[r.Topic] + "/" + strconv.Itoa(int(r.Partition)) + "/" + strconv.FormatInt(r.Offset, 10)
		if index > 0 {
			id += "/" + strconv.Itoa(index)
		}
		event["messageId"], changed = quote(id), true
	}
	if lacks(event["timestamp"]) && lacks(event["originalTimestamp"]) && r.Timestamp.Unix() > 0 {
		event["timestamp"], changed = quote(r.Timestamp.UTC().Format("2006-01-02T15:04:05.000Z")), true
	}
	if !changed {
		return raw, true
	}
	out, err := json.Marshal(event, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	return out, err == nil
}

func lacks(v jsontext.Value) bool { return len(v) == 0 || string(v) == "null" || string(v) == `""` }

func quote(s string) jsontext.Value {
	v, _ := jsontext.AppendQuote(nil, s) // what is not UTF-8 becomes U+FFFD
	return v
}

// overTLS returns a dial that speaks TLS over another's connections.
func overTLS(dial Dial, cfg *tls.Config) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		named := cfg.Clone()
		if named.ServerName, _, err = net.SplitHostPort(address); err != nil {
			conn.Close()
			return nil, err
		}
		secure := tls.Client(conn, named)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		return secure, nil
	}
}

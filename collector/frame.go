package collector

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/mubatch/mubatch/profiles"
)

// A frame is what one stream entry holds: messages of one lane, in order.
//
//	version  byte, 1
//	count    uvarint
//	count times:
//	  kind       byte
//	  workspace  uvarint
//	  source     uvarint
//	  id         16 bytes
//	  key        16 bytes
//	  received   varint, milliseconds since 1970
//	  length     uvarint
//	  body       length bytes
//
// Streams and outboxes outlive a release: a reader knows every version ever written.
const (
	frameVersion     = 1
	frameKeyLen      = len(profiles.Key{})
	frameMinMessage  = 1 + 1 + 1 + 2*frameKeyLen + 1 + 1
	frameMaxOverhead = 1 + binary.MaxVarintLen32*2 + 2*frameKeyLen + 2*binary.MaxVarintLen64 // of a message, beside its body
)

// ErrFrame is wrapped by every error of [DecodeFrame].
var ErrFrame = errors.New("malformed frame")

// AppendFrame appends the frame of msgs to dst. Of a time of reception it keeps the milliseconds.
func AppendFrame(dst []byte, msgs []profiles.Message) []byte {
	dst = append(dst, frameVersion)
	dst = binary.AppendUvarint(dst, uint64(len(msgs)))
	for i := range msgs {
		m := &msgs[i]
		dst = append(dst, byte(m.Kind))
		dst = binary.AppendUvarint(dst, uint64(uint32(m.Workspace)))
		dst = binary.AppendUvarint(dst, uint64(uint32(m.Source)))
		dst = append(dst, m.ID[:]...)
		dst = append(dst, m.Key[:]...)
		dst = binary.AppendVarint(dst, m.Received.UnixMilli())
		dst = binary.AppendUvarint(dst, uint64(len(m.Body)))
		dst = append(dst, m.Body...)
	}
	return dst
}

// DecodeFrame reads what [AppendFrame] wrote. The bodies alias frame. It takes any bytes: what is not a whole frame is
// an error, and what is allocated is in proportion to what was given.
func DecodeFrame(frame []byte) ([]profiles.Message, error) {
	r := frameReader{rest: frame}
	if v := r.byte(); r.bad == "" && v != frameVersion {
		return nil, fmt.Errorf("%w: version %d, this release reads %d", ErrFrame, v, frameVersion)
	}
	count := r.uvarint(math.MaxUint32)
	if fit := uint64(len(r.rest) / frameMinMessage); count > fit {
		return nil, fmt.Errorf("%w: %d messages announced, at most %d fit", ErrFrame, count, fit)
	}
	if r.bad != "" {
		return nil, fmt.Errorf("%w: %s", ErrFrame, r.bad)
	}
	msgs := make([]profiles.Message, count)
	for i := range msgs {
		m := &msgs[i]
		m.Kind = profiles.MessageKind(r.byte())
		m.Workspace = int32(uint32(r.uvarint(math.MaxUint32)))
		m.Source = int32(uint32(r.uvarint(math.MaxUint32)))
		copy(m.ID[:], r.bytes(uint64(frameKeyLen)))
		copy(m.Key[:], r.bytes(uint64(frameKeyLen)))
		m.Received = time.UnixMilli(r.varint()).UTC()
		m.Body = r.bytes(r.uvarint(math.MaxUint32))
		if r.bad != "" {
			return nil, fmt.Errorf("%w: message %d: %s", ErrFrame, i, r.bad)
		}
	}
	if len(r.rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes behind the last message", ErrFrame, len(r.rest))
	}
	return msgs, nil
}

// frameReader reads until something is wrong, and from then on returns zeros.
type frameReader struct {
	rest []byte
	bad  string
}

func (r *frameReader) fail(why string) {
	if r.bad == "" {
		r.bad = why
	}
	r.rest = nil
}

func (r *frameReader) byte() byte {
	if len(r.rest) == 0 {
		r.fail("cut short")
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *frameReader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 || v > limit {
		r.fail("not a number")
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *frameReader) varint() int64 {
	v, n := binary.Varint(r.rest)
	if n <= 0 {
		r.fail("not a number")
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *frameReader) bytes(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.fail("cut short")
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

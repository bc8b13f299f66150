package api

import (
	"strconv"
	"strings"
	"time"
)

// timestamp is a time as the API writes it: RFC 3339, in UTC, to the millisecond.
type timestamp time.Time

const timeFormat = "2006-01-02T15:04:05.000Z"

func (t timestamp) MarshalText() ([]byte, error) {
	return time.Time(t).UTC().AppendFormat(nil, timeFormat), nil
}

// maybe returns t for JSON, null if there is none.
func maybe(t *time.Time) *timestamp { return (*timestamp)(t) }

// unlessZero returns t for JSON, null if it is zero.
func unlessZero(t time.Time) *timestamp {
	if t.IsZero() {
		return nil
	}
	return (*timestamp)(&t)
}

// Ids, as the API writes them, are a prefix and a number.
const (
	workspaceID   = "ws_"
	keyID         = "key_"
	sourceID      = "src_"
	segmentID     = "seg_"
	computedID    = "ct_"
	mappingID     = "map_"
	writeKeyID    = "wk_"
	destinationID = "dst_"
	deliveryID    = "dlv_"
	auditID       = "aud_"
	importID      = "imp_"

	subscriptionID  = "sub_"
	webhookSecretID = "whs_"
)

func formatID[T int32 | int64](prefix string, id T) string {
	return prefix + strconv.FormatInt(int64(id), 10)
}

// parseID reads what formatID writes, and nothing else.
func parseID(prefix, s string) (id int64, ok bool) {
	digits, ok := strings.CutPrefix(s, prefix)
	id, err := strconv.ParseInt(digits, 10, 64)
	return id, ok && err == nil && id > 0 && formatID(prefix, id) == s
}

package webhook

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Firehose is a request of Amazon Data Firehose, as its "HTTP endpoint delivery request and response specifications" has
// it, with the deliveries in its records.
type Firehose struct {
	RequestID  string
	Deliveries []Delivery
	Unreadable int // records that are not base64 of JSON: nothing that is sent again could make them so
}

// MaxRecords bounds the deliveries in a request of Firehose, and its records: 5 MiB of 100 bytes each.
const MaxRecords = 50_000

// ErrTooMany says that a request has more than MaxRecords.
var ErrTooMany = fmt.Errorf("the body has more than %d records", MaxRecords)

// records are the data of the records of a request. They are counted as they are read: a few bytes of a compressed body
// can be millions of them.
type records []string

func (r *records) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	if dec.PeekKind() != '[' {
		return dec.SkipValue()
	}
	_, _ = dec.ReadToken()
	for dec.PeekKind() != ']' {
		if len(*r) == MaxRecords {
			return ErrTooMany
		}
		var record struct {
			Data string `json:"data"`
		}
		if err := json.UnmarshalDecode(dec, &record); err != nil {
			return err
		}
		*r = append(*r, record.Data)
	}
	_, err := dec.ReadToken()
	return err
}

// ReadFirehose reads the body of such a request. The id of a request stays the same when it is sent again, and so do those
// of the deliveries. An error is ErrTooMany or wraps ErrMalformed.
func ReadFirehose(body []byte) (Firehose, error) {
	var in struct {
		RequestID string         `json:"requestId"`
		Timestamp jsontext.Value `json:"timestamp"`
		Records   records        `json:"records"`
	}
	err := json.Unmarshal(body, &in, jsontext.AllowDuplicateNames(true))
	if errors.Is(err, ErrTooMany) {
		return Firehose{}, ErrTooMany
	}
	if err != nil {
		return Firehose{}, fmt.Errorf("%w: the body is not what Amazon Data Firehose sends", ErrMalformed)
	}
	if in.RequestID == "" {
		return Firehose{}, fmt.Errorf("%w: %w", ErrMalformed, errors.New("requestId is required"))
	}
	out := Firehose{RequestID: in.RequestID}
	for i, record := range in.Records {
		data, err := base64.StdEncoding.DecodeString(record)
		var texts [][]byte
		if err == nil {
			texts, err = values(data, MaxRecords-len(out.Deliveries))
		}
		if errors.Is(err, errMany) {
			return Firehose{}, ErrTooMany
		}
		if err != nil {
			out.Unreadable++
			continue
		}
		for j, text := range texts {
			id := in.RequestID + "-" + strconv.Itoa(i)
			if j > 0 {
				id += "-" + strconv.Itoa(j)
			}
			out.Deliveries = append(out.Deliveries, Delivery{ID: id, Body: text})
		}
	}
	return out, nil
}

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

// ReadFirehose reads the body of such a request. The id of a request stays the same when it is sent again, and so do those
// of the deliveries. An error wraps ErrMalformed.
func ReadFirehose(body []byte) (Firehose, error) {
	var in struct {
		RequestID string         `json:"requestId"`
		Timestamp jsontext.Value `json:"timestamp"`
		Records   []struct {
			Data string `json:"data"`
		} `json:"records"`
	}
	if err := json.Unmarshal(body, &in, jsontext.AllowDuplicateNames(true)); err != nil {
		return Firehose{}, fmt.Errorf("%w: the body is not what Amazon Data Firehose sends", ErrMalformed)
	}
	if in.RequestID == "" {
		return Firehose{}, fmt.Errorf("%w: %w", ErrMalformed, errors.New("requestId is required"))
	}
	out := Firehose{RequestID: in.RequestID}
	for i, record := range in.Records {
		data, err := base64.StdEncoding.DecodeString(record.Data)
		var texts [][]byte
		if err == nil {
			texts, err = Texts(data)
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

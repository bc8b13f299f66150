package webhook

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// maxBody is what a receiver may be expected to take, in bytes.
const maxBody = 20_000

type payload struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      any       `json:"data"`
}

type change struct {
	Segment  segment          `json:"segment"`
	Sequence int64            `json:"sequence"`
	Entered  []jsontext.Value `json:"entered"`
	Left     []jsontext.Value `json:"left"`
}

type segment struct {
	ID   string `json:"id"`
	Key  string `json:"key,omitzero"`
	Name string `json:"name,omitzero"`
}

type member struct {
	ProfileID   string                  `json:"profile_id"`
	ExternalID  string                  `json:"external_id,omitzero"`
	Identifiers []activation.Identifier `json:"identifiers"`
	Version     int64                   `json:"version"`
	At          time.Time               `json:"at"`
	Cause       string                  `json:"cause"`
	MessageID   string                  `json:"message_id,omitzero"`
}

// encode returns the body about the first of a batch's members, and about how many.
func encode(b activation.Batch) (body []byte, took int, err error) {
	data := change{
		Segment: segment{
			ID: "seg_" + strconv.FormatInt(b.Segment.ID, 10), Key: b.Segment.Key, Name: b.Segment.Name,
		},
		Sequence: b.ID,
		Entered:  []jsontext.Value{},
		Left:     []jsontext.Value{},
	}
	p := payload{Type: "segment.membership_changed", Timestamp: b.At.UTC(), Data: data}
	empty, err := json.Marshal(p)
	if err != nil {
		return nil, 0, err
	}
	size := len(empty)
	for _, m := range b.Members {
		one, err := json.Marshal(toMember(m))
		if err != nil {
			return nil, 0, err
		}
		if size += len(one) + len(","); size > maxBody && took > 0 {
			break
		}
		if m.Entered {
			data.Entered = append(data.Entered, one)
		} else {
			data.Left = append(data.Left, one)
		}
		took++
	}
	p.Data = data
	body, err = json.Marshal(p)
	return body, took, err
}

func toMember(m activation.Member) member {
	out := member{
		ProfileID:   profileID(m.Person.ID),
		Identifiers: m.Person.Identifiers,
		Version:     m.Version,
		At:          m.At.UTC(),
		Cause:       m.Cause,
		MessageID:   m.MessageID,
	}
	for _, id := range m.Person.Identifiers {
		if id.Kind == "user_id" {
			out.ExternalID = id.Value
			break
		}
	}
	return out
}

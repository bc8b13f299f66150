package meta

import (
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// columns are all there are, in the order in which a row has them.
var columns = []string{
	email, phone, device, firstName, lastName, gender, birthYear, birthMonth, birthDay, city, state, postalCode, country,
	externID, processing,
}

// body is what adds to or removes from an audience. There is no session: that is for Meta to tell when all of a long list
// has come, and would have a message that is sent again refused.
type body struct {
	CustomerConsent bool    `json:"customer_consent,omitzero"`
	Payload         payload `json:"payload"`
}

type payload struct {
	Schema []string `json:"schema"`
	IsRaw  bool     `json:"is_raw"`
	Data   [][]any  `json:"data"` // rows, each with a value for every column of the schema: "" if there is none
}

// row is the value of each column, in their order.
type row []string

// Encode implements [activation.AudiencePartner]. The schema has those columns that any of the rows has a value for.
func (*Partner) Encode(t activation.Target, b activation.Batch) (encoded []byte, took int, err error) {
	cfg, _, err := read(t.Settings)
	if err != nil {
		return nil, 0, fmt.Errorf("read a destination's settings: %w", err)
	}
	most := min(cfg.Batch, maxRows)
	var rows []row
	for _, m := range b.Members {
		if took > 0 && len(rows)+len(m.Identifiers.IDs) > most {
			break
		}
		if rows, err = appendRows(rows, m.Identifiers); err != nil {
			return nil, 0, err
		}
		took++
	}
	used := make([]bool, len(columns))
	for _, r := range rows {
		for i, v := range r {
			used[i] = used[i] || v != ""
		}
	}
	p := payload{Data: make([][]any, len(rows))}
	for i, is := range used {
		if is {
			p.Schema = append(p.Schema, columns[i])
		}
	}
	for n, r := range rows {
		values := make([]any, 0, len(p.Schema))
		for i, v := range r {
			switch {
			case !used[i]:
			case columns[i] != processing:
				values = append(values, v)
			case v == "":
				values = append(values, []string{})
			default:
				values = append(values, []string{v})
			}
		}
		p.Data[n] = values
	}
	encoded, err = json.Marshal(body{CustomerConsent: cfg.CustomerConsent && b.Members[0].Entered, Payload: p})
	if err != nil {
		return nil, 0, fmt.Errorf("encode rows: %w", err)
	}
	return encoded, took, nil
}

// appendRows appends those of one person: one for each key.
func appendRows(rows []row, ids activation.Identifiers) ([]row, error) {
	details := make(row, len(columns))
	if err := details.set(ids.Details...); err != nil {
		return nil, err
	}
	for _, id := range ids.IDs {
		r := slices.Clone(details)
		if err := r.set(id); err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func (r row) set(ids ...activation.Identifier) error {
	for _, id := range ids {
		i := slices.Index(columns, id.Kind)
		if i < 0 {
			return fmt.Errorf("there is no column %q", id.Kind)
		}
		r[i] = id.Value
	}
	return nil
}

// rowsOf counts the rows of a body.
func rowsOf(encoded []byte) int64 {
	var b struct {
		Payload struct {
			Data []jsontext.Value `json:"data"`
		} `json:"payload"`
	}
	if json.Unmarshal(encoded, &b) != nil {
		return 0
	}
	return int64(len(b.Payload.Data))
}

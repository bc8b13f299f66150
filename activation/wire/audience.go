package wire

import (
	"cmp"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/mubatch/mubatch/activation"
)

// AudienceName returns the name of an audience to be made for a segment, of at most so many characters, and the end of it,
// by which it is found again at partners that can be asked for names alone: even if the segment was renamed since.
func AudienceName(to activation.Target, s activation.Segment, most int) (name, mark string) {
	mark = fmt.Sprintf(" (mubatch dst_%d seg_%d)", to.ID, s.ID)
	title := []rune(cmp.Or(strings.TrimSpace(s.Name), s.Key))
	title = title[:min(len(title), most-len(mark))]
	return strings.TrimSpace(string(title)) + mark, mark
}

// ID is one that comes as a text, or as a number. It is "" for null.
type ID string

// UnmarshalJSON implements json.Unmarshaler.
func (v *ID) UnmarshalJSON(b []byte) error {
	*v = ID(strings.Trim(string(b), `"`))
	if *v == "null" {
		*v = ""
	}
	return nil
}

// Count returns the number that it is, or -1: sizes of audiences come in the same ways.
func (v ID) Count() int64 {
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// Foreign is the outcome of an answer that is not in the partner's own form, where it would be if it were the partner's: it
// is of somebody in between, who may say by its status that a message is too large or a path not known, but nothing of our
// credential or of people. o is what its status means.
func (a Answer) Foreign(o activation.Outcome) activation.Outcome {
	switch a.Status {
	case http.StatusRequestEntityTooLarge:
	case http.StatusNotFound, http.StatusGone:
		o.Reason = "there is no such API: look at api_url"
	default:
		if o.Class == activation.OK {
			return a.Unreadable()
		}
		o.Class = activation.Retry
		o.Reason = fmt.Sprintf("a gateway answered %d", a.Status)
	}
	return o
}

package google

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// newReceipt remembers when a request was made, so that its status is asked for less and less often.
func newReceipt(requestID string) string {
	return strconv.FormatInt(time.Now().Unix(), 10) + " " + requestID
}

// backoff is how long to wait before a status is asked for again: half of the time that it has taken so far. Limits say
// how long at least.
func backoff(made int64) time.Duration { return min(time.Since(time.Unix(made, 0))/2, 4*time.Hour) }

// status is a RequestStatusPerDestination.
type status struct {
	State string `json:"requestStatus"`
	Error struct {
		Counts []struct {
			Records int64  `json:"recordCount,string"`
			Reason  string `json:"reason"`
		} `json:"errorCounts"`
	} `json:"errorInfo"`
	Ingestion struct {
		UserData struct {
			Match string `json:"uploadMatchRateRange"`
		} `json:"userDataIngestionStatus"`
	} `json:"audienceMembersIngestionStatus"`
}

// Poll implements [activation.Poller]. Google tells how many people it refused, and why, but not whom.
func (p *Partner) Poll(ctx context.Context, to activation.Target, receipt string) activation.Polled {
	return poll(receipt, func(c call, into any) (wire.Answer, activation.Outcome) {
		return p.do(ctx, to, func(Config) call { return c }, into)
	}, status.ofPeople)
}

// poll asks with do what became of a request. Once Google is done with it, judge says what that means.
func poll(
	receipt string, do func(c call, into any) (wire.Answer, activation.Outcome),
	judge func(status, activation.Outcome) activation.Polled,
) activation.Polled {
	at, id, _ := strings.Cut(receipt, " ")
	made, _ := strconv.ParseInt(at, 10, 64) // newReceipt wrote it
	var answer struct {
		Destinations []status `json:"requestStatusPerDestination"`
	}
	a, o := do(call{method: http.MethodGet, path: "/v1/requestStatus:retrieve?requestId=" + url.QueryEscape(id)}, &answer)
	if a.Status != 0 && unknownRequest(readRefusal(a)) {
		o.Class, o.Unknown, o.Reason = activation.Retry, true, "Google does not know the request any more"
		return activation.Polled{Done: true, Outcome: o}
	}
	if o.Class != activation.OK || len(answer.Destinations) == 0 {
		return activation.Polled{Outcome: o}
	}
	s := answer.Destinations[0]
	switch s.State {
	case "SUCCESS", "PARTIAL_SUCCESS", "FAILED":
		return judge(s, o)
	default: // PROCESSING
		o.Wait = backoff(made)
		return activation.Polled{Outcome: o}
	}
}

// ofPeople says what became of a request about audience members.
func (s status) ofPeople(o activation.Outcome) activation.Polled {
	polled := activation.Polled{Done: true, Outcome: o, Counts: s.counts(processing), Match: matchRange(s.Ingestion.UserData.Match)}
	switch s.State {
	case "PARTIAL_SUCCESS":
		polled.Class, polled.Reason = activation.Partial, "Google refused some of the people"
	case "FAILED":
		polled.Class, polled.Reason = s.failure()
	}
	return polled
}

func unknownRequest(r refusal) bool {
	return r.status == "NOT_FOUND" ||
		slices.ContainsFunc(r.violations, func(v violation) bool { return v.Reason == "INVALID_REQUEST_ID" })
}

// Why people were refused, by Google's ProcessingErrorReason.
var processing = map[string]string{
	"DENIED_CONSENT":  "consent was denied, by the person or in the advertiser's settings",
	"NO_CONSENT":      "the advertiser has not allowed Google Ads to use the data: see its consent settings at Google",
	"UNKNOWN_CONSENT": "Google cannot tell whether there is consent",
	"INVALID_FORMAT":  "Google finds an identifier malformed",
	"INTERNAL_ERROR":  "Google failed",
}

// bare is a ProcessingErrorReason without what all of them begin with.
func bare(reason string) string {
	return strings.TrimPrefix(strings.TrimPrefix(reason, "PROCESSING_ERROR_"), "REASON_")
}

func (s status) counts(words map[string]string) (counts []activation.ReasonCount) {
	for _, c := range s.Error.Counts {
		text := cmp.Or(words[bare(c.Reason)], plain(bare(c.Reason)))
		counts = append(counts, activation.ReasonCount{Reason: text, Count: c.Records})
	}
	return counts
}

// failure says what it means that Google refused everybody: somebody must look if the advertiser's settings are to blame,
// it would refuse the same people again for what is wrong with them, and whatever else there is may pass.
func (s status) failure() (activation.Class, string) {
	class, reason := activation.Retry, "Google could not work on it"
	for _, c := range s.Error.Counts {
		switch r := bare(c.Reason); r {
		case "NO_CONSENT":
			return activation.Config, processing[r]
		case "DENIED_CONSENT", "UNKNOWN_CONSENT", "INVALID_FORMAT":
			class, reason = activation.Drop, processing[r]
		}
	}
	return class, reason
}

// matchRange says how many of those who were sent Google recognised.
func matchRange(rate string) string {
	switch name := strings.TrimPrefix(rate, "MATCH_RATE_RANGE_"); name {
	case "", "UNKNOWN":
		return ""
	case "NOT_ELIGIBLE":
		return "too few people to tell"
	case "LESS_THAN_20":
		return "less than 20 %"
	default:
		from, to, ok := strings.Cut(name, "_TO_")
		if !ok || strings.Trim(from+to, "0123456789") != "" {
			return ""
		}
		return from + " to " + to + " %"
	}
}

package partnertest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// metaGraph is what the fakes of Meta's APIs have in common: tokens, proofs, versions, errors, and what is told of usage.
type metaGraph struct {
	Faults

	tokenIn, proof, version string

	mu       sync.Mutex
	revoked  bool
	dead     int // how often a token was used that has ended
	refusals int
	used     int // percent of what may be asked
}

const (
	metaAccount = "1234509876"
	metaToken   = "EAABsbCS1iHgBOZCtest0000000000000000000000token"
	metaSecret  = "0123456789abcdef0123456789abcdef"
)

// secrets are those of a destination.
func (f *metaGraph) secrets() jsontext.Value {
	if f.proof != "" {
		return jsontext.Value(fmt.Sprintf(`{"access_token":%q,"app_secret":%q}`, metaToken, metaSecret))
	}
	return jsontext.Value(fmt.Sprintf(`{"access_token":%q}`, metaToken))
}

// Revoke implements [Fake].
func (f *metaGraph) Revoke() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = true
}

// Heal implements [Fake].
func (f *metaGraph) Heal() {
	f.Faults.Heal()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked, f.dead = false, 0
}

// Use says how much of what may be asked is used up, in percent.
func (f *metaGraph) Use(percent int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used = percent
}

// metaError is the body of an error.
func metaError(code, subcode int, kind, message string) string {
	return fmt.Sprintf(`{"error":{"message":%q,"type":%q,"code":%d,"error_subcode":%d,"fbtrace_id":"AbCdEf"}}`,
		message, kind, code, subcode)
}

func metaUsage(percent, minutes int) string {
	return fmt.Sprintf(`{"%s":[{"type":"custom_audience","call_count":%d,"total_cputime":25,"total_time":25,`+
		`"estimated_time_to_regain_access":%d,"ads_api_access_tier":"standard_access"}]}`, metaAccount, percent, minutes)
}

// Throttled is an answer to one request too many, in one of Meta's ways to put it. Without minutes it does not say for how
// long to wait.
func (*metaGraph) throttled(way, minutes int) Fault {
	codes := [][2]int{{80003, 0}, {17, 2446079}, {613, 1487742}, {4, 1504022}}
	code := codes[way%len(codes)]
	fault := Fault{
		Status: []int{400, 403}[way%2], Silent: true, Wait: 5 * time.Minute,
		Body: metaError(code[0], code[1], "OAuthException", "There have been too many calls to this ad-account."),
	}
	if minutes > 0 {
		fault.Wait = time.Duration(minutes) * time.Minute
		fault.Header = http.Header{"X-Business-Use-Case-Usage": {metaUsage(100, minutes)}}
	}
	return fault
}

// Words implements [Fake].
func (f *metaGraph) Words() Words {
	way := 0
	return Words{
		Throttled: f.throttled(0, 0),
		Wait: func(d time.Duration) Fault {
			way++
			return f.throttled(way, int((d+time.Minute-1)/time.Minute))
		},
		TooLarge:  Fault{Status: 400, Body: metaError(105, 0, "OAuthException", "The number of parameters exceeded the maximum")},
		Forbidden: Fault{Status: 403, Body: metaError(200, 0, "OAuthException", "Permissions error")},
		Missing:   Fault{Status: 400, Body: metaError(100, 33, "GraphMethodException", "Unsupported post request.")},
		Passing: []Fault{
			{Status: 500, Body: metaError(1, 0, "OAuthException", "An unknown error occurred")},
			{Status: 500, Body: metaError(2, 0, "OAuthException", "Service temporarily unavailable")},
			{Status: 400, Body: metaError(341, 0, "OAuthException", "Application limit reached"), Apply: true},
			{Status: 200, Body: page},
		},
	}
}

// violateAnd notes what is wrong and answers with an error.
func (f *metaGraph) violateAnd(w http.ResponseWriter, answer, format string, args ...any) {
	f.Violate(format, args...)
	w.WriteHeader(http.StatusBadRequest)
	io.WriteString(w, answer)
}

// admit tells whether a request is one that may be made at all.
func (f *metaGraph) admit(w http.ResponseWriter, r *http.Request, path []string) bool {
	query := r.URL.Query()
	for name, values := range query {
		known := []string{"access_token", "appsecret_proof", "appsecret_time", "fields", "limit", "after"}
		if !slices.Contains(known, name) || len(values) > 1 {
			f.Violate("the parameter %s is not known, or there twice", name)
		}
	}
	if len(path) < 2 || len(path) > 3 || path[0] != f.version {
		f.violateAnd(w, metaError(2635, 0, "OAuthException", "You are calling a deprecated version of the Ads API."), "%s is not served", r.URL.Path)
		return false
	}
	token := query.Get("access_token")
	if f.tokenIn == "header" {
		if token != "" {
			f.Violate("the access token is in the query, want it in the header")
		}
		token = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	} else if r.Header.Get("Authorization") != "" {
		f.Violate("the access token is in the header, want it in the query")
	}
	switch {
	case token == "":
		f.violateAnd(w, metaError(104, 0, "OAuthException", "An access token is required"), "there is no access token")
		return false
	case f.revoked || token != metaToken:
		if f.dead++; f.dead > 8 { // what was under way may use it once each
			f.Violate("an access token that has ended goes on being used")
		}
		f.refusals++
		w.WriteHeader([]int{400, 401}[f.refusals%2])
		io.WriteString(w, metaError(190, 463, "OAuthException", "Error validating access token: Session has expired"))
		return false
	}
	text, timed := metaToken, query.Get("appsecret_time")
	if timed != "" {
		text += "|" + timed
		at, err := strconv.ParseInt(timed, 10, 64)
		if off := f.Now().Sub(time.Unix(at, 0)).Abs(); err != nil || off > 5*time.Minute && !f.Skewed() {
			f.Violate("appsecret_time is off by %v", off)
		}
	}
	mac := hmac.New(sha256.New, []byte(metaSecret))
	mac.Write([]byte(text))
	wanted := map[string]string{"": "", "plain": hex.EncodeToString(mac.Sum(nil)), "timed": hex.EncodeToString(mac.Sum(nil))}
	if query.Get("appsecret_proof") != wanted[f.proof] || (timed != "") != (f.proof == "timed") {
		f.violateAnd(w, metaError(100, 0, "GraphMethodException", "Invalid appsecret_proof provided in the API argument"),
			"the proof of the app secret is wrong, or not what was asked for")
		return false
	}
	return true
}

// tell says in an answer how much is used up.
func (f *metaGraph) tell(w http.ResponseWriter) {
	w.Header().Set("X-Business-Use-Case-Usage", metaUsage(f.used, f.used/95))
	w.Header().Set("X-App-Usage", `{"call_count":28,"total_time":25,"total_cputime":25}`)
	w.Header().Set("X-Ad-Account-Usage", fmt.Sprintf(`{"acc_id_util_pct":%d.5,"reset_time_duration":30,"ads_api_access_tier":"standard_access"}`, f.used/2))
}

// fields answers with those of a node that are asked for.
func (f *metaGraph) fields(w http.ResponseWriter, r *http.Request, node map[string]any) {
	answer := map[string]any{}
	for _, name := range strings.Split(r.URL.Query().Get("fields"), ",") {
		value, ok := node[name]
		if !ok {
			f.violateAnd(w, metaError(100, 0, "OAuthException", "Tried accessing nonexisting field"), "there is no field %q", name)
			return
		}
		answer[name] = value
	}
	if err := json.MarshalWrite(w, answer); err != nil {
		panic(err)
	}
}

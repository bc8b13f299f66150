package google

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// refusal is what Google says of a request that it does not accept: google.rpc.Status, as JSON. Of what a proxy in between
// says it is empty.
type refusal struct {
	status     string
	reason     string // of ErrorInfo
	limit      string // which quota was used up
	delay      time.Duration
	violations []violation
}

type violation struct {
	Field  string `json:"field"`
	Reason string `json:"reason"`
}

func readRefusal(a wire.Answer) (r refusal) {
	var answer struct {
		Error struct {
			Status  string `json:"status"`
			Details []struct {
				Reason     string            `json:"reason"`
				Metadata   map[string]string `json:"metadata"`
				Delay      string            `json:"retryDelay"`
				Violations []violation       `json:"fieldViolations"`
			} `json:"details"`
		} `json:"error"`
	}
	if a.Decode(&answer) != nil {
		return refusal{}
	}
	r.status = answer.Error.Status
	for _, d := range answer.Error.Details {
		r.reason = cmp.Or(r.reason, d.Reason)
		r.limit = cmp.Or(r.limit, d.Metadata["quota_limit"])
		if delay, err := time.ParseDuration(d.Delay); err == nil {
			r.delay = delay
		}
		r.violations = append(r.violations, d.Violations...)
	}
	return r
}

// What has to be mended by somebody, by Google's ErrorReason.
var configReasons = map[string]string{
	"INVALID_DESTINATION":                           "Google does not accept the account and list together: check account_id, login_account_id and the audience",
	"INVALID_USER_LIST_ID":                          "the user list is not there any more, or not in this account",
	"INVALID_USER_LIST_TYPE":                        "the user list takes another type of data than the destination sends",
	"TERMS_AND_CONDITIONS_NOT_SIGNED":               "the advertiser has not accepted Google's Customer Match terms",
	"NOT_ALLOWLISTED":                               "Google does not allow the account to use Customer Match",
	"ADVERTISER_NOT_ALLOWLISTED_FOR_UPLOADED_DATA":  "Google does not allow the account to use uploaded data",
	"ADVERTISER_TOS_NOT_ACCEPTED":                   "the advertiser has not accepted the data partner's terms",
	"OPERATING_ACCOUNT_LOGIN_ACCOUNT_MISMATCH":      "login_account_id must be the same as account_id for this",
	"DESTINATION_ACCOUNT_TYPE_MISMATCH":             "account_type does not go with account_id",
	"MISMATCHED_ACCOUNT_TYPE":                       "account_type does not go with account_id",
	"DATA_PARTNER_USER_LIST_MUTATE_NOT_ALLOWED":     "a data partner may not change a list that the account owns",
	"MEMBERSHIP_DURATION_TOO_LONG":                  "membership_days is more than Google allows",
	"EU_POLITICAL_ADVERTISING_DECLARATION_REQUIRED": "the account has to declare whether its campaigns are EU political advertising",
	"DISPLAY_NAME_ALREADY_USED":                     "a user list of this name is there already: rename it, or give the segment its id as audience",
	"USER_LIST_TYPE_NOT_SUPPORTED_FOR_ACCOUNT":      "the account can have no user lists of this type of data",
	"UNSUPPORTED_ACCOUNT_TYPES_FOR_USER_LIST_TYPE":  "accounts of this type can have no user lists of this type of data",
	"OWNERSHIP_REQUIRED_FOR_UPDATE":                 "the user list belongs to another account",
	"USER_LIST_MUTATION_NOT_SUPPORTED":              "the user list can only be read",
	"SENSITIVE_USER_LIST_IMMUTABLE":                 "Google keeps the user list from being changed",
	"INVALID_RESOURCE_NAME":                         "the account or list is not named as Google wants it: check account_type and account_id",
}

// What is wrong with one person, by Google's ErrorReason.
var rowReasons = map[string]string{
	"REQUIRED_FIELD_MISSING":   "Google misses a part of the person's identifiers",
	"INVALID_FORMAT":           "Google finds an identifier of the person malformed",
	"INVALID_HEX_ENCODING":     "Google finds an identifier of the person malformed",
	"INVALID_SHA256_FORMAT":    "Google finds an identifier of the person malformed",
	"INVALID_POSTAL_CODE":      "Google does not know the postal code",
	"INVALID_MOBILE_ID_FORMAT": "Google finds an advertising id malformed",
	"INVALID_AUDIENCE_MEMBER":  "Google does not accept the person",
}

// vocabulary is how refusals are put at one type of destinations.
type vocabulary struct {
	config, rows map[string]string // by ErrorReason: see configReasons and rowReasons
	missing      string            // when Google answers that something is not there
	one          string            // what a row is
}

var people = vocabulary{
	configReasons, rowReasons,
	"the account or user list is not there: check account_type, account_id and the audience", "person",
}

// row says what is wrong with one row.
func (says vocabulary) row(reason string) string {
	return cmp.Or(says.rows[reason], "Google does not accept the "+says.one+": "+plain(reason))
}

// outcome says what a refusal means. o is what it means by its status alone.
func (r refusal) outcome(o activation.Outcome, says vocabulary) activation.Outcome {
	switch {
	case r.status == "UNAUTHENTICATED" || o.Status == 401:
		o.Class, o.Reason = activation.Refresh, "the access token has ended or was revoked"
	case r.status == "PERMISSION_DENIED":
		o.Class = activation.Config
		switch r.reason {
		case "SERVICE_DISABLED":
			o.Reason = "the Data Manager API is not enabled in the Google Cloud project"
		case "ACCESS_TOKEN_SCOPE_INSUFFICIENT":
			o.Reason = "the credential was not granted the Data Manager API: connect the account again and allow it"
		default:
			o.Reason = "the credential may not use this account, or the account is not there: check account_id and login_account_id"
		}
	case r.status == "NOT_FOUND":
		o.Class, o.Reason = activation.Config, says.missing
	case r.status == "RESOURCE_EXHAUSTED":
		if o.Class != activation.RetryAfter { // the answer does not say for how long in its header
			o.Class, o.Wait, o.Reason = activation.RetryAfter, r.pause(), "the Google Cloud project's quota is used up"
		}
	case r.status == "INVALID_ARGUMENT" || r.status == "FAILED_PRECONDITION":
		return r.invalid(o, says)
	}
	return o
}

// pause is for how long to leave a project alone whose quota is used up. When the daily one begins anew nobody promises.
func (r refusal) pause() time.Duration {
	switch {
	case r.delay > 0:
		return r.delay
	case strings.Contains(r.limit, "PerDay"):
		return time.Hour
	default:
		return time.Minute
	}
}

// invalid says what a refusal means for which the request is to blame. Where it is the rows' fault, Split stays.
func (r refusal) invalid(o activation.Outcome, says vocabulary) activation.Outcome {
	o.Class, o.Reason = activation.Split, "Google does not accept the request"
	for _, v := range r.violations {
		o.Reason = "Google does not accept the request: " + plain(v.Reason)
		if reason, ok := says.config[v.Reason]; ok {
			o.Class, o.Reason = activation.Config, reason
			return o
		}
		if _, isRow := v.row(); isRow {
			continue
		}
		if root := v.root(); root != "" && root != "audiencemembers" && root != "events" && !strings.HasPrefix(v.Reason, "TOO_MANY_") {
			o.Class, o.Reason = activation.Config, "Google does not accept "+root+": "+plain(v.Reason)
			return o
		}
	}
	return o
}

// rows returns what is wrong with which rows.
func (r refusal) rows() map[int]string {
	rows := map[int]string{}
	for _, v := range r.violations {
		if i, ok := v.row(); ok && rows[i] == "" {
			rows[i] = cmp.Or(v.Reason, "INVALID_AUDIENCE_MEMBER")
		}
	}
	return rows
}

var rowField = regexp.MustCompile(`(?i)(?:audience_?members|events)\[(\d+)\]`)

// row returns which row a violation is about. Google writes audience_members.audience_members[0].user_data, and events
// likewise.
func (v violation) row() (int, bool) {
	m := rowField.FindStringSubmatch(v.Field)
	if m == nil {
		return 0, false
	}
	i, err := strconv.Atoi(m[1])
	return i, err == nil
}

// root returns which part of the request a violation is about: destinations, for instance.
func (v violation) root() string {
	end := strings.IndexAny(v.Field, ".[")
	if end < 0 {
		end = len(v.Field)
	}
	root := strings.ReplaceAll(strings.ToLower(v.Field[:end]), "_", "")
	if strings.Trim(root, "abcdefghijklmnopqrstuvwxyz") != "" {
		return ""
	}
	return root
}

// plain makes words of one of Google's constants.
func plain(reason string) string {
	words := strings.ToLower(strings.ReplaceAll(reason, "_", " "))
	if words == "" || len(words) > 100 || strings.Trim(words, "abcdefghijklmnopqrstuvwxyz0123456789 ") != "" {
		return "for an unknown reason"
	}
	return words
}

package api

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
)

// actions are what the audit log calls the operations that change something. What lanes are asked to do is recorded by its
// handler, before it is asked: see [call.decide].
var actions = map[string]string{
	"PATCH /workspace":   "workspace.update",
	"POST /workspaces":   "workspace.create",
	"POST /keys":         "key.create",
	"DELETE /keys/{key}": "key.revoke",

	"POST /sources":                                   "source.create",
	"PATCH /sources/{source}":                         "source.update",
	"DELETE /sources/{source}":                        "source.delete",
	"POST /sources/{source}/write_keys":               "write_key.create",
	"DELETE /sources/{source}/write_keys/{write_key}": "write_key.revoke",

	"POST /mappings":                "mapping.create",
	"PATCH /mappings/{mapping}":     "mapping.update",
	"DELETE /mappings/{mapping}":    "mapping.delete",
	"POST /imports":                 "import.create",
	"PUT /imports/{import}/content": "import.upload",
	"POST /imports/{import}/pause":  "import.pause",
	"POST /imports/{import}/resume": "import.resume",
	"POST /imports/{import}/cancel": "import.cancel",
	"PUT /sources/{source}/kafka":   "source.consume",

	"POST /sources/{source}/webhook_secrets":                    "webhook_secret.create",
	"DELETE /sources/{source}/webhook_secrets/{webhook_secret}": "webhook_secret.delete",
	"POST /sources/{source}/schemas":                            "schema.create",
	"PUT /sources/{source}/schemas/{schema}":                    "schema.replace",
	"DELETE /sources/{source}/schemas/{schema}":                 "schema.delete",
	"POST /quarantine/replay":                                   "quarantine.replay",
	"POST /quarantine/discard":                                  "quarantine.discard",
	"DELETE /quarantine/{quarantined_event}":                    "quarantined_event.discard",

	"POST /segments":                  "segment.create",
	"PUT /segments/{segment}":         "segment.replace",
	"PATCH /segments/{segment}":       "segment.update",
	"DELETE /segments/{segment}":      "segment.delete",
	"POST /segments/{segment}/cancel": "segment.cancel",

	"POST /computed_traits":                    "computed_trait.create",
	"PATCH /computed_traits/{computed_trait}":  "computed_trait.update",
	"DELETE /computed_traits/{computed_trait}": "computed_trait.delete",

	"POST /destinations":                                          "destination.create",
	"PATCH /destinations/{destination}":                           "destination.update",
	"DELETE /destinations/{destination}":                          "destination.delete",
	"PUT /destinations/{destination}/segments/{segment}":          "destination.attach",
	"DELETE /destinations/{destination}/segments/{segment}":       "destination.detach",
	"POST /destinations/{destination}/pause":                      "destination.pause",
	"POST /destinations/{destination}/resume":                     "destination.resume",
	"POST /destinations/{destination}/rotate_secret":              "destination.rotate_secret",
	"POST /destinations/{destination}/replay":                     "destination.replay",
	"POST /destinations/{destination}/resync":                     "destination.resync",
	"PUT /destinations/{destination}/segments/{segment}/audience": "destination.set_audience",

	"PUT /destinations/{destination}/events/{subscription}":    "destination.subscribe",
	"DELETE /destinations/{destination}/events/{subscription}": "destination.unsubscribe",
	"POST /privacy/erasures":                                   "privacy.erase",

	"POST /failed_events/replay":                "failed_events.replay",
	"POST /failed_events/{failed_event}/replay": "failed_event.replay",
}

// recorded handles a call in a transaction and records in it what was done, so that there is never one without the other.
func recorded(rt route, action string) handler {
	return func(c *call) (ans answer, err error) {
		outer := c.stores
		defer func() { c.stores = outer }()
		err = pgx.BeginFunc(c.Context(), outer.db, func(tx pgx.Tx) (err error) {
			c.stores = outer.in(tx)
			if ans, err = rt.handle(c); err != nil {
				return err
			}
			detail, err := c.detail(rt)
			if err != nil {
				return err
			}
			_, err = c.audit.Record(c.Context(), c.id.key, AuditEntry{Action: action, Subject: c.subjectOf(ans), Detail: detail})
			return err
		})
		if err != nil {
			return answer{}, err
		}
		return ans, nil
	}
}

// subjectOf returns the id of what a call has changed: what the handler said, or else the id that the answer shows.
func (c *call) subjectOf(ans answer) string {
	if c.subject != "" {
		return c.subject
	}
	var changed struct {
		ID string `json:"id"`
	}
	_ = json.Unmarshal(ans.Body, &changed) // an answer without an id is about nothing in particular
	return changed.ID
}

// detail tells of a call what may be kept for ever: where it went, unless that names a person, and which members it gave,
// but not their values, some of which are secret.
func (c *call) detail(rt route) (jsontext.Value, error) {
	var detail struct {
		Path    string   `json:"path,omitzero"`
		Members []string `json:"members,omitzero"`
	}
	if !strings.Contains(rt.pattern, "{profile}") {
		detail.Path = c.URL.EscapedPath()
	}
	var members map[string]jsontext.Value
	if len(c.body) > 0 && json.Unmarshal(c.body, &members) == nil {
		detail.Members = slices.Sorted(maps.Keys(members))
	}
	return json.Marshal(detail)
}

type auditJSON struct {
	ID      string         `json:"id"`
	At      timestamp      `json:"at"`
	Actor   actorJSON      `json:"actor"`
	Action  string         `json:"action"`
	Subject *string        `json:"subject"`
	Detail  jsontext.Value `json:"detail"`
}

type actorJSON struct {
	KeyID string `json:"key_id"`
	Name  string `json:"name"`
}

func showAudit(e AuditEntry) auditJSON {
	out := auditJSON{
		ID: formatID(auditID, e.ID), At: timestamp(e.At), Actor: actorJSON{formatID(keyID, e.KeyID), e.KeyName},
		Action: e.Action, Detail: e.Detail,
	}
	if e.Subject != "" {
		out.Subject = &e.Subject
	}
	return out
}

func listAudit(c *call) (answer, error) {
	var before int64
	limit, q, err := c.paging(&before, "action", "subject")
	if err != nil {
		return answer{}, err
	}
	for _, name := range []string{"action", "subject"} {
		if q.Has(name) && q.Get(name) == "" {
			return answer{}, badParameter(name, "must not be empty")
		}
	}
	found, err := c.audit.List(c.Context(), c.workspace(), q.Get("action"), q.Get("subject"), before, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(e AuditEntry) any { return e.ID }, showAudit)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

package collector

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// RudderStack: its libraries send what Segment's do, to the same routes, and say beside the body when they sent it. Here
// is what they have besides: the configuration that they load from the control plane, beacons, its own pixel, and merge.

func (h *Handler) rudderstackRoutes(r chi.Router) {
	for _, path := range []string{"/sourceConfig", "/sourceConfig/"} {
		get(r, path, h.answer(DialectRudderStack, h.sourceConfig))
	}
	post(r, "/beacon/v1/batch", h.answer(DialectRudderStack, h.beacon))
	post(r, "/v1/merge", h.answer(DialectRudderStack, h.merge))
	get(r, "/pixel/v1/{call}", h.pixel([]string{"track", "page"}, DialectRudderStack))
}

// sentAt returns what the header SentAt says, in quotes, or nil. The body goes before it.
func sentAt(r *http.Request) []byte {
	header := r.Header.Get("SentAt")
	if header == "" {
		return nil
	}
	quoted, err := jsontext.AppendQuote(nil, header)
	if _, ok := parseTime(quoted); err != nil || !ok {
		return nil
	}
	return quoted
}

// rudderstackConfig is a source as RudderStack's control plane describes it, one without destinations of its own.
type rudderstackConfig struct {
	Source struct {
		ID          string   `json:"id"`
		Name        string   `json:"name"`
		WriteKey    string   `json:"writeKey"`
		WorkspaceID string   `json:"workspaceId"`
		Enabled     bool     `json:"enabled"`
		Config      struct { // of what the libraries would report to RudderStack
			StatsCollection struct {
				Errors  rudderstackSwitch `json:"errors"`
				Metrics rudderstackSwitch `json:"metrics"`
			} `json:"statsCollection"`
		} `json:"config"`
		Destinations []string `json:"destinations"`
		Connections  []string `json:"connections"`
	} `json:"source"`
}

type rudderstackSwitch struct {
	Enabled bool `json:"enabled"`
}

// sourceConfig answers RudderStack's libraries when they load.
func (h *Handler) sourceConfig(w http.ResponseWriter, r *http.Request) error {
	g, known, err := h.authorize(r, "")
	if err != nil {
		return err
	} else if !known {
		return missingKey()
	}
	if err := g.mustSpeak(DialectRudderStack); err != nil {
		return err
	}
	var c rudderstackConfig
	c.Source.ID = "src_" + strconv.Itoa(int(g.SourceID))
	c.Source.Name, c.Source.WriteKey, c.Source.Enabled = c.Source.ID, g.Key, true
	c.Source.WorkspaceID = strconv.Itoa(int(g.WorkspaceID))
	c.Source.Destinations, c.Source.Connections = []string{}, []string{}
	answer, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("marshal the source's configuration: %w", err)
	}
	w.Header().Set("Cache-Control", "no-store")
	return writeJSON(w, answer)
}

// beacon takes the batches that pages send while they end.
func (h *Handler) beacon(w http.ResponseWriter, r *http.Request) error {
	d, err := h.receive(w, r, true, DialectRudderStack)
	if err != nil {
		return err
	}
	defer d.release()
	return h.takeBatch(w, r, &d)
}

// merge takes two identifiers that are of one person. Between user ids and visitors' ids that is an alias call; other
// kinds merge people only as the source's settings say, so here they would mean nothing.
func (h *Handler) merge(w http.ResponseWriter, r *http.Request) error {
	d, err := h.receive(w, r, false, DialectRudderStack)
	if err != nil {
		return err
	}
	defer d.release()
	event := incoming{raw: d.text, kind: "alias"}
	event.raw, event.fault = mergeToAlias(d.text)
	return h.takeSingle(w, r, &d, event)
}

// mergeToAlias returns the alias call that a merge call means.
func mergeToAlias(text []byte) ([]byte, *fault) {
	const list = "mergeProperties"
	var pair []struct {
		Type  string         `json:"type"`
		Value jsontext.Value `json:"value"`
	}
	if json.Unmarshal(membersOf(text)[list], &pair) != nil || len(pair) != 2 {
		return text, (&fault{code: "wrong_type", reason: "must be two objects, each with a type and a value"}).in(list)
	}
	user := -1
	for i := range pair {
		switch pair[i].Type {
		case "user_id", "userId":
			user = i
		case "anonymous_id", "anonymousId":
		default:
			return text, (&fault{code: "unsupported_merge", reason: "must be user_id or anonymous_id; identifiers of other " +
				"kinds merge people if settings.merge_on of the source names them"}).in("type").in(strconv.Itoa(i)).in(list)
		}
	}
	if user < 0 {
		return text, (&fault{code: "unsupported_merge", reason: "must have a user_id"}).in(list)
	}
	return rewrite(text, func(call map[string]jsontext.Value) {
		delete(call, list)
		call["userId"], call["previousId"] = pair[user].Value, pair[1-user].Value
	}), nil
}

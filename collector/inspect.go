package collector

import (
	"bytes"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/mubatch/mubatch/collector/bots"
	"github.com/mubatch/mubatch/collector/plan"
	"github.com/mubatch/mubatch/profiles"
)

// trackingPlan is what a source's events are to be like.
type trackingPlan map[planned]planSchema

// planned is what a schema is for: a name of a track call, or another type of call.
type planned struct{ kind, event string }

type planSchema struct {
	schema *plan.Schema
	action string
}

// finding is what was found out about an event beside what it says.
type finding struct {
	action     string // what is to become of it; "" if nothing is wrong with it
	violations []profiles.Violation
	bot        string // its name; "" if it was a person, as far as anybody can tell
}

// worse keeps the violations, and the action that is the more severe.
func (f *finding) worse(action string, violations ...profiles.Violation) {
	if len(violations) == 0 {
		return
	}
	f.violations = append(f.violations, violations...)
	switch {
	case f.action == "", f.action == ActionAllow, action == ActionQuarantine:
		f.action = action
	}
}

// inspect looks at an event that was cleaned: whether it is as the plan of its source says, and whether a person sent it.
func (ec *eventCleaner) inspect(e *cleaned, g *Grant, of *shared) (f finding) {
	if g.Settings.Bots != botsOff {
		if f.bot = of.botName(ec.value(fieldContext)); f.bot != "" && g.Settings.Bots == ActionQuarantine {
			f.worse(ActionQuarantine, profiles.Violation{Code: "bot", Detail: "was sent by a program: " + f.bot})
		}
	}
	if len(g.plan) == 0 && (g.Settings.Unplanned == "" || e.kind != "track") {
		return f
	}
	s, ok := g.plan[planned{e.kind, ec.eventName(e)}]
	switch {
	case ok:
		f.worse(s.action, s.schema.Check(e.body)...)
	case g.Settings.Unplanned != "" && e.kind == "track":
		f.worse(g.Settings.Unplanned, profiles.Violation{Code: "unplanned", Pointer: "#/event", Detail: "is not in the plan"})
	}
	return f
}

// eventName returns the name of a track call; others have none.
func (ec *eventCleaner) eventName(e *cleaned) string {
	if e.kind != "track" {
		return ""
	}
	return unquote(ec.value(fieldEvent))
}

// note puts what was found into the event.
func (e *cleaned) note(f *finding) {
	put := func(name string, value any) {
		b, err := json.Marshal(value)
		if err != nil {
			return // a name or a sentence of ours cannot but be marshalled
		}
		e.body = append(e.body[:len(e.body)-1], `,"`+name+`":`...)
		e.body = append(append(e.body, b...), '}')
	}
	if f.bot != "" {
		put("_bot", struct {
			Name string `json:"name"`
		}{f.bot})
	}
	if f.action == ActionFlag {
		put("_violations", f.violations)
	}
}

// What a bot is called that does not say its name.
const (
	prefetching = "prefetch" // a browser loads a page that nobody may ever look at
	headless    = "headless" // a browser that nobody looks at
)

// botName returns the name of the program that sent an event with this context, or "".
func (s *shared) botName(context []byte) string {
	if s.prefetch {
		return prefetching
	}
	userAgent := memberText(context, `"userAgent"`)
	if userAgent == "" {
		userAgent = memberText(s.context, `"userAgent"`)
	}
	if userAgent == "" {
		userAgent = s.userAgent
	}
	if name := bots.Name(userAgent); name != "" {
		return name
	}
	if s.headless {
		return headless
	}
	return ""
}

// memberText returns the text of a member of a canonical object, or nil; "" if it is no text.
func memberText(object []byte, quoted string) (text string) {
	if object == nil || !bytes.Contains(object, []byte(quoted)) {
		return ""
	}
	members(object, func(name, value []byte) bool {
		if string(name) != quoted {
			return true
		}
		if value[0] == '"' {
			text = unquote(value)
		}
		return false
	})
	return text
}

// browser notes what a browser says of itself. A request that does not come from a page is of somebody's server: what that
// is called says nothing of the person.
func (s *shared) browser(r *http.Request) {
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"} {
		if v := r.Header.Get(name); v != "" && (strings.Contains(v, "prefetch") || strings.Contains(v, "preview")) {
			s.prefetch = true
		}
	}
	s.headless = strings.Contains(r.Header.Get("Sec-Ch-Ua"), "Headless")
	if r.Method == http.MethodGet || r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Mode") != "" {
		s.userAgent = r.UserAgent()
	}
}

package collector

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/profiles"
)

// What the translators of other products' events share. A translator reads what a client sends into objects, moves their
// members into drafts of events in our shape, and leaves what it does not know under its own name.
//
//	body or query ─► calls ─► bring: by write key ─► drafts ─► Intake.take

// object is a JSON object. Its values keep the text that they came with, so that numbers stay exact.
type object map[string]jsontext.Value

// parseObject reads an object strictly: a member that is there twice is a fault, as it is in events of any other dialect.
func parseObject(raw []byte) (object, *fault) {
	var o object
	err := json.Unmarshal(raw, &o, jsontext.AllowInvalidUTF8(true))
	var syntax *jsontext.SyntacticError
	switch {
	case err == nil && o != nil:
		return o, nil
	case errors.Is(err, jsontext.ErrDuplicateName):
		return nil, &fault{code: "duplicate_member", reason: "has a member that is there twice"}
	case errors.As(err, &syntax):
		return nil, &fault{code: "malformed_json", reason: "is not JSON"}
	}
	return nil, &fault{code: "wrong_type", reason: "must be an object"}
}

// parseBody reads the JSON of a whole body. What concerns single events, such as members that are there twice, is left for
// them to report. An error is a *problem.Problem.
func parseBody(text []byte) (jsontext.Value, error) {
	dec := jsontext.NewDecoder(strings.NewReader(string(text)), jsonOptions...)
	value, err := dec.ReadValue()
	if err != nil {
		return nil, syntaxProblem(text, err)
	}
	value = value.Clone()
	if _, err := dec.ReadToken(); err == nil {
		return nil, malformed("malformed_json", "#", "has something behind its end")
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxProblem(text, err)
	}
	return value, nil
}

// envelopeOf reads the object that holds the events of a body. Of members that are there twice the last one counts.
func envelopeOf(value jsontext.Value) (object, error) {
	var o object
	if value.Kind() != '{' || json.Unmarshal(value, &o, jsonOptions...) != nil {
		return nil, malformed("wrong_type", "#", "must be an object")
	}
	return o, nil
}

// elements returns the values of an array, or false for anything else.
func elements(value jsontext.Value) (list []jsontext.Value, ok bool) {
	if value.Kind() != '[' {
		return nil, false
	}
	return list, json.Unmarshal(value, &list, jsonOptions...) == nil
}

// queryObject returns a query as an object of strings. Of values of one name the first counts.
func queryObject(query url.Values) object {
	o := make(object, len(query))
	for name, values := range query {
		o[name] = quoted(values[0])
	}
	return o
}

// take removes the first of names that is there and not null and returns its value, or nil.
func (o object) take(names ...string) jsontext.Value {
	for _, name := range names {
		v, ok := o[name]
		if !ok {
			continue
		}
		delete(o, name)
		if v.Kind() != 'n' {
			return v
		}
	}
	return nil
}

// takeText is take for the text of a scalar; of anything else it is "".
func (o object) takeText(names ...string) string { return scalar(o.take(names...)) }

// text returns the text of a scalar member, or "".
func (o object) text(name string) string { return scalar(o[name]) }

// child returns the members of a member that is an object, or nil.
func (o object) child(name string) object {
	if v := o[name]; v.Kind() == '{' {
		if child, f := parseObject(v); f == nil {
			return child
		}
	}
	return nil
}

// setText sets a member, unless the text is empty.
func (o object) setText(name, text string) {
	if text != "" {
		o[name] = quoted(text)
	}
}

// set sets a member, unless the value is nil.
func (o object) set(name string, value jsontext.Value) {
	if value != nil {
		o[name] = value
	}
}

// fill adds the members of others that o does not have.
func (o object) fill(others object) {
	for name, value := range others {
		if _, ok := o[name]; !ok {
			o[name] = value
		}
	}
}

func (o object) appendTo(b []byte) []byte {
	b = append(b, '{')
	for i, name := range slices.Sorted(maps.Keys(o)) {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, name) // what is not UTF-8 becomes U+FFFD
		b = append(b, ':')
		b = append(b, o[name]...)
	}
	return append(b, '}')
}

func (o object) raw() jsontext.Value { return o.appendTo(nil) }

// scalar returns the text of a string, a number or a boolean; of anything else it is "".
func scalar(v jsontext.Value) string {
	switch v.Kind() {
	case '"':
		text, _ := jsontext.AppendUnquote(nil, v) // what is not UTF-8 becomes U+FFFD
		return string(text)
	case '0', 't', 'f':
		return string(v)
	}
	return ""
}

func quoted(text string) jsontext.Value {
	b, _ := jsontext.AppendQuote(nil, text) // what is not UTF-8 becomes U+FFFD
	return b
}

// numeric returns the text of a number as that number, digit for digit, and anything else as it is.
func numeric(v jsontext.Value) jsontext.Value {
	if text := jsontext.Value(scalar(v)); text.Kind() == '0' && text.IsValid() {
		return text
	}
	return v
}

// truth tells whether a value says yes: true, 1 or their texts.
func truth(v jsontext.Value) bool {
	switch strings.ToLower(scalar(v)) {
	case "true", "1", "yes", "on":
		return true
	}
	return false
}

// decodeBase64 reads base64 as clients write it: both alphabets are in use, with and without padding, and a plus sign may
// have become a space.
func decodeBase64(text string) ([]byte, error) {
	text = strings.NewReplacer("-", "+", "_", "/", " ", "+", "=", "", "\n", "", "\r", "").Replace(text)
	return base64.RawStdEncoding.DecodeString(text)
}

// draft is an event in our shape that a translator puts together.
type draft struct {
	kind        string
	event, name string
	category    string
	messageID   string
	userID      string
	anonymousID string
	previousID  string
	groupID     string
	timestamp   jsontext.Value // by the client's clock, as it came, or nil
	sentAt      jsontext.Value // likewise
	context     map[string]object
	consent     object // decisions by purpose
	properties  object
	traits      object
}

func newDraft(kind string) *draft {
	return &draft{kind: kind, context: map[string]object{}, consent: object{}, properties: object{}, traits: object{}}
}

// in returns the object of that name in the context, or the context itself for "".
func (d *draft) in(name string) object {
	if d.context[name] == nil {
		d.context[name] = object{}
	}
	return d.context[name]
}

// place says where a member belongs: to the object of the context that in names, or to the properties.
type place struct {
	from   string
	in     string // "" is the context itself
	to     string
	number bool // is the text of one
}

const inProperties = "properties"

// move takes members to their places. A member that is null goes nowhere.
func (d *draft) move(from object, places []place) {
	for _, p := range places {
		v := from.take(p.from)
		if v == nil || v.Kind() == '"' && len(v) == len(`""`) {
			continue
		}
		if p.number {
			v = numeric(v)
		}
		if p.in == inProperties {
			d.properties[p.to] = v
		} else {
			d.in(p.in)[p.to] = v
		}
	}
}

// also returns a draft of another event that the same call says, about the same person at the same moment. Its messageId
// is the first one's with a suffix, so that both are told from each other and known again.
func (d *draft) also(kind, suffix string) *draft {
	other := newDraft(kind)
	other.messageID = d.messageID + suffix
	other.userID, other.anonymousID = d.userID, d.anonymousID
	other.timestamp, other.sentAt = d.timestamp, d.sentAt
	for name, members := range d.context {
		other.context[name] = maps.Clone(members)
	}
	other.consent = maps.Clone(d.consent)
	return other
}

// screen takes "1280x720" or "1280,720,2".
func (d *draft) screen(text string) {
	parts := strings.FieldsFunc(text, func(r rune) bool { return r == 'x' || r == ',' })
	for i, name := range []string{"width", "height", "density"} {
		if i < len(parts) {
			d.in("screen").set(name, numeric(quoted(parts[i])))
		}
	}
}

// raw returns the event. What a page's address says is told apart, and a page call has it as properties too, as in
// Segment's spec.
func (d *draft) raw() []byte {
	page := d.in("page")
	if u, err := url.Parse(page.text("url")); err == nil {
		address := object{}
		address.setText("path", u.EscapedPath())
		if u.RawQuery != "" {
			address.setText("search", "?"+u.RawQuery)
			d.in("campaign").fill(campaign(u.Query()))
		}
		page.fill(address)
	}
	if d.kind == "page" {
		d.properties.fill(page)
		if d.name == "" {
			d.name = page.text("title")
		}
	}
	if len(d.consent) > 0 {
		d.context["consent"] = d.consent
	}
	context := d.context[""]
	if context == nil {
		context = object{}
	}
	for name, members := range d.context {
		if name != "" && len(members) > 0 {
			context[name] = members.raw()
		}
	}
	e := object{}
	for name, text := range map[string]string{
		"type": d.kind, "event": d.event, "name": d.name, "category": d.category, "messageId": d.messageID, "userId": d.userID,
		"anonymousId": d.anonymousID, "previousId": d.previousID, "groupId": d.groupID,
	} {
		e.setText(name, text)
	}
	e.set("timestamp", d.timestamp)
	e.set("sentAt", d.sentAt)
	for name, members := range map[string]object{"context": context, "properties": d.properties, "traits": d.traits} {
		if len(members) > 0 {
			e[name] = members.raw()
		}
	}
	return e.raw()
}

// campaignNames are the parameters of links that name a campaign, and Segment's names for what they say. Of several that say
// the same the first counts. The ones without "utm" are Matomo's.
var campaignNames = []struct {
	to   string
	from []string
}{
	{"name", []string{"utm_campaign", "mtm_campaign", "matomo_campaign", "pk_campaign", "piwik_campaign"}},
	{"source", []string{"utm_source", "mtm_source", "matomo_source", "pk_source", "piwik_source"}},
	{"medium", []string{"utm_medium", "mtm_medium", "matomo_medium", "pk_medium", "piwik_medium"}},
	{"term", []string{"utm_term", "mtm_keyword", "mtm_kwd", "matomo_kwd", "pk_kwd", "pk_keyword", "piwik_kwd"}},
	{"content", []string{"utm_content", "mtm_content", "matomo_content", "pk_content", "piwik_content"}},
	{"id", []string{"utm_id", "mtm_cid", "matomo_cid", "pk_cid"}},
}

// campaign returns what a query says of the campaign that led to the page.
func campaign(query url.Values) object {
	found := object{}
	for _, c := range campaignNames {
		for _, name := range c.from {
			if value := query.Get(name); value != "" {
				found.setText(c.to, value)
				break
			}
		}
	}
	return found
}

// client is what the headers of a request tell of who sends it.
type client struct {
	ip        string // "" if unknown
	userAgent string
	language  string
	referrer  string // the page that sends, as far as the browser tells
	hints     object // userAgentData
	optedOut  bool   // Global Privacy Control
	page      bool   // a page sends, and not a server
}

// client reads the headers. Client hints are as User-Agent Client Hints has them.
func (h *Handler) client(r *http.Request) *client {
	c := &client{
		userAgent: r.UserAgent(), referrer: r.Referer(), optedOut: strings.TrimSpace(r.Header.Get("Sec-GPC")) == "1",
		page: r.Header.Get("Origin") != "", hints: object{},
	}
	if ip := h.clientIP(r); ip.IsValid() {
		c.ip = ip.String()
	}
	first, _, _ := strings.Cut(r.Header.Get("Accept-Language"), ",")
	first, _, _ = strings.Cut(first, ";")
	if first = strings.TrimSpace(first); first != "*" {
		c.language = first
	}
	if platform := strings.Trim(r.Header.Get("Sec-CH-UA-Platform"), `"`); platform != "" {
		c.hints.setText("platform", platform)
	}
	switch r.Header.Get("Sec-CH-UA-Mobile") {
	case "?1":
		c.hints["mobile"] = jsontext.Value("true")
	case "?0":
		c.hints["mobile"] = jsontext.Value("false")
	}
	if brands := brandsOf(r.Header.Get("Sec-CH-UA")); brands != nil {
		c.hints["brands"] = brands
	}
	return c
}

// brandsOf reads `"Chromium";v="140", "Google Chrome";v="140"`.
func brandsOf(header string) jsontext.Value {
	b := []byte{'['}
	for item := range strings.SplitSeq(header, `", "`) {
		name, version, ok := strings.Cut(item, `";v="`)
		if name = strings.Trim(name, `" `); !ok || name == "" {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = object{"brand": quoted(name), "version": quoted(strings.Trim(version, `" `))}.appendTo(b)
	}
	if len(b) == 1 {
		return nil
	}
	return append(b, ']')
}

// describe adds what a browser says of itself, where the event does not. Only the privacy signal is taken of clients that are
// no browsers.
func (c *client) describe(d *draft, browser bool) {
	if c.optedOut {
		d.consent["gpc"] = jsontext.Value("true")
	}
	if !browser {
		return
	}
	own := object{}
	own.setText("userAgent", c.userAgent)
	own.setText("locale", c.language)
	d.in("").fill(own)
	if d.in("")["userAgentData"] == nil {
		d.in("userAgentData").fill(c.hints)
	}
}

// visitor returns an anonymousId for somebody whose client keeps none, as cookieless products do it: the same for one address
// and browser on one site within a day of UTC, and another on the next. It is a hash keyed with the workspace's secret, the
// day being hashed with the rest, and tells nothing of what it was made of.
func visitor(g Grant, at time.Time, site, ip, userAgent string) string {
	key := g.Secret.Key(profiles.Identifier{
		Kind:  "visitor of " + at.UTC().Format(time.DateOnly),
		Value: strings.Join([]string{strconv.Itoa(int(g.SourceID)), site, ip, userAgent}, "\x00"),
	})
	return uuidOf(key[:])
}

func uuidOf(b []byte) string {
	s := hex.EncodeToString(b[:16])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

// derivedID returns a messageId for an event to which the client gives none: the same for the same parts, so that what is
// sent again is one event. Parts must hold what tells the event from its twins: its time, a random number or its visitor.
func derivedID(dialect string, parts ...string) string {
	sum := sha256.New()
	for _, part := range parts {
		sum.Write(strconv.AppendInt(nil, int64(len(part)), 10))
		sum.Write([]byte{':'})
		sum.Write([]byte(part))
	}
	return dialect + "-" + hex.EncodeToString(sum.Sum(nil)[:16])
}

// second is a part for [derivedID] in place of a time of the event's own: of clients that neither number nor date their
// events, nor send them again, two that are alike in everything and come in one second are one event.
func second(received time.Time) string { return strconv.FormatInt(received.Unix(), 10) }

// referral adds the source of a campaign that a link names without "utm", as Plausible and GoatCounter read it.
func (d *draft) referral(query url.Values) {
	if query.Get("utm_source") == "" {
		d.in("campaign").setText("source", cmp.Or(query.Get("ref"), query.Get("source")))
	}
}

// call is what a client sends as one event, which may become several of ours.
type call struct {
	key       string // the write key that it names, or ""
	translate func(g Grant) ([]*draft, *fault)
}

// parcel is what a request brings.
type parcel struct {
	dialect  string
	received time.Time
	key      string // the write key that the body names for all
	calls    []call
	path     []string // leads from the body to the list of the calls, or is nil if the body is the call
	address  addressPolicy
}

// addressPolicy tells when context.ip is filled from the connection.
type addressPolicy int

const (
	addressUnlessRefused addressPolicy = iota // if the source does not say otherwise
	addressIfAsked                            // only if the source asks for it: the products keep no addresses
	addressNever
)

// bring takes the calls of a request in and tells of each what became of it. The write key is that of the headers or the
// query, else that of the body, else that of each call: calls of a key that cannot be used are rejected without
// concerning those of others, and if all are, that is the error.
func (h *Handler) bring(r *http.Request, in parcel) ([]Result, error) {
	if len(in.calls) > h.cfg.MaxEvents {
		return nil, malformed("too_many_events", problem.Pointer(in.path...), "has %d events; send at most %d a request", len(in.calls), h.cfg.MaxEvents)
	}
	results := make([]Result, len(in.calls))
	g, known, err := h.authorize(r, in.key)
	if err == nil && known {
		err = g.mustSpeak(in.dialect)
	}
	if err != nil {
		return nil, err
	}
	if known {
		all := make([]int, len(in.calls))
		for i := range all {
			all[i] = i
		}
		return results, h.takeCalls(r, in, g, all, results)
	}

	byKey := map[string][]int{}
	var keys []string
	for i, c := range in.calls {
		if byKey[c.key] == nil {
			keys = append(keys, c.key)
		}
		byKey[c.key] = append(byKey[c.key], i)
	}
	var refused error
	taken := false
	for _, key := range keys {
		g, err := h.grant(r, in.dialect, key)
		var p *problem.Problem
		switch {
		case err == nil:
			if err := h.takeCalls(r, in, g, byKey[key], results); err != nil {
				return nil, err
			}
			taken = true
			continue
		case errors.Is(err, ErrUnknownKey), errors.Is(err, ErrOnlyWebhooks), errors.As(err, &p):
		default:
			return nil, err
		}
		if refused == nil {
			refused = err
		}
		p = h.toProblem(r, err)
		for _, i := range byKey[key] {
			results[i] = Result{Index: i, Status: Rejected, Code: p.Code, Reason: p.Title, Pointer: in.pointer(i), kind: otherKind}
			h.in.metrics.events.WithLabelValues(otherKind, Rejected).Inc()
		}
	}
	switch {
	case len(keys) == 0:
		return nil, missingKey()
	case !taken:
		return nil, refused
	}
	return results, nil
}

// grant returns what a write key in a body allows.
func (h *Handler) grant(r *http.Request, dialect, key string) (Grant, error) {
	if key == "" {
		return Grant{}, missingKey()
	}
	g, err := h.keys.Lookup(r.Context(), key)
	if err == nil {
		err = g.mustSpeak(dialect)
	}
	return g, err
}

func (in *parcel) pointer(i int) string {
	if in.path == nil {
		return "#"
	}
	return problem.Pointer(append(slices.Clip(in.path), strconv.Itoa(i))...)
}

// takeCalls takes those of the calls in that are of g.
func (h *Handler) takeCalls(r *http.Request, in parcel, g Grant, which []int, results []Result) error {
	var events []incoming
	var of []int
	for _, i := range which {
		drafts, f := in.calls[i].translate(g)
		if f != nil {
			events, of = append(events, incoming{fault: f}), append(of, i)
			continue
		}
		for _, d := range drafts {
			events, of = append(events, incoming{raw: d.raw()}), append(of, i)
		}
	}
	common := h.shared(r, in.received, g)
	if in.address == addressNever || in.address == addressIfAsked && g.Settings.CollectIP == nil {
		common.ip = nil
	}
	taken, err := h.in.take(r.Context(), g, common, events)
	if err != nil {
		return err
	}
	for n, res := range taken {
		i := of[n]
		if field := strings.TrimPrefix(res.Pointer, "#/"); field != "" && field != "#" { // a field of ours, which the client does not know
			res.Reason = field + " " + res.Reason
		}
		if res.Status == Rejected {
			res.Pointer = in.pointer(i)
		}
		res.Index = i
		if results[i].Status == "" || results[i].Status == Accepted && res.Status == Rejected {
			results[i] = res
		}
	}
	return nil
}

// noneAccepted tells whether there were events and every one was rejected.
func noneAccepted(results []Result) bool {
	return len(results) > 0 && !slices.ContainsFunc(results, func(res Result) bool { return res.Status == Accepted })
}

// eventStatus sums results up for the header X-Event-Status: "accepted", or why the first was rejected that was.
func eventStatus(results []Result) string {
	for _, res := range results {
		if res.Status == Rejected {
			return "rejected; " + res.Code
		}
	}
	return Accepted
}

// writeGIF answers 200 with a transparent picture of 1×1.
func writeGIF(w http.ResponseWriter, status int) {
	header := w.Header()
	header.Set("Content-Type", "image/gif")
	header.Set("Content-Length", strconv.Itoa(len(gif)))
	header.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(gif) // the client is gone: it would not have looked
}

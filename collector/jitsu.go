package collector

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
)

// Jitsu: the events of Segment's specification, one to /api/s/track and its like or to their first letters, from servers
// below /api/s/s2s, with the write key in X-Write-Key and the visitor's choice about addresses in X-IP-Policy. What Jitsu
// has of advertisers' cookies under context.clientIds we have under context.clickIds. The answer is 200 {"ok":true}, of a
// batch with how many events it had and what is wrong with those that are not stored.

func (h *Handler) jitsuRoutes(r chi.Router) {
	post(r, "/api/s/{call}", h.answer(DialectJitsu, func(w http.ResponseWriter, r *http.Request) error { return h.jitsu(w, r, false) }))
	post(r, "/api/s/s2s/{call}", h.answer(DialectJitsu, func(w http.ResponseWriter, r *http.Request) error { return h.jitsu(w, r, true) }))
	post(r, "/api/s/s2s/batch", h.answer(DialectJitsu, func(w http.ResponseWriter, r *http.Request) error { return h.jitsuBatch(w, r, true) }))
	post(r, "/v1/batch/b", h.answer(DialectJitsu, func(w http.ResponseWriter, r *http.Request) error { return h.jitsuBatch(w, r, false) }))
	get(r, "/api/px/{call}", h.pixel(jitsuCalls(), DialectJitsu))
}

// jitsuCalls returns the names of the calls, and their letters.
func jitsuCalls() []string {
	calls := make([]string, 0, 2*len(kinds))
	for _, kind := range kinds {
		calls = append(calls, kind, kind[:1])
	}
	return calls
}

// jitsu takes one event. One that comes from a server does not come from where the visitor is.
func (h *Handler) jitsu(w http.ResponseWriter, r *http.Request, server bool) error {
	call := chi.URLParam(r, "call")
	kind := kindOf(call)
	if kind == "" && call != "event" && call != "e" { // these two leave it to the event to say what it is
		return problem.Status(http.StatusNotFound)
	}
	d, err := h.receive(w, r, false, DialectJitsu)
	if err != nil {
		return err
	}
	defer d.release()
	policy := jitsuPolicy(r, &d.of, server)
	results, err := h.in.take(r.Context(), d.grant, d.of, []incoming{{raw: policy.event(d.text), kind: kind}})
	if err != nil {
		return err
	}
	if results[0].Status == Rejected {
		return rejected(results)
	}
	return writeJSON(w, []byte(`{"ok":true}`))
}

// jitsuBatch takes many events, and tells in Jitsu's words what became of them. One that is rejected does not concern the
// others.
func (h *Handler) jitsuBatch(w http.ResponseWriter, r *http.Request, server bool) error {
	d, err := h.receive(w, r, true, DialectJitsu)
	if err != nil {
		return err
	}
	defer d.release()
	policy := jitsuPolicy(r, &d.of, server)
	events, err := d.events(&h.cfg)
	if err != nil {
		return err
	}
	if d.of.context != nil {
		d.of.context = policy.context(d.of.context)
	}
	for i := range events {
		events[i].raw = policy.event(events[i].raw)
	}
	results, err := h.in.take(r.Context(), d.grant, d.of, events, "batch")
	if err != nil {
		return err
	}
	answer := struct {
		OK       bool     `json:"ok"`
		Received int      `json:"receivedEvents"`
		Stored   int      `json:"okEvents"`
		Errors   []string `json:"errors,omitempty"`
	}{Received: len(results)}
	for _, res := range results {
		if res.Status == Rejected {
			answer.Errors = append(answer.Errors, fmt.Sprintf("Message ID: %s: %s %s", res.MessageID, res.Pointer, res.Reason))
		}
	}
	answer.Stored = answer.Received - len(answer.Errors)
	answer.OK = len(answer.Errors) == 0
	text, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("marshal the answer to a batch: %w", err)
	}
	return writeJSON(w, text)
}

// ipPolicy is what is to become of addresses: kept if empty.
type ipPolicy string

const (
	ipStripLastOctet ipPolicy = "stripLastOctet"
	ipRemove         ipPolicy = "remove"
)

// jitsuPolicy returns the policy that r asks for, and applies it to what the connection tells.
func jitsuPolicy(r *http.Request, of *shared, server bool) ipPolicy {
	policy := ipPolicy(r.Header.Get("X-IP-Policy"))
	switch {
	case server, policy == ipRemove:
		of.ip = nil
	case policy == ipStripLastOctet && of.ip != nil:
		of.ip = maskIP(of.ip)
	}
	return policy
}

// maskIP returns the network of an address: of IPv4 without the last octet, of IPv6 the first 48 bits. What is no address
// becomes nil.
func maskIP(quoted []byte) []byte {
	text, err := jsontext.AppendUnquote(nil, quoted)
	if err != nil {
		return nil
	}
	ip, err := netip.ParseAddr(strings.TrimSpace(string(text)))
	if err != nil {
		return nil
	}
	bits := 24
	if ip = ip.Unmap().WithZone(""); ip.Is6() {
		bits = 48
	}
	network, _ := ip.Prefix(bits) // an address has that many
	return []byte(`"` + network.Addr().String() + `"`)
}

// event returns an event of Jitsu's as one of ours.
func (p ipPolicy) event(text []byte) []byte {
	return rewrite(text, func(e map[string]jsontext.Value) {
		p.apply(e, "requestIp")
		if e["context"] != nil {
			e["context"] = p.context(e["context"])
		}
	})
}

// context returns a context of Jitsu's as one of ours.
func (p ipPolicy) context(text []byte) []byte {
	return rewrite(text, func(c map[string]jsontext.Value) {
		p.apply(c, "ip")
		if c["clickIds"] == nil && c["clientIds"].Kind() == '{' {
			c["clickIds"] = rewrite(c["clientIds"], clickIDs)
		}
	})
}

// apply does to the address in a member what the policy says.
func (p ipPolicy) apply(members map[string]jsontext.Value, name string) {
	ip := members[name]
	switch {
	case ip == nil:
	case p == ipRemove:
		delete(members, name)
	case p == ipStripLastOctet:
		if members[name] = maskIP(ip); members[name] == nil {
			delete(members, name)
		}
	}
}

// clickIDs makes Jitsu's clientIds our clickIds, which are texts: what advertisers know the visitor by, and Google
// Analytics' client id.
func clickIDs(ids map[string]jsontext.Value) {
	if client := membersOf(ids["ga4"])["clientId"]; client != nil {
		ids["client_id"] = client
	}
	maps.DeleteFunc(ids, func(_ string, v jsontext.Value) bool { return v.Kind() != '"' })
}

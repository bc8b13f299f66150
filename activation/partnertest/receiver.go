package partnertest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// Receiver is a customer's endpoint for signed webhooks that verifies everything there is to verify, with code that shares
// nothing with the sender's, and refuses whatever is not as Standard Webhooks 1.0.0 and our documentation say.
type Receiver struct {
	Faults
	URL string

	mu       sync.Mutex
	secrets  []string
	batch    int
	people   map[string]activation.Person
	ever     map[string]map[activation.Identifier]bool // profile → what the person has ever been known by
	changed  map[string]bool                           // profiles: whether that has changed
	members  map[string]map[string]bool                // segment → profiles
	newest   map[string]map[string]int64               // segment → profile → version
	bodies   map[string][sha256.Size]byte              // webhook-id → body
	sets     map[string]string                         // whom a message was about → webhook-id
	times    map[string]int64                          // webhook-id → webhook-timestamp
	received map[string]time.Time                      // webhook-id → when
	refuse   map[string]bool                           // profiles, and events by their message ids
	expected map[string]activation.Event               // by message id
	events   map[string]bool                           // that came, by message id
	gone     bool
	tests    int
	Arrived  chan Arrival // if not nil, every applied member is sent here
}

// Arrival is one member of a message that was applied.
type Arrival struct {
	Segment, Profile, MessageID string
	Entered                     bool
	At                          time.Time
}

// NewReceiver starts a receiver that lives as long as the test.
func NewReceiver(t testing.TB) *Receiver {
	t.Helper()
	r := &Receiver{
		secrets:  []string{"whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("receiver"), 4))},
		batch:    10,
		people:   map[string]activation.Person{},
		ever:     map[string]map[activation.Identifier]bool{},
		changed:  map[string]bool{},
		members:  map[string]map[string]bool{},
		newest:   map[string]map[string]int64{},
		bodies:   map[string][sha256.Size]byte{},
		sets:     map[string]string{},
		times:    map[string]int64{},
		received: map[string]time.Time{},
		refuse:   map[string]bool{},
		expected: map[string]activation.Event{},
		events:   map[string]bool{},
	}
	serve := func(h http.Handler) string {
		server := httptest.NewServer(h)
		t.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
		return server.URL
	}
	var trap http.Handler
	trapURL := serve(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { trap.ServeHTTP(w, req) }))
	trap = r.Trap(trapURL)
	r.URL = serve(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.Serve(w, req, http.HandlerFunc(r.handle))
	})) + "/hooks/audience"
	return r
}

// Settings returns those of a destination that reaches the receiver.
func (r *Receiver) Settings() activation.Settings {
	r.mu.Lock()
	defer r.mu.Unlock()
	return activation.Settings{
		Config:  jsontext.Value(fmt.Sprintf(`{"url":%q,"batch":%d}`, r.URL, r.batch)),
		Secrets: jsontext.Value(fmt.Sprintf(`{"secret":%q}`, r.secrets[0])),
	}
}

// Batch sets how many people a message may be about.
func (r *Receiver) Batch(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batch = n
}

// Rotate makes the receiver expect signatures with another secret as well as with those it knew.
func (r *Receiver) Rotate(secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets = append(r.secrets, secret)
}

// Seed implements [Fake].
func (r *Receiver) Seed(people ...activation.Person) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range people {
		id := profileText(p.ID)
		if r.ever[id] == nil {
			r.ever[id] = map[activation.Identifier]bool{}
		}
		for _, identifier := range p.Identifiers {
			r.ever[id][identifier] = true
		}
		if before, ok := r.people[id]; ok && !slices.Equal(before.Identifiers, p.Identifiers) {
			r.changed[id] = true
		}
		r.people[id] = p
	}
}

// Refuse implements [Fake].
func (r *Receiver) Refuse(id activation.ProfileID, refuse bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse[profileText(id)] = refuse
}

// Revoke implements [Fake].
func (r *Receiver) Revoke() { r.Script(Fault{Times: 1000, Status: http.StatusUnauthorized}) }

// Retire has the receiver answer 410 from now on.
func (r *Receiver) Retire(gone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = gone
}

// Tests returns how many test messages came.
func (r *Receiver) Tests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tests
}

// Words implements [Fake]: a receiver has no words of its own.
func (r *Receiver) Words() Words { return Words{} }

// Leftovers implements [Fake]. A receiver knows people by our ids, which are nobody else's.
func (r *Receiver) Leftovers(Audience) []string { return nil }

// Members implements [Fake].
func (r *Receiver) Members(a Audience) []activation.ProfileID {
	r.mu.Lock()
	defer r.mu.Unlock()
	set := map[activation.ProfileID]bool{}
	for text := range r.members["seg_"+strconv.FormatInt(a.Segment, 10)] {
		b, err := hex.DecodeString(strings.TrimPrefix(text, "p_"))
		if err != nil || len(b) != 16 {
			r.Violate("profile_id is %q", text)
			continue
		}
		set[activation.ProfileID(b)] = true
	}
	return sorted(set)
}

func profileText(id activation.ProfileID) string { return "p_" + hex.EncodeToString(id[:]) }

// message is the payload as it is documented.
type message struct {
	Type      string
	Timestamp time.Time
	Data      struct {
		Segment  struct{ ID, Key, Name string }
		Sequence int64
		Entered  []entry
		Left     []entry
	}
}

type entry struct {
	ProfileID   string    `json:"profile_id"`
	ExternalID  string    `json:"external_id"`
	Identifiers []ident   `json:"identifiers"`
	Version     int64     `json:"version"`
	At          time.Time `json:"at"`
	Cause       string    `json:"cause"`
	MessageID   string    `json:"message_id"`
}

type ident struct{ Kind, Value string }

func (r *Receiver) handle(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		if r.Requests() > 0 && r.times["gone"] > 0 {
			r.Violate("a request came after the answer 410")
		}
		r.times["gone"] = 1
		w.WriteHeader(http.StatusGone)
		return
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	status, problem := r.verify(req, body)
	if problem != "" {
		if !r.Skewed() {
			r.Violate("%s", problem)
		}
		http.Error(w, problem, status)
		return
	}
	var m message
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if bytes.Contains(body, []byte(`"type":"mubatch.test"`)) {
		r.tests++
		return
	}
	if bytes.Contains(body, []byte(`"type":"event"`)) {
		status, problem := r.event(body)
		if problem != "" {
			http.Error(w, problem, status)
		}
		return
	}
	if err := decoder.Decode(&m); err != nil {
		r.Violate("the body cannot be read: %v", err)
		http.Error(w, "bad body", http.StatusBadRequest)
		return
	}
	if status, problem := r.check(m, req.Header.Get("webhook-id")); problem != "" {
		http.Error(w, problem, status)
		return
	}
	r.apply(m)
	w.WriteHeader(http.StatusOK)
	io.WriteString(w, "thanks, ada@example.com")
}

// verify checks a message's envelope.
func (r *Receiver) verify(req *http.Request, body []byte) (status int, problem string) {
	id, stamp, signature := req.Header.Get("webhook-id"), req.Header.Get("webhook-timestamp"), req.Header.Get("webhook-signature")
	if req.Method != http.MethodPost || id == "" || stamp == "" || signature == "" || strings.Contains(id, ".") {
		return http.StatusBadRequest, "not a POST with webhook-id, webhook-timestamp and webhook-signature"
	}
	if kind := req.Header.Get("Content-Type"); kind != "application/json" {
		return http.StatusBadRequest, fmt.Sprintf("the content type is %q", kind)
	}
	if len(body) > 20_000 {
		return http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has %d bytes", len(body))
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return http.StatusBadRequest, "webhook-timestamp is not in seconds"
	}
	if r.Now().Sub(time.Unix(seconds, 0)).Abs() > 300*time.Second {
		return http.StatusBadRequest, "webhook-timestamp is more than five minutes off"
	}
	matches := 0
	for _, secret := range r.secrets {
		if slices.Contains(strings.Split(signature, " "), Sign(secret, id, stamp, body)) {
			matches++
		}
	}
	switch {
	case matches == 0:
		var parsed any
		if json.Unmarshal(body, &parsed) == nil {
			if again, err := json.Marshal(parsed); err == nil && strings.Contains(signature, Sign(r.secrets[0], id, stamp, again)) {
				return http.StatusUnauthorized, "the signature is of the body written anew, not of the bytes sent"
			}
		}
		return http.StatusUnauthorized, "no signature matches"
	case matches < len(r.secrets):
		r.Violate("only %d of %d secrets signed during a rotation", matches, len(r.secrets))
	}
	sum := sha256.Sum256(body)
	if before, ok := r.bodies[id]; ok && before != sum {
		return http.StatusBadRequest, "webhook-id came again with another body"
	}
	if last, ok := r.times[id]; ok && time.Since(r.received[id]) > 2*time.Second && last == seconds {
		r.Violate("webhook-timestamp was not renewed for another attempt")
	}
	r.bodies[id], r.times[id], r.received[id] = sum, seconds, time.Now()
	return 0, ""
}

// Sign returns a Standard Webhooks signature, computed apart from the sender's code.
func Sign(secret, id, stamp string, body []byte) string {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return "a bad secret"
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, stamp, body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// check checks what a message says.
func (r *Receiver) check(m message, id string) (status int, problem string) {
	bad := func(format string, args ...any) {
		problem, status = fmt.Sprintf(format, args...), http.StatusBadRequest
		r.Violate(format, args...)
	}
	if m.Type != "segment.membership_changed" || m.Timestamp.IsZero() || m.Data.Segment.ID == "" || m.Data.Sequence <= 0 {
		bad("type, timestamp, segment or sequence is missing")
	}
	if m.Data.Segment.Key == "" || m.Data.Segment.Name == "" {
		bad("the segment has no key or name")
	}
	both := append(slices.Clone(m.Data.Entered), m.Data.Left...)
	if len(both) == 0 {
		bad("the message is about nobody")
	}
	if len(both) > r.batch {
		bad("the message is about %d people, more than the %d that were asked for", len(both), r.batch)
	}
	var about []string
	seen := map[string]bool{}
	for i, e := range both {
		if e.ProfileID == "" || e.Version == 0 || e.At.IsZero() || e.Cause == "" {
			bad("entry %d lacks profile_id, version, at or cause", i)
		}
		if seen[e.ProfileID] {
			bad("%s is in one message twice", e.ProfileID)
		}
		seen[e.ProfileID] = true
		about = append(about, fmt.Sprintf("%s:%d", e.ProfileID, e.Version))
		if p, ok := r.people[e.ProfileID]; ok {
			r.checkPerson(e, p, bad)
		}
		if r.newest[m.Data.Segment.ID][e.ProfileID] > e.Version {
			r.Violate("%s: version %d came after version %d", e.ProfileID, e.Version, r.newest[m.Data.Segment.ID][e.ProfileID])
		}
		if r.refuse[e.ProfileID] {
			return http.StatusUnprocessableEntity, "will not have " + e.ProfileID
		}
	}
	slices.Sort(about)
	set := m.Data.Segment.ID + " " + strings.Join(about, " ")
	if before, ok := r.sets[set]; ok && before != id {
		bad("webhook-id changed for another attempt at the same message")
	}
	r.sets[set] = id
	return status, problem
}

// checkPerson holds what a message says of somebody against what is true: identifiers of two persons must never mix.
func (r *Receiver) checkPerson(e entry, p activation.Person, bad func(string, ...any)) {
	for _, id := range e.Identifiers {
		if !r.ever[e.ProfileID][activation.Identifier(id)] {
			bad("%s has an identifier of somebody else", e.ProfileID)
		}
		if id.Kind == "user_id" && e.ExternalID == "" {
			bad("%s has a user_id and no external_id", e.ProfileID)
		}
	}
	// Of somebody whose identifiers have changed, a message may tell those of before.
	if !r.changed[e.ProfileID] && len(e.Identifiers) != len(p.Identifiers) {
		bad("%s has %d identifiers, want %d", e.ProfileID, len(e.Identifiers), len(p.Identifiers))
	}
}

func (r *Receiver) apply(m message) {
	segment := m.Data.Segment.ID
	if r.members[segment] == nil {
		r.members[segment], r.newest[segment] = map[string]bool{}, map[string]int64{}
	}
	for _, e := range m.Data.Entered {
		r.members[segment][e.ProfileID] = true
	}
	for _, e := range m.Data.Left {
		delete(r.members[segment], e.ProfileID)
	}
	for i, e := range append(slices.Clone(m.Data.Entered), m.Data.Left...) {
		r.newest[segment][e.ProfileID] = e.Version
		if e.Cause == activation.CauseErasure { // and with the person what was known of versions
			delete(r.newest[segment], e.ProfileID)
			for set := range r.sets {
				if strings.Contains(set, " "+e.ProfileID+":") {
					delete(r.sets, set)
				}
			}
		}
		if r.Arrived != nil {
			r.Arrived <- Arrival{segment, e.ProfileID, e.MessageID, i < len(m.Data.Entered), time.Now()}
		}
	}
}

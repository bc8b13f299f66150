package partnertest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fault is something that goes wrong with a request.
type Fault struct {
	Times int  // how often; 1 if 0
	Apply bool // the request takes effect all the same

	// Match tells which requests it happens to: those that change an audience if nil. See [Faults.Changes].
	Match func(*http.Request) bool

	// What is answered. Nothing but the status is needed.
	Status int
	Header http.Header
	Body   string

	Delay    time.Duration // before the answer
	Late     bool          // nothing is wrong but that it takes effect only after Delay
	Wait     time.Duration // asked for with Retry-After, in seconds
	WaitDate bool          // asked for as a date instead
	Silent   bool          // asked for in Body or Header, as the partner does, and not with Retry-After
	Close    bool          // close without reading the request
	Reset    bool          // read the request, then reset the connection
	Cut      bool          // reset the connection in the middle of the answer
	Huge     bool          // answer with 100 MB
	Drip     bool          // answer byte by byte, slower than anybody should wait
	Redirect bool          // to a trap
	Skew     time.Duration // the partner's clock is off
}

// Faults has things go wrong with the requests of a fake, one after the other, and keeps what the fake found wrong.
type Faults struct {
	mu         sync.Mutex
	faults     []Fault
	violations []string
	requests   int
	told       time.Time // when Retry-After was answered
	notBefore  time.Time
	trap       string
	skew       time.Duration
	ahead      time.Duration
	changes    func(*http.Request) bool
	wrote      int64
}

// Changes tells which requests change an audience: all, unless this is called. Others, such as for tokens, audiences or what
// became of a message, meet no faults but those that match them.
func (s *Faults) Changes(are func(*http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes = are
}

// Advance has time pass: for tokens, rate windows, waits that were asked for, memberships that end. See [Faults.Steady].
func (s *Faults) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += d
	s.notBefore = s.notBefore.Add(-d)
}

// Script makes faults happen to the next requests.
func (s *Faults) Script(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, faults...)
}

// Heal makes the faults end that have not happened yet.
func (s *Faults) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Scripted returns how many faults are still to happen.
func (s *Faults) Scripted() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		n += max(f.Times, 1)
	}
	return n
}

// Violate records something that a real partner might have let pass.
func (s *Faults) Violate(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violations = append(s.violations, fmt.Sprintf(format, args...))
}

// Violations returns what was found wrong.
func (s *Faults) Violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.violations...)
}

// Requests returns how many requests came.
func (s *Faults) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// Now is the time by the fake's wall clock, which may be off.
func (s *Faults) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.skew)
}

// Steady is the time by a clock that is never off, and that [Faults.Advance] moves on: for what the fake measures.
func (s *Faults) Steady() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.ahead)
}

// Skewed tells whether the fake's clock is off, so that it must not hold what follows from that against anybody.
func (s *Faults) Skewed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.skew != 0
}

// underway is how long after an answer requests may come that were sent before it was read.
const underway = time.Second

func (s *Faults) next(r *http.Request) (f Fault, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	if time.Now().Before(s.notBefore) && time.Since(s.told) > underway {
		s.violations = append(s.violations,
			fmt.Sprintf("a request came %v before it was allowed to", time.Until(s.notBefore).Round(time.Millisecond)))
	}
	s.skew = 0
	changes := s.changes == nil || s.changes(r)
	if len(s.faults) == 0 {
		return Fault{}, false
	}
	f = s.faults[0]
	if f.Match != nil && !f.Match(r) || f.Match == nil && !changes {
		return Fault{}, false
	}
	if s.faults[0].Times = max(f.Times, 1) - 1; s.faults[0].Times == 0 {
		s.faults = s.faults[1:]
	}
	s.skew = f.Skew
	return f, true
}

// NotBefore says that the partner has asked, in words of its own, that nothing be sent for a while.
func (s *Faults) NotBefore(wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told, s.notBefore = time.Now(), time.Now().Add(wait)
}

// Serve answers a request as the script says, and as partner does where it says nothing.
func (s *Faults) Serve(w http.ResponseWriter, r *http.Request, partner http.Handler) {
	f, ok := s.next(r)
	if f.Close {
		abort(w)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if !ok || f.Skew != 0 {
		w.Header().Set("Date", s.Now().UTC().Format(http.TimeFormat))
		partner.ServeHTTP(w, r)
		return
	}
	if f.Late {
		time.Sleep(f.Delay)
		partner.ServeHTTP(w, r)
		return
	}
	if f.Apply {
		answer := &discard{header: http.Header{}}
		// A token may have ended in the meantime, as always.
		if partner.ServeHTTP(answer, r); answer.status >= 300 && answer.status != http.StatusUnauthorized {
			s.Violate("a request that was to be applied was refused with %d", answer.status)
		}
	}
	select {
	case <-time.After(f.Delay):
	case <-r.Context().Done():
		return
	}
	if f.Reset {
		abort(w)
		return
	}
	s.answer(w, r, f)
}

func (s *Faults) answer(w http.ResponseWriter, r *http.Request, f Fault) {
	for name, values := range f.Header {
		w.Header()[name] = values
	}
	if f.Wait > 0 && f.Silent {
		s.NotBefore(f.Wait)
	} else if f.Wait > 0 {
		at := time.Now().Add(f.Wait)
		w.Header().Set("Retry-After", strconv.Itoa(int(f.Wait.Seconds())))
		if f.WaitDate {
			at = at.Truncate(time.Second)
			w.Header().Set("Retry-After", at.UTC().Format(http.TimeFormat))
		}
		s.mu.Lock()
		s.told, s.notBefore = time.Now(), at
		s.mu.Unlock()
	}
	if f.Redirect {
		s.mu.Lock()
		w.Header().Set("Location", s.trap)
		s.mu.Unlock()
	}
	if f.Cut {
		w.Header().Set("Content-Length", "1000")
	}
	w.WriteHeader(max(f.Status, http.StatusOK))
	io.WriteString(w, f.Body)
	switch {
	case f.Cut:
		http.NewResponseController(w).Flush()
		abort(w)
	case f.Huge:
		chunk := bytes.Repeat([]byte("x"), 1<<16)
		for range 100 << 20 / len(chunk) {
			n, err := w.Write(chunk)
			s.mu.Lock()
			s.wrote += int64(n)
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
		s.Violate("somebody read an answer of 100 MB")
	case f.Drip:
		for range 600 {
			io.WriteString(w, "x")
			http.NewResponseController(w).Flush()
			select {
			case <-time.After(100 * time.Millisecond):
			case <-r.Context().Done():
				return
			}
		}
		s.Violate("somebody waited a minute for an answer")
	}
}

// Listen starts a server that lives as long as the test and answers as partner does, faults aside, and another for redirects
// to lead to. It returns the URL of the first.
func (s *Faults) Listen(t testing.TB, partner http.Handler) (url string) {
	serve := func(h http.HandlerFunc) string {
		server := httptest.NewServer(h)
		t.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
		return server.URL
	}
	var trap http.Handler
	trap = s.Trap(serve(func(w http.ResponseWriter, r *http.Request) { trap.ServeHTTP(w, r) }))
	return serve(func(w http.ResponseWriter, r *http.Request) { s.Serve(w, r, partner) })
}

// Inspect notes what looks like an e-mail address in a request, to partners that are to be sent none.
func (s *Faults) Inspect(r *http.Request, body []byte) {
	for _, text := range []string{string(body), r.URL.String(), fmt.Sprint(r.Header)} {
		if strings.Contains(text, "@") || strings.Contains(text, "%40") {
			s.Violate("%s %s: there is an e-mail address in it", r.Method, r.URL.Path)
			return
		}
	}
}

// Trap returns a handler for the place that redirects lead to, at the given URL.
func (s *Faults) Trap(url string) http.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trap = url
	return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { s.Violate("a redirect was followed") })
}

// abort resets a connection.
func abort(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// discard is where the answer goes that nobody gets.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header { return d.header }

func (d *discard) WriteHeader(status int) {
	if d.status == 0 {
		d.status = status
	}
}

func (d *discard) Write(b []byte) (int, error) {
	d.WriteHeader(http.StatusOK)
	return len(b), nil
}

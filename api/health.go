package api

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
)

// Readiness says how well something can do its work.
type Readiness string

// From best to worst.
const (
	Ready    Readiness = "ready"
	Degraded Readiness = "degraded" // it works, but not as promised
	NotReady Readiness = "not_ready"
)

// Check is one thing that /readyz looks at. Probe gives a reason, written for operators and without secrets, unless all
// is well and there is no number to tell; it is asked at most twice a second, and given up on after two seconds.
type Check struct {
	Name  string
	Probe func(ctx context.Context) (state Readiness, reason string)
}

const (
	probeTimeout = 2 * time.Second
	probeAge     = 500 * time.Millisecond
)

type checkJSON struct {
	Name   string    `json:"name"`
	Status Readiness `json:"status"`
	Reason string    `json:"reason,omitzero"`
}

type readinessJSON struct {
	Status Readiness   `json:"status"`
	Checks []checkJSON `json:"checks"`
}

// live does no I/O, so that an outage elsewhere never gets the process restarted.
func live(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{"ok"})
}

// readiness answers with what the checks say, together as bad as the worst of them.
func readiness(checks []Check) http.HandlerFunc {
	var mu sync.Mutex
	var last readinessJSON
	var at time.Time
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if at.IsZero() || time.Since(at) > probeAge {
			last, at = probe(context.WithoutCancel(r.Context()), checks), time.Now()
		}
		found := last
		mu.Unlock()
		status := http.StatusOK
		if found.Status == NotReady {
			status = http.StatusServiceUnavailable
		}
		writeJSON(w, status, found)
	}
}

func probe(ctx context.Context, checks []Check) readinessJSON {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	found := readinessJSON{Ready, make([]checkJSON, len(checks))}
	answers := make(chan struct {
		i int
		c checkJSON
	}, len(checks))
	for i, check := range checks {
		found.Checks[i] = checkJSON{check.Name, NotReady, "did not answer in time"}
		go func() {
			state, reason := check.Probe(ctx)
			answers <- struct {
				i int
				c checkJSON
			}{i, checkJSON{check.Name, state, reason}}
		}()
	}
	for range checks {
		select {
		case a := <-answers:
			found.Checks[a.i] = a.c
		case <-ctx.Done():
		}
	}
	for _, c := range found.Checks {
		if c.Status == NotReady || c.Status == Degraded && found.Status == Ready {
			found.Status = c.Status
		}
	}
	return found
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client is gone: nobody is left to tell
}

package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// outlets are a fake of each partner that mubatch has, by the type of destination.
func outlets(t testing.TB) map[string]partnertest.Fake {
	return map[string]partnertest.Fake{
		"google_customer_match": partnertest.NewGoogle(t, partnertest.GoogleOptions{}),
		"linkedin":              partnertest.NewLinkedIn(t, partnertest.LinkedInOptions{}),
		"meta":                  partnertest.NewMeta(t, partnertest.MetaOptions{}),
		"microsoft":             partnertest.NewMicrosoft(t, partnertest.MicrosoftOptions{}),
		"s3":                    partnertest.NewS3(t, partnertest.S3Options{}),
		"sftp":                  partnertest.NewSFTP(t, partnertest.SFTPOptions{}),
		"tiktok":                partnertest.NewTikTok(t, partnertest.TikTokOptions{}),
		"tradedesk":             partnertest.NewTradeDesk(t, partnertest.TradeDeskOptions{}),
		"webhook":               partnertest.NewReceiver(t),
	}
}

// fleet are fakes of all partners, and destinations at them.
type fleet struct {
	at        info
	fakes     map[string]partnertest.Fake
	pool      *pgxpool.Pool
	forgetful func(func()) // does something while no server is running that would remember what was before
	logs      func() string
	serial    int
}

// attach makes a destination at each of the fakes, which is told of some segments.
func (f *fleet) attach(t *testing.T, segments ...string) {
	t.Helper()
	for kind, fake := range f.fakes {
		set := fake.Settings()
		body := map[string]any{"key": kind, "name": kind, "type": kind, "config": json.RawMessage(set.Config), "segments": segments}
		if len(set.Secrets) > 0 {
			body["secrets"] = json.RawMessage(set.Secrets)
		}
		f.ask(t, http.MethodPost, "destinations", body, new(any))
	}
}

// gate is what a destination of a type asks for.
func gate(kind string) activation.Gate {
	if kind == "webhook" {
		return activation.Gate{}
	}
	return activation.AdGate()
}

// profile returns the profile of a user who is known, or will be soon.
func (f *fleet) profile(t *testing.T, user string) (id activation.ProfileID) {
	t.Helper()
	var p struct{ ID string }
	eventually(t, "the user is known", func() bool { return f.at.do(t, http.MethodGet, "/api/v1/profiles/user_id:"+user, nil, &p) })
	return profileID(t, p.ID)
}

func profileID(t *testing.T, text string) (id activation.ProfileID) {
	t.Helper()
	if n, err := hex.Decode(id[:], []byte(strings.TrimPrefix(text, "p_"))); err != nil || n != len(id) {
		t.Fatalf("profile id %q: %v", text, err)
	}
	return id
}

// send sends an event until it is acknowledged.
func (f *fleet) send(t *testing.T, event map[string]any) {
	t.Helper()
	f.persist(t, "/v1/"+event["type"].(string), func(r *http.Request) { r.SetBasicAuth(f.at.WriteKey, "") }, http.MethodPost, event, new(any))
}

// ask makes a request of the management API until it is answered.
func (f *fleet) ask(t *testing.T, method, path string, in, out any) {
	t.Helper()
	f.serial++
	key := fmt.Sprintf("once-%d", f.serial)
	f.persist(t, "/api/v1/"+path, func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+f.at.SecretKey)
		if method != http.MethodGet {
			r.Header.Set("Idempotency-Key", key)
		}
	}, method, in, out)
}

func (f *fleet) persist(t *testing.T, path string, authorize func(*http.Request), method string, in, out any) {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	once := func() (again bool, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, f.at.URL+path, bytes.NewReader(body))
		if err != nil {
			return false, err
		}
		req.Header.Set("Content-Type", "application/json")
		authorize(req)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return true, err
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		switch {
		case err != nil || res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusConflict:
			return true, errors.Join(err, fmt.Errorf("%d %s", res.StatusCode, answer))
		case res.StatusCode >= 300:
			return false, fmt.Errorf("%d %s", res.StatusCode, answer)
		}
		return false, json.Unmarshal(answer, out)
	}
	for deadline := time.Now().Add(10 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		again, err := once()
		if err == nil {
			return
		}
		if !again || time.Now().After(deadline) {
			t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

// destinationState is what the API says of a destination.
type destinationState struct {
	Status       string
	StatusReason string `json:"status_reason"`
	Segments     []struct {
		SegmentID  string `json:"segment_id"`
		SegmentKey string `json:"segment_key"`
		Audience   string
		Filled     bool
		Ready      bool
		WaitingFor string `json:"waiting_for"`
	}
}

// applied waits until everything is applied that has been accepted.
func (f *fleet) applied(t *testing.T) {
	t.Helper()
	accepted := time.Now()
	var stats struct {
		AsOf time.Time `json:"as_of"`
	}
	for deadline := time.Now().Add(10 * time.Minute); stats.AsOf.Before(accepted); time.Sleep(100 * time.Millisecond) {
		if f.ask(t, http.MethodGet, "stats", nil, &stats); time.Now().After(deadline) {
			t.Fatalf("after ten minutes what was accepted up to %v is not applied, but up to %v", accepted, stats.AsOf)
		}
	}
}

// settle waits until everything is applied and nothing waits to be sent. Where there is nothing to do but wait it has time
// pass, for the database and the partners at once.
func (f *fleet) settle(t *testing.T) {
	t.Helper()
	f.applied(t)
	sentAgain := map[string]bool{}
	for deadline := time.Now().Add(10 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		var waiting []string
		for kind := range f.fakes {
			var d destinationState
			var sum struct{ Pending, Accepted int }
			f.ask(t, http.MethodGet, "destinations/"+kind, nil, &d)
			f.ask(t, http.MethodGet, "destinations/"+kind+"/summary", nil, &sum)
			if d.Status != "active" {
				f.ask(t, http.MethodPost, "destinations/"+kind+"/resume", nil, new(any))
				waiting = append(waiting, fmt.Sprintf("%s was %s: %s", kind, d.Status, d.StatusReason))
				continue
			}
			for _, s := range d.Segments {
				if !s.Filled || !s.Ready {
					waiting = append(waiting, fmt.Sprintf("%s: %s waits for %s", kind, s.SegmentKey, s.WaitingFor))
				}
			}
			if sum.Pending+sum.Accepted > 0 {
				waiting = append(waiting, fmt.Sprintf("%s: %+v", kind, sum))
				continue
			}
			// Whom a partner refused alone, as too large, has failed, or, if it was to be removed, waits for a day.
			if !sentAgain[kind] {
				sentAgain[kind] = true
				f.ask(t, http.MethodPost, "destinations/"+kind+"/replay", map[string]any{}, new(any))
				waiting = append(waiting, kind+": failed ones are sent again")
			}
		}
		if len(waiting) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after ten minutes:\n%s\nthe end of what the server says:\n%s", strings.Join(waiting, "\n"), tail(f.logs(), 30))
		}
		idle, err := partnertest.Idle(t.Context(), f.pool)
		if err != nil {
			t.Fatal(err)
		}
		if idle > 2*time.Second {
			f.forgetful(func() {
				for _, fake := range f.fakes {
					fake.Advance(idle)
				}
				if err := partnertest.Warp(t.Context(), f.pool, idle); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// compare holds whom the partners hold to who should be in a segment at a destination.
func (f *fleet) compare(t *testing.T, want func(kind, segment string) []activation.ProfileID, name func(activation.ProfileID) string) {
	t.Helper()
	names := func(ids []activation.ProfileID) (list []string) {
		for _, id := range ids {
			list = append(list, name(id))
		}
		slices.Sort(list)
		return list
	}
	for kind, fake := range f.fakes {
		var d destinationState
		f.ask(t, http.MethodGet, "destinations/"+kind, nil, &d)
		for _, s := range d.Segments {
			id, err := strconv.ParseInt(strings.TrimPrefix(s.SegmentID, "seg_"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			audience := partnertest.Audience{Segment: id, Key: s.SegmentKey, ID: s.Audience}
			if diff := cmp.Diff(names(want(kind, s.SegmentKey)), names(fake.Members(audience))); diff != "" {
				t.Errorf("%s holds others than are in %s (-want +got):\n%s", kind, s.SegmentKey, diff)
			}
			if left := fake.Leftovers(audience); len(left) > 0 {
				t.Errorf("%s holds in %s what is right for nobody: %v", kind, s.SegmentKey, left)
			}
		}
		for _, v := range fake.Violations() {
			t.Errorf("%s: violation: %s", kind, v)
		}
	}
}

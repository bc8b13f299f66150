package demo

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The example of the Standard Webhooks specification.
func TestReceiverKnowsTheStandardSignature(t *testing.T) {
	t.Parallel()
	key, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{key: key}
	const (
		id        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
		body      = `{"test": 2432232314}`
		signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	)
	sent := time.Unix(1614265330, 0)
	header := func(at time.Time, signature string) http.Header {
		h := http.Header{}
		h.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
		h.Set("webhook-signature", signature)
		return h
	}
	tests := map[string]struct {
		id, body string
		header   http.Header
		now      time.Time
		ok       bool
	}{
		"the right signature":         {id, body, header(sent, signature), sent, true},
		"after one of another key":    {id, body, header(sent, "v1,AAAA "+signature), sent, true},
		"another body":                {id, body + " ", header(sent, signature), sent, false},
		"another id":                  {id + "x", body, header(sent, signature), sent, false},
		"no id":                       {"", body, header(sent, signature), sent, false},
		"another time":                {id, body, header(sent.Add(time.Second), signature), sent, false},
		"a replay after five minutes": {id, body, header(sent, signature), sent.Add(301 * time.Second), false},
		"another scheme":              {id, body, header(sent, "v1a"+signature[2:]), sent, false},
		"no signature":                {id, body, header(sent, ""), sent, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := r.verify(tt.id, tt.header, []byte(tt.body), tt.now); (err == nil) != tt.ok {
				t.Errorf("verify returns %v", err)
			}
		})
	}
}

func TestReceiverEndsWithTheLatestWhateverTheOrder(t *testing.T) {
	t.Parallel()
	r := &receiver{seen: map[string]bool{}, held: map[place]state{}, arrived: newClock(), said: func(delivery) {}}
	in := func(profile string, version int64) []delivery {
		return []delivery{{ProfileID: profile, Version: version}}
	}
	now := time.Now()
	r.take("1", now, "a", in("p_1", 1), nil)
	r.take("3", now, "a", in("p_1", 3), in("p_2", 2))
	r.take("2", now, "a", in("p_2", 1), in("p_1", 2)) // late
	r.take("3", now, "a", in("p_1", 3), in("p_2", 2)) // repeated
	r.take("4", now, "b", in("p_2", 1), nil)
	if diff := cmp.Diff(map[string]bool{"p_1": true}, r.holds("a")); diff != "" {
		t.Errorf("in a, -want +got:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]bool{"p_2": true}, r.holds("b")); diff != "" {
		t.Errorf("in b, -want +got:\n%s", diff)
	}
	if got := r.received(); got != (Received{Requests: 5, People: 6}) {
		t.Errorf("received %+v, want 5 requests about 6 people", got)
	}
}

func TestReceiverRefusesWhatIsNotSigned(t *testing.T) {
	t.Parallel()
	r, err := listen(t.Context(), newClock(), func(delivery) { t.Error("is told of it") })
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader([]byte(`{}`))))
	if got := r.received(); w.Code != http.StatusUnauthorized || got.Refused != 1 {
		t.Errorf("answers %d, received %+v; want 401 and one refused", w.Code, got)
	}
}

package activation

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// notPublic are spellings of hosts that are not on the public internet.
var notPublic = []string{
	"127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "[::1]", "[::]",
	"[::ffff:127.0.0.1]", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "[fd00::1]",
	"[fe80::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "198.18.0.1", "240.0.0.1", "255.255.255.255", "224.0.0.1",
}

func TestClientRefuses(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a request to a private address arrived")
	}))
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := NewClient(Outbound{})
	for _, host := range notPublic {
		for _, port := range []string{port, "443"} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+":"+port+"/secret", nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := client.Do(req)
			cancel()
			if err == nil {
				res.Body.Close()
				t.Errorf("a request to %s was answered", host)
				continue
			}
			reason, unknown := Failure(err)
			if unknown || strings.ContainsAny(reason, "0123456789[") || strings.Contains(reason, "secret") {
				t.Errorf("%s: Failure = %q, %t", host, reason, unknown)
			}
			if net.ParseIP(strings.Trim(host, "[]")) != nil && !errors.Is(err, ErrBlocked) {
				t.Errorf("%s: %v, want it blocked", host, err)
			}
		}
	}
	_, err = client.Get("http://example.com/")
	if !errors.Is(err, ErrInsecure) {
		t.Errorf("a plain http request: %v, want ErrInsecure", err)
	}
}

func TestDialerRefuses(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(d *net.Dialer, address string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		conn, err := d.DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
		}
		return err
	}
	for _, host := range notPublic {
		err := dial(NewDialer(Outbound{}, 22, uint16(number)), host+":"+port)
		if err == nil {
			t.Errorf("a connection to %s was made", host)
		} else if net.ParseIP(strings.Trim(host, "[]")) != nil && !errors.Is(err, ErrBlocked) {
			t.Errorf("%s: %v, want it blocked", host, err)
		}
	}
	// Control decides before anything is sent, so nothing goes to these addresses.
	for _, cfg := range []Outbound{{}, {Ports: []uint16{443}}} {
		if err := dial(NewDialer(cfg, 2222), "8.8.8.8:22"); !errors.Is(err, ErrBlocked) {
			t.Errorf("with %v: a port that is not allowed: %v, want it blocked", cfg, err)
		}
	}
	if err := dial(NewDialer(Outbound{Ports: []uint16{443}}, 22), "8.8.8.8:22"); !errors.Is(err, ErrBlocked) {
		t.Errorf("a port that the installation does not name: %v, want it blocked", err)
	}
	if err := dial(NewDialer(Outbound{AllowPrivate: true}, 22), l.Addr().String()); err != nil {
		t.Errorf("a private address that is allowed: %v", err)
	}
}

func TestClientFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	t.Cleanup(trap.Close)
	server := httptest.NewServer(http.RedirectHandler(trap.URL, http.StatusFound))
	t.Cleanup(server.Close)
	res, err := NewClient(Outbound{AllowPrivate: true}).Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusFound {
		t.Errorf("status %d, want 302", res.StatusCode)
	}
}

func TestFailure(t *testing.T) {
	t.Parallel()
	tls := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(tls.Close)
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // else the server does not notice that the client is gone
		<-r.Context().Done()
	}))
	t.Cleanup(slow.Close)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	const plenty = time.Minute // only the slow host may run out of time, however busy the machine is
	for name, tc := range map[string]struct {
		url     string
		patient time.Duration
		reason  string
		unknown bool
	}{
		"a certificate that nobody vouches for": {tls.URL, plenty, "no secure connection: TLS failed", false},
		"a host that does not answer in time":   {slow.URL, 300 * time.Millisecond, "no answer in time", true},
		"a port where nobody listens":           {closed.URL, plenty, "the connection was refused", false},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), tc.patient)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, tc.url, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := NewClient(Outbound{AllowPrivate: true}).Do(req)
		cancel()
		if err == nil {
			res.Body.Close()
			t.Errorf("%s: no error", name)
			continue
		}
		if reason, unknown := Failure(err); reason != tc.reason || unknown != tc.unknown {
			t.Errorf("%s: Failure(%v) = %q, %t, want %q, %t", name, err, reason, unknown, tc.reason, tc.unknown)
		}
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://example.com/hook?x=1": "",
		"https://example.com:8443/":    "",
		"":                             "is required",
		"example.com":                  "is not a URL",
		"https:example.com":            "is not a URL",
		"http://example.com/":          "must begin with https://",
		"ftp://example.com/":           "must begin with https://",
		"https://a:b@example.com/":     "must not contain a user name or password",
		"https://example.com/#x":       "must not contain a fragment",
		"https://127.0.0.1/":           "is not on the public internet",
		"https://[::1]/":               "is not on the public internet",
		"https://169.254.169.254/":     "is not on the public internet",
		"https://example.com/" + strings.Repeat("x", 2048): "is longer than 2048 characters",
	} {
		if got := (Outbound{}).CheckURL(raw); got != want {
			t.Errorf("CheckURL(%.40q) = %q, want %q", raw, got, want)
		}
	}
	if got := (Outbound{AllowPrivate: true}).CheckURL("http://127.0.0.1:9000/"); got != "" {
		t.Errorf("CheckURL of a private address that is allowed = %q", got)
	}
}

func TestCheckHost(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"sftp.example.com":          "",
		"8.8.8.8":                   "",
		"2001:4860:4860::8888":      "",
		"":                          "is required",
		"127.0.0.1":                 "is not on the public internet",
		"::1":                       "is not on the public internet",
		"::ffff:10.0.0.1":           "is not on the public internet",
		"sftp.example.com:22":       "is not the name of a host",
		"sftp://sftp.example.com":   "is not the name of a host",
		"ada@sftp.example.com":      "is not the name of a host",
		"sftp.example.com/in":       "is not the name of a host",
		"a b":                       "is not the name of a host",
		"fe80::1%eth0":              "is not the name of a host",
		strings.Repeat("x", 254):    "is not the name of a host",
		"sftp.example.com?x":        "is not the name of a host",
		"sftp.example.com\r\nHost:": "is not the name of a host",
	} {
		if got := (Outbound{}).CheckHost(host); got != want {
			t.Errorf("CheckHost(%.40q) = %q, want %q", host, got, want)
		}
	}
	if got := (Outbound{AllowPrivate: true}).CheckHost("127.0.0.1"); got != "" {
		t.Errorf("CheckHost of a private address that is allowed = %q", got)
	}
}

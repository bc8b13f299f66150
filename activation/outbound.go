package activation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// Outbound tells what the client for outgoing requests may reach.
type Outbound struct {
	// AllowPrivate permits plain HTTP, any port, and addresses that are not on the public internet: for development, and
	// for those whose receivers are in their own network.
	AllowPrivate bool

	// Ports are those that may be dialled, whatever is spoken there. By default they are 443 and 8443 for HTTPS, and what the
	// partners that speak something else say.
	Ports []uint16
}

// What a client of [NewClient] refuses.
var (
	ErrBlocked  = errors.New("the address is not on the public internet")
	ErrInsecure = errors.New("only https is allowed")
	ErrHeader   = errors.New("a secret or setting holds a line break or another character that no header may have")
)

// NewClient returns the client that all requests to addresses of our users' choice go through. It decides on the address
// that is dialled, so that no spelling or DNS answer gets around it; it follows no redirect, asks no proxy, and sets no
// overall time limit: give each request a context with one.
func NewClient(cfg Outbound) *http.Client {
	return &http.Client{
		Transport: &schemeGuard{plain: cfg.AllowPrivate, next: &http.Transport{
			DialContext:            NewDialer(cfg, 443, 8443).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    5 * time.Second,
			ResponseHeaderTimeout:  30 * time.Second,
			ExpectContinueTimeout:  time.Second,
			IdleConnTimeout:        90 * time.Second,
			MaxIdleConnsPerHost:    16,
			MaxResponseHeaderBytes: 64 << 10,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // a small answer must not become a large one
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// NewDialer returns the dialer that all connections to hosts of our users' choice go through: those of [NewClient], and of
// partners that do not speak HTTP. It decides on the address that is dialled, and allows the given ports unless cfg names
// others. What it refuses is [ErrBlocked].
func NewDialer(cfg Outbound, ports ...uint16) *net.Dialer {
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	if cfg.AllowPrivate {
		return dialer
	}
	if len(cfg.Ports) > 0 {
		ports = cfg.Ports
	}
	guard := ssrf.New(ssrf.WithPorts(ports...), ssrf.WithNetworks("tcp4", "tcp6"))
	dialer.Control = func(network, address string, c syscall.RawConn) error {
		if guard.Safe(network, address, c) != nil {
			return ErrBlocked
		}
		return nil
	}
	return dialer
}

// schemeGuard refuses plain HTTP.
type schemeGuard struct {
	plain bool
	next  *http.Transport
}

func (g *schemeGuard) RoundTrip(r *http.Request) (*http.Response, error) {
	if drafts, ok := r.Context().Value(draftsKey{}).(*[]Draft); ok {
		return nil, keepDraft(drafts, r)
	}
	if r.URL.Scheme != "https" && !g.plain {
		return nil, ErrInsecure
	}
	for _, values := range r.Header {
		if slices.ContainsFunc(values, func(v string) bool { return !sendable(v) }) {
			return nil, ErrHeader
		}
	}
	return g.next.RoundTrip(r)
}

// sendable tells whether HTTP has a way to say a header's value (RFC 9110, section 5.5).
func sendable(value string) bool {
	for _, c := range []byte(value) {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// CloseIdleConnections is what [http.Client.CloseIdleConnections] looks for.
func (g *schemeGuard) CloseIdleConnections() { g.next.CloseIdleConnections() }

// CheckURL tells what is wrong with a URL that somebody wants requests to be sent to, in words for them, or "".
func (cfg Outbound) CheckURL(raw string) string {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return "is required"
	case err != nil || u.Host == "" || u.Opaque != "":
		return "is not a URL"
	case u.Scheme != "https" && (u.Scheme != "http" || !cfg.AllowPrivate):
		return "must begin with https://"
	case u.User != nil:
		return "must not contain a user name or password"
	case u.Fragment != "":
		return "must not contain a fragment"
	case len(raw) > 2048:
		return "is longer than 2048 characters"
	}
	return cfg.checkAddress(u.Hostname())
}

// CheckHost tells what is wrong with the name or the address of a host that somebody wants us to connect to, in words for
// them, or "".
func (cfg Outbound) CheckHost(host string) string {
	if host == "" {
		return "is required"
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" {
		return cfg.checkAddress(host)
	}
	if u, err := url.Parse("//" + host); err != nil || u.Host != host || u.Hostname() != host || len(host) > 253 {
		return "is not the name of a host"
	}
	return ""
}

func (cfg Outbound) checkAddress(host string) string {
	if ip, err := netip.ParseAddr(host); err == nil && !cfg.AllowPrivate && ssrf.New().SafeAddr(ip.Unmap()) != nil {
		return "is not on the public internet"
	}
	return ""
}

// Failure says in a few words of ours why a request got no answer, without addresses, and whether the other side may have
// acted on it all the same.
func Failure(err error) (reason string, unknown bool) {
	var (
		dns       *net.DNSError
		op        *net.OpError
		cert      *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		alert     tls.AlertError
		authority x509.UnknownAuthorityError
		timeout   interface{ Timeout() bool }
	)
	switch {
	case errors.Is(err, ErrBlocked):
		return ErrBlocked.Error(), false
	case errors.Is(err, ErrInsecure):
		return ErrInsecure.Error(), false
	case errors.Is(err, ErrHeader):
		return ErrHeader.Error(), false
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return "the host name does not exist", false
		}
		return "the host name could not be resolved", false
	case errors.As(err, &cert), errors.As(err, &record), errors.As(err, &alert), errors.As(err, &authority):
		return "no secure connection: TLS failed", false
	case errors.As(err, &op) && op.Op == "dial" && errors.Is(err, syscall.ECONNREFUSED):
		return "the connection was refused", false
	case errors.As(err, &op) && op.Op == "dial":
		return "no connection", false
	case errors.Is(err, context.Canceled):
		return "stopped by us", true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time", true
	default:
		return "the connection broke", true
	}
}

// Misconfigured tells whether a request got no answer because of what the destination is set to, so that it would get none
// however often it were sent.
func Misconfigured(err error) bool { return errors.Is(err, ErrInsecure) || errors.Is(err, ErrHeader) }

// draftsKey is where a context has the drafts that requests made under it become.
type draftsKey struct{}

// errDrafted says that a request was kept instead of being sent.
var errDrafted = errors.New("a dry run sends nothing")

func keepDraft(drafts *[]Draft, r *http.Request) error {
	d := Draft{Method: r.Method, URL: r.URL.String(), Header: r.Header.Clone()}
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			return err
		}
		d.Body = body
	}
	*drafts = append(*drafts, d)
	return errDrafted
}

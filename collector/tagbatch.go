package collector

import (
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// tagBatch takes events of the tag, and sets the cookie that it asks for.
func (h *Handler) tagBatch(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Has("cookie") {
		keepVisitor(w, r)
	}
	return h.batch(w, r)
}

const visitorCookieAge = 400 * 24 * 3600 // seconds; browsers keep no cookie longer

var visitorID = regexp.MustCompile(`^[\w-]{16,64}$`)

// keepVisitor sets the visitor's id as the tag's own cookie. It is for a collector that is part of the site: Safari keeps a
// cookie that a script sets for a week, and one that a server of the site sets for as long as it says (WebKit, Tracking
// Prevention in WebKit). Pages of other sites are not served, whatever they ask.
func keepVisitor(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	id, domain := query.Get("cookie"), query.Get("domain")
	origin, err := url.Parse(r.Header.Get("Origin"))
	if err != nil || !visitorID.MatchString(id) || !within(origin.Hostname(), domain) || !within(hostname(r.Host), domain) {
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: "mub_id", Value: id, Domain: domain, Path: "/", MaxAge: visitorCookieAge,
		Secure: origin.Scheme == "https", SameSite: http.SameSiteLaxMode, // the tag reads it, too: not HttpOnly
	})
}

func hostname(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return hostport
}

// within tells whether a host is of a domain.
func within(host, domain string) bool {
	return domain != "" && (host == domain || strings.HasSuffix(host, "."+domain))
}

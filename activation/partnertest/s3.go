package partnertest

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	stdjson "encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
)

// S3 is a bucket of a store that speaks the API of Amazon S3, and whoever reads the files that are put there.
type S3 struct {
	*inbox
	URL string

	options S3Options
	state   sync.Mutex
	uploads map[string]*upload
	serial  int
}

// S3Options are what a bucket may ask for.
type S3Options struct {
	FileOptions
	Session    bool   // the credential is a temporary one
	Encryption string // that objects must ask for, with KMSKeyID
	KMSKeyID   string
	Owned      bool // the bucket's owner must get objects
	Unchecked  bool // objects come without checksums of their own
}

// upload is one in parts that is not complete.
type upload struct {
	key    string
	parts  map[int][]byte
	header http.Header
}

const (
	s3Bucket  = "their-bucket"
	s3Region  = "eu-central-1"
	s3KeyID   = "AKIAIOSFODNN7EXAMPLE"
	s3Secret  = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	s3Session = "a-session-token-that-is-long-enough=="
)

// NewS3 starts a bucket that lives as long as the test.
func NewS3(t testing.TB, o S3Options) *S3 {
	t.Helper()
	f := &S3{options: o, uploads: map[string]*upload{}}
	f.inbox = newInbox(o.FileOptions)
	f.Changes(func(r *http.Request) bool {
		return r.Method == http.MethodPut && f.hit(strings.TrimPrefix(r.URL.Path, "/"+s3Bucket))
	})
	f.URL = f.Listen(t, http.HandlerFunc(f.handle))
	return f
}

// Settings implements [Fake].
func (f *S3) Settings() activation.Settings {
	config := map[string]any{
		"bucket": s3Bucket, "region": s3Region, "endpoint": f.URL, "path_style": true, "file": f.options.config(),
		"checksum": !f.options.Unchecked, "bucket_owner_full_control": f.options.Owned,
	}
	if f.options.Encryption != "" {
		config["encryption"] = f.options.Encryption
	}
	if f.options.KMSKeyID != "" {
		config["kms_key_id"] = f.options.KMSKeyID
	}
	secrets := map[string]any{"access_key_id": s3KeyID, "secret_access_key": s3Secret}
	if f.options.Session {
		secrets["session_token"] = s3Session
	}
	return settingsOf(config, secrets)
}

func settingsOf(config, secrets map[string]any) activation.Settings {
	c, err := stdjson.Marshal(config)
	if err != nil {
		panic(err)
	}
	s, err := stdjson.Marshal(secrets)
	if err != nil {
		panic(err)
	}
	return activation.Settings{Config: jsontext.Value(c), Secrets: jsontext.Value(s)}
}

// Violations implements [Fake]. Parts that are left behind are paid for.
func (f *S3) Violations() []string {
	list := f.Faults.Violations()
	f.state.Lock()
	defer f.state.Unlock()
	for id, u := range f.uploads {
		list = append(list, fmt.Sprintf("upload %s of %s was left behind with %d parts", id, u.key, len(u.parts)))
	}
	return list
}

// Words implements [Fake].
func (f *S3) Words() Words {
	return Words{
		Throttled: S3Fault(503, "SlowDown"),
		TooLarge:  S3Fault(400, "EntityTooLarge"),
		Forbidden: S3Fault(403, "AccessDenied"),
		Missing:   S3Fault(404, "NoSuchBucket"),
		Passing: []Fault{
			S3Fault(403, "RequestTimeTooSkewed"),
			S3Fault(409, "OperationAborted"),
			S3Fault(400, "RequestTimeout"),
			S3Fault(400, "XAmzContentSHA256Mismatch"),
			S3Fault(500, "InternalError"),
			{Status: 200, Body: page},
			{Status: 400, Body: page},
		},
	}
}

// S3Fault is an error as the store puts it.
func S3Fault(status int, code string) Fault {
	return Fault{Status: status, Header: http.Header{"Content-Type": {"application/xml"}}, Body: s3Error(code)}
}

func s3Error(code string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>` + "\n<Error><Code>" + code + "</Code><Message>for ada@example.com, " + s3KeyID +
		"</Message><AWSAccessKeyId>" + s3KeyID + "</AWSAccessKeyId><RequestId>4442587FB7D0A2F9</RequestId></Error>"
}

func (f *S3) refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	io.WriteString(w, s3Error(code))
}

// s3Headers are those that requests may have.
var s3Headers = []string{
	"Accept-Encoding", "Authorization", "Content-Length", "Content-Type", "User-Agent", "X-Amz-Acl", "X-Amz-Checksum-Algorithm",
	"X-Amz-Checksum-Sha256", "X-Amz-Content-Sha256", "X-Amz-Date", "X-Amz-Security-Token", "X-Amz-Server-Side-Encryption",
	"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id",
}

func (f *S3) handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.Inspect(r, nil)
	for name := range r.Header {
		if !slices.Contains(s3Headers, name) {
			f.Violate("header %s is not known", name)
		}
	}
	if f.closed() {
		f.refuse(w, http.StatusForbidden, "InvalidAccessKeyId")
		return
	}
	if status, code := f.authenticate(r, body); code != "" {
		f.refuse(w, status, code)
		return
	}
	key, ok := strings.CutPrefix(r.URL.Path, "/"+s3Bucket+"/")
	if !ok || key == "" {
		f.Violate("%s is in no bucket that is there", r.URL.Path)
		f.refuse(w, http.StatusNotFound, "NoSuchBucket")
		return
	}
	query := r.URL.Query()
	id := query.Get("uploadId")
	switch {
	case r.Method == http.MethodPut && len(query) == 0:
		if !f.creates(w, r, body) {
			return
		}
		f.Put(key, body)
		w.Header().Set("Etag", etag(body))
	case r.Method == http.MethodPost && len(query) == 1 && query.Has("uploads"):
		if !f.creates(w, r, nil) {
			return
		}
		f.state.Lock()
		f.serial++
		id = fmt.Sprintf("upload+%d/of this test", f.serial)
		f.uploads[id] = &upload{key: key, parts: map[int][]byte{}, header: r.Header}
		f.state.Unlock()
		fmt.Fprintf(w, `<?xml version="1.0"?><InitiateMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`+
			`<Bucket>%s</Bucket><Key>%s</Key><UploadId>%s</UploadId></InitiateMultipartUploadResult>`, s3Bucket, key, id)
	case r.Method == http.MethodPut && len(query) == 2 && query.Has("partNumber"):
		f.part(w, r, id, key, query.Get("partNumber"), body)
	case r.Method == http.MethodPost && len(query) == 1 && id != "":
		f.complete(w, id, key, body)
	case r.Method == http.MethodDelete && len(query) == 1 && id != "":
		f.state.Lock()
		u := f.uploads[id]
		delete(f.uploads, id)
		f.state.Unlock()
		if u == nil || u.key != key {
			f.refuse(w, http.StatusNotFound, "NoSuchUpload")
			return
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		f.Violate("%s %s is not known", r.Method, r.URL)
		f.refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed")
	}
}

// authenticate recomputes the signature: "Signature Calculations for the Authorization Header: Transferring Payload in a
// Single Chunk".
func (f *S3) authenticate(r *http.Request, body []byte) (status int, code string) {
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		f.Violate("a request has no date: %v", err)
		return http.StatusForbidden, "AccessDenied"
	}
	if off := f.Now().Sub(at); off.Abs() > 15*time.Minute {
		if !f.Skewed() {
			f.Violate("a request was signed %v ago", off)
		}
		return http.StatusForbidden, "RequestTimeTooSkewed"
	}
	sum := sha256.Sum256(body)
	if hash := r.Header.Get("X-Amz-Content-Sha256"); hash != hex.EncodeToString(sum[:]) {
		f.Violate("the body is not what x-amz-content-sha256 says")
		return http.StatusBadRequest, "XAmzContentSHA256Mismatch"
	}
	want, signed, err := signatureV4(r, s3Secret, s3Region)
	if err != nil {
		f.Violate("the signature cannot be read: %v", err)
		return http.StatusForbidden, "AccessDenied"
	}
	for name := range r.Header {
		lower := strings.ToLower(name)
		if (strings.HasPrefix(lower, "x-amz-") || lower == "content-type") && !slices.Contains(signed, lower) {
			f.Violate("header %s is not signed", name)
		}
	}
	token := ""
	if f.options.Session {
		token = s3Session
	}
	if !strings.Contains(r.Header.Get("Authorization"), "Credential="+s3KeyID+"/") || r.Header.Get("X-Amz-Security-Token") != token {
		f.Violate("a request came with the credential of somebody else")
		return http.StatusForbidden, "InvalidAccessKeyId"
	}
	if !hmac.Equal([]byte(want), []byte(r.Header.Get("Authorization"))) {
		f.Violate("%s %s: the signature is wrong", r.Method, r.URL.Path)
		return http.StatusForbidden, "SignatureDoesNotMatch"
	}
	return 0, ""
}

// signatureV4 returns the Authorization header that a request should have, which signs the same headers as the one it has.
func signatureV4(r *http.Request, secret, region string) (want string, signed []string, err error) {
	var credential, names, signature string
	fields := strings.Split(strings.TrimPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 "), ",")
	for _, field := range fields {
		switch name, value, _ := strings.Cut(strings.TrimSpace(field), "="); name {
		case "Credential":
			credential = value
		case "SignedHeaders":
			names = value
		case "Signature":
			signature = value
		}
	}
	signed = strings.Split(names, ";")
	date := r.Header.Get("X-Amz-Date")
	id, scope, _ := strings.Cut(credential, "/")
	if len(fields) != 3 || signature == "" || len(date) < 8 || scope != date[:8]+"/"+region+"/s3/aws4_request" ||
		!slices.Contains(signed, "host") || !slices.Contains(signed, "x-amz-content-sha256") || !slices.IsSorted(signed) {
		return "", nil, fmt.Errorf("credential %q, headers %q", credential, names)
	}
	var headers strings.Builder
	for _, name := range signed {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		fmt.Fprintf(&headers, "%s:%s\n", name, strings.TrimSpace(value))
	}
	query := r.URL.Query()
	var pairs []string
	for name, values := range query {
		for _, v := range values {
			pairs = append(pairs, percent(name, "")+"="+percent(v, ""))
		}
	}
	slices.Sort(pairs)
	path, err := url.PathUnescape(r.URL.EscapedPath())
	if err != nil {
		return "", nil, err
	}
	canonical := strings.Join([]string{
		r.Method, percent(path, "/"), strings.Join(pairs, "&"), headers.String(), names, r.Header.Get("X-Amz-Content-Sha256"),
	}, "\n")
	text := "AWS4-HMAC-SHA256\n" + date + "\n" + scope + "\n" + Hex(canonical)
	key := []byte("AWS4" + secret)
	for _, step := range append(strings.Split(scope, "/"), text) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(step))
		key = mac.Sum(nil)
	}
	return fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%x", id, scope, names, key), signed, nil
}

// percent encodes all bytes but those that never need it, and some more.
func percent(text, more string) string {
	var out strings.Builder
	for _, c := range []byte(text) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~"+more, c) >= 0:
			out.WriteByte(c)
		default:
			fmt.Fprintf(&out, "%%%02X", c)
		}
	}
	return out.String()
}

func etag(body []byte) string { return fmt.Sprintf(`"%x"`, md5.Sum(body)) }

// creates checks the headers with which an object is made.
func (f *S3) creates(w http.ResponseWriter, r *http.Request, body []byte) bool {
	acl := ""
	if f.options.Owned {
		acl = "bucket-owner-full-control"
	}
	for name, want := range map[string]string{
		"X-Amz-Server-Side-Encryption":                f.options.Encryption,
		"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": f.options.KMSKeyID,
		"X-Amz-Acl": acl,
	} {
		if got := r.Header.Get(name); got != want {
			f.Violate("%s is %q, want %q", name, got, want)
			f.refuse(w, http.StatusForbidden, "AccessDenied")
			return false
		}
	}
	if r.Header.Get("Content-Type") == "" {
		f.Violate("%s has no type", r.URL.Path)
	}
	return r.Method == http.MethodPost || f.checksum(w, r, body)
}

func (f *S3) checksum(w http.ResponseWriter, r *http.Request, body []byte) bool {
	sum := sha256.Sum256(body)
	want := base64.StdEncoding.EncodeToString(sum[:])
	if f.options.Unchecked {
		want = ""
	}
	if got := r.Header.Get("X-Amz-Checksum-Sha256"); got != want {
		f.Violate("the checksum is %q, want %q", got, want)
		f.refuse(w, http.StatusBadRequest, "BadDigest")
		return false
	}
	return true
}

func (f *S3) part(w http.ResponseWriter, r *http.Request, id, key, number string, body []byte) {
	if !f.checksum(w, r, body) {
		return
	}
	n, err := strconv.Atoi(number)
	f.state.Lock()
	defer f.state.Unlock()
	u := f.uploads[id]
	if u == nil || u.key != key || err != nil || n < 1 || n > 10_000 {
		f.Violate("part %s of an upload that is not there", number)
		f.refuse(w, http.StatusNotFound, "NoSuchUpload")
		return
	}
	u.parts[n] = body
	w.Header().Set("Etag", etag(body))
}

func (f *S3) complete(w http.ResponseWriter, id, key string, body []byte) {
	var list struct {
		XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CompleteMultipartUpload"`
		Part    []struct {
			PartNumber     int
			ETag           string
			ChecksumSHA256 string
		}
	}
	f.state.Lock()
	u := f.uploads[id]
	f.state.Unlock()
	if u == nil || u.key != key {
		f.Violate("an upload that is not there was completed")
		f.refuse(w, http.StatusNotFound, "NoSuchUpload")
		return
	}
	if err := xml.Unmarshal(body, &list); err != nil {
		f.Violate("the list of parts cannot be read: %v", err)
		f.refuse(w, http.StatusBadRequest, "MalformedXML")
		return
	}
	var whole []byte
	for i, p := range list.Part {
		part, ok := u.parts[p.PartNumber]
		sum := sha256.Sum256(part)
		want := base64.StdEncoding.EncodeToString(sum[:])
		if f.options.Unchecked {
			want = ""
		}
		if !ok || p.PartNumber != i+1 || p.ETag != etag(part) || p.ChecksumSHA256 != want {
			f.Violate("part %d is not what was uploaded as such", p.PartNumber)
			f.refuse(w, http.StatusBadRequest, "InvalidPart")
			return
		}
		if len(part) < 5<<20 && i < len(list.Part)-1 {
			f.Violate("part %d has %d bytes, want at least 5 MiB", p.PartNumber, len(part))
			f.refuse(w, http.StatusBadRequest, "EntityTooSmall")
			return
		}
		whole = append(whole, part...)
	}
	f.state.Lock()
	delete(f.uploads, id)
	f.state.Unlock()
	f.Put(key, whole)
	fmt.Fprintf(w, `<?xml version="1.0"?><CompleteMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`+
		`<Bucket>%s</Bucket><Key>%s</Key><ETag>"x-%d"</ETag></CompleteMultipartUploadResult>`, s3Bucket, key, len(list.Part))
}

package filedrop

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// S3 puts files into a bucket. Make one with [NewS3].
type S3 struct {
	drop
	client   *http.Client
	outbound activation.Outbound
}

var (
	_ activation.AudiencePartner = (*S3)(nil)
	_ activation.Drafter         = (*S3)(nil)
)

// NewS3 returns a partner that sends with client, which must be one of [activation.NewClient] for the same cfg.
func NewS3(client *http.Client, cfg activation.Outbound) *S3 {
	return &S3{client: client, outbound: cfg}
}

// S3Config is what the config of a destination of type s3 holds.
type S3Config struct {
	Bucket    string `json:"bucket" validate:"required,min=3,max=63"`
	Region    string `json:"region" validate:"required,max=40"`
	Endpoint  string `json:"endpoint,omitzero"`   // of a compatible store: Amazon's own, of the region, if left out
	PathStyle bool   `json:"path_style,omitzero"` // the bucket is in the URL's path, and not in its host name

	Encryption       string `json:"encryption,omitzero" validate:"omitempty,oneof=AES256 aws:kms"`
	KMSKeyID         string `json:"kms_key_id,omitzero" validate:"max=2048"`
	BucketOwnerOwns  bool   `json:"bucket_owner_full_control,omitzero"` // for buckets of somebody else that ask for it
	ChecksumInHeader bool   `json:"checksum,omitzero"`                  // x-amz-checksum-sha256; Amazon always gets it

	File File `json:"file,omitzero"`
}

type s3Secrets struct {
	AccessKeyID     string `json:"access_key_id" validate:"required,max=256"`
	SecretAccessKey string `json:"secret_access_key" validate:"required,max=1024"`
	SessionToken    string `json:"session_token,omitzero" validate:"max=8192"`
}

// Type returns "s3".
func (*S3) Type() string { return "s3" }

// What names may consist of, of which host names are made.
var (
	buckets = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]+[A-Za-z0-9]$`)
	regions = regexp.MustCompile(`^[a-z0-9-]+$`)
	visible = regexp.MustCompile(`^[!-~]*$`) // what a header may hold
)

// Prepare implements [activation.Partner].
func (p *S3) Prepare(s activation.Settings) (activation.Settings, error) {
	var (
		cfg S3Config
		sec s3Secrets
	)
	errs := []error{wire.Check(s, &cfg, &sec)}
	wrong := func(at, detail string) { errs = append(errs, &activation.FieldError{Pointer: at, Detail: detail}) }
	if cfg.Bucket != "" && !buckets.MatchString(cfg.Bucket) {
		wrong("/config/bucket", "may hold letters, digits, and . _ -")
	}
	if cfg.Region != "" && !regions.MatchString(cfg.Region) {
		wrong("/config/region", "must be the name of a region, such as eu-central-1")
	}
	cfg.Endpoint = strings.TrimRight(cfg.Endpoint, "/")
	if cfg.Endpoint != "" {
		if detail := p.outbound.CheckURL(cfg.Endpoint); detail != "" {
			wrong("/config/endpoint", detail)
		} else if strings.Contains(cfg.Endpoint, "?") || strings.Count(cfg.Endpoint, "/") > 2 {
			wrong("/config/endpoint", "must end with the host, without the bucket")
		}
	}
	if cfg.KMSKeyID != "" && (cfg.Encryption != "aws:kms" || !visible.MatchString(cfg.KMSKeyID)) {
		wrong("/config/kms_key_id", "must be the id of a key, and goes with encryption aws:kms")
	}
	for at, v := range map[string]string{
		"access_key_id": sec.AccessKeyID, "secret_access_key": sec.SecretAccessKey, "session_token": sec.SessionToken,
	} {
		if !visible.MatchString(v) || at == "access_key_id" && strings.ContainsAny(v, "/,=") {
			wrong("/secrets/"+at, "holds a character that none has")
		}
	}
	cfg.File = cfg.File.withDefaults()
	if strings.HasPrefix(cfg.File.Path, "/") {
		wrong("/config/file/path", "must not begin with /")
	}
	if err := errors.Join(append(errs, cfg.File.check())...); err != nil {
		return activation.Settings{}, err
	}
	return wire.Settings(cfg, sec)
}

// Mask implements [activation.Partner].
func (*S3) Mask(v jsontext.Value) map[string]string {
	var sec s3Secrets
	if wire.Read(activation.Settings{Secrets: v}, nil, &sec) != nil {
		return nil
	}
	shown := map[string]string{
		"access_key_id": wire.Mask(sec.AccessKeyID), "secret_access_key": wire.Mask(sec.SecretAccessKey),
	}
	if sec.SessionToken != "" {
		shown["session_token"] = wire.Mask(sec.SessionToken)
	}
	return shown
}

// Limits implements [activation.Partner].
func (p *S3) Limits(t activation.Target) activation.Limits { return p.limits(t, 4) }

// Send implements [activation.Partner]: it puts the data, and then the manifest.
func (p *S3) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	b, err := p.bucket(to)
	if err != nil {
		return wire.BadSettings()
	}
	r, err := readRun(m.Body)
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the message cannot be read"}
	}
	files, err := r.files(m)
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the manifest could not be made"}
	}
	var o activation.Outcome
	for i, f := range files {
		if o = b.put(ctx, f); o.Class != activation.OK {
			o.Unknown = o.Unknown || i > 0 // the data is there
			return o
		}
	}
	return o
}

// Test begins an upload and gives it up, which asks for the same permission as putting a file and leaves nothing behind.
func (p *S3) Test(ctx context.Context, to activation.Target) activation.Outcome {
	b, err := p.bucket(to)
	if err != nil {
		return wire.BadSettings()
	}
	key := b.cfg.File.folder() + "mubatch-connection-test"
	upload, o := b.begin(ctx, file{name: key, kind: "text/plain"})
	if o.Class != activation.OK {
		return o
	}
	if o = b.abort(ctx, key, upload); o.Class == activation.Config {
		o.Reason = "files may be written, but an upload may not be given up: s3:AbortMultipartUpload is missing"
	}
	return o
}

// Draft implements [activation.Drafter].
func (p *S3) Draft(to activation.Target, m activation.Message) ([]activation.Draft, error) {
	b, err := p.bucket(to)
	if err != nil {
		return nil, err
	}
	return drafts(m, func(f file) activation.Draft {
		return activation.Draft{Method: http.MethodPut, URL: b.url(f.name), Header: b.putting(f)}
	})
}

func (p *S3) bucket(t activation.Target) (*bucket, error) {
	b := &bucket{client: p.client}
	if err := wire.Read(t.Settings, &b.cfg, &b.sec); err != nil {
		return nil, err
	}
	b.cfg.File = b.cfg.File.withDefaults()
	return b, nil
}

// bucket is that of one destination.
type bucket struct {
	client *http.Client
	cfg    S3Config
	sec    s3Secrets
}

// url returns that of an object. In host names bucket names with full stops or capitals do not get far.
func (b *bucket) url(key string) string {
	endpoint := b.cfg.Endpoint
	if endpoint == "" {
		endpoint = "https://s3." + b.cfg.Region + ".amazonaws.com"
		if strings.HasPrefix(b.cfg.Region, "cn-") {
			endpoint += ".cn"
		}
	}
	if b.cfg.PathStyle || strings.ContainsAny(b.cfg.Bucket, "._") || strings.ToLower(b.cfg.Bucket) != b.cfg.Bucket {
		return endpoint + "/" + b.cfg.Bucket + "/" + escape(key)
	}
	scheme, host, _ := strings.Cut(endpoint, "://")
	return scheme + "://" + b.cfg.Bucket + "." + host + "/" + escape(key)
}

// creating returns the headers with which an object is made.
func (b *bucket) creating(f file) http.Header {
	h := http.Header{"Content-Type": {f.kind}}
	if b.cfg.Encryption != "" {
		h.Set("X-Amz-Server-Side-Encryption", b.cfg.Encryption)
	}
	if b.cfg.KMSKeyID != "" {
		h.Set("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", b.cfg.KMSKeyID)
	}
	if b.cfg.BucketOwnerOwns {
		h.Set("X-Amz-Acl", "bucket-owner-full-control")
	}
	return h
}

func (b *bucket) putting(f file) http.Header {
	h := b.creating(f)
	if b.checksums() {
		h.Set(checksumHeader, checksum(f.data))
	}
	return h
}

const checksumHeader = "X-Amz-Checksum-Sha256"

// checksums tells whether objects are given checksums to keep. What is sent is covered by the signature all the same.
func (b *bucket) checksums() bool { return b.cfg.Endpoint == "" || b.cfg.ChecksumInHeader }

func checksum(data []byte) string {
	sum := sha256.Sum256(data)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// notS3 is what is said of an answer that no store gives.
const notS3 = "what answers is not an S3 store, or somebody is in between: look at endpoint"

// put writes an object: large ones in parts.
func (b *bucket) put(ctx context.Context, f file) activation.Outcome {
	if len(f.data) > partSize {
		return b.putParts(ctx, f)
	}
	a, o := b.do(ctx, http.MethodPut, b.url(f.name), b.putting(f), f.data)
	if o.Class == activation.OK && a.Header.Get("Etag") == "" {
		o = a.Unreadable()
		o.Reason = notS3
	}
	return o
}

// do signs and sends a request to the store.
func (b *bucket) do(ctx context.Context, method, url string, h http.Header, body []byte) (wire.Answer, activation.Outcome) {
	h, err := sign(ctx, b.sec, b.cfg.Region, method, url, h, body, time.Now())
	if err != nil {
		return wire.Answer{}, activation.Outcome{Class: activation.Config, Reason: "the request could not be signed"}
	}
	a, o := wire.Do(ctx, b.client, wire.Request{Method: method, URL: url, Header: h, Body: body})
	if a.Status == 0 || a.Status < 300 {
		return a, o
	}
	var e s3Error
	if decodeXML(a.Body, &e) == nil && e.XMLName.Local == "Error" {
		e.Message = strings.ReplaceAll(e.Message, b.sec.AccessKeyID, "…")
		return a, e.outcome(o)
	}
	if o.Class == activation.Split && a.Status != http.StatusRequestEntityTooLarge {
		o.Class = activation.Retry // no row spoils a file, and this is not the store's own word
	}
	if len(a.Body) > 0 && (o.Class == activation.Config || o.Class == activation.Reauth || o.Class == activation.Retry && a.Status < 429) {
		o.Reason = fmt.Sprintf("%s (it answered %d)", notS3, a.Status)
		return a, o
	}
	o.Reason = cmp.Or(map[int]string{
		http.StatusForbidden: "the store refuses the credential, or it may not write to the bucket",
		http.StatusNotFound:  "the bucket does not exist",
	}[a.Status], o.Reason)
	return a, o
}

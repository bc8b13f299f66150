package filedrop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/encoding/httpbinding"

	"github.com/mubatch/mubatch/activation"
)

// partSize is how large a part of an upload is, and from how large on a file is uploaded in parts. Amazon S3 takes none that
// is smaller but the last.
const partSize = 5 << 20

// escape returns a key as a signed path has it: all but letters, digits and -._~/ as %XX.
func escape(key string) string { return httpbinding.EscapePath(key, false) }

// sign returns headers with the signature of a request, as "Authenticating Requests: Using the Authorization Header (AWS
// Signature Version 4)" says. The body's hash is part of it.
func sign(
	ctx context.Context, sec s3Secrets, region, method, url string, h http.Header, body []byte, now time.Time,
) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, fmt.Errorf("sign a request: %w", err)
	}
	for name, values := range h {
		req.Header[name] = values
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	req.Header.Set("X-Amz-Content-Sha256", hash)
	key := aws.Credentials{
		AccessKeyID: sec.AccessKeyID, SecretAccessKey: sec.SecretAccessKey, SessionToken: sec.SessionToken,
	}
	err = v4.NewSigner().SignHTTP(ctx, key, req, hash, "s3", region, now, func(o *v4.SignerOptions) {
		o.DisableURIPathEscaping = true // it is escaped, and S3 does not want it twice
	})
	if err != nil {
		return nil, fmt.Errorf("sign a request: %w", err)
	}
	return req.Header, nil
}

// s3Error is what stores answer if something is wrong: "Amazon S3 API Reference, Error Responses".
type s3Error struct {
	XMLName xml.Name
	Code    string
	Message string
}

func decodeXML(body []byte, into any) error {
	return xml.NewDecoder(bytes.NewReader(body)).Decode(into)
}

// outcome is what an error means, given what its status alone does.
func (e s3Error) outcome(o activation.Outcome) activation.Outcome {
	o.Excerpt = activation.Redact([]byte(e.Code + ": " + e.Message)) // the rest repeats the request
	class, reason := activation.Config, "the store refuses the file"
	switch e.Code {
	case "InvalidAccessKeyId":
		class, reason = activation.Reauth, "the access key id is not known to the store"
	case "SignatureDoesNotMatch":
		class, reason = activation.Reauth, "the secret access key does not go with the access key id"
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired":
		class, reason = activation.Reauth, "the session token has ended, or is wrong"
	case "AccessDenied", "AllAccessDisabled":
		reason = "the credential may not do this with the bucket: s3:PutObject is missing, or a policy forbids it"
	case "AccountProblem", "NotSignedUp", "InvalidObjectState":
		reason = "the store has closed the account or the bucket to us"
	case "NoSuchBucket":
		reason = "the bucket does not exist"
	case "InvalidBucketName":
		reason = "the store knows no such name of a bucket"
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "IncorrectEndpoint":
		reason = "the bucket is in another region, or at another endpoint"
	case "AccessControlListNotSupported":
		reason = "the bucket takes no access control lists: leave bucket_owner_full_control out"
	case "KMS.DisabledException", "KMS.NotFoundException", "KMS.InvalidStateException", "KMS.KMSInvalidStateException":
		reason = "the key for encryption cannot be used"
	case "NotImplemented":
		reason = "the store does not know what the destination asks for, such as encryption or checksums"
	case "EntityTooLarge":
		class, reason = activation.Split, "the file is too large for the store"
	case "RequestTimeTooSkewed":
		class, reason = activation.Retry, "our clock and the store's differ by more than a quarter of an hour"
	case "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "Busy":
		class, reason = activation.Retry, "the store asks for fewer requests"
	case "InternalError", "ServiceUnavailable", "OperationAborted", "RequestTimeout", "TemporaryRedirect", "ConditionalRequestConflict":
		class, reason = activation.Retry, "the store is not well"
	case "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "InvalidDigest":
		class, reason = activation.Retry, "the file was damaged on its way"
	case "NoSuchUpload", "InvalidPart", "InvalidPartOrder":
		class, reason = activation.Retry, "the store has given the upload up"
	default:
		if o.Status >= 500 || o.Status == http.StatusTooManyRequests || o.Status == http.StatusRequestTimeout || o.Status < 300 {
			class, reason = activation.Retry, "the store is not well"
		}
	}
	if class == activation.Retry && o.Class == activation.RetryAfter {
		class = activation.RetryAfter
	}
	o.Class, o.Reason = class, reason
	return o
}

// giveUp is how much of an attempt's time is left for giving an upload up.
const giveUp = 2 * time.Second

// putParts uploads a file in parts, one after the other. One that fails is given up, so that its parts are not kept, and
// paid for; what a crash leaves behind is for the bucket's own lifecycle rule.
func (b *bucket) putParts(ctx context.Context, f file) activation.Outcome {
	upload, o := b.begin(ctx, f)
	if o.Class != activation.OK {
		return o
	}
	working := ctx
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		working, cancel = context.WithDeadline(ctx, end.Add(-min(giveUp, time.Until(end)/4)))
		defer cancel()
	}
	if o = b.upload(working, f, upload); o.Class != activation.OK {
		b.abort(ctx, f.name, upload) // of what becomes of that nothing follows
	}
	return o
}

// begin begins an upload in parts (CreateMultipartUpload) and returns its id.
func (b *bucket) begin(ctx context.Context, f file) (upload string, o activation.Outcome) {
	h := b.creating(f)
	if b.checksums() {
		h.Set("X-Amz-Checksum-Algorithm", "SHA256")
	}
	a, o := b.do(ctx, http.MethodPost, b.url(f.name)+"?uploads=", h, nil)
	if o.Class != activation.OK {
		return "", o
	}
	var begun struct {
		XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
		UploadID string   `xml:"UploadId"`
	}
	if decodeXML(a.Body, &begun) != nil || begun.UploadID == "" {
		return "", a.Unreadable()
	}
	return begun.UploadID, o
}

type part struct {
	Number   int    `xml:"PartNumber"`
	ETag     string `xml:"ETag"`
	Checksum string `xml:"ChecksumSHA256,omitempty"`
}

// upload sends the parts (UploadPart) and ends the upload (CompleteMultipartUpload). The answer to that is 200 before the
// store knows how it ends: what counts is its body.
func (b *bucket) upload(ctx context.Context, f file, id string) activation.Outcome {
	var whole struct {
		XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CompleteMultipartUpload"`
		Parts   []part   `xml:"Part"`
	}
	for at := 0; at < len(f.data); at += partSize {
		data := f.data[at:min(at+partSize, len(f.data))]
		p := part{Number: len(whole.Parts) + 1}
		h := http.Header{"Content-Type": {f.kind}}
		if b.checksums() {
			p.Checksum = checksum(data)
			h.Set(checksumHeader, p.Checksum)
		}
		query := url.Values{"partNumber": {strconv.Itoa(p.Number)}, "uploadId": {id}}
		a, o := b.do(ctx, http.MethodPut, b.url(f.name)+"?"+query.Encode(), h, data)
		if o.Class != activation.OK {
			return o
		}
		if p.ETag = a.Header.Get("Etag"); p.ETag == "" {
			return a.Unreadable()
		}
		whole.Parts = append(whole.Parts, p)
	}
	body, err := xml.Marshal(whole)
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the list of parts could not be made"}
	}
	query := url.Values{"uploadId": {id}}
	h := http.Header{"Content-Type": {"application/xml"}}
	a, o := b.do(ctx, http.MethodPost, b.url(f.name)+"?"+query.Encode(), h, body)
	if o.Class != activation.OK {
		return o
	}
	var e s3Error
	switch err := decodeXML(a.Body, &e); {
	case err == nil && e.XMLName.Local == "Error":
		return e.outcome(o)
	case err != nil || e.XMLName.Local != "CompleteMultipartUploadResult":
		return a.Unreadable()
	}
	return o
}

// abort gives an upload up (AbortMultipartUpload). One that is not there any more is given up.
func (b *bucket) abort(ctx context.Context, key, upload string) activation.Outcome {
	query := url.Values{"uploadId": {upload}}
	a, o := b.do(ctx, http.MethodDelete, b.url(key)+"?"+query.Encode(), http.Header{}, nil)
	if a.Status == http.StatusNotFound {
		o = activation.Outcome{Class: activation.OK, Status: a.Status}
	}
	return o
}

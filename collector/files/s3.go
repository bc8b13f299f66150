package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3 says how a bucket is reached, at Amazon S3 or at whatever speaks its protocol.
type S3 struct {
	Endpoint        string `json:"endpoint,omitzero" validate:"max=500"` // such as https://minio.example.com; Amazon's if empty
	Region          string `json:"region,omitzero" validate:"max=100"`
	AccessKeyID     string `json:"access_key_id,omitzero" validate:"max=200"`
	SecretAccessKey string `json:"secret_access_key,omitzero" validate:"max=500"`
	SessionToken    string `json:"session_token,omitzero" validate:"max=4000"`
}

// bucket is what matches a location in a bucket.
type bucket struct {
	core minio.Core
	at   Location
}

// newBucket returns the bucket of a location. All requests go through client.
func newBucket(at Location, s S3, client http.RoundTripper) (*bucket, error) {
	host, secure := "s3.amazonaws.com", true
	lookup := minio.BucketLookupAuto
	if s.Endpoint != "" {
		u, err := url.Parse(s.Endpoint)
		if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			return nil, badFile("bad_endpoint", "s3.endpoint must be of the form https://minio.example.com")
		}
		host, secure, lookup = u.Host, u.Scheme != "http", minio.BucketLookupPath
	}
	core, err := minio.NewCore(host, &minio.Options{
		Creds:  credentials.NewStaticV4(s.AccessKeyID, s.SecretAccessKey, s.SessionToken),
		Secure: secure, Region: s.Region, Transport: client, BucketLookup: lookup, MaxRetries: 3,
	})
	if err != nil {
		return nil, badFile("bad_endpoint", "the bucket cannot be reached so: %v", err)
	}
	return &bucket{core: *core, at: at}, nil
}

func (b *bucket) list(ctx context.Context) ([]object, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel() // also ends a listing that is not read to its end
	var list []object
	for o := range b.core.ListObjectsIter(ctx, b.at.Bucket, minio.ListObjectsOptions{Prefix: b.at.prefix(), Recursive: true}) {
		switch {
		case o.Err != nil:
			return nil, fromS3("list the bucket", o.Err)
		case strings.HasSuffix(o.Key, "/") || !b.at.matches(o.Key) || incomplete(o.Key):
		case len(list) == maxFiles:
			return nil, tooManyFiles()
		default:
			list = append(list, object{o.Key, strings.Trim(o.ETag, `"`), o.Size})
		}
	}
	return list, nil
}

// fromS3 tells refusals, which only people can mend, from outages.
func fromS3(doing string, err error) error {
	switch r := minio.ToErrorResponse(err); r.Code {
	case "AccessDenied", "AccountProblem", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken":
		return badFile("access_denied", "the bucket refuses the keys (%s)", r.Code)
	case "NoSuchBucket", "NoSuchKey", "InvalidBucketName", "AuthorizationHeaderMalformed", "PermanentRedirect":
		return badFile("not_found", "there is no such bucket or file (%s)", r.Code)
	case "PreconditionFailed":
		return errFileChanged()
	}
	if errors.Is(err, io.EOF) {
		return err
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func (b *bucket) open(_ context.Context, o object) (content, io.Closer, error) {
	return &remoteFile{b, o}, io.NopCloser(nil), nil
}

// remoteFile is a file in a bucket, read with one request from where reading begins.
type remoteFile struct {
	in *bucket
	object
}

func (f *remoteFile) Size() int64 { return f.object.Size }

// get returns the bytes from first, up to last unless that is negative.
func (f *remoteFile) get(ctx context.Context, first, last int64) (io.ReadCloser, error) {
	if first >= f.object.Size {
		return http.NoBody, nil
	}
	if last < 0 || last >= f.object.Size {
		last = f.object.Size - 1
	}
	var opts minio.GetObjectOptions
	if err := errors.Join(opts.SetMatchETag(f.Version), opts.SetRange(first, last)); err != nil {
		return nil, fmt.Errorf("ask for a part of the file: %w", err)
	}
	body, _, _, err := f.in.core.GetObject(ctx, f.in.at.Bucket, f.Name, opts)
	if err != nil {
		return nil, fromS3("read the file", err)
	}
	return body, nil
}

func (f *remoteFile) From(ctx context.Context, offset int64) (io.ReadCloser, error) {
	body, err := f.get(ctx, offset, -1)
	if err != nil {
		return nil, err
	}
	return &whole{body, f.object.Size - offset}, nil
}

// whole tells the end of a file from a connection that was cut, which net/http reports as an io.ErrUnexpectedEOF, as those who
// unpack do what is damaged.
type whole struct {
	io.ReadCloser
	left int64
}

func (w *whole) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if w.left -= int64(n); w.left > 0 && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = errors.New("the connection was cut")
	}
	return n, err
}

func (f *remoteFile) ReadAt(ctx context.Context, p []byte, offset int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	body, err := f.get(ctx, offset, offset+int64(len(p))-1)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	n, err := io.ReadFull(body, p)
	if errors.Is(err, io.ErrUnexpectedEOF) && offset+int64(n) == f.object.Size {
		err = io.EOF
	}
	return n, err
}

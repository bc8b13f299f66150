package filedrop_test

import (
	"testing"
	"time"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/filedrop"
	"github.com/mubatch/mubatch/activation/partnertest"
)

var private = activation.Outbound{AllowPrivate: true}

func newS3(t testing.TB, o partnertest.S3Options) (*filedrop.S3, *partnertest.S3) {
	client := activation.NewClient(private)
	t.Cleanup(client.CloseIdleConnections)
	return filedrop.NewS3(client, private), partnertest.NewS3(t, o)
}

// prompt makes a partner send sooner than destinations may ask for: the suite does not wait for company.
type prompt struct {
	activation.AudiencePartner
	activation.Drafter
}

func (p prompt) Limits(t activation.Target) activation.Limits {
	l := p.AudiencePartner.Limits(t)
	l.Linger = 10 * time.Millisecond
	return l
}

// run runs the suite: the whole of it for files as they are by default.
func run(t *testing.T, name string, subject func(testing.TB) (activation.Partner, partnertest.Fake)) {
	partnertest.Run(t, partnertest.Subject{New: subject, Blind: true, Brief: name != "standard"})
}

func TestSuiteS3(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]partnertest.S3Options{
		"standard": {},
		"every column, encrypted and owned, with a session": {
			FileOptions: partnertest.FileOptions{
				Columns: []string{
					"first_name", "email_sha256", "phone_sha256", "phone_e164_sha256", "phone_us_sha1", "external_id", "external_id_sha256",
					"maid", "maid_sha256", "first_name_sha256", "last_name_sha256", "last_name", "postal_code", "country",
				},
				CRLF: true,
			},
			Session: true, Encryption: "aws:kms", KMSKeyID: "alias/theirs", Owned: true,
		},
		"LiveRamp, without checksums": {FileOptions: partnertest.FileOptions{LiveRamp: true, Plain: true}, Unchecked: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, name, func(t testing.TB) (activation.Partner, partnertest.Fake) {
				partner, fake := newS3(t, o)
				return prompt{partner, partner}, fake
			})
		})
	}
}

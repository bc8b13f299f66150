package tiktok_test

import (
	"testing"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
	"github.com/mubatch/mubatch/activation/tiktok"
)

func start(t testing.TB, o partnertest.TikTokOptions) (*tiktok.Partner, *partnertest.TikTok) {
	return tiktok.New(partnertest.NewClient(t), partnertest.Private), partnertest.NewTikTok(t, o)
}

func subject(o partnertest.TikTokOptions) partnertest.Subject {
	return partnertest.Subject{New: func(t testing.TB) (activation.Partner, partnertest.Fake) { return start(t, o) }}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	partnertest.Run(t, subject(partnertest.TikTokOptions{}))
}

func TestSuiteWithAllForms(t *testing.T) {
	t.Parallel()
	s := subject(partnertest.TikTokOptions{PhoneFormat: "both", EmailFormat: "all", DeviceHash: "md5"})
	s.Brief = true
	partnertest.Run(t, s)
}

func TestSuiteWithTheOtherForms(t *testing.T) {
	t.Parallel()
	s := subject(partnertest.TikTokOptions{PhoneFormat: "digits", EmailFormat: "without_tags_and_dots"})
	s.Brief = true
	partnertest.Run(t, s)
}

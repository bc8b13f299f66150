package microsoft_test

import (
	"testing"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/microsoft"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func start(t testing.TB, o partnertest.MicrosoftOptions) (*microsoft.Partner, *partnertest.Microsoft) {
	return microsoft.New(partnertest.NewClient(t), partnertest.Private), partnertest.NewMicrosoft(t, o)
}

func subject(o partnertest.MicrosoftOptions) partnertest.Subject {
	return partnertest.Subject{New: func(t testing.TB) (activation.Partner, partnertest.Fake) { return start(t, o) }}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	partnertest.Run(t, subject(partnertest.MicrosoftOptions{}))
}

func TestSuiteWithPhoneNumbers(t *testing.T) {
	t.Parallel()
	s := subject(partnertest.MicrosoftOptions{Identifier: "phone", PhoneFormat: "digits", TermsOpen: true, AcceptTerms: true})
	s.Brief = true
	partnertest.Run(t, s)
}

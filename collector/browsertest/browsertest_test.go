package browsertest_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/mubatch/mubatch/collector/browsertest"
)

func TestMain(m *testing.M) { browsertest.Main(m) }

func TestPagesLoadInAProfileOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "<!doctype html><title>shop</title>")
	}))
	t.Cleanup(s.Close)
	one, other := browsertest.New(t), browsertest.New(t)
	one.Go(s.URL)
	one.Run(`localStorage.setItem("seen", "yes")`)
	same := one.Open()
	same.Go(s.URL)
	other.Go(s.URL)
	if seen := browsertest.Eval[string](same, `localStorage.getItem("seen")`); seen != "yes" {
		t.Errorf("another tab of the profile finds %q", seen)
	}
	other.Until(`document.title == "shop" && localStorage.getItem("seen") == null`)
}

package redistest_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/mubatch/mubatch/collector/redistest"
)

func TestKeysAreRemovedWhenTheTestEnds(t *testing.T) {
	t.Parallel()
	var prefix string
	t.Run("a test writes", func(t *testing.T) {
		var rdb *redis.Client
		rdb, prefix = redistest.New(t)
		for _, key := range []string{"a", "mb:{3}"} {
			if err := rdb.Set(t.Context(), prefix+key, 1, 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
	})
	rdb, other := redistest.New(t)
	if other == prefix {
		t.Errorf("two tests have the prefix %s", prefix)
	}
	for _, key := range []string{"a", "mb:{3}"} {
		if n, err := rdb.Exists(t.Context(), prefix+key).Result(); err != nil || n != 0 {
			t.Errorf("%s exists %d times after its test, %v", key, n, err)
		}
	}
}

// The collector refuses a server that could lose what it acknowledged, so the one for tests must not be such a one.
func TestTheServerKeepsWhatItAcknowledges(t *testing.T) {
	t.Parallel()
	redistest.RequireReal(t)
	rdb, _ := redistest.New(t)
	for name, want := range map[string]string{
		"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction",
	} {
		got, err := rdb.ConfigGet(t.Context(), name).Result()
		if err != nil || got[name] != want {
			t.Errorf("%s is %q, %v; want %q", name, got[name], err, want)
		}
	}
}

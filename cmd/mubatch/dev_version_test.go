package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReleases(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		parse     func(string) (release, error)
		text      string
		want      release
		supported bool
	}{
		"Debian's Postgres":       {parsePostgres, "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", release{"postgres", 15, 18, "15.18"}, true},
		"a Postgres that is next": {parsePostgres, "postgres (PostgreSQL) 19beta1\n", release{"postgres", 19, 0, "19beta1"}, true},
		"an old Postgres":         {parsePostgres, "postgres (PostgreSQL) 14.9\n", release{"postgres", 14, 9, "14.9"}, false},
		"a very old Postgres":     {parsePostgres, "postgres (PostgreSQL) 9.6.24\n", release{"postgres", 9, 6, "9.6.24"}, false},
		"something else":          {parsePostgres, "psql (PostgreSQL) 15.1\n", release{}, false},
		"nothing":                 {parsePostgres, "", release{}, false},
		"Debian's Redis":          {parseRedis, "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64\n", release{"redis", 7, 0, "7.0.15"}, true},
		"an old Redis":            {parseRedis, "Redis server v=6.2.14 sha=00000000:0\n", release{"redis", 6, 2, "6.2.14"}, false},
		"the first Valkey":        {parseRedis, "Valkey server v=7.2.5 sha=00000000:0\n", release{"valkey", 7, 2, "7.2.5"}, true},
		"a Valkey of two digits":  {parseRedis, "Valkey server v=10.1.0 sha=00000000:0\n", release{"valkey", 10, 1, "10.1.0"}, true},
		"no Redis":                {parseRedis, "KeyDB server v=6.3.4\n", release{}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := tt.parse(tt.text)
			if (err != nil) != (tt.want == release{}) {
				t.Fatalf("got %v", err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(release{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err == nil && got.isSupported() != tt.supported {
				t.Errorf("supported is %v, want %v", got.isSupported(), tt.supported)
			}
		})
	}
}

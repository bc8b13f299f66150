package pgtest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/migrations/pgtest"
)

func TestEachTestHasADatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	var names []string
	for range 3 {
		t.Run("a test", func(t *testing.T) {
			pool := pgtest.New(t)
			var name string
			if err := pool.QueryRow(t.Context(), `SELECT current_database()`).Scan(&name); err != nil {
				t.Fatal(err)
			}
			// A table that another test's database would already have, were it the same.
			if _, err := pool.Exec(t.Context(), `CREATE TABLE mine (id int)`); err != nil {
				t.Error(err)
			}
			names = append(names, name)
		})
	}

	conn, err := pgx.Connect(t.Context(), pgtest.Server(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	const query = `SELECT count(*) FROM pg_database WHERE datname = ANY ($1)`
	var left int
	if err := conn.QueryRow(t.Context(), query, names).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left != 0 {
		t.Errorf("%d of %v outlive their tests", left, names)
	}
}

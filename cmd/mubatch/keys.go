package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/api"
	"github.com/mubatch/mubatch/profiles"
)

func runKeys(ctx context.Context, args []string, std stdio) error {
	flags := flag.NewFlagSet("mubatch keys", flag.ContinueOnError)
	database := flags.String("database-url", "", "the `URL` of Postgres; DATABASE_URL if not given")
	workspace := flags.String("workspace", "default", "the `key` of the workspace; create makes it if it is not there")
	scopes := flags.String("scopes", "read,write,admin", "what a new key may do, of `read,write,admin,operator`")
	flags.Usage = func() {
		fmt.Fprint(std.err, `usage: mubatch keys [FLAGS] create NAME | list | revoke ID
       mubatch keys encryption

  create NAME   make an API key and print it, once
  list          list a workspace's keys, without what they are
  revoke ID     make a key invalid, within a second
  encryption    make a key for -encryption-keys and print it

`)
		flags.PrintDefaults()
	}
	if err := parseFlags(flags, args, std); err != nil {
		return err
	}
	what := flags.Args()
	var do func(context.Context, *pgxpool.Pool, string, stdio) error
	switch {
	case len(what) == 1 && what[0] == "encryption":
		_, text, err := activation.NewKeyRing()
		if err == nil {
			fmt.Fprintln(std.out, text)
		}
		return err
	case len(what) == 2 && what[0] == "create":
		list, err := parseScopes(*scopes)
		if err != nil {
			return &exitError{2, err}
		}
		if !workspaceKey.MatchString(*workspace) {
			return &exitError{2, fmt.Errorf("-workspace is %q, must be 1 to 63 of a-z, 0-9, _ and -, and begin with a letter or a digit", *workspace)}
		}
		do = createKey(what[1], list)
	case len(what) == 1 && what[0] == "list":
		do = listKeys
	case len(what) == 2 && what[0] == "revoke":
		id, err := strconv.ParseInt(strings.TrimPrefix(what[1], "key_"), 10, 64)
		if err != nil || what[1] != fmt.Sprintf("key_%d", id) {
			return &exitError{2, fmt.Errorf("%q is not the id of a key, such as key_1", what[1])}
		}
		do = revokeKey(id)
	default:
		flags.Usage()
		return &exitError{code: 2}
	}

	pool, err := openDatabase(ctx, cmp.Or(*database, std.getenv("DATABASE_URL")))
	if err != nil {
		return err
	}
	defer pool.Close()
	return do(ctx, pool, *workspace, std)
}

// openDatabase returns a pool for the tools that need no more than Postgres.
func openDatabase(ctx context.Context, url string) (*pgxpool.Pool, error) {
	if url == "" {
		return nil, errNoDatabase
	}
	return pgxpool.New(ctx, url)
}

var errNoDatabase = &exitError{2, errors.New("no database: set DATABASE_URL or give -database-url")}

var workspaceKey = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

func parseScopes(text string) (list []api.Scope, err error) {
	for _, s := range strings.Split(text, ",") {
		scope := api.Scope(strings.TrimSpace(s))
		if !slices.Contains(api.Scopes(), scope) {
			return nil, fmt.Errorf("-scopes: %q is not a scope: choose from %v", scope, api.Scopes())
		}
		list = append(list, scope)
	}
	return list, nil
}

func createKey(name string, scopes []api.Scope) func(context.Context, *pgxpool.Pool, string, stdio) error {
	return func(ctx context.Context, pool *pgxpool.Pool, workspace string, std stdio) error {
		ws, err := profiles.NewWorkspaces(pool).Ensure(ctx, workspace, workspace)
		if err != nil {
			return err
		}
		_, secret, err := api.NewKeyStore(pool).Create(ctx, ws.ID, api.NewKey{Name: name, Scopes: scopes})
		if err == nil {
			fmt.Fprintln(std.out, secret)
		}
		return err
	}
}

func revokeKey(id int64) func(context.Context, *pgxpool.Pool, string, stdio) error {
	return func(ctx context.Context, pool *pgxpool.Pool, workspace string, std stdio) error {
		ws, err := findWorkspace(ctx, pool, workspace)
		if err != nil {
			return err
		}
		_, err = api.NewKeyStore(pool).Revoke(ctx, ws, id)
		if errors.Is(err, profiles.ErrNotFound) {
			return fmt.Errorf("the workspace %q has no key_%d", workspace, id)
		}
		if err == nil {
			fmt.Fprintf(std.out, "key_%d is revoked\n", id)
		}
		return err
	}
}

func listKeys(ctx context.Context, pool *pgxpool.Pool, workspace string, std stdio) error {
	ws, err := findWorkspace(ctx, pool, workspace)
	if err != nil {
		return err
	}
	const pageSize = 100
	store := api.NewKeyStore(pool)
	for after := int64(0); ; {
		page, err := store.List(ctx, ws, after, pageSize)
		if err != nil {
			return err
		}
		for _, k := range page {
			fmt.Fprintf(std.out, "key_%d\t%s\t%s…\t%v\t%s\n", k.ID, k.Name, k.Prefix, k.Scopes, state(k))
			after = k.ID
		}
		if len(page) < pageSize {
			return nil
		}
	}
}

// state says whether a key works.
func state(k api.Key) string {
	switch {
	case k.RevokedAt != nil:
		return "revoked " + k.RevokedAt.UTC().Format(time.RFC3339)
	case k.ExpiresAt == nil:
		return "valid"
	case time.Now().Before(*k.ExpiresAt):
		return "valid until " + k.ExpiresAt.UTC().Format(time.RFC3339)
	default:
		return "expired " + k.ExpiresAt.UTC().Format(time.RFC3339)
	}
}

// findWorkspace returns the id of the workspace of that key.
func findWorkspace(ctx context.Context, pool *pgxpool.Pool, key string) (int32, error) {
	const pageSize = 100
	for after := int32(0); ; {
		page, err := profiles.NewWorkspaces(pool).List(ctx, after, pageSize)
		if err != nil {
			return 0, err
		}
		for _, w := range page {
			if w.Key == key {
				return w.ID, nil
			}
			after = w.ID
		}
		if len(page) < pageSize {
			return 0, fmt.Errorf("there is no workspace %q", key)
		}
	}
}

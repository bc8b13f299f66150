package main

import (
	"strings"
	"testing"

	"github.com/mubatch/mubatch/migrations/pgtest"
)

func TestKeys(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	mubatch := func(args ...string) (code int, out, errs string) {
		var o, e strings.Builder
		code = run(t.Context(), commands(), append([]string{"keys"}, args...), stdio{&o, &e, func(name string) string {
			return map[string]string{"DATABASE_URL": pool.Config().ConnString()}[name]
		}})
		return code, o.String(), e.String()
	}
	refused := func(want string, args ...string) {
		t.Helper()
		if code, out, errs := mubatch(args...); code == 0 || out != "" || !strings.Contains(errs, want) {
			t.Errorf("keys %v: code %d, output %q, errors %q; want %q", args, code, out, errs, want)
		}
	}

	refused(`there is no workspace "shop"`, "-workspace", "shop", "list")
	refused(`there is no workspace "shop"`, "-workspace", "shop", "revoke", "key_1")
	refused(`"god" is not a scope`, "-workspace", "shop", "-scopes", "read,god", "create", "first")
	refused("must be 1 to 63", "-workspace", "The Shop", "create", "first")
	refused(`"key_1x" is not the id of a key`, "-workspace", "shop", "revoke", "key_1x")
	refused("usage:", "create")
	refused("usage:", "encryption", "please")
	var workspaces int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM workspaces`).Scan(&workspaces); err != nil || workspaces != 0 {
		t.Fatalf("%d workspaces after nothing but mistakes, %v", workspaces, err)
	}

	code, secret, errs := mubatch("-workspace", "shop", "-scopes", "read, write", "create", "first")
	if code != 0 || !strings.HasPrefix(secret, "mub_sk_") {
		t.Fatalf("create: code %d, %q, %q", code, secret, errs)
	}
	secret = strings.TrimSpace(secret)
	_, list, _ := mubatch("-workspace", "shop", "list")
	if !strings.Contains(list, "key_1\tfirst\t"+secret[:len("mub_sk_")+4]+"…\t[read write]\tvalid\n") || strings.Contains(list, secret) {
		t.Errorf("list: %q", list)
	}
	refused(`has no key_2`, "-workspace", "shop", "revoke", "key_2")
	if code, out, errs := mubatch("-workspace", "shop", "revoke", "key_1"); code != 0 || out != "key_1 is revoked\n" {
		t.Errorf("revoke: code %d, %q, %q", code, out, errs)
	}
	if _, list, _ = mubatch("-workspace", "shop", "list"); !strings.Contains(list, "\trevoked ") {
		t.Errorf("list after revoking: %q", list)
	}
}

func TestHelpDoesNotShowWhatIsInTheEnvironment(t *testing.T) {
	t.Parallel()
	for _, c := range commands() {
		var out, errs strings.Builder
		code := run(t.Context(), commands(), []string{c.name, "-h"}, stdio{&out, &errs, func(string) string { return "canary" }})
		if all := out.String() + errs.String(); code != 0 || strings.Contains(all, "canary") {
			t.Errorf("mubatch %s -h: code %d, %s", c.name, code, all)
		}
	}
}

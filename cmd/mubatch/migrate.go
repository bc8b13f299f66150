package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"strconv"

	"github.com/mubatch/mubatch/migrations"
)

func runMigrate(ctx context.Context, args []string, std stdio) error {
	flags := flag.NewFlagSet("mubatch migrate", flag.ContinueOnError)
	given := flags.String("database-url", "", "the `URL` of Postgres; DATABASE_URL if not given")
	flags.Usage = func() {
		fmt.Fprint(std.err, `usage: mubatch migrate [FLAGS] [up | version | force N]

  up         bring the database to this version's schema (the default)
  version    print the number of the newest migration that the database holds
  force N    say that the database is at version N, after looking at what an interrupted migration left

`)
		flags.PrintDefaults()
	}
	if err := parseFlags(flags, args, std); err != nil {
		return err
	}
	database := cmp.Or(*given, std.getenv("DATABASE_URL"))
	if database == "" {
		return errNoDatabase
	}

	switch what := flags.Args(); {
	case len(what) == 0, len(what) == 1 && what[0] == "up":
		if err := migrations.Up(ctx, database); err != nil {
			return err
		}
	case len(what) == 1 && what[0] == "version":
	case len(what) == 2 && what[0] == "force":
		version, err := strconv.Atoi(what[1])
		if err != nil || version < 1 {
			return &exitError{2, fmt.Errorf("%q is not the number of a migration", what[1])}
		}
		if err := migrations.Force(ctx, database, version); err != nil {
			return err
		}
	default:
		flags.Usage()
		return &exitError{code: 2}
	}

	version, dirty, err := migrations.Version(ctx, database)
	if err != nil {
		return err
	}
	if dirty {
		return &migrations.DirtyError{Version: version}
	}
	fmt.Fprintln(std.out, "the database is at version", version)
	return nil
}

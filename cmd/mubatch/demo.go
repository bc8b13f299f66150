package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mubatch/mubatch/cmd/mubatch/demo"
)

// runDemo runs the demo against a mubatch that is served already: that of the dev mode's folder, unless told otherwise.
func runDemo(ctx context.Context, args []string, std stdio) error {
	cfg := demo.Config{Out: std.out}
	flags := flag.NewFlagSet("mubatch demo", flag.ContinueOnError)
	flags.StringVar(&cfg.URL, "url", "", "the `URL` of mubatch; that of dev.json if not given")
	flags.StringVar(&cfg.WriteKey, "write-key", "", "a write `key`; MUBATCH_WRITE_KEY, else that of dev.json if not given")
	flags.StringVar(&cfg.SecretKey, "secret-key", "", "a secret `key`; MUBATCH_SECRET_KEY, else that of dev.json if not given")
	flags.StringVar(&cfg.File, "file", "", "the sales to replay, a `CSV` file, packed or not; the sample if not given")
	flags.IntVar(&cfg.Rate, "rate", 0, "the most `events` to send a second; 0: as fast as they are taken")
	flags.BoolVar(&cfg.Keep, "keep", false, "keep receiving, and print what arrives, until Ctrl-C")
	data := flags.String("data", ".mubatch", "the `folder` of the dev mode that has dev.json")
	check := flags.Bool("check", false, "compare the end with SQL over the sales, in temporary tables of the database; for a workspace with nothing else in it")
	questions := flags.Bool("questions", false, "instead, ask questions as of three dates, by segments and by SQL over the sales; makes a workspace for each date, with a key of the scope operator")
	database := flags.String("database-url", "", "the `URL` of a Postgres for --check and --questions; that of dev.json if not given")
	if err := parseFlags(flags, args, std); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return &exitError{2, fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}
	at, err := readInfo(filepath.Join(*data, infoFile))
	if err != nil {
		return err
	}
	for _, setting := range []struct {
		value             *string
		name              string
		other, remembered string
	}{
		{&cfg.URL, "url", "", at.URL},
		{&cfg.WriteKey, "write-key", std.getenv("MUBATCH_WRITE_KEY"), at.WriteKey},
		{&cfg.SecretKey, "secret-key", std.getenv("MUBATCH_SECRET_KEY"), at.SecretKey},
	} {
		for _, v := range []string{setting.other, setting.remembered} {
			if *setting.value == "" {
				*setting.value = v
			}
		}
		if *setting.value == "" {
			return &exitError{2, fmt.Errorf("no --%s, and no %s in %s: is mubatch dev running?", setting.name, infoFile, *data)}
		}
	}
	if *check || *questions {
		if cfg.Check = *database; cfg.Check == "" {
			cfg.Check = at.DatabaseURL
		}
		if cfg.Check == "" {
			return &exitError{2, errors.New("--check and --questions need --database-url")}
		}
	}
	if *questions {
		_, err = demo.Ask(ctx, cfg)
	} else {
		_, err = demo.Run(ctx, cfg)
	}
	var signalled signalError
	if err != nil && errors.As(context.Cause(ctx), &signalled) {
		return &exitError{code: 128 + int(signalled.signal)}
	}
	return err
}

// readInfo returns what dev.json says, nothing if there is none.
func readInfo(path string) (info, error) {
	var at info
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return at, nil
	}
	if err != nil {
		return at, err
	}
	if err := json.Unmarshal(text, &at); err != nil {
		return at, fmt.Errorf("read %s: %w", path, err)
	}
	return at, nil
}

// demoOn is the demo of the dev mode: it goes on receiving for as long as that serves.
func demoOn(out *os.File) func(ctx context.Context, at info) error {
	return func(ctx context.Context, at info) error {
		_, err := demo.Run(ctx, demo.Config{
			URL: at.URL, WriteKey: at.WriteKey, SecretKey: at.SecretKey, Keep: true, Out: out,
		})
		return err
	}
}

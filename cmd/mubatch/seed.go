package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/api"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/profiles"
)

// seed makes what the dev mode starts with: a workspace, a source with a write key, and an API key. What is there already
// stays.
func seed(ctx context.Context, pool *pgxpool.Pool, remembered keys) (keys, error) {
	k := remembered
	workspace, err := profiles.NewWorkspaces(pool).Ensure(ctx, "dev", "Development")
	if err != nil {
		return keys{}, err
	}
	keyStore := api.NewKeyStore(pool)
	if k.SecretKey == "" {
		_, k.SecretKey, err = keyStore.Create(ctx, workspace.ID, api.NewKey{Name: "dev", Scopes: api.Scopes()})
	} else {
		err = keyStore.EnsureKey(ctx, workspace.ID, "dev", k.SecretKey)
	}
	if err != nil {
		return keys{}, err
	}
	sources := collector.NewSourceStore(pool)
	list, err := sources.List(ctx, workspace.ID, 0, 1)
	if err != nil {
		return keys{}, err
	}
	var source collector.Source
	if len(list) > 0 {
		source = list[0]
	} else if source, err = sources.Create(ctx, workspace.ID, collector.Source{Key: "website", Name: "Website"}); err != nil {
		return keys{}, err
	}
	ref := fmt.Sprintf("src_%d", source.ID)
	known, err := sources.ListWriteKeys(ctx, workspace.ID, ref, 0, 100)
	if err != nil {
		return keys{}, err
	}
	for _, wk := range known {
		if wk.RevokedAt == nil && (k.WriteKey == "" || wk.Key == k.WriteKey) {
			k.WriteKey = wk.Key
			return k, k.sealing()
		}
	}
	made, err := sources.CreateWriteKey(ctx, workspace.ID, ref)
	if err != nil {
		return keys{}, err
	}
	k.WriteKey = made.Key
	return k, k.sealing()
}

// sealing makes the key that seals secrets, if there is none.
func (k *keys) sealing() error {
	if k.EncryptionKeys != "" {
		return nil
	}
	_, text, err := activation.NewKeyRing()
	k.EncryptionKeys = text
	return err
}

// devServer is what the dev mode seeds and serves. The keys of the seeding are those that are served with.
type devServer struct{ keys keys }

func (d *devServer) seed(ctx context.Context, pool *pgxpool.Pool, remembered keys) (keys, error) {
	k, err := seed(ctx, pool, remembered)
	d.keys = k
	return k, err
}

// serve serves on the stores that the dev mode has started. Receivers on this machine are allowed, as developers have
// them.
func (d *devServer) serve(ctx context.Context, listener net.Listener, on *stores) error {
	cfg := config{}
	flags := flag.NewFlagSet("mubatch dev", flag.ContinueOnError)
	cfg.flags(flags)
	cfg.allowPrivate = true
	cfg.logLevel = "warn"
	if err := fromEnvironment(flags, os.Getenv); err != nil {
		return &exitError{2, err}
	}
	cfg.databaseURL, cfg.redisURL = on.databaseURL, on.redisURL
	cfg.allowDegraded = cfg.allowDegraded || on.notDurable != ""
	if cfg.encryptionKeys == "" {
		cfg.encryptionKeys = d.keys.EncryptionKeys
	}
	if err := cfg.check(); err != nil {
		return &exitError{2, err}
	}
	return serve(ctx, cfg, listener, os.Stderr)
}

package main

import (
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/files"
	"github.com/mubatch/mubatch/profiles"
)

// importKeys seals the secrets of the buckets that imports read.
type importKeys struct{ ring *activation.KeyRing }

func importSecret(workspace int32, id int64) activation.Place {
	return activation.Place{Workspace: workspace, Table: "imports", Column: "s3_secret", ID: id}
}

func (k importKeys) Seal(workspace int32, id int64, plain []byte) []byte {
	return k.ring.Seal(importSecret(workspace, id), plain)
}

func (k importKeys) Open(workspace int32, id int64, sealed []byte) ([]byte, error) {
	return k.ring.Open(importSecret(workspace, id), sealed)
}

// importsRunner returns what works on imports of files.
func importsRunner(cfg config, pool *pgxpool.Pool, keys importKeys, in *collector.Intake, outbound activation.Outbound, reg prometheus.Registerer, log *slog.Logger) *files.Runner {
	return files.NewRunner(files.Config{
		Folder: cfg.importDir,
		MaxLag: cfg.importLag,
		Client: activation.NewClient(outbound).Transport,
	}, pool, keys, in, profiles.NewReader(pool, cfg.lanes), reg, log)
}

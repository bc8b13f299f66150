package main

import (
	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/filedrop"
	"github.com/mubatch/mubatch/activation/ga4"
	"github.com/mubatch/mubatch/activation/google"
	"github.com/mubatch/mubatch/activation/linkedin"
	"github.com/mubatch/mubatch/activation/meta"
	"github.com/mubatch/mubatch/activation/microsoft"
	"github.com/mubatch/mubatch/activation/tiktok"
	"github.com/mubatch/mubatch/activation/tradedesk"
	"github.com/mubatch/mubatch/activation/webhook"
)

// partners are all that destinations may be at.
func partners(cfg activation.Outbound) []activation.Partner {
	client := activation.NewClient(cfg)
	return []activation.Partner{
		ga4.New(client, cfg),
		google.NewConversions(client, cfg),
		google.New(client, cfg),
		linkedin.New(client, cfg),
		meta.New(client, cfg),
		meta.NewConversions(client, cfg),
		microsoft.New(client, cfg),
		filedrop.NewS3(client, cfg),
		filedrop.NewSFTP(cfg),
		tiktok.New(client, cfg),
		tradedesk.New(client, cfg),
		webhook.New(client, cfg),
	}
}

package api

import (
	"cmp"
	"net/http"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/collector"
)

type sourceJSON struct {
	ID        string       `json:"id"`
	Key       string       `json:"key"`
	Name      string       `json:"name"`
	Type      string       `json:"type"`
	Settings  settingsJSON `json:"settings"`
	Enabled   bool         `json:"enabled"`
	CreatedAt timestamp    `json:"created_at"`
	UpdatedAt timestamp    `json:"updated_at"`
	Webhook   *webhookJSON `json:"webhook,omitzero"`
}

type settingsJSON struct {
	MergeOn   []string `json:"merge_on"`
	CollectIP bool     `json:"collect_ip"`
	Dialects  []string `json:"dialects"`
	Unplanned string   `json:"unplanned"`
	Bots      string   `json:"bots"`
	TellUsers bool     `json:"tell_users"`

	Webhook *collector.WebhookSettings `json:"webhook,omitzero"`
}

type writeKeyJSON struct {
	ID         string     `json:"id"`
	SourceID   string     `json:"source_id"`
	Key        string     `json:"key"`
	CreatedAt  timestamp  `json:"created_at"`
	RevokedAt  *timestamp `json:"revoked_at"`
	LastUsedAt *timestamp `json:"last_used_at"`
}

// showSources returns what shows those of the given sources.
func (c *call) showSources(sources ...collector.Source) (func(collector.Source) sourceJSON, error) {
	webhooks, err := c.sources.Webhooks(c.Context(), c.workspace(), sources...)
	if err != nil {
		return nil, err
	}
	return func(s collector.Source) sourceJSON {
		return sourceJSON{
			formatID(sourceID, s.ID), s.Key, s.Name, s.Type,
			settingsJSON{
				MergeOn: s.Settings.MergeOn, CollectIP: s.Settings.CollectIP == nil || *s.Settings.CollectIP, Dialects: s.Settings.Speaks(),
				Unplanned: cmp.Or(s.Settings.Unplanned, unplannedUnseen), Bots: cmp.Or(s.Settings.Bots, collector.ActionFlag),
				TellUsers: s.Settings.TellUsers, Webhook: s.Settings.Webhook,
			},
			s.Enabled, timestamp(s.CreatedAt), timestamp(s.UpdatedAt), showWebhook(s, webhooks[s.ID]),
		}
	}, nil
}

// replySource answers with a source.
func (c *call) replySource(s collector.Source) (answer, error) {
	show, err := c.showSources(s)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, show(s))
}

func showWriteKey(k collector.WriteKey) writeKeyJSON {
	return writeKeyJSON{
		formatID(writeKeyID, k.ID), formatID(sourceID, k.SourceID), k.Key, timestamp(k.CreatedAt), maybe(k.RevokedAt),
		maybe(k.LastUsedAt),
	}
}

// source returns the source of a key or id.
func (c *call) source(ref string) (collector.Source, error) {
	if _, ok := parseID(sourceID, ref); !ok && !humanKey.MatchString(ref) {
		return collector.Source{}, errNotFound()
	}
	return c.sources.Get(c.Context(), c.workspace(), ref)
}

// sourceKeys returns the keys of all sources by their ids.
func (c *call) sourceKeys() (map[int32]string, error) {
	keys := map[int32]string{}
	for after := int32(0); ; {
		list, err := c.sources.List(c.Context(), c.workspace(), after, maxLimit)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			keys[s.ID], after = s.Key, s.ID
		}
		if len(list) < maxLimit {
			return keys, nil
		}
	}
}

func listSources(c *call) (answer, error) {
	var after int32
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	found, err := c.sources.List(c.Context(), c.workspace(), after, limit+1)
	if err != nil {
		return answer{}, err
	}
	show, err := c.showSources(found...)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(s collector.Source) any { return s.ID }, show)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

// unplannedUnseen is the setting by which nobody looks whether there is a schema for an event.
const unplannedUnseen = "ignore"

// sourceSettings is how settings come in: what is left out stays as it is.
type sourceSettings struct {
	MergeOn   *[]string `json:"merge_on" validate:"omitnil,max=20,unique,dive,min=1,max=64"`
	CollectIP *bool     `json:"collect_ip"`
	Dialects  *[]string `json:"dialects" validate:"omitnil,min=1,unique,dive,dialect"`
	Unplanned *string   `json:"unplanned" validate:"omitnil,oneof=ignore allow flag quarantine"`
	Bots      *string   `json:"bots" validate:"omitnil,oneof=flag quarantine off"`
	TellUsers *bool     `json:"tell_users"`

	Webhook jsontext.Value `json:"webhook"` // a patch of webhookSettings
}

// over returns s as in says, and the secrets of webhooks if it says them.
func (in *sourceSettings) over(s collector.SourceSettings) (_ collector.SourceSettings, secrets []string, err error) {
	if in == nil {
		return s, nil, nil
	}
	if in.MergeOn != nil {
		s.MergeOn = *in.MergeOn
	}
	if in.CollectIP != nil {
		s.CollectIP = in.CollectIP
	}
	if in.Dialects != nil {
		s.Dialects = *in.Dialects
	}
	if in.Unplanned != nil {
		if s.Unplanned = *in.Unplanned; s.Unplanned == unplannedUnseen {
			s.Unplanned = ""
		}
	}
	if in.Bots != nil {
		s.Bots = *in.Bots
	}
	if in.TellUsers != nil {
		s.TellUsers = *in.TellUsers
	}
	if in.Webhook != nil {
		s.Webhook, secrets, err = patchWebhook(s.Webhook, in.Webhook)
	}
	return s, secrets, err
}

func createSource(c *call) (answer, error) {
	var in struct {
		Key      string          `json:"key" validate:"required,key"`
		Name     string          `json:"name" validate:"max=200"`
		Type     string          `json:"type" validate:"omitempty,oneof=segment webhook kafka"`
		Settings *sourceSettings `json:"settings"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	var out struct {
		sourceJSON
		WriteKey writeKeyJSON `json:"write_key"`
	}
	settings, secrets, err := in.Settings.over(collector.SourceSettings{})
	if err != nil {
		return answer{}, err
	}
	err = pgx.BeginFunc(c.Context(), c.db, func(tx pgx.Tx) error {
		inside := *c
		inside.stores = c.in(tx)
		s, err := inside.sources.Create(c.Context(), c.workspace(), collector.Source{
			Key: in.Key, Name: in.Name, Type: in.Type, Settings: settings,
		}, secrets...)
		if err != nil {
			return err
		}
		k, err := inside.sources.CreateWriteKey(c.Context(), c.workspace(), formatID(sourceID, s.ID))
		if err != nil {
			return err
		}
		show, err := inside.showSources(s)
		if err != nil {
			return err
		}
		out.sourceJSON, out.WriteKey = show(s), showWriteKey(k)
		return nil
	})
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusCreated, out)
}

func getSource(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	return c.replySource(s)
}

func updateSource(c *call) (answer, error) {
	var in struct {
		Name     *string         `json:"name" validate:"omitnil,min=1,max=200"`
		Settings *sourceSettings `json:"settings"`
		Enabled  *bool           `json:"enabled"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	change := collector.SourceUpdate{Name: in.Name, Enabled: in.Enabled}
	if in.Settings != nil {
		settings, secrets, err := in.Settings.over(s.Settings)
		if err != nil {
			return answer{}, err
		}
		change.Settings, change.Secrets = &settings, secrets
	}
	s, err = c.sources.Update(c.Context(), c.workspace(), formatID(sourceID, s.ID), change)
	if err != nil {
		return answer{}, err
	}
	return c.replySource(s)
}

func deleteSource(c *call) (answer, error) {
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	c.subject = formatID(sourceID, s.ID)
	if err := c.sources.Delete(c.Context(), c.workspace(), c.subject); err != nil {
		return answer{}, err
	}
	return answer{Status: http.StatusNoContent}, nil
}

func listWriteKeys(c *call) (answer, error) {
	var before int32
	limit, _, err := c.paging(&before)
	if err != nil {
		return answer{}, err
	}
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	found, err := c.sources.ListWriteKeys(c.Context(), c.workspace(), formatID(sourceID, s.ID), before, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(k collector.WriteKey) any { return k.ID }, showWriteKey)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

func createWriteKey(c *call) (answer, error) {
	if err := c.noBody(); err != nil {
		return answer{}, err
	}
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	k, err := c.sources.CreateWriteKey(c.Context(), c.workspace(), formatID(sourceID, s.ID))
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusCreated, showWriteKey(k))
}

func revokeWriteKey(c *call) (answer, error) {
	id, ok := parseID(writeKeyID, c.param("write_key"))
	if !ok || id > 1<<31-1 {
		return answer{}, errNotFound()
	}
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	var k collector.WriteKey
	err = pgx.BeginFunc(c.Context(), c.db, func(tx pgx.Tx) (err error) {
		k, err = c.in(tx).sources.RevokeWriteKey(c.Context(), c.workspace(), int32(id))
		if err == nil && k.SourceID != s.ID {
			return errNotFound()
		}
		return err
	})
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, showWriteKey(k))
}

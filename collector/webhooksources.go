package collector

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/collector/mapping"
	"github.com/mubatch/mubatch/collector/webhook"
)

// WebhookSettings tell how the webhooks of a source are verified, and what becomes of them.
type WebhookSettings struct {
	webhook.Settings
	// Mapping is the key or id of a mapping of the workspace, or the name of a template; default the provider's template.
	Mapping string `json:"mapping,omitzero"`
}

// program returns the compiled mapping of s, which is document if the workspace has it.
func (s *WebhookSettings) program(document string) (*mapping.Program, error) {
	if document != "" {
		return mapping.Compile([]byte(document))
	}
	template, ok := mapping.Template(cmp.Or(s.Mapping, webhook.Mapping(s.Provider)))
	if !ok {
		return nil, &webhook.SettingsError{
			Member: "mapping", Code: "unknown_mapping", Reason: "must be the key of a mapping, or the name of a template: " + strings.Join(mapping.Templates(), ", "),
		}
	}
	return mapping.Compile(template)
}

// WebhookSecret is what a provider signs with, or whatever else proves that it is the provider.
type WebhookSecret struct {
	ID        int32
	SourceID  int32
	Hint      string // its end
	CreatedAt time.Time
}

// WebhookState is what there is to know about a source of webhooks beside its settings.
type WebhookState struct {
	Keys    []string // the write keys that are valid, newest first: each makes a path
	Secrets []WebhookSecret
	Counts  WebhookCounts // of the last seven days, as far as collectors have told
}

// WebhookCounts is what became of deliveries.
type WebhookCounts struct {
	Accepted   int64 // at least one event was made of it
	Ignored    int64 // the mapping makes nothing of it
	Failed     int64 // the mapping cannot make an event of it
	Unverified int64 // requests
}

var errNoKeys = errors.New("without encryption keys the secrets of webhooks can be neither sealed nor opened")

func webhookSecretOf(workspace, id int32) activation.Place {
	return activation.Place{Workspace: workspace, Table: "webhook_secrets", Column: "sealed", ID: int64(id)}
}

// checkWebhook says what is wrong with the settings of webhooks and the secrets of a source of a type.
func (s *SourceStore) checkWebhook(ctx context.Context, workspace int32, kind string, settings *WebhookSettings, secrets []string) error {
	switch {
	case settings == nil && kind == "webhook":
		return &webhook.SettingsError{Code: "required", Reason: "is required for a source of the type webhook"}
	case settings == nil && len(secrets) == 0:
		return nil
	case settings == nil || kind != "webhook":
		return &webhook.SettingsError{Code: "not_for_type", Reason: "is for sources of the type webhook only"}
	}
	_, err := webhook.New(settings.Settings, secrets)
	if webhook.Mapping(settings.Provider) == "" {
		return err // it is not known: no use in saying more
	}
	if settings.Mapping != "" {
		_, notOurs := NewMappingStore(s.db).Get(ctx, workspace, settings.Mapping)
		if notOurs == nil {
			return err // it compiled when it was saved
		}
		if !errors.Is(notOurs, ErrNotFound) {
			return notOurs
		}
	}
	_, alsoErr := settings.program("")
	return errors.Join(err, alsoErr)
}

// setWebhookSecrets makes secrets the only ones of a source.
func (s *SourceStore) setWebhookSecrets(ctx context.Context, source Source, secrets []string) error {
	const remove = `
		DELETE FROM webhook_secrets
		WHERE workspace_id = @workspace AND source_id = @source`
	if _, err := s.db.Exec(ctx, remove, pgx.StrictNamedArgs{"workspace": source.WorkspaceID, "source": source.ID}); err != nil {
		return fmt.Errorf("replace the secrets of webhooks: %w", err)
	}
	for _, secret := range secrets {
		if _, err := s.addWebhookSecret(ctx, source, secret); err != nil {
			return err
		}
	}
	return nil
}

func (s *SourceStore) addWebhookSecret(ctx context.Context, source Source, secret string) (WebhookSecret, error) {
	const next = `SELECT nextval(pg_get_serial_sequence('webhook_secrets', 'id'))::integer`
	const insert = `
		INSERT INTO webhook_secrets (id, workspace_id, source_id, sealed, hint)
		VALUES (@id, @workspace, @source, @sealed, @hint)
		RETURNING id, source_id, hint, created_at`
	if s.keys == nil {
		return WebhookSecret{}, errNoKeys
	}
	rows, _ := s.db.Query(ctx, next) // err: below
	id, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int32])
	if err != nil {
		return WebhookSecret{}, fmt.Errorf("number a secret of webhooks: %w", err)
	}
	rows, _ = s.db.Query(ctx, insert, pgx.StrictNamedArgs{
		"id": id, "workspace": source.WorkspaceID, "source": source.ID,
		"sealed": s.keys.Seal(webhookSecretOf(source.WorkspaceID, id), []byte(secret)), "hint": hintOf(secret),
	}) // err: below
	added, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[WebhookSecret])
	if err != nil {
		return WebhookSecret{}, interpret(err, "add a secret of webhooks")
	}
	return added, nil
}

// hintOf returns the end of a secret that is long enough to keep the rest to itself.
func hintOf(secret string) string {
	r := []rune(secret)
	if len(r) < 16 {
		return "…"
	}
	return "…" + string(r[len(r)-4:])
}

// updateWebhook makes secrets those of a source that has just been changed, unless they are nil, and checks what it is then.
func (s *SourceStore) updateWebhook(ctx context.Context, source Source, secrets []string) error {
	if secrets != nil {
		if err := s.checkWebhook(ctx, source.WorkspaceID, source.Type, source.Settings.Webhook, secrets); err != nil {
			return err
		}
		return s.setWebhookSecrets(ctx, source, secrets)
	}
	if source.Type != "webhook" && source.Settings.Webhook == nil {
		return nil
	}
	_, secrets, err := s.webhookSecrets(ctx, source)
	if err != nil {
		return err
	}
	return s.checkWebhook(ctx, source.WorkspaceID, source.Type, source.Settings.Webhook, secrets)
}

// webhookSecrets returns the secrets of a source, opened, and their numbers, oldest first. They are locked, so that those who
// change them take turns.
func (s *SourceStore) webhookSecrets(ctx context.Context, source Source) (ids []int32, secrets []string, err error) {
	const query = `
		SELECT id, sealed
		FROM webhook_secrets
		WHERE workspace_id = @workspace AND source_id = @source
		ORDER BY id
		FOR UPDATE`
	type row struct {
		ID     int32
		Sealed []byte
	}
	rows, _ := s.db.Query(ctx, query, pgx.StrictNamedArgs{"workspace": source.WorkspaceID, "source": source.ID}) // err: below
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[row])
	if err != nil {
		return nil, nil, fmt.Errorf("read the secrets of webhooks: %w", err)
	}
	for _, r := range list {
		if s.keys == nil {
			return nil, nil, errNoKeys
		}
		secret, err := s.keys.Open(webhookSecretOf(source.WorkspaceID, r.ID), r.Sealed)
		if err != nil {
			return nil, nil, err
		}
		ids, secrets = append(ids, r.ID), append(secrets, string(secret))
	}
	return ids, secrets, nil
}

// AddWebhookSecret adds a secret to those of a source: from about a second later either verifies. What is wrong with it is a
// [webhook.SettingsError].
func (s *SourceStore) AddWebhookSecret(ctx context.Context, workspaceID int32, ref, secret string) (added WebhookSecret, err error) {
	err = s.changeWebhookSecrets(ctx, workspaceID, ref, func(tx *SourceStore, source Source, _ []int32, secrets []string) error {
		if err := tx.checkWebhook(ctx, source.WorkspaceID, source.Type, source.Settings.Webhook, append(secrets, secret)); err != nil {
			return err
		}
		added, err = tx.addWebhookSecret(ctx, source, secret)
		return err
	})
	return added, err
}

// DeleteWebhookSecret takes a secret from those of a source: within about a second it verifies no more. If it is the only
// one, the error is a [webhook.SettingsError].
func (s *SourceStore) DeleteWebhookSecret(ctx context.Context, workspaceID int32, ref string, id int32) error {
	const query = `DELETE FROM webhook_secrets WHERE id = @id`
	return s.changeWebhookSecrets(ctx, workspaceID, ref, func(tx *SourceStore, source Source, ids []int32, secrets []string) error {
		i := slices.Index(ids, id)
		if i < 0 {
			return ErrNotFound
		}
		if err := tx.checkWebhook(ctx, source.WorkspaceID, source.Type, source.Settings.Webhook, slices.Delete(secrets, i, i+1)); err != nil {
			return err
		}
		if _, err := tx.db.Exec(ctx, query, pgx.StrictNamedArgs{"id": id}); err != nil {
			return fmt.Errorf("delete a secret of webhooks: %w", err)
		}
		return nil
	})
}

// changeWebhookSecrets calls change in a transaction in which nobody else changes the secrets of the source.
func (s *SourceStore) changeWebhookSecrets(ctx context.Context, workspaceID int32, ref string,
	change func(tx *SourceStore, source Source, ids []int32, secrets []string) error,
) error {
	const lock = `SELECT FROM sources WHERE id = @source FOR NO KEY UPDATE`
	return pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		in := s.in(tx)
		source, err := in.Get(ctx, workspaceID, ref)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, lock, pgx.StrictNamedArgs{"source": source.ID}); err != nil {
			return fmt.Errorf("lock a source: %w", err)
		}
		ids, secrets, err := in.webhookSecrets(ctx, source)
		if err != nil {
			return err
		}
		return change(in, source, ids, secrets)
	})
}

// Webhooks returns the state of those of the workspace's sources that take webhooks, by their ids.
func (s *SourceStore) Webhooks(ctx context.Context, workspaceID int32, sources ...Source) (map[int32]WebhookState, error) {
	const keys = `
		SELECT source_id, array_agg(key ORDER BY id DESC) AS keys
		FROM write_keys
		WHERE workspace_id = @workspace AND source_id = ANY (@sources::integer[]) AND revoked_at IS NULL
		GROUP BY source_id`
	const secrets = `
		SELECT id, source_id, hint, created_at
		FROM webhook_secrets
		WHERE workspace_id = @workspace AND source_id = ANY (@sources::integer[])
		ORDER BY id DESC`
	const counts = `
		SELECT source_id, sum(accepted)::bigint AS accepted, sum(ignored)::bigint AS ignored,
		       sum(failed)::bigint AS failed, sum(unverified)::bigint AS unverified
		FROM webhook_counts
		WHERE source_id = ANY (@sources::integer[]) AND day > (now() AT TIME ZONE 'UTC')::date - 7
		GROUP BY source_id`
	states := map[int32]WebhookState{}
	ids := []int32{}
	for _, source := range sources {
		if source.Settings.Webhook != nil {
			ids = append(ids, source.ID)
			states[source.ID] = WebhookState{}
		}
	}
	if len(ids) == 0 {
		return states, nil
	}
	args := pgx.StrictNamedArgs{"workspace": workspaceID, "sources": ids}
	type keyRow struct {
		SourceID int32
		Keys     []string
	}
	type countRow struct {
		SourceID int32
		WebhookCounts
	}
	rows, _ := s.db.Query(ctx, keys, args) // err: below
	keyRows, err := pgx.CollectRows(rows, pgx.RowToStructByName[keyRow])
	if err != nil {
		return nil, fmt.Errorf("read the paths of webhooks: %w", err)
	}
	rows, _ = s.db.Query(ctx, secrets, args) // err: below
	secretRows, err := pgx.CollectRows(rows, pgx.RowToStructByName[WebhookSecret])
	if err != nil {
		return nil, fmt.Errorf("list the secrets of webhooks: %w", err)
	}
	rows, _ = s.db.Query(ctx, counts, pgx.StrictNamedArgs{"sources": ids}) // err: below
	countRows, err := pgx.CollectRows(rows, pgx.RowToStructByName[countRow])
	if err != nil {
		return nil, fmt.Errorf("read the counts of webhooks: %w", err)
	}
	for _, r := range keyRows {
		state := states[r.SourceID]
		state.Keys = r.Keys
		states[r.SourceID] = state
	}
	for _, r := range secretRows {
		state := states[r.SourceID]
		state.Secrets = append(state.Secrets, r)
		states[r.SourceID] = state
	}
	for _, r := range countRows {
		state := states[r.SourceID]
		state.Counts = r.WebhookCounts
		states[r.SourceID] = state
	}
	return states, nil
}

// hook is what the webhooks of a source go through.
type hook struct {
	made     []byte // of what
	err      error  // why it cannot be used
	settings *WebhookSettings
	endpoint *webhook.Endpoint
	program  *mapping.Program
	counts   *webhookCounts
}

// webhookCounts are counted but not stored yet.
type webhookCounts struct{ accepted, ignored, failed, unverified atomic.Int64 }

func (c *webhookCounts) each() []*atomic.Int64 {
	return []*atomic.Int64{&c.accepted, &c.ignored, &c.failed, &c.unverified}
}

// webhook returns what a write key allows that is the last part of a webhook's path, and what the webhooks go through. Errors
// are those of [Directory.Lookup]; the key of a source that takes none is ErrUnknownKey too.
func (d *Directory) webhook(ctx context.Context, key string) (Grant, *hook, error) {
	g, err := d.lookup(ctx, key)
	if err != nil {
		return Grant{}, nil, err
	}
	k := d.snapshot.Load().hooks[g.SourceID]
	switch {
	case g.Settings.Webhook == nil:
		return Grant{}, nil, ErrUnknownKey
	case k == nil || k.err != nil: // it was deleted since, or keys are missing
		return Grant{}, nil, ErrNoDirectory
	}
	return g, k, nil
}

// hooks returns what the webhooks of each source go through. Those of old that are still the same are taken over.
func (d *Directory) hooks(list []Grant, old map[int32]*hook) map[int32]*hook {
	hooks := map[int32]*hook{}
	for _, g := range list {
		if g.Settings.Webhook == nil || hooks[g.SourceID] != nil {
			continue
		}
		made, err := json.Marshal([]any{g.Settings.Webhook, g.WebhookMapping, g.WebhookSecretIDs, g.WebhookSecrets})
		if k := old[g.SourceID]; err == nil && k != nil && bytes.Equal(k.made, made) {
			hooks[g.SourceID] = k
			continue
		}
		counts, _ := d.webhooks.LoadOrStore(g.SourceID, new(webhookCounts))
		k := &hook{made: made, settings: g.Settings.Webhook, counts: counts.(*webhookCounts)}
		if k.err = errors.Join(err, k.open(g, d.cfg.Keys)); k.err != nil {
			d.log.Error("a source's webhooks cannot be taken in", "source_id", g.SourceID, "err", k.err)
		}
		hooks[g.SourceID] = k
	}
	return hooks
}

// open makes k what its settings and secrets say.
func (k *hook) open(g Grant, keys *activation.KeyRing) (err error) {
	secrets := make([]string, len(g.WebhookSecrets))
	for i, sealed := range g.WebhookSecrets {
		if keys == nil {
			return errNoKeys
		}
		secret, err := keys.Open(webhookSecretOf(g.WorkspaceID, g.WebhookSecretIDs[i]), sealed)
		if err != nil {
			return err
		}
		secrets[i] = string(secret)
	}
	if k.endpoint, err = webhook.New(k.settings.Settings, secrets); err != nil {
		return err
	}
	k.program, err = k.settings.program(g.WebhookMapping)
	return err
}

// countWebhooks stores what was counted since the last time.
func (d *Directory) countWebhooks(ctx context.Context) {
	const query = `
		INSERT INTO webhook_counts AS c (source_id, day, accepted, ignored, failed, unverified)
		SELECT t.source_id, (now() AT TIME ZONE 'UTC')::date, t.accepted, t.ignored, t.failed, t.unverified
		FROM unnest(@sources::integer[], @accepted::bigint[], @ignored::bigint[], @failed::bigint[], @unverified::bigint[])
		     AS t (source_id, accepted, ignored, failed, unverified)
		JOIN sources AS s ON s.id = t.source_id
		ORDER BY t.source_id
		ON CONFLICT (source_id, day) DO UPDATE
		SET accepted   = c.accepted + excluded.accepted,
		    ignored    = c.ignored + excluded.ignored,
		    failed     = c.failed + excluded.failed,
		    unverified = c.unverified + excluded.unverified`
	sources := []int32{}
	var taken [4][]int64
	var giveBack []func()
	for id, counts := range d.webhooks.Range {
		each := counts.(*webhookCounts).each()
		if !slices.ContainsFunc(each, func(n *atomic.Int64) bool { return n.Load() > 0 }) {
			continue
		}
		sources = append(sources, id.(int32))
		for i, counter := range each {
			n := counter.Swap(0)
			taken[i] = append(taken[i], n)
			giveBack = append(giveBack, func() { counter.Add(n) })
		}
	}
	if len(sources) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, directoryTimeout)
	defer cancel()
	_, err := d.pool.Exec(ctx, query, pgx.StrictNamedArgs{
		"sources": sources, "accepted": taken[0], "ignored": taken[1], "failed": taken[2], "unverified": taken[3],
	})
	if err != nil {
		for _, undo := range giveBack {
			undo()
		}
		d.log.WarnContext(ctx, "what became of webhooks could not be counted", "err", err)
	}
}

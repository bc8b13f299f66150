package api

import (
	"errors"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/webhook"
)

// webhookJSON is what there is to know about a source of webhooks beside its settings.
type webhookJSON struct {
	Paths      []string            `json:"paths"`
	Secrets    []webhookSecretJSON `json:"secrets"`
	Deliveries webhookCountsJSON   `json:"deliveries"`
}

type webhookSecretJSON struct {
	ID        string    `json:"id"`
	Hint      string    `json:"hint"`
	CreatedAt timestamp `json:"created_at"`
}

type webhookCountsJSON struct {
	Accepted   int64 `json:"accepted"`
	Ignored    int64 `json:"ignored"`
	Failed     int64 `json:"failed"`
	Unverified int64 `json:"unverified"`
}

func showWebhook(s collector.Source, state collector.WebhookState) *webhookJSON {
	if s.Settings.Webhook == nil {
		return nil
	}
	out := &webhookJSON{Deliveries: webhookCountsJSON(state.Counts)}
	for _, key := range state.Keys {
		path := "/v1/webhooks/" + key
		if s.Settings.Webhook.Provider == "firehose" {
			path = "/v1/firehose"
		}
		out.Paths = append(out.Paths, path)
	}
	for _, secret := range state.Secrets {
		out.Secrets = append(out.Secrets, showWebhookSecret(secret))
	}
	return out
}

func showWebhookSecret(s collector.WebhookSecret) webhookSecretJSON {
	return webhookSecretJSON{formatID(webhookSecretID, s.ID), s.Hint, timestamp(s.CreatedAt)}
}

// webhookSettings is how settings of webhooks come in.
type webhookSettings struct {
	collector.WebhookSettings
	Secrets *[]string `json:"secrets"`
}

// patchWebhook returns settings as a patch changes them: what is left out stays, and null takes away. The secrets are nil if
// it does not say them.
func patchWebhook(settings *collector.WebhookSettings, patch jsontext.Value) (*collector.WebhookSettings, []string, error) {
	var in webhookSettings
	if settings != nil {
		in.WebhookSettings = *settings
	}
	at := func(p jsontext.Pointer, code, detail string) error {
		return invalid(problem.FieldError{Pointer: pointer("/settings/webhook" + p), Code: code, Detail: detail})
	}
	if patch.Kind() != '{' {
		return nil, nil, at("", "wrong_type", "must be an object")
	}
	err := json.Unmarshal(patch, &in, json.RejectUnknownMembers(true))
	var semantic *json.SemanticError
	switch {
	case errors.As(err, &semantic) && errors.Is(semantic.Err, json.ErrUnknownName):
		return nil, nil, at(semantic.JSONPointer, "unknown_member", "is not known here")
	case errors.As(err, &semantic):
		return nil, nil, at(semantic.JSONPointer, "wrong_type", "must be "+named(semantic.GoType))
	case err != nil:
		return nil, nil, err
	}
	if in.Secrets == nil {
		return &in.WebhookSettings, nil, nil
	}
	return &in.WebhookSettings, append([]string{}, *in.Secrets...), nil
}

// aboutWebhook says what is wrong with settings of webhooks, or with a secret that is the body.
func aboutWebhook(err error) *problem.Problem {
	var faults []problem.FieldError
	for _, fault := range settingsErrors(err) {
		tokens := []string{"settings", "webhook"}
		if fault.Member != "" {
			tokens = append(tokens, fault.Member)
		}
		faults = append(faults, problem.FieldError{Pointer: problem.Pointer(tokens...), Code: fault.Code, Detail: fault.Reason})
	}
	return invalid(faults...)
}

func settingsErrors(err error) (list []*webhook.SettingsError) {
	var one *webhook.SettingsError
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range several.Unwrap() {
			list = append(list, settingsErrors(e)...)
		}
	} else if errors.As(err, &one) {
		list = append(list, one)
	}
	return list
}

func createWebhookSecret(c *call) (answer, error) {
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	var in struct {
		Secret string `json:"secret" validate:"required,max=512"` // webhook.MaxSecret
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	added, err := c.sources.AddWebhookSecret(c.Context(), c.workspace(), formatID(sourceID, s.ID), in.Secret)
	var wrong *webhook.SettingsError
	switch {
	case errors.As(err, &wrong) && wrong.Member == "":
		return answer{}, notOfWebhooks()
	case errors.As(err, &wrong):
		return answer{}, invalid(problem.FieldError{Pointer: "#/secret", Code: wrong.Code, Detail: "cannot be added: the secrets of the source " + wrong.Reason})
	case err != nil:
		return answer{}, err
	}
	return reply(http.StatusCreated, showWebhookSecret(added))
}

func deleteWebhookSecret(c *call) (answer, error) {
	id, ok := parseID(webhookSecretID, c.param("webhook_secret"))
	if !ok || id > 1<<31-1 {
		return answer{}, errNotFound()
	}
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	c.subject = formatID(webhookSecretID, id)
	err = c.sources.DeleteWebhookSecret(c.Context(), c.workspace(), formatID(sourceID, s.ID), int32(id))
	if errors.As(err, new(*webhook.SettingsError)) {
		p := problem.New(http.StatusConflict, "last_secret", "It is the only secret of the source.")
		p.Detail = "Add the next one first. To take nothing in any more, disable the source."
		return answer{}, p
	}
	if err != nil {
		return answer{}, err
	}
	return answer{Status: http.StatusNoContent}, nil
}

func notOfWebhooks() *problem.Problem {
	p := problem.New(http.StatusConflict, "not_webhooks", "The source takes no webhooks.")
	p.Detail = "Only sources of the type webhook have such secrets."
	return p
}

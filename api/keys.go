package api

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/mubatch/mubatch/api/problem"
)

type keyJSON struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Prefix     string     `json:"prefix"`
	Scopes     []Scope    `json:"scopes"`
	CreatedAt  timestamp  `json:"created_at"`
	ExpiresAt  *timestamp `json:"expires_at"`
	LastUsedAt *timestamp `json:"last_used_at"`
	RevokedAt  *timestamp `json:"revoked_at"`
}

type createdKeyJSON struct {
	keyJSON
	Secret string `json:"secret"`
}

func showKey(k Key) keyJSON {
	return keyJSON{
		ID: formatID(keyID, k.ID), Name: k.Name, Prefix: k.Prefix, Scopes: k.Scopes, CreatedAt: timestamp(k.CreatedAt),
		ExpiresAt: maybe(k.ExpiresAt), LastUsedAt: maybe(k.LastUsedAt), RevokedAt: maybe(k.RevokedAt),
	}
}

func listKeys(c *call) (answer, error) {
	var after int64
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	found, err := c.keys.List(c.Context(), c.workspace(), after, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(k Key) any { return k.ID }, showKey)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

func createKey(c *call) (answer, error) {
	var in struct {
		Name      string     `json:"name" validate:"required,max=200"`
		Scopes    []Scope    `json:"scopes" validate:"required,min=1,max=4,unique,dive,oneof=read write admin operator"`
		ExpiresAt *time.Time `json:"expires_at" validate:"omitnil,future"`
	}
	if err := c.decode(&in, "expires_at"); err != nil {
		return answer{}, err
	}
	for i, scope := range in.Scopes {
		if !slices.Contains(c.id.key.Scopes, scope) {
			return answer{}, invalid(problem.FieldError{
				Pointer: problem.Pointer("scopes", strconv.Itoa(i)), Code: "missing_scope", Detail: "cannot be given by a key that does not have it",
			})
		}
	}
	k, secret, err := c.keys.Create(c.Context(), c.workspace(), NewKey{Name: in.Name, Scopes: in.Scopes, ExpiresAt: in.ExpiresAt})
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusCreated, createdKeyJSON{showKey(k), secret})
}

func revokeKey(c *call) (answer, error) {
	id, ok := parseID(keyID, c.param("key"))
	if !ok {
		return answer{}, errNotFound()
	}
	k, err := c.keys.Revoke(c.Context(), c.workspace(), id)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, showKey(k))
}

package api

import (
	"net/http"

	"github.com/jackc/pgx/v5"

	"github.com/mubatch/mubatch/profiles"
)

type workspaceJSON struct {
	ID        string    `json:"id"`
	Key       string    `json:"key"`
	Name      string    `json:"name"`
	CreatedAt timestamp `json:"created_at"`
}

func showWorkspace(w profiles.Workspace) workspaceJSON {
	return workspaceJSON{formatID(workspaceID, w.ID), w.Key, w.Name, timestamp(w.CreatedAt)}
}

func getWorkspace(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	w, err := c.workspaces.Get(c.Context(), c.workspace())
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, showWorkspace(w))
}

func updateWorkspace(c *call) (answer, error) {
	var in struct {
		Name *string `json:"name" validate:"omitnil,min=1,max=200"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	if in.Name == nil {
		return getWorkspace(c)
	}
	w, err := c.workspaces.Rename(c.Context(), c.workspace(), *in.Name)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, showWorkspace(w))
}

func listWorkspaces(c *call) (answer, error) {
	var after int32
	limit, _, err := c.paging(&after)
	if err != nil {
		return answer{}, err
	}
	found, err := c.workspaces.List(c.Context(), after, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(w profiles.Workspace) any { return w.ID }, showWorkspace)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}

func createWorkspace(c *call) (answer, error) {
	var in struct {
		Key  string `json:"key" validate:"required,key"`
		Name string `json:"name" validate:"required,max=200"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	var out struct {
		Workspace workspaceJSON  `json:"workspace"`
		Key       createdKeyJSON `json:"key"`
	}
	err := pgx.BeginFunc(c.Context(), c.db, func(tx pgx.Tx) error {
		s := c.in(tx)
		w, err := s.workspaces.Create(c.Context(), in.Key, in.Name)
		if err != nil {
			return err
		}
		k, secret, err := s.keys.Create(c.Context(), w.ID, NewKey{Name: "first key"})
		out.Workspace, out.Key = showWorkspace(w), createdKeyJSON{showKey(k), secret}
		return err
	})
	if err != nil {
		return answer{}, err
	}
	c.subject = out.Workspace.ID
	return reply(http.StatusCreated, out)
}

BEGIN;

SET LOCAL lock_timeout = '10s';

-- What turns what others send into events, as somebody wrote it. It compiles, or it was not saved.
CREATE TABLE mappings (
	id           integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id integer     NOT NULL REFERENCES workspaces (id),
	key          text        NOT NULL,
	name         text        NOT NULL,
	document     text        NOT NULL, -- YAML or JSON, with its comments
	version      integer     NOT NULL DEFAULT 1, -- counts the changes
	created_at   timestamptz NOT NULL DEFAULT now(),
	updated_at   timestamptz NOT NULL DEFAULT now(),
	UNIQUE (workspace_id, key),
	UNIQUE (workspace_id, id)
);

COMMIT;

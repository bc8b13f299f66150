BEGIN;

-- A source is where events come from: a site, an app, a server. Ids of messages are distinct within one source.
CREATE TABLE sources (
	id           integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id integer     NOT NULL REFERENCES workspaces (id),
	key          text        NOT NULL,
	name         text        NOT NULL,
	type         text        NOT NULL DEFAULT 'segment',
	settings     jsonb       NOT NULL DEFAULT '{}', -- {"merge_on": ["email"], "collect_ip": false}
	enabled      boolean     NOT NULL DEFAULT true,
	created_at   timestamptz NOT NULL DEFAULT now(),
	updated_at   timestamptz NOT NULL DEFAULT now(),
	UNIQUE (workspace_id, key),
	UNIQUE (workspace_id, id)
);

-- A write key lets whoever knows it send events to its source, and nothing else; it is public in web pages, and so it is
-- kept as it is. A source may have several, so that they can be changed without a gap.
CREATE TABLE write_keys (
	id           integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id integer     NOT NULL,
	source_id    integer     NOT NULL,
	key          text        NOT NULL UNIQUE,
	created_at   timestamptz NOT NULL DEFAULT now(),
	revoked_at   timestamptz,
	last_used_at timestamptz, -- to the minute
	FOREIGN KEY (workspace_id, source_id) REFERENCES sources (workspace_id, id) ON DELETE CASCADE
);
CREATE INDEX write_keys_by_source ON write_keys (source_id);

COMMIT;

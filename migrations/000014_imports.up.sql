BEGIN;

SET LOCAL lock_timeout = '10s';

-- Files that are brought in as events of a source: what is uploaded, or what is at a URL, once or for as long as that is
-- watched. One process at a time works on an import; it is taken over when its lease has ended.
CREATE TABLE imports (
	id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id    integer     NOT NULL,
	source_id       integer     NOT NULL,
	url             text        NOT NULL, -- empty if the file is uploaded
	format          jsonb       NOT NULL,
	mapping         text        NOT NULL, -- empty: the rows are events
	s3              jsonb       NOT NULL, -- how the bucket is reached, without the secrets
	s3_secret       bytea,                -- sealed
	rate            integer     NOT NULL, -- rows a second; 0: as many as lanes apply
	watch           jsonb,                -- {"every": "10s", "settle": "10s"} if it goes on
	digest          text        NOT NULL, -- of an upload and all that says how it is read, so that it is found again
	size            bigint      NOT NULL DEFAULT 0, -- of an upload
	uploaded        bigint      NOT NULL DEFAULT 0,
	state           text        NOT NULL
		CHECK (state IN ('uploading', 'queued', 'running', 'paused', 'done', 'failed', 'cancelled')),
	reason          text        NOT NULL DEFAULT '', -- why it waits or has failed
	attempts        integer     NOT NULL DEFAULT 0,  -- in a row that came to nothing
	next_at         timestamptz NOT NULL DEFAULT now(),
	lease_owner     text,
	lease_until     timestamptz,
	rows_per_second real        NOT NULL DEFAULT 0,
	kept            integer     NOT NULL DEFAULT 0, -- rejected rows
	created_at      timestamptz NOT NULL DEFAULT now(),
	started_at      timestamptz,
	finished_at     timestamptz,
	FOREIGN KEY (workspace_id, source_id) REFERENCES sources (workspace_id, id) ON DELETE CASCADE
);
CREATE INDEX imports_by_workspace ON imports (workspace_id, id);
CREATE INDEX imports_by_digest ON imports (workspace_id, digest) WHERE digest <> '';
CREATE INDEX imports_due ON imports (next_at) WHERE state IN ('queued', 'running');

-- The files of an import, and how far each is in: position is behind the last row whose events are durable.
CREATE TABLE import_files (
	import_id   bigint      NOT NULL REFERENCES imports (id) ON DELETE CASCADE,
	id          bigint      GENERATED ALWAYS AS IDENTITY,
	name        text        NOT NULL,
	version     text        NOT NULL, -- a file of that name with another version is another file
	size        bigint      NOT NULL,
	state       text        NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'failed')),
	reason      text        NOT NULL DEFAULT '',
	position    jsonb       NOT NULL DEFAULT '{}',
	bytes_read  bigint      NOT NULL DEFAULT 0,
	rows        bigint      NOT NULL DEFAULT 0,
	events      bigint      NOT NULL DEFAULT 0,
	skipped     bigint      NOT NULL DEFAULT 0, -- rows of which the mapping makes no event
	rejected    bigint      NOT NULL DEFAULT 0,
	reasons     jsonb       NOT NULL DEFAULT '{}', -- rows by why they were rejected
	found_at    timestamptz NOT NULL DEFAULT now(),
	finished_at timestamptz,
	PRIMARY KEY (import_id, id)
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX import_files_once ON import_files (import_id, name, version);
CREATE INDEX import_files_pending ON import_files (import_id, id) WHERE state = 'pending';

-- The first rows that were rejected, for whoever has to put the file or the mapping right; for a week, as they are people's data.
CREATE TABLE import_rejects (
	import_id   bigint      NOT NULL REFERENCES imports (id) ON DELETE CASCADE,
	file_id     bigint      NOT NULL,
	row         bigint      NOT NULL,
	line        bigint      NOT NULL, -- 0 if the file has none
	code        text        NOT NULL,
	reason      text        NOT NULL,
	pointer     text        NOT NULL,
	sample      text        NOT NULL, -- the beginning of the row
	rejected_at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (import_id, file_id, row)
);
CREATE INDEX import_rejects_old ON import_rejects (rejected_at);

-- What was uploaded, until it is imported: a database is what all processes that may take an import over can read.
CREATE TABLE import_chunks (
	import_id bigint NOT NULL REFERENCES imports (id) ON DELETE CASCADE,
	at        bigint NOT NULL, -- bytes before it
	data      bytea  NOT NULL,
	PRIMARY KEY (import_id, at)
);
ALTER TABLE import_chunks ALTER COLUMN data SET STORAGE EXTERNAL; -- files are often packed

COMMIT;

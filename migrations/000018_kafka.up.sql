BEGIN;

SET LOCAL lock_timeout = '10s';

-- From where a source of type kafka gets its events.
CREATE TABLE kafka_sources (
	source_id    integer     PRIMARY KEY,
	workspace_id integer     NOT NULL,
	settings     jsonb       NOT NULL,
	secrets      bytea, -- sealed; NULL: none
	updated_at   timestamptz NOT NULL DEFAULT now(),
	FOREIGN KEY (workspace_id, source_id) REFERENCES sources (workspace_id, id) ON DELETE CASCADE
);

-- Records that could not become events, with the reason: the newest of each source, for two weeks.
CREATE TABLE kafka_rejected (
	id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id integer     NOT NULL,
	source_id    integer     NOT NULL,
	topic        text        NOT NULL,
	"partition"  integer     NOT NULL,
	"offset"     bigint      NOT NULL,
	code         text        NOT NULL,
	reason       text        NOT NULL,
	record       bytea       NOT NULL, -- the value, of at most 64 KB
	rejected_at  timestamptz NOT NULL DEFAULT now(),
	UNIQUE (source_id, topic, "partition", "offset"),
	FOREIGN KEY (workspace_id, source_id) REFERENCES sources (workspace_id, id) ON DELETE CASCADE
);
CREATE INDEX kafka_rejected_old ON kafka_rejected (rejected_at);

COMMIT;

BEGIN;

SET LOCAL lock_timeout = '10s';

-- accepted = applied + duplicate + failed + suppressed + quarantined, in every row.
ALTER TABLE counters ADD COLUMN quarantined bigint NOT NULL DEFAULT 0;

-- What the events of a source are to look like: a JSON Schema for each name of a track call, and for each other type of
-- call. Every text that a schema has had is kept as a version.
CREATE TABLE source_schemas (
	id           integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id integer     NOT NULL,
	source_id    integer     NOT NULL,
	type         text        NOT NULL,
	event        text        NOT NULL, -- of a track call; empty for the others
	schema       text        NOT NULL, -- as it was given: jsonb would reorder it
	action       text        NOT NULL CHECK (action IN ('allow', 'flag', 'quarantine')),
	version      integer     NOT NULL DEFAULT 1,
	created_at   timestamptz NOT NULL DEFAULT now(),
	updated_at   timestamptz NOT NULL DEFAULT now(),
	UNIQUE (source_id, type, event),
	FOREIGN KEY (workspace_id, source_id) REFERENCES sources (workspace_id, id) ON DELETE CASCADE
);
CREATE TABLE source_schema_versions (
	schema_id  integer     NOT NULL REFERENCES source_schemas (id) ON DELETE CASCADE,
	version    integer     NOT NULL,
	schema     text        NOT NULL,
	action     text        NOT NULL,
	created_at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (schema_id, version)
);

-- Events that were accepted and are not to be applied as they are: kept, with what is wrong with them, until they are
-- replayed, discarded or too old.
CREATE TABLE quarantined_events (
	lane           smallint    NOT NULL,
	id             bigint      GENERATED ALWAYS AS IDENTITY,
	workspace_id   integer     NOT NULL,
	source_id      integer     NOT NULL,
	message_key    uuid        NOT NULL,
	message_id     text        NOT NULL,
	received_at    timestamptz NOT NULL,
	quarantined_at timestamptz NOT NULL DEFAULT now(),
	type           text        NOT NULL, -- empty for what is not an event yet
	event          text        NOT NULL,
	reason         text        NOT NULL, -- the code of the first violation
	violations     jsonb       NOT NULL, -- [{"code": "type", "pointer": "#/properties/revenue", "detail": "must be number"}]
	message        bytea       NOT NULL, -- as it was in the stream
	keys           uuid[]      NOT NULL, -- of all whom it names, for erasure
	PRIMARY KEY (lane, id)
);
CREATE INDEX quarantined_events_by_key ON quarantined_events USING gin (keys);
CREATE INDEX quarantined_events_by_message ON quarantined_events (lane, message_key);
CREATE INDEX quarantined_events_by_time ON quarantined_events (workspace_id, quarantined_at);
CREATE INDEX quarantined_events_by_age ON quarantined_events (quarantined_at);

-- What came in from a source in a minute, and again in an hour. skew counts, in buckets that grow by powers of two, how far
-- clients' clocks were off.
CREATE TABLE source_health (
	source_id    integer     NOT NULL,
	span         text        NOT NULL CHECK (span IN ('minute', 'hour')),
	at           timestamptz NOT NULL, -- when it began
	workspace_id integer     NOT NULL,
	accepted     bigint      NOT NULL,
	rejected     bigint      NOT NULL,
	unavailable  bigint      NOT NULL,
	quarantined  bigint      NOT NULL,
	flagged      bigint      NOT NULL,
	bots         bigint      NOT NULL,
	skew         bigint[]    NOT NULL,
	last_seen_at timestamptz NOT NULL,
	PRIMARY KEY (source_id, span, at)
);
CREATE INDEX source_health_by_age ON source_health (span, at);

-- Why events of a source were rejected, or violated its plan, in an hour.
CREATE TABLE source_faults (
	source_id    integer     NOT NULL,
	hour         timestamptz NOT NULL,
	outcome      text        NOT NULL, -- rejected, allowed, flagged, quarantined
	event        text        NOT NULL, -- its name, or its type if it has none
	reason       text        NOT NULL,
	workspace_id integer     NOT NULL,
	events       bigint      NOT NULL,
	PRIMARY KEY (source_id, hour, outcome, event, reason)
);
CREATE INDEX source_faults_by_age ON source_faults (hour);

-- The last events that were rejected: where and why, but not what was in them.
CREATE TABLE source_rejects (
	id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id integer     NOT NULL,
	source_id    integer     NOT NULL,
	at           timestamptz NOT NULL,
	type         text        NOT NULL,
	code         text        NOT NULL,
	pointer      text        NOT NULL,
	reason       text        NOT NULL
);
CREATE INDEX source_rejects_by_source ON source_rejects (source_id, id);

COMMIT;

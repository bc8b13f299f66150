BEGIN;

SET LOCAL lock_timeout = '10s';

-- Rows that are there obeyed a narrower constraint: they need not be read while everybody waits.
ALTER TABLE transitions DROP CONSTRAINT transitions_cause_check;
ALTER TABLE transitions ADD CONSTRAINT transitions_cause_check
	CHECK (cause IN ('event', 'timer', 'build', 'edit', 'delete', 'merge', 'unmerge')) NOT VALID;

-- Decisions on claims that a lane has taken in: that these are void, or count again.
CREATE TABLE decisions (
	lane         smallint    NOT NULL,
	workspace_id integer     NOT NULL,
	message_key  uuid        NOT NULL,
	message_id   text        NOT NULL,
	key          uuid        NOT NULL, -- the identifier it is about
	void         boolean     NOT NULL,
	decided_at   timestamptz NOT NULL,
	applied_at   timestamptz NOT NULL,
	PRIMARY KEY (lane, workspace_id, message_key)
);

-- Who changed what over the management API. Nothing in it names a person: profiles and identifiers are there by key.
CREATE TABLE audit_log (
	id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	workspace_id integer     NOT NULL REFERENCES workspaces (id),
	at           timestamptz NOT NULL DEFAULT now(),
	api_key_id   bigint      NOT NULL,
	api_key_name text        NOT NULL, -- as it was then
	action       text        NOT NULL, -- such as segment.update
	subject      text        NOT NULL, -- an id, or nothing
	detail       jsonb       NOT NULL
);
CREATE INDEX audit_log_by_workspace ON audit_log (workspace_id, id);
CREATE INDEX audit_log_by_action ON audit_log (workspace_id, action, id);
CREATE INDEX audit_log_by_subject ON audit_log (workspace_id, subject, id);

COMMIT;

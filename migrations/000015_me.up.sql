BEGIN;

SET LOCAL lock_timeout = '10s';

-- What a visitor's own page may be told of the visitor.
ALTER TABLE segments ADD COLUMN public boolean NOT NULL DEFAULT false;
ALTER TABLE computed_traits ADD COLUMN public boolean NOT NULL DEFAULT false;

-- Who was given the token of a visitor whom no lane knew yet. A row is needed only until the lanes know the visitor, who
-- is given to nobody else from then on.
CREATE TABLE visitor_claims (
	lane         smallint    NOT NULL,
	workspace_id integer     NOT NULL,
	key          uuid        NOT NULL, -- of the anonymousId
	source_id    integer     NOT NULL,
	message_key  uuid        NOT NULL, -- of the event that it came with: whoever sends that again is given the token again
	claimed_at   timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (lane, workspace_id, key)
);
CREATE INDEX visitor_claims_by_time ON visitor_claims (claimed_at);

COMMIT;

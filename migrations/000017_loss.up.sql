BEGIN;

SET LOCAL lock_timeout = '10s';

-- Which numbers of those that the tag gives its events have arrived, by the day that begins the name of their stream. numbers
-- is a list of records, each a stream, hashed, and runs of its numbers; they may be in any order and overlap, so that a lane
-- only ever adds to the end of its newest part, or begins another. A stream is a tab in a day: it says nothing of a person.
CREATE TABLE arrivals (
	lane         smallint NOT NULL,
	workspace_id integer  NOT NULL,
	source_id    integer  NOT NULL,
	day          date     NOT NULL,
	part         bigint   NOT NULL,
	numbers      bytea    NOT NULL,
	duplicates   bigint   NOT NULL, -- events that came again
	PRIMARY KEY (lane, workspace_id, source_id, day, part)
) WITH (fillfactor = 50);
ALTER TABLE arrivals ALTER COLUMN numbers SET STORAGE EXTERNAL; -- hashes do not get smaller

COMMIT;

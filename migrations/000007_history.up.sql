BEGIN;

SET LOCAL lock_timeout = '10s';

-- Nobody writes while what is there is counted.
LOCK TABLE transitions, profiles IN SHARE MODE;

-- How many entered and left a segment on a day (UTC): the sums of what is in transitions.
CREATE TABLE segment_days (
	lane       smallint NOT NULL,
	segment_id bigint   NOT NULL,
	day        date     NOT NULL,
	entered    bigint   NOT NULL,
	"left"     bigint   NOT NULL,
	PRIMARY KEY (lane, segment_id, day)
) WITH (fillfactor = 50);

INSERT INTO segment_days (lane, segment_id, day, entered, "left")
SELECT t.lane, t.segment_id, (t.at AT TIME ZONE 'UTC')::date, count(*) FILTER (WHERE t.entered), count(*) FILTER (WHERE NOT t.entered)
FROM transitions AS t
JOIN segments AS s ON s.id = t.segment_id
GROUP BY 1, 2, 3;

-- How many rows a lane has in profiles.
CREATE TABLE profile_counts (
	lane         smallint NOT NULL,
	workspace_id integer  NOT NULL,
	profiles     bigint   NOT NULL,
	PRIMARY KEY (lane, workspace_id)
) WITH (fillfactor = 50);

INSERT INTO profile_counts (lane, workspace_id, profiles)
SELECT lane, workspace_id, count(*)
FROM profiles
GROUP BY 1, 2;

-- A segment's transitions are read in the order of their numbers, forwards and backwards.
DROP INDEX transitions_by_segment;
CREATE INDEX transitions_by_segment ON transitions (lane, segment_id, seq);

COMMIT;

BEGIN;

SET LOCAL lock_timeout = '10s';

DROP TABLE deliveries;
DROP TABLE activation_attempts;
DROP SEQUENCE activation_attempt;
DROP TABLE activation_batches;
DROP SEQUENCE activation_batch;
DROP TABLE activations;
DROP TABLE destination_segments;
DROP SEQUENCE destination_generation;
DROP TABLE destinations;

COMMIT;

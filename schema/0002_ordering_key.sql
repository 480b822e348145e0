-- +goose Up

-- Rows with the same ordering key belong together and in order: a sink for Kafka
-- makes it the record's key. NULL is none, which an empty key is not.
ALTER TABLE oncemill.outbox ADD COLUMN ordering_key bytea;

-- No payload is a tombstone, a Kafka record without a value. Brokers that know no
-- tombstones get an empty body.
ALTER TABLE oncemill.outbox ALTER COLUMN payload DROP NOT NULL;

INSERT INTO oncemill.schema_version (version) VALUES (2);

-- +goose Down

UPDATE oncemill.outbox SET payload = '' WHERE payload IS NULL;

ALTER TABLE oncemill.outbox ALTER COLUMN payload SET NOT NULL;

ALTER TABLE oncemill.outbox DROP COLUMN ordering_key;

DELETE FROM oncemill.schema_version WHERE version = 2;

-- +goose Up

-- Claims come and go at the same rate, and what the purge deletes is of use again only
-- after a vacuum. With Postgres's default of 0.2, a table that is turned over three times
-- takes 1.4 times the bytes of its live rows (the indexes 1.7 times, as an empty page of a
-- B-tree takes a second vacuum to be free), with 0.05 it takes 1.1 times. Vacuum then
-- touches 0.3 pages for each claim in place of 0.2; a claim itself touches ten.
ALTER TABLE oncemill.claims SET (autovacuum_vacuum_scale_factor = 0.05);

INSERT INTO oncemill.schema_version (version) VALUES (5);

-- +goose Down

ALTER TABLE oncemill.claims RESET (autovacuum_vacuum_scale_factor);

DELETE FROM oncemill.schema_version WHERE version = 5;

-- +goose Up

-- Fencing tokens: one sequence for all claims, so that none comes twice.
CREATE SEQUENCE oncemill.tokens AS bigint;

-- A claim of an effect outside of Postgres is a row that is there before the
-- effect and settled after it. No token: the claim was inserted settled, by the
-- transaction that holds its effects.
--
-- claimed_at is the beginning of the first attempt. lease_until is when the
-- holder's time is over, and effect_until when that of the last attempt at the
-- effect was: a resolver that asks what became of it holds the lease too.
-- in_doubt_since is set once somebody has noticed that nobody knows what became of
-- the effect; ask_after is when to ask next, 'infinity' when to leave it to a
-- person.
ALTER TABLE oncemill.claims
	ALTER COLUMN settled_at DROP NOT NULL,
	ALTER COLUMN outcome DROP NOT NULL,
	ADD COLUMN token          bigint,
	ADD COLUMN attempts       integer,
	ADD COLUMN claimed_at     timestamptz,
	ADD COLUMN lease_until    timestamptz,
	ADD COLUMN effect_until   timestamptz,
	ADD COLUMN in_doubt_since timestamptz,
	ADD COLUMN ask_after      timestamptz,
	ADD COLUMN asked          integer,
	ADD COLUMN reason         text,
	ADD COLUMN result         bytea,
	DROP CONSTRAINT claims_outcome_check,
	ADD CONSTRAINT claims_outcome_check CHECK (outcome IN ('settled', 'dead', 'failed')),
	ADD CONSTRAINT claims_settled_check CHECK ((settled_at IS NULL) = (outcome IS NULL)),
	ADD CONSTRAINT claims_lease_check CHECK (settled_at IS NOT NULL OR
		(token IS NOT NULL AND attempts > 0 AND claimed_at IS NOT NULL AND lease_until IS NOT NULL AND effect_until IS NOT NULL));

-- What is in flight or in doubt.
CREATE INDEX claims_unsettled ON oncemill.claims (consumer, lease_until) WHERE settled_at IS NULL;

-- Messages that were acknowledged while their claim is in doubt. They go back to
-- the outbox if the effect turns out not to have happened.
CREATE TABLE oncemill.parked (
	consumer     text COLLATE "C" NOT NULL,
	key          text COLLATE "C" NOT NULL,
	topic        text NOT NULL CHECK (topic <> ''),
	uuid         text NOT NULL,
	metadata     jsonb NOT NULL CHECK (jsonb_typeof(metadata) = 'object'),
	ordering_key bytea,
	payload      bytea,
	parked_at    timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (consumer, key)
);

-- What happened to guarded claims, in the order in which it was written. A claim
-- that is released is gone from claims; its events stay.
CREATE TABLE oncemill.events (
	id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	at       timestamptz NOT NULL DEFAULT clock_timestamp(),
	consumer text COLLATE "C" NOT NULL,
	key      text COLLATE "C" NOT NULL,
	kind     text NOT NULL CHECK (kind IN ('claimed', 'blocked', 'conflict', 'extended', 'settled', 'failed',
		'dead', 'released', 'in doubt', 'taken over', 'asking', 'asked', 'refused')),
	token    bigint,
	actor    text,
	note     text,
	amount   numeric,
	currency text,
	payload  bytea,
	result   bytea
);

CREATE INDEX events_by_key ON oncemill.events (consumer, key, id);

CREATE INDEX events_by_age ON oncemill.events (consumer, at);

INSERT INTO oncemill.schema_version (version) VALUES (3);

-- +goose Down

-- What is not settled would be made again, and parked messages are acknowledged.
-- +goose StatementBegin
DO $$ BEGIN
	IF EXISTS (SELECT FROM oncemill.claims WHERE settled_at IS NULL) OR EXISTS (SELECT FROM oncemill.parked) THEN
		RAISE EXCEPTION 'there are claims in flight or in doubt: resolve them first (oncemill claims --in-doubt)';
	END IF;
END $$;
-- +goose StatementEnd

DROP TABLE oncemill.events;

DROP TABLE oncemill.parked;

DROP INDEX oncemill.claims_unsettled;

ALTER TABLE oncemill.claims
	DROP CONSTRAINT claims_lease_check,
	DROP CONSTRAINT claims_settled_check,
	DROP CONSTRAINT claims_outcome_check,
	DROP COLUMN result,
	DROP COLUMN reason,
	DROP COLUMN asked,
	DROP COLUMN ask_after,
	DROP COLUMN in_doubt_since,
	DROP COLUMN effect_until,
	DROP COLUMN lease_until,
	DROP COLUMN claimed_at,
	DROP COLUMN attempts,
	DROP COLUMN token,
	ALTER COLUMN outcome SET NOT NULL,
	ALTER COLUMN settled_at SET NOT NULL;

UPDATE oncemill.claims SET outcome = 'dead' WHERE outcome = 'failed';

ALTER TABLE oncemill.claims ADD CONSTRAINT claims_outcome_check CHECK (outcome IN ('settled', 'dead'));

DROP SEQUENCE oncemill.tokens;

DELETE FROM oncemill.schema_version WHERE version = 3;

-- +goose Up

-- What a guarded claim is about, for those who look for it, and the nonce of the call
-- that claimed it. scope is what an action is about.
ALTER TABLE oncemill.claims
	ADD COLUMN action   text COLLATE "C",
	ADD COLUMN agent    text COLLATE "C",
	ADD COLUMN scope    text COLLATE "C",
	ADD COLUMN amount   numeric,
	ADD COLUMN currency text,
	ADD COLUMN nonce    bytea;

-- Lists of guarded claims, newest first. The claims of Once have no claimed_at, and are
-- in none of these.
CREATE INDEX claims_by_time ON oncemill.claims (consumer, claimed_at, key) WHERE claimed_at IS NOT NULL;

CREATE INDEX claims_by_action ON oncemill.claims (consumer, action, claimed_at, key) WHERE action IS NOT NULL;

CREATE INDEX claims_by_agent ON oncemill.claims (consumer, agent, claimed_at, key) WHERE agent IS NOT NULL;

CREATE INDEX claims_by_scope ON oncemill.claims (consumer, scope, claimed_at, key) WHERE scope IS NOT NULL;

CREATE INDEX claims_failed ON oncemill.claims (consumer, claimed_at, key) WHERE outcome IN ('failed', 'dead') AND claimed_at IS NOT NULL;

ALTER TABLE oncemill.events
	ADD COLUMN action text COLLATE "C",
	ADD COLUMN agent  text COLLATE "C",
	DROP CONSTRAINT events_kind_check,
	ADD CONSTRAINT events_kind_check CHECK (kind IN ('claimed', 'repeated', 'blocked', 'conflict', 'extended', 'settled', 'failed',
		'dead', 'released', 'in doubt', 'taken over', 'asking', 'asked', 'refused'));

-- Only settled claims are purged by age.
DROP INDEX oncemill.claims_by_age;

CREATE INDEX claims_by_age ON oncemill.claims (consumer, settled_at) WHERE settled_at IS NOT NULL;

-- Lists of events, in the order of time. Most events are of two kinds: a list of one of
-- these is found by time, one of another kind by its own index.
DROP INDEX oncemill.events_by_age;

ALTER TABLE oncemill.events
	DROP CONSTRAINT events_pkey,
	ADD PRIMARY KEY (consumer, at, id);

CREATE INDEX events_by_action ON oncemill.events (consumer, action, at, id) WHERE action IS NOT NULL;

CREATE INDEX events_by_agent ON oncemill.events (consumer, agent, at, id) WHERE agent IS NOT NULL;

-- Few events have an amount.
CREATE INDEX events_by_amount ON oncemill.events (consumer, amount) WHERE amount IS NOT NULL;

CREATE INDEX events_rare ON oncemill.events (consumer, kind, at, id) WHERE kind NOT IN ('claimed', 'settled');

CREATE INDEX events_by_currency ON oncemill.events (consumer, currency, at, id) WHERE currency IS NOT NULL;

-- What all the guards of an installation know, and nobody else: made by the first of
-- them.
CREATE TABLE oncemill.secrets (
	name       text PRIMARY KEY,
	secret     bytea NOT NULL CHECK (length(secret) >= 32),
	created_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO oncemill.schema_version (version) VALUES (4);

-- +goose Down

DROP TABLE oncemill.secrets;

DELETE FROM oncemill.events WHERE kind = 'repeated';

DROP INDEX oncemill.events_by_currency;

DROP INDEX oncemill.events_rare;

DROP INDEX oncemill.events_by_amount;

DROP INDEX oncemill.events_by_agent;

DROP INDEX oncemill.events_by_action;

ALTER TABLE oncemill.events
	DROP CONSTRAINT events_pkey,
	ADD PRIMARY KEY (id);

CREATE INDEX events_by_age ON oncemill.events (consumer, at);

ALTER TABLE oncemill.events
	DROP CONSTRAINT events_kind_check,
	ADD CONSTRAINT events_kind_check CHECK (kind IN ('claimed', 'blocked', 'conflict', 'extended', 'settled', 'failed',
		'dead', 'released', 'in doubt', 'taken over', 'asking', 'asked', 'refused')),
	DROP COLUMN agent,
	DROP COLUMN action;

DROP INDEX oncemill.claims_failed;

DROP INDEX oncemill.claims_by_scope;

DROP INDEX oncemill.claims_by_agent;

DROP INDEX oncemill.claims_by_action;

DROP INDEX oncemill.claims_by_time;

DROP INDEX oncemill.claims_by_age;

CREATE INDEX claims_by_age ON oncemill.claims (consumer, settled_at);

ALTER TABLE oncemill.claims
	DROP COLUMN nonce,
	DROP COLUMN currency,
	DROP COLUMN amount,
	DROP COLUMN scope,
	DROP COLUMN agent,
	DROP COLUMN action;

DELETE FROM oncemill.schema_version WHERE version = 4;

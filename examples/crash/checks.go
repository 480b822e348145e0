package main

// A check is a query for what must not be at any moment, whatever happens later. It returns
// what, and the key.
type check struct {
	class class
	kind  string
	query string
}

// standing are those that only Postgres can tell.
var standing = []check{
	{unexplained, "tokens", `
SELECT format('%s: %s attempts have the token %s', key, count(*), token), key FROM oncemill.events
WHERE kind IN ('claimed', 'taken over') GROUP BY consumer, key, token HAVING count(*) > 1`},

	// Events of a key have ids in the order of what has happened, since each change of a
	// claim locks its row.
	{unexplained, "fencing", `
SELECT format('%s: %s under the token %s, when the latest attempt had %s', key, kind, token, latest), key FROM (
	SELECT e.key, e.kind, e.token, l.token AS latest FROM oncemill.events AS e CROSS JOIN LATERAL (
		SELECT token FROM oncemill.events AS before
		WHERE before.consumer = e.consumer AND before.key = e.key AND before.id < e.id AND before.kind IN ('claimed', 'taken over', 'asking')
		ORDER BY id DESC LIMIT 1) AS l
	WHERE e.kind IN ('settled', 'failed', 'released', 'extended')) AS ends WHERE token <> latest`},

	{twice, "rows", `
SELECT format('row %s of the outbox was published and deleted in %s transactions', id, count(DISTINCT xid)), id::text
FROM deleted_rows GROUP BY id HAVING count(DISTINCT xid) > 1`},
}

// along are those that end a run early. At the end the checker looks at all ledgers instead.
var along = []check{
	{twice, "effects", `
SELECT format('%s: %s effects of %s', key, count(*), consumer), key FROM effects GROUP BY consumer, key HAVING count(*) > 1`},

	{lost, "effects", `
SELECT format('%s has a claim, and no effect', key), key FROM oncemill.claims AS c
WHERE consumer IN ('single', 'batch') AND outcome = 'settled' AND NOT EXISTS (SELECT FROM effects AS e WHERE e.consumer = c.consumer AND e.key = c.key)`},

	{unexplained, "claims", `
SELECT format('%s has an effect, and no claim', key), key FROM effects AS e
WHERE key NOT LIKE 'old-%' AND NOT EXISTS (SELECT FROM oncemill.claims AS c WHERE e.consumer = c.consumer AND e.key = c.key)`},

	{twice, "arrivals", `
SELECT format('%s arrived %s times from %s', uuid, count(*), topic), uuid FROM arrivals GROUP BY topic, uuid HAVING count(*) > 1`},

	{unexplained, "arrivals", `
SELECT format('%s has arrived from %s, and is nobody''s child', uuid, topic), uuid FROM arrivals
WHERE topic LIKE 'children-%' AND NOT EXISTS (SELECT FROM effects WHERE child = uuid)`},

	{twice, "settlements", `
SELECT format('%s has been settled %s times', key, count(*)), key FROM settlements GROUP BY consumer, key HAVING count(*) > 1`},
}

// createDeletedRows has Postgres note which transaction deletes which row of the outbox, by
// the statement: of a row that is gone it deletes nothing, and nobody would know.
const createDeletedRows = `
CREATE TABLE deleted_rows (id bigint, xid xid8 DEFAULT pg_current_xact_id());
CREATE FUNCTION note_deleted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO public.deleted_rows (id)
	SELECT unnest(m[1]::bigint[]) FROM regexp_matches(current_query(), '''(\{[0-9,]+\})''::bigint', 'g') AS m
	UNION
	SELECT generate_series(m[1]::bigint, m[2]::bigint) FROM regexp_matches(current_query(), 'BETWEEN ''([0-9]+)''::bigint AND ''([0-9]+)''::bigint', 'g') AS m;
	RETURN NULL;
END $$;
CREATE TRIGGER deleted AFTER DELETE ON oncemill.outbox FOR EACH STATEMENT EXECUTE FUNCTION note_deleted()`

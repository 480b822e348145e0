// Package guard serves the claims core over HTTP, so that programs in any language get
// exactly-once effects from two calls:
//
//	POST /claim          {"request_id":"order-7","action":"charge"}
//	                     {"status":"PROCEED","settlement_token":"..."}   make the effect, then
//	POST /settle/order-7 {"result":{"charge":"ch_1"}}                    with the token
//
// Whoever claims the same id again gets SKIP, and is not to make the effect; or PENDING
// while nobody knows yet how it went. It answers the clients of SafeAgent that exist.
//
// # What becomes of a claim
//
//	PROCEED ─ settle  ─→ committed    later claims: SKIP, with the result for who may read it
//	        ─ fail    ─→ failed       later claims: SKIP, with the reason
//	        ─ release ─→ free         the next claim: PROCEED
//	        ─ nothing ─→ in doubt     later claims: PENDING. After the lease nobody knows whether
//	                                  the effect happened: settle, release and fail still work,
//	                                  and an operator can resolve it. It never runs by itself.
//
// # Failures
//
//	the answer to a claim is lost        repeat the call with its nonce: the same PROCEED
//	the caller dies after PROCEED        in doubt once the lease is over
//	the caller is late                   its settlement is taken, unless somebody else has
//	                                     ended or taken over the claim: then 409, and an event
//	the guard dies, or is killed         what it has answered is on disk; another guard goes on
//	Postgres is away, full or read-only  503, never PROCEED; it goes on by itself
//
// Everything that happens to a claim, refused callers included, is an event: GET /events.
//
// # Vocabulary
//
// A request id is an idempotency key, an agent who claims, and an action what kind of
// effect it is. A tenant has claims of its own, and nothing tells it whether another
// tenant's id exists. A settlement token is the fencing token of one attempt, signed, so
// that nobody can guess it. The claims of a tenant are those of the consumer "guard/" and
// its name, or "guard" without tenants: the commands oncemill claims and claims resolve
// work on them.
package guard

// Package brokerorders shows how to write a payment.Provider for something that is not
// Stripe: orders at a securities broker. It has the Provider, and a Server that plays
// the broker and fails on demand.
//
// # The broker
//
// Its API is that of brokers such as Alpaca. Whoever places an order gives it an id of
// their own, and can ask for it by that id:
//
//	POST /v2/orders                                           place an order
//	GET  /v2/orders:by_client_order_id?client_order_id=om-... ask for it
//
// A second order with the same id is refused with 422 "client_order_id must be
// unique". So an order cannot be placed twice under one id. But the refusal is no
// answer to what became of the first, as Stripe's replayed one is; the order has to
// be looked up. And nobody says for how long an id stays taken. So the broker is one
// that can be asked (Guard.Ask), and not one to send an order to again
// (Guard.KeyLifetime).
//
// # What its answers mean
//
//	answer                                  the order        and then
//	200                                     happened         settled with the broker's id
//	422 client_order_id must be unique      as it is found   asked at once; not found: unknown
//	422 with another reason                 never will       settled as failed
//	403 with a reason: buying power ...     never will       settled as failed
//	401                                     did not happen   delivered again
//	a request that is wrong                 never will       nothing was sent
//	no connection                           did not happen   delivered again
//	503, any other status, a lost reply     unknown          asked by the id
//
// A 503 may come from a load balancer that gave up waiting for an order that was
// placed. It proves nothing. Asked later, the broker knows: an order with our id, in
// whatever state, was placed, unless it was rejected; a 404 says that there is none.
package brokerorders

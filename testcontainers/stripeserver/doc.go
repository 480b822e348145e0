// Package stripeserver is a Stripe on this machine, for tests and demonstrations: the
// few methods of its API that package payment uses, idempotency keys that are honoured
// and expire, faults on demand, and a ledger of what was really paid.
//
//	server, err := stripeserver.Start(stripeserver.Options{
//		Ledger: "/tmp/ledger.jsonl",
//		Faults: stripeserver.Random{Seed: 1, Rates: map[stripeserver.Fault]float64{stripeserver.CutAfter: 0.1}}.Choose,
//	})
//	...
//	stripe := &payment.Stripe{APIKey: stripeserver.DefaultAPIKey, BaseURL: server.URL()}
//
// It runs inside the process that starts it, which may be a child process of a
// demonstration: the ledger's file can be read from anywhere. Its state is in memory.
//
// # What it does like Stripe
//
//	POST /v1/payment_intents               create, and confirm with confirm=true
//	POST /v1/payment_intents/{id}/cancel   cancel one that is not paid
//	GET  /v1/payment_intents               list: created, customer, limit, starting_after
//	POST /v1/refunds                       refund, as far as there is something left
//	GET  /v1/refunds                       list: created, payment_intent, charge ...
//
//	the same key, the same parameters      the stored answer, with Idempotent-Replayed: true
//	the same key, other parameters         400 idempotency_error
//	the key of a request under way         409 idempotency_key_in_use
//	a key older than KeyLifetime           executed again
//	refused before it is executed          not stored: 400, 401, 403, 409, 429
//	executed                               stored: 200, 402, 404, 500
//	a parameter that Stripe has not        400
//	test payment methods                   pm_card_visa, pm_card_chargeDeclined ... as Stripe's
//
// The payment methods pm_oncemill_processing, pm_oncemill_requiresAction,
// pm_oncemill_requiresAction_cannotBeCanceled,
// pm_oncemill_requiresAction_paidWhenCanceled and pm_oncemill_requiresCapture lead to
// what is hard to bring about with a card.
//
// What it does not do: anything else. Compare shapes of requests with stripe-mock,
// which is made from Stripe's own description and knows neither keys nor faults.
//
// # Faults
//
// Options.Faults, or SetFaults, chooses a Fault for each request. A request's fault
// before it is executed keeps it from being so; a fault of its reply strikes stored
// answers too. A choice can be by the request's key and by how often it came, and so
// be scripted:
//
//	func(c stripeserver.Call) stripeserver.Fault {
//		if c.Nth == 1 {
//			return stripeserver.CutAfter // the first reply to each request is lost
//		}
//		return stripeserver.None
//	}
//
// Nothing here knows the package testing.
package stripeserver

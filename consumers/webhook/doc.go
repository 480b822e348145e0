// Package webhook receives the webhooks of Stripe, GitHub and Twilio, and publishes each
// event once, however often the provider delivers it: http.Handlers that verify a
// request's signature and write its event to the outbox.
//
//	events := &webhook.Stripe{
//		Inbox: inbox, Topic: "stripe", Secrets: []string{os.Getenv("STRIPE_WEBHOOK_SECRET")},
//	}
//	check(events.Check(ctx))
//	http.Handle("POST /webhooks/stripe", events)
//
//	// The work is done by a queue worker, with its own claim under the same key.
//	check(consumers.Stack{Once: middleware.Once{Inbox: inbox}}.Apply(ctx, router))
//	router.AddConsumerHandler("billing", "stripe", subscriber, bill)
//
// A relay has to run, to move events from the outbox to the broker, and Inbox.Run, to
// forget old claims.
//
// # What is guaranteed
//
// A request is answered with 200 if, and only if, its event is committed to the outbox,
// by this request or by an earlier one. The claim of the event's key and the row in the
// outbox are one transaction. So an event that the provider goes on to deliver until it
// gets its 200 is published, and a second delivery publishes nothing more.
//
// The message has the body of the request as its payload, byte for byte, and the event's
// key as its UUID. A worker claims it by its UUID, which is the default of
// middleware.Once and of middleware.Guard, or by the metadata KeyMetadata, which is the
// same; then the relay or the broker may repeat it, too, and its effects still happen
// once. The receiver and the worker must not have the same consumer's name: each of them
// would find the other's claim.
//
//	            the key                           the fingerprint   redelivery comes
//	Stripe      the event's id, "evt_..."         none              for 3 days, and by hand
//	GitHub      X-GitHub-Delivery                 of the body       by hand or by API, for 3 days
//	Twilio      I-Twilio-Idempotency-Token, else  none              by connection overrides
//	            the ids, see Twilio.Key
//
// Stripe's body may differ from one delivery of an event to the next (pending_webhooks),
// so that only its id tells them apart. Stripe says itself that it sometimes makes two
// events of one change; whoever minds has the worker claim by type and object.
//
// # What happens when something fails
//
//	a method other than POST                               405, with Allow
//	a signature or an id is missing, there twice, broken   400
//	the signature is not that of this body                 403
//	the signature is older than Stripe.ReplayWindow        403
//	the body is empty, or not what the provider sends      400
//	the body has more than MostBody bytes                  413
//	the body comes too slowly for the server               408
//	the same key with another body (GitHub)                409
//	an event from before what is kept of claims (Stripe)   409
//	Postgres is away, or slower than Timeout               503, with Retry-After
//	another delivery of it is being stored                 the answer to that one; 503 if
//	                                                       it takes longer than Inbox.LockWait
//	COMMIT is sent and its answer lost                     503; the redelivery finds the claim,
//	                                                       or stores the event
//	the outbox refuses the row                             500
//	the process dies before the commit                     no answer; the redelivery stores it
//	the process dies after the commit                      no answer; the redelivery gets 200
//	the provider has hung up                               it is stored; the redelivery gets 200
//
// After 4xx nothing is stored. After 503, 500 and no answer Stripe delivers again by
// itself for three days. Twilio does if its URL says so: see Twilio. GitHub never does:
// what it could not deliver is to be looked for with its API, and redelivered.
//
// # Replays
//
// Stripe signs the time of each delivery; one that is older than ReplayWindow is refused,
// and a younger one finds its claim. GitHub and Twilio sign no time. There, a replay is
// recognised by its claim, so that the window is Inbox.Retention: 7 days by default, and
// for GitHub at least three. After that nobody can tell it from a new event. Let
// Retention be as long as a recorded request could be of use to anybody; a claim is a
// row of some hundred bytes. Neither do they sign the headers that are the key by default,
// under another of which a replay is another event: Key: BySigned takes for the key what
// is signed.
//
// A Stripe event in live mode tells when it happened. If that is before what has been
// purged, and it has no claim, it is refused as too old instead of stored, perhaps for
// the second time. To have it in spite of that, publish it by hand.
//
// # Secrets
//
// Each field Secrets takes several, all of which are good, so that a secret can be
// replaced without a gap: add the new one, have the provider use it, remove the old one.
// Signatures are compared in constant time. No secret and no body is in an answer, an
// error or a log. GitHub's old X-Hub-Signature, by SHA-1, is not looked at. Twilio's
// signature is by SHA-1, which is what there is; a Webhooks Rule that has it sign with
// SHA-256 is not understood, and what it sends is refused.
//
// What GitHub's headers say of an event is not signed: a worker that must not be misled
// by who has recorded a delivery looks into the body. Twilio signs names and values
// without anything in between, so that they can be cut elsewhere; the same advice holds
// for ids of resources, which a worker can ask Twilio for.
//
// # Limits
//
// A body has at most MostBody bytes, 1 MiB by default; what is larger than the broker
// takes is parked by the relay. Set the server's ReadHeaderTimeout and ReadTimeout, which
// are what ends a body that does not come. Storing takes at most Timeout, 8 seconds,
// as far as the driver heeds it: lib/pq does not while it waits for a server that takes its
// connection and says nothing. Have connect_timeout=5 in the database's URL.
package webhook

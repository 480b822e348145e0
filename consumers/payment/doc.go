// Package payment makes payments of messages: a Watermill handler that charges or
// refunds through Stripe, or through any Provider, once for each message, however
// often the broker delivers it.
//
//	charger := &payment.Charger{Provider: &payment.Stripe{APIKey: os.Getenv("STRIPE_API_KEY")}}
//	guard := middleware.Guard{
//		Inbox: inbox, Consumer: "payments",
//		Key: middleware.ByMetadata("payment-id"), Fingerprint: middleware.PayloadFingerprint,
//		Lease: time.Minute, Timeout: payment.DefaultTimeout,
//		KeyLifetime: payment.StripeKeyLifetime,
//		Ask:         charger.Ask, LandingBound: payment.StripeLandingBound,
//		Probe:       charger.Check,
//		Describe:    charger.Describe,
//	}
//	router.AddHandler("payments", "orders", orders, "receipts", guard.Publisher(), guard.Middleware(charger.Handle))
//	go func() { check(guard.Resolver().Run(ctx)) }()
//
// A charge and its refund are two payments, and need two keys: under the charge's key the
// refund would be a duplicate. With a Fingerprint such a mistake makes a dead letter.
//
// A message's payload is a Request as JSON. One that has more in it, such as an order's
// id, needs a Charger.Decode.
//
// # What is guaranteed
//
// All attempts at one message carry one idempotency key, Claim.ProviderKey, in every
// process. Stripe answers the second with what it has stored for the first, and makes
// no second payment. It forgets keys after 24 hours; no attempt is made after 23. Then,
// and whenever an attempt leaves nobody wiser, Stripe is asked what it has under the
// key. What cannot be told stays in doubt and is never tried again on a guess.
//
// # What Stripe's answers mean
//
//	answer to an attempt                         the payment          and then
//	succeeded, processing                        happened             settled; Status in the result
//	402 card_error: declined, expired ...        never will           settled as failed
//	requires_action (the customer must confirm)  never will           canceled first; if that fails: unknown
//	400, 404 resource_missing, 402: invalid      never will           settled as failed
//	a request that is wrong, see below           never will           nothing was sent
//	400 idempotency_error: other parameters      unknown              asked: something was under this key
//	409 idempotency_key_in_use                   unknown              another attempt is under way
//	429 rate_limit                               did not happen       delivered again
//	429 lock_timeout                             unknown              tried again, same key
//	401, 403; test key, expired key ...          did not happen       delivered again
//	500                                          unknown              asked: it comes again for the same key
//	502, 503, 504 and other pages that are
//	not Stripe's                                 unknown              tried again, same key
//	the reply is lost, late, broken or cut short unknown              tried again, same key
//	no connection, before anything was sent      did not happen       delivered again
//	requires_capture, any other status           unknown              asked, for a person
//
// No connection, 401, 403 and 429 rate_limit say nothing about the payment: they are an
// oncemill.ErrProviderAway, which does not count towards a dead letter.
//
// "Did not happen" and "never will" are what Stripe says of one request. On a second
// attempt they are only believed where the answer holds for the key: a declined card,
// a canceled payment, a replayed answer. Otherwise they are unknown: a rate limit that
// refuses the second request says nothing about the first.
//
// A payment with the status processing may still fail days later, as bank debits do:
// that comes as the event payment_intent.payment_failed.
//
// What Find has found means the same, and a PaymentIntent that is neither paid nor
// refused, or nothing at all, means "did not happen". The Resolver believes that only
// when it has asked later than StripeLandingBound after the last attempt.
//
// # After a 500
//
// Stripe stores a 500 with the key and gives it again for as long as it keeps the key.
// A further attempt cannot help; Find can. If Stripe has made the payment, the claim
// is settled as soon as it is asked. If not, the key is of no use for a day: the
// attempts end after StripeKeyLifetime, the Resolver finds nothing and puts the
// message back, and the next attempt is made with the key that Stripe has forgotten by
// then. To be faster, a person looks it up, resolves the claim as never, and has the
// order sent with another key.
//
// # What is refused without being sent
//
// An amount that is not a whole number of the currency's smallest unit, is not
// positive or exceeds Stripe.MostAmount; a currency that Stripe does not have; an
// amount that the currency has no coins for (a last digit in KWD, cents in ISK); a
// charge without payment method; a refund of nothing; a field that is unknown or there
// twice; more metadata than Stripe keeps. Each is an InputError that names the field.
//
// # Limits
//
//	Charger.Timeout          30 seconds for an attempt; the lease's end wins
//	StripeKeyLifetime        23 hours
//	StripeLandingBound       20 minutes
//	Stripe.MostAmount        99999999; IDR 999999999999, COP 9999999999, INR 999999999
//	Stripe.MostPages         500 lists of 100 payments for one Find
//	metadata                 47 names of 40 bytes with values of 500 bytes
//	message                  its key is in the metadata if it has at most 500 bytes
//
// Installations that share a Stripe account must not have consumers of the same name,
// or their keys are the same. And an installation must not move to another account, or
// from test mode to live, while claims are in doubt: the new account has none of their
// payments. "Did not happen" is an error of the handler's, which consumers.Stack counts
// towards a dead letter.
//
// Nothing here is logged. No error has the API key or a
// PaymentIntent's client secret in its text; it may have what Stripe says of a card.
//
// # Sources
//
// Stripe's own words: keys are kept for at least 24 hours, what was executed is stored
// including 500s, and what fails validation or conflicts is not:
// https://docs.stripe.com/api/idempotent_requests. Rate limits, authentication and most
// validation come before the layer that looks at keys, and a 500 is to be treated as
// indeterminate: https://docs.stripe.com/error-low-level. Search lags, lists do not:
// https://docs.stripe.com/search#data-freshness. Currencies and amounts:
// https://docs.stripe.com/currencies.
//
// Requests are sent with stripe-go, without its retries, and over connections on which
// net/http cannot repeat one by itself. See the package stripeserver in the module
// testcontainers for a Stripe to test with, which honours keys and fails on demand.
package payment

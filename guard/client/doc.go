// Package client is a client of `oncemill guard`: it has an effect outside of Postgres,
// such as a payment, an order or an e-mail, made once, however many processes on however
// many machines set out to make it. It needs nothing but the standard library.
//
//	guard := &client.Client{URL: "https://guard.example.com", APIKey: os.Getenv("GUARD_API_KEY")}
//	if err := guard.Check(ctx); err != nil { ... } // at start: a wrong address or key
//
//	receipt, err := guard.Do(ctx, client.Request{ID: "order:7", Action: "charge"},
//		func(ctx context.Context) (json.RawMessage, error) { return charge(ctx, order) })
//
// Do claims the id, makes the effect, and settles the claim with the receipt. Whoever
// does the same with that id later gets the receipt, and makes no effect. Claim, Settle
// and the others are the single steps.
//
// # What is guaranteed
//
// The function runs only under a claim that is on the guard's disk, and that nobody else
// has. What a claim answers is
//
//	the guard says                               Claim returns       the effect
//	proceed                                      a Claim             is yours to make
//	settled                                      ErrSettled          has happened; Error.Result
//	failed                                       ErrFailed           never will; Error.Reason
//	in flight                                    ErrInFlight         is another's, at this moment
//	in doubt                                     ErrInDoubt          may have happened; nobody knows
//	claimed with another fingerprint             ErrKeyReused        is not the one under this id
//	your request is wrong, or too large          ErrInvalid          was not begun
//	your API key or token is wrong               ErrDenied           was not begun
//	too many requests                            ErrRateLimited      was not begun
//	nothing, or that it cannot say               ErrUnavailable      was not begun by this call
//
// After every error the effect must not be made.
//
// # When something fails
//
//	the claim's reply is lost     it is repeated, and the guard gives the same answer
//	                              again: for 30 seconds, see below
//	the guard is away             the same; then ErrUnavailable. The id may be claimed
//	                              all the same, and in doubt after its lease, though no
//	                              effect was begun
//	the process dies in between   in doubt after the lease. Nothing runs again by
//	                              itself; an operator or a resolver finds out
//	the function's error says     DidNotHappen: the id is released, and free again.
//	                              NeverWill: it failed, and who claims it is told so
//	it says nothing, or panics    in doubt after the lease
//	the lease is about to end     the function's context ends, with ErrLeaseOver
//	the settling's reply is lost  it is repeated; so may the caller do
//	the guard is away meanwhile   Do returns the result beside the error: the effect has
//	                              happened. The claim is in doubt after its lease,
//	                              unless Settle succeeds before somebody looks
//
// A repeated claim carries the nonce of the first try, a random number by which the
// guard knows it. It is honoured for 30 seconds, and never sent later than that after
// the first try. Without one a lost reply would leave a claim of which nobody has the
// token.
//
// # What net/http repeats
//
// A Transport sends a request again by itself if a connection that it has reused breaks
// before anything of the request is written, and over HTTP/2 if the server says that it
// has not looked at it. It takes other POST requests for repeatable only if they have an
// Idempotency-Key; these have none. It would be harmless in any case: a claim that
// arrives twice has one nonce, and what ends a claim can be said twice. Redirects are
// not followed, for they would take the API key elsewhere.
//
// # Words
//
// An effect is what is to happen once. A claim is the right to make it, for as long as
// its lease lasts. A claim is settled when the effect has happened, failed when it never
// will, released when it did not happen and may be tried again, and in doubt when nobody
// knows. An attempt at a claim that has since been given to another is fenced: ErrFenced.
package client

// Package middleware has the Watermill middleware that makes a handler's effects
// happen exactly once.
//
//	router.AddMiddleware(middleware.Once{Inbox: inbox}.Middleware)
//
// It works with every Watermill subscriber, since all it needs is that a message
// that was not acknowledged comes again. The handler writes through the
// transaction in its message's context:
//
//	func(msg *message.Message) ([]*message.Message, error) {
//		tx, _ := oncemill.TxFromContext(msg.Context())
//		_, err := tx.ExecContext(msg.Context(), `INSERT INTO payments ...`)
//		return []*message.Message{receipt}, err
//	}
//
// # Effects outside of Postgres
//
// For a handler that sends an e-mail or charges a card there is Guard. It claims the
// key before the handler runs, and the handler's error says what became of the effect:
//
//	router.AddMiddleware(middleware.Guard{Inbox: inbox, KeyLifetime: 23 * time.Hour}.Middleware)
//
//	func(msg *message.Message) error {
//		claim, _ := oncemill.ClaimFromContext(msg.Context())
//		err := provider.Charge(msg.Context(), claim.ProviderKey(), amount)
//		if declined(err) {
//			return oncemill.NeverWill(err)
//		}
//		return err // nil: it happened; any other: nobody knows
//	}
//
// # Order
//
// What is said of Once here is true of Guard too. Once should be the innermost middleware. From the outside in: metrics, dead
// letter, retry, recover, Once. What swallows an error inside of Once commits
// half of a handler's work: a PoisonQueue there, or CQRS's
// AckCommandHandlingErrors. What retries inside of Once retries in a transaction
// that Postgres has aborted. With Recoverer as the outermost middleware, a
// message that panics is never counted and comes back for ever.
// consumers.Stack puts all of them in order.
//
// # Misuse
//
// What can be seen is refused with an error, and the transaction rolled back; with
// Guard, what is seen after the handler has run leaves its effect in doubt:
//
//	ErrAcked             something has acknowledged the message already
//	ErrNacked            the handler nacked the message and returned nil
//	ErrPoisoned          a PoisonQueue inside has swallowed the error
//	ErrNoTopic           messages were returned without a topic to go to
//	ErrNoParking         Guard does not know the topic of a message
//	oncemill.ErrNested   Once is there twice, or Guard is inside of Once
//	oncemill.ErrTxAborted, oncemill.ErrTxControl
//	                     see package oncemill
package middleware

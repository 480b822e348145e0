// Package email sends mails from Watermill handlers, each of them once as far as SMTP
// allows.
//
// SMTP knows no idempotency key, and a server cannot be asked what it has accepted. So
// a Sender runs under middleware.Guard, which claims the message's key before the mail
// is sent, and tells it what is known when something fails: the mail was not taken, it
// never will be, or nobody knows.
//
//	sender := &email.Sender{Addr: "smtp.example.com:587", Username: "shop", Password: password, From: "Shop <shop@example.com>"}
//	guard := middleware.Guard{Inbox: inbox, Timeout: email.DefaultTimeout, Probe: sender.Check}
//	err := consumers.Stack{Guard: &guard}.Apply(ctx, router)
//	router.AddConsumerHandler("mails", "mails", subscriber, sender.Consume)
//
// A message is a Mail as JSON, unless Sender.Decode says otherwise.
//
// # What becomes of a mail
//
//	step                                what happens                      the mail
//	the message is no mail                                                failed; nothing was sent
//	it is larger than the server takes  by its EHLO                       failed; nothing was sent
//	it needs SMTPUTF8                   the server has none               failed; nothing was sent
//	waiting for a connection            half of Timeout is over           away
//	connect, greeting, EHLO             anything, also 5xx                away
//	STARTTLS, certificate, AUTH         anything, also 5xx                away
//	MAIL with the Sender's address      4xx, 5xx                          away
//	MAIL with the mail's own, RCPT,     4xx                               comes again
//	DATA                                5xx                               failed
//	                                    5xx that is not about the mail    away
//	                                    421, 4.3.x                        away
//	MAIL, RCPT, DATA                    timeout, connection lost          comes again
//	some of several recipients          5xx for one of them               failed; nobody got it
//	                                    4xx for some, 5xx for none        comes again; nobody got it
//	the body                            timeout, connection lost          comes again
//	the end of the data                 not a byte of it has left         comes again
//	the reply to it                     2xx                               sent
//	                                    4xx, 5xx that is not about it     comes again
//	                                    5xx                               failed
//	                                    none, or no SMTP                  in doubt
//	RSET and QUIT afterwards            anything                          sent
//
// Sent is nil, and settles the claim with the Receipt. Failed is oncemill.NeverWill:
// the claim is settled as failed. A mail that comes again was certainly not taken: it is
// oncemill.DidNotHappen, the claim is released, the message delivered again, and a dead
// letter after Stack.MaxErrors. Away is oncemill.ProviderAway, the same, but the mail is
// not to blame, so that it does not count. In doubt is any other error. On a second
// attempt, which only Resend makes, an error says nothing of the first, and all are in
// doubt.
//
// 5xx that are not about the mail are those by which a server says something of its
// client: 500, 502, 503, 504 (the dialogue), 521, 523, 530, 534, 535, 538, 5.7.8, 5.7.9
// (encrypt or authenticate first), and a refusal to relay. 552 to MAIL is about the
// mail. So no mail fails for good while a password is wrong; they wait until it is
// right. Sender.Check finds that out before the router runs.
//
// A server that makes strangers wait (greylisting) refuses with 4xx for longer than the
// default of Stack.MaxErrors lasts, some six minutes: raise it if you send to such a
// server, and not to one that knows you.
//
// A mail to several recipients is one effect: if one of them is refused, nobody gets
// it. Send a mail for each where one may fail alone. A recipient who is named twice is
// one.
//
// A connection that the server has closed between two mails, or that it wants no more
// mails on, is noticed before the next mail's sender was accepted, and replaced.
//
// # In doubt
//
// A mail is in doubt if the end of its data was sent and no reply came. The server may
// have taken it. Its claim's reason has the Message-ID to look for in the server's log;
// then `oncemill claims resolve`. If a mail more is better than a mail less, set
// LostReply to Resend and Guard.KeyLifetime to how long it may be sent again: it is
// sent with the same Message-ID and Date, by which some mailboxes recognise it. With
// Hold, leave KeyLifetime zero.
//
// How seldom that is depends on time: what ends the wait for the reply is Timeout, the
// claim's lease, or the process. Let the lease be longer than Timeout, and Timeout than
// the server's slowest reply.
//
// # Limits
//
// A mail has at most 100 recipients, 50 further headers and 50 attachments; MaxBytes
// when composed; a subject, a header or a name 2,000 bytes. Line breaks and other
// control characters are refused wherever they could make another header or command,
// and so are addresses that only do with quotes. Domains that are not ASCII need a
// server with SMTPUTF8, or their ASCII form.
//
// Passwords are in no error, and what a server says is shortened and cleaned before it
// is in one.
package email

// Package smtpserver runs a real SMTP server, for tests and demonstrations: that of
// emersion/go-smtp, with STARTTLS under a certificate of its own, AUTH, a ledger of
// the mails that it has accepted, and faults on demand.
//
// It is an honest provider. It records a mail before it says so, it never drops a mail
// that it has accepted, and a mail that comes twice is in the ledger twice.
//
//	what happens                              fault
//	it refuses at any step                    Fault{At: Rcpt, Code: 550}
//	the reply is lost, the mail accepted      Fault{At: Accepted, Drop: true}
//	the reply and the mail are lost           Fault{At: EndOfData, Drop: true}
//	it no longer answers                      Fault{At: MailFrom, Freeze: true}
//	it is slow                                Fault{At: Accepted, Delay: time.Second}
//	it closes idle connections                CloseConnections
//
// Start runs one inside the calling process. A program that is to be killed by its
// tests calls Start in a child process and gives both the same Options.Dir: the ledger
// is a file there, which ReadLedger reads, and the certificate too, for ClientTLS.
//
// Servers listen on 127.0.0.1 only. Nothing here knows the package testing.
package smtpserver

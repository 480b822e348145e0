package smtpserver_test

import (
	"fmt"
	"log"
	"net/smtp"
	"os"
	"strings"

	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

// A server that takes mails and whose first reply is lost.
func ExampleStart() {
	server, err := smtpserver.Start(smtpserver.Options{
		NoSTARTTLS: true, // net/smtp cannot be told to trust the server's certificate
		Faults:     []smtpserver.Fault{{At: smtpserver.Accepted, Drop: true, Times: 1}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	mail := []byte("Message-ID: <1@example.com>\r\n\r\nHello")
	for range 2 {
		err := smtp.SendMail(server.Addr(), nil, "shop@example.com", []string{"ann@example.com"}, mail)
		fmt.Println("sent:", err == nil)
	}
	for _, m := range server.Ledger() {
		fmt.Println(m.MessageID, m.Recipients)
	}
	// Output:
	// sent: false
	// sent: true
	// <1@example.com> [ann@example.com]
	// <1@example.com> [ann@example.com]
}

// A server that refuses one recipient, and half of the other mails for a while.
func ExampleServer_Script() {
	server, err := smtpserver.Start(smtpserver.Options{NoSTARTTLS: true})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	server.Script(
		smtpserver.Fault{At: smtpserver.Recipient, Code: 550, Text: "5.1.1 no such user", When: func(e smtpserver.Event) bool {
			return strings.Contains(e.Argument, "nobody@")
		}},
		smtpserver.Fault{At: smtpserver.EndOfData, Code: 451, Text: "4.3.0 later", Rate: 0.5, Times: 100},
	)
	err = smtp.SendMail(server.Addr(), nil, "shop@example.com", []string{"nobody@example.com"}, []byte("\r\nHello"))
	fmt.Println(err)
	// Output: 550 "5.1.1 no such user"
}

// Another process, which has only the directory.
func ExampleReadLedger() {
	dir, err := os.MkdirTemp("", "oncemill-smtp-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	server, err := smtpserver.Start(smtpserver.Options{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	trust, err := smtpserver.ClientTLS(dir)
	if err != nil {
		log.Fatal(err)
	}
	client, err := smtp.Dial(server.Addr())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	fmt.Println(client.StartTLS(trust))
	mails, err := smtpserver.ReadLedger(dir)
	fmt.Println(len(mails), err)
	// Output:
	// <nil>
	// 0 <nil>
}

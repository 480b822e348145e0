package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
)

// certificate writes a certificate for 127.0.0.1, and returns its files.
func certificate(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writeCertificate(t, name, certFile, keyFile)
	return certFile, keyFile
}

func writeCertificate(t *testing.T, name, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	must(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600))
	must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), 0o600))
}

// presents returns the name of the certificate that a guard presents.
func (g *guarding) presents() string {
	g.t.Helper()
	conn, err := tls.Dial("tcp", g.addr, &tls.Config{InsecureSkipVerify: true}) // it signs for itself
	must(g.t, err)
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func TestGuardTakesARenewedCertificate(t *testing.T) {
	t.Parallel()
	url := testenv.PostgresURL(t)
	cert, key := certificate(t, "old")
	g := startGuard(t, url, "--tls-cert", cert, "--tls-key", key)
	writeCertificate(t, "new", cert, key)
	if name := g.presents(); name != "new" {
		t.Errorf("the guard presents %q", name)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, ForceAttemptHTTP2: true}}
	status, fields, err := postTo(client, "https://"+g.addr+"/claim", `{"request_id":"a","action":"x"}`, "")
	if err != nil || status != 200 || fields["status"] != "PROCEED" {
		t.Errorf("got %d %v %v", status, fields, err)
	}
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}
	if conn, err := tls.Dial("tcp", g.addr, old); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is accepted")
	}
	if response, err := g.client.Get("http://" + g.addr + "/health"); err == nil {
		if response.Body.Close(); response.StatusCode == 200 {
			t.Error("it answers without TLS")
		}
	}
}

// One that cannot be read, such as while it is written, leaves the one before.
func TestGuardKeepsItsCertificateIfTheNextIsWrong(t *testing.T) {
	t.Parallel()
	url := testenv.PostgresURL(t)
	for _, half := range []int{0, 1} { // the certificate, or its key
		cert, key := certificate(t, "old")
		g := startGuard(t, url, "--tls-cert", cert, "--tls-key", key)
		other, otherKey := certificate(t, "new")
		newer, err := os.ReadFile([]string{other, otherKey}[half])
		must(t, err)
		must(t, os.WriteFile([]string{cert, key}[half], newer, 0o600))
		must(t, os.Chtimes(cert, time.Time{}, time.Now().Add(time.Minute)))
		if name := g.presents(); name != "old" {
			t.Errorf("the guard presents %q", name)
		}
		if !strings.Contains(g.log.String(), "the certificate could not be read again") {
			t.Errorf("that is not logged:\n%s", g.log)
		}
	}
}

package smtpserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// The files of a server's certificate in its directory.
const (
	certificateFile = "certificate.pem"
	keyFile         = "key.pem"
)

// keys are a server's certificate, which signs itself, and what trusts it.
type keys struct {
	certificate tls.Certificate
	pool        *x509.CertPool
}

func (k *keys) client() *tls.Config {
	return &tls.Config{RootCAs: k.pool, ServerName: "localhost"}
}

func (k *keys) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{k.certificate}}
}

// ClientTLS returns a configuration with which clients trust the servers of a
// directory, in whatever process they run.
func ClientTLS(dir string) (*tls.Config, error) {
	pool, err := readPool(dir)
	if err != nil {
		return nil, fmt.Errorf("the certificate of the SMTP server: %w", err)
	}
	return (&keys{pool: pool}).client(), nil
}

func readPool(dir string) (*x509.CertPool, error) {
	text, err := os.ReadFile(filepath.Join(dir, certificateFile))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has none", filepath.Join(dir, certificateFile))
	}
	return pool, nil
}

// loadKeys returns the keys in a directory, or new ones, which it writes there.
func loadKeys(dir string) (*keys, error) {
	certificate, key, err := readKeys(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if certificate, key, err = makeKeys(); err == nil && dir != "" {
			err = errors.Join(
				os.WriteFile(filepath.Join(dir, keyFile), key, 0o600),
				os.WriteFile(filepath.Join(dir, certificateFile), certificate, 0o600))
		}
	}
	if err != nil {
		return nil, err
	}
	k := &keys{pool: x509.NewCertPool()}
	k.pool.AppendCertsFromPEM(certificate)
	k.certificate, err = tls.X509KeyPair(certificate, key)
	return k, err
}

func readKeys(dir string) (certificate, key []byte, err error) {
	if dir == "" {
		return nil, nil, fs.ErrNotExist
	}
	if certificate, err = os.ReadFile(filepath.Join(dir, certificateFile)); err == nil {
		key, err = os.ReadFile(filepath.Join(dir, keyFile))
	}
	return certificate, key, err
}

func makeKeys() (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "oncemill test SMTP server"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), nil
}

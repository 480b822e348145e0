package deploy_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
)

// A running is the program of a pod on this machine: on loopback, with the files of its
// Secrets in a directory of the test.
type running struct {
	t    *testing.T
	c    *node
	cmd  *exec.Cmd
	addr string
	log  chan string // what it wrote, when it has ended
}

var listens = regexp.MustCompile(`"(?:http|listen)":"(127\.0\.0\.1:[0-9]+)"`)

// start starts the program of a Deployment's pod, with variables in place of its Secrets,
// and waits until it listens. port is what its flag for that says.
func start(t *testing.T, name, port, etc string, env ...string) *running {
	t.Helper()
	oncemill, err := program()
	must(t, err)
	r := &running{t: t, c: container(t, pods(t)["Deployment/"+name]), log: make(chan string, 1)}
	if got := r.c.at("ports").items[0].at("containerPort").scalar; ":"+got != port {
		t.Errorf("%s: the container's port is %s, and it listens on %s", name, got, port)
	}
	words := args(r.c)
	for i := range words {
		words[i] = strings.Replace(words[i], "="+port, "=127.0.0.1:0", 1)
		words[i] = strings.Replace(words[i], "=/etc/oncemill/", "="+etc+"/", 1)
	}
	r.cmd = exec.Command(oncemill, words...)
	r.cmd.Env = env
	stderr, err := r.cmd.StderrPipe()
	must(t, err)
	must(t, r.cmd.Start())
	t.Cleanup(func() { r.cmd.Process.Kill(); r.cmd.Wait() })
	lines, log := bufio.NewScanner(stderr), new(strings.Builder)
	for r.addr == "" && lines.Scan() {
		log.WriteString(lines.Text() + "\n")
		if said := listens.FindStringSubmatch(lines.Text()); said != nil {
			r.addr = said[1]
		}
	}
	if r.addr == "" {
		t.Fatalf("%s did not start:\n%s", name, log)
	}
	go func() {
		for lines.Scan() {
			log.WriteString(lines.Text() + "\n")
		}
		r.log <- log.String()
	}()
	return r
}

// patience bounds what should happen at once.
const patience = 30 * time.Second

func (r *running) get(client *http.Client, url string) (status int, text string) {
	r.t.Helper()
	response, err := client.Get(url)
	must(r.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(r.t, err)
	return response.StatusCode, string(body)
}

// insecure does not look at certificates, as the kubelet does not.
func insecure() *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
}

// wantProbes wants the pod's probes to answer 200, and SIGTERM to end it well.
func (r *running) wantProbes(scheme string) {
	r.t.Helper()
	transport := insecure()
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	for _, probe := range []string{"livenessProbe", "readinessProbe"} {
		get := r.c.at(probe, "httpGet")
		if get.at("port").scalar != r.c.at("ports").items[0].at("name").scalar || !strings.EqualFold(get.at("scheme").scalar, scheme) && scheme != "http" {
			r.t.Errorf("%s asks %s on port %s", probe, get.at("scheme").scalar, get.at("port").scalar)
		}
		// Like the kubelet it asks again: the first round of a relay takes a moment.
		for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			status, text := r.get(client, scheme+"://"+r.addr+get.at("path").scalar)
			if status == http.StatusOK {
				break
			}
			if status != http.StatusServiceUnavailable || probe == "livenessProbe" || time.Since(began) > patience {
				r.t.Fatalf("%s: GET %s answers %d: %s", probe, get.at("path").scalar, status, text)
			}
		}
	}
	must(r.t, r.cmd.Process.Signal(syscall.SIGTERM))
	log := <-r.log
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("after SIGTERM: %v\n%s", err, log)
	}
}

func TestTheProbesOfTheGuardAnswer(t *testing.T) {
	t.Parallel()
	etc := t.TempDir()
	oncemill, err := program()
	must(t, err)
	for _, dir := range []string{"tenants", "audit", "tls"} {
		must(t, os.Mkdir(filepath.Join(etc, dir), 0o700))
	}
	out, err := exec.Command(oncemill, "guard", "tenants", "add", "acme", "--tenants", filepath.Join(etc, "tenants", "tenants.json")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, os.WriteFile(filepath.Join(etc, "audit", "token"), []byte(strings.ToLower(rand.Text()+rand.Text())), 0o400))
	certificate(t, filepath.Join(etc, "tls"))
	start(t, "oncemill-guard", ":8443", etc, "ONCEMILL_DATABASE_URL="+testenv.PostgresURL(t)).wantProbes("https")
}

func TestTheProbesOfTheRelayAnswer(t *testing.T) {
	t.Parallel()
	start(t, "oncemill-relay", ":8080", t.TempDir(), "ONCEMILL_DATABASE_URL="+testenv.PostgresURL(t), "ONCEMILL_NATS_URL="+testenv.NATSURL(t)).wantProbes("http")
}

// The migration of the manifests makes a database that the guard starts on.
func TestTheMigrationOfTheManifestsRuns(t *testing.T) {
	t.Parallel()
	oncemill, err := program()
	must(t, err)
	cmd := exec.Command(oncemill, args(container(t, pods(t)["Job/oncemill-migrate"]))...)
	cmd.Env = []string{"ONCEMILL_DATABASE_URL=" + testenv.EmptyPostgresURL(t)}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "has version") {
		t.Errorf("%v\n%s", err, out)
	}
}

// certificate writes tls.crt and tls.key, for as long as the test runs.
func certificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"oncemill-guard"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: der}, "tls.key": {Type: "PRIVATE KEY", Bytes: private}} {
		must(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o400))
	}
}

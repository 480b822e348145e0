// Package deploy_test keeps the manifests and the Dockerfile true to the program.
package deploy_test

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// buildDir is where the program is built.
var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "oncemill-deploy-"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// program builds the program with the command of the Dockerfile, but for -trimpath, with
// which nothing could be taken from Go's cache.
var program = sync.OnceValues(func() (string, error) {
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		return "", err
	}
	line := regexp.MustCompile(`(?m)^RUN (CGO_ENABLED=0 go build .*) -o /out/oncemill (\./cmd/oncemill)$`).FindSubmatch(text)
	if line == nil {
		return "", errors.New("the Dockerfile does not build /out/oncemill with CGO_ENABLED=0 go build")
	}
	file := filepath.Join(buildDir, "oncemill")
	build := strings.Replace(string(line[1]), " -trimpath", "", 1)
	cmd := exec.Command("sh", "-c", fmt.Sprintf("%s -o '%s' %s", build, file, line[2]))
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return file, nil
})

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// all returns the manifests by kind and name.
func all(t *testing.T) map[string]*node {
	t.Helper()
	files, err := filepath.Glob("kubernetes/*.yaml")
	must(t, err)
	byName := make(map[string]*node)
	for _, file := range files {
		for _, m := range manifests(t, file) {
			byName[m.at("kind").scalar+"/"+m.at("metadata", "name").scalar] = m
		}
	}
	return byName
}

// pods returns the pods that manifests make, by the manifest's name.
func pods(t *testing.T) map[string]*node {
	t.Helper()
	made := make(map[string]*node)
	for name, m := range all(t) {
		if pod := m.at("spec", "template", "spec"); pod.fields != nil {
			made[name] = pod
		}
	}
	for _, name := range []string{"Deployment/oncemill-guard", "Deployment/oncemill-relay", "Job/oncemill-migrate"} {
		if made[name] == nil {
			t.Fatalf("there is no %s", name)
		}
	}
	return made
}

// container returns the one container of a pod.
func container(t *testing.T, pod *node) *node {
	t.Helper()
	containers := pod.at("containers").items
	if len(containers) != 1 {
		t.Fatalf("a pod has %d containers, want 1", len(containers))
	}
	return containers[0]
}

func args(c *node) (args []string) {
	for _, arg := range c.at("args").items {
		args = append(args, arg.scalar)
	}
	return args
}

func TestTheProgramKnowsTheFlagsAndVariablesOfTheManifests(t *testing.T) {
	t.Parallel()
	oncemill, err := program()
	must(t, err)
	for name, pod := range pods(t) {
		c := container(t, pod)
		out, err := exec.Command(oncemill, append(args(c), "--help")...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: oncemill %s: %v\n%s", name, strings.Join(args(c), " "), err, out)
		}
		for _, variable := range c.at("env").items {
			if !strings.Contains(string(out), "("+variable.at("name").scalar+")") {
				t.Errorf("%s: the command %s has no variable %s", name, args(c)[0], variable.at("name").scalar)
			}
		}
	}
	readme, err := os.ReadFile("README.md")
	must(t, err)
	for _, line := range regexp.MustCompile(`(?m)^ *oncemill (.*)$`).FindAllSubmatch(readme, -1) {
		if out, err := exec.Command(oncemill, append(strings.Fields(string(line[1])), "--help")...).CombinedOutput(); err != nil {
			t.Errorf("README.md: %s: %v\n%s", line[0], err, out)
		}
	}
}

// What a flag names must be in a Secret that the README makes, and seen when it changes.
func TestTheSecretsOfTheManifestsAreThoseOfTheREADME(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	must(t, err)
	readme := string(text)
	for name, pod := range pods(t) {
		c := container(t, pod)
		for _, variable := range c.at("env").items {
			secret := variable.at("valueFrom", "secretKeyRef")
			made := "kubectl create secret generic " + secret.at("name").scalar + " --from-literal=" + secret.at("key").scalar + "="
			if secret.fields != nil && !strings.Contains(readme, made) {
				t.Errorf("%s: not in the README: %s", name, made)
			}
		}
		mounted := make(map[string]string) // directories, to Secrets
		for _, mount := range c.at("volumeMounts").items {
			i := slices.IndexFunc(pod.at("volumes").items, func(v *node) bool { return v.at("name").scalar == mount.at("name").scalar })
			if i < 0 || mount.at("subPath").scalar != "" || mount.at("readOnly").scalar != "true" {
				t.Fatalf("%s: mount %s has no volume, or a subPath, or can be written", name, mount.at("name").scalar)
			}
			secret := pod.at("volumes").items[i].at("secret")
			mounted[mount.at("mountPath").scalar] = secret.at("secretName").scalar
			if mode := secret.at("defaultMode").scalar; mode != "0440" || pod.at("securityContext", "fsGroup").scalar == "" {
				t.Errorf("%s: the program cannot read %s, or others can write it: mode %q", name, mount.at("mountPath").scalar, mode)
			}
		}
		for _, arg := range args(c) {
			_, file, _ := strings.Cut(arg, "=")
			if !strings.HasPrefix(file, "/") {
				continue
			}
			secret := mounted[path.Dir(file)]
			if !makesSecret(readme, secret, path.Base(file)) {
				t.Errorf("%s: %s is not of a Secret that the README makes", name, arg)
			}
		}
	}
}

// makesSecret tells whether a command of the README makes a Secret with a file in it.
func makesSecret(readme, secret, file string) bool {
	if secret == "" {
		return false
	}
	return strings.Contains(readme, "create secret generic "+secret+" --from-file="+file+"\n") ||
		strings.HasPrefix(file, "tls.") && strings.Contains(readme, "create secret tls "+secret+" --cert=tls.crt --key=tls.key\n")
}

func TestThePodsHaveNoPrivileges(t *testing.T) {
	t.Parallel()
	for name, pod := range pods(t) {
		c := container(t, pod)
		for want, got := range map[string]*node{
			"runAsNonRoot: true":                  pod.at("securityContext", "runAsNonRoot"),
			"runAsUser: 65532":                    pod.at("securityContext", "runAsUser"),
			"seccompProfile: RuntimeDefault":      pod.at("securityContext", "seccompProfile", "type"),
			"automountServiceAccountToken: false": pod.at("automountServiceAccountToken"),
			"allowPrivilegeEscalation: false":     c.at("securityContext", "allowPrivilegeEscalation"),
			"readOnlyRootFilesystem: true":        c.at("securityContext", "readOnlyRootFilesystem"),
		} {
			if !strings.HasSuffix(want, ": "+got.scalar) || got.scalar == "" {
				t.Errorf("%s: got %q, want %s", name, got.scalar, want)
			}
		}
		if dropped := c.at("securityContext", "capabilities", "drop").items; len(dropped) != 1 || dropped[0].scalar != "ALL" {
			t.Errorf("%s: keeps capabilities", name)
		}
		if c.at("resources", "requests", "memory").scalar == "" || c.at("resources", "limits", "memory").scalar == "" {
			t.Errorf("%s: has no bounds of memory", name)
		}
	}
}

// What selects pods must find them.
func TestEachDeploymentHasTwoPodsAndKeepsOne(t *testing.T) {
	t.Parallel()
	manifests := all(t)
	for _, name := range []string{"oncemill-guard", "oncemill-relay"} {
		deployment, budget := manifests["Deployment/"+name], manifests["PodDisruptionBudget/"+name]
		if deployment == nil || budget == nil {
			t.Fatalf("%s has no Deployment or no PodDisruptionBudget", name)
		}
		if deployment.at("spec", "replicas").scalar != "2" || budget.at("spec", "minAvailable").scalar != "1" {
			t.Errorf("%s has %s pods, of which %s stay", name, deployment.at("spec", "replicas").scalar, budget.at("spec", "minAvailable").scalar)
		}
		labels := deployment.at("spec", "template", "metadata", "labels")
		selectors := []*node{deployment.at("spec", "selector", "matchLabels"), budget.at("spec", "selector", "matchLabels")}
		if service := manifests["Service/"+name]; service != nil {
			selectors = append(selectors, service.at("spec", "selector"))
		}
		for _, spread := range deployment.at("spec", "template", "spec", "topologySpreadConstraints").items {
			selectors = append(selectors, spread.at("labelSelector", "matchLabels"))
		}
		for i, selector := range selectors {
			for label, value := range selector.fields {
				if labels.at(label).scalar != value.scalar {
					t.Errorf("%s: selector %d wants the label %s: %s", name, i, label, value.scalar)
				}
			}
			if len(selector.fields) != 2 {
				t.Errorf("%s: selector %d has %d labels, want 2", name, i, len(selector.fields))
			}
		}
	}
	port := container(t, manifests["Deployment/oncemill-guard"].at("spec", "template", "spec")).at("ports").items[0].at("name").scalar
	if service := manifests["Service/oncemill-guard"].at("spec", "ports").items[0]; service.at("targetPort").scalar != port {
		t.Errorf("the Service sends to %s, the guard listens on %s", service.at("targetPort").scalar, port)
	}
}

func TestTheImageHoldsAProgramThatNeedsNothingElse(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../Dockerfile")
	must(t, err)
	mod, err := os.ReadFile("../go.mod")
	must(t, err)
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(mod)[1]
	for _, line := range []string{
		"FROM golang:" + string(version) + " AS build", "FROM scratch", "USER 65532:65532", `ENTRYPOINT ["/oncemill"]`,
		"COPY --from=build /out/oncemill /oncemill", "COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt",
	} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("the Dockerfile does not say %s", line)
		}
	}
	oncemill, err := program()
	must(t, err)
	if runtime.GOOS != "linux" {
		return
	}
	file, err := elf.Open(oncemill)
	must(t, err)
	defer file.Close()
	if libraries, err := file.ImportedLibraries(); err != nil || len(libraries) > 0 || file.Section(".interp") != nil {
		t.Errorf("the program is not static: it needs %v (%v)", libraries, err)
	}
}

// What .dockerignore leaves out does not reach the build.
func TestNothingThatTheBuildNeedsIsIgnored(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../.dockerignore")
	must(t, err)
	root, err := filepath.Abs("..")
	must(t, err)
	cmd := exec.Command("go", "list", "-deps", "-f", `{{$d := .Dir}}{{range .GoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{range .EmbedFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}`, "./cmd/oncemill")
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	out, err := cmd.Output()
	must(t, err)
	files := []string{"go.mod", "go.sum"}
	for file := range strings.SplitSeq(string(out), "\n") {
		if name, ok := strings.CutPrefix(file, root+"/"); ok {
			files = append(files, name)
		}
	}
	if len(files) < 50 {
		t.Fatalf("the build needs %d files only", len(files))
	}
	for _, file := range files {
		if pattern := ignoredBy(t, string(text), file); pattern != "" {
			t.Errorf("%s ignores %s", pattern, file)
		}
	}
	for _, file := range []string{".git/config", "tenants.json", "deploy/tenants.json", "tls.key", "guard/guard_test.go", "x/.env.local"} {
		if ignoredBy(t, string(text), file) == "" {
			t.Errorf("%s gets into the build", file)
		}
	}
}

// ignoredBy returns the pattern that leaves a file out, "" if none does.
func ignoredBy(t *testing.T, patterns, file string) string {
	t.Helper()
	for pattern := range strings.FieldsSeq(regexp.MustCompile(`(?m)^#.*`).ReplaceAllString(patterns, "")) {
		name, anywhere := strings.CutPrefix(pattern, "**/")
		if strings.ContainsAny(name, "/!") {
			t.Fatalf(".dockerignore: %s is more than this test reads", pattern)
		}
		parts := strings.Split(file, "/")
		if !anywhere {
			parts = parts[:1]
		}
		for _, part := range parts {
			if ok, err := path.Match(name, part); ok || err != nil {
				return pattern
			}
		}
	}
	return ""
}

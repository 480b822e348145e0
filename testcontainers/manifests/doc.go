// Package manifests checks the manifests of deploy/kubernetes against Kubernetes's own
// schemas.
package manifests
